"""Optimisation: the optimiser and its groups of parameters, the learning rate schedule, averaged weights.

A part of a model is one or several successive components of a parameter's name: `g_a`, `prior`, `h_s.mean`, or
`shortcut`, which is g_a.shortcut and g_s.shortcut.
"""

import math

import torch
from torch import nn

from codec.config import TrainConfig
from codec.errors import LicError
from codec.machine import lerp_all
from codec.training.soap import SOAP

LAST = 0.01  # of the peak rate, at the end of the schedule


def learning_rate(step: int, c: TrainConfig) -> float:
    """The learning rate of a step: linear warm-up, constant, then over the last fraction `decay` down to LAST.

    It falls linearly, along half a cosine, or in two steps of a tenth, the second halfway.
    """
    warm = min(1.0, (step + 1) / max(1, c.warmup))
    left = min(1.0, (c.steps - step) / max(1, c.decay * c.steps))  # of the decay
    if c.schedule == "cosine":
        left = LAST + (1 - LAST) * (1 - math.cos(math.pi * left)) / 2
    elif c.schedule == "steps":
        left = 1.0 if left == 1 else 0.1 if left > 0.5 else LAST
    return c.lr * min(warm, max(LAST, left))


def belongs(name: str, part: str) -> bool:
    """Whether the parameter `name` belongs to the part."""
    return f".{part}." in f".{name}."


def split(entries: list[str]) -> dict[str, float]:
    """Entries PART=FACTOR as a dictionary; LicError for other entries."""
    found = {}
    for entry in entries:
        part, _, factor = entry.partition("=")
        try:
            found[part] = float(factor)
        except ValueError:
            raise LicError(f"lr_of takes entries like prior=5, not {entry!r}") from None
        if not 0 <= found[part] < math.inf:
            raise LicError(f"a factor in lr_of must be at least 0 and finite, not {entry!r}")
    return found


def factors(names: list[str], c: TrainConfig) -> dict[float, list[str]]:
    """The names of the trained parameters by their factor of the learning rate, in the order of the optimiser's groups.

    If a parameter belongs to several parts, the last in `lr_of` counts. LicError for a part that does not exist, except
    in the default list, which has the parts of all families; and if nothing is left to train.
    """
    of_part = split(c.lr_of)
    for part in [*(of_part if c.lr_of != TrainConfig().lr_of else []), *c.freeze]:
        if not any(belongs(name, part) for name in names):
            parts = sorted({name.split(".")[0] for name in names})
            raise LicError(f"no parameter belongs to {part!r}; there are {', '.join(parts)}, and what is in them")
    found: dict[float, list[str]] = {}
    for name in names:
        if not any(belongs(name, part) for part in c.freeze):
            factor = ([1.0] + [factor for part, factor in of_part.items() if belongs(name, part)])[-1]
            found.setdefault(factor, []).append(name)
    if not found:
        raise LicError(f"nothing is left to train: freeze is {', '.join(c.freeze)}")
    return found


def groups(model: nn.Module, c: TrainConfig) -> list[dict]:
    """Parameter groups with their factors of the learning rate; frozen parameters stop requiring gradients."""
    parameters = dict(model.named_parameters())
    of_factor = factors(list(parameters), c)
    for name in parameters.keys() - {name for names in of_factor.values() for name in names}:
        parameters[name].requires_grad_(False)
    return [{"params": [parameters[name] for name in names], "factor": f} for f, names in of_factor.items()]


def optimizer(model: nn.Module, c: TrainConfig) -> torch.optim.Optimizer:
    """AdamW, Adam or SGD over `groups`, with fused kernels; or SOAP (codec/training/soap.py)."""
    if c.optimizer == "soap":
        return SOAP(groups(model, c), c.lr, c.weight_decay)
    options = dict(lr=c.lr, weight_decay=c.weight_decay, fused=True)
    if c.optimizer == "sgd":
        sgd = torch.optim.SGD(groups(model, c), momentum=c.momentum, **options)
        for p in (p for group in sgd.param_groups for p in group["params"] if c.momentum):
            sgd.state[p]["momentum_buffer"] = torch.zeros_like(p)  # which a skipped first step would leave unset
        return sgd
    return {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[c.optimizer](groups(model, c), **options)


@torch.no_grad()
def follow(average: nn.Module, model: nn.Module, step: int, ema: float) -> None:
    """Update the exponential moving average of the weights, with a shorter memory at the beginning.

    The decay is min(ema, (1 + step) / (10 + step)), as in TensorFlow's tf.train.ExponentialMovingAverage.
    """
    weight = 1 - min(ema, (1 + step) / (10 + step))
    lerp_all(list(average.parameters()), list(model.parameters()), weight)


def restore(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Load the state of a checkpoint, but keep the optimiser's own options, such as learning rates."""
    options = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, own in zip(optimizer.param_groups, options, strict=True):
        group.update(own)
