"""Where the densities of a network start: they fit what the other parts make of photographs.

A density that starts far too wide costs bits that take long to unlearn.
"""

import math
from collections.abc import Set

import torch
from torch import Tensor

from codec.config import CELL
from codec.network.hyper import INDEX_BITS, start_at_zero
from codec.network.layers import Conv2d, Knots
from codec.network.model import FactorizedNetwork, HyperpriorNetwork, Network, to_reach
from entropy.integer import IntegerConv2d


@torch.no_grad()
def fit(network: Network, x: Tensor, kept: Set[str] = frozenset()) -> None:
    """Before step 0: set the units of the densities to what x (B, 3, H, W) in [0, 1] leads to, at all qualities. A part
    whose weights are all in `kept`, the names of those taken from another training, stays as it is.
    """
    if isinstance(network, FactorizedNetwork):
        if not is_kept(network, "prior", kept):
            level = network.level_of(50 if network.config.variable_rate else None, len(x))
            y = network.analyse(x, level) / network.gain_at(level)
            network.prior.scale.copy_(y.abs().mean(dim=(0, 2, 3)).clamp_min(1e-3))
        return
    h_a, h_s, prior = (is_kept(network, part, kept) for part in ("h_a", "h_s", "prior"))
    if not h_s:
        if any(name.startswith("h_s.scale.") for name in kept):  # of features that are gone
            start_at_zero(network.h_s.scale)
        fit_scales(network, x)
    if network.context is not None and not is_kept(network, "context", kept):
        network.context.start(told(network, x))
    if not h_a:
        if h_s:
            forget_z(network)
        start_z(network, *hyper_latents(network, x))
    elif not prior:
        w, level = hyper_latents(network, x)
        network.prior.scale.copy_(
            (w / network.hyper_gain_at(level)).square().mean(dim=(0, 2, 3)).sqrt().clamp_min(1e-3)
        )


def is_kept(network: Network, part: str, kept: Set[str]) -> bool:
    """Whether all weights of a part are in `kept`; the mean that h_s gives starts at 0 and is good from there."""
    names = (f"{part}.{name}" for name in getattr(network, part).state_dict() if not name.startswith("mean."))
    return all(name in kept for name in names)


def fit_scales(network: HyperpriorNetwork, x: Tensor) -> None:
    """The index that h_s gives without hearing z: that of each channel's deviation at each quality."""
    knots = network.h_s.outer.values
    unit = 2**INDEX_BITS * math.log(network.conditional.scales[1] / network.conditional.scales[0])
    for i in range(Knots.COUNT):
        level = network.level(torch.full((len(x),), 100.0 * i / (Knots.COUNT - 1), device=x.device))
        v = network.analyse(x, level)
        deviation = v.std(dim=(0, 2, 3), correction=0)  # 0, and not NaN, of a single sample
        knots[i] = torch.log(deviation.clamp_min(network.conditional.least) / network.conditional.least) / unit


def forget_z(network: HyperpriorNetwork) -> None:
    """Let h_s make nothing of z, unless it is frozen."""
    first = next(layer for layer in network.h_s.modules() if isinstance(layer, IntegerConv2d))
    if first.weight.requires_grad:
        first.weight.zero_()


def hyper_latents(network: HyperpriorNetwork, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """w (B, K, h', w') of images at qualities from 0 to 100, and their level."""
    level = network.level(torch.linspace(0, 100, len(x), device=x.device))
    return network.analyse_hyper(network.analyse(x, level), level), level


def told(network: HyperpriorNetwork, x: Tensor) -> Tensor:
    """The index (B, M, 4h', 4w') that h_s gives for images at qualities from 0 to 100."""
    w, level = hyper_latents(network, x)
    z_q = to_reach(torch.round(w))
    return network.derive(z_q, network.constants(level), (CELL * w.shape[-2], CELL * w.shape[-1]))[0]


def start_z(network: HyperpriorNetwork, w: Tensor, level: Tensor | None) -> None:
    """Mean 0 and deviation 1 for the channels of w, by the last layer of h_a, and a density to it: a z that rounds to
    zero everywhere would teach h_s nothing.
    """
    last = [layer for layer in network.h_a.modules() if isinstance(layer, Conv2d)][-1]
    gain = network.hyper_gain_at(level)
    middle = (w / gain).mean(dim=(0, 2, 3))
    deviation = (w - gain * middle[:, None, None]).std(dim=(0, 2, 3), correction=0)
    ratio = torch.where(deviation > 1e-6, 1 / deviation, 1.0)  # 0 of a single sample
    last.weight *= ratio[:, None, None, None]
    last.bias.copy_((last.bias - middle) * ratio)
    fresh = type(network.prior)(network.prior.channels)
    for own, new in zip(network.prior.parameters(), fresh.parameters(), strict=True):
        own.copy_(new)
    network.prior.scale.copy_((1 / gain).mean(dim=(0, 2, 3)))
