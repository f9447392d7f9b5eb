"""The command line: lic compress, decompress, info, models, plot, demo.

Data goes to files or, for `-`, to stdout; messages go to stderr. Exit code 0: all done, 1: something failed (one line
each), 2: the command line makes no sense. torch is imported only by the commands that need it.
"""

import argparse
import io
import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import codec
from codec import bitstream

DEFAULT_QUALITY = 50


class Failure(Exception):
    """What went wrong with one file, as a sentence for the user."""


def say(message: str) -> None:
    print(message, file=sys.stderr)


def read_bytes(source: str) -> bytes:
    return sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()


def write_bytes(target: str, data: bytes, force: bool) -> None:
    """Write a whole file or none; refuses to replace one unless `force`."""
    if target == "-":
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    from codec.checkpoint import write_atomically

    if Path(target).exists() and not force:
        raise Failure(f"{target} exists; -f replaces it")
    write_atomically(target, data)


def expand(inputs: list[str], pick: Callable[[Path], list[Path]]) -> list[str]:
    """The inputs with every folder replaced by the files in it."""
    files = []
    for name in inputs:
        files += map(str, pick(Path(name))) if name != "-" and Path(name).is_dir() else [name]
    return files


def plan(inputs: list[str], files: list[str], out: str | None, suffix: str, force: bool) -> list[tuple[str, str]]:
    """(source, target) of each file; Failure before any work if targets collide or exist."""
    into_folder = out is not None and out != "-" and (len(files) > 1 or files != inputs or Path(out).is_dir())
    if out == "-" and len(files) != 1:
        raise Failure(f"{len(files)} inputs do not fit into one stdout")
    jobs = []
    for source in files:
        if source == "-":
            if into_folder:
                raise Failure("stdin has no name to store it under in a folder: give a file as OUT")
            target = out or "-"
        elif into_folder:
            target = str(Path(out) / Path(source).with_suffix(suffix).name)
        else:
            target = out or str(Path(source).with_suffix(suffix))
        jobs.append((source, target))
    seen = set()
    for target in (Path(target).resolve() for _, target in jobs if target != "-"):
        if target in seen:
            raise Failure(f"two inputs would both be written to {target}")
        seen.add(target)
    existing = [target for _, target in jobs if target != "-" and Path(target).exists()]
    if existing and not force:
        more = f" (and {len(existing) - 1} more)" if len(existing) > 1 else ""
        raise Failure(f"{existing[0]} exists{more}; -f replaces it")
    if into_folder:
        Path(out).mkdir(parents=True, exist_ok=True)
    return jobs


def run_jobs(jobs: list[tuple[str, str]], work: Callable[[str, str], str], debug: bool) -> int:
    """Do `work` for each job; a failed one is told and does not stop the others. Returns the exit code."""
    from tqdm import tqdm

    failures = 0
    for source, target in tqdm(jobs, unit="file", disable=len(jobs) < 2 or not sys.stderr.isatty()):
        try:
            tqdm.write(work(source, target), file=sys.stderr)
        except Exception as error:
            if debug:
                raise
            failures += 1
            tqdm.write(f"lic: {source}: {explain(error)}", file=sys.stderr)
    if len(jobs) > 1:
        say(f"{len(jobs) - failures} of {len(jobs)} files done" + (f", {failures} failed" if failures else ""))
    return 1 if failures else 0


def explain(error: Exception) -> str:
    """One line for an exception; one that no check of ours raised is called by its class."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    text = " ".join(str(error).split())
    return text if isinstance(error, (Failure, OSError, ValueError)) else f"{type(error).__name__}: {text}"


def open_image(source: str, max_pixels: int, strict: bool):
    """A loaded PIL image that can be coded; of several frames or pages the first, which `strict` refuses."""
    from PIL import Image, UnidentifiedImageError

    from codec import modes

    Image.MAX_IMAGE_PIXELS = None  # the limit below is ours, checked before any pixel is decoded
    data = read_bytes(source)
    if not data:
        raise Failure("the file is empty")
    try:
        with warnings.catch_warnings(action="ignore"):  # of damage that does not matter
            image = Image.open(io.BytesIO(data))
            if image.width * image.height > max_pixels:
                raise Failure(f"{image.width}x{image.height} pixels are more than the limit of {max_pixels}")
            modes.check(image)
            has_more = modes.has_more(image)
            image.load()
    except UnidentifiedImageError:
        raise Failure("not an image that Pillow can read") from None
    except (Failure, modes.UnsupportedImage):
        raise
    except Exception as error:  # each of Pillow's decoders has classes of its own for damage
        raise Failure(f"damaged image: {error}") from error
    if has_more and strict:
        raise Failure("it has more than one frame or page, which --strict refuses; without it the first is coded")
    if has_more:
        say(f"lic: {source}: it has more than one frame or page, only the first is coded")
    return image


def announce_kernels() -> None:
    """Say so if the entropy coder's kernels will be compiled in this run, which happens once per machine."""
    import entropy

    if not entropy.kernels_cached():
        say("lic: first run on this machine: compiling the entropy coder, some seconds, once ...")


