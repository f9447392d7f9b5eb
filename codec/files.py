"""Names of many files: found below folders, paired with what is made of them, shared among processes; and the one way
to write a file, whole or not at all. Imports nothing heavy.

What is made of a folder keeps its structure: DIR/a/x.png becomes OUT/a/x.lic, or DIR/a/x.lic without OUT. If there are
more inputs than one folder, each folder has one of its own name in OUT, as `cp -r` does it, and single files are beside
them. A file is written under a temporary name, synced and renamed. Only `kill -9` or a power cut can leave a temporary
file; its name tells what it would have become, and who makes the same file again with --resume removes it.
"""

import contextlib
import functools
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

IMAGES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm"}  # extensions
TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{8}\.part", re.DOTALL)  # what a file is called before it is complete


class Failure(Exception):
    """What went wrong, as a sentence for the user."""


class Job(NamedTuple):
    """A file, and what is made of it; `-` is stdin or stdout."""

    source: str
    target: str


def below(folder: str | Path, extensions: set[str]) -> Iterator[str]:
    """Names, relative to the folder, of all files in and below it with one of these extensions (lower case); each
    folder's in order, its own files first. OSError if one cannot be listed.
    """

    def fail(error: OSError) -> None:
        raise error

    for place, folders, names in os.walk(folder, onerror=fail):
        folders.sort()
        inner = os.path.relpath(place, folder)
        for name in sorted(names):
            if os.path.splitext(name)[1].lower() in extensions:
                yield name if inner == os.curdir else os.path.join(inner, name)


def expand(inputs: Sequence[str], extensions: set[str]) -> Iterator[tuple[str, str]]:
    """Each input file, and each file below an input folder: (path, place it has in a common folder). Failure for a
    folder that has none.
    """
    for given in inputs:
        if given == "-" or not os.path.isdir(given):
            yield given, os.path.basename(given)
            continue
        own = os.path.basename(os.path.abspath(given)) if len(inputs) > 1 else ""
        empty = True
        for name in below(given, extensions):
            empty = False
            yield os.path.join(given, name), os.path.join(own, name)
        if empty:
            raise Failure(f"no files in {given} ({', '.join(sorted(extensions))})")


def plan(inputs: Sequence[str], extensions: set[str], out: str | None, suffix: str, replace: bool) -> list[Job]:
    """What this process is to make of the inputs, folders for it made; Failure before that if two inputs would be
    written to the same file, or if a target exists that may not be replaced.
    """
    into_folder = out not in (None, "-") and (
        len(inputs) > 1 or os.path.isdir(out) or any(name != "-" and os.path.isdir(name) for name in inputs)
    )
    jobs = []
    for source, place in expand(inputs, extensions):
        if source == "-" and into_folder:
            raise Failure("stdin has no name to store it under in a folder: give a file as OUT")
        if source == "-":
            target = out or "-"
        elif into_folder:
            target = os.path.join(out, os.path.splitext(place)[0] + suffix)
        else:
            target = out or os.path.splitext(source)[0] + suffix
        jobs.append(Job(source, target))
    if out == "-" and len(jobs) != 1:
        raise Failure(f"{len(jobs)} inputs do not fit into one stdout")
    _refuse_collisions(jobs)
    rank, world = rank_and_world()
    jobs = jobs[rank::world]
    if not replace:
        _refuse_existing(jobs)
    if into_folder:
        for folder in {os.path.dirname(target) for _, target in jobs}:
            os.makedirs(folder, exist_ok=True)
    return jobs


def _refuse_collisions(jobs: list[Job]) -> None:
    real = functools.lru_cache(os.path.realpath)  # of folders: asked once for all files of one
    seen = set()
    for folder, name in (os.path.split(target) for _, target in jobs if target != "-"):
        place = os.path.join(real(folder), name)
        if place in seen:
            raise Failure(f"two inputs would both be written to {place}")
        seen.add(place)


def _refuse_existing(jobs: list[Job]) -> None:
    existing = [target for _, target in jobs if target != "-" and os.path.lexists(target)]
    if existing:
        more = f" (and {len(existing) - 1} more)" if len(existing) > 1 else ""
        raise Failure(f"{existing[0]} exists{more}; -f replaces it")


def rank_and_world() -> tuple[int, int]:
    """The number of this process and how many share the work, as torchrun sets them; (0, 1) without it."""
    rank, world = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if not (rank.isdecimal() and world.isdecimal() and int(rank) < int(world)):
        raise Failure(f"RANK={rank} and WORLD_SIZE={world} in the environment: RANK must be in 0..WORLD_SIZE - 1")
    return int(rank), int(world)


def remove_temporaries(jobs: list[Job]) -> None:
    """Remove what processes that were killed while they wrote these targets have left."""
    targets = {target for _, target in jobs if target != "-"}
    for folder in {os.path.dirname(target) for target in targets}:
        with os.scandir(folder or os.curdir) as entries:
            left = [match for entry in entries if (match := TEMPORARY.fullmatch(entry.name))]
        for match in left:
            if os.path.join(folder, match[1]) in targets:
                Path(folder, match[0]).unlink(missing_ok=True)


def read_bytes(source: str) -> bytes:
    return sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()


def write_bytes(target: str, data: bytes, replace: bool, check: Callable[[bytes], None] | None = None) -> None:
    """Write a whole file or none; Failure if there is one, unless it may be replaced. `check` as below."""
    if target == "-":
        if check is not None:
            check(data)
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    if os.path.lexists(target) and not replace:
        raise Failure(f"{target} exists; -f replaces it")
    write_atomically(target, data, check)


def write_atomically(path: Path | str, data: bytes | memoryview, check: Callable[[bytes], None] | None = None) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part: temporary name, sync, rename.

    `check` is given what was written, read back, before the file gets its name; if it raises, nothing has changed.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}.part")
    try:
        try:
            file = open(temporary, "xb")
        except OSError as error:
            raise type(error)(error.errno, error.strerror, str(path)) from None  # not by its temporary name
        with file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if check is not None:
            check(temporary.read_bytes())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):  # what went wrong before is what is told
            temporary.unlink()
        raise
