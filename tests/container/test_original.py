"""What Pillow does not tell: metadata come back, or are told by name."""

import io
import struct
import time
import warnings

import files_with
import numpy as np
import pytest
from files_with import PLAIN, SMALL, SRGB, XMP_UUID, hexadecimal, info_of, opened
from PIL import Image, TiffImagePlugin, features
from shared import saved

from codec.container import metadata, modes, original
from codec.files import IMAGES

PACKET, EXIF = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'>sea</x:xmpmeta>", b"II*\0\x08\0\0\0\0\0\0\0\0\0"


# ---- metadata ----


@pytest.mark.parametrize(
    "data",
    [
        files_with.jp2(files_with.box(b"uuid", b"JpgTiffExif->JP2" + EXIF), files_with.box(b"uuid", XMP_UUID + PACKET)),
        files_with.png(hexadecimal(b"APP1", b"Exif\0\0" + EXIF), hexadecimal(b"xmp", PACKET)),
        files_with.png(hexadecimal(b"exif", b"Exif\0\0" + EXIF), hexadecimal(b"APP1", original.XMP_OF_JPEG + PACKET)),
    ],
)
def test_exif_and_xmp_in_unusual_places_are_kept(data):
    image, lost = opened(data)
    assert lost == [] and modes.prepare(image).info == {"exif": b"Exif\0\0" + EXIF, "xmp": PACKET}


def test_the_xmp_of_a_gif_is_kept():
    trailer = b"\1" + bytes(range(255, -1, -1)) + b"\0"
    image, lost = opened(files_with.gif(b"!\xff\x0bXMP DataXMP" + PACKET + trailer))
    assert lost == [] and modes.prepare(image).info == {"xmp": PACKET}


def test_the_tags_of_a_map_come_back_into_a_tiff(tiny):
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    given = {33550: (0.5, 0.5, 0.0), 33922: (0.0, 0.0, 0.0, 5e5, 4.6e6, 0.0), 34735: (1, 1, 0, 1, 1024, 0, 1, 1)}
    for tag, values in given.items():
        tags.tagtype[tag] = 3 if tag == 34735 else 12
        tags[tag] = values
    tags[34737] = "WGS 84|"
    image, lost = opened(saved(SMALL, "TIFF", tiffinfo=tags))
    data, lost_again = metadata.save(tiny.decompress(tiny.compress(image, 50)), "TIFF")
    kept = Image.open(io.BytesIO(data)).tag_v2
    assert (lost, lost_again) == ([], []) and {tag: kept[tag] for tag in given} == given and kept[34737] == "WGS 84|"


def test_a_tiff_that_pillow_turns_has_its_resolution_turned():
    image, _ = opened(saved(SMALL, "TIFF", tiffinfo={274: 6}, dpi=(300, 150)))
    assert modes.prepare(image).info["dpi"] == (150, 300) and image.size == SMALL.size[::-1]
    image, _ = opened(saved(SMALL, "TIFF", tiffinfo={274: 3}, dpi=(300, 150)))
    assert modes.prepare(image).info["dpi"] == (300, 150)


def test_a_resolution_that_no_jpeg_told_is_not_made_up():
    tags = Image.Exif()
    tags[0x0112] = 6
    assert "dpi" not in info_of(files_with.jpeg(exif=tags.tobytes()))
    assert info_of(files_with.jpeg(exif=tags.tobytes(), dpi=(72, 72)))["dpi"] == (72, 72)
    tags[282] = tags[283] = 72.0
    tags[296] = 2
    assert info_of(files_with.jpeg(exif=tags.tobytes()))["dpi"] == (72, 72)


