"""PIL images of any mode to the modes that are coded, and back. Modes that would lose something are refused.

| mode of the image | what is coded | what decompress gives |
|---|---|---|
| RGB, L | as it is | RGB, L |
| RGBA, LA; RGB, L with one transparent colour | colours, and beside them alpha without loss | RGBA, LA |
| P, PA | as RGB; as L if all colours are gray and no profile says RGB; alpha as above | RGB, L, RGBA, LA |
| 1 | as L | L |
| YCbCr | as RGB | RGB |
| CMYK, LAB, HSV, I;16, I, F and any other; samples of more than 8 bits or with a sign | refused: UnsupportedImage | |

Colours under fully transparent pixels are not kept, except where the whole image is kept without loss: before coding
they become averages of the colours near them (`fill`), which take few bits. The orientation of EXIF is applied.
Metadata are in codec/container/metadata.py. Of an animation the current frame is coded.

Pillow silently reads colour samples of 16 bits as 8 bits. `check` looks for that in the file, of a loaded image, too,
if it was opened by its name. A warning names what a file has that is not kept; for all formats to be covered, give
`compress` what Image.open returned, before it is loaded, or let `lic compress` open the file.
"""

import io
import os
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import IO, Any

import numpy as np
from PIL import Image, ImageFile

from codec.container import bitstream, lossless, metadata, original
from codec.container.bitstream import FormatError, Header, Section
from codec.container.found import Found
from codec.errors import LicError

Corners = tuple[int, int, int, int]  # left, top, right, bottom
Paint = Callable[[Header, list[Section], Corners], Image.Image]
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
CODED = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "YCbCr"}
TO_SRGB = "ImageCms.profileToProfile(image, {}, ImageCms.createProfile('sRGB'), outputMode='RGB')"
DEEP = (
    "more than 8 bits a sample, of which 8 would be kept: to give up the others, run `magick IN -depth 8 OUT.png`, "
    "or for one channel Image.fromarray((numpy.asarray(image) >> 8).astype('uint8'))"
)
UNSCALED = "samples without a defined range: scale them to 0..255, then image.convert('L')"
REASONS = {
    "LAB": "the way to RGB needs a profile: " + TO_SRGB.format("ImageCms.createProfile('LAB')"),
    "HSV": "the way to RGB rounds: take it yourself with image.convert('RGB')",
    "I": UNSCALED,
    "F": UNSCALED,
}
CMYK = "its colours depend on the inks: "
CMYK_WITH_PROFILE = CMYK + "convert by the embedded profile, " + TO_SRGB.format("io.BytesIO(image.info['icc_profile'])")
CMYK_WITHOUT = (
    CMYK
    + "no profile is embedded, so convert by that of the printer, or roughly: `magick IN -colorspace sRGB OUT.png`, "
    "image.convert('RGB')"
)
DEEP_RAW_MODE = re.compile(r";(16|32)[LBN]$")  # Pillow's names for samples of that many bits; RGB;16 is 5 + 6 + 5
SIGNED = "samples from -128 to 127, which Pillow reads as others: add 128, and write them without a sign"
BITS_PER_SAMPLE, SAMPLE_FORMAT = 258, 339  # tags of TIFF
GRAY_UNITS = {"L;2": 85, "L;4": 17}  # a level of a gray PNG of few bits, by Pillow's name for it, as one of 255
MP_ENTRIES = 0xB002  # of the index of a JPEG of several pictures (CIPA DC-007)
NAMED = 12  # of what is lost


class UnsupportedImage(LicError):
    """An image that cannot be coded; the message has the reason and the conversion to use."""


@dataclass(frozen=True)
class Source:
    """An image ready to be coded."""

    image: Image.Image  # upright, of a mode in bitstream.MODES
    info: dict[str, Any]  # its metadata

    @cached_property
    def colours(self) -> Image.Image:
        """The input of the network: RGB or L, smooth under transparent pixels."""
        return fill(self.image) if self.has_alpha else self.image

    @property
    def has_alpha(self) -> bool:
        return self.image.mode in ("LA", "RGBA")

    @cached_property
    def metadata(self) -> list[Section]:
        """The ancillary sections of the metadata."""
        return metadata.pack(self.info)

    @cached_property
    def exact(self) -> list[Section]:
        """The sections of a lossless file; an empty list if the image does not look drawn."""
        if not lossless.looks_drawn(self.image):
            return []
        return [Section(bitstream.LOSSLESS, lossless.encode(self.image)), *self.metadata]

    @cached_property
    def beside(self) -> list[Section]:
        """The sections beside those of the networks: alpha plane and metadata."""
        alpha = [Section(bitstream.ALPHA, lossless.encode_plane(self.image.getchannel("A")))] if self.has_alpha else []
        return alpha + self.metadata


