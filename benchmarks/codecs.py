"""Image codecs: time from a PIL image to bytes and back, ours beside compressai's and Pillow's; memory.

    python -m benchmarks codecs [--data DIR] [--model NAME|FILE] [--rounds N] [--out DIR]

All of it is on the processor and in memory: conversion to tensors, transforms, entropy coding, framing, conversion to
8-bit pixels. Each round takes the next photograph. Ours and the codecs of Pillow run at the highest quality that brings
the first photographs to at most 0.5 bpp; the learned peers have random weights, scaled to about that (peers.py).

BD-rates are those that eval.py wrote into benchmarks/results/kodak; a codec that it has not measured has none. Memory
is the peak resident set of a fresh process that makes the codec and codes one photograph to bytes and back.
"""

import json
import multiprocessing
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

import codec
from benchmarks import peers
from benchmarks.measure import (
    SIZE,
    Report,
    Spread,
    Turn,
    machine,
    machine_line,
    photographs,
    ratios,
    table,
    take_turns,
)
from codec.coding.models import find_model
from codec.coding.target import fit_size
from codec.evaluation import compressai_models, cost
from codec.evaluation.curves import ANCHORS, anchors, bd_rate, read_curve
from codec.evaluation.metrics import BD_RANGE
from codec.evaluation.rivals import RIVALS
from codec.machine import has_native_bf16
from codec.machine import threads as machine_threads

ROUNDS = 15
TARGET = 0.5  # bpp
SAMPLES = 4  # photographs that qualities are chosen with
RESULTS = Path(__file__).parent / "results" / "kodak"
# How many times as long AVIF takes to encode, and mbt2018-mean in fp32 to encode and decode, at least, of these models
GOALS = {"fast": (4, 8), "photo": (4, 8), "high": (1, 3)}


class Entry(NamedTuple):
    """What a process needs to know to make a contender."""

    kind: str
    """lic, lic-onnx (in ONNX Runtime), or a name of PEERS or RIVALS."""
    dtype: str
    """What most of the arithmetic is in: bf16, fp32 or int."""
    threads: int
    """As many as it may use."""
    model: Path
    """Ours."""
    quality: int | None = None
    """None for what has none."""


@dataclass(frozen=True)
class Contender:
    """A codec that takes part."""

    entry: Entry
    name: str
    about: str
    """Settings, for the reader of the table."""
    key: str
    """The name or model id under which results know it."""
    encode: Callable[[Image.Image], bytes]
    decode: Callable[[bytes], Image.Image]


def make(entry: Entry, image: Image.Image) -> Contender:
    """The contender of an entry; a peer is scaled to `image`. ImportError or OSError where it is not at hand."""
    kind, quality = entry.kind, entry.quality
    if kind in ("lic", "lic-onnx"):
        backend = "onnx" if kind == "lic-onnx" else "torch"
        model = codec.load(str(entry.model), "cpu", "fp32" if entry.dtype == "fp32" else "auto", backend)
        name = f"lic {entry.model.stem} {model.precision}" + (", ONNX Runtime" if backend == "onnx" else "")
        about = f"model {model.id}, quality {quality}, {model.backend.parameters / 1e6:.2f} M parameters"
        return Contender(entry, name, about, model.id, lambda image: model.compress(image, quality), model.decompress)
    if kind in peers.PEERS:
        net = peers.untrained(kind, image)
        about = f"N 128, M 192, random weights, {sum(p.numel() for p in net.parameters()) / 1e6:.2f} M parameters"
        name = f"compressai {kind} {entry.dtype}" + (", channels_last" if entry.dtype == "bf16" else "")
        return Contender(entry, name, about, kind, *compressai_models.coder(net, entry.dtype == "bf16"))
    rival = RIVALS[kind]
    rival.check()
    about = f"quality {quality}, {rival.settings}"
    return Contender(entry, kind, about, kind, lambda image: rival.encode(image, quality), rival.decode)


