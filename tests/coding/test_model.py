"""The codec: what the encoder wrote is what the decoder reads, at the price that the rate model named."""

import itertools
import math

import numpy as np
import pytest
import torch
from PIL import Image
from shared import codec_of, noise_image, tiny_network, untrained

import codec
from codec.coding.models import load_model
from codec.coding.tiles import Latent, planes
from codec.container import bitstream
from codec.evaluation.cost import kmac_of
from codec.evaluation.metrics import psnr
from codec.files import sample_images
from codec.network.calibrate import fit
from codec.network.layers import Gain, step_gain
from codec.network.pixels import to_tensor, to_uint8

SIDES = (1, 2, 5, 15, 16, 17, 33)

ALL = [("tiny", 40), ("fixed", None), ("hyper", 40), ("hyper_fixed", None)]


def same(a: Latent, b: Latent) -> bool:
    """Whether two latents are coded alike."""
    return np.array_equal(a.y, b.y) and np.array_equal(a.z, b.z) and np.array_equal(a.index, b.index)


@pytest.mark.parametrize("height", SIDES)
def test_every_size_comes_back_with_its_size_mode_and_symbols(model, height):
    for width, mode in zip(SIDES, itertools.cycle(("RGB", "L")), strict=False):
        image = noise_image(width, height, mode)
        data = model.compress(image, 60)
        assert same(model.decode(*bitstream.read(data)), model.latent(planes(image), 60))
        decoded = model.decompress(data)
        assert (decoded.size, decoded.mode) == ((width, height), mode)


@pytest.mark.parametrize("prior", ["factorized", "scale-hyperprior", "mean-scale-hyperprior"])
def test_the_bmshj2018_family_codes_every_size_too(photo, prior):
    model = tiny_network(photo, [0.01], prior, transform="bmshj2018", N=8, M=8)
    with torch.no_grad():
        model.g_a.layers[-1].weight *= 300  # away from the all-zero latent that it starts with
        fit(model, to_tensor(photo))
    model = codec_of(model)
    for width, height in zip(SIDES, SIDES[::-1], strict=True):
        image = noise_image(width, height)
        data = model.compress(image)
        latent = model.latent(planes(image))
        assert latent.y.any() and same(model.decode(*bitstream.read(data)), latent)
        assert model.decompress(data).size == (width, height)


@pytest.mark.parametrize("backend", ["torch", "onnx"])
@pytest.mark.parametrize("name, quality", ALL)
def test_a_batch_is_its_images(models, photos, name, quality, backend):
    model = load_model(models / f"{name}.safetensors", precision="fp32", backend=backend)
    latent = model.latent(np.concatenate([planes(photo) for photo in photos]), quality)
    x_hat = model.reconstruct(latent, (64, 96), quality)
    for i in range(len(photos)):
        data = model.encode(latent.of(i), quality, "RGB", (64, 96))
        assert same(model.decode(*bitstream.read(data)), latent.of(i))
        torch.testing.assert_close(model.reconstruct(latent.of(i), (64, 96), quality), x_hat[i : i + 1])


def test_compress_writes_the_latent_of_the_image(model, photo):
    assert model.compress(photo, 30) == model.encode(model.latent(planes(photo), 30), 30, "RGB", (64, 96))


@pytest.mark.parametrize("name, quality", ALL)
def test_evaluation_forward_is_the_codec(models, photo, name, quality):
    model = load_model(models / f"{name}.safetensors", precision="fp32")
    batch = None if quality is None else torch.tensor([float(quality)])
    x_hat = to_uint8(model.backend.network(to_tensor(photo), batch).x_hat)[0].permute(1, 2, 0).numpy()
    decoded = np.array(model.decompress(model.compress(photo, quality)))
    assert np.abs(decoded.astype(int) - x_hat).max() <= 1  # floats may sum in another order


