"""READ FIRST. The codecs: one forward pass for training, the same lines for compressing and decompressing.

The factorized codec, Ballé, Laparra and Simoncelli, "End-to-end optimized image compression" (2017), and section 3.1 of
Ballé, Minnen, Singh, Hwang and Johnston, "Variational image compression with a scale hyperprior" (2018):

    x --normalise, mirror pad--> g_a --> y --* gain--> v --quantize--> y_q --rANS, one table per channel--> bytes
    x_hat <--crop, denormalise-- g_s <--/ gain-- y_q

The hyperprior codec, section 3.2 of the latter, and with a mean Minnen, Ballé and Toderici, "Joint autoregressive and
hierarchical priors for learned image compression" (2018), without its context model:

    v --> h_a --> z --* gain, round--> z_q --rANS, one table per channel--> bytes
                                       z_q --> h_s --> index (exact integers), mean (float)
    v - mean --quantize--> y_q --rANS, table = index--> bytes
    x_hat <-- g_s <--/ gain-- y_q + mean

The rate-distortion loss

    L = E[-log2 p(y_noisy) - log2 p(z_noisy)] / pixels + lmbda * 255^2 * E[(x - x_hat)^2]

is, up to constants, the negative evidence lower bound of a variational autoencoder: the approximate posterior of the
latent is the uniform density of width 1 around v (additive noise; its own entropy is zero), the prior is the learned
density, so the rate is the KL divergence between the two, and the squared error is the negative log-likelihood of a
Gaussian with variance 3 / (2 ln 2 * lmbda * 255^2) per colour sample.
"""

from collections.abc import Set

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import entropy
from codec.coding import tiles
from codec.coding.base import Codec, Output
from codec.coding.tables import channels, decode_all, pack, unpack
from codec.coding.tiles import Box, Latent, Strip, to_symbols
from codec.config import ModelConfig
from codec.container import bitstream
from codec.network import calibrate as start
from codec.network.hyper import HYPER_TRANSFORMS, REACH, Rows
from codec.network.layers import Gain
from codec.network.quantize import Noise, between, border, lower_bound, round_from, round_ste, uniform
from entropy.conditional import GaussianConditional, LaplaceConditional
from entropy.factorized import FactorizedPrior
from entropy.integer import straight_through

LIKELIHOOD_FLOOR = 1e-9  # as in compressai and tensorflow-compression: in training a symbol costs at most 30 bits


def bits_of(likelihood: Tensor) -> Tensor:
    """-log2 of probabilities, of any shape."""
    return -torch.log2(lower_bound(likelihood, LIKELIHOOD_FLOOR))


