"""The hyper-transforms: an index that both sides find exactly, from nothing but what was coded."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from shared import HYPER, codec_of, noise_image, tiny_codec, tiny_network, untrained

from codec.coding.models import load_model
from codec.coding.tables import CodecTables
from codec.coding.tiles import planes
from codec.config import REACH
from codec.container import bitstream
from codec.container.bitstream import FormatError, Section
from codec.network import calibrate
from codec.network.calibrate import fit
from codec.network.hyper import HYPER_TRANSFORMS, BalleHyperSynthesis, Constants, insert_zeros
from codec.network.layers import mirror_pad
from codec.network.pixels import to_tensor
from entropy.integer import IntegerConv2d

SIZES = dict(M=12, N=8, K=5)
SMALL = dict(N=8, M=16, blocks=[0, 0], hyper_N=8, hyper_M=4)
LEVELS = 64
KINDS = [(family, mean) for family in HYPER_TRANSFORMS for mean in (False, True)]


def pair(family: str, mean: bool):
    """h_a and h_s with every weight moved off its initial value."""
    torch.manual_seed(0)
    transforms = [cls(**SIZES, mean=mean) for cls in HYPER_TRANSFORMS[family]]
    with torch.no_grad():
        for parameter in (p for transform in transforms for p in transform.parameters()):
            parameter += 0.2 * torch.randn_like(parameter)
        transforms[1].outer.values += 4
    return transforms


def constants_of(h_s, *level: float) -> Constants:
    gain = 1 + torch.arange(len(level) * 5).reshape(-1, 5, 1, 1) / 3
    return h_s.constants(torch.tensor(level), gain)


def symbols(*shape: int, reach: int = 9) -> torch.Tensor:
    return torch.randint(-reach, reach + 1, shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("family, mean", KINDS)
@torch.no_grad()
def test_shapes_fit_for_every_size_of_the_latent(family, mean):
    h_a, h_s = pair(family, mean)
    level = torch.tensor([0.2, 0.7])
    for height in range(1, 10):
        for width in range(1, 10):
            z = h_a(torch.randn(2, 12, height, width), level)
            assert z.shape == (2, 5, -(-height // 4), -(-width // 4)) and z.dtype == torch.float32
            outputs = h_s(torch.round(z), constants_of(h_s, 0.2, 0.7), LEVELS)
            for output, dtype in zip(outputs, (torch.float64, torch.float32), strict=True):
                assert output.shape == (2, 12, 4 * z.shape[2], 4 * z.shape[3]) and output.dtype == dtype
            assert mean or not outputs[1].any()


@pytest.mark.parametrize("transform", HYPER_TRANSFORMS)
@pytest.mark.parametrize("prior", ["scale-hyperprior", HYPER])
def test_index_and_mean_are_as_large_as_the_latent(photo, prior, transform):
    model = tiny_codec(photo, [0.01], prior, transform=transform, N=8)
    for height in range(1, 10):
        image = planes(noise_image(16 * 3, 16 * height))
        latent = model.latent(np.concatenate((image, image[:, ::-1])))
        assert latent.y.shape == latent.index.shape == (2, 24, height, 3)
        assert latent.index.dtype == np.uint8 and latent.z.shape == (2, 10, -(-height // 4), 1)


@pytest.mark.parametrize("family, mean", KINDS)
@torch.no_grad()
def test_the_index_depends_on_symbols_and_constants_alone(family, mean):
    _, h_s = pair(family, mean)
    z, constants = symbols(4, 5, 3, 2), constants_of(h_s, 0.0, 0.3, 0.6, 1.0)
    index, _ = h_s(z, constants, LEVELS)
    assert len(index.unique()) > 20 and torch.equal(index, index.round())
    for dtype in (torch.int32, torch.float32, torch.float64):
        assert torch.equal(h_s(z.to(dtype), constants, LEVELS)[0], index)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(h_s(z, constants, LEVELS)[0], index)
    alone = [h_s(z[i : i + 1], Constants(*(part[i : i + 1] for part in constants)), LEVELS)[0] for i in range(4)]
    assert torch.equal(torch.cat(alone), index)
    if mean:
        for parameter in h_s.mean.parameters():
            parameter.normal_()
    h_s.inner.values.zero_()
    h_s.outer.values.zero_()
    assert torch.equal(h_s.eval()(z, constants, LEVELS)[0], index)
    assert not torch.equal(
        h_s(z, Constants(constants.step, constants.inner, constants.outer + 2**11), LEVELS)[0], index
    )
    assert not torch.equal(h_s(z.flip(1), constants, LEVELS)[0], index)


@pytest.mark.parametrize("family, mean", KINDS)
@torch.no_grad()
def test_the_index_names_a_table_and_the_mean_is_finite_whatever_the_symbols(family, mean):
    _, h_s = pair(family, mean)
    constants = constants_of(h_s, 0.0, 1.0)
    h_s.check_bounds(constants)
    for far in (
        constants._replace(step=constants.step * -(2.0**40)),
        constants._replace(outer=constants.outer + 2.0**50),
    ):
        with pytest.raises(ValueError, match="can reach"):
            h_s.check_bounds(far)
    signs = torch.where(symbols(2, 5, 3, 3) > 0, REACH, -REACH)
    for z in (signs, torch.full_like(signs, REACH), torch.full_like(signs, -REACH), symbols(2, 5, 3, 3, reach=REACH)):
        for outer in (constants.outer, constants.outer - 2**20, constants.outer + 2**20):
            index, means = h_s(z, Constants(constants.step, constants.inner, outer), LEVELS)
            assert 0 <= index.min() and index.max() <= LEVELS - 1 and torch.equal(index, index.round())
            assert means is None or means.isfinite().all()


@pytest.mark.parametrize("family, mean", KINDS)
@torch.no_grad()
def test_the_level_conditions_both_transforms(family, mean):
    h_a, h_s = pair(family, mean)
    low, high = constants_of(h_s, 0.1), constants_of(h_s, 0.9)
    both = h_s.constants(torch.tensor([0.1, 0.9]), torch.cat((1 + torch.arange(5).reshape(1, 5, 1, 1) / 3,) * 2))
    for part, a, b in zip(both, low, high, strict=True):
        assert torch.equal(part, torch.cat((a, b))) and part.dtype == torch.float64 and torch.equal(part, part.round())
    assert not torch.equal(low.inner, high.inner) and not torch.equal(low.outer, high.outer)
    z = symbols(1, 5, 2, 2)
    assert not torch.equal(h_s(z, low, LEVELS)[0], h_s(z, high, LEVELS)[0])
    if family == "fast":
        v = torch.randn(1, 12, 4, 4)
        assert not torch.equal(h_a(v, torch.tensor([0.1])), h_a(v, torch.tensor([0.9])))


@pytest.mark.parametrize("family, mean", KINDS)
@torch.no_grad()
def test_at_step_0_the_index_is_the_outer_constant_and_the_mean_is_0(family, mean):
    torch.manual_seed(0)
    h_s = HYPER_TRANSFORMS[family][1](**SIZES, mean=mean)
    h_s.outer.values.uniform_(-1, 9)
    index, means = h_s(symbols(2, 5, 2, 3, reach=REACH), constants_of(h_s, 0.0, 1.0), LEVELS)
    nearest = (h_s.outer.values[[0, -1]].double() * 8 + 0.5).floor().clamp(0, LEVELS - 1)
    assert torch.equal(index, nearest[:, :, None, None].expand_as(index))
    assert means is None or not means.any()


@pytest.mark.parametrize("height, width", [(1, 1), (1, 4), (3, 2), (6, 7)])
@torch.no_grad()
def test_zeros_inserted_and_convolved_are_a_transposed_convolution_of_the_mirrored_input(height, width):
    torch.manual_seed(0)
    conv = IntegerConv2d(3, 2, 5)
    conv.bias.normal_()
    x = symbols(2, 3, height, width, reach=5000).double()
    weight = torch.round(conv.weight.double() * 2**12).flip(2, 3).transpose(0, 1)
    bias, p = torch.round(conv.bias.double() * 2**20), 8
    far = F.conv_transpose2d(mirror_pad(x, p, p, p, p), weight, bias, stride=2, padding=2, output_padding=1)
    far = far[..., 2 * p : 2 * p + 2 * height, 2 * p : 2 * p + 2 * width]
    assert torch.equal(conv(insert_zeros(x)), torch.floor(far / 2**12))


def test_the_channels_of_h_s_are_the_published_ones():
    """In compressai's ScaleHyperprior(N, M) and MeanScaleHyperprior(N, M)."""
    for mean, sizes in ((False, [128, 128, 192]), (True, [192, 288, 192])):
        h_s = BalleHyperSynthesis(M=192, N=128, K=128, mean=mean)
        assert [layer.weight.shape[0] for layer in (*h_s.layers, h_s.scale)] == sizes