@pytest.mark.parametrize("setting", ["train", "eval", "mixed"])
def test_coding_does_not_depend_on_the_mode_and_leaves_it_unchanged(torch_model, photo, setting):
    model = torch_model
    expected = model.compress(photo, 50)
    network = model.backend.network.train(setting != "eval")
    if setting == "mixed":
        network.g_a.eval()
    before = {module: module.training for module in network.modules()}
    data = model.compress(photo, 50)
    model.decompress(data)
    model.estimate(photo, 50)
    with pytest.raises(ValueError):
        model.compress(photo, 101)
    assert data == expected
    assert {module: module.training for module in network.modules()} == before


def test_forward_adds_noise_to_the_rate_alone_and_only_in_training(torch_model, photo):
    x, quality, network = to_tensor(photo), torch.tensor([50.0]), torch_model.backend.network
    network.train()
    first, second = network(x, quality), network(x, quality)
    assert first.bits != second.bits and torch.equal(first.x_hat, second.x_hat)
    network.eval()
    assert torch.equal(network(x, quality).bits, network(x, quality).bits)


@pytest.mark.parametrize("name, quality", [*itertools.product(["tiny", "hyper"], range(0, 101, 20)), *ALL[1::2]])
def test_a_file_is_as_large_as_the_rate_model_says(models, photo, name, quality):
    model = load_model(models / f"{name}.safetensors", precision="fp32")
    for image in (photo, photo.convert("L"), noise_image(50, 33)):
        estimate = model.estimate(image, quality)
        assert len(model.compress(image, quality)) <= estimate.bits / 8 * 1.005 + (64 if "hyper" in name else 48)
        assert estimate.cross_entropy == pytest.approx(estimate.bits / estimate.symbols.size)
        if model.config.prior == "factorized":  # a hyperprior may know more than a channel's histogram
            assert estimate.empirical_entropy <= estimate.cross_entropy


def test_gain_never_decreases_with_quality_whatever_its_parameters():
    torch.manual_seed(0)
    gain = Gain(5, *map(step_gain, (0.0009, 0.18)))
    with torch.no_grad():
        gain.growth.normal_(std=4)
    steps = gain(torch.linspace(0, 1, 101))[..., 0, 0]
    assert (steps.diff(dim=0) >= 0).all()


def test_untrained_gain_is_proportional_to_the_root_of_lambda():
    steps = Gain(2, *map(step_gain, (0.001, 0.1)))(torch.tensor([0.0, 0.5, 1.0]))[..., 0, 0]
    torch.testing.assert_close(steps[1:] / steps[:-1], torch.full((2, 2), math.sqrt(10)))


def test_size_grows_with_quality(model, photo):
    sizes = [len(model.compress(photo, quality)) for quality in range(0, 101, 10)]
    assert all(b > 0.98 * a for a, b in zip(sizes[:-1], sizes[1:], strict=True)) and sizes[-1] > 2 * sizes[0]


def test_size_of_every_image_and_their_mean_psnr_grow_with_the_quality_of_the_default_model():
    """With all photographs and qualities: python -m benchmarks.rates."""
    model, images = codec.load(device="cpu"), [image.crop((100, 50, 356, 242)) for _, image in sample_images()]
    files = np.array([[model.compress(image, quality) for image in images] for quality in range(0, 101, 10)], object)
    db = [[psnr(image, model.decompress(data)) for image, data in zip(images, row, strict=True)] for row in files]
    assert (np.diff(np.vectorize(len)(files), axis=0) > 0).all() and (np.diff(np.mean(db, axis=1)) > 0).all()


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.int32])
def test_a_quality_of_numpy_is_one(model, photo, kind):
    assert model.compress(photo, kind(50)) == model.compress(photo, 50)


@pytest.mark.parametrize("quality", [-1, 101, None, 50.0, "50", True])
def test_a_quality_that_is_not_an_integer_from_0_to_100_is_refused(model, photo, quality):
    with pytest.raises(ValueError, match=r"0\.\.100"):
        model.compress(photo, quality)


