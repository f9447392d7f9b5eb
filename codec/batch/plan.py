"""Planning: input files and folders to jobs, pairs of source and target, shared among processes.

The output keeps the structure of folders: DIR/a/x.png becomes OUT/a/x.lic, or DIR/a/x.lic without OUT. If a folder is
not the only input, it becomes a folder of its own name in OUT, as with `cp -r`, and single files are beside it.
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

CASELESS = sys.platform in ("darwin", "win32")  # whose file systems mostly do not distinguish a.lic and A.lic


class Job(NamedTuple):
    """A source file and its target; `-` is stdin or stdout."""

    source: str
    target: str


def expand(inputs: Sequence[str], extensions: set[str], others: Counter | None = None) -> Iterator[tuple[str, str]]:
    """Each input file, and each file below an input folder: (path, relative path in OUT).

    `others` counts files of other extensions. LicError for a folder without files.
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
    """The jobs of this process, for which it makes the folders.

    OUT is taken as a folder if it is one, ends in a slash, or has to be one. LicError, before anything is made, if two
    inputs would be written to the same file, an input would be overwritten, or a target exists and `replace` is false.
    `others` counts files of other extensions.
    """
    if out == "" or list(inputs).count("-") > 1:
        raise LicError("OUT has no name" if out == "" else "stdin can be read once only")
    streams = {name for name in (*inputs, out or "-") if is_stream(name)}  # what is found in folders is never a stream
    into_folder = out not in (None, *streams) and (
        len(inputs) > 1
        or os.path.isdir(out)
        or out.endswith((os.sep, os.altsep or os.sep))
        or any(name not in streams and os.path.isdir(name) for name in inputs)
    )
    if into_folder and os.path.exists(out) and not os.path.isdir(out):
        raise LicError(f"{out} is a file, and a folder is wanted")
    if into_folder and not os.path.isdir(out) and out.lower().endswith(suffix):
        raise LicError(f"{out}: the name of a file, and of several inputs OUT is a folder")
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
    """LicError if a target is an input, or the target of two jobs."""
    real = functools.lru_cache(os.path.realpath)  # of folders: one call for all files of a folder

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
    """The rank of this process and the number of processes that share the inputs, as torchrun sets them.

    (0, 1) without torchrun, and for a single file. RANK and WORLD_SIZE do not count without LOCAL_RANK: clusters set
    them for other purposes. LicError for an impossible rank.
    """
    if "LOCAL_RANK" not in os.environ or len(inputs) == 1 and not os.path.isdir(inputs[0]):
        return 0, 1
    rank, world = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if not (rank.isdecimal() and world.isdecimal() and int(rank) < int(world)):
        raise LicError(f"RANK={rank} and WORLD_SIZE={world} in the environment: RANK must be in 0..WORLD_SIZE - 1")
    return int(rank), int(world)


def remove_temporaries(jobs: list[Job]) -> None:
    """Remove the temporary files that killed processes have left of these targets."""
    written = [target for _, target in jobs if target != "-"]
    targets = {os.path.join(os.path.dirname(target), shortened(os.path.basename(target))) for target in written}
    for folder in {os.path.dirname(target) for target in targets}:
        if not os.path.isdir(folder or os.curdir):
            continue  # writing the file will report it
        with os.scandir(folder or os.curdir) as entries:
            left = [match for entry in entries if (match := TEMPORARY.fullmatch(entry.name))]
        for match in left:
            if os.path.join(folder, match[1]) in targets:
                Path(folder, match[0]).unlink(missing_ok=True)
