"""The codecs that are evaluated: ours, CompressAI's and classical ones, each with a function that makes a file of an
image, and its inverse.

    codec = make_codec("lic:runs/001/model.safetensors@10,30,50")
    data = codec.encode(image, 30)

    NAME[:MODEL][@q1,q2,...]        qualities in 0..100, by default those of the codec
    lic, lic:MODEL                  the default model, or one by name or path
    lic:MODEL:effort=5              the same, with an effort of the encoder, 0..9
    compressai:ARCHITECTURE:FILE    a checkpoint of CompressAI, with its own compress and decompress
    bridge:ARCHITECTURE:FILE        the same, with the coder of `entropy` (entropy/bridge.py)
    jpeg, webp, avif, ...           a classical codec (codec/evaluation/rivals.py)
"""

import hashlib
import importlib.metadata
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

import codec as lic
from codec.coding.effort import MOST
from codec.errors import LicError
from codec.evaluation.rivals import RIVALS
from codec.machine import device_name

QUALITIES = tuple(range(0, 101, 10))  # of an all-rates model


@dataclass(frozen=True)
class FileCodec:
    """A codec under evaluation."""

    name: str
    """Unique in a run: the label in tables and plots, and the name of its folder and JSON file."""
    description: str
    """Settings for the reader of a table; with the name, all that a file depends on."""
    suffix: str
    """File name ending, with the dot."""
    qualities: tuple[int | None, ...]
    """The qualities to evaluate; (None,) for a codec without quality."""
    encode: Callable[[Image.Image, int | None], bytes]
    decode: Callable[[bytes], Image.Image]
    estimate: Callable[[Image.Image, int | None], dict[str, float]] | None = None
    """Estimates by the model, as fields of results.Row; None for a classical codec, and without PyTorch."""
    model: Any = None
    """Our exported model, for its latents; None for other codecs."""
    parameters: int | None = None
    kmac: tuple[float, float] | None = None
    """Thousand multiply-accumulates per pixel of encoder and decoder."""
    dtype: str = "int"
    """The type of most of the arithmetic: bf16, fp32 or int."""
    device: str = "cpu"
    text: str | None = None
    """The argument of make_codec, which makes it again in another process; None if that is not possible."""

    @property
    def learned(self) -> bool:
        """Whether it is a model."""
        return self.parameters is not None


def make_codec(text: str, device: str = "auto") -> FileCodec:
    """The codec described by NAME[:MODEL][@q1,q2,...]; LicError or OSError if it cannot be made."""
    head, qualities = text, ()
    if match := re.fullmatch(r"(.+)@(\d+(?:,\d+)*)", text):
        head, qualities = match[1], tuple(map(int, match[2].split(",")))
    name, _, model = head.partition(":")
    if name in ("compressai", "bridge"):
        if qualities:
            raise LicError(f"{head} is a model of one fixed lambda: it takes no qualities, not {list(qualities)}")
        architecture, _, file = model.partition(":")
        made = compressai_codec(architecture, Path(file), lic.pick_device(device), name == "bridge")
    elif name != "lic":
        made = rival_codec(head, qualities)
    else:
        model, _, effort = model.partition(":effort=")
        if effort and effort not in map(str, range(MOST + 1)):
            raise LicError(f"{head}: the effort must be 0..{MOST}")
        path = Path(model)  # runs/001/model.safetensors becomes lic-001: exports of all runs have one file name
        stem = path.parent.name if path.stem == "model" and path.parent.name else path.stem
        name = (f"lic-{stem}" if model else "lic") + (f"-effort-{effort}" if effort else "")
        loaded = lic.load(model or None, device, backend="torch")  # it has estimated bits, and the search
        made = lic_codec(loaded, qualities, name, int(effort or 0))
    return replace(made, text=text)