def prepare(image: Image.Image) -> Source:
    """The source of an image; UnsupportedImage for a mode that is not coded, TypeError if it is no PIL image.

    Warns of what its file has that is not kept.
    """
    if not isinstance(image, Image.Image):
        raise TypeError(f"a PIL image is wanted, not {type(image).__name__}: Image.open(path), Image.fromarray(array)")
    check(image)
    if lost := load(image):
        warnings.warn(not_kept(lost), stacklevel=4)  # where compress was called
    info = metadata.of(image)
    if (turn := metadata.orientation(info)) in TURNS:
        image, info = image.transpose(TURNS[turn]), metadata.without_orientation(info)
    return Source(_convert(image), info)


def decode(data: bytes, max_pixels: int, region: tuple[int, int, int, int] | None, paint: Paint) -> Image.Image:
    """The image of a file, or a region (left, top, width, height) of it, with its metadata in `info`.

    `paint` decodes the colours with a model; it is not called for an image kept without loss. FormatError if the file
    is damaged or has more than `max_pixels`, LicError if the region is not inside the image.
    """
    header, sections = bitstream.read(data, max_pixels)
    left, top, width, height = region or (0, 0, header.width, header.height)
    if min(left, top, width - 1, height - 1, header.width - left - width, header.height - top - height) < 0:
        size = f"{header.width}x{header.height}"
        raise LicError(f"the region {left},{top},{width},{height} (left, top, width, height) is not inside {size}")
    image, alpha, info = unpack(header, sections)
    corners = left, top, left + width, top + height
    if image is None:
        image = paint(header, sections, corners)
        if alpha is not None:
            image.putalpha(alpha.crop(corners) if region else alpha)
    elif region:
        image = image.crop(corners)
    image.info = info
    return image


def unpack(header: Header, sections: list[Section]) -> tuple[Image.Image | None, Image.Image | None, dict[str, Any]]:
    """What of a file needs no model: the image if it was kept without loss, the alpha plane (L), and the metadata.

    FormatError if one is damaged or does not fit the header's mode.
    """
    info = metadata.unpack(sections, header.mode in metadata.GRAY)
    tags, size = [section.tag for section in sections], (header.width, header.height)
    if bitstream.LOSSLESS in tags:
        if sum(tag < 128 for tag in tags) != 1:
            raise FormatError("damaged: a lossless section is not alone")
        return lossless.decode(bitstream.find(sections, bitstream.LOSSLESS), size, header.mode), None, info
    if header.mode in ("LA", "RGBA"):
        return None, lossless.decode_plane(bitstream.find(sections, bitstream.ALPHA), size), info
    if bitstream.ALPHA in tags:
        raise FormatError(f"an alpha plane, which mode {header.mode} does not have")
    return None, None, info


def check(image: Image.Image) -> None:
    """UnsupportedImage with the reason if an image cannot be coded; most reliable before it is loaded."""
    if 0 in image.size:
        raise UnsupportedImage("the image has no pixels")
    if image.mode == "CMYK":
        raise UnsupportedImage(f"mode CMYK: {CMYK_WITH_PROFILE if image.info.get('icc_profile') else CMYK_WITHOUT}")
    if image.mode.startswith("I;16"):
        raise UnsupportedImage(f"mode {image.mode}: {DEEP}")
    if image.mode not in CODED:
        reason = REASONS.get(image.mode, "convert it first, with image.convert('RGB') or image.convert('RGBA')")
        raise UnsupportedImage(f"mode {image.mode}: {reason}")
    if hasattr(image, "tag_v2") and 2 in np.atleast_1d(image.tag_v2.get(SAMPLE_FORMAT, 1)):
        raise UnsupportedImage(f"mode {image.mode}: {SIGNED}")
    check_depth(image)


def check_depth(image: Image.Image) -> None:
    """UnsupportedImage if the file of an image has more than 8 bits a sample, of which Pillow would silently keep 8.

    The file of an image that is loaded is opened once more, if it has a name.
    """
    if is_deep(image):
        raise UnsupportedImage(f"mode {image.mode}: {DEEP}")


def load(image: Image.Image) -> list[str]:
    """Load an image, add to its `info` what Pillow does not read, and return the names of what cannot be kept.

    The file of an image that is loaded is opened once more, if it has a name, and if this was not done before.
    """
    if (file := _unread(image)) is None:
        image.load()
        found = _look_again(image)
        image.info |= found.info | image.info
        image.asked = True
        return list(found.lost)
    found = original.look(file, image.format)
    # Pillow scales a gray PNG of 2 or 4 bits to 8, but not its transparent colour
    unit = next((GRAY_UNITS.get(str(tile.args), 1) for tile in image.tile), 1)
    # it turns a TIFF, but not its resolution
    turned = hasattr(image, "tag_v2") and image.getexif().get(metadata.ORIENTATION, 1) >= 5
    lost = list(found.lost) + (metadata.lost_of_tiff(image) if hasattr(image, "tag_v2") else [])
    image.load()
    if image.format == "PNG" and isinstance(image.info.get("transparency"), int):
        image.info["transparency"] *= unit
    if turned and "dpi" in image.info:
        image.info["dpi"] = image.info["dpi"][::-1]
    if "icc_profile" in image.info and not image.info["icc_profile"]:  # of a PNG, damaged
        lost.append("ICC profile, which is damaged")
        del image.info["icc_profile"]
    image.info |= found.info | image.info
    image.asked = True
    return lost


