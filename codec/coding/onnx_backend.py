"""The backend that runs the networks in ONNX Runtime, on a CPU, from the graphs in a model file; without PyTorch.

What lies between the graphs (codec/network/graphs.py) and the bytes is NumPy in float32, step by step what
codec/network/model.py does in PyTorch: the same symbols of the same v, the same v_hat of the same symbols.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NoReturn

import numpy as np
from numpy.typing import NDArray

from codec import machine
from codec.coding import tiles
from codec.coding.backend import Constants, Halos, Step, Steps
from codec.coding.tables import channels
from codec.coding.tiles import Box, full
from codec.config import CELL, ModelConfig
from codec.errors import LicError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession


class OnnxBackend:
    """The graphs and weights of a model file; each graph is opened when it is first asked."""

    device, precision = "cpu", "fp32"

    def __init__(self, config: ModelConfig, tensors: dict[str, NDArray]):
        self.config, self.tensors = config, tensors
        self.halos = Halos(*map(int, tensors["graph.halos"]))
        self.borders = tensors["graph.borders"]
        self._sessions: dict[str, InferenceSession] = {}

    @property
    def parameters(self) -> int:
        """Those that were trained: no tables, no graphs, nor what was measured."""
        beside = ("tables.", "graph.", "prior.scale", "context.energy")
        return sum(tensor.size for name, tensor in self.tensors.items() if not name.startswith(beside))

    def _run(self, name: str, outputs: list[str], quality: int | None, **inputs: NDArray) -> list[NDArray]:
        self.config.check_quality(quality)
        if quality is not None:
            inputs["quality"] = np.array([quality], np.float32)
        try:
            if name not in self._sessions:
                self._sessions[name] = open_session(self.tensors, name)
            return self._sessions[name].run(outputs, inputs)
        except LicError:
            raise
        except Exception as error:  # ONNX Runtime has classes of its own; the id says that nothing was changed since
            raise LicError(f"the graph of {name} cannot be run: {' '.join(str(error).split())}") from error

    def analyse(self, pixels: NDArray[np.uint8], quality: int | None) -> NDArray[np.float32]:
        return self._run("g_a", ["v"], quality, image=pixels)[0]

    def hyper_analyse(self, v: NDArray[np.float32], quality: int | None) -> NDArray[np.int32] | None:
        return None if self.config.prior == "factorized" else self._run("h_a", ["z"], quality, v=v)[0]

    def steps(
        self, z: NDArray[np.int32] | None, place: Box, box: Box, quality: int | None, constants: Constants | None
    ) -> Steps:
        if z is None:
            yield Step((slice(None),) * 4, (1, self.config.M, *box.shape), channels(self.config.M), None)
            return
        outputs = ["index", "mean"] if self.config.prior == "mean-scale-hyperprior" else ["index"]
        index = mean = None
        for tile in tiles.tiles(box.coarse(CELL), tiles.WIDE):
            outer = tile.grown(self.halos.h_s, place)
            own, seen = tile.scaled(CELL).within(box), outer.scaled(CELL)
            parts = self._run("h_s", outputs, quality, z=outer.relative_to(place).of(z))  # constants are in the graph
            of_index, *of_mean = (own.relative_to(seen).of(part) for part in parts)
            of_mean = of_mean[0] if of_mean else np.zeros(of_index.shape, np.float32)
            index, mean = tiles.place(index, of_index, own, box), tiles.place(mean, of_mean, own, box)
        yield Step((slice(None),) * 4, index.shape, index, mean)

    def quantize(self, v: NDArray[np.float32], step: Step, quality: int | None) -> NDArray[np.int32]:
        self.config.check_quality(quality)

        def quantized(tile: Box) -> NDArray[np.int32]:
            residual = tile.of(v) if step.mean is None else tile.of(v) - tile.of(step.mean)
            magnitude = np.minimum(np.abs(residual), np.float32(2**24))  # integers that float32 holds exactly
            magnitude -= self._border(residual, magnitude, step, tile, quality)
            np.floor(magnitude, out=magnitude)
            magnitude += 1
            np.maximum(magnitude, 0, out=magnitude)
            return np.copysign(magnitude, residual, out=magnitude).astype(np.int32)

        return tiles.joined(quantized, full(v.shape[-2:]), tiles.WIDE * CELL)

    def _border(
        self, residual: NDArray, magnitude: NDArray, step: Step, tile: Box, quality: int | None
    ) -> NDArray[np.float32]:
        """Where the symbol of each sample begins, between it and the one nearer to zero."""
        if step.mean is not None:
            entry = np.left_shift(tile.of(step.index), 1, dtype=np.uint16)
            entry += magnitude > 1.5
            return self.borders.reshape(-1).take(entry)
        minus_two, minus_one, one, two = self.borders[quality or 0][:, None, :, None, None]
        above = np.where(residual > 1.5, two, one)
        return np.where(residual > 0, above, np.where(residual < -1.5, minus_two, minus_one))

    def search(self, *asked: object) -> NoReturn:
        raise LicError("effort above 0 takes gradients, and with them PyTorch: load the model with backend='torch'")

    def dequantize(self, symbols: NDArray[np.int32], step: Step, quality: int | None) -> NDArray[np.float32]:
        self.config.check_quality(quality)
        shrink = interpolated(self.tensors["shrink.values"], (quality or 0) / 100)[:, None, None]

        def dequantized(tile: Box) -> NDArray[np.float32]:
            y_q = tile.of(symbols)
            v_hat = y_q.astype(np.float32)
            if step.mean is None:
                return v_hat - shrink * np.sign(v_hat)
            entry = np.clip(np.abs(y_q), 1, 3) - 1
            entry += np.multiply(tile.of(step.index), 3, dtype=np.uint16)
            shift = shrink - self.tensors["centroid"].reshape(-1).take(entry)
            shift *= np.sign(v_hat)
            v_hat -= shift
            v_hat += tile.of(step.mean)
            return v_hat

        return tiles.joined(dequantized, full(symbols.shape[-2:]), tiles.WIDE * CELL)

    def synthesise(
        self, v_hat: NDArray[np.float32], quality: int | None, size: tuple[int, int], gray: bool = False
    ) -> NDArray[np.uint8]:
        (pixels,) = self._run("g_s", ["gray" if gray else "image"], quality, v_hat=v_hat)
        return full(size).of(pixels)

    def bits(self, image: NDArray[np.uint8], quality: int | None) -> float:
        raise LicError("estimated bits are told by PyTorch alone: load the model with backend='torch'")


def interpolated(knots: NDArray[np.float32], level: float) -> NDArray[np.float32]:
    """Values (C,) between `knots` (K, C), spread evenly over [0, 1], at a level: (C,); rounded as torch.lerp rounds."""
    position = np.float32(level) * np.float32(len(knots) - 1)
    below = min(int(position), len(knots) - 2)
    low, high, fraction = knots[below], knots[below + 1], np.float32(position - np.float32(below))
    return low + fraction * (high - low) if fraction < 0.5 else high - (high - low) * (1 - fraction)


def open_session(tensors: dict[str, NDArray], name: str) -> InferenceSession:
    """A session of the graph of a transform, with its weights."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = machine.threads()
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False  # it never gives back; allocating anew takes no longer
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # waiting threads sleep
    if name.startswith("h_"):  # small: to optimise them takes longer than they run
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    values = {own: onnxruntime.OrtValue.ortvalue_from_numpy(array) for own, array in handed_over(tensors, name).items()}
    options.add_external_initializers(list(values), list(values.values()))
    return onnxruntime.InferenceSession(bytes(tensors[f"graph.{name}"]), options, providers=["CPUExecutionProvider"])


def handed_over(tensors: dict[str, NDArray], name: str) -> dict[str, NDArray]:
    """The weights of the graph of a transform, by the names and in the shapes that it declares; LicError if the model
    file does not have them.
    """
    weights = {}
    for line in bytes(tensors[f"graph.{name}.weights"]).decode().split("\n"):
        own, _, sides = line.rpartition(":")
        shape = tuple(map(int, sides.split("x")))
        if own not in tensors or tensors[own].size != math.prod(shape):
            raise LicError(f"{own} is {tensors[own].shape if own in tensors else 'missing'}; its graph wants {shape}")
        array = tensors[own].astype(np.float32) if tensors[own].dtype == np.float16 else tensors[own]
        weights[line] = np.ascontiguousarray(array).reshape(shape)
    return weights
