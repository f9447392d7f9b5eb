"""The .lic file format, versions 1 and 2. This text is the specification, final since release 0.1.0: what it says of a
byte does not change, another format has another version, and every later release reads these two.

All integers are unsigned. `varint` is LEB128: 7 bits a byte, least significant group first, the top bit set on every
byte but the last, at most 5 bytes, no superfluous zero byte at the end. Fixed-size integers are little-endian.

    file     = header, section x sections
    header   = magic      4 bytes  89 4C 49 43, "\\x89LIC": the first byte is no text, so that text-mode transfers show
               version    1 byte   1, or 2: y is coded with the context of the model (entropy/context.py)
               model      8 bytes  id of the model that wrote the file and must read it
               quality    1 byte   0..100, or 255 for a model trained for one lambda
               mode       1 byte   0 = RGB, 1 = L (gray: coded as three equal channels, decoded as their mean),
                                   2 = LA, 3 = RGBA: the same with an alpha plane beside
               sections   1 byte   how many sections follow, at least 1
               width      varint   pixels, at least 1
               height     varint   pixels, at least 1
    section  = tag        1 byte   below 128: critical, a decoder that does not know it refuses the file;
                                   128 and above: ancillary, skipped where not known
               length     varint   bytes of payload
               payload    length bytes
               checksum   4 bytes  CRC-32 (zlib's) of all bytes of the file before it except checksums, which would
                                   make it say nothing of what they cover: a section of another file would pass

Nothing follows the last section; their order is free, but for that of several with tag 1. Tags, each at most once, but
see 5; 1 and 2 are streams of entropy/rans.py, of one step each, of symbols in the order (channel, row, column), but
with a context in its own order. Version 1 uses no context, also where the model has one:

    1        the latent y: M channels of ceil(height/16) x ceil(width/16). Table of a symbol: its channel's, of the
             file's quality; in a model with a hyperprior: the one whose number h_s gives for it
    2        the hyper-latent z, of such a model only: K channels of ceil(h/4) x ceil(w/4), where h x w is the size of
             y; symbols in -127..127; table: its channel's, of the file's quality
    3        the whole image as lossless WebP (codec/container/lossless.py), instead of 1, 2 and 4; then no model is
             needed
    4        the alpha plane, of modes 2 and 3 only: 0 is transparent, 255 opaque. It is cut into squares of 2048 x 2048
             pixels, smaller at the right and at the bottom; each, row by row, is a whole file of lossless WebP in which
             R = G = B is alpha
    5        y is in rows of tiles: a varint, the height of a row in units of 64 pixels, less than that of the image.
             Section 1 is there for each row, from top to bottom, with the y of the pixels of that row, a latent of its
             own, to whose context the other rows are outside; the last row may be lower. z is that of the whole image,
             and so are the tables that h_s gives
    128      ICC profile, as it is
    129      EXIF: the TIFF structure, without what a format puts before it ("Exif" and two zero bytes in a JPEG)
    130      XMP packet, as it is
    131      dots per inch: horizontal and vertical, two IEEE 754 doubles, little-endian, above 0 and at most 10,000,000
    132      what the colours mean, as code points of ITU-T H.273, a byte each: colour primaries, transfer
             characteristics, matrix coefficients (0: the samples are RGB, or gray) and full range (0 or 1), as in a
             PNG's cICP chunk. It may stand beside an ICC profile, and then has the word
    133      a byte: the effort 1..9 with which the file was made, how often the encoder looked for better symbols; not
             there: 0

The payload of 128 to 132 is a byte 0 and the bytes themselves, or a byte 1 and one zlib stream of them; they are at
most 2^24 bytes.

Models, their ids and channels M and K are in codec/coding/models.py, their tables in codec/coding/tables.py; a model
of one lambda has the tables of one quality. tests/tools/plain_decoder.py finds the symbols of a file, with nothing but
what these texts say.

How many symbols there are follows from width and height, never from the stream. h_s works on integers alone up to
those numbers (codec/network/hyper.py, entropy/integer.py), which are thus the same wherever a file is decoded.

Every error in the bytes is a FormatError. Checksums are verified before a model is looked for, and the size against
`max_pixels` before anything is allocated.
"""

