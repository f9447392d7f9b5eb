"""Interleaved rANS: arrays of integers to bytes and back.

Asymmetric numeral systems (Duda, arXiv:1311.2540, 2013) in their range variant keep all that was coded in one integer,
the state; interleaving several states in one stream (Giesen, arXiv:1402.3392, 2014) hides the latency of a step.

To code a symbol of frequency f, cumulative frequency c and a table that sums to 2**14, from state x:

    encode   if x >= f << 18: emit the low word of x, x >>= 16        x = (x // f << 14) + c + x % f
    decode   slot = x % 2**14, find its symbol                        x = f * (x >> 14) + slot - c
             if x < 2**16: x = x << 16 | next word

Both keep 2**16 <= x < 2**32 and each undoes the other, so decoding runs forward through what was encoded backward and
ends in the state where the encoder began.  `finish` checks that end, which finds out damaged streams, and decoders that
differ in one table or index, with near certainty (a container should add a checksum for the rest).

Format.  A varint is a number in base 128, most significant digit first, no leading zero digit; all bytes but the last
have their top bit set.  Words and states are little-endian.

    stream     varint 64 * S + N - 1                     S substreams, N lanes (1 to 64)
               varint length in bytes                    of each substream but the last, which takes the rest
               substreams
    substream  varint E, then E bytes                    side section: a varint for each escaped value
               N states of 4 bytes, then words of 2      in the order in which the decoder wants them

Steps of up to 2**20 symbols share one substream, each going on with the states the one before it left.  Longer steps
are cut: symbols k * 2**20 up to (k + 1) * 2**20 of every step are in substream k.  There are no more substreams than
that needs: none for no symbols at all.  Within a part of a step, symbol i is in lane i % N.  A state begins (for the
encoder) at 2**16.  A value v outside of its table's lo <= v < hi is coded as the table's last entry, and in the side
section as 2 * (v - hi) where v >= hi, 2 * (lo - 1 - v) + 1 where v < lo.

    >>> import numpy as np
    >>> from entropy import Decoder, Tables, encode
    >>> tables = Tables.from_pmfs([np.array([0.1, 0.8, 0.1]), np.array([0.5, 0.5])], offsets=[-1, 0])
    >>> values = np.array([[0, 0, -1], [0, 1, 1000]], np.int32)
    >>> channel = np.array([[0], [1]], np.uint8)
    >>> decoder = Decoder(encode([(values, channel, tables)]))
    >>> decoder.decode(channel, tables, shape=(2, 3))
    array([[   0,    0,   -1],
           [   0,    1, 1000]], dtype=int32)
    >>> decoder.finish()
"""

import os
import struct
from bisect import bisect_right
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, pairwise

import numpy as np
from numpy.typing import NDArray

from entropy.kernel import kernel, numba_or_none
from entropy.tables import BUCKET_BITS, PRECISION, Tables

SUBSTREAM = 1 << 20  # symbols; states and lengths (some 30 bytes) cost 0.04 % of that many at half a bit each
MAX_LANES = 64

_LOWER = 1 << 16  # states are in [_LOWER, _LOWER << 16)
_MAX_VARINT = 10  # bytes, of 64-bit numbers


class StreamError(ValueError):
    """The bytes are not a stream encoded with these tables and indices."""


def encode(
    steps: Iterable[tuple[NDArray[np.int32], NDArray, Tables]], lanes: int | None = None, threads: int | None = None
) -> bytes:
    """Code one step after another, each (values, index, tables), into one stream.

    values: int32 of any shape and any value; index: uint8 or uint16, broadcastable to values.shape, the table of each
    value.  lanes: 1 to 64, by default 1 below 2**14 symbols (a lane costs 3 bytes), 4 below 2**20 and 8 above (more are
    no faster).  threads: at most that many, by default one per processor up to 8; the bytes do not depend on it.
    Raises ValueError for other dtypes, shapes or numbers.
    """
    flat = []
    for values, index, tables in steps:
        values = np.require(values, requirements="CA")
        if values.dtype != np.int32:
            raise ValueError(f"values are {values.dtype}; int32 is needed")
        flat.append((values.reshape(-1), tables.row_of_each(index, values.shape), tables))
    if lanes is None:
        symbols = sum(values.size for values, _, _ in flat)
        lanes = 1 if symbols < 1 << 14 else 4 if symbols < 1 << 20 else 8
    if not 1 <= lanes <= MAX_LANES:
        raise ValueError(f"{lanes} lanes; 1 to {MAX_LANES} are possible")
    cuts = _cuts(max((values.size for values, _, _ in flat), default=0))
    parts = [[(values[cut], index[cut], tables) for values, index, tables in flat] for cut in cuts]
    encode_part = _encode_python if numba_or_none() is None else _encode_numba
    coded = _parallel(lambda part: encode_part(part, lanes), parts, threads)
    lengths = [_varint(len(substream)) for substream in coded[:-1]]
    return b"".join([_varint(MAX_LANES * len(cuts) + lanes - 1), *lengths, *coded])


