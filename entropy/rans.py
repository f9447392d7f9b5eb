"""Interleaved rANS: arrays of integers to bytes and back.

Asymmetric numeral systems (Duda, arXiv:1311.2540, 2013) in their range variant keep all that was coded in one integer,
the state; interleaving several states in one stream (Giesen, arXiv:1402.3392, 2014) hides the latency of a step.

To code a symbol of frequency f, cumulative frequency c (the sum of the frequencies before it in its table, which sums
to 2**14), from state x:

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
               N states of 4 bytes, then words of 2      in the order in which the decoder needs them

Steps of up to 2**20 symbols share one substream, each going on with the states the one before it left.  Longer steps
are cut: symbols k * 2**20 up to (k + 1) * 2**20 of every step are in substream k.  There are no more substreams than
that needs: none for no symbols at all.  A latent with a context (entropy/context.py) is alone in a stream, one step in
its own order; what is cut there is its width, and strip k of the columns is in substream k.  Within a piece of a step,
symbol i is in lane i % N.  A state begins (for the encoder) at 2**16.  A value v outside of its table's lo <= v < hi,
where lo is its offset and hi - lo the number of its entries but the last, is coded as the table's last entry, and in
the side section, in the order of the symbols, as 2 * (v - hi) where v >= hi, 2 * (lo - 1 - v) + 1 where v < lo.  Values
fit a signed number of 32 bits.  At its end a substream has given every word, and every number of its side section.

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
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, pairwise

import numpy as np
from numpy.typing import NDArray

from entropy.context import Context, strips
from entropy.kernel import numba_or_none
from entropy.substream import KERNELS, Substream, adapted, encode_pieces
from entropy.tables import Tables
from entropy.varint import StreamError, read_varint, varint

SUBSTREAM = 1 << 20  # symbols; states and lengths (some 30 bytes) cost 0.04 % of that many at half a bit each
MAX_LANES = 64  # six bits of the header


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
    lanes = _lanes(lanes, sum(values.size for values, _, _ in flat))

    def encode_substream(cut: slice) -> bytes:
        return encode_pieces([(values[cut], runs.each(cut), tables) for values, runs, tables in flat], lanes)

    cuts = _cuts(max((values.size for values, _, _ in flat), default=0))
    return _framed(_parallel(encode_substream, cuts, threads), lanes)


def encode_adapted(
    values: NDArray[np.int32],
    index: NDArray[np.uint8],
    tables: Tables,
    context: Context,
    lanes: int | None = None,
    threads: int | None = None,
) -> bytes:
    """Code a latent under table indices that a context adapts; `Decoder.decode_adapted` reads the stream.

    values, index: (C, h, w), the symbols and their given tables; lanes and threads as for `encode`.  Raises ValueError
    for other dtypes, shapes or numbers.
    """
    if values.dtype != np.int32 or values.shape != index.shape:
        raise ValueError(f"values are {values.dtype} {values.shape}; int32 {index.shape} is needed")
    _check(index, tables, context)
    lanes = _lanes(lanes, values.size)

    def encode_strip(columns: slice) -> bytes:
        own, given = (np.ascontiguousarray(x[:, :, columns]) for x in (values, index))
        found = adapted(own, given, tables, context)
        return encode_pieces([(own[context.order].reshape(-1), found[context.order].reshape(-1), tables)], lanes)

    return _framed(_parallel(encode_strip, strips(values.shape[2], values.size, SUBSTREAM), threads), lanes)


class Decoder:
    """Decodes a stream step by step, in the order of encoding; `finish` checks that it is intact.

    data: bytes or another buffer; threads as for `encode`.  Raises StreamError where the sizes are damaged.  After an
    error a decoder cannot be used again.
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
        self._others = (Substream(rest[i:j], lanes) for i, j in pairwise([*ends, rest.size]))

    def decode(self, index: NDArray, tables: Tables, shape: int | tuple[int, ...] | None = None) -> NDArray[np.int32]:
        """The int32 values of the next step, coded under `tables` and `index`; shape: theirs, by default index's.

        Raises ValueError as `encode` does, StreamError for damaged data.
        """
        values = np.empty(np.shape(index) if shape is None else shape, np.int32)
        runs, flat = tables.runs(index, values.shape), values.reshape(-1)
        cuts = self.check(flat.size)
        self._take(len(cuts))
        jobs = list(zip(self._substreams, cuts, strict=False))
        _parallel(lambda job: job[0].decode(runs.each(job[1]), tables, flat[job[1]]), jobs, self._threads)
        return values

    def decode_adapted(self, index: NDArray[np.uint8], tables: Tables, context: Context) -> NDArray[np.int32]:
        """The int32 latent of `encode_adapted`, of the shape (C, h, w) of index.

        Raises ValueError for an index that does not fit, StreamError for damaged data.
        """
        _check(index, tables, context)
        values = np.empty(index.shape, np.int32)
        cuts = self.check(index.size, index.shape[2])
        self._take(len(cuts))

        def decode_strip(job: tuple[Substream, slice]) -> None:
            substream, columns = job
            given = np.ascontiguousarray(index[:, :, columns])
            values[:, :, columns] = substream.decode_rows(given, tables, context)

        _parallel(decode_strip, list(zip(self._substreams, cuts, strict=False)), self._threads)
        return values

    def check(self, symbols: int, columns: int | None = None) -> list[slice]:
        """How a step of so many symbols is cut into substreams; with `columns`, a latent of that width with a context.

        StreamError if the stream has too few substreams.  Call it before an index is computed: a false size then costs
        no work.
        """
        cuts = _cuts(symbols) if columns is None else strips(columns, symbols, SUBSTREAM)
        if len(cuts) > self._count:
            raise StreamError(f"{symbols} symbols need {len(cuts)} substreams; there are {self._count}")
        return cuts

    def _take(self, count: int) -> None:
        """Make objects of the first `count` substreams."""
        self._substreams += islice(self._others, max(0, count - len(self._substreams)))

    def finish(self) -> None:
        """Check the end of the stream: StreamError unless every byte is used and every state is back at its start."""
        if len(self._substreams) != self._count:
            raise StreamError(f"the stream has {self._count} substreams, {len(self._substreams)} were used")
        for substream in self._substreams:
            substream.finish()


