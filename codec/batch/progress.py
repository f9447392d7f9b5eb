"""A progress bar for one file that takes long: a witness of its encoding (codec/coding/encoder.py)."""

import multiprocessing
import sys
from typing import TYPE_CHECKING

from numpy.typing import NDArray

if TYPE_CHECKING:
    from codec.coding.encoder import Witness


class Progress:
    """Shows which share of an image is encoded, at each quality that is tried, and tells another witness what it sees.
    On a terminal alone, and not in a worker process, several of which would share it.
    """

    def __init__(self, name: str, witness: "Witness | None" = None):
        from tqdm import tqdm

        self.witness, self.tried = witness, []
        hidden = not sys.stderr.isatty() or multiprocessing.parent_process() is not None
        shape = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
        self.bar = tqdm(total=1.0, desc=name, leave=False, bar_format=shape, disable=hidden)

    def __call__(self, quality: int | None, share: float | None = None, **symbols: NDArray | None) -> None:
        if self.witness:
            self.witness(quality, **symbols)
        if share is None:
            return
        if quality not in self.tried:
            self.tried.append(quality)
            self.bar.reset()
        self.bar.n = share
        self.bar.refresh()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        self.bar.close()
