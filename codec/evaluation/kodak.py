"""The 24 Kodak images, from a local copy or downloaded once; every file is checked against its SHA-256.

    folder = kodak()        # $LIC_KODAK if that is set, else the cache, into which they are downloaded if missing

They were released by Eastman Kodak for unrestricted use. The cache is $XDG_CACHE_HOME/lic/kodak, or ~/.cache/lic/kodak.
kodak.json has for each file its SHA-256, and that of its pixels, by which results recognise the images.
"""

import hashlib
import json
import os
import urllib.request
from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

from codec.errors import LicError
from codec.files import write_atomically

URL = "https://r0k.us/graphics/kodak/kodak/"
HASHES: dict[str, dict[str, str]] = json.loads((Path(__file__).parent / "kodak.json").read_text())


def kodak() -> Path:
    """The folder with the images.

    Raises OSError if a file is missing and cannot be downloaded, LicError if one has the wrong content.
    """
    if given := os.environ.get("LIC_KODAK"):
        folder = Path(given)
        if missing := [name for name in HASHES if not (folder / name).is_file()]:
            raise FileNotFoundError(f"LIC_KODAK={given}: {missing[0]} is not there ({len(missing)} of {len(HASHES)})")
    else:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lic" / "kodak"
        download(folder)
    for name in HASHES:
        _check((folder / name).read_bytes(), name, str(folder / name))
    return folder


def download(folder: Path) -> None:
    """Download the files that a folder lacks, each atomically; raises what `kodak` does."""
    missing = [name for name in HASHES if not (folder / name).exists()]
    for name in tqdm(missing, desc="downloading Kodak", unit="file", disable=None):
        try:
            with urllib.request.urlopen(URL + name, timeout=60) as answer:
                data = answer.read()
        except OSError as error:
            reason = getattr(error, "reason", error)
            raise OSError(
                f"{URL + name} cannot be had ({reason}): put {name} and the other {len(missing) - 1} into {folder}, or "
                "set LIC_KODAK to a folder with all of them"
            ) from None
        _check(data, name, URL + name)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / name, data)


def is_kodak(pixels: Iterable[str]) -> bool:
    """Whether images with these hashes of pixels are exactly the Kodak images."""
    return sorted(pixels) == sorted(hashes["pixels"] for hashes in HASHES.values())


def _check(data: bytes, name: str, where: str) -> None:
    found = hashlib.sha256(data).hexdigest()
    wanted = HASHES[name]["file"]
    if found != wanted:
        raise LicError(
            f"{where} is not Kodak's {name}: its SHA-256 is {found[:16]}..., not {wanted[:16]}...: remove it"
        )