import zlib
from dataclasses import dataclass
from typing import NamedTuple

from codec.errors import LicError

MAGIC = b"\x89LIC"
VERSION, WITH_CONTEXT = 1, 2
MAX_PIXELS = 128 * 2**20  # refuse larger images unless the caller allows them: a forged header must not fill the memory
LEAST_SIDE = 16  # pixels that a side counts for at least, since the networks pad it to that
NO_QUALITY = 255
ROW_UNIT = 64  # pixels in which the height of a row of tiles counts
MODES = ("RGB", "L", "LA", "RGBA")
LATENT, HYPER, LOSSLESS, ALPHA, ROWS = 1, 2, 3, 4, 5  # tags of the sections
ICC, EXIF, XMP, DPI, CICP, EFFORT = 128, 129, 130, 131, 132, 133
METADATA = {ICC: "ICC profile", EXIF: "EXIF", XMP: "XMP", DPI: "DPI", CICP: "CICP"}
KNOWN = {LATENT, HYPER, LOSSLESS, ALPHA, ROWS}  # of the critical ones


class FormatError(LicError):
    """The bytes are not an intact .lic file that this version can read."""


@dataclass(frozen=True)
class Header:
    """The header of a file."""

    model: str  # id, 16 hex digits
    quality: int | None  # 0..100, None for a model of one lambda
    mode: str  # PIL mode, one of MODES
    width: int
    height: int
    context: bool = False  # whether y is coded with the context of the model


class Section(NamedTuple):
    """A section of a file."""

    tag: int
    payload: bytes


def _varint(value: int) -> bytes:
    groups = bytearray()
    while value >= 0x80:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(groups) + bytes([value])


class _Reader:
    """Reads fields from bytes, one after another; FormatError where they end too early."""

    def __init__(self, data: bytes):
        self.data, self.position = data, 0

    def take(self, count: int, what: str) -> bytes:
        if count > len(self.data) - self.position:
            raise FormatError(f"truncated: the file ends inside its {what}")
        self.position += count
        return self.data[self.position - count : self.position]

    def varint(self, what: str) -> int:
        value = 0
        for i in range(5):
            byte = self.take(1, what)[0]
            value |= (byte & 0x7F) << 7 * i
            if byte < 0x80:
                if byte == 0 and i > 0:
                    raise FormatError(f"the {what} is not in its shortest form")
                return value
        raise FormatError(f"the {what} is longer than 5 bytes")


def write(header: Header, sections: list[Section]) -> bytes:
    """The bytes of a file. AssertionError for a header that the format cannot hold: callers check their arguments."""
    assert len(header.model) == 16 and 0 < len(sections) < 256 and header.width > 0 and header.height > 0
    head = MAGIC + bytes([WITH_CONTEXT if header.context else VERSION]) + bytes.fromhex(header.model)
    quality = NO_QUALITY if header.quality is None else header.quality
    head += bytes([quality, MODES.index(header.mode), len(sections)]) + _varint(header.width) + _varint(header.height)
    parts, checksum = [head], zlib.crc32(head)
    for tag, payload in sections:
        body = bytes([tag]) + _varint(len(payload)) + payload
        checksum = zlib.crc32(body, checksum)
        parts += [body, checksum.to_bytes(4, "little")]
    return b"".join(parts)


