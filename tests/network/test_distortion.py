"""What images are compared by in training."""

import pytest
import torch
from torchvision.models import VGG16_Weights
from torchvision.models.vgg import cfgs, make_layers

from codec.config import ModelConfig
from codec.evaluation.metrics import ms_ssim
from codec.network.distortion import distortion as configured
from codec.network.distortion import mse
from codec.network.pixels import to_tensor

CPU = torch.device("cpu")


def distortion(name: str, mix: float = 0.25):
    return configured(name, mix, ModelConfig().lmbda, CPU)


def pair(photo, side: int = 176):
    x = to_tensor(photo.resize((side, side)))
    return (x + 0.05 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))).requires_grad_(), x


def test_mse_is_in_squared_grey_levels(photo):
    x_hat, x = pair(photo)
    value = distortion("mse")(x_hat, x, torch.tensor([0.01]))
    torch.testing.assert_close(value, 0.01 * (255 * x_hat - 255 * x).square().mean()[None])


def test_ms_ssim_is_that_of_the_evaluation(photo):
    from codec.network.pixels import to_image

    _, x = pair(photo)
    y = (x * 255).round().clamp(0, 255).flip(2) / 255
    value = distortion("ms-ssim").distances(y, x)[0]
    expected = ms_ssim(to_image(x, "RGB"), to_image(y, "RGB"))
    assert value.item() == pytest.approx(1 - expected, rel=1e-3)


def test_ms_ssim_of_small_patches_is_an_error():
    x = torch.rand(1, 3, 160, 300)
    with pytest.raises(ValueError, match="161 pixels a side, not 300x160"):
        distortion("ms-ssim").distances(x, x)


@pytest.mark.parametrize("name", ["ssimulacra2", "ms-ssim"])
def test_mix_is_the_share_of_squared_error(photo, name):
    x_hat, x = pair(photo)
    lmbda = torch.tensor([0.02])
    none, quarter, all_of_it = (distortion(name, mix=mix)(x_hat, x, lmbda) for mix in (0.0, 0.25, 1.0))
    torch.testing.assert_close(all_of_it, lmbda * mse(x_hat, x))
    torch.testing.assert_close(quarter, 0.75 * none + 0.25 * all_of_it)


def test_a_point_is_worth_what_the_curve_of_a_model_for_squared_error_says():
    price = distortion("ssimulacra2").measures[0].price
    ends = [price(lmbda) for lmbda in ModelConfig().lmbda]
    assert ends == pytest.approx([0.0045, 0.0045 * 24], rel=1e-3)


def test_weights_let_every_rate_count():
    lmbda = ModelConfig().lmbda_at(torch.linspace(0, 100, 1001))
    weights = distortion("mse").weights(lmbda, lmbda)
    assert weights.mean() == pytest.approx(1, rel=1e-2) and weights[0] / weights[-1] == pytest.approx(200**0.5)
    weights = distortion("ssimulacra2").weights(lmbda[:2], torch.tensor([0.1, 1.7]))
    assert weights[0] / weights[1] == pytest.approx(5)


def test_a_percent_at_one_rate_is_a_percent_at_another():
    mean = distortion("ssimulacra2").mean
    assert mean([0.101, 2.0], [0.001, 0.1]) == pytest.approx(mean([0.1, 2.02], [0.001, 0.1]))


@pytest.fixture
def vgg(tmp_path, monkeypatch):
    """Random weights where torchvision looks for those of VGG-16."""
    torch.manual_seed(0)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    state = {f"features.{name}": tensor for name, tensor in make_layers(cfgs["D"]).state_dict().items()}
    (tmp_path / "checkpoints").mkdir()
    torch.save(state, tmp_path / "checkpoints" / VGG16_Weights.IMAGENET1K_V1.url.rsplit("/", 1)[1])
    return distortion("vgg")


def test_vgg_is_a_distance_of_features(vgg, photo):
    x_hat, x = pair(photo, 64)
    value = vgg.distances(x_hat, x)[0]
    assert value.shape == (1,) and value > 0
    assert vgg.distances(x, x)[0] == 0
    value.sum().backward()
    assert x_hat.grad.isfinite().all() and not any(p.requires_grad for p in vgg.measures[0].distance.parameters())


def test_vgg_without_weights_says_where_they_belong(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"no weights of VGG-16 at .*vgg16-.*\.pth: where there is a network"):
        distortion("vgg")


def test_several_measures_have_equal_shares(photo):
    x_hat, x = pair(photo)
    lmbda = torch.tensor([0.02])
    both, first, second = (
        distortion(name)(x_hat, x, lmbda) for name in ("ms-ssim+ssimulacra2", "ms-ssim", "ssimulacra2")
    )
    torch.testing.assert_close(both, (first + second) / 2)
