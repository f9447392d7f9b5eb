"""The gradient rules that stand in for rounding and for the maximum."""

import pytest
import torch

from codec.network.quantize import SampleNoise, between, lower_bound, round_ste, uniform


def test_round_ste_rounds_half_to_even_and_passes_gradients_unchanged():
    x = torch.tensor([-1.5, -0.6, 0.5, 1.5, 2.49], requires_grad=True)
    y = round_ste(x)
    grad = torch.tensor([1.0, -2.0, 3.0, 0.0, 0.5])
    y.backward(grad)
    assert y.tolist() == [-2, -1, 0, 2, 2]
    assert torch.equal(x.grad, grad)


@pytest.mark.parametrize(
    "x, grad, passed",
    [
        (2.0, 1.0, True), (2.0, -1.0, True),  # above the bound
        (1.0, 1.0, True), (1.0, -1.0, True),  # at the bound
        (0.5, -1.0, True),  # below, and descent would raise x
        (0.5, 1.0, False),  # below, and descent would lower x further
    ],
)  # fmt: skip
def test_lower_bound_is_the_maximum_and_its_gradient_leads_back_above_it(x, grad, passed):
    x = torch.tensor(x, requires_grad=True)
    y = lower_bound(x, 1.0)
    y.backward(torch.tensor(grad))
    assert y.item() == max(x.item(), 1.0)
    assert x.grad.item() == (grad if passed else 0.0)


def test_noise_is_uniform_in_half_a_step_around_zero_and_passes_gradients_unchanged():
    torch.manual_seed(0)
    x = torch.linspace(-3, 3, 100_000, requires_grad=True)
    y = x + uniform(x)
    y.sum().backward()
    noise = (y - x).detach()
    assert noise.min() >= -0.5001 and noise.max() <= 0.5001  # y and the difference are rounded
    assert abs(noise.mean()) < 0.005 and noise.var().item() == pytest.approx(1 / 12, rel=0.02)
    assert torch.equal(x.grad, torch.ones_like(x))


@pytest.mark.parametrize(
    "x, grad, passed",
    [(0.5, 1, 1), (0.5, -1, -1), (-0.2, -1, -1), (-0.2, 1, 0), (1.3, 1, 1), (1.3, -1, 0), (0.0, 1, 1), (1.0, -1, -1)],
)
def test_between_clamps_and_its_gradient_leads_back_inside(x, grad, passed):
    x = torch.tensor(x, requires_grad=True)
    y = between(x, 0.0, 1.0)
    y.backward(torch.tensor(float(grad)))
    assert y.item() == min(max(x.item(), 0.0), 1.0) and x.grad.item() == passed


def test_a_samples_noise_depends_on_its_seed_alone():
    x = torch.zeros(3, 2, 50, 40)
    whole = SampleNoise([5, 6, 7], x.device)
    first = whole(x)
    part = SampleNoise([6], x.device)
    assert torch.equal(part(x[:1]), first[1:2]) and torch.equal(part(x[:1]), whole(x)[1:2])
    assert first.min() >= -0.5 and first.max() < 0.5 and abs(first.mean()) < 0.02 and abs(first.var() - 1 / 12) < 0.002
    assert not torch.equal(first[0], first[1])
