"""Initialisation of a network's densities before step 0: they are fitted to the latents of photographs.

A density that starts far too wide costs bits for long.
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
    """Fit the densities to images x (B, 3, H, W) in [0, 1], coded at all qualities, in place.

    `kept` are the names of weights that come from another training; a part all of whose weights are among them stays
    as it is.
    """
    if isinstance(network, FactorizedNetwork):
        if not is_kept(network, "prior", kept):
            level = network.level_of(50 if network.config.variable_rate else None, len(x))
            y = network.analyse(x, level) / network.gain_at(level)
            network.prior.scale.copy_(y.abs().mean(dim=(0, 2, 3)).clamp_min(1e-3))
        return
    h_a, h_s, prior = (is_kept(network, part, kept) for part in ("h_a", "h_s", "prior"))
    if not h_s:
        if any(name.startswith("h_s.scale.") for name in kept):  # for features of layers that were not kept
            start_at_zero(network.h_s.scale)
        fit_scales(network, x)
    if network.context is not None and not is_kept(network, "context", kept):
        network.context.start(predicted_index(network, x))
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
    """Whether all weights of a part are in `kept`; those of h_s.mean need not be, since they can start at 0."""
    names = (f"{part}.{name}" for name in getattr(network, part).state_dict() if not name.startswith("mean."))
    return all(name in kept for name in names)


def fit_scales(network: HyperpriorNetwork, x: Tensor) -> None:
    """Set the index that h_s gives without z: the table of each channel's standard deviation, at each quality."""
    knots = network.h_s.outer.values
    unit = 2**INDEX_BITS * math.log(network.conditional.scales[1] / network.conditional.scales[0])
    for i in range(Knots.COUNT):
        level = network.level(torch.full((len(x),), 100.0 * i / (Knots.COUNT - 1), device=x.device))
        v = network.analyse(x, level)
        deviation = v.std(dim=(0, 2, 3), correction=0)  # of a single sample 0, not NaN
        knots[i] = torch.log(deviation.clamp_min(network.conditional.least) / network.conditional.least) / unit


def forget_z(network: HyperpriorNetwork) -> None:
    """Have h_s ignore z, unless it is frozen: its first layer becomes zero."""
    first = next(layer for layer in network.h_s.modules() if isinstance(layer, IntegerConv2d))
    if first.weight.requires_grad:
        first.weight.zero_()


def hyper_latents(network: HyperpriorNetwork, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """w (B, K, h', w') of images (B, 3, H, W) at qualities from 0 to 100, and their level (B,)."""
    level = network.level(torch.linspace(0, 100, len(x), device=x.device))
    return network.analyse_hyper(network.analyse(x, level), level), level


def predicted_index(network: HyperpriorNetwork, x: Tensor) -> Tensor:
    """The index (B, M, 4h', 4w') that h_s predicts for images (B, 3, H, W) at qualities from 0 to 100."""
    w, level = hyper_latents(network, x)
    z_q = to_reach(torch.round(w))
    return network.derive(z_q, network.constants(level), (CELL * w.shape[-2], CELL * w.shape[-1]))[0]


def start_z(network: HyperpriorNetwork, w: Tensor, level: Tensor | None) -> None:
    """Scale the last layer of h_a so that each channel of w has mean 0 and deviation 1, and reset the prior to that.

    h_s could learn nothing from a z that rounds to zero everywhere.
    """
    last = [layer for layer in network.h_a.modules() if isinstance(layer, Conv2d)][-1]
    gain = network.hyper_gain_at(level)
    middle = (w / gain).mean(dim=(0, 2, 3))
    deviation = (w - gain * middle[:, None, None]).std(dim=(0, 2, 3), correction=0)
    ratio = torch.where(deviation > 1e-6, 1 / deviation, 1.0)  # a single sample has deviation 0
    last.weight *= ratio[:, None, None, None]
    last.bias.copy_((last.bias - middle) * ratio)
    fresh = type(network.prior)(network.prior.channels)
    for own, new in zip(network.prior.parameters(), fresh.parameters(), strict=True):
        own.copy_(new)
    network.prior.scale.copy_((1 / gain).mean(dim=(0, 2, 3)))
