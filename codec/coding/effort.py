"""The effort of the encoder, 0..9: the number of passes of its search for better symbols (codec/network/search.py).

A row of tiles is searched tile by tile, each with a margin of its row wide enough for all pixels that depend on the
tile. Symbols beyond the row are not known yet, so pixels that depend on them do not count. Tiles to the left have their
final symbols, tiles to the right those of plain quantization.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from codec.coding import tiles
from codec.coding.backend import Backend, Step
from codec.coding.tiles import Box
from codec.config import CELL, STRIDE
from codec.errors import LicError

MOST = 9  # further passes gain little: 5 to 9 saves 0.5 % of the bits (benchmarks/results/effort.md)


def check(effort: int) -> None:
    """LicError unless effort is an integer in 0..9."""
    if not (type(effort) is int or isinstance(effort, np.integer)) or not 0 <= effort <= MOST:
        raise LicError(f"effort must be an integer in 0..{MOST}, not {effort!r}")


def searched(
    backend: Backend,
    v: NDArray[np.float32],
    step: Step,
    quality: int | None,
    effort: int,
    row: Box,
    area: Box,
    image: Box,
    pixels: Callable[[Box], NDArray[np.uint8]],
) -> NDArray[np.int32]:
    """Better symbols of v (1, M, *row.shape), same shape, for a row of tiles, by `effort` passes.

    row, area: the row and all of the image, in cells of y; image: the image in pixels. `pixels` returns the pixels of a
    box (1, 3, H, W).
    """
    halo, found = backend.halos.g_s, None
    for tile in tiles.tiles(row, tiles.TILE * CELL):
        outer = tile.grown(2 * halo, row)  # the pixels of the halo around the tile depend on its symbols
        seen = outer.scaled(STRIDE).within(image)
        counted = known(outer, area, halo).scaled(STRIDE).within(image).relative_to(seen)
        own = outer.relative_to(row)
        around = replace(step, shape=(*step.shape[:2], *outer.shape))
        if step.mean is not None:  # without a hyperprior the index is by channel and need not be cut
            around = replace(around, index=own.cut(step.index), mean=own.cut(step.mean))
        better = backend.search(np.ascontiguousarray(own.cut(v)), around, quality, effort, pixels(seen), counted)
        found = tiles.place(found, tile.relative_to(outer).cut(better), tile, row)
    return found


def known(outer: Box, area: Box, halo: int) -> Box:
    """The cells of `outer` whose pixels depend on no cell outside of it: all but a halo along borders inside `area`.

    At least one cell is left.
    """
    top = outer.top + halo * (outer.top > area.top)
    left = outer.left + halo * (outer.left > area.left)
    bottom, right = outer.bottom - halo * (outer.bottom < area.bottom), outer.right - halo * (outer.right < area.right)
    return Box(top, left, max(bottom, top + 1), max(right, left + 1))
