"""Files: finding images below folders, and writing files atomically. Imports nothing heavy.

A file is written under a temporary name, synced and renamed. Only `kill -9` or a power cut can leave a temporary file;
its name contains that of the final file, and --resume removes it when that file is made again.
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
TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{8}\.part", re.DOTALL)  # name of a file before it is complete
LONGEST = 255 - len("..01234567.part")  # bytes of a file's name that fit into a temporary one
OUTPUTS = (("config.toml", "log.jsonl"), ("rows.jsonl",))  # files that mark a training's folder, and an evaluation's
STREAMS = ("stdin", "stdout", "stderr")  # in /dev
LINKS = 40  # symbolic links that are followed, as many as Linux follows

SAMPLES = ("astronaut", "coffee", "chelsea", "motorcycle")


def free_folder(start: str) -> Path:
    """The first of START001, START002, ... that does not exist."""
    return next(path for n in itertools.count(1) if not (path := Path(f"{start}{n:03d}")).exists())


def below(folder: str | Path, extensions: set[str], others: Counter | None = None) -> Iterator[str]:
    """Names, relative to the folder, of all files in and below it with one of these extensions (lower case).

    Sorted, the files of a folder before those below it. Links to folders are followed, but not in circles. Sockets and
    the like are left out; broken links are not. `others` counts the files that are left out, by extension. Subfolders
    that cannot be listed come last, so that opening them reports the error. OSError if the folder itself cannot be
    listed.
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
    """Whether a folder is the output of a training or an evaluation, whose images are copies of others."""
    there = {name for names in OUTPUTS for name in names if os.path.exists(os.path.join(folder, name))}
    return any(set(names) <= there for names in OUTPUTS)


def find_images(folder: Path | str) -> list[Path]:
    """All image files below a folder, sorted by path, without the output of trainings and evaluations.

    FileNotFoundError if there are none, LicError if the folder itself lies in such output.
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
    """The file descriptor that a name such as /dev/stdout or /dev/fd/3, or a link to one, stands for; else None.

    On Linux these names are links to the open file, and must not be taken for it.
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
    """`-` if a name stands for the standard stream of that number, otherwise the name."""
    return "-" if descriptor(name) == number else name


def is_stream(name: str) -> bool:
    """Whether a name is `-`, or stands for an open file of this process."""
    return name == "-" or descriptor(name) is not None


def refuse_existing(targets: Sequence[str], replace: bool) -> None:
    """LicError if one of these files exists and `replace` is false, or is not a regular file."""
    existing = [target for target in targets if os.path.lexists(target) and not is_stream(target)]
    for target in existing:
        if os.path.exists(target) and not os.path.isfile(target):
            raise LicError(f"{target} is not a file that could be replaced: choose another OUT, or - for stdout")
    if existing and not replace:
        more = f" (and {len(existing) - 1} more)" if len(existing) > 1 else ""
        raise LicError(f"{existing[0]} exists{more}; -f replaces it")


def shortened(name: str) -> str:
    """A file's name, cut to what fits into a temporary name."""
    return os.fsdecode(os.fsencode(name)[:LONGEST])


def read_bytes(source: str) -> bytes:
    """The content of a file, or of stdin for `-`."""
    if source != "-":
        return Path(source).read_bytes()
    if sys.stdin is None:
        raise LicError("stdin is closed")
    return sys.stdin.buffer.read()


def write_bytes(target: str, data: bytes, replace: bool, check: Callable[[bytes], None] | None = None) -> None:
    """Write a file atomically, or to a stream; LicError if it exists and `replace` is false.

    `check` as for write_atomically.
    """
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
    """Write a file so that readers see the old content or the new, nothing between: temporary name, sync, rename.

    `check` gets the bytes read back from disk before the file gets its name; if it raises, nothing has changed.
    LicError if `replace` is false and a file of that name exists by then.
    """
    path = Path(path)
    temporary = path.with_name(f".{shortened(path.name)}.{os.urandom(4).hex()}.part")
    try:
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except FileNotFoundError:
            raise LicError(f"{path}: there is no folder {path.parent}") from None
        except OSError as error:  # with no file name, or the temporary one
            raise type(error)(error.errno, error.strerror, str(path)) from None
        if check is not None:
            check(temporary.read_bytes())
        if replace or not _link(temporary, path):
            os.replace(temporary, path)
        else:
            temporary.unlink()
    except BaseException:
        with contextlib.suppress(OSError):  # the first error is the one to report
            temporary.unlink()
        raise


def _link(temporary: Path, path: Path) -> bool:
    """Give a file its name, LicError if that exists; False if the file system has no hard links."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise LicError(f"{path} exists; -f replaces it") from None
    except OSError:
        return False
    return True
