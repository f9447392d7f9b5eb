"""Latents to measure entropy coders with: synthetic ones of known densities, and those of our model.

Three kinds of cases, each with a Kodak-sized and a 12-megapixel form:

    factorized   192 channels, Laplacian, 45 % of them almost always 0, 0.5 bit/symbol; a table per channel
    Gaussian     an index into 64 scales for every symbol, varying in space, 0.5 bit/symbol; a table per scale
    trained      what a model makes of photographs at quality 50, under its own densities; a table per channel, or with
                 a hyperprior the one that it told for each symbol of y

    case = factorized_case(KODAK, count=8)
    case.values[0], case.index[0], case.tables       what a coder needs
    case.ideal_bytes                                 what none can go below on average

They are used by `python -m benchmarks entropy`.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

import codec
import entropy
from benchmarks.measure import photographs
from codec.coding.models import find_model
from codec.coding.tiles import planes
from codec.network.model import LIKELIHOOD_FLOOR

KODAK = (32, 48)  # latent of 768x512 pixels
LARGE = (188, 250)  # latent of 12 megapixels
CHANNELS = 192  # of the synthetic latents
TARGET = 0.5  # bits/symbol of the synthetic latents
QUALITY = 50  # of the trained latents
NEGLIGIBLE = 1e-9  # compressai's models leave tails of this mass out of their tables


@dataclass(frozen=True)
class Case:
    """Latents, and the densities that they are coded under."""

    name: str
    values: list[NDArray[np.int32]]
    """(C, h, w) each."""
    index: list[NDArray]
    """uint8 or uint16, the row of pmf of each value: (C, h, w), or (C, 1, 1) where it is the channel."""
    pmf: NDArray[np.float64]
    """(T, n) probabilities of the values first, first + 1, ..., which include all that occur."""
    first: int
    tables: entropy.Tables
    """Integer tables of pmf, as our coder takes them."""

    @property
    def symbols(self) -> int:
        """In all latents."""
        return sum(values.size for values in self.values)

    @functools.cached_property
    def counts(self) -> NDArray[np.int64]:
        """(T, n) how often each value occurs under each row, in all latents."""
        counts = np.zeros(self.pmf.size, np.int64)
        for values, index in zip(self.values, self.index, strict=True):
            place = index.astype(np.int64) * self.pmf.shape[1] + (values - self.first)
            counts += np.bincount(place.reshape(-1), minlength=counts.size)
        return counts.reshape(self.pmf.shape)

    @property
    def ideal_bytes(self) -> float:
        """Of all latents together."""
        occurs = self.counts > 0
        return float(-(self.counts[occurs] * np.log2(self.pmf[occurs])).sum() / 8)

    def supports(self, occurring: bool) -> list[slice]:
        """The values of each row, two or more, that a peer's table needs; also all that occur, if asked for."""
        worth = self.pmf > NEGLIGIBLE
        if occurring:
            worth |= self.counts > 0
        begins, ends = worth.argmax(axis=1), self.pmf.shape[1] - worth[:, ::-1].argmax(axis=1)
        return [slice(begin, max(end, begin + 2)) for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)]


def bits_of(pmf: NDArray[np.float64]) -> NDArray[np.float64]:
    """Entropy in bits of each row."""
    return -(pmf * np.log2(np.where(pmf > 0, pmf, 1))).sum(axis=1)


def bisect(too_high: Callable[[float], bool], low: float, high: float) -> float:
    """The number between low and high from which on too_high holds."""
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if too_high(middle) else (middle, high)
    return low


def laplacian(scale: NDArray[np.float64], reach: int) -> NDArray[np.float64]:
    """(T, 2 reach + 1) probabilities of -reach..reach, rounded Laplacian of each scale (T,)."""
    b = scale[:, None]
    k = np.abs(np.arange(-reach, reach + 1))
    return np.where(k == 0, -np.expm1(-0.5 / b), np.exp(-(k - 0.5) / b) * -np.expm1(-1 / b) / 2)


def gaussian(scale: NDArray[np.float64], reach: int) -> NDArray[np.float64]:
    """(T, 2 reach + 1) probabilities of -reach..reach, rounded Gaussian of each standard deviation (T,)."""
    k = np.abs(np.arange(-reach, reach + 1))
    return ndtr((0.5 - k) / scale[:, None]) - ndtr((-0.5 - k) / scale[:, None])


def channel_numbers(channels: int) -> NDArray[np.uint16]:
    """The index of a latent with a table per channel: (C, 1, 1)."""
    return np.arange(channels, dtype=np.uint16)[:, None, None]


