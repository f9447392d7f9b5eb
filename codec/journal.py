"""Journals: files of JSON objects, one a line, to which a program appends.

A process that is killed while writing leaves an incomplete last line, which is ignored. There are two journals:
log.jsonl of a training, {"kind": "train" or "val", "step": 100, "bpp": 0.9, ...}, with at most one line per kind and
step, and rows.jsonl of an evaluation, {"key": HASH, ...}.
"""

import errno
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from codec.errors import LicError
from codec.files import write_atomically


def lines(path: Path, valid: Callable[[dict[str, Any]], bool], kind: str) -> list[dict[str, Any]]:
    """The objects in the complete lines of a journal; `kind` names the journal in errors.

    Raises OSError if it cannot be read, LicError if a line is not an object for which `valid` holds.
    """
    *complete, _ = path.read_bytes().split(b"\n")  # what follows the last newline is empty or incomplete
    objects = []
    for number, line in enumerate(complete, 1):
        try:
            found = json.loads(line)
        except ValueError:
            found = None
        if not isinstance(found, dict) or not valid(found):
            raise LicError(f"{path}: line {number} is no line of {kind}: {line[:40]!r}; remove it")
        objects.append(found)
    return objects


def read(path: Path) -> list[dict[str, Any]]:
    """The entries of a training's log. Raises what `lines` does."""
    return lines(path, _is_entry, "a training log")


def _is_entry(entry: dict[str, Any]) -> bool:
    if not isinstance(entry.get("kind"), str) or type(entry.get("step")) is not int:
        return False
    return all(isinstance(value, (int, float)) for name, value in entry.items() if name != "kind")


def summary(figures: dict[str, Any]) -> dict[str, float]:
    """Loss, bpp, mse, psnr and the scores trained for over all rates, as far as an entry has them.

    They are the means of figures per quality (bpp_q10, bpp_q30, ...); the loss is the weighted mean `rd_loss` if given.
    """
    means = {}
    for name in ("loss", "bpp", "mse", "psnr", "ssimulacra2", "ms-ssim", "vgg"):
        given = [figures[name]] if name in figures else [v for key, v in figures.items() if key.startswith(f"{name}_q")]
        if given:
            means[name] = float(np.mean(given))
    return means | ({"loss": figures["rd_loss"]} if "rd_loss" in figures else {})


def append(path: Path, line: bytes) -> None:
    """Add a line to a file, in one write: processes do not mix theirs. OSError, with its name, if it does not fit."""
    try:
        with open(path, "ab", buffering=0) as file:
            if file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:  # a full disk's has no name
        raise type(error)(error.errno, error.strerror, str(path)) from None


def note(path: Path, line: bytes) -> None:
    """The same, of a line that may be lacking: it is shown instead."""
    try:
        append(path, line)
    except OSError as error:
        print(f"{path} lacks {os.fsdecode(line).strip()!r}: {error.strerror}", file=sys.stderr)


class Keyed:
    """A journal of entries by key, {"key": ..., ...} a line; of lines with one key the last counts.

    LicError if the file has another line.
    """

    def __init__(self, path: Path):
        self.path, self.entries = path, {}
        if not path.exists():
            return
        found = lines(path, lambda line: isinstance(line.get("key"), str), "a journal")
        self.entries = {line.pop("key"): line for line in found}
        data = path.read_bytes()
        if incomplete := len(data.rpartition(b"\n")[2]):
            write_atomically(path, data[:-incomplete])  # so that the next entry begins a line

    def add(self, key: str, **entry: Any) -> None:
        """Append an entry, at once on disk."""
        self.entries[key] = entry
        self.path.parent.mkdir(parents=True, exist_ok=True)
        append(self.path, (json.dumps({"key": key, **entry}) + "\n").encode())
