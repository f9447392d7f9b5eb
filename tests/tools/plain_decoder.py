"""A decoder of .lic files up to their symbols, written from the specification alone: plain Python and NumPy.

The specification is the text at the top of codec/container/bitstream.py, and what that names. Nothing of ours is
imported here, and nothing is fast: what the bytes mean should be read off. It finds the same symbols, or the
specification does not suffice (tests/coding/test_specification.py).
"""

import json
import zlib
from bisect import bisect_right
from itertools import accumulate
from typing import NamedTuple

import numpy as np

STEP = 2**20  # symbols of a step that share a substream
TYPES = {"F32": "<f4", "F16": "<f2", "I32": "<i4", "U16": "<u2", "U8": "u1"}  # of safetensors


class File(NamedTuple):
    """The header of a file, and its sections: (tag, payload)."""

    version: int
    model: str
    quality: int
    mode: int
    width: int
    height: int
    sections: list[tuple[int, bytes]]

    def payloads(self, tag: int) -> list[bytes]:
        return [payload for other, payload in self.sections if other == tag]


class Symbols(NamedTuple):
    """The symbols of y and z, and the number of the table that h_s gives each symbol of y."""

    y: np.ndarray
    z: np.ndarray | None = None
    index: np.ndarray | None = None


# ---- codec/container/bitstream.py ----


def leb128(data: bytes, at: int) -> tuple[int, int]:
    """The number at a place, and the place behind it."""
    value = 0
    for size in range(1, 6):
        byte = data[at + size - 1]
        value |= (byte & 127) << 7 * (size - 1)
        if byte < 128:
            assert byte or size == 1, "a superfluous zero byte"
            return value, at + size
    raise AssertionError("more than 5 bytes")


def parse(data: bytes) -> File:
    assert data[:4] == b"\x89LIC" and data[4] in (1, 2)
    version, model, quality, mode, count = data[4], data[5:13].hex(), data[13], data[14], data[15]
    width, at = leb128(data, 16)
    height, at = leb128(data, at)
    checksum, sections = zlib.crc32(data[:at]), []
    for _ in range(count):
        length, begin = leb128(data, at + 1)
        end = begin + length
        checksum = zlib.crc32(data[at:end], checksum)
        assert checksum == int.from_bytes(data[end : end + 4], "little"), "a wrong checksum"
        sections.append((data[at], data[begin:end]))
        at = end + 4
    assert at == len(data) and count and width and height
    return File(version, model, quality, mode, width, height, sections)


# ---- codec/coding/models.py, codec/coding/tables.py, entropy/tables.py ----


class Table:
    """The frequencies of a table, of which the last is that of the escape symbol, and the value of the first."""

    def __init__(self, freqs: list[int], offset: int):
        self.freqs, self.lo, self.hi = freqs, offset, offset + len(freqs) - 1  # values lo <= v < hi
        self.starts = [0, *accumulate(freqs)]
        assert min(freqs) >= 1 and self.starts.pop() == 2**14

    def energy(self) -> int:
        """What it expects (entropy/context.py)."""
        return sum(f * min(abs(self.lo + k), 1023) for k, f in enumerate(self.freqs[:-1])) >> 6


def split(freqs: np.ndarray, sizes: np.ndarray, offsets: np.ndarray) -> list[Table]:
    """Tables that stand one behind the other."""
    ends = np.cumsum(sizes)
    return [
        Table(freqs[end - size : end].tolist(), offset)
        for end, size, offset in zip(ends.tolist(), sizes.tolist(), offsets.tolist(), strict=True)
    ]


class Model:
    """What a model file holds."""

    def __init__(self, path):
        data = open(path, "rb").read()
        begin = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:begin])
        self.meta = header.pop("__metadata__")
        self.config = json.loads(self.meta["config"])
        self.places = {
            name: (TYPES[entry["dtype"]], entry["shape"], begin + entry["data_offsets"][0])
            for name, entry in header.items()
        }
        self.data = data

    def __getitem__(self, name: str) -> np.ndarray:
        dtype, shape, at = self.places[name]
        return np.frombuffer(self.data, dtype, int(np.prod(shape)), at).reshape(shape)

    def reads(self, model: str) -> bool:
        return model in (self.meta["id"], *self.meta.get("replaces", "").split(","))

    def quality_tables(self, quality: int, channels: int) -> list[Table]:
        """Those of the channels of z, or without a hyperprior of y, at a quality."""
        sizes = self["tables.sizes"].reshape(-1, channels)
        row = 0 if quality == 255 else quality
        begin, own = int(sizes[:row].sum()), sizes[row]
        offsets = self["tables.offsets"].reshape(-1, channels)[row]
        return split(self["tables.freqs"][begin : begin + own.sum()], own, offsets)

    def scale_tables(self) -> list[Table]:
        return split(self["tables.y_freqs"], self["tables.y_sizes"], self["tables.y_offsets"])

    def context(self) -> tuple[np.ndarray, ...]:
        names = ("order", "parents", "weights", "constants")
        return tuple(self[f"tables.context_{name}"].astype(np.int64) for name in names)


