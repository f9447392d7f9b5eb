"""Integer frequency tables: made once from a float model, stored with it, and the only thing the coder ever sees.

A table gives each symbol an integer frequency; the frequencies sum to 2**14, so a symbol of frequency f costs
14 - log2(f) bits.  14 bits is where a 32-bit rANS state with 16-bit words loses least: fewer bits cost precision, more
bits cost state.  The invariants:

    every frequency >= 1                  any symbol of a table can be coded
    the last entry is the escape symbol   any other integer can be coded too, at the price of a few bytes
    entry k of table t is offsets[t] + k  for every entry but the last

Building is optimal: of all tables with f >= 1 it takes one of least Kullback-Leibler divergence from the probabilities.
Build tables once and store the integers: on another machine probabilities may differ in their last digit and give
other tables, with which a stream cannot be decoded.

    >>> import numpy as np
    >>> tables = Tables.from_pmfs([np.array([0.1, 0.8, 0.1])], offsets=[-1])
    >>> tables.freqs
    array([ 1638, 13107,  1638,     1], dtype=uint16)
    >>> round(tables.bits(np.array([0, 0, 1], np.int32), np.uint8(0)), 3)
    3.966
"""

import functools
import hashlib
import heapq
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from entropy.kernel import kernel

PRECISION = 14
TOTAL = 1 << PRECISION  # the sum of every table
RECIPROCAL_BITS = 46  # of `Tables.reciprocals`, which has the proof
MOST_MAGNITUDE = 1023  # larger magnitudes count as this in a context (entropy/context.py)
BUCKET_BITS = 8  # the decoder jumps to the first symbol of one of 2**8 buckets, then scans; 512 bytes a table

# A tail of less than a quarter of one count is cheaper escaped: keeping all mass above 1e-9 costs 0.09-0.18 % of the
# bytes, a cut between 0.1 and 0.5 counts 0.02-0.08 % (Laplace and Gaussian latents at 0.15-1 bit/symbol).
TAIL = 0.25 / TOTAL
TAIL_MASS = 2.0**-18  # mass of a density outside of the symbols of its pmf; far below one count, 2**-14

_TOLERANCE = 1e-6  # float32 probabilities may sum to a little more than 1


