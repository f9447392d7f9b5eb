"""Image files opened for the encoder, and the next one in a thread while one is at work."""

import io
import os
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Generic, TypeVar

from codec.container import bitstream
from codec.errors import LicError
from codec.files import is_stream, read_bytes

if TYPE_CHECKING:
    from PIL import Image

BEGINNINGS = {  # first bytes of files, by Pillow's names of formats
    "PNG": (b"\x89PNG\r\n\x1a\n",), "JPEG": (b"\xff\xd8\xff",), "WEBP": (b"RIFF",), "TIFF": (b"II*\0", b"MM\0*"),
    "BMP": (b"BM",), "GIF": (b"GIF8",), "AVIF": (b"\0\0\0",),
}  # fmt: skip

LARGEST = 2**24  # bytes of a file: what a larger one becomes in memory is not held beside another, by hand

Opened = TypeVar("Opened")


def open_image(source: str, max_pixels: int, strict: bool) -> tuple["Image.Image", list[str]]:
    """A loaded PIL image that can be coded, and sentences on what will be lost: further frames or pages, metadata.

    LicError if the file cannot be coded, or if `strict` and something would be lost; OSError if it cannot be read.
    """
    from PIL import Image, UnidentifiedImageError

    from codec.container import found, modes, original

    Image.MAX_IMAGE_PIXELS = max_pixels  # Pillow refuses twice that, also of an image inside an icon
    data = read_bytes(source)
    if not data:
        raise LicError("the file is empty")
    damaged = []
    if data.startswith(BEGINNINGS["PNG"]):
        if original.has_damaged_pixels(data):
            raise LicError("damaged image: the checksum of its pixels is wrong")
        data, damaged = original.without_damaged_chunks(data)
    try:
        with warnings.catch_warnings(action="ignore"):  # of damage that does not matter
            image = Image.open(io.BytesIO(data))
            if excess := bitstream.beyond(*image.size, max_pixels):
                raise LicError(excess)
            modes.check(image)
            has_more = modes.has_more(image)
            lost = damaged + modes.load(image)
    except UnidentifiedImageError:
        if data.startswith(BEGINNINGS["JPEG"]) and (original.bits_of_jpeg(data) or 8) > 8:
            raise LicError(modes.DEEP) from None
        raise LicError("not an image that Pillow can read") from None
    except Image.DecompressionBombError:
        raise LicError(f"its pixels are more than the limit of {max_pixels}") from None
    except LicError:
        raise
    except Exception as error:  # each decoder of Pillow raises classes of its own
        raise LicError(f"damaged image: {error}") from error
    if has_more and strict:
        raise LicError("it has more than one frame or page, which --strict refuses; without it the first is coded")
    if strict and (strictly := [name for name in lost if name not in found.ASIDE]):
        raise LicError(f"{modes.not_kept(strictly)}, which --strict refuses; without it the image is coded")
    notes = ["it has more than one frame or page, only the first is coded"] if has_more else []
    return image, notes + ([modes.not_kept(lost)] if lost else [])


class Ahead(Generic[Opened]):
    """Opens files by name, one at most before it is taken."""

    def __init__(self, open: Callable[[str], Opened]):
        self.open, self.reader = open, ThreadPoolExecutor(1)
        self.begun: tuple[str, int, Future[Opened]] | None = None  # name, and when it was changed, before it was opened

    def expect(self, source: str) -> None:
        """Begin with a file, unless it is a stream or large."""
        if self.begun or is_stream(source) or not os.path.isfile(source):
            return
        about = os.stat(source)
        if about.st_size <= LARGEST:
            self.begun = source, about.st_mtime_ns, self.reader.submit(self.open, source)

    def take(self, source: str) -> Opened:
        """What opening the file gives, as it is now; raises what it raises."""
        if not self.begun or self.begun[0] != source:
            return self.open(source)
        (_, changed, begun), self.begun = self.begun, None
        return begun.result() if os.stat(source).st_mtime_ns == changed else self.open(source)
