"""Image codecs: time from a PIL image to bytes and back, ours beside compressai's and Pillow's; and start-up.

    python -m benchmarks codecs [--data DIR] [--model NAME|FILE] [--rounds N] [--out DIR]

All of it is on the processor and in memory: conversion to tensors, transforms, entropy coding, framing, conversion to
8-bit pixels. Each round takes the next photograph. The start-up table is of whole processes, files included.

The learned peer is bmshj2018-factorized (Ballé, Minnen, Singh, Hwang and Johnston, 2018) of compressai, N = 128 and
M = 192, which its zoo uses up to quality 5. Its trained weights would have to be downloaded, so they are random here,
scaled to latents and densities of a usual rate: how long it takes does not depend on them, what it shows does.
"""

import os
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import codec
from benchmarks import startup
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
from codec.checkpoint import find_model
from codec.image import to_image, to_tensor
from codec.model import FactorizedCodec, has_native_bf16
from codec.rivals import RIVALS

ROUNDS = 15
QUALITY = 50  # of ours
RIVAL_QUALITY = {"jpeg": 40, "webp": 50, "avif": 55}  # 0.5 to 0.65 bpp on the sample photographs
LOGISTIC_SCALE = 0.22  # of the untrained peer's latents and densities: 0.5 bpp on the sample photographs


@dataclass(frozen=True)
class Contender:
    """A codec that takes part."""

    name: str
    about: str
    """Settings, for the reader of the table."""
    dtype: str
    """What most of the arithmetic is in."""
    threads: int
    """As many as it may use."""
    encode: Callable[[Image.Image], bytes]
    decode: Callable[[bytes], Image.Image]
    kmac: tuple[float, float] | None = None
    """Thousand multiply-accumulates per pixel of encoder and decoder; None for a classical codec."""


def ours(model: FactorizedCodec, threads: int) -> Contender:
    """Our codec with an exported model."""
    quality = QUALITY if model.config.variable_rate else None
    return Contender(
        f"lic {model.precision}",
        f"model {model.id}, quality {quality}, {model.parameter_count() / 1e6:.2f} M parameters",
        model.precision,
        threads,
        lambda image: model.compress(image, quality),
        model.decompress,
        model.kmac(),
    )


def untrained_peer(image: Image.Image) -> nn.Module:
    """compressai's FactorizedPrior with random weights, its latents of `image` distributed as its densities say."""
    from compressai.models import FactorizedPrior

    torch.manual_seed(0)
    net = FactorizedPrior(128, 192).eval()
    net.entropy_bottleneck = type(net.entropy_bottleneck)(192, init_scale=LOGISTIC_SCALE).eval()
    with torch.no_grad():
        for bias in net.entropy_bottleneck.biases:
            bias.zero_()  # centred densities, all of them logistic of the scale given
        std, mean = torch.std_mean(net.g_a(to_tensor(image)), dim=(0, 2, 3))
        factor = LOGISTIC_SCALE * torch.pi / 3**0.5 / std
        net.g_a[-1].weight.mul_(factor[:, None, None, None])
        net.g_a[-1].bias.sub_(mean).mul_(factor)
    net.entropy_bottleneck.update(force=True, update_quantiles=True)
    return net


def transform_kmac(transform: nn.Module, sample: Tensor, pixels: int) -> float:
    """Thousand multiply-accumulates per pixel of a transform, counted by torch."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        transform(sample)
    return counter.get_total_flops() / 2 / pixels / 1000


def compressai_peer(net: nn.Module, bf16: bool, threads: int) -> Contender:
    """The peer as it ships, or helped: bf16 autocast and channels_last. Files are the latent's shape and its string."""
    layout = torch.channels_last if bf16 else torch.contiguous_format
    net = net.to(memory_format=layout)

    def autocast() -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=bf16)

    @torch.inference_mode()
    def encode(image: Image.Image) -> bytes:
        with autocast():
            coded = net.compress(to_tensor(image).contiguous(memory_format=layout))
        return struct.pack("<HH", *coded["shape"]) + coded["strings"][0][0]

    @torch.inference_mode()
    def decode(data: bytes) -> Image.Image:
        with autocast():
            x_hat = net.decompress([[data[4:]]], struct.unpack_from("<HH", data))["x_hat"]
        return to_image(x_hat.float(), "RGB")

    x = torch.zeros(1, 3, 256, 256)
    y = torch.zeros(1, 192, 16, 16)
    kmac = transform_kmac(net.g_a, x, 256**2), transform_kmac(net.g_s, y, 256**2)
    name = "compressai bmshj2018-factorized " + ("bf16, channels_last" if bf16 else "fp32")
    about = f"N 128, M 192, random weights, {sum(p.numel() for p in net.parameters()) / 1e6:.2f} M parameters"
    return Contender(name, about, "bf16" if bf16 else "fp32", threads, encode, decode, kmac)


