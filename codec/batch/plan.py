"""What is made of which files: names found below folders, paired with what is made of them, shared among processes.

What is made of a folder keeps its structure: DIR/a/x.png becomes OUT/a/x.lic, or DIR/a/x.lic without OUT. If there are
more inputs than one folder, each folder has one of its own name in OUT, as `cp -r` does it, and single files are beside
them.
"""

import functools
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from codec.errors import LicError
from codec.files import TEMPORARY, below, is_stream, refuse_existing, shortened

CASELESS = sys.platform in ("darwin", "win32")  # file systems there seldom tell a.lic from A.lic


class Job(NamedTuple):
    """A file, and what is made of it; `-` is stdin or stdout."""

    source: str
    target: str


def expand(inputs: Sequence[str], extensions: set[str], others: Counter | None = None) -> Iterator[tuple[str, str]]:
    """Each input file, and each file below an input folder: (path, place it has in a common folder). LicError for a
    folder that has none. `others` as above.
    """
    for given in inputs:
        if is_stream(given) or not os.path.isdir(given):
            yield given, os.path.basename(given.rstrip(os.sep + (os.altsep or "")))
            continue
        own = os.path.basename(os.path.abspath(given)) if len(inputs) > 1 else ""
        empty = True
        for name in below(given, extensions, others):
            empty = False
            yield os.path.join(given, name), os.path.join(own, name)
        if empty:
            raise LicError(f"no files in {given} ({', '.join(sorted(extensions))})")


def plan(
    inputs: Sequence[str],
    extensions: set[str],
    out: str | None,
    suffix: str,
    replace: bool,
    others: Counter | None = None,
) -> list[Job]:
    """What this process is to make of the inputs, folders for it made. OUT is a folder if it is one, ends in a slash,
    or has to be one. LicError before anything is made if two inputs would be written to the same file, an input would
    be written over, or a target is there that may not be replaced. `others` as above.
    """
    if out == "" or list(inputs).count("-") > 1:
        raise LicError("OUT has no name" if out == "" else "stdin can be read once only")
    streams = {name for name in (*inputs, out or "-") if is_stream(name)}  # of what is found in folders nothing is
    into_folder = out not in (None, *streams) and (
        len(inputs) > 1
        or os.path.isdir(out)
        or out.endswith((os.sep, os.altsep or os.sep))
        or any(name not in streams and os.path.isdir(name) for name in inputs)
    )
    jobs = []
    for source, place in expand(inputs, extensions, others):
        if (nameless := source in streams) and into_folder:
            raise LicError("stdin has no name to store it under in a folder: give a file as OUT")
        if nameless:
            target = out or "-"
        elif into_folder:
            target = os.path.join(out, os.path.splitext(place)[0] + suffix)
        else:
            target = out or os.path.splitext(source)[0] + suffix
        jobs.append(Job(source, target))
    if out in streams and len(jobs) != 1:
        raise LicError(f"{len(jobs)} inputs do not fit into one stdout")
    _refuse_collisions(jobs, streams)
    rank, world = share(inputs)
    jobs = jobs[rank::world]
    refuse_existing([target for _, target in jobs], replace)
    if into_folder:
        for folder in {os.path.dirname(target) for _, target in jobs}:
            os.makedirs(folder, exist_ok=True)
    return jobs


def _refuse_collisions(jobs: list[Job], streams: set[str]) -> None:
    real = functools.lru_cache(os.path.realpath)  # of folders: asked once for all files of one

    def place(name: str) -> str:
        where = os.path.join(real(os.path.dirname(name)), os.path.basename(name))
        return where.casefold() if CASELESS else where

    sources = {place(source) for source, _ in jobs if source not in streams}
    # what a link leads to is an input too; a target that is a link is replaced, and not followed
    sources |= {
        place(os.path.realpath(source)) for source, _ in jobs if source not in streams and os.path.islink(source)
    }
    source_of: dict[str, str] = {}
    for source, target in jobs:
        if target in streams:
            continue
        where = place(target)
        if where in sources:
            raise LicError(f"{target} is an input, and would be written over: choose another OUT")
        if where in source_of:
            raise LicError(f"{source_of[where]} and {source} would both be written to {where}")
        source_of[where] = source


def share(inputs: Sequence[str]) -> tuple[int, int]:
    """The number of this process and how many share the work on inputs, as torchrun sets them: (0, 1) without it, and
    for a single file, which is never shared. RANK and WORLD_SIZE alone do not count: pods of clusters have them.
    """
    if "LOCAL_RANK" not in os.environ or len(inputs) == 1 and not os.path.isdir(inputs[0]):
        return 0, 1
    rank, world = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if not (rank.isdecimal() and world.isdecimal() and int(rank) < int(world)):
        raise LicError(f"RANK={rank} and WORLD_SIZE={world} in the environment: RANK must be in 0..WORLD_SIZE - 1")
    return int(rank), int(world)


def remove_temporaries(jobs: list[Job]) -> None:
    """Remove what processes that were killed while they wrote these targets have left."""
    written = [target for _, target in jobs if target != "-"]
    targets = {os.path.join(os.path.dirname(target), shortened(os.path.basename(target))) for target in written}
    for folder in {os.path.dirname(target) for target in targets}:
        if not os.path.isdir(folder or os.curdir):
            continue  # told where the file is written
        with os.scandir(folder or os.curdir) as entries:
            left = [match for entry in entries if (match := TEMPORARY.fullmatch(entry.name))]
        for match in left:
            if os.path.join(folder, match[1]) in targets:
                Path(folder, match[0]).unlink(missing_ok=True)
