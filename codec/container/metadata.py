"""Metadata of images, and how they are kept: ICC profile, EXIF, XMP, resolution and CICP.

In Python they are `image.info`, with Pillow's keys and types: icc_profile, exif and xmp as bytes, dpi as two floats;
and cicp, four code points (codec/container/colour.py). In a .lic file each is an ancillary section
(codec/container/bitstream.py). Gamma and primaries that a file gives as numbers become an ICC profile. Beside cicp
`info` has an ICC profile of the same meaning, where one exists, for programs that do not know cicp; it is not stored.

Nothing else is kept. What is lost is reported by name, by codec/container/original.py and `lost_of_tiff`.

EXIF and XMP are kept byte for byte. Only if the image was turned upright the orientation is removed, from EXIF's first
directory (CIPA DC-008, "Exchangeable image file format", 2023, section 4.6), so that it is not turned again.
"""

import contextlib
import functools
import io
import math
import re
import struct
import warnings
import zlib
from typing import Any

from PIL import ExifTags, Image, TiffTags
from PIL.PngImagePlugin import PngInfo

from codec.container import bitstream, boxes, colour
from codec.container.bitstream import FormatError, Section
from codec.container.found import LARGEST
from codec.errors import LicError

KEYS = {
    bitstream.ICC: "icc_profile", bitstream.EXIF: "exif", bitstream.XMP: "xmp", bitstream.DPI: "dpi",
    bitstream.CICP: "cicp",
}  # fmt: skip
NAMES = {key: bitstream.METADATA[tag] for tag, key in KEYS.items()}
MOST_BYTES = {"dpi": 16, "cicp": 4}  # two doubles; four code points
GRAY = ("1", "L", "LA")
IN_JPEG = {"exif": 65533, "xmp": 65504}  # bytes that fit into a segment
LARGEST_DPI = 1e7  # a pixel of 2.5 nanometres
HELD = {  # by Pillow's name of the format
    "PNG": set(NAMES), "JPEG": {"icc_profile", "exif", "xmp", "dpi"}, "TIFF": {"icc_profile", "exif", "xmp", "dpi"},
    "WEBP": {"icc_profile", "exif", "xmp"}, "AVIF": {"icc_profile", "exif", "xmp", "cicp"}, "BMP": {"dpi"},
    "DIB": {"dpi"},
}  # fmt: skip
SOURCES = {*NAMES, "XML:com.adobe.xmp", "Raw profile type exif", "gamma", "chromaticity"}  # keys that `of` reads
HOLD_ALPHA = {"PNG", "TIFF", "WEBP", "AVIF", "JPEG2000", "TGA", "ICO", "DDS", "QOI", "SGI", "IM"}
LARGEST_SIDE = {"JPEG": 65500, "MPO": 65500, "WEBP": 16383, "GIF": 65535, "TGA": 65535}  # pixels
COLOURS_OF_GIF = 256
ICONS = {"ICO", "ICNS"}  # what Pillow shrinks to the sizes that they have
PREFIX = b"Exif\0\0"  # of EXIF in a JPEG; Pillow hands it on
BYTE_ORDER = {b"II*\0": "little", b"MM\0*": "big"}  # by the first four bytes behind it
ORIENTATION, XMP_TAG, RESOLUTION_TAG, SAMPLES_PER_PIXEL = 0x0112, 700, 282, 277
TRANSFER_FUNCTION, WHITE_POINT, PRIMARIES = 301, 318, 319  # tags of TIFF
GAMMA_OF_TIFF = 2.2  # where there are primaries and no transfer function (TIFF 6.0, section 20)
LOSSY_QUALITY = dict.fromkeys(("JPEG", "MPO", "PDF", "WEBP", "AVIF"), 95)  # Pillow's own loses as much as a codec
XMP_ORIENTATION = re.compile(  # with the space before it, of which there may be much: looked for where it begins
    rb'(?<!\s)\s*(?:tiff:Orientation\s*=\s*"(\d)"|<tiff:Orientation>\s*(\d)\s*</tiff:Orientation>)'
)
DESCRIPTIVE = (  # what a TIFF says about the picture and not about its own bytes
    *(ExifTags.Base[name] for name in ("ImageDescription", "Make", "Model", "Software", "DateTime", "Artist")),
    ExifTags.Base.Copyright, *(ExifTags.Base[name] for name in ("DocumentName", "PageName", "HostComputer")),
    33550, 33922, 34264, 34735, 34736, 34737, 42112, 42113,  # GeoTIFF (OGC 19-008r4), and GDAL's
)  # fmt: skip
STORED = {  # tags of TIFF that say how pixels are stored, and what becomes another kind of metadata
    *range(254, 260), 262, 263, 264, 265, 266, 273, 274, *range(277, 285), 292, 293, 296, 297, 317, 318, 319, 320, 321,
    *range(322, 326), 332, 334, 336, 338, 339, 340, 341, 347, *range(512, 516), 519, 520, 521, *range(529, 533), 700,
    34665, 34675, 34853,
}  # fmt: skip
NAMES_OF_TAGS = {33723: "IPTC", 34377: "Photoshop resources"}