def rival(name: str) -> Contender:
    """A codec of Pillow; OSError where this Pillow lacks it."""
    rival, quality = RIVALS[name], RIVAL_QUALITY[name]
    rival.check()
    threads = (os.cpu_count() or 1) if name == "avif" else 1  # Pillow's default
    about = f"quality {quality}, {rival.settings}"
    return Contender(name, about, "int", threads, lambda image: rival.encode(image, quality), rival.decode)


def contenders(model: Path, image: Image.Image) -> tuple[list[Contender], dict[str, str]]:
    """Everyone who can take part, ours first, and why the others cannot. Networks run on all threads, and on one."""
    native = has_native_bf16(torch.device("cpu"))
    models = [codec.load(str(model), "cpu", precision) for precision in (("auto", "fp32") if native else ("auto",))]
    absent = {}
    try:
        peers = [(untrained_peer(image), bf16) for bf16 in ((False, True) if native else (False,))]
    except ImportError as error:
        peers, absent["compressai"] = [], f"cannot be imported: {error}"
    present = []
    for threads in sorted({torch.get_num_threads(), 1}, reverse=True):
        present += [ours(m, threads) for m in models]
        present += [compressai_peer(net, bf16, threads) for net, bf16 in peers]
    for name in RIVALS:
        try:
            present.append(rival(name))
        except OSError as error:
            absent[name] = str(error)
    return present, absent


def turn(contender: Contender, images: list[Image.Image]) -> Callable[[], Turn]:
    """Codes the first image, then, call by call, the next; AssertionError if one comes back in another size."""
    count = 0

    def one() -> Turn:
        nonlocal count
        image = images[count % len(images)]
        count += 1
        torch.set_num_threads(contender.threads)
        start = time.perf_counter()
        data = contender.encode(image)
        middle = time.perf_counter()
        decoded = contender.decode(data)
        end = time.perf_counter()
        assert decoded.size == image.size
        return Turn(middle - start, end - middle, len(data))

    return one


def run(data: Path | None, model: str, rounds: int) -> Report:
    """Measure; ModelError if there is no such model, OSError if there are no images."""
    about, path, images = machine(), find_model(model).resolve(), photographs(data)
    present, absent = contenders(path, images[0])
    turns = take_turns({c: turn(c, images) for c in present}, rounds)
    starts = startup.command_line(path, images[0])

    rows, cells = [], []
    for c in present:
        beside = next(turns[other] for other in present if other.threads == c.threads or c.kmac is None)
        times = {name: Spread.of(1e3 * getattr(t, name) for t in turns[c]) for name in ("encode", "decode", "both")}
        ratio = ratios((t.both for t in turns[c]), (t.both for t in beside))
        size = sum(t.bytes for t in turns[c]) / rounds
        kmac = "-" if c.kmac is None else f"{c.kmac[0]:.1f} / {c.kmac[1]:.1f}"
        spreads = [f"{spread:.1f}" for spread in times.values()]
        rows.append([c.name, str(c.threads), c.dtype, kmac, f"{size:.0f}", *spreads, f"{ratio:.2f}"])
        cell = {"name": c.name, "about": c.about, "dtype": c.dtype, "threads": c.threads, "kmac_per_pixel": c.kmac}
        cell |= {f"{name}_ms": spread._asdict() for name, spread in times.items()}
        cells.append(cell | {"ratio": ratio._asdict(), "bytes": size, "turns": [t._asdict() for t in turns[c]]})
    rows += [[name, *["-"] * 7, why] for name, why in absent.items()]
    header = ["codec", "threads", "dtype", "kMAC/pixel enc / dec", "bytes", "encode ms", "decode ms"]
    lines = [
        f"## Image codecs, {SIZE[0]}x{SIZE[1]}, PIL image -> bytes -> PIL image",
        machine_line(about),
        table([*header, "encode + decode ms", "ratio to ours"], rows),
        f"Median (quartiles) of {rounds} rounds over {len(images)} photographs in turn, all contenders interleaved in "
        "each round. Ratios are of encode + decode, round by round: of networks to ours with as many threads, of the "
        "others to ours at its best.",
        "\n".join(f"- {name}: {settings}" for name, settings in {c.name: c.about for c in present}.items()),
        "## Start-up",
        startup.start_table(starts),
        f"Median (quartiles) of {startup.ROUNDS} interleaved rounds of whole processes, one {SIZE[0]}x{SIZE[1]} "
        "photograph, PNG in and PNG out, warm kernel cache.",
    ]
    document = {"machine": about, "rounds": rounds, "images": len(images), "size": SIZE, "codecs": cells}
    return Report("codecs", "\n\n".join(lines), document | {"absent": absent, "startup_s": starts})
