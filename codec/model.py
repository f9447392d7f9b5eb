"""READ FIRST. The factorized codec: one forward pass for training, the same lines for compressing and decompressing.

    x --normalise, mirror pad--> g_a --> y --* gain--> quantize --> y_q --rANS, one table per channel--> bytes
    x_hat <--crop, denormalise-- g_s <-- y_hat <--dequantize, / gain-- y_q

Ballé, Laparra and Simoncelli, "End-to-end optimized image compression" (2017), and section 3.1 of Ballé, Minnen, Singh,
Hwang and Johnston (2018). The rate-distortion loss

    L = E[-log2 p(y_noisy)] / pixels + lmbda * 255^2 * E[(x - x_hat)^2]

is, up to constants, the negative evidence lower bound of a variational autoencoder: the approximate posterior of the
latent is the uniform density of width 1 around y (additive noise; its own entropy is zero), the prior is the learned
density, so the rate is the KL divergence between the two, and the squared error is the negative log-likelihood of a
Gaussian with variance 3 / (2 ln 2 * lmbda * 255^2) per colour sample.

One model serves all rates (Cui et al., "Asymmetric gained deep image compression", 2021): quality q in 0..100 means
lmbda(q) = lmbda_0 * (lmbda_1 / lmbda_0)^(q/100); the latent is multiplied by a gain per channel that can only grow with
q, and the density stays in the domain before the gain. With a single lmbda in the configuration the gain is 1.
"""

import contextlib
import math
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import entropy
from codec import bitstream
from codec import image as img
from codec.config import ModelConfig
from codec.layers import Knots, interpolate
from codec.quantize import add_noise, lower_bound, round_ste
from codec.transforms import TRANSFORMS
from entropy.factorized import FactorizedPrior

RDOQ = 0.045  # squared steps a bit is worth to the encoder; 0.03 and 0.06 are 0.1-0.2 % worse on validation images
LIKELIHOOD_FLOOR = 1e-9  # as in compressai and tensorflow-compression: in training a symbol costs at most 30 bits


class Output(NamedTuple):
    """What one forward pass gives."""

    x_hat: Tensor  # (B, 3, H, W), not clamped
    bits: Tensor  # (B,), estimated bits of each image


class Estimate(NamedTuple):
    """What the model expects of one image at one quality, without coding it."""

    bits: float  # -log2 of the float densities of evaluation-mode forward, all symbols
    cross_entropy: float  # the same in bits per symbol
    empirical_entropy: float  # bits per symbol of an ideal coder that knew each channel's histogram in this image
    symbols: np.ndarray  # (M, h, w) int32


