"""Damaged files of a hyperprior model, decoded to the end: refused, and never a crash, a hang or a wrong picture.

    python tests/test_damage_files.py [COUNT]     the campaign below with more trials, and its table

Every other trial's checksums are stamped anew; only such a file may decode to another picture, since nothing but a
checksum sees all damage. As in tests/damage_campaign.py, trials run in children of limited time and memory.
"""

import sys
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

if sys.platform != "linux":
    pytest.skip("the campaign needs fork and limits of address space", allow_module_level=True)

import damage_campaign as campaign

from codec import bitstream
from codec.base import Codec
from codec.bitstream import HYPER, LATENT, FormatError, Section
from codec.checkpoint import load_model
from codec.hyper import REACH

MAX_PIXELS = 1 << 18  # of a file whose size was forged
WAYS = (campaign.AS_IT_IS, campaign.STAMPED)
KINDS = (*campaign.KINDS, "splice")


class Sample(NamedTuple):
    """A file, what it decodes to, and files of the same model, quality and size."""

    model: Codec
    file: bytes
    pixels: bytes
    others: list[bytes]


def make_samples(models: Path, photos: list[Image.Image], modes: tuple[str, ...] = ("RGB", "L")) -> list[Sample]:
    """Both hyperprior models at low and high rates; a mode with alpha also has all metadata."""
    samples = []
    for name, qualities in (("hyper", (5, 60)), ("hyper_fixed", (None,))):
        model = load_model(models / f"{name}.safetensors", precision="fp32")
        for mode in modes:
            images = [beside(photo) if mode == "RGBA" else photo.convert(mode) for photo in photos]
            for quality in qualities:
                files = [model.compress(image, quality) for image in images]
                samples.append(Sample(model, files[0], model.decompress(files[0]).tobytes(), files[1:]))
    return samples


def beside(photo: Image.Image) -> Image.Image:
    """The photograph, half of it transparent, with all metadata."""
    image = photo.convert("RGBA")
    image.putalpha(photo.convert("L").point(lambda level: max(2 * level - 256, 0)))
    image.info = {"icc_profile": bytes(300), "exif": b"II*\0\x08\0\0\0\0\0\0\0\0\0", "xmp": b"<x/>", "dpi": (72, 72)}
    return image


def splice(rng: np.random.Generator, sample: Sample) -> bytes:
    """One section of the file replaced by that of another file, or all but one."""
    other = sample.others[rng.integers(len(sample.others))]
    a, b = (campaign.sections_of_file(data)[1] for data in (sample.file, other))
    (begin, _, end), (begin_b, _, end_b) = (cut[rng.integers(2)] for cut in (a, b))
    return sample.file[:begin] + other[begin_b:end_b] + sample.file[end:]


def way_and_kind(number: int) -> tuple[str, str]:
    """What trial `number` does."""
    return WAYS[number % len(WAYS)], KINDS[number // len(WAYS) % len(KINDS)]


def trial(samples: list[Sample], seed: int, number: int) -> int:
    """Damage a file as the number says, and tell the outcome."""
    rng = np.random.default_rng([seed, number])
    way, kind = way_and_kind(number)
    sample = samples[rng.integers(len(samples))]
    broken = sample.file
    while broken == sample.file:
        broken = splice(rng, sample) if kind == "splice" else campaign.damage(rng, kind, sample, is_file=True)
        broken = campaign.stamp(broken) if way == campaign.STAMPED else broken
    try:
        image = sample.model.decompress(broken, MAX_PIXELS)
    except FormatError:
        return campaign.REFUSED
    return campaign.IDENTICAL if image.tobytes() == sample.pixels else campaign.DIFFERENT


def damaged(samples: list[Sample], count: int, seed: int = 0) -> Counter[tuple[str, str, int]]:
    """How many trials of each way and kind had each outcome."""
    outcomes = campaign.run(count, partial(trial, samples, seed))
    return Counter((*way_and_kind(number), outcome) for number, outcome in enumerate(outcomes))


@pytest.fixture(scope="module")
def samples(models, photos) -> list[Sample]:
    return make_samples(models, photos)


def test_damaged_files_are_refused_unless_their_checksums_are_stamped_anew(samples, models, photos):
    counts = damaged(samples + make_samples(models, photos, ("RGBA",)), 960)
    assert campaign.broken_laws(counts) == []
    total = Counter()
    for (way, _, outcome), count in counts.items():
        total[way, outcome] += count
    assert total[campaign.AS_IT_IS, campaign.REFUSED] > 430 and total[campaign.STAMPED, campaign.REFUSED] > 250


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


if __name__ == "__main__":
    from conftest import HYPER as PRIOR
    from conftest import export, tiny_model
    from skimage import data

    astronaut = Image.fromarray(data.astronaut())
    crops = [astronaut.crop((x, y, x + 96, y + 64)) for x, y in ((160, 60), (40, 300), (300, 200))]
    with tempfile.TemporaryDirectory() as folder:
        for name, lmbda in (("hyper", [0.0009, 0.18]), ("hyper_fixed", [0.013])):
            export(tiny_model(crops[0], lmbda, PRIOR), Path(folder) / f"{name}.safetensors")
        counts = damaged(
            make_samples(Path(folder), crops, ("RGB", "L", "RGBA")), int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
        )
    for (way, kind, outcome), count in sorted(counts.items()):
        print(f"{way:20} {kind:10} {campaign.OUTCOMES[outcome]:20} {count}")
    sys.exit("; ".join(campaign.broken_laws(counts)) or 0)
