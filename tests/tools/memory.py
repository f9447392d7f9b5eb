"""How much memory a piece of code takes at its peak, and an error where that is too much. Needs Linux."""

import ctypes
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LIBC = ctypes.CDLL(None)


@contextmanager
def traced_at_most(size: int) -> Iterator[None]:
    """MemoryError, whatever else is raised, if Python and NumPy have more than `size` bytes at one time; where
    tracemalloc is on.
    """
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    try:
        yield
    finally:
        peak = tracemalloc.get_traced_memory()[1] - before
        if peak > size:
            raise MemoryError(f"{peak} bytes were allocated, {size} are allowed")


def watermark() -> int:
    """The most bytes that this process has had in memory since `reset_watermark`."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status[status.index("VmHWM:") + 6 :].split(maxsplit=1)[0])


def reset_watermark() -> int:
    """Give freed memory back to the system, so that taking it again counts, and begin anew; what there is now."""
    LIBC.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM
    return watermark()


@contextmanager
def resident_at_most(size: int) -> Iterator[None]:
    """MemoryError, whatever else is raised, if this process grows by more than `size` bytes, whoever allocates them."""
    before = reset_watermark()
    try:
        yield
    finally:
        grown = watermark() - before
        if grown > size:
            raise MemoryError(f"the process grew by {grown} bytes, {size} are allowed")
