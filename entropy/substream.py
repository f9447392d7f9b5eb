"""One substream of entropy/rans.py: symbols to bytes and back, by kernels or, where numba is missing, in plain Python.

A substream holds one piece of each step: values int32 (n,), index uint8 or uint16 (n,), and tables. With a context
(entropy/context.py) the indices of a row depend on the rows decoded before it.
"""

import struct
from bisect import bisect_right

import numpy as np
from numpy.typing import NDArray

from entropy.context import FEATURE_BITS, FEATURE_MOST, INDEX_BITS, MOST, UNIT_BITS, Context, adapted_row, rows
from entropy.kernel import kernel, numba_or_none
from entropy.tables import BUCKET_BITS, PRECISION, RECIPROCAL_BITS, TOTAL, Tables
from entropy.varint import StreamError, read_varint, varint

VECTOR = 32  # rows are padded to multiples of this many numbers, so that compiled loops have no remainder
LOWER = 1 << 16  # states are in [LOWER, LOWER << 16)


def encode_pieces(pieces: list[tuple[NDArray[np.int32], NDArray, Tables]], lanes: int) -> bytes:
    """The bytes of a substream that holds these pieces (values, index, tables) of steps, in that order."""
    return (_encode_python if numba_or_none() is None else _encode_numba)(pieces, lanes)


def adapted(values: NDArray[np.int32], index: NDArray[np.uint8], tables: Tables, context: Context) -> NDArray[np.uint8]:
    """The adapted indices of a latent (C, h, w) all of whose symbols are known; same shape."""
    out = np.empty_like(index)
    if numba_or_none() is None:
        for row in rows(context, index.shape):
            out[row] = adapted_row(values, index, tables, context, row)
    else:
        _adapt_kernel(values, *_seen(index, tables), *context.arrays, len(tables) - 1, out)
    return out


class Substream:
    """A substream in decoding: its states, and where the next word and the next escaped value are read."""

    def __init__(self, data: NDArray[np.uint8], lanes: int):
        side, escapes = read_varint(data, 0)
        states = escapes + side
        words = states + 4 * lanes
        if words > data.size:
            raise StreamError(f"a substream needs {words} bytes or more and has {data.size}")
        self.data = data
        self.states = np.frombuffer(data[states:words].tobytes(), "<u4").astype(np.uint32)
        if self.states.min() < LOWER:
            raise StreamError(f"a state is {self.states.min()}, below {LOWER}")
        self.cursor = np.array([words, escapes, states, 0], np.int64)  # next word, next escape, end of escapes, lane

    def decode(self, index: NDArray, tables: Tables, values: NDArray[np.int32], first: bool = True) -> None:
        """Decode the next symbols into `values` (n,); `first`: they begin a step. StreamError for damaged data."""
        if first:
            self.cursor[3] = 0
        progress = self.states, self.cursor, self.data, values
        if numba_or_none() is None:
            _decode_python(index, tables, *progress)
        elif not _decode_kernel(index, tables.spans, tables.entries, tables.buckets, *progress):
            raise StreamError("the stream ends early, or an escaped value is damaged")

    def decode_rows(self, index: NDArray[np.uint8], tables: Tables, context: Context) -> NDArray[np.int32]:
        """Decode a latent of the shape (C, h, w) of index, a step of its own, under indices that the context adapts."""
        values = np.zeros(index.shape, np.int32)
        self.cursor[3] = 0
        if numba_or_none() is None:
            for row in rows(context, index.shape):
                self.decode(adapted_row(values, index, tables, context, row), tables, values[row], first=False)
            return values
        coder = tables.spans, tables.entries, tables.buckets, self.states, self.cursor, self.data
        if not _decode_rows_kernel(*_seen(index, tables), *context.arrays, *coder, values):
            raise StreamError("the stream ends early, or an escaped value is damaged")
        return values

    def finish(self) -> None:
        """StreamError unless all bytes are used and all states are back at their start."""
        word, escape, escapes_end, _ = self.cursor
        if word != self.data.size or escape != escapes_end or np.any(self.states != LOWER):
            raise StreamError("the stream does not end with its symbols: it is damaged, or was made with other tables")