class Decoder:
    """Decodes a stream step by step, in the order of encoding; `finish` tells whether all of it was right.

    data: bytes or another buffer; threads as for `encode`.  Raises StreamError where the sizes are damaged.  After an
    error a decoder is of no more use.
    """

    def __init__(self, data: bytes, threads: int | None = None):
        self._threads = threads
        data = np.frombuffer(data, np.uint8)
        head, begin = _read_varint(data, 0)
        self._count, lanes = head // MAX_LANES, head % MAX_LANES + 1
        if self._count * (1 + 4 * lanes) > data.size:
            raise StreamError(f"{self._count} substreams of {lanes} lanes do not fit {data.size} bytes")
        ends = [0]
        for _ in range(self._count - 1):
            length, begin = _read_varint(data, begin)
            ends.append(ends[-1] + length)
        rest = data[begin:]
        if ends[-1] > rest.size:
            raise StreamError(f"{self._count} substreams have {ends[-1]} bytes before the last; {rest.size} are there")
        if not self._count and rest.size:
            raise StreamError(f"{rest.size} bytes follow a stream without symbols")
        self._substreams = []  # those needed so far: objects for all of a false number would fill the memory
        self._others = (_Substream(rest[i:j], lanes) for i, j in pairwise([*ends, rest.size]))

    def decode(self, index: NDArray, tables: Tables, shape: int | tuple[int, ...] | None = None) -> NDArray[np.int32]:
        """The int32 values of the next step, coded under `tables` and `index`; shape: theirs, by default that of index.

        Raises ValueError as `encode` does, StreamError for damaged data.
        """
        values = np.empty(np.shape(index) if shape is None else shape, np.int32)
        index, flat = tables.row_of_each(index, values.shape), values.reshape(-1)
        cuts = _cuts(flat.size)
        if len(cuts) > self._count:
            raise StreamError(f"{flat.size} symbols need {len(cuts)} substreams; there are {self._count}")
        self._substreams += islice(self._others, max(0, len(cuts) - len(self._substreams)))
        jobs = [(substream, index[cut], flat[cut]) for substream, cut in zip(self._substreams, cuts, strict=False)]
        _parallel(lambda job: job[0].decode(job[1], tables, job[2]), jobs, self._threads)
        return values

    def finish(self) -> None:
        """Check that the stream ends here: StreamError unless every byte is used and every state back at its start."""
        if len(self._substreams) != self._count:
            raise StreamError(f"the stream has {self._count} substreams, {len(self._substreams)} were used")
        for substream in self._substreams:
            substream.finish()


def kernels_cached() -> bool:
    """Whether the first use starts at once; otherwise it compiles for some seconds, which is worth announcing."""
    return numba_or_none() is None or (_encode_kernel.cached and _decode_kernel.cached)


class _Substream:
    """Where the decoding of one substream has got to: its states, and where to read words and escapes."""

    def __init__(self, data: NDArray[np.uint8], lanes: int):
        side, escapes = _read_varint(data, 0)
        states = escapes + side
        words = states + 4 * lanes
        if words > data.size:
            raise StreamError(f"a substream needs {words} bytes or more and has {data.size}")
        self.data = data
        self.states = np.frombuffer(data[states:words].tobytes(), "<u4").astype(np.uint32)
        if self.states.min() < _LOWER:
            raise StreamError(f"a state is {self.states.min()}, below {_LOWER}")
        self.cursor = np.array([words, escapes, states], np.int64)  # next word, next escape, end of escapes

    def decode(self, index: NDArray[np.uint16], tables: Tables, values: NDArray[np.int32]) -> None:
        if numba_or_none() is None:
            _decode_python(index, tables, self.data, self.states, self.cursor, values)
        elif not _decode_kernel(index, *tables.arrays, tables.buckets, self.data, self.states, self.cursor, values):
            raise StreamError("the stream ends early, or an escaped value is damaged")

    def finish(self) -> None:
        word, escape, escapes_end = self.cursor
        if word != self.data.size or escape != escapes_end or np.any(self.states != _LOWER):
            raise StreamError("the stream does not end with its symbols: it is damaged, or was made with other tables")


