"""What the tests share: photographs, and two tiny models that are not trivial."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

from codec.checkpoint import export, load_model
from codec.config import ModelConfig
from codec.image import to_tensor
from codec.model import FactorizedCodec

torch.set_num_threads(1)  # the networks here are too small for more
settings.register_profile("lic", deadline=None)  # a first example may wait for a compiler, any for a busy machine
settings.load_profile("lic")


@pytest.fixture(scope="session")
def photos() -> list[Image.Image]:
    """Four RGB crops of the astronaut, 96x64 each."""
    from skimage import data

    astronaut = Image.fromarray(data.astronaut())
    return [astronaut.crop((x, y, x + 96, y + 64)) for x, y in ((160, 60), (40, 300), (300, 200), (200, 400))]


@pytest.fixture(scope="session")
def photo(photos) -> Image.Image:
    """One of them: the face."""
    return photos[0]


def tiny_model(photo: Image.Image, lmbda: list[float]) -> FactorizedCodec:
    """An untrained small codec, moved off its start so that no weight is zero and every layer has an effect."""
    torch.manual_seed(7)
    model = FactorizedCodec(ModelConfig(N=16, M=24, blocks=[1, 1], lmbda=lmbda))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter) * (0.1 * parameter.std() if parameter.any() else 0.001)
        quality = torch.full((1,), 50.0) if model.config.variable_rate else None
        y, _ = model.analyse(to_tensor(photo), model.level(quality))
        model.prior.scale.copy_(y.abs().mean(dim=(0, 2, 3)))
    return model


@pytest.fixture(scope="session")
def models(photo, tmp_path_factory) -> Path:
    """A folder with two exported models: tiny (all rates) and fixed (one lambda)."""
    folder = tmp_path_factory.mktemp("models")
    export(tiny_model(photo, [0.0009, 0.18]), folder / "tiny.safetensors")
    export(tiny_model(photo, [0.013]), folder / "fixed.safetensors")
    return folder


@pytest.fixture
def tiny(models) -> FactorizedCodec:
    """The all-rates model, in fp32."""
    return load_model(models / "tiny.safetensors", precision="fp32")


@pytest.fixture
def fixed(models) -> FactorizedCodec:
    """The model of one lambda, in fp32."""
    return load_model(models / "fixed.safetensors", precision="fp32")


@pytest.fixture
def cifar10(tmp_path, monkeypatch):
    """A copy of CIFAR-10 in its own layout, with 4 images a file; its checksums are taken as right."""
    from torchvision.datasets import cifar

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        batch = {"data": rng.integers(0, 256, (4, 3072), dtype=np.uint8), "labels": [0] * 4}
        (folder / name).write_bytes(pickle.dumps(batch))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["airplane"]}))
    monkeypatch.setattr(cifar, "check_integrity", lambda path, md5: (folder / path).is_file())
    return folder


def noise_image(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """An image of random pixels."""
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))
