"""Exported models on disk (safetensors, no pickle): written, found by name or id, and loaded.

An exported model is one file with all that decoding needs: weights, the configuration, the integer tables, which are
made once here and never rebuilt, and the networks as ONNX graphs (codec/network/graphs.py), so that it is read without
PyTorch. Its id is the SHA-256 of all of that, cut to 8 bytes; every .lic file carries the id of its model. Where graphs
were added to a model later, or networks left out, its entry `replaces` has the ids that it had before: it decodes
their files, too.
Its text (`__metadata__`): `id`, 16 hexadecimal digits; `replaces`, if it is there, such ids with commas between;
`config`, ModelConfig (codec/config.py) as JSON: `M` and `hyper_M` are the channels M of y and K of z, `transform` is
the family, `lmbda` two numbers if there are qualities. Its tensors: codec/coding/tables.py, and <layer>.weight and
<layer>.bias, in float32 those of h_s that decide an index.
A model that a better one replaces stays as its decoder alone (codec.coding.export.write_decoder), without g_a and h_a.
A model is given as a file, or searched by name or id in the package, then in the folders of the environment variable
LIC_MODELS.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors import safe_open

from codec.coding.backend import Backend
from codec.coding.codec import Codec
from codec.coding.onnx_backend import OnnxBackend
from codec.coding.tables import CodecTables
from codec.config import ModelConfig, check_precision, from_dict
from codec.errors import LicError
from codec.files import write_atomically
from codec.machine import require

if TYPE_CHECKING:
    import torch

    from codec.network.model import Network

FORMAT = "lic-model-1"
WEIGHTS = Path(__file__).parents[1] / "weights"
DEFAULT = "photo"  # for the eye; `fast` is the same network for squared error
ENCODER = "g_a", "h_a"  # the networks that decoding does without
OLDEST = {"prior": "factorized", "lapped": False}  # of models from before these fields, which do not have them


class ModelError(LicError):
    """A model file is damaged, of another kind, or not found."""


def _compact(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A weight as it is stored: large ones that no exact layer uses in half precision; they are most of the file."""
    large = name.startswith(("g_a.", "g_s.", "h_a.", "h_s.mean.", "context.")) and tensor.numel() >= 1024
    return tensor.half() if large else tensor


def export(network: Network, path: Path | str, about: dict[str, str] | None = None) -> str:
    """Write a network, its tables and its graphs as one .safetensors file; returns its id (16 hex digits).

    Weights are rounded, in place, to the precision in which they are stored before the tables are made from them.
    `about` is further metadata, free text by name (command, steps). If the network has layers without graphs, which a
    line on stderr says, only PyTorch can read the file. LicError if h_s is too large for exact arithmetic.
    """
    from codec.coding.export import graphs_of

    state = {name: _compact(name, t.detach().cpu().contiguous()) for name, t in network.state_dict().items()}
    network.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    tensors = {name: t.numpy() for name, t in state.items()} | CodecTables.from_network(network).to_tensors()
    config = json.dumps(vars(network.config), sort_keys=True)
    return write_model(path, config, tensors | graphs_of(network, tensors), about)


def write_model(path: Path | str, config: str, tensors: dict[str, np.ndarray], about: dict[str, str] | None) -> str:
    """Write a model file, with `about` as further metadata; returns its id."""
    from safetensors.numpy import save

    id = _identify(config, tensors)
    write_atomically(path, save(tensors, (about or {}) | {"format": FORMAT, "config": config, "id": id}))
    return id


def _identify(config: str, tensors: dict[str, np.ndarray]) -> str:
    """The id of a model with this configuration (JSON) and these tensors."""
    digest = hashlib.sha256(f"{FORMAT}\n{config}\n".encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype.str} {tensors[name].shape}\n".encode())
        digest.update(np.ascontiguousarray(tensors[name]).data)
    return digest.hexdigest()[:16]


