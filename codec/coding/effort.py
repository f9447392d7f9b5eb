"""How long the encoder looks for better symbols: effort 0..9 is the number of passes of codec/network/search.py.

A row of tiles is searched tile by tile, each with as much of its row around it as its pixels depend on; what is beyond
the row is not known yet, so pixels that depend on it do not count. Tiles to the left have their final symbols, tiles to
the right their first ones.
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

MOST = 9


def check(effort: int) -> None:
    """LicError for what is no effort."""
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
    """Symbols of v (1, M, *row.shape), a row of tiles in the cells `area` of an image; `pixels` gives a part of it."""
    halo, found = backend.halos.g_s, None
    for tile in tiles.tiles(row, tiles.TILE * CELL):
        outer = tile.grown(2 * halo, row)  # the pixels of the halo around the tile depend on its symbols
        seen = outer.scaled(STRIDE).within(image)
        counted = known(outer, area, halo).scaled(STRIDE).within(image).relative_to(seen)
        own = outer.relative_to(row)
        part = replace(step, shape=(*step.shape[:2], *outer.shape))
        if step.mean is not None:  # or else the table is the channel's
            part = replace(part, index=own.of(step.index), mean=own.of(step.mean))
        better = backend.search(np.ascontiguousarray(own.of(v)), part, quality, effort, pixels(seen), counted)
        found = tiles.place(found, tile.relative_to(outer).of(better), tile, row)
    return found


def known(outer: Box, area: Box, halo: int) -> Box:
    """The cells of `outer` whose pixels depend on no cell beyond it: all but a halo at borders that `area` goes beyond;
    at least one.
    """
    top = outer.top + halo * (outer.top > area.top)
    left = outer.left + halo * (outer.left > area.left)
    bottom, right = outer.bottom - halo * (outer.bottom < area.bottom), outer.right - halo * (outer.right < area.right)
    return Box(top, left, max(bottom, top + 1), max(right, left + 1))