@pytest.mark.parametrize("lmbda", [[0.0009, 0.18], [0.013]])
def test_stored_constants_and_tables_are_taken_over_exactly(photo, lmbda):
    model = tiny_codec(photo, lmbda, HYPER)
    stored = model.tables.to_tensors()
    weights = {name: t.numpy() for name, t in model.backend.network.state_dict().items()}
    again = CodecTables.from_tensors(stored | weights, model.config)
    for part in ("y", "z"):
        own, taken = getattr(model.tables, part), getattr(again, part)
        assert own.keys() == taken.keys() and all(own[q].digest() == taken[q].digest() for q in own)
    for quality, constants in model.tables.constants.items():
        for name, constant in again.constants[quality].items():
            assert np.array_equal(constant, constants[name]) and constant.dtype == np.int32 and constant.any()
    repeated = again.to_tensors()
    assert repeated.keys() == stored.keys() and all(np.array_equal(repeated[name], stored[name]) for name in stored)


def test_coding_reads_the_stored_constants_and_not_the_weights_that_they_were_made_from(hyper, photo):
    data = hyper.compress(photo, 50)
    before = hyper.decode(*bitstream.read(data))
    with torch.no_grad():
        network = hyper.backend.network
        network.h_s.outer.values += 0.5
        network.h_s.inner.values += 0.5
        network.hyper_gain.first += 0.5
    assert np.array_equal(hyper.decode(*bitstream.read(data)).index, before.index)


