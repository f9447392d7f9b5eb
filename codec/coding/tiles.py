"""Large images in bounded memory: the transforms run over tiles, each with enough of its neighbours around it.

What a transform gives for a tile is what it gives there for the whole image, up to the rounding of floats, if the tile
comes with a halo of real neighbours as wide as the transform sees (`halo` of g_a, g_s, h_a and h_s). At the border of
the image, and only there, it mirrors. A box counts cells of a grid: 16 pixels a side for y, 64 for z.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

CELL = 4  # cells of y in one of z, on each side
TILE = 12  # cells of z, that is 768 pixels: about as high as a tile is, and half as wide
WIDE = 2 * TILE  # the same for h_s, whose halo is larger
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
        """What it shares with another one; nothing, where that is nothing."""
        top, left = max(self.top, limit.top), max(self.left, limit.left)
        return Box(top, left, max(top, min(self.bottom, limit.bottom)), max(left, min(self.right, limit.right)))

    def seen_from(self, outer: "Box") -> "Box":
        """The rectangle with places counted from the top left of `outer`."""
        return Box(self.top - outer.top, self.left - outer.left, self.bottom - outer.top, self.right - outer.left)

    def of(self, x: Tensor) -> Tensor:
        """That part of x (..., h, w)."""
        return x[..., self.top : self.bottom, self.left : self.right]


def whole(shape: tuple[int, int]) -> Box:
    """The box of a grid of `shape` (rows, columns)."""
    return Box(0, 0, *map(int, shape))


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


def place(canvas: Tensor | None, part: Tensor, box: Box, area: Box) -> Tensor:
    """`canvas` (B, C, *area.shape), made if it is None, with `part` put where `box` is; `part` alone if that is all."""
    if box == area:
        return part
    if canvas is None:
        canvas = torch.empty(*part.shape[:2], *area.shape, dtype=part.dtype, device=part.device)
    box.seen_from(area).of(canvas).copy_(part)
    return canvas


def joined(function: Callable[[Box], Tensor], area: Box, side: int, halo: int, limit: Box) -> Tensor:
    """What `function` gives for a box, (B, C, *box.shape), over an area: called for tiles with their halo."""
    canvas = None
    for tile in tiles(area, side):
        outer = tile.grown(halo, limit)
        canvas = place(canvas, tile.seen_from(outer).of(function(outer)), tile, area)
    return canvas


class Strip:
    """A tensor (B, C, *area.shape) in rows, each made when something of it is first wanted."""

    def __init__(self, area: Box, rows: Iterable[tuple[Box, Tensor]]):
        """`rows`: place and content of each, from top to bottom."""
        self.area = area
        self._rows = iter(rows)
        self._made: list[tuple[Box, Tensor]] = []

    @classmethod
    def whole(cls, x: Tensor) -> "Strip":
        """One row: all of x (B, C, h, w)."""
        area = whole(x.shape[-2:])
        return cls(area, [(area, x)])

    def of(self, box: Box) -> Tensor:
        """The part (B, C, *box.shape)."""
        while not self._made or self._made[-1][0].bottom < box.bottom:
            self._made.append(next(self._rows))
        shared = ((box.within(row), row, x) for row, x in self._made)
        parts = [part.seen_from(row).of(x) for part, row, x in shared if 0 not in part.shape]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)

    def forget(self, above: int) -> None:
        """Let go the rows that end above a line."""
        self._made = [(row, x) for row, x in self._made if row.bottom > above]


@dataclass(frozen=True)
class Latent:
    """The latent of a batch of images, or of a part of one."""

    y: np.ndarray  # (B, M, h, w) int32
    z: np.ndarray | None = None  # (B, K, ceil(h/4), ceil(w/4)) int32, of whole images of a codec with a hyperprior
    index: np.ndarray | None = None  # (B, M, h, w) uint8, the table of each symbol of y
    mean: Tensor | float = 0.0  # (B, M, h, w) float32, what y is a difference to

    def of(self, i: int) -> "Latent":
        """That of image i of the batch, as a batch of one."""
        one = slice(i, i + 1)
        z = None if self.z is None else self.z[one]
        return self._each(lambda part: part[one], z)

    def part(self, box: Box) -> "Latent":
        """That of a part of it, without z."""
        return self._each(box.of)

    def _each(self, cut: Callable, z: np.ndarray | None = None) -> "Latent":
        index = None if self.index is None else cut(self.index)
        return Latent(cut(self.y), z, index, self.mean if isinstance(self.mean, float) else cut(self.mean))

    @staticmethod
    def joined(parts: list["Latent"], axis: int) -> "Latent":
        """That of an image whose parts lie below each other (axis 2) or side by side (axis 3)."""
        first = parts[0]
        if len(parts) == 1:
            return first
        y = np.concatenate([part.y for part in parts], axis)
        if first.index is None:
            return Latent(y, first.z)
        index = np.concatenate([part.index for part in parts], axis)
        mean = first.mean if isinstance(first.mean, float) else torch.cat([part.mean for part in parts], axis)
        return Latent(y, first.z, index, mean)


def to_symbols(x: Tensor) -> np.ndarray:
    """Integers in a float tensor as int32 on the CPU."""
    return x.to(torch.int32).contiguous().cpu().numpy()
