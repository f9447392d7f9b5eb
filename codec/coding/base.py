"""What all codecs share: transforms, gain and precision, and the way from images to bytes and back.

A codec of codec/network/model.py adds the prior: `forward` for training, `latent_of`, `encode_y`, `decode_y`, the
same of z, and tables for files. One model serves all rates (Cui et al., "Asymmetric gained deep image compression",
2021): quality q in 0..100 means lmbda(q) = lmbda_0 * (lmbda_1 / lmbda_0)^(q/100), and the latent is multiplied by a gain per channel
that can only grow with q. With a single lmbda in the configuration the gain is 1. Latents: y is what g_a gives, v = y
times its gain, w = z times its own; y_q, z_q are integers; level is quality / 100.
"""

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Set
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from codec.coding import rows
from codec.coding.tiles import Box, Latent, Strip, to_symbols
from codec.config import ModelConfig
from codec.container import bitstream, modes
from codec.machine import has_native_bf16
from codec.network import pixels as img
from codec.network.layers import Gain, Knots
from codec.network.quantize import Noise, uniform
from codec.network.transforms import TRANSFORMS

SHORTCUT_SCALE = 8.0  # the latent of an all-rates model is 8 times the orthonormal DCT of [0, 1] pixels


class Output(NamedTuple):
    """What one forward pass gives."""

    x_hat: Tensor  # (B, 3, H, W), not clamped
    bits: Tensor  # (B,), estimated bits of each image
    bits_z: Tensor  # (B,), those of the hyper-latent among them


@dataclass(frozen=True)
class Estimate:
    """What the model expects of one image at one quality, without coding it."""

    bits: float  # -log2 of the float densities of evaluation-mode forward, all symbols
    cross_entropy: float  # the same in bits per symbol of y
    empirical_entropy: float  # bits per symbol of an ideal coder that knew each channel's histogram in this image
    symbols: np.ndarray  # (M, h, w) int32


def step_gain(lmbda: float) -> float:
    """Gain over the latent (8 x orthonormal DCT) whose unit step is optimal for a DCT coder at high rate.

    With distortion step^2/12 per coefficient and rate -log2(step), d/dstep (bpp + lmbda 255^2 mse) = 0 for three
    colours at step^2 = 18 / (ln 2 * lmbda * 255^2).
    """
    return math.sqrt(math.log(2) * lmbda * 255**2 / 18) / SHORTCUT_SCALE


