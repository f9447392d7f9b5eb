"""Models on disk: exported once, the same for ever, and no damage or foreign code gets in."""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save
from shared import ALL_RATES, FACTORIZED, HYPER, ONE_LAMBDA, SCALE, tiny_network

from codec import FormatError, load
from codec.coding import models as checkpoint
from codec.coding.codec import Codec
from codec.coding.export import add_graphs, write_decoder
from codec.coding.models import WEIGHTS, ModelError, export, find_model, load_model
from codec.coding.tables import CodecTables
from codec.coding.torch_backend import TorchBackend


@pytest.mark.parametrize("prior", [FACTORIZED, HYPER, SCALE])
@pytest.mark.parametrize("lmbda, quality", [(ALL_RATES, 60), (ONE_LAMBDA, None)])
def test_the_loaded_model_is_the_exported_one(photo, tmp_path, lmbda, quality, prior):
    model = tiny_network(photo, lmbda, prior)
    id = export(model, tmp_path / "a.safetensors", {"command": "python train.py"})
    loaded = load_model(tmp_path / "a.safetensors", precision="fp32")
    assert loaded.id == id and loaded.config == model.config
    codec = Codec(TorchBackend(model), CodecTables.from_network(model), id)
    assert loaded.compress(photo, quality) == codec.compress(photo, quality)
    assert checkpoint.about(tmp_path / "a.safetensors")["command"] == "python train.py"
    assert export(loaded.backend.network, tmp_path / "b.safetensors") == id  # rounding what is rounded changes nothing


def test_the_id_belongs_to_weights_and_tables(photo, tmp_path, fixed):
    model = tiny_network(photo, ONE_LAMBDA)
    assert export(model, tmp_path / "a.safetensors") == fixed.id
    with torch.no_grad():
        model.g_s.stem.bias[0] += 0.01
    assert export(model, tmp_path / "a.safetensors") != fixed.id


def test_the_exact_path_is_stored_in_full_precision(models):
    with safe_open(models / "hyper.safetensors", framework="np") as file:
        dtypes = {name: file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118
    exact = [name for name in dtypes if name.startswith("h_s.") and not name.startswith("h_s.mean.")]
    assert len(exact) > 10 and {dtypes[name] for name in exact} == {np.dtype(np.float32)}
    assert np.float16 in dtypes.values() and dtypes["tables.outer"] == np.int32


def test_a_model_from_before_there_were_hyperpriors_is_factorized_and_not_lapped():
    path = WEIGHTS / "fast-factorized.safetensors"
    assert not {"prior", "lapped"} & json.loads(checkpoint.about(path)["config"]).keys()
    config = load_model(path).config
    assert (config.prior, config.lapped) == ("factorized", False)


def test_every_flipped_bit_and_truncation_of_a_model_is_an_error(models, tmp_path):
    data = (models / "fixed.safetensors").read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    rng = random.Random(0)
    places = [*range(8), *rng.sample(range(8, header), 200), *rng.sample(range(header, len(data)), 30)]
    places += [data.index(key) + 1 for key in (b'"format"', b'"config"', b'"id"')]
    path = tmp_path / "damaged.safetensors"
    for place in places:
        damaged = bytearray(data)
        damaged[place] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(ModelError, match="damaged.safetensors"):
            load_model(path)
    for length in (0, 7, 100, header, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(ModelError, match="damaged.safetensors"):
            load_model(path)


def test_what_is_not_a_model_is_an_error(tmp_path):
    from safetensors.torch import save_file

    (tmp_path / "text.safetensors").write_text("not a model")
    save_file({"weight": torch.zeros(3)}, tmp_path / "foreign.safetensors")
    for name in ("text", "foreign", "missing"):
        with pytest.raises(ModelError, match=name):
            load_model(tmp_path / f"{name}.safetensors")
    with pytest.raises(ModelError):
        load_model(tmp_path)


def forged(path: Path, tmp_path: Path, change) -> Path:
    """A model that `change(config, tensors)` has changed, its id made to fit."""
    tensors, about = load_file(path), checkpoint.about(path)
    config = json.loads(about["config"])
    text = json.dumps(change(config, tensors) or config)
    (tmp_path / "forged.safetensors").write_bytes(
        save(tensors, about | {"config": text, "id": checkpoint._identify(text, tensors)})
    )
    return tmp_path / "forged.safetensors"


def config_with(**values):
    return lambda config, tensors: config.update(values)


def tensor_with(name: str, value: Callable[[np.ndarray], np.ndarray]):
    return lambda config, tensors: tensors.update({name: value(tensors[name])})


def first(value: float) -> Callable[[np.ndarray], np.ndarray]:
    """The array with another first value."""
    return lambda array: np.concatenate([np.array([value], array.dtype), array.flat[1:]]).reshape(array.shape)


def without(name: str):
    return lambda config, tensors: tensors.__delitem__(name)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda config, tensors: [1, 2], "not a table"),
        (config_with(depth=3), "unknown key 'depth'"),
        (config_with(N=16.0), "N must be int"),
        (config_with(N=10**9), "N must be in"),
        (config_with(blocks=[10**9, 1]), "at most 64"),
        (config_with(hyper_M=4000), "its configuration wants"),
        (config_with(transform="slow"), "transform must be bmshj2018 or fast, not 'slow'"),
        (config_with(M=20), "context.bias is .*; its configuration wants"),
        (config_with(lmbda=[float("nan")]), "lmbda must be one value"),
        (config_with(lmbda=[0.01, 0.01]), "lmbda must be one value"),
        (without("g_s.stem.bias"), "g_s.stem.bias is missing"),
        (tensor_with("g_s.stem.bias", first(np.nan)), "g_s.stem.bias is float32, or not finite"),
        (tensor_with("g_s.stem.bias", lambda array: array.astype(np.int32)), "g_s.stem.bias is int32"),
        (tensor_with("h_s.scale.weight", first(1e30)), "can reach"),
        (without("tables.y_freqs"), "no tables.y_freqs"),
        (tensor_with("tables.freqs", first(0)), "a frequency is 0"),
        (tensor_with("tables.step", lambda array: array[:5]), "tables.step is not int32"),
        (tensor_with("tables.inner", lambda array: array.astype(np.float32)), "tables.inner is not int32"),
        (without("tables.outer"), "tables.outer is not int32"),
    ],
)
def test_a_model_that_fits_its_id_and_makes_no_sense_is_an_error_of_one_line(models, tmp_path, change, message):
    path = forged(models / "hyper.safetensors", tmp_path, change)
    with pytest.raises(ModelError, match=message) as caught:
        load_model(path)
    assert len(str(caught.value).splitlines()) == 1