def test_a_model_whose_sums_could_be_inexact_is_not_exported(photo):
    model = tiny_network(photo, [0.013], HYPER)
    with torch.no_grad():
        model.h_s.layers[2].weight[3] = 1e7
    with pytest.raises(ValueError, match=r"channel 3 .* 2\*\*53"):
        codec_of(model)


def test_hyper_symbols_are_kept_within_reach_with_a_gradient_that_leads_back(photo):
    model = tiny_network(photo, [0.013], HYPER)
    with torch.no_grad():
        list(model.h_a.parameters())[-2].mul_(1000)
    z = codec_of(model).latent(planes(photo)).z
    assert z.min() == -REACH and z.max() == REACH


@pytest.mark.parametrize("value", [-(2**31), -REACH - 1, REACH + 1, 2**31 - 1])
def test_a_hyper_symbol_beyond_reach_is_refused(hyper, photo, value):
    latent = hyper.latent(planes(photo), 50)
    z = latent.z.copy()
    z[0, 3, 0, 1] = value
    data = hyper.encode(dataclasses.replace(latent, z=z), 50, "RGB", (64, 96))
    with pytest.raises(FormatError, match="damaged.*beyond 127"):
        hyper.decompress(data)


def test_hyper_symbols_at_the_ends_of_their_reach_are_decoded(hyper, photo):
    latent = hyper.latent(planes(photo), 50)
    z = np.where(latent.z > 0, REACH, -REACH).astype(np.int32)
    data = hyper.encode(dataclasses.replace(latent, z=z), 50, "RGB", (64, 96))
    decoded = hyper.decode(*bitstream.read(data))
    assert np.array_equal(decoded.z, z) and np.array_equal(decoded.y, latent.y)


