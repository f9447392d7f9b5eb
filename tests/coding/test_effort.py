"""The encoder's search: never worse, the same every time, and nothing that a decoder knows of."""

import numpy as np
import pytest
import torch
from PIL import Image
from shared import FACTORIZED, HYPER, SCALE, tiny_codec

from codec.coding import tiles
from codec.coding.effort import known
from codec.coding.tiles import Box, full, planes
from codec.coding.verify import Witness
from codec.container import bitstream
from codec.errors import LicError
from codec.network.quantize import uniform


def loss(codec, image: Image.Image, data: bytes, quality: int | None) -> float:
    """Bits of the symbols of a file per pixel, and lambda times the squared error of its image, before rounding."""
    latent = codec.decode(*bitstream.read(data))
    network, y = codec.backend.network.eval(), torch.from_numpy(latent.y).float()
    with torch.inference_mode():
        x = torch.from_numpy(planes(image)).float() / 255
        level = network.level_of(quality)
        z = None if latent.z is None else torch.from_numpy(latent.z).float()
        index, mean = network.derive(z, network.constants(level), y.shape[-2:])
        bits = network.rate(y, y, index, level, uniform).sum() / (x.shape[-1] * x.shape[-2])
        x_hat = network.synthesise(network.dequantize(y, index, level) + mean, level, x.shape[-2:])
        return float(bits + codec.config.lmbda_at(quality) * 255**2 * (x_hat - x).square().mean())


@pytest.mark.parametrize(("prior", "context"), [(FACTORIZED, 0), (SCALE, 3), (HYPER, 0), (HYPER, 3)])
@pytest.mark.parametrize("lmbda", [[0.0009, 0.18], [0.05]])
def test_more_passes_are_never_worse_and_a_few_are_better(photo, prior, context, lmbda):
    codec = tiny_codec(photo, lmbda, prior, context=context)
    quality = 60 if len(lmbda) == 2 else None
    losses = [loss(codec, photo, codec.compress(photo, quality, effort), quality) for effort in (0, 1, 4, 9)]
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.999 * losses[0]


def test_a_file_says_its_effort_decodes_to_what_was_encoded_and_is_the_same_every_time(hyper, photo):
    witness = Witness()
    data = hyper.compress(photo, 70, 3, witness)
    witness.check(hyper, data, photo)
    assert data == hyper.compress(photo, 70, effort=3)
    assert bitstream.effort(bitstream.read(data)[1]) == 3
    plain = hyper.compress(photo, 70)
    assert plain == hyper.compress(photo, 70, effort=0) != data
    assert bitstream.effort(bitstream.read(plain)[1]) == 0


def test_the_network_is_left_as_it_was(hyper, photo):
    network = hyper.backend.network
    before = {name: (weight.requires_grad, weight.clone()) for name, weight in network.named_parameters()}
    network.train()
    hyper.compress(photo, 70, effort=1)
    assert all(module.training for module in network.modules())
    for name, weight in network.named_parameters():
        assert weight.requires_grad == before[name][0] and weight.grad is None
        assert torch.equal(weight, before[name][1])


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_rows_of_tiles_are_searched_each_with_what_is_known_of_it(hyper, photo, mode, monkeypatch):
    monkeypatch.setattr(tiles, "TILE", 2)
    image = photo.resize((700, 300)).convert(mode)
    plain, data = hyper.compress(image, 60), hyper.compress(image, 60, effort=4)
    assert [s.tag for s in bitstream.read(data)[1]].count(bitstream.LATENT) > 1
    x = np.asarray(image.convert("RGB"), float)
    errors = [np.square(np.asarray(hyper.decompress(d).convert("RGB"), float) - x).mean() for d in (plain, data)]
    lmbda = hyper.config.lmbda_at(60)
    rate = [8 * len(d) / (700 * 300) for d in (plain, data)]
    assert rate[1] + lmbda * errors[1] < rate[0] + lmbda * errors[0]


def test_pixels_count_that_depend_on_nothing_beyond():
    area = full((40, 40))
    assert known(area, area, 2) == area
    assert known(Box(0, 0, 10, 40), area, 2) == Box(0, 0, 8, 40)
    assert known(Box(10, 5, 20, 40), area, 2) == Box(12, 7, 18, 40)
    assert known(Box(10, 5, 13, 40), area, 2) == Box(12, 7, 13, 40)


@pytest.mark.parametrize("effort", [-1, 10, 1.0, "5", True])
def test_what_is_no_effort_is_refused(hyper, photo, effort):
    with pytest.raises(LicError, match="effort must be an integer in 0..9"):
        hyper.compress(photo, 50, effort)


def test_a_target_is_met_with_an_effort(hyper, photo):
    most = len(hyper.compress(photo, 40))
    data, quality = hyper.compress_to(photo, most, effort=2)
    assert len(data) <= most < len(hyper.compress(photo, quality + 1, effort=2))
