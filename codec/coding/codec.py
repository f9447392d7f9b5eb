"""The codec: images to files and back, by a backend that runs the networks, integer tables, and the id of a model.

    model = codec.load("fast")
    data = model.compress(image, 50)              a PIL image -> the bytes of a .lic file
    image = model.decompress(data)                and back; region=(left, top, width, height) decodes that alone

An image is coded and decoded one row of tiles (codec/coding/tiles.py) after the other, so that beside the image itself
only a few rows of tiles are in memory. A small image is one tile. The encoding of a row is in codec/coding/encoder.py,
its decoding in `decode_rows`; the interface to the networks is codec/coding/backend.py.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import entropy
from codec.coding import tiles
from codec.coding.backend import Backend, Step, answered
from codec.coding.effort import check
from codec.coding.encoder import Coded, Encoder, Witness, assembled
from codec.coding.tables import CodecTables, channels
from codec.coding.target import fit_score, fit_size, ssimulacra2
from codec.coding.tiles import Box, Latent, Window, cells_of, full, picture_of, planes
from codec.config import CELL, REACH, STRIDE
from codec.container import bitstream, modes
from codec.container.bitstream import FormatError, Header, Section
from codec.errors import LicError


@dataclass(frozen=True)
class Estimate:
    """Rate estimates of one image at one quality, without coding it."""

    bits: float  # -log2 of the float densities of all symbols, in evaluation mode
    cross_entropy: float  # the same in bits per symbol of y
    empirical_entropy: float  # bits per symbol of y under each channel's own histogram in this image
    symbols: np.ndarray  # (M, h, w) int32


class Codec:
    """A model that turns images into files and back; quality is 0..100, or None for a model of one lambda."""

    def __init__(self, backend: Backend, tables: CodecTables, id: str = "0" * 16, replaces: Sequence[str] = ()):
        self.backend, self.tables, self.id = backend, tables, id
        self.replaces = replaces  # ids of further models whose files it decodes
        self.encoder = Encoder(backend, tables)
        self.config = backend.config

    @property
    def device(self) -> str:
        return self.backend.device

    @property
    def precision(self) -> str:
        """The precision of the transforms' trunks: bf16 or fp32."""
        return self.backend.precision

    @property
    def qualities(self) -> list[int | None]:
        """All qualities of this model: 0..100, or None alone for one lambda."""
        return self.config.qualities

    def compress(
        self, image: Image.Image, quality: int | None = None, effort: int = 0, witness: Witness | None = None
    ) -> bytes:
        """A PIL image as the bytes of a .lic file; effort 0..9 (codec/coding/effort.py) finds smaller and better ones.

        codec/container/modes.py has the modes that are coded, and how; UnsupportedImage for all others. ICC
        profile, EXIF, XMP and DPI of `image.info` are kept. A drawing is kept without loss where that is not larger
        (codec/container/lossless.py). `witness` is called with the symbols as they are encoded (Encoder). LicError for
        a quality or effort that there is not.
        """
        return self._compress(modes.prepare(image), quality, effort, witness)

    def compress_to(
        self, image: Image.Image, max_bytes: float, effort: int = 0, witness: Witness | None = None
    ) -> tuple[bytes, int]:
        """The file of the best quality in at most `max_bytes` bytes, and that quality; LicError if there is none.

        It takes some four compressions, each with its own run of g_a, whose output depends on the quality.
        """
        if not self.config.variable_rate:
            raise LicError("this model was trained for one lambda: it cannot aim at a size")
        source = modes.prepare(image)
        data, quality = fit_size(partial(self._compress, effort=effort, witness=witness), source, max_bytes)
        if not len(data) <= max_bytes:  # nor if that is NaN
            bpp = 8 * len(data) / (image.width * image.height)
            raise LicError(f"quality 0 takes {len(data)} bytes ({bpp:.3f} bpp), above the target of {max_bytes:.0f}")
        return data, quality

    def compress_to_score(
        self, image: Image.Image, least: float, effort: int = 0, witness: Witness | None = None
    ) -> tuple[bytes, int, float]:
        """The file of the lowest quality whose image scores at least `least` in SSIMULACRA 2 (codec/coding/target.py).

        Returns the file, its quality and its score, after some four trials. LicError if quality 100 scores less.
        """
        if not self.config.variable_rate:
            raise LicError("this model was trained for one lambda: it cannot aim at a score")
        source = modes.prepare(image)
        encode = partial(self._compress, source, effort=effort, witness=witness)
        data, quality, reached = fit_score(encode, lambda data: ssimulacra2(source.image, self.decompress(data)), least)
        if not reached >= least:  # nor if that is NaN
            raise LicError(f"quality 100 scores {reached:.2f} in SSIMULACRA 2, below the target of {least:g}")
        return data, quality, reached

    def decompress(
        self, data: bytes, max_pixels: int = bitstream.MAX_PIXELS, region: tuple[int, int, int, int] | None = None
    ) -> Image.Image:
        """The image of a .lic file written by this model: RGB, L, RGBA or LA, with its metadata in `info`.

        `region` (left, top, width, height), in pixels, is returned alone, and takes only the tiles that it needs.
        FormatError if the file is damaged, of another model or has more than `max_pixels`; LicError if the region is
        not inside the image.
        """
        return modes.decode(data, max_pixels, region, self.paint)

    def estimate(self, image: Image.Image, quality: int | None = None) -> Estimate:
        """Estimated bits of an RGB or L image, and the entropy of its symbols. LicError without PyTorch."""
        pixels = planes(image)
        bits, symbols = self.backend.bits(pixels, quality), self.latent(pixels, quality).y[0]
        counts = [np.unique(channel, return_counts=True)[1] for channel in symbols]
        own = sum(float((c * np.log2(c.sum() / c)).sum()) for c in counts)
        return Estimate(bits, bits / symbols.size, own / symbols.size, symbols)

    # ---- latents, without a file ----

    def latent(self, pixels: NDArray[np.uint8], quality: int | None = None) -> Latent:
        """The latent of images (B, 3, H, W), as one row of tiles."""
        v = self.backend.analyse(pixels, quality)
        z, area = self.backend.hyper_analyse(v, quality), full(v.shape[-2:])
        return assembled(self.encoder.quantize(v, z, area.coarse(CELL), area, quality), v.shape, z)

    def reconstruct(self, latent: Latent, size: tuple[int, int], quality: int | None = None) -> NDArray[np.uint8]:
        """The pixels (B, 3, *size) of a latent."""
        v_hat = self._dequantize(self._coded(latent, quality), latent.y.shape, quality)
        return self.backend.synthesise(v_hat, quality, size)

    def encode(self, latent: Latent, quality: int | None, mode: str, size: tuple[int, int]) -> bytes:
        """The file of a latent of one image of `size` (height, width); mode RGB or L."""
        y = self.encoder.encode_y(self._coded(latent, quality), quality)
        return bitstream.write(self._header(quality, mode, size), [*self.encoder.encode_z(latent.z, quality), y])

    def decode(self, header: Header, sections: list[Section]) -> Latent:
        """The latent of a file that `bitstream.read` has accepted; FormatError if it is not intact."""
        rows = [
            assembled(coded, (1, self.config.M, *box.shape), z) for box, coded, z in self.decode_rows(header, sections)
        ]
        y = np.concatenate([row.y for row in rows], axis=2)
        index = None if rows[0].index is None else np.concatenate([row.index for row in rows], axis=2)
        return Latent(y, rows[0].z, index)

    def _coded(self, latent: Latent, quality: int | None) -> Coded:
        """A latent, cut into the steps of coding."""
        area = full(latent.y.shape[-2:])
        steps = self.encoder.steps(latent.z, area.coarse(CELL), area, quality)
        return list(answered(steps, lambda step: latent.y[step.where]))

    # ---- encoding ----

    def _compress(
        self, source: modes.Source, quality: int | None, effort: int = 0, witness: Witness | None = None
    ) -> bytes:
        """The file of an image; of a drawing the lossless one if it is not larger."""
        check(effort)
        header = self._header(quality, source.image.mode, source.image.size[::-1])
        made = [Section(bitstream.EFFORT, bytes([effort]))] if effort else []
        sections = [*self.encoder.encode_rows(source.colours, quality, effort, witness), *source.beside, *made]
        data = bitstream.write(header, sections)
        if not source.exact:
            return data
        return min(bitstream.write(header, source.exact), data, key=len)

    def _header(self, quality: int | None, mode: str, size: tuple[int, int]) -> Header:
        """The header of a file of an image of `size` (height, width)."""
        return Header(self.id, quality, mode, size[1], size[0], self.tables.context is not None)

    # ---- decoding ----

    def paint(self, header: Header, sections: list[Section], box: modes.Corners) -> Image.Image:
        """The pixels in `box` (left, top, right, bottom) of a file's image, RGB or L, without alpha.

        FormatError if the file is damaged or of another model.
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
                del coded  # before the next one is made
            seen, own = outer.scaled(STRIDE).within(image), tile.scaled(STRIDE).within(shown)
            pixels = self.backend.synthesise(v_hat.cut(outer), header.quality, seen.shape, gray=mode == "L")
            v_hat.forget(outer.top)
            painted = picture_of(own.relative_to(seen).cut(pixels))
            if own == shown:
                return painted
            picture = picture or Image.new(mode, shown.shape[::-1])  # only now: a forged size fails before
            picture.paste(painted, (own.left - shown.left, own.top - shown.top))
        return picture

    def decode_rows(
        self, header: Header, sections: list[Section], wanted: Box | None = None
    ) -> Iterator[tuple[Box, Coded, NDArray[np.int32] | None]]:
        """Decode the rows of tiles that overlap `wanted`, a box in cells of y; by default all.

        Yields the box of each row, its symbols, and the symbols of all of z (1, K, h', w') or None. FormatError if the
        file is damaged or of another model.
        """
        self._accept(header)
        area = cells_of(header.height, header.width)
        try:
            z = self._decode_z(sections, header.quality, area.coarse(CELL).shape)
            for top, bottom, stream in bitstream.row_streams(header, sections):
                row = Box(top, 0, bottom, area.right).scaled(CELL).within(area)
                if wanted is None or not row.within(wanted).is_empty:
                    yield row, self._decode_row(stream, z, row, area, header), z
        except entropy.StreamError as error:
            raise FormatError(f"damaged: {error}") from error

    def _accept(self, header: Header) -> None:
        """FormatError unless this model wrote the file, or replaces the one that did."""
        if header.model not in (self.id, *self.replaces):
            raise FormatError(f"written by model {header.model}, but this is model {self.id}")
        if (header.quality is None) == self.config.variable_rate:
            raise FormatError(f"quality {header.quality} does not fit this model")
        if header.context and self.tables.context is None:
            raise FormatError("coded with a context, which this model does not have")

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

    def _decode_row(self, stream: bytes, z: NDArray[np.int32] | None, row: Box, area: Box, header: Header) -> Coded:
        """The symbols of a row of tiles, step by step."""
        decoder, tables, place = entropy.Decoder(stream), self.tables.y[header.quality], self.encoder.around(row, area)
        context = self.tables.context if header.context else None
        columns = row.shape[1] if context else None
        decoder.check(self.config.M * row.shape[0] * row.shape[1], columns)  # before h_s runs
        steps = self.encoder.steps(None if z is None else place.cut(z), place, row, header.quality)

        def decode(step: Step) -> NDArray[np.int32]:
            if context:
                return decoder.decode_adapted(step.index[0], tables, context)[None]
            return decoder.decode(step.index, tables, step.shape)

        coded = list(answered(steps, decode))
        decoder.finish()
        return coded

    def _dequantize(self, coded: Coded, shape: tuple[int, ...], quality: int | None) -> NDArray[np.float32]:
        """v_hat, of `shape` (B, M, h, w), of the symbols of all steps."""
        v_hat = None
        for step, symbols in coded:
            dequantized = self.backend.dequantize(symbols, step, quality)
            if step.shape == shape:
                return dequantized
            v_hat = np.empty(shape, np.float32) if v_hat is None else v_hat
            v_hat[step.where] = dequantized
        return v_hat
