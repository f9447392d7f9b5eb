"""Large images in bounded memory: the networks run over overlapping tiles.

A tile comes with a halo of its neighbours as wide as the transform sees (`halo` of g_a, g_s, h_a and h_s). Then the
transform gives there what it gives for the whole image, up to the rounding of floats. Only at the border of the image
it mirrors. Boxes are in cells of a grid: of y (16 pixels a side), of z (64), or in pixels.

An image is cut into rows of tiles, which its file holds one after another; `Window` keeps the rows that are in use.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from codec.config import STRIDE

# By hand:
TILE = 12  # approximate height of a tile in cells of z, 768 pixels; it is twice as wide
WIDE = 2 * TILE  # the same for hyper-transforms and quantization, which take less memory and have larger halos
MOST_ROWS = 200  # rows of tiles in a file, which has room for 255 sections


class Box(NamedTuple):
    """A rectangle of cells; bottom and right are not included."""

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
        """The same rectangle on a grid of cells 1/factor as large."""
        return Box(*(side * factor for side in self))

    def coarse(self, factor: int) -> "Box":
        """The cells that it touches of a grid of cells `factor` times as large."""
        return Box(self.top // factor, self.left // factor, -(-self.bottom // factor), -(-self.right // factor))

    def grown(self, halo: int, limit: "Box") -> "Box":
        """The rectangle with `halo` cells more on every side, clipped to `limit`."""
        return Box(self.top - halo, self.left - halo, self.bottom + halo, self.right + halo).within(limit)

    def within(self, limit: "Box") -> "Box":
        """The intersection with another rectangle, possibly empty."""
        top, left = max(self.top, limit.top), max(self.left, limit.left)
        return Box(top, left, max(top, min(self.bottom, limit.bottom)), max(left, min(self.right, limit.right)))

    def relative_to(self, outer: "Box") -> "Box":
        """The rectangle in coordinates from the top left of `outer`."""
        return Box(self.top - outer.top, self.left - outer.left, self.bottom - outer.top, self.right - outer.left)

    def cut(self, x: NDArray) -> NDArray:
        """The rectangle of x (..., h, w), an array or a tensor: (..., *shape), a view."""
        return x[..., self.top : self.bottom, self.left : self.right]


def full(shape: tuple[int, int]) -> Box:
    """The box of a grid of `shape` (height, width)."""
    return Box(0, 0, *map(int, shape))


def cells_of(height: int, width: int) -> Box:
    """The grid of y of an image of height x width pixels."""
    return full((height, width)).coarse(STRIDE)


def cuts(length: int, side: int) -> list[tuple[int, int]]:
    """Begin and end of the pieces of a length: equal but for the last, and near `side`."""
    piece = -(-length // max(1, round(length / side)))
    return [(begin, min(begin + piece, length)) for begin in range(0, length, piece)]


def rows(height: int) -> list[tuple[int, int]]:
    """Top and bottom of the rows of tiles of an image `height` cells of z high, in these cells."""
    return cuts(height, max(TILE, -(-height // MOST_ROWS)))


def tiles(area: Box, side: int) -> Iterator[Box]:
    """The tiles of an area, row by row, each about as high as `side` and twice as wide."""
    for top, bottom in cuts(area.bottom - area.top, side):
        for left, right in cuts(area.right - area.left, 2 * side):
            yield Box(area.top + top, area.left + left, area.top + bottom, area.left + right)


def place(canvas: NDArray | None, tile: NDArray, box: Box, area: Box) -> NDArray:
    """Put `tile` (B, C, *box.shape) into `canvas` (B, C, *area.shape), which is made if it is None; returns it.

    A tile that is all of the area is returned itself.
    """
    if box == area:
        return tile
    if canvas is None:
        canvas = np.empty((*tile.shape[:2], *area.shape), tile.dtype)
    box.relative_to(area).cut(canvas)[...] = tile
    return canvas


def joined(
    function: Callable[[Box], NDArray], area: Box, side: int, halo: int = 0, limit: Box | None = None
) -> NDArray:
    """Run a function tile by tile over an area: (B, C, *area.shape).

    `function` maps a box to (B, C, *box.shape). It gets tiles about `side` high, grown by `halo` and clipped to
    `limit`, by default the area.
    """
    canvas = None
    for tile in tiles(area, side):
        outer = tile.grown(halo, limit or area)
        canvas = place(canvas, tile.relative_to(outer).cut(function(outer)), tile, area)
    return canvas


class Window:
    """The rows of tiles in use of an array (B, C, H, W) that is made from top to bottom."""

    def __init__(self):
        self._rows: list[tuple[Box, NDArray]] = []

    @property
    def bottom(self) -> int:
        """Where the last row ends; 0 before there is one."""
        return self._rows[-1][0].bottom if self._rows else 0

    def add(self, box: Box, x: NDArray) -> None:
        """Append the next row of tiles, x (B, C, *box.shape)."""
        self._rows.append((box, x))

    def cut(self, box: Box) -> NDArray:
        """The rectangle `box` of the array, (B, C, *box.shape); its rows must be in use."""
        shared = ((box.within(row), row, x) for row, x in self._rows)
        pieces = [piece.relative_to(row).cut(x) for piece, row, x in shared if not piece.is_empty]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=2)

    def forget(self, above: int) -> None:
        """Free the rows that end at or above the line `above`."""
        self._rows = [(row, x) for row, x in self._rows if row.bottom > above]


@dataclass(frozen=True)
class Latent:
    """The symbols of a batch of images."""

    y: NDArray[np.int32]  # (B, M, h, w)
    z: NDArray[np.int32] | None = None  # (B, K, ceil(h/4), ceil(w/4)); None without a hyperprior
    index: NDArray[np.uint8] | None = None  # (B, M, h, w), the table of each symbol of y; None likewise

    def of(self, i: int) -> "Latent":
        """The latent of image i of the batch, as a batch of one."""
        return Latent(*(None if x is None else x[i : i + 1] for x in (self.y, self.z, self.index)))


def planes(image: Image.Image) -> NDArray[np.uint8]:
    """An RGB or L image as uint8 (1, 3, H, W); gray becomes three equal planes."""
    image = image if image.mode == "RGB" else image.convert("RGB")
    return np.stack([np.asarray(plane) for plane in image.split()])[None]


def picture_of(pixels: NDArray[np.uint8]) -> Image.Image:
    """Planes (1, 3 or 1, H, W) as an RGB or L image."""
    images = [Image.fromarray(plane) for plane in pixels[0]]
    return images[0] if len(images) == 1 else Image.merge("RGB", images)
