"""The codec: what the encoder wrote is what the decoder reads, at the price that the rate model named."""

import hashlib
import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import noise_image
from PIL import Image

from codec import bitstream
from codec.checkpoint import load_model
from codec.config import ModelConfig
from codec.image import to_tensor, to_uint8
from codec.model import FactorizedCodec, Gain

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
SIDES = (1, 2, 3, 5, 8, 15, 16, 17, 31, 32, 33, 40)

DECODE = """
import hashlib, sys
from pathlib import Path
from codec import bitstream
from codec.checkpoint import load_model
model = load_model(sys.argv[1])
for path in sys.argv[2:]:
    symbols = model.decode(*bitstream.read(Path(path).read_bytes()))
    print(hashlib.sha256(symbols.tobytes()).hexdigest())
"""


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("height", SIDES)
def test_every_size_comes_back_with_its_size_and_mode(tiny, mode, height):
    for width in SIDES:
        decoded = tiny.decompress(tiny.compress(noise_image(width, height, mode), 60))
        assert (decoded.size, decoded.mode) == ((width, height), mode)


def test_the_bmshj2018_family_codes_every_size_too():
    torch.manual_seed(0)
    model = FactorizedCodec(ModelConfig(transform="bmshj2018", N=8, M=8, lmbda=[0.01]))
    with torch.no_grad():
        model.g_a.layers[-1].weight *= 300  # away from the all-zero latent that it starts with
        model.prior.scale *= 10
    model.build_tables()
    for width, height in zip(SIDES, SIDES[::-1], strict=True):
        image = noise_image(width, height)
        data = model.compress(image)
        symbols = model.symbols(to_tensor(image))[0]
        assert symbols.any() and np.array_equal(model.decode(*bitstream.read(data)), symbols)
        assert model.decompress(data).size == (width, height)


@pytest.fixture(scope="module")
def files(models, photos):
    """Files made in every way that could matter to floats: name -> (bytes, the encoder's symbols)."""
    model = load_model(models / "tiny.safetensors")
    x = torch.cat([to_tensor(photo) for photo in photos])
    made = {}
    for device, threads, bf16 in itertools.product(DEVICES, (1, 2), (False, True)):
        torch.set_num_threads(threads)
        model.to(device).bf16 = bf16
        ways = {"batch": model.symbols(x, 70), "alone": [model.symbols(x[i : i + 1], 70)[0] for i in range(len(x))]}
        for (way, latents), i in itertools.product(ways.items(), range(len(x))):
            data = model.encode(latents[i], 70, "RGB", (64, 96))
            made[f"{device}-threads{threads}-{model.precision}-{way}{i}"] = data, latents[i]
    torch.set_num_threads(1)
    return made


def test_the_decoder_recovers_exactly_the_symbols_of_any_encoder_in_another_process(files, models, tmp_path):
    for name, (data, _) in files.items():
        (tmp_path / name).write_bytes(data)
    command = [sys.executable, "-c", DECODE, models / "tiny.safetensors", *(tmp_path / name for name in files)]
    hashes = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert hashes == [hashlib.sha256(symbols.tobytes()).hexdigest() for _, symbols in files.values()]


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("device", DEVICES)
def test_the_decoder_recovers_exactly_the_symbols_of_any_encoder_in_any_precision(files, tiny, device, bf16):
    tiny.to(device).bf16 = bf16
    for data, symbols in files.values():
        assert np.array_equal(tiny.decode(*bitstream.read(data)), symbols)


def test_compress_writes_the_symbols_of_the_image(tiny, photo):
    assert tiny.compress(photo, 30) == tiny.encode(tiny.symbols(to_tensor(photo), 30)[0], 30, "RGB", (64, 96))


def test_evaluation_forward_is_the_codec(tiny, fixed, photo):
    for model, quality in ((tiny, 40), (fixed, None)):
        batch = None if quality is None else torch.tensor([float(quality)])
        x_hat = to_uint8(model(to_tensor(photo), batch).x_hat)[0].permute(1, 2, 0).numpy()
        decoded = np.array(model.decompress(model.compress(photo, quality)))
        assert np.abs(decoded.astype(int) - x_hat).max() <= 1  # floats may sum in another order


@pytest.mark.parametrize("setting", ["train", "eval", "mixed"])
def test_coding_does_not_depend_on_the_mode_and_leaves_it_unchanged(tiny, photo, setting):
    expected = tiny.compress(photo, 50)
    tiny.train(setting != "eval")
    if setting == "mixed":
        tiny.g_a.eval()
    before = {module: module.training for module in tiny.modules()}
    data = tiny.compress(photo, 50)
    tiny.decompress(data)
    tiny.estimate(photo, 50)
    with pytest.raises(ValueError):
        tiny.compress(photo, 101)
    assert data == expected
    assert {module: module.training for module in tiny.modules()} == before


def test_forward_adds_noise_to_the_rate_alone_and_only_in_training(tiny, photo):
    x, quality = to_tensor(photo), torch.tensor([50.0])
    tiny.train()
    first, second = tiny(x, quality), tiny(x, quality)
    assert first.bits != second.bits and torch.equal(first.x_hat, second.x_hat)
    tiny.eval()
    assert torch.equal(tiny(x, quality).bits, tiny(x, quality).bits)


