"""Conversions between images, tensors of pixels, and the padded, normalised input of the networks."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from codec.config import STRIDE
from codec.network.layers import mirror_pad


def to_pixels(image: Image.Image) -> Tensor:
    """An image of any mode, as RGB: uint8 (3, H, W)."""
    image = image if image.mode == "RGB" else image.convert("RGB")
    return torch.from_numpy(np.stack([np.asarray(plane) for plane in image.split()]))


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB or grayscale (L) image as float32 (1, 3, H, W) in [0, 1]; gray becomes three equal channels."""
    return to_pixels(image)[None].float().div_(255)


def to_uint8(x: Tensor) -> Tensor:
    """Grey levels of x (..., H, W) in [0, 1], rounded to nearest and clamped: uint8, same shape."""
    return (x * 255).round_().clamp_(0, 255).to(torch.uint8)


def to_image(x: Tensor, mode: str) -> Image.Image:
    """A reconstruction (1, 3, H, W) as a PIL image of mode RGB, or L (the mean of the three channels)."""
    if mode == "L":
        return Image.fromarray(to_uint8(x[0].mean(dim=0)).cpu().numpy())
    return Image.merge("RGB", [Image.fromarray(plane) for plane in to_uint8(x[0]).cpu().numpy()])


def pad(x: Tensor, stride: int = STRIDE) -> Tensor:
    """Mirror x (B, C, H, W) at the right and at the bottom, up to multiples of `stride`."""
    height, width = x.shape[-2:]
    if height % stride == 0 and width % stride == 0:
        return x
    return mirror_pad(x, 0, -width % stride, 0, -height % stride)


def crop(x: Tensor, height: int, width: int) -> Tensor:
    """Undo `pad`: the top left height x width samples of x (B, C, H, W)."""
    return x[..., :height, :width]


def normalise(x: Tensor) -> Tensor:
    """[0, 1] pixels -> the network's domain, centred at 0."""
    return x - 0.5


def denormalise(x: Tensor) -> Tensor:
    """The inverse of `normalise`."""
    return x + 0.5