# ---- entropy/rans.py ----


def varint(data: bytes, at: int) -> tuple[int, int]:
    value, begin = 0, at
    while True:
        byte = data[at]
        value, at = value << 7 | byte & 127, at + 1
        if byte < 128:
            assert at == begin + 1 or data[begin] != 128, "a leading zero digit"
            return value, at


class Substream:
    def __init__(self, data: bytes, lanes: int):
        size, at = varint(data, 0)
        end = at + size
        self.side = []
        while at < end:
            value, at = varint(data, at)
            self.side.append(value)
        assert at == end
        words = np.frombuffer(data, "<u2", offset=end + 4 * lanes)
        self.states = np.frombuffer(data, "<u4", lanes, end).tolist()
        self.words, self.side, self.count = iter(words.tolist()), iter(self.side), 0

    def decode(self, tables: list[Table], index: list[int]) -> list[int]:
        """The next symbols, whose tables are `index`."""
        states, values = self.states, []
        lanes = len(states)
        for i, t in enumerate(index, self.count):
            table, x = tables[t], states[i % lanes]
            slot = x & 16383
            k = bisect_right(table.starts, slot) - 1
            x = table.freqs[k] * (x >> 14) + slot - table.starts[k]
            if x < 2**16:
                x = x << 16 | next(self.words)
            states[i % lanes] = x
            value = table.lo + k
            if value == table.hi:
                number = next(self.side)
                value = table.lo - 1 - (number >> 1) if number & 1 else table.hi + (number >> 1)
            values.append(value)
        self.count += len(index)
        return values

    def finish(self) -> None:
        """It ends where the encoder began, and nothing is left."""
        assert set(self.states) == {2**16}
        assert next(self.words, None) is None and next(self.side, None) is None


def substreams(data: bytes) -> list[Substream]:
    head, at = varint(data, 0)
    count, lanes = head // 64, head % 64 + 1
    sizes = []
    for _ in range(count - 1):
        size, at = varint(data, at)
        sizes.append(size)
    ends = [*accumulate(sizes, initial=at)] + [len(data)] if count else [at]
    assert ends[-1] == len(data)
    return [Substream(data[begin:end], lanes) for begin, end in zip(ends, ends[1:], strict=False)]