def kernels_cached(encode: bool = True, decode: bool = True, context: bool = True) -> bool:
    """Whether the kernels that encoding, decoding and contexts need are compiled; if not, the first use takes some
    seconds longer, which programs announce.
    """
    asked = encode, decode, context and encode, context and decode
    wanted = [kernel for kernel, needed in zip(KERNELS, asked, strict=True) if needed]
    return numba_or_none() is None or all(kernel.cached for kernel in wanted)


def kernels_kept() -> bool:
    """Whether kernels that are compiled now are kept for the next start, which takes a folder that can be written."""
    return all(kernel.kept for kernel in KERNELS)


def _lanes(lanes: int | None, symbols: int) -> int:
    """The number of lanes asked for, or one that suits so many symbols; ValueError outside of 1..64."""
    if lanes is None:
        return 1 if symbols < 1 << 14 else 4 if symbols < 1 << 20 else 8
    if not 1 <= lanes <= MAX_LANES:
        raise ValueError(f"{lanes} lanes; 1 to {MAX_LANES} are possible")
    return lanes


def _framed(substreams: list[bytes], lanes: int) -> bytes:
    """A stream: the header, then the substreams."""
    lengths = [varint(len(substream)) for substream in substreams[:-1]]
    return b"".join([varint(MAX_LANES * len(substreams) + lanes - 1), *lengths, *substreams])


def _check(index: NDArray[np.uint8], tables: Tables, context: Context) -> None:
    """ValueError unless the index of a latent fits the tables and the context."""
    if index.dtype != np.uint8 or index.ndim != 3 or len(index) != len(context):
        raise ValueError(f"index is {index.dtype} {index.shape}; uint8 ({len(context)}, h, w) is needed")
    if len(tables) > 256 or index.size and index.max() >= len(tables):
        raise ValueError(f"index holds {index.max(initial=0)}, and there are {len(tables)} tables of at most 256")


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
