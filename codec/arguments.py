"""The command line of `lic`: its commands and options, the types of their values, and the long help texts."""

import argparse
import math
import sys
from pathlib import Path

import codec
from codec.errors import LicError
from codec.machine import version

EXPORTED = """
  file      inputs                        outputs
  g_a.onnx  image uint8 (B, 3, H, W)      v float32 (B, M, h, w): h, w = H, W / 16, rounded up
  h_a.onnx  v float32 (B, M, h, w)        z int32 (B, K, h', w'), -127..127: h', w' = h, w / 4, rounded up
  h_s.onnx  z int32 (B, K, h', w')        index uint8, mean float32 (B, M, 4 h', 4 w'): the first h x w are of v
  g_s.onnx  v_hat float32 (B, M, h, w)    image uint8 (B, 3, 16 h, 16 w), gray uint8 (B, 1, ...): the first H x W

Sides are of any length from 1. An image is planes of R, G and B, a gray one three equal planes; `gray` is for those.
In models of all rates each has an input `quality`, too: float32 (1,), 0..100. A model without a hyperprior has no h_a
and h_s, one with densities around 0 no mean. Symbols of y are the integers nearest to v - mean; each is coded with the
table that its index names, those of z with a table per channel: codec/container/bitstream.py has the file, the
.safetensors file of the model the tables. The index is exact, in float64; a runtime must compute it in that. There and
back without a file, in Python:

    import numpy as np, onnxruntime

    def run(name, **inputs):
        return onnxruntime.InferenceSession(f"DIR/{name}.onnx").run(None, inputs)

    quality = np.array([50], np.float32)
    (v,) = run("g_a", image=image, quality=quality)
    (z,) = run("h_a", v=v, quality=quality)
    index, mean = run("h_s", z=z, quality=quality)
    mean = mean[..., : v.shape[2], : v.shape[3]]
    decoded, gray = run("g_s", v_hat=np.rint(v - mean) + mean, quality=quality)

and, its second half, in JavaScript (onnxruntime-node, onnxruntime-web):

    const g_s = await ort.InferenceSession.create("DIR/g_s.onnx");
    const v_hat = new ort.Tensor("float32", values, [1, M, h, w]);  // Float32Array
    const quality = new ort.Tensor("float32", Float32Array.of(50), [1]);
    const { image } = await g_s.run({ v_hat, quality });  // image.data: Uint8Array
"""


FILES = """
Exit code 0: done, 1: something failed (a line each on stderr), 2: the command line makes no sense. An existing file is
replaced with -f alone, an input never. /dev/stdout and the like are -.

folders
  IN/a/x.png becomes OUT/a/x.lic, and back; of several inputs each folder has one of its own name in OUT, as with cp -r.
  Links to folders are followed. Files of other kinds are left out, which is told at the end.
--resume
  skips every target that is there, intact and what would be made. One that is damaged, older than its input, or of
  another quality, effort or model is made again, which is told; temporary files, which only kill -9 or a power cut
  leaves, are removed.
--jobs
  A process that dies costs one file, which is told. Under torchrun (RANK, WORLD_SIZE and LOCAL_RANK in the environment)
  each process takes its share of folders, and a GPU of its own; a single file is never shared.
"""

KEPT = """
images
  RGB, L                                   coded as they are
  RGBA, LA; a transparent colour           colours, and alpha to the last bit beside them
  P, PA, 1, YCbCr                          as RGB, or L if all colours are gray; with alpha where they have it
  CMYK, LAB, HSV, I;16, I, F, any other;   refused, with the conversion to use
  samples of more than 8 bits or a sign
  animations, several pages                the first, with a warning; refused with --strict
what is kept beside the pixels and the resolution, and what is told as "not kept" and refused with --strict
  PNG        ICC, EXIF, XMP, also in text; cICP;      text, IPTC, times, other chunks, bytes behind it
             gAMA and cHRM as an ICC profile
  JPEG       ICC, EXIF, XMP                           IPTC, extended XMP, comments, other segments, bytes behind it;
                                                      told alone: a phone's gain map and further pictures
  WebP       ICC, EXIF, XMP                           other chunks
  AVIF       ICC, EXIF, XMP; nclx as CICP             told alone: a gain map
  JPEG 2000  ICC, EXIF and XMP in uuid boxes; CICP;   IPTC, other boxes and colour spaces, comments
             ROMM as an ICC profile
  GIF        ICC, XMP                                 comments, other extensions
  BMP        the ICC profile of version 5             numbers of calibration, linked profiles
  TGA                                                 author, comments, job, gamma
  TIFF       ICC, XMP, EXIF and GPS, GeoTIFF, names   IPTC, transfer functions, other tags, further channels
             and dates; primaries as an ICC profile
  The orientation of EXIF is applied once and its tag removed. sRGB, however it is said, is not written down. Colours
  under fully transparent pixels are not kept, unless the whole image is kept without loss.
"""

