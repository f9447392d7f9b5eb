"""READ FIRST. The networks of a codec: one forward pass for training, whose steps coding runs one by one.

The factorized codec, Ballé, Laparra and Simoncelli, "End-to-end optimized image compression" (2017), and section 3.1 of
Ballé, Minnen, Singh, Hwang and Johnston, "Variational image compression with a scale hyperprior" (2018):

    x --normalise, mirror pad--> g_a --> y --* gain--> v --quantize--> y_q --rANS, one table per channel--> bytes
    x_hat <--crop, denormalise-- g_s <--/ gain-- dequantize-- y_q

The hyperprior codec, section 3.2 of the latter, and with a mean Minnen, Ballé and Toderici, "Joint autoregressive and
hierarchical priors for learned image compression" (2018), without its context model:

    v --> h_a --> z --* gain, round--> z_q --rANS, one table per channel--> bytes
                                       z_q --> h_s --> index (exact integers), mean (float)
    v - mean --quantize--> y_q --rANS, table = index, or what a context makes of it (entropy/context.py)--> bytes
    x_hat <-- g_s <--/ gain-- dequantize(y_q) + mean

One model serves all rates (Cui et al., "Asymmetric gained deep image compression", 2021): quality q in 0..100 means
lmbda(q) = lmbda_0 * (lmbda_1 / lmbda_0)^(q/100), and the latent is multiplied by a gain per channel that never falls
with q. With a single lmbda in the configuration the gain is 1. Names: y is the output of g_a, v is y times its gain; z
is the output of h_a, w is z times its gain; y_q and z_q are the integer symbols; level is quality / 100.

The rate-distortion loss

    L = E[-log2 p(y_noisy) - log2 p(z_noisy)] / pixels + lmbda * 255^2 * E[(x - x_hat)^2]

is, up to constants, the negative evidence lower bound of a variational autoencoder: the approximate posterior of the
latent is the uniform density of width 1 around v (additive noise; its own entropy is zero), the prior is the learned
density, so the rate is the KL divergence between the two, and the squared error is the negative log-likelihood of a
Gaussian with variance 3 / (2 ln 2 * lmbda * 255^2) per colour sample.

Images and bytes are in codec/coding/codec.py, which runs these steps over tiles and codes the integers.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from codec.config import REACH, ModelConfig, check_precision
from codec.errors import LicError
from codec.machine import has_native_bf16
from codec.network.hyper import HYPER_TRANSFORMS, Constants
from codec.network.layers import SHORTCUT_SCALE, Gain, Knots, step_gain
from codec.network.pixels import crop, denormalise, normalise, pad
from codec.network.quantize import Noise, between, border, lower_bound, round_from, round_ste, uniform
from codec.network.transforms import TRANSFORMS
from entropy.adaptive import ContextModel
from entropy.conditional import GaussianConditional, LaplaceConditional
from entropy.factorized import FactorizedPrior
from entropy.integer import straight_through
from entropy.tables import Tables

LIKELIHOOD_FLOOR = 1e-9  # as in compressai and tensorflow-compression: a symbol costs at most 30 bits in training

Support = tuple[Tensor, Tensor]  # what FactorizedPrior.support() returns; to find it takes longer than to make tables


class Output(NamedTuple):
    """The result of a forward pass."""

    x_hat: Tensor  # (B, 3, H, W), not clamped
    bits: Tensor  # (B,), estimated bits of each image
    bits_z: Tensor  # (B,), the hyper-latent's share of them; 0 without a hyperprior


def bits_of(likelihood: Tensor) -> Tensor:
    """-log2 of probabilities, of any shape."""
    return -torch.log2(lower_bound(likelihood, LIKELIHOOD_FLOOR))


class Network(nn.Module, ABC):
    """Transforms, gain and prior. Images are tensors (B, 3, H, W) in [0, 1] of any size from 1x1."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        if config.transform not in TRANSFORMS:
            raise LicError(f"transform must be {' or '.join(TRANSFORMS)}, not {config.transform!r}")
        scale = SHORTCUT_SCALE * (1.0 if config.variable_rate else step_gain(config.lmbda[0]))
        analysis, synthesis = TRANSFORMS[config.transform]
        options = dict(
            N=config.N, M=config.M, blocks=config.blocks, shortcut=config.shortcut, scale=scale,
            conditioned=config.variable_rate, lapped=config.lapped,
        )  # fmt: skip
        self.g_a = analysis(**options)
        self.g_s = synthesis(**options)
        self.gain = Gain(config.M, *map(step_gain, config.lmbda)) if config.variable_rate else None
        self.shrink = Knots(config.M)
        self.bf16 = False  # run the trunks of g_a and g_s in bfloat16

    @property
    def device(self) -> torch.device:
        return self.shrink.values.device

    @property
    def precision(self) -> str:
        """The precision of the trunks of g_a and g_s: bf16 or fp32."""
        return "bf16" if self.bf16 else "fp32"

    def use_bf16(self, precision: str = "auto") -> "Network":
        """Set the trunks' precision: auto is bf16 where the device has it natively; or fp32. LicError for others."""
        check_precision(precision)
        self.bf16 = precision == "auto" and has_native_bf16(self.device)
        return self

    def autocast(self, x: Tensor) -> torch.autocast:
        return torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16)

    def parameter_count(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def level(self, quality: Tensor | None) -> Tensor | None:
        """quality (B,) in 0..100 -> level (B,) in [0, 1]; None for a fixed lambda."""
        return quality / 100 if self.config.variable_rate else None

    def level_of(self, quality: int | None, count: int = 1) -> Tensor | None:
        """The level (count,) of a user's quality, None for a fixed lambda; LicError for a quality the model lacks."""
        self.config.check_quality(quality)
        return None if quality is None else self.level(torch.full((count,), float(quality), device=self.device))

    def gain_at(self, level: Tensor | None) -> Tensor:
        """Gain (B, M, 1, 1) at a level (B,); (1, M, 1, 1) ones for a fixed lambda."""
        return torch.ones(1, self.config.M, 1, 1, device=self.device) if level is None else self.gain(level)

    def shrink_at(self, level: Tensor | None) -> Tensor:
        """Shift of dequantized symbols towards zero, in steps (B, M, 1, 1), at a level (B,)."""
        return self.shrink(level if level is not None else torch.zeros(1, device=self.device))

    def analyse(self, x: Tensor, level: Tensor | None) -> Tensor:
        """x (B, 3, H, W) -> v (B, M, ceil(H/16), ceil(W/16)), the latent times its gain: quantization steps are 1."""
        with self.autocast(x):
            y = self.g_a(pad(normalise(x)), level)
        return y * self.gain_at(level)

    def synthesise(self, v_hat: Tensor, level: Tensor | None, size: tuple[int, int]) -> Tensor:
        """v_hat (B, M, h, w), dequantized, in steps of 1 -> x_hat (B, 3, *size), not clamped."""
        y_hat = v_hat / self.gain_at(level)
        with self.autocast(y_hat):
            x_hat = denormalise(self.g_s(y_hat, level))
        return crop(x_hat, *size)

    def forward(self, x: Tensor, quality: Tensor | None = None, noise: Noise = uniform) -> Output:
        """Reconstruction and estimated bits of x (B, 3, H, W) at quality (B,) in 0..100, None for a fixed lambda.

        train(): straight-through rounding for the reconstruction, `noise` for the rate; eval(): symbols as coded.
        """
        level = self.level(quality)
        v = self.analyse(x, level)
        w = self.analyse_hyper(v, level)
        index, mean = self.derive(None if w is None else to_reach(round_ste(w)), self.constants(level), v.shape[-2:])
        residual = v.contiguous() - mean
        y_q = straight_through(residual, self.quantize(residual, index, level))
        bits = self.rate(residual, y_q, index, level, noise).sum(dim=(1, 2, 3))
        bits_z = torch.zeros_like(bits) if w is None else self.hyper_rate(w, level, noise).sum(dim=(1, 2, 3))
        x_hat = self.synthesise(self.dequantize(y_q, index, level) + mean, level, x.shape[-2:])
        return Output(x_hat, bits + bits_z, bits_z)

    # ---- what depends on the prior ----

    @abstractmethod
    def analyse_hyper(self, v: Tensor, level: Tensor | None) -> Tensor | None:
        """v (B, M, h, w) -> w (B, K, ceil(h/4), ceil(w/4)), z times its gain; None without a hyperprior."""

    @abstractmethod
    def constants(self, level: Tensor | None) -> Constants | None:
        """The constants of h_s's exact path at a level (B,); None without a hyperprior."""

    def constants_of(self, level: Tensor | None) -> dict[str, NDArray[np.int32]]:
        """The constants at a level (1,) as a model file stores them: int32 (C,) each, by name."""
        return {
            name: constant[0, :, 0, 0].detach().cpu().numpy().astype(np.int32)
            for name, constant in self.constants(level)._asdict().items()
        }

    def constants_from(self, stored: Sequence[dict[str, NDArray[np.int32]]]) -> Constants:
        """Stored constants of B qualities, stacked into a batch, as `derive` takes them."""
        stacked = (np.stack([constants[name] for constants in stored]) for name in Constants._fields)
        return Constants(*(torch.from_numpy(s).to(self.device).double()[:, :, None, None] for s in stacked))

    @abstractmethod
    def derive(
        self, z_q: Tensor | None, constants: Constants | None, shape: tuple[int, int]
    ) -> tuple[Tensor | None, Tensor | float]:
        """Table index and predicted mean of v, (B, M, *shape) each, from the symbols z_q (B, K, h', w').

        The index is exact. Without a hyperprior it is None, since the table is the channel's, and the mean is 0.
        """

    @abstractmethod
    def bits(self, residual: Tensor, index: Tensor | None, level: Tensor | None) -> Tensor:
        """Estimated bits of each sample of the residual v - mean (B, M, h, w), rounded or with noise; same shape."""

    @abstractmethod
    def rate(self, residual: Tensor, y_q: Tensor, index: Tensor | None, level: Tensor | None, noise: Noise) -> Tensor:
        """Bits (B, M, h, w) of the symbols y_q of the residual v - mean; in training with gradients for learning."""

    @abstractmethod
    def quantize(self, residual: Tensor, index: Tensor | None, level: Tensor | None) -> Tensor:
        """Symbols of the residual v - mean (B, M, h, w), as floats; rate-distortion optimised (quantize.py)."""

    @abstractmethod
    def dequantize(self, y_q: Tensor, index: Tensor | None, level: Tensor | None) -> Tensor:
        """Symbols (B, M, h, w) as floats -> the reconstructed residual v - mean, same shape."""

    @abstractmethod
    def y_tables(self, level: Tensor | None, support: Support) -> Tables:
        """Integer tables of the symbols of y at a level (1,); `support` is the prior's, the same at all levels."""

    @abstractmethod
    def z_tables(self, level: Tensor | None, support: Support) -> Tables | None:
        """Integer tables of the symbols of z, one per channel, at a level (1,); None without a hyperprior."""


class FactorizedNetwork(Network):
    """A factorized prior: one learned density per channel of y, before the gain, so that it serves all rates."""

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        self.prior = FactorizedPrior(config.M)

    def analyse_hyper(self, v: Tensor, level: Tensor | None) -> None:
        return None

    def constants(self, level: Tensor | None) -> None:
        return None

    def derive(self, z_q: None, constants: None, shape: tuple[int, int]) -> tuple[None, float]:
        return None, 0.0

    def bits(self, residual: Tensor, index: None, level: Tensor | None) -> Tensor:
        gain = self.gain_at(level)
        return bits_of(self.prior.likelihood(residual / gain, 1 / gain))

    def rate(self, residual: Tensor, y_q: Tensor, index: None, level: Tensor | None, noise: Noise) -> Tensor:
        return self.bits(residual + noise(residual) if self.training else y_q, index, level)

    @torch.no_grad()
    def quantize(self, residual: Tensor, index: None, level: Tensor | None) -> Tensor:
        points = torch.arange(-2.0, 3.0, device=residual.device).view(1, 1, 5, 1)
        bits = self.bits(points, index, level).permute(2, 0, 1, 3)[..., None]  # (5, B, M, 1, 1), of the symbols -2..2
        above = torch.where(residual > 1.5, bits[4] - bits[3], bits[3] - bits[2])
        below = torch.where(residual < -1.5, bits[0] - bits[1], bits[1] - bits[2])
        return round_from(residual, border(torch.where(residual > 0, above, below)))

    def dequantize(self, y_q: Tensor, index: None, level: Tensor | None) -> Tensor:
        """Symbols go back nearer to zero than the centre of their interval, where a peaked density has its mean."""
        return y_q - self.shrink_at(level) * torch.sign(y_q.detach())

    @torch.no_grad()
    def y_tables(self, level: Tensor | None, support: Support) -> Tables:
        return self.prior.tables(self.gain_at(level)[0, :, 0, 0], support)

    def z_tables(self, level: Tensor | None, support: Support) -> None:
        return None


class HyperpriorNetwork(Network):
    """A hyperprior: z predicts the mean and the scale of each symbol of y; z itself has a factorized prior."""

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        h_a, h_s = HYPER_TRANSFORMS[config.transform]
        options = dict(M=config.M, N=config.hyper_N, K=config.hyper_M, mean=config.prior == "mean-scale-hyperprior")
        self.h_a = h_a(**options)
        self.h_s = h_s(**options)
        self.prior = FactorizedPrior(config.hyper_M)
        self.conditional = LaplaceConditional() if config.density == "laplace" else GaussianConditional()
        points = torch.arange(3.0)[:, None].expand(-1, self.conditional.count)
        bits = self.bits(points, torch.arange(self.conditional.count))  # (3, tables), of the symbols 0, 1 and 2
        self.register_buffer("borders", border(bits.diff(dim=0)).flatten(), persistent=False)
        self.centroid = nn.Parameter(torch.zeros(self.conditional.count, 3))
        self.hyper_gain = Gain(config.hyper_M, 1.0, 2.0) if config.variable_rate else None  # start by hand
        self.context = ContextModel(config.M, config.context, self.conditional) if config.context else None

    def hyper_gain_at(self, level: Tensor | None) -> Tensor:
        """Gain of z (B, K, 1, 1) at a level (B,); (1, K, 1, 1) ones for a fixed lambda."""
        return torch.ones(1, self.config.hyper_M, 1, 1, device=self.device) if level is None else self.hyper_gain(level)

    def analyse_hyper(self, v: Tensor, level: Tensor | None) -> Tensor:
        with self.autocast(v):
            z = self.h_a(v, _or_zeros(level, v))
        return z * self.hyper_gain_at(level)

    def constants(self, level: Tensor | None) -> Constants:
        gain = self.hyper_gain_at(level)
        return self.h_s.constants(_or_zeros(level, gain), gain)

    def derive(self, z_q: Tensor, constants: Constants, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
        index, mean = (crop(output, *shape) for output in self.h_s(z_q, constants, self.conditional.count))
        if self.training:
            index = index.nan_to_num(0)  # a step that is not finite is skipped later; here indexing would fail
        return index, mean

    def bits(self, residual: Tensor, index: Tensor, level: Tensor | None = None) -> Tensor:
        return bits_of(self.conditional.likelihood(residual, self.conditional.scale_of(index)))

    def rate(self, residual: Tensor, y_q: Tensor, index: Tensor, level: Tensor | None, noise: Noise) -> Tensor:
        if self.context is not None:
            index = self.context(y_q, index)
        bits = self.bits(y_q.detach(), index)  # teaches h_s the scale of what is coded, after quantize()
        if self.training:
            noisy = self.bits(residual + noise(residual), index.detach())  # teaches the transforms and the mean
            bits = bits + noisy - noisy.detach()
        return bits

    def hyper_rate(self, w: Tensor, level: Tensor | None, noise: Noise) -> Tensor:
        """Estimated bits (B, K, h', w') of each symbol of z, from w of the same shape."""
        gain = self.hyper_gain_at(level)
        z_rate = w + noise(w) if self.training else to_reach(torch.round(w))
        return bits_of(self.prior.likelihood(z_rate / gain, 1 / gain))

    @torch.no_grad()
    def quantize(self, residual: Tensor, index: Tensor, level: Tensor | None) -> Tensor:
        entry = torch.add(index.int(), residual.abs() > 1.5, alpha=self.conditional.count)
        return round_from(residual, self.borders.index_select(0, entry.flatten()).view(residual.shape))

    def dequantize(self, y_q: Tensor, index: Tensor, level: Tensor | None) -> Tensor:
        """Symbols go back at learned centroids: by channel and level, by table, and by magnitude (1, 2, more)."""
        symbols = y_q.detach()
        entry = torch.add(symbols.abs().int().clamp_(1, 3), index.int(), alpha=3)  # in range if a symbol is NaN, too
        centroid = F.pad(self.centroid.flatten(), (1, 0))  # 1, 2, 3, not 0, 1, 2
        shift = self.shrink_at(level) - centroid.index_select(0, entry.flatten()).view(entry.shape)
        return y_q - shift * torch.sign(symbols)

    def y_tables(self, level: Tensor | None, support: Support) -> Tables:
        return self.conditional.tables()

    @torch.no_grad()
    def z_tables(self, level: Tensor | None, support: Support) -> Tables:
        return self.prior.tables(self.hyper_gain_at(level)[0, :, 0, 0], support)


def to_reach(z_q: Tensor) -> Tensor:
    """Symbols of z clamped to -REACH..REACH; outside, only a gradient that leads back passes."""
    return between(z_q, -REACH, REACH)


def _or_zeros(level: Tensor | None, like: Tensor) -> Tensor:
    """The level (B,), or zeros for a fixed lambda; B is the length of `like`."""
    return torch.zeros(len(like), device=like.device) if level is None else level


def build(config: ModelConfig) -> Network:
    """The untrained network of a configuration."""
    return FactorizedNetwork(config) if config.prior == "factorized" else HyperpriorNetwork(config)