def decode(data: bytes, tables: list[Table], index: np.ndarray) -> np.ndarray:
    """A stream of one step."""
    parts, flat, values = substreams(data), index.ravel().tolist(), []
    assert len(parts) == -(-len(flat) // STEP)
    for k, part in enumerate(parts):
        values += part.decode(tables, flat[k * STEP : (k + 1) * STEP])
        part.finish()
    return np.array(values, np.int64).reshape(index.shape)


# ---- codec/network/hyper.py, entropy/integer.py ----


def convolve(model: Model, layer: str, x: np.ndarray, offset=0, shift: int = 12) -> np.ndarray:
    """An exact layer of (C, H, W) without padding; float64 holds every sum."""
    weight = np.rint(model[f"h_s.{layer}.weight"].astype(float) * 2**12)
    bias = np.rint(model[f"h_s.{layer}.bias"].astype(float) * 2**20) + 2**12 * offset
    size = weight.shape[-1]
    h, w = x.shape[1] - size + 1, x.shape[2] - size + 1
    sums = np.zeros((len(weight), h * w)) + bias[:, None]
    for i in range(size):
        for j in range(size):
            sums += weight[:, :, i, j] @ x[:, i : i + h, j : j + w].reshape(len(x), -1)
    return (sums.astype(np.int64) >> shift).reshape(-1, h, w)


def mirrored(x: np.ndarray) -> np.ndarray:
    """With a sample more on every side."""
    return np.pad(x, ((0, 0), (1, 1), (1, 1)), "reflect")


def rectify(x: np.ndarray) -> np.ndarray:
    return np.clip(x, 0, 65535).astype(float)


def shuffle(x: np.ndarray) -> np.ndarray:
    """Of four channels one of twice the height and width."""
    channels, h, w = x.shape
    return x.reshape(channels // 4, 2, 2, h, w).transpose(0, 3, 1, 4, 2).reshape(channels // 4, 2 * h, 2 * w)


def spread(x: np.ndarray) -> np.ndarray:
    """Zeros after each sample, to the right and below."""
    out = np.zeros((len(x), 2 * x.shape[1], 2 * x.shape[2]))
    out[:, ::2, ::2] = x
    return out


def hyper_synthesis(z: np.ndarray, model: Model, quality: int) -> np.ndarray:
    """The number of a table for each symbol of y."""
    assert abs(z).max() <= 127
    row = 0 if quality == 255 else quality
    step, inner, outer = (model[f"tables.{name}"][row].astype(np.int64) for name in ("step", "inner", "outer"))
    step, inner, x = step[:, None, None], inner[:, None, None], z.astype(float)
    if model.config["transform"] == "fast":
        x = rectify(convolve(model, "layers.0", mirrored(x * step)) + inner)
        x = shuffle(rectify(convolve(model, "layers.1", x)))
        x = rectify(convolve(model, "layers.2", mirrored(x)))
        x = shuffle(rectify(convolve(model, "layers.3", x)))
    else:
        x = rectify(convolve(model, "layers.0", spread(mirrored(x * step))) + inner)
        x = mirrored(rectify(convolve(model, "layers.1", spread(mirrored(x)))))
    index = convolve(model, "scale", x, (outer + 128) >> 3, 17)
    return np.clip(index, 0, len(model["tables.y_sizes"]) - 1)


# ---- entropy/context.py ----

Context = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # order, parents, weights, constants


def logarithm(x: np.ndarray) -> np.ndarray:
    n = np.frexp(x.astype(float))[1].astype(np.int64) - 1
    return 256 * n + (x << 31 - n >> 23) - 256


def decode_adapted(data: bytes, tables: list[Table], index: np.ndarray, context: Context) -> np.ndarray:
    """A stream of one latent with a context: its strips."""
    parts, w = substreams(data), index.shape[2]
    count = min(-(-index.size // STEP), w)
    assert len(parts) == count
    strips = []
    for i, part in enumerate(parts):
        strips.append(decode_strip(part, tables, index[:, :, i * w // count : (i + 1) * w // count], context))
        part.finish()
    return np.concatenate(strips, 2)


def decode_strip(part: Substream, tables: list[Table], index: np.ndarray, context: Context) -> np.ndarray:
    order, parents, weights, constants = context
    index = index.astype(np.int64)
    energy = np.array([table.energy() for table in tables])[index]
    symbols, magnitude = np.zeros(index.shape, np.int64), np.zeros(index.shape, np.int64)
    _, h, w = index.shape

    def neighbours(plane: np.ndarray, y: int) -> np.ndarray:
        """What is above, above to the left, above to the right and two rows above of a row."""
        rows = np.zeros((2, w + 2), np.int64)
        rows[max(2 - y, 0) :, 1:-1] = plane[max(y - 2, 0) : y]
        return np.stack([rows[1, 1:-1], rows[1, :-2], rows[1, 2:], rows[0, 1:-1]])

    for c in order.tolist():
        floor, slope, bias = constants[c].tolist()
        for y in range(h):
            s, e = (
                floor + weights[c] @ np.concatenate([x[parents[c], y], neighbours(x[c], y)])
                for x in (256 * magnitude, energy)
            )
            feature = np.clip(logarithm(s) - logarithm(e), -2047, 2047)
            adapted = np.clip((index[c, y] * 65536 + slope * feature + bias + 32768) >> 16, 0, len(tables) - 1)
            adapted[(index[c, y] == 0) & (s == floor)] = 0
            symbols[c, y] = part.decode(tables, adapted.tolist())
            magnitude[c, y] = np.minimum(abs(symbols[c, y]), 1023)
    return symbols


# ---- all of it ----


def symbols(file: File, model: Model) -> Symbols:
    """What sections 1 and 2 of a file hold."""
    assert model.reads(file.model)
    m, h, w = model.config["M"], -(-file.height // 16), -(-file.width // 16)
    hyper = "tables.y_sizes" in model.places
    z, index = None, np.broadcast_to(np.arange(m)[:, None, None], (m, h, w))
    if hyper:
        k = model.config["hyper_M"]
        channels = np.broadcast_to(np.arange(k)[:, None, None], (k, -(-h // 4), -(-w // 4)))
        z = decode(file.payloads(2)[0], model.quality_tables(file.quality, k), channels)
        index = hyper_synthesis(z, model, file.quality)[:, :h, :w]
    tables = model.scale_tables() if hyper else model.quality_tables(file.quality, m)
    unit = 4 * leb128(file.payloads(5)[0], 0)[0] if file.payloads(5) else h  # rows of y in a row of tiles
    rows, y = file.payloads(1), []
    assert len(rows) == -(-h // unit)
    for i, data in enumerate(rows):
        own = index[:, i * unit : (i + 1) * unit]
        y.append(decode(data, tables, own) if file.version == 1 else decode_adapted(data, tables, own, model.context()))
    return Symbols(np.concatenate(y, 1), z, index if hyper else None)
