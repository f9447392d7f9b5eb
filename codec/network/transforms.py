"""The transforms g_a (image -> latent) and g_s (latent -> image), in two families with one signature.

    y = g_a(x, level)        x (B, 3, H, W) float32 around 0, H and W multiples of 16  ->  y (B, M, H/16, W/16) float32
    x_hat = g_s(y, level)    the way back; no clamp and no activation at the end

`level` (B,) in [0, 1] is quality / 100 of each image in an all-rates codec, None in a codec for one lambda. `halo` is
how far a transform sees to each side, in cells (a sample of y, 16x16 pixels): no cell of its output depends on anything
more than that many cells away.

`bmshj2018`: four 5x5 stride-2 convolutions with GDN between them (Ballé, Minnen, Singh, Hwang and Johnston, 2018,
figure 4; the factorized codec of section 3.1), mirror-padded. Rate-distortion curves of it are published. It ignores
the level.

`fast`: most of a classic codec's time goes into its layers at 1/2 and 1/4 resolution. This one has none: it folds 8x8
pixels into channels, works at 1/8 and 1/16, and adds a linear shortcut, initialised as a block DCT of decorrelated
colours, so that before training the codec *is* a DCT coder (AuxT, Li, Zhang, Ma and Tian, 2025, does this with
wavelets). The trunk may run in bfloat16; the shortcut and the sum stay in float32 (in training on a GPU with products
in TF32, as PyTorch's settings say).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codec.network.layers import GDN, Block, Conv2d, ConvTranspose2d, FoldConv2d, Knots, Lapped, fold, pointwise, unfold


class BalleAnalysis(nn.Module):
    """g_a of Ballé et al. 2018: N channels inside, M channels out. Weights have the layout of compressai's `g_a`."""

    halo = 2  # four times 2 samples, at 1, 1/2, 1/4 and 1/8 of the resolution: 30 pixels

    def __init__(self, N: int, M: int, **_):
        super().__init__()
        self.layers = nn.Sequential(
            Conv2d(3, N, 5, 2), GDN(N), Conv2d(N, N, 5, 2), GDN(N), Conv2d(N, N, 5, 2), GDN(N), Conv2d(N, M, 5, 2)
        )

    def forward(self, x: Tensor, level: Tensor | None = None) -> Tensor:
        return self.layers(x.contiguous(memory_format=torch.channels_last)).float()


class BalleSynthesis(nn.Module):
    """g_s of Ballé et al. 2018, the mirror image of its g_a with inverse GDN."""

    halo = 2  # four times 1 sample, at 1/16, 1/8, 1/4 and 1/2 of the resolution: 1.875 cells

    def __init__(self, N: int, M: int, **_):
        super().__init__()
        self.layers = nn.Sequential(
            ConvTranspose2d(M, N), GDN(N, inverse=True),
            ConvTranspose2d(N, N), GDN(N, inverse=True),
            ConvTranspose2d(N, N), GDN(N, inverse=True),
            ConvTranspose2d(N, 3),
        )  # fmt: skip

    def forward(self, y: Tensor, level: Tensor | None = None) -> Tensor:
        return self.layers(y.contiguous(memory_format=torch.channels_last)).float()


