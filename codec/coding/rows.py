"""Images of any size and the bytes of their files, in rows of tiles.

An image is analysed, quantized and coded one row of tiles (codec/coding/tiles.py) after the other, and decoded so:
beside the image itself only what belongs to some rows of tiles is in memory. A small image is one tile.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import groupby
from typing import TypeVar

from PIL import Image
from torch import Tensor

import entropy
from codec.coding import tiles
from codec.coding.tiles import Box, Latent, Strip, to_symbols
from codec.container import bitstream, modes
from codec.container.bitstream import Header, Section
from codec.network import pixels as img

Coded = TypeVar("Coded")  # what an encoder takes


def cells_of(height: int, width: int) -> Box:
    """The grid of y of an image of height x width pixels."""
    return tiles.whole((height, width)).coarse(img.STRIDE)


def fit_size(encode: Callable[[Coded, int], bytes], image: Coded, max_bytes: float) -> tuple[bytes, int]:
    """The file of the highest quality in 0..100 that takes at most `max_bytes`, and that quality; of 0 if none does.

    Found by bisection, so that the quality above, if there is one, has been seen to take more.
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


def compress(model, source: modes.Source, quality: int | None) -> bytes:
    """The file of an image at a quality of `model`, a Codec."""
    header = Header(model.id, quality, source.image.mode, source.image.width, source.image.height)
    data = bitstream.write(header, [*encode_rows(model, source.colours, quality), *source.beside])
    if not source.exact:
        return data
    return min(bitstream.write(header, source.exact), data, key=len)


def encode_rows(model, colours: Image.Image, quality: int | None) -> list[Section]:
    """The sections of z and of y, row by row, of an RGB or L image."""
    with model.coding():
        level, area = model.level(model.batch_of(quality, 1)), cells_of(colours.height, colours.width)
        heights = tiles.rows(area.coarse(tiles.CELL).bottom)
        rows = [Box(top, 0, bottom, area.right).scaled(tiles.CELL).within(area) for top, bottom in heights]
        v = Strip(area, ((row, analyse(model, colours, row, level)) for row in rows))
        z = model.hyper_symbols(v, rows, level)
        streams = []
        for row in rows:
            latent = quantize(model, v, z, row, quality)
            model.show(quality, y=latent.y)
            streams.append(Section(bitstream.LATENT, model.encode_y(latent, quality)))
            del latent  # before there is the next one
            v.forget(row.bottom)
        symbols = None if z is None else to_symbols(z.of(z.area))
        model.show(quality, z=symbols)
        return [*model.encode_z(symbols, quality), *bitstream.rows_section(heights), *streams]


def quantize(model, v: Strip, z: Strip | None, row: Box, quality: int | None) -> Latent:
    """The latent of a row of tiles, as it is coded: without mean."""
    wide = groupby(tiles.tiles(row, tiles.WIDE * tiles.CELL), key=lambda tile: tile.top)
    lines = ([replace(model.latent_of(v.of(t), z, t, quality), mean=0.0) for t in line] for _, line in wide)
    return Latent.joined([Latent.joined(line, axis=3) for line in lines], axis=2)


def analyse(model, colours: Image.Image, row: Box, level: Tensor | None) -> Tensor:
    """v (1, M, *row.shape) of a row of tiles of an RGB or L image."""
    area, image = cells_of(colours.height, colours.width), tiles.whole((colours.height, colours.width))

    def analyse_tile(cells: Box) -> Tensor:
        top, left, bottom, right = cells.scaled(img.STRIDE).within(image)
        part = colours if cells == area else colours.crop((left, top, right, bottom))
        return model.analyse(img.to_tensor(part).to(model.device), level)

    return tiles.joined(analyse_tile, row, tiles.TILE * tiles.CELL, model.g_a.halo, area)


def accept(model, header: Header) -> None:
    """FormatError unless the file is one of this model."""
    if header.model != model.id:
        raise bitstream.FormatError(f"written by model {header.model}, but this is model {model.id}")
    if (header.quality is None) == model.config.variable_rate:
        raise bitstream.FormatError(f"quality {header.quality} does not fit this model")


def decode_rows(
    model, header: Header, sections: list[Section], wanted: Box | None = None
) -> Iterator[tuple[Box, Latent]]:
    """Place and latent of each row of tiles that has a part in `wanted`, cells of y; by default of all."""
    accept(model, header)
    area = cells_of(header.height, header.width)
    try:
        z = model.decode_z(sections, header.quality, area.coarse(tiles.CELL).shape)
        for top, bottom, stream in bitstream.row_streams(header, sections):
            box = Box(top, 0, bottom, area.right).scaled(tiles.CELL).within(area)
            if wanted is None or 0 not in box.within(wanted).shape:
                yield box, model.decode_y(stream, z, box, header.quality)
    except entropy.StreamError as error:
        raise bitstream.FormatError(f"damaged: {error}") from error


def paint(model, header: Header, sections: list[Section], pixels: Box) -> Image.Image:
    """That part of the image of a file, in RGB or L."""
    area, image = cells_of(header.height, header.width), tiles.whole((header.height, header.width))
    cells = pixels.coarse(img.STRIDE)
    accept(model, header)
    mode, picture = header.mode.removesuffix("A"), None
    with model.coding():
        decoded = decode_rows(model, header, sections, cells.grown(model.g_s.halo, area))
        level = model.level(model.batch_of(header.quality, 1))
        v_hat = Strip(area, map(lambda item: (item[0], dequantize(model, *item, level)), decoded))  # keeps no latent
        for tile in tiles.tiles(cells, tiles.TILE * tiles.CELL):
            outer = tile.grown(model.g_s.halo, area)
            seen, shown = outer.scaled(img.STRIDE).within(image), tile.scaled(img.STRIDE).within(pixels)
            x_hat = model.synthesise(v_hat.of(outer), level, seen.shape)
            v_hat.forget(outer.top)
            part = img.to_image(shown.seen_from(seen).of(x_hat), mode)
            if shown == pixels:
                return part
            picture = picture or Image.new(mode, pixels.shape[::-1])  # not before the file has shown that it is real
            picture.paste(part, (shown.left - pixels.left, shown.top - pixels.top))
    return picture


def dequantize(model, row: Box, latent: Latent, level: Tensor | None) -> Tensor:
    """v_hat (1, M, *row.shape) of a row of tiles."""
    canvas = None
    for tile in tiles.tiles(row, tiles.WIDE * tiles.CELL):
        part = latent if tile == row else latent.part(tile.seen_from(row))
        canvas = tiles.place(canvas, model.dequantized(part, level), tile, row)
    return canvas
