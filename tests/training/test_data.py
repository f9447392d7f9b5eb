"""Training patches: functions of the seed and the sample number, cut from any image that can be read."""

import io
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from shared import noise_image

from codec.config import DataConfig
from codec.errors import LicError
from codec.files import find_images
from codec.training.data import (
    BLOCK,
    Order,
    Patches,
    describe,
    loader,
    patch_transform,
    read_skipped,
    to_rgb,
    training_images,
    validation_images,
)


@pytest.fixture
def folder(tmp_path):
    """Images of several sizes, modes and types, one in a folder below."""
    (tmp_path / "deep").mkdir()
    for i, (name, mode) in enumerate([("a.png", "RGB"), ("b.png", "L"), ("deep/c.bmp", "RGB"), ("d.webp", "RGB")]):
        noise_image(20 + 9 * i, 50 - 9 * i, mode, seed=i).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not an image")
    return tmp_path


@pytest.fixture
def wild(tmp_path):
    """What a real folder holds: seven images that a careless reader stops at, two of them beyond help."""
    folder = tmp_path / "wild"
    folder.mkdir()
    noise_image(90, 70).save(folder / "cut.jpg")
    (folder / "cut.jpg").write_bytes((folder / "cut.jpg").read_bytes()[:2000])
    (folder / "text.png").write_text("not an image")
    noise_image(60, 40).convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(np.arange(2400, dtype=np.uint16).reshape(40, 60) * 27).save(folder / "deep.png")
    noise_image(50, 50).quantize(8).save(folder / "palette.png", transparency=3)
    noise_image(1, 1).save(folder / "point.png")
    noise_image(20000, 3).save(folder / "line.png")
    return folder


def patches(folder, seed=1, samples=40, skipped=None, **options) -> Patches:
    config = DataConfig(data=[str(folder)], patch=32, **options)
    return Patches(training_images(config, skipped=skipped), patch_transform(config), seed, samples)


@pytest.mark.parametrize("options", [{}, {"resize": [33, 60]}, {"resize": [20, 24]}, {"flip": False, "cache": 0.0}])
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


def test_a_patch_has_memory_of_its_own(folder):
    dataset = patches(folder)
    whole = [image.clone() for image in dataset.images]
    for n in range(12):
        assert dataset[n].untyped_storage().nbytes() == 3 * 32 * 32
        dataset[n].zero_()
    assert all(torch.equal(image, before) for image, before in zip(dataset.images, whole, strict=True))


def test_reading_patches_leaves_the_random_state_alone(folder):
    state = torch.get_rng_state()
    patches(folder)[3]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.usefixtures("served")
def test_unreadable_images_are_skipped_and_listed_and_every_process_sees_the_same(wild, tmp_path):
    alone = patches(wild, samples=24, skipped=tmp_path / "alone.txt")
    expected = [alone[n] for n in range(24)]
    assert all(patch.shape == (3, 32, 32) for patch in expected)
    listed = read_skipped(tmp_path / "alone.txt")
    assert [path for path, _ in listed] == [str(wild / "cut.jpg"), str(wild / "text.png")]
    assert "truncated" in listed[0][1] and listed[1][1] == "not an image"
    assert len((tmp_path / "alone.txt").read_text().splitlines()) == 2

    config = DataConfig(workers=2, prefetch=1)
    dataset = patches(wild, samples=24, skipped=tmp_path / "both.txt")
    batches = [range(16, 24), [3, 2, 1, 0], range(4, 16)]  # as after a resume, in any order
    for batch, numbers in zip(loader(dataset, batches, config, torch.device("cpu")), batches, strict=True):
        assert torch.equal(batch, torch.stack([expected[n] for n in numbers]))
        assert batch.is_contiguous(memory_format=torch.channels_last)
    assert read_skipped(tmp_path / "both.txt") == listed


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no disk here that is always full")
def test_a_disk_that_is_full_for_the_list_of_the_skipped_does_not_end_a_training(wild, capsys):
    dataset = patches(wild, samples=24, skipped=Path("/dev/full"))
    assert all(dataset[n].shape == (3, 32, 32) for n in range(24))
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2 and all(line.startswith("/dev/full lacks ") and "No space left" in line for line in told)


