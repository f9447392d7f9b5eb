"""What images are compared by in training."""

import pytest
import torch
from torchvision.models import VGG16_Weights
from torchvision.models.vgg import cfgs, make_layers

from codec.distortion import MS_SSIM_SCALE, distortion
from codec.image import to_tensor
from codec.metrics import ms_ssim

CPU = torch.device("cpu")


def pair(photo, side: int = 176):
    x = to_tensor(photo.resize((side, side)))
    return (x + 0.05 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))).requires_grad_(), x


def test_mse_is_in_squared_grey_levels(photo):
    x_hat, x = pair(photo)
    value = distortion("mse", CPU)(x_hat, x)
    torch.testing.assert_close(value, (255 * x_hat - 255 * x).square().mean()[None])


def test_ms_ssim_is_that_of_the_evaluation(photo):
    from codec.image import to_image

    _, x = pair(photo)
    y = (x * 255).round().clamp(0, 255).flip(2) / 255
    value = distortion("ms-ssim", CPU)(y, x)
    expected = ms_ssim(to_image(x, "RGB"), to_image(y, "RGB"))
    assert value.item() == pytest.approx(MS_SSIM_SCALE * (1 - expected), rel=1e-3)


def test_ms_ssim_of_small_patches_is_an_error():
    x = torch.rand(1, 3, 160, 300)
    with pytest.raises(ValueError, match="161 pixels a side, not 300x160"):
        distortion("ms-ssim", CPU)(x, x)


@pytest.fixture
def vgg(tmp_path, monkeypatch):
    """Random weights where torchvision looks for those of VGG-16."""
    torch.manual_seed(0)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    state = {f"features.{name}": tensor for name, tensor in make_layers(cfgs["D"]).state_dict().items()}
    (tmp_path / "checkpoints").mkdir()
    torch.save(state, tmp_path / "checkpoints" / VGG16_Weights.IMAGENET1K_V1.url.rsplit("/", 1)[1])
    return distortion("vgg", CPU)


def test_vgg_adds_the_distance_of_features_to_the_squared_error(vgg, photo):
    x_hat, x = pair(photo, 64)
    value = vgg(x_hat, x)
    assert value.shape == (1,) and value > distortion("mse", CPU)(x_hat, x)
    assert vgg(x, x) == 0
    value.sum().backward()
    assert x_hat.grad.isfinite().all() and not any(p.requires_grad for p in vgg.parameters())


def test_vgg_without_weights_says_where_they_belong(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"no weights of VGG-16 at .*vgg16-.*\.pth: where there is a network"):
        distortion("vgg", CPU)