def compress(args: argparse.Namespace) -> int:
    from codec.image import find_images

    files = expand(args.inputs, find_images)
    jobs = plan(args.inputs, files, args.output, ".lic", args.force)
    announce_kernels()
    model = codec.load(args.model, args.device, args.precision)
    default = DEFAULT_QUALITY if model.config.variable_rate else None

    def work(source: str, target: str) -> str:
        image = open_image(source, bitstream.MAX_PIXELS, args.strict)
        pixels = image.width * image.height
        if args.bpp is not None or args.size is not None:
            data, quality = model.compress_to(image, args.bpp * pixels / 8 if args.size is None else args.size)
        else:
            quality = default if args.quality is None else args.quality
            data = model.compress(image, quality)
        write_bytes(target, data, args.force)
        told = "" if quality is None else f", quality {quality}"
        header, _ = bitstream.read(data)
        size = f"{header.width}x{header.height}, {len(data)} bytes, {8 * len(data) / pixels:.3f} bpp"
        return f"{source} -> {target}: {size}{told}"

    return run_jobs(jobs, work, args.debug)


def find_lic(folder: Path) -> list[Path]:
    """All .lic files below a folder, sorted by path; Failure if there are none."""
    paths = sorted(folder.rglob("*.lic"))
    if not paths:
        raise Failure(f"no .lic files in {folder}")
    return paths


def decompress(args: argparse.Namespace) -> int:
    from codec import metadata

    files = expand(args.inputs, find_lic)
    jobs = plan(args.inputs, files, args.output, ".png", args.force)
    loaded = {}

    def work(source: str, target: str) -> str:
        data = read_bytes(source)
        header, _ = bitstream.read(data)  # damage is found before a model is looked for
        if header.model not in loaded:
            from codec import checkpoint

            announce_kernels()
            path = checkpoint.find_model(args.model, header.model)
            loaded[header.model] = checkpoint.load_model(path, codec.pick_device(args.device))
        image = loaded[header.model].decompress(data)
        form = format_of(target)
        packed, lost = metadata.save(image, form)
        if lost:
            say(f"lic: {source}: {form} cannot hold {', '.join(lost)}: not kept")
        write_bytes(target, packed, args.force)
        return f"{source} -> {target}: {image.width}x{image.height} {image.mode}"

    return run_jobs(jobs, work, args.debug)


def format_of(target: str) -> str:
    """Pillow's format name for the extension of the output; PNG for stdout."""
    from PIL import Image

    if target == "-":
        return "PNG"
    extension = Path(target).suffix.lower()
    name = Image.registered_extensions().get(extension)
    if name not in Image.SAVE:
        raise Failure(f"{target}: no image format that can be written has the extension {extension!r}; use .png")
    return name


def info(args: argparse.Namespace) -> int:
    rows, failures = [], 0
    for source in args.inputs:
        try:
            data = read_bytes(source)
            header, sections = bitstream.read(data)
        except Exception as error:
            if args.debug:
                raise
            failures += 1
            say(f"lic: {source}: {explain(error)}")
            continue
        rows.append(
            {
                "file": source, "bytes": len(data), "width": header.width, "height": header.height, "mode": header.mode,
                "quality": header.quality, "bpp": 8 * len(data) / (header.width * header.height), "model": header.model,
                "version": bitstream.VERSION,
                "metadata": [bitstream.METADATA[tag] for tag, _ in sections if tag in bitstream.METADATA],
                "sections": [{"tag": tag, "bytes": len(body)} for tag, body in sections],
            }
        )  # fmt: skip
    if args.json:
        print(json.dumps(rows, indent=1))
    else:
        for row in rows:
            quality = "" if row["quality"] is None else f", quality {row['quality']}"
            beside = f", {', '.join(row['metadata'])}" if row["metadata"] else ""
            print(
                f"{row['file']}: {row['width']}x{row['height']} {row['mode']}{quality}, {row['bytes']} bytes, "
                f"{row['bpp']:.3f} bpp{beside}, model {row['model']}, checksums intact"
            )
    return 1 if failures else 0


def models(args: argparse.Namespace) -> int:
    """One entry per model; rates are the export's entry `rates`, or else the range of lambda."""
    from codec import checkpoint

    for path in checkpoint.shipped():
        model = checkpoint.load_model(path)
        encoder, decoder = model.kmac()
        rates = checkpoint.about(path).get("rates", "lambda " + " to ".join(f"{v:g}" for v in model.config.lmbda))
        default = " (default)" if path.stem == checkpoint.DEFAULT else ""
        print(
            f"{path.stem}{default}: id {model.id}, {path.stat().st_size / 1e6:.1f} MB, {model.config.prior}, "
            f"{model.parameter_count() / 1e6:.2f} M parameters, {encoder:.1f} / {decoder:.1f} kMAC/pixel "
            f"(encoder / decoder), {'quality 0..100, ' if model.config.variable_rate else ''}{rates}\n  {path}"
        )
    return 0


