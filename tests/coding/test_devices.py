"""What runs on a GPU keeps its devices apart and waits for nothing, seen without one (tests/tools/pretend_gpu.py)."""

import contextlib
from concurrent.futures import Executor, Future

import numpy as np
import pytest
import torch
from pretend_gpu import GPU, OnGPU, PretendGPU
from shared import ALL_RATES, FACTORIZED, HYPER, ONE_LAMBDA, SCALE, TINY, tiny_network

import benchmarks.gpu
import codec
from benchmarks.gpu import decode_all, encode_all
from codec import config as configuration
from codec.coding.models import export, load_model
from codec.evaluation.codecs import lic_codec
from codec.network.model import Network, build
from codec.network.pixels import to_tensor
from codec.network.quantize import SampleNoise
from codec.training.distributed import World
from codec.training.run import Run
from codec.training.validate import validate

AdamW = torch.optim.AdamW


@pytest.fixture
def gpu(monkeypatch):
    """A PretendGPU, entered."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(torch, "inference_mode", torch.no_grad)  # its tensors cannot be made here
    shapes = lambda config: {name: tuple(t.shape) for name, t in build(config).state_dict().items()}  # noqa: E731
    monkeypatch.setattr(
        codec.coding.models, "shapes_of", shapes
    )  # the pretended GPU is PyTorch's device without memory
    with PretendGPU() as PretendGPU.active:
        yield PretendGPU.active


class NoiseOfCPU(SampleNoise):
    """The pretended GPU has no random generators."""

    def __init__(self, seeds, device):
        super().__init__(seeds, torch.device("cpu"))

    def __call__(self, x):
        return OnGPU(super().__call__(torch.empty(x.shape)))


class PlainAdamW(AdamW):
    """Nor has it fused kernels, which alone know what `found_inf` is for."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs | {"fused": False})

    def step(self):
        del self.found_inf
        super().step()


class InThisThread(Executor):
    def __init__(self, *_):
        pass

    def submit(self, work, *args):
        future = Future()
        future.set_result(work(*args))
        return future


@pytest.mark.usefixtures("gpu")
def test_the_pretended_gpu_is_strict():
    x = torch.ones(3).to(GPU)
    x[1:].mul_(3)
    assert x.cpu().tolist() == [1, 3, 3] and (x * 2.0).device == GPU
    with pytest.raises(RuntimeError, match="same device"):
        x + torch.ones(3)
    with pytest.raises(RuntimeError, match="same device"):
        torch.nn.Conv1d(1, 1, 1)(x[None])
    with pytest.raises(TypeError, match="numpy"):
        np.asarray(x)


@pytest.mark.parametrize(
    "transform, prior, lmbda",
    [
        ("fast", FACTORIZED, ALL_RATES), ("fast", HYPER, ALL_RATES), ("fast", HYPER, ONE_LAMBDA),
        ("bmshj2018", SCALE, ONE_LAMBDA),
    ],
)  # fmt: skip
def test_a_training_step_mixes_no_devices_and_reads_nothing_back(gpu, transform, prior, lmbda, photos, monkeypatch):
    monkeypatch.setattr("codec.training.run.SampleNoise", NoiseOfCPU)
    monkeypatch.setattr(torch.optim, "AdamW", PlainAdamW)
    model = dict(transform=transform, prior=prior, lmbda=lmbda, N=8, M=16, blocks=[1, 1], hyper_N=8, hyper_M=4)
    config = configuration.from_dict({"model": model, "train": {"batch": 4, "accumulate": 2, "val_qualities": [50]}})
    run = Run(config, GPU)
    x = torch.cat([to_tensor(photo) for photo in photos]).to(GPU)
    run.begin(x)
    before = [parameter.cpu() for parameter in run.average.parameters()]
    gpu.read.clear(), gpu.sent.clear()
    means = run.update(x)
    assert not gpu.read and len(gpu.sent) == 1  # quality and lambda of the samples
    assert all(np.isfinite(mean.item()) for mean in means.values())
    assert any((a != b.cpu()).any() for a, b in zip(before, run.average.parameters(), strict=True))
    figures = validate(run.average, photos[:1], config, run.compare, World())
    assert np.isfinite(figures["rd_loss"])


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("prior", [FACTORIZED, HYPER])
def test_a_gpu_exports_codes_and_decodes(prior, photos, tmp_path, monkeypatch):
    """In float32 the pretended GPU, which is known to one thread only, computes what the CPU does."""
    monkeypatch.setattr(benchmarks.gpu, "ThreadPoolExecutor", InThisThread)
    path = tmp_path / "model.safetensors"
    photos = photos[:2]
    export(tiny_network(photos[0], ALL_RATES, prior, **TINY).to(GPU), path)
    here, there = load_model(path, str(GPU), "fp32"), load_model(path, "cpu", "fp32")
    assert here.backend.network.device == GPU
    files = [here.compress(photo, 60) for photo in photos]
    assert files == [there.compress(photo, 60) for photo in photos] == encode_all(here, photos, 60)
    for data, image in zip(files, decode_all(here, files), strict=True):
        assert image.tobytes() == here.decompress(data).tobytes() == there.decompress(data).tobytes()
    assert here.decompress(files[0], region=(3, 5, 20, 10)) == there.decompress(files[0], region=(3, 5, 20, 10))
    assert here.estimate(photos[0], 60).bits == pytest.approx(there.estimate(photos[0], 60).bits, rel=1e-6)
    assert here.compress_to(photos[0], len(files[0])) == there.compress_to(photos[0], len(files[0]))


@pytest.fixture
def two_gpus(monkeypatch) -> list[int]:
    """Two GPUs that are not there; the numbers of those that were chosen."""
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    return chosen


def test_each_process_of_torchrun_has_a_gpu_of_its_own(two_gpus, monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert (codec.pick_device("auto"), codec.pick_device("cuda"), codec.pick_device("cpu")) == ("cuda", "cuda", "cpu")
    assert two_gpus == []  # whoever set one himself keeps it
    for rank in ("0", "1", "2"):
        monkeypatch.setenv("LOCAL_RANK", rank)
        codec.pick_device("auto")
    codec.pick_device("cpu")
    assert two_gpus == [0, 1, 0]


def test_an_evaluation_names_devices_as_its_processes_take_them(two_gpus, models, monkeypatch):
    model = load_model(models / "tiny.safetensors")
    monkeypatch.setattr(Network, "device", torch.device("cuda", 0))
    monkeypatch.setattr(codec.evaluation.cost, "kmac_of", lambda _: (1.0, 1.0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
    assert codec.pick_device(lic_codec(model).device) == "cuda"
