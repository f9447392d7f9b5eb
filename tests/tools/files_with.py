"""Image files that say more than Pillow writes or reads, put together from bytes."""

import io
import struct
import zlib

from PIL import Image, ImageCms, features
from shared import saved

from codec.container import modes

SMALL = Image.linear_gradient("L").resize((40, 24)).convert("RGB")
IPTC = b"\x1c\x02\x78\x00\x03sea"
UNIFORM = 0.3127, 0.3290
P3 = (0.3127, 0.3290, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060)  # white, red, green, blue
SRGB_POINTS = (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP_UUID = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")


def chunk(kind: bytes, body: bytes) -> bytes:
    """A chunk of PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(*chunks: tuple[bytes, bytes], image: Image.Image = SMALL, behind: bytes = b"") -> bytes:
    """A PNG with these chunks behind its head."""
    data = saved(image, "PNG")
    return data[:33] + b"".join(chunk(*given) for given in chunks) + data[33:] + behind


def chromaticities(values: tuple[float, ...] = P3) -> tuple[bytes, bytes]:
    return b"cHRM", struct.pack(">8I", *(round(100_000 * value) for value in values))


def gamma(value: float = 0.45455) -> tuple[bytes, bytes]:
    return b"gAMA", struct.pack(">I", round(100_000 * value))


def hexadecimal(name: bytes, body: bytes) -> tuple[bytes, bytes]:
    """Text as ImageMagick stores what is not text."""
    return b"zTXt", b"Raw profile type " + name + b"\0\0" + zlib.compress(
        b"\n%s\n%8d\n%s\n" % (name, len(body), body.hex().encode())
    )


def segment(marker: int, body: bytes) -> bytes:
    """A segment of JPEG."""
    return b"\xff" + bytes([marker]) + struct.pack(">H", 2 + len(body)) + body


def jpeg(*segments: tuple[int, bytes], image: Image.Image = SMALL, behind: bytes = b"", **options) -> bytes:
    data = saved(image, "JPEG", **options)
    return data[:2] + b"".join(segment(*given) for given in segments) + data[2:] + behind


def photoshop(kind: int, body: bytes) -> bytes:
    return b"Photoshop 3.0\0" + b"8BIM" + struct.pack(">HHI", kind, 0, len(body)) + body + bytes(len(body) % 2)


def box(kind: bytes, body: bytes) -> bytes:
    """A box of JPEG 2000 or AVIF."""
    return struct.pack(">I", 8 + len(body)) + kind + body


def jp2(*boxes: bytes, colr: bytes = b"\1\0\0" + struct.pack(">I", 16), image: Image.Image = SMALL) -> bytes:
    """A JPEG 2000 whose colours are said by `colr`, with boxes before its codestream."""
    data = saved(image, "JPEG2000", irreversible=False)
    place = data.index(b"jp2h") - 4
    end = place + int.from_bytes(data[place : place + 4], "big")
    head = data[place + 8 : end]
    old = head.index(b"colr") - 4
    head = head[:old] + box(b"colr", colr) + head[old + int.from_bytes(head[old : old + 4], "big") :]
    return data[:place] + box(b"jp2h", head) + b"".join(boxes) + data[end:]


def deep(data: bytes, bits: int = 16) -> bytes:
    """A JPEG 2000 whose three components claim so many bits a sample."""
    changed = bytearray(data)
    changed[data.index(b"ihdr") + 14] = bits - 1
    first = data.index(b"\xff\x4f\xff\x51") + 42
    changed[first : first + 9 : 3] = bytes([bits - 1] * 3)
    return bytes(changed)


def avif(primaries: int, transfer: int) -> bytes:
    data = saved(SMALL, "AVIF", quality=90)
    place = data.index(b"colrnclx") + 8
    return data[:place] + struct.pack(">HH", primaries, transfer) + data[place + 4 :]


def bmp(space: bytes, numbers: bytes = bytes(48), profile: bytes = b"") -> bytes:
    """A BMP with a header of version 5."""
    rows = SMALL.transpose(Image.Transpose.FLIP_TOP_BOTTOM).tobytes("raw", "BGR")
    head = struct.pack("<IiiHHIIiiII", 124, *SMALL.size, 1, 24, 0, len(rows), 2835, 2835, 0, 0) + bytes(16) + space
    head += numbers + struct.pack("<IIII", 4, 124 + len(rows), len(profile), 0)
    size = 14 + len(head) + len(rows) + len(profile)
    return b"BM" + struct.pack("<IHHI", size, 0, 0, 14 + len(head)) + head + rows + profile


def gif(*extensions: bytes) -> bytes:
    """A GIF with extensions before its image."""
    data = saved(SMALL.quantize(16), "GIF")
    place = 13 + (3 << (data[10] & 7) + 1)
    return b"GIF89a" + data[6:place] + b"".join(extensions) + data[place:]


def extension(kind: int, *blocks: bytes) -> bytes:
    return b"!" + bytes([kind]) + b"".join(bytes([len(block)]) + block for block in blocks) + b"\0"


def webp(kind: bytes, body: bytes) -> bytes:
    """A WebP with one more chunk."""
    data = saved(SMALL, "WEBP", lossless=True, exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0")
    data += kind + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)
    return data[:4] + struct.pack("<I", len(data) - 8) + data[8:]


def tga(**texts: bytes) -> bytes:
    """A TGA whose extension area has an author or a comment."""
    data = saved(SMALL, "TGA").removesuffix(b"\0" * 8 + b"TRUEVISION-XFILE.\0")
    area = (
        struct.pack("<H", 495) + texts.get("author", b"").ljust(41, b"\0") + texts.get("comment", b"").ljust(324, b"\0")
    )
    return data + area.ljust(495, b"\0") + struct.pack("<II", len(data), 0) + b"TRUEVISION-XFILE.\0"


PLAIN = {  # files in sRGB, however they say it
    "nothing": png(), "gAMA": png(gamma()), "cHRM": png(chromaticities(SRGB_POINTS)),
    "both": png(gamma(), chromaticities(SRGB_POINTS)),
    "cICP": png((b"cICP", bytes((1, 13, 0, 1)))),
    "sRGB": png((b"sRGB", b"\0"), gamma(0.5), chromaticities(P3)), "JP2": jp2(),
    "gray JP2": jp2(colr=b"\1\0\0" + struct.pack(">I", 17), image=SMALL.convert("L")),
    "BMP": bmp(b"BGRs", bytes(range(48))), "BMP, Windows": bmp(b" niW"),
    "BMP, zeros": bmp(bytes(4)),
    **({"AVIF": saved(SMALL, "AVIF"), "AVIF, unspecified": avif(2, 2)} if features.check("avif") else {}),
    "TIFF": saved(SMALL, "TIFF", tiffinfo={318: SRGB_POINTS[:2], 319: SRGB_POINTS[2:]}),
}  # fmt: skip


def opened(data: bytes) -> tuple[Image.Image, list[str]]:
    """A loaded image, and what is lost of its file."""
    image = Image.open(io.BytesIO(data))
    return image, modes.load(image)


def info_of(data: bytes) -> dict:
    """The metadata that are kept of a file."""
    return modes.prepare(opened(data)[0]).info