def about(path: Path | str) -> dict[str, str]:
    """The metadata of an exported model, without reading its tensors; ModelError if the file is not one."""
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
    except FileNotFoundError:
        raise ModelError(f"no such model file: {path}") from None
    except Exception as error:  # safetensors raises a class of its own for damage
        raise ModelError(f"{path} is not an exported model: {_one_line(error)}") from error
    if metadata.get("format") != FORMAT or not {"config", "id"} <= metadata.keys():
        raise ModelError(f"{path} is not an exported model of format {FORMAT}")
    return metadata


def read_model(path: Path | str) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Metadata and tensors of an exported model; ModelError if it is damaged, which its id shows, or none."""
    metadata = about(path)
    try:
        with safe_open(path, framework="np") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if odd := [f"{name} is {t.dtype}" for name, t in tensors.items() if t.dtype.kind not in "biuf"]:
            raise TypeError(odd[0])  # bfloat16, say, where a package has taught NumPy about it
    except Exception as error:  # also for a type that NumPy does not have
        raise ModelError(f"{path} is not an exported model: {_one_line(error)}") from error
    if _identify(metadata["config"], tensors) != metadata["id"]:
        raise ModelError(f"{path} is damaged: its content does not have the id {metadata['id']!r}")
    return metadata, tensors


def load_model(
    path: Path | str, device: str | torch.device = "cpu", precision: str = "auto", backend: str = "torch"
) -> Codec:
    """An exported model, ready to compress and decompress.

    device: cpu or cuda; precision: auto or fp32; backend: torch, onnx (on the CPU only), or auto, which is onnx on the
    CPU if the model has graphs. ModelError if the file cannot be used, LicError if a package is missing.
    """
    metadata, tensors = read_model(path)
    if backend == "auto":
        backend = "onnx" if str(device) == "cpu" and "graph.g_s" in tensors else "torch"
    if backend == "torch":
        what = "the backend torch" if "graph.g_s" in tensors else "a model without graphs for ONNX Runtime"
        require("torch", "train", what)
    try:  # the id shows that nothing changed, not that the file was sound when it was made
        config = configuration(metadata["config"])
        if backend == "onnx":
            runs = _onnx(config, tensors, precision)
        else:
            aim = metadata.get("distortion", "mse"), float(metadata.get("mix", 0.25))
            runs = _torch(config, tensors, device, precision, aim)
        return Codec(runs, CodecTables.from_tensors(tensors, config), metadata["id"], replaced(metadata))
    except ValueError as error:
        raise ModelError(f"{path} is not a model that can be used: {_one_line(error)}") from error


def configuration(text: str) -> ModelConfig:
    """The ModelConfig of a model file from its JSON; LicError if it is not valid."""
    try:
        values = json.loads(text)
    except RecursionError:
        raise LicError("its configuration is nested too deeply") from None
    if not isinstance(values, dict):
        raise LicError("its configuration is not a table")
    return from_dict({"model": OLDEST | values}).model


def weights_of(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The weights among the tensors of a model file: no tables, no graphs; LicError if they are not finite floats."""
    weights = {name: t for name, t in tensors.items() if not name.startswith(("tables.", "graph."))}
    for name, t in weights.items():
        if t.dtype not in (np.float16, np.float32) or not np.isfinite(t).all():
            raise LicError(f"{name} is {t.dtype}, or not finite; float16 or float32 is needed")
    return weights


def is_of_encoder(name: str) -> bool:
    """Whether a tensor of a model file is of a network, or of its graph, that decoding does without."""
    return name.removeprefix("graph.").split(".")[0] in ENCODER


def _onnx(config: ModelConfig, tensors: dict[str, np.ndarray], precision: str) -> OnnxBackend:
    """The backend of a model file in ONNX Runtime; LicError if it has no graphs."""
    check_precision(precision)
    if "graph.g_s" not in tensors:
        raise LicError("it has no graphs for ONNX Runtime: take the backend torch")
    weights_of(tensors)
    return OnnxBackend(config, tensors)