def choose_quality(encode: Callable[[Image.Image, int], bytes], images: list[Image.Image]) -> int:
    """The highest quality that brings the first images to at most TARGET bpp on average."""
    sample = images[:SAMPLES]
    most = TARGET / 8 * sum(image.width * image.height for image in sample)
    return fit_size(lambda _, quality: b"".join(encode(image, quality) for image in sample), sample[0], most)[1]


def contenders(path: Path, images: list[Image.Image]) -> tuple[list[Contender], dict[str, str]]:
    """Everyone who can take part, ours first, and why the others cannot. Networks run on all threads, and on one."""
    dtypes = ("bf16", "fp32") if has_native_bf16(torch.device("cpu")) else ("fp32",)
    model = codec.load(str(path), "cpu", backend="torch")
    quality = choose_quality(model.compress, images) if model.config.variable_rate else None
    entries = []
    for threads in sorted({torch.get_num_threads(), 1}, reverse=True):
        entries.append(Entry("lic", dtypes[0], threads, path, quality))
        if threads == machine_threads():  # which is what its sessions take
            entries.append(Entry("lic-onnx", "fp32", threads, path, quality))
        entries += [Entry(peer, dtype, threads, path) for peer in peers.PEERS for dtype in reversed(dtypes)]
    present, absent = [], {}
    for entry in entries:
        try:
            present.append(make(entry, images[0]))
        except ImportError as error:
            absent[f"compressai {entry.kind}"] = f"cannot be imported: {error}"
    for name, rival in RIVALS.items():
        threads = (os.cpu_count() or 1) if rival.format in ("AVIF", "JXL") else 1  # their defaults
        try:
            present.append(make(Entry(name, "int", threads, path, choose_quality(rival.encode, images)), images[0]))
        except OSError as error:
            absent[name] = str(error)
    return present, absent


def memory_here(entry: Entry, image: Image.Image) -> int:
    """Peak resident set of this process in bytes, after it has coded an image to bytes and back."""
    torch.set_num_threads(entry.threads)
    contender = make(entry, image)
    contender.decode(contender.encode(image))
    return cost.peak_memory()


