"""SOAP: faster than Adam where a gradient's coordinates are mixed, and as careful with steps that are not finite."""

import copy

import pytest
import torch
from torch import nn

from codec.config import TrainConfig
from codec.training.optimise import optimizer, restore
from codec.training.soap import EVERY, LARGEST, SOAP, moments


def minimise(name: str, steps: int) -> float:
    """What is left of a badly scaled and turned parabola of a matrix."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(n, n, generator=generator))[0] for n in (12, 8))
    scales = torch.logspace(0, -3, 12)[:, None] * torch.logspace(0, -3, 8)
    net = nn.Linear(8, 12, bias=False)
    nn.init.constant_(net.weight, 0.5)
    step = optimizer(net, TrainConfig(optimizer=name, lr=0.02))
    for _ in range(steps):
        step.zero_grad()
        loss = (scales * (left.T @ net.weight @ right)).square().sum()
        loss.backward()
        step.step()
    return loss.item()


def test_it_is_faster_where_coordinates_are_mixed():
    assert minimise("soap", 300) < 0.1 * minimise("adam", 300)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 4, 1), nn.PReLU(4))


def train(net: nn.Module, step: SOAP, batches: list) -> None:
    for x in batches:
        step.zero_grad()
        net(x).square().mean().backward()
        step.step()


@pytest.mark.parametrize("after", [0, 1, EVERY])
def test_a_step_that_is_not_finite_leaves_everything_as_it_was(after):
    net = model()
    step, x = optimizer(net, TrainConfig(optimizer="soap", weight_decay=0.1)), torch.randn(EVERY + 2, 2, 3, 8, 8)
    train(net, step, list(x[:after]))
    before, state = copy.deepcopy(net.state_dict()), copy.deepcopy(step.state_dict()["state"])
    step.found_inf = torch.ones(())
    train(net, step, [x[-1] * torch.nan])
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    for i, own in state.items():
        now = step.state_dict()["state"][i]
        assert all(torch.equal(now[key], own[key]) for key in ("steps", "first", "second", "moment_left") if key in own)
    step.found_inf = torch.zeros(())
    train(net, step, list(x))
    assert all(value.isfinite().all() for value in net.state_dict().values())


@pytest.mark.parametrize("steps", [1, EVERY - 1, EVERY + 3])
def test_it_goes_on_from_its_state_as_if_it_had_not_stopped(steps):
    x = list(torch.randn(2 * EVERY + 4, 2, 3, 8, 8))
    whole, parts, c = model(), model(), TrainConfig(optimizer="soap")
    train(whole, optimizer(whole, c), x)
    first = optimizer(parts, c)
    train(parts, first, x[:steps])
    second = optimizer(parts, c)
    restore(second, copy.deepcopy(first.state_dict()))
    train(parts, second, x[steps:])
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), parts.state_dict().values(), strict=True))


def test_vectors_and_long_sides_are_not_turned():
    assert moments(torch.zeros(5)) == {} and moments(torch.zeros(3, LARGEST + 1)).keys() == {"left"}
