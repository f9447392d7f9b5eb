"""Damaged files of a hyperprior model, decoded to the end: each kind of damage in all its places, and laws of any bytes
(the campaign of tests/tools/damage_campaign.py, in short in test_damage.py, knows more kinds and what they cost).
"""

from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from shared import picture

from codec.coding.codec import Codec
from codec.coding.models import load_model
from codec.container import bitstream
from codec.container.bitstream import HYPER, LATENT, FormatError, Section
from codec.network.hyper import REACH

TAGS = sorted(bitstream.KNOWN | bitstream.METADATA.keys())


class Sample(NamedTuple):
    """A file, what it decodes to, and files of the same model, quality and size."""

    model: Codec
    file: bytes
    pixels: bytes
    others: list[bytes]


def make_samples(models: Path, photos: list[Image.Image]) -> list[Sample]:
    """Both hyperprior models at low and high rates."""
    samples = []
    for name, qualities, backend in (("hyper", (5, 60), "onnx"), ("hyper_fixed", (None,), "torch")):
        model = load_model(models / f"{name}.safetensors", precision="fp32", backend=backend)
        for mode in ("RGB", "L"):
            for quality in qualities:
                files = [model.compress(photo.convert(mode), quality) for photo in photos]
                samples.append(Sample(model, files[0], model.decompress(files[0]).tobytes(), files[1:]))
    return samples


@pytest.fixture(scope="module")
def samples(models, photos) -> list[Sample]:
    return make_samples(models, photos)


def test_every_truncation_is_refused(samples):
    for sample in samples:
        for length in range(len(sample.file)):
            with pytest.raises(FormatError):
                sample.model.decompress(sample.file[:length])


def test_every_flipped_bit_is_refused(samples):
    for sample in samples[:1]:
        for bit in range(8 * len(sample.file)):
            broken = bytearray(sample.file)
            broken[bit // 8] ^= 1 << bit % 8
            with pytest.raises(FormatError):
                sample.model.decompress(bytes(broken))


def test_a_section_of_another_file_is_refused(samples):
    for sample in samples:
        header, (z, y) = bitstream.read(sample.file)
        assert (z.tag, y.tag) == (HYPER, LATENT)
        for other in sample.others:
            _, (other_z, other_y) = bitstream.read(other)
            for sections in ([other_z, y], [z, other_y]):
                with pytest.raises(FormatError):
                    sample.model.decompress(bitstream.write(header, sections))


def test_each_section_must_be_there_once_and_intact(samples):
    for sample in samples:
        header, (z, y) = bitstream.read(sample.file)
        swapped = [Section(HYPER, y.payload), Section(LATENT, z.payload)]
        for sections in ([z], [y], [z, z, y], [z, y, y], swapped):
            with pytest.raises(FormatError):
                sample.model.decompress(bitstream.write(header, sections))
        for section in (z, y):
            payload = section.payload
            for forged in [payload[:count] for count in range(0, len(payload), 7)] + [payload + b"\0", payload[::-1]]:
                sections = [part._replace(payload=forged) if part is section else part for part in (z, y)]
                with pytest.raises(FormatError, match="damaged"):
                    sample.model.decompress(bitstream.write(header, sections))
        assert (
            sample.model.decompress(bitstream.write(header, [y, z])).tobytes() == sample.pixels
        )  # order means nothing


@pytest.mark.parametrize("value", [REACH + 1, -REACH - 1, 2**31 - 1, -(2**31)])
def test_a_hyper_symbol_beyond_reach_is_refused(samples, value):
    """Written by an encoder that does not keep the law: z's own stream is intact."""
    sample = samples[0]
    header, sections = bitstream.read(sample.file)
    latent = sample.model.decode(header, sections)
    latent.z[0, 0, 0, 0] = value
    with pytest.raises(FormatError, match="hyper"):
        sample.model.decompress(sample.model.encode(latent, header.quality, header.mode, (header.height, header.width)))


@pytest.mark.parametrize("value", [2**31 - 1, -(2**31)])
def test_a_symbol_of_any_size_decodes(samples, value):
    for sample in samples:
        header, sections = bitstream.read(sample.file)
        latent = sample.model.decode(header, sections)
        latent.y[0, ::3, 1] = value
        size = header.height, header.width
        image = sample.model.decompress(sample.model.encode(latent, header.quality, header.mode, size))
        assert image.size == size[::-1] and image.tobytes() != sample.pixels


def test_a_section_that_the_model_does_not_use_is_refused(tiny, photo):
    header, sections = bitstream.read(tiny.compress(photo, 50))
    with pytest.raises(FormatError):
        tiny.decompress(bitstream.write(header, [*sections, Section(HYPER, b"\0")]))


# ---- laws, of a file that has everything beside the learned sections ----


@pytest.fixture(scope="module")
def whole(models, photo) -> tuple[Codec, bytes]:
    """A hyperprior model, and a file of it with alpha and all metadata."""
    model = load_model(models / "hyper.safetensors", precision="fp32")
    image = picture(photo, 40, 30)
    image.info = {"icc_profile": bytes(200), "exif": b"II*\0\x08\0\0\0\0\0", "xmp": b"<x/>" * 20, "dpi": (72, 72)}
    return model, model.compress(image, 40)


@given(st.data())
def test_any_other_bytes_in_any_place_are_refused(whole, data):
    model, file = whole
    begin, end = sorted(data.draw(st.tuples(*[st.integers(0, len(file))] * 2)))
    other = file[:begin] + data.draw(st.binary(max_size=40)) + file[end:]
    if other != file:
        with pytest.raises(FormatError) as caught:
            model.decompress(other)
        assert len(str(caught.value).splitlines()) == 1


@given(st.data())
def test_any_payload_of_any_section_is_refused_or_decodes_to_the_size_of_the_header(whole, data):
    model, file = whole
    header, sections = bitstream.read(file)
    i = data.draw(st.integers(0, len(sections) - 1))
    begin, end = sorted(data.draw(st.tuples(*[st.integers(0, len(sections[i].payload))] * 2)))
    payload = sections[i].payload[:begin] + data.draw(st.binary(max_size=40)) + sections[i].payload[end:]
    sections[i] = Section(data.draw(st.sampled_from(TAGS) | st.just(sections[i].tag)), payload)
    try:
        image = model.decompress(bitstream.write(header, sections))
        assert (image.mode, image.size) == ("RGBA", (40, 30))
    except FormatError as error:
        assert len(str(error).splitlines()) == 1


@given(st.integers(1, 600), st.integers(1, 600), st.sampled_from(bitstream.MODES), st.none() | st.integers(0, 100))
def test_any_header_is_refused_or_decodes_to_its_size(whole, width, height, mode, quality):
    model, file = whole
    _, sections = bitstream.read(file)
    try:
        forged = bitstream.write(bitstream.Header(model.id, quality, mode, width, height), sections)
        assert model.decompress(forged, 1 << 18).size == (width, height)
    except FormatError as error:
        assert len(str(error).splitlines()) == 1