TELLS = {  # by extension: files with what nobody keeps, and its name
    ".png": [
        (files_with.png((b"tEXt", b"Title\0sea")), "text (Title)"), (files_with.png((b"tIME", bytes(7))), "tIME"),
        (files_with.png((b"iTXt", b"Seed\0\0\0\0\0" + b"1")), "text (Seed)"),
        (files_with.png(hexadecimal(b"iptc", b"8BIM")), "IPTC"), (files_with.png((b"prVt", b"1")), "prVt"),
        (files_with.png(behind=b"more"), "4 bytes behind the image"),
        (files_with.png((b"cICP", bytes((9, 16, 9, 1)))), "CICP"),
        (files_with.png((b"iCCP", b"a\0\0no zlib")), "ICC profile, which is damaged"),
    ],
    ".jpg": [
        (files_with.jpeg((0xED, files_with.photoshop(0x0404, files_with.IPTC))), "IPTC"),
        (files_with.jpeg((0xED, files_with.photoshop(0x03ED, b"1"))), "Photoshop resources"),
        (files_with.jpeg((0xFE, b"sea")), "comment"), (files_with.jpeg((0xEB, b"JP\0\1")), "APP11"),
        (files_with.jpeg((0xE1, original.MORE_XMP + bytes(40))), "extended XMP"),
        (files_with.jpeg(behind=b"film" * 9, progressive=True), "36 bytes behind the image"),
    ],
    ".webp": [(files_with.webp(b"ALBM", b"sea"), "chunk ALBM")],
    ".avif": [],
    ".jp2": [
        (files_with.jp2(files_with.box(b"uuid", bytes.fromhex("33c7a4d2b81d4723a0baf1a3e097ad38"))), "IPTC"),
        (files_with.jp2(files_with.box(b"xml ", b"<a/>")), "box xml"),
        (files_with.jp2(files_with.box(b"uuid", bytes(20))), "uuid 000"),
        (files_with.jp2(colr=b"\1\0\0" + struct.pack(">I", 14) + bytes(28)), "colour space 14"),
        (saved(SMALL, "JPEG2000", comment="sea"), "comment"),
    ],
    ".gif": [
        (files_with.gif(files_with.extension(0xFE, b"sea")), "comment"),
        (files_with.gif(files_with.extension(0xFF, b"ACMEABCD1.0", b"1")), "extension ACMEABCD"),
    ],
    ".bmp": [
        (files_with.bmp(b"KNIL", profile=b"sea.icc\0"), "a link to an ICC profile"),
        (files_with.bmp(bytes(4), bytes(range(48))), "colour calibration"),
    ],
    ".tga": [(files_with.tga(author=b"Ada"), "author"), (files_with.tga(comment=b"sea"), "comment")],
    ".tif": [
        (saved(SMALL, "TIFF", tiffinfo={33723: b"sea"}), "IPTC"),
        (saved(SMALL, "TIFF", tiffinfo={286: 2.0}), "XPosition"),
        (saved(SMALL, "TIFF", tiffinfo={65000: 7}), "65000"),
        (saved(SMALL, "TIFF", tiffinfo={301: (0,) * 768}), "TransferFunction"),
        (saved(SMALL.convert("RGBX"), "TIFF"), "further channels (1)"),
    ],
    ".ppm": [],
}  # fmt: skip
SAME = {
    ".jpeg": ".jpg", ".jpe": ".jpg", ".jfif": ".jpg", ".tiff": ".tif", ".pgm": ".ppm", ".pbm": ".ppm", ".pnm": ".ppm",
}  # fmt: skip


def test_every_format_that_folders_are_searched_for_is_in_the_list():
    assert TELLS.keys() | SAME.keys() == IMAGES


@pytest.mark.parametrize("suffix, data, name", [(suffix, *case) for suffix, cases in TELLS.items() for case in cases])
def test_what_cannot_be_kept_is_told_and_refused_if_strict(lic, shell, suffix, data, name):
    (shell / f"a{suffix}").write_bytes(data)
    code, _, err = lic("compress", f"a{suffix}", "-m", "tiny", "--strict")
    assert (code, len(err)) == (1, 1) and "not kept: " in err[0] and name in err[0] and "--strict refuses" in err[0]
    code, _, err = lic("compress", f"a{suffix}", "-m", "tiny")
    assert (code, len(err)) == (0, 2) and err[0].startswith(f"lic: a{suffix}: not kept: ") and name in err[0]
    with warnings.catch_warnings(record=True) as told, Image.open(f"a{suffix}") as image:
        warnings.simplefilter("always")
        modes.prepare(image)
    assert any(name in str(warning.message) for warning in told)


