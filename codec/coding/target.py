"""The quality at which a file meets a target: a size, or a score of SSIMULACRA 2."""

import io
import math
from collections.abc import Callable
from functools import cache, partial
from typing import TypeVar

import numpy as np
from PIL import Image

Input = TypeVar("Input")  # what an encoder takes
# Pixels, for six scales of at least 8. With fewer scales, libjxl's sum and the package's give every later term the
# weight of another one: the same JPEG of a photograph scores 66 at 224x224 pixels and 39 at 225x225.
SIDE = 225
GUESSES = 8  # trials of a search, after which it bisects
BACKGROUNDS = 26, 230  # grey under transparent images: 0.1 and 0.9 of white, as in libjxl's tool


def lowest(value: Callable[[int], float], target: float, linear: Callable[[float], float], slope: float) -> int:
    """The lowest quality in 0..100 whose value is at least `target`, 101 if none is; the one below it was tried, too.

    Regula falsi on linear(value), which grows about linearly with the quality, at first by `slope` a quality; by
    bisection after GUESSES trials, so that no curve takes more than 15. Photographs take four on average.
    """
    low, high, quality = -1, 101, 50  # the value of `low` is below the target, that of `high` is not
    known: dict[int, float] = {}
    while True:
        reached = value(quality)
        known[quality] = linear(reached)
        low, high = (low, quality) if reached >= target else (quality, high)
        if high - low == 1:
            return high
        if low in known and high in known:
            slope = (known[high] - known[low]) / (high - low)
        guess = quality + (linear(target) - known[quality]) / slope if slope > 0 else math.nan
        if len(known) >= GUESSES or not math.isfinite(guess):
            guess = (low + high) / 2
        quality = min(max(math.ceil(guess), low + 1), high - 1)


def fit_size(encode: Callable[[Input, int], bytes], image: Input, max_bytes: float) -> tuple[bytes, int]:
    """The file of the highest quality in 0..100 of at most `max_bytes` bytes, and its quality; of quality 0 if none is.

    The next higher quality, if there is one, was encoded and took more.
    """
    file = cache(partial(encode, image))
    most = max_bytes if max_bytes > 0 else 0  # also where that is NaN
    above = lowest(lambda q: len(file(q)), math.nextafter(most, math.inf), lambda size: math.log2(max(size, 1)), 0.04)
    quality = max(above - 1, 0)
    return file(quality), quality


def fit_score(
    encode: Callable[[int], bytes], score: Callable[[bytes], float], least: float
) -> tuple[bytes, int, float]:
    """The file of the lowest quality in 0..100 that scores at least `least`, its quality, and its score; of quality
    100 if none does.

    The next lower quality, if there is one, was scored and had less.
    """
    file = cache(encode)
    reached = cache(lambda quality: score(file(quality)))
    quality = min(lowest(reached, least, lambda score: -math.log2(max(100 - score, 1e-6)), 0.028), 100)
    return file(quality), quality, reached(quality)


def ssimulacra2(original: Image.Image, decoded: Image.Image) -> float:
    """SSIMULACRA 2 of two images of one size (RGB, L, RGBA, LA): 100 is equal, 90 visually lossless, 70 high quality,
    50 medium, 30 low.

    Images with alpha are scored over a dark and over a light background, and the lower score counts. Sides below SIDE
    pixels are mirrored at the right and at the bottom up to that, since the score is defined for six scales.
    """
    if original.mode.endswith("A"):
        return min(_score(*(_over(image, grey) for image in (original, decoded))) for grey in BACKGROUNDS)
    return _score(original, decoded)


def _over(image: Image.Image, grey: int) -> Image.Image:
    """An image with alpha over a grey background (0..255): RGBA."""
    background = Image.new("RGBA", image.size, (grey, grey, grey, 255))
    return Image.alpha_composite(background, image.convert("RGBA"))


def _score(*images: Image.Image) -> float:
    from ssimulacra2 import compute_ssimulacra2

    files = [io.BytesIO(), io.BytesIO()]  # the package takes files, not images
    for image, file in zip(images, files, strict=True):
        pixels = np.asarray(image.convert("RGB"))
        beyond = [(0, max(0, SIDE - side)) for side in pixels.shape[:2]]
        Image.fromarray(np.pad(pixels, (*beyond, (0, 0)), "symmetric")).save(file, "PPM")
        file.seek(0)
    return float(compute_ssimulacra2(*files))
