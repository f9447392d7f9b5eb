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
from entropy.tables import BUCKET_BITS, PRECISION, RECIPROCAL_BITS, TOTAL, Tables

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
    no faster).  threads: at most that many, up to 8, by default OMP_NUM_THREADS or one per processor; the bytes do not
    depend on it.  Raises ValueError for other dtypes, shapes or numbers.
    """
    flat = []
    for values, index, tables in steps:
        values = np.require(values, requirements="CA")
        if values.dtype != np.int32:
            raise ValueError(f"values are {values.dtype}; int32 is needed")
        flat.append((values.reshape(-1), tables.runs(index, values.shape), tables))
    if lanes is None:
        symbols = sum(values.size for values, _, _ in flat)
        lanes = 1 if symbols < 1 << 14 else 4 if symbols < 1 << 20 else 8
    if not 1 <= lanes <= MAX_LANES:
        raise ValueError(f"{lanes} lanes; 1 to {MAX_LANES} are possible")
    encode_parts = _encode_python if numba_or_none() is None else _encode_numba

    def encode_substream(cut: slice) -> bytes:
        return encode_parts([(values[cut], runs.each(cut), tables) for values, runs, tables in flat], lanes)

    cuts = _cuts(max((values.size for values, _, _ in flat), default=0))
    coded = _parallel(encode_substream, cuts, threads)
    lengths = [varint(len(substream)) for substream in coded[:-1]]
    return b"".join([varint(MAX_LANES * len(cuts) + lanes - 1), *lengths, *coded])


class Decoder:
    """Decodes a stream step by step, in the order of encoding; `finish` tells whether all of it was right.

    data: bytes or another buffer; threads as for `encode`.  Raises StreamError where the sizes are damaged.  After an
    error a decoder is of no more use.
    """

    def __init__(self, data: bytes, threads: int | None = None):
        self._threads = threads
        data = np.frombuffer(data, np.uint8)
        head, begin = read_varint(data, 0)
        self._count, lanes = head // MAX_LANES, head % MAX_LANES + 1
        if self._count * (1 + 4 * lanes) > data.size:
            raise StreamError(f"{self._count} substreams of {lanes} lanes do not fit {data.size} bytes")
        ends = [0]
        for _ in range(self._count - 1):
            length, begin = read_varint(data, begin)
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
        runs, flat = tables.runs(index, values.shape), values.reshape(-1)
        cuts = self.check(flat.size)
        self._substreams += islice(self._others, max(0, len(cuts) - len(self._substreams)))
        jobs = list(zip(self._substreams, cuts, strict=False))
        _parallel(lambda job: job[0].decode(runs.each(job[1]), tables, flat[job[1]]), jobs, self._threads)
        return values

    def check(self, symbols: int) -> list[slice]:
        """How a step of that many symbols is cut; StreamError if the stream has too few substreams for it. Asked before
        an index is computed, it spares the work that a false size would cost.
        """
        cuts = _cuts(symbols)
        if len(cuts) > self._count:
            raise StreamError(f"{symbols} symbols need {len(cuts)} substreams; there are {self._count}")
        return cuts

    def finish(self) -> None:
        """Check that the stream ends here: StreamError unless every byte is used and every state back at its start."""
        if len(self._substreams) != self._count:
            raise StreamError(f"the stream has {self._count} substreams, {len(self._substreams)} were used")
        for substream in self._substreams:
            substream.finish()


def kernels_cached(encode: bool = True, decode: bool = True) -> bool:
    """Whether the first use, of what is asked for, starts at once; otherwise it compiles for some seconds, which is
    worth announcing.
    """
    kernels = [_encode_kernel] * encode + [_decode_kernel] * decode
    return numba_or_none() is None or all(kernel.cached for kernel in kernels)


class _Substream:
    """Where the decoding of one substream has got to: its states, and where to read words and escapes."""

    def __init__(self, data: NDArray[np.uint8], lanes: int):
        side, escapes = read_varint(data, 0)
        states = escapes + side
        words = states + 4 * lanes
        if words > data.size:
            raise StreamError(f"a substream needs {words} bytes or more and has {data.size}")
        self.data = data
        self.states = np.frombuffer(data[states:words].tobytes(), "<u4").astype(np.uint32)
        if self.states.min() < _LOWER:
            raise StreamError(f"a state is {self.states.min()}, below {_LOWER}")
        self.cursor = np.array([words, escapes, states], np.int64)  # next word, next escape, end of escapes

    def decode(self, index: NDArray, tables: Tables, values: NDArray[np.int32]) -> None:
        progress = self.states, self.cursor, self.data, values
        if numba_or_none() is None:
            _decode_python(index, tables, *progress)
        elif not _decode_kernel(index, tables.spans, tables.entries, tables.buckets, *progress):
            raise StreamError("the stream ends early, or an escaped value is damaged")

    def finish(self) -> None:
        word, escape, escapes_end = self.cursor
        if word != self.data.size or escape != escapes_end or np.any(self.states != _LOWER):
            raise StreamError("the stream does not end with its symbols: it is damaged, or was made with other tables")


def _cuts(symbols: int) -> list[slice]:
    return [slice(begin, begin + SUBSTREAM) for begin in range(0, symbols, SUBSTREAM)]


def _parallel(function: Callable, jobs: list, threads: int | None) -> list:
    if threads is None:
        wanted = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]  # may be a list, for nested regions
        threads = min(int(wanted) if wanted.isdecimal() and int(wanted) else os.cpu_count() or 1, 8)
    if threads < 1:
        raise ValueError(f"{threads} threads; at least 1 is needed")
    others = min(threads, len(jobs)) - 1  # this thread works too: to start one takes as long as 30,000 symbols
    if others <= 0:
        return [function(job) for job in jobs]
    results, numbers = [None] * len(jobs), iter(range(len(jobs)))

    def work() -> None:
        for i in numbers:  # shared by all threads: each takes the next job as soon as it is free
            results[i] = function(jobs[i])

    with ThreadPoolExecutor(others) as pool:
        futures = [pool.submit(work) for _ in range(others)]
        work()
    for future in futures:
        future.result()  # raises what was raised there
    return results


def varint(number: int) -> bytes:
    """A number >= 0 as a varint of the format above."""
    digits = [number & 127]
    while number := number >> 7:
        digits.append(number & 127 | 128)
    return bytes(reversed(digits))


def read_varint(data: NDArray[np.uint8] | bytes, begin: int) -> tuple[int, int]:
    """The number at a place and the place after it; StreamError where there is none of at most 10 bytes."""
    number = 0
    for position in range(begin, min(begin + _MAX_VARINT, len(data))):
        digit = int(data[position])
        if position == begin and digit == 128:
            raise StreamError(f"the number at byte {begin} has a leading zero")
        number = number << 7 | digit & 127
        if digit < 128:
            return number, position + 1
    raise StreamError(f"the number at byte {begin} does not end")


def _encode_numba(parts: list[tuple[NDArray[np.int32], NDArray, Tables]], lanes: int) -> bytes:
    symbols = sum(values.size for values, _, _ in parts)
    words = np.empty(symbols, np.uint16)  # a symbol emits at most one word; memory that stays untouched is free
    escapes = np.empty(5 * symbols, np.uint8)  # 33 bits are 5 digits
    cursor = np.array([words.size, escapes.size], np.int64)  # both are filled from the end
    states = np.full(lanes, _LOWER, np.uint32)
    for values, index, tables in reversed(parts):
        _encode_kernel(values, index, tables.spans, tables.entries, tables.reciprocals, states, cursor, words, escapes)
    words, escapes = words[cursor[0] :], escapes[cursor[1] :]
    return b"".join([varint(escapes.size), escapes, states.astype("<u4"), words.astype("<u2", copy=False)])


# The kernels; `_encode_python` and `_decode_python` say the same plainly.  Constants and places are unsigned, because
# numba tests signed indices for their sign, for 10 % of the time.
_P, _REST, _HALF, _BYTE = (np.uint32(n) for n in (PRECISION, 32 - PRECISION, 16, 8))
_BUCKET, _SLOTS, _FREQ = (np.uint32(n) for n in (PRECISION - BUCKET_BITS, (1 << PRECISION) - 1, 0xFFFF))
_TOTAL = np.uint32(TOTAL)
_ZERO, _ONE, _TWO, _FIVE, _RECIPROCAL = (np.uint64(n) for n in (0, 1, 2, 5, RECIPROCAL_BITS))
_U8, _U16, _U32, _U64, _I32 = (f"Array({t}, 1, 'C', True)" for t in ("uint8", "uint16", "uint32", "uint64", "int32"))
_SPANS, _BUCKETS = (f"Array({t}, 2, 'C', True)" for t in ("int64", "uint16"))  # "True" also takes read-only arrays
_CODER = "uint32[::1], int64[::1]"  # states, cursor


@kernel(*(f"void({_I32}, {t}, {_SPANS}, {_U32}, {_U64}, {_CODER}, uint16[::1], uint8[::1])" for t in (_U8, _U16)))
def _encode_kernel(values, index, spans, entries, reciprocals, states, cursor, words, escapes):
    word, escape = np.uint64(cursor[0]), np.uint64(cursor[1])
    lanes = np.uint64(states.size)
    lane = np.uint64(values.size) % lanes
    i = np.uint64(values.size)
    while i:
        i -= _ONE
        lane = (lane if lane else lanes) - _ONE
        table = index[i]
        start, last, offset = np.uint64(spans[table, 0]), np.uint64(spans[table, 1]), spans[table, 2]
        distance = values[i] - offset
        symbol = np.uint64(distance)  # modulo 2**64, which takes what is below the offset beyond the last symbol
        if symbol >= last:
            symbol = last
            code = 2 * (distance - np.int64(last)) if distance >= 0 else 2 * (-1 - distance) + 1
            escape -= _ONE
            escapes[escape] = code & 127
            while code > 127:
                code >>= 7
                escape -= _ONE
                escapes[escape] = code & 127 | 128
        place = start + symbol
        reciprocal = reciprocals[place]
        entry = entries[place]
        freq = entry & _FREQ
        x = states[lane]
        if x >> _REST >= freq:
            word -= _ONE
            words[word] = np.uint16(x)
            x >>= _HALF
        quotient = np.uint32(np.uint64(x) * reciprocal >> _RECIPROCAL)  # x // freq takes 5-10 % more of the time
        states[lane] = x + (entry >> _HALF) + quotient * (_TOTAL - freq)  # for x % f is x - x // f * f
    cursor[0], cursor[1] = word, escape


@kernel(*(f"boolean({t}, {_SPANS}, {_U32}, {_BUCKETS}, {_CODER}, {_U8}, int32[::1])" for t in (_U8, _U16)))
def _decode_kernel(index, spans, entries, buckets, states, cursor, data, out):
    word, escape, escapes_end = np.uint64(cursor[0]), np.uint64(cursor[1]), np.uint64(cursor[2])
    lanes, lane = np.uint64(states.size), _ZERO
    for i in range(np.uint64(out.size)):
        table = index[i]
        start, last, offset = np.uint64(spans[table, 0]), np.uint64(spans[table, 1]), spans[table, 2]
        x = states[lane]
        slot = x & _SLOTS
        symbol = np.uint64(buckets[table, slot >> _BUCKET])
        entry = entries[start + symbol]
        while slot - (entry >> _HALF) >= entry & _FREQ:
            symbol += _ONE
            entry = entries[start + symbol]
        x = (entry & _FREQ) * (x >> _P) + (slot - (entry >> _HALF))
        if x >> _HALF == 0:
            if word + _TWO > np.uint64(data.size):
                return False
            x = x << _HALF | np.uint32(data[word + _ONE]) << _BYTE | np.uint32(data[word])
            word += _TWO
        states[lane] = x
        lane += _ONE
        if lane == lanes:
            lane = _ZERO
        value = offset + np.int64(symbol)
        if symbol == last:
            code, digit, first = 0, 128, escape
            while digit > 127:
                if escape == escapes_end or escape == first + _FIVE or code == 0 and escape > first:
                    return False  # no end, too long for 33 bits, or a leading zero
                digit = np.int64(data[escape])
                code = code << 7 | digit & 127
                escape += _ONE
            value = offset - 1 - (code >> 1) if code & 1 else value + (code >> 1)
            if value != np.int32(value):
                return False
        out[i] = value
    cursor[0], cursor[1] = word, escape
    return True


def _encode_python(parts: list[tuple[NDArray[np.int32], NDArray, Tables]], lanes: int) -> bytes:
    """The same bytes as `_encode_numba`, written plainly."""
    states, words, escapes = [_LOWER] * lanes, [], []
    for values, index, tables in reversed(parts):
        spans, entries = tables.spans.tolist(), tables.entries.tolist()
        each = zip(range(values.size), values.tolist(), index.tolist(), strict=True)
        for i, value, table in reversed(list(each)):
            start, last, offset = spans[table]
            symbol = value - offset
            if symbol < 0 or symbol >= last:
                escapes.append(varint(2 * (-1 - symbol) + 1 if symbol < 0 else 2 * (symbol - last)))
                symbol = last
            before, freq = divmod(entries[start + symbol], 1 << 16)
            x = states[i % lanes]
            if x >= freq << 18:
                words.append(x & 0xFFFF)
                x >>= 16
            states[i % lanes] = (x // freq << PRECISION) + before + x % freq
    side = b"".join(reversed(escapes))
    return varint(len(side)) + side + struct.pack(f"<{lanes}I{len(words)}H", *states, *reversed(words))


def _decode_python(index, tables, states, cursor, data, out) -> None:
    """The same values as `_decode_kernel`, written plainly; raises StreamError where that returns False."""
    spans, entries = tables.spans.tolist(), tables.entries.tolist()
    word, escape, escapes_end = cursor.tolist()
    data, side, lanes, values = data.tobytes(), data[:escapes_end].tobytes(), states.tolist(), []
    for i, table in enumerate(index.tolist()):
        start, last, offset = spans[table]
        x = lanes[i % len(lanes)]
        slot = x % (1 << PRECISION)
        place = bisect_right(entries, slot << 16 | 0xFFFF, start, start + last + 1) - 1  # the last that begins by slot
        before, freq = divmod(entries[place], 1 << 16)
        x = freq * (x >> PRECISION) + slot - before
        if x < _LOWER:
            if word + 2 > len(data):
                raise StreamError("the stream ends early")
            x = x << 16 | int.from_bytes(data[word : word + 2], "little")
            word += 2
        lanes[i % len(lanes)] = x
        value = offset + place - start
        if place == start + last:
            code, escape = read_varint(side, escape)
            value = offset - 1 - (code >> 1) if code & 1 else value + (code >> 1)
            if not -(1 << 31) <= value < 1 << 31:
                raise StreamError(f"an escaped value is {value}, beyond int32")
        values.append(value)
    out[:], states[:], cursor[:] = values, lanes, (word, escape, escapes_end)
