"""Reads from image files what Pillow does not report: colours without a profile, metadata in unusual places, more than
8 bits a sample, and the names of what cannot be kept. For PNG, JPEG, JPEG 2000, AVIF, WebP, GIF, BMP and TGA; Pillow
reports all of a TIFF, and a PPM has nothing of this.

Damage is not reported here, but by Pillow, which reads the pixels.
"""

import contextlib
import io
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from itertools import islice
from typing import IO

from codec.container import boxes
from codec.container.found import EXIF, GAIN_MAP, ICC, LARGEST, MOST, PICTURES, SHORT, XMP, Bytes, Ends, Found

XMP_OF_JPEG, MORE_XMP = b"http://ns.adobe.com/xap/1.0/\0", b"http://ns.adobe.com/xmp/extension/\0"
SILENT_CHUNKS = {  # of PNG: pixels, what Pillow tells, and how samples were stored
    b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"cICP", b"eXIf", b"pHYs", b"acTL",
    b"fcTL", b"fdAT", b"sBIT", b"hIST", b"iDOT",
}  # fmt: skip
SILENT_SEGMENTS = (b"JFIF\0", b"JFXX\0", b"Exif\0", XMP_OF_JPEG, b"ICC_PROFILE\0", b"Adobe", b"Ducky", b"MPF\0")
SILENT_RIFF = {b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF", b"ICCP", b"EXIF", b"XMP "}
IPTC_RESOURCE = b"8BIM\x04\x04"
MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # of a JPEG, behind a scan
XMP_TRAILER = 258  # bytes behind a GIF's XMP, which make any reader of blocks find the end (XMP specification, part 3)
SRGB_OF_BMP = (b"BGRs", b" niW")


def look(file: IO[bytes], form: str | None) -> Found:
    """The findings about an open file of Pillow's format `form`; its position is restored."""
    found, place = Found(), file.tell()
    if read := READERS.get(form or ""):
        with contextlib.suppress(*SHORT):
            read(Bytes(file, file.seek(0, io.SEEK_END)), found)
        file.seek(place)
    return found


def bits_of_jpeg(data: bytes) -> int | None:
    """Bits a sample in the frame header of a JPEG (Pillow opens 8 only); None if it has no such header."""
    with contextlib.suppress(Ends):
        for marker, body, _ in _segments(Bytes(io.BytesIO(data), len(data))):
            if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and body:
                return body[0]
    return None


# ---- PNG ----


def _png(data: Bytes, found: Found) -> None:
    place = 8
    for _ in range(MOST):
        length, kind = struct.unpack(">I4s", data.at(place, 8))
        body = data.part(place + 8, length)
        place += 12 + length
        if kind == b"IHDR":
            found.deep = body.at(8, 1)[0] > 8
        elif kind == b"cICP" and length == 4:
            found.keep_code_points(struct.unpack("4B", body.all()))
        elif kind in (b"tEXt", b"zTXt", b"iTXt"):
            _text(kind, body.all(), found)
        elif kind not in SILENT_CHUNKS:
            found.lose(kind.decode("latin-1") if kind.isalpha() else "a chunk without a name")
        if kind == b"IEND":
            _behind(data, place, found)
            return


def _chunks(png: bytes) -> Iterator[tuple[bytes, int, int]]:
    """The kind of each chunk of a PNG, where it begins and where it ends, up to one that is not all there."""
    place = 8
    while (end := place + 12 + int.from_bytes(png[place : place + 4], "big")) <= len(png):
        yield png[place + 4 : place + 8], place, end
        place = end


def _is_intact(png: bytes, place: int, end: int) -> bool:
    """Whether the checksum of a chunk is right."""
    return zlib.crc32(memoryview(png)[place + 4 : end - 4]) == int.from_bytes(png[end - 4 : end], "big")


def without_damaged_chunks(png: bytes) -> tuple[bytes, list[str]]:
    """A PNG without the ancillary chunks whose checksum is wrong, and the names of these.

    Pillow would refuse the image for them, though no pixel depends on them.
    """
    kept, rest, names = [png[:8]], 8, []
    for kind, place, end in islice(_chunks(png), MOST):
        if kind == b"IDAT":  # Pillow does not look at checksums behind the pixels
            break
        if kind[:1].islower() and kind.isalpha() and not _is_intact(png, place, end):  # ancillary
            names.append(f"{kind.decode('latin-1')}, which is damaged")
        else:
            kept.append(png[place:end])
        rest = end
    return (b"".join(kept) + png[rest:], names) if names else (png, names)


def has_damaged_pixels(png: bytes) -> bool:
    """Whether the checksum of a chunk of pixels is wrong, which Pillow does not look at."""
    return any(kind == b"IDAT" and not _is_intact(png, place, end) for kind, place, end in _chunks(png))


def _text(kind: bytes, body: bytes, found: Found) -> None:
    """Note a text chunk: EXIF, XMP or a profile as ImageMagick writes them, or other text, which is lost."""
    name, _, rest = body.partition(b"\0")
    if name == b"XML:com.adobe.xmp":
        return  # Pillow has it
    what = name.removeprefix(b"Raw profile type ").lower() if name.startswith(b"Raw profile type ") else b""
    words = rest if kind == b"tEXt" else _inflated(rest[1:], found) if kind == b"zTXt" and what else b""
    raw = _hexadecimal(words) if what else b""
    if raw.startswith(b"Exif\0\0") or what == b"exif" and raw:
        found.keep(EXIF, raw)
    elif raw.startswith(XMP_OF_JPEG) or what == b"xmp" and raw:
        found.keep(XMP, raw.removeprefix(XMP_OF_JPEG))
    elif what in (b"icc", b"icm") and raw:
        found.keep(ICC, raw)
    elif what in (b"iptc", b"8bim"):
        found.lose("IPTC")
    else:
        found.lose(f"text ({name[:79].decode('latin-1')})".replace("\n", " "))


def _inflated(data: bytes, found: Found) -> bytes:
    if not found.room:
        return b""
    try:
        text = zlib.decompressobj().decompress(data, found.room)
    except zlib.error:
        return b""
    found.room -= len(text)
    return text


def _hexadecimal(text: bytes) -> bytes:
    """The bytes of a raw profile: a name, a length, then hexadecimal digits, in lines; none if it is not one."""
    try:
        return bytes.fromhex("".join(text.decode("latin-1").split("\n")[3:]))
    except ValueError:
        return b""


def _behind(data: Bytes, place: int, found: Found) -> None:
    """Note bytes that follow the image in its file, unless they are zeros."""
    if 0 < (count := len(data) - place) and data.at(place, min(count, LARGEST)).strip(b"\0"):
        found.lose(f"{count} bytes behind the image")


# ---- JPEG ----


def _segments(data: Bytes) -> Iterator[tuple[int, bytes, int]]:
    """Marker, body and end of each segment; the last one is EOI."""
    place = 2
    for _ in range(MOST):
        first, marker = data.at(place, 2)
        if first != 0xFF:
            raise Ends
        if marker == 0xFF:  # a fill byte
            place += 1
            continue
        if marker == 0xD9:
            yield marker, b"", place + 2
            return
        (length,) = struct.unpack(">H", data.at(place + 2, 2))
        yield marker, data.at(place + 4, length - 2), place + 2 + length
        place += 2 + length
        if marker == 0xDA:
            place = _next_marker(data, place)


def _next_marker(data: Bytes, place: int) -> int:
    step = 1 << 20
    while place < len(data):
        block = data.at(place, min(step, len(data) - place))
        if match := MARKER.search(block):
            return place + match.start()
        place += max(1, len(block) - 1)  # a marker may be cut in two
    raise Ends


def _jpeg(data: Bytes, found: Found) -> None:
    gain_map = pictures = False
    for marker, body, end in _segments(data):
        if marker == 0xFE:
            found.lose("comment")
        elif marker == 0xE1 and body.startswith(MORE_XMP):
            found.lose("extended XMP")
        elif marker == 0xED and body.startswith(b"Photoshop 3.0\0"):
            found.lose("IPTC" if IPTC_RESOURCE in body else "Photoshop resources")
        elif 0xE0 <= marker <= 0xEF:
            gain_map |= b"hdrgm:Version" in body or body.startswith(b"urn:iso:std:iso:ts:21496:-1\0")
            pictures |= body.startswith(b"MPF\0")
            if not body.startswith((*SILENT_SEGMENTS, b"urn:iso:std:iso:ts:21496:-1\0")):
                found.lose(f"APP{marker - 0xE0}")
        elif marker == 0xD9:
            if gain_map:
                found.lose(GAIN_MAP)
            elif pictures:
                found.lose(PICTURES)
            else:
                _behind(data, end, found)


# ---- WebP, GIF, BMP, TGA ----


def _webp(data: Bytes, found: Found) -> None:
    place, end = 12, min(len(data), 8 + int.from_bytes(data.at(4, 4), "little"))
    for _ in range(MOST):
        if place + 8 > end:
            break
        kind, length = struct.unpack("<4sI", data.at(place, 8))
        if kind not in SILENT_RIFF:
            found.lose(f"chunk {kind.decode('latin-1').strip()}")
        place += 8 + length + length % 2
    _behind(data, end, found)


def _gif(data: Bytes, found: Found) -> None:
    """Note the extensions before the first image."""
    flags = data.at(10, 1)[0]
    place = 13 + (3 << (flags & 7) + 1) * (flags >> 7)
    for _ in range(MOST):
        kind = data.at(place, 2)
        if kind[0] != 0x21:
            return
        blocks, place = [], place + 2
        begin = place + 12  # of what follows the name of an application
        while length := data.at(place, 1)[0]:
            blocks.append(data.at(place + 1, length))
            place += 1 + length
        place += 1
        if kind[1] == 0xFF and blocks[0] == b"ICCRGBG1012":
            found.keep(ICC, b"".join(blocks[1:]))
        elif kind[1] == 0xFF and blocks[0] == b"XMP DataXMP" and place - begin <= LARGEST:
            found.keep(XMP, data.at(begin, place - begin)[:-XMP_TRAILER])
        elif kind[1] == 0xFF and blocks[0] not in (b"NETSCAPE2.0", b"ANIMEXTS1.0"):
            found.lose(f"extension {blocks[0][:8].decode('latin-1').strip()}")
        elif kind[1] == 0xFE:
            found.lose("comment")
        elif kind[1] == 0x01:
            found.lose("text")


def _bmp(data: Bytes, found: Found) -> None:
    """Note the colours in a header of version 4 or 5: a profile is kept, calibration numbers are lost."""
    size = int.from_bytes(data.at(14, 4), "little")
    if size not in (108, 124):
        return
    head = data.at(14, size)
    if head[56:60] == b"DEBM" and size == 124:
        place, count = struct.unpack("<II", head[112:120])
        profile = data.part(14 + place, count).all()
        found.keep(ICC, profile)
        if not profile:
            found.lose("ICC profile")
    elif head[56:60] == b"KNIL":
        found.lose("a link to an ICC profile")
    elif head[56:60] not in SRGB_OF_BMP and any(head[60:108]):
        found.lose("colour calibration of the header")


def _tga(data: Bytes, found: Found) -> None:
    """Note the extension area, which is lost: author, comment, job and gamma."""
    if data.at(0, 1)[0]:
        found.lose("comment")
    area, _, signature = struct.unpack("<II18s", data.at(len(data) - 26, 26))
    if signature == b"TRUEVISION-XFILE.\0" and area:
        body = data.at(area, 495)
        gamma = struct.unpack("<HH", body[478:482])
        names = {"author": body[2:43], "comment": body[43:367], "job": body[379:420]}
        for name, text in names.items():
            if text.strip(b" \0"):
                found.lose(name)
        if gamma[1] and gamma[0] != gamma[1]:
            found.lose("gamma")


READERS: dict[str, Callable[[Bytes, Found], None]] = {  # by Pillow's names
    "PNG": _png, "JPEG": _jpeg, "MPO": _jpeg, "JPEG2000": boxes.jpeg2000, "AVIF": boxes.avif, "WEBP": _webp,
    "GIF": _gif, "BMP": _bmp, "TGA": _tga,
}  # fmt: skip
