"""Measure codecs on images: real files, rate, distortion, time; a table, BD-rates and plots. Reads from top to bottom.

    python eval.py                                    our codec beside JPEG, WebP and AVIF on four photographs
    python eval.py --data kodak --codec lic lic:runs/001/model.safetensors@10,30,50,70,90 jpeg --out results
    python eval.py --data kodak --codec lic --anchor vtm --range full
    python eval.py --data kodak --codec lic avif jxl --anchor avif --metric ssimulacra2
    python eval.py --data photos/ --codec compressai:mbt2018-mean:trained.pth.tar bridge:mbt2018-mean:trained.pth.tar

Every codec writes real files, and what is reported is measured on what is on the disk: PSNR, which published curves are
of, MS-SSIM and SSIMULACRA 2 of the 8-bit image, CVVDP where the extra `perceptual` is installed (JPEG XL needs it too);
bpp, estimated bits, entropy of the symbols, steps across block borders, milliseconds, peak memory, parameters and
kMAC/pixel. BD-rates are of each metric; --metric says which one counts, for --anchor, --range and the exit code, and is
shown first. Images too small for a metric (SSIMULACRA 2: 225 pixels, MS-SSIM: 161) and those that a codec kept without
loss, whose PSNR is infinite, are named; they are in no codec's means.

Files are made by --jobs processes, times are not: the first four images are coded once more when these are gone, one
after another, with all threads. Kodak's files are checked against their SHA-256, and published curves, whose sources
are in codec/evaluation/anchors.json, are compared on Kodak only. CompressAI's tools read our JSON, `lic plot` theirs.

The output folder holds CODEC.json (means in CompressAI's keys, and a row for every file), files/ (every file that was
measured), table.txt and bd_rate.json, rd.png and rd.svg with a panel for each metric, and latents.png (our symbols
under the densities of the model). report.html shows all of it, and the pictures side by side, in one file for any
browser. The same command again goes on where the last one stopped (rows.jsonl), whether that was at its end or not:
every number is kept under a hash of codec, settings, model, pixels, metrics, versions and the part of our source that
codes or measures. What one codec cannot code is reported and does not stop the others.
"""

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported: codec/machine.py says why

try:
    import numpy as np
    import torch
except ModuleNotFoundError as error:
    sys.exit(f"eval.py: {error.name} is not installed: pip install -e '.[train]'")

from codec.coding.codec import Codec
from codec.coding.tiles import Latent, planes
from codec.errors import MENDABLE, LicError, explain
from codec.evaluation import plot
from codec.evaluation.codecs import FileCodec, make_codec
from codec.evaluation.curves import ANCHORS, BD_METHOD, Curve, anchors, bd_range, bd_rate, read_curve, read_curves
from codec.evaluation.evaluate import JOURNAL, load_image, run
from codec.evaluation.kodak import is_kodak, kodak
from codec.evaluation.metrics import METRICS, measurable
from codec.evaluation.report import write_report
from codec.evaluation.results import Result, table
from codec.evaluation.rivals import RIVALS
from codec.files import find_images, free_folder, sample_images, write_atomically
from codec.machine import keep_freed_memory, prepare_process


def make_images(folder: Path | None) -> list[tuple[str, object]]:
    """Return (name, path) of every image below a folder, or (name, image) of the sample photographs."""
    if folder is None:
        return sample_images()
    return [(path.relative_to(folder).with_suffix("").as_posix(), path) for path in find_images(folder)]


def find_anchor(text: str | None, names: Sequence[str], metric: str = "psnr") -> str | dict[str, Curve] | None:
    """Return what BD-rates are relative to: a codec of the run, or the curves, by metric, of published points or of a
    file; by default jpeg, where it runs. LicError where there is none, or none of `metric`.
    """
    if text is None:
        return "jpeg" if "jpeg" in names else None
    if text in names:
        return text
    if text in anchors():
        path, name = ANCHORS, text
    else:
        file, _, name = (text, "", "") if Path(text).is_file() else text.rpartition(":")
        path, name = Path(file), name or None
        if not path.is_file():
            known = f"a codec of this run ({', '.join(names)}), published ({', '.join(anchors())})"
            raise LicError(f"--anchor {text} is neither {known} nor a file")
    read_curve(path, name, metric)
    curves = read_curves(path, name)
    if next(iter(curves.values())).name in names:  # another one than that of the run: it goes by the file's name
        curves = {key: curve._replace(name=text) for key, curve in curves.items()}
    return curves


