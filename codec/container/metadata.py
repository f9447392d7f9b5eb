"""What an image file says beside its pixels, and how it is kept: ICC profile, EXIF, XMP and resolution.

In Python it is `image.info`, in Pillow's own keys and forms: icc_profile, exif and xmp as bytes, dpi as two floats. In
a .lic file each is an ancillary section of its own (codec/container/bitstream.py). Nothing else of `image.info` is
kept, such as comments, or text and gamma of a PNG.

EXIF and XMP stay as they are, byte for byte. Only where the image was turned upright does the orientation go, out of
EXIF's first directory (CIPA DC-008, "Exchangeable image file format", 2023, section 4.6): nobody turns it again.
"""

import contextlib
import io
import math
import re
import struct
import warnings
import zlib
from typing import Any

from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from codec.container import bitstream
from codec.container.bitstream import FormatError, Section

KEYS = {bitstream.ICC: "icc_profile", bitstream.EXIF: "exif", bitstream.XMP: "xmp", bitstream.DPI: "dpi"}
NAMES = {key: bitstream.METADATA[tag] for tag, key in KEYS.items()}
LARGEST = 1 << 24  # bytes of one of them; larger than what cameras and editors write
DPI_BYTES = 16  # two doubles
IN_JPEG = {"exif": 65533, "xmp": 65504}  # bytes that fit into a segment
LARGEST_DPI = 1e7  # a pixel of 2.5 nanometres
HELD = {  # by Pillow's name of the format
    "PNG": set(NAMES), "JPEG": set(NAMES), "TIFF": set(NAMES), "WEBP": {"icc_profile", "exif", "xmp"},
    "AVIF": {"icc_profile", "exif", "xmp"}, "BMP": {"dpi"},
}  # fmt: skip
SOURCES = {*NAMES, "XML:com.adobe.xmp", "Raw profile type exif"}  # keys of `info` that `of` reads
HOLD_ALPHA = {"PNG", "TIFF", "WEBP", "AVIF", "JPEG2000", "TGA", "ICO", "DDS", "QOI", "SGI", "IM"}
LARGEST_SIDE = {"JPEG": 65500, "MPO": 65500, "WEBP": 16383, "GIF": 65535, "TGA": 65535}  # pixels
COLOURS_OF_GIF = 256
ICONS = {"ICO", "ICNS"}  # what Pillow shrinks to the sizes that they have
PREFIX = b"Exif\0\0"  # of EXIF in a JPEG; Pillow hands it on
BYTE_ORDER = {b"II*\0": "little", b"MM\0*": "big"}  # by the first four bytes behind it
ORIENTATION, XMP_TAG, RESOLUTION_TAG = 0x0112, 700, 282
LOSSY_QUALITY = dict.fromkeys(("JPEG", "MPO", "PDF", "WEBP", "AVIF"), 95)  # Pillow's own loses as much as a codec
XMP_ORIENTATION = re.compile(rb'\s*tiff:Orientation\s*=\s*"(\d)"|\s*<tiff:Orientation>\s*(\d)\s*</tiff:Orientation>')
DESCRIPTIVE = (  # what a TIFF says about the picture and not about its own bytes
    *(ExifTags.Base[name] for name in ("ImageDescription", "Make", "Model", "Software", "DateTime", "Artist")),
    ExifTags.Base.Copyright,
)


def of(image: Image.Image) -> dict[str, Any]:
    """The metadata of a loaded image, in the keys and forms of a decoded one."""
    found = {"icc_profile": image.info.get("icc_profile"), "exif": _exif(image), "xmp": _xmp(image), "dpi": _dpi(image)}
    return {key: value for key, value in found.items() if value}


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
    """The tags that do not say where and how a file's pixels are stored, without directories inside directories."""
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
    """Dots per inch, or None where there is no number that means a size."""
    if hasattr(image, "tag_v2") and RESOLUTION_TAG not in image.tag_v2:
        return None  # Pillow would say 1
    x, y = map(float, image.info.get("dpi", (0, 0)))
    return (x, y) if 0 < x <= LARGEST_DPI and 0 < y <= LARGEST_DPI else None


# ---- orientation ----


