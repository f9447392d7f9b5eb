"""The hyper-transforms h_a (latent -> hyper-latent) and h_s (hyper-latent -> table index and mean of each symbol).

    z = h_a(v, level)                  v (B, M, h, w), the latent times its gain -> z (B, K, ceil(h/4), ceil(w/4))
    index, mean = h_s(z_q, constants)  integers z_q -> index (B, M, 4h', 4w') float64, mean (B, M, 4h', 4w') float32

Ballé, Minnen, Singh, Hwang and Johnston (2018), section 3, and with a mean Minnen, Ballé and Toderici (2018). Whatever
decides an index is exact (entropy/integer.py): the first layers of h_s, and the one that ends in the index. With the
constants of the quality (codec/coding/tables.py), the symbols z of the whole image (K, h', w') and the layers
h_s.layers.0, 1, ... and h_s.scale of the model:

    fast                x = rectify(layer 0 of mirror(z * step) + inner), of 3x3 weights
                        x = shuffle(rectify(layer 1 of x)), of 1x1
                        x = rectify(layer 2 of mirror(x)), of 3x3
                        x = shuffle(rectify(layer 3 of x)), of 1x1
    bmshj2018           x = rectify(layer 0 of spread(mirror(z * step)) + inner), of 5x5
                        x = mirror(rectify(layer 1 of spread(mirror(x)))), of 5x5
    both, at the end    index = h_s.scale of x, offset (outer + 128) >> 3, drop 5, kept in 0..tables - 1

step, inner and outer are integers of each channel. mirror adds a sample on every side, 1 | 0 1 2 ... without the border
twice, or 0 | 0 where there is but one. shuffle makes one channel of four: sample (2 row + i, 2 column + j) of channel c
is sample (row, column) of channel 4 c + 2 i + j. spread puts a zero to the right of each sample, and a row of zeros
below each row. The index is (M, 4h', 4w'); what it has beyond the rows and columns of y is dropped. The mean is
added after decoding, so it is an ordinary float and comes from the exact features through ordinary layers. `halo` is
how many cells of z, 64x64 pixels, to each side a transform sees.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codec.config import REACH
from codec.network.layers import Block, Conv2d, FoldConv2d, Knots, mirror_pad
from codec.network.quantize import between
from entropy.integer import ACTIVATION_BITS, LARGEST, IntegerConv2d, rectify, shift, to_grid

INDEX_BITS = 3  # h_s predicts ln(scale), and there are about 2**3 tables to a factor e (64 from 0.11 to 256)


class Constants(NamedTuple):
    """The constants of the exact path at a quality: integers in float64, (B, C, 1, 1) each. Stored at export."""

    step: Tensor  # (B, K, 1, 1), a symbol 1 of z in steps of 2**-8
    inner: Tensor  # (B, N, 1, 1), added after the first layer
    outer: Tensor  # (B, M, 1, 1), added before the index


class FastHyperAnalysis(nn.Module):
    """h_a of the fast family: from 1/16 to 1/64 resolution by folding; 1x1 convolutions, and one block at 1/32."""

    halo = 1  # sees half a cell to each side

    def __init__(self, M: int, N: int, K: int, mean: bool):
        super().__init__()
        self.stem = Conv2d(M, N, 1)
        self.condition = Knots(2 * N)
        self.down = FoldConv2d(N, N)
        self.block = Block(N)
        self.head = nn.Sequential(FoldConv2d(N, N), nn.GELU(), Conv2d(N, K, 1))

    def forward(self, v: Tensor, level: Tensor) -> Tensor:
        v = mirror_pad(v, 0, -v.shape[-1] % 4, 0, -v.shape[-2] % 4)
        v = torch.copysign(torch.log(v.abs() + torch.sqrt(v * v + 1)), v)  # asinh: symbols reach hundreds at high rates
        h = self.stem(v.contiguous(memory_format=torch.channels_last))
        gamma, beta = self.condition(level).chunk(2, dim=1)
        h = F.gelu(h * (1 + gamma).to(h.dtype) + beta.to(h.dtype))
        h = self.block(self.down(h))
        return self.head(h).float()


class BalleHyperAnalysis(nn.Module):
    """h_a of Ballé et al. 2018: 3x3, then two 5x5 of stride 2, with ReLU. Without a mean its input is |v|."""

    halo = 2  # 1 + 2 + 4 samples of v: 1.75 cells

    def __init__(self, M: int, N: int, K: int, mean: bool):
        super().__init__()
        self.mean = mean
        self.layers = nn.Sequential(Conv2d(M, N, 3), nn.ReLU(), Conv2d(N, N, 5, 2), nn.ReLU(), Conv2d(N, K, 5, 2))

    def forward(self, v: Tensor, level: Tensor) -> Tensor:
        v = mirror_pad(v, 0, -v.shape[-1] % 4, 0, -v.shape[-2] % 4)
        return self.layers(v if self.mean else v.abs()).float()


class HyperSynthesis(nn.Module, ABC):
    """h_s: exact features of a family; from them an exact layer makes the index, and float layers the mean."""

    halo = 2  # of both families: 1 + 1/2 + 1/4 cells
    scale: IntegerConv2d
    mean: nn.Module | None  # None: the mean is 0 everywhere

    def __init__(self, M: int, inner: int):
        super().__init__()
        self.inner = Knots(inner)
        self.outer = Knots(M)

    @abstractmethod
    def features(self, z: Tensor, inner: Tensor) -> Tensor:
        """Exact activations (B, C, 4h', 4w') of z_q * step (B, K, h', w') and the constant inner."""

    def forward(self, z_q: Tensor, constants: Constants, tables: int) -> tuple[Tensor, Tensor]:
        """Symbols z_q (B, K, h', w'), integers of any dtype -> index and mean, (B, M, 4h', 4w') each.

        The index is float64 in 0..tables - 1, with a gradient in training; the mean is float32, or 0 everywhere.
        """
        h = self.features(z_q.double() * constants.step, constants.inner)
        half = 2 ** (ACTIVATION_BITS - 1)  # for the nearest index
        offset = shift(constants.outer + half, INDEX_BITS)
        index = self.scale(same(h, self.scale), offset, drop=ACTIVATION_BITS - INDEX_BITS)
        index = between(index, 0.0, tables - 1.0) if torch.is_grad_enabled() else index.clamp_(0, tables - 1)
        if self.mean is None:
            return index, torch.zeros_like(index, dtype=torch.float32)
        return index, self.mean((h * 2.0**-ACTIVATION_BITS).float())

    def constants(self, level: Tensor, gain: Tensor) -> Constants:
        """The constants at a level (B,) and a gain of z (B, K, 1, 1)."""
        inner, outer = self.inner(level), self.outer(level)
        return Constants(
            to_grid(1 / gain, ACTIVATION_BITS),
            to_grid(inner, ACTIVATION_BITS),
            to_grid(outer, ACTIVATION_BITS + INDEX_BITS),
        )

    def check_bounds(self, constants: Constants) -> None:
        """ValueError unless the path is exact with these constants for all symbols of z in -REACH..REACH."""
        first, *others = [layer for layer in self.modules() if isinstance(layer, IntegerConv2d)]
        first.check_bound(REACH * constants.step.abs().max().item())
        for layer in others:
            layer.check_bound(LARGEST, offset=constants.outer.abs().max().item() if layer is self.scale else 0.0)


def same(x: Tensor, layer: IntegerConv2d) -> Tensor:
    """x (B, C, H, W) mirrored at its borders so that the layer's output is H x W."""
    p = layer.kernel_size // 2
    return mirror_pad(x, p, p, p, p) if p else x