def has_native_bf16(device: torch.device) -> bool:
    """Whether bf16 arithmetic is an instruction of this device and not an emulation."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


SHORTCUT_SCALE = 8.0  # the latent of an all-rates model is 8 times the orthonormal DCT of [0, 1] pixels


class Gain(nn.Module):
    """Per-channel step sizes of the latent: 9 knots over the quality range, log-linear in between, never decreasing."""

    def __init__(self, channels: int, lmbda: list[float]):
        super().__init__()
        growth = 0.5 * math.log(lmbda[1] / lmbda[0]) / (Knots.COUNT - 1)  # a step is proportional to lmbda^(-1/2)
        self.first = nn.Parameter(torch.full((1, channels), math.log(step_gain(lmbda[0]))))
        self.growth = nn.Parameter(torch.full((Knots.COUNT - 1, channels), math.log(math.expm1(growth))))

    def forward(self, level: Tensor) -> Tensor:
        """level (B,) in [0, 1] -> gain (B, C, 1, 1)."""
        log_gain = torch.cat((self.first, self.first + nn.functional.softplus(self.growth).cumsum(dim=0)))
        return interpolate(log_gain, level).exp()


def step_gain(lmbda: float) -> float:
    """Gain over the latent (8 x orthonormal DCT) whose unit step is optimal for a DCT coder at high rate.

    With distortion step^2/12 per coefficient and rate -log2(step), d/dstep (bpp + lmbda 255^2 mse) = 0 for three
    colours at step^2 = 18 / (ln 2 * lmbda * 255^2).
    """
    return math.sqrt(math.log(2) * lmbda * 255**2 / 18) / SHORTCUT_SCALE


class FactorizedCodec(nn.Module):
    """g_a, g_s, the gain and the factorized prior. Images are (B, 3, H, W) in [0, 1] of any size from 1x1."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        scale = SHORTCUT_SCALE * (1.0 if config.variable_rate else step_gain(config.lmbda[0]))
        analysis, synthesis = TRANSFORMS[config.transform]
        options = dict(
            N=config.N, M=config.M, blocks=config.blocks, shortcut=config.shortcut, scale=scale,
            conditioned=config.variable_rate,
        )  # fmt: skip
        self.g_a = analysis(**options)
        self.g_s = synthesis(**options)
        self.prior = FactorizedPrior(config.M)
        self.gain = Gain(config.M, config.lmbda) if config.variable_rate else None
        self.shrink = Knots(config.M)
        self.bf16 = False  # run the trunks of g_a and g_s in bfloat16
        self.id = "0" * 16  # set by export and load: hash of configuration, weights and tables
        self.tables: dict[int | None, entropy.Tables] = {}  # by quality; None is the only key of a fixed-lambda model

    def level(self, quality: Tensor | None) -> Tensor | None:
        """quality (B,) in 0..100 -> level (B,) in [0, 1]; None for a fixed lambda."""
        return quality / 100 if self.config.variable_rate else None

    def autocast(self, x: Tensor) -> torch.autocast:
        return torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16)

    def analyse(self, x: Tensor, level: Tensor | None) -> tuple[Tensor, Tensor]:
        """x (B, 3, H, W) -> y (B, M, ceil(H/16), ceil(W/16)) and its gain (B, M, 1, 1)."""
        with self.autocast(x):
            y = self.g_a(img.pad(img.normalise(x)), level)
        return y, self.gain_at(level)

    def gain_at(self, level: Tensor | None) -> Tensor:
        """Gain (B, M, 1, 1) at a level (B,); (1, M, 1, 1) ones for a fixed lambda."""
        return torch.ones(1, self.config.M, 1, 1, device=self.device) if level is None else self.gain(level)

    def bits(self, y: Tensor, gain: Tensor) -> Tensor:
        """Estimated bits of each sample of y (B, M, h, w), quantized to steps of 1 / gain or with noise as wide."""
        return -torch.log2(lower_bound(self.prior.likelihood(y, 1 / gain), LIKELIHOOD_FLOOR))

    def quantize(self, y: Tensor, gain: Tensor) -> Tensor:
        """Symbols (B, M, h, w), as floats: y * gain rounded, or the integer next to that towards zero where it pays.

        Rate-distortion optimised quantization, an old encoder's tool (Ramchandran and Vetterli, 1994): k becomes k - 1
        if the squared error that this adds is below RDOQ times the bits it saves, which are taken to be those of 1 -> 0
        for k = 1 and those of 2 -> 1 for all larger k (and likewise below zero).
        """
        v = y * gain
        k = torch.round(v).clamp(-(2.0**24), 2.0**24)  # integers that float32 holds exactly
        points = torch.arange(-2.0, 3.0, device=y.device).view(1, 1, 5, 1)
        bits = self.bits(points / gain, gain)  # (B, M, 5, 1), of the symbols -2..2
        up, down = bits[:, :, 3:] - bits[:, :, 2:4], bits[:, :, :2] - bits[:, :, 1:3]  # saved by 1, 2; by -2, -1
        saved_up = torch.where(k > 1, up[:, :, 1:], up[:, :, :1])
        saved_down = torch.where(k < -1, down[:, :, :1], down[:, :, 1:])
        saved = torch.where(k > 0, saved_up, saved_down)
        added = 2 * (v.abs() - k.abs()) + 1
        return torch.where((k != 0) & (added < RDOQ * saved), k - torch.sign(k), k)

    def synthesise(self, y_q: Tensor, gain: Tensor, level: Tensor | None, size: tuple[int, int]) -> Tensor:
        """Symbols (B, M, h, w) as floats -> x_hat (B, 3, *size).

        A symbol is put back a little nearer to zero than its centre, where a peaked density has its mean.
        """
        shrink = self.shrink(level if level is not None else torch.zeros(len(y_q), device=y_q.device))
        y_hat = (y_q - shrink * torch.sign(y_q.detach())) / gain
        with self.autocast(y_hat):
            x_hat = img.denormalise(self.g_s(y_hat, level))
        return img.crop(x_hat, *size)

    def forward(self, x: Tensor, quality: Tensor | None = None) -> Output:
        """Reconstruction and estimated bits; train(): straight-through, noise for the rate; eval(): quantize()."""
        level = self.level(quality)
        y, gain = self.analyse(x, level)
        if self.training:
            y_q, y_rate = round_ste(y * gain), add_noise(y * gain)
        else:
            y_q = y_rate = self.quantize(y, gain)
        bits = self.bits(y_rate / gain, gain).sum(dim=(1, 2, 3))
        return Output(self.synthesise(y_q, gain, level, x.shape[-2:]), bits)

    # ---- from here on: images and bytes, always in evaluation mode, without gradients ----

    @property
    def device(self) -> torch.device:
        return self.prior.scale.device

    @property
    def precision(self) -> str:
        """What the trunks of g_a and g_s run in: bf16 or fp32."""
        return "bf16" if self.bf16 else "fp32"

    def parameter_count(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def kmac(self) -> tuple[float, float]:
        """Thousand multiply-accumulates per pixel of (encoder, decoder): every convolution, the shortcut included."""
        from torch.utils.flop_counter import FlopCounterMode

        level = self.level(self._batch_of(50 if self.config.variable_rate else None, 1))
        x = torch.zeros(1, 3, 256, 256, device=self.device)
        counts = []
        for transform, sample in ((self.g_a, x), (self.g_s, self.g_a(x, level).detach())):
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                transform(sample, level)
            counts.append(counter.get_total_flops() / 2 / 256**2 / 1000)
        return counts[0], counts[1]

    def use_bf16(self, precision: str = "auto") -> "FactorizedCodec":
        """Precision of the trunks: `auto` is bf16 where the device has it natively, `fp32` never."""
        self.bf16 = precision == "auto" and has_native_bf16(self.device)
        return self

    @property
    def qualities(self) -> list[int | None]:
        """Every quality this model can be asked for."""
        return list(range(101)) if self.config.variable_rate else [None]

    def build_tables(self, qualities: list[int | None] | None = None) -> None:
        """Make the integer tables from the densities: at export for all qualities, in validation for those wanted."""
        with torch.no_grad():
            support = self.prior.support()
            for quality in self.qualities if qualities is None else qualities:
                level = self.level(self._batch_of(quality, 1))
                self.tables[quality] = self.prior.tables(self.gain_at(level)[0, :, 0, 0], support)

    def _batch_of(self, quality: int | None, count: int) -> Tensor | None:
        if self.config.variable_rate:
            if type(quality) is not int or not 0 <= quality <= 100:
                raise ValueError(f"quality must be an integer in 0..100, not {quality!r}")
            return torch.full((count,), float(quality), device=self.device)
        if quality is not None:
            raise ValueError(f"this model was trained for one lambda and has no quality, but got {quality!r}")
        return None

    @contextlib.contextmanager
    def _coding(self):
        """Evaluation mode without gradients, the mode of every module restored afterwards."""
        modes = {module: module.training for module in self.modules()}
        self.eval()
        try:
            with torch.inference_mode():
                yield
        finally:
            for module, mode in modes.items():
                module.training = mode

    def symbols(self, x: Tensor, quality: int | None = None) -> np.ndarray:
        """The quantized latent of x (B, 3, H, W) in [0, 1]: (B, M, ceil(H/16), ceil(W/16)) int32."""
        with self._coding():
            y, gain = self.analyse(x.to(self.device), self.level(self._batch_of(quality, len(x))))
            return self.quantize(y, gain).to(torch.int32).contiguous().cpu().numpy()

    def reconstruct(self, symbols: np.ndarray, size: tuple[int, int], quality: int | None = None) -> Tensor:
        """x_hat (B, 3, *size) of symbols (B, M, h, w), not clamped."""
        with self._coding():
            level = self.level(self._batch_of(quality, len(symbols)))
            y_q = torch.from_numpy(symbols).to(self.device).float()
            return self.synthesise(y_q, self.gain_at(level), level, size)

    def encode(self, symbols: np.ndarray, quality: int | None, mode: str, size: tuple[int, int]) -> bytes:
        """Symbols (M, h, w) of one image of `size` (height, width) -> the bytes of a file."""
        stream = entropy.encode([(symbols, self._channels(), self._tables(quality))])
        header = bitstream.Header(self.id, quality, mode, width=size[1], height=size[0])
        return bitstream.write(header, [bitstream.Section(bitstream.LATENT, stream)])

    def decode(self, header: bitstream.Header, sections: list[bitstream.Section]) -> np.ndarray:
        """The symbols (M, h, w) of a file that `bitstream.read` has accepted; FormatError if they are not intact."""
        if header.model != self.id:
            raise bitstream.FormatError(f"written by model {header.model}, but this is model {self.id}")
        if (header.quality is None) == self.config.variable_rate:
            raise bitstream.FormatError(f"quality {header.quality} does not fit this model")
        shape = (self.config.M, -(-header.height // img.STRIDE), -(-header.width // img.STRIDE))
        try:
            decoder = entropy.Decoder(bitstream.find(sections, bitstream.LATENT))
            symbols = decoder.decode(self._channels(), self._tables(header.quality), shape)
            decoder.finish()
        except entropy.StreamError as error:
            raise bitstream.FormatError(f"damaged: {error}") from error
        return symbols

    def _channels(self) -> np.ndarray:
        return np.arange(self.config.M, dtype=np.uint16)[:, None, None]

    def _tables(self, quality: int | None) -> entropy.Tables:
        if quality not in self.tables:
            raise ValueError("this model has no tables: export it first (train.py does), or call build_tables()")
        return self.tables[quality]

    def compress(self, image: Image.Image, quality: int | None = None) -> bytes:
        """A PIL image (RGB or L) as the bytes of a .lic file; quality 0..100, None for a fixed-lambda model."""
        if image.mode not in bitstream.MODES:
            raise ValueError(f"images are RGB or L, not {image.mode}: convert with image.convert('RGB') first")
        if image.width == 0 or image.height == 0:
            raise ValueError("the image has no pixels")
        symbols = self.symbols(img.to_tensor(image), quality)[0]
        return self.encode(symbols, quality, image.mode, (image.height, image.width))

    def decompress(self, data: bytes, max_pixels: int = bitstream.MAX_PIXELS) -> Image.Image:
        """The image of a .lic file written by this model; FormatError if the file is damaged or another model's."""
        header, sections = bitstream.read(data, max_pixels)
        symbols = self.decode(header, sections)
        x_hat = self.reconstruct(symbols[None], (header.height, header.width), header.quality)
        return img.to_image(x_hat, header.mode)

    def estimate(self, image: Image.Image, quality: int | None = None) -> Estimate:
        """Bits that forward expects for an image, beside the entropy of the symbols themselves."""
        x = img.to_tensor(image).to(self.device)
        with self._coding():
            bits = self(x, self._batch_of(quality, 1)).bits.item()
        symbols = self.symbols(x, quality)[0]
        counts = [np.unique(channel, return_counts=True)[1] for channel in symbols]
        own = sum(float((c * np.log2(c.sum() / c)).sum()) for c in counts)
        return Estimate(bits, bits / symbols.size, own / symbols.size, symbols)

    def densities(self, quality: int | None = None) -> list[tuple[np.ndarray, np.ndarray]]:
        """Symbols and their probabilities under the learned density of each channel."""
        with self._coding():
            gain = self.gain_at(self.level(self._batch_of(quality, 1)))[0, :, 0, 0]
            rows, first = self.prior.pmfs(gain, self.prior.support())
        return [(start + np.arange(len(row)), row) for start, row in zip(first, rows, strict=True)]
