"""Images off the beaten track: text, a screenshot, a checkerboard, noise, black and white, beside JPEG at equal bytes.

    python -m benchmarks.offtrack --model NAME|FILE --out DIR [--qualities 20 50 80] [--fp32]

The images are drawn here, the same ones every time. JPEG (Pillow, 4:2:0, optimized) has the highest quality whose file
is not larger than ours. Prints a table and writes it to DIR/offtrack.md, with DIR/offtrack.png: original, ours and JPEG
at the middle quality, pixels enlarged. The promise: finite, no garbage block, and at most 3 dB below JPEG. Exit code 1
if a row breaks it.

The worst block is the 16x16 block of the largest squared error, as its PSNR; JPEG's stands beside it. Ours is garbage
if it is more than 6 dB below that and below 30 dB. All above 48.13 dB, a mean squared error of 1, is taken as that: an
exact JPEG is not infinitely better.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from benchmarks.measure import table
from codec.coding.codec import Codec
from codec.coding.models import find_model, load_model
from codec.evaluation.metrics import psnr
from codec.evaluation.rivals import RIVALS
from codec.network.pixels import to_tensor

SIZE = (512, 384)  # width, height
BLOCK = 16
MOST_BELOW = 3.0  # dB below JPEG at equal bytes
GARBAGE = 6.0  # dB by which our worst block may be worse than JPEG's
FAIR = 30.0  # dB from which a block is never garbage
BEST = 48.13  # dB: more is taken for that
WORDS = (
    "Rate distortion theory treats the question of how few bits are enough to describe a source within a given error. "
    "A codec that has learned from photographs meets letters, windows and thin lines rarely; they should stay legible. "
)
TITLES = ("Files", "Editor", "Mail")


def text_page() -> Image.Image:
    """Black on white: a heading and paragraphs of sizes 10 to 18."""
    image = Image.new("RGB", SIZE, "white")
    draw, y = ImageDraw.Draw(image), 12
    draw.text((16, y), "Off the beaten track", "black", ImageFont.load_default(26))
    y += 44
    for size in (18, 14, 12, 10):
        font = ImageFont.load_default(size)
        for line in wrapped(2 * WORDS, font, SIZE[0] - 32)[:5]:
            draw.text((16, y), line, "black", font)
            y += round(1.3 * size)
        y += 8
    return image


def wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Lines that fit."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def screenshot() -> Image.Image:
    """A desktop: a gradient, a bar of icons, three windows with text, buttons, a list and one-pixel lines."""
    width, height = SIZE
    down, across = np.mgrid[0:height, 0:width] / [[[height]], [[width]]]
    image = Image.fromarray(np.stack((30 + 60 * across, 90 + 80 * down, 200 - 60 * down), -1).astype(np.uint8))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(11)
    draw.rectangle((0, height - 28, width, height), (32, 34, 40))
    colours = [(230, 70, 60), (250, 180, 40), (70, 180, 90), (60, 130, 240), (160, 90, 220), (240, 240, 240)]
    for i, colour in enumerate(colours):
        draw.rounded_rectangle((8 + 30 * i, height - 24, 28 + 30 * i, height - 4), 5, colour)
        draw.ellipse((13 + 30 * i, height - 19, 23 + 30 * i, height - 9), outline="black")
    for title, (x, y), (w, h) in zip(
        TITLES, ((14, 14), (120, 60), (270, 160)), ((200, 200), (250, 220), (228, 180)), strict=True
    ):
        draw.rectangle((x, y, x + w, y + h), (250, 250, 250), (90, 90, 90))
        draw.rectangle((x + 1, y + 1, x + w - 1, y + 20), (222, 226, 232))
        draw.text((x + 8, y + 4), title, (20, 20, 20), font)
        draw.line((x + w - 14, y + 6, x + w - 6, y + 14), (160, 0, 0))
        draw.line((x + w - 6, y + 6, x + w - 14, y + 14), (160, 0, 0))
        for i, line in enumerate(wrapped(WORDS, font, w - 40)[: (h - 60) // 16]):
            top = y + 28 + 16 * i
            if i == 2:
                draw.rectangle((x + 2, top - 1, x + w - 2, top + 13), (0, 110, 220))
            draw.rectangle((x + 8, top + 2, x + 16, top + 10), colours[i % 6], (60, 60, 60))
            draw.text((x + 24, top), line, "white" if i == 2 else (40, 40, 40), font)
            draw.line((x + 2, top + 14, x + w - 2, top + 14), (225, 225, 225))
        draw.rounded_rectangle((x + w - 70, y + h - 26, x + w - 10, y + h - 8), 4, (0, 120, 215), (0, 80, 160))
        draw.text((x + w - 50, y + h - 24), "OK", "white", font)
    return image


def checkerboard(side: int, start: int = 0) -> Image.Image:
    """Black and white squares; `start` pixels of the first are cut off."""
    rows, columns = np.mgrid[start : SIZE[1] + start, start : SIZE[0] + start] // side
    return Image.fromarray(((rows + columns) % 2 * 255).astype(np.uint8)).convert("RGB")


def noise() -> Image.Image:
    """Independent random bytes."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (*SIZE[::-1], 3), dtype=np.uint8))


IMAGES = {
    "text": text_page,
    "screenshot": screenshot,
    "checkerboard, 1 px": lambda: checkerboard(1),
    "checkerboard, 8 px": lambda: checkerboard(8),  # JPEG's blocks exactly
    "the same, off its grid": lambda: checkerboard(8, start=3),
    "noise": noise,
    "black": lambda: Image.new("RGB", SIZE, "black"),
    "white": lambda: Image.new("RGB", SIZE, "white"),
}


