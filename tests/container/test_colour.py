"""Colours that are said without a profile come back, as code points or as a profile that means them."""

import io
import struct

import files_with
import numpy as np
import pytest
from files_with import P3, PLAIN, SMALL, SRGB, chromaticities, gamma, hexadecimal, info_of, opened
from PIL import Image, ImageCms, features
from shared import saved

from codec.container import bitstream, colour, metadata, modes
from codec.container.bitstream import FormatError, Section

PQ, DISPLAY_P3 = (9, 16, 0, 1), (12, 13, 0, 1)
TO_SRGB = np.array(((1.2249, -0.2247, 0), (-0.0420, 1.0419, 0), (-0.0197, -0.0786, 1.0979)))  # of linear P3


def in_srgb(pixel: tuple[int, ...], profile: bytes, mode: str = "RGB") -> np.ndarray:
    """What a colour of a profile is in sRGB."""
    given, to = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
    image = Image.new(mode, (1, 1), pixel)
    return np.array(ImageCms.profileToProfile(image, given, to, outputMode="RGB").getpixel((0, 0)))


def encoded(light: np.ndarray) -> np.ndarray:
    """Light in sRGB's own code, 0 to 255."""
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light.clip(0) ** (1 / 2.4) - 0.055)


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