def _cuts(symbols: int) -> list[slice]:
    return [slice(begin, begin + SUBSTREAM) for begin in range(0, symbols, SUBSTREAM)]


def _parallel(function: Callable, jobs: list, threads: int | None) -> list:
    if threads is None:
        threads = min(os.cpu_count() or 1, 8)
    if threads < 1:
        raise ValueError(f"{threads} threads; at least 1 is needed")
    if min(threads, len(jobs)) <= 1:
        return [function(job) for job in jobs]
    with ThreadPoolExecutor(min(threads, len(jobs))) as pool:
        return list(pool.map(function, jobs))


def _varint(number: int) -> bytes:
    digits = [number & 127]
    while number := number >> 7:
        digits.append(number & 127 | 128)
    return bytes(reversed(digits))


def _read_varint(data: NDArray[np.uint8] | bytes, begin: int) -> tuple[int, int]:
    number = 0
    for position in range(begin, min(begin + _MAX_VARINT, len(data))):
        digit = int(data[position])
        if position == begin and digit == 128:
            raise StreamError(f"the number at byte {begin} has a leading zero")
        number = number << 7 | digit & 127
        if digit < 128:
            return number, position + 1
    raise StreamError(f"the number at byte {begin} does not end")


def _encode_numba(parts: list[tuple], lanes: int) -> bytes:
    symbols = sum(values.size for values, _, _ in parts)
    words = np.empty(2 * symbols, np.uint8)  # a symbol emits at most one word; memory that stays untouched is free
    escapes = np.empty(5 * symbols, np.uint8)  # 33 bits are 5 digits
    cursor = np.array([words.size, escapes.size], np.int64)  # both are filled from the end
    states = np.full(lanes, _LOWER, np.uint32)
    for values, index, tables in reversed(parts):
        _encode_kernel(values, index, *tables.arrays, states, words, escapes, cursor)
    words, escapes = words[cursor[0] :], escapes[cursor[1] :]
    return b"".join([_varint(escapes.size), escapes, states.astype("<u4"), words])


# The kernels; `_encode_python` and `_decode_python` say the same plainly.  Constants, lane and symbol are unsigned,
# because numba tests signed indices for their sign, for 10 % of the time.
_P, _REST, _HALF, _BYTE = (np.uint32(n) for n in (PRECISION, 32 - PRECISION, 16, 8))
_BUCKET, _SLOTS, _FREQ = (np.uint32(n) for n in (PRECISION - BUCKET_BITS, (1 << PRECISION) - 1, 0xFFFF))
_ONE = np.uint64(1)
_IN = "Array({}, 1, 'C', True)".format  # read-only or not
_TABLES = ", ".join(map(_IN, ("uint32", "uint32", "int32", "uint32")))
_BUCKETS = "Array(uint16, 2, 'C', True)"


@kernel(f"void({_IN('int32')}, {_IN('uint16')}, {_TABLES}, uint32[::1], uint8[::1], uint8[::1], int64[::1])")
def _encode_kernel(values, index, starts, lasts, offsets, entries, states, words, escapes, cursor):
    word, escape = cursor
    lanes = np.uint64(states.size)
    lane = np.uint64(values.size) % lanes
    for i in range(values.size - 1, -1, -1):
        lane = (lane if lane else lanes) - _ONE
        table = index[i]
        distance = np.int64(values[i]) - offsets[table]
        symbol = np.uint64(distance)  # modulo 2**64, which takes what is below the offset beyond the last symbol
        if symbol >= lasts[table]:
            symbol = np.uint64(lasts[table])
            code = 2 * (distance - np.int64(symbol)) if distance >= 0 else 2 * (-1 - distance) + 1
            escape -= 1
            escapes[escape] = code & 127
            while code > 127:
                code >>= 7
                escape -= 1
                escapes[escape] = code & 127 | 128
        entry = entries[starts[table] + symbol]
        freq = entry & _FREQ
        x = states[lane]
        if x >> _REST >= freq:
            word -= 2
            words[word] = np.uint8(x)
            words[word + 1] = np.uint8(x >> _BYTE)
            x >>= _HALF
        quotient = x // freq
        states[lane] = (quotient << _P) + (entry >> _HALF) + (x - quotient * freq)
    cursor[0], cursor[1] = word, escape


