"""CompressAI's models with this entropy coder: the same symbols and images, framed, checksummed, and coded faster.

    bridge = Bridge(model)             # compressai's FactorizedPrior, ScaleHyperprior or MeanScaleHyperprior, updated
    data = bridge.compress(x)          # (B, 3, H, W) -> bytes
    x_hat = bridge.decompress(data)    # what the model's own decompress returns; StreamError if data is damaged

The model's own compress and decompress run on a shallow copy of it, which shares its weights and has stand-ins for its
entropy models. Neither the model nor compressai is changed. The stand-ins quantize with the model's code and code the
integers with entropy/rans.py. Their tables are made once, from the frequencies of the model's 16-bit cumulative
distributions; a symbol of frequency 1, the least that compressai gives to any symbol, is left to the escape. Make
another bridge after update() or further training.

Limit: a hyperprior computes its scales in floating point, at the encoder and again at the decoder. Another device,
library version or number of threads may round a scale to another table, and then the rest of the stream is lost, as it
is with compressai's coder; here a StreamError says so. Streams of a float hyperprior do not move between machines.
Streams of a FactorizedPrior always decode to the symbols encoded.

Format. `varint` as in entropy/rans.py; everything else is little-endian.

    frame    = header, string x (images x 1 with a FactorizedPrior, x 2 otherwise: all y, then all z)
    header   = magic      4 bytes  89 4C 43 41, "\\x89LCA"
               version    1 byte   1
               tables     8 bytes  first of the SHA-256 of the digests of all tables, those of the Gaussians last
               images     varint   at least 1
               height     varint   of what is coded first: y with a FactorizedPrior, z otherwise; at least 1
               width      varint   at least 1
               checksum   4 bytes  CRC-32 (zlib's) of all that stands before it in the frame, without checksums
    string   = length     varint
               stream     length bytes
               checksum   4 bytes  as above, so that strings cannot change places
"""

import copy
import hashlib
import zlib

import numpy as np
import torch
from compressai.entropy_models import EntropyBottleneck, EntropyModel, GaussianConditional
from compressai.models import CompressionModel, FactorizedPrior, MeanScaleHyperprior, ScaleHyperprior
from numpy.typing import NDArray
from torch import Tensor

from entropy.rans import Decoder, encode
from entropy.tables import Tables
from entropy.varint import StreamError, read_varint, varint

MAGIC = b"\x89LCA"
VERSION = 1
MAX_PIXELS = 128 * 2**20  # refuse larger images unless the caller allows them: a forged size must not fill the memory


class Bridge:
    """Codes images with a model of compressai whose update() was called; ValueError for any other model.

    Models that decode position by position (autoregressive ones) are refused: their symbols depend on each other.
    """

    def __init__(self, model: CompressionModel):
        kinds = (FactorizedPrior, ScaleHyperprior, MeanScaleHyperprior)
        paths = [(kind.compress, kind.decompress) for kind in kinds]
        if (getattr(type(model), "compress", None), getattr(type(model), "decompress", None)) not in paths:
            raise ValueError(
                f"{type(model).__name__} does not compress as {', '.join(kind.__name__ for kind in kinds)} do; other "
                "models, autoregressive ones among them, cannot be bridged"
            )
        stand_ins = {"entropy_bottleneck": _Bottleneck(model.entropy_bottleneck)}
        if not isinstance(model, FactorizedPrior):
            stand_ins["gaussian_conditional"] = _Conditional(model.gaussian_conditional)
        self._coded = len(stand_ins)  # tensors per image
        digests = b"".join(stand_in.tables.digest() for stand_in in stand_ins.values())
        self._digest = hashlib.sha256(digests).digest()[:8]
        self._twin = copy.copy(model)
        self._twin.__dict__.update(stand_ins)  # found before the modules of these names, which the copy shares

    @torch.no_grad()
    def compress(self, x: Tensor) -> bytes:
        """A frame of the images x, (B, 3, H, W) in [0, 1]; ValueError unless H and W are multiples of its stride."""
        factor = self._twin.downsampling_factor
        if x.ndim != 4 or 0 in x.shape or x.shape[2] % factor or x.shape[3] % factor:
            raise ValueError(f"x has shape {tuple(x.shape)}; (B, 3, H, W) with multiples of {factor} is needed: pad it")
        coded = self._twin.compress(x)
        pieces = [MAGIC + bytes([VERSION]) + self._digest + b"".join(map(varint, (len(x), *coded["shape"])))]
        pieces += [varint(len(string)) + string for strings in coded["strings"] for string in strings]
        frame, checksum = [], 0
        for piece in pieces:
            checksum = zlib.crc32(piece, checksum)
            frame += piece, checksum.to_bytes(4, "little")
        return b"".join(frame)

    @torch.no_grad()
    def decompress(self, data: bytes, max_pixels: int = MAX_PIXELS) -> Tensor:
        """The images (B, 3, H, W) that the model decodes from a frame, in [0, 1], on the model's device.

        Raises StreamError if the frame is damaged, was made with other tables, or has more than max_pixels in all.
        """
        images, shape, strings = self._read(data, max_pixels)
        strings = [strings[begin : begin + images] for begin in range(0, len(strings), images)]
        return self._twin.decompress(strings, shape)["x_hat"]

    def _read(self, data: bytes, max_pixels: int) -> tuple[int, tuple[int, int], list[bytes]]:
        """The number of images, the shape (h, w) of the latent coded first, and all strings of a frame."""
        if data[:5] != MAGIC + bytes([VERSION]):
            raise StreamError("the data does not begin as a frame of version 1 does")
        images, position = read_varint(data, 13)
        height, position = read_varint(data, position)
        width, position = read_varint(data, position)
        checksum = _check(data, 0, position, 0)
        if data[5:13] != self._digest:
            raise StreamError("the frame was made with another model: its tables are not those of this one")
        pixels = images * height * width * self._twin.downsampling_factor**2
        if not 0 < pixels <= max_pixels:
            raise StreamError(f"{images} images have {pixels} pixels; 1 to {max_pixels} are allowed (see max_pixels)")
        strings = []
        for _ in range(images * self._coded):
            start = position + 4
            length, begin = read_varint(data, start)
            position = begin + length
            checksum = _check(data, start, position, checksum)
            strings.append(data[begin:position])
        if position + 4 != len(data):
            raise StreamError(f"{len(data) - position - 4} bytes follow the last string")
        return images, (height, width), strings


