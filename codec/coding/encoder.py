"""The encoder: an image is analysed, quantized and coded, one row of tiles after the other.

The interface to the networks is codec/coding/backend.py; how tiles overlap is in codec/coding/tiles.py.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import entropy
from codec.coding import tiles
from codec.coding.backend import Backend, Step, Steps, answered
from codec.coding.effort import searched
from codec.coding.tables import CodecTables, channels
from codec.coding.tiles import Box, Latent, Window, cells_of, full, planes
from codec.config import CELL, STRIDE
from codec.container import bitstream
from codec.container.bitstream import Section

Coded = list[tuple[Step, NDArray[np.int32]]]  # the steps of a row of tiles, each with its symbols
# Called as (quality, y=symbols of a row, share=of the image that is encoded then) and (quality, z=symbols)
Witness = Callable[..., None]


class Encoder:
    """Encodes images to sections of files, with the networks of a backend and the model's tables."""

    def __init__(self, backend: Backend, tables: CodecTables):
        self.backend, self.tables = backend, tables

    def encode_rows(
        self, colours: Image.Image, quality: int | None, effort: int, witness: Witness | None
    ) -> list[Section]:
        """The sections of z and of the rows of y of an RGB or L image.

        The tables of a row of y depend on the z around it, and that z on the v around it. Both are computed ahead as
        far as the halos reach, one row of tiles for z and one more for v, and freed when no row needs them any more.
        """
        area = cells_of(colours.height, colours.width)
        heights = tiles.rows(area.coarse(CELL).bottom)
        rows = [Box(top, 0, bottom, area.right).scaled(CELL).within(area) for top, bottom in heights]
        v, z, streams = Window(), Window(), []
        to_analyse, to_hyper_analyse = iter(rows), iter(rows)

        def analyse_until(bottom: int) -> None:
            while v.bottom < bottom:
                row = next(to_analyse)
                v.add(row, self._analyse(colours, row, quality))

        for row in rows:
            place = self.around(row, area)
            while self.tables.z and z.bottom < place.bottom:
                following = next(to_hyper_analyse)
                cells = following.coarse(CELL)
                seen = cells.grown(self.backend.halos.h_a, area.coarse(CELL)).scaled(CELL).within(area)
                analyse_until(seen.bottom)
                z.add(cells, self._hyper_analyse(v, following, area, quality))
            analyse_until(row.bottom)
            seek = partial(self._search, colours, row, area, quality, effort) if effort else None
            coded = self.quantize(v.cut(row), z.cut(place) if self.tables.z else None, place, row, quality, seek)
            if witness:
                y = assembled(coded, (1, self.backend.config.M, *row.shape)).y
                witness(quality, y=y, share=row.bottom / area.bottom)
            streams.append(self.encode_y(coded, quality))
            del coded  # before the next one is made
            v.forget(min(row.bottom, CELL * (z.bottom - self.backend.halos.h_a)) if self.tables.z else row.bottom)
        symbols = z.cut(area.coarse(CELL)) if self.tables.z else None
        if witness:
            witness(quality, z=symbols)
        return [*self.encode_z(symbols, quality), *bitstream.rows_section(heights), *streams]

    def _search(
        self, colours: Image.Image, row: Box, area: Box, quality: int | None, effort: int, v: NDArray, step: Step
    ) -> NDArray[np.int32]:
        """Better symbols of v (*step.shape), a row of tiles of an RGB or L image (codec/coding/effort.py)."""
        image = full((colours.height, colours.width))

        def pixels(box: Box) -> NDArray[np.uint8]:
            return planes(colours.crop((box.left, box.top, box.right, box.bottom)))

        return searched(self.backend, v, step, quality, effort, row, area, image, pixels)

    def _analyse(self, colours: Image.Image, row: Box, quality: int | None) -> NDArray[np.float32]:
        """v (1, M, *row.shape) of a row of tiles of an RGB or L image."""
        area, image = cells_of(colours.height, colours.width), full((colours.height, colours.width))

        def analyse(cells: Box) -> NDArray[np.float32]:
            top, left, bottom, right = cells.scaled(STRIDE).within(image)
            cropped = colours if cells == area else colours.crop((left, top, right, bottom))
            return self.backend.analyse(planes(cropped), quality)

        return tiles.joined(analyse, row, tiles.TILE * CELL, self.backend.halos.g_a, area)

    def _hyper_analyse(self, v: Window, row: Box, area: Box, quality: int | None) -> NDArray[np.int32]:
        """Symbols of z (1, K, h', w') of a row of tiles; the window v reaches as far around it as h_a sees."""

        def analyse(cells: Box) -> NDArray[np.int32]:
            return self.backend.hyper_analyse(v.cut(cells.scaled(CELL).within(area)), quality)

        return tiles.joined(analyse, row.coarse(CELL), tiles.WIDE, self.backend.halos.h_a, area.coarse(CELL))

    def around(self, row: Box, area: Box) -> Box:
        """The box of z that the table indices of a row of y depend on."""
        return row.coarse(CELL).grown(self.backend.halos.h_s, area.coarse(CELL))

    def steps(self, z: NDArray[np.int32] | None, place: Box, box: Box, quality: int | None) -> Steps:
        """`Backend.steps` with the model's constants of a quality."""
        constants = self.tables.constants[quality] if self.tables.constants else None
        return self.backend.steps(z, place, box, quality, constants)

    def quantize(
        self,
        v: NDArray[np.float32],
        z: NDArray[np.int32] | None,
        place: Box,
        box: Box,
        quality: int | None,
        seek: Callable[[NDArray[np.float32], Step], NDArray[np.int32]] | None = None,
    ) -> Coded:
        """The symbols of v (B, M, *box.shape), step by step; z are the symbols in the box `place`.

        `seek` (v, step) -> symbols, if given, replaces plain quantization.
        """
        quantize = seek or (lambda v, step: self.backend.quantize(v, step, quality))
        coded = answered(self.steps(z, place, box, quality), lambda step: quantize(v[step.where], step))
        return [(replace(step, mean=None), symbols) for step, symbols in coded]  # a mean is as large as the symbols

    def encode_z(self, z: NDArray[np.int32] | None, quality: int | None) -> list[Section]:
        """The section of z, symbols (1, K, h', w'), in a list; an empty list without a hyperprior."""
        if z is None:
            return []
        return [Section(bitstream.HYPER, entropy.encode([(z, channels(z.shape[1]), self.tables.z[quality])]))]

    def encode_y(self, coded: Coded, quality: int | None) -> Section:
        """The section of a row of y."""
        tables, context = self.tables.y[quality], self.tables.context
        if context:
            ((step, symbols),) = coded
            return Section(bitstream.LATENT, entropy.encode_adapted(symbols[0], step.index[0], tables, context))
        return Section(bitstream.LATENT, entropy.encode([(symbols, step.index, tables) for step, symbols in coded]))


def assembled(coded: Coded, shape: tuple[int, ...], z: NDArray[np.int32] | None = None) -> Latent:
    """The latent, y of `shape` (B, M, h, w), from its steps; with the table indices if there is z."""
    y, index = np.empty(shape, np.int32), np.empty(shape, np.uint8)
    for step, symbols in coded:
        y[step.where] = symbols
        if z is not None:
            index[step.where] = step.index
    return Latent(y, z, None if z is None else index)
