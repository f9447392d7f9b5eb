"""The factorized prior: one learned density per channel, shared by all positions of the latent.

Ballé, Minnen, Singh, Hwang and Johnston, "Variational image compression with a scale hyperprior" (2018), appendix 6.1:
the cumulative distribution of a channel is a small monotone network, F(v) = sigmoid(f_K(...f_1(v))), with f_k(u) =
softplus(H) u + b followed by u + tanh(a) * tanh(u). It is increasing by construction, differentiable, and can
approach any density.

Symbol k stands for the interval of width w around k w, and has probability F((k + 1/2) w) - F((k - 1/2) w). The width
is 1/gain, so that one density in the domain of the latent serves all rates of a variable-rate codec; w = 1 is the
published form.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from entropy.tables import TAIL_MASS, Tables


class FactorizedPrior(nn.Module):
    """Densities of C channels. Parameter names are those of compressai's EntropyBottleneck (filters 3, 3, 3, 3).

    `scale` (C,) is a fixed unit per channel: the density is one of v / scale. Measure it on data before training: a
    density that starts far too wide costs bits for long. `init_scale` is the width of the density at the start, in
    these units.
    """

    FILTERS = (1, 3, 3, 3, 3, 1)

    def __init__(self, channels: int, init_scale: float = 1.0):
        super().__init__()
        self.channels = channels
        self.register_buffer("scale", torch.ones(channels))
        layers = list(zip(self.FILTERS[:-1], self.FILTERS[1:], strict=True))
        step = init_scale ** (1 / len(layers))
        self.matrices = nn.ParameterList(
            torch.full((channels, wide, narrow), math.log(math.expm1(1 / step / wide))) for narrow, wide in layers
        )
        self.biases = nn.ParameterList(torch.rand(channels, wide, 1) - 0.5 for _, wide in layers)
        self.factors = nn.ParameterList(torch.zeros(channels, wide, 1) for _, wide in layers[:-1])

    def load_compressai(self, state: dict[str, Tensor]) -> None:
        """Take over the densities in the state dict of an EntropyBottleneck, without its quantiles and tables."""
        groups = ("matrices", "biases", "factors")
        self.load_state_dict({k: v for k, v in state.items() if k.startswith(groups)} | {"scale": self.scale})

    def logits(self, v: Tensor) -> Tensor:
        """Logits of the cumulative distribution F, log(F / (1 - F)): v (C, 1, n) -> (C, 1, n)."""
        u = v / self.scale.to(v.dtype)[:, None, None]
        for i, (matrix, bias) in enumerate(zip(self.matrices, self.biases, strict=True)):
            u = torch.baddbmm(bias.to(v.dtype), F.softplus(matrix.to(v.dtype)), u)
            if i < len(self.factors):
                u = u + torch.tanh(self.factors[i].to(v.dtype)) * torch.tanh(u)
        return u

    def interval_mass(self, lower: Tensor, upper: Tensor) -> Tensor:
        """F(upper) - F(lower) for bounds (C, 1, n), computed in the lower tail, where no digits are lost: (C, 1, n)."""
        a, b = self.logits(torch.cat((lower, upper), dim=-1)).chunk(2, dim=-1)
        sign = torch.where(a + b > 0, -1.0, 1.0).to(a.dtype)
        return (torch.sigmoid(sign * b) - torch.sigmoid(sign * a)).abs()

    def likelihood(self, v: Tensor, width: Tensor | float = 1.0) -> Tensor:
        """Probability of the interval of `width` around each v: (B, C, h, w) -> same shape; width broadcasts to v."""
        half = torch.as_tensor(width, dtype=v.dtype, device=v.device) / 2
        to_channels = lambda t: t.transpose(0, 1).reshape(self.channels, 1, -1)  # noqa: E731
        mass = self.interval_mass(to_channels(v - half), to_channels(v + half))
        return mass.reshape(v.shape[1], v.shape[0], *v.shape[2:]).transpose(0, 1)

    @torch.no_grad()
    def quantiles(self, mass: float) -> Tensor:
        """The v of each channel with F(v) = mass, 0 < mass < 1, by bisection: (C,) float64."""
        target = math.log(mass / (1 - mass))
        low = torch.full((self.channels, 1, 1), -1.0, dtype=torch.float64, device=self.scale.device)
        high = -low
        while (above := self.logits(low) > target).any():
            low = torch.where(above, low * 2, low)
        while (below := self.logits(high) < target).any():
            high = torch.where(below, high * 2, high)
        for _ in range(60):
            middle = (low + high) / 2
            below = self.logits(middle) < target
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return high[:, 0, 0]

    def support(self) -> tuple[Tensor, Tensor]:
        """The interval of each channel outside of which lies TAIL_MASS: its two ends, (C,) float64 each."""
        return self.quantiles(TAIL_MASS / 2), self.quantiles(1 - TAIL_MASS / 2)

    @torch.no_grad()
    def pmfs(self, gain: Tensor, support: tuple[Tensor, Tensor]) -> tuple[list[np.ndarray], np.ndarray]:
        """Probabilities of the symbols k = round(v * gain), gain (C,), over the interval of `support()`.

        Returns one float64 array per channel, and the first k of each: (C,) int32.
        """
        gain = gain.double()
        first = torch.floor(support[0] * gain).long()
        last = torch.ceil(support[1] * gain).long()
        sizes = last - first + 1
        k = first[:, None] + torch.arange(int(sizes.max()), device=gain.device)  # (C, n), longer than most need
        mass = self.interval_mass(((k - 0.5) / gain[:, None])[:, None], ((k + 0.5) / gain[:, None])[:, None])[:, 0]
        rows = [row[:size].cpu().numpy() for row, size in zip(mass, sizes.tolist(), strict=True)]
        return rows, first.cpu().numpy().astype(np.int32)

    def tables(self, gain: Tensor, support: tuple[Tensor, Tensor]) -> Tables:
        """Integer tables of the symbols round(v * gain), one per channel. Made once, at export, and stored."""
        return Tables.from_pmfs(*self.pmfs(gain, support))