@pytest.mark.parametrize("options", [{"resize": [32, 64]}, {"resize": [8, 8]}, {"flip": False}])
def test_images_of_any_shape_give_patches(wild, options):
    dataset = patches(wild, **options)
    for image in dataset.images:
        assert dataset.transform(image, np.random.default_rng(1)).shape == (3, 32, 32)


def test_more_ways_to_be_unreadable(tmp_path, monkeypatch):
    assert read_skipped(tmp_path / "none.txt") == []
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    noise_image(30, 30).save(tmp_path / "bomb.png")
    (tmp_path / "empty.png").touch()
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "float.tif")
    odd = os.fsdecode(b"g\xff\n.png")  # not UTF-8, and two lines
    (tmp_path / odd).symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="none of the 4 training images can be read"):
        patches(tmp_path, skipped=tmp_path / "skipped.txt")[0]
    noise_image(8, 8).save(tmp_path / "good.png")
    (tmp_path / "skipped.txt").unlink()
    dataset = patches(tmp_path, skipped=tmp_path / "skipped.txt")
    assert all(dataset[n].shape == (3, 32, 32) for n in range(10))
    reasons = [reason for _, reason in read_skipped(tmp_path / "skipped.txt")]
    assert len(reasons) == 4 and describe(dataset.images)["images"] == 5
    for part in ("DecompressionBombError", "not an image", "mode F", "FileNotFoundError"):
        assert any(part in reason for reason in reasons), part


def rgb(image: Image.Image) -> list:
    return np.array(to_rgb(image)).reshape(-1, 3).tolist()


def test_every_mode_has_defined_colours():
    deep = np.array([[0, 128, 129, 32768, 65406, 65407, 65535]], np.uint16)
    for image in (Image.fromarray(deep), Image.fromarray(deep.astype(">u2"))):
        assert [r for r, _, _ in rgb(image)] == [0, 0, 1, 128, 254, 255, 255]
    ppm = Image.open(io.BytesIO(b"P5 2 1 65535\n" + np.array([257, 65535], ">u2").tobytes()))
    assert rgb(ppm) == [[1] * 3, [255] * 3]
    for mode in "IF":
        with pytest.raises(ValueError, match=f"mode {mode}"):
            to_rgb(Image.new(mode, (2, 2)))
    assert rgb(Image.new("RGBA", (1, 1), (255, 0, 7, 0))) == rgb(Image.new("LA", (1, 1), (9, 0))) == [[128] * 3]
    assert rgb(Image.new("RGBA", (1, 1), (255, 0, 7, 255))) == [[255, 0, 7]]
    assert rgb(Image.new("CMYK", (1, 1), (0, 255, 255, 0))) == [[255, 0, 0]]
    assert rgb(Image.new("YCbCr", (1, 1), (77, 128, 128))) == rgb(Image.new("L", (1, 1), 77)) == [[77] * 3]
    assert rgb(Image.new("1", (1, 1), 1)) == [[255] * 3]
    file = io.BytesIO()
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    assert rgb(palette) == [[10, 20, 30], [40, 50, 60]]
    palette.save(file, "PNG", transparency=1)
    assert rgb(Image.open(file)) == [[10, 20, 30], [128] * 3]


def test_every_epoch_visits_each_image_once_in_an_order_of_its_own():
    images = [torch.full((3, 16, 16), i, dtype=torch.uint8) for i in range(12)]
    dataset = Patches(images, patch_transform(DataConfig(patch=16)), seed=1, samples=24)
    visits = [dataset[n][0, 0, 0].item() for n in range(24)]
    assert sorted(visits[:12]) == sorted(visits[12:]) == list(range(12))
    assert visits[:12] != visits[12:] != sorted(visits[12:])