def not_kept(lost: list[str]) -> str:
    """A line that names what is lost."""
    more = f" and {len(lost) - NAMED} more" if len(lost) > NAMED else ""
    return " ".join(f"not kept: {', '.join(lost[:NAMED])}{more}".split())


def has_more(image: Image.Image) -> bool:
    """Whether an image file has several frames or pages, other than those that a phone adds to a photograph, such as a
    gain map or a preview.
    """
    if image.format == "MPO":
        kinds = [str(entry["Attribute"]["MPType"]) for entry in image.mpinfo[MP_ENTRIES][1:]]
        return any(kind.startswith("Multi-Frame") for kind in kinds)
    return getattr(image, "is_animated", False)


def is_deep(image: Image.Image) -> bool:
    """Whether the file of an image has more than 8 bits a sample, by what Pillow or the file says."""
    if hasattr(image, "tag_v2"):
        return bool(np.max(image.tag_v2.get(BITS_PER_SAMPLE, 8)) > 8)
    if (file := _unread(image)) is None:
        return _look_again(image).deep
    for tile in image.tile:
        raw_mode, *more = tile.args if isinstance(tile.args, tuple) else (tile.args,)
        of_netpbm = tile.codec_name.startswith("ppm") and more and more[-1] > 255  # its largest value
        if of_netpbm or tile.codec_name == "SGI16" or DEEP_RAW_MODE.search(str(raw_mode)):
            return True
    return original.look(file, image.format).deep


def _unread(image: Image.Image) -> IO[bytes] | None:
    """The open file of an image that is not loaded yet; None for other images."""
    return getattr(image, "fp", None) if getattr(image, "tile", ()) or image.format == "WEBP" else None


def _look_again(image: Image.Image) -> Found:
    """The findings about the file of a loaded image, which is opened anew by its name, or still open in Pillow."""
    if not isinstance(image, ImageFile.ImageFile) or image.format in (None, "LIC") or hasattr(image, "asked"):
        return Found()
    file = getattr(image, "_fp", None)
    if isinstance(file, io.BytesIO) and not file.closed:
        return original.look(file, image.format)
    if not image.filename or not os.path.isfile(image.filename):
        return Found()
    with warnings.catch_warnings(action="ignore"), Image.open(image.filename) as again:
        if (again.format, again.size) != (image.format, image.size):
            return Found()
        found = original.look(again.fp, again.format)
        found.deep |= is_deep(again)
        return found


def _convert(image: Image.Image) -> Image.Image:
    """A loaded image in one of the modes of a file."""
    transparent = image.has_transparency_data
    match image.mode:
        case "RGBA" | "LA":
            return image
        case "P" | "PA":
            image = image.convert("RGBA" if transparent else "RGB")
            return _as_gray(image) if _is_gray(image) else image
        case "1" | "L":
            mode = "LA" if transparent else "L"
        case _:
            mode = "RGBA" if transparent else "RGB"
    return image if image.mode == mode else image.convert(mode)


def _is_gray(image: Image.Image) -> bool:
    """Whether the channels are equal and there is no ICC profile of RGB."""
    if image.info.get("icc_profile", b"")[16:20] == b"RGB ":
        return False
    red = image.getchannel("R").tobytes()
    return red == image.getchannel("G").tobytes() and red == image.getchannel("B").tobytes()


def _as_gray(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image.getchannel("R")
    return Image.merge("LA", (image.getchannel("R"), image.getchannel("A")))


def fill(image: Image.Image) -> Image.Image:
    """The colours (RGB or L) of an RGBA or LA image, smooth ones where it is fully transparent.

    A transparent pixel gets the average of the visible pixels in the smallest block of 2^n x 2^n pixels around it that
    has some, interpolated: the pull-push algorithm of Gortler, Grzeszczuk, Szeliski and Cohen, "The Lumigraph" (1996).
    """
    seen = image.getchannel("A").point(lambda alpha: 255 if alpha else 0)
    if seen.getextrema() == (255, 255) or max(image.size) == 1:
        return image.convert(image.mode.removesuffix("A"))
    known = image.copy()
    known.putalpha(seen)
    known = known.reduce(2)  # averages by alpha: half the size, and fewer holes
    filled = fill(known).resize(image.size, Image.Resampling.BILINEAR)
    filled.paste(image, mask=seen)
    return filled
