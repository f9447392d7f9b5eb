"""Pixels to tensors and back."""

import numpy as np
import pytest
import torch
from shared import noise_image

from codec.files import find_images, sample_images
from codec.network.pixels import crop, denormalise, normalise, pad, to_image, to_tensor, to_uint8


def test_to_uint8_rounds_to_nearest_and_then_clamps():
    x = torch.tensor([-0.2, 0.0, 0.49 / 255, 0.51 / 255, 127.6 / 255, 1.0, 1.4])
    assert to_uint8(x).tolist() == [0, 0, 0, 1, 128, 255, 255]


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_an_image_survives_the_way_to_a_tensor_and_back(mode):
    image = noise_image(37, 21, mode)
    x = to_tensor(image)
    assert x.shape == (1, 3, 21, 37) and x.dtype == torch.float32 and 0 <= x.min() and x.max() <= 1
    back = to_image(x, mode)
    assert back.mode == mode and np.array_equal(np.array(back), np.array(image))


def test_gray_is_the_mean_of_the_channels():
    x = torch.tensor([0.1, 0.2, 0.6]).reshape(1, 3, 1, 1)
    assert to_image(x, "L").getpixel((0, 0)) == round(0.3 * 255)


@pytest.mark.parametrize("height", range(1, 41, 3))
def test_pad_reaches_the_grid_and_crop_undoes_it(height):
    for width in range(1, 41):
        x = torch.rand(1, 2, height, width)
        padded = pad(x)
        assert padded.shape[-2] % 16 == padded.shape[-1] % 16 == 0
        assert 0 <= padded.shape[-2] - height < 16 and 0 <= padded.shape[-1] - width < 16
        assert torch.equal(crop(padded, height, width), x)


def test_normalise_centres_pixels_and_denormalise_inverts_it():
    x = torch.linspace(0, 1, 256)
    assert normalise(x).min() == -0.5 and normalise(x).max() == 0.5
    torch.testing.assert_close(denormalise(normalise(x)), x)


def test_images_are_found_below_a_folder_in_the_order_of_their_paths(tmp_path):
    (tmp_path / "b").mkdir()
    for name in ("c.PNG", "b/a.jpeg", "a.webp"):
        noise_image(4, 4).save(tmp_path / name)
    (tmp_path / "d.txt").write_text("no image")
    assert [path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path)] == ["a.webp", "b/a.jpeg", "c.PNG"]


def test_the_sample_photographs_are_at_hand_without_a_network():
    images = dict(sample_images())
    assert len(images) >= 4 and {image.mode for image in images.values()} == {"RGB"}
    assert min(min(image.size) for image in images.values()) >= 300
