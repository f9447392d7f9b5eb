"""The codecs under test: ours, CompressAI's and the classical ones, each a pair of functions between image and file.

codec = make_codec("lic:runs/001/model.safetensors@10,30,50")
data = codec.encode(image, 30)

NAME[:MODEL][@q1,q2,...]        qualities 0..100, otherwise those of the codec
lic, lic:MODEL                  the default model, a shipped one by name, an exported one by path
lic:MODEL:effort=5              the same, with an effort of the encoder, 0..9
compressai:ARCHITECTURE:FILE    a checkpoint of CompressAI with its own compress and decompress
bridge:ARCHITECTURE:FILE        the same model through the coder of `entropy`
jpeg, webp, avif, ...           a classical codec: codec/evaluation/rivals.py
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
    """Anything that makes files of images."""

    name: str
    """Unique in a run: its label in tables and plots, its folder of files, its JSON."""
    description: str
    """Settings, for the reader of a table; with the name they say all that a file depends on."""
    suffix: str
    """File name ending, with the dot."""
    qualities: tuple[int | None, ...]
    """What to evaluate; (None,) where a codec has no quality."""
    encode: Callable[[Image.Image, int | None], bytes]
    decode: Callable[[bytes], Image.Image]
    estimate: Callable[[Image.Image, int | None], dict[str, float]] | None = None
    """The fields of evaluate.Row that the model expects; None for a classical codec, and without PyTorch."""
    model: Any = None
    """The exported model behind it, for its latents; None for all but ours."""
    parameters: int | None = None
    kmac: tuple[float, float] | None = None
    """Thousand multiply-accumulates per pixel of encoder and decoder."""
    dtype: str = "int"
    """What most of the arithmetic is in: bf16, fp32 or int."""
    device: str = "cpu"
    text: str | None = None
    """What make_codec makes it from in another process; None where it cannot."""

    @property
    def learned(self) -> bool:
        return self.parameters is not None


def make_codec(text: str, device: str = "auto") -> FileCodec:
    """The codec described by NAME[:MODEL][@q1,q2,...]; LicError or OSError says what is wrong with it."""
    head, levels = text, ()
    if match := re.fullmatch(r"(.+)@(\d+(?:,\d+)*)", text):
        head, levels = match[1], tuple(int(level) for level in match[2].split(","))
    name, _, model = head.partition(":")
    if name in ("compressai", "bridge"):
        if levels:
            raise LicError(f"{head} is a model of one fixed lambda: it takes no qualities, not {list(levels)}")
        architecture, _, file = model.partition(":")
        made = compressai_codec(architecture, Path(file), lic.pick_device(device), name == "bridge")
    elif name != "lic":
        made = rival_codec(head, levels)
    else:
        model, _, effort = model.partition(":effort=")
        if effort and effort not in map(str, range(MOST + 1)):
            raise LicError(f"{head}: the effort must be 0..{MOST}")
        path = Path(model)  # runs/001/model.safetensors is lic-001: every run's export has the same name
        stem = path.parent.name if path.stem == "model" and path.parent.name else path.stem
        name = (f"lic-{stem}" if model else "lic") + (f"-effort-{effort}" if effort else "")
        loaded = lic.load(model or None, device, backend="torch")  # which tells estimated bits, and searches
        made = lic_codec(loaded, levels, name, int(effort or 0))
    return replace(made, text=text)


def rival_codec(name: str, qualities: Iterable[int] = ()) -> FileCodec:
    """The classical codec `name` (a key of RIVALS) at `qualities`, or at its default ones.

    Raises LicError for an unknown name or quality, OSError where this Pillow lacks the format.
    """
    if name not in RIVALS:
        raise LicError(f"unknown codec {name!r}; there are lic, {', '.join(RIVALS)}, compressai:... and bridge:...")
    rival = RIVALS[name]
    rival.check()
    levels = _qualities(name, qualities) or rival.qualities
    return FileCodec(name, rival.settings, rival.suffix, levels, rival.encode, rival.decode)


def lic_codec(model, qualities: Iterable[int] = (), name: str = "lic", effort: int = 0) -> FileCodec:
    """An exported model at `qualities`, or from 0 to 100 in steps of 10 (a fixed-lambda model has but one point).

    Raises LicError for a quality that the model does not have.
    """
    from codec.evaluation.cost import kmac_of

    levels: tuple[int | None, ...] = _qualities(name, qualities)
    if not model.config.variable_rate:
        if levels:
            raise LicError(f"{name} is a model of one fixed lambda: it takes no qualities, not {list(levels)}")
        levels = (None,)
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
        name, f"{made}, {_about(parameters, kmac, model.precision, device)}", ".lic", levels or QUALITIES,
        partial(model.compress, effort=effort), model.decompress, estimate if kmac and not effort else None, model,
        parameters, kmac, model.precision, device,
    )  # fmt: skip


def compressai_codec(architecture: str, path: Path, device: str = "cpu", bridge: bool = False) -> FileCodec:
    """A checkpoint of CompressAI with its own coder or through ours: one rate, one point.

    Raises what compressai_models.load does, and LicError for a model that cannot be bridged.
    """
    from codec.evaluation import compressai_models as theirs
    from codec.evaluation.cost import kmac_per_pixel

    net = theirs.load(architecture, path, device)
    encode, decode = (theirs.bridged if bridge else theirs.coder)(net)
    kmac, parameters = kmac_per_pixel(encode, decode), sum(p.numel() for p in net.parameters())
    version = importlib.metadata.version("compressai")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    about = f"compressai {version} {architecture}, {path.name} (sha256 {digest})"
    return FileCodec(
        f"{architecture}-{path.name.split('.')[0]}" + ("-bridge" if bridge else ""),
        f"{about}, {'coder of entropy' if bridge else 'its own coder'}, {_about(parameters, kmac, 'fp32', device)}",
        ".lca" if bridge else ".cai", (None,), lambda image, _: encode(image), decode,
        lambda image, _: {"estimated_bytes": theirs.estimated_bits(net, image) / 8},
        None, parameters, kmac, "fp32", device,
    )  # fmt: skip


def check_unique(what: str, names: Sequence) -> None:
    """LicError where a name is there twice."""
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise LicError(f"the {what} {twice[0]!r} is there twice")


def _about(parameters: int, kmac: tuple[float, float] | None, precision: str, device: str) -> str:
    arithmetic = f"{parameters / 1e6:.2f} M parameters"
    arithmetic += f", {kmac[0]:.1f} + {kmac[1]:.1f} kMAC/pixel" if kmac else ""
    return f"{arithmetic}, {precision} on {device_name(device)}"


def _qualities(name: str, qualities: Iterable[int]) -> tuple[int, ...]:
    qualities = tuple(qualities)
    for quality in qualities:
        if not 0 <= quality <= 100:
            raise LicError(f"{name}: quality {quality} is not in 0..100")
    check_unique(f"quality of {name}", qualities)
    return qualities