class Coded(NamedTuple):
    """A decoded image and what it cost."""

    bytes: int
    image: Image.Image
    psnr: float
    worst: float  # PSNR of the worst block

    @classmethod
    def of(cls, original: Image.Image, image: Image.Image, size: int) -> "Coded":
        return cls(size, image, psnr(original, image), worst_block(original, image))


def worst_block(a: Image.Image, b: Image.Image) -> float:
    """PSNR of the BLOCK x BLOCK block that has the largest squared error; SIZE is made of whole blocks."""
    squares = np.square(np.asarray(a, np.float64) - np.asarray(b, np.float64))
    worst = squares.reshape(SIZE[1] // BLOCK, BLOCK, SIZE[0] // BLOCK, -1).mean(axis=(1, 3)).max()
    return float(10 * np.log10(255**2 / worst)) if worst else float("inf")


def ours(model: Codec, image: Image.Image, quality: int | None) -> Coded:
    """Through the bytes and back; AssertionError if a sample is not finite."""
    with torch.inference_mode():
        x_hat = model.backend.network(
            to_tensor(image), None if quality is None else torch.tensor([float(quality)])
        ).x_hat
    assert bool(x_hat.isfinite().all()), "the decoded image is not finite"  # also where it is kept without loss instead
    data = model.compress(image, quality)
    return Coded.of(image, model.decompress(data), len(data))


def jpeg(image: Image.Image, size: int) -> tuple[Coded | None, int]:
    """At the highest quality whose file has at most `size` bytes: the result, and the quality or the smallest file."""
    for quality in range(100, 0, -1):
        data = RIVALS["jpeg"].encode(image, quality)
        if len(data) <= size:
            return Coded.of(image, RIVALS["jpeg"].decode(data).convert("RGB"), len(data)), quality
    return None, len(data)


class Row(NamedTuple):
    """One image at one quality."""

    name: str
    quality: int | None
    mine: Coded
    theirs: Coded | None
    setting: int  # quality of JPEG, or the size of its smallest file where that is larger than ours

    @property
    def ahead(self) -> float:
        """dB above JPEG; 0 where no JPEG is this small."""
        return 0.0 if self.theirs is None else min(self.mine.psnr, BEST) - min(self.theirs.psnr, BEST)

    @property
    def kept(self) -> bool:
        """Whether the promise is kept."""
        no_garbage = self.theirs is None or self.mine.worst >= min(self.theirs.worst - GARBAGE, FAIR)
        return self.ahead >= -MOST_BELOW and no_garbage

    def cells(self) -> list[str]:
        """Those of the table."""
        mine = [str(self.mine.bytes), f"{self.mine.psnr:.2f}", f"{self.mine.worst:.1f}"]
        theirs = ["-", f"at least {self.setting}", "-", "-", "smaller"]
        if self.theirs is not None:
            theirs = [str(self.setting), str(self.theirs.bytes), f"{self.theirs.psnr:.2f}", f"{self.theirs.worst:.1f}"]
            theirs.append(f"{self.ahead:+.2f}")
        return [self.name, str(self.quality), *mine, *theirs, "yes" if self.kept else "NO"]


def rows(model: Codec, qualities: list[int | None]) -> Iterator[Row]:
    """Every image at every quality."""
    for name, draw in IMAGES.items():
        image = draw()
        for quality in qualities:
            mine = ours(model, image, quality)
            yield Row(name, quality, mine, *jpeg(image, mine.bytes))


def sheet(results: list[Row]) -> Image.Image:
    """Original, ours and JPEG of each row, in the middle of the image."""
    width, height, margin = 256, 192, 16
    picture = Image.new("RGB", (3 * (2 * width + 4), len(results) * (2 * height + margin)), "gray")
    draw = ImageDraw.Draw(picture)
    for i, row in enumerate(results):
        top = i * (2 * height + margin)
        other = (
            "none is this small" if row.theirs is None else f"JPEG, {row.theirs.bytes} bytes, {row.theirs.psnr:.1f} dB"
        )
        mine = f"ours at {row.quality}, {row.mine.bytes} bytes, {row.mine.psnr:.1f} dB"
        for j, (caption, image) in enumerate(
            ((row.name, IMAGES[row.name]()), (mine, row.mine.image), (other, row.theirs and row.theirs.image))
        ):
            left = j * (2 * width + 4)
            draw.text((left, top), caption, "white", ImageFont.load_default(12))
            if image is not None:
                crop = image.crop((128, 96, 128 + width, 96 + height))
                picture.paste(crop.resize((2 * width, 2 * height), Image.Resampling.NEAREST), (left, top + margin))
    return picture


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, metavar="NAME|FILE")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--qualities", type=int, nargs="+", default=[20, 50, 80])
    parser.add_argument("--fp32", action="store_true", help="no bf16 trunks")
    args = parser.parse_args(argv)
    model = load_model(find_model(args.model), "cpu", "fp32" if args.fp32 else "auto")
    results = list(rows(model, args.qualities if model.config.variable_rate else [None]))
    header = ["image", "quality", "bytes", "dB", "worst block"]
    header += ["JPEG quality", "bytes", "dB", "worst block", "ours - JPEG", "kept"]
    text = table(header, [row.cells() for row in results])
    print(text)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "offtrack.md").write_text(text + "\n", encoding="utf-8")
    middle = args.qualities[len(args.qualities) // 2]
    sheet([row for row in results if row.quality in (None, middle)]).save(args.out / "offtrack.png")
    return int(not all(row.kept for row in results))


if __name__ == "__main__":
    sys.exit(main())