def bd_rates(
    results: Sequence[Result], anchor: Curve | Result, metric: str, wanted: tuple[float, float] | str | None = None
) -> dict[str, tuple[float, float, float] | str]:
    """Return the BD-rate in percent of every result relative to the anchor, and from where to where it is taken, as
    curves.bd_range has it; or why there is none. Published points hold on Kodak only.
    """
    rates: dict[str, tuple[float, float, float] | str] = {}
    for result in results:
        try:
            if isinstance(anchor, Curve) and anchor.name in anchors() and anchor == read_curve(ANCHORS, anchor.name):
                if not is_kodak(image["sha256"] for image in result.images):
                    raise LicError(f"{anchor.name} is known on the 24 Kodak images, which these are not")
            for measured in (result, anchor):
                if isinstance(measured, Result) and (holes := measured.without_score(metric)):
                    label = METRICS[metric].label
                    raise LicError(f"{measured.name} has no finite {label} of every image ({', '.join(holes)})")
            reference = anchor.curve(metric) if isinstance(anchor, Result) else anchor
            curve = result.curve(metric)
            low, high = bd_range(reference, curve, wanted)
            rates[result.name] = bd_rate(reference, curve, low, high), low, high
        except LicError as error:
            rates[result.name] = str(error)
    return rates


def latent_panels(model: Codec, latents: Sequence[Latent], quality: int | None) -> list[plot.Panel]:
    """Symbols of several images beside their densities: 12 channels of a factorized model; of one with a hyperprior the
    4 busiest channels of z, and 8 groups of y that were coded with the same table, each at least a thousandth of y.
    """
    hyper, network = latents[0].z is not None, model.backend.network
    with torch.inference_mode():
        level = network.level_of(quality)
        gain = network.hyper_gain_at(level) if hyper else network.gain_at(level)
        rows, first = network.prior.pmfs(gain[0, :, 0, 0], network.prior.support())
    parts = [latent.z[0] if hyper else latent.y[0] for latent in latents]  # (C, h, w) each
    channels = np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)
    name = "z, channel" if hyper else "channel"
    shown = plot.by_spread(channels, len(channels))[:4] if hyper else plot.by_spread(channels)
    panels = [plot.Panel(f"{name} {c}", channels[c], first[c] + np.arange(len(rows[c])), rows[c]) for c in shown]
    if hyper:
        y, index = (np.concatenate([getattr(latent, part).ravel() for latent in latents]) for part in ("y", "index"))
        tables = [i for i, count in enumerate(np.bincount(index)) if count >= y.size / 1000]
        groups = [y[index == i] for i in tables]
        rows, first = network.conditional.pmfs()
        for g in plot.by_spread(groups, 8):
            i = tables[g]
            values = first[i] + np.arange(len(rows[i]))
            panels.append(plot.Panel(f"y, scale {network.conditional.scales[i]:.2f}", groups[g], values, rows[i]))
    return panels


