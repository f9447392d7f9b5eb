"""What Pillow does not tell: colours said without a profile come back, the rest comes back or is told by name."""

import io
import struct
import time
import warnings

import files_with
import numpy as np
import pytest
from files_with import P3, SMALL, XMP_UUID, chromaticities, gamma, hexadecimal
from PIL import Image, ImageCms, TiffImagePlugin, features
from shared import saved

from codec.container import bitstream, colour, metadata, modes, original
from codec.container.bitstream import FormatError, Section
from codec.files import IMAGES

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
PACKET, EXIF = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'>sea</x:xmpmeta>", b"II*\0\x08\0\0\0\0\0\0\0\0\0"
PQ, DISPLAY_P3 = (9, 16, 0, 1), (12, 13, 0, 1)
TO_SRGB = np.array(((1.2249, -0.2247, 0), (-0.0420, 1.0419, 0), (-0.0197, -0.0786, 1.0979)))  # of linear P3


def opened(data: bytes) -> tuple[Image.Image, list[str]]:
    """A loaded image, and what is lost of its file."""
    image = Image.open(io.BytesIO(data))
    return image, modes.load(image)


def info_of(data: bytes) -> dict:
    return modes.prepare(opened(data)[0]).info


def in_srgb(pixel: tuple[int, ...], profile: bytes, mode: str = "RGB") -> np.ndarray:
    """What a colour of a profile is in sRGB."""
    given, to = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
    image = Image.new(mode, (1, 1), pixel)
    return np.array(ImageCms.profileToProfile(image, given, to, outputMode="RGB").getpixel((0, 0)))


def encoded(light: np.ndarray) -> np.ndarray:
    """Light in sRGB's own code, 0 to 255."""
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light.clip(0) ** (1 / 2.4) - 0.055)


# ---- colours ----


@pytest.mark.parametrize("power", [1.0, 1.8, 2.2])
def test_primaries_and_gamma_of_a_png_become_a_profile_that_means_them(power):
    profile = info_of(files_with.png(gamma(1 / power), chromaticities()))["icc_profile"]
    for pixel in ((200, 100, 50), (90, 160, 120), (30, 30, 30), (255, 255, 255)):
        expected = encoded(np.minimum(TO_SRGB @ (np.array(pixel) / 255) ** power, 1))
        assert np.abs(in_srgb(pixel, profile) - expected).max() <= 1.5


def test_the_gamma_of_a_gray_png_becomes_a_gray_profile():
    profile = info_of(files_with.png(gamma(1.0), image=SMALL.convert("L")))["icc_profile"]
    assert profile[16:20] == b"GRAY"
    assert np.abs(in_srgb(100, profile, "L") - encoded(np.full(3, 100 / 255))).max() <= 1
    assert info_of(files_with.png(gamma(1.0), image=SMALL.quantize(8)))["icc_profile"][16:20] == b"RGB "


@pytest.mark.parametrize("cicp", [(12, 13, 0, 1), (9, 1, 0, 1), (12, 8, 0, 1), (6, 6, 0, 1), (11, 4, 0, 1)])
def test_a_profile_made_for_code_points_shows_white_as_white_and_lcms_takes_it(cicp):
    profile = colour.of_cicp(cicp, gray=False)
    assert np.abs(in_srgb((255, 255, 255), profile) - 255).max() <= 1
    assert in_srgb((0, 0, 0), profile).tolist() == [0, 0, 0]
    gray = in_srgb((128, 128, 128), profile)
    assert np.ptp(gray) <= 1 and np.abs(in_srgb(128, colour.of_cicp(cicp, gray=True), "L") - gray).max() <= 1


@pytest.mark.parametrize(
    "data, cicp",
    [
        (files_with.png((b"cICP", bytes(PQ))), PQ),
        (files_with.png((b"cICP", bytes((9, 18, 0, 0)))), (9, 18, 0, 0)),
        (files_with.png((b"cICP", bytes(DISPLAY_P3))), DISPLAY_P3),
        (files_with.jp2(colr=b"\5\0\0" + struct.pack(">HHHB", 9, 16, 0, 0x80)), PQ),
        *([(files_with.avif(9, 16), PQ), (files_with.avif(12, 13), DISPLAY_P3)] if features.check("avif") else []),
    ],
)
def test_code_points_come_back_in_what_holds_them(tiny, data, cicp):
    image, lost = opened(data)
    file = tiny.compress(image, 50)
    assert lost == [] and metadata.unpack(bitstream.read(file)[1], gray=False)["cicp"] == cicp
    decoded = tiny.decompress(file)
    for form in ("PNG", *(["AVIF"] if features.check("avif") else [])):
        packed, lost = metadata.save(decoded, form)
        held = form == "PNG" or cicp[3] == 1
        assert lost == ([] if held else ["CICP"])
        assert info_of(packed).get("cicp") == (cicp if held else None)
    packed, lost = metadata.save(decoded, "JPEG")
    assert lost == ([] if cicp == DISPLAY_P3 else ["CICP"])
    assert ("icc_profile" in Image.open(io.BytesIO(packed)).info) == (cicp == DISPLAY_P3)