@pytest.mark.parametrize("quality", [0, 20, 50, 80, 100, None])
def test_a_file_is_as_large_as_the_rate_model_says(tiny, fixed, photo, quality):
    model = fixed if quality is None else tiny
    for image in (photo, photo.convert("L"), noise_image(50, 33)):
        estimate = model.estimate(image, quality)
        assert len(model.compress(image, quality)) <= estimate.bits / 8 * 1.005 + 48
        assert estimate.cross_entropy == pytest.approx(estimate.bits / estimate.symbols.size)
        assert estimate.empirical_entropy <= estimate.cross_entropy


def test_gain_never_decreases_with_quality_whatever_its_parameters():
    torch.manual_seed(0)
    gain = Gain(5, [0.0009, 0.18])
    with torch.no_grad():
        gain.growth.normal_(std=4)
    steps = gain(torch.linspace(0, 1, 101))[..., 0, 0]
    assert (steps.diff(dim=0) >= 0).all()


def test_untrained_gain_is_proportional_to_the_root_of_lambda():
    steps = Gain(2, [0.001, 0.1])(torch.tensor([0.0, 0.5, 1.0]))[..., 0, 0]
    torch.testing.assert_close(steps[1:] / steps[:-1], torch.full((2, 2), math.sqrt(10)))


def test_size_grows_with_quality(tiny, photo):
    sizes = [len(tiny.compress(photo, quality)) for quality in range(0, 101, 10)]
    assert all(b > 0.98 * a for a, b in zip(sizes[:-1], sizes[1:], strict=True)) and sizes[-1] > 2 * sizes[0]


@pytest.mark.parametrize("quality", [-1, 101, None, 50.0, "50", True])
def test_a_quality_that_is_not_an_integer_from_0_to_100_is_refused(tiny, photo, quality):
    with pytest.raises(ValueError, match=r"0\.\.100"):
        tiny.compress(photo, quality)


def test_a_model_of_one_lambda_has_no_quality(fixed, photo):
    with pytest.raises(ValueError, match="one lambda"):
        fixed.compress(photo, 50)


@pytest.mark.parametrize("mode", ["RGBA", "P", "I;16", "CMYK", "1"])
def test_an_image_of_another_mode_is_refused_by_name(tiny, mode):
    with pytest.raises(ValueError, match=mode):
        tiny.compress(Image.new(mode, (8, 8)), 50)


def test_an_image_without_pixels_is_refused(tiny):
    with pytest.raises(ValueError, match="no pixels"):
        tiny.compress(Image.new("RGB", (0, 5)), 50)


def test_the_file_of_another_model_is_refused_with_both_ids(tiny, fixed, photo):
    with pytest.raises(bitstream.FormatError, match=f"{fixed.id}.*{tiny.id}"):
        tiny.decompress(fixed.compress(photo))


def test_a_model_without_tables_says_how_to_get_them(photo):
    with pytest.raises(ValueError, match="export"):
        FactorizedCodec(ModelConfig(N=8, M=8, lmbda=[0.01])).compress(photo)


def test_a_damaged_stream_with_a_right_checksum_is_still_found(tiny, photo):
    header, sections = bitstream.read(tiny.compress(photo, 50))
    payload = bitstream.find(sections, bitstream.LATENT)
    forged = [payload[:count] for count in range(len(payload))] + [payload + b"\0", payload[::-1]]
    for stream in forged:
        with pytest.raises(bitstream.FormatError, match="damaged"):
            tiny.decompress(bitstream.write(header, [bitstream.Section(bitstream.LATENT, stream)]))


@pytest.mark.parametrize("change", [{"width": 200}, {"height": 16}, {"quality": None}, {"quality": 51}])
def test_a_forged_header_with_a_right_checksum_is_still_found(tiny, photo, change):
    header, sections = bitstream.read(tiny.compress(photo, 50))
    with pytest.raises(bitstream.FormatError):
        tiny.decompress(bitstream.write(bitstream.Header(**{**vars(header), **change}), sections))


@pytest.mark.parametrize("name, quality", [("tiny", torch.linspace(0, 100, 9)), ("fixed", None)])
def test_the_loss_has_a_gradient_for_every_parameter(models, name, quality):
    model = load_model(models / f"{name}.safetensors", precision="fp32").train()
    torch.manual_seed(0)
    x = torch.rand(9, 3, 32, 48)
    x_hat, bits = model(x, quality)
    (bits.mean() + 1e4 * (x_hat - x).square().mean()).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), parameter_name
        assert parameter.grad.isfinite().all(), parameter_name


def test_kmac_counts_every_convolution():
    """The encoder of Ballé et al. 2018 by hand: four convolutions and three GDN, per pixel."""
    model = FactorizedCodec(ModelConfig(transform="bmshj2018", N=16, M=24, lmbda=[0.01]))
    convolutions = 25 * (3 * 16 / 4 + 16 * 16 / 16 + 16 * 16 / 64 + 16 * 24 / 256)
    gdn = 16 * 16 * (1 / 4 + 1 / 16 + 1 / 64)
    encoder, decoder = model.kmac()
    assert encoder == pytest.approx((convolutions + gdn) / 1000)
    assert encoder <= decoder <= 1.1 * encoder  # the mirrored border is counted as well
