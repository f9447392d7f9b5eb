"""ONNX graphs of a model: those in its file, and .onnx files with weights for other runtimes (lic export).

Graphs in a model file have no weights of their own and use those of the file (codec/network/graphs.py). They are
checked before they are stored: ONNX Runtime gives what PyTorch gives, equal integers where arithmetic is exact.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from codec.coding.backend import Backend, check_encodes
from codec.coding.models import is_of_encoder, read_model, replaced, write_model
from codec.coding.onnx_backend import OnnxBackend, graph_weights
from codec.coding.tiles import full
from codec.config import CELL
from codec.errors import LicError
from codec.files import refuse_existing, write_atomically
from codec.machine import require

if TYPE_CHECKING:
    from codec.network.model import Network

NAMES = ("g_a", "g_s", "h_a", "h_s")
CHECKED = (40, 72)  # height and width of the noise that graphs are checked with: every stage has to mirror it


def graphs_of(network: Network, tensors: dict[str, NDArray]) -> dict[str, NDArray]:
    """The tensors of graphs for a model file that holds `tensors`, the weights and tables of a network.

    Empty, with a line on stderr, if the network has layers without graphs, or if the graphs compute something else.
    """
    try:
        require("onnx", "train", "making graphs")
        from codec.network.graphs import build_graphs

        graphs = build_graphs(network)
        _check(network, OnnxBackend(network.config, tensors | graphs))
    except LicError as error:
        print(f"lic: without PyTorch the model will not be read: {error}", file=sys.stderr)
        return {}
    return graphs


def add_graphs(path: Path | str) -> str:
    """Make the graphs of a model file anew, in place; returns its new id.

    Weights and tables stay as they are. The old id is added to `replaces`, so that files with it still decode.
    LicError for a model that only decodes.
    """
    from codec.coding.models import load_model

    metadata, tensors = read_model(path)
    backend = load_model(path, precision="fp32").backend
    check_encodes(backend)
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("graph.")}
    return write_model(path, metadata["config"], tensors | graphs_of(backend.network, tensors), _successor(metadata))


def write_decoder(path: Path | str, to: Path | str) -> str:
    """Write what a model file has for decoding alone, some 60 % of it, as a model file `to`; returns its id.

    It decodes the files of the whole model, whose id is in its entry `replaces`.
    """
    metadata, tensors = read_model(path)
    kept = {name: tensor for name, tensor in tensors.items() if not is_of_encoder(name)}
    return write_model(to, metadata["config"], kept, _successor(metadata))


def _successor(metadata: dict[str, str]) -> dict[str, str]:
    """The metadata of a model that decodes the files of the one with this metadata."""
    return metadata | {"replaces": ",".join([metadata["id"], *replaced(metadata)])}


def write_graphs(path: Path | str, folder: Path, replace: bool = False) -> list[Path]:
    """Write the graphs of a model file as ONNX files with their weights; returns their paths.

    LicError if the model has no graphs, or if a file exists and `replace` is false.
    """
    require("onnx", "train", "lic export")
    import onnx

    _, tensors = read_model(path)
    files = {name: folder / f"{name}.onnx" for name in NAMES if f"graph.{name}" in tensors}
    if not files:
        raise LicError(f"{path} has no graphs")
    refuse_existing([str(file) for file in files.values()], replace)
    folder.mkdir(parents=True, exist_ok=True)
    for name, file in files.items():
        model, weights = onnx.load_from_string(tensors[f"graph.{name}"].tobytes()), graph_weights(tensors, name)
        for declared in model.graph.initializer:
            if declared.name in weights:
                declared.CopyFrom(onnx.numpy_helper.from_array(weights[declared.name], declared.name))
        write_atomically(file, model.SerializeToString(), replace=replace)
    return list(files.values())


def _check(network: Network, theirs: Backend) -> None:
    """LicError unless the graphs compute what the network does."""
    from codec.coding.torch_backend import TorchBackend

    ours, (height, width) = TorchBackend(network), CHECKED
    bf16, network.bf16 = network.bf16, False
    pixels = np.random.default_rng(0).integers(0, 256, (1, 3, height, width), np.uint8)
    try:
        for quality in {network.config.qualities[0], network.config.qualities[-1]}:
            v = ours.analyse(pixels, quality)
            _same("g_a", v, theirs.analyse(pixels, quality))
            area = full(v.shape[-2:])
            z = ours.hyper_analyse(v, quality)
            if z is not None:
                _same("h_a", z, theirs.hyper_analyse(v, quality), most=1, often=0.01)
            stored = None if z is None else network.constants_of(network.level_of(quality))
            steps = [next(backend.steps(z, area.coarse(CELL), area, quality, stored)) for backend in (ours, theirs)]
            _same("h_s", *(np.asarray(step.index) for step in steps), most=0)
            if z is not None:
                _same("h_s", *(step.mean for step in steps))
            y = [backend.quantize(v, steps[0], quality) for backend in (ours, theirs)]
            _same("quantize", *y, most=0)
            v_hat = ours.dequantize(y[0], steps[0], quality)
            images = [backend.synthesise(v_hat, quality, CHECKED) for backend in (ours, theirs)]
            _same("g_s", *images, most=1, often=0.01)
    finally:
        network.bf16 = bf16


def _same(name: str, ours: NDArray, theirs: NDArray, most: int | None = None, often: float = 1.0) -> None:
    """LicError unless arrays differ by at most `most`, and at most in a share `often`; by default by float rounding."""
    if ours.shape == theirs.shape:
        difference = np.abs(ours.astype(np.float64) - theirs)
        limit = 2e-5 * (1 + np.abs(ours).max()) if most is None else most
        if difference.max() <= limit and (most is None or (difference > 0).mean() <= often):
            return
    raise LicError(f"the graph of {name} does not compute what PyTorch does")