class FactorizedCodec(Codec):
    """One learned density per channel of y. It stays in the domain before the gain: one for all rates. `tables_of`
    holds Tables of y.
    """

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        self.prior = FactorizedPrior(config.M)

    def bits(self, v: Tensor, gain: Tensor) -> Tensor:
        """Estimated bits of each sample of v (B, M, h, w), rounded or with noise."""
        return bits_of(self.prior.likelihood(v / gain, 1 / gain))

    @torch.no_grad()
    def quantize(self, v: Tensor, gain: Tensor) -> Tensor:
        """Symbols of v (B, M, h, w), as floats."""
        points = torch.arange(-2.0, 3.0, device=v.device).view(1, 1, 5, 1)
        bits = self.bits(points, gain).permute(2, 0, 1, 3)[..., None]  # (5, B, M, 1, 1), of the symbols -2..2
        above = torch.where(v > 1.5, bits[4] - bits[3], bits[3] - bits[2])
        below = torch.where(v < -1.5, bits[0] - bits[1], bits[1] - bits[2])
        return round_from(v, border(torch.where(v > 0, above, below)))

    def dequantize(self, y_q: Tensor, level: Tensor | None) -> Tensor:
        """Symbols (B, M, h, w) as floats -> where v is put back: a little nearer to zero than the centre of the
        interval, where a peaked density has its mean.
        """
        return y_q - self.shrink_at(level) * torch.sign(y_q.detach())

    def forward(self, x: Tensor, quality: Tensor | None = None, noise: Noise = uniform) -> Output:
        level = self.level(quality)
        v, gain = self.analyse(x, level), self.gain_at(level)
        y_q = straight_through(v, self.quantize(v, gain))
        y_rate = v + noise(v) if self.training else y_q
        x_hat = self.synthesise(self.dequantize(y_q, level), level, x.shape[-2:])
        bits = self.bits(y_rate, gain).sum(dim=(1, 2, 3))
        return Output(x_hat, bits, torch.zeros_like(bits))

    @torch.no_grad()
    def fit(self, x: Tensor, kept: Set[str] = frozenset()) -> int:
        if start.whole(self, "prior", kept):
            return 0
        level = self.level(torch.full((len(x),), 50.0, device=x.device))
        y = self.analyse(x, level) / self.gain_at(level)
        self.prior.scale.copy_(y.abs().mean(dim=(0, 2, 3)).clamp_min(1e-3))
        return 0

    def hyper_symbols(self, v: Strip, rows: list[Box], level: Tensor | None) -> None:
        return None

    def latent_of(self, v: Tensor, z: None, box: Box, quality: int | None) -> Latent:
        return Latent(to_symbols(self.quantize(v, self.gain_at(self.level(self.batch_of(quality, len(v)))))))

    def dequantized(self, latent: Latent, level: Tensor | None) -> Tensor:
        return self.dequantize(torch.from_numpy(latent.y).to(self.device).float(), level)

    def encode_z(self, z: None, quality: int | None) -> list[bitstream.Section]:
        return []

    def encode_y(self, latent: Latent, quality: int | None) -> bytes:
        return entropy.encode([(latent.y, channels(self.config.M), self._tables(quality))])

    def decode_z(self, sections: list[bitstream.Section], quality: int | None, shape: tuple[int, int]) -> None:
        if any(section.tag == bitstream.HYPER for section in sections):
            raise bitstream.FormatError("a section of the hyper-latent, which this model does not have")

    def decode_y(self, stream: bytes, z: None, box: Box, quality: int | None) -> Latent:
        M, decoder = self.config.M, entropy.Decoder(stream)
        return Latent(decode_all(decoder, channels(M), self._tables(quality), (1, M, *box.shape)))

    @torch.no_grad()
    def build_tables(self, qualities: list[int | None] | None = None) -> None:
        support = self.prior.support()
        for quality in self.qualities if qualities is None else qualities:
            gain = self.gain_at(self.level(self.batch_of(quality, 1)))
            self.tables_of[quality] = self.prior.tables(gain[0, :, 0, 0], support)

    def tables(self) -> dict[str, Tensor]:
        return pack([self.tables_of[quality] for quality in self.qualities])

    def load_tables(self, tensors: dict[str, np.ndarray]) -> None:
        M = self.config.M
        whole = unpack(tensors, M * len(self.qualities))
        self.tables_of = {quality: whole.rows(i * M, (i + 1) * M) for i, quality in enumerate(self.qualities)}