def dct_basis(M: int) -> Tensor:
    """The M lowest-frequency functions of a 16x16 block DCT of decorrelated colours: (M, 3, 16, 16), orthonormal rows.

    3/4 of them (by hand), but at most 256, are of luma, R + G + B; the others in equal numbers of the two chroma axes,
    B - R and the axis orthogonal to both. Each axis is sorted by frequency. M is at most 768, the complete transform.
    """
    k = torch.arange(16, dtype=torch.float64)
    dct = torch.cos(math.pi / 16 * (k[None, :] + 0.5) * k[:, None]) * math.sqrt(2 / 16)
    dct[0] /= math.sqrt(2)
    order = sorted(((u, v) for u in range(16) for v in range(16)), key=lambda f: (f[0] ** 2 + f[1] ** 2, f))
    axes = torch.tensor([[1, 1, 1], [-1, 0, 1], [1, -2, 1]], dtype=torch.float64)
    axes /= axes.norm(dim=1, keepdim=True)
    luma = min(256, M - M // 8 * 2)
    rows = [
        axes[axis, :, None, None] * torch.outer(dct[u], dct[v])
        for axis, count in ((0, luma), (1, (M - luma + 1) // 2), (2, (M - luma) // 2))
        for u, v in order[:count]
    ]
    return torch.stack(rows).float()


def fast_halo(blocks: list[int]) -> int:
    """The halo for blocks[0] blocks at 1/8 and blocks[1] at 1/16 resolution.

    A block sees one sample to each side, the lapped filter half a cell.
    """
    return max(1, blocks[1] + -(-blocks[0] // 2))


class FastAnalysis(nn.Module):
    """g_a of the fast family: blocks[0] blocks of N channels at 1/8, blocks[1] of 2N at 1/16, M channels out, plus the
    shortcut.
    """

    def __init__(
        self, N: int, M: int, blocks: list[int], shortcut: bool, scale: float, conditioned: bool, lapped: bool
    ):
        super().__init__()
        self.halo = fast_halo(blocks)
        self.stem = Conv2d(3 * 64, N, 1)
        self.condition = Knots(2 * N) if conditioned else None
        self.eighth = nn.Sequential(*(Block(N) for _ in range(blocks[0])))
        self.down = FoldConv2d(N, 2 * N)
        self.sixteenth = nn.Sequential(*(Block(2 * N) for _ in range(blocks[1])))
        self.head = Conv2d(2 * N, M, 1)
        self.shortcut = nn.Conv2d(3, M, 16, stride=16, bias=False) if shortcut else None
        self.shortcut_lapped = Lapped(inverse=False) if shortcut and lapped else None
        if shortcut:
            self.shortcut.weight = nn.Parameter(dct_basis(M) * scale)
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor, level: Tensor | None = None) -> Tensor:
        h = self.stem(fold(x, 8))  # (B, N, H/8, W/8)
        if self.condition is not None:
            gamma, beta = self.condition(level).chunk(2, dim=1)
            h = h * (1 + gamma).to(h.dtype) + beta.to(h.dtype)
        h = self.down(self.eighth(h))  # (B, 2N, H/16, W/16)
        y = self.head(self.sixteenth(h)).float()  # (B, M, H/16, W/16)
        if self.shortcut is None:
            return y
        with torch.autocast(x.device.type, enabled=False):
            # equals shortcut(x), in half of the time, with gradients in a third
            blocks = fold(x if self.shortcut_lapped is None else self.shortcut_lapped(x), 16)
            return pointwise(blocks, self.shortcut.weight.flatten(1)) + y


class FastSynthesis(nn.Module):
    """g_s of the fast family, the mirror image of its g_a."""

    def __init__(
        self, N: int, M: int, blocks: list[int], shortcut: bool, scale: float, conditioned: bool, lapped: bool
    ):
        super().__init__()
        self.halo = fast_halo(blocks)
        self.stem = Conv2d(M, 2 * N, 1)
        self.condition = Knots(4 * N) if conditioned else None
        self.sixteenth = nn.Sequential(*(Block(2 * N) for _ in range(blocks[1])))
        self.up = Conv2d(2 * N, 4 * N, 1)
        self.eighth = nn.Sequential(*(Block(N) for _ in range(blocks[0])))
        self.head = Conv2d(N, 3 * 64, 1)
        self.shortcut = nn.ConvTranspose2d(M, 3, 16, stride=16, bias=False) if shortcut else None
        self.shortcut_lapped = Lapped(inverse=True) if shortcut and lapped else None
        if shortcut:
            self.shortcut.weight = nn.Parameter(dct_basis(M) / scale)
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def forward(self, y: Tensor, level: Tensor | None = None) -> Tensor:
        y = y.contiguous(memory_format=torch.channels_last)
        h = self.stem(y)  # (B, 2N, H/16, W/16)
        if self.condition is not None:
            gamma, beta = self.condition(level).chunk(2, dim=1)
            h = h * (1 + gamma).to(h.dtype) + beta.to(h.dtype)
        h = F.pixel_shuffle(self.up(self.sixteenth(h)), 2)  # (B, N, H/8, W/8)
        x = unfold(self.head(self.eighth(h)), 8).float()  # (B, 3, H, W)
        if self.shortcut is None:
            return x
        with torch.autocast(y.device.type, enabled=False):
            basis = self.shortcut.weight.flatten(1).t()  # (768, M)
            blocks = unfold(pointwise(y, basis), 16)  # equals shortcut(y), in a third of the time
            return x.add_(blocks if self.shortcut_lapped is None else self.shortcut_lapped(blocks))


TRANSFORMS = {
    "bmshj2018": (BalleAnalysis, BalleSynthesis),
    "fast": (FastAnalysis, FastSynthesis),
}