RESTORED = """
What a file keeps beside the pixels comes back wherever the format written can hold it, and what it cannot hold is said:
all of it in a PNG; CICP (code points of ITU-T H.273, of HDR too) in PNG and AVIF, and where it says no more than an ICC
profile can, as one everywhere. Alpha into a JPEG is an error. JPEG, WebP and AVIF are written at quality 95.
"""


def positive(text: str) -> int:
    """An option's value: an integer of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return int(text)


def quality(text: str) -> int:
    """An option's value: an integer from 0 to 100."""
    if not text.isdecimal() or int(text) > 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 100")
    return int(text)


def rate(text: str) -> float:
    """An option's value: a finite number above 0."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not above 0 and finite")
    return value


def score(text: str) -> float:
    """An option's value: a finite number of at most 100."""
    value = float(text)
    if not -math.inf < value <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a score of at most 100")
    return value


def rectangle(text: str) -> tuple[int, int, int, int]:
    """An option's value X,Y,W,H: left, top, width and height in pixels."""
    numbers = text.split(",")
    if len(numbers) != 4 or not all(number.isdecimal() for number in numbers) or "0" in numbers[2:]:
        raise argparse.ArgumentTypeError(f"{text!r} is not X,Y,W,H in pixels, such as 0,0,640,480")
    return tuple(map(int, numbers))


