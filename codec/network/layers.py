"""Layers shared by the transforms: mirror-padded convolutions, GDN, and the residual block of the fast family.

Every convolution mirrors its input at the border (no zeros, no wrap), on the up-sampling side too, and for inputs
smaller than the padding. Feature maps are (B, C, H, W) floats.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codec.network.quantize import lower_bound

SHORTCUT_SCALE = 8.0  # by hand: the latent of an all-rates model is 8 times the orthonormal DCT of [0, 1] pixels


def mirror_index(size: int, before: int, after: int, device: torch.device | None = None) -> Tensor:
    """Source index of each sample of a mirrored axis of `size` samples: int64 (before + size + after,).

    The border sample is not repeated: 2 1 | 0 1 2 3 | 2 1. An axis of one sample repeats it.
    """
    if size == 1:
        return torch.zeros(before + 1 + after, dtype=torch.int64, device=device)
    period = 2 * (size - 1)
    index = torch.arange(-before, size + after, device=device) % period
    return torch.where(index < size, index, period - index)


def mirror_pad(x: Tensor, left: int, right: int, top: int, bottom: int) -> Tensor:
    """Mirror x at its borders, by any amounts: (B, C, H, W) -> (B, C, top + H + bottom, left + W + right)."""
    reproducible = torch.are_deterministic_algorithms_enabled()  # which the gradient of F.pad is not on a GPU
    if max(left, right) < x.shape[-1] and max(top, bottom) < x.shape[-2] and not reproducible:
        with torch.autocast(x.device.type, enabled=False):  # it would pad in float32
            return F.pad(x, (left, right, top, bottom), mode="reflect")
    rows = mirror_index(x.shape[-2], top, bottom, x.device)
    columns = mirror_index(x.shape[-1], left, right, x.device)
    return x[..., rows[:, None], columns]


def start_uniform(layer: nn.Module) -> None:
    """Initialise weights and biases of a convolution: uniform in +-1 / sqrt(fan-in).

    This is PyTorch's default, and its fan-in (LeCun, Bottou, Orr and Müller, "Efficient backprop", 1998, section 4.6,
    with a third of its variance). Other layers: GDN and FactorizedPrior initialise themselves, IntegerConv2d follows He
    et al., shortcuts start as a DCT, and the last layers of residual branches at zero.
    """
    bound = layer.weight[0].numel() ** -0.5
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -bound, bound)


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """1x1 convolution by a weight (C', C): (B, C, H, W) -> (B, C', H, W)."""
    return F.conv2d(x, weight[:, :, None, None], bias, dilation=idle_dilation(x))


def idle_dilation(x: Tensor) -> int:
    """The dilation for 1x1 convolutions of x. It does not change a kernel of one tap, but makes PyTorch use oneDNN in
    float32 on one thread, too, instead of a loop of its own that takes twice the time.
    """
    return 2 if x.device.type == "cpu" and torch.backends.mkldnn.is_available() else 1


class Conv2d(nn.Conv2d):
    """Mirror-padded convolution: (B, C, H, W) -> (B, C', ceil(H/stride), ceil(W/stride)), odd kernels."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, groups: int = 1):
        super().__init__(in_channels, out_channels, kernel_size, stride, groups=groups)

    reset_parameters = start_uniform

    def forward(self, x: Tensor) -> Tensor:
        if self.kernel_size == self.stride == (1, 1) and self.groups == 1:
            return pointwise(x, self.weight.flatten(1), self.bias)
        p = self.kernel_size[0] // 2
        return super().forward(mirror_pad(x, p, p, p, p))


def fold(x: Tensor, size: int) -> Tensor:
    """F.pixel_unshuffle, faster and with channels last: (B, C, H, W) -> (B, C size^2, H / size, W / size)."""
    B, C, H, W = x.shape
    x = x.reshape(B, C, H // size, size, W // size, size).permute(0, 2, 4, 1, 3, 5)
    return x.reshape(B, H // size, W // size, -1).permute(0, 3, 1, 2)


def unfold(x: Tensor, size: int) -> Tensor:
    """F.pixel_shuffle, the inverse of `fold`: (B, C size^2, H, W) -> (B, C, H size, W size), fast on channels last."""
    B, C, H, W = x.shape
    x = x.permute(0, 2, 3, 1).reshape(B, H, W, -1, size, size).permute(0, 3, 1, 4, 2, 5)
    return x.reshape(B, -1, H * size, W * size)


class FoldConv2d(nn.Conv2d):
    """A 1x1 convolution of fold(x, 2): (B, C, H, W) -> (B, C', H / 2, W / 2). Its weight is (C', 4 C, 1, 1).

    It is computed as the equal 2x2 convolution of stride 2, without folding.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(4 * in_channels, out_channels, 1)

    reset_parameters = start_uniform

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight.view(-1, x.shape[1], 2, 2), self.bias, stride=2)


class _ConvTranspose2d(torch.autograd.Function):
    """F.conv_transpose2d with the stride and padding of ConvTranspose2d, and a faster gradient.

    Backward is the convolution whose transpose this is. The sums are the same, but with padding done beforehand oneDNN
    takes a third of the time for the gradient of the weight.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv_transpose2d(x, weight, bias, stride=2, padding=4, output_padding=1)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = (saved.to(grad.dtype) for saved in ctx.saved_tensors)
        padded = F.pad(grad, (4, 3, 4, 3)).contiguous(memory_format=torch.channels_last)
        grad_x = F.conv2d(padded, weight, stride=2)
        grad_weight = torch.nn.grad.conv2d_weight(padded, weight.shape, x, stride=2)
        return grad_x, grad_weight, grad.sum(dim=(0, 2, 3))


class ConvTranspose2d(nn.ConvTranspose2d):
    """Mirror-padded transposed convolution, 5x5, stride 2: (B, C, H, W) -> (B, C', 2H, 2W).

    nn.ConvTranspose2d can only pad with zeros. Output sample o gathers the inputs i with |2i - o| <= 2, so i runs from
    -1 to H: one mirrored sample on each side, whose own outputs are cropped by two more samples of `padding`.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, kernel_size=5, stride=2, padding=4, output_padding=1)

    reset_parameters = start_uniform

    def forward(self, x: Tensor) -> Tensor:
        return _ConvTranspose2d.apply(mirror_pad(x, 1, 1, 1, 1), self.weight, self.bias)


class _Normalise(torch.autograd.Function):
    """x norm^power, norm = beta + gamma x^2, with power -1/2 or 1/2: x (B, C, H, W) -> same shape and dtype.

    The gradient is written out because autograd passes over memory more often, which takes longer than the 1x1
    convolutions.
    """

    @staticmethod
    def forward(ctx, x: Tensor, beta: Tensor, gamma: Tensor, power: float) -> Tensor:
        square, weight = x * x, gamma.to(x.dtype)
        norm = pointwise(square, weight, beta.to(x.dtype))
        factor = norm.rsqrt_() if power < 0 else norm.sqrt_()
        ctx.save_for_backward(x, square, weight, factor)
        ctx.power = power
        return x * factor

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, square, weight, factor = ctx.saved_tensors
        direct = grad * factor
        grad_norm = (direct * x).mul_(factor).mul_(factor) if ctx.power < 0 else (grad * x).div_(factor)  # / power
        dilation, kernel = [idle_dilation(x)] * 2, weight[:, :, None, None]
        grad_square, grad_gamma, grad_beta = torch.ops.aten.convolution_backward(
            grad_norm, square, kernel, [len(weight)], [1, 1], [0, 0], dilation, False, [0, 0], 1, [True, True, True]
        )
        grad_x = direct.addcmul_(x, grad_square, value=2 * ctx.power)
        return grad_x, ctx.power * grad_beta, ctx.power * grad_gamma[:, :, 0, 0], None


class GDN(nn.Module):
    """Generalized divisive normalization (Ballé, Laparra and Simoncelli, 2016): y_i = x_i / sqrt(beta_i + sum_j
    gamma_ij x_j^2).

    The inverse multiplies by the root instead. beta and gamma are stored as sqrt(value + 2**-36), bounded below, so
    that they stay positive under any gradient step (2**-18 is the offset of the authors' reference implementation).
    Parameter names and values are those of compressai's GDN, whose state this class loads with strict=False.
    """

    PEDESTAL = 2.0**-36

    def __init__(self, channels: int, inverse: bool = False):
        super().__init__()
        self.inverse = inverse
        self.beta = nn.Parameter(torch.sqrt(torch.ones(channels) + self.PEDESTAL))
        self.gamma = nn.Parameter(torch.sqrt(0.1 * torch.eye(channels) + self.PEDESTAL))

    def forward(self, x: Tensor) -> Tensor:
        beta = lower_bound(self.beta, (1e-6 + self.PEDESTAL) ** 0.5) ** 2 - self.PEDESTAL
        gamma = lower_bound(self.gamma, self.PEDESTAL**0.5) ** 2 - self.PEDESTAL
        with torch.autocast(x.device.type, enabled=False):
            return _Normalise.apply(x, beta, gamma, 0.5 if self.inverse else -0.5)


class Block(nn.Module):
    """Depthwise-separable residual unit followed by a feed-forward unit, both identities at step 0.

    1x1 -> GELU -> 3x3 depthwise -> 1x1, then 1x1 (x2) -> GELU -> 1x1, as in MobileNet and ConvNeXt, but without
    normalisation: the scale of an activation carries information here. (B, C, H, W) -> the same shape.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.mix = nn.Sequential(
            Conv2d(channels, channels, 1),
            nn.GELU(),
            Conv2d(channels, channels, 3, groups=channels),
            Conv2d(channels, channels, 1),
        )
        self.feed = nn.Sequential(Conv2d(channels, 2 * channels, 1), nn.GELU(), Conv2d(2 * channels, channels, 1))
        for last in (self.mix[-1], self.feed[-1]):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mix(x)
        return x + self.feed(x)


def lapping(scale: float = 1.2) -> Tensor:
    """The pre-filter that makes a block transform of 16 samples a lapped one: (16, 16) float64, across a block border.

    Tran, Liang and Tu, "Lapped transform via time-domain pre- and post-filtering" (2003), section III: butterflies, and
    V = J C2^T diag(scale, 1, ...) C4 J on the differences (C2, C4 DCTs of types II and IV). The transform is orthogonal
    for scale 1; 1.2 gave the best rate and distortion on photographs among 1, 1.2, 1.4 and 1.6.
    """
    k = torch.arange(8, dtype=torch.float64)
    type_2 = torch.cos(math.pi / 8 * (k + 0.5) * k[:, None]) * 0.5
    type_2[0] /= math.sqrt(2)
    type_4 = torch.cos(math.pi / 8 * (k + 0.5) * (k[:, None] + 0.5)) * 0.5
    identity, reverse = torch.eye(8, dtype=torch.float64), torch.eye(8, dtype=torch.float64).flip(0)
    unequal = identity.clone()
    unequal[0, 0] = scale
    v = reverse @ type_2.T @ unequal @ type_4 @ reverse
    butterfly = torch.cat((torch.cat((identity, reverse), 1), torch.cat((reverse, -identity), 1)))
    return butterfly @ torch.block_diag(identity, v) @ butterfly / 2


class Lapped(nn.Module):
    """A linear filter across the borders of 16x16 blocks, 8 samples on each side: (B, C, H, W) -> the same shape.

    H and W are multiples of 16; the outer 8 samples of the image stay as they are. Applied before a block transform,
    and with `inverse` after its inverse, it removes block edges and saves bits.
    """

    def __init__(self, inverse: bool):
        super().__init__()
        matrix = lapping()
        self.weight = nn.Parameter((torch.linalg.inv(matrix) if inverse else matrix).float())

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        out = x.clone()
        if H > 16:
            rows = x[:, :, 8:-8].reshape(-1, 16, W)
            out[:, :, 8:-8] = (self.weight.expand(len(rows), 16, 16) @ rows).view(B, C, -1, W)
        if W > 16:
            columns = out[..., 8:-8].clone(memory_format=torch.contiguous_format).view(1, -1, 1, 16).permute(0, 3, 1, 2)
            filtered = pointwise(columns, self.weight)  # columns @ weight.T, in half of the time
            out[..., 8:-8] = filtered.permute(0, 2, 3, 1).view(B, C, H, -1)
        return out


class Knots(nn.Module):
    """Per-channel values that depend on the quality: 9 knots, linear in between, zero before training.

    Called with a level (B,) in [0, 1] it returns (B, C, 1, 1) float32.
    """

    COUNT = 9  # by hand

    def __init__(self, channels: int):
        super().__init__()
        self.values = nn.Parameter(torch.zeros(self.COUNT, channels))

    def forward(self, level: Tensor) -> Tensor:
        return interpolate(self.values, level)


class Gain(nn.Module):
    """Per-channel gains of a latent, inverse step sizes: 9 knots over the qualities, log-linear, never decreasing.

    `first` and `last` are the gains at levels 0 and 1 before training.
    """

    def __init__(self, channels: int, first: float, last: float):
        super().__init__()
        growth = math.log(last / first) / (Knots.COUNT - 1)
        self.first = nn.Parameter(torch.full((1, channels), math.log(first)))
        self.growth = nn.Parameter(torch.full((Knots.COUNT - 1, channels), math.log(math.expm1(growth))))

    def forward(self, level: Tensor) -> Tensor:
        """level (B,) in [0, 1] -> gain (B, C, 1, 1)."""
        growth = nn.functional.softplus(self.growth)
        until = torch.ones(len(growth), len(growth), device=growth.device).tril()
        total = until @ growth  # torch.cumsum is not reproducible on a GPU
        log_gain = torch.cat((self.first, self.first + total))
        return interpolate(log_gain, level).exp()


def step_gain(lmbda: float) -> float:
    """Gain of the latent (8 x orthonormal DCT) at which steps of 1 are optimal for a DCT coder at high rate.

    With distortion step^2/12 per coefficient and rate -log2(step), d/dstep (bpp + lmbda 255^2 mse) = 0 for three
    colours at step^2 = 18 / (ln 2 * lmbda * 255^2).
    """
    return math.sqrt(math.log(2) * lmbda * 255**2 / 18) / SHORTCUT_SCALE


def interpolate(knots: Tensor, level: Tensor) -> Tensor:
    """Rows of `knots` (K, C), spread evenly over [0, 1], interpolated linearly at level (B,): (B, C, 1, 1)."""
    position = level.clamp(0, 1) * (knots.shape[0] - 1)
    below = position.floor().clamp_max(knots.shape[0] - 2).long()
    fraction = (position - below)[:, None]
    return torch.lerp(knots[below], knots[below + 1], fraction)[:, :, None, None]
