"""Where images are found, and how their pixels become tensors on the network's grid and pixels again."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from codec.files import IMAGES, below
from codec.layers import mirror_pad

STRIDE = 16  # pixels per latent sample in each direction, of every transform family
SAMPLES = ("astronaut", "coffee", "chelsea", "motorcycle")


def sample_images(names: Sequence[str] = SAMPLES) -> list[tuple[str, Image.Image]]:
    """Photographs from scikit-image's wheel: (name, RGB image). More than SAMPLES: rocket, brick, ..."""
    from skimage import data

    def load(name: str) -> np.ndarray:
        return data.stereo_motorcycle()[0] if name == "motorcycle" else getattr(data, name)()

    return [(name, Image.fromarray(load(name)).convert("RGB")) for name in names]


def find_images(folder: Path | str) -> list[Path]:
    """All image files below a folder, sorted by path; FileNotFoundError if there are none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder")
    paths = sorted(folder / name for name in below(folder, IMAGES))
    if not paths:
        raise FileNotFoundError(f"no images in {folder} ({', '.join(sorted(IMAGES))})")
    return paths


def to_pixels(image: Image.Image) -> Tensor:
    """An image in RGB as uint8 (3, H, W)."""
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
    """Mirror x (B, C, H, W) on the right and at the bottom up to multiples of `stride`."""
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
