"""Drawings: kept to the last pixel where that is smaller, and never at the price of a photograph."""

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw
from shared import noise_image

from codec.coding.tiles import planes
from codec.container import bitstream, lossless
from codec.container.bitstream import LOSSLESS, FormatError, Header, Section


def drawing(mode: str = "RGB") -> Image.Image:
    """Lines and letters on white."""
    image = Image.new(mode, (120, 90), "white")
    draw = ImageDraw.Draw(image)
    draw.line((0, 0, 119, 89), "black")
    draw.text((5, 40), "rate and distortion", "black")
    return image


def board() -> Image.Image:
    """Black and white in turn, pixel by pixel."""
    return Image.fromarray((np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8))


@pytest.mark.parametrize("image", [drawing(), drawing("L"), board(), Image.new("RGB", (48, 32), "navy")])
def test_a_drawing_comes_back_exactly_and_takes_no_more_than_the_learned_way(model, image):
    data = model.compress(image, 60)
    header, sections = bitstream.read(data)
    assert [section.tag for section in sections] == [LOSSLESS]
    latent = model.latent(planes(image), 60)
    assert len(data) <= len(model.encode(latent, 60, image.mode, (image.height, image.width)))
    decoded = model.decompress(data)
    assert decoded.mode == image.mode and np.array_equal(np.asarray(decoded), np.asarray(image))


def test_photographs_and_noise_go_the_learned_way(model, photos):
    for image in (*photos, noise_image(64, 64)):
        assert not lossless.looks_drawn(image)
        assert LOSSLESS not in [section.tag for section in bitstream.read(model.compress(image, 60))[1]]


def test_a_drawing_that_is_smaller_the_learned_way_goes_there(model, photo):
    wide = photo.resize((photo.width * 6, photo.height * 6), Image.Resampling.NEAREST)
    assert lossless.looks_drawn(wide)
    assert LOSSLESS not in [section.tag for section in bitstream.read(model.compress(wide, 0))[1]]


def file(payload: bytes, size: tuple[int, int] = (120, 90), more: tuple[Section, ...] = ()) -> bytes:
    return bitstream.write(Header("0" * 16, 60, "RGB", *size), [Section(LOSSLESS, payload), *more])


def webp(**options) -> bytes:
    buffer = io.BytesIO()
    drawing().save(buffer, "WEBP", **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        file(b""),
        file(b"RIFF"),
        file(webp(lossless=True)[:-20]),
        file(webp(lossless=True), size=(90, 120)),
        file(webp(save_all=True, append_images=[board().convert("RGB").resize((120, 90))])),
        file(webp(lossless=True), more=(Section(bitstream.LATENT, b"x"),)),
        file(webp(lossless=True), more=(Section(LOSSLESS, webp(lossless=True)),)),
    ],
)
def test_a_damaged_lossless_section_is_a_format_error(model, data):
    with pytest.raises(FormatError, match="lossless"):
        model.decompress(data)


def test_a_lossless_section_with_a_profile_of_its_own_decodes(model):
    """An extended WebP, which our encoder does not write."""
    data = file(webp(lossless=True, icc_profile=b"profile"))
    assert model.decompress(data).tobytes() == drawing().tobytes()


def test_a_section_that_claims_a_larger_image_is_refused_before_there_is_room_for_it(model):
    payload = webp(lossless=True)
    claim = payload[:21] + b"\xff\xff\xff\x0f" + payload[25:]
    with pytest.raises(FormatError, match=r"\(16384, 16384\) in a file of \(120, 90\)"):
        model.decompress(file(claim))


def test_an_alpha_plane_without_data_is_refused_before_there_is_room_for_it(monkeypatch):
    square = lossless.encode_plane(Image.new("L", (lossless.SQUARE, lossless.SQUARE)))
    monkeypatch.setattr(lossless.Image, "new", lambda *_: pytest.fail("there is room"))
    for data in (b"", square, square + b"RIFF"):
        with pytest.raises(FormatError, match="an alpha plane of"):
            lossless.decode_plane(data, (8192, 16384))


def test_images_beyond_what_webp_holds_are_not_tried():
    assert not lossless.looks_drawn(Image.new("L", (lossless.LARGEST_SIDE + 1, 8)))
    assert not lossless.looks_drawn(Image.new("L", (2, 2)))