def test_weighted_folders_get_their_shares_and_keep_their_epochs():
    order = Order([7, 300, 40], [1.0, 2.0, 5.0], seed=1)
    visits = np.array([order(n) for n in range(2 * BLOCK)])
    again = Order([7, 300, 40], [1.0, 2.0, 5.0], seed=1)
    assert all(again(n) == visits[n] for n in (1999, 0, 1000, 999, 500))
    for first, size, share in ((0, 7, 125), (7, 300, 250), (307, 40, 625)):
        own = visits[(visits >= first) & (visits < first + size)]
        assert len(own) == share * 2 * BLOCK // 1000
        for epoch in range(len(own) // size):
            assert sorted(own[epoch * size : (epoch + 1) * size]) == list(range(first, first + size))
    places = np.flatnonzero(visits < 7) % 8  # in every place of a batch alike: 250 visits over 8 places
    assert np.bincount(places, minlength=8).min() > 10
    with pytest.raises(ValueError, match="1/1000"):
        Order([7, 7], [1.0, 1e6], seed=1)


def test_weights_are_those_of_the_entries_of_data(tmp_path):
    for name, level, count in (("dark", 0, 9), ("light", 255, 1)):
        (tmp_path / name).mkdir()
        for i in range(count):
            Image.new("RGB", (16, 16), (level, level, level)).save(tmp_path / name / f"{i}.png")
    config = DataConfig(data=[str(tmp_path / "dark"), str(tmp_path / "light")], weights=[1.0, 3.0], patch=16)
    dataset = Patches(training_images(config), patch_transform(config), 1, BLOCK)
    assert sum(bool(dataset[n].all()) for n in range(BLOCK)) == 750
    for weights in ([1.0], [1.0, 0.0]):
        with pytest.raises(ValueError, match="one for each of the 2 entries"):
            DataConfig(data=config.data, weights=weights)


def test_an_image_smaller_than_the_patch_is_mirrored_not_stretched(tmp_path):
    noise_image(1, 3).save(tmp_path / "a.png")
    patch = patches(tmp_path, flip=False)[0]
    assert patch.shape == (3, 32, 32) and (patch == patch[..., :1]).all()
    torch.testing.assert_close(patch[:, 4:], patch[:, :-4])  # three rows mirror with a period of four


def test_resize_brings_the_shorter_side_to_its_size(tmp_path):
    ramp = np.tile(np.arange(100, dtype=np.uint8) * 2, (300, 1))  # 2 grey levels a pixel, from left to right
    Image.fromarray(ramp).save(tmp_path / "a.png")
    for size in (50, 200):
        patch = patches(tmp_path, flip=False, resize=[size, size])[0][0].float()
        step = (patch[:, 28] - patch[:, 4]).mean() / 24
        assert step == pytest.approx(2 * 100 / size, rel=0.05)


def test_folders_add_up_and_are_searched_below(folder):
    assert len(training_images(DataConfig(data=[str(folder), str(folder / "deep")]))) == 5
    assert [image.mode for image in validation_images(DataConfig(val=[str(folder)]))] == ["RGB"] * 4


def test_the_class_folders_of_torchvision_are_a_folder(tmp_path):
    from torchvision.datasets import ImageFolder

    for name in ("cat/1.png", "cat/2.jpg", "dog/1.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        noise_image(20, 20).save(tmp_path / name)
    images = training_images(DataConfig(data=[str(tmp_path)]))
    assert [str(entry.path) for entry in images.entries] == [path for path, _ in ImageFolder(tmp_path).samples]


def write_shard(path, folder, names) -> None:
    with tarfile.open(path, "w") as tar:
        for name in names:
            tar.add(folder / name, arcname=name)


def test_tar_shards_hold_the_same_images(folder, tmp_path_factory):
    shards = tmp_path_factory.mktemp("shards")
    write_shard(shards / "0.tar", folder, ["b.png", "notes.txt", "a.png"])
    write_shard(shards / "1.tar", folder, ["d.webp", "deep/c.bmp"])
    loose, packed = (training_images(DataConfig(data=[name])) for name in (str(folder), f"tar:{shards}"))
    names = [entry.name for entry in packed.entries]
    assert names == ["0.tar/a.png", "0.tar/b.png", "1.tar/d.webp", "1.tar/deep/c.bmp"]
    assert all(torch.equal(loose[i], packed[i]) for i in range(4))
    with pytest.raises(FileNotFoundError, match="no images in tar shards"):
        training_images(DataConfig(data=[f"tar:{folder}"]))


@pytest.mark.parametrize("damage", ["cut", "header", "empty"])
def test_a_damaged_shard_is_named_at_the_start(folder, damage):
    shard = folder / "0.tar"
    write_shard(shard, folder, ["a.png", "b.png"])
    with tarfile.open(shard) as tar:
        second = tar.getmember("b.png")
    whole = shard.read_bytes()
    header = whole[: second.offset] + b"?" + whole[second.offset + 1 :]
    shard.write_bytes({"cut": whole[: second.offset_data + 100], "header": header, "empty": b""}[damage])
    with pytest.raises(ValueError, match=f"{shard} is damaged"):
        training_images(DataConfig(data=[f"tar:{folder}"]))


def test_a_description_tells_other_data_from_the_same_elsewhere(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for path in [p for p in folder.rglob("*") if p.is_file()]:
        (elsewhere / path.relative_to(folder)).parent.mkdir(exist_ok=True)
        (elsewhere / path.relative_to(folder)).write_bytes(path.read_bytes())
    before = describe(training_images(DataConfig(data=[str(folder)])))
    assert before["images"] == 4 and describe(training_images(DataConfig(data=[str(elsewhere)]))) == before
    (elsewhere / "a.png").write_bytes((elsewhere / "a.png").read_bytes() + b"x")
    assert describe(training_images(DataConfig(data=[str(elsewhere)]))) != before
    black = torch.zeros(3, 4, 4, dtype=torch.uint8)
    assert describe([black]) == describe([black.clone()]) != describe([black + 1])
    assert describe([black]) != describe([black.reshape(3, 2, 8)])


def test_an_unreadable_validation_image_is_an_error_that_names_it(wild):
    with pytest.raises(ValueError, match="validation image .*cut.jpg cannot be read") as caught:
        validation_images(DataConfig(val=[str(wild)]))
    assert "\n" not in str(caught.value)


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


def test_no_more_than_the_cache_holds_is_kept(folder):
    whole = training_images(DataConfig(data=[str(folder)]))
    sizes = [whole[i].numel() for i in range(len(whole))]
    limited = training_images(DataConfig(data=[str(folder)], cache=(sum(sizes) - 1) / 1e9))
    for _ in range(2):
        assert all(torch.equal(limited[i], whole[i]) for i in range(len(whole)))
    assert len(whole.kept) == len(sizes) and len(limited.kept) == len(sizes) - 1


def test_what_lies_in_the_folder_of_a_run_or_of_results_is_no_data(tmp_path, photo):
    for name in ("a.png", "run/b.png", "run/rd/files/c.png", "results/files/d.png", "e/f.png", "plain/g.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        photo.save(tmp_path / name)
    for name in ("run/config.toml", "run/log.jsonl", "results/rows.jsonl", "plain/config.toml"):
        (tmp_path / name).touch()
    found = [path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path)]
    assert found == ["a.png", "e/f.png", "plain/g.png"]
    for name in ("run", "run/rd/files", "results/files"):
        with pytest.raises(LicError, match="the output of a training or of eval.py, which is no data"):
            find_images(tmp_path / name)
