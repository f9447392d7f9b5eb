"""Every mode of Pillow is coded as documented or refused by name, and alpha is exact."""

import io
import itertools
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageDraw, features
from shared import picture, saved

import codec
from codec.coding import models as checkpoint
from codec.container import bitstream, lossless
from codec.container.bitstream import LOSSLESS, XMP
from codec.container.modes import UnsupportedImage, check, fill, has_more, prepare

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
BEFORE = bytes.fromhex(
    "894c494301993bee340cf9a5a0320101180a033e5249464636000000574542505650384c290000002f174002000f30fff33ffff31f784013496a"
    "a4210d0948430b43cb64bb6888e87f0f8ea5c8c7fc6d020097a8c77a"
)


def palette_with_alpha(image: Image.Image) -> Image.Image:
    """Mode P with an alpha for each of its colours."""
    quantized = image.convert("RGB").quantize(16)
    quantized.info["transparency"] = bytes(range(0, 256, 16))
    return quantized


def one_transparent(image: Image.Image) -> Image.Image:
    """An image whose first pixel's colour is the transparent one, as PNG and GIF have it."""
    image.info["transparency"] = image.getpixel((0, 0))
    return image


CODED = {  # an RGBA picture -> an image of the mode, and what the mode is decoded to
    "RGB": (lambda image: image.convert("RGB"), "RGB"),
    "RGB, one transparent": (lambda image: one_transparent(image.convert("RGB")), "RGBA"),
    "RGBA": (lambda image: image, "RGBA"),
    "L": (lambda image: image.convert("L"), "L"),
    "L, one transparent": (lambda image: one_transparent(image.convert("L")), "LA"),
    "LA": (lambda image: image.convert("LA"), "LA"),
    "P": (lambda image: image.convert("RGB").quantize(64), "RGB"),
    "P, gray": (lambda image: image.convert("L").quantize(64), "L"),
    "P, transparent": (palette_with_alpha, "RGBA"),
    "P, gray and transparent": (lambda image: palette_with_alpha(image.convert("L")), "LA"),
    "PA": (lambda image: image.convert("RGB").quantize(16).convert("PA"), "RGBA"),
    "1": (lambda image: image.convert("1"), "L"),
    "YCbCr": (lambda image: image.convert("RGB").convert("YCbCr"), "RGB"),
}


@pytest.mark.parametrize("kind", CODED)
def test_every_coded_mode_comes_back_in_its_size_and_mode_with_alpha_exact(tiny, photo, kind):
    make, mode = CODED[kind]
    rng = np.random.default_rng(len(kind))
    sizes = [[1, 1], [16, 16], [1, 130], [130, 1], *rng.integers(1, 131, (8, 2)).tolist()]
    for (width, height), quality in zip(sizes, itertools.cycle((0, 40, 100)), strict=False):
        image = make(picture(photo, width, height))
        decoded = tiny.decompress(tiny.compress(image, quality))
        assert (decoded.size, decoded.mode) == ((width, height), mode)
        if "A" in mode:
            assert decoded.getchannel("A").tobytes() == image.convert("RGBA").getchannel("A").tobytes()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_a_drawing_is_exact_in_every_mode_colours_under_alpha_included(tiny, mode):
    pixels = np.zeros((60, 80, 4), np.uint8)
    pixels[10:40, 20:50] = 200, 200, 200, 255
    pixels[20:30, 30:40, 3] = 0  # hidden gray
    image = Image.fromarray(pixels).convert(mode)
    image.info = {"xmp": b"<x/>"}
    data = tiny.compress(image, 50)
    assert [section.tag for section in bitstream.read(data)[1]] == [LOSSLESS, XMP]
    decoded = tiny.decompress(data)
    assert decoded.tobytes() == image.convert(decoded.mode).tobytes() and decoded.info == {"xmp": b"<x/>"}


def test_a_drawing_decodes_where_its_model_is_not(lic, photo, monkeypatch, shell):
    drawing = Image.new("RGB", (60, 50), "white")
    drawing.paste("navy", (5, 10, 20, 30))
    drawing.save("a.png")
    photo.save("b.png")
    assert lic("compress", "a.png", "b.png", "-o", ".", "-m", "tiny")[0] == 0
    monkeypatch.setenv("LIC_MODELS", str(shell / "nowhere"))
    monkeypatch.setattr(checkpoint, "_shared", {})  # as a new process begins
    assert codec.decompress((shell / "a.lic").read_bytes(), region=(0, 0, 40, 50)).size == (40, 50)
    code, _, err = lic("decompress", "a.lic", "b.lic", "-o", "out")
    assert code == 1 and "b.lic" in err[-2] and "nowhere" in err[-2]
    assert Image.open("out/a.png").tobytes() == drawing.tobytes()


def test_colours_that_nobody_sees_cost_next_to_nothing(tiny, photo):
    image = picture(photo, 128, 128)
    noise = np.array(image)
    hidden = noise[..., 3] == 0
    assert 0.1 < hidden.mean() < 0.9
    noise[hidden, :3] = np.random.default_rng(0).integers(0, 256, (hidden.sum(), 3))
    assert tiny.compress(Image.fromarray(noise), 60) == tiny.compress(image, 60)
    filled = np.array(fill(Image.fromarray(noise)))
    assert np.array_equal(filled[~hidden], noise[~hidden, :3])


