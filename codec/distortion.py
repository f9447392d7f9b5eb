"""What a training compares images by, each a function of x_hat and x (B, 3, H, W) around [0, 1] that gives (B,).

All are in the units of a squared error of grey levels, so that one lmbda means about the same trade-off with each.
"""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codec.metrics import MS_SSIM_SIDE

Distortion = Callable[[Tensor, Tensor], Tensor]
# CompressAI trains the models that it numbers alike with lambda 0.0018 ... 0.18 for MSE, and with 2.4 ... 220 for
# MS-SSIM, 1333 ... 1222 times as much (its documentation, "Model zoo").
MS_SSIM_SCALE = 1333.0
VGG_SCALE = 100.0  # a guess at equal footing with the squared error beside it
VGG_LAYERS = (3, 8, 15, 22, 29)  # the last ReLU before each pooling


def mse(x_hat: Tensor, x: Tensor) -> Tensor:
    """Mean squared error in grey levels, 255^2 times that of [0, 1] pixels."""
    return 255**2 * (x_hat - x).square().mean(dim=(1, 2, 3))


def ms_ssim(x_hat: Tensor, x: Tensor) -> Tensor:
    """1 - MS-SSIM (Wang, Simoncelli and Bovik, 2003), scaled; ValueError below 161x161 pixels."""
    from pytorch_msssim import ms_ssim as similarity

    if min(x.shape[-2:]) < MS_SSIM_SIDE:
        raise ValueError(
            f"MS-SSIM needs images of at least {MS_SSIM_SIDE} pixels a side, not {x.shape[-1]}x{x.shape[-2]}: "
            "choose --patch 176 or more, and larger validation images"
        )
    return MS_SSIM_SCALE * (1 - similarity(x_hat, x, data_range=1.0, size_average=False))


class VGG(nn.Module):
    """Squared error plus the distance between features of VGG-16, each normalised over its channels (as in Zhang,
    Isola, Efros, Shechtman and Wang, "The unreasonable effectiveness of deep features", 2018, without learned weights).

    Takes torchvision's ImageNet weights from where torchvision keeps them; it does not download them.
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
        distance = mse(x_hat, x)
        h = (torch.cat((x_hat, x)) - self.mean) / self.std
        for i, layer in enumerate(self.features[: VGG_LAYERS[-1] + 1]):
            h = layer(h)
            if i in VGG_LAYERS:
                a, b = F.normalize(h, dim=1).chunk(2)
                distance = distance + VGG_SCALE * (a - b).square().sum(dim=1).mean(dim=(1, 2))
        return distance


def distortion(name: str, device: torch.device) -> Distortion:
    """The one called mse, ms-ssim or vgg."""
    return VGG().to(device) if name == "vgg" else {"mse": mse, "ms-ssim": ms_ssim}[name]