def orientation(info: dict[str, Any]) -> int:
    """1 to 8 as EXIF counts them, 1 being upright; XMP's where EXIF has none."""
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
    """The metadata of the image turned upright: resolution too, where the axes change places."""
    upright = dict(info)
    if "exif" in info:
        upright["exif"] = PREFIX + _remove_entry(info["exif"].removeprefix(PREFIX))
    if "xmp" in info:
        upright["xmp"] = XMP_ORIENTATION.sub(b"", info["xmp"])
    if "dpi" in info and orientation(info) >= 5:
        upright["dpi"] = info["dpi"][::-1]
    return upright


def _orientation_entry(exif: bytes) -> tuple[str, int, int] | None:
    """Byte order, place of the entry and end of the first directory; None where there is none to be found."""
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
    """Without the orientation: the entries behind it move up, and everything else stays in its place."""
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
    """Metadata as sections. ValueError if one is larger than a file may hold."""
    sections = []
    for tag, key in KEYS.items():
        if key in info:
            raw = struct.pack("<dd", *info[key]) if key == "dpi" else info[key]
            raw = raw.removeprefix(PREFIX) if key == "exif" else raw
            if len(raw) > LARGEST:
                raise ValueError(f"{NAMES[key]} of {len(raw)} bytes, above the limit of {LARGEST}: remove it first")
            deflated = zlib.compress(raw, 9)
            sections.append(Section(tag, b"\1" + deflated if len(deflated) < len(raw) else b"\0" + raw))
    return sections


def unpack(sections: list[Section]) -> dict[str, Any]:
    """The inverse of `pack`; FormatError for damage."""
    info = {}
    for tag, key in KEYS.items():
        if any(section.tag == tag for section in sections):
            raw = _inflate(bitstream.find(sections, tag), NAMES[key], DPI_BYTES if key == "dpi" else LARGEST)
            info[key] = PREFIX + raw if key == "exif" else _resolution(raw) if key == "dpi" else raw
    return info


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
    if len(raw) != DPI_BYTES:
        raise FormatError(f"damaged: DPI of {len(raw)} bytes instead of {DPI_BYTES}")
    x, y = struct.unpack("<dd", raw)
    if not all(math.isfinite(value) and 0 < value <= LARGEST_DPI for value in (x, y)):
        raise FormatError(f"damaged: a resolution of {x} x {y} dots per inch")
    return x, y


# ---- other image files ----


def save(image: Image.Image, form: str) -> tuple[bytes, list[str]]:
    """A decoded image as a file of Pillow's format `form`, and the names of what it cannot hold and has lost.

    ValueError where it cannot hold the alpha plane or an image of that size, OSError or ValueError where Pillow refuses
    the image.
    """
    if image.mode in ("LA", "RGBA") and form not in HOLD_ALPHA:
        raise ValueError(f"{form} cannot hold the alpha plane of mode {image.mode}: write PNG, TIFF or WebP instead")
    if max(image.size) > LARGEST_SIDE.get(form, math.inf):
        raise ValueError(f"{form} cannot hold {image.width}x{image.height} pixels: write PNG instead")
    held = HELD.get(form, set())
    if form == "JPEG" and max(image.info.get("dpi", (0,))) > 0xFFFF:
        held = held - {"dpi"}
    if form == "JPEG":
        held = held - {key for key in IN_JPEG if len(image.info.get(key, b"")) > IN_JPEG[key]}
    if form in ("TIFF", "AVIF") and image.info.get("exif", b"")[6:10] not in BYTE_ORDER:  # which Pillow reads for them
        held = held - {"exif"}
    if form == "AVIF" and "exif" in image.info and "exif" in held:
        try:
            with warnings.catch_warnings(action="error"):
                Image.new("RGB", (1, 1)).save(io.BytesIO(), form, exif=image.info["exif"])
        except Exception:  # as below
            held = held - {"exif"}
    options = {key: value for key, value in image.info.items() if key in held}
    if form in LOSSY_QUALITY:
        options["quality"] = LOSSY_QUALITY[form]
    if form == "PNG" and "xmp" in options:
        options["pnginfo"] = PngInfo()
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
    image.save(packed, form, compress_level=1, **options)
    if form in ICONS and Image.open(packed).size != image.size:
        raise ValueError(f"{form} cannot hold {image.width}x{image.height} pixels: write PNG instead")
    lost = [NAMES[key] for key in image.info if key not in held]
    if form == "GIF" and image.getcolors(COLOURS_OF_GIF) is None:
        lost.append(f"more than {COLOURS_OF_GIF} colours")
    return packed.getvalue(), lost
