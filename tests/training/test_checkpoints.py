"""Training checkpoints on disk: what was saved comes back, and no damage or foreign code gets in."""

import os
import pickle

import pytest
import torch

from codec.coding.models import ModelError, load_model
from codec.training.checkpoints import load_checkpoint, load_weights, save_checkpoint


def test_a_checkpoint_returns_what_was_saved(tmp_path):
    parts = {"version": 3, "config": {"a": ["b"]}, "average": {}, "optimizer": {}}
    state = {"step": 3, "best": float("inf"), "model": {"w": torch.randn(2, 2)}, **parts}
    save_checkpoint(tmp_path / "a.pt", state)
    loaded = load_checkpoint(tmp_path / "a.pt")
    assert torch.equal(loaded["model"].pop("w"), state["model"].pop("w")) and loaded == state
    assert os.listdir(tmp_path) == ["a.pt"]


class Trap:
    """Unpickling it makes a folder."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_loading_a_checkpoint_runs_no_foreign_code(tmp_path):
    sprung = tmp_path / "sprung"
    torch.save({"model": Trap(sprung)}, tmp_path / "zip.pt")
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps(Trap(sprung), protocol=2))
    for name in ("zip.pt", "pickle.pt"):
        with pytest.raises(ModelError, match=name):
            load_checkpoint(tmp_path / name)
    assert not sprung.exists()
    pickle.loads((tmp_path / "pickle.pt").read_bytes())
    assert sprung.exists()  # the trap does work


@pytest.mark.parametrize("state", [[1, 2], {"version": 3}, {"average": [1, 2]}])
def test_another_file_of_torch_is_not_a_checkpoint(tmp_path, state):
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(ModelError, match="a.pt is not a training checkpoint"):
        load_checkpoint(tmp_path / "a.pt")


def test_weights_are_read_from_exported_models_and_from_checkpoints(models, tmp_path):
    exported = load_weights(models / "hyper.safetensors")
    own = load_model(models / "hyper.safetensors").backend.network.state_dict()
    assert exported.keys() == own.keys() and all(torch.equal(exported[name], own[name]) for name in own)
    state = {"version": 3, "config": {}, "step": 0, "model": {}, "average": own, "optimizer": {}}
    save_checkpoint(tmp_path / "a.pt", state)
    assert load_weights(tmp_path / "a.pt").keys() == own.keys()


def test_what_holds_no_weights_is_an_error(tmp_path):
    (tmp_path / "text.safetensors").write_text("not a model")
    (tmp_path / "text.pt").write_text("not a checkpoint")
    save_checkpoint(tmp_path / "other.pt", {"model": {}})
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    for name in ("text.safetensors", "text.pt", "other.pt", "tensor.pt"):
        with pytest.raises(ModelError, match=name):
            load_weights(tmp_path / name)


def test_weights_of_a_damaged_model_are_refused(models, tmp_path):
    """As by load_model, whose tests have every kind of damage."""
    data = bytearray((models / "fixed.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "damaged.safetensors").write_bytes(data)
    with pytest.raises(ModelError, match="damaged.safetensors"):
        load_weights(tmp_path / "damaged.safetensors")
