"""Images and their files: a codec is a backend that runs the networks, the integer tables, and an id.

    model = codec.load("fast")
    data = model.compress(image, 50)              a PIL image -> the bytes of a .lic file
    image = model.decompress(data)                and back; region=(left, top, width, height): a part of it

An image is analysed, quantized and coded one row of tiles (codec/coding/tiles.py) after the other, and decoded so:
beside the image itself only what belongs to some rows of tiles is in memory. A small image is one tile. What happens to
a row is in `_encode_rows` and `_decode_rows`; what the networks are asked is in codec/coding/backend.py.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import entropy
from codec.coding import tiles
from codec.coding.backend import Backend, Step, Steps, answered
from codec.coding.tables import CodecTables, channels
from codec.coding.target import fit_score, fit_size, ssimulacra2
from codec.coding.tiles import Box, Latent, Window, cells_of, full, picture_of, planes
from codec.config import CELL, REACH, STRIDE
from codec.container import bitstream, modes
from codec.container.bitstream import FormatError, Header, Section
from codec.errors import LicError

Coded = list[tuple[Step, NDArray[np.int32]]]  # symbols of a part of y, in the steps in which they are coded
Witness = Callable[..., None]  # (quality, y=symbols of a row) and (quality, z=symbols), as they are encoded


@dataclass(frozen=True)
class Estimate:
    """What the model expects of one image at one quality, without coding it."""

    bits: float  # -log2 of the float densities of evaluation-mode forward, all symbols
    cross_entropy: float  # the same in bits per symbol of y
    empirical_entropy: float  # bits per symbol of an ideal coder that knew each channel's histogram in this image
    symbols: np.ndarray  # (M, h, w) int32


class Codec:
    """Turns images into files and back, with one model; quality is 0..100, None for a model of one lambda."""

    def __init__(self, backend: Backend, tables: CodecTables, id: str = "0" * 16, replaces: Sequence[str] = ()):
        self.backend, self.tables, self.id = backend, tables, id
        self.replaces = replaces  # ids of models whose files it decodes, too
        self.config = backend.config

    @property
    def device(self) -> str:
        return self.backend.device

    @property
    def precision(self) -> str:
        """What the trunks of the transforms run in: bf16 or fp32."""
        return self.backend.precision

    @property
    def qualities(self) -> list[int | None]:
        """Every quality this model can be asked for."""
        return self.config.qualities

    def compress(self, image: Image.Image, quality: int | None = None, witness: Witness | None = None) -> bytes:
        """A PIL image as the bytes of a .lic file.

        codec/container/modes.py says which modes are coded and how; its UnsupportedImage tells why others are not. ICC
        profile, EXIF, XMP and DPI of `image.info` are kept. A drawing is kept without loss where that is not larger
        (codec/container/lossless.py). The witness, if there is one, is shown what is encoded.
        """
        return self._compress(modes.prepare(image), quality, witness)

    def compress_to(self, image: Image.Image, max_bytes: float, witness: Witness | None = None) -> tuple[bytes, int]:
        """The largest file of at most `max_bytes`, and its quality; LicError if even quality 0 takes more.

        Compresses seven times at most: g_a sees the quality, so it cannot be run once for all.
        """
        if not self.config.variable_rate:
            raise LicError("this model was trained for one lambda: it cannot aim at a size")
        source = modes.prepare(image)
        data, quality = fit_size(partial(self._compress, witness=witness), source, max_bytes)
        if not len(data) <= max_bytes:  # nor if that is NaN
            bpp = 8 * len(data) / (image.width * image.height)
            raise LicError(f"quality 0 takes {len(data)} bytes ({bpp:.3f} bpp), above the target of {max_bytes:.0f}")
        return data, quality

    def compress_to_score(
        self, image: Image.Image, least: float, witness: Witness | None = None
    ) -> tuple[bytes, int, float]:
        """The smallest file whose image scores at least `least` in SSIMULACRA 2 (codec/coding/target.py), its quality,
        and the score, which is asked seven times at most; LicError if even quality 100 scores less.
        """
        if not self.config.variable_rate:
            raise LicError("this model was trained for one lambda: it cannot aim at a score")
        source = modes.prepare(image)
        encode = partial(self._compress, source, witness=witness)
        data, quality, reached = fit_score(encode, lambda data: ssimulacra2(source.image, self.decompress(data)), least)
        if not reached >= least:  # nor if that is NaN
            raise LicError(f"quality 100 scores {reached:.2f} in SSIMULACRA 2, below the target of {least:g}")
        return data, quality, reached

    def decompress(
        self, data: bytes, max_pixels: int = bitstream.MAX_PIXELS, region: tuple[int, int, int, int] | None = None
    ) -> Image.Image:
        """The image of a .lic file written by this model: RGB, L, RGBA or LA, what is kept beside the pixels in `info`.

        `region` (left, top, width, height) gives that part of it, and decodes only the rows of tiles that it needs.
        FormatError if the file is damaged or another model's, LicError if the image does not have the region.
        """
        return modes.decode(data, max_pixels, region, self.paint)

    def estimate(self, image: Image.Image, quality: int | None = None) -> Estimate:
        """Bits that forward expects for an image, beside the entropy of the symbols themselves."""
        pixels = planes(image)
        bits, symbols = self.backend.bits(pixels, quality), self.latent(pixels, quality).y[0]
        counts = [np.unique(channel, return_counts=True)[1] for channel in symbols]
        own = sum(float((c * np.log2(c.sum() / c)).sum()) for c in counts)
        return Estimate(bits, bits / symbols.size, own / symbols.size, symbols)

    # ---- latents: what is coded, without a file ----

    def latent(self, pixels: NDArray[np.uint8], quality: int | None = None) -> Latent:
        """What is coded of images (B, 3, H, W), in one row of tiles."""
        v = self.backend.analyse(pixels, quality)
        z, area = self.backend.hyper_analyse(v, quality), full(v.shape[-2:])
        return assembled(self._quantize(v, z, area.coarse(CELL), area, quality), v.shape, z)

    def reconstruct(self, latent: Latent, size: tuple[int, int], quality: int | None = None) -> NDArray[np.uint8]:
        """The pixels (B, 3, *size) of a latent."""
        v_hat = self._dequantize(self._coded(latent, quality), latent.y.shape, quality)
        return self.backend.synthesise(v_hat, quality, size)

    def encode(self, latent: Latent, quality: int | None, mode: str, size: tuple[int, int]) -> bytes:
        """The latent of one image of `size` (height, width) -> the bytes of a file."""
        header = Header(self.id, quality, mode, width=size[1], height=size[0])
        sections = [*self._encode_z(latent.z, quality), self._encode_y(self._coded(latent, quality), quality)]
        return bitstream.write(header, sections)

    def decode(self, header: Header, sections: list[Section]) -> Latent:
        """The latent of a file that `bitstream.read` has accepted; FormatError if it is not intact."""
        parts = [
            assembled(coded, (1, self.config.M, *box.shape), z) for box, coded, z in self.decode_rows(header, sections)
        ]
        y = np.concatenate([part.y for part in parts], axis=2)
        index = None if parts[0].index is None else np.concatenate([part.index for part in parts], axis=2)
        return Latent(y, parts[0].z, index)

    def _coded(self, latent: Latent, quality: int | None) -> Coded:
        """A latent in steps."""
        area = full(latent.y.shape[-2:])
        steps = self._steps(latent.z, area.coarse(CELL), area, quality)
        return list(answered(steps, lambda step: latent.y[step.where]))

    # ---- encoding ----

    def _compress(self, source: modes.Source, quality: int | None, witness: Witness | None = None) -> bytes:
        """The file of an image; of a drawing the smaller one of two."""
        header = Header(self.id, quality, source.image.mode, source.image.width, source.image.height)
        data = bitstream.write(header, [*self._encode_rows(source.colours, quality, witness), *source.beside])
        if not source.exact:
            return data
        return min(bitstream.write(header, source.exact), data, key=len)

    def _encode_rows(self, colours: Image.Image, quality: int | None, witness: Witness | None) -> list[Section]:
        """The sections of z and of y, row by row, of an RGB or L image.

        The tables of a row of y depend on the z around it, and that on the v around it: both are made ahead, as far as
        the halos want it, which is one row of tiles for y and one more for v, and let go when they are not needed.
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
            place = self._around(row, area)
            while self.tables.z and z.bottom < place.bottom:
                following = next(to_hyper_analyse)
                cells = following.coarse(CELL)
                seen = cells.grown(self.backend.halos.h_a, area.coarse(CELL)).scaled(CELL).within(area)
                analyse_until(seen.bottom)
                z.add(cells, self._hyper_analyse(v, following, area, quality))
            analyse_until(row.bottom)
            coded = self._quantize(v.of(row), z.of(place) if self.tables.z else None, place, row, quality)
            if witness:
                witness(quality, y=assembled(coded, (1, self.config.M, *row.shape)).y)
            streams.append(self._encode_y(coded, quality))
            del coded  # before there is the next one
            v.forget(min(row.bottom, CELL * (z.bottom - self.backend.halos.h_a)) if self.tables.z else row.bottom)
        symbols = z.of(area.coarse(CELL)) if self.tables.z else None
        if witness:
            witness(quality, z=symbols)
        return [*self._encode_z(symbols, quality), *bitstream.rows_section(heights), *streams]

    def _analyse(self, colours: Image.Image, row: Box, quality: int | None) -> NDArray[np.float32]:
        """v (1, M, *row.shape) of a row of tiles of an RGB or L image."""
        area, image = cells_of(colours.height, colours.width), full((colours.height, colours.width))

        def analyse(cells: Box) -> NDArray[np.float32]:
            top, left, bottom, right = cells.scaled(STRIDE).within(image)
            part = colours if cells == area else colours.crop((left, top, right, bottom))
            return self.backend.analyse(planes(part), quality)

        return tiles.joined(analyse, row, tiles.TILE * CELL, self.backend.halos.g_a, area)

    def _hyper_analyse(self, v: Window, row: Box, area: Box, quality: int | None) -> NDArray[np.int32]:
        """Symbols of z of a row of tiles, of whose v the window has what h_a sees."""

        def analyse(cells: Box) -> NDArray[np.int32]:
            return self.backend.hyper_analyse(v.of(cells.scaled(CELL).within(area)), quality)

        return tiles.joined(analyse, row.coarse(CELL), tiles.WIDE, self.backend.halos.h_a, area.coarse(CELL))

    def _around(self, row: Box, area: Box) -> Box:
        """The cells of z that the tables of a row depend on."""
        return row.coarse(CELL).grown(self.backend.halos.h_s, area.coarse(CELL))

    def _steps(self, z: NDArray[np.int32] | None, place: Box, box: Box, quality: int | None) -> Steps:
        constants = self.tables.constants[quality] if self.tables.constants else None
        return self.backend.steps(z, place, box, quality, constants)

    def _quantize(
        self, v: NDArray[np.float32], z: NDArray[np.int32] | None, place: Box, box: Box, quality: int | None
    ) -> Coded:
        """The symbols of v (B, M, *box.shape), a part of y; z are those of the cells `place`."""
        steps = self._steps(z, place, box, quality)
        coded = answered(steps, lambda step: self.backend.quantize(v[step.where], step, quality))
        return [(replace(step, mean=None), symbols) for step, symbols in coded]  # a mean is as large as the symbols

    def _encode_z(self, z: NDArray[np.int32] | None, quality: int | None) -> list[Section]:
        """The section of the symbols of z (1, K, h', w'); none without a hyperprior."""
        if z is None:
            return []
        return [Section(bitstream.HYPER, entropy.encode([(z, channels(z.shape[1]), self.tables.z[quality])]))]

    def _encode_y(self, coded: Coded, quality: int | None) -> Section:
        """The section of the symbols of a row of y."""
        tables = self.tables.y[quality]
        return Section(bitstream.LATENT, entropy.encode([(symbols, step.index, tables) for step, symbols in coded]))

    # ---- decoding ----

    def paint(self, header: Header, sections: list[Section], box: modes.Corners) -> Image.Image:
        """The colours, RGB or L, of the part `box` (left, top, right, bottom) of a file's image; FormatError if the
        file is damaged.
        """
        left, top, right, bottom = box
        shown, image = Box(top, left, bottom, right), full((header.height, header.width))
        area, cells, halo = cells_of(header.height, header.width), shown.coarse(STRIDE), self.backend.halos.g_s
        mode, picture, v_hat = header.mode.removesuffix("A"), None, Window()
        decoded = self.decode_rows(header, sections, cells.grown(halo, area))
        for tile in tiles.tiles(cells, tiles.TILE * CELL):
            outer = tile.grown(halo, area)
            while v_hat.bottom < outer.bottom:
                row, coded, _ = next(decoded)
                v_hat.add(row, self._dequantize(coded, (1, self.config.M, *row.shape), header.quality))
                del coded  # before there is the next one
            seen, part = outer.scaled(STRIDE).within(image), tile.scaled(STRIDE).within(shown)
            pixels = self.backend.synthesise(v_hat.of(outer), header.quality, seen.shape, gray=mode == "L")
            v_hat.forget(outer.top)
            painted = picture_of(part.relative_to(seen).of(pixels))
            if part == shown:
                return painted
            picture = picture or Image.new(mode, shown.shape[::-1])  # not before the file has shown that it is real
            picture.paste(painted, (part.left - shown.left, part.top - shown.top))
        return picture

    def decode_rows(
        self, header: Header, sections: list[Section], wanted: Box | None = None
    ) -> Iterator[tuple[Box, Coded, NDArray[np.int32] | None]]:
        """Place and symbols of each row of tiles that has a part in `wanted`, cells of y, by default of all; and the
        symbols of all z. FormatError if the file is damaged or another model's.
        """
        self._accept(header)
        area = cells_of(header.height, header.width)
        try:
            z = self._decode_z(sections, header.quality, area.coarse(CELL).shape)
            for top, bottom, stream in bitstream.row_streams(header, sections):
                row = Box(top, 0, bottom, area.right).scaled(CELL).within(area)
                if wanted is None or not row.within(wanted).is_empty:
                    yield row, self._decode_row(stream, z, row, area, header.quality), z
        except entropy.StreamError as error:
            raise FormatError(f"damaged: {error}") from error

    def _accept(self, header: Header) -> None:
        """FormatError unless the file is one of this model."""
        if header.model not in (self.id, *self.replaces):
            raise FormatError(f"written by model {header.model}, but this is model {self.id}")
        if (header.quality is None) == self.config.variable_rate:
            raise FormatError(f"quality {header.quality} does not fit this model")

    def _decode_z(
        self, sections: list[Section], quality: int | None, shape: tuple[int, int]
    ) -> NDArray[np.int32] | None:
        """The symbols (1, K, *shape) of z; None without a hyperprior."""
        if not self.tables.z:
            if any(section.tag == bitstream.HYPER for section in sections):
                raise FormatError("a section of the hyper-latent, which this model does not have")
            return None
        K, decoder = self.config.hyper_M, entropy.Decoder(bitstream.find(sections, bitstream.HYPER))
        z = decoder.decode(channels(K), self.tables.z[quality], (1, K, *shape))
        decoder.finish()
        if np.any(np.abs(z, dtype=np.int64) > REACH):
            raise FormatError(f"damaged: a symbol of the hyper-latent is beyond {REACH}")
        return z

    def _decode_row(
        self, stream: bytes, z: NDArray[np.int32] | None, row: Box, area: Box, quality: int | None
    ) -> Coded:
        """The symbols of a row of tiles."""
        decoder, tables, place = entropy.Decoder(stream), self.tables.y[quality], self._around(row, area)
        decoder.check(self.config.M * row.shape[0] * row.shape[1])  # before anything is computed
        steps = self._steps(None if z is None else place.of(z), place, row, quality)
        coded = list(answered(steps, lambda step: decoder.decode(step.index, tables, step.shape)))
        decoder.finish()
        return coded

    def _dequantize(self, coded: Coded, shape: tuple[int, ...], quality: int | None) -> NDArray[np.float32]:
        """v_hat (B, M, h, w) of a part of y."""
        v_hat = None
        for step, symbols in coded:
            part = self.backend.dequantize(symbols, step, quality)
            if step.shape == shape:
                return part
            v_hat = np.empty(shape, np.float32) if v_hat is None else v_hat
            v_hat[step.where] = part
        return v_hat


def assembled(coded: Coded, shape: tuple[int, ...], z: NDArray[np.int32] | None = None) -> Latent:
    """The latent (B, M, h, w) that was coded in steps."""
    y, index = np.empty(shape, np.int32), np.empty(shape, np.uint8)
    for step, symbols in coded:
        y[step.where] = symbols
        if z is not None:
            index[step.where] = step.index
    return Latent(y, z, None if z is None else index)
