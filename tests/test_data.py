"""Training patches: functions of the seed and the sample number, cut from any image."""

import pickle

import numpy as np
import pytest
import torch
from conftest import noise_image

from codec.config import DataConfig
from codec.data import Patches, patch_transform, training_images, validation_images


@pytest.fixture
def folder(tmp_path):
    """Images of several sizes, modes and types, one in a folder below."""
    (tmp_path / "deep").mkdir()
    for i, (name, mode) in enumerate([("a.png", "RGB"), ("b.png", "L"), ("deep/c.bmp", "RGB"), ("d.webp", "RGB")]):
        noise_image(20 + 9 * i, 50 - 9 * i, mode, seed=i).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not an image")
    return tmp_path


def patches(folder, seed=1, samples=40, **options) -> Patches:
    config = DataConfig(data=[str(folder)], patch=32, **options)
    return Patches(training_images(config), patch_transform(config), seed, samples)


@pytest.mark.parametrize("options", [{}, {"resize": [33, 60]}, {"flip": False, "cache": False}])
def test_a_patch_depends_on_seed_and_number_alone(folder, options):
    first = [patches(folder, **options)[n] for n in range(40)]
    torch.manual_seed(123)
    again = patches(folder, **options)
    for n in torch.randperm(40).tolist():
        assert torch.equal(again[n], first[n])
    assert all(patch.shape == (3, 32, 32) and patch.dtype == torch.uint8 for patch in first)
    assert len({patch.numpy().tobytes() for patch in first}) > 20
    assert not torch.equal(
        torch.stack([patches(folder, seed=2, **options)[n] for n in range(8)]), torch.stack(first[:8])
    )


def test_reading_patches_leaves_the_random_state_alone(folder):
    state = torch.get_rng_state()
    patches(folder)[3]
    assert torch.equal(torch.get_rng_state(), state)


def test_every_epoch_visits_each_image_once_in_an_order_of_its_own():
    images = [torch.full((3, 16, 16), i, dtype=torch.uint8) for i in range(12)]
    dataset = Patches(images, patch_transform(DataConfig(patch=16)), seed=1, samples=24)
    visits = [dataset[n][0, 0, 0].item() for n in range(24)]
    assert sorted(visits[:12]) == sorted(visits[12:]) == list(range(12))
    assert visits[:12] != visits[12:] != sorted(visits[12:])


def test_an_image_smaller_than_the_patch_is_mirrored_not_stretched(tmp_path):
    noise_image(1, 3).save(tmp_path / "a.png")
    patch = patches(tmp_path, flip=False)[0]
    assert patch.shape == (3, 32, 32) and (patch == patch[..., :1]).all()
    torch.testing.assert_close(patch[:, 4:], patch[:, :-4])  # three rows mirror with a period of four


def test_folders_add_up_and_are_searched_below(folder):
    assert len(training_images(DataConfig(data=[str(folder), str(folder / "deep")]))) == 5
    assert [image.mode for image in validation_images(DataConfig(val=[str(folder)]))] == ["RGB"] * 4


def test_a_folder_without_images_is_an_error_that_names_it(tmp_path):
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(FileNotFoundError, match=str(path)):
            training_images(DataConfig(data=[str(path)]))
        with pytest.raises(FileNotFoundError, match=str(path)):
            validation_images(DataConfig(val=[str(path)]))


def test_the_sample_photograph_of_validation_is_not_trained_on():
    (held_out,) = validation_images(DataConfig())
    pixels = torch.from_numpy(np.array(held_out)).permute(2, 0, 1)
    images = training_images(DataConfig())
    assert len(images) == 4 and not any(torch.equal(image, pixels) for image in images if image.shape == pixels.shape)


def test_cifar10_is_its_training_images(cifar10):
    images = training_images(DataConfig(data=[f"cifar10:{cifar10.parent}"], patch=32))
    first = pickle.loads((cifar10 / "data_batch_1").read_bytes())["data"][0].reshape(3, 32, 32)
    assert len(images) == 20 and np.array_equal(images[0].numpy(), first)
    with pytest.raises(ValueError, match="alone"):
        training_images(DataConfig(data=[f"cifar10:{cifar10.parent}", str(cifar10)]))


def test_a_missing_or_renamed_cifar10_folder_is_told_what_is_expected(cifar10):
    cifar10.rename(cifar10.with_name("cifar"))
    with pytest.raises(FileNotFoundError, match="cifar-10-batches-py/ with data_batch_1..5"):
        training_images(DataConfig(data=[f"cifar10:{cifar10.parent}"]))