def plot_latents(codec: FileCodec, images: Sequence[tuple[str, object]], path: Path) -> None:
    """Plot the symbols of up to 24 images at the middle one of the codec's qualities, under the model's densities."""
    quality = codec.qualities[len(codec.qualities) // 2]
    latents = [codec.model.latent(planes(load_image(image)), quality) for _, image in images[:24]]
    title = f"Latents of {codec.name}" + ("" if quality is None else f" at quality {quality}")
    plot.latent_histograms(latent_panels(codec.model, latents, quality), path, title)


def compare(
    results: Sequence[Result],
    anchor: str | dict[str, Curve],
    metric: str,
    wanted: tuple[float, float] | str | None = None,
) -> tuple[str, dict]:
    """Return the BD-rates of a run as text, and what bd_rate.json holds: of every metric that was measured, of
    `metric`, which is the first, over the range that is wanted. `anchor` is a codec of the run, or curves by metric.
    """
    if isinstance(anchor, str):
        reference = next(result for result in results if result.name == anchor)
        known, name = {key: reference for key in METRICS}, anchor
    else:
        known, name = anchor, next(iter(anchor.values())).name
    text, document = f"BD-rate relative to {name}, {BD_METHOD}\n", {}
    for key in [metric, *(key for key in measured(results) if key != metric and key in known)]:
        limits = wanted if key == metric else None
        rates = bd_rates(results, known[key], key, limits)
        text += f"  at equal {METRICS[key].label}\n"
        for codec, rate in rates.items():
            if isinstance(rate, str):
                text += f"    {codec:<24}    none: {rate}\n"
            else:
                text += f"    {codec:<24}{rate[0]:+8.2f} %, {METRICS[key].range_text(*rate[1:])}\n"
        document[key] = {
            "range": limits or METRICS[key].bd_range or "full",
            "percent": {codec: rate if isinstance(rate, str) else rate[0] for codec, rate in rates.items()},
            "ranges": {codec: rate[1:] for codec, rate in rates.items() if not isinstance(rate, str)},
        }
    return text, {"anchor": name, "method": BD_METHOD, "metric": metric, "rates": document}


def measured(results: Sequence[Result]) -> list[str]:
    """The keys of the metrics of which a result has a finite score."""
    return [key for key in METRICS if any(key in result.metrics() for result in results)]


def evaluate(args: argparse.Namespace) -> int:
    out = args.out or free_folder("runs/eval-")
    if out.exists() and not out.is_dir():
        raise LicError(f"{out} is not a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / JOURNAL).exists() and not args.force:
        raise LicError(f"{out} is not empty and no evaluation's; choose another --out, or -f to write into it")
    data = kodak() if args.data == Path("kodak") and not args.data.exists() else args.data
    images = make_images(data)
    codecs = [make_codec(text, args.device) for text in args.codec]
    anchor = find_anchor(args.anchor, [codec.name for codec in codecs], args.metric)

    results = run(codecs, images, out, jobs=args.jobs)
    for result in results:
        write_atomically(out / f"{result.name}.json", result.to_json().encode())

    report, document = table(results), None
    if anchor is not None:
        rates, document = compare(results, anchor, args.metric, args.range)
        report += rates
        write_atomically(out / "bd_rate.json", json.dumps(document, indent=1).encode())
    print(report)
    write_atomically(out / "table.txt", report.encode())

    there = measured(results)
    published = [anchor[key] for key in there if key in anchor] if isinstance(anchor, dict) else []
    curves = [result.curve(key) for key in there for result in results] + published
    title = f"{len(images)} images" + (f" of {data.resolve().name}" if data else ", sample photographs")
    if curves:
        for name in ("rd.png", "rd.svg"):
            plot.rd_curves(curves, out / name, title)
    failed = {failure["image"] for result in results for failure in result.failures}
    ours = [codec for codec in codecs if codec.model is not None]
    coded = [(name, image) for name, image in images if name not in failed]
    if ours and coded:
        plot_latents(ours[0], coded, out / "latents.png")
    write_report(out, results, images, codecs, published, document, args.command, title, args.metric)

    for result in results:
        for row in result.rows:
            if row.misses_estimate:
                say(f"{row.file}: {row.bytes} bytes, but the model estimates {row.estimated_bytes:.1f}")
        for failure in result.failures:
            level = "" if failure["quality"] is None else f" at quality {failure['quality']}"
            say(f"{result.name} failed on {failure['image']}{level}: {failure['error']}")
    say(f"results are in {out}")
    rates = {} if args.anchor is None else document["rates"][args.metric]["percent"]
    undefined = any(isinstance(rate, str) for rate in rates.values())
    return 1 if failed or undefined else 0


def say(text: str) -> None:
    print(f"eval.py: {text}", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; return 0, or 1 where anything could not be done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR|kodak",
        help="images, recursively, or the 24 Kodak images, downloaded once, or from $LIC_KODAK (default: sample "
        "photographs)",
    )
    parser.add_argument(
        "--codec",
        nargs="+",
        action="extend",
        metavar="NAME[:MODEL][@q1,q2,...]",
        help="what to measure and at which qualities 0..100; may be repeated: lic (the default model), lic:MODEL (a "
        "shipped model's name or an exported one's path), compressai:ARCHITECTURE:CHECKPOINT with its own coder, "
        f"bridge:ARCHITECTURE:CHECKPOINT with ours, {', '.join(RIVALS)} (default: lic jpeg webp avif)",
    )
    parser.add_argument(
        "--anchor",
        metavar="NAME|FILE[:CURVE]",
        help="what BD-rates are relative to: a codec of this run, a published curve on Kodak "
        f"({', '.join(anchors())}), or a JSON file of results or of named curves (default: jpeg, where it runs)",
    )
    parser.add_argument(
        "--metric",
        choices=METRICS,
        default="psnr",
        help="at equal values of which BD-rates are wanted, by --anchor, over --range; those of the others are there, "
        "too (default: psnr)",
    )
    ranges = [f"{metric.label} {metric.range_text(*metric.bd_range)}" for metric in METRICS.values() if metric.bd_range]
    parser.add_argument(
        "--range",
        nargs="+",
        metavar=("LOW HIGH", "full"),
        help="range of the BD-rate in units of --metric; full: all that both curves have (default: "
        f"{', '.join(ranges)}, of others full)",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=min(os.cpu_count() or 1, 8),
        metavar="N",
        help="processes that make files; times are taken after that, without them (default: one per core, 8 at most)",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="output folder (default: the first free runs/eval-NNN)")
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="where lic runs (default: auto)"
    )
    parser.add_argument("-f", "--force", action="store_true", help="write into an output folder that is not empty")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    prepare_process()
    keep_freed_memory()
    args = parser.parse_args(argv)
    args.codec = args.codec or ["lic", "jpeg", "webp", "avif"]
    args.command = shlex.join(["python", "eval.py", *(sys.argv[1:] if argv is None else argv)])
    try:
        if args.range == ["full"]:
            args.range = "full"
        elif args.range is not None:
            low, high = args.range = tuple(map(float, args.range))
            if not low < high:
                raise LicError
    except ValueError:
        parser.error("--range needs LOW and HIGH, LOW below HIGH, or full")
    if args.metric not in measurable():
        parser.error(f"--metric {args.metric} needs a package that is not installed: pip install -e '.[perceptual]'")
    if args.jobs < 1:
        parser.error(f"--jobs needs at least 1, not {args.jobs}")
    try:
        return evaluate(args)
    except MENDABLE as error:
        if args.debug:
            raise
        say(f"error: {explain(error)}")
        return 1
    except KeyboardInterrupt:
        say("interrupted: the same command goes on where it was")
        return 1


if __name__ == "__main__":
    sys.exit(main())
