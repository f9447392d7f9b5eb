"""Fixtures of all tests: photographs, four tiny models that are not trivial, and folders to work in."""

import multiprocessing
import pickle
import signal
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image
from shared import ALL_RATES, FACTORIZED, HYPER, ONE_LAMBDA, SERVER, tiny_network, train_folders

import entropy
from codec import machine
from codec.cli import main
from codec.coding.codec import Codec
from codec.coding.models import export, load_model
from codec.evaluation import evaluate, metrics
from codec.training.log import Log

torch.set_num_threads(1)  # the networks here are too small for more
for number in {"SIGINT", "SIGHUP"} & set(signal.Signals.__members__):  # which a test behind nohup or & would ignore
    if signal.getsignal(signal.Signals[number]) == signal.SIG_IGN:
        signal.signal(signal.Signals[number], signal.default_int_handler if number == "SIGINT" else signal.SIG_DFL)
# no deadline: a first example may wait for a compiler, any for a busy machine
settings.register_profile("lic", deadline=None, max_examples=50)
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


@pytest.fixture(scope="session")
def models(photo, tmp_path_factory) -> Path:
    """A folder with four exported models: of all rates tiny and hyper, which has a context, of one lambda fixed and
    hyper_fixed.
    """
    folder = tmp_path_factory.mktemp("models")
    for name, lmbda, prior, context in (
        ("tiny", ALL_RATES, FACTORIZED, 0), ("fixed", ONE_LAMBDA, FACTORIZED, 0),
        ("hyper", ALL_RATES, HYPER, 4), ("hyper_fixed", ONE_LAMBDA, HYPER, 0),
    ):  # fmt: skip
        export(tiny_network(photo, lmbda, prior, context=context), folder / f"{name}.safetensors")
    return folder


@pytest.fixture
def tiny(models) -> Codec:
    """The all-rates model with a factorized prior, in fp32."""
    return load_model(models / "tiny.safetensors", precision="fp32")


@pytest.fixture
def fixed(models) -> Codec:
    """The model of one lambda with a factorized prior, in fp32."""
    return load_model(models / "fixed.safetensors", precision="fp32")


@pytest.fixture
def hyper(models) -> Codec:
    """The all-rates model with a hyperprior and a context, in fp32."""
    return load_model(models / "hyper.safetensors", precision="fp32")


@pytest.fixture
def hyper_fixed(models) -> Codec:
    """The model of one lambda with a hyperprior, in fp32."""
    return load_model(models / "hyper_fixed.safetensors", precision="fp32")


@pytest.fixture(params=["tiny", "hyper"])
def torch_model(models, request) -> Codec:
    """Each of the all-rates models, in fp32."""
    return load_model(models / f"{request.param}.safetensors", precision="fp32")


def in_both(*names: str) -> list:
    """Parameters for models of these names in each backend."""
    return [pytest.param((name, backend), id=f"{name}-{backend}") for name in names for backend in ("torch", "onnx")]


@pytest.fixture(params=in_both("tiny", "hyper"))
def model(models, request) -> Codec:
    """Each of the all-rates models, in fp32, in each backend."""
    name, backend = request.param
    return load_model(models / f"{name}.safetensors", precision="fp32", backend=backend)


@pytest.fixture(params=in_both("fixed", "hyper_fixed"))
def model_fixed(models, request) -> Codec:
    """Each of the models of one lambda, in fp32, in each backend."""
    name, backend = request.param
    return load_model(models / f"{name}.safetensors", precision="fp32", backend=backend)


@pytest.fixture
def unseen(monkeypatch):
    """Trainings whose model is not drawn for TensorBoard, which is half of what the tiny ones take, and that do not
    ask git, which takes another tenth.
    """
    monkeypatch.setattr(machine, "git", lambda _: None)
    for name in ("graph", "_histograms"):
        monkeypatch.setattr(Log, name, lambda *_: None)


@pytest.fixture
def unmeasured(unseen, request, monkeypatch):
    """And whose exported model is not measured beside JPEG, which is half of what is left; but for tests of that."""
    if "measured" not in request.fixturenames:

        def publish(network, about, _, out, metrics):
            return export(network, out / "model.safetensors", about)

        monkeypatch.setattr("codec.evaluation.publish.publish", publish)


@pytest.fixture
def measured():
    """For tests of what a training measures at its end."""


@pytest.fixture
def served(monkeypatch):
    """Processes that a program spawns come from a server that has imported everything; they see the environment as it
    was before the test.
    """
    forkserver.ensure_running()  # not first where a program ignores a signal, which all its children would
    for module in (multiprocessing, torch.multiprocessing):
        monkeypatch.setattr(module, "get_context", lambda _: SERVER)


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


@pytest.fixture
def here(tmp_path, monkeypatch, photos):
    """An empty folder to work in, on the CPU, with training images in data/ and one of 64x64 in val/."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    train_folders(tmp_path, photos)
    return tmp_path


@pytest.fixture
def shell(models, tmp_path, monkeypatch) -> Path:
    """An empty folder to work in, on the CPU, the test models on the search path, as if the coder had been compiled."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(entropy, "kernels_cached", lambda *_, **__: True)
    monkeypatch.setenv("LIC_MODELS", str(models))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def fails(lic, shell):
    """fails(*argv) -> the only line of stderr of a command that must fail and leave the folder as it was."""

    def run(*argv) -> str:
        before = {path: path.stat().st_mtime_ns for path in shell.rglob("*")}
        code, out, err = lic(*argv)
        assert (code, out, len(err)) == (1, "", 1), err
        assert {path: path.stat().st_mtime_ns for path in shell.rglob("*")} == before
        return err[0]

    return run


@pytest.fixture
def lic(capsys, shell):
    """lic(*argv) -> exit code, stdout, lines of stderr."""

    def run(*argv) -> tuple[int, str, list[str]]:
        code = main([str(arg) for arg in argv])
        out, err = capsys.readouterr()
        return code, out, err.splitlines()

    return run


@pytest.fixture
def small(tiny, photo, shell) -> bytes:
    """A small file, also stored as a.lic."""
    data = tiny.compress(photo.crop((30, 20, 60, 40)), 20)
    assert len(data) < 400
    (shell / "a.lic").write_bytes(data)
    return data


@pytest.fixture
def threads(monkeypatch):
    """Threads instead of processes, which take seconds to begin; tests/evaluation/test_evaluate_again.py has those."""
    monkeypatch.setattr(evaluate, "_processes", ThreadPoolExecutor)


@pytest.fixture(autouse=True)
def without_cvvdp(monkeypatch):
    """Evaluations as where the extra `perceptual` is not installed: its package takes seconds to begin."""
    monkeypatch.setattr(metrics, "measurable", lambda: ("psnr", "ms-ssim", "ssimulacra2"))