class HyperpriorCodec(Codec):
    """A density for each symbol of y - mean, its scale and mean told by z; a learned one for each channel of z.
    `tables_of` holds pairs: Tables of z, and Rows.
    """

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        h_a, h_s = HYPER_TRANSFORMS[config.transform]
        options = dict(M=config.M, N=config.hyper_N, K=config.hyper_M, mean=config.prior == "mean-scale-hyperprior")
        self.h_a = h_a(**options)
        self.h_s = h_s(**options)
        self.prior = FactorizedPrior(config.hyper_M)
        self.conditional = LaplaceConditional() if config.density == "laplace" else GaussianConditional()
        points = torch.arange(3.0)[:, None].expand(-1, self.conditional.levels)
        bits = self.bits(points, torch.arange(self.conditional.levels))  # (3, levels), of the symbols 0, 1 and 2
        self.register_buffer("borders", border(bits.diff(dim=0)).flatten(), persistent=False)
        self.centroid = nn.Parameter(torch.zeros(self.conditional.levels, 3))
        self.hyper_gain = Gain(config.hyper_M, 1.0, 2.0) if config.variable_rate else None
        self.y_tables: entropy.Tables | None = None

    def hyper_gain_at(self, level: Tensor | None) -> Tensor:
        """Gain of z (B, K, 1, 1) at a level (B,); (1, K, 1, 1) ones for a fixed lambda."""
        return torch.ones(1, self.config.hyper_M, 1, 1, device=self.device) if level is None else self.hyper_gain(level)

    def analyse_hyper(self, v: Tensor, level: Tensor | None) -> Tensor:
        """v (B, M, h, w) -> w (B, K, ceil(h/4), ceil(w/4)), z times its gain: a step is 1."""
        with self.autocast(v):
            z = self.h_a(v, _or_zeros(level, v))
        return z * self.hyper_gain_at(level)

    def derive(self, z: Strip, rows: Rows, box: Box) -> tuple[Tensor, Tensor]:
        """Index (B, M, *box.shape), integers, and mean of that part of y from the symbols of z of the whole image."""
        rows = Rows(*(part.to(self.device) for part in rows))  # the stored ones do not move with the model
        index = mean = None
        for tile in tiles.tiles(box.coarse(tiles.CELL), tiles.WIDE):
            outer, own = tile.grown(self.h_s.halo, z.area), tile.scaled(tiles.CELL).within(box)
            parts = self.h_s(z.of(outer), rows, self.conditional.levels)
            part, of_mean = (own.seen_from(outer.scaled(tiles.CELL)).of(x) for x in parts)
            if self.training:
                part = part.nan_to_num(0)  # a step that is not finite is skipped, but indexing would not survive it
            if not torch.is_grad_enabled():
                part = part.to(torch.uint8)
            index, mean = tiles.place(index, part, own, box), tiles.place(mean, of_mean, own, box)
        return index, mean

    def bits(self, v: Tensor, index: Tensor) -> Tensor:
        """Estimated bits of each sample of v - mean (B, M, h, w), rounded or with noise."""
        return bits_of(self.conditional.likelihood(v, self.conditional.scale_of(index)))

    def hyper_bits(self, w: Tensor, gain: Tensor) -> Tensor:
        """Estimated bits of each sample of z times its gain (B, K, h', w'), rounded or with noise."""
        return bits_of(self.prior.likelihood(w / gain, 1 / gain))

    @torch.no_grad()
    def quantize(self, v: Tensor, index: Tensor) -> Tensor:
        """Symbols of v - mean (B, M, h, w), as floats."""
        row = torch.add(index.int(), v.abs() > 1.5, alpha=self.conditional.levels)
        return round_from(v, self.borders.index_select(0, row.flatten()).view(v.shape))

    def dequantize(self, y_q: Tensor, index: Tensor, mean: Tensor | float, level: Tensor | None) -> Tensor:
        """Symbols (B, M, h, w) as floats -> where v is put back: each at the learned centroid of its interval, which
        depends on its channel, on its table and on whether it is 1, 2 or more.
        """
        symbols = y_q.detach()
        row = torch.add(symbols.abs().int().clamp_(1, 3), index.int(), alpha=3)  # in range if a symbol is NaN, too
        centroid = F.pad(self.centroid.flatten(), (1, 0))  # 1, 2, 3, not 0, 1, 2
        shift = self.shrink_at(level) - centroid.index_select(0, row.flatten()).view(row.shape)
        return y_q - shift * torch.sign(symbols) + mean

    def rows_at(self, level: Tensor | None) -> Rows:
        """What the exact path needs to know of the level (B,)."""
        gain = self.hyper_gain_at(level)
        return self.h_s.rows(_or_zeros(level, gain), gain)

    def forward(self, x: Tensor, quality: Tensor | None = None, noise: Noise = uniform) -> Output:
        level = self.level(quality)
        v = self.analyse(x, level)
        w = self.analyse_hyper(v, level)
        z_q = to_reach(round_ste(w))
        index, mean = self.derive(Strip.whole(z_q), self.rows_at(level), tiles.whole(v.shape[-2:]))
        residual = v.contiguous() - mean
        y_q = straight_through(residual, self.quantize(residual, index))
        bits = self.bits(y_q.detach(), index)  # teaches h_s the scale of what is coded, after quantize()
        if self.training:
            noisy = self.bits(residual + noise(residual), index.detach())  # teaches the transforms and the mean
            bits = bits + noisy - noisy.detach()
        z_rate = w + noise(w) if self.training else z_q
        z_bits = self.hyper_bits(z_rate, self.hyper_gain_at(level))
        bits, bits_z = bits.sum(dim=(1, 2, 3)), z_bits.sum(dim=(1, 2, 3))
        x_hat = self.synthesise(self.dequantize(y_q, index, mean, level), level, x.shape[-2:])
        return Output(x_hat, bits + bits_z, bits_z)

    def fit(self, x: Tensor, kept: Set[str] = frozenset()) -> int:
        return start.fit(self, x, kept)

    def hyper_symbols(self, v: Strip, rows: list[Box], level: Tensor | None) -> Strip:
        def symbols(cells: Box) -> Tensor:
            return to_reach(torch.round(self.analyse_hyper(v.of(cells.scaled(tiles.CELL).within(v.area)), level)))

        area, cells = v.area.coarse(tiles.CELL), [row.coarse(tiles.CELL) for row in rows]
        return Strip(area, ((row, tiles.joined(symbols, row, tiles.WIDE, self.h_a.halo, area)) for row in cells))

    def latent_of(self, v: Tensor, z: Strip, box: Box, quality: int | None) -> Latent:
        if quality in self.tables_of:
            rows = self.tables_of[quality][1]
        else:
            rows = self.rows_at(self.level(self.batch_of(quality, len(v))))
        index, mean = self.derive(z, rows, box)
        residual = v.contiguous() - mean  # laid out as symbols are coded, and not channels last
        return Latent(to_symbols(self.quantize(residual, index)), None, index.cpu().numpy(), mean)

    def dequantized(self, latent: Latent, level: Tensor | None) -> Tensor:
        y_q, index = (torch.from_numpy(part).to(self.device) for part in (latent.y, latent.index))
        return self.dequantize(y_q.float(), index, latent.mean, level)

    def encode_z(self, z: np.ndarray, quality: int | None) -> list[bitstream.Section]:
        stream = entropy.encode([(z, channels(self.config.hyper_M), self._tables(quality)[0])])
        return [bitstream.Section(bitstream.HYPER, stream)]

    def encode_y(self, latent: Latent, quality: int | None) -> bytes:
        self._tables(quality)  # made together with those of y
        return entropy.encode([(latent.y, latent.index, self.y_tables)])

    def decode_z(self, sections: list[bitstream.Section], quality: int | None, shape: tuple[int, int]) -> np.ndarray:
        K, stream = self.config.hyper_M, bitstream.find(sections, bitstream.HYPER)
        z = decode_all(entropy.Decoder(stream), channels(K), self._tables(quality)[0], (1, K, *shape))
        if np.any(np.abs(z, dtype=np.int64) > REACH):
            raise bitstream.FormatError(f"damaged: a symbol of the hyper-latent is beyond {REACH}")
        return z

    def decode_y(self, stream: bytes, z: np.ndarray, box: Box, quality: int | None) -> Latent:
        decoder = entropy.Decoder(stream)
        decoder.check(self.config.M * box.shape[0] * box.shape[1])
        index, mean = self.derive(Strip.whole(torch.from_numpy(z).to(self.device)), self._tables(quality)[1], box)
        index = index.cpu().numpy()
        return Latent(decode_all(decoder, index, self.y_tables, index.shape), z, index, mean)

    @torch.no_grad()
    def build_tables(self, qualities: list[int | None] | None = None) -> None:
        self.y_tables = self.conditional.tables()
        support = self.prior.support()
        for quality in self.qualities if qualities is None else qualities:
            level = self.level(self.batch_of(quality, 1))
            gain, rows = self.hyper_gain_at(level), self.rows_at(level)
            self.h_s.check_bounds(rows)
            self.tables_of[quality] = self.prior.tables(gain[0, :, 0, 0], support), rows

    def tables(self) -> dict[str, Tensor]:
        of_z, rows = zip(*(self.tables_of[quality] for quality in self.qualities), strict=True)
        stacked = {
            f"tables.{name}": torch.cat([getattr(row, name) for row in rows])[:, :, 0, 0].cpu().to(torch.int32)
            for name in Rows._fields
        }
        return pack(list(of_z)) | pack([self.y_tables], "tables.y_") | stacked

    @torch.no_grad()
    def load_tables(self, tensors: dict[str, np.ndarray]) -> None:
        K = self.config.hyper_M
        whole = unpack(tensors, K * len(self.qualities))
        self.y_tables = unpack(tensors, self.conditional.levels, "tables.y_")
        stacked = []
        for name, row in self.rows_at(self.level(self.batch_of(self.qualities[0], 1)))._asdict().items():
            stored, shape = tensors.get(f"tables.{name}"), (len(self.qualities), row.shape[1])
            if stored is None or stored.dtype != np.int32 or stored.shape != shape:
                raise ValueError(f"tables.{name} is not int32 {shape}")
            stacked.append(torch.from_numpy(stored).double().to(self.device)[:, :, None, None])
        self.h_s.check_bounds(Rows(*stacked))
        for i, quality in enumerate(self.qualities):
            rows = Rows(*(part[i : i + 1] for part in stacked))
            self.tables_of[quality] = whole.rows(i * K, (i + 1) * K), rows


def to_reach(z_q: Tensor) -> Tensor:
    """Hyper-symbols kept in -REACH..REACH, with a gradient that can lead back."""
    return between(z_q, -REACH, REACH)


def _or_zeros(level: Tensor | None, like: Tensor) -> Tensor:
    """The level (B,), or the first for a fixed lambda."""
    return torch.zeros(len(like), device=like.device) if level is None else level


def build(config: ModelConfig) -> Codec:
    """The untrained codec of a configuration."""
    return FactorizedCodec(config) if config.prior == "factorized" else HyperpriorCodec(config)