def insert_zeros(x: Tensor) -> Tensor:
    """Mirror x (B, C, H, W) by one sample, then put a zero after each sample and a row of zeros after each row:
    (B, C, 2H + 4, 2W + 4). A 5x5 convolution of that is a mirrored transposed convolution of stride 2.
    """
    x = mirror_pad(x, 1, 1, 1, 1)
    B, C, H, W = x.shape
    wide = x.new_zeros(B, C, H, 2, W, 2)
    wide[:, :, :, 0, :, 0] = x
    return wide.view(B, C, 2 * H, 2 * W)


class FastHyperSynthesis(HyperSynthesis):
    """h_s of the fast family: exact layers, 3x3 at 1/64 and 1/32 and 1x1 to 1/16; the mean has one float block more."""

    def __init__(self, M: int, N: int, K: int, mean: bool):
        super().__init__(M, N)
        self.layers = nn.ModuleList(
            [IntegerConv2d(K, N, 3), IntegerConv2d(N, 4 * N), IntegerConv2d(N, N, 3), IntegerConv2d(N, 4 * N)]
        )
        self.scale = IntegerConv2d(N, M)
        self.mean = nn.Sequential(Block(N), Conv2d(N, M, 1)) if mean else None
        start_at_zero(self.scale, *([self.mean[1]] if mean else []))

    def features(self, z: Tensor, inner: Tensor) -> Tensor:
        one, up_one, two, up_two = self.layers
        h = rectify(one(same(z, one)) + inner)  # (B, N, h', w')
        h = F.pixel_shuffle(rectify(up_one(h)), 2)
        h = rectify(two(same(h, two)))  # (B, N, 2h', 2w')
        return F.pixel_shuffle(rectify(up_two(h)), 2)  # (B, N, 4h', 4w')


class BalleHyperSynthesis(HyperSynthesis):
    """h_s of Ballé et al. 2018 (channels N, N), or with `mean` that of Minnen et al. 2018 (M, 3/2 M): two transposed
    5x5 of stride 2 and a 3x3. ReLU throughout, where Minnen et al. have a leaky one.
    """

    def __init__(self, M: int, N: int, K: int, mean: bool):
        one, two = (M, M * 3 // 2) if mean else (N, N)
        super().__init__(M, one)
        self.layers = nn.ModuleList([IntegerConv2d(K, one, 5), IntegerConv2d(one, two, 5)])
        self.scale = IntegerConv2d(two, M, 3)
        self.mean = Conv2d(two, M, 3) if mean else None
        start_at_zero(self.scale, *([self.mean] if mean else []))

    def features(self, z: Tensor, inner: Tensor) -> Tensor:
        one, two = self.layers
        h = rectify(one(insert_zeros(z)) + inner)  # (B, C, 2h', 2w')
        return rectify(two(insert_zeros(h)))  # (B, C', 4h', 4w')


def start_at_zero(*layers: nn.Module) -> None:
    """Set weights and biases to zero: at step 0 the index depends on constants.outer alone, and the mean is 0."""
    for layer in layers:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)


HYPER_TRANSFORMS = {
    "bmshj2018": (BalleHyperAnalysis, BalleHyperSynthesis),
    "fast": (FastHyperAnalysis, FastHyperSynthesis),
}