def test_filling_takes_what_is_seen_nearby():
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[:8] = 10, 20, 30, 255
    pixels[-8:] = 200, 210, 220, 1
    filled = np.array(fill(Image.fromarray(pixels))).astype(int)
    assert (filled[16] < 60).all() and (filled[47] > 160).all()
    assert np.abs(np.diff(filled, axis=0)).max() < 9  # no step, where it begins neither
    nothing = Image.new("LA", (5, 3))
    assert fill(nothing).size == (5, 3)


@pytest.mark.parametrize("size", [(1, 1), (16400, 3), (2, 16400), (2048, 5), (40, 35)])
def test_an_alpha_plane_of_any_size_is_exact(size, monkeypatch):
    if max(size) < 100:
        monkeypatch.setattr(lossless, "SQUARE", 16)
    pixels = np.random.default_rng(0).integers(0, 256, size[0] * size[1], dtype=np.uint8).reshape(size[::-1])
    pixels[:, 99:] //= 128
    plane = Image.fromarray(pixels)
    data = lossless.encode_plane(plane)
    assert lossless.decode_plane(data, size).tobytes() == plane.tobytes()


def test_a_drawing_from_before_there_was_alpha_decodes_for_ever(tiny):
    decoded = tiny.decompress(BEFORE)
    expected = Image.new("L", (24, 10), 255)
    ImageDraw.Draw(expected).line((0, 0, 23, 9), 0)
    assert (decoded.mode, decoded.info) == ("L", {}) and decoded.tobytes() == expected.tobytes()


def test_gray_with_a_profile_of_rgb_stays_rgb(photo):
    image = photo.convert("L").quantize(16)
    assert prepare(image).image.mode == "L"
    image.info["icc_profile"] = SRGB
    assert prepare(image).image.mode == "RGB"


# ---- what is refused ----


@pytest.mark.parametrize(
    "mode, remedy",
    [
        ("CMYK", "no profile"), ("LAB", "ImageCms"), ("HSV", "convert"), ("I", "scale"), ("F", "scale"),
        ("I;16", "-depth 8"), ("I;16B", "-depth 8"), ("I;16L", "-depth 8"), ("RGBX", "convert"), ("RGBa", "convert"),
        ("La", "convert"),
    ],
)  # fmt: skip
def test_every_other_mode_is_refused_with_its_name_and_a_remedy(tiny, mode, remedy):
    with pytest.raises(UnsupportedImage, match=f"mode {mode}: .*{remedy}"):
        tiny.compress(Image.new(mode, (9, 9)), 50)


def test_the_remedy_for_cmyk_with_a_profile_works(tiny):
    image = Image.new("CMYK", (9, 9))
    image.info["icc_profile"] = SRGB
    with pytest.raises(UnsupportedImage, match="by the embedded profile, ImageCms.profileToProfile"):
        tiny.compress(image, 50)


