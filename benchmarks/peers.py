"""compressai's models as peers: bmshj2018-factorized and mbt2018-mean, N = 128 and M = 192, with random weights.

Ballé, Minnen, Singh, Hwang and Johnston (2018), Minnen, Ballé and Toderici (2018); compressai's zoo has these sizes up
to quality 5 and 4. Trained weights would have to be downloaded, so these are random, scaled so that latents are
distributed as their densities say, at a usual rate: how long coding takes does not depend on the weights, what is shown
does. Used by `python -m benchmarks codecs`, with the files of codec/evaluation/compressai_models.py.
"""

import torch
from PIL import Image
from torch import Tensor, nn

from codec.network.pixels import to_tensor

PEERS = ("bmshj2018-factorized", "mbt2018-mean")
CHANNELS = 128, 192
LOGISTIC_SCALE = 0.19  # of factorized densities: 0.5 bpp on the sample photographs
GAUSSIAN_SCALE = 0.34  # of y in mbt2018-mean: the same
LOGISTIC_STD = LOGISTIC_SCALE * torch.pi / 3**0.5


def standardise(layer: nn.Module, output: Tensor, std: float) -> Tensor:
    """Change a convolution so that each channel of its `output` (1, C, h, w) has mean 0 and this standard deviation;
    the new output.
    """
    spread, mean = torch.std_mean(output, dim=(0, 2, 3), keepdim=True)
    factor = std / spread.clamp_min(1e-6)
    layer.weight.mul_(factor[0, :, None])
    layer.bias.sub_(mean.flatten()).mul_(factor.flatten())
    return (output - mean) * factor


@torch.no_grad()
def untrained(name: str, image: Image.Image) -> nn.Module:
    """The model `name`, scaled to the middle of `image` and ready to code; ImportError without compressai."""
    from compressai.models import FactorizedPrior, MeanScaleHyperprior

    torch.manual_seed(0)
    net = (FactorizedPrior if name == PEERS[0] else MeanScaleHyperprior)(*CHANNELS).eval()
    bottleneck = type(net.entropy_bottleneck)
    net.entropy_bottleneck = bottleneck(net.entropy_bottleneck.channels, init_scale=LOGISTIC_SCALE).eval()
    for bias in net.entropy_bottleneck.biases:
        bias.zero_()  # centred densities, all of them logistic of the scale given
    left, top = image.width // 2 - 128, image.height // 2 - 128
    y = net.g_a(to_tensor(image.crop((left, top, left + 256, top + 256))))
    if name == PEERS[0]:
        standardise(net.g_a[-1], y, LOGISTIC_STD)
    else:
        z = standardise(net.h_a[-1], net.h_a(standardise(net.g_a[-1], y, GAUSSIAN_SCALE)), LOGISTIC_STD)
        standardise(net.h_s[-1], net.h_s(torch.round(z)), 0.1 * GAUSSIAN_SCALE)
        net.h_s[-1].bias[: CHANNELS[1]] += GAUSSIAN_SCALE  # the first half are scales, the second means
    net.update(force=True, update_quantiles=True)
    return net.requires_grad_(False)