def test_a_model_of_one_lambda_has_no_quality(model_fixed, photo):
    with pytest.raises(ValueError, match="one lambda"):
        model_fixed.compress(photo, 50)


def test_an_image_without_pixels_is_refused(tiny):
    with pytest.raises(ValueError, match="no pixels"):
        tiny.compress(Image.new("RGB", (0, 5)), 50)


def test_the_file_of_another_model_is_refused_with_both_ids(tiny, model_fixed, photo):
    with pytest.raises(bitstream.FormatError, match=f"{model_fixed.id}.*{tiny.id}"):
        tiny.decompress(model_fixed.compress(photo))


def test_a_damaged_stream_with_a_right_checksum_is_still_found(model, photo):
    header, sections = bitstream.read(model.compress(photo, 50))
    for i, (tag, payload) in enumerate(sections):
        for stream in [payload[:count] for count in range(len(payload))] + [payload + b"\0", payload[::-1]]:
            forged = [*sections[:i], bitstream.Section(tag, stream), *sections[i + 1 :]]
            with pytest.raises(bitstream.FormatError, match="damaged"):
                model.decompress(bitstream.write(header, forged))


@pytest.mark.parametrize("change", [{"width": 200}, {"height": 16}, {"quality": None}, {"quality": 51}])
def test_a_forged_header_with_a_right_checksum_is_still_found(model, photo, change):
    header, sections = bitstream.read(model.compress(photo, 50))
    with pytest.raises(bitstream.FormatError):
        model.decompress(bitstream.write(bitstream.Header(**{**vars(header), **change}), sections))


@pytest.mark.parametrize("name, quality", [(name, None if q is None else torch.linspace(0, 100, 9)) for name, q in ALL])
def test_the_loss_has_a_gradient_for_every_parameter(models, name, quality):
    model = load_model(models / f"{name}.safetensors", precision="fp32").backend.network.train()
    torch.manual_seed(0)
    x = torch.rand(9, 3, 32, 48)
    x_hat, bits, _ = model(x, quality)
    (bits.mean() + 1e4 * (x_hat - x).square().mean()).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), parameter_name
        assert parameter.grad.isfinite().all(), parameter_name


def test_kmac_counts_every_convolution():
    """The encoder of Ballé et al. 2018 by hand: four convolutions and three GDN, per pixel."""
    model = codec_of(untrained(transform="bmshj2018", N=16, M=24, prior="factorized", lmbda=[0.01]))
    convolutions = 25 * (3 * 16 / 4 + 16 * 16 / 16 + 16 * 16 / 64 + 16 * 24 / 256)
    gdn = 16 * 16 * (1 / 4 + 1 / 16 + 1 / 64)
    encoder, decoder = kmac_of(model)
    assert encoder == pytest.approx((convolutions + gdn) / 1000, rel=1e-3)  # beside these, a density at five points
    assert encoder <= decoder <= 1.1 * encoder  # the mirrored border is counted as well


def test_kmac_counts_the_hyper_transforms():
    """Those of the fast family by hand; the encoder runs both, the decoder h_s."""
    N, M, K = 12, 24, 10
    config = dict(N=16, M=M, blocks=[1, 1], hyper_N=N, hyper_M=K, lmbda=[0.01])
    total = {}
    for prior in ("factorized", "mean-scale-hyperprior"):
        total[prior] = kmac_of(codec_of(untrained(**config, prior=prior)))
    block = 6 * N * N + 9 * N
    h_a = M * N / 256 + (4 * N * N + block) / 1024 + (4 * N * N + N * K) / 4096
    h_s = (9 * K * N + 4 * N * N) / 4096 + (9 * N * N + 4 * N * N) / 1024 + (2 * N * M + block) / 256
    encoder, decoder = np.subtract(total["mean-scale-hyperprior"], total["factorized"]) * 1000
    assert encoder == pytest.approx(h_a + h_s, abs=0.2)  # the factorized encoder also evaluates its density
    assert decoder == pytest.approx(h_s)
