"""Files decode everywhere: those of every cell of one machine, decoded in every cell of another.

    python -m benchmarks.portability encode --model NAME|FILE --data DIR --out DIR
        makes files in every cell of this machine, and keeps the SHA-256 of the symbols and the image of fp32 on the CPU
    python -m benchmarks.portability decode --model NAME|FILE --out DIR
        decodes all of them in every cell of its own: run it with another torch, on another machine; DIR is all it needs

A cell is PyTorch on {cpu, cuda} x {1, 2 threads} x {fp32, bf16 trunks}, or ONNX Runtime on the CPU with the threads of
the process, x {alone, batch of 4}. Symbols must be equal. Images of fp32 cells may differ from the kept one by 1 grey
level in 0.1 % of the samples, those of bf16 cells by 0.02 dB in PSNR, each on every image. Exit code 1 if a limit is
broken or a file cannot be decoded.

benchmarks/results/portability.log was made so, A and B being Python environments with two versions of torch:

    export PYTHONPATH=.; run="-m benchmarks.portability"; for it in A B; do
    $it/bin/python $run encode --model fast --data kodak --out by-$it; done > portability.log &&
    B/bin/python $run decode --model fast --out by-A >> portability.log &&
    A/bin/python $run decode --model fast --out by-B >> portability.log

and portability-zen3.log likewise on another processor, and after that as on one that has SSE4 alone:

    export ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_ENABLE_INSTRUCTIONS=SSE4_2
    A/bin/python $run decode --model fast --out by-B >> portability-zen3.log
"""

import argparse
import hashlib
import json
import platform
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numba
import numpy as np
import onnxruntime
import torch
from PIL import Image

from benchmarks.measure import table
from codec.coding.codec import Codec
from codec.coding.models import find_model, load_model
from codec.coding.tiles import Latent, full, picture_of, planes
from codec.config import CELL
from codec.container import bitstream
from codec.evaluation.metrics import psnr
from codec.files import find_images
from codec.machine import device_name, threads

BATCH = 4
QUALITIES = (10, 50)
MOST_OFF_BY_ONE = 0.001  # of the samples of an image, between fp32 cells
MOST_DB = 0.02  # between bf16 and fp32


class Cell(NamedTuple):
    """How a codec is run."""

    device: str  # or onnx
    threads: int
    precision: str
    batch: int

    def __str__(self) -> str:
        count = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        return f"{self.device}, {count}, {self.precision}, {'alone' if self.batch == 1 else f'batch of {self.batch}'}"


REFERENCE = Cell("cpu", 1, "fp32", 1)


def cells() -> list[Cell]:
    """All that this machine offers."""
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    in_torch = [Cell(*parts) for parts in product(devices, (1, 2), ("fp32", "bf16"), (1, BATCH))]
    return in_torch + [Cell("onnx", threads(), "fp32", batch) for batch in (1, BATCH)]


class Models:
    """The model on each device, set up for a cell."""

    def __init__(self, name: str):
        self.path, self.name, self.on = find_model(name), Path(name).stem, {}

    def at(self, cell: Cell) -> Codec:
        if cell.device == "onnx":
            model = self.on["onnx"] = self.on.get("onnx") or load_model(self.path, backend="onnx")
            return model
        torch.set_num_threads(cell.threads)
        model = self.on[cell.device] = self.on.get(cell.device) or load_model(self.path, cell.device, "fp32")
        model.backend.network.bf16 = cell.precision == "bf16"  # also where it is emulated
        return model


def here() -> str:
    """What the numbers may depend on, in one line."""
    devices = [device_name("cpu").rpartition(",")[0], *([device_name("cuda")] if torch.cuda.is_available() else [])]
    vectors = torch.backends.cpu.get_cpu_capability()
    return (
        f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}, numpy {np.__version__}, "
        f"numba {numba.__version__}, python {platform.python_version()}, {platform.machine()} {vectors}, "
        f"{' and '.join(devices)}"
    )


def photographs(folder: Path) -> dict[str, Image.Image]:
    """The first BATCH images of one size, by name."""
    images = {path.stem: Image.open(path).convert("RGB") for path in find_images(folder)}
    size = next(iter(images.values())).size
    same = {name: image for name, image in images.items() if image.size == size}
    return dict(list(same.items())[:BATCH])


def groups(things: list, size: int) -> Iterator[list]:
    """Up to `size` of them at a time."""
    return (things[i : i + size] for i in range(0, len(things), size))


def digest(latent: Latent) -> str:
    """SHA-256 of the symbols of z (if there is one) and y."""
    parts = [part for part in (latent.z, latent.y) if part is not None]
    return hashlib.sha256(b"".join(part.astype("<i4").tobytes() for part in parts)).hexdigest()


def compress(model: Codec, images: list[Image.Image], quality: int | None) -> list[tuple[bytes, str]]:
    """The files of images of one size, coded as one batch, and their digests."""
    latent = model.latent(np.concatenate([planes(image) for image in images]), quality)
    parts, size = [latent.of(i) for i in range(len(images))], (images[0].height, images[0].width)
    return [(model.encode(part, quality, "RGB", size), digest(part)) for part in parts]


def decompress(model: Codec, files: list[bytes]) -> list[tuple[str, Image.Image]]:
    """Digest and image of each file (one size, one quality), the networks run on all of them as one batch."""
    read = [bitstream.read(data) for data in files]
    header, latents = read[0][0], [model.decode(*one) for one in read]
    joined = join(latents)
    if joined.z is not None and len(files) > 1:
        area = full(joined.y.shape[-2:])
        constants = model.tables.constants[header.quality]
        (step,) = model.backend.steps(joined.z, area.coarse(CELL), area, header.quality, constants)
        if not np.array_equal(step.index, joined.index):
            raise bitstream.FormatError("h_s finds other indices in a batch than alone")
    pixels = model.reconstruct(joined, (header.height, header.width), header.quality)
    images = [picture_of(pixels[i : i + 1]) for i in range(len(files))]
    return list(zip(map(digest, latents), images, strict=True))


