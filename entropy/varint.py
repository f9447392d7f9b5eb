"""Varints: numbers of any size in base 128, most significant digit first, a digit a byte.

All bytes but the last have their top bit set. There is no leading zero digit, so that each number has one form.
"""

import numpy as np
from numpy.typing import NDArray

MAX_VARINT = 10  # bytes: enough for 64-bit numbers


class StreamError(ValueError):
    """The bytes are not a stream encoded with these tables and indices."""


def varint(number: int) -> bytes:
    """A number >= 0 as a varint."""
    digits = [number & 127]
    while number := number >> 7:
        digits.append(number & 127 | 128)
    return bytes(reversed(digits))


def read_varint(data: NDArray[np.uint8] | bytes, begin: int) -> tuple[int, int]:
    """The varint at position `begin`, and the position after it; StreamError unless it ends within 10 bytes."""
    number = 0
    for position in range(begin, min(begin + MAX_VARINT, len(data))):
        digit = int(data[position])
        if position == begin and digit == 128:
            raise StreamError(f"the number at byte {begin} has a leading zero")
        number = number << 7 | digit & 127
        if digit < 128:
            return number, position + 1
    raise StreamError(f"the number at byte {begin} does not end")
