"""Exact layers: convolutions whose outputs are the same integers on every machine, device, batch size and thread count.

A decoder must find the very table indices that the encoder used, and floating-point sums depend on their order. Here
every number is an integer in a float64 tensor and every sum stays below 2**53, so no order of summation, no fused
multiply-add and no vector width can change it; float64 is also out of reach of autocast and of TF32. Ballé, Johnston
and Minnen, "Integer networks for data compression with latent-variable models" (2019), made the case; JPEG AI keeps
just the scale path exact, as we do.

Activations count in steps of 2**-8, weights in steps of 2**-12, biases in steps of 2**-20: the nearest integer to the
stored float times 2**12 or 2**20, where two are as near the even one. A layer (weights (C', C, k, k), bias (C',), an
optional offset (C',) that counts as activations do) gives at each place, without padding,

    out[c'] = (sum over c, i, j of weight[c', c, i, j] * in[c, row + i, column + j] + bias[c'] + 2**12 * offset[c'])
              >> 12 + drop                                       >> rounds down; drop is 0 but for the last layer of h_s

`rectify` keeps what goes on to the next layer in 0..65535. Training runs the same arithmetic and passes gradients
straight through every rounding (Bengio, Léonard and Courville, 2013), so nothing is lost at export.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from entropy import exact
from entropy.exact import ACTIVATION_BITS, LARGEST, WEIGHT_BITS


class _StraightThrough(torch.autograd.Function):
    """Forward: `rounded`; backward: the gradient goes to x unchanged."""

    @staticmethod
    def forward(ctx, x: Tensor, rounded: Tensor) -> Tensor:
        return rounded.clone()

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def straight_through(x: Tensor, rounded: Tensor) -> Tensor:
    """The value of `rounded` with the gradient of x; same shape and dtype."""
    return _StraightThrough.apply(x, rounded) if torch.is_grad_enabled() else rounded


def to_grid(x: Tensor, bits: int) -> Tensor:
    """x counted in steps of 2**-bits, rounded to integers: float64, same shape, straight-through gradient."""
    steps = x.double() * 2.0**bits
    return straight_through(steps, torch.round(steps))


def floor(x: Tensor) -> Tensor:
    """floor(x), same shape, gradient 1; in place where gradients are off."""
    return straight_through(x, torch.floor(x)) if torch.is_grad_enabled() else x.floor_()


def shift(x: Tensor, bits: int) -> Tensor:
    """floor(x / 2**bits) of integers, an arithmetic shift to the right; same shape, gradient 2**-bits."""
    return floor(x * 2.0**-bits)


def rectify(x: Tensor) -> Tensor:
    """ReLU with an upper limit: activations clamped to 0..LARGEST, the range of the next layer's inputs."""
    return x.clamp(0, LARGEST)


class IntegerConv2d(nn.Module):
    """Convolution of integers without padding: (B, C, H, W) -> (B, C', H - k + 1, W - k + 1), both float64 integers.

    Inputs and outputs count in steps of 2**-ACTIVATION_BITS. The weights start as for a ReLU (He et al., 2015).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 1):
        super().__init__()
        self.kernel_size = kernel_size
        fan_in = in_channels * kernel_size**2
        self.weight = nn.Parameter(
            torch.randn(out_channels, in_channels, kernel_size, kernel_size) * (2 / fan_in) ** 0.5
        )
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def forward(self, x: Tensor, offset: Tensor | None = None, drop: int = 0) -> Tensor:
        """The convolution plus `offset` (B or 1, C', 1, 1), rounded down to steps that are 2**drop times as large."""
        B, _, H, W = x.shape
        k = self.kernel_size
        columns = F.unfold(x, k) if k > 1 else x.flatten(2)  # (B, C k^2, H' W')
        weight, bias = to_grid(self.weight, WEIGHT_BITS), to_grid(self.bias, WEIGHT_BITS + ACTIVATION_BITS)
        bias = bias[:, None] if offset is None else bias[:, None] + offset.flatten(2) * 2**WEIGHT_BITS
        unit = 2.0 ** -(WEIGHT_BITS + drop)  # a power of two: sums are those of integers, with another exponent
        sums = torch.baddbmm(bias * unit, (weight.flatten(1) * unit).expand(B, -1, -1), columns)
        return floor(sums).view(B, -1, H - k + 1, W - k + 1)

    def check_bound(self, largest: float, offset: float = 0.0) -> None:
        """Check that every sum is exact, in any order, for inputs of magnitude up to `largest` and offsets up to
        `offset`; ValueError otherwise.
        """
        weight, bias = (parameter.detach().cpu().numpy() for parameter in (self.weight, self.bias))
        exact.check_bound(weight, bias, largest, offset)
