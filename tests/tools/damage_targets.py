"""What the damage campaign (tests/tools/damage_campaign.py) and the fuzzer (tests/tools/fuzz.py) attack: four targets.

    streams     entropy.Decoder, with streams bare and in files, of many shapes
    parser      what reads a .lic file and needs no model: bitstream.read and modes.unpack (metadata, WebP, alpha)
    decoder     Codec.decompress, of the golden hyperprior model and the shipped factorized one
    model       checkpoint.load_model, and decoding with what it accepts

A trial damages one sample as its number says, and tells the outcome. Half of all damage to files is done to them as
they are, and must be refused; half to files that are then stamped anew, which may decode to something else, since only
a checksum sees all damage. Memory is bounded by the size of the file and the pixels that it claims.
"""

import os
import tempfile
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from damage import BASIC, FILE_KINDS, KINDS, damage, damage_file, damage_model, damage_stream, stamp
from memory import resident_at_most, traced_at_most
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from shared import GOLDEN, GOLDEN_MODELS, random_context

from codec.coding import tiles
from codec.coding.codec import Codec
from codec.coding.models import ModelError, load_model
from codec.container import bitstream, metadata, modes
from codec.container.bitstream import FormatError
from codec.files import sample_images
from entropy import Context, Decoder, StreamError, Tables, encode, encode_adapted, rans

AS_IT_IS, STAMPED, BARE = "as it is", "stamped anew", "bare stream"
REFUSED, IDENTICAL, DIFFERENT = 1, 2, 3

MAX_PIXELS = 1 << 18  # of a file whose size was forged
LARGEST = 1 << 20  # bytes of one piece of metadata; the real limit takes ten times as long to inflate
MODELS = {name: GOLDEN_MODELS[name] for name in ("hyper", "fast-factorized")}


