"""Mirror padding on both sides of the codec, and GDN beside compressai's."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from codec.network.layers import (
    GDN,
    Block,
    Conv2d,
    ConvTranspose2d,
    FoldConv2d,
    Knots,
    Lapped,
    fold,
    lapping,
    mirror_pad,
    unfold,
)

sides = st.integers(1, 7)
amounts = st.integers(0, 20)


def extended(x: torch.Tensor, p: int) -> torch.Tensor:
    """x mirrored by p samples on every side, by NumPy."""
    return torch.from_numpy(np.pad(x.numpy(), ((0, 0), (0, 0), (p, p), (p, p)), mode="reflect"))


def test_mirror_pad_of_three_by_three():
    x = torch.arange(1.0, 10.0).reshape(1, 1, 3, 3)
    rows = ["".join(str(int(v)) for v in row) for row in mirror_pad(x, 2, 0, 2, 0)[0, 0]]
    assert rows == ["98789", "65456", "32123", "65456", "98789"]


@given(sides, sides, amounts, amounts, amounts, amounts)
def test_mirror_pad_equals_numpys_reflect_for_any_size_and_amount(height, width, left, right, top, bottom):
    x = torch.arange(2.0 * height * width).reshape(1, 2, height, width)
    far = extended(x, 20)  # cut out of equal sides, because NumPy 1.26 mirrors far unequal ones wrongly
    reference = far[..., 20 - top : 20 + height + bottom, 20 - left : 20 + width + right]
    assert torch.equal(mirror_pad(x, left, right, top, bottom), reference)


@pytest.mark.parametrize("kernel, stride, groups", [(1, 1, 1), (3, 1, 1), (3, 1, 2), (5, 2, 1), (5, 1, 1)])
@pytest.mark.parametrize("height, width", [(1, 1), (1, 6), (2, 3), (8, 9), (16, 16)])
def test_conv_equals_a_valid_convolution_of_the_mirrored_input(kernel, stride, groups, height, width):
    torch.manual_seed(0)
    conv = Conv2d(2, 4, kernel, stride, groups=groups)
    x = torch.randn(2, 2, height, width)
    y = conv(x)
    reference = F.conv2d(extended(x, kernel // 2), conv.weight, conv.bias, stride, groups=groups)
    assert y.shape == (2, 4, -(-height // stride), -(-width // stride))
    torch.testing.assert_close(y, reference)


@pytest.mark.parametrize("height, width", [(1, 1), (1, 5), (2, 1), (2, 3), (7, 8)])
def test_transposed_conv_equals_that_of_the_input_mirrored_far_beyond_its_border(height, width):
    torch.manual_seed(0)
    up = ConvTranspose2d(3, 2)
    x = torch.randn(2, 3, height, width)
    y = up(x)
    p = 8
    far = F.conv_transpose2d(extended(x, p), up.weight, up.bias, stride=2, padding=2, output_padding=1)
    assert y.shape == (2, 2, 2 * height, 2 * width)
    torch.testing.assert_close(y, far[..., 2 * p : 2 * p + 2 * height, 2 * p : 2 * p + 2 * width])


def test_padding_keeps_dtype_and_layout_under_autocast_and_is_the_same_by_index():
    x = torch.randn(2, 4, 6, 5).bfloat16().contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        padded = mirror_pad(x, 2, 1, 0, 3)
    assert padded.dtype == torch.bfloat16 and padded.is_contiguous(memory_format=torch.channels_last)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.equal(mirror_pad(x, 2, 1, 0, 3), padded)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("height, width", [(1, 1), (2, 3), (5, 4)])
def test_gradients_written_out_are_those_of_the_function(height, width, layout):
    torch.manual_seed(0)
    x = torch.randn(2, 3, height, width, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    for layer in (ConvTranspose2d(3, 2), GDN(3), GDN(3, inverse=True)):
        layer = layer.double()
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter += 0.1 * torch.rand_like(parameter)
        names, values = zip(*layer.named_parameters(), strict=True)

        def call(x, *values, layer=layer, names=names):
            return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

        assert torch.autograd.gradcheck(call, (x, *values))


def test_a_trunk_in_bf16_has_nearly_the_gradients_of_float32():
    torch.manual_seed(0)
    trunk = torch.nn.Sequential(Conv2d(3, 16, 5, 2), GDN(16), ConvTranspose2d(16, 16), GDN(16, inverse=True))
    x, gradients = torch.randn(2, 3, 16, 16), []
    for enabled in (False, True):
        trunk.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            y = trunk(x)
        assert y.dtype == (torch.bfloat16 if enabled else torch.float32)
        y.float().square().mean().backward()
        gradients.append([p.grad.clone() for p in trunk.parameters()])
    for a, b in zip(*gradients, strict=True):
        assert (a - b).norm() < 0.03 * a.norm()


@pytest.mark.parametrize("size, height, width", [(2, 2, 4), (8, 16, 8), (16, 16, 32)])
def test_folding_moves_pixels_into_channels_and_back(size, height, width):
    x = torch.randn(2, 3, height, width)
    folded = fold(x, size)
    assert torch.equal(folded, F.pixel_unshuffle(x, size))
    assert torch.equal(unfold(folded, size), x) and torch.equal(unfold(folded.contiguous(), size), x)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_fold_conv_is_a_1x1_convolution_of_the_folded_input(layout):
    torch.manual_seed(0)
    conv = FoldConv2d(3, 5)
    x = torch.randn(2, 3, 6, 4).contiguous(memory_format=layout)
    torch.testing.assert_close(conv(x), F.conv2d(F.pixel_unshuffle(x, 2), conv.weight, conv.bias))


def test_block_is_the_identity_at_step_0():
    x = torch.randn(1, 8, 3, 5)
    assert torch.equal(Block(8)(x), x)


def test_knots_are_met_exactly_and_joined_by_lines():
    knots = Knots(3)
    with torch.no_grad():
        knots.values.normal_()
    at = knots(torch.linspace(0, 1, 9))[..., 0, 0]
    between = knots((torch.arange(8) + 0.5) / 8)[..., 0, 0]
    torch.testing.assert_close(at, knots.values)
    torch.testing.assert_close(between, (knots.values[1:] + knots.values[:-1]) / 2)


@pytest.mark.parametrize("inverse", [False, True])
def test_gdn_loads_compressais_state_and_equals_it_in_value_and_gradient(inverse):
    layers = pytest.importorskip("compressai.layers")
    torch.manual_seed(0)
    theirs = layers.GDN(6, inverse=inverse)
    with torch.no_grad():
        theirs.beta += 0.3 * torch.rand(6)
        theirs.gamma += 0.2 * torch.rand(6, 6)
        theirs.beta[2], theirs.gamma[1, 3] = -0.1, -0.2  # below their bounds, where the gradient rule counts
    ours = GDN(6, inverse=inverse)
    assert ours.load_state_dict(theirs.state_dict(), strict=False).missing_keys == []
    x = torch.randn(2, 6, 5, 4)
    results = []
    for gdn in (ours, theirs):
        leaf = x.clone().requires_grad_()
        y = gdn(leaf)
        (y * torch.linspace(-1, 1, y.numel()).reshape(y.shape)).sum().backward()
        results.append((y, leaf.grad, gdn.beta.grad, gdn.gamma.grad))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_gdn_and_its_inverse_start_as_the_same_norm():
    x = torch.randn(1, 4, 3, 3)
    torch.testing.assert_close(GDN(4)(x) * GDN(4, inverse=True)(x), x * x)


def test_the_lapped_filter_is_orthogonal_if_nothing_is_scaled():
    matrix = lapping(1.0)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(16, dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.mark.parametrize("height, width", [(16, 16), (16, 64), (48, 16), (64, 32)])
@torch.no_grad()
def test_the_inverse_undoes_the_lapped_filter_in_either_order(height, width):
    x = torch.rand(2, 3, height, width)
    forward, inverse = Lapped(inverse=False), Lapped(inverse=True)
    torch.testing.assert_close(inverse(forward(x)), x, atol=1e-5, rtol=0)
    torch.testing.assert_close(forward(inverse(x)), x, atol=1e-5, rtol=0)
    assert forward(x).shape == x.shape


@pytest.mark.parametrize("inverse", [False, True])
@torch.no_grad()
def test_the_lapped_filter_keeps_a_constant_image_and_an_image_of_one_block(inverse):
    lapped = Lapped(inverse)
    flat, block = torch.full((1, 3, 48, 64), 0.7), torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(lapped(flat), flat, atol=1e-6, rtol=0)
    assert torch.equal(lapped(block), block)


@pytest.mark.parametrize("inverse", [False, True])
@torch.no_grad()
def test_the_lapped_filter_works_across_block_borders_and_leaves_the_rim_of_the_image(inverse):
    lapped = Lapped(inverse)
    x = torch.rand(1, 1, 64, 16)  # one block wide: filtered vertically alone
    assert torch.equal(lapped(x)[..., :8, :], x[..., :8, :]) and torch.equal(lapped(x)[..., -8:, :], x[..., -8:, :])
    torch.testing.assert_close(lapped(x.transpose(2, 3)), lapped(x).transpose(2, 3))
    for row, first in ((7, 7), (8, 8), (23, 8), (24, 24), (55, 40), (56, 56)):
        impulse = torch.zeros_like(x)
        impulse[..., row, :] = 1
        changed = lapped(impulse)[0, 0, :, 0].abs() > 1e-6
        reach = slice(first, first + 16) if 8 <= row < 56 else slice(row, row + 1)
        assert changed[reach].any() and not torch.cat((changed[: reach.start], changed[reach.stop :])).any()


@pytest.mark.parametrize(
    "layer", [Conv2d(16, 24, 3), Conv2d(16, 32, 5, groups=16), FoldConv2d(8, 64), ConvTranspose2d(8, 6)]
)
def test_convolutions_start_uniform_within_the_root_of_their_fan_in(layer):
    bound = layer.weight[0].numel() ** -0.5
    values = torch.cat([parameter.detach().flatten() for parameter in layer.parameters()])
    assert values.abs().max() <= bound
    assert values.std() == pytest.approx(bound / 3**0.5, rel=0.1) and abs(values.mean()) < 0.1 * bound


@pytest.mark.parametrize("height, width", [(16, 32), (32, 16), (32, 32), (48, 64)])
def test_the_gradients_of_the_lapped_filter_are_those_of_its_matrix(height, width):
    lapped = Lapped(inverse=False).double()
    x = torch.rand(2, 3, height, width, dtype=torch.float64, requires_grad=True)

    def filtered(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(lapped, {"weight": weight}, x)

    assert torch.autograd.gradcheck(filtered, (x, lapped.weight), fast_mode=True)
