"""SSIMULACRA 2 as a differentiable loss.

The metric of Jon Sneyers (libjxl, tools/ssimulacra2). Constants and border rules are those of the Python package
`ssimulacra2`, which evaluation uses and tests compare with. Both images are taken to XYB, a space of opponent colours
with a cube root for the eye's response, at six scales. At each scale there are three error maps: structural
dissimilarity, edges that were added, and edges that were lost; of each the mean and the fourth-power mean. A weighted
sum of these 108 numbers goes through a curve that was fitted to people's judgements. 100 is equal, 90 not told apart
side by side, 70 high quality, 50 medium, 30 low; far worse images are below zero.
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from codec.errors import LicError
from codec.network.quantize import between

SCALES = 6
LEAST_SIDE = 113  # pixels, for five scales; the sixth has hardly any weight
SMALLEST = 8  # pixels; scales with a shorter side are left out
RADIUS, SIGMA = 5, 1.5  # of the Gaussian window, in pixels
C2 = 0.0009  # of the structural similarity
BIAS = 0.0037930732552754493  # of the opsin absorbance
ABSORBANCE = (
    (0.30, 0.622, 0.078),
    (0.23, 0.692, 0.078),
    (0.24342268924547819, 0.20476744424496821, 0.5518098665095536),
)  # linear light -> responses of the cones
# a line for each channel (X, Y, B - Y), scale and norm (mean, fourth-power mean): dissimilarity, added, lost edges
WEIGHTS = (
    0.0, 0.0007376606707406586, 0.0,
    0.0, 0.0007793481682867309, 0.0,
    0.0, 0.0004371155730107379, 0.0,
    1.1041726426657346, 0.00066284834129271, 0.00015231632783718752,
    0.0, 0.0016406437456599754, 0.0,
    1.8422455520539298, 11.441172603757666, 0.0,
    0.0007989109436015163, 0.000176816438078653, 0.0,
    1.8787594979546387, 10.94906990605142, 0.0,
    0.0007289346991508072, 0.9677937080626833, 0.0,
    0.00014003424285435884, 0.9981766977854967, 0.00031949755934435053,
    0.0004550992113792063, 0.0, 0.0,
    0.0013648766163243398, 0.0, 0.0,
    0.0, 0.0, 0.0,
    7.466890328078848, 0.0, 17.445833984131262,
    0.0006235601634041466, 0.0, 0.0,
    6.683678146179332, 0.00037724407979611296, 1.027889937768264,
    225.20515300849274, 0.0, 0.0,
    19.213238186143016, 0.0011401524586618361, 0.001237755635509985,
    176.39317598450694, 0.0, 0.0,
    24.43300999870476, 0.28520802612117757, 0.0004485436923833408,
    0.0, 0.0, 0.0,
    34.77906344483772, 44.835625328877896, 0.0,
    0.0, 0.0, 0.0,
    0.0, 0.0, 0.0,
    0.0, 0.0008680556573291698, 0.0,
    0.0, 0.0, 0.0,
    0.0, 0.0005313191874358747, 0.0,
    0.00016533814161379112, 0.0, 0.0,
    0.0, 0.0, 0.0,
    0.0004179171803251336, 0.0017290828234722833, 0.0,
    0.0020827005846636437, 0.0, 0.0,
    8.826982764996862, 23.19243343998926, 0.0,
    95.1080498811086, 0.9863978034400682, 0.9834382792465353,
    0.0012286405048278493, 171.2667255897307, 0.9807858872435379,
    0.0, 0.0, 0.0,
    0.0005130064588990679, 0.0, 0.00010854057858411537,
)  # fmt: skip
FIT = (0.9562382616834844, 2.326765642916932, -0.020884521182843837, 6.248496625763138e-05)  # of the weighted sum
EXPONENT = 0.6276336467831387
TINY = 1e-30  # roots have no finite gradient at 0: a mean of fourth powers below this gets none


def linear(x: Tensor) -> Tensor:
    """sRGB in [0, 1] -> linear light (IEC 61966-2-1)."""
    return torch.where(x <= 0.04045, x / 12.92, ((x.clamp_min(0.04045) + 0.055) / 1.055) ** 2.4)


def xyb(light: Tensor) -> Tensor:
    """Linear light (B, 3, H, W) -> X, Y and B - Y, scaled to be positive, same shape."""
    absorbance = torch.tensor(ABSORBANCE, dtype=light.dtype, device=light.device)
    long, medium, short = (
        (F.conv2d(light, absorbance[:, :, None, None]) + BIAS).pow(1 / 3).sub(BIAS ** (1 / 3)).unbind(1)
    )
    y = (long + medium) / 2
    return torch.stack((7 * (long - medium) + 0.42, y + 0.01, short - y + 0.55), dim=1)


def halved(x: Tensor) -> Tensor:
    """Means of 2x2 samples: (B, C, H, W) -> (B, C, ceil(H/2), ceil(W/2)); odd borders have smaller blocks."""
    return F.avg_pool2d(x, 2, ceil_mode=True)


@cache
@torch.inference_mode(False)  # it may be made while validating, and used in training
def windows(side: int, mirrored: bool, device: torch.device) -> Tensor:
    """The Gaussian blur of `side` samples as a matrix (side, side): row i is the window around sample i.

    Beyond the ends are zeros, or if `mirrored` the samples mirrored, the last one repeated.
    """
    place = torch.arange(side, device=device)
    taps = torch.arange(-RADIUS, RADIUS + 1, device=device)
    weights = torch.exp(-taps.double().square() / (2 * SIGMA**2))
    weights = (weights / weights.sum()).expand(side, -1).float()
    column = place[:, None] + taps
    inside = (column >= 0) & (column < side)
    if mirrored:
        column = torch.where(column < 0, -1 - column, torch.where(column >= side, 2 * side - 1 - column, column))
    else:
        weights, column = weights * inside, column.clamp(0, side - 1)
    return torch.zeros(side, side, device=device).scatter_add_(1, column, weights)


def blurred(x: Tensor) -> Tensor:
    """x (B, C, H, W) blurred, same shape: mirrored above and below, zeros to the left and right.

    Matrix products take a tenth of the time of convolutions with one channel.
    """
    down, across = windows(x.shape[-2], True, x.device), windows(x.shape[-1], False, x.device)
    return down @ (x @ across.T)


def norms(error: Tensor) -> Tensor:
    """Mean and fourth-power mean of errors (B, 3, H, W): (B, 3, 2)."""
    fourth = error.square().square().mean(dim=(2, 3))
    return torch.stack((error.mean(dim=(2, 3)), fourth.clamp_min(TINY) ** 0.25), dim=2)


def distance(x_hat: Tensor, x: Tensor) -> Tensor:
    """100 - SSIMULACRA 2 of x_hat compared with x, both (B, 3, H, W) sRGB around [0, 1]: (B,), in points.

    LicError below LEAST_SIDE pixels a side.
    """
    if min(x.shape[-2:]) < LEAST_SIDE:
        raise LicError(
            f"SSIMULACRA 2 needs images of at least {LEAST_SIDE} pixels a side, not {x.shape[-1]}x{x.shape[-2]}: "
            "choose --patch 128 or more, and larger validation images"
        )
    weights = torch.tensor(WEIGHTS, device=x.device).view(3, SCALES, 2, 3)
    with torch.no_grad():
        light = linear(x.clamp(0, 1))
    light_hat = linear(between(x_hat, 0.0, 1.0))
    total = torch.zeros(len(x), device=x.device)
    for scale in range(SCALES):
        if scale:
            light, light_hat = halved(light), halved(light_hat)
        if min(light.shape[-2:]) < SMALLEST:
            break
        with torch.no_grad():
            a = xyb(light)
            mean_a, square_a = blurred(torch.cat((a, a * a), dim=1)).chunk(2, dim=1)
            variance_a, edges_a = square_a - mean_a * mean_a, 1 + (a - mean_a).abs()
        b = xyb(light_hat)
        error = b - a
        mean_error, square_error, square_b = blurred(torch.cat((error, error * error, b * b), dim=1)).chunk(3, dim=1)
        mean_b, bias = mean_a + mean_error, mean_error.square()
        # 1 - structural similarity, written in the variance of the error: in float32 the usual form loses what is small
        share = (square_error - bias) / (variance_a + (square_b - mean_b * mean_b) + C2)
        dissimilar = (bias + (1 - bias) * share).clamp_min(0)
        edges = (1 + (b - mean_b).abs()) / edges_a - 1
        terms = torch.stack([norms(e) for e in (dissimilar, edges.clamp_min(0), (-edges).clamp_min(0))], dim=3)
        total = total + (terms * weights[:, scale]).sum(dim=(1, 2, 3))
    scale, first, second, third = FIT
    total = total * scale
    points = first * total + second * total.square() + third * total**3
    return 10 * points.clamp_min(1e-6) ** EXPONENT
