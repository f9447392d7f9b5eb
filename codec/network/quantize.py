"""Quantization for training and for coding, and bounds: autograd rules, each documented and tested.

Rounding has a zero gradient almost everywhere, so training replaces it in two ways (Ballé, Laparra and Simoncelli,
2017, section 3; Minnen and Singh, 2020, section 3.3): the rate term sees additive uniform noise, whose density is that
of the rounded value's probability mass, and the reconstruction sees the rounded value with a straight-through gradient.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from entropy.integer import straight_through

Noise = Callable[[Tensor], Tensor]
RDOQ = 0.045  # squared steps a bit is worth to the encoder; 0.03 and 0.06 are 0.1-0.2 % worse on validation images


class _LowerBound(torch.autograd.Function):
    """y = max(x, bound); the gradient passes where x >= bound, and below it only where it would raise x."""

    @staticmethod
    def forward(ctx, x: Tensor, bound: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.bound = bound
        return x.clamp_min(bound)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return grad * ((x >= ctx.bound) | (grad < 0)), None


class _Between(torch.autograd.Function):
    """y = min(max(x, low), high); the gradient passes inside, and outside only where it would lead back."""

    @staticmethod
    def forward(ctx, x: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.bounds = low, high
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        (x,), (low, high) = ctx.saved_tensors, ctx.bounds
        return grad * (((x >= low) | (grad < 0)) & ((x <= high) | (grad > 0))), None, None


def round_ste(x: Tensor) -> Tensor:
    """Round half to even, gradient 1; same shape and dtype as x."""
    return straight_through(x, torch.round(x))


def uniform(x: Tensor) -> Tensor:
    """Noise of the shape of x in [-1/2, 1/2): added to x it stands in for rounding in the rate term."""
    return torch.rand_like(x) - 0.5


class SampleNoise:
    """The same, from one generator for each sample of a batch: a sample's noise is that of its seed, whatever else is
    in the batch.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device):
        self.generators = [torch.Generator(device).manual_seed(int(seed)) for seed in seeds]

    def __call__(self, x: Tensor) -> Tensor:
        noise = x.new_empty(x.shape)
        for sample, generator in zip(noise, self.generators, strict=True):
            sample.uniform_(-0.5, 0.5, generator=generator)
        return noise


def lower_bound(x: Tensor, bound: float) -> Tensor:
    """max(x, bound) that a gradient step can leave again (gradient descent on a likelihood floor, say)."""
    return _LowerBound.apply(x, bound)


def between(x: Tensor, low: float, high: float) -> Tensor:
    """x clamped to low..high, bounds that a gradient step can leave again."""
    return _Between.apply(x, low, high)


def border(saved: Tensor) -> Tensor:
    """Where, between the integers k - 1 and k > 0, rounding up begins (1/2 is the middle), given the bits k - 1 saves.

    Rate-distortion optimised quantization, an old encoder's tool (Ramchandran and Vetterli, 1994): k becomes k - 1 if
    the squared error that this adds, 2 (|v| - k) + 1, is below RDOQ times these bits.
    """
    return 0.5 + RDOQ / 2 * saved


def round_from(v: Tensor, border: Tensor) -> Tensor:
    """v (B, M, h, w) rounded to integers, as floats. `border`, broadcastable to v, is that of 1 where |v| < 1.5, and of
    2 beyond, for all larger integers too.
    """
    magnitude = v.abs().clamp_max_(2.0**24)  # integers that float32 holds exactly
    return magnitude.sub_(border).floor_().add_(1).clamp_min_(0).copysign_(v)