def test_a_model_of_other_tables_has_another_id(models, tmp_path, photo):
    """So that a file of the one is never decoded by the other."""
    path = forged(models / "hyper.safetensors", tmp_path, tensor_with("tables.step", first(300)))
    original, changed = load_model(models / "hyper.safetensors"), load_model(path)
    with pytest.raises(FormatError, match=f"{original.id}.*{changed.id}"):
        changed.decompress(original.compress(photo, 50))


def test_a_type_that_numpy_does_not_have_is_an_error(models, tmp_path):
    about = checkpoint.about(models / "fixed.safetensors")
    path = tmp_path / "a.safetensors"
    path.write_bytes(safetensors.torch.save({"g_s.stem.bias": torch.zeros(3, dtype=torch.bfloat16)}, about))
    with pytest.raises(ModelError, match="a.safetensors is not an exported model"):
        load_model(path)


def test_models_are_found_by_name_and_by_id_in_the_folders_of_LIC_MODELS(models, tmp_path, monkeypatch, tiny, fixed):
    monkeypatch.setenv("LIC_MODELS", os.pathsep.join([str(tmp_path / "none"), str(models)]))
    assert find_model(id=tiny.id) == models / "tiny.safetensors"
    assert find_model("fixed") == models / "fixed.safetensors"
    assert find_model("fixed", id=tiny.id) == models / "fixed.safetensors"  # who names a model wants that one
    assert load("fixed").id == fixed.id
    monkeypatch.setenv("LIC_MODELS", "")
    with pytest.raises(ModelError, match=f"{tiny.id}.*LIC_MODELS"):
        find_model(id=tiny.id)
    with pytest.raises(ModelError, match="'fixed'.*LIC_MODELS"):
        load("fixed")


@pytest.mark.parametrize("backend", ["onnx", "torch"])
@pytest.mark.parametrize("name", ["tiny", "hyper", "hyper_fixed"])
def test_the_decoder_of_a_replaced_model_reads_its_files_and_writes_none(name, backend, models, photo, tmp_path):
    whole = load_model(models / f"{name}.safetensors", precision="fp32", backend=backend)
    quality = whole.qualities[len(whole.qualities) // 2]
    data = whole.compress(photo, quality)
    path = tmp_path / "former.safetensors"
    assert write_decoder(models / f"{name}.safetensors", path) == checkpoint.about(path)["id"] != whole.id
    assert path.stat().st_size < 0.9 * (models / f"{name}.safetensors").stat().st_size
    former = load_model(path, precision="fp32", backend=backend)
    assert former.decompress(data).tobytes() == whole.decompress(data).tobytes()
    assert former.backend.parameters < whole.backend.parameters
    with pytest.raises(ValueError, match="only decodes"):
        former.compress(photo, quality)
    with pytest.raises(ValueError, match="only decodes" if backend == "torch" else "PyTorch"):
        former.estimate(photo, quality)
    with pytest.raises(ValueError, match="only decodes"):
        add_graphs(path)
    with pytest.raises(ValueError, match="only decodes"):
        former.latent(np.zeros((1, 3, 32, 32), np.uint8), quality)


def test_the_decoder_of_a_replaced_model_is_found_by_its_former_id(models, lic, photo, tmp_path, monkeypatch):
    write_decoder(models / "hyper.safetensors", tmp_path / "former.safetensors")
    monkeypatch.setenv("LIC_MODELS", str(tmp_path))
    assert find_model(id=checkpoint.about(models / "hyper.safetensors")["id"]) == tmp_path / "former.safetensors"
    assert "former (only decodes): id" in lic("models")[1]
    for name in "ab":
        photo.save(tmp_path / f"{name}.png")
    code, _, err = lic("compress", tmp_path / "a.png", tmp_path / "b.png", "-o", tmp_path / "out", "-m", "former")
    assert (code, err) == (1, ["lic: this model only decodes: it is kept for the files that it wrote"])  # told once
