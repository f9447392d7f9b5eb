"""Validation of a network during training."""

import math

import torch
from PIL import Image

from codec.coding.codec import Codec
from codec.coding.tables import CodecTables
from codec.coding.tiles import picture_of, planes
from codec.coding.torch_backend import TorchBackend
from codec.config import Config
from codec.container import bitstream
from codec.network.distortion import Distortion, mse
from codec.network.model import Network
from codec.network.pixels import to_tensor
from codec.training.distributed import World


def validate(
    network: Network, images: list[Image.Image], config: Config, compare: Distortion, world: World
) -> dict[str, float]:
    """Code the validation images (RGB) to real bytes and back, never losslessly: figures by name.

    bpp, psnr in dB, mse in [0, 1] units, loss and the scores that are trained for are means over the images, per
    quality (bpp_q10, ...) in an all-rates model; rd_loss is over all. Every process codes its share of the images, and
    all get the same figures.
    """
    qualities = config.train.val_qualities if config.model.variable_rate else [None]
    model = Codec(TorchBackend(network), CodecTables.from_network(network, qualities))
    result, losses = {}, []
    for quality in qualities:
        sums = torch.zeros(3 + len(compare.measures), dtype=torch.float64)  # bpp, psnr, mse, distances
        for image in images[world.rank :: world.size]:
            size = image.height, image.width
            data = model.encode(model.latent(planes(image), quality), quality, "RGB", size)
            pixels = model.reconstruct(model.decode(*bitstream.read(data)), size, quality)
            x_hat, x = (to_tensor(decoded).to(network.device) for decoded in (picture_of(pixels), image))
            with torch.inference_mode():
                squared = mse(x_hat.double(), x.double()).item()
                distances = [distance.item() for distance in compare.distances(x_hat, x)]
            db = 10 * math.log10(255**2 / squared) if squared else math.inf
            sums += torch.tensor([8 * len(data) / (image.width * image.height), db, squared / 255**2, *distances])
        bpp, db, squared, *distances = (world.total(sums.to(network.device)) / len(images)).tolist()
        losses.append(bpp + compare.blend(distances, 255**2 * squared, config.model.lmbda_at(quality)))
        name = "" if quality is None else f"_q{quality}"
        result |= {f"bpp{name}": bpp, f"psnr{name}": db, f"mse{name}": squared, f"loss{name}": losses[-1]}
        scores = zip(compare.measures, distances, strict=True)
        result |= {f"{measure.name}{name}": measure.perfect - distance for measure, distance in scores}
    return result | {"rd_loss": compare.mean(losses, [config.model.lmbda_at(quality) for quality in qualities])}