def read(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[Header, list[Section]]:
    """Header and sections of a file, checksums verified.

    FormatError for anything but an intact file, or for one of more than `max_pixels`; TypeError if data is not bytes.
    """
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise TypeError(f"the bytes of a .lic file are wanted, not {type(data).__name__}")
    data = bytes(data)
    reader = _Reader(data)
    if not data:
        raise FormatError("the file is empty")
    if reader.take(min(4, len(data)), "magic") != MAGIC[: len(data)]:
        raise FormatError("not a .lic file: its first bytes are not 89 4C 49 43")
    if len(data) < 4:
        raise FormatError("truncated: the file ends inside its magic")
    version = reader.take(1, "version")[0]
    if version not in (VERSION, WITH_CONTEXT):
        raise FormatError(f"format version {version}; this program reads versions {VERSION} and {WITH_CONTEXT}")
    model = reader.take(8, "model id").hex()
    quality, mode, count = reader.take(3, "header")
    width, height = reader.varint("width"), reader.varint("height")
    sections, checksum = [], zlib.crc32(data[: reader.position])
    for _ in range(count):
        start = reader.position
        tag = reader.take(1, "section tag")[0]
        payload = reader.take(reader.varint("section length"), "payload")
        checksum = zlib.crc32(data[start : reader.position], checksum)
        if int.from_bytes(reader.take(4, "checksum"), "little") != checksum:
            raise FormatError(f"damaged: the checksum of section {tag} is wrong")
        sections.append(Section(tag, payload))
    if reader.position != len(data):
        raise FormatError(f"{len(data) - reader.position} bytes after the last section")
    if not sections or width == 0 or height == 0 or mode >= len(MODES) or 100 < quality < NO_QUALITY:
        raise FormatError(f"impossible header: {width}x{height}, mode {mode}, quality {quality}, {count} sections")
    unknown = [tag for tag, _ in sections if tag < 128 and tag not in KNOWN]
    if unknown:
        raise FormatError(f"section {unknown[0]} is critical and not known to this version")
    if excess := beyond(width, height, max_pixels):
        raise FormatError(f"{excess}; raise max_pixels to allow it")
    quality = None if quality == NO_QUALITY else quality
    return Header(model, quality, MODES[mode], width, height, version == WITH_CONTEXT), sections


def beyond(width: int, height: int, max_pixels: int) -> str | None:
    """Why an image is too large for a limit, or None.

    A short side counts as LEAST_SIDE, to which the networks pad it, so that an image that is encoded under a limit also
    decodes under it.
    """
    if max(width, LEAST_SIDE) * max(height, LEAST_SIDE) <= max_pixels:
        return None
    least = "" if min(width, height) >= LEAST_SIDE else f" (a side counts for {LEAST_SIDE} at least)"
    return f"{width}x{height} pixels{least} are more than the limit of {max_pixels}"


def find(sections: list[Section], tag: int) -> bytes:
    """The payload of the only section with this tag; FormatError if there is none or more than one."""
    found = [section.payload for section in sections if section.tag == tag]
    if len(found) != 1:
        raise FormatError(f"{len(found)} sections with tag {tag} instead of one")
    return found[0]


def effort(sections: list[Section]) -> int:
    """The effort 0..9 with which a file was made, from its sections."""
    return next((section.payload[0] for section in sections if section.tag == EFFORT and section.payload), 0)


def rows_section(rows: list[tuple[int, int]]) -> list[Section]:
    """The section that describes rows of tiles (top, bottom), in units of 64 pixels; an empty list for one row."""
    return [Section(ROWS, _varint(rows[0][1]))] if len(rows) > 1 else []


def row_streams(header: Header, sections: list[Section]) -> list[tuple[int, int, bytes]]:
    """Of each row of tiles its top and bottom, in units of 64 pixels, and its stream of y.

    FormatError if the sections do not fit the header.
    """
    streams = [section.payload for section in sections if section.tag == LATENT]
    end = height = -(-header.height // ROW_UNIT)
    if any(section.tag == ROWS for section in sections):
        reader = _Reader(find(sections, ROWS))
        height = reader.varint("height of a row of tiles")
        if reader.position != len(reader.data) or not 0 < height < end:
            raise FormatError(f"damaged: rows of tiles {ROW_UNIT * height} pixels high in an image of {header.height}")
    tops = range(0, end, height)
    if len(streams) != len(tops):
        raise FormatError(f"damaged: {len(streams)} sections with tag {LATENT} instead of {len(tops)}")
    return [(top, min(top + height, end), stream) for top, stream in zip(tops, streams, strict=True)]
