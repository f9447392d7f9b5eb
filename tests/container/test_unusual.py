"""Files that are as their formats allow and as few write them: coded to the last bit of what is said, or refused."""

import io
import struct
import zlib

import files_with
import numpy as np
import pytest
from files_with import SMALL
from PIL import Image, features
from shared import saved

from codec.batch.reading import open_image
from codec.container import metadata
from codec.container.bitstream import MAX_PIXELS
from codec.container.modes import UnsupportedImage, prepare
from codec.errors import LicError

ARITHMETIC = bytes.fromhex(  # a gray JPEG of 8x8 without Huffman codes: four squares of 60, 92, 124 and 156
    "ffd8ffe000104a46494600010100000100010000ffdb004300020101010101020101010202020202040302020202050404030406050606060506"
    "0606070908060709070606080b08090a0a0a0a0a06080b0c0b0a0c090a0a0affc9000b080008000801011100ffcc000600101005ffda00080101"
    "00003f00ff00b3107c6a0508217602f14c8a9188bc84cf9affd9"
)


def test_a_jpeg_with_arithmetic_coding_is_coded_or_is_an_error_of_one_line(lic, shell):
    (shell / "a.jpg").write_bytes(ARITHMETIC)
    code, _, err = lic("compress", "a.jpg", "-m", "tiny")
    assert len(err) == 1 and code in (0, 1)
    if code == 0:
        image = prepare(Image.open("a.jpg")).image
        assert [image.getpixel(place) for place in ((0, 0), (7, 0), (0, 7), (7, 7))] == [60, 92, 124, 156]


def test_a_jpeg_of_ycck_is_refused_as_cmyk():
    data = saved(SMALL.convert("CMYK"), "JPEG")
    place = data.index(b"Adobe") + 11  # of the transform
    with Image.open(io.BytesIO(data[:place] + b"\2" + data[place + 1 :])) as image:
        with pytest.raises(UnsupportedImage, match="mode CMYK"):
            prepare(image)


@pytest.mark.parametrize(
    "options", [{"big_tiff": True}, {"compression": "tiff_lzw"}, {"compression": "tiff_lzw", "tiffinfo": {317: 2}}]
)
def test_a_tiff_however_it_is_stored_has_the_same_pixels(options):
    with Image.open(io.BytesIO(saved(SMALL, "TIFF", **options))) as image:
        assert prepare(image).image.tobytes() == SMALL.tobytes()


def test_a_tiff_of_integers_predicted_as_floats_is_an_error_of_one_line(lic, shell):
    data = bytearray(saved(SMALL, "TIFF", compression="tiff_lzw", tiffinfo={317: 2}))
    data[data.index(struct.pack("<HHI", 317, 3, 1)) + 8] = 3
    (shell / "a.tif").write_bytes(data)
    code, _, err = lic("compress", "a.tif", "-m", "tiny")
    assert code == 1 and len(err) == 1 and "damaged image" in err[0]


def test_an_interlaced_png_of_16_bits_is_refused():
    head = struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 1)
    body = files_with.chunk(b"IHDR", head) + files_with.chunk(b"IDAT", b"") + files_with.chunk(b"IEND", b"")
    with Image.open(io.BytesIO(b"\x89PNG\r\n\x1a\n" + body)) as image:
        with pytest.raises(UnsupportedImage, match="more than 8 bits"):
            prepare(image)


@pytest.mark.parametrize("form", ["PNG", "TIFF", *[form for form in ("WEBP", "AVIF") if features.check(form.lower())]])
def test_metadata_of_a_megabyte_is_kept(tiny, form):
    rng, tags, image = np.random.default_rng(0), Image.Exif(), SMALL.copy()
    tags[0x010E] = "sea " * 250_000
    image.info = {
        "icc_profile": rng.bytes(200_000),
        "exif": tags.tobytes(),
        "xmp": b"<x>" + b"sea " * 250_000 + b"</x>",
    }
    data, lost = metadata.save(image, form)
    with Image.open(io.BytesIO(data)) as written:
        assert lost == [] and prepare(written).info.items() >= image.info.items()
        assert tiny.decompress(tiny.compress(written, 0)).info.items() >= image.info.items()


def test_pixels_whose_checksum_is_wrong_are_refused_where_pillow_shows_them(tmp_path):
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "gray").save(file, "PNG", compress_level=0)
    data = bytearray(file.getvalue())
    start = data.index(b"IDAT") + 4
    size = int.from_bytes(data[start - 8 : start - 4], "big")
    plain = bytearray(zlib.decompress(data[start : start + size]))
    data[start + size - 4 - len(plain) + 10] ^= 1  # stored as it is, before Adler's checksum
    plain[10] ^= 1
    data[start + size - 4 : start + size] = zlib.adler32(plain).to_bytes(4, "big")
    path = tmp_path / "a.png"
    path.write_bytes(data)
    assert Image.open(path).convert("RGB").tobytes() != Image.open(file).convert("RGB").tobytes()
    with pytest.raises(LicError, match="the checksum of its pixels is wrong"):
        open_image(str(path), MAX_PIXELS, strict=False)
    path.write_bytes(file.getvalue())
    assert open_image(str(path), MAX_PIXELS, strict=True)[1] == []