class Version(argparse.Action):
    """Prints the version, the backends at hand and the ids of the models, and exits."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, nargs=0, **kwargs)

    def __call__(self, top: argparse.ArgumentParser, *_) -> None:
        from codec.coding import models as checkpoint

        packages = {"onnx": "onnxruntime", "torch": "torch"}
        found = {backend: version(package) for backend, package in packages.items()}
        backends = [f"{backend} ({packages[backend]} {number})" for backend, number in found.items() if number]
        print(f"lic {codec.__version__}\nbackends: {', '.join(backends) or 'none'}")
        for path in checkpoint.shipped():
            try:
                about = checkpoint.about(path)
                former = ", ".join(checkpoint.replaced(about))
                print(f"{path.stem}: id {about['id']}" + (f", decodes files of {former}, too" if former else ""))
            except LicError as error:
                print(f"lic: {error}", file=sys.stderr)
        sys.stdout.flush()
        top.exit()


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    top = argparse.ArgumentParser(
        prog="lic", description="Learned image compression: photographs to small files and back."
    )
    top.add_argument("-V", "--version", action=Version, help="show the versions of it, its backends and models")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    files = argparse.ArgumentParser(add_help=False, parents=[common])
    files.add_argument("inputs", nargs="+", metavar="IN", help="files or folders; - is stdin")
    files.add_argument("-o", "--output", metavar="OUT", help="output file, or folder; - is stdout")
    files.add_argument(
        "-m",
        "--model",
        metavar="MODEL",
        help="name of a model (see lic models) or its .safetensors file; photo, the default, is trained for how "
        "pictures look, fast for squared error (PSNR)",
    )
    files.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="where the network runs (default: auto)"
    )
    files.add_argument(
        "--backend", choices=("auto", "onnx", "torch"), default="auto",
        help="what runs the network: onnx (ONNX Runtime, on a CPU) or torch (default: onnx unless there is a GPU)",
    )  # fmt: skip
    existing = files.add_mutually_exclusive_group()
    existing.add_argument("-f", "--force", action="store_true", help="replace existing output files")
    existing.add_argument(
        "--resume",
        action="store_true",
        help="skip what is there and would be made the same; make again what is damaged, older or of another quality",
    )
    files.add_argument(
        "--jobs", type=positive, default=1, metavar="N",
        help="processes that share the files, with one thread each (default: one process with all threads)",
    )  # fmt: skip
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    sub = commands.add_parser(
        "compress", parents=[files], help="images -> .lic files", epilog=FILES + KEPT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    goal = sub.add_mutually_exclusive_group()
    goal.add_argument(
        "-q", "--quality", type=quality, help=f"0 (smallest) to 100 (best) (default: {codec.DEFAULT_QUALITY})"
    )
    goal.add_argument(
        "--bpp", type=rate, metavar="B", help="the best quality at which 8 * file bytes / pixels is at most B"
    )
    goal.add_argument("--size", type=positive, metavar="BYTES", help="the best quality of at most BYTES per file")
    goal.add_argument(
        "--ssimulacra2", type=score, metavar="S",
        help="the smallest file whose image scores at least S in SSIMULACRA 2: 90 is visually lossless, 70 high "
        "quality, 50 medium, 30 low; codes and scores an image some four times, five seconds a megapixel on one core",
    )  # fmt: skip
    sub.add_argument(
        "--effort", type=int, choices=range(10), default=0, metavar="0..9",
        help="how often to look for symbols that are better: fewer bits for the same image, or a better image in as "
        "many; each time takes about twice as long as decoding (default: 0)",
    )  # fmt: skip
    sub.add_argument(
        "--precision",
        choices=("auto", "fp32"),
        default="auto",
        help="of --backend torch; auto: bf16 where the device has it natively (default: auto)",
    )
    sub.add_argument(
        "--strict",
        action="store_true",
        help="refuse an image of which something is not kept (frames, pages, metadata) instead of a warning",
    )
    sub.add_argument(
        "--verify", action="store_true", help="decode what was written and compare before the file gets its name"
    )
    sub = commands.add_parser(
        "decompress", parents=[files], help=".lic files -> images (PNG unless OUT says otherwise)",
        epilog=FILES + RESTORED, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    sub.add_argument(
        "--region",
        type=rectangle,
        metavar="X,Y,W,H",
        help="only W x H pixels from column X and row Y on; the rest costs little",
    )
    sub = commands.add_parser(
        "info", parents=[common], help="what a .lic file says about itself; verifies its checksums"
    )
    sub.add_argument("inputs", nargs="+", metavar="FILE", help=".lic files or folders; - is stdin")
    form = sub.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON instead of a line per file")
    form.add_argument("--check", action="store_true", help="only verify the checksums: a line per file")
    sub = commands.add_parser(
        "models", parents=[common], help="the models at hand: size, prior, parameters, kMAC/pixel, rates"
    )
    sub = commands.add_parser(
        "export", parents=[common], help="a model -> ONNX files for other runtimes",
        description="The networks of a model as ONNX files that hold all they need.", epilog=EXPORTED,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    sub.add_argument("model", metavar="MODEL", help="name of a model or its .safetensors file")
    sub.add_argument("folder", type=Path, metavar="DIR", help="folder of g_a.onnx, g_s.onnx, h_a.onnx and h_s.onnx")
    sub.add_argument("-f", "--force", action="store_true", help="replace existing files")
    sub = commands.add_parser("plot", parents=[common], help="training runs or results of eval.py -> a figure")
    sub.add_argument(
        "inputs", nargs="+", metavar="RUN", help="run folders or logs (.jsonl), or results (.json) of eval.py"
    )
    sub.add_argument(
        "-o", "--output", metavar="OUT", help="PNG file (default: training.png, of results rd.png); - is stdout"
    )
    sub.add_argument(
        "--metric",
        choices=("psnr", "ms-ssim", "ssimulacra2", "cvvdp"),
        help="of results: what is drawn, and what BD-rates are at equal values of (default: psnr)",
    )
    sub.add_argument("-f", "--force", action="store_true", help="replace an existing file")
    sub = commands.add_parser(
        "demo",
        parents=[common],
        help="compress sample photographs, compare with JPEG, WebP and AVIF by PSNR and SSIMULACRA 2",
    )
    sub.add_argument("--out", type=Path, default=Path("lic-demo"), help="folder for all results (default: lic-demo)")
    sub.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="where the network runs (default: auto)"
    )
    return top
