"""Reads the boxes of JPEG 2000 and AVIF files (ISO/IEC 14496-12, 15444-1, 23000-22): colours, metadata, depth."""

import io
import struct
from collections.abc import Iterator

from codec.container import colour
from codec.container.found import EXIF, GAIN_MAP, ICC, MOST, XMP, Bytes, Ends, Found

EXIF_UUID, XMP_UUID = b"JpgTiffExif->JP2", bytes.fromhex("be7acfcb97a942e89c71999491e3afac")
UUIDS = {
    bytes.fromhex("33c7a4d2b81d4723a0baf1a3e097ad38"): "IPTC",
    bytes.fromhex("b14bf8bd083d4b43a5ae8cd7d5a6ce03"): "GeoJP2",
}
ENCODERS = (b"Created by OpenJPEG", b"Kakadu")  # how the comments begin in which they leave their names
SRGB_OF_JP2, ROMM_OF_JP2 = (15, 16, 17, 18, 0), 21  # enumerated colour spaces: what is like sRGB, or of no colour


def _boxes(data: Bytes) -> Iterator[tuple[bytes, Bytes]]:
    """Kind and content of each box (ISO/IEC 14496-12 and 15444-1)."""
    place = 0
    for _ in range(MOST):
        if place + 8 > len(data):
            return
        size, kind = struct.unpack(">I4s", data.at(place, 8))
        head = 8
        if size == 1:
            (size,), head = struct.unpack(">Q", data.at(place + 8, 8)), 16
        size = size or len(data) - place
        if size < head:
            raise Ends
        yield kind, data.part(place + head, size - head)
        place += size


def _inside(data: Bytes, *path: bytes) -> Iterator[Bytes]:
    """The contents of the boxes at the end of a path of kinds."""
    for kind, content in _boxes(data):
        if kind == path[0]:
            yield from _inside(content, *path[1:]) if path[1:] else (content,)


def jpeg2000(data: Bytes, found: Found) -> None:
    """Note in `found` what a JPEG 2000 file has: a codestream, or boxes around one."""
    if data.at(0, 4) == b"\xff\x4f\xff\x51":
        _codestream(data, found)
        return
    colours = False
    for kind, content in _boxes(data):
        if kind == b"jp2h":
            for inner, body in _boxes(content):
                if inner == b"colr" and not colours:  # the first that is known counts
                    colours = _colr_of_jp2(body.all(), found)
                elif inner == b"pclr":
                    found.deep |= any((bits & 0x7F) > 7 for bits in body.at(3, body.at(2, 1)[0]))
        elif kind == b"uuid":
            uuid, body = content.at(0, 16), content.part(16, len(content) - 16).all()
            if uuid == EXIF_UUID:
                found.keep(EXIF, body and b"Exif\0\0" + body.removeprefix(b"Exif\0\0"))
            elif uuid == XMP_UUID:
                found.keep(XMP, body)
            if uuid not in (EXIF_UUID, XMP_UUID) or not body:
                found.lose(UUIDS.get(uuid, f"uuid {uuid.hex()}"))
        elif kind == b"jp2c":
            _codestream(content, found)
        elif kind not in (b"jP  ", b"ftyp", b"rreq", b"free"):
            found.lose(f"box {kind.decode('latin-1').strip()}")


def _codestream(data: Bytes, found: Found) -> None:
    """Note depth and comments of a codestream; comments with the name of an encoder are ignored.

    The depth is in SIZ, the first segment: 34 bytes, the number of components, and three bytes for each.
    """
    (count,) = struct.unpack(">H", data.at(40, 2))
    found.deep |= any((depth & 0x7F) > 7 for depth in data.at(42, 3 * count)[::3])
    place = 2
    for _ in range(MOST):
        marker, length = struct.unpack(">HH", data.at(place, 4))
        if marker in (0xFF90, 0xFFD9):
            return
        if marker == 0xFF64 and not data.at(place + 6, min(length - 4, 40)).startswith(ENCODERS):
            found.lose("comment")
        place += 2 + max(length, 2)


