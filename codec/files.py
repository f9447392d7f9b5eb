"""Names of many files: found below folders, paired with what is made of them, shared among processes; and the one way
to write a file, whole or not at all. Imports nothing heavy.

What is made of a folder keeps its structure: DIR/a/x.png becomes OUT/a/x.lic, or DIR/a/x.lic without OUT. If there are
more inputs than one folder, each folder has one of its own name in OUT, as `cp -r` does it, and single files are beside
them. A file is written under a temporary name, synced and renamed. Only `kill -9` or a power cut can leave a temporary
file; its name tells what it would have become, and who makes the same file again with --resume removes it.
"""

import contextlib
import functools
import itertools
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

IMAGES = {  # extensions
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".avif", ".jp2", ".gif", ".bmp", ".tga", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm",
}  # fmt: skip
TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{8}\.part", re.DOTALL)  # what a file is called before it is complete
LONGEST = 255 - len("..01234567.part")  # bytes of a file's name that fit into that
CASELESS = sys.platform in ("darwin", "win32")  # file systems there seldom tell a.lic from A.lic


class Failure(Exception):
    """What went wrong, as a sentence for the user."""


class Job(NamedTuple):
    """A file, and what is made of it; `-` is stdin or stdout."""

    source: str
    target: str


def free_folder(start: str) -> Path:
    """The first of START001, START002, ... that does not exist."""
    return next(path for n in itertools.count(1) if not (path := Path(f"{start}{n:03d}")).exists())


def below(folder: str | Path, extensions: set[str], others: Counter | None = None) -> Iterator[str]:
    """Names, relative to the folder, of all files in and below it with one of these extensions (lower case); each
    folder's in order, its own files first. Links to folders are followed, though not in circles. What is there and not
    a file is passed over, a link to nowhere is not.
    `others` counts the files that are left out, by extension. A folder in it that cannot be listed is named last: who
    opens it learns why, and goes on with the others. OSError if that is the folder itself.
    """
    unlisted: list[OSError] = []
    above: dict[str, frozenset] = {os.fspath(folder): frozenset()}  # the folders that a folder is in
    for place, folders, names in os.walk(folder, onerror=unlisted.append, followlinks=True):
        itself, ways = os.stat(place), above.pop(place)
        if (itself.st_dev, itself.st_ino) in ways:
            folders.clear()
            continue
        folders.sort()
        above |= {os.path.join(place, name): ways | {(itself.st_dev, itself.st_ino)} for name in folders}
        inner = os.path.relpath(place, folder)
        for name in sorted(names):
            path, extension = os.path.join(place, name), os.path.splitext(name)[1].lower()
            if extension in extensions:
                if os.path.isfile(path) or not os.path.exists(path):
                    yield name if inner == os.curdir else os.path.join(inner, name)
            elif others is not None:
                others[extension or "without extension"] += 1
    for error in unlisted:
        if (name := os.path.relpath(error.filename, folder)) == os.curdir:
            raise error
        yield name


def expand(inputs: Sequence[str], extensions: set[str], others: Counter | None = None) -> Iterator[tuple[str, str]]:
    """Each input file, and each file below an input folder: (path, place it has in a common folder). Failure for a
    folder that has none. `others` as above.
    """
    for given in inputs:
        if given == "-" or not os.path.isdir(given):
            yield given, os.path.basename(given.rstrip(os.sep + (os.altsep or "")))
            continue
        own = os.path.basename(os.path.abspath(given)) if len(inputs) > 1 else ""
        empty = True
        for name in below(given, extensions, others):
            empty = False
            yield os.path.join(given, name), os.path.join(own, name)
        if empty:
            raise Failure(f"no files in {given} ({', '.join(sorted(extensions))})")


