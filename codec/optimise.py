"""How weights move: the optimiser and its groups of parameters, the schedule, the averaged weights.

A part of a model is one or several successive components of a parameter's name: `g_a`, `prior`, `h_s.mean`, or
`shortcut`, which is g_a.shortcut and g_s.shortcut.
"""

import math

import torch
from torch import Tensor, nn

from codec.config import TrainConfig

LAST = 0.01  # of the peak rate, at the end of the schedule


def learning_rate(step: int, c: TrainConfig) -> float:
    """Linear warm-up, constant, then over the last `decay` of the steps down to a hundredth: along a line, along half a
    cosine, or in two steps of a tenth, the second halfway.
    """
    warm = min(1.0, (step + 1) / max(1, c.warmup))
    left = min(1.0, (c.steps - step) / max(1, c.decay * c.steps))  # of the decay
    if c.schedule == "cosine":
        left = LAST + (1 - LAST) * (1 - math.cos(math.pi * left)) / 2
    elif c.schedule == "steps":
        left = 1.0 if left == 1 else 0.1 if left > 0.5 else LAST
    return c.lr * min(warm, max(LAST, left))


def belongs(name: str, part: str) -> bool:
    """Whether the parameter `name` is in the part."""
    return f".{part}." in f".{name}."


def split(entries: list[str]) -> dict[str, float]:
    """PART=FACTOR entries as a dictionary; ValueError for what is not one."""
    factors = {}
    for entry in entries:
        part, _, factor = entry.partition("=")
        try:
            factors[part] = float(factor)
        except ValueError:
            raise ValueError(f"lr_of takes entries like prior=5, not {entry!r}") from None
    return factors


def groups(model: nn.Module, c: TrainConfig) -> list[dict]:
    """Parameter groups with their factor of the learning rate, the frozen parts left out of them and out of autograd.

    Of several parts that a parameter belongs to, the last in `lr_of` counts. ValueError for a part that does not exist,
    unless it is one of the defaults.
    """
    factors, names = split(c.lr_of), [name for name, _ in model.named_parameters()]
    for part in [*(p for p in factors if f"{p}={factors[p]:g}" not in TrainConfig().lr_of), *c.freeze]:
        if not any(belongs(name, part) for name in names):
            parts = sorted({name.split(".")[0] for name in names})
            raise ValueError(f"no parameter belongs to {part!r}; there are {', '.join(parts)}, and what is in them")
    of_factor: dict[float, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if any(belongs(name, part) for part in c.freeze):
            parameter.requires_grad_(False)
            continue
        factor = ([1.0] + [factor for part, factor in factors.items() if belongs(name, part)])[-1]
        of_factor.setdefault(factor, []).append(parameter)
    if not of_factor:
        raise ValueError(f"nothing is left to train: freeze is {', '.join(c.freeze)}")
    return [{"params": parameters, "factor": factor} for factor, parameters in of_factor.items()]


def optimizer(model: nn.Module, c: TrainConfig) -> torch.optim.Optimizer:
    """AdamW, Adam or SGD over `groups`, in one fused kernel per step."""
    options = dict(lr=c.lr, weight_decay=c.weight_decay, fused=True)
    if c.optimizer == "sgd":
        return torch.optim.SGD(groups(model, c), momentum=c.momentum, **options)
    return {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[c.optimizer](groups(model, c), **options)


@torch.no_grad()
def follow(average: nn.Module, model: nn.Module, step: int, ema: float) -> None:
    """Move the averaged weights towards those of the model; at the beginning they are the mean of few steps."""
    weight = 1 - min(ema, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), weight)
