"""The file that comes next is opened in a thread while one is at work."""

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from codec.files import is_stream

LARGEST = 2**24  # bytes of a file: what a larger one becomes in memory is not held beside another, by hand

Opened = TypeVar("Opened")


class Ahead(Generic[Opened]):
    """Opens files by name, one at most before it is taken."""

    def __init__(self, open: Callable[[str], Opened]):
        self.open, self.reader = open, ThreadPoolExecutor(1)
        self.begun: dict[str, Future[Opened]] = {}

    def expect(self, source: str) -> None:
        """Begin with a file, unless it is a stream or large."""
        if not self.begun and os.path.isfile(source) and not is_stream(source) and os.path.getsize(source) <= LARGEST:
            self.begun[source] = self.reader.submit(self.open, source)

    def take(self, source: str) -> Opened:
        """What opening the file gives; raises what it raises."""
        begun = self.begun.pop(source, None)
        return begun.result() if begun else self.open(source)