def join(latents: list[Latent]) -> Latent:
    """Those of single images as one of a batch."""
    parts = zip(*(vars(latent).values() for latent in latents), strict=True)
    return Latent(*(None if part[0] is None else np.concatenate(part) for part in parts))


def encode(models: Models, data: Path, out: Path) -> None:
    """Write files, images and manifest.json to `out`."""
    out.mkdir(parents=True, exist_ok=True)
    images = photographs(data)
    for name, image in images.items():
        image.save(out / f"{name}.png")
    made, files = [], {}
    for cell in cells():
        model = models.at(cell)
        for quality in QUALITIES if model.config.variable_rate else [None]:
            for group in groups(list(images), cell.batch):
                coded = compress(model, [images[name] for name in group], quality)
                for name, (file, symbols) in zip(group, coded, strict=True):
                    key = hashlib.sha256(file).hexdigest()[:16]
                    files[key] = {"image": name, "quality": quality, "symbols": symbols}
                    made.append((str(cell), key))
                    (out / f"{key}.lic").write_bytes(file)
    model = models.at(REFERENCE)
    for key in files:
        model.decompress((out / f"{key}.lic").read_bytes()).save(out / f"{key}.png")
    manifest = {"model": model.id, "machine": here(), "cells": len(cells()), "made": made, "files": files}
    (out / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    qualities = sorted({about["quality"] for about in files.values()}, key=str)
    print(f"## Encoded\n\nby {here()}\nwith {models.name}, id {model.id}: {', '.join(images)} at qualities", end=" ")
    print(f"{', '.join(map(str, qualities))} in {len(cells())} cells: {len(made)} files, {len(files)} distinct\n")


class Worst(NamedTuple):
    """What one cell decoded: the worst over all files, as shares of samples and in dB."""

    intact: int  # files with exactly the encoder's symbols
    off: float
    far: float  # by more than 1 grey level
    db: float
    errors: list[str]

    def kept(self, precision: str) -> bool:
        """Whether the images are as near as they must be."""
        near = self.far == 0 and self.off <= MOST_OFF_BY_ONE if precision == "fp32" else self.db <= MOST_DB
        return near and not self.errors


def decode_in(cell: Cell, model: Codec, out: Path, files: dict[str, dict]) -> Worst:
    """Decode every file in one cell and compare with what was kept."""
    intact, off, far, db, errors = 0, [], [], [], []
    for quality in sorted({about["quality"] for about in files.values()}, key=str):
        for group in groups([key for key, about in files.items() if about["quality"] == quality], cell.batch):
            try:
                decoded = decompress(model, [(out / f"{key}.lic").read_bytes() for key in group])
            except bitstream.FormatError as error:
                errors.append(str(error))
                continue
            for key, (symbols, image) in zip(group, decoded, strict=True):
                intact += symbols == files[key]["symbols"]
                kept, original = (Image.open(out / f"{name}.png") for name in (key, files[key]["image"]))
                difference = np.abs(np.asarray(image, np.int16) - np.asarray(kept, np.int16))
                off.append(float((difference > 0).mean()))
                far.append(float((difference > 1).mean()))
                db.append(abs(psnr(image, original) - psnr(kept, original)))
    return Worst(intact, max(off, default=0), max(far, default=0), max(db, default=0), errors)


def decode(models: Models, out: Path) -> bool:
    """Decode what `encode` left in `out`, print the table; whether all limits are kept."""
    manifest = json.loads((out / "manifest.json").read_text())
    files, count = manifest["files"], len(manifest["files"])
    print(f"## Decoded\n\nby {here()}\nwith {models.name}, id {models.at(REFERENCE).id}: {count} distinct", end=" ")
    print(f"files of {len(manifest['made'])},\nencoded in {manifest['cells']} cells by {manifest['machine']}\n")
    found = {cell: decode_in(cell, models.at(cell), out, files) for cell in cells()}
    rows = [[str(c), f"{w.intact} of {count}", f"{w.off:.4%}", f"{w.far:.4%}", f"{w.db:.4f}"] for c, w in found.items()]
    print(
        table(["decoded in", "symbols equal", "samples that differ", "by > 1 level", "dB, PSNR differs"], rows) + "\n"
    )
    for error in sorted({error for worst in found.values() for error in worst.errors}):
        print("FAIL:", error)
    results = {"symbols are exactly the encoder's in every cell": all(w.intact == count for w in found.values())}
    for precision, limit in (
        ("fp32", f"at most {MOST_OFF_BY_ONE:.1%} of an image's samples differ, by 1 level"),
        ("bf16", f"at most {MOST_DB} dB to fp32 on any image"),
    ):
        results[f"{precision}: {limit}"] = all(w.kept(precision) for c, w in found.items() if c.precision == precision)
    print("\n".join(f"{'PASS' if passed else 'FAIL'}: {claim}" for claim, passed in results.items()) + "\n")
    return all(results.values())


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("encode", "decode"))
    parser.add_argument("--model", required=True, metavar="NAME|FILE")
    parser.add_argument("--data", type=Path, metavar="DIR", help="photographs; encode only")
    parser.add_argument("--out", type=Path, metavar="DIR", required=True)
    args = parser.parse_args(argv)
    if args.what == "decode":
        return int(not decode(Models(args.model), args.out))
    if args.data is None:
        parser.error("encode needs --data")
    encode(Models(args.model), args.data, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