def test_an_image_without_pixels_is_refused(tiny):
    with pytest.raises(ValueError, match="no pixels"):
        tiny.compress(Image.new("RGB", (0, 5)), 50)


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(bits: int, colour: int, samples: int) -> bytes:
    """A PNG of 4x4 zeros."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, bits, colour, 0, 0, 0))
    rows = zlib.compress(bytes(4 * (1 + 4 * samples * bits // 8)))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def jpeg2000(bits: int) -> bytes:
    """A JPEG 2000 whose head says that each of its three channels has so many bits."""
    data = bytearray(saved(Image.new("RGB", (9, 9)), "JPEG2000"))
    first = data.index(b"\xff\x4f\xff\x51") + 42
    data[first : first + 9 : 3] = bytes([bits - 1] * 3)
    return bytes(data)


@pytest.mark.parametrize(
    "data, is_deep",
    [
        *((png(16, colour, samples), True) for colour, samples in ((0, 1), (2, 3), (4, 2), (6, 4))),
        *((png(8, colour, samples), False) for colour, samples in ((0, 1), (2, 3), (4, 2), (6, 4))),
        (b"P6 2 1 65535 " + bytes(12), True),
        (b"P6 2 1 255 " + bytes(6), False),
        (b"P3 2 1 9 1 2 3 4 5 6", False),
        (b"P1 2 1 1 0", False),
        (jpeg2000(12), True),
        (jpeg2000(8), False),
    ],
)
def test_more_than_8_bits_are_refused_before_pillow_rounds_them(data, is_deep):
    with Image.open(io.BytesIO(data)) as image:
        if is_deep:
            with pytest.raises(UnsupportedImage, match="more than 8 bits"):
                prepare(image)
        else:
            prepare(image)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_a_deep_avif_is_seen_by_its_head():
    data = saved(Image.new("RGB", (16, 16)), "AVIF")
    with Image.open(io.BytesIO(data)) as image:
        check(image)
        image.fp = io.BytesIO(data.replace(b"av1C\x81\x00\x0c", b"av1C\x81\x00\x4c"))
        with pytest.raises(UnsupportedImage, match="more than 8 bits"):
            check(image)


def tiff(bits: int, planar: int) -> bytes:
    """A TIFF of 4x4 zeros in three channels, interleaved (planar 1) or one after the other (2)."""
    samples = 3
    entries = [
        (256, 4), (257, 4), (258, 0), (259, 1), (262, 2), (273, 0), (277, samples), (278, 4), (279, 0), (284, planar),
    ]  # fmt: skip
    strips = samples if planar == 2 else 1
    size = 16 * bits // 8 * samples // strips
    there = 10 + 12 * len(entries) + 4
    lists = {258: [bits] * samples, 273: [there + 16 * samples + size * i for i in range(strips)], 279: [size] * strips}
    body, directory = b"", struct.pack("<H", len(entries))
    for tag, value in entries:
        values = lists.get(tag, [value])
        packed = struct.pack(f"<{len(values)}I", *values)
        if len(values) > 1:
            body, packed = body + packed, struct.pack("<I", there + len(body))
        directory += struct.pack("<HHI", tag, 4, len(values)) + packed
    return (b"II*\0" + struct.pack("<I", 8) + directory + bytes(4) + body).ljust(there + 16 * samples, b"\0") + bytes(
        size * strips
    )


@pytest.mark.parametrize("planar", [1, 2])
@pytest.mark.parametrize("bits", [8, 16])
def test_a_deep_tiff_is_refused_whether_its_channels_are_interleaved_or_not(bits, planar):
    with Image.open(io.BytesIO(tiff(bits, planar))) as image:
        if bits == 16:
            with pytest.raises(UnsupportedImage, match="more than 8 bits"):
                prepare(image)
        else:
            assert prepare(image).image.tobytes() == bytes(48)


def test_a_tiff_of_samples_with_a_sign_is_refused():
    with Image.open(io.BytesIO(saved(Image.new("L", (9, 9)), "TIFF", tiffinfo={339: 2}))) as image:
        for _ in range(2):
            with pytest.raises(UnsupportedImage, match="mode L: samples from -128"):
                prepare(image)
            image.load()


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_the_transparent_gray_of_a_png_of_few_bits_is_transparent(tiny, bits):
    data = png(bits, 0, 1)
    end = data.index(b"IDAT") - 4
    most = (1 << bits) - 1
    rows = zlib.compress(b"".join(b"\0" + bytes([255] * (4 * bits // 8 or 1)) for _ in range(4)))
    for level, alpha in ((0, 255), (most, 0)):  # of an image of the highest level throughout
        body = chunk(b"tRNS", struct.pack(">H", level)) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
        with Image.open(io.BytesIO(data[:end] + body)) as image:
            decoded = tiny.decompress(tiny.compress(image, 50))
        assert decoded.mode == "LA" and decoded.getextrema() == ((255, 255), (alpha, alpha))


# ---- the command line ----


def test_alpha_is_shown_and_goes_only_into_formats_that_hold_it(lic, photo, tmp_path):
    image = picture(photo, 40, 30)
    image.save("a.png")
    assert lic("compress", "a.png", "-m", "tiny")[0] == 0
    assert "40x30 RGBA, " in lic("info", "a.lic")[1]
    for suffix in ("jpg", "bmp", "ppm", "gif"):
        code, _, err = lic("decompress", "a.lic", "-o", f"b.{suffix}")
        assert (code, len(err)) == (1, 1) and "cannot hold the alpha plane of mode RGBA: write PNG" in err[0]
        assert not (tmp_path / f"b.{suffix}").exists()
    for suffix in ("png", "tif"):
        assert lic("decompress", "a.lic", "-o", f"b.{suffix}")[0] == 0
        with Image.open(f"b.{suffix}") as decoded:
            assert decoded.getchannel("A").tobytes() == image.getchannel("A").tobytes()


@pytest.mark.parametrize("form", ["GIF", "PNG", "TIFF", *filter(features.check, ["webp"])])
def test_of_several_frames_the_first_is_coded_with_a_warning_or_none_if_strict(lic, photos, form):
    first, *others = (photo.copy() for photo in photos)  # Pillow remembers what a photo was saved as before
    first.save("a.img", form, save_all=True, append_images=others)
    with Image.open("a.img") as image:
        assert has_more(image)
    code, _, err = lic("compress", "a.img", "-m", "tiny", "--strict")
    assert (code, len(err)) == (1, 1) and "more than one frame or page, which --strict refuses" in err[0]
    code, _, err = lic("compress", "a.img", "-m", "tiny")
    assert (code, len(err)) == (0, 2) and "a.img: it has more than one frame or page, only the first" in err[0]
    photos[0].save("b.png")
    assert len(lic("compress", "b.png", "-m", "tiny", "--strict")[2]) == 1


def test_a_deep_file_is_refused_by_the_command_line(lic, tmp_path):
    (tmp_path / "a.png").write_bytes(png(16, 2, 3))
    code, _, err = lic("compress", "a.png", "-m", "tiny")
    assert (code, len(err)) == (1, 1) and "more than 8 bits a sample" in err[0] and "-depth 8" in err[0]
