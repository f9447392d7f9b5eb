"""One GPU, 1920x1080: images per second, from PIL images to the bytes of files and back, and the latency of one image.

    python -m benchmarks gpu [--data DIR] [--model NAME|FILE] [--rounds N] [--out DIR]

Everything is included: conversion of pixels, transfers both ways, transforms, entropy coding, framing. Three kinds of
threads work at the same time, each image on its own: one prepares pixels, the main thread drives the GPU, and as many
as there are processors, up to 8, code. Frames are mosaics of photographs, so that their detail is that of photographs.

    files = encode_all(model, images, quality=50)       the bytes of each, equal to model.compress(image, 50)
    images = decode_all(model, files)                   equal to model.decompress(data)
"""

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from PIL import Image

import codec
from benchmarks.codecs import choose_quality
from benchmarks.measure import Report, Spread, machine, machine_line, photographs, table
from codec.coding.codec import Codec
from codec.coding.models import find_model
from codec.coding.tiles import picture_of, planes
from codec.container import bitstream

ROUNDS = 9
SIZE = (1920, 1080)
FRAMES = 64  # in a round
LATENCIES = 20  # images that are coded alone
AHEAD = 16  # images under way between two kinds of threads: what they hold stays below 0.5 GB

S, T = TypeVar("S"), TypeVar("T")


def ahead(pool: ThreadPoolExecutor, work: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
    """work(item) of each item, in order, done by the pool while the caller is busy with earlier ones."""
    under_way: deque = deque()
    for item in items:
        under_way.append(pool.submit(work, item))
        if len(under_way) == AHEAD:
            yield under_way.popleft().result()
    while under_way:
        yield under_way.popleft().result()


def coders() -> ThreadPoolExecutor:
    """The threads that entropy-code."""
    return ThreadPoolExecutor(min(os.cpu_count() or 1, 8))


def encode_all(model: Codec, images: Iterable[Image.Image], quality: int | None) -> list[bytes]:
    """The files of RGB images."""

    def analyse(pixels):
        return model.latent(pixels, quality), pixels.shape[-2:]

    def write(coded) -> bytes:
        latent, size = coded
        return model.encode(latent, quality, "RGB", tuple(size))

    with ThreadPoolExecutor(1) as producer, coders() as pool:
        prepared = ahead(producer, planes, images)
        return list(ahead(pool, write, map(analyse, prepared)))


def decode_all(model: Codec, files: Iterable[bytes]) -> list[Image.Image]:
    """The images of files."""

    def read(data: bytes):
        header, sections = bitstream.read(data)
        return header, model.decode(header, sections)

    with coders() as pool:
        images = []
        for header, latent in ahead(pool, read, files):
            images.append(picture_of(model.reconstruct(latent, (header.height, header.width), header.quality)))
        return images


def mosaics(photos: list[Image.Image], size: tuple[int, int], count: int) -> list[Image.Image]:
    """Images of `size`, tiled with photographs of one size; each begins with the next of them."""
    width, height = photos[0].size
    frames = []
    for first in range(count):
        frame = Image.new("RGB", size)
        places = [(x, y) for y in range(0, size[1], height) for x in range(0, size[0], width)]
        for i, place in enumerate(places):
            frame.paste(photos[(first + i) % len(photos)], place)
        frames.append(frame)
    return frames


def seconds(work: Callable[[], object]) -> float:
    """Of one call, the GPU's queue being empty at both ends."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def run(data: Path | None, model: str, rounds: int) -> Report:
    """Measure; OSError without a GPU or without images, ModelError if there is no such model."""
    if not torch.cuda.is_available():
        raise OSError("gpu: torch finds no CUDA device here, so there is nothing to measure")
    about = machine() | {"GPU": torch.cuda.get_device_name()}
    net = codec.load(str(find_model(model)), "cuda")
    photos = photographs(data)
    quality = choose_quality(net.compress, photos) if net.config.variable_rate else None
    frames = mosaics(photos, SIZE, FRAMES)
    files = encode_all(net, frames, quality)  # not measured: kernels are compiled and chosen
    decode_all(net, files)
    times = {
        "encode": [seconds(lambda: encode_all(net, frames, quality)) for _ in range(rounds)],
        "decode": [seconds(lambda: decode_all(net, files)) for _ in range(rounds)],
    }
    single = {
        "encode": [seconds(partial(net.compress, frame, quality)) for frame in frames[:LATENCIES]],
        "decode": [seconds(partial(net.decompress, coded)) for coded in files[:LATENCIES]],
    }
    bpp = 8 * sum(map(len, files)) / (FRAMES * SIZE[0] * SIZE[1])
    rows = [
        [what, f"{Spread.of(FRAMES / t for t in times[what]):.1f}", f"{Spread.of(1e3 * t for t in single[what]):.1f}"]
        for what in times
    ]
    lines = [
        f"## One GPU, {SIZE[0]}x{SIZE[1]}, PIL image -> bytes -> PIL image",
        machine_line(about),
        f"Model {net.id}, quality {quality}, {net.precision}, {bpp:.2f} bpp.",
        table(["", "images/s, pipelined", "ms, one image alone"], rows),
        f"Median (quartiles) of {rounds} rounds of {FRAMES} frames, and of {LATENCIES} single images; everything "
        f"included, synchronised. Peak GPU memory {torch.cuda.max_memory_allocated() / 1e6:.0f} MB.",
    ]
    document = {"machine": about, "model": net.id, "precision": net.precision, "quality": quality, "bpp": bpp}
    document |= {"frames": FRAMES, "size": SIZE, "round_s": times, "single_s": single}
    return Report("gpu", "\n\n".join(lines), document)
