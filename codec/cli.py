"""The command line: lic compress, decompress, info, models, export, plot, demo.

Data goes to files or, for `-`, to stdout; messages go to stderr. Exit code 0: all done, 1: something failed (one line
each), 2: a wrong command line. torch is imported only by commands that need it.
"""

import argparse
import io
import json
import os
import sys
from collections import Counter
from pathlib import Path

from codec.arguments import parser
from codec.batch.jobs import Work, complaint, run, say
from codec.batch.plan import expand, plan, remove_temporaries, share
from codec.container import bitstream
from codec.errors import MENDABLE, LicError, explain
from codec.files import IMAGES, read_bytes, standard, write_bytes
from codec.machine import prepare_process

LIC = {".lic"}


def names_image(path: str) -> bool:
    """Whether a path that is no folder has the extension of an image."""
    return Path(path).suffix.lower() in IMAGES and not os.path.isdir(path)


def convert(
    args: argparse.Namespace, extensions: set[str], suffix: str, work: Work, others: Counter | None = None
) -> int:
    """Do the work for every input; returns the exit code. `others` counts files in folders that were left out."""
    if args.output is None and "-" in args.inputs and sys.stdout is not None and sys.stdout.isatty():
        raise LicError("stdout is a terminal: give -o FILE, or -o - if that is what you want")
    jobs = plan(args.inputs, extensions, args.output, suffix, args.force or args.resume, others)
    if args.resume:
        remove_temporaries(jobs)
    return run(jobs, work, args.jobs, args.debug, share(args.inputs))


def compress(args: argparse.Namespace) -> int:
    """Images to .lic files; at the end a line about files in folders that were left out."""
    from codec.batch.work import Compressor

    options = ("model", "device", "backend", "precision", "quality", "bpp", "size", "ssimulacra2", "effort")
    given = {name: getattr(args, name) for name in (*options, "strict", "verify", "resume")}
    if args.output and names_image(args.output):
        raise LicError(f"{args.output}: what is written is a .lic file, whatever its name: choose a name in .lic")
    work = Compressor(**given, replace=args.force)
    others: Counter = Counter()
    code = convert(args, IMAGES, ".lic", work, others)
    del others[".lic"]
    if others and share(args.inputs)[0] == 0:
        say(f"lic: left out, by extension: {', '.join(f'{count} {name}' for name, count in sorted(others.items()))}")
    return code


def decompress(args: argparse.Namespace) -> int:
    """.lic files to images."""
    from codec.batch.work import Decompressor

    for name in args.inputs:
        if names_image(name):
            raise LicError(f"{name}: an image, not a .lic file")
    work = Decompressor(args.model, args.device, args.backend, args.force, args.resume, args.region)
    return convert(args, LIC, ".png", work)


def info(args: argparse.Namespace) -> int:
    """Describe .lic files: a line each, as soon as one is read, or one JSON document at the end."""
    described, count, failures = [], 0, 0
    try:
        for source, _ in expand(args.inputs, LIC):
            count += 1
            try:
                data = read_bytes(source)
                header, sections = bitstream.read(data)
            except MENDABLE as error:
                if args.debug:
                    raise
                failures += 1
                say(complaint(source, explain(error)))
                continue
            if args.check:
                print(f"{source}: intact")
            elif args.json:
                described.append(describe(source, data, header, sections))
            else:
                print(in_words(describe(source, data, header, sections)))
    finally:
        if args.json:
            print(json.dumps(described, indent=1))
    if args.check and count > 1:
        say(f"{count - failures} of {count} files are intact")
    return 1 if failures else 0


def describe(source: str, data: bytes, header: bitstream.Header, sections: list[bitstream.Section]) -> dict:
    """The header and sections of a file as a description, ready for JSON."""
    return {
        "file": source, "bytes": len(data), "width": header.width, "height": header.height, "mode": header.mode,
        "quality": header.quality, "effort": bitstream.effort(sections),
        "bpp": 8 * len(data) / (header.width * header.height), "model": header.model,
        "version": bitstream.WITH_CONTEXT if header.context else bitstream.VERSION,
        "metadata": [bitstream.METADATA[tag] for tag, _ in sections if tag in bitstream.METADATA],
        "sections": [{"tag": tag, "bytes": len(body)} for tag, body in sections],
    }  # fmt: skip


def in_words(file: dict) -> str:
    """The description of a file as a line."""
    quality = "" if file["quality"] is None else f", quality {file['quality']}"
    quality += f", effort {file['effort']}" if file["effort"] else ""
    beside = f", {', '.join(file['metadata'])}" if file["metadata"] else ""
    return (
        f"{file['file']}: {file['width']}x{file['height']} {file['mode']}{quality}, {file['bytes']} bytes, "
        f"{file['bpp']:.3f} bpp{beside}, model {file['model']}, checksums intact"
    )