def peak_memory(entry: Entry, image: Image.Image) -> int:
    """The same of a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(memory_here, (entry, image))


def bd_rates(folder: Path) -> tuple[str, dict[str, float]]:
    """The anchor, and BD-rates in percent at equal PSNR by codec name and by model id, as eval.py wrote them; none if
    it has not.
    Those of CompressAI's models, which are measured with random weights, are of their published points.
    """
    try:
        document = json.loads((folder / "bd_rate.json").read_text())
    except FileNotFoundError:
        return "-", {}
    rates = {}
    for name, percent in document["rates"]["psnr"]["percent"].items():
        about = json.loads((folder / f"{name}.json").read_text())["description"]
        model = re.match(r"model (\w+),", about)
        if isinstance(percent, float):  # otherwise it is the reason why there is none
            rates[model[1] if model else name] = percent
    anchor = document["anchor"]
    if anchor in anchors():
        for peer in peers.PEERS:
            rates[peer] = bd_rate(read_curve(ANCHORS, anchor), read_curve(ANCHORS, f"compressai-{peer}"), *BD_RANGE)
    return anchor, rates


def turn(contender: Contender, images: list[Image.Image]) -> Callable[[], Turn]:
    """Codes the first image, then, call by call, the next; AssertionError if one comes back in another size."""
    count = 0

    def one() -> Turn:
        nonlocal count
        image = images[count % len(images)]
        count += 1
        torch.set_num_threads(contender.entry.threads)
        start = time.perf_counter()
        data = contender.encode(image)
        middle = time.perf_counter()
        decoded = contender.decode(data)
        end = time.perf_counter()
        assert decoded.size == image.size
        return Turn(middle - start, end - middle, len(data))

    return one


def goals(turns: dict[Contender, list[Turn]]) -> list[str]:
    """How many times as long the others take as ours at its best, in words, and how many times was aimed at."""
    ours, lines = next(iter(turns)), []
    wanted = GOALS.get(ours.entry.model.stem, (None, None))
    for kind, dtype, what, least in (("avif", "int", "encode", wanted[0]), ("mbt2018-mean", "fp32", "both", wanted[1])):
        other = next((c for c in turns if (c.entry.kind, c.entry.dtype) == (kind, dtype)), None)  # the most threads
        if other is not None:
            ratio = ratios((getattr(t, what) for t in turns[other]), (getattr(t, what) for t in turns[ours]))
            doing = "encode" if what == "encode" else "encode + decode"
            aim = "" if least is None else f" (wanted: at least {least})"
            lines.append(f"- {doing}: {other.name} takes {ratio:.1f} times as long as {ours.name}{aim}")
    return lines


def run(data: Path | None, model: str, rounds: int) -> Report:
    """Measure; ModelError if there is no such model, OSError if there are no images."""
    about, path, images = machine(), find_model(model).resolve(), photographs(data)
    present, absent = contenders(path, images)
    turns = take_turns({c: turn(c, images) for c in present}, rounds)
    anchor, rates = bd_rates(RESULTS)

    rows, cells = [], []
    for c in present:
        kmac, rate, memory = cost.kmac_per_pixel(c.encode, c.decode), rates.get(c.key), peak_memory(c.entry, images[0])
        beside = next(turns[other] for other in present if other.entry.threads == c.entry.threads or kmac is None)
        times = {name: Spread.of(1e3 * getattr(t, name) for t in turns[c]) for name in ("encode", "decode", "both")}
        ratio = ratios((t.both for t in turns[c]), (t.both for t in beside))
        size = sum(t.bytes for t in turns[c]) / rounds
        rows.append(
            [
                c.name, str(c.entry.threads), c.entry.dtype, "-" if kmac is None else f"{kmac[0]:.1f} / {kmac[1]:.1f}",
                "-" if rate is None else f"{rate:+.1f} %", f"{8 * size / (SIZE[0] * SIZE[1]):.2f}",
                *(f"{spread:.1f}" for spread in times.values()), f"{ratio:.2f}", f"{memory / 1e6:.0f}",
            ]
        )  # fmt: skip
        cell: dict[str, Any] = {"name": c.name, "about": c.about, "dtype": c.entry.dtype, "threads": c.entry.threads}
        cell |= {"kmac_per_pixel": kmac, "bd_rate": rate, "bytes": size, "peak_memory_bytes": memory}
        cell |= {f"{name}_ms": spread._asdict() for name, spread in times.items()}
        cells.append(cell | {"ratio": ratio._asdict(), "turns": [t._asdict() for t in turns[c]]})
    rows += [[name, *["-"] * 9, why] for name, why in absent.items()]
    header = ["codec", "threads", "dtype", "kMAC/pixel enc / dec", f"BD-rate against {anchor}", "bpp", "encode ms"]
    lines = [
        f"## Image codecs, {SIZE[0]}x{SIZE[1]}, PIL image -> bytes -> PIL image",
        machine_line(about),
        table([*header, "decode ms", "encode + decode ms", "ratio to ours", "peak memory MB"], rows),
        f"Median (quartiles) of {rounds} rounds over {len(images)} photographs in turn, all contenders interleaved in "
        "each round. Ratios are of encode + decode, round by round: of networks to ours with as many threads, of the "
        "others to ours at its best. BD-rates on Kodak, by eval.py; of CompressAI's models, which have random weights "
        "here, those of its published points. Memory is the peak of a whole process: the rows of Pillow's codecs show "
        "what Python and PyTorch take without a network.",
        "\n".join(f"- {name}: {settings}" for name, settings in {c.name: c.about for c in present}.items()),
        "\n".join(goals(turns)),
    ]
    document = {"machine": about, "rounds": rounds, "images": len(images), "size": SIZE, "codecs": cells}
    return Report("codecs", "\n\n".join(lines), document | {"absent": absent, "bd_anchor": anchor})