def _seen(index: NDArray[np.uint8], tables: Tables) -> tuple[NDArray, ...]:
    """Inputs of the context kernels: indices, the expectation of each table, and memory to be filled row by row with
    magnitudes, their expectations, and flags of what is above 0; rows have zeros at both ends, up to whole VECTORs.
    """
    C, h, w = index.shape
    magnitudes, means = np.empty((2, C, h, -(-w // VECTOR) * VECTOR + 2), np.int32)
    return index, tables.magnitudes, magnitudes, means, np.zeros((C, h), np.uint8)


def _encode_numba(pieces: list[tuple[NDArray[np.int32], NDArray, Tables]], lanes: int) -> bytes:
    symbols = sum(values.size for values, _, _ in pieces)
    words = np.empty(symbols, np.uint16)  # a symbol emits at most one word; memory that stays untouched is free
    escapes = np.empty(5 * symbols, np.uint8)  # 33 bits are 5 digits
    cursor = np.array([words.size, escapes.size], np.int64)  # both are filled from the end
    states = np.full(lanes, LOWER, np.uint32)
    for values, index, tables in reversed(pieces):
        _encode_kernel(values, index, tables.spans, tables.entries, tables.reciprocals, states, cursor, words, escapes)
    words, escapes = words[cursor[0] :], escapes[cursor[1] :]
    return b"".join([varint(escapes.size), escapes, states.astype("<u4"), words.astype("<u2", copy=False)])


# The kernels; `_encode_python` and `_decode_python` compute the same in plain Python.  Constants and places are
# unsigned: numba tests signed indices for their sign, which took 10 % of the time.
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
    lanes, lane = np.uint64(states.size), np.uint64(cursor[3])
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
    cursor[0], cursor[1], cursor[3] = word, escape, lane
    return True


_U8_3, _I32_3 = (f"Array({t}, 3, 'C', True)" for t in ("uint8", "int32"))
_SEEN = f"{_U8_3}, {_I32}, int32[:, :, ::1], int32[:, :, ::1], uint8[:, ::1]"
_CONTEXT = ", ".join(
    f"Array({t}, {n}, 'C', True)" for t, n in (("uint16", 1), ("uint16", 2), ("uint8", 2), ("int32", 2))
)
_SYMBOLS, _TABLES = np.uint8(1), np.uint8(2)
_LOG, _LOG_FLOOR, _HALF_INDEX = 52 - FEATURE_BITS, (1023 << FEATURE_BITS) - 1, 1 << INDEX_BITS - 1


@kernel(f"void({_SEEN}, {_I32}, int64, int64)")
def _note_kernel(index, expected, magnitudes, means, busy, values, c, r):
    """Store the magnitudes of a row and the expectations of its tables."""
    own, given, of_symbols, of_tables = values, index[c, r], magnitudes[c, r], means[c, r]
    symbols = tables = np.int32(0)
    for x in range(own.size):
        of_symbols[x + 1] = min(abs(np.int64(own[x])), MOST)
        of_tables[x + 1] = expected[given[x]]
        symbols |= of_symbols[x + 1]
        tables |= of_tables[x + 1]
    busy[c, r] = (symbols > 0) * _SYMBOLS + (tables > 0) * _TABLES
    of_symbols[0] = of_tables[0] = 0
    of_symbols[own.size + 1 :] = 0
    of_tables[own.size + 1 :] = 0


@kernel(f"void({_SEEN}, {_CONTEXT}, int64, int64, int64, int32[::1], int32[::1], uint8[::1])")
def _adapt_row_kernel(
    index, expected, magnitudes, means, busy, order, parents, weights, constants, c, r, top, s, e, out
):  # fmt: skip
    """The adapted indices of a row; s and e are memory for its sums."""
    own, count, links = index[c, r], parents.shape[1], parents[c]
    tables = np.uint8(0)
    for x in range(own.size):
        tables |= own[x]
    some = tables > 0
    for k in range(count):
        some |= weights[c, k] > 0 and busy[links[k], r] & _SYMBOLS > 0
    for down in range(1, min(r, 2) + 1):
        some |= busy[c, r - down] & _SYMBOLS > 0
    if not some:
        out[:] = 0
        return
    floor, slope, bias = constants[c, 0], constants[c, 1], constants[c, 2]
    s[:] = floor
    e[:] = floor
    for k in range(count):
        weight = np.int32(weights[c, k])
        if weight:
            flags, of_tables, of_symbols = busy[links[k], r], means[links[k], r], magnitudes[links[k], r]
            if flags & _TABLES:
                for x in range(s.size):
                    e[x] += weight * of_tables[x + 1]
            if flags & _SYMBOLS:
                for x in range(s.size):
                    s[x] += weight * of_symbols[x + 1] << UNIT_BITS
    for k, (down, right) in enumerate(((1, 1), (1, 0), (1, 2), (2, 1))):
        weight = np.int32(weights[c, count + k])
        if weight and r >= down:
            flags, of_tables, of_symbols = busy[c, r - down], means[c, r - down], magnitudes[c, r - down]
            if flags & _TABLES:
                for x in range(s.size):
                    e[x] += weight * of_tables[x + right]
            if flags & _SYMBOLS:
                for x in range(s.size):
                    s[x] += weight * of_symbols[x + right] << UNIT_BITS
    for x in range(s.size):  # an integer as a float64 has its logarithm in its bits: the exponent, then what follows 1
        s[x] = (np.float64(s[x]).view(np.int64) >> _LOG) - _LOG_FLOOR if s[x] > floor else 0
        e[x] = (np.float64(e[x]).view(np.int64) >> _LOG) - _LOG_FLOOR
    log_floor = np.int32((np.float64(floor).view(np.int64) >> _LOG) - _LOG_FLOOR)
    for x in range(own.size):
        f = max(-FEATURE_MOST, min((s[x] if s[x] else log_floor) - e[x], FEATURE_MOST))
        moved = (np.int32(own[x]) << INDEX_BITS) + slope * f + bias + _HALF_INDEX >> INDEX_BITS
        out[x] = max(0, min(moved, top)) if own[x] or s[x] else 0


@kernel(f"void({_I32_3}, {_SEEN}, {_CONTEXT}, int64, uint8[:, :, ::1])")
def _adapt_kernel(
    values, index, expected, magnitudes, means, busy, order, parents, weights, constants, top, out
):  # fmt: skip
    s, e = np.empty(means.shape[2] - 2, np.int32), np.empty(means.shape[2] - 2, np.int32)
    for c in order:
        for r in range(index.shape[1]):
            _adapt_row_kernel(
                index, expected, magnitudes, means, busy, order, parents, weights, constants,
                c, r, top, s, e, out[c, r],
            )  # fmt: skip
            _note_kernel(index, expected, magnitudes, means, busy, values[c, r], c, r)


@kernel(f"boolean({_SEEN}, {_CONTEXT}, {_SPANS}, {_U32}, {_BUCKETS}, {_CODER}, {_U8}, int32[:, :, ::1])")
def _decode_rows_kernel(
    index, expected, magnitudes, means, busy, order, parents, weights, constants,
    spans, entries, buckets, states, cursor, data, out,
):  # fmt: skip
    s, e = np.empty(means.shape[2] - 2, np.int32), np.empty(means.shape[2] - 2, np.int32)
    row, top = np.empty(index.shape[2], np.uint8), spans.shape[0] - 1
    for c in order:
        for r in range(index.shape[1]):
            _adapt_row_kernel(
                index, expected, magnitudes, means, busy, order, parents, weights, constants, c, r, top, s, e, row
            )
            if not _decode_kernel(row, spans, entries, buckets, states, cursor, data, out[c, r]):
                return False
            _note_kernel(index, expected, magnitudes, means, busy, out[c, r], c, r)
    return True


KERNELS = _encode_kernel, _decode_kernel, _adapt_kernel, _decode_rows_kernel


def _encode_python(pieces: list[tuple[NDArray[np.int32], NDArray, Tables]], lanes: int) -> bytes:
    """The same bytes as `_encode_numba`, in plain Python."""
    states, words, escapes = [LOWER] * lanes, [], []
    for values, index, tables in reversed(pieces):
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
    """The same values as `_decode_kernel`, in plain Python; raises StreamError where that returns False."""
    spans, entries = tables.spans.tolist(), tables.entries.tolist()
    word, escape, escapes_end, first = cursor.tolist()
    data, side, lanes, values = data.tobytes(), data[:escapes_end].tobytes(), states.tolist(), []
    for i, table in enumerate(index.tolist()):
        start, last, offset = spans[table]
        x = lanes[(first + i) % len(lanes)]
        slot = x % (1 << PRECISION)
        place = bisect_right(entries, slot << 16 | 0xFFFF, start, start + last + 1) - 1  # the last that begins by slot
        before, freq = divmod(entries[place], 1 << 16)
        x = freq * (x >> PRECISION) + slot - before
        if x < LOWER:
            if word + 2 > len(data):
                raise StreamError("the stream ends early")
            x = x << 16 | int.from_bytes(data[word : word + 2], "little")
            word += 2
        lanes[(first + i) % len(lanes)] = x
        value = offset + place - start
        if place == start + last:
            code, escape = read_varint(side, escape)
            value = offset - 1 - (code >> 1) if code & 1 else value + (code >> 1)
            if not -(1 << 31) <= value < 1 << 31:
                raise StreamError(f"an escaped value is {value}, beyond int32")
        values.append(value)
    out[:], states[:] = values, lanes
    cursor[:] = word, escape, escapes_end, (first + len(values)) % len(lanes)
