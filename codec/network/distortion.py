"""The distortion term of the training loss: squared error, or measures for the eye with a share of squared error.

The distortion D of the loss bpp + D is in bits per pixel:

    D = (1 - mix) * price(lmbda) * distance(x_hat, x) + mix * lmbda * 255^2 * mse(x_hat, x)

The price makes one lmbda stand for about the same rate with each measure. Several measures, as in
"ssimulacra2+ms-ssim", have equal shares of 1 - mix. With squared error alone D = lmbda * 255^2 * mse.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codec.errors import LicError
from codec.network import ssimulacra2

# CompressAI trains the models that it numbers alike with lambda 0.0018 ... 0.18 for MSE, and with 2.4 ... 220 for
# MS-SSIM, 1333 ... 1222 times as much (its documentation, "Model zoo").
MS_SSIM_SCALE = 1333.0
MS_SSIM_SIDE = (11 - 1) * 2**4 + 1  # the fifth scale must hold the 11-pixel window
VGG_SCALE = 100.0  # by hand: a guess at equal footing with squared error
VGG_LAYERS = (3, 8, 15, 22, 29)  # the last ReLU before each pooling
# Bits per pixel that a model for squared error spends on one point of SSIMULACRA 2 more: the slope of the curve of
# `fast` on the validation images is 0.0045 at lmbda = 0.0009, and 24 times that at 0.18.
POINT_PRICE, POINT_LMBDA, POINT_EXPONENT = 0.0045, 0.0009, 0.6
RATE_FLOOR = 0.3  # bpp added to the rate by which a sample's loss is divided, since flat patches have none; by hand


def mse(x_hat: Tensor, x: Tensor) -> Tensor:
    """Mean squared error (B,) in squared grey levels, of images (B, 3, H, W) in [0, 1]."""
    return 255**2 * (x_hat - x).square().mean(dim=(1, 2, 3))


def ms_ssim(x_hat: Tensor, x: Tensor) -> Tensor:
    """1 - MS-SSIM (B,) of images (B, 3, H, W) in [0, 1]; LicError below 161x161 pixels.

    Wang, Simoncelli and Bovik, "Multi-scale structural similarity for image quality assessment" (2003).
    """
    from pytorch_msssim import ms_ssim as similarity

    if min(x.shape[-2:]) < MS_SSIM_SIDE:
        raise LicError(
            f"MS-SSIM needs images of at least {MS_SSIM_SIDE} pixels a side, not {x.shape[-1]}x{x.shape[-2]}: "
            "choose --patch 176 or more, and larger validation images"
        )
    return 1 - similarity(x_hat, x, data_range=1.0, size_average=False)


def point_price(lmbda):
    """Price of a point of SSIMULACRA 2 in bits per pixel, at lmbda, a number or a tensor."""
    return POINT_PRICE * (lmbda / POINT_LMBDA) ** POINT_EXPONENT


class VGG(nn.Module):
    """The distance (B,) between VGG-16 features of images (B, 3, H, W) in [0, 1], normalised over channels.

    Zhang, Isola, Efros, Shechtman and Wang, "The unreasonable effectiveness of deep features" (2018), without their
    learned weights. The ImageNet weights are torchvision's, in its cache; FileNotFoundError if they are not there:
    nothing is downloaded.
    """

    def __init__(self):
        super().__init__()
        from torchvision.models import VGG16_Weights
        from torchvision.models.vgg import cfgs, make_layers

        weights = VGG16_Weights.IMAGENET1K_V1
        path = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rsplit("/", 1)[1]
        if not path.is_file():
            raise FileNotFoundError(
                f"no weights of VGG-16 at {path}: where there is a network, run\n"
                "  python -c \"import torchvision; torchvision.models.vgg16(weights='IMAGENET1K_V1')\"\n"
                f"or download {weights.url} to there"
            )
        state = weights.get_state_dict(progress=False)
        self.features = make_layers(cfgs["D"])
        prefix = "features."
        self.features.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1))  # of ImageNet, as in training
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1))
        self.requires_grad_(False).eval()

    def forward(self, x_hat: Tensor, x: Tensor) -> Tensor:
        distance = torch.zeros(len(x), device=x.device)
        h = (torch.cat((x_hat, x)) - self.mean) / self.std
        for i, layer in enumerate(self.features[: VGG_LAYERS[-1] + 1]):
            h = layer(h)
            if i in VGG_LAYERS:
                a, b = F.normalize(h, dim=1).chunk(2)
                distance = distance + (a - b).square().sum(dim=1).mean(dim=(1, 2))
        return distance


def proportional(lmbda, factor: float):
    """The price of a measure whose unit is worth `factor` squared grey levels."""
    return factor * lmbda


class Measure(NamedTuple):
    """A measure of how far a reconstruction is from its original."""

    name: str
    distance: Callable[[Tensor, Tensor], Tensor]  # (x_hat, x), (B, 3, H, W) around [0, 1] -> (B,), 0 if equal
    price: Callable  # lmbda -> bits per pixel of one unit of the distance
    perfect: float  # score of equal images: score = perfect - distance


@dataclass(frozen=True)
class Distortion:
    """The distortion term of a training: squared error has the share `mix`, the measures equal shares of the rest."""

    measures: list[Measure]  # none: squared error alone
    mix: float  # share of squared error
    unit: float = 1.0  # for squared error alone: samples are weighted with this times lmbda^-1/2

    def __call__(self, x_hat: Tensor, x: Tensor, lmbda: Tensor) -> Tensor:
        """D (B,) in bits per pixel of images (B, 3, H, W) at lmbda (B,)."""
        return self.blend(self.distances(x_hat, x), mse(x_hat, x), lmbda)

    def distances(self, x_hat: Tensor, x: Tensor) -> list[Tensor]:
        """The distance (B,) by each measure."""
        return [measure.distance(x_hat, x) for measure in self.measures]

    def blend(self, distances: Sequence, squared, lmbda):
        """D in bits per pixel from distances and mean squared error in squared grey levels; numbers or tensors (B,)."""
        if not self.measures:
            return lmbda * squared
        share = (1 - self.mix) / len(self.measures)
        terms = (share * m.price(lmbda) * d for m, d in zip(self.measures, distances, strict=True))
        return sum(terms, self.mix * lmbda * squared)

    def weights(self, lmbda: Tensor, bpp: Tensor) -> Tensor:
        """Weights (B,) of the samples' losses, which keep high rates from dominating.

        With squared error alone lmbda^-1/2; else the inverse of the sample's rate, so that all rates count alike.
        """
        return self.unit * lmbda.rsqrt() if not self.measures else 1 / (RATE_FLOOR + bpp.detach())

    def mean(self, losses: list[float], lmbdas: list[float]) -> float:
        """One figure for losses at several lmbda.

        With squared error alone their mean weighted by lmbda^-1/2; else their geometric mean, in which one percent
        counts the same at every rate.
        """
        losses, lmbdas = torch.tensor(losses, dtype=torch.float64), torch.tensor(lmbdas, dtype=torch.float64)
        if not self.measures:
            return float((losses * lmbdas.rsqrt()).sum() / lmbdas.rsqrt().sum())
        return float(losses.log().mean().exp())


def distortion(name: str, mix: float, lmbda: Sequence[float], device: torch.device) -> Distortion:
    """The distortion of a training, by its options `distortion` and `mix` and the lmbda of its model."""
    if name == "mse":
        span = math.log(lmbda[-1] / lmbda[0]) / 2  # of ln lmbda^-1/2 over the qualities
        unit = math.sqrt(lmbda[0]) * (span / -math.expm1(-span) if span else 1.0)  # makes the mean weight 1
        return Distortion([], 1.0, unit)
    known = {
        "ssimulacra2": lambda: (ssimulacra2.distance, point_price, 100.0),
        "ms-ssim": lambda: (ms_ssim, partial(proportional, factor=MS_SSIM_SCALE), 1.0),
        "vgg": lambda: (VGG().to(device), partial(proportional, factor=VGG_SCALE), 0.0),
    }
    return Distortion([Measure(measure, *known[measure]()) for measure in name.split("+")], mix)
