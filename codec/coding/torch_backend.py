"""The backend that runs the networks in PyTorch, on a CPU or a GPU; imported only where PyTorch is used."""

import contextlib
import functools
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from codec import machine
from codec.coding import tiles
from codec.coding.backend import Constants, Halos, Step, Steps, check_encodes
from codec.coding.tables import channels
from codec.coding.tiles import Box, full
from codec.config import CELL
from codec.network import pixels
from codec.network.distortion import Distortion, distortion
from codec.network.model import Network, to_reach
from codec.network.search import Target, search


class TorchBackend:
    """Runs a network, in evaluation mode and without gradients; its modes are restored after every call."""

    def __init__(self, network: Network, distortion: str = "mse", mix: float = 0.25):
        """`distortion` and `mix`: the training options that the network was trained with, which `search` uses."""
        self.network, self.config, self.trained_for = network, network.config, (distortion, mix)
        names = ("g_a", "g_s", "h_a", "h_s")
        self.halos = Halos(*(getattr(getattr(network, name, None), "halo", 0) for name in names))
        self.parameters = network.parameter_count()
        self.encodes = hasattr(network, "g_a")

    @property
    def device(self) -> str:
        return self.network.device.type

    @property
    def precision(self) -> str:
        return self.network.precision

    @functools.cached_property
    def distortion(self) -> Distortion:
        """The distortion that the network was trained for."""
        return distortion(*self.trained_for, self.config.lmbda, self.network.device)

    @contextlib.contextmanager
    def coding(self, gradients: bool = False) -> Iterator[None]:
        """Evaluation mode, without gradients, or with `gradients` for tensors that are not weights.

        Afterwards modules are in their modes, and weights require gradients, as before.
        """
        trained = [module for module in self.network.modules() if module.training]
        for module in trained:
            module.training = False
        exact = machine.exact_convolutions() if self.device == "cuda" else contextlib.nullcontext()
        weights = [weight for weight in self.network.parameters() if gradients and weight.requires_grad]
        for weight in weights:
            weight.requires_grad = False
        try:
            with torch.enable_grad() if gradients else torch.inference_mode(), exact:
                yield
        finally:
            for module in trained:
                module.training = True
            for weight in weights:
                weight.requires_grad = True

    def tensor(self, array: NDArray) -> Tensor:
        """An array as a tensor on the device."""
        return torch.from_numpy(array).to(self.network.device)

    def _image(self, image: NDArray[np.uint8]) -> Tensor:
        """Pixels as float32 in [0, 1]. The divisor is a tensor: for a number, a GPU would multiply by 1 / 255."""
        return self.tensor(image).float().div_(torch.full((), 255.0, device=self.network.device))

    def analyse(self, image: NDArray[np.uint8], quality: int | None) -> NDArray[np.float32]:
        check_encodes(self)
        with self.coding():
            x = self._image(image)
            return self.network.analyse(x, self.network.level_of(quality, len(x))).cpu().numpy()

    def hyper_analyse(self, v: NDArray[np.float32], quality: int | None) -> NDArray[np.int32] | None:
        with self.coding():
            w = self.network.analyse_hyper(self.tensor(v), self.network.level_of(quality, len(v)))
            return None if w is None else to_symbols(to_reach(torch.round(w)))

    def steps(
        self, z: NDArray[np.int32] | None, place: Box, box: Box, quality: int | None, constants: Constants | None
    ) -> Steps:
        if z is None:
            shape = (1, self.config.M, *box.shape)
            yield Step((slice(None),) * 4, shape, channels(self.config.M), None)  # the table is the channel's
            return
        stored = self.network.constants_from([constants])
        index = mean = None
        for tile in tiles.tiles(box.coarse(CELL), tiles.WIDE):
            outer = tile.grown(self.halos.h_s, place)
            own, seen = tile.scaled(CELL).within(box), outer.scaled(CELL)
            with self.coding():
                derived = self.network.derive(self.tensor(outer.relative_to(place).cut(z)), stored, seen.shape)
                tile_index, tile_mean = (own.relative_to(seen).cut(tensor) for tensor in derived)
                tile_index, tile_mean = tile_index.to(torch.uint8).cpu().numpy(), tile_mean.cpu().numpy()
            index, mean = tiles.place(index, tile_index, own, box), tiles.place(mean, tile_mean, own, box)
        yield Step((slice(None),) * 4, index.shape, index, mean)

    def quantize(self, v: NDArray[np.float32], step: Step, quality: int | None) -> NDArray[np.int32]:
        def quantized(tile: Box) -> NDArray[np.int32]:
            index, mean = self._prediction(step, tile)
            residual = self.tensor(tile.cut(v)).contiguous() - mean  # laid out as symbols are, not channels last
            return to_symbols(self.network.quantize(residual, index, self.network.level_of(quality, len(v))))

        with self.coding():
            return tiles.joined(quantized, full(v.shape[-2:]), tiles.WIDE * CELL)

    def dequantize(self, symbols: NDArray[np.int32], step: Step, quality: int | None) -> NDArray[np.float32]:
        def dequantized(tile: Box) -> NDArray[np.float32]:
            index, mean = self._prediction(step, tile)
            y_q = self.tensor(tile.cut(symbols)).float()
            level = self.network.level_of(quality, len(symbols))
            return (self.network.dequantize(y_q, index, level) + mean).cpu().numpy()

        with self.coding():
            return tiles.joined(dequantized, full(symbols.shape[-2:]), tiles.WIDE * CELL)

    def search(
        self,
        v: NDArray[np.float32],
        step: Step,
        quality: int | None,
        passes: int,
        image: NDArray[np.uint8],
        counted: Box,
    ) -> NDArray[np.int32]:
        with self.coding(gradients=True):
            seen = slice(counted.top, counted.bottom), slice(counted.left, counted.right)
            target = Target(self._image(image), seen, self.distortion, self.config.lmbda_at(quality))
            index, mean = self._prediction(step, full(v.shape[-2:]))
            level = self.network.level_of(quality)
            return to_symbols(search(self.network, target, self.tensor(v).contiguous(), index, mean, level, passes))

    def _prediction(self, step: Step, tile: Box) -> tuple[Tensor | None, Tensor | float]:
        """Table index and predicted mean of a tile of a step, as the network takes them."""
        if step.mean is None:
            return None, 0.0
        return self.tensor(tile.cut(step.index)), self.tensor(tile.cut(step.mean))

    def synthesise(
        self, v_hat: NDArray[np.float32], quality: int | None, size: tuple[int, int], gray: bool = False
    ) -> NDArray[np.uint8]:
        with self.coding():
            x_hat = self.network.synthesise(self.tensor(v_hat), self.network.level_of(quality, len(v_hat)), size)
            return pixels.to_uint8(x_hat.mean(dim=1, keepdim=True) if gray else x_hat).cpu().numpy()

    def bits(self, image: NDArray[np.uint8], quality: int | None) -> float:
        """Estimated bits of one image (1, 3, H, W): -log2 of the float densities, in evaluation mode."""
        check_encodes(self)
        with self.coding():
            x = self._image(image)
            level = self.network.level_of(quality, len(x))
            return self.network(x, None if level is None else 100 * level).bits.item()


def to_symbols(x: Tensor) -> NDArray[np.int32]:
    """A float tensor of integers as an int32 array, same shape."""
    return x.to(torch.int32).contiguous().cpu().numpy()