def of(image: Image.Image) -> dict[str, Any]:
    """The metadata of a loaded image, with the keys and types that a decoded one has."""
    icc = image.info.get("icc_profile") or _profile(image)
    cicp = colour.checked(image.info.get("cicp"))
    found = {"icc_profile": icc, "exif": _exif(image), "xmp": _xmp(image), "dpi": _dpi(image), "cicp": cicp}
    return explained({key: value for key, value in found.items() if value}, image.mode in GRAY)


def explained(info: dict[str, Any], gray: bool) -> dict[str, Any]:
    """`info` with the ICC profile of its cicp added, where it has cicp and no profile."""
    if "cicp" in info and "icc_profile" not in info and (made := colour.of_cicp(info["cicp"], gray)):
        return {"icc_profile": made} | info
    return info


def _profile(image: Image.Image) -> bytes | None:
    """The ICC profile of gamma and primaries in a PNG or TIFF; None without them, or if it names a colour space."""
    gray = image.mode in GRAY
    if hasattr(image, "tag_v2"):
        white, primaries = image.tag_v2.get(WHITE_POINT), image.tag_v2.get(PRIMARIES)
        if not primaries or not white or TRANSFER_FUNCTION in image.tag_v2:
            return None
        return colour.of_numbers(GAMMA_OF_TIFF, (*white, *primaries), gray)
    gamma, chromaticities = image.info.get("gamma"), image.info.get("chromaticity")
    if "srgb" in image.info or "cicp" in image.info or not (gamma or chromaticities):
        return None
    return colour.of_numbers(1 / gamma if gamma else None, chromaticities, gray)


def lost_of_tiff(image: Image.Image) -> list[str]:
    """Names of the channels and tags of a TIFF that are not kept."""
    further = image.tag_v2.get(SAMPLES_PER_PIXEL, 1) - len(image.getbands())
    return [f"further channels ({further})"] * (further > 0) + [
        NAMES_OF_TAGS.get(tag) or TiffTags.lookup(tag).name.replace("unknown", f"tag {tag}")
        for tag in sorted(image.tag_v2)
        if tag not in STORED and tag not in DESCRIPTIVE
    ]


def _exif(image: Image.Image) -> bytes:
    """EXIF as Pillow found it, as ImageMagick stores it in a PNG's text, or collected from the tags of a TIFF."""
    exif = image.info.get("exif", b"")
    if not exif and (raw := image.info.get("Raw profile type exif")):
        with contextlib.suppress(ValueError):  # text that only says so
            exif = bytes.fromhex("".join(raw.split("\n")[3:]))
    elif not exif and hasattr(image, "tag_v2"):
        tags = Image.Exif()
        with warnings.catch_warnings(action="ignore"):  # of tags that are not as they should be
            tags.update(_descriptive(image.getexif()))
        exif = tags.tobytes() if len(tags) else b""
    exif = exif.removeprefix(PREFIX)
    return PREFIX + exif if exif else b""


def _descriptive(exif: Image.Exif) -> dict[int, Any]:
    """The DESCRIPTIVE tags, and the Exif and GPS directories without directories inside them."""
    tags = {tag: exif[tag] for tag in DESCRIPTIVE if tag in exif}
    for directory in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
        if inner := {tag: value for tag, value in exif.get_ifd(directory).items() if tag != ExifTags.IFD.Interop}:
            tags[directory] = inner
    return tags


def _xmp(image: Image.Image) -> bytes:
    xmp = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or b""
    xmp = xmp.encode() if isinstance(xmp, str) else xmp
    if hasattr(image, "tag_v2") and orientation({"xmp": xmp}) != 1:  # Pillow turns a TIFF as it loads it
        return XMP_ORIENTATION.sub(b"", xmp)
    return xmp


def _dpi(image: Image.Image) -> tuple[float, float] | None:
    """Dots per inch, horizontal and vertical; None if the file gives no resolution in real units."""
    if hasattr(image, "tag_v2") and RESOLUTION_TAG not in image.tag_v2:
        return None  # Pillow would say 1
    if image.format in ("JPEG", "MPO") and not image.info.get("jfif_unit") and RESOLUTION_TAG not in image.getexif():
        return None  # Pillow would say 72
    x, y = map(float, image.info.get("dpi", (0, 0)))
    return (x, y) if 0 < x <= LARGEST_DPI and 0 < y <= LARGEST_DPI else None


# ---- orientation ----


