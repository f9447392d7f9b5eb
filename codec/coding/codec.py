"""Images and their files: a codec is a backend that runs the networks, the integer tables, and an id.

    model = codec.load("fast")
    data = model.compress(image, 50)              a PIL image -> the bytes of a .lic file
    image = model.decompress(data)                and back; region=(left, top, width, height): a part of it

An image is analysed, quantized and coded one row of tiles (codec/coding/tiles.py) after the other, and decoded so:
beside the image itself only what belongs to some rows of tiles is in memory. A small image is one tile. What happens to
a row is in codec/coding/encoder.py and in `decode_rows`; what the networks are asked is in codec/coding/backend.py.
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
        self.encoder = Encoder(backend, tables)
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

    def compress(
        self, image: Image.Image, quality: int | None = None, effort: int = 0, witness: Witness | None = None
    ) -> bytes:
        """A PIL image as the bytes of a .lic file; effort 0..9 (codec/coding/effort.py) finds smaller and better ones.

        codec/container/modes.py says which modes are coded and how; its UnsupportedImage tells why others are not. ICC
        profile, EXIF, XMP and DPI of `image.info` are kept. A drawing is kept without loss where that is not larger
        (codec/container/lossless.py). The witness, if there is one, is shown what is encoded.
        """
        return self._compress(modes.prepare(image), quality, effort, witness)

    def compress_to(
        self, image: Image.Image, max_bytes: float, effort: int = 0, witness: Witness | None = None
    ) -> tuple[bytes, int]:
        """The largest file of at most `max_bytes`, and its quality; LicError if even quality 0 takes more.

        Compresses seven times at most: g_a sees the quality, so it cannot be run once for all.
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
        """The smallest file whose image scores at least `least` in SSIMULACRA 2 (codec/coding/target.py), its quality,
        and the score, which is asked seven times at most; LicError if even quality 100 scores less.
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
        return assembled(self.encoder.quantize(v, z, area.coarse(CELL), area, quality), v.shape, z)

    def reconstruct(self, latent: Latent, size: tuple[int, int], quality: int | None = None) -> NDArray[np.uint8]:
        """The pixels (B, 3, *size) of a latent."""
        v_hat = self._dequantize(self._coded(latent, quality), latent.y.shape, quality)
        return self.backend.synthesise(v_hat, quality, size)

    def encode(self, latent: Latent, quality: int | None, mode: str, size: tuple[int, int]) -> bytes:
        """The latent of one image of `size` (height, width) -> the bytes of a file."""
        y = self.encoder.encode_y(self._coded(latent, quality), quality)
        return bitstream.write(self._header(quality, mode, size), [*self.encoder.encode_z(latent.z, quality), y])

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
        steps = self.encoder.steps(latent.z, area.coarse(CELL), area, quality)
        return list(answered(steps, lambda step: latent.y[step.where]))

    # ---- encoding ----

    def _compress(
        self, source: modes.Source, quality: int | None, effort: int = 0, witness: Witness | None = None
    ) -> bytes:
        """The file of an image; of a drawing the smaller one of two."""
        check(effort)
        header = self._header(quality, source.image.mode, source.image.size[::-1])
        made = [Section(bitstream.EFFORT, bytes([effort]))] if effort else []
        sections = [*self.encoder.encode_rows(source.colours, quality, effort, witness), *source.beside, *made]
        data = bitstream.write(header, sections)
        if not source.exact:
            return data
        return min(bitstream.write(header, source.exact), data, key=len)

    def _header(self, quality: int | None, mode: str, size: tuple[int, int]) -> Header:
        """That of a file of an image of `size` (height, width)."""
        return Header(self.id, quality, mode, size[1], size[0], self.tables.context is not None)

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
                    yield row, self._decode_row(stream, z, row, area, header), z
        except entropy.StreamError as error:
            raise FormatError(f"damaged: {error}") from error

    def _accept(self, header: Header) -> None:
        """FormatError unless the file is one of this model."""
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
        """The symbols of a row of tiles."""
        decoder, tables, place = entropy.Decoder(stream), self.tables.y[header.quality], self.encoder.around(row, area)
        context = self.tables.context if header.context else None
        columns = row.shape[1] if context else None
        decoder.check(self.config.M * row.shape[0] * row.shape[1], columns)  # before anything is computed
        steps = self.encoder.steps(None if z is None else place.of(z), place, row, header.quality)

        def decode(step: Step) -> NDArray[np.int32]:
            if context:
                return decoder.decode_adapted(step.index[0], tables, context)[None]
            return decoder.decode(step.index, tables, step.shape)

        coded = list(answered(steps, decode))
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
