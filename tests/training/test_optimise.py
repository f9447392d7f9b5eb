"""How weights move: groups and their rates, frozen parts, schedules."""

import math

import numpy as np
import pytest
import torch
from shared import TINY, untrained

from codec.config import TrainConfig
from codec.training.optimise import groups, learning_rate, optimizer


def model():
    return untrained(**TINY, lmbda=[0.01])


def test_learning_rate_rises_stays_and_falls():
    c = TrainConfig(steps=1000, warmup=100, decay=0.3, lr=0.01)
    rate = [learning_rate(step, c) for step in range(1000)]
    assert np.allclose(np.diff(rate[:100]), 1e-4) and rate[99:701] == [0.01] * 602
    assert np.allclose(np.diff(rate[701:996]), -0.01 / 300) and min(rate[700:]) == pytest.approx(1e-4)
    flat = TrainConfig(steps=10, warmup=0, decay=0.0, lr=0.01)
    assert [learning_rate(step, flat) for step in range(10)] == [0.01] * 10


@pytest.mark.parametrize("schedule", ["linear", "cosine", "steps"])
def test_every_schedule_begins_at_the_peak_and_ends_at_a_hundredth(schedule):
    c = TrainConfig(steps=1000, warmup=0, decay=0.5, lr=0.01, schedule=schedule)
    rate = [learning_rate(step, c) for step in range(1001)]
    assert rate[:501] == [0.01] * 501 and rate[1000] == pytest.approx(1e-4)
    assert np.all(np.diff(rate) <= 0)
    middle = {"linear": 0.005, "cosine": 0.01 * (0.01 + 0.99 / 2), "steps": 1e-4}[schedule]
    assert rate[750] == pytest.approx(middle)
    if schedule == "cosine":
        assert rate[600] == pytest.approx(0.01 * (0.01 + 0.99 * (1 + math.cos(math.pi / 5)) / 2))
    if schedule == "steps":
        assert rate[749] == pytest.approx(1e-3)


def test_every_parameter_is_in_one_group_with_the_factor_of_its_part():
    net = model()
    factor = {id(p): group["factor"] for group in groups(net, TrainConfig()) for p in group["params"]}
    assert len(factor) == len(list(net.parameters()))
    for name, parameter in net.named_parameters():
        wanted = 0.1 if ".shortcut" in name else 5 if name.startswith("prior.") else 1
        assert factor[id(parameter)] == wanted, name


def test_the_last_part_that_names_a_parameter_counts():
    c = TrainConfig(lr_of=["g_a=2", "g_a.shortcut=3", "h_s.mean=4"])
    net = model()
    factor = {id(p): group["factor"] for group in groups(net, c) for p in group["params"]}
    of = {name: factor[id(p)] for name, p in net.named_parameters()}
    assert of["g_a.stem.weight"] == 2 and of["g_a.shortcut.weight"] == 3 and of["g_s.stem.weight"] == 1
    assert of["h_s.mean.1.weight"] == 4 and of["h_s.scale.weight"] == 1


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "soap"])
def test_frozen_parts_do_not_move_and_all_others_do(name):
    c = TrainConfig(optimizer=name, lr=0.1, freeze=["g_a", "h_s.mean"])
    net = model()
    step = optimizer(net, c)
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    sum(p.sum() for p in net.parameters()).backward()
    step.step()
    for n, p in net.named_parameters():
        frozen = n.startswith(("g_a.", "h_s.mean."))
        assert torch.equal(p, before[n]) == frozen and p.requires_grad != frozen, n


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(freeze=["g_x"]), "no parameter belongs to 'g_x'; there are centroid, g_a, g_s"),
        (dict(lr_of=["priors=2"]), "no parameter belongs to 'priors'"),
        (dict(lr_of=["prior"]), "entries like prior=5, not 'prior'"),
        (dict(freeze=["g_a", "g_s", "h_a", "h_s", "prior", "centroid", "shrink"]), "nothing is left to train"),
    ],
)
def test_a_part_that_does_not_exist_is_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        groups(model(), TrainConfig(**options))
