"""Context and effort: what each saves, and what time it takes, beside AVIF at two speeds.

    python -m benchmarks effort [--data DIR] [--model NAME|FILE] [--rounds N] [--out DIR]

Every photograph is coded at QUALITIES without the context of the entropy coder, with it, and with efforts of the
encoder's search; files are those of memory, headers included, images are decoded from them. BD-rates are against our
own files without either, over the scores that both curves have; a BD-rate takes the means over all photographs. Each
round is a photograph, in its own size.
"""

import io
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

import codec
from benchmarks.measure import Report, Spread, machine, machine_line, table
from codec.coding.codec import Codec
from codec.coding.target import ssimulacra2
from codec.evaluation.curves import Curve, bd_rate, full_range
from codec.evaluation.metrics import psnr
from codec.files import find_images, sample_images

ROUNDS = 6
QUALITIES = (5, 15, 25, 35, 45, 55, 65, 75, 85)
AVIF_QUALITIES = (20, 28, 36, 44, 52, 60, 68, 76, 84)
EFFORTS = (0, 2, 5, 9)
AVIF_SPEEDS = (6, 0)  # at speed 0 an image takes a quarter of a minute

Encode = Callable[[Image.Image, int], bytes]
Decode = Callable[[bytes], Image.Image]


def contenders(model: Codec) -> dict[str, tuple[tuple[int, ...], Encode, Decode]]:
    """Qualities, encoder and decoder of each by its name; the first is what the others are compared with."""
    found = {}
    without = Codec(model.backend, replace(model.tables, context=None), model.id)
    for label, own in ((", no context", without), ("", model)) if model.tables.context else (("", model),):
        for effort in EFFORTS:
            encode = lambda image, quality, own=own, effort=effort: own.compress(image, quality, effort)  # noqa: E731
            found[f"effort {effort}{label}"] = QUALITIES, encode, own.decompress
    for speed in AVIF_SPEEDS:

        def avif(image: Image.Image, quality: int, speed: int = speed) -> bytes:
            file = io.BytesIO()
            image.save(file, "AVIF", quality=quality, speed=speed, subsampling="4:4:4", max_threads=1)
            return file.getvalue()

        found[f"AVIF, speed {speed}"] = AVIF_QUALITIES, avif, lambda data: Image.open(io.BytesIO(data)).convert("RGB")
    return found


def run(data: Path | None, model: str, rounds: int) -> Report:
    """Measure; the model must be of all rates."""
    loaded = codec.load(model, "cpu", backend="torch")
    paths = find_images(data) if data else None
    images = [image for _, image in sample_images()] if paths is None else [Image.open(path) for path in paths]
    images = [image.convert("RGB") for image in images[:: max(1, len(images) // rounds)]][:rounds]
    rows = {}
    for name, (qualities, encode, decode) in contenders(loaded).items():
        decode(encode(images[0], qualities[0]))  # compiles, opens, fills caches
        rows[name] = {"bpp": [], "psnr": [], "ssimulacra2": [], "encode": [], "decode": []}
        for quality in qualities:
            points = []
            for image in images:
                start = time.perf_counter()
                file = encode(image, quality)
                middle = time.perf_counter()
                decoded = decode(file)
                end = time.perf_counter()
                rows[name]["encode"].append(middle - start)
                rows[name]["decode"].append(end - middle)
                scores = psnr(image, decoded), ssimulacra2(image, decoded)
                points.append((8 * len(file) / (image.width * image.height), *scores))
            for key, value in zip(("bpp", "psnr", "ssimulacra2"), np.mean(points, axis=0).tolist(), strict=True):
                rows[name][key].append(value)
    about = machine()
    text = [f"{len(images)} images, model {loaded.id}; {machine_line(about)}", "", summary(rows)]
    return Report("effort", "\n".join(text), {"machine": about, "model": loaded.id, "results": rows})


def summary(rows: dict[str, dict[str, list[float]]]) -> str:
    """The table."""
    first, lines = next(iter(rows)), []
    for name, row in rows.items():
        rates = []
        for metric in ("psnr", "ssimulacra2"):
            base, own = (Curve(key, rows[key]["bpp"], rows[key][metric], metric) for key in (first, name))
            rates.append(f"{bd_rate(base, own, *full_range(base, own)):+.1f} %")
        times = (f"{Spread.of(1000 * seconds for seconds in row[part]):.0f}" for part in ("encode", "decode"))
        lines.append([name, *rates, *times])
    return table(["", "BD-rate, PSNR", "BD-rate, SSIMULACRA 2", "encode, ms", "decode, ms"], lines)
