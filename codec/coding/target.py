"""The quality at which a file meets a target, by bisection: a size, or a score of SSIMULACRA 2."""

import io
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from PIL import Image

Input = TypeVar("Input")  # what an encoder takes
# Pixels, for six scales of at least 8. With fewer scales, libjxl's sum and the package's give every later term the
# weight of another one: the same JPEG of a photograph scores 66 at 224x224 pixels and 39 at 225x225.
SIDE = 225
BACKGROUNDS = 26, 230  # grey under transparent images: 0.1 and 0.9 of white, as in libjxl's tool


def fit_size(encode: Callable[[Input, int], bytes], image: Input, max_bytes: float) -> tuple[bytes, int]:
    """The file of the highest quality in 0..100 of at most `max_bytes` bytes, and its quality; of quality 0 if none is.

    Bisection, up to seven encodings: the next higher quality, if there is one, was encoded and took more.
    """
    fitting, low, high = None, 0, 100
    while low <= high:
        middle = (low + high) // 2
        data = encode(image, middle)
        if len(data) <= max_bytes:
            fitting, low = (data, middle), middle + 1
        else:
            high = middle - 1
    return fitting or (data, 0)


def fit_score(
    encode: Callable[[int], bytes], score: Callable[[bytes], float], least: float
) -> tuple[bytes, int, float]:
    """The file of the lowest quality in 0..100 that scores at least `least`, its quality, and its score; of quality
    100 if none does.

    Bisection, up to seven encodings: the next lower quality, if there is one, was scored and had less.
    """
    fitting, low, high = None, 0, 100
    while low <= high:
        middle = (low + high) // 2
        data = encode(middle)
        reached = score(data)
        if reached >= least:
            fitting, high = (data, middle, reached), middle - 1
        else:
            low = middle + 1
    return fitting or (data, 100, reached)


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
