"""What is coded of images: integers, and beside them what encoder and decoder derive on the way."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from codec.tiles import Box


@dataclass(frozen=True)
class Latent:
    """The latent of a batch of images, or of a part of one."""

    y: np.ndarray  # (B, M, h, w) int32
    z: np.ndarray | None = None  # (B, K, ceil(h/4), ceil(w/4)) int32, of whole images of a codec with a hyperprior
    index: np.ndarray | None = None  # (B, M, h, w) uint8, the table of each symbol of y
    mean: Tensor | float = 0.0  # (B, M, h, w) float32, what y is a difference to

    def of(self, i: int) -> "Latent":
        """That of image i of the batch, as a batch of one."""
        one = slice(i, i + 1)
        z = None if self.z is None else self.z[one]
        return self._each(lambda part: part[one], z)

    def part(self, box: Box) -> "Latent":
        """That of a part of it, without z."""
        return self._each(box.of)

    def _each(self, cut: Callable, z: np.ndarray | None = None) -> "Latent":
        index = None if self.index is None else cut(self.index)
        return Latent(cut(self.y), z, index, self.mean if isinstance(self.mean, float) else cut(self.mean))

    @staticmethod
    def joined(parts: list["Latent"], axis: int) -> "Latent":
        """That of an image whose parts lie below each other (axis 2) or side by side (axis 3)."""
        first = parts[0]
        if len(parts) == 1:
            return first
        y = np.concatenate([part.y for part in parts], axis)
        if first.index is None:
            return Latent(y, first.z)
        index = np.concatenate([part.index for part in parts], axis)
        mean = first.mean if isinstance(first.mean, float) else torch.cat([part.mean for part in parts], axis)
        return Latent(y, first.z, index, mean)


def to_symbols(x: Tensor) -> np.ndarray:
    """Integers in a float tensor as int32 on the CPU."""
    return x.to(torch.int32).contiguous().cpu().numpy()