def plan(
    inputs: Sequence[str],
    extensions: set[str],
    out: str | None,
    suffix: str,
    replace: bool,
    others: Counter | None = None,
) -> list[Job]:
    """What this process is to make of the inputs, folders for it made. OUT is a folder if it is one, ends in a slash,
    or has to be one. Failure before anything is made if two inputs would be written to the same file, an input would be
    written over, or a target is there that may not be replaced. `others` as above.
    """
    if out == "" or list(inputs).count("-") > 1:
        raise Failure("OUT has no name" if out == "" else "stdin can be read once only")
    into_folder = out not in (None, "-") and (
        len(inputs) > 1
        or os.path.isdir(out)
        or out.endswith((os.sep, os.altsep or os.sep))
        or any(name != "-" and os.path.isdir(name) for name in inputs)
    )
    jobs = []
    for source, place in expand(inputs, extensions, others):
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
    _refuse_existing([target for _, target in jobs], replace)
    if into_folder:
        for folder in {os.path.dirname(target) for _, target in jobs}:
            os.makedirs(folder, exist_ok=True)
    return jobs


def _refuse_collisions(jobs: list[Job]) -> None:
    real = functools.lru_cache(os.path.realpath)  # of folders: asked once for all files of one

    def place(name: str) -> str:
        where = os.path.join(real(os.path.dirname(name)), os.path.basename(name))
        return where.casefold() if CASELESS else where

    sources = {place(source) for source, _ in jobs if source != "-"}
    # what a link leads to is an input too; a target that is a link is replaced, and not followed
    sources |= {place(os.path.realpath(source)) for source, _ in jobs if source != "-" and os.path.islink(source)}
    source_of: dict[str, str] = {}
    for source, target in jobs:
        if target == "-":
            continue
        where = place(target)
        if where in sources:
            raise Failure(f"{target} is an input, and would be written over: choose another OUT")
        if where in source_of:
            raise Failure(f"{source_of[where]} and {source} would both be written to {where}")
        source_of[where] = source


def _refuse_existing(targets: Sequence[str], replace: bool) -> None:
    existing = [target for target in targets if target != "-" and os.path.lexists(target)]
    for target in existing:
        if os.path.exists(target) and not os.path.isfile(target):
            raise Failure(f"{target} is not a file that could be replaced: choose another OUT, or - for stdout")
    if existing and not replace:
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
    targets = {
        os.path.join(os.path.dirname(target), _short(os.path.basename(target))) for _, target in jobs if target != "-"
    }
    for folder in {os.path.dirname(target) for target in targets}:
        if not os.path.isdir(folder or os.curdir):
            continue  # told where the file is written
        with os.scandir(folder or os.curdir) as entries:
            left = [match for entry in entries if (match := TEMPORARY.fullmatch(entry.name))]
        for match in left:
            if os.path.join(folder, match[1]) in targets:
                Path(folder, match[0]).unlink(missing_ok=True)


def _short(name: str) -> str:
    """A file's name as far as it fits into a temporary one."""
    return os.fsdecode(os.fsencode(name)[:LONGEST])


def read_bytes(source: str) -> bytes:
    if source != "-":
        return Path(source).read_bytes()
    if sys.stdin is None:
        raise Failure("stdin is closed")
    return sys.stdin.buffer.read()


def write_bytes(target: str, data: bytes, replace: bool, check: Callable[[bytes], None] | None = None) -> None:
    """Write a whole file or none; Failure if there is one, unless it may be replaced. `check` as below."""
    if target != "-":
        _refuse_existing([target], replace)
        write_atomically(target, data, check, replace)
        return
    if check is not None:
        check(data)
    if sys.stdout is None:
        raise Failure("stdout is closed")
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def write_atomically(
    path: Path | str, data: bytes | memoryview, check: Callable[[bytes], None] | None = None, replace: bool = True
) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part: temporary name, sync, rename.

    `check` is given what was written, read back, before the file gets its name; if it raises, nothing has changed.
    Without `replace` Failure if there is a file of that name by then, whoever made it.
    """
    path = Path(path)
    temporary = path.with_name(f".{_short(path.name)}.{os.urandom(4).hex()}.part")
    try:
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:  # a full disk's has no name, others the temporary one
            raise type(error)(error.errno, error.strerror, str(path)) from None
        if check is not None:
            check(temporary.read_bytes())
        if replace or not _link(temporary, path):
            os.replace(temporary, path)
        else:
            temporary.unlink()
    except BaseException:
        with contextlib.suppress(OSError):  # what went wrong before is what is told
            temporary.unlink()
        raise


def _link(temporary: Path, path: Path) -> bool:
    """Give a file its name unless there is one of that name; False where the file system has no links."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise Failure(f"{path} exists; -f replaces it") from None
    except OSError:
        return False
    return True
