"""The differentiable SSIMULACRA 2 of training against the metric that evaluation reports."""

import io

import pytest
import torch
from PIL import Image

from codec.network import ssimulacra2
from codec.network.pixels import to_tensor


def package_score(a: Image.Image, b: Image.Image) -> float:
    from ssimulacra2 import compute_ssimulacra2

    files = [io.BytesIO(), io.BytesIO()]
    for image, file in zip((a, b), files, strict=True):
        image.save(file, "PNG")
    return compute_ssimulacra2(*files)


@pytest.mark.parametrize("size", [(256, 384), (401, 299)])
def test_it_is_the_score_of_the_package_on_a_ladder_of_jpegs(photo, size):
    photo = photo.resize(size)
    for quality in (5, 30, 60, 90, 98):
        photo.save(file := io.BytesIO(), "JPEG", quality=quality)
        decoded = Image.open(file).convert("RGB")
        score = 100 - ssimulacra2.distance(to_tensor(decoded), to_tensor(photo)).item()
        assert score == pytest.approx(package_score(photo, decoded), abs=0.01)


def test_of_a_batch_each_is_what_it_is_alone(photo):
    x = torch.cat([to_tensor(photo.resize((128, 128))), torch.rand(2, 3, 128, 128)])
    y = (x + 0.05).clamp(0, 1)
    alone = torch.cat([ssimulacra2.distance(y[i : i + 1], x[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(ssimulacra2.distance(y, x), alone)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("change", [0.0, 1e-6, 0.1, -2.0, 2.0])
def test_gradients_are_finite_for_equal_black_white_and_flat_images(value, change):
    x = torch.full((1, 3, 128, 128), value)
    x_hat = (x + change).requires_grad_()
    distance = ssimulacra2.distance(x_hat, x)
    distance.sum().backward()
    assert x_hat.grad.isfinite().all() and distance.isfinite().all()
    assert distance < 0.02 or change


def test_what_is_out_of_range_is_led_back(photo):
    x = to_tensor(photo.resize((128, 128)))
    x_hat = (x * 0 + 1.5).requires_grad_()
    ssimulacra2.distance(x_hat, x).sum().backward()
    assert (x_hat.grad != 0).any()


def test_patches_that_are_too_small_are_refused_with_the_limit():
    x = torch.rand(1, 3, 112, 300)
    with pytest.raises(ValueError, match="at least 113 pixels a side, not 300x112: choose --patch 128"):
        ssimulacra2.distance(x, x)