class _Bottleneck:
    """Stands in for an EntropyBottleneck: one table per channel."""

    def __init__(self, theirs: EntropyBottleneck):
        self._theirs, self.tables = theirs, _tables(theirs)
        self._channel = np.arange(len(self.tables), dtype=np.uint16)[:, None, None]

    def compress(self, x: Tensor) -> list[bytes]:
        symbols = self._theirs.quantize(x, "symbols", self._medians)
        return _encode(symbols, [self._channel] * len(x), self.tables)

    def decompress(self, strings: list[bytes], size: tuple[int, int]) -> Tensor:
        symbols = _decode(strings, [self._channel] * len(strings), self.tables, (len(self.tables), *size))
        return self._theirs.dequantize(symbols.to(self._medians.device), self._medians)

    @property
    def _medians(self) -> Tensor:
        return self._theirs.quantiles[:, 0, 1].reshape(1, -1, 1, 1)


class _Conditional:
    """Stands in for a GaussianConditional: one table per scale."""

    def __init__(self, theirs: GaussianConditional):
        self._theirs, self.tables = theirs, _tables(theirs)
        self.build_indexes = theirs.build_indexes

    def compress(self, inputs: Tensor, indexes: Tensor, means: Tensor | None = None) -> list[bytes]:
        return _encode(self._theirs.quantize(inputs, "symbols", means), _indices(indexes), self.tables)

    def decompress(
        self, strings: list[bytes], indexes: Tensor, dtype: torch.dtype = torch.float, means: Tensor | None = None
    ) -> Tensor:
        symbols = _decode(strings, _indices(indexes), self.tables, indexes.shape[1:])
        return self._theirs.dequantize(symbols.to(indexes.device), means, dtype)


def _tables(theirs: EntropyModel) -> Tables:
    """Our tables from the integer ones of an entropy model; ValueError if it has none."""
    if not theirs.quantized_cdf.numel():
        raise ValueError(f"the {type(theirs).__name__} has no tables yet: call the model's update() first")
    pmfs = []
    for cdf, length in zip(theirs.quantized_cdf.cpu().numpy(), theirs.cdf_length.tolist(), strict=True):
        freqs = np.diff(cdf[:length])[:-1]  # the last one is for all other symbols
        pmfs.append(np.where(freqs > 1, freqs, 0) / cdf[length - 1])
    return Tables.from_pmfs(pmfs, theirs.offset.tolist())


def _indices(indexes: Tensor) -> NDArray[np.uint16]:
    return indexes.cpu().numpy().astype(np.uint16)


def _encode(symbols: Tensor, index: NDArray | list[NDArray], tables: Tables) -> list[bytes]:
    """One stream per image of the symbols (B, C, h, w)."""
    return [encode([(values, own, tables)]) for values, own in zip(symbols.cpu().numpy(), index, strict=True)]


def _decode(strings: list[bytes], index: NDArray | list[NDArray], tables: Tables, shape: tuple[int, ...]) -> Tensor:
    """The symbols (B, C, h, w) int32 of the streams of B images, each of `shape`."""
    symbols = []
    for string, own in zip(strings, index, strict=True):
        decoder = Decoder(string)
        symbols.append(torch.from_numpy(decoder.decode(own, tables, shape)))
        decoder.finish()
    return torch.stack(symbols)


def _check(data: bytes, begin: int, end: int, checksum: int) -> int:
    """The checksum of the frame up to `end`, from that up to `begin`; StreamError unless it stands at `end`."""
    checksum = zlib.crc32(memoryview(data)[begin:end], checksum)
    if data[end : end + 4] != checksum.to_bytes(4, "little"):
        raise StreamError(f"the frame is damaged or ends too early: no valid checksum at byte {end}")
    return checksum
