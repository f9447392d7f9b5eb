"""The laws of the context: any integers within the bounds, any shape, both paths alike, and the text they follow."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shared import INT32, in_plain_python, random_context

from entropy import Context, Decoder, StreamError, Tables, encode, encode_adapted, rans

patient = settings(deadline=None)  # the first example waits for the compiler


def laplacians(count=16):
    """Tables of growing scale."""
    reach = 40
    symbols = np.abs(np.arange(-reach, reach + 1))
    scales = np.geomspace(0.1, 12, count)
    pmfs = [np.exp(-symbols / scale) for scale in scales]
    return Tables.from_pmfs([pmf / pmf.sum() for pmf in pmfs], [-reach] * count)


TABLES = laplacians()


def random_latent(rng, shape):
    """Symbols whose magnitudes hang together, and an index that tells half of it."""
    index = (rng.integers(0, len(TABLES), shape) * (rng.random(shape) < rng.random())).astype(np.uint8)
    values = np.round(rng.laplace(size=shape) * rng.exponential(1.5, shape[1:]) * (index + 0.05) / 3).astype(np.int32)
    thrown = rng.random(shape) < rng.choice([0, 0.02])
    values[thrown] = rng.choice([INT32.min, INT32.max, 1023, -1024, 5000], thrown.sum())
    return values, index


def of_stream(data, index, ctx):
    """The latent of a stream, to its end."""
    decoder = Decoder(data)
    values = decoder.decode_adapted(index, TABLES, ctx)
    decoder.finish()
    return values


@st.composite
def cases(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = draw(st.tuples(st.integers(1, 9), st.integers(1, 7), st.integers(1, 12)))
    return random_context(rng, shape[0], draw(st.integers(0, 5)), draw(st.booleans())), *random_latent(rng, shape)


@given(cases(), st.integers(1, 64), st.sampled_from([7, 50, 1 << 20]))
@patient
def test_decoding_undoes_encoding_and_the_plain_path_writes_the_same_bytes(case, lanes, substream):
    ctx, values, index = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rans, "SUBSTREAM", substream)
        data = encode_adapted(values, index, TABLES, ctx, lanes)
        assert in_plain_python(encode_adapted, values, index, TABLES, ctx, lanes) == data
        assert np.array_equal(of_stream(data, index, ctx), values)
        assert np.array_equal(in_plain_python(of_stream, data, index, ctx), values)


def by_the_text(values, index, ctx):
    """The adapted index of every symbol, computed one by one from the words of entropy/context.py alone."""

    def L(x):
        n = x.bit_length() - 1
        return 256 * n + (x * 2 ** (31 - n) >> 23) - 256

    C, h, w = index.shape
    E = []
    for t in range(len(TABLES)):
        own = TABLES.between(t, t + 1)
        pairs = zip(own.freqs[:-1].tolist(), range(int(own.offsets[0]), 10**6), strict=False)
        E.append(sum(f * min(abs(v), 1023) for f, v in pairs) >> 6)
    out = np.zeros_like(index)
    for c in range(C):
        floor, slope, bias = map(int, ctx.constants[c])
        for r in range(h):
            for x in range(w):
                places = [(p, r, x) for p in ctx.parents[c]] + [
                    (c, r - 1, x),
                    (c, r - 1, x - 1),
                    (c, r - 1, x + 1),
                    (c, r - 2, x),
                ]
                s = e = floor
                for weight, (q, i, j) in zip(ctx.weights[c].tolist(), places, strict=True):
                    if 0 <= i and 0 <= j < w:
                        s += weight * min(abs(int(values[q, i, j])), 1023) * 256
                        e += weight * E[index[q, i, j]]
                f = max(-2047, min(2047, L(s) - L(e)))
                moved = (int(index[c, r, x]) * 65536 + slope * f + bias + 32768) >> 16
                idle = index[c, r, x] == 0 and s == floor
                out[c, r, x] = 0 if idle else max(0, min(len(TABLES) - 1, moved))
    return out


@given(cases())
@settings(deadline=None, max_examples=30)
def test_the_indices_are_those_of_the_text(case):
    ctx, values, index = case
    found = by_the_text(values, index, ctx)
    data = encode_adapted(values, index, TABLES, ctx, lanes=3)
    flat = values[ctx.order].reshape(-1), found[ctx.order].reshape(-1), TABLES
    assert data == encode([flat], lanes=3)


def test_neighbours_that_are_larger_than_expected_save_bits():
    rng = np.random.default_rng(1)
    shape, C = (8, 24, 24), 8
    loud = np.repeat(np.repeat(rng.exponential(2.0, (1, 6, 6)), 4, 1), 4, 2)  # the same in all channels, not told
    values = np.round(rng.laplace(size=shape) * loud).astype(np.int32)
    index = np.full(shape, 8, np.uint8)
    links = np.maximum(np.arange(C)[:, None] - [1, 2, 3], 0).astype(np.uint16)
    weights = np.full((C, 7), 100, np.uint8)
    weights[:, :3][links == np.arange(C)[:, None]] = 0
    weights[0, :3] = 0
    step = 65536 / 256 / np.log2(TABLES_RATIO)
    ctx = Context(
        np.arange(C, dtype=np.uint16), links, weights, np.tile([2000, round(step), 0], (C, 1)).astype(np.int32)
    )
    assert len(encode_adapted(values, index, TABLES, ctx)) < 0.93 * len(encode([(values, index, TABLES)]))


TABLES_RATIO = (12 / 0.1) ** (1 / 15)  # of the scales of neighbouring tables


def test_damage_is_found():
    rng = np.random.default_rng(2)
    ctx, (values, index) = random_context(rng, 6, 3), random_latent(rng, (6, 9, 11))
    values = values.clip(-1, 1)  # an escaped value can change unnoticed here: a container's checksum tells
    data = encode_adapted(values, index, TABLES, ctx)

    for _ in range(300):
        damaged = bytearray(data)
        kind = rng.integers(3)
        if kind == 0:
            damaged[rng.integers(len(data))] ^= 1 << rng.integers(8)
        elif kind == 1:
            del damaged[rng.integers(len(data)) :]
        else:
            damaged[rng.integers(len(data)) :] = rng.bytes(rng.integers(20))
        found = verdict(damaged, index, ctx)
        assert found in (None, values.tolist())
        if rng.random() < 0.1:
            assert in_plain_python(verdict, damaged, index, ctx) == found


def verdict(data, index, ctx):
    """What a stream decodes to, as lists; None if it is refused."""
    try:
        return of_stream(bytes(data), index, ctx).tolist()
    except StreamError:
        return None


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (dict(order=np.array([0, 0], np.uint16)), "permutation"),
        (dict(parents=np.array([[0], [2]], np.uint16)), "2 is a parent"),
        (dict(parents=np.array([[0], [1]], np.uint16)), "after its channel"),
        (dict(weights=np.zeros((2, 4), np.uint8)), "weights is"),
        (dict(constants=np.array([[0, 0, 0]] * 2, np.int32)), "floor"),
        (dict(constants=np.array([[2**31 - 1, 0, 0]] * 2, np.int32)), "2\\*\\*31"),
        (dict(constants=np.array([[1, 2**16, 0]] * 2, np.int32)), "slope"),
        (dict(constants=np.array([[1, 0, -(2**24)]] * 2, np.int32)), "bias"),
    ],
)
def test_what_breaks_a_rule_is_refused(broken, said):
    whole = dict(
        order=np.array([0, 1], np.uint16), parents=np.zeros((2, 1), np.uint16),
        weights=np.array([[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]], np.uint8), constants=np.ones((2, 3), np.int32),
    )  # fmt: skip
    Context(**whole)
    with pytest.raises(ValueError, match=said):
        Context(**whole | broken)
    ctx = Context(**whole)
    for values, index in (
        (np.zeros((2, 1, 1), np.int64), np.zeros((2, 1, 1), np.uint8)),
        (np.zeros((3, 1, 1), np.int32), np.zeros((3, 1, 1), np.uint8)),
        (np.zeros((2, 1, 1), np.int32), np.full((2, 1, 1), len(TABLES), np.uint8)),
    ):
        with pytest.raises(ValueError):
            encode_adapted(values, index, TABLES, ctx)
