"""The laws of integer frequency tables (valid, optimal, honest about costs) and of the kernels that numba compiles."""

import doctest
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shared import in_fresh_python

import entropy.tables
from entropy import Tables
from entropy.kernel import Kernel
from entropy.tables import RECIPROCAL_BITS, TAIL, TOTAL

GOLDEN_DIGEST = "65c33812b8ec79092d8613f4a14e8ed042565073402ddb8d543fcccf2048ff9c"

patient = settings(deadline=None)  # the first example waits for the compiler


@st.composite
def pmfs(draw, most=300):
    """A pmf of 1 to `most` symbols, anything from flat to nearly certain, with a sum of at most 1."""
    size = draw(st.integers(1, most))
    sharpness = draw(st.floats(0, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    pmf = rng.random(size) ** sharpness + 1e-300
    return pmf / pmf.sum() * draw(st.sampled_from([1.0, 0.99999, 0.9, 0.3]))


def laplace(scale, reach):
    """P(k) of a rounded Laplace variable for k = -reach..reach."""
    edges = np.exp(-(np.arange(reach + 1) + 0.5) / scale) / 2
    half = np.append(edges[:-1] - edges[1:], 0)[:reach]
    return np.concatenate([half[::-1], [1 - 2 * edges[0]], half])


def kept(pmf):
    """The symbols that a table keeps, as a slice."""
    places = np.flatnonzero(pmf >= min(TAIL, pmf.max()))
    return slice(places[0], places[-1] + 1)


@given(st.lists(pmfs(), max_size=5))
@patient
def test_tables_sum_to_the_total_and_know_every_symbol(batch):
    tables = Tables.from_pmfs(batch, range(len(batch)))
    assert len(tables) == len(batch)
    for t, pmf in enumerate(batch):
        one, inside = tables.between(t, t + 1), kept(pmf)
        assert one.freqs.sum() == TOTAL and one.freqs.min() >= 1
        assert one.sizes[0] == inside.stop - inside.start + 1  # and the escape symbol
        assert one.offsets[0] == t + inside.start


@given(pmfs(most=4096))
@settings(patient, max_examples=50)
def test_no_count_is_better_given_to_another_symbol(pmf):
    freqs = Tables.from_pmfs([pmf], [0]).freqs.astype(float)
    p = pmf[kept(pmf)]
    p = np.append(p, max(0.0, 1 - p.sum()))
    gain = p * np.log2((freqs + 1) / freqs)
    loss = np.where(freqs > 1, p * np.log2(freqs / np.maximum(freqs - 1, 0.5)), np.inf)
    assert gain.max() <= loss.min() + 1e-15  # the divergence is convex: no better move means no better table


def test_ties_go_to_the_lowest_entry():
    assert Tables.from_pmfs([[1 / 3] * 3], [0]).freqs.tolist() == [5461, 5461, 5461, 1]
    assert Tables.from_pmfs([[0.2] * 5], [0]).freqs.tolist() == [3277, 3277, 3277, 3276, 3276, 1]


@given(st.lists(pmfs(most=40), min_size=1, max_size=3))
@settings(patient, max_examples=20)
def test_compiled_and_plain_allocation_agree(batch):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(entropy.tables, "_allocate", entropy.tables._allocate.function)
        plain = Tables.from_pmfs(batch, [0] * len(batch))
    assert plain.digest() == Tables.from_pmfs(batch, [0] * len(batch)).digest()


@pytest.mark.parametrize("scale", [0.03, 0.0868, 0.3, 1, 10, 100])
def test_a_table_costs_little_more_than_its_density(scale):
    pmf = laplace(scale, math.ceil(30 * scale))  # 0.0868: p(0) = 0.9968
    tables = Tables.from_pmfs([pmf], [-(pmf.size // 2)])
    p, freqs = pmf[kept(pmf)], tables.freqs[:-1]
    escaped = max(0.0, 1 - p.sum())
    bits = -(p * np.log2(freqs / TOTAL)).sum() - escaped * (np.log2(tables.freqs[-1] / TOTAL) - 8)
    assert bits <= -(pmf * np.log2(np.maximum(pmf, 1e-300))).sum() * 1.0015 + 0.0002


def test_nearly_certain_symbols_keep_nearly_all_counts():
    tables = Tables.from_pmfs([[0.99999], [1.0], [5e-6, 0.99999, 5e-6]], [7, 0, -1])
    assert tables.freqs.tolist() == [TOTAL - 1, 1] * 3
    assert tables.offsets.tolist() == [7, 0, 0]


def test_the_widest_table_gives_every_symbol_one_count():
    tables = Tables.from_pmfs([np.full(TOTAL - 1, 1 / TOTAL)], [-8192])
    assert tables.freqs.tolist() == [1] * TOTAL


def test_histograms_are_probabilities():
    counts = [[3, 0, 5], [0, 0, 9, 0]]
    expected = Tables.from_pmfs([[0.375, 0, 0.625], [0, 0, 1, 0]], [-1, 4])
    assert Tables.from_counts(counts, [-1, 4]).digest() == expected.digest()


@given(st.lists(pmfs(most=20), min_size=1, max_size=6), st.data())
@patient
def test_rows_and_concatenate_undo_each_other(batch, data):
    tables = Tables.from_pmfs(batch, range(len(batch)))
    cut = data.draw(st.integers(0, len(batch)))
    parts = [tables.between(0, cut), tables.between(cut, len(batch))]
    assert Tables.concatenate(parts).digest() == tables.digest()
    assert np.shares_memory(parts[1].offsets, tables.offsets) == (cut < len(batch))


def test_digest_is_the_same_everywhere_and_sees_every_field():
    tables = Tables.from_pmfs([[0.1, 0.8, 0.1], [0.5, 0.25]], [-1, 0])
    assert tables.digest().hex() == GOLDEN_DIGEST
    assert tables.digest() != Tables(tables.freqs, tables.sizes, tables.offsets + np.int32(1)).digest()
    assert tables.digest() != Tables.from_pmfs([[0.1, 0.8, 0.1], [0.5, 0.26]], [-1, 0]).digest()


@given(st.lists(pmfs(), min_size=1, max_size=4))
@patient
def test_every_slot_belongs_to_the_symbol_the_decoder_finds(batch):
    tables = Tables.from_pmfs(batch, [0] * len(batch))
    slots = np.arange(TOTAL)
    for t in range(len(tables)):
        freqs = tables.freqs[tables.starts[t] : tables.starts[t + 1]].astype(int)
        entries = tables.entries[tables.starts[t] : tables.starts[t + 1]]
        owner = np.repeat(np.arange(freqs.size), freqs)
        assert np.array_equal(entries >> 16, np.cumsum(freqs) - freqs) and np.array_equal(entries & 0xFFFF, freqs)
        assert np.array_equal(tables.buckets[t], owner[slots % 64 == 0])


def test_reciprocals_divide_every_state_exactly():
    sizes = np.full(TOTAL // 2, 3, np.int32)  # all frequencies from 1 to 2**14 - 2 and back
    freqs = np.stack(
        [np.arange(1, TOTAL // 2 + 1), np.arange(TOTAL - 2, TOTAL // 2 - 2, -1), np.ones(TOTAL // 2)], axis=1
    )
    tables = Tables(freqs.astype(np.uint16).reshape(-1), sizes, np.zeros_like(sizes))
    freqs, bits = tables.freqs.astype(np.uint64), np.uint64(RECIPROCAL_BITS)
    for quotient in np.array([1, 2, 3, 12345, 2**17, 2**18 - 1, 2**18], np.uint64):
        assert np.array_equal((quotient * freqs - 1) * tables.reciprocals >> bits, np.full(freqs.size, quotient - 1))
        if quotient < 2**18:
            assert np.array_equal(quotient * freqs * tables.reciprocals >> bits, np.full(freqs.size, quotient))
    assert Tables.from_pmfs([[1.0]], [0]).reciprocals.tolist() == [-(-(2**46) // 16383), 2**46]


@given(
    st.lists(st.integers(0, 4), max_size=4), st.integers(0, 15), st.integers(0, 4), st.sampled_from([3, 300]), st.data()
)
def test_runs_are_the_broadcast_index(shape, ones, missing, count, data):
    shape = tuple(shape)
    narrow = tuple(1 if ones >> axis & 1 else n for axis, n in enumerate(shape))[missing:]
    index = np.random.default_rng(0).integers(0, count, narrow).astype(np.uint8 if count == 3 else np.uint16)
    tables = Tables(np.full(count, TOTAL, np.uint16), np.ones(count, np.int32), np.zeros(count, np.int32))
    whole = np.broadcast_to(index, shape).reshape(-1)
    begin = data.draw(st.integers(0, whole.size))
    cut = slice(begin, data.draw(st.integers(begin, whole.size)))
    each = tables.runs(index, shape).each(cut)
    assert np.array_equal(each, whole[cut]) and each.dtype == index.dtype and each.flags.c_contiguous


@given(st.lists(pmfs(most=20), min_size=1, max_size=4), st.integers(0, 2**32), st.integers(0, 200))
@patient
def test_bits_are_the_sum_of_symbols_and_escapes(batch, seed, count):
    tables = Tables.from_pmfs(batch, [-5] * len(batch))
    rng = np.random.default_rng(seed)
    index = rng.integers(len(batch), size=count).astype(np.uint8)
    values = (rng.integers(-10, 40, count) * rng.choice([1, 1, 50, 2**25], count)).astype(np.int32)
    expected = 0.0
    for t, value in zip(index.tolist(), values.tolist(), strict=True):
        freqs = tables.between(t, t + 1).freqs.tolist()
        low = int(tables.offsets[t])
        high = low + len(freqs) - 1
        if low <= value < high:
            expected += 14 - math.log2(freqs[value - low])
        else:
            code = 2 * (value - high) if value >= high else 2 * (low - 1 - value) + 1
            expected += 14 - math.log2(freqs[-1]) + 8 * max(1, math.ceil(code.bit_length() / 7))
    assert tables.bits(values, index) == pytest.approx(expected, rel=1e-12)


def test_bits_takes_arrays_longer_than_one_piece():
    tables = Tables.from_counts([[1, 1]], [0])
    assert tables.bits(np.zeros((3, 1 << 19), np.int32), np.uint8(0)) == pytest.approx(3 * 2**19, rel=1e-3)


def test_tables_do_not_follow_later_changes_of_the_callers_arrays():
    freqs = np.array([1, TOTAL - 1], np.uint16)
    tables = Tables(freqs, np.array([2], np.int32), np.array([0], np.int32))
    freqs[:] = 0
    assert tables.freqs.tolist() == [1, TOTAL - 1]
    with pytest.raises(ValueError, match="read-only"):
        tables.freqs[0] = 0


U16, I32 = np.uint16, np.int32


@pytest.mark.parametrize(
    "freqs, sizes, offsets, message",
    [
        (np.array([TOTAL], np.int64), I32([1]), I32([0]), "freqs is int64"),
        (U16([TOTAL]), np.array([1.0]), I32([0]), "sizes is float64"),
        (U16([TOTAL]), I32([1]), I32([[0]]), r"offsets is int32 \(1, 1\)"),
        (U16([TOTAL]), I32([1]), I32([0, 0]), "1 sizes but 2 offsets"),
        (U16([TOTAL]), I32([1, 0]), I32([0, 0]), "has 0 entries"),
        (U16([TOTAL]), I32([2]), I32([0]), "sizes sum to 2 but there are 1"),
        (U16([TOTAL, 0]), I32([2]), I32([0]), "a frequency is 0"),
        (U16([TOTAL, 5]), I32([1, 1]), I32([0, 0]), "table 1 sums to 5"),
        (U16([1, 1, TOTAL - 2]), I32([3]), I32([2**31 - 1]), "table 0 reaches 2147483648, beyond int32"),
    ],
)
def test_broken_tables_are_refused(freqs, sizes, offsets, message):
    with pytest.raises(ValueError, match=message):
        Tables(freqs, sizes, offsets)


@pytest.mark.parametrize("pmf", [[], [[0.5]], [0.5, -0.1], [np.nan], [np.inf], [0.0], [0.7, 0.4]])
def test_what_is_no_probability_is_refused(pmf):
    with pytest.raises(ValueError, match="pmf 1"):
        Tables.from_pmfs([[1.0], pmf], [0, 0])


def test_other_mistakes_are_refused():
    with pytest.raises(ValueError, match="16384 symbols"):
        Tables.from_pmfs([np.full(TOTAL, 1 / TOTAL)], [0])
    with pytest.raises(ValueError, match="do not fit int32"):
        Tables.from_pmfs([[1.0]], [2**31])
    with pytest.raises(ValueError, match="shorter"):
        Tables.from_pmfs([[1.0]], [])
    with pytest.raises(ValueError, match="histogram 0"):
        Tables.from_counts([[0, 0]], [0])
    with pytest.raises(ValueError, match="tables 0 to 2 of 1"):
        Tables.from_pmfs([[1.0]], [0]).between(0, 2)


def test_no_tables_at_all():
    tables = Tables.from_pmfs([], [])
    assert len(tables) == 0 and tables.buckets.shape == (0, 256)


def test_a_kernel_that_cannot_be_cached_is_compiled_all_the_same():
    scope = {}
    exec("def double(x): return 2 * x", scope)  # numba caches functions from files only
    double = Kernel(scope["double"], "int64(int64)")
    assert not double.cached
    assert double(21) == 42


def test_an_error_in_a_kernel_is_not_taken_for_a_broken_cache():
    def wrong(x):
        return x.nothing

    with pytest.raises(Exception, match="nothing"):
        Kernel(wrong, "int64(int64)")(1)


CODE_AND_PRINT = """
import numpy as np
from entropy import Decoder, Tables, encode
tables = Tables.from_pmfs([[0.2, 0.5, 0.2]], [-1])
values = np.arange(-50, 50, dtype=np.int32) // 20
data = encode([(values, np.uint8(0), tables)])
assert np.array_equal(Decoder(data).decode(np.uint8(0), tables, 100), values)
print(data.hex())
"""


def test_importing_the_coder_does_not_import_torch():
    program = CODE_AND_PRINT + "import sys; print([m for m in ('torch', 'codec', 'compressai') if m in sys.modules])"
    assert in_fresh_python(program).stdout.split()[1] == "[]"


def test_without_numba_there_is_one_warning_and_the_same_bytes():
    without = in_fresh_python("import sys; sys.modules['numba'] = None\n" + CODE_AND_PRINT)
    assert without.stderr.count("Warning") == without.stderr.count("numba cannot be imported") == 1
    switched_off = in_fresh_python(CODE_AND_PRINT, NUMBA_DISABLE_JIT=1)
    assert switched_off.stderr == ""
    assert without.stdout == switched_off.stdout == in_fresh_python(CODE_AND_PRINT).stdout


ENCODE_AND_PRINT = """
import numpy as np
import entropy
print(entropy.kernels_cached(decode=False, context=False))
tables = entropy.Tables.from_counts([[2, 5, 2]], [-1])
print(entropy.encode([(np.arange(-50, 50, dtype=np.int32) // 20, np.uint8(0), tables)]).hex())
print(entropy.kernels_cached(decode=False, context=False), entropy.substream._encode_kernel.compiled.stats)
"""


def test_the_cache_is_announced_and_may_be_damaged(tmp_path):
    def run():
        return in_fresh_python(ENCODE_AND_PRINT, NUMBA_CACHE_DIR=tmp_path, NUMBA_OPT=0).stdout.split(maxsplit=3)

    before, data, after, _ = run()
    assert (before, after) == ("False", "True")
    assert run()[:3] == ["True", data, "True"]
    for file in tmp_path.rglob("*.nb?"):
        file.write_bytes(b"damaged")
    assert run()[1] == data


def test_no_folder_at_all_for_the_cache_changes_nothing(tmp_path):
    copy, nowhere = tmp_path / "entropy", tmp_path / "a file" / "folder"
    shutil.copytree(Path(entropy.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "__pycache__").touch()  # files where folders would have to be: not even root can write there
    nowhere.parent.touch()
    program = f"import entropy; print(entropy.__file__){ENCODE_AND_PRINT}print(entropy.kernels_kept())"
    places = {"HOME": nowhere, "XDG_CACHE_HOME": nowhere, "NUMBA_CACHE_DIR": nowhere, "LOCALAPPDATA": nowhere}
    process = in_fresh_python(program, root=tmp_path, NUMBA_OPT=0, **places)
    file, before, data, after, stats = process.stdout.split(maxsplit=4)
    assert Path(file).parent == copy and before == after == "False" and "cache_path=None" in stats
    assert stats.split()[-1] == "False"
    assert process.stderr == "" and data == in_fresh_python(ENCODE_AND_PRINT).stdout.split()[1]
    assert not any(path.suffix.startswith(".nb") for path in tmp_path.rglob("*"))


def test_examples():
    results = doctest.testmod(entropy.tables)
    assert results.attempted > 0 and results.failed == 0