def plot(args: argparse.Namespace) -> int:
    """The figure; of rate-distortion curves also the BD-rate of each against the first."""
    from codec.metrics import BD_RANGE, bd_rate
    from codec.plot import plot_files

    drawn = io.BytesIO()
    name, curves = plot_files(args.inputs, drawn)
    target = args.output or f"{name}.png"
    write_bytes(target, drawn.getvalue(), args.force)
    say(f"{', '.join(args.inputs)} -> {target}")
    low, high = BD_RANGE
    for curve in curves[1:]:
        try:
            rate = bd_rate(curves[0], curve)
            say(f"{curve.name}: BD-rate {rate:+.1f} % against {curves[0].name}, {low:g} to {high:g} dB")
        except ValueError as error:  # a curve that does not span the range, or has few points
            say(f"{curve.name}: no BD-rate ({error})")
    return 0


def demo(args: argparse.Namespace) -> int:
    from codec.demo import run_demo

    announce_kernels()
    return run_demo(args.out, args.device)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="lic", description="Learned image compression: photographs to small files and back."
    )
    top.add_argument("-V", "--version", action="version", version=f"lic {codec.__version__}")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    files = argparse.ArgumentParser(add_help=False, parents=[common])
    files.add_argument("inputs", nargs="+", metavar="IN", help="files or folders; - is stdin")
    files.add_argument("-o", "--output", metavar="OUT", help="output file, or folder for several inputs; - is stdout")
    files.add_argument(
        "-m", "--model", metavar="MODEL", help="name of a model (see lic models) or its .safetensors file"
    )
    files.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="where the network runs (default: auto)"
    )
    files.add_argument("-f", "--force", action="store_true", help="replace existing output files")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    sub = commands.add_parser("compress", parents=[files], help="images -> .lic files")
    goal = sub.add_mutually_exclusive_group()
    goal.add_argument("-q", "--quality", type=int, help=f"0 (smallest) to 100 (best) (default: {DEFAULT_QUALITY})")
    goal.add_argument(
        "--bpp", type=float, metavar="B", help="the best quality at which 8 * file bytes / pixels is at most B"
    )
    goal.add_argument("--size", type=int, metavar="BYTES", help="the best quality of at most BYTES per file")
    sub.add_argument(
        "--precision",
        choices=("auto", "fp32"),
        default="auto",
        help="auto: bf16 where the device has it natively (default: auto)",
    )
    sub.add_argument(
        "--strict", action="store_true", help="refuse animations and files of several pages instead of a warning"
    )
    sub.set_defaults(run=compress)
    sub = commands.add_parser(
        "decompress", parents=[files], help=".lic files -> images (PNG unless OUT says otherwise)"
    )
    sub.set_defaults(run=decompress)
    sub = commands.add_parser(
        "info", parents=[common], help="what a .lic file says about itself; verifies its checksums"
    )
    sub.add_argument("inputs", nargs="+", metavar="FILE", help=".lic files; - is stdin")
    sub.add_argument("--json", action="store_true", help="print JSON instead of a line per file")
    sub.set_defaults(run=info)
    sub = commands.add_parser(
        "models", parents=[common], help="the models at hand: size, prior, parameters, kMAC/pixel, rates"
    )
    sub.set_defaults(run=models)
    sub = commands.add_parser("plot", parents=[common], help="training runs -> a figure of their curves")
    sub.add_argument(
        "inputs", nargs="+", metavar="RUN", help="run folders or logs (.jsonl), or results (.json) of eval.py"
    )
    sub.add_argument(
        "-o", "--output", metavar="OUT", help="PNG file (default: training.png, of results rd.png); - is stdout"
    )
    sub.add_argument("-f", "--force", action="store_true", help="replace an existing file")
    sub.set_defaults(run=plot)
    sub = commands.add_parser(
        "demo", parents=[common], help="compress sample photographs, compare with JPEG, WebP and AVIF"
    )
    sub.add_argument("--out", type=Path, default=Path("lic-demo"), help="folder for all results (default: lic-demo)")
    sub.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="where the network runs (default: auto)"
    )
    sub.set_defaults(run=demo)
    return top


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    # torch's threads wait asleep: spinning, they slow everything down ten-fold when another program holds a core
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    args = parser().parse_args(argv)
    try:
        return args.run(args)
    except Exception as error:
        if args.debug:
            raise
        say(f"lic: {explain(error)}")
        return 1
    except KeyboardInterrupt:
        say("lic: interrupted")
        return 1


if __name__ == "__main__":
    sys.exit(main())
