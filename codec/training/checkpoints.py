"""Training checkpoints on disk, and initial weights from a checkpoint or an exported model."""

import io
from pathlib import Path
from typing import Any

import torch
from torch import nn

from codec.coding.models import ModelError, read_model, weights_of
from codec.errors import LicError
from codec.files import write_atomically


def save_checkpoint(path: Path | str, state: dict[str, Any]) -> None:
    """A training state as one file, written atomically."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomically(path, buffer.getbuffer())


STATE = {"version": int, "config": dict, "step": int, "model": dict, "average": dict, "optimizer": dict}


def load_checkpoint(path: Path | str) -> dict[str, Any]:
    """The training state in a checkpoint; ModelError if the file is damaged or no checkpoint, OSError if unreadable.

    Only tensors and plain values are read, so that a forged file cannot run code.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch has a class of its own for every kind of damage
        raise ModelError(f"{path} is not an intact training checkpoint") from error
    if not isinstance(state, dict) or any(not isinstance(state.get(part), kind) for part, kind in STATE.items()):
        raise ModelError(f"{path} is not a training checkpoint, which has {', '.join(STATE)}")
    return state


def load_weights(path: Path | str) -> dict[str, torch.Tensor]:
    """The weights by name of an exported model, or the averaged ones of a checkpoint; ModelError for other files."""
    if Path(path).suffix == ".safetensors":
        _, tensors = read_model(path)
        return {name: torch.from_numpy(t).float() for name, t in weights_of(tensors).items()}
    return load_checkpoint(path)["average"]


def take_weights(model: nn.Module, path: Path | str) -> tuple[set[str], str]:
    """Load the weights of a file that have the names and shapes of the model's.

    Returns the names of those loaded, and a line on what was loaded, what is new and what was left out. LicError if the
    file is for one lambda and the model for all rates, or the other way round: their latents have other units.
    """
    own, given = model.state_dict(), load_weights(path)
    own_parts, given_parts = ({name.split(".")[0] for name in names} for names in (own, given))
    if (of_all_rates := "gain" in given_parts) != model.config.variable_rate:
        theirs, ours = ("all rates", "one lambda") if of_all_rates else ("one lambda", "all rates")
        raise LicError(f"{path} is of {theirs}, and its latent has other units than one of {ours}: change lmbda")
    kept = {name: t for name, t in given.items() if name in own and t.shape == own[name].shape}
    if ("h_a" in own_parts) != ("h_a" in given_parts):  # a prior of z is not one of y
        kept = {name: t for name, t in kept.items() if not name.startswith("prior.")}
    model.load_state_dict(kept, strict=False)
    partly = {name.split(".")[0] for name in kept}  # of these the part of the part is named

    def shown(names: set[str]) -> str:
        parts = {".".join(name.split(".")[: 1 + (name.split(".")[0] in partly)]) for name in names}
        return ", ".join(sorted(parts)) or "none"

    said = f"{len(kept)} of {len(own)} tensors from {path}; new: {shown(own.keys() - kept.keys())}"
    return set(kept), f"{said}; left out: {shown(given.keys() - kept.keys())}"
