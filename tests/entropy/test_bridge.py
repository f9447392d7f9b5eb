"""compressai's models through our coder: the same symbols, the model as it was, and damage that is found."""

import zlib

import numpy as np
import pytest
import torch

pytest.importorskip("compressai")

from compressai import models  # noqa: E402
from compressai.entropy_models import EntropyBottleneck, EntropyModel, GaussianConditional  # noqa: E402

from entropy import StreamError  # noqa: E402
from entropy.bridge import Bridge, _tables  # noqa: E402

KINDS = [models.FactorizedPrior, models.FactorizedPriorReLU, models.ScaleHyperprior, models.MeanScaleHyperprior]


def tiny(kind, seed=0):
    """An untrained model whose symbols, scales and means are anything but constant."""
    torch.manual_seed(seed)
    model = kind(N=16, M=24)
    with torch.no_grad():
        model.g_a[-1].weight *= 300
        model.entropy_bottleneck.quantiles += torch.rand(model.entropy_bottleneck.channels, 1, 1) - 0.5
        if not isinstance(model, models.FactorizedPrior):
            model.h_a[-1].weight *= 10
            last = [layer for layer in model.h_s if hasattr(layer, "bias")][-1]
            last.bias += torch.exp(torch.empty_like(last.bias).uniform_(-3, 3))
    model.update()
    return model


def images(count=2, height=128, width=64):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(count))


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def model(request):
    return tiny(request.param)


@pytest.mark.parametrize("contrast", [1, 1e4])  # the second brings symbols far beyond every table
def test_symbols_and_images_are_those_of_the_models_own_path(model, contrast):
    x = (images() - 0.5) * contrast
    latents = []
    hook = model.g_s.register_forward_pre_hook(lambda module, inputs: latents.append(inputs[0].clone()))
    own = model.compress(x)
    reference = model.decompress(**own)["x_hat"]
    bridge = Bridge(model)
    data = bridge.compress(x)
    assert torch.equal(bridge.decompress(data), reference)
    hook.remove()
    assert torch.equal(*latents) and latents[0].unique().numel() > 20
    strings = [string for strings in own["strings"] for string in strings]
    assert contrast > 1 or len(data) <= 1.02 * sum(map(len, strings)) + 25 + 12 * len(strings)


def test_a_frame_is_what_the_docstring_says():
    bridge = Bridge(tiny(models.ScaleHyperprior))
    data = bridge.compress(images(1, 128, 192))
    assert data[:5] == b"\x89LCA\x01" and data[13:16] == bytes([1, 2, 3])
    covered, position, lengths = data[:16], 16, []
    while position < len(data):
        assert data[position : position + 4] == zlib.crc32(covered).to_bytes(4, "little")
        position += 4
        if position < len(data):
            length, digits = data[position], 1
            if length > 127:
                length, digits = (length - 128) * 128 + data[position + 1], 2
            covered += data[position : position + digits + length]
            position += digits + length
            lengths.append(length)
    assert len(lengths) == 2 and lengths[0] > lengths[1]  # y, z


def test_nothing_is_changed(model):
    x = images()
    model.train()
    methods = [(kind, name) for kind in (EntropyModel, EntropyBottleneck, GaussianConditional, type(model))
               for name in ("compress", "decompress")]  # fmt: skip
    before = [getattr(kind, name) for kind, name in methods]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    modules, own = list(model.named_modules()), model.compress(x)["strings"]
    bridge = Bridge(model)
    assert not bridge.decompress(bridge.compress(x)).requires_grad
    assert [getattr(kind, name) for kind, name in methods] == before
    assert list(model.named_modules()) == modules and all(module.training for _, module in modules)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert model.compress(x)["strings"] == own


def test_tables_give_each_symbol_the_share_that_the_model_gives_it_and_the_least_likely_to_the_escape():
    theirs = tiny(models.ScaleHyperprior).gaussian_conditional
    tables = _tables(theirs)
    assert len(tables) == 64
    for row in range(64):
        freqs = np.diff(theirs.quantized_cdf[row, : theirs.cdf_length[row]].numpy())[:-1]
        first, last = np.flatnonzero(freqs > 1)[[0, -1]]
        ours = tables.between(row, row + 1)
        assert ours.offsets[0] == theirs.offset[row] + first and ours.sizes[0] - 1 == last - first + 1
        share = freqs[first : last + 1] / 2**16
        assert np.abs(ours.freqs[:-1] / 2**14 - share).max() <= 2**-14 + 0.05 * share.max()