@kernel(f"boolean({_IN('uint16')}, {_TABLES}, {_BUCKETS}, {_IN('uint8')}, uint32[::1], int64[::1], int32[::1])")
def _decode_kernel(index, starts, lasts, offsets, entries, buckets, data, states, cursor, out):
    word, escape, escapes_end = cursor
    lanes, lane = np.uint64(states.size), np.uint64(0)
    for i in range(out.size):
        table = index[i]
        x = states[lane]
        slot = x & _SLOTS
        symbol = np.uint64(buckets[table, slot >> _BUCKET])
        entry = entries[starts[table] + symbol]
        while slot - (entry >> _HALF) >= entry & _FREQ:
            symbol += _ONE
            entry = entries[starts[table] + symbol]
        x = (entry & _FREQ) * (x >> _P) + (slot - (entry >> _HALF))
        if x >> _HALF == 0:
            if word + 2 > data.size:
                return False
            x = x << _HALF | np.uint32(data[word + 1]) << _BYTE | np.uint32(data[word])
            word += 2
        states[lane] = x
        lane += _ONE
        if lane == lanes:
            lane = np.uint64(0)
        value = offsets[table] + np.int64(symbol)
        if symbol == lasts[table]:
            code, digit, first = 0, 128, escape
            while digit > 127:
                if escape == escapes_end or escape == first + 5 or code == 0 and escape > first:
                    return False  # no end, too long for 33 bits, or a leading zero
                digit = np.int64(data[escape])
                code = code << 7 | digit & 127
                escape += 1
            value = offsets[table] - 1 - (code >> 1) if code & 1 else value + (code >> 1)
            if value != np.int32(value):
                return False
        out[i] = value
    cursor[0], cursor[1] = word, escape
    return True


def _encode_python(parts: list[tuple], lanes: int) -> bytes:
    """The same bytes as `_encode_numba`, written plainly."""
    states, words, escapes = [_LOWER] * lanes, [], []
    for values, index, tables in reversed(parts):
        starts, lasts, offsets, entries = (array.tolist() for array in tables.arrays)
        for i, value, table in zip(
            reversed(range(values.size)), values[::-1].tolist(), index[::-1].tolist(), strict=True
        ):
            symbol, last = value - offsets[table], lasts[table]
            if symbol < 0 or symbol >= last:
                escapes.append(_varint(2 * (-1 - symbol) + 1 if symbol < 0 else 2 * (symbol - last)))
                symbol = last
            before, freq = divmod(entries[starts[table] + symbol], 1 << 16)
            x = states[i % lanes]
            if x >= freq << 18:
                words.append(x & 0xFFFF)
                x >>= 16
            states[i % lanes] = (x // freq << PRECISION) + before + x % freq
    side = b"".join(reversed(escapes))
    return _varint(len(side)) + side + struct.pack(f"<{lanes}I{len(words)}H", *states, *reversed(words))


def _decode_python(index, tables, data, states, cursor, out) -> None:
    """The same values as `_decode_kernel`, written plainly; raises StreamError where that returns False."""
    starts, lasts, offsets, entries = (array.tolist() for array in tables.arrays)
    word, escape, escapes_end = cursor.tolist()
    data, side, lanes, values = data.tobytes(), data[:escapes_end].tobytes(), states.tolist(), []
    for i, table in enumerate(index.tolist()):
        x = lanes[i % len(lanes)]
        slot, start = x % (1 << PRECISION), starts[table]
        place = bisect_right(entries, slot << 16 | 0xFFFF, start, starts[table + 1]) - 1  # the last that begins by slot
        before, freq = divmod(entries[place], 1 << 16)
        x = freq * (x >> PRECISION) + slot - before
        if x < _LOWER:
            if word + 2 > len(data):
                raise StreamError("the stream ends early")
            x = x << 16 | int.from_bytes(data[word : word + 2], "little")
            word += 2
        lanes[i % len(lanes)] = x
        symbol = place - start
        if symbol == lasts[table]:
            code, escape = _read_varint(side, escape)
            symbol = -1 - (code >> 1) if code & 1 else symbol + (code >> 1)
            if not -(1 << 31) <= offsets[table] + symbol < 1 << 31:
                raise StreamError(f"an escaped value is {offsets[table] + symbol}, beyond int32")
        values.append(offsets[table] + symbol)
    out[:], states[:], cursor[:] = values, lanes, (word, escape, escapes_end)
