"""ONNX graphs of a model: those that its file carries, and ordinary .onnx files for other runtimes (lic export).

A graph is stored without its weights, which are in the same file (codec/network/graphs.py). What goes into a file has
been checked: ONNX Runtime gives what PyTorch gives, the same integers where integers are exact.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from codec.coding.backend import Backend
from codec.coding.models import read_model, replaced, write_model
from codec.coding.onnx_backend import OnnxBackend, handed_over
from codec.coding.tiles import full
from codec.config import CELL
from codec.errors import LicError
from codec.files import refuse_existing, write_atomically
from codec.machine import require

if TYPE_CHECKING:
    from codec.network.model import Network

NAMES = ("g_a", "g_s", "h_a", "h_s")
CHECKED = (40, 72)  # pixels of the noise that graphs are checked on: sides that are mirrored at each stage


def graphs_of(network: Network, tensors: dict[str, NDArray]) -> dict[str, NDArray]:
    """What a model file with these tensors holds beside them for runtimes without PyTorch; nothing where there are no
    graphs of the network, which is told in a line on stderr.
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
    """Make the graphs of a model file anew, in place; returns its id. Weights and tables stay as they are, and files
    that name the id which it had before are still its own.
    """
    from codec.coding.models import load_model

    metadata, tensors = read_model(path)
    network = load_model(path, precision="fp32").backend.network
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("graph.")}
    about = metadata | {"replaces": ",".join([metadata["id"], *replaced(metadata)])}
    return write_model(path, metadata["config"], tensors | graphs_of(network, tensors), about)


def write_graphs(path: Path | str, folder: Path, replace: bool = False) -> list[Path]:
    """The graphs of a model file as ONNX files with their weights; returns their paths. LicError where there are none,
    or a file is there, unless it may be replaced.
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
        model, weights = onnx.load_from_string(tensors[f"graph.{name}"].tobytes()), handed_over(tensors, name)
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
    """LicError unless arrays are equal up to `most` in a share `often` of them, by default up to rounding."""
    if ours.shape == theirs.shape:
        difference = np.abs(ours.astype(np.float64) - theirs)
        limit = 2e-5 * (1 + np.abs(ours).max()) if most is None else most
        if difference.max() <= limit and (most is None or (difference > 0).mean() <= often):
            return
    raise LicError(f"the graph of {name} does not compute what PyTorch does")