def test_other_models_are_refused():
    with pytest.raises(ValueError, match="JointAutoregressiveHierarchicalPriors does not compress as FactorizedPrior,"):
        Bridge(models.JointAutoregressiveHierarchicalPriors(N=16, M=24))
    with pytest.raises(ValueError, match="Cheng2020Anchor does not"):
        Bridge(models.Cheng2020Anchor(N=16))
    with pytest.raises(ValueError, match="Linear does not"):
        Bridge(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match=r"EntropyBottleneck has no tables yet: call the model's update\(\) first"):
        Bridge(models.FactorizedPrior(N=16, M=24))


@pytest.mark.parametrize("shape", [(3, 64, 64), (0, 3, 64, 64), (1, 3, 0, 64), (1, 3, 64, 65), (1, 3, 32, 64)])
def test_images_of_other_sizes_are_refused(shape):
    with pytest.raises(ValueError, match="multiples of 64 is needed"):
        Bridge(tiny(models.MeanScaleHyperprior)).compress(torch.zeros(shape))


def test_a_frame_of_another_model_is_refused(model):
    other = tiny(type(model), seed=1)
    with pytest.raises(StreamError, match="another model"):
        Bridge(other).decompress(Bridge(model).compress(images()))
    kind = models.FactorizedPrior if type(model) is models.ScaleHyperprior else models.ScaleHyperprior
    with pytest.raises(StreamError, match="another model"):
        Bridge(tiny(kind)).decompress(Bridge(model).compress(images()))


def stamped(parts):
    """A frame of header and strings, with its checksums."""
    return b"".join(part + zlib.crc32(b"".join(parts[: k + 1])).to_bytes(4, "little") for k, part in enumerate(parts))


def string(data):
    return bytes([128 + len(data) // 128] * (len(data) > 127) + [len(data) % 128]) + data


@pytest.fixture(scope="module")
def coded():
    """A bridge, a frame of two images, and the header and strings of that."""
    bridge = Bridge(tiny(models.MeanScaleHyperprior))
    data = bridge.compress(images(2, 64, 64))
    _, _, strings = bridge._read(data, 1 << 20)
    parts = [data[:16], *map(string, strings)]
    assert stamped(parts) == data
    return bridge, data, parts


def test_every_damaged_byte_truncation_and_extension_is_found(coded):
    bridge, data, _ = coded
    for place in range(len(data)):
        broken = bytearray(data)
        broken[place] ^= 1 << place % 8
        for wrong in (bytes(broken), data[:place], data[:place] + data[place + 1 :]):
            with pytest.raises(StreamError):
                bridge._read(wrong, 1 << 20)
    for extension in (b"\0", data, data[16:]):
        with pytest.raises(StreamError):
            bridge.decompress(data + extension)


def test_strings_cannot_change_places_nor_come_from_another_frame(coded):
    bridge, data, parts = coded
    ends = np.cumsum([len(part) + 4 for part in parts])
    pieces = [data[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]
    assert b"".join(pieces) == data
    for order in ([0, 2, 1, 3, 4], [0, 1, 2, 4, 3], [0, 3, 4, 1, 2], [0, 1, 1, 3, 4]):
        with pytest.raises(StreamError, match="no valid checksum"):
            bridge.decompress(b"".join(pieces[k] for k in order))


@pytest.mark.parametrize(
    "header, message",
    [
        (bytes([0, 1, 1]), "0 images have 0 pixels"),
        (bytes([2, 0, 1]), "2 images have 0 pixels"),
        (bytes([2, 0xFF, 0x7F, 0xFF, 0x7F]), "2 images have 2198754828288 pixels; 1 to 134217728 are allowed"),
        (bytes([0xFF] * 9 + [0x7F, 1, 1]), "images have"),
        (bytes([0x82, 0x80, 0, 1, 1]), "does not end|no valid checksum"),  # there are not so many strings
        (bytes([1, 1, 1]), "bytes follow the last string"),
        (bytes([0x80, 2, 1, 1]), "leading zero"),
    ],
)
def test_forged_numbers_with_valid_checksums_are_refused(coded, header, message):
    bridge, data, parts = coded
    with pytest.raises(StreamError, match=message):
        bridge.decompress(stamped([data[:13] + header, *parts[1:]]))


def test_damage_below_valid_checksums_is_refused_or_decoded(coded):
    bridge, _, parts = coded
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(200):
        broken = [bytearray(part) for part in parts]
        which = rng.integers(1, len(parts))
        broken[which][rng.integers(len(broken[which]))] ^= 1 << rng.integers(8)
        try:
            assert bridge.decompress(stamped(broken)).shape == (2, 3, 64, 64)
        except StreamError:
            refused += 1
    assert refused > 150
