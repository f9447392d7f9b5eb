"""A context model of table indices: magnitudes that are decoded already move the index of each symbol, in integers.

A latent has C channels of h x w symbols, and side information (the output of h_s) gives each symbol a table. Neighbours
improve on it: where they are larger than their own tables expect, a wider table fits this symbol, too.

    context = Context(order, parents, weights, constants)                      the integers of a model
    data = entropy.encode_adapted(values, index, tables, context)              values, index (C, h, w)
    values = entropy.Decoder(data).decode_adapted(index, tables, context)

Coding goes channel by channel in the order `order`, in a channel from the top row down, in a row from left to right.
Symbols depend on none of their own row. In entropy/rans.py all of that is one step: symbol i, counted over all rows of
all channels, is in lane i % N, so lanes go on from row to row. Let y be a symbol of channel c, and let q run over its
neighbours, each with a weight w_q: the symbols in the same place of P parents, which are channels coded before c; and
in its own channel the symbols above (1), above to the left (2), above to the right (3), and two rows above (4). A
neighbour outside of the latent counts 0. `symbol` below is a decoded one, `index` the given one, never an adapted one:

    magnitude of a symbol      m = min(|symbol|, 1023)
    what table t expects       E(t) = (sum over its entries but the escape of frequency * min(|value|, 1023)) >> 6
    sums                       s = floor + sum of w_q * m_q * 256        e = floor + sum of w_q * E(index_q)
    logarithm                  L(x) = 256 n + (x * 2**(31 - n) >> 23) - 256, where 2**n <= x < 2**(n + 1)
    feature                    f = L(s) - L(e), kept in -2047..2047
    adapted index              (index * 65536 + slope * f + bias + 32768) >> 16, kept within the tables; and 0 where
                               index = 0 and s = floor: most high frequencies need no arithmetic

floor, slope and bias belong to c; >> rounds down. L is 256 log2(x) but for up to 0.09 * 256, which training sees
too. Everything fits 32 bits (`__post_init__` sees to that), so any integer unit of any machine finds the same indices.
A latent of more than 2**20 symbols is coded in strips of columns, each as a latent of its own, in its own substream, to
which the others are outside: in n = min(ceil(C h w / 2**20), w) strips, of which strip i is the columns
floor(i w / n) up to floor((i + 1) w / n). entropy/adaptive.py trains these integers. Image coders since EBCOT (Taubman,
2000) have magnitude contexts for bits; these are for table indices.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from entropy.tables import MOST_MAGNITUDE, Tables

MOST = MOST_MAGNITUDE
UNIT_BITS = 8  # of sums: a magnitude of 1 is 2**8
NEAR = ((-1, 0), (-1, -1), (-1, 1), (-2, 0))  # neighbours in the own channel: rows down, columns right
FEATURE_BITS, FEATURE_MOST = 8, 2047  # of L and f, in 2**-8 of an octave
INDEX_BITS = 16  # slope and bias are in 2**-16 of a table


@dataclass(frozen=True, eq=False)
class Context:
    """A context model in integers, of C channels with P parents each; ValueError where an array breaks a rule.

    order      uint16 (C,)        a permutation: the channel that is coded first, second, ...
    parents    uint16 (C, P)      of each channel; each is coded before it or has the weight 0
    weights    uint8 (C, P + 4)   of the parents, then of the four places of the own channel
    constants  int32 (C, 3)       floor, slope, bias: 1 <= floor, |slope| < 2**16, |bias| < 2**24
    """

    order: NDArray[np.uint16]
    parents: NDArray[np.uint16]
    weights: NDArray[np.uint8]
    constants: NDArray[np.int32]

    def __post_init__(self):
        C, P = len(self.order), self.parents.shape[-1]
        shapes = dict(order=(C,), parents=(C, P), weights=(C, P + len(NEAR)), constants=(C, 3))
        for (name, shape), dtype in zip(shapes.items(), (np.uint16, np.uint16, np.uint8, np.int32), strict=True):
            array = getattr(self, name)
            if array.shape != shape or array.dtype != dtype:
                raise ValueError(f"{name} is {array.dtype} {array.shape}; {np.dtype(dtype)} {shape} is needed")
            object.__setattr__(self, name, np.require(array, requirements="CA"))
        if not np.array_equal(np.sort(self.order), np.arange(C)):
            raise ValueError("order is not a permutation of the channels")
        rank = np.empty(C, np.int64)
        rank[self.order] = np.arange(C)
        if self.parents.size and self.parents.max() >= C:
            raise ValueError(f"channel {self.parents.max()} is a parent; there are {C}")
        if np.any((rank[self.parents] >= rank[:, None]) & (self.weights[:, :P] > 0)):
            raise ValueError("a parent is coded after its channel")
        floor, *others = np.abs(self.constants.astype(np.int64)).T
        largest = floor + self.weights.sum(axis=1, dtype=np.int64) * (MOST << UNIT_BITS)
        if C and (self.constants[:, 0].min() < 1 or largest.max() >= 1 << 31):
            raise ValueError("a floor is below 1, or a sum can reach 2**31")
        for name, values, limit in zip(("slope", "bias"), others, (1 << 16, 1 << 24), strict=True):
            if C and values.max() >= limit:
                raise ValueError(f"a {name} is {values.max()}; it must be below {limit}")

    def __len__(self) -> int:
        return len(self.order)

    @property
    def arrays(self) -> tuple[NDArray, ...]:
        """order, parents, weights, constants."""
        return self.order, self.parents, self.weights, self.constants


def strips(width: int, symbols: int, largest: int) -> list[slice]:
    """The column ranges of a latent `width` wide that are coded independently, so that several threads can work.

    There are as many as `symbols` need at `largest` each, none narrower than a column.
    """
    count = min(-(-symbols // largest), width)
    return [slice(i * width // count, (i + 1) * width // count) for i in range(count)]


def rows(context: Context, shape: tuple[int, int, int]) -> Iterator[tuple[int, int]]:
    """Channel and row of each row of symbols of a latent (C, h, w), in coding order."""
    return ((int(channel), row) for channel in context.order for row in range(shape[1]))


def adapted_row(
    values: NDArray[np.int32], index: NDArray[np.uint8], tables: Tables, context: Context, row: tuple[int, int]
) -> NDArray[np.uint8]:
    """The adapted indices (w,) of a `row` (channel, row) of a latent (C, h, w) whose earlier rows are in `values`.

    The kernel of entropy/substream.py in plain NumPy.
    """
    (c, r), w = row, index.shape[2]
    floor, slope, bias = context.constants[c].astype(np.int64)
    means = tables.magnitudes
    s, e = np.full(w, floor), np.full(w, floor)
    P = context.parents.shape[1]

    def see(weight: int, channel: int, row: int, columns: slice, seen: slice) -> None:
        magnitudes = np.minimum(np.abs(values[channel, row, seen].astype(np.int64)), MOST)
        s[columns] += int(weight) * (magnitudes << UNIT_BITS)
        e[columns] += int(weight) * means[index[channel, row, seen]].astype(np.int64)

    for weight, parent in zip(context.weights[c, :P], context.parents[c], strict=True):
        if weight:
            see(weight, parent, r, slice(w), slice(w))
    for weight, (down, right) in zip(context.weights[c, P:], NEAR, strict=True):
        if r + down >= 0:
            columns = slice(max(0, -right), w - max(0, right))
            see(weight, c, r + down, columns, slice(columns.start + right, columns.stop + right))
    f = np.clip(logarithm(s) - logarithm(e), -FEATURE_MOST, FEATURE_MOST)
    moved = (index[c, r].astype(np.int64) << INDEX_BITS) + slope * f + bias
    adapted = np.clip(moved + (1 << INDEX_BITS - 1) >> INDEX_BITS, 0, len(means) - 1)
    return np.where((index[c, r] == 0) & (s == floor), 0, adapted).astype(np.uint8)


def logarithm(x: NDArray[np.int64]) -> NDArray[np.int64]:
    """L of integers in 1..2**31 - 1, any shape -> same shape."""
    n = np.frexp(x.astype(np.float64))[1].astype(np.int64) - 1
    return (n << FEATURE_BITS) + ((x << 31 - n) >> 31 - FEATURE_BITS) - (1 << FEATURE_BITS)
