"""Drawings, text and screenshots: kept without loss where that is not larger than the learned way.

A codec trained on photographs spends many bits on the sharp edges and flat areas of a drawing and still blurs them,
while lossless coders live on them. Such an image is coded both ways, and the smaller file wins. The lossless bytes are
those of WebP (Google, "WebP lossless bitstream specification", 2012), written and read by Pillow.
"""

import io

import numpy as np
from PIL import Image, UnidentifiedImageError

from codec.bitstream import FormatError

DRAWN = 0.4  # share of pixels like the second one before them: 0.06 in a median photograph, above 0.6 in most drawings
LARGEST_SIDE, LARGEST_AREA = 16383, 1 << 26  # what WebP can hold, and what Pillow opens without a warning


def looks_drawn(image: Image.Image) -> bool:
    """Whether lossless coding is worth a try: many pixels are the same as the second to their left or the second above.

    The second, so that stripes and checkerboards of single pixels count too.
    """
    if min(image.size) < 3 or max(image.size) > LARGEST_SIDE or image.width * image.height > LARGEST_AREA:
        return False
    pixels = np.asarray(image.convert("RGBX")).view(np.uint32)[..., 0]
    some = pixels[::4], pixels[:, ::4]  # every fourth row, and column: a sample is enough
    left, above = some[0][:, 2:] == some[0][:, :-2], some[1][2:] == some[1][:-2]
    return max(float(left.mean()), float(above.mean())) > DRAWN


def encode(image: Image.Image) -> bytes:
    """An RGB or L image as lossless WebP."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "WEBP", lossless=True, quality=80, method=4)
    return buffer.getvalue()


def decode(data: bytes, size: tuple[int, int], mode: str) -> Image.Image:
    """The image of `encode`; FormatError unless it is an intact one of this size (width, height)."""
    try:
        with Image.open(io.BytesIO(data), formats=["WEBP"]) as image:
            if image.size != size or getattr(image, "n_frames", 1) != 1:
                raise FormatError(f"damaged: a lossless section of {image.size} in a file of {size}")
            return image.convert(mode)
    except (UnidentifiedImageError, OSError) as error:
        raise FormatError("damaged: the lossless section is not an image") from error
