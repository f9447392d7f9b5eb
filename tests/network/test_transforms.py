"""The two transform families: an orthonormal DCT at step 0, and Ballé et al. 2018 as compressai has it."""

import pytest
import torch

from codec.network.transforms import TRANSFORMS, FastAnalysis, FastSynthesis, dct_basis

SMALL = dict(N=8, M=12, blocks=[1, 1], shortcut=True, scale=8.0, conditioned=True, lapped=True)


def pair(family: str):
    """g_a and g_s with every weight moved off its initial value."""
    torch.manual_seed(0)
    transforms = [cls(**SMALL) for cls in TRANSFORMS[family]]
    with torch.no_grad():
        for parameter in (p for transform in transforms for p in transform.parameters()):
            parameter += 0.02 * torch.randn_like(parameter)
    return transforms


@pytest.mark.parametrize("M", [8, 25, 192, 320, 341, 500, 768])
def test_dct_basis_is_orthonormal(M):
    basis = dct_basis(M).flatten(1)
    torch.testing.assert_close(basis @ basis.T, torch.eye(M), atol=1e-5, rtol=0)


@pytest.mark.parametrize("scale", [1.0, 8.0])
@pytest.mark.parametrize("lapped", [False, True])
def test_at_step_0_the_whole_fast_family_is_the_identity(scale, lapped):
    torch.manual_seed(0)
    options = SMALL | dict(M=768, scale=scale, lapped=lapped)
    x = torch.rand(2, 3, 48, 32) - 0.5
    level = torch.tensor([0.0, 0.7])
    y = FastAnalysis(**options)(x, level)
    torch.testing.assert_close(FastSynthesis(**options)(y, level), x, atol=1e-4, rtol=0)
    if not lapped:  # an orthonormal transform keeps energy
        torch.testing.assert_close(y.square().sum(), scale**2 * x.square().sum())


@pytest.mark.parametrize("family", TRANSFORMS)
@pytest.mark.parametrize("height, width", [(1, 1), (1, 3), (2, 5)])
def test_a_latent_sample_stands_for_16_by_16_pixels(family, height, width):
    g_a, g_s = pair(family)
    level = torch.rand(2)
    y = g_a(torch.rand(2, 3, 16 * height, 16 * width), level)
    assert y.shape == (2, 12, height, width)
    assert g_s(y, level).shape == (2, 3, 16 * height, 16 * width)


@pytest.mark.parametrize(
    "options", [dict(shortcut=False), dict(blocks=[0, 0]), dict(conditioned=False), dict(lapped=False)]
)
def test_each_part_of_the_fast_family_can_be_left_out(options):
    g_a, g_s = (cls(**SMALL | options) for cls in TRANSFORMS["fast"])
    level = torch.rand(1) if options.get("conditioned", True) else None
    assert g_s(g_a(torch.rand(1, 3, 32, 32), level), level).shape == (1, 3, 32, 32)


@pytest.mark.parametrize("family", TRANSFORMS)
def test_the_output_is_not_clamped(family):
    _, g_s = pair(family)
    x_hat = g_s(100 * torch.randn(1, 12, 2, 2), torch.rand(1))
    assert x_hat.min() < -1 and x_hat.max() > 2


def test_the_level_changes_what_the_fast_family_does():
    g_a, g_s = pair("fast")
    x, y = torch.rand(1, 3, 32, 32), torch.randn(1, 12, 2, 2)
    low, high = torch.tensor([0.1]), torch.tensor([0.9])
    assert not torch.equal(g_a(x, low), g_a(x, high)) and not torch.equal(g_s(y, low), g_s(y, high))


@pytest.mark.parametrize("family", TRANSFORMS)
def test_the_receptive_field_ends_within_256_pixels(family):
    g_a, g_s = pair(family)
    x, y = torch.rand(1, 3, 16, 1024), torch.randn(1, 12, 1, 64)
    near, far = slice(0, 256), slice(256, None)
    for transform, sample, stride in ((g_a, x, 16), (g_s, y, 1)):
        other = sample.clone()
        other[..., 0] += 1  # the leftmost column
        level = torch.tensor([0.5])
        change = (transform(other, level) - transform(sample, level)).abs().amax(dim=(0, 1, 2))
        change = change.repeat_interleave(stride)  # by pixel
        assert change[near].max() > 1e-3 and change[far].max() < 1e-5


def test_bmshj2018_loads_compressais_state_and_equals_it_away_from_the_border():
    models = pytest.importorskip("compressai.models")
    torch.manual_seed(0)
    theirs = models.FactorizedPrior(8, 12)
    g_a, g_s = pair("bmshj2018")
    for ours, state in ((g_a, theirs.g_a.state_dict()), (g_s, theirs.g_s.state_dict())):
        assert ours.layers.load_state_dict(state, strict=False).missing_keys == []
    with torch.no_grad():
        x, y = torch.rand(1, 3, 192, 208), torch.randn(1, 12, 10, 11)
        torch.testing.assert_close(g_a(x)[..., 3:-3, 3:-3], theirs.g_a(x)[..., 3:-3, 3:-3])
        torch.testing.assert_close(g_s(y)[..., 48:-48, 48:-48], theirs.g_s(y)[..., 48:-48, 48:-48])
