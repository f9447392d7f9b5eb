"""The backend that runs the networks in ONNX Runtime, on a CPU, from the graphs in a model file; without PyTorch.

Quantization and dequantization, between the graphs (codec/network/graphs.py) and the entropy coder, are NumPy in
float32 and follow codec/network/model.py step by step: equal v give equal symbols, equal symbols equal v_hat.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NoReturn

import numpy as np
from numpy.typing import NDArray

from codec import machine
from codec.coding import tiles
from codec.coding.backend import Constants, Halos, Step, Steps, check_encodes
from codec.coding.tables import channels
from codec.coding.tiles import Box, full
from codec.config import CELL, ModelConfig
from codec.errors import LicError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession


class OnnxBackend:
    """Runs the graphs of a model file; a session is opened when a graph is first used."""

    device, precision = "cpu", "fp32"

    def __init__(self, config: ModelConfig, tensors: dict[str, NDArray]):
        self.config, self.tensors = config, tensors
        self.halos = Halos(*map(int, tensors["graph.halos"]))
        self.borders = tensors["graph.borders"]
        self.encodes = "graph.g_a" in tensors
        self._sessions: dict[str, InferenceSession] = {}

    @property
    def parameters(self) -> int:
        """The number of trained parameters: without tables, graphs and measured constants."""
        beside = ("tables.", "graph.", "prior.scale", "context.energy")
        return sum(tensor.size for name, tensor in self.tensors.items() if not name.startswith(beside))

    def _run(self, name: str, outputs: list[str], quality: int | None, **inputs: NDArray) -> list[NDArray]:
        """Run a transform: its outputs of these names. LicError if it cannot be run."""
        self.config.check_quality(quality)
        if quality is not None:
            inputs["quality"] = np.array([quality], np.float32)
        try:
            if name not in self._sessions:
                self._sessions[name] = open_session(self.tensors, name)
            return self._sessions[name].run(outputs, inputs)
        except LicError:
            raise
        except Exception as error:  # ONNX Runtime raises classes of its own
            raise LicError(f"the graph of {name} cannot be run: {' '.join(str(error).split())}") from error

    def analyse(self, pixels: NDArray[np.uint8], quality: int | None) -> NDArray[np.float32]:
        check_encodes(self)
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
            given = self._run("h_s", outputs, quality, z=outer.relative_to(place).cut(z))  # constants are in the graph
            tile_index, *means = (own.relative_to(seen).cut(output) for output in given)
            tile_mean = means[0] if means else np.zeros(tile_index.shape, np.float32)
            index, mean = tiles.place(index, tile_index, own, box), tiles.place(mean, tile_mean, own, box)
        yield Step((slice(None),) * 4, index.shape, index, mean)

    def quantize(self, v: NDArray[np.float32], step: Step, quality: int | None) -> NDArray[np.int32]:
        self.config.check_quality(quality)

        def quantized(tile: Box) -> NDArray[np.int32]:
            residual = tile.cut(v) if step.mean is None else tile.cut(v) - tile.cut(step.mean)
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
        """The fraction from which each sample is rounded away from zero (codec/network/quantize.py), broadcastable."""
        if step.mean is not None:
            entry = np.left_shift(tile.cut(step.index), 1, dtype=np.uint16)
            entry += magnitude > 1.5
            return self.borders.reshape(-1).take(entry)
        minus_two, minus_one, one, two = self.borders[quality or 0][:, None, :, None, None]
        above = np.where(residual > 1.5, two, one)
        return np.where(residual > 0, above, np.where(residual < -1.5, minus_two, minus_one))

    def search(self, *asked: object) -> NoReturn:
        raise LicError(
            "effort above 0 takes gradients, and with them PyTorch: --backend torch, in Python backend='torch'"
        )

    def dequantize(self, symbols: NDArray[np.int32], step: Step, quality: int | None) -> NDArray[np.float32]:
        self.config.check_quality(quality)
        shrink = interpolated(self.tensors["shrink.values"], (quality or 0) / 100)[:, None, None]

        def dequantized(tile: Box) -> NDArray[np.float32]:
            y_q = tile.cut(symbols)
            v_hat = y_q.astype(np.float32)
            if step.mean is None:
                return v_hat - shrink * np.sign(v_hat)
            entry = np.clip(np.abs(y_q), 1, 3) - 1
            entry += np.multiply(tile.cut(step.index), 3, dtype=np.uint16)
            shift = shrink - self.tensors["centroid"].reshape(-1).take(entry)
            shift *= np.sign(v_hat)
            v_hat -= shift
            v_hat += tile.cut(step.mean)
            return v_hat

        return tiles.joined(dequantized, full(symbols.shape[-2:]), tiles.WIDE * CELL)

    def synthesise(
        self, v_hat: NDArray[np.float32], quality: int | None, size: tuple[int, int], gray: bool = False
    ) -> NDArray[np.uint8]:
        (pixels,) = self._run("g_s", ["gray" if gray else "image"], quality, v_hat=v_hat)
        return full(size).cut(pixels)

    def bits(self, image: NDArray[np.uint8], quality: int | None) -> float:
        raise LicError("estimated bits are told by PyTorch alone: load the model with backend='torch'")


def interpolated(knots: NDArray[np.float32], level: float) -> NDArray[np.float32]:
    """Knots (K, C), spread evenly over [0, 1], interpolated at a level: (C,), rounded as torch.lerp rounds."""
    position = np.float32(level) * np.float32(len(knots) - 1)
    below = min(int(position), len(knots) - 2)
    low, high, fraction = knots[below], knots[below + 1], np.float32(position - np.float32(below))
    return low + fraction * (high - low) if fraction < 0.5 else high - (high - low) * (1 - fraction)


def open_session(tensors: dict[str, NDArray], name: str) -> InferenceSession:
    """An ONNX Runtime session of the graph of a transform, with its weights."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = machine.threads()
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False  # an arena never frees memory; allocating anew takes no longer
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # threads wait asleep
    if name.startswith("h_"):  # small: optimising them takes longer than running them
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    weights = graph_weights(tensors, name)
    values = {own: onnxruntime.OrtValue.ortvalue_from_numpy(array) for own, array in weights.items()}
    options.add_external_initializers(list(values), list(values.values()))
    return onnxruntime.InferenceSession(bytes(tensors[f"graph.{name}"]), options, providers=["CPUExecutionProvider"])


def graph_weights(tensors: dict[str, NDArray], name: str) -> dict[str, NDArray]:
    """The weights of the graph of a transform, by the names and in the shapes that it declares.

    LicError if the model file lacks one, or has it in another size.
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