def test_both_sections_must_be_there_once_in_any_order_and_under_their_own_tags(hyper, photo):
    header, (z, y) = bitstream.read(hyper.compress(photo, 50))
    assert (z.tag, y.tag) == (bitstream.HYPER, bitstream.LATENT)
    expected = hyper.decode(header, [z, y])
    assert np.array_equal(hyper.decode(header, [y, z]).y, expected.y)
    swapped = [Section(z.tag, y.payload), Section(y.tag, z.payload)]
    twice = [Section(z.tag, z.payload), Section(y.tag, z.payload)]
    for sections in ([y], [z], [z, z, y], [z, y, y], swapped, twice):
        with pytest.raises(FormatError):
            hyper.decompress(bitstream.write(header, sections))


def test_the_files_of_both_priors_are_not_mixed_up(hyper, tiny, photo):
    for ours, theirs in ((hyper, tiny), (tiny, hyper)):
        header, sections = bitstream.read(theirs.compress(photo, 50))
        forged = bitstream.write(dataclasses.replace(header, model=ours.id), sections)
        with pytest.raises(FormatError):
            ours.decompress(forged)


@pytest.mark.parametrize("density", ["laplace", "gaussian"])
@pytest.mark.parametrize("lmbda", [[0.0009, 0.18], [0.013]])
def test_fit_makes_the_first_indices_those_of_the_latents_deviations(photos, lmbda, density):
    torch.manual_seed(0)
    model = untrained(**SMALL, lmbda=lmbda, density=density)
    x = torch.cat([to_tensor(photo) for photo in photos])
    fit(model, x)
    quality = model.config.qualities[-1]
    latent = codec_of(model).latent(np.concatenate([planes(photo) for photo in photos]), quality)
    scale = model.conditional.scale_of(torch.from_numpy(latent.index).double())
    deviation = model.analyse(x, model.level_of(quality, len(x))).std(dim=(0, 2, 3), correction=0).detach()
    ratio = scale / deviation.clamp(model.conditional.least, model.conditional.most)[:, None, None]
    assert ratio.min() > 0.92 and ratio.max() < 1.08  # half a step of the tables' scales
    fit(model, x[:1, :, :16, :16])  # one sample has no deviation
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("transform", ["fast", "bmshj2018"])
@pytest.mark.parametrize("lmbda", [[0.0009, 0.18], [0.013]])
def test_every_channel_of_z_has_something_to_say_at_step_0(photos, transform, lmbda):
    torch.manual_seed(0)
    model = untrained(**SMALL, transform=transform, lmbda=lmbda)
    x = torch.cat([to_tensor(photo) for photo in photos])
    fit(model, x)
    w, _ = calibrate.hyper_latents(model, x)  # at low and high qualities
    torch.testing.assert_close(w.std(dim=(0, 2, 3), correction=0), torch.ones(4), rtol=0, atol=0.02)
    assert w.round().std(dim=(0, 2, 3)).min() > 0.3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_loaded_model_can_be_moved_to_another_device(models, photo):
    model = load_model(models / "hyper.safetensors")
    data = model.compress(photo, 50)
    expected = model.decode(*bitstream.read(data))
    model.backend.network.cuda()
    moved = model.decode(*bitstream.read(data))
    assert np.array_equal(moved.y, expected.y) and np.array_equal(moved.index, expected.index)
