"""Where the hyperprior of a codec starts: its densities fit what the other parts make of photographs."""

import math
from collections.abc import Set
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from codec.network.hyper import INDEX_BITS, start_at_zero
from codec.network.layers import Conv2d, Knots
from entropy.integer import IntegerConv2d

if TYPE_CHECKING:
    from codec.coding.base import Codec
    from codec.network.model import HyperpriorCodec

ASLEEP = 0.25  # deviation of a channel of z, in steps, below which it is as good as zero


@torch.no_grad()
def fit(model: "HyperpriorCodec", x: Tensor, kept: Set[str]) -> int:
    """Before step 0: scales of y and density of z as x (B, 3, H, W) in [0, 1] leads to, at all qualities. A part whose
    weights are all in `kept` stays as it is, except that channels of z that are asleep are woken; returns how many.
    """
    h_a, h_s, prior = (whole(model, part, kept) for part in ("h_a", "h_s", "prior"))
    if not h_s:
        if any(name.startswith("h_s.scale.") for name in kept):  # of features that are gone
            start_at_zero(model.h_s.scale)
        fit_scales(model, x)
    if not h_a:
        if h_s:
            forget(model, slice(None))
        every = torch.ones(model.prior.channels, dtype=torch.bool, device=x.device)
        _start(model, every, *hyper_latents(model, x))
    elif not prior:
        w, level = hyper_latents(model, x)
        model.prior.scale.copy_((w / model.hyper_gain_at(level)).square().mean(dim=(0, 2, 3)).sqrt().clamp_min(1e-3))
    elif all(p.requires_grad for part in (model.h_a, model.h_s, model.prior) for p in part.parameters()):
        return wake(model, x)
    return 0


def whole(model: "Codec", part: str, kept: Set[str]) -> bool:
    """Whether all weights of a part are in `kept`; the mean that h_s gives starts at 0 and is good from there."""
    names = (f"{part}.{name}" for name in getattr(model, part).state_dict() if not name.startswith("mean."))
    return all(name in kept for name in names)


def fit_scales(model: "HyperpriorCodec", x: Tensor) -> None:
    """The index that h_s gives without hearing z: that of each channel's deviation at each quality."""
    knots = model.h_s.outer.values
    unit = 2**INDEX_BITS * math.log(model.conditional.scales[1] / model.conditional.scales[0])
    for i in range(Knots.COUNT):
        level = model.level(torch.full((len(x),), 100.0 * i / (Knots.COUNT - 1), device=x.device))
        v = model.analyse(x, level)
        deviation = v.std(dim=(0, 2, 3), correction=0)  # 0, and not NaN, of a single sample
        knots[i] = torch.log(deviation.clamp_min(model.conditional.least) / model.conditional.least) / unit


def forget(model: "HyperpriorCodec", which: Tensor | slice) -> None:
    """Let h_s make nothing of these channels (K,) of z, unless it is frozen."""
    first = next(layer for layer in model.h_s.modules() if isinstance(layer, IntegerConv2d))
    if first.weight.requires_grad:
        first.weight[:, which] = 0


@torch.no_grad()
def wake(model: "HyperpriorCodec", x: Tensor) -> int:
    """Give the channels of z that hardly leave zero on x (B, 3, H, W) in [0, 1] another start; returns how many.

    A z that rounds to zero everywhere teaches h_s nothing, and an h_s that makes nothing of z gives it no reason to
    grow. A symbol's deviation becomes 1, its density is new, and h_s does not heed it yet.
    """
    w, level = hyper_latents(model, x)
    asleep = w.std(dim=(0, 2, 3), correction=0) < ASLEEP
    forget(model, asleep)
    _start(model, asleep, w, level)
    return int(asleep.sum())


def hyper_latents(model: "HyperpriorCodec", x: Tensor) -> tuple[Tensor, Tensor | None]:
    """w (B, K, h', w') of images at qualities from 0 to 100, and their level."""
    level = model.level(torch.linspace(0, 100, len(x), device=x.device))
    return model.analyse_hyper(model.analyse(x, level), level), level


def _start(model: "HyperpriorCodec", which: Tensor, w: Tensor, level: Tensor | None) -> None:
    """Mean 0 and deviation 1 for the channels `which` (K,) of w, by the last layer of h_a, and a density to it."""
    last = [layer for layer in model.h_a.modules() if isinstance(layer, Conv2d)][-1]
    gain = model.hyper_gain_at(level)
    middle = (w / gain).mean(dim=(0, 2, 3))
    deviation = (w - gain * middle[:, None, None]).std(dim=(0, 2, 3), correction=0)[which]
    ratio = torch.where(deviation > 1e-6, 1 / deviation, 1.0)  # 0 of a single sample
    last.weight[which] *= ratio[:, None, None, None]
    last.bias[which] = (last.bias - middle)[which] * ratio
    fresh = type(model.prior)(model.prior.channels)
    for own, new in zip(model.prior.parameters(), fresh.parameters(), strict=True):
        own[which] = new.to(own.device)[which]
    model.prior.scale[which] = (1 / gain).mean(dim=(0, 2, 3))[which]