def orientation(info: dict[str, Any]) -> int:
    """The orientation, 1 to 8 as in EXIF, 1 being upright; from XMP where EXIF has none."""
    exif = info.get("exif", b"").removeprefix(PREFIX)
    if entry := _orientation_entry(exif):
        order, place, _ = entry
        kind = int.from_bytes(exif[place + 2 : place + 4], order)
        value = int.from_bytes(exif[place + 8 : place + (12 if kind == 4 else 10)], order)  # a long, or a short
    else:
        match = XMP_ORIENTATION.search(info.get("xmp", b""))
        value = int(match[1] or match[2]) if match else 1
    return value if 1 <= value <= 8 else 1


def without_orientation(info: dict[str, Any]) -> dict[str, Any]:
    """The metadata of the image after it was turned upright; dpi are swapped if the axes are."""
    upright = dict(info)
    if "exif" in info:
        upright["exif"] = PREFIX + _remove_entry(info["exif"].removeprefix(PREFIX))
    if "xmp" in info:
        upright["xmp"] = XMP_ORIENTATION.sub(b"", info["xmp"])
    if "dpi" in info and orientation(info) >= 5:
        upright["dpi"] = info["dpi"][::-1]
    return upright


def _orientation_entry(exif: bytes) -> tuple[str, int, int] | None:
    """Byte order, position of the orientation and end of the first directory; None if there is no orientation."""
    order = BYTE_ORDER.get(exif[:4])
    if order is None:
        return None
    first = int.from_bytes(exif[4:8], order)
    count = int.from_bytes(exif[first : first + 2], order)
    end = first + 2 + 12 * count + 4  # behind the entries, where the next directory begins
    if first < 8 or end > len(exif):
        return None
    for place in range(first + 2, end - 4, 12):
        if int.from_bytes(exif[place : place + 2], order) == ORIENTATION:
            return order, place, end
    return None


def _remove_entry(exif: bytes) -> bytes:
    """EXIF without the orientation: the entries behind it move up, all other bytes keep their positions."""
    entry = _orientation_entry(exif)
    if entry is None:
        return exif
    order, place, end = entry
    first = int.from_bytes(exif[4:8], order)
    count = int.from_bytes(exif[first : first + 2], order) - 1
    rest = exif[place + 12 : end] + bytes(12)
    return exif[:first] + count.to_bytes(2, order) + exif[first + 2 : place] + rest + exif[end:]


# ---- sections of a .lic file ----


def pack(info: dict[str, Any]) -> list[Section]:
    """Metadata as sections of a file; LicError if one is larger than LARGEST."""
    sections = []
    for tag, key in KEYS.items():
        if key in info and not (key == "icc_profile" and _is_made(info)):
            raw = struct.pack("<dd", *info[key]) if key == "dpi" else bytes(info[key])
            raw = raw.removeprefix(PREFIX) if key == "exif" else raw
            if len(raw) > LARGEST:
                raise LicError(f"{NAMES[key]} of {len(raw)} bytes, above the limit of {LARGEST}: remove it first")
            deflated = zlib.compress(raw, 9)
            sections.append(Section(tag, b"\1" + deflated if len(deflated) < len(raw) else b"\0" + raw))
    return sections


def _is_made(info: dict[str, Any]) -> bool:
    """Whether the ICC profile was made from cicp."""
    return "cicp" in info and info["icc_profile"] in [colour.of_cicp(info["cicp"], gray) for gray in (False, True)]


def unpack(sections: list[Section], gray: bool) -> dict[str, Any]:
    """The inverse of `pack`, for a gray or colour image; FormatError for damaged sections."""
    info = {}
    for tag, key in KEYS.items():
        if any(section.tag == tag for section in sections):
            raw = _inflate(bitstream.find(sections, tag), NAMES[key], MOST_BYTES.get(key, LARGEST))
            info[key] = FORMS[key](raw) if key in FORMS else raw
    return explained(info, gray)


def _inflate(payload: bytes, name: str, largest: int) -> bytes:
    stored, data = payload[:1] == b"\0", payload[1:]
    if not stored:
        if payload[:1] != b"\1":
            raise FormatError(f"damaged: {name} is stored in an unknown way")
        inflater = zlib.decompressobj()
        try:
            data = inflater.decompress(data, largest + 1)
        except zlib.error as error:
            raise FormatError(f"damaged: {name}: {error}") from error
        if len(data) <= largest and (not inflater.eof or inflater.unused_data):
            raise FormatError(f"damaged: {name} is not one whole zlib stream")
    if len(data) > largest:
        raise FormatError(f"damaged: {name} of more than {largest} bytes")
    return data