def _torch(
    config: ModelConfig,
    tensors: dict[str, np.ndarray],
    device: str | torch.device,
    precision: str,
    aim: tuple[str, float],
) -> Backend:
    """The backend of a model file in PyTorch; LicError if weights and configuration do not fit each other.

    `aim`: the distortion that it was trained for, and the share of squared error in that.
    """
    import torch

    from codec.coding.torch_backend import TorchBackend
    from codec.network.model import build

    weights = weights_of(tensors)
    needed = shapes_of(config)
    given = {name: tuple(t.shape) for name, t in weights.items()}
    decoder = not any(is_of_encoder(name) for name in given)
    if decoder:
        needed = {name: shape for name, shape in needed.items() if not is_of_encoder(name)}
    if needed != given:
        name = min(name for name in needed | given if needed.get(name) != given.get(name))
        raise LicError(f"{name} is {given.get(name, 'missing')}; its configuration wants {needed.get(name, 'none')}")
    network = build(config)
    for name in [name for name, _ in network.named_children() if decoder and name in ENCODER]:
        delattr(network, name)
    network.load_state_dict({name: torch.from_numpy(t.astype(np.float32)) for name, t in weights.items()})
    return TorchBackend(network.eval().to(device).use_bf16(precision), *aim)


def shapes_of(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shapes of a network's weights by name, found without allocating any: a forged file may claim too much."""
    import torch

    from codec.network.model import build

    with torch.device("meta"):
        return {name: tuple(t.shape) for name, t in build(config).state_dict().items()}


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _folders() -> list[Path]:
    """The folders in which models are searched."""
    return [WEIGHTS, *(Path(p) for p in os.environ.get("LIC_MODELS", "").split(os.pathsep) if p)]


def shipped() -> Iterator[Path]:
    """The files of all models in the package and in the folders of LIC_MODELS, in the order of the search."""
    for folder in _folders():
        yield from sorted(folder.glob("*.safetensors"))


def _ids(path: Path) -> list[str]:
    """The id of an exported model and those that it replaces; an empty list for other files."""
    try:
        metadata = about(path)
    except ModelError:
        return []
    return [metadata["id"], *replaced(metadata)]


def replaced(metadata: dict[str, str]) -> list[str]:
    """The ids that a model had before, whose files it decodes, too; from its metadata."""
    return [id for id in metadata.get("replaces", "").split(",") if id]


def find_model(name: str | None = None, id: str | None = None) -> Path:
    """The file of a model, given by name or path, or by the id in a .lic file; ModelError if there is none."""
    if name is not None and Path(name).suffix == ".safetensors":
        return Path(name)
    known = list(shipped())
    for path in known:
        if path.stem == name if name is not None else id in _ids(path):
            return path
    wanted = f"named {name!r}" if name is not None else f"with id {id}"
    raise ModelError(
        f"no model {wanted} in {', '.join(map(str, _folders()))}; there are: "
        f"{', '.join(path.stem for path in known) or 'none'}. "
        "Give the path of its .safetensors file, or put its folder into LIC_MODELS"
    )


_shared: dict[tuple[str, str, str], Codec] = {}  # by id, device and backend


def shared_model(name: str | None = None, id: str | None = None, device: str = "cpu", backend: str = "auto") -> Codec:
    """The model that `find_model` finds, loaded once per process, device and backend. Do not change it."""
    if name is not None or (id, device, backend) not in _shared:
        path = find_model(name, id)
        own = about(path)["id"]
        if (own, device, backend) not in _shared:
            _shared[own, device, backend] = load_model(path, device, "auto", backend)
        if name is not None or id is None:
            return _shared[own, device, backend]
        _shared[id, device, backend] = _shared[own, device, backend]  # the id in a file may be a replaced one
    return _shared[id, device, backend]
