"""Quantization for training and for coding, and bounds with gradients that can leave them again.

Rounding has a zero gradient almost everywhere, so training replaces it in two ways (Ballé, Laparra and Simoncelli,
2017, section 3; Minnen and Singh, 2020, section 3.3): for the rate by additive uniform noise, since the density of the
noisy value at an integer is the probability of that symbol; for the reconstruction by rounding with a straight-through
gradient.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from entropy.integer import straight_through

Noise = Callable[[Tensor], Tensor]
RDOQ = 0.045  # squared error, in steps, that saves a bit; 0.03 and 0.06 are 0.1-0.2 % worse on validation images


class _LowerBound(torch.autograd.Function):
    """y = max(x, bound); the gradient passes where x >= bound, and below it where it would raise x."""

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
    """y = min(max(x, low), high); the gradient passes inside, and outside where it leads back inside."""

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
    """Uniform noise in [-1/2, 1/2) of the shape of x, which replaces rounding in the rate term."""
    return torch.rand_like(x) - 0.5


class SampleNoise:
    """Uniform noise from one generator per sample of a batch: it depends on a sample's seed, not on the batch."""

    def __init__(self, seeds: Sequence[int], device: torch.device):
        self.generators = [torch.Generator(device).manual_seed(int(seed)) for seed in seeds]

    def __call__(self, x: Tensor) -> Tensor:
        noise = x.new_empty(x.shape)
        for sample, generator in zip(noise, self.generators, strict=True):
            sample.uniform_(-0.5, 0.5, generator=generator)
        return noise


def lower_bound(x: Tensor, bound: float) -> Tensor:
    """max(x, bound), same shape, for a bound that a gradient step can leave again, such as a floor of likelihoods."""
    return _LowerBound.apply(x, bound)


def between(x: Tensor, low: float, high: float) -> Tensor:
    """x clamped to low..high, same shape, for bounds that a gradient step can leave again."""
    return _Between.apply(x, low, high)


def border(saved: Tensor) -> Tensor:
    """The fraction from which a value between k - 1 and k > 0 is rounded up to k, given the bits that k - 1 saves.

    Rate-distortion optimised quantization (Ramchandran and Vetterli, 1994): k becomes k - 1 if the squared error that
    this adds, 2 (|v| - k) + 1, is below RDOQ times the bits saved. Any shape -> same shape; 1/2 without bits.
    """
    return 0.5 + RDOQ / 2 * saved


def round_from(v: Tensor, border: Tensor) -> Tensor:
    """v (B, M, h, w) rounded to integers, as floats.

    `border`, broadcastable to v: the fraction that rounds up to 1 where |v| <= 1.5, else the one for 2 and beyond.
    """
    magnitude = v.abs().clamp_max_(2.0**24)  # integers that float32 holds exactly
    return magnitude.sub_(border).floor_().add_(1).clamp_min_(0).copysign_(v)
