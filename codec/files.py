"""Files: images found below folders, and the one way to write a file, whole or not at all. Imports nothing heavy.

A file is written under a temporary name, synced and renamed. Only `kill -9` or a power cut can leave a temporary
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
from typing import TYPE_CHECKING, Any

from codec.errors import LicError

if TYPE_CHECKING:
    from PIL import Image

IMAGES = {  # extensions
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".avif", ".jp2", ".gif", ".bmp", ".tga", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm",
}  # fmt: skip
TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{8}\.part", re.DOTALL)  # what a file is called before it is complete
LONGEST = 255 - len("..01234567.part")  # bytes of a file's name that fit into that
OUTPUTS = (("config.toml", "log.jsonl"), ("rows.jsonl",))  # files by which a run is known, and a folder of results
STREAMS = ("stdin", "stdout", "stderr")  # in /dev
LINKS = 40  # of one to another; more are a circle, as Linux has it

SAMPLES = ("astronaut", "coffee", "chelsea", "motorcycle")


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


def sample_images(names: Sequence[str] = SAMPLES) -> "list[tuple[str, Image.Image]]":
    """Photographs from scikit-image's wheel: (name, RGB image). More than SAMPLES: rocket, brick, ..."""
    from PIL import Image
    from skimage import data

    def load(name: str) -> Any:
        return data.stereo_motorcycle()[0] if name == "motorcycle" else getattr(data, name)()

    return [(name, Image.fromarray(load(name)).convert("RGB")) for name in names]


def made_here(folder: Path | str) -> bool:
    """Whether a folder is that of a training, or of results: what lies in it are pictures of other images."""
    there = {name for names in OUTPUTS for name in names if os.path.exists(os.path.join(folder, name))}
    return any(set(names) <= there for names in OUTPUTS)


def find_images(folder: Path | str) -> list[Path]:
    """All image files below a folder, sorted by path, but none that a training or an evaluation has made.
    FileNotFoundError if there are none, LicError if the folder itself lies in the output of such.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder")
    ours = functools.cache(made_here)
    for above in (folder.resolve(), *folder.resolve().parents):
        if ours(above):
            raise LicError(f"{folder} lies in {above}, the output of a training or of eval.py, which is no data")
    paths = sorted(
        folder / name for name in below(folder, IMAGES) if not any(ours(folder / inner) for inner in Path(name).parents)
    )
    if not paths:
        raise FileNotFoundError(f"no images in {folder} ({', '.join(sorted(IMAGES))})")
    return paths


def descriptor(name: str) -> int | None:
    """The number of the open file of this process that a name such as /dev/stdout or /dev/fd/3, or a link to one, leads
    to; None of any other. On Linux these are links to the file, which would be taken for it.
    """
    for _ in range(LINKS):
        folder, last = os.path.split(name)
        if last.isdecimal() and os.path.realpath(folder) in ("/dev/fd", f"/proc/{os.getpid()}/fd"):
            return int(last)
        if last in STREAMS and os.path.realpath(folder) == "/dev":
            return STREAMS.index(last)
        if not os.path.islink(name):
            return None
        name = os.path.join(folder, os.readlink(name))
    return None


def standard(name: str, number: int) -> str:
    """`-` if a name leads to the standard stream of that number, or else the name."""
    return "-" if descriptor(name) == number else name


def is_stream(name: str) -> bool:
    """Whether it is `-`, or leads to an open file of this process: nothing that has a name of its own."""
    return name == "-" or descriptor(name) is not None


def refuse_existing(targets: Sequence[str], replace: bool) -> None:
    """LicError if one of these files is there and may not be replaced, or is no file."""
    existing = [target for target in targets if os.path.lexists(target) and not is_stream(target)]
    for target in existing:
        if os.path.exists(target) and not os.path.isfile(target):
            raise LicError(f"{target} is not a file that could be replaced: choose another OUT, or - for stdout")
    if existing and not replace:
        more = f" (and {len(existing) - 1} more)" if len(existing) > 1 else ""
        raise LicError(f"{existing[0]} exists{more}; -f replaces it")


def shortened(name: str) -> str:
    """A file's name as far as it fits into a temporary one."""
    return os.fsdecode(os.fsencode(name)[:LONGEST])


def read_bytes(source: str) -> bytes:
    if source != "-":
        return Path(source).read_bytes()
    if sys.stdin is None:
        raise LicError("stdin is closed")
    return sys.stdin.buffer.read()


def write_bytes(target: str, data: bytes, replace: bool, check: Callable[[bytes], None] | None = None) -> None:
    """Write a whole file or none; LicError if there is one, unless it may be replaced. `check` as below."""
    number = 1 if target == "-" else descriptor(target)
    if number is None:
        refuse_existing([target], replace)
        write_atomically(target, data, check, replace)
        return
    if check is not None:
        check(data)
    if number != 1:
        with open(number, "wb", closefd=False) as file:
            file.write(data)
        return
    if sys.stdout is None:
        raise LicError("stdout is closed")
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def write_atomically(
    path: Path | str, data: bytes | memoryview, check: Callable[[bytes], None] | None = None, replace: bool = True
) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part: temporary name, sync, rename.

    `check` is given what was written, read back, before the file gets its name; if it raises, nothing has changed.
    Without `replace` LicError if there is a file of that name by then, whoever made it.
    """
    path = Path(path)
    temporary = path.with_name(f".{shortened(path.name)}.{os.urandom(4).hex()}.part")
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
        raise LicError(f"{path} exists; -f replaces it") from None
    except OSError:
        return False
    return True