def factorized_case(size: tuple[int, int], count: int) -> Case:
    """Synthetic latents (192, *size) with a table per channel."""
    rng = np.random.default_rng(0)
    dead = int(0.45 * CHANNELS)
    live = rng.uniform(-1.5, 1.5, CHANNELS - dead)  # log of the scale, but for a common shift

    def scales(shift: float) -> NDArray[np.float64]:
        return np.concatenate([np.linspace(0.03, 0.06, dead), np.exp(live + shift)])

    shift = bisect(lambda shift: bits_of(laplacian(scales(shift), 500)).mean() > TARGET, -4, 2)
    scale = rng.permutation(scales(shift))
    values = [
        np.rint(rng.laplace(scale=scale[:, None, None], size=(CHANNELS, *size))).astype(np.int32) for _ in range(count)
    ]
    reach = max(int(scale.max() * -np.log(NEGLIGIBLE)), *(int(np.abs(v).max()) for v in values)) + 1
    pmf = laplacian(scale, reach)
    tables = entropy.Tables.from_pmfs(pmf, [-reach] * CHANNELS)
    return Case("factorized", values, [channel_numbers(CHANNELS)] * count, pmf, -reach, tables)


def gaussian_case(size: tuple[int, int], count: int) -> Case:
    """Synthetic latents (192, *size) with a table per symbol, as a hyperprior asks for it."""
    scale = np.exp(np.linspace(np.log(0.11), np.log(256), 64))  # compressai's scales
    rng = np.random.default_rng(0)
    bits = bits_of(gaussian(scale, 2000))
    per_channel = rng.standard_normal((CHANNELS, 1, 1), np.float32)

    def field() -> NDArray[np.float32]:
        rough = rng.standard_normal((CHANNELS, -(-size[0] // 4), -(-size[1] // 4)), np.float32)
        smooth = rough.repeat(4, axis=1).repeat(4, axis=2)[:, : size[0], : size[1]]
        return 8 * per_channel + 8 * smooth + 2 * rng.standard_normal((CHANNELS, *size), np.float32)

    def indices(field: NDArray[np.float32], shift: float) -> NDArray[np.uint8]:
        return np.rint(field + shift).clip(0, 63).astype(np.uint8)

    fields = [field() for _ in range(count)]
    sample = fields[0].reshape(-1)[::7]
    shift = bisect(lambda shift: bits[indices(sample, shift)].mean() > TARGET, -60, 60)
    index = [indices(field, shift) for field in fields]
    values = [np.rint(rng.standard_normal(i.shape, np.float32) * scale[i]).astype(np.int32) for i in index]
    reach = 8 * int(scale.max())
    pmf = gaussian(scale, reach)
    return Case("Gaussian", values, index, pmf, -reach, entropy.Tables.from_pmfs(pmf, [-reach] * 64))


def trained_case(size: tuple[int, int], count: int, name: str, folder: Path | None) -> Case:
    """Latents of photographs, and of their mirror images where there are few; ModelError if there is no such model.

    A large latent is a mosaic of small ones.
    """
    import torch

    model = codec.load(str(find_model(name)), "cpu", backend="torch")
    net = model.backend.network
    quality = QUALITY if net.config.variable_rate else None
    images = [planes(image) for image in photographs(folder)]
    small = [model.latent(image, quality) for image in (images + [image[..., ::-1].copy() for image in images])[:16]]
    values = mosaics([latent.y[0] for latent in small], size, count)
    reach = max(int(np.abs(v).max()) for v in values) + 1
    if small[0].index is not None:
        index = mosaics([latent.index[0] for latent in small], size, count)
        reach = max(reach, -int(net.conditional.pmfs()[1].min()))
        k = torch.arange(-reach, reach + 1, dtype=torch.float64)
        mass = net.conditional.likelihood(k, torch.from_numpy(net.conditional.scales)[:, None])
        return Case(
            "trained", values, index, np.maximum(mass.numpy(), LIKELIHOOD_FLOOR), -reach, model.tables.y[quality]
        )

    with torch.inference_mode():
        gain = net.gain_at(net.level_of(quality)).reshape(-1)
        low, high = (net.prior.quantiles(mass) * gain for mass in (NEGLIGIBLE / 2, 1 - NEGLIGIBLE / 2))
        reach = max(reach, int(high.max()) + 1, -int(low.min()) + 1)
        width = 1 / gain.double()[:, None, None]  # of the interval that a symbol stands for
        k = torch.arange(-reach, reach + 1, dtype=torch.float64)
        mass = net.prior.likelihood((k * width)[None], width)[0, :, 0]
    pmf = np.maximum(mass.numpy(), LIKELIHOOD_FLOOR)
    index = [channel_numbers(net.config.M)] * count
    return Case("trained", values, index, pmf, -reach, model.tables.y[quality])


def mosaics(tiles: list[NDArray], size: tuple[int, int], count: int) -> list[NDArray]:
    """Arrays (C, *size) out of arrays (C, *KODAK), each beginning with the next of them."""
    rows, columns = -(-size[0] // KODAK[0]), -(-size[1] // KODAK[1])
    made = []
    for first in range(count):
        chosen = [tiles[(first + i) % len(tiles)] for i in range(rows * columns)]
        mosaic = [np.concatenate(chosen[i : i + columns], axis=2) for i in range(0, len(chosen), columns)]
        made.append(np.ascontiguousarray(np.concatenate(mosaic, axis=1)[:, : size[0], : size[1]]))
    return made