def rival_codec(name: str, qualities: Iterable[int] = ()) -> FileCodec:
    """The classical codec `name` (a key of RIVALS) at `qualities`, or at its default ones.

    Raises LicError for an unknown name or quality, OSError where this Pillow lacks the format.
    """
    if name not in RIVALS:
        raise LicError(f"unknown codec {name!r}; there are lic, {', '.join(RIVALS)}, compressai:... and bridge:...")
    rival = RIVALS[name]
    rival.check()
    chosen = _checked(name, qualities) or rival.qualities
    return FileCodec(name, rival.settings, rival.suffix, chosen, rival.encode, rival.decode)


def lic_codec(model, qualities: Iterable[int] = (), name: str = "lic", effort: int = 0) -> FileCodec:
    """An exported model at `qualities`, or from 0 to 100 in steps of 10 (a fixed-lambda model has but one point).

    Raises LicError for a quality that the model does not have.
    """
    from codec.evaluation.cost import kmac_of

    chosen: tuple[int | None, ...] = _checked(name, qualities)
    if not model.config.variable_rate:
        if chosen:
            raise LicError(f"{name} is a model of one fixed lambda: it takes no qualities, not {list(chosen)}")
        chosen = (None,)
    kmac, device, parameters = kmac_of(model), model.device, model.backend.parameters

    def estimate(image: Image.Image, quality: int | None) -> dict[str, float]:
        found = model.estimate(image, quality)
        return {
            "estimated_bytes": found.bits / 8,
            "cross_entropy": found.cross_entropy,
            "empirical_entropy": found.empirical_entropy,
        }

    made = f"model {model.id}" + (f", effort {effort}" if effort else "")
    return FileCodec(
        name, f"{made}, {_arithmetic(parameters, kmac, model.precision, device)}", ".lic", chosen or QUALITIES,
        partial(model.compress, effort=effort), model.decompress, estimate if kmac and not effort else None, model,
        parameters, kmac, model.precision, device,
    )  # fmt: skip


def compressai_codec(architecture: str, path: Path, device: str = "cpu", bridge: bool = False) -> FileCodec:
    """A checkpoint of CompressAI with its own coder, or with ours (`bridge`): one rate, one point.

    Raises what compressai_models.load does, and LicError for a model that cannot be bridged.
    """
    from codec.evaluation import compressai_models as theirs
    from codec.evaluation.cost import kmac_per_pixel

    net = theirs.load(architecture, path, device)
    encode, decode = (theirs.bridged if bridge else theirs.coder)(net)
    kmac, parameters = kmac_per_pixel(encode, decode), sum(p.numel() for p in net.parameters())
    version = importlib.metadata.version("compressai")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    settings = f"compressai {version} {architecture}, {path.name} (sha256 {digest}), "
    settings += "coder of entropy" if bridge else "its own coder"
    return FileCodec(
        f"{architecture}-{path.name.split('.')[0]}" + ("-bridge" if bridge else ""),
        f"{settings}, {_arithmetic(parameters, kmac, 'fp32', device)}",
        ".lca" if bridge else ".cai", (None,), lambda image, _: encode(image), decode,
        lambda image, _: {"estimated_bytes": theirs.estimated_bits(net, image) / 8},
        None, parameters, kmac, "fp32", device,
    )  # fmt: skip


def check_unique(what: str, names: Sequence) -> None:
    """LicError if a name occurs twice."""
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise LicError(f"the {what} {twice[0]!r} is there twice")


def _arithmetic(parameters: int, kmac: tuple[float, float] | None, precision: str, device: str) -> str:
    """Size, arithmetic and device of a model, for its description."""
    cost = f", {kmac[0]:.1f} + {kmac[1]:.1f} kMAC/pixel" if kmac else ""
    return f"{parameters / 1e6:.2f} M parameters{cost}, {precision} on {device_name(device)}"


def _checked(name: str, qualities: Iterable[int]) -> tuple[int, ...]:
    """The qualities; LicError unless they are different numbers in 0..100."""
    qualities = tuple(qualities)
    for quality in qualities:
        if not 0 <= quality <= 100:
            raise LicError(f"{name}: quality {quality} is not in 0..100")
    check_unique(f"quality of {name}", qualities)
    return qualities
