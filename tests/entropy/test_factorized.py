"""The factorized prior: a density, the same one in training, in the tables and in compressai."""

import numpy as np
import pytest
import torch

from entropy.factorized import FactorizedPrior
from entropy.tables import TAIL_MASS


@pytest.fixture
def prior() -> FactorizedPrior:
    """Densities of 6 channels, different from each other in place, width and shape."""
    torch.manual_seed(3)
    prior = FactorizedPrior(6)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter += 0.4 * torch.randn_like(parameter)
        prior.scale.copy_(torch.tensor([0.2, 0.5, 1, 2, 5, 10]))
    return prior


def test_likelihoods_equal_those_of_the_compressai_bottleneck_whose_state_is_loaded():
    models = pytest.importorskip("compressai.entropy_models")
    torch.manual_seed(0)
    theirs = models.EntropyBottleneck(5, init_scale=10)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if name != "quantiles":
                parameter += 0.3 * torch.randn_like(parameter)
    ours = FactorizedPrior(5)
    ours.load_compressai(theirs.state_dict())
    v = 20 * torch.randn(2, 5, 7, 3)
    reference, _, _ = theirs._likelihood(v.transpose(0, 1).reshape(5, 1, -1))
    reference = reference.reshape(5, 2, 7, 3).transpose(0, 1)
    torch.testing.assert_close(ours.likelihood(v), reference, rtol=1e-4, atol=1e-6)
    assert reference.max() > 0.01


def test_an_untrained_prior_starts_as_the_compressai_bottleneck_of_the_same_init_scale():
    models = pytest.importorskip("compressai.entropy_models")
    theirs, ours = models.EntropyBottleneck(3, init_scale=10), FactorizedPrior(3, init_scale=10)
    for a, b in zip(ours.matrices, theirs.matrices, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("gain", [0.1, 1.0, 7.0])
def test_pmfs_sum_to_one_but_for_the_tails(prior, gain):
    rows, _ = prior.pmfs(torch.full((6,), gain), prior.support())
    for row in rows:
        assert row.dtype == np.float64 and 0 <= 1 - row.sum() + 1e-12 <= TAIL_MASS and row.min() > 0


@pytest.mark.parametrize("mass", [1e-6, 0.1, 0.5, 0.999])
def test_quantiles_invert_the_distribution(prior, mass):
    v = prior.quantiles(mass)
    assert torch.allclose(torch.sigmoid(prior.logits(v[:, None, None])), torch.tensor(mass, dtype=torch.float64))


def test_training_likelihood_at_width_1_over_gain_is_the_pmf_at_that_gain(prior):
    gain = torch.linspace(0.3, 4, 6)
    rows, first = prior.pmfs(gain, prior.support())
    for channel, (row, k) in enumerate(zip(rows, first, strict=True)):
        v = torch.zeros(1, 6, len(row), 1)
        v[0, channel, :, 0] = (int(k) + torch.arange(len(row))) / gain[channel]
        likelihood = prior.likelihood(v, (1 / gain)[None, :, None, None])[0, channel, :, 0]
        np.testing.assert_allclose(likelihood.detach().numpy(), row, rtol=1e-3, atol=2e-7)


def test_there_is_one_table_per_channel_and_it_costs_what_the_density_says(prior):
    gain = torch.full((6,), 2.0)
    tables = prior.tables(gain, prior.support())
    rows, first = prior.pmfs(gain, prior.support())
    assert len(tables) == 6
    for channel, row in enumerate(rows):
        k = first[channel] + np.arange(len(row), dtype=np.int32)
        entropy = -(row * np.log2(row)).sum()
        coded = sum(p * tables.bits(k[i : i + 1], np.uint8(channel)) for i, p in enumerate(row))
        assert coded == pytest.approx(entropy, rel=0.002, abs=0.002)


def test_likelihoods_and_gradients_stay_finite_far_from_the_density(prior):
    v = torch.tensor([-1e4, -50.0, 0.0, 50.0, 1e4]).repeat(6, 1)[None, :, :, None].requires_grad_()
    likelihood = prior.likelihood(v)
    likelihood.clamp_min(1e-9).log().sum().backward()
    assert torch.isfinite(likelihood).all() and (likelihood >= 0).all() and (likelihood <= 1).all()
    assert all(torch.isfinite(t.grad).all() for t in (v, *prior.parameters()))


def test_likelihoods_keep_their_digits_in_both_tails(prior):
    v = torch.linspace(-60, 60, 97).repeat(6, 1)[None, :, :, None]
    exact = prior.likelihood(v.double())
    assert (exact[..., :40, 0].amin(), exact[..., -40:, 0].amin()) < (1e-9, 1e-9)
    near = exact > 1e-30
    torch.testing.assert_close(prior.likelihood(v).double()[near], exact[near], rtol=1e-3, atol=0)
