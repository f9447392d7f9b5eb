"""Large images: peak memory of the command line, and the codec's time per megapixel beside that of small ones.

    python -m benchmarks memory [--data DIR] [--model NAME|FILE] [--rounds N] [--out DIR]

The large image has 100 megapixels and is made of the photographs, mirrored and shifted so that no row of tiles is like
another. `lic compress` turns its PNG into a file and `lic decompress` that into a PNG, each in a fresh process, whose
largest resident set is reported. Times are of compress and decompress alone, between images and bytes in memory; the
small images are pieces of the large one.
"""

import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from PIL import Image, ImageOps

import codec
from benchmarks.measure import Report, Spread, Turn, machine, machine_line, photographs, ratios, table, take_turns
from codec.coding.codec import Codec
from codec.machine import keep_freed_memory

ROUNDS = 3
SIZE = (11520, 8704)  # width and height: 100.3 megapixels
SMALL = 1024  # side of a small image: one megapixel of 2^20 pixels
QUALITY = 50


def large_image(photos: list[Image.Image], size: tuple[int, int] = SIZE) -> Image.Image:
    """The photographs side by side, every second one mirrored, each row shifted by 100 pixels more."""
    canvas, count = Image.new("RGB", size), 0
    height = min(photo.height for photo in photos)
    for row, y in enumerate(range(0, size[1], height)):
        x = -(row * 100 % photos[0].width)
        while x < size[0]:
            photo = photos[count % len(photos)]
            canvas.paste(ImageOps.mirror(photo) if count % 2 else photo, (x, y))
            x, count = x + photo.width, count + 1
    return canvas


def peak_memory(command: list[str]) -> int:
    """Largest resident set in bytes of a process that runs `command`; OSError if it fails."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    message = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise OSError(f"{' '.join(command)}: {message.strip()}")
    return usage.ru_maxrss * 1024


def command_line(model: str, image: Image.Image) -> dict[str, int]:
    """Peak memory of compressing and decompressing an image, PNG to PNG."""
    with tempfile.TemporaryDirectory() as folder:
        photo, coded, decoded = (str(Path(folder) / name) for name in ("photo.png", "photo.lic", "decoded.png"))
        image.save(photo, compress_level=1)
        lic = [sys.executable, "-m", "codec.cli"]
        memory = {
            "lic compress": peak_memory([*lic, "compress", photo, "-o", coded, "-q", str(QUALITY), "-m", model]),
            "lic decompress": peak_memory([*lic, "decompress", coded, "-o", decoded, "-m", model]),
        }
        with Image.open(decoded) as result:
            if result.size != image.size:
                raise OSError(f"an image of {image.size} came back as one of {result.size}")
        return memory


def turn(model: Codec, images: list[Image.Image]) -> Turn:
    """Seconds per megapixel of compressing and decompressing images, and their bytes."""
    megapixels = sum(image.width * image.height for image in images) / 2**20
    start = time.perf_counter()
    files = [model.compress(image, QUALITY) for image in images]
    middle = time.perf_counter()
    for data in files:
        model.decompress(data)
    end = time.perf_counter()
    return Turn((middle - start) / megapixels, (end - middle) / megapixels, sum(map(len, files)))


def pieces(image: Image.Image) -> list[Image.Image]:
    """Small images along the diagonal of a large one."""
    count = min(image.size) // SMALL
    corners = [(i * (image.width - SMALL) // count, i * (image.height - SMALL) // count) for i in range(count)]
    return [image.crop((x, y, x + SMALL, y + SMALL)) for x, y in corners]


def run(data: Path | None, model: str, rounds: int) -> Report:
    """Measure all of it; OSError or ValueError says what is missing."""
    about, image = machine(), large_image(photographs(data))
    memory = command_line(model, image)
    keep_freed_memory()  # as the command line does
    name, net = f"{image.width}x{image.height}", codec.load(model, "cpu")
    contenders = {f"{SMALL}x{SMALL}": pieces(image), name: [image]}
    turns = take_turns({key: partial(turn, net, images) for key, images in contenders.items()}, rounds)
    small, large = turns.values()
    times = []
    for part in ("encode", "decode"):
        one, other = ([getattr(t, part) for t in mine] for mine in (small, large))
        milliseconds = [f"{Spread.of(1e3 * t for t in mine):.1f}" for mine in (one, other)]
        times.append([f"{part}, ms per megapixel", *milliseconds, f"{ratios(other, one):.2f}"])
    markdown = "\n\n".join(
        [
            f"# An image of {name} pixels",
            f"Model {net.id} at quality {QUALITY}, {net.precision}; {rounds} rounds, median (quartiles). "
            + machine_line(about),
            table(["process", "peak memory, MB"], [[key, f"{size / 1e6:.0f}"] for key, size in memory.items()]),
            table(["codec alone", *contenders, "ratio"], times),
        ]
    )
    return Report("memory", markdown, {"machine": about, "model": net.id, "peak bytes": memory, "turns": turns})
