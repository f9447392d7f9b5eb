"""Exact layers: the integers of a reference that knows no floats, however, wherever and in whatever order they are
summed."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from entropy.integer import LARGEST, IntegerConv2d, rectify, shift, to_grid

LIMIT = 2**53
integers = st.integers(1 - LIMIT, LIMIT - 1)


def layer(in_channels, out_channels, kernel_size, size=1.0, seed=0) -> IntegerConv2d:
    """A layer with weights and biases of about this size."""
    torch.manual_seed(seed)
    conv = IntegerConv2d(in_channels, out_channels, kernel_size)
    with torch.no_grad():
        conv.weight.normal_(std=size)
        conv.bias.normal_(std=size)
    return conv


def activations(*shape: int, reach: int = int(LARGEST)) -> torch.Tensor:
    """Random integers of magnitude up to `reach`, as the layers pass them on."""
    return torch.randint(-reach, reach + 1, shape, generator=torch.Generator().manual_seed(1)).double()


def reference(conv: IntegerConv2d, x: torch.Tensor) -> np.ndarray:
    """The layer in int64: (B, C', H', W')."""
    weight = np.rint(conv.weight.detach().double().numpy() * 2**12).astype(np.int64)
    bias = np.rint(conv.bias.detach().double().numpy() * 2**20).astype(np.int64)
    windows = np.lib.stride_tricks.sliding_window_view(x.numpy().astype(np.int64), weight.shape[2:], axis=(2, 3))
    sums = np.einsum("bchwyx,ocyx->bohw", windows, weight) + bias[:, None, None]
    return sums >> 12  # an arithmetic shift: the floor of negative numbers too


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("size", [1e-4, 0.1, 30.0])
def test_a_layer_equals_its_int64_reference(kernel_size, size):
    conv = layer(7, 5, kernel_size, size)
    x = activations(2, 7, 9, 8)
    conv.check_bound(LARGEST)
    expected = reference(conv, x)
    y = conv(x)
    assert y.dtype == torch.float64 and np.array_equal(y.detach().numpy(), expected)
    assert (expected < 0).any() and (expected > 0).any()


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_a_layer_is_exact_up_to_the_bound(kernel_size):
    conv = layer(16, 6, kernel_size)
    with torch.no_grad():
        reach = conv.weight.abs().sum(dim=(1, 2, 3), keepdim=True) * LARGEST * 2**12
        conv.weight *= 0.999 * LIMIT / reach  # every channel comes near the limit, its terms far below each other
        conv.weight[:, 0] *= 1e-6
    conv.check_bound(LARGEST)
    most = torch.where(conv.weight[0] > 0, LARGEST, -LARGEST).double()[None]
    for x in (most, -most, activations(3, 16, 6, 6), torch.full((1, 16, 5, 5), LARGEST, dtype=torch.float64)):
        assert np.array_equal(conv(x).detach().numpy(), reference(conv, x))
    assert reference(conv, most)[0, 0].item() > 0.8 * LIMIT / 2**12


@torch.no_grad()
def test_nothing_about_the_machinery_changes_a_bit():
    conv = layer(32, 24, 3, 500.0)
    conv.check_bound(LARGEST)
    x = activations(4, 32, 20, 30)
    y = conv(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(conv(x), y)
    assert torch.equal(torch.cat([conv(x[i : i + 1]) for i in range(4)]), y)
    assert torch.equal(conv(x.to(memory_format=torch.channels_last)), y)
    torch.set_num_threads(2)
    threaded = conv(x)
    torch.set_num_threads(1)
    assert torch.equal(threaded, y)
    for seed in range(3):
        order = torch.randperm(32, generator=torch.Generator().manual_seed(seed))
        permuted = IntegerConv2d(32, 24, 3)
        permuted.load_state_dict({"weight": conv.weight[:, order], "bias": conv.bias})
        assert torch.equal(permuted(x[:, order]), y)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@torch.no_grad()
def test_a_gpu_gives_the_same_integers():
    conv, x = layer(32, 24, 3, 500.0), activations(2, 32, 20, 30)
    assert torch.equal(conv.cuda()(x.cuda()).cpu(), conv.cpu()(x))


def test_gradients_are_those_of_the_convolution_without_rounding():
    conv = layer(4, 3, 3)
    exact, smooth = activations(2, 4, 7, 6).requires_grad_(), activations(2, 4, 7, 6).requires_grad_()
    weights = [conv.weight.detach().double().requires_grad_(), conv.bias.detach().double().requires_grad_()]
    grad = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    conv(exact).backward(grad)
    F.conv2d(smooth, weights[0], weights[1] * 2**8).backward(grad)
    torch.testing.assert_close(exact.grad, smooth.grad, rtol=0, atol=0.02)  # it has passed through rounded weights
    for ours, theirs in zip((conv.weight, conv.bias), weights, strict=True):
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-5, atol=1e-3)


def single(weight: int, bias: int) -> IntegerConv2d:
    """A layer of one input and two outputs, of which the second has these integers."""
    conv = IntegerConv2d(1, 2)
    with torch.no_grad():
        conv.weight[:, 0, 0, 0] = torch.tensor([0.0, weight / 2**12])
        conv.bias[:] = torch.tensor([0.0, bias / 2**20])
    return conv


@pytest.mark.parametrize("sign", [-1, 1])
def test_sums_may_reach_all_below_2_to_the_53(sign):
    largest, weight = 2**30 - 1, sign * 2**23  # leaves 2**23 for the bias
    for bias in (2**23 - 1, 1 - 2**23):
        single(weight, bias).check_bound(largest)
    for wrong in (single(weight, 2**23), single(weight, -(2**23)), single(2 * weight, 0), single(0, 2**54)):
        with pytest.raises(ValueError, match=r"channel 1 .* 2\*\*53"):
            wrong.check_bound(largest)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value):
    conv = IntegerConv2d(2, 2)
    with torch.no_grad():
        conv.weight[1, 0] = value
    with pytest.raises(ValueError, match="channel 1"):
        conv.check_bound(LARGEST)


@given(st.lists(integers, min_size=1), st.integers(0, 40))
def test_shift_is_the_shift_of_integers(values, bits):
    x = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    y = shift(x, bits)
    assert [int(v) for v in y.tolist()] == [value >> bits for value in values]
    y.sum().backward()
    assert (x.grad == 2.0**-bits).all()


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1), st.integers(0, 20))
def test_to_grid_is_the_nearest_integer_half_to_even(values, bits):
    x = torch.tensor(values, requires_grad=True)
    y = to_grid(x, bits)
    assert y.dtype == torch.float64 and y.tolist() == [round(value * 2**bits) for value in values]
    y.sum().backward()
    assert (x.grad == 2.0**bits).all()


@given(st.lists(integers, min_size=1))
def test_rectify_keeps_what_a_layer_may_get(values):
    x = torch.tensor(values, dtype=torch.float64)
    assert rectify(x).tolist() == [min(max(value, 0), 2**16 - 1) for value in values]
