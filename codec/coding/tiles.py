"""Large images in bounded memory: the networks run over tiles, each with enough of its neighbours around it.

What a transform gives for a tile is what it gives there for the whole image, up to the rounding of floats, if the tile
comes with a halo of real neighbours as wide as the transform sees (`halo` of g_a, g_s, h_a and h_s). At the border of
the image, and only there, it mirrors. A box counts cells of a grid: 16 pixels a side for y, 64 for z.

An image is cut into rows of tiles, which its file holds one after another; `Window` keeps the rows that are in use.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from codec.config import STRIDE

TILE = 12  # cells of z, that is 768 pixels: about as high as a tile is, and half as wide
WIDE = 2 * TILE  # the same for the hyper-transforms and for quantizing, which take less memory and have larger halos
MOST_ROWS = 200  # of tiles in a file, which has room for 255 sections


class Box(NamedTuple):
    """A rectangle of cells, the ends not included."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.bottom - self.top, self.right - self.left

    @property
    def is_empty(self) -> bool:
        return 0 in self.shape

    def scaled(self, factor: int) -> "Box":
        """The same rectangle in cells of 1/factor of the side."""
        return Box(*(side * factor for side in self))

    def coarse(self, factor: int) -> "Box":
        """The cells of `factor` times the side that the rectangle touches."""
        return Box(self.top // factor, self.left // factor, -(-self.bottom // factor), -(-self.right // factor))

    def grown(self, halo: int, limit: "Box") -> "Box":
        """With `halo` cells more on every side, as far as `limit` has them."""
        return Box(self.top - halo, self.left - halo, self.bottom + halo, self.right + halo).within(limit)

    def within(self, limit: "Box") -> "Box":
        """What it shares with another one; an empty box where that is nothing."""
        top, left = max(self.top, limit.top), max(self.left, limit.left)
        return Box(top, left, max(top, min(self.bottom, limit.bottom)), max(left, min(self.right, limit.right)))

    def relative_to(self, outer: "Box") -> "Box":
        """The rectangle with places counted from the top left of `outer`."""
        return Box(self.top - outer.top, self.left - outer.left, self.bottom - outer.top, self.right - outer.left)

    def of(self, x: NDArray) -> NDArray:
        """That part of x (..., h, w), an array or a tensor; a view."""
        return x[..., self.top : self.bottom, self.left : self.right]


def full(shape: tuple[int, int]) -> Box:
    """The box of a grid of `shape` (height, width)."""
    return Box(0, 0, *map(int, shape))


def cells_of(height: int, width: int) -> Box:
    """The grid of y of an image of height x width pixels."""
    return full((height, width)).coarse(STRIDE)


def cuts(length: int, side: int) -> list[tuple[int, int]]:
    """Begin and end of each part of a length: all equal but the last, and near `side`."""
    part = -(-length // max(1, round(length / side)))
    return [(begin, min(begin + part, length)) for begin in range(0, length, part)]


def rows(height: int) -> list[tuple[int, int]]:
    """Top and bottom of the rows of tiles of an image `height` cells of z high."""
    return cuts(height, max(TILE, -(-height // MOST_ROWS)))


def tiles(area: Box, side: int) -> Iterator[Box]:
    """The tiles of an area, row by row, each about as high as `side` and twice as wide."""
    for top, bottom in cuts(area.bottom - area.top, side):
        for left, right in cuts(area.right - area.left, 2 * side):
            yield Box(area.top + top, area.left + left, area.top + bottom, area.left + right)


def place(canvas: NDArray | None, part: NDArray, box: Box, area: Box) -> NDArray:
    """`canvas` (B, C, *area.shape), made if it is None, with `part` put where `box` is; `part` alone if that is all."""
    if box == area:
        return part
    if canvas is None:
        canvas = np.empty((*part.shape[:2], *area.shape), part.dtype)
    box.relative_to(area).of(canvas)[...] = part
    return canvas


def joined(
    function: Callable[[Box], NDArray], area: Box, side: int, halo: int = 0, limit: Box | None = None
) -> NDArray:
    """What `function` gives for a box, (B, C, *box.shape), over an area: called for tiles, with their halo as far as
    `limit` has it, by default none.
    """
    canvas = None
    for tile in tiles(area, side):
        outer = tile.grown(halo, limit or area)
        canvas = place(canvas, tile.relative_to(outer).of(function(outer)), tile, area)
    return canvas


class Window:
    """Rows of an array (B, C, H, W), below one another: those that are in use, of full width."""

    def __init__(self):
        self._rows: list[tuple[Box, NDArray]] = []

    @property
    def bottom(self) -> int:
        """Where the last row ends; 0 before there is one."""
        return self._rows[-1][0].bottom if self._rows else 0

    def add(self, box: Box, x: NDArray) -> None:
        """The next row (B, C, *box.shape)."""
        self._rows.append((box, x))

    def of(self, box: Box) -> NDArray:
        """The part (B, C, *box.shape), all of whose rows are here."""
        shared = ((box.within(row), row, x) for row, x in self._rows)
        parts = [part.relative_to(row).of(x) for part, row, x in shared if not part.is_empty]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)

    def forget(self, above: int) -> None:
        """Let go the rows that end above a line."""
        self._rows = [(row, x) for row, x in self._rows if row.bottom > above]


@dataclass(frozen=True)
class Latent:
    """What is coded of a batch of images."""

    y: NDArray[np.int32]  # (B, M, h, w)
    z: NDArray[np.int32] | None = None  # (B, K, ceil(h/4), ceil(w/4)), of a codec with a hyperprior
    index: NDArray[np.uint8] | None = None  # (B, M, h, w), the table of each symbol of y, likewise

    def of(self, i: int) -> "Latent":
        """That of image i of the batch, as a batch of one."""
        return Latent(*(None if part is None else part[i : i + 1] for part in (self.y, self.z, self.index)))


def planes(image: Image.Image) -> NDArray[np.uint8]:
    """An RGB or L image as (1, 3, H, W); gray becomes three equal planes."""
    image = image if image.mode == "RGB" else image.convert("RGB")
    return np.stack([np.asarray(plane) for plane in image.split()])[None]


def picture_of(pixels: NDArray[np.uint8]) -> Image.Image:
    """Planes (1, 3 or 1, H, W) as an RGB or L image."""
    images = [Image.fromarray(plane) for plane in pixels[0]]
    return images[0] if len(images) == 1 else Image.merge("RGB", images)
