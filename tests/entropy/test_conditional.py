"""The conditional priors: each a density, the same one in training, in the tables and in compressai."""

import numpy as np
import pytest
import torch

from entropy import Decoder, encode
from entropy.conditional import GaussianConditional, LaplaceConditional
from entropy.tables import TAIL_MASS

PRIOR = GaussianConditional()


@pytest.fixture(params=[GaussianConditional, LaplaceConditional])
def prior(request):
    """Each family, with its own scales."""
    return request.param()


@pytest.fixture(scope="module")
def theirs():
    """compressai's, with its own table of scales."""
    models = pytest.importorskip("compressai.entropy_models")
    from compressai.models.base import get_scale_table

    theirs = models.GaussianConditional(None)
    theirs.update_scale_table(get_scale_table())
    return theirs


def random_scales(shape, seed=0):
    """From below the least scale of the tables to above the greatest."""
    generator = torch.Generator().manual_seed(seed)
    return torch.exp(torch.empty(shape).uniform_(np.log(0.05), np.log(500), generator=generator))


def test_likelihoods_equal_those_of_compressai(theirs):
    scale = random_scales((3, 4, 50, 50))
    y, mean = scale * torch.randn_like(scale), torch.randn_like(scale)
    torch.testing.assert_close(PRIOR.likelihood(y - mean, scale), theirs._likelihood(y, scale, mean))
    torch.testing.assert_close(PRIOR.likelihood(y, scale), theirs._likelihood(y, scale))


def test_scales_fall_into_the_bins_of_compressai(theirs):
    scale = random_scales((2, 300, 300))
    index = PRIOR.index(scale)
    assert index.dtype == torch.uint8 and index.shape == scale.shape
    assert torch.equal(index.int(), theirs.build_indexes(scale))
    np.testing.assert_allclose(PRIOR.scales, theirs.scale_table.numpy(), rtol=1e-6)


@pytest.mark.parametrize("count, dtype", [(2, torch.uint8), (256, torch.uint8), (257, torch.uint16)])
def test_a_scale_of_the_table_has_its_own_row_and_what_is_beyond_has_the_ends(count, dtype):
    prior = GaussianConditional(count, 0.05, 1000)
    index = prior.index(torch.tensor(prior.scales, dtype=torch.float32))
    assert index.dtype == dtype and index.int().tolist() == list(range(count))
    assert prior.index(torch.tensor([-1.0, 0.0, 1e9, torch.inf])).int().tolist() == [0, 0, count - 1, count - 1]


def test_pmfs_are_the_training_likelihood_at_the_integers_and_sum_to_one_but_for_the_tails(prior):
    rows, first = prior.pmfs()
    for row, k, scale in zip(rows, first.tolist(), prior.scales.tolist(), strict=True):
        assert row.dtype == np.float64 and len(row) == 1 - 2 * k and 0 <= 1 - row.sum() + 1e-12 <= TAIL_MASS
        assert np.array_equal(row, row[::-1]) and row.min() > 0
        likelihood = prior.likelihood(torch.arange(k, 1 - k).float(), torch.tensor(scale))
        np.testing.assert_allclose(likelihood.numpy(), row, rtol=1e-3, atol=2e-7)


def test_a_table_costs_what_its_density_says(prior):
    tables, (rows, first) = prior.tables(), prior.pmfs()
    assert len(tables) == 64
    for t in range(0, 64, 7):
        k = first[t] + np.arange(len(rows[t]), dtype=np.int32)
        entropy = -(rows[t] * np.log2(rows[t])).sum()
        coded = sum(p * tables.bits(k[i : i + 1], np.uint8(t)) for i, p in enumerate(rows[t]))
        assert entropy <= coded + 1e-4 and coded <= entropy * 1.006 + 2e-4  # 0.11 to 150, 14 bits


def test_coded_bytes_are_the_bits_of_the_training_likelihood(prior):
    scale = random_scales((8, 60, 60), seed=1).clamp(0.11, 64)
    index, tables = prior.index(scale), prior.tables()
    scale = torch.tensor(prior.scales)[index.long()]
    values = torch.round(scale * torch.randn(scale.shape, generator=torch.Generator().manual_seed(2)))
    estimate = -torch.log2(prior.likelihood(values, scale)).sum().item() / 8
    step = values.int().numpy(), index.numpy(), tables
    data = encode([step])
    assert 0.999 * estimate <= len(data) <= 1.003 * estimate + 24
    decoder = Decoder(data)
    assert np.array_equal(decoder.decode(index.numpy(), tables), step[0])
    decoder.finish()


def test_likelihoods_and_gradients_stay_finite_far_from_the_density(prior):
    v = torch.tensor([-1e4, -50.0, 0.0, 0.5, 50.0, 1e4])[:, None].requires_grad_()
    scale = torch.tensor([1e-9, 0.11, 1.0, 256.0, 1e6]).requires_grad_()
    likelihood = prior.likelihood(v, scale)
    likelihood.clamp_min(1e-9).log().sum().backward()
    assert likelihood.shape == (6, 5) and (likelihood >= 0).all() and (likelihood <= 1).all()
    assert torch.isfinite(v.grad).all() and torch.isfinite(scale.grad).all()


def test_a_scale_is_the_standard_deviation(prior):
    for scale in (2.0, 7.0, 30.0):
        k = torch.arange(-500.0, 501.0, dtype=torch.float64)
        mass = prior.likelihood(k, torch.tensor(scale, dtype=torch.float64))
        assert mass.sum().item() == pytest.approx(1)
        assert (mass * k**2).sum().item() == pytest.approx(scale**2 + 1 / 12, rel=0.01)  # rounding adds 1/12


def test_scale_of_inverts_index_and_has_a_gradient_between(prior):
    index = torch.arange(prior.count)
    np.testing.assert_allclose(prior.scale_of(index).numpy(), prior.scales, rtol=1e-5)
    between = torch.tensor([3.5], requires_grad=True)
    prior.scale_of(between).backward()
    assert prior.scales[3] < prior.scale_of(between).item() < prior.scales[4] and between.grad > 0
    assert torch.equal(prior.index(prior.scale_of(index) * 0.999).int(), index.int())


def test_laplacians_equal_those_of_torch():
    prior, scale = LaplaceConditional(), random_scales((4, 500))
    v = scale * torch.randn_like(scale)
    theirs = torch.distributions.Laplace(torch.zeros((), dtype=torch.float64), scale.clamp_min(0.06).double() / 2**0.5)
    expected = theirs.cdf(v + 0.5) - theirs.cdf(v - 0.5)
    torch.testing.assert_close(prior.likelihood(v, scale).double(), expected, rtol=1e-4, atol=1e-6)
    far = prior.likelihood(torch.tensor([-60.0, 60.0]), torch.tensor(1.0))  # keeps its digits in both tails
    assert far[0] == far[1] and far[0].log().item() == pytest.approx(
        -59.5 * 2**0.5 + np.log(0.5 * -np.expm1(-(2**0.5)))
    )


@pytest.mark.parametrize("arguments", [(1,), (2**16 + 1,), (64, 0.0), (64, 0.5, 0.5), (64, float("nan"))])
@pytest.mark.parametrize("family", [GaussianConditional, LaplaceConditional])
def test_impossible_scales_are_refused(family, arguments):
    with pytest.raises(ValueError, match="are needed"):
        family(*arguments)
