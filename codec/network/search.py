"""A search for better symbols of y: the encoder's, the decoder does not know of it.

    y_q = search(network, target, v, index, mean, level, passes)

Quantizing treats each symbol by itself; but symbols interact through g_s, and an error that one makes another can make
good. With u at first v - mean, the residual of the analysis, every pass

    decodes the symbols of now, and takes the gradient of the distortion D with respect to what was put back for them;
    moves u towards where that gradient vanishes if D is a parabola:  u += rate * (wanted - u),
        wanted = v_hat - mean - gradient / curvature of the channel, at most LIMIT steps away;
    quantizes u as always, with the rate in mind (codec/network/quantize.py): those are the new symbols.

That u remembers where earlier passes wanted it makes this dual averaging (Nesterov, 2009). A pass that makes bits per
pixel + D worse is taken back, and the rate of the next ones is lower; so more passes are never worse. z, and with it
index and mean, stay. The curvature is that of squared error, by Gauss and Newton: the mean square of the gradient of
randomly signed sums of pixels, which is the squared norm of a column of g_s's Jacobian in expectation; channels that
hardly matter count as the mean one does. A distortion that is not squared error has no curvature to speak of: its
gradient with respect to the pixels is scaled to TRUST times the strength of that of squared error. It is strong in few
places, where LIMIT holds it; without that the others hardly move.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from codec.network.distortion import MS_SSIM_SIDE, Distortion
from codec.network.model import Network
from codec.network.quantize import uniform

RATE, SLOWER = 0.5, 0.4  # of a pass, at first; what it is multiplied by after a pass that was taken back
PROBES = 2  # sums of pixels
TRUST = 4.0  # strength of another distortion's gradient beside that of squared error
LIMIT = 1.0  # steps that a pass wants a coefficient to move, at most


@dataclass(frozen=True)
class Target:
    """What the decoded images should look like."""

    x: Tensor  # (1, 3, H, W) in [0, 1]
    counted: tuple[slice, slice]  # rows and columns of pixels that count: others depend on what is not seen here
    distortion: Distortion
    lmbda: float

    def squared(self, x_hat: Tensor) -> Tensor:
        """Mean squared error of the pixels that count."""
        return (x_hat - self.x)[..., *self.counted].square().mean()

    def loss(self, x_hat: Tensor) -> Tensor:
        """The distortion in bits per pixel, of the pixels that count; squared error alone where they are too few."""
        x_hat, x = x_hat[..., *self.counted], self.x[..., *self.counted]
        lmbda = torch.full((1,), self.lmbda, device=x.device)
        measured = min(x.shape[-2:]) >= MS_SSIM_SIDE
        return (self.distortion if measured else Distortion([], 1.0))(x_hat, x, lmbda).sum()

    def gradient(self, x_hat: Tensor) -> Tensor:
        """That with respect to the pixels of squared error, or of another loss, TRUST times as strong as that."""
        x_hat = x_hat.detach().requires_grad_(True)
        (of_squared,) = torch.autograd.grad(self.squared(x_hat), x_hat)
        if not self.distortion.measures:
            return of_squared
        (of_loss,) = torch.autograd.grad(self.loss(x_hat), x_hat)
        return of_loss * (TRUST * strength(of_squared) / strength(of_loss).clamp_min(1e-30))


def strength(x: Tensor) -> Tensor:
    """Root mean square."""
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
    """Symbols (1, M, h, w), as floats, of v (1, M, h, w) after so many passes, at least one; the network is in
    evaluation mode.
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
        of_found, x_hat = decoded(found)
        now = cost(found, x_hat)
        if now > best:
            rate *= SLOWER
            continue
        u, y_q, v_hat, best = moved, found, of_found, now
        if not last:
            gradient = torch.autograd.grad(x_hat, v_hat, target.gradient(x_hat))[0]
    return y_q


def curvatures(v_hat: Tensor, x_hat: Tensor, pixels: float) -> Tensor:
    """Second derivative of the mean squared error, of each channel (1, M, 1, 1), at least their mean; graph kept."""
    generator = torch.Generator().manual_seed(0)
    squares = 0
    for _ in range(PROBES):
        signs = (torch.randint(2, x_hat.shape, generator=generator) * 2 - 1).to(x_hat)
        squares = squares + torch.autograd.grad(x_hat, v_hat, signs, retain_graph=True)[0].square()
    curvature = squares.mean(dim=(0, 2, 3), keepdim=True) * (2 / (PROBES * 3 * pixels))
    return torch.maximum(curvature, curvature.mean())