@dataclass(frozen=True)
class Target:
    """What is attacked: `trial(number)` gives the outcome, `way_and_kind(number)` what it does."""

    begin: Callable[[], Any]  # done once in each process, before its trials
    trial: Callable[[int], int]
    ways: tuple[str, ...]  # in turn
    kinds: tuple[str, ...]

    def way_and_kind(self, number: int) -> tuple[str, str]:
        return self.ways[number % len(self.ways)], self.kinds[number // len(self.ways) % len(self.kinds)]


def one_line(error: Exception) -> None:
    """ValueError unless the message of an error is one line."""
    if len(str(error).splitlines()) != 1:
        raise ValueError(f"the message is not one line: {str(error)!r}") from error


# ---- streams ----


@dataclass(frozen=True)
class Stream:
    """An intact stream and a file that contains it; the steps are ranges of channels, table = channel."""

    values: NDArray[np.int32]  # (C, h, w)
    index: NDArray[np.uint8]  # (C, 1, 1)
    tables: Tables
    context: Context | None  # then there is one step
    steps: list[tuple[int, int]]
    substream: int  # symbols; with the coder's own number all these streams would have one substream
    stream: bytes
    file: bytes


def make_streams(rng: Generator) -> list[Stream]:
    """Streams of 0.1 to 15 kB with one step and two, with a context and without, 1 lane and 4, one substream and many,
    escapes and none.
    """
    shapes = [(10, 8, 8), (24, 12, 16), (64, 16, 20), (160, 12, 20)]
    kinds = (1 << 20, 1, False), (500, 1, False), (1 << 20, 2, False), (1 << 20, 1, True), (500, 1, True)
    return [make_stream(rng, shape, escapes, *kind) for shape in shapes for escapes in (0, 0.03) for kind in kinds]


def make_stream(
    rng: Generator, shape: tuple[int, int, int], escapes: float, substream: int, steps: int, adapted: bool
) -> Stream:
    """Laplace-distributed values, a share of them replaced by any int32."""
    count, height, width = shape
    scales = np.exp(rng.uniform(-2, 1, (count, 1, 1)))
    values = np.rint(rng.laplace(0, scales, shape)).astype(np.int32)
    thrown = rng.random(shape) < escapes
    values[thrown] = rng.integers(-(2**31), 2**31, thrown.sum()) >> rng.integers(32, size=thrown.sum())
    pmfs = np.exp(-np.abs(np.arange(-30, 31)) / scales[:, 0])
    tables = Tables.from_pmfs(pmfs / pmfs.sum(axis=1, keepdims=True), [-30] * count)
    ranges = list(pairwise(np.linspace(0, count, steps + 1, dtype=int).tolist()))
    index = np.arange(count, dtype=np.uint8)[:, None, None]
    rans.SUBSTREAM = substream
    context = random_context(rng, count, 5) if adapted else None
    if context:
        stream = encode_adapted(values, np.broadcast_to(index, shape), tables, context)
    else:
        stream = encode([(values[i:j], index[i:j], tables) for i, j in ranges])
    ancillary = [bitstream.Section(tag, rng.bytes(20)) for tag in (200, 201)]
    sections = [ancillary[0], bitstream.Section(bitstream.LATENT, stream), ancillary[1]]
    file = bitstream.write(bitstream.Header("0123456789abcdef", 50, "RGB", 16 * width - 5, 16 * height), sections)
    return Stream(values, index, tables, context, ranges, substream, stream, file)


def decode_stream(data: bytes, sample: Stream, shape: tuple[int, int]) -> list[NDArray[np.int32]]:
    """The symbols of each step, (C, *shape) in all; StreamError, and MemoryError if they take too much of it."""
    rans.SUBSTREAM = sample.substream
    symbols = len(sample.values) * shape[0] * shape[1]
    rows = len(sample.values) * shape[0]
    seen = 2 * symbols + 8 * (symbols + 66 * rows) if sample.context else 0  # in vectors of 32 numbers, in strips
    with traced_at_most(8 * symbols + seen + 16 * len(data) + (1 << 16) + 1000 * (symbols // sample.substream)):
        decoder = Decoder(data, threads=2)
        if sample.context:
            decoder.check(symbols, shape[1])
            index = np.broadcast_to(sample.index, (len(sample.values), *shape))
            values = decoder.decode_adapted(index, sample.tables, sample.context)
            decoder.finish()
            return [values]
        values = [decoder.decode(sample.index[i:j], sample.tables, (j - i, *shape)) for i, j in sample.steps]
        decoder.finish()
    return values


def decode_file(data: bytes, sample: Stream) -> list[NDArray[np.int32]]:
    """As `decode_stream`, for the shape that the file says; FormatError besides."""
    with traced_at_most(16 * len(data) + (1 << 16)):
        header, sections = bitstream.read(data, 4 * MAX_PIXELS)
        stream = bitstream.find(sections, bitstream.LATENT)
    return decode_stream(stream, sample, (-(-header.height // 16), -(-header.width // 16)))


def streams(seed: int) -> Target:
    made = make_streams(np.random.default_rng(seed))
    for sample in made:  # intact ones are what they should be; this compiles the kernels, too
        assert np.array_equal(np.concatenate(decode_file(sample.file, sample)), sample.values)

    def trial(number: int) -> int:
        rng = np.random.default_rng([seed, number])
        way, kind = target.way_and_kind(number)
        sample = made[rng.integers(len(made))]
        intact = broken = sample.stream if way == BARE else sample.file
        while broken == intact:
            broken = damage_stream(rng, kind, intact) if way == BARE else damage_file(rng, kind, intact, [])
            broken = stamp(broken) if way == STAMPED else broken
        try:
            decoded = (
                decode_stream(broken, sample, sample.values.shape[1:]) if way == BARE else decode_file(broken, sample)
            )
        except (StreamError, FormatError) as error:
            one_line(error)
            return REFUSED
        same = all(np.array_equal(d, sample.values[i:j]) for d, (i, j) in zip(decoded, sample.steps, strict=True))
        return IDENTICAL if same else DIFFERENT

    target = Target(tracemalloc.start, trial, (AS_IT_IS, STAMPED, AS_IT_IS, BARE), KINDS)
    return target


# ---- files ----

BEFORE = 4 << 20  # bytes that any trial may take: pages of memory can have 2 MiB


@dataclass(frozen=True)
class File:
    """An intact file, what it decodes to, and other intact files of its model."""

    decode: Callable[[bytes], Any]  # FormatError for damage
    per_pixel: int  # bytes of memory
    data: bytes
    others: list[bytes]

    def room(self, data: bytes) -> int:
        """Bytes that decoding so much of damaged data may take."""
        try:
            header, sections = bitstream.read(data, MAX_PIXELS)
        except FormatError:
            return BEFORE + 8 * len(data)
        deflated = sum(tag in bitstream.METADATA and payload[:1] == b"\1" for tag, payload in sections)
        pixels = max(header.width, 64) * max(header.height, 64)  # padded to blocks, with a halo
        return BEFORE + 8 * len(data) + self.per_pixel * pixels + 3 * metadata.LARGEST * deflated


def parse(data: bytes) -> tuple:
    """All that a file says without its model."""
    header, sections = bitstream.read(data, MAX_PIXELS)
    image, alpha, info = modes.unpack(header, sections)
    streams = {tag: payload for tag, payload in sections if tag in (bitstream.LATENT, bitstream.HYPER)}
    return header, image and image.tobytes(), alpha and alpha.tobytes(), info, streams


def decode(model: Codec, data: bytes) -> tuple:
    """The picture of a file, and what is beside it."""
    image = model.decompress(data, MAX_PIXELS)
    return image.mode, image.size, image.tobytes(), image.info


def make_files(model: Codec) -> list[bytes]:
    """Files of all modes, with all metadata and none, photographs and a drawing, at low and high rates, one of four
    rows of tiles; with the golden file of the model.
    """
    photos = [photo.crop((x, y, x + 72, y + 56)) for _, photo in sample_images() for x, y in ((160, 60), (90, 180))]
    files = [
        model.compress(beside(photo) if mode == "RGBA" else photo.convert(mode), quality)
        for photo in photos[:3] for mode in ("RGB", "L", "RGBA") for quality in (5, 60)
    ]  # fmt: skip
    drawing = Image.new("RGBA", (72, 56), "white")
    ImageDraw.Draw(drawing).text((4, 20), "rate", "black")
    drawing.info = {"dpi": (300, 300)}
    with patch.object(tiles, "TILE", 1):
        files.append(model.compress(photos[0].resize((40, 250)), 20))
    return [*files, model.compress(drawing.convert("LA"), 60), model.compress(drawing, 60), golden(model)]


def golden(model: Codec) -> bytes:
    """The golden file of one of MODELS."""
    files = [(GOLDEN / f"{name}.lic").read_bytes() for name in MODELS]
    return next(data for data in files if bitstream.read(data)[0].model in (model.id, *model.replaces))


def beside(photo: Image.Image) -> Image.Image:
    """The photograph, half of it transparent, with all metadata."""
    image = photo.convert("RGBA")
    image.putalpha(photo.convert("L").point(lambda level: max(2 * level - 256, 0)))
    image.info = {
        "icc_profile": bytes(300),
        "exif": b"II*\0\x08\0\0\0\0\0\0\0\0\0",
        "xmp": b"<x/>" * 9,
        "dpi": (72, 72),
        "cicp": (9, 16, 0, 1),
    }
    return image


def execute(sample: File, data: bytes) -> Any:
    """What damaged data decodes to, None if it is refused; raises what is a fault."""
    with resident_at_most(sample.room(data)):
        try:
            return sample.decode(data)
        except FormatError as error:
            one_line(error)
    return None


def warm_up(samples: list[File]) -> list[Any]:
    """What the intact files decode to. A process that has done it has all code in memory, which counts as its own."""
    return [sample.decode(sample.data) for sample in samples]


def samples_of(name: str) -> list[File]:
    """Those of target `parser` or `decoder`."""
    torch.set_num_threads(1)
    metadata.LARGEST = LARGEST
    samples = []
    for path in MODELS.values():
        model = load_model(path, precision="fp32")
        files = make_files(model)
        way, per_pixel = (parse, 24) if name == "parser" else (partial(decode, model), 400)
        samples += [File(way, per_pixel, data, [other for other in files if other != data]) for data in files]
    return samples


def files(name: str, seed: int) -> Target:
    samples = samples_of(name)
    intact = warm_up(samples)

    def trial(number: int) -> int:
        rng = np.random.default_rng([seed, number])
        way, kind = target.way_and_kind(number)
        which = rng.integers(len(samples))
        sample = samples[which]
        broken = sample.data
        while broken == sample.data or broken in sample.others:
            broken = damage_file(rng, kind, sample.data, sample.others)
            broken = stamp(broken) if way == STAMPED else broken
        decoded = execute(sample, broken)
        return REFUSED if decoded is None else IDENTICAL if decoded == intact[which] else DIFFERENT

    target = Target(partial(warm_up, samples), trial, (AS_IT_IS, STAMPED), FILE_KINDS)
    return target


# ---- models ----


def model(seed: int) -> Target:
    torch.set_num_threads(1)
    paths = list(MODELS.values())
    files = [golden(load_model(path)) for path in paths]

    def begin() -> list[Any]:
        return [decode(load_model(path, precision="fp32"), data) for path, data in zip(paths, files, strict=True)]

    intact = begin()
    folder = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else Path(tempfile.gettempdir())

    def trial(number: int) -> int:
        rng = np.random.default_rng([seed, number])
        way, kind = target.way_and_kind(number)
        which = rng.integers(len(paths))
        original = broken = paths[which].read_bytes()
        while broken == original:
            broken = damage_model(rng, paths[which]) if way == STAMPED else damage(rng, kind, original)
        with tempfile.NamedTemporaryFile(dir=folder, suffix=".safetensors") as file:
            file.write(broken)
            file.flush()
            with resident_at_most((64 << 20) + 8 * len(broken)):
                try:
                    loaded = load_model(file.name, precision="fp32")
                    header, sections = bitstream.read(files[which])
                    forged = bitstream.Header(**vars(header) | {"model": loaded.id})
                    decoded = decode(loaded, bitstream.write(forged, sections))
                except (ModelError, FormatError) as error:
                    one_line(error)
                    return REFUSED
        return IDENTICAL if decoded == intact[which] else DIFFERENT

    target = Target(begin, trial, (AS_IT_IS, STAMPED), BASIC)
    return target


TARGETS = {
    "streams": (streams, 100_000), "parser": (partial(files, "parser"), 1_000_000),
    "decoder": (partial(files, "decoder"), 20_000), "model": (model, 5_000),
}  # fmt: skip
