"""The quality at which a file meets a target, by bisection."""

from collections.abc import Callable
from typing import TypeVar

Coded = TypeVar("Coded")  # what an encoder takes


def fit_size(encode: Callable[[Coded, int], bytes], image: Coded, max_bytes: float) -> tuple[bytes, int]:
    """The file of the highest quality in 0..100 that takes at most `max_bytes`, and that quality; of 0 if none does.

    Found by bisection, so that the quality above, if there is one, has been seen to take more.
    """
    fitting, low, high = None, 0, 100
    while low <= high:
        middle = (low + high) // 2
        data = encode(image, middle)
        if len(data) <= max_bytes:
            fitting, low = (data, middle), middle + 1
        else:
            high = middle - 1
    return fitting or (data, 0)