def _colr_of_jp2(body: bytes, found: Found) -> bool:
    """Note the colours of a colour specification box; whether it is of a known method."""
    method, space = body[0], body[3:]
    if method in (2, 3):
        found.keep(ICC, space)
    elif method == 5:
        primaries, transfer, _, full = struct.unpack(">HHHB", space[:7])
        found.keep_code_points((primaries, transfer, 0, full >> 7))
    elif method == 1 and len(space) >= 4 and (number := int.from_bytes(space[:4], "big")) not in SRGB_OF_JP2:
        if number == ROMM_OF_JP2:
            found.keep(ICC, colour.profile(colour.PROPHOTO, (1.8,), gray=False))
        elif number != 12:  # CMYK, which is refused
            found.lose(f"colour space {number} of JPEG 2000")
    elif method not in (1, 2, 3, 5):
        return False
    return True


def avif(data: Bytes, found: Found) -> None:
    """Note in `found` what an AVIF file has: code points, depth, a gain map."""
    meta = next(_inside(data, b"meta"), None)
    if meta is None:
        return
    meta = meta.part(4, len(meta) - 4)
    items = next(_inside(meta, b"iinf"), None)
    if items is not None and b"tmap" in items.all():
        found.lose(GAIN_MAP)
    properties = [(kind, body.all()) for ipco in _inside(meta, b"iprp", b"ipco") for kind, body in _boxes(ipco)]
    own = _of_primary_item(meta)
    mine = [part for n, part in enumerate(properties, 1) if n in own] or properties
    for kind, body in mine:
        if kind == b"colr" and body[:4] == b"nclx":
            primaries, transfer, _ = struct.unpack(">HHH", body[4:10])
            found.keep_code_points((primaries, transfer, 0, 1))  # matrix and range are of YCbCr, which is RGB by now
        elif kind == b"pixi":
            found.deep |= max(body[5:], default=0) > 8
    depths = mine if any(kind in (b"av1C", b"pixi") for kind, _ in mine) else properties
    found.deep |= any(kind == b"av1C" and body[2:3] and body[2] & 0x40 for kind, body in depths)  # high_bitdepth
    tracks = _inside(data, b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd")
    for track in tracks:
        for entry in _inside(track.part(8, len(track) - 8), b"av01"):
            records = _inside(entry.part(78, len(entry) - 78), b"av1C")
            found.deep |= any(record.at(2, 1)[0] & 0x40 for record in records)


def with_cicp(avif: bytes, cicp: colour.Cicp) -> bytes:
    """An AVIF file as Pillow writes it, with its primaries and transfer replaced by those of `cicp`."""
    data, changed = Bytes(io.BytesIO(avif), len(avif)), bytearray(avif)
    for meta in _inside(data, b"meta"):
        for body in _inside(meta.part(4, len(meta) - 4), b"iprp", b"ipco", b"colr"):
            if body.at(0, 4) == b"nclx":
                changed[body.begin + 4 : body.begin + 8] = struct.pack(">HH", *cicp[:2])
    return bytes(changed)


def _of_primary_item(meta: Bytes) -> set[int]:
    """The numbers, from 1, of the properties of the primary item; an empty set if the file does not name one."""
    pitm = next(_inside(meta, b"pitm"), None)
    if pitm is None:
        return set()
    primary = int.from_bytes(pitm.all()[4:], "big")
    own = set()
    for ipma in _inside(meta, b"iprp", b"ipma"):
        body, place = ipma.all(), 8
        wide_id, wide_number = body[0] > 0, body[3] & 1
        for _ in range(min(MOST, int.from_bytes(body[4:8], "big"))):
            item = int.from_bytes(body[place : place + 2 + 2 * wide_id], "big")
            place += 2 + 2 * wide_id
            if place >= len(body):
                raise Ends
            numbers = body[place + 1 : place + 1 + body[place] * (1 + wide_number)]
            place += 1 + body[place] * (1 + wide_number)
            if item == primary:
                size = 1 + wide_number
                bits = 0x7FFF if wide_number else 0x7F  # the first one says that the property is essential
                own |= {int.from_bytes(numbers[i : i + size], "big") & bits for i in range(0, len(numbers), size)}
    return own