class Runs(NamedTuple):
    """The table of each symbol in run-length form: index[i // run] codes symbol i, one number a channel, say."""

    index: NDArray  # uint8 or uint16, 1-d
    run: int

    def each(self, cut: slice) -> NDArray:
        """The table of each of the symbols cut.start..cut.stop - 1, 1-d."""
        first, skip = divmod(cut.start, self.run)
        runs = self.index[first : -(-cut.stop // self.run), None]
        each = np.broadcast_to(runs, (runs.size, self.run)).reshape(-1)  # copies only where run > 1
        return np.require(each[skip : skip + cut.stop - cut.start], requirements="CA")


@dataclass(frozen=True, eq=False)
class Tables:
    """T frequency tables, each ending in its escape symbol.

    freqs    uint16, all tables one after another, 1..2**14, each table sums to 2**14
    sizes    int32 (T,), entries per table with the escape, >= 1
    offsets  int32 (T,), the value of entry 0

    Raises ValueError where an array breaks these rules.  The arrays are read-only; writable ones are copied.
    """

    freqs: NDArray[np.uint16]
    sizes: NDArray[np.int32]
    offsets: NDArray[np.int32]

    def __post_init__(self):
        for name, dtype in (("freqs", np.uint16), ("sizes", np.int32), ("offsets", np.int32)):
            array = np.asarray(getattr(self, name))
            if array.dtype != dtype or array.ndim != 1:
                raise ValueError(f"{name} is {array.dtype} {array.shape}; a 1-d {np.dtype(dtype)} array is needed")
            array = array.copy() if array.flags.writeable else np.require(array, requirements="CA")
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        if self.sizes.size != self.offsets.size:
            raise ValueError(f"{self.sizes.size} sizes but {self.offsets.size} offsets")
        if np.any(self.sizes < 1):
            raise ValueError(f"a table has {self.sizes.min()} entries; it needs at least the escape symbol")
        if self.sizes.sum(dtype=np.int64) != self.freqs.size:
            raise ValueError(f"the sizes sum to {self.sizes.sum()} but there are {self.freqs.size} frequencies")
        if np.any(self.freqs == 0):
            raise ValueError("a frequency is 0; every symbol needs at least 1")
        if len(self):
            sums = np.add.reduceat(self.freqs, self.starts[:-1], dtype=np.int64)
            if np.any(sums != TOTAL):
                worst = int(np.argmax(sums != TOTAL))
                raise ValueError(f"table {worst} sums to {sums[worst]}; every table must sum to {TOTAL}")
            top = self.offsets.astype(np.int64) + self.sizes - 2
            if top.max() > np.iinfo(np.int32).max:
                raise ValueError(f"table {int(top.argmax())} reaches {top.max()}, beyond int32")

    def __len__(self) -> int:
        return self.sizes.size

    @classmethod
    def from_pmfs(cls, pmfs: Iterable[ArrayLike], offsets: Sequence[int]) -> "Tables":
        """Tables of least divergence from probabilities; 1 - the sum of a pmf, and its thin tails, become escape mass.

        pmfs: one 1-d float array per table, values >= 0, sum in (0, 1 + 1e-6]; offsets: the value of its first entry.
        Raises ValueError for any other numbers and for more than 2**14 - 1 symbols.
        """
        masses, sizes, firsts = [], [], []
        for number, (pmf, offset) in enumerate(zip(pmfs, offsets, strict=True)):
            pmf = np.asarray(pmf, np.float64)
            if pmf.ndim != 1 or pmf.size == 0 or not pmf.min() >= 0 or not 0 < pmf.sum() <= 1 + _TOLERANCE:
                raise ValueError(f"pmf {number} is not a 1-d array of values >= 0 with a sum in (0, 1]")
            kept = np.flatnonzero(pmf >= min(TAIL, pmf.max()))
            pmf = pmf[kept[0] : kept[-1] + 1]
            if pmf.size >= TOTAL:
                raise ValueError(f"pmf {number} has {pmf.size} symbols; at most {TOTAL - 1} fit a table")
            mass = np.append(pmf, max(0.0, 1.0 - pmf.sum()))
            masses.append(mass / mass.sum())
            sizes.append(mass.size)
            firsts.append(int(offset) + int(kept[0]))
        if firsts and not -(2**31) <= min(firsts) <= max(firsts) < 2**31:
            raise ValueError(f"offsets from {min(firsts)} to {max(firsts)} do not fit int32")
        sizes = np.array(sizes, np.int32)
        freqs = np.empty(int(sizes.sum(dtype=np.int64)), np.uint16)
        _allocate(np.concatenate([*masses, []]), sizes, _GAINS, freqs)
        return cls(freqs, sizes, np.array(firsts, np.int32))

    @classmethod
    def from_counts(cls, counts: Iterable[ArrayLike], offsets: Sequence[int]) -> "Tables":
        """Tables of least divergence from histograms: a 1-d array of counts >= 0 per table; ValueError if all are 0."""
        pmfs = []
        for number, count in enumerate(counts):
            count = np.asarray(count, np.float64)
            if not count.sum() > 0:
                raise ValueError(f"histogram {number} counts nothing")
            pmfs.append(count / count.sum())
        return cls.from_pmfs(pmfs, offsets)

    @staticmethod
    def concatenate(tables: Iterable["Tables"]) -> "Tables":
        """All the tables of a sequence of at least one Tables, in order."""
        tables = list(tables)
        return Tables(*(np.concatenate([getattr(t, name) for t in tables]) for name in ("freqs", "sizes", "offsets")))

    def between(self, start: int, stop: int) -> "Tables":
        """Tables start..stop-1, sharing memory with these; raises ValueError outside of 0 <= start <= stop <= T."""
        if not 0 <= start <= stop <= len(self):
            raise ValueError(f"tables {start} to {stop} of {len(self)} tables")
        freqs = self.freqs[self.starts[start] : self.starts[stop]]
        return Tables(freqs, self.sizes[start:stop], self.offsets[start:stop])

    def digest(self) -> bytes:
        """SHA-256 (32 bytes) of the tables, the same on every machine."""
        arrays = (np.array([len(self)], "<u8"), self.sizes.astype("<i4"), self.offsets.astype("<i4"))
        return hashlib.sha256(b"".join(array.tobytes() for array in (*arrays, self.freqs.astype("<u2")))).digest()

    def bits(self, values: NDArray[np.int32], index: NDArray) -> float:
        """The ideal cost in bits of int32 values of any shape under table index[...], bytes of escaped values included.

        index: uint8 or uint16, broadcastable to values.shape, below T; raises ValueError otherwise.
        """
        runs, values = self.runs(index, values.shape), values.reshape(-1)
        bits = 0.0
        for begin in range(0, values.size, 1 << 20):  # in pieces, because the steps below take some 60 bytes a symbol
            cut = slice(begin, begin + (1 << 20))
            start, last, offset = self.spans[runs.each(cut)].T
            distance = values[cut] - offset
            escaped = (distance < 0) | (distance >= last)
            freqs = self.freqs[start + np.where(escaped, last, distance)]
            beyond = np.where(distance < 0, -1 - distance, distance - last)[escaped]
            length = np.frexp(2.0 * beyond + (distance[escaped] < 0))[1]  # bits of the number that stands for the value
            bits += (PRECISION - np.log2(freqs, dtype=np.float64)).sum() + 8 * np.maximum(1, -(-length // 7)).sum()
        return float(bits)

    def runs(self, index: NDArray, shape: tuple[int, ...]) -> Runs:
        """`index` broadcast to `shape` and flattened; raises ValueError for a wrong dtype, shape or number."""
        index = np.asarray(index)
        if index.dtype not in (np.uint8, np.uint16):
            raise ValueError(f"index is {index.dtype}; uint8 or uint16 is needed")
        if index.size and index.max() >= len(self):
            raise ValueError(f"index holds {index.max()} but there are {len(self)} tables")
        try:
            full = np.broadcast_to(index, shape)
        except ValueError:
            raise ValueError(f"index of shape {index.shape} cannot be broadcast to {shape}") from None
        axis = full.ndim
        while axis and full.strides[axis - 1] == 0:  # the index is the same all along this axis
            axis -= 1
        runs = full[(..., *[slice(1)] * (full.ndim - axis))].reshape(-1)
        if axis < full.ndim and len(self) <= 256:
            runs = runs.astype(np.uint8)  # half of the memory once it is expanded to one index a symbol
        return Runs(runs, max(1, math.prod(full.shape[axis:])))

    @functools.cached_property
    def starts(self) -> NDArray[np.int64]:
        """Where each table begins in freqs, and where the last ends: (T + 1,)."""
        return np.concatenate([[0], np.cumsum(self.sizes, dtype=np.int64)])

    @functools.cached_property
    def spans(self) -> NDArray[np.int64]:
        """For kernels (T, 3): where a table begins in freqs, the place of its escape symbol in it, its offset."""
        return np.stack([self.starts[:-1], self.sizes - np.int64(1), self.offsets], axis=1)

    @functools.cached_property
    def magnitudes(self) -> NDArray[np.int32]:
        """The mean magnitude of each table, in 2**-8: (T,). Magnitudes count at most 1023, the escape counts 0."""
        symbols = np.arange(self.freqs.size) - np.repeat(self.starts[:-1] - self.offsets, self.sizes)
        weighted = self.freqs * np.minimum(np.abs(symbols), MOST_MAGNITUDE)
        weighted[self.starts[1:] - 1] = 0
        return (np.add.reduceat(weighted, self.starts[:-1]) >> PRECISION - 8).astype(np.int32)

    @functools.cached_property
    def entries(self) -> NDArray[np.uint32]:
        """Cumulative frequency << 16 | frequency of each entry, of the size of freqs."""
        before = np.cumsum(self.freqs, dtype=np.int64) - self.freqs
        return ((before % TOTAL) << 16 | self.freqs).astype(np.uint32)  # every table before this one adds 2**14

    @functools.cached_property
    def reciprocals(self) -> NDArray[np.uint64]:
        """r = ceil(2**46 / f) of each entry, for which x // f == x * r >> 46 whenever x < f << 18.

        r * f exceeds 2**46 by less than f, so x * r / 2**46 exceeds x / f by less than x / 2**46 < f / 2**28 <= 1 / f,
        which is too little to reach the next integer.  And x * r < 2**64.
        """
        return ((1 << RECIPROCAL_BITS) + self.freqs.astype(np.uint64) - 1) // self.freqs

    @functools.cached_property
    def buckets(self) -> NDArray[np.uint16]:
        """The entry of each table that holds slot 64 b, for b = 0..255: (T, 256)."""
        width = TOTAL >> BUCKET_BITS
        reached = (np.cumsum(self.freqs, dtype=np.int64) + width - 1) // width  # slots 0, 64, ... below an entry's end
        symbol = np.arange(self.freqs.size) - np.repeat(self.starts[:-1], self.sizes)
        return np.repeat(symbol, np.diff(reached, prepend=0)).reshape(-1, 1 << BUCKET_BITS).astype(np.uint16)


_GAINS = np.log2(np.arange(2, TOTAL + 2) / np.arange(1, TOTAL + 1))  # bits that count f + 1 saves, [f - 1]


@kernel("void(float64[::1], int32[::1], float64[::1], uint16[::1])")
def _allocate(pmf, sizes, gains, freqs):
    """Give each table's 2**14 counts where they save most bits; ties go to the lowest entry.

    The divergence is a sum of convex functions of the counts, so handing out counts by greatest p log2((f+1)/f) from
    f = 1 is optimal.  Let L = 2**14 - n for n entries.  An optimum has f >= floor(p L): if f_i + 1 <= p_i L for some i
    then its next count would gain p_i log((f_i+1)/f_i) > 1/L nats, no optimum gives less for any count it handed out,
    so f_j - 1 < p_j L for all j, and their sum is L < L.  Starting from max(1, floor(p L)) leaves at most 2 n to give.
    """
    start = 0
    for size in sizes:
        p = pmf[start : start + size]
        left = TOTAL
        heap = []
        for i in range(size):
            f = max(1, int(p[i] * (TOTAL - size)))
            freqs[start + i] = f
            left -= f
            heap.append((-p[i] * gains[f - 1], i))
        heapq.heapify(heap)
        for _ in range(left):
            i = heap[0][1]
            f = freqs[start + i] + 1
            freqs[start + i] = f
            heapq.heapreplace(heap, (-p[i] * gains[f - 1], i))
        start += size
