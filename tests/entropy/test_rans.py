"""The laws of the coder: exact, tight, the same bytes from every path, and never fooled into a crash by bad bytes."""

import doctest
import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shared import INT32, decoded, in_plain_python, verdict

from entropy import Decoder, Tables, encode, rans, substream

patient = settings(deadline=None)  # the first example waits for the compiler


def random_tables(rng, count, most=4096):
    """Tables of 1 to `most` symbols, skewed so that many have frequency 1; some are as certain as 14 bits allow."""
    sizes = 1 + np.exp(rng.uniform(0, np.log(most), count)).astype(np.int32)
    sizes[rng.random(count) < 0.1] = 1 + most
    freqs = [1 + rng.multinomial(2**14 - n, rng.dirichlet(np.full(n, rng.choice([1e-3, 0.1])))) for n in sizes]
    freqs = np.concatenate([*freqs, []]).astype(np.uint16)
    return Tables(freqs, sizes, rng.integers(-5000, 5000, count).astype(np.int32))


def random_step(rng, shape, tables):
    """Values that follow their tables, a few of them thrown anywhere in int32, or to its ends."""
    index = rng.integers(len(tables), size=shape).astype(rng.choice([np.uint8, np.uint16][len(tables) > 256 :]))
    values = np.empty(shape, np.int32)
    for t in range(len(tables)):
        freqs = tables.between(t, t + 1).freqs.astype(int)
        here = index == t
        symbols = np.repeat(np.arange(freqs.size), freqs)[rng.integers(2**14, size=here.sum())]
        values[here] = tables.offsets[t] + symbols
    thrown = rng.random(shape) < rng.choice([0, 0.02, 0.5])
    values[thrown] = rng.integers(INT32.min, INT32.max, thrown.sum(), endpoint=True) >> rng.integers(32)
    ends = rng.random(shape) < rng.choice([0, 0.01])
    values[ends] = rng.choice([INT32.min, INT32.max], ends.sum())
    return values, index, tables


def same(decoded, steps):
    return all(np.array_equal(d, values) for d, (values, _, _) in zip(decoded, steps, strict=True))


