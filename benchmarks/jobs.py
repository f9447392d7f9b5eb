"""Many files: `lic compress --jobs 2` beside one process, and beside two that know nothing of each other.

    python -m benchmarks jobs [--data DIR] [--model NAME|FILE] [--rounds N] [--out DIR]

1,000 PNG files of 512x512 pixels, cut out of photographs, mirrored, in two folders of 500. Each process has one thread.
Its time is that of a fresh process (or of two, until the later one has ended), start-up included.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random

from PIL import Image, ImageOps

from benchmarks.measure import Report, Spread, machine, machine_line, ratios, table, take_turns
from codec.coding.models import find_model
from codec.files import find_images, sample_images

ROUNDS = 3
COUNT = 1000
SIDE = 512  # pixels
FOLDERS = ("a", "b")
ONE, TWO, JOBS = "one process", "two processes, half the files each", "--jobs 2"
GOAL = 0.85  # of what two processes gain, --jobs 2 gains at least


def make_images(photos: list[Image.Image], folder: Path) -> None:
    """COUNT squares as PNG files, half of them in each of FOLDERS."""
    dice = Random(0)
    photos = [ImageOps.fit(photo.convert("RGB"), (3 * SIDE // 2, 5 * SIDE // 4)) for photo in photos]
    for name in FOLDERS:
        (folder / name).mkdir()
    for i in range(COUNT):
        photo = photos[i % len(photos)]
        left, top = dice.randrange(photo.width - SIDE), dice.randrange(photo.height - SIDE)
        square = photo.crop((left, top, left + SIDE, top + SIDE))
        square = ImageOps.mirror(square) if dice.random() < 0.5 else square
        square.save(folder / FOLDERS[i % 2] / f"{i:04}.png", compress_level=1)


def timed(commands: list[list[str]]) -> float:
    """Seconds until all of these processes, begun at once, have ended; CalledProcessError if one fails."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    start = time.perf_counter()
    processes = [subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) for command in commands]
    codes = [process.wait() for process in processes]
    seconds = time.perf_counter() - start
    for command, code in zip(commands, codes, strict=True):
        if code != 0:
            raise subprocess.CalledProcessError(code, command)
    return seconds


def contenders(model: Path, images: Path, out: Path) -> dict[str, Callable[[], float]]:
    """What takes turns; each writes all files anew."""

    def lic(source: Path, target: Path, *options: str) -> list[str]:
        compress = [sys.executable, "-m", "codec.cli", "compress", str(source), "-o", str(target)]
        return [*compress, "-f", "-m", str(model), "--device", "cpu", *options]

    halves = [lic(images / name, out / name) for name in FOLDERS]
    commands = {ONE: [lic(images, out)], TWO: halves, JOBS: [lic(images, out, "--jobs", "2")]}
    return {name: partial(timed, several) for name, several in commands.items()}


def run(data: Path | None, model: str, rounds: int) -> Report:
    """Time all of them."""
    about = machine()
    photos = [image for _, image in sample_images()] if data is None else list(map(Image.open, find_images(data)))
    with tempfile.TemporaryDirectory() as folder:
        images, out = Path(folder, "images"), Path(folder, "out")
        images.mkdir()
        make_images(photos, images)
        times = take_turns(contenders(find_model(model), images, out), rounds)
    gains = {name: ratios(times[ONE], mine) for name, mine in times.items()}
    share = ratios(times[TWO], times[JOBS])
    rows = [
        [name, f"{Spread.of(mine):.1f}", f"{COUNT / Spread.of(mine).median:.1f}", f"{gains[name]:.2f}"]
        for name, mine in times.items()
    ]
    told = "reached" if share.median >= GOAL else "MISSED"
    markdown = "\n\n".join(
        [
            "# Many files",
            f"`python -m benchmarks jobs --rounds {rounds}`, model {model}: {COUNT} images of {SIDE}x{SIDE} pixels, "
            "PNG in, .lic out, one thread per process, start-up included. Median (quartiles) of the rounds.",
            table(["lic compress", "seconds", "images/s", "gain over one process"], rows),
            f"Round by round `--jobs 2` gains {share:.2f} of what two processes gain (goal: {GOAL}, {told}).",
            machine_line(about),
        ]
    )
    return Report("jobs", markdown, {"machine": about, "model": model, "images": COUNT, "seconds": times})