def _resolution(raw: bytes) -> tuple[float, float]:
    if len(raw) != MOST_BYTES["dpi"]:
        raise FormatError(f"damaged: DPI of {len(raw)} bytes instead of {MOST_BYTES['dpi']}")
    x, y = struct.unpack("<dd", raw)
    if not all(math.isfinite(value) and 0 < value <= LARGEST_DPI for value in (x, y)):
        raise FormatError(f"damaged: a resolution of {x} x {y} dots per inch")
    return x, y


def _code_points(raw: bytes) -> colour.Cicp:
    if (cicp := colour.checked(raw)) is None:
        raise FormatError(f"damaged: CICP of {len(raw)} bytes, {raw.hex()}")
    return cicp


FORMS = {"exif": PREFIX.__add__, "dpi": _resolution, "cicp": _code_points}  # bytes of a section -> what `info` has


# ---- other image files ----


@functools.cache
def _holds_gray(form: str) -> bool:
    """Whether Pillow writes a gray image of a format as one: in RGB no profile of gray goes with it."""
    packed = io.BytesIO()
    Image.new("L", (1, 1)).save(packed, form)
    return Image.open(packed).mode in GRAY


def save(image: Image.Image, form: str) -> tuple[bytes, list[str]]:
    """A decoded image as a file of Pillow's format `form`, and the names of the metadata that it cannot hold.

    LicError if the format cannot hold the alpha plane or an image of that size, OSError or LicError if Pillow refuses
    the image.
    """
    if image.mode in ("LA", "RGBA") and form not in HOLD_ALPHA:
        raise LicError(f"{form} cannot hold the alpha plane of mode {image.mode}: write PNG, TIFF or WebP instead")
    if max(image.size) > LARGEST_SIDE.get(form, math.inf):
        raise LicError(f"{form} cannot hold {image.width}x{image.height} pixels: write PNG instead")
    held = HELD.get(form, set())
    if form == "JPEG" and max(image.info.get("dpi", (0,))) > 0xFFFF:
        held = held - {"dpi"}
    if form == "JPEG":
        held = held - {key for key in IN_JPEG if len(image.info.get(key, b"")) > IN_JPEG[key]}
    if "icc_profile" in held and image.info.get("icc_profile", b"")[16:20] == b"GRAY" and not _holds_gray(form):
        held = held - {"icc_profile"}
    if form == "AVIF" and not (image.info.get("cicp") or (1,))[-1]:  # its range is that of YCbCr
        held = held - {"cicp"}
    if form in ("TIFF", "AVIF") and image.info.get("exif", b"")[6:10] not in BYTE_ORDER:  # which Pillow reads for them
        held = held - {"exif"}
    if form == "AVIF" and "exif" in image.info and "exif" in held:
        try:
            with warnings.catch_warnings(action="error"):
                Image.new("RGB", (1, 1)).save(io.BytesIO(), form, exif=image.info["exif"])
        except Exception:  # as below
            held = held - {"exif"}
    options = {"icc_profile": None} | {key: value for key, value in image.info.items() if key in held}
    if form in ("BMP", "DIB"):
        options.setdefault("dpi", (0, 0))  # Pillow would say 96
    if form in LOSSY_QUALITY:
        options["quality"] = LOSSY_QUALITY[form]
    cicp = options.pop("cicp", None)
    if form == "PNG":
        options["pnginfo"] = PngInfo()
        if cicp:
            options["pnginfo"].add(b"cICP", bytes(cicp))
        if "xmp" in options:
            options["pnginfo"].add_itxt("XML:com.adobe.xmp", options.pop("xmp"))
    if form == "TIFF":
        tags = Image.Exif()
        try:
            with warnings.catch_warnings(action="ignore"):
                tags.load(options.pop("exif", b""))
                tags = _descriptive(tags)
                Image.new("L", (1, 1)).save(io.BytesIO(), form, tiffinfo=tags)
        except Exception:  # whatever Pillow meets in EXIF that is damaged
            held, tags = held - {"exif"}, {}
        options["tiffinfo"] = tags | ({XMP_TAG: options.pop("xmp")} if "xmp" in options else {})
    packed = io.BytesIO()
    try:
        image.save(packed, form, compress_level=1, **options)
    except ValueError as error:
        raise LicError(f"{form} cannot hold mode {image.mode} ({error}): write PNG instead") from error
    if form in ICONS and Image.open(packed).size != image.size:
        raise LicError(f"{form} cannot hold {image.width}x{image.height} pixels: write PNG instead")
    if "icc_profile" in held and "icc_profile" in image.info and _is_made(image.info):
        held = held | {"cicp"}
    lost = [NAMES[key] for key in image.info if key in NAMES and key not in held]
    if form == "GIF" and image.getcolors(COLOURS_OF_GIF) is None:
        lost.append(f"more than {COLOURS_OF_GIF} colours")
    return (boxes.with_cicp(packed.getvalue(), cicp) if form == "AVIF" and cicp else packed.getvalue()), lost