def models(args: argparse.Namespace) -> int:
    """List the models; the rates of one are those in its metadata, or else its range of lambda."""
    from importlib.util import find_spec

    from codec.coding import models as checkpoint
    from codec.evaluation.cost import kmac_of

    backend = "torch" if find_spec("torch") else "onnx"  # only torch counts multiplications
    code, paths = 0, list(checkpoint.shipped())
    chosen = next((path for path in paths if path.stem == checkpoint.DEFAULT), None)
    for path in paths:
        try:
            model = checkpoint.load_model(path, backend=backend)
        except checkpoint.ModelError as error:
            say(f"lic: {error}")
            code = 1
            continue
        kmac = kmac_of(model) if model.backend.encodes else None
        work = f"{kmac[0]:.1f} / {kmac[1]:.1f} kMAC/pixel (encoder / decoder), " if kmac else ""
        rates = checkpoint.about(path).get("rates", "lambda " + " to ".join(f"{v:g}" for v in model.config.lmbda))
        default = " (default)" if path == chosen else "" if model.backend.encodes else " (only decodes)"
        print(
            f"{path.stem}{default}: id {model.id}, {path.stat().st_size / 1e6:.1f} MB, {model.config.prior}, "
            f"{model.backend.parameters / 1e6:.2f} M parameters, {work}"
            f"{'quality 0..100, ' if model.config.variable_rate else ''}{rates}\n  {path}"
        )
    return code


def plot(args: argparse.Namespace) -> int:
    """Draw a figure; for rate-distortion curves also print the BD-rate of each against the first."""
    from codec.evaluation.curves import bd_range, bd_rate
    from codec.evaluation.metrics import METRICS
    from codec.evaluation.plot import plot_files

    if args.output not in (None, "-") and Path(args.output).suffix.lower() not in (".png", ".svg"):
        raise LicError(f"{args.output}: a figure is a .png or a .svg")
    drawn = io.BytesIO()
    drawn.name = args.output or ""
    name, curves = plot_files(args.inputs, drawn, args.metric)
    target = args.output or f"{name}.png"
    write_bytes(target, drawn.getvalue(), args.force)
    say(f"{', '.join(args.inputs)} -> {target}")
    for curve in curves[1:]:
        try:
            low, high = bd_range(curves[0], curve)
            rate = bd_rate(curves[0], curve, low, high)
            metric = METRICS[curve.metric]
            over = f"{metric.label} {metric.range_text(low, high)}"
            say(f"{curve.name}: BD-rate {rate:+.1f} % against {curves[0].name}, {over}")
        except LicError as error:  # a curve that does not span the range, or has few points
            say(f"{curve.name}: no BD-rate ({error})")
    return 0


def demo(args: argparse.Namespace) -> int:
    """Compress sample photographs and compare."""
    from codec.batch.work import announce_kernels
    from codec.evaluation.demo import run_demo

    announce_kernels()
    return run_demo(args.out, args.device)


def export(args: argparse.Namespace) -> int:
    """A model to ONNX files."""
    from codec.coding.export import write_graphs
    from codec.coding.models import find_model

    for path in write_graphs(find_model(args.model), args.folder, args.force):
        say(f"{args.model} -> {path}")
    return 0


def many(args: argparse.Namespace) -> bool:
    """Whether a command works on several files, of which some may be done."""
    return hasattr(args, "resume") and (len(args.inputs) > 1 or any(os.path.isdir(name) for name in args.inputs))


COMMANDS = {
    "compress": compress, "decompress": decompress, "info": info, "models": models, "export": export, "plot": plot,
    "demo": demo,
}  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    prepare_process()
    if sys.stderr is None:  # it is closed
        sys.stderr = open(os.devnull, "w")
    if isinstance(sys.stdout, io.TextIOWrapper):
        anything = "surrogateescape" if sys.stdout.encoding.lower() == "utf-8" else "backslashreplace"
        sys.stdout.reconfigure(errors=anything)  # file names may be any bytes
    try:
        args = parser().parse_args(argv)
    except BrokenPipeError:  # the reader of --version or --help has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # where what is left goes
        return 1
    args.inputs = [standard(name, 0) for name in getattr(args, "inputs", ())]
    if getattr(args, "output", None):
        args.output = standard(args.output, 1)
    try:
        return COMMANDS[args.command](args)
    except MENDABLE as error:
        if args.debug:
            raise
        say(f"lic: {explain(error)}")
        return 1
    except KeyboardInterrupt:
        say("lic: interrupted; --resume goes on with what is not done" if many(args) else "lic: interrupted")
        return 1


if __name__ == "__main__":
    sys.exit(main())
