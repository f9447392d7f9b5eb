"""Images for training and validation: folders, CIFAR-10, or the photographs inside scikit-image's wheel.

A training patch is a function of (seed, sample number) alone: the same whatever the number of workers, and after a
resume.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from codec.config import DataConfig
from codec.image import find_images, sample_images, to_pixels
from codec.layers import mirror_pad

TRAINING_SAMPLES = ("astronaut", "chelsea", "motorcycle", "rocket")


class CIFAR10Images(Sequence):
    """The 50,000 training images of a local CIFAR-10 copy, in the layout torchvision expects; never downloads."""

    def __init__(self, folder: str):
        from torchvision.datasets import CIFAR10

        try:
            self.images = CIFAR10(folder, train=True, download=False).data  # (50000, 32, 32, 3) uint8
        except RuntimeError as error:
            raise FileNotFoundError(
                f"no CIFAR-10 below {folder}: expected {folder}/cifar-10-batches-py/ with data_batch_1..5, test_batch, "
                "batches.meta: the unpacked cifar-10-python.tar.gz of https://www.cs.toronto.edu/~kriz/cifar.html"
            ) from error

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return torch.from_numpy(self.images[index]).permute(2, 0, 1)


class FolderImages(Sequence):
    """Image files as uint8 (3, H, W) tensors, decoded when asked for; if `cache`, kept on `device`, where they are then
    cropped too.
    """

    def __init__(self, paths: list[Path], cache: bool, device: torch.device | str = "cpu"):
        self.paths = paths
        self.device = device
        self.kept: dict[int, Tensor] | None = {} if cache else None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        if self.kept is not None and index in self.kept:
            return self.kept[index]
        with Image.open(self.paths[index]) as image:
            pixels = to_pixels(image)
        if self.kept is not None:
            self.kept[index] = pixels = pixels.to(self.device)
        return pixels


def training_images(config: DataConfig, device: torch.device | str = "cpu") -> Sequence:
    """The images named by `data`: uint8 tensors (3, H, W); those of folders on `device` if they are kept at all."""
    if not config.data:
        return [to_pixels(photo) for _, photo in sample_images(TRAINING_SAMPLES)]
    if any(name.startswith("cifar10:") for name in config.data):
        if len(config.data) > 1:
            raise ValueError("cifar10:DIR stands alone in data")
        return CIFAR10Images(config.data[0].removeprefix("cifar10:"))
    return FolderImages([path for folder in config.data for path in find_images(folder)], config.cache, device)


def validation_images(config: DataConfig) -> list[Image.Image]:
    """The images named by `val`, in RGB; the sample photograph `coffee` if there are none."""
    if not config.val:
        return [photo for _, photo in sample_images(["coffee"])]
    images = []
    for path in (path for folder in config.val for path in find_images(folder)):
        with Image.open(path) as image:
            images.append(image.convert("RGB"))
    return images


class MirrorTo(torch.nn.Module):
    """Mirrors an image on the right and at the bottom until both sides have at least `side` pixels."""

    def __init__(self, side: int):
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        return mirror_pad(x[None], 0, max(0, self.side - width), 0, max(0, self.side - height))[0]


def patch_transform(config: DataConfig) -> v2.Compose:
    """What happens to an image before it is a training patch (uint8 in, uint8 out)."""
    return v2.Compose(
        [
            v2.RandomResize(*config.resize, antialias=True) if config.resize else v2.Identity(),
            MirrorTo(config.patch),
            v2.RandomCrop(config.patch),
            v2.RandomHorizontalFlip(0.5 if config.flip else 0.0),
        ]
    )


class Patches(Dataset):
    """Sample number n -> uint8 patch (3, patch, patch). Every epoch visits each image once, in an order of its own."""

    def __init__(self, images: Sequence, transform: v2.Compose, seed: int, samples: int):
        self.images, self.transform, self.seed, self.samples = images, transform, seed, samples
        self.epoch, self.order = -1, np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, n: int) -> Tensor:
        epoch, position = divmod(n, len(self.images))
        if epoch != self.epoch:
            self.epoch, self.order = epoch, np.random.default_rng((self.seed, epoch)).permutation(len(self.images))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(np.random.SeedSequence((self.seed, n)).generate_state(1)[0]))
            return self.transform(self.images[int(self.order[position])])
