"""Damaged files of a hyperprior model, decoded to the end: each kind of damage in all its places (the campaign of
tests/damage_campaign.py, in test_damage.py, takes places by chance).
"""

from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image

from codec import bitstream
from codec.base import Codec
from codec.bitstream import HYPER, LATENT, FormatError, Section
from codec.checkpoint import load_model
from codec.hyper import REACH


class Sample(NamedTuple):
    """A file, what it decodes to, and files of the same model, quality and size."""

    model: Codec
    file: bytes
    pixels: bytes
    others: list[bytes]


def make_samples(models: Path, photos: list[Image.Image]) -> list[Sample]:
    """Both hyperprior models at low and high rates."""
    samples = []
    for name, qualities in (("hyper", (5, 60)), ("hyper_fixed", (None,))):
        model = load_model(models / f"{name}.safetensors", precision="fp32")
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