def test_a_wrong_checksum_of_what_no_pixel_needs_costs_only_that(lic, shell):
    title, time = files_with.chunk(b"tEXt", b"Title\0sea"), files_with.chunk(b"tIME", bytes(7))
    plain = files_with.png()
    (shell / "a.png").write_bytes(plain[:33] + title[:-1] + b"?" + time + plain[33:])
    assert "not kept: tEXt, which is damaged, tIME" in lic("compress", "a.png", "-m", "tiny", "--strict")[2][0]
    code, _, err = lic("compress", "a.png", "-m", "tiny")
    assert (code, err[0]) == (0, "lic: a.png: not kept: tEXt, which is damaged, tIME")
    (shell / "b.png").write_bytes(plain[:30] + b"???" + plain[33:])  # the head's own
    assert lic("compress", "b.png", "-m", "tiny")[0] == 1


def test_a_jpeg_of_12_bits_is_refused_as_that(lic, shell):
    data = bytearray(files_with.jpeg())
    place = data.index(b"\xff\xc0")
    data[place + 1], data[place + 4] = 0xC1, 12
    (shell / "a.jpg").write_bytes(data)
    assert "more than 8 bits a sample" in lic("compress", "a.jpg", "-m", "tiny")[2][0]


@pytest.mark.parametrize("data", [b"", b"\x89PNG\r\n\x1a\n", *(files_with.png()[:n] for n in (20, 33, 45))])
def test_a_png_that_ends_anywhere_keeps_its_bytes(data):
    assert original.without_damaged_chunks(data) == (data, [])


@pytest.mark.parametrize("suffix", TELLS)
def test_a_plain_file_is_silent_and_goes_through_strict(lic, shell, suffix):
    if suffix == ".avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    SMALL.save(f"a{suffix}")
    code, _, err = lic("compress", f"a{suffix}", "-m", "tiny", "--strict")
    assert (code, len(err)) == (0, 1)


@pytest.mark.parametrize("gain_map", [False, True])
def test_what_a_phone_adds_to_a_photograph_is_told_and_not_refused(lic, shell, gain_map):
    xmp = b'<x hdrgm:Version="1.0"/>' if gain_map else b""
    SMALL.save("a.jpg", "MPO", save_all=True, append_images=[SMALL.resize((20, 12))], xmp=xmp)
    code, _, err = lic("compress", "a.jpg", "-m", "tiny", "--strict")
    assert (code, len(err)) == (0, 2)
    assert err[0] == f"lic: a.jpg: not kept: {'gain map (HDR)' if gain_map else 'further pictures (MPF)'}"


# ---- damage ----

SAMPLES = [
    *PLAIN.values(), *(data for cases in TELLS.values() for data, _ in cases),
    files_with.jp2(files_with.box(b"uuid", XMP_UUID + PACKET), colr=b"\2\0\0" + SRGB),
    files_with.png(hexadecimal(b"xmp", PACKET)),
    files_with.bmp(b"DEBM", profile=SRGB), files_with.gif(files_with.extension(0xFF, b"ICCRGBG1012", SRGB[:200])),
]  # fmt: skip


def test_damaged_files_are_looked_at_without_harm():
    rng, forms = np.random.default_rng(0), [Image.open(io.BytesIO(data)).format for data in SAMPLES]
    began = time.monotonic()
    for data, form in zip(SAMPLES, forms, strict=True):
        for trial in range(40):
            damaged = bytearray(data[: rng.integers(len(data))] if trial % 4 == 0 else data)
            for place in rng.integers(max(1, min(len(damaged), 400)), size=rng.integers(1, 9)):
                damaged[place : place + 1] = rng.bytes(1)
            found = original.look(io.BytesIO(bytes(damaged)), form)
            assert all(len(value) <= metadata.LARGEST for value in found.info.values())
            metadata.pack(metadata.explained(found.info, gray=False))
    assert time.monotonic() - began < 30


def test_text_that_inflates_without_end_is_read_up_to_a_limit():
    bomb = hexadecimal(b"exif", bytes(3_000_000))
    began = time.monotonic()
    found = original.look(io.BytesIO(files_with.png(*[bomb] * 300)), "PNG")
    assert found.room >= 0 and time.monotonic() - began < 5
