"""The encoder's search for better symbols of y; the decoder is not affected.

    y_q = search(network, target, v, index, mean, level, passes)

Quantization treats each symbol by itself, but symbols interact through g_s: one can compensate the error of another.
Let u be the residual v - mean at first. Every pass

    decodes the current symbols, and takes the gradient of the distortion D with respect to their v_hat;
    moves u towards the minimum of D, taken as a parabola:  u += rate * (wanted - u),
        wanted = v_hat - mean - gradient / curvature of the channel, at most LIMIT steps from v_hat - mean;
    quantizes u, rate-distortion optimised as always (codec/network/quantize.py), to the new symbols.

Since u remembers what earlier passes wanted, this is dual averaging (Nesterov, 2009). A pass that raises bits per pixel
+ D is taken back, and the rate of the next ones is lower, so that more passes are never worse. z stays as it is, and
with it index and mean. The curvature is that of squared error, by the Gauss-Newton method: the mean square of the
gradients of randomly signed sums of pixels, whose expectation is the squared norm of a column of g_s's Jacobian; a
channel counts with at least the mean curvature. Other distortions have no usable curvature: their gradient with respect
to the pixels is scaled to TRUST times the strength of that of squared error. It is strong in few places, which LIMIT
bounds; without it the other places hardly move.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from codec.network.distortion import MS_SSIM_SIDE, Distortion
from codec.network.model import Network
from codec.network.quantize import uniform

# By hand:
RATE, SLOWER = 0.5, 0.4  # the rate of the first passes, and its factor after a pass that was taken back
PROBES = 2  # randomly signed sums of pixels that estimate the curvature
TRUST = 4.0  # strength of another distortion's gradient relative to that of squared error
LIMIT = 1.0  # the furthest, in steps, that a pass wants a coefficient to be from its v_hat


@dataclass(frozen=True)
class Target:
    """The image that decoded ones should resemble, and by which distortion."""

    x: Tensor  # (1, 3, H, W) in [0, 1]
    counted: tuple[slice, slice]  # rows and columns of the pixels that count; the others depend on symbols elsewhere
    distortion: Distortion
    lmbda: float

    def squared(self, x_hat: Tensor) -> Tensor:
        """Mean squared error over the pixels that count, in [0, 1] units: ()."""
        return (x_hat - self.x)[..., *self.counted].square().mean()

    def loss(self, x_hat: Tensor) -> Tensor:
        """The distortion over the pixels that count, in bits per pixel: (); squared error below MS_SSIM_SIDE pixels."""
        x_hat, x = x_hat[..., *self.counted], self.x[..., *self.counted]
        lmbda = torch.full((1,), self.lmbda, device=x.device)
        measured = min(x.shape[-2:]) >= MS_SSIM_SIDE
        return (self.distortion if measured else Distortion([], 1.0))(x_hat, x, lmbda).sum()

    def gradient(self, x_hat: Tensor) -> Tensor:
        """Gradient of squared error by pixels (1, 3, H, W); of another distortion, TRUST times as strong."""
        x_hat = x_hat.detach().requires_grad_(True)
        (plain,) = torch.autograd.grad(self.squared(x_hat), x_hat)
        if not self.distortion.measures:
            return plain
        (own,) = torch.autograd.grad(self.loss(x_hat), x_hat)
        return own * (TRUST * strength(plain) / strength(own).clamp_min(1e-30))


def strength(x: Tensor) -> Tensor:
    """Root mean square: ()."""
    return x.square().mean().sqrt()


def search(
    network: Network,
    target: Target,
    v: Tensor,
    index: Tensor | None,
    mean: Tensor | float,
    level: Tensor | None,
    passes: int,
) -> Tensor:
    """Symbols of v (1, M, h, w), as floats, same shape, after `passes` passes, at least one.

    index and mean are those of `Network.derive`, level (1,) or None. The network is in evaluation mode.
    """
    size, pixels = target.x.shape[-2:], target.x[..., *target.counted].numel() / 3

    def decoded(y_q: Tensor) -> tuple[Tensor, Tensor]:
        v_hat = (network.dequantize(y_q, index, level) + mean).detach().requires_grad_(True)
        return v_hat, network.synthesise(v_hat, level, size)

    @torch.no_grad()
    def cost(y_q: Tensor, x_hat: Tensor) -> float:
        bits = network.rate(y_q, y_q, index, level, uniform).sum()
        return (bits / pixels + target.loss(x_hat)).item()

    u = v - mean
    y_q = network.quantize(u, index, level)
    v_hat, x_hat = decoded(y_q)
    best, curvature, rate = cost(y_q, x_hat), curvatures(v_hat, x_hat, pixels), RATE
    gradient = torch.autograd.grad(x_hat, v_hat, target.gradient(x_hat))[0]
    for last in [False] * (passes - 1) + [True]:
        wanted = v_hat.detach() - mean - (gradient / curvature).clamp(-LIMIT, LIMIT)
        moved = u + rate * (wanted - u)
        found = network.quantize(moved, index, level)
        found_v_hat, x_hat = decoded(found)
        now = cost(found, x_hat)
        if now > best:
            rate *= SLOWER
            continue
        u, y_q, v_hat, best = moved, found, found_v_hat, now
        if not last:
            gradient = torch.autograd.grad(x_hat, v_hat, target.gradient(x_hat))[0]
    return y_q


def curvatures(v_hat: Tensor, x_hat: Tensor, pixels: float) -> Tensor:
    """Second derivatives of the mean squared error (1, M, 1, 1), each at least their mean; the graph is kept."""
    generator = torch.Generator().manual_seed(0)
    squares = 0
    for _ in range(PROBES):
        signs = (torch.randint(2, x_hat.shape, generator=generator) * 2 - 1).to(x_hat)
        squares = squares + torch.autograd.grad(x_hat, v_hat, signs, retain_graph=True)[0].square()
    curvature = squares.mean(dim=(0, 2, 3), keepdim=True) * (2 / (PROBES * 3 * pixels))
    return torch.maximum(curvature, curvature.mean())
