"""A training step stays on its device: without a GPU at hand, on `meta`, whose tensors have a shape and no content.

Elementwise operations that mix it with the CPU fail, and so does whatever reads a value back, which on a GPU would wait
for everything before it. Only autocast, the random generators and the fused optimiser do not know it.
"""

import contextlib

import pytest
import torch

import codec
from codec.config import ModelConfig
from codec.distortion import distortion
from codec.model import build
from train import losses

SMALL = dict(N=8, M=16, blocks=[1, 1], hyper_N=8, hyper_M=4)
META = torch.device("meta")


@pytest.mark.parametrize("transform", ["fast", "bmshj2018"])
@pytest.mark.parametrize("prior", ["factorized", "scale-hyperprior", "mean-scale-hyperprior"])
@pytest.mark.parametrize("lmbda", [[0.0009, 0.18], [0.013]], ids=["all rates", "one lambda"])
def test_a_training_step_mixes_no_devices_and_reads_nothing_back(transform, prior, lmbda, monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    config = ModelConfig(transform=transform, prior=prior, lmbda=lmbda, **SMALL)
    model = build(config).to(META).train()
    x = torch.empty(4, 3, 128, 64, device=META)
    quality = torch.empty(4, device=META) if config.variable_rate else None
    terms = losses(model, x, quality, torch.empty(4, device=META), distortion("mse", META))
    terms["loss"].mean().backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    assert norm.device == META and {p.grad.device for p in model.parameters() if p.grad is not None} == {META}


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