@st.composite
def stages(draw, longest=3000, counts=(1, 2, 3, 4, 5)):
    """A few steps, each with its own number of tables of its own."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    steps = []
    for length in draw(st.lists(st.integers(0, longest), max_size=5)):
        count = draw(st.sampled_from(counts))
        steps.append(random_step(rng, (length,), random_tables(rng, count, 4096 if count < 300 else 50)))
    return steps


@given(stages(counts=(1, 3, 300)), st.integers(1, 64))
@patient
def test_decoding_undoes_encoding(steps, lanes):
    assert same(decoded(encode(steps, lanes), steps), steps)


@given(stages(longest=300, counts=(1, 3, 300)), st.integers(1, 64))
@patient
def test_plain_python_writes_and_reads_the_same_bytes(steps, lanes):
    data = encode(steps, lanes)
    assert in_plain_python(encode, steps, lanes) == data
    assert same(in_plain_python(decoded, data, steps), steps)


@given(st.integers(0, 2**32), st.floats(0, 6), st.integers(1, 64), st.sampled_from([1000, 77_777, rans.SUBSTREAM]))
@settings(patient, max_examples=15)
def test_any_length_and_staging_gives_the_same_bytes_compiled_and_plain(seed, digits, lanes, substream):
    rng = np.random.default_rng(seed)
    cuts = np.sort(rng.integers(int(10**digits), size=rng.integers(5)))  # up to 10**6 symbols in up to 5 steps
    lengths = np.diff(cuts, prepend=0, append=int(10**digits))
    steps = [random_step(rng, (length,), random_tables(rng, rng.integers(1, 9))) for length in lengths]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rans, "SUBSTREAM", substream)
        data = encode(steps, lanes)
        assert in_plain_python(encode, steps, lanes) == data
        assert same(decoded(data, steps), steps) and same(in_plain_python(decoded, data, steps), steps)


@given(stages(), st.integers(1, 64))
@patient
def test_bytes_match_the_ideal(steps, lanes):
    ideal = sum(tables.bits(values, index) for values, index, tables in steps) / 8
    side = 5  # header, and length of the side section
    used = lanes if any(values.size for values, _, _ in steps) else 0
    assert ideal - 2 * used <= len(encode(steps, lanes)) <= ideal * 1.0004 + side + 4 * used


@pytest.mark.parametrize("symbols", [*range(70), 5000])
def test_any_length_goes_with_any_number_of_lanes(symbols):
    rng = np.random.default_rng(symbols)
    steps = [random_step(rng, (symbols,), random_tables(rng, 3))]
    for lanes in (None, 1, 2, 3, 7, 8, 64):
        assert same(decoded(encode(steps, lanes), steps), steps)


@given(st.lists(st.integers(INT32.min, INT32.max) | st.sampled_from([INT32.min, INT32.max])), st.integers(0, 4))
@patient
def test_every_int32_can_be_coded(values, row):
    tables = Tables(
        np.array([1, 2**14 - 1, 2**14, 2**14, 1, 2**14 - 1, 2**13, 2**13], np.uint16),
        np.array([2, 1, 1, 2, 2], np.int32),
        np.array([INT32.min, INT32.min, INT32.max, INT32.max, 0], np.int32),
    )
    steps = [(np.array(values, np.int32), np.uint8(row), tables)]
    data = encode(steps)
    assert same(decoded(data, steps), steps)
    assert in_plain_python(encode, steps) == data and same(in_plain_python(decoded, data, steps), steps)


def gaussian_image(rng, shape):
    """A latent as of a hyperprior: a scale for each value, half of them close to zero; about 0.5 bit a symbol."""
    scales = np.exp(np.linspace(np.log(0.11), np.log(64), 64))  # 0.11: Balle et al. (2018), the least scale of tables
    index = np.clip(rng.normal(-2, 14, shape), 0, 63).astype(np.uint8)
    values = np.rint(rng.normal(0, 1, shape) * scales[index]).astype(np.int32)
    counts = [np.bincount(np.clip(np.rint(rng.normal(0, s, 10**5)) + 999, 0, 1998).astype(int)) for s in scales]
    return values, index, Tables.from_counts(counts, [-999] * 64)


def test_an_image_of_300k_symbols_costs_24_bytes_more_than_ideal():
    step = gaussian_image(np.random.default_rng(1), (192, 32, 48))
    assert len(encode([step], lanes=4)) <= step[2].bits(step[0], step[1]) / 8 + 24


def test_one_row_for_each_channel_is_broadcast():
    rng = np.random.default_rng(2)
    tables = random_tables(rng, 6, most=50)
    values, channel = rng.integers(-9, 9, (6, 4, 5)).astype(np.int32), np.arange(6, dtype=np.uint8)[:, None, None]
    data = encode([(values, channel, tables)])
    assert data == encode([(values, np.broadcast_to(channel, values.shape), tables)])
    assert np.array_equal(Decoder(data).decode(channel, tables, values.shape), values)


def long_steps():
    """One step within a substream, one of three, one of two: substreams are cut at 2**20 symbols."""
    rng = np.random.default_rng(3)
    tables = random_tables(rng, 3, most=40)
    return [random_step(rng, shape, tables) for shape in [(1000,), (2, 2**20 + 3), (2**20 + 1,), (0, 5)]]


@pytest.mark.parametrize("lanes", [None, 5])
def test_threads_do_not_change_the_bytes(lanes):
    steps = long_steps()
    data = encode(steps, lanes, threads=1)
    assert encode(steps, lanes, threads=2) == data
    assert same(decoded(data, steps, threads=1), steps) and same(decoded(data, steps, threads=3), steps)


def test_plain_python_cuts_at_the_same_symbols(monkeypatch):
    monkeypatch.setattr(rans, "SUBSTREAM", 100)
    rng = np.random.default_rng(4)
    tables = random_tables(rng, 3)
    steps = [random_step(rng, (n,), tables) for n in (99, 100, 101, 450)]
    data = encode(steps, 3)
    assert in_plain_python(encode, steps, 3) == data
    assert same(in_plain_python(decoded, data, steps), steps) and same(decoded(data, steps), steps)


def test_long_streams_cost_little_more_than_ideal():
    step = gaussian_image(np.random.default_rng(5), (3, 2**20))
    ideal = step[2].bits(step[0], step[1]) / 8
    assert len(encode([step])) <= ideal * 1.0002 + 3 * (3.5 * 8 + 5)


def test_the_layout_of_arrays_does_not_matter():
    rng = np.random.default_rng(6)
    values, index, tables = random_step(rng, (40, 30), random_tables(rng, 4))
    data = encode([(values, index, tables)])
    frozen = values.copy()
    frozen.flags.writeable = False
    odd = np.frombuffer(b"-" + values.tobytes(), np.int32, offset=1).reshape(40, 30)  # not on a multiple of 4 bytes
    for same_values in (frozen, odd, np.asfortranarray(values), np.repeat(values, 2, 1)[:, ::2]):
        assert encode([(same_values, index, tables)]) == data
    for same_data in (bytearray(data), memoryview(data), np.frombuffer(data, np.uint8)):
        assert np.array_equal(Decoder(same_data).decode(np.asfortranarray(index), tables), values)
    assert len(substream._encode_kernel.compiled.signatures) == len(substream._decode_kernel.compiled.signatures) == 2


@st.composite
def damaged(draw):
    """A stream of some steps with bits flipped, bytes cut out, put in or replaced."""
    steps = draw(stages(longest=40))
    data = bytearray(encode(steps, draw(st.integers(1, 4))))
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(["flip", "cut", "insert", "replace"])):
            case "flip" if place < len(data):
                data[place] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del data[place : place + draw(st.integers(1, 4))]
            case "insert":
                data[place:place] = draw(st.binary(min_size=1, max_size=4))
            case _:
                data[place:] = draw(st.binary(max_size=50))
    return bytes(data), steps


@given(damaged())
@settings(patient, max_examples=200)
def test_a_stream_is_refused_or_is_the_stream_of_what_it_decodes_to(example):
    data, steps = example
    decoded = verdict(data, steps)
    assert decoded == in_plain_python(verdict, data, steps)
    if decoded is not None:
        lanes = rans.read_varint(data, 0)[0] % 64 + 1
        redone = [(np.array(d, np.int32), index, tables) for d, (_, index, tables) in zip(decoded, steps, strict=True)]
        assert encode(redone, lanes) == data


@given(st.binary(max_size=300), st.integers(0, 2000), st.integers(0, 2**32))
@settings(patient, max_examples=200)
def test_random_bytes_are_refused_or_decoded(data, symbols, seed):
    rng = np.random.default_rng(seed)
    step = random_step(rng, (symbols,), random_tables(rng, 3, most=50))
    assert verdict(data, [step]) == in_plain_python(verdict, data, [step])


def test_thousands_of_flipped_bits_are_found():
    rng = np.random.default_rng(7)
    step = gaussian_image(rng, (20, 10, 10))
    data = encode([step], lanes=4)
    silent = 0
    for bit in range(8 * len(data)):
        broken = bytearray(data)
        broken[bit // 8] ^= 1 << bit % 8
        silent += verdict(bytes(broken), [step]) is not None
    assert silent <= 8 * len(data) // 1000  # those in the side section, which only a checksum can see


@given(stages(longest=200), st.integers(1, 8))
@patient
def test_every_truncated_stream_is_refused(steps, lanes):
    data = encode(steps, lanes)
    for length in range(0, len(data), 1 + len(data) // 100):
        assert verdict(data[:length], steps) is None


@given(stages(longest=200), st.binary(min_size=1, max_size=9))
@patient
def test_every_extended_stream_is_refused(steps, extension):
    assert verdict(encode(steps) + extension, steps) is None


def test_truncated_substreams_are_refused(monkeypatch):
    monkeypatch.setattr(rans, "SUBSTREAM", 50)
    rng = np.random.default_rng(8)
    steps = [random_step(rng, (n,), random_tables(rng, 3)) for n in (120, 60)]
    data = encode(steps, 2)
    assert same(decoded(data, steps, threads=2), steps)
    for length in range(len(data)):
        assert verdict(data[:length], steps) is None


def test_other_tables_or_indices_than_the_encoders_are_found():
    rng = np.random.default_rng(9)
    values, index, tables = gaussian_image(rng, (50, 10, 10))
    data = encode([(values, index, tables)], lanes=4)
    for _ in range(300):
        other = index.copy()
        place = tuple(rng.integers(other.shape))
        other[place] = (other[place] + 1) % 64
        assert verdict(data, [(values, other, tables)]) in (None, [values.tolist()])
    shifted = Tables.concatenate([tables.between(1, 64), tables.between(0, 1)])
    assert verdict(data, [(values, index, shifted)]) is None


def test_fewer_or_more_symbols_than_encoded_are_found():
    step = gaussian_image(np.random.default_rng(10), (400,))
    values, index, tables = step
    data = encode([step])
    for count in (0, 200, 399):
        assert verdict(data, [(values[:count], index[:count], tables)]) is None
    assert verdict(data, [step, (values, index, tables)]) is None
    assert verdict(encode([]), [step]) is None


def golden_steps():
    """Every part of the format: two steps with tables of their own, escapes on both sides, words, three lanes."""
    tables = Tables(
        np.array([1000, 15000, 300, 84, 2**14 - 1, 1, 2**14], np.uint16),
        np.array([4, 2, 1], np.int32),
        np.array([-1, 7, 0], np.int32),
    )
    first = (np.array([7, 7, 8, 7, 6, 1000, INT32.min], np.int32), np.uint8(1), tables)
    second = (np.arange(60, dtype=np.int32).reshape(3, 20) % 3 - 1, np.array([[0], [0], [2]], np.uint16), tables)
    return [first, second]


GOLDEN = (
    "421d00018f40908080800d000201000201000201000201000201000201000215"  # 64 + 3 - 1; 29 bytes of escaped values
    "c24200d47975ceffff8500ffff2b7f5a43947e324376bf3243fdbec84114ff"  # states, words
)


def long_golden_steps():
    """Three steps, of which the second fills one substream and begins another; values by multiplicative hashing."""
    tables = golden_steps()[0][2]
    noise = np.arange(2**20 + 1500, dtype=np.int64) * 2654435761 % 2**32 >> 9
    values, index = (noise % 5 - 1).astype(np.int32), (noise // 5 % 8 == 0).astype(np.uint8)  # row 1 escapes, seldom
    cuts = [slice(700), slice(700, 2**20 + 900), slice(2**20 + 900, None)]
    return [(values[cut], index[cut], tables) for cut in cuts]


LONG_GOLDEN = "19d958f2c04fba4a06a7f34d51937e57f9c839f4b56d54f4fa13f737a358b629"


@pytest.mark.parametrize("run", [lambda function, *arguments: function(*arguments), in_plain_python])
def test_streams_never_change(run):
    assert run(encode, golden_steps(), 3).hex() == GOLDEN
    assert same(run(decoded, bytes.fromhex(GOLDEN), golden_steps()), golden_steps())
    assert run(encode, []) == b"\x00"
    data = run(encode, long_golden_steps())
    assert hashlib.sha256(data).hexdigest() == LONG_GOLDEN
    assert same(run(decoded, data, long_golden_steps()), long_golden_steps())


def test_examples():
    results = doctest.testmod(rans)
    assert results.attempted > 0 and results.failed == 0
