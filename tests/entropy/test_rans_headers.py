"""Forged sizes and spellings, and mistakes of the caller: refused at once, in plain words, at no cost of memory."""

import tracemalloc
from contextlib import contextmanager

import numpy as np
import pytest
from shared import INT32, in_plain_python, verdict

from entropy import Decoder, StreamError, Tables, encode, rans

ONE = Tables.from_pmfs([[0.5, 0.4]], [0])


@contextmanager
def traced():
    """A function that tells how many bytes were allocated at most at one time."""
    tracemalloc.start()
    try:
        yield lambda: tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", "the number at byte 0 does not end"),
        (b"\xff" * 20, "the number at byte 0 does not end"),
        (b"\x80\x40", "leading zero"),
        (b"\x00!", "1 bytes follow a stream without symbols"),
        (b"\x40", "1 substreams of 1 lanes do not fit 1 bytes"),
        (b"\x40\x00\x00\x00\x01", "needs 5 bytes or more and has 4"),
        (b"\x40\x05\x00\x00\x01\x00", "needs 10 bytes"),
        (b"\x40\x00\xff\xff\x00\x00", "a state is 65535"),
        (b"\x81\x00\x0c" + bytes(9), "2 substreams have 12 bytes before the last; 9 are there"),
        (b"\x81\x00\xff\xff\xff\x7f" + bytes(9), "2 substreams have 268435455 bytes"),
        (b"\x81\x00" + b"\xff" * 20, "the number at byte 2 does not end"),
        (b"\xbf\xff\xff\xff\xff\x7f" + bytes(99), "34359738367 substreams of 64 lanes do not fit 105 bytes"),
        (b"\x87\xff\xff\xff\xff\x40" + b"\x05\x00\x00\x00\x01\x00" * 99, "substreams of 1 lanes do not fit 600 bytes"),
    ],
)
def test_hostile_headers_are_refused_at_once(data, message):
    with traced() as peak, pytest.raises(StreamError, match=message):
        Decoder(data).decode(np.uint8(0), ONE, 1)
    assert peak() < 1 << 16


def test_substreams_that_no_symbol_needs_cost_no_memory():
    count = 10_000
    data = rans.varint(64 * count) + b"\x05" * (count - 1) + b"\x00\x00\x00\x00\xff" * count
    with traced() as peak, pytest.raises(StreamError, match="has 10000 substreams, 1 were used"):
        decoder = Decoder(data)
        decoder.decode(np.uint8(0), ONE, 1)
        decoder.finish()
    assert peak() < 10 * len(data)


def side_stream(side):
    """One lane, no words, a state that holds one escape symbol, and a given side section."""
    ideal = encode([(np.array([9], np.int32), np.uint8(0), ONE)], lanes=1)
    assert ideal[:3] == b"\x40\x01\x0e"  # 9 is 2 * (9 - 2)
    return b"\x40" + bytes([len(side)]) + side + ideal[3:]


@pytest.mark.parametrize(
    "side, value",
    [
        (b"\x0e", 9),
        (b"\x01", -1),
        (b"\x8f\xff\xff\xff\x7a", INT32.max),
        (b"\x8f\xff\xff\xff\x7c", None),  # INT32.max + 1
        (b"\x8f\xff\xff\xff\x7f", INT32.min),
        (b"\x90\x80\x80\x80\x01", None),  # INT32.min - 1
        (b"", None),
        (b"\x0e\x0e", None),
        (b"\x80\x0e", None),
        (b"\x8e", None),
        (b"\x90\x80\x80\x80\x80\x01", None),
    ],
)
def test_an_escaped_value_has_one_spelling(side, value):
    step = [(np.zeros(1, np.int32), np.uint8(0), ONE)]
    expected = None if value is None else [[value]]
    assert verdict(side_stream(side), step) == in_plain_python(verdict, side_stream(side), step) == expected


VALUES = np.zeros((2, 3), np.int32)


@pytest.mark.parametrize(
    "values, index, message",
    [
        (VALUES.astype(np.int64), np.uint8(0), "values are int64; int32 is needed"),
        (VALUES.astype(">i4"), np.uint8(0), "values are >i4"),
        ([[0]], np.uint8(0), "values are int64"),
        (VALUES, 0, "index is int64; uint8 or uint16 is needed"),
        (VALUES, np.zeros((2, 3), np.int8), "index is int8"),
        (VALUES, np.uint8(1), "index holds 1 but there are 1 tables"),
        (VALUES, np.zeros((3, 2), np.uint8), r"index of shape \(3, 2\) cannot be broadcast to \(2, 3\)"),
        (VALUES, np.zeros((2, 2, 3), np.uint8), "cannot be broadcast"),
    ],
)
def test_mistakes_of_the_caller_are_plain_value_errors(values, index, message):
    with pytest.raises(ValueError, match=message) as caught:
        encode([(values, index, ONE)])
    assert caught.type is ValueError
    if np.asarray(values).dtype == np.int32:
        with pytest.raises(ValueError, match=message) as caught:
            Decoder(encode([(VALUES, np.uint8(0), ONE)])).decode(index, ONE, VALUES.shape)
        assert caught.type is ValueError


@pytest.mark.parametrize("options", [{"lanes": 0}, {"lanes": 65}, {"threads": 0}])
def test_numbers_of_lanes_and_threads_are_checked(options):
    with pytest.raises(ValueError, match="possible|at least 1"):
        encode([(VALUES, np.uint8(0), ONE)], **options)