class Codec(nn.Module, ABC):
    """g_a, g_s and the gain. Images are (B, 3, H, W) in [0, 1] of any size from 1x1."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
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
        self.tables_of: dict[int | None, Any] = {}  # by quality; None is the only key of a fixed lambda
        self.bf16 = False  # run the trunks of g_a and g_s in bfloat16
        self.id = "0" * 16  # set by export and load: hash of configuration, weights and tables
        self.witness: Callable[..., None] | None = None  # sees y, row by row, and z as they are encoded

    def level(self, quality: Tensor | None) -> Tensor | None:
        """quality (B,) in 0..100 -> level (B,) in [0, 1]; None for a fixed lambda."""
        return quality / 100 if self.config.variable_rate else None

    def autocast(self, x: Tensor) -> torch.autocast:
        return torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16)

    def analyse(self, x: Tensor, level: Tensor | None) -> Tensor:
        """x (B, 3, H, W) -> v (B, M, ceil(H/16), ceil(W/16)), the latent times its gain: a step is 1."""
        with self.autocast(x):
            y = self.g_a(img.pad(img.normalise(x)), level)
        return y * self.gain_at(level)

    def gain_at(self, level: Tensor | None) -> Tensor:
        """Gain (B, M, 1, 1) at a level (B,); (1, M, 1, 1) ones for a fixed lambda."""
        return torch.ones(1, self.config.M, 1, 1, device=self.device) if level is None else self.gain(level)

    def shrink_at(self, level: Tensor | None) -> Tensor:
        """How much nearer to zero symbols are put back (B, M, 1, 1), at a level (B,)."""
        return self.shrink(level if level is not None else torch.zeros(1, device=self.device))

    def synthesise(self, v_hat: Tensor, level: Tensor | None, size: tuple[int, int]) -> Tensor:
        """v_hat (B, M, h, w), dequantized, in steps -> x_hat (B, 3, *size)."""
        y_hat = v_hat / self.gain_at(level)
        with self.autocast(y_hat):
            x_hat = img.denormalise(self.g_s(y_hat, level))
        return img.crop(x_hat, *size)

    # ---- what a prior adds ----

    @abstractmethod
    def forward(self, x: Tensor, quality: Tensor | None = None, noise: Noise = uniform) -> Output:
        """Reconstruction and estimated bits; train(): straight-through, noise for the rate; eval(): as coded."""

    @abstractmethod
    def fit(self, x: Tensor, kept: Set[str] = frozenset()) -> int:
        """Before step 0: set the units of the densities to what x (B, 3, H, W) in [0, 1] leads to. A density that
        starts far too wide costs bits that take long to unlearn. The weights named in `kept` are those of another
        training, and stay; returns how many channels of theirs had been left unused, and start anew.
        """

    @abstractmethod
    def hyper_symbols(self, v: Strip, rows: list[Box], level: Tensor | None) -> Strip | None:
        """Symbols (B, K, ceil(h/4), ceil(w/4)) of z, as floats, of v (B, M, h, w); None without a hyperprior."""

    @abstractmethod
    def latent_of(self, v: Tensor, z: Strip | None, box: Box, quality: int | None) -> Latent:
        """The latent, without z, of v (B, M, *box.shape), a part of the image whose symbols of z are given."""

    @abstractmethod
    def dequantized(self, latent: Latent, level: Tensor | None) -> Tensor:
        """v_hat (B, M, h, w) of a latent."""

    @abstractmethod
    def encode_z(self, z: np.ndarray | None, quality: int | None) -> list[bitstream.Section]:
        """The section of the symbols of z, int32 (1, K, h', w'); none without a hyperprior."""

    @abstractmethod
    def encode_y(self, latent: Latent, quality: int | None) -> bytes:
        """The stream of the symbols of y, int32 (1, M, h, w), of a row of tiles."""

    @abstractmethod
    def decode_z(
        self, sections: list[bitstream.Section], quality: int | None, shape: tuple[int, int]
    ) -> np.ndarray | None:
        """What encode_z was given, of `shape` (h', w'); FormatError or StreamError if the section is not intact."""

    @abstractmethod
    def decode_y(self, stream: bytes, z: np.ndarray | None, box: Box, quality: int | None) -> Latent:
        """The latent of a row of tiles, `box` of the whole image, whose z is given; StreamError if it is damaged."""

    @abstractmethod
    def build_tables(self, qualities: list[int | None] | None = None) -> None:
        """Make the integer tables from the densities: at export for all qualities, in validation for those wanted."""

    @abstractmethod
    def tables(self) -> dict[str, Tensor]:
        """The tables of all qualities, as export stores them."""

    @abstractmethod
    def load_tables(self, tensors: dict[str, np.ndarray]) -> None:
        """Take over what `tables` gave."""

    # ---- from here on: images and bytes, always in evaluation mode, without gradients ----

    @property
    def device(self) -> torch.device:
        return self.shrink.values.device

    @property
    def precision(self) -> str:
        """What the trunks of g_a and g_s run in: bf16 or fp32."""
        return "bf16" if self.bf16 else "fp32"

    def parameter_count(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def kmac(self) -> tuple[float, float]:
        """Thousand multiply-accumulates per pixel of (encoder, decoder), everything that is run for a 256x256 image."""
        from codec.evaluation.cost import kmac_per_pixel

        return kmac_per_pixel(partial(self.compress, quality=self.qualities[len(self.qualities) // 2]), self.decompress)

    def use_bf16(self, precision: str = "auto") -> "Codec":
        """Precision of the trunks: `auto` is bf16 where the device has it natively, `fp32` never."""
        if precision not in ("auto", "fp32"):
            raise ValueError(f"the precision must be auto or fp32, not {precision!r}")
        self.bf16 = precision == "auto" and has_native_bf16(self.device)
        return self

    @property
    def qualities(self) -> list[int | None]:
        """Every quality this model can be asked for."""
        return list(range(101)) if self.config.variable_rate else [None]

    def _tables(self, quality: int | None) -> Any:
        if quality not in self.tables_of:
            raise ValueError("this model has no tables: export it first (train.py does), or call build_tables()")
        return self.tables_of[quality]

    def batch_of(self, quality: int | None, count: int) -> Tensor | None:
        if self.config.variable_rate:
            if type(quality) is not int or not 0 <= quality <= 100:
                raise ValueError(f"quality must be an integer in 0..100, not {quality!r}")
            return torch.full((count,), float(quality), device=self.device)
        if quality is not None:
            raise ValueError(f"this model was trained for one lambda and has no quality, but got {quality!r}")
        return None

    @contextlib.contextmanager
    def coding(self):
        """Evaluation mode without gradients, the mode of every module restored afterwards."""
        trained = [module for module in self.modules() if module.training]
        for module in trained:
            module.training = False
        try:
            with torch.inference_mode():
                yield
        finally:
            for module in trained:
                module.training = True

    def latent(self, x: Tensor, quality: int | None = None) -> Latent:
        """What is coded of x (B, 3, H, W) in [0, 1], in one row of tiles."""
        with self.coding():
            level = self.level(self.batch_of(quality, len(x)))
            v = Strip.whole(self.analyse(x.to(self.device), level))
            z = self.hyper_symbols(v, [v.area], level)
            latent = self.latent_of(v.of(v.area), z, v.area, quality)
            return replace(latent, z=None if z is None else to_symbols(z.of(z.area)))

    def reconstruct(self, latent: Latent, size: tuple[int, int], quality: int | None = None) -> Tensor:
        """x_hat (B, 3, *size), not clamped."""
        with self.coding():
            level = self.level(self.batch_of(quality, len(latent.y)))
            return self.synthesise(self.dequantized(latent, level), level, size)

    def show(self, quality: int | None, y: np.ndarray | None = None, z: np.ndarray | None = None) -> None:
        """Let the witness, if there is one, see symbols that are encoded."""
        if self.witness:
            self.witness(quality, y, z)

    def encode(self, latent: Latent, quality: int | None, mode: str, size: tuple[int, int]) -> bytes:
        """The latent of one image of `size` (height, width) -> the bytes of a file."""
        self.show(quality, latent.y, latent.z)
        header = bitstream.Header(self.id, quality, mode, width=size[1], height=size[0])
        y = bitstream.Section(bitstream.LATENT, self.encode_y(latent, quality))
        return bitstream.write(header, [*self.encode_z(latent.z, quality), y])

    def decode(self, header: bitstream.Header, sections: list[bitstream.Section]) -> Latent:
        """The latent of a file that `bitstream.read` has accepted; FormatError if it is not intact."""
        with self.coding():
            return Latent.joined([latent for _, latent in rows.decode_rows(self, header, sections)], axis=2)

    # ---- from here on: whole images of any size and their files ----

    def compress(self, image: Image.Image, quality: int | None = None) -> bytes:
        """A PIL image as the bytes of a .lic file; quality 0..100, None for a fixed-lambda model.

        codec/container/modes.py says which modes are coded and how; its UnsupportedImage tells why others are not. ICC
        profile, EXIF, XMP and DPI of `image.info` are kept. A drawing is kept without loss where that is not larger
        (codec/container/lossless.py).
        """
        return rows.compress(self, modes.prepare(image), quality)

    def compress_to(self, image: Image.Image, max_bytes: float) -> tuple[bytes, int]:
        """The largest file of at most `max_bytes`, and its quality; ValueError if even quality 0 takes more.

        Compresses seven times at most: g_a sees the quality, so it cannot be run once for all.
        """
        if not self.config.variable_rate:
            raise ValueError("this model was trained for one lambda: it cannot aim at a size")
        data, quality = rows.fit_size(partial(rows.compress, self), modes.prepare(image), max_bytes)
        if not len(data) <= max_bytes:  # nor if that is NaN
            bpp = 8 * len(data) / (image.width * image.height)
            raise ValueError(f"quality 0 takes {len(data)} bytes ({bpp:.3f} bpp), above the target of {max_bytes:.0f}")
        return data, quality

    def decompress(
        self, data: bytes, max_pixels: int = bitstream.MAX_PIXELS, region: tuple[int, int, int, int] | None = None
    ) -> Image.Image:
        """The image of a .lic file written by this model: RGB, L, RGBA or LA, what is kept beside the pixels in `info`.

        `region` (left, top, width, height) gives that part of it, and decodes only the rows of tiles that it needs.
        FormatError if the file is damaged or another model's, ValueError if the image does not have the region.
        """
        return modes.decode(data, max_pixels, region, self.paint)

    def paint(self, header: bitstream.Header, sections: list[bitstream.Section], box: modes.Corners) -> Image.Image:
        """The colours of the part `box` (left, top, right, bottom) of a file's image; FormatError if it is damaged."""
        left, top, right, bottom = box
        return rows.paint(self, header, sections, Box(top, left, bottom, right))

    def estimate(self, image: Image.Image, quality: int | None = None) -> Estimate:
        """Bits that forward expects for an image, beside the entropy of the symbols themselves."""
        x = img.to_tensor(image).to(self.device)
        with self.coding():
            bits = self(x, self.batch_of(quality, 1)).bits.item()
        symbols = self.latent(x, quality).y[0]
        counts = [np.unique(channel, return_counts=True)[1] for channel in symbols]
        own = sum(float((c * np.log2(c.sum() / c)).sum()) for c in counts)
        return Estimate(bits, bits / symbols.size, own / symbols.size, symbols)