def test_the_profile_beside_code_points_is_made_and_not_stored(tiny):
    image, _ = opened(files_with.png((b"cICP", bytes(DISPLAY_P3))))
    file = tiny.compress(image, 50)
    assert [tag for tag, _ in bitstream.read(file)[1] if tag >= 128] == [bitstream.CICP]
    decoded = tiny.decompress(file)
    assert decoded.info == {"icc_profile": colour.of_cicp(DISPLAY_P3, gray=False), "cicp": DISPLAY_P3}
    assert [tag for tag, _ in bitstream.read(tiny.compress(decoded, 50))[1] if tag >= 128] == [bitstream.CICP]


ADOBE = (0.3127, 0.3290, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
TAGS = {318: ADOBE[:2], 319: ADOBE[2:]}


@pytest.mark.parametrize(
    "data",
    [
        files_with.jp2(colr=b"\2\0\0" + SRGB), files_with.bmp(b"DEBM", profile=SRGB),
        files_with.png(hexadecimal(b"icc", SRGB)),
        files_with.gif(files_with.extension(0xFF, b"ICCRGBG1012", SRGB[:200], SRGB[200:400], SRGB[400:])),
    ],
)  # fmt: skip
def test_a_profile_in_a_place_that_pillow_does_not_look_at_is_kept(data):
    image, lost = opened(data)
    assert lost == [] and modes.prepare(image).info["icc_profile"] == SRGB


def test_the_primaries_of_a_tiff_and_romm_of_jpeg2000_become_a_profile():
    profile = info_of(saved(SMALL, "TIFF", tiffinfo=TAGS))["icc_profile"]
    assert in_srgb((0, 255, 0), profile).tolist() == [0, 255, 0] and in_srgb((100, 200, 100), profile)[0] < 80
    profile = info_of(files_with.jp2(colr=b"\1\0\0" + struct.pack(">I", 21)))["icc_profile"]
    assert np.abs(in_srgb((255, 255, 255), profile) - 255).max() <= 1


SRGB_POINTS = (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
PLAIN = {
    "nothing": files_with.png(), "gAMA": files_with.png(gamma()), "cHRM": files_with.png(chromaticities(SRGB_POINTS)),
    "both": files_with.png(gamma(), chromaticities(SRGB_POINTS)),
    "cICP": files_with.png((b"cICP", bytes((1, 13, 0, 1)))),
    "sRGB": files_with.png((b"sRGB", b"\0"), gamma(0.5), chromaticities(P3)), "JP2": files_with.jp2(),
    "gray JP2": files_with.jp2(colr=b"\1\0\0" + struct.pack(">I", 17), image=SMALL.convert("L")),
    "BMP": files_with.bmp(b"BGRs", bytes(range(48))), "BMP, Windows": files_with.bmp(b" niW"),
    "BMP, zeros": files_with.bmp(bytes(4)),
    **({"AVIF": saved(SMALL, "AVIF"), "AVIF, unspecified": files_with.avif(2, 2)} if features.check("avif") else {}),
    "TIFF": saved(SMALL, "TIFF", tiffinfo={318: SRGB_POINTS[:2], 319: SRGB_POINTS[2:]}),
}  # fmt: skip


@pytest.mark.parametrize("name", PLAIN)
def test_srgb_however_it_is_said_stays_silent(name):
    image, lost = opened(PLAIN[name])
    info = modes.prepare(image).info
    info.pop("dpi", None)
    assert (info, lost) == ({}, [])


@pytest.mark.parametrize("raw", [b"", b"\x09\x10\0", b"\x09\x10\0\1\0", b"\x09\x10\x09\1", b"\x09\x10\0\2"])
def test_code_points_that_rgb_cannot_have_are_not_decoded(raw):
    with pytest.raises(FormatError, match="CICP"):
        metadata.unpack([Section(bitstream.CICP, b"\0" + raw)], gray=False)


@pytest.mark.parametrize(
    "points", [(0.3, 0, *P3[2:]), (0.3127, 0.329) + (0.3, 0.3) * 3, (9.0,) * 8, (float("nan"),) * 8]
)
def test_primaries_that_there_cannot_be_make_no_profile(points):
    assert colour.profile(points, (2.2,), gray=False) is None


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
