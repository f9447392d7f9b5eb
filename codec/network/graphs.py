"""The networks of a model as ONNX graphs, for runtimes without PyTorch; made at export, stored in the model file.

    tensors = build_graphs(network)        tensors of a model file by name: "graph.g_a", ..., "graph.halos", ...

    g_a  image uint8 (B, 3, H, W), any H and W             -> v float32 (B, M, ceil(H/16), ceil(W/16)), in steps of 1
    h_a  v (B, M, h, w)                                    -> z int32 (B, K, ceil(h/4), ceil(w/4)), the symbols
    h_s  z int32 (B, K, h', w')                            -> index uint8, mean float32 (B, M, 4h', 4w')
    g_s  v_hat float32 (B, M, h, w), dequantized, in steps -> image uint8 (B, 3, 16h, 16w), gray (B, 1, 16h, 16w)

In an all-rates model each has one more input, `quality`, float32 (1,) in 0..100. Without a hyperprior there are no h_a
and h_s; with a scale hyperprior there is no mean. Graphs are built node by node and depend on the configuration alone.
The index of h_s is computed in float64, in which its sums are exact (entropy/integer.py): the same integers as in
PyTorch. Other layers and transforms raise Unknown; to have files of a new one read without PyTorch, add its nodes to
LAYERS (those of codec/network/graph.py) or TRANSFORMS.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from codec.config import CELL, REACH, STRIDE
from codec.network import hyper, layers, transforms
from codec.network.graph import LAYERS as LAYERS  # where the graph of a new layer is added, here
from codec.network.graph import Graph, Unknown, Value, folded, integer_conv
from codec.network.model import Network
from codec.network.quantize import border
from entropy.exact import ACTIVATION_BITS, LARGEST

NAMES = ("g_a", "g_s", "h_a", "h_s")


def build_graphs(network: Network) -> dict[str, NDArray]:
    """The tensors of a model file that runtimes without PyTorch need.

    graph.NAME          uint8, the bytes of an ONNX model of a transform
    graph.NAME.weights  uint8, a line TENSOR:SHAPE for each tensor of the file that the graph declares as external data
    graph.halos         int32 (4,), of g_a, g_s, h_a and h_s
    graph.borders       float32, the fractions from which values are rounded up (codec/network/quantize.py):
                        (tables, 2) with a hyperprior, else (qualities, 4, M)

    Raises Unknown if a layer or transform of the network has no graph.
    """
    tensors = {
        "graph.halos": np.array([getattr(getattr(network, name, None), "halo", 0) for name in NAMES], np.int32),
        "graph.borders": _borders(network),
    }
    for name in NAMES:
        transform = getattr(network, name, None)
        if transform is None:
            continue
        if type(transform) not in TRANSFORMS:
            raise Unknown(f"no graph of a {type(transform).__name__}")
        graph = Graph(network)
        tensors[f"graph.{name}"] = np.frombuffer(TRANSFORMS[type(transform)](graph, network, transform), np.uint8)
        tensors[f"graph.{name}.weights"] = np.frombuffer("\n".join(graph.weights).encode(), np.uint8)
    return tensors


@torch.no_grad()
def _borders(network: Network) -> NDArray[np.float32]:
    """The borders of Network.quantize: of 1 and 2 by table; without a hyperprior of -2, -1, 1 and 2 by channel."""
    if network.config.prior != "factorized":
        return network.borders.view(2, -1).t().contiguous().cpu().numpy()
    points = torch.arange(-2.0, 3.0, device=network.device).view(1, 1, 5, 1)
    rows = []
    for quality in network.config.qualities:
        bits = network.bits(points, None, network.level_of(quality))[0, :, :, 0].t()  # (5, M), of the symbols -2..2
        rows.append(border(torch.stack((bits[0] - bits[1], bits[1] - bits[2], bits[3] - bits[2], bits[4] - bits[3]))))
    return torch.stack(rows).cpu().numpy()


# ---- images ----


def _image_in(g: Graph) -> Value:
    return g.pad_to(Value(g, "image"), STRIDE).to("float32") / g.constant(255) - g.constant(0.5)


def _analysis(g: Graph, network: Network, y: Value) -> bytes:
    v = y * g.gain(network.gain)
    M = network.config.M
    return g.model("g_a", {"image": ("uint8", ("B", 3, "H", "W"))}, {"v": (v, "float32", ("B", M, "h", "w"))})


def _latent_in(g: Graph, network: Network) -> Value:
    return Value(g, "v_hat") / g.gain(network.gain)


def _synthesis(g: Graph, network: Network, x: Value) -> bytes:
    x = x + g.constant(0.5)

    def to_uint8(x: Value) -> Value:
        return g("Clip", g("Round", x * g.constant(255)), g.constant(0), g.constant(255)).to("uint8")

    image, gray = to_uint8(x), to_uint8(g("ReduceMean", x, g.constant([1], "int64"), keepdims=1))
    outputs = {"image": (image, "uint8", ("B", 3, "H", "W")), "gray": (gray, "uint8", ("B", 1, "H", "W"))}
    return g.model("g_s", {"v_hat": ("float32", ("B", network.config.M, "h", "w"))}, outputs)


def _balle_analysis(g: Graph, network: Network, g_a: transforms.BalleAnalysis) -> bytes:
    return _analysis(g, network, g.module(g_a.layers, _image_in(g)))


def _balle_synthesis(g: Graph, network: Network, g_s: transforms.BalleSynthesis) -> bytes:
    return _synthesis(g, network, g.module(g_s.layers, _latent_in(g, network)))


def _conditioned(g: Graph, knots: layers.Knots | None, h: Value) -> Value:
    """h (1 + gamma) + beta, with gamma and beta at the quality."""
    if knots is None:
        return h
    gamma, beta = g("Split", g.at_quality(knots), count=2, axis=1, num_outputs=2)
    return h * (gamma + g.constant(1)) + beta


def _fast_analysis(g: Graph, network: Network, g_a: transforms.FastAnalysis) -> bytes:
    x = _image_in(g)
    h = _conditioned(g, g_a.condition, folded(g, x, g_a.stem, 8))
    h = g.module(g_a.sixteenth, g.module(g_a.down, g.module(g_a.eighth, h)))
    y = g.module(g_a.head, h)
    if g_a.shortcut is not None:
        lapped = x if g_a.shortcut_lapped is None else _lapped(g, g_a.shortcut_lapped, x)
        y = folded(g, lapped, g_a.shortcut, 16) + y
    return _analysis(g, network, y)


def _fast_synthesis(g: Graph, network: Network, g_s: transforms.FastSynthesis) -> bytes:
    y = _latent_in(g, network)
    h = _conditioned(g, g_s.condition, g.module(g_s.stem, y))
    h = g.shuffle(g.module(g_s.up, g.module(g_s.sixteenth, h)), 2)
    x = g.shuffle(g.module(g_s.head, g.module(g_s.eighth, h)), 8)
    if g_s.shortcut is not None:
        M, *rest = g_s.shortcut.weight.shape
        basis = g("Transpose", g.weight(g_s.shortcut.weight, M, int(np.prod(rest)), 1, 1), perm=[1, 0, 2, 3])
        blocks = g.shuffle(g("Conv", y, basis, kernel_shape=[1, 1]), 16)
        x = x + (blocks if g_s.shortcut_lapped is None else _lapped(g, g_s.shortcut_lapped, blocks))
    return _synthesis(g, network, x)


def _lapped(g: Graph, layer: layers.Lapped, x: Value) -> Value:
    """layers.Lapped: the filter on every 16 samples, all but 8 at either end, down and then across."""
    weight, ends = g.weight(layer.weight), [g.constant([n], "int64") for n in (0, 8, -8, 2**31)]
    for axis in (2, 3):
        first, inner, last = (
            g("Slice", x, begin, end, g.constant([axis], "int64"))
            for begin, end in ((ends[0], ends[1]), (ends[1], ends[2]), (ends[2], ends[3]))
        )
        shape = g("Shape", inner)
        if axis == 2:
            groups = g("Reshape", inner, g("Concat", g.constant([-1, 16], "int64"), x.size(3), axis=0))
            filtered = g("MatMul", weight, groups)
        else:
            filtered = g("MatMul", inner.reshape(-1, 16), g("Transpose", weight, perm=[1, 0]))
        x = g("Concat", first, g("Reshape", filtered, shape, allowzero=1), last, axis=axis)
    return x


# ---- hyper-transforms ----


def _hyper_in(g: Graph) -> Value:
    return g.pad_to(Value(g, "v"), CELL)


def _hyper_analysis(g: Graph, network: Network, z: Value) -> bytes:
    z = g("Round", z * g.gain(network.hyper_gain))
    z = g("Clip", z, g.constant(-REACH), g.constant(REACH)).to("int32")
    inputs = {"v": ("float32", ("B", network.config.M, "h", "w"))}
    return g.model("h_a", inputs, {"z": (z, "int32", ("B", network.config.hyper_M, "h'", "w'"))})


def _fast_hyper_analysis(g: Graph, network: Network, h_a: hyper.FastHyperAnalysis) -> bytes:
    v = _hyper_in(g)
    v = g("Sign", v) * g("Log", g("Abs", v) + g("Sqrt", v * v + g.constant(1)))
    h = g("Gelu", _conditioned(g, h_a.condition, g.module(h_a.stem, v)))
    h = g.module(h_a.block, g.module(h_a.down, h))
    return _hyper_analysis(g, network, g.module(h_a.head, h))


def _balle_hyper_analysis(g: Graph, network: Network, h_a: hyper.BalleHyperAnalysis) -> bytes:
    v = _hyper_in(g)
    return _hyper_analysis(g, network, g.module(h_a.layers, v if h_a.mean else g("Abs", v)))


def _hyper_synthesis(g: Graph, network: Network, h_s: hyper.HyperSynthesis, features: Callable[..., Value]) -> bytes:
    qualities, K, M = len(network.config.qualities), network.config.hyper_M, network.config.M
    sizes = {"step": K, "inner": h_s.inner.values.shape[1], "outer": M}
    quality = Value(g, "quality").to("int64") if network.config.variable_rate else g.constant([0], "int64")

    def constant(name: str) -> Value:
        table = g.declare(f"tables.{name}", (qualities, sizes[name]), "int32")
        return g("Gather", table, quality, axis=0).to("float64").reshape(1, -1, 1, 1)

    h = features(Value(g, "z").to("float64") * constant("step"), constant("inner"))
    half = 2.0 ** (ACTIVATION_BITS - 1)
    offset = constant("outer") + g.constant(half, "float64")
    offset = g("Floor", offset * g.constant(2.0**-hyper.INDEX_BITS, "float64"))
    index = integer_conv(g, h_s.scale, _same(g, h_s.scale, h), offset, ACTIVATION_BITS - hyper.INDEX_BITS)
    last = network.conditional.count - 1
    index = g("Clip", index, g.constant(0, "float64"), g.constant(last, "float64")).to("uint8")
    outputs = {"index": (index, "uint8", ("B", M, "h", "w"))}
    if h_s.mean is not None:
        mean = g.module(h_s.mean, (h * g.constant(2.0**-ACTIVATION_BITS, "float64")).to("float32"))
        outputs["mean"] = (mean, "float32", ("B", M, "h", "w"))
    return g.model("h_s", {"z": ("int32", ("B", K, "h'", "w'"))}, outputs)


def _same(g: Graph, layer: Any, x: Value) -> Value:
    return g.pad(x, layer.kernel_size // 2)


def _rectified(g: Graph, x: Value) -> Value:
    return g("Clip", x, g.constant(0, "float64"), g.constant(LARGEST, "float64"))


def _fast_hyper_synthesis(g: Graph, network: Network, h_s: hyper.FastHyperSynthesis) -> bytes:
    def features(z: Value, inner: Value) -> Value:
        one, up_one, two, up_two = h_s.layers
        h = _rectified(g, integer_conv(g, one, _same(g, one, z)) + inner)
        h = g.shuffle(_rectified(g, integer_conv(g, up_one, h)), 2)
        h = _rectified(g, integer_conv(g, two, _same(g, two, h)))
        return g.shuffle(_rectified(g, integer_conv(g, up_two, h)), 2)

    return _hyper_synthesis(g, network, h_s, features)


def _balle_hyper_synthesis(g: Graph, network: Network, h_s: hyper.BalleHyperSynthesis) -> bytes:
    def spread(x: Value) -> Value:
        """hyper.insert_zeros."""
        x = g.pad(x, 1)
        height, width, channels = x.size(2), x.size(3), x.size(1)
        one, two, rest = (g.constant([n], "int64") for n in (1, 2, -1))
        x = g("Reshape", x, g("Concat", rest, channels, height, one, width, one, axis=0))
        x = g("Pad", x, g.constant([0] * 9 + [1, 0, 1], "int64"), g.constant(0, "float64"))
        return g("Reshape", x, g("Concat", rest, channels, height * two, width * two, axis=0))

    def features(z: Value, inner: Value) -> Value:
        one, two = h_s.layers
        h = _rectified(g, integer_conv(g, one, spread(z)) + inner)
        return _rectified(g, integer_conv(g, two, spread(h)))

    return _hyper_synthesis(g, network, h_s, features)


TRANSFORMS: dict[type[nn.Module], Callable[[Graph, Network, Any], bytes]] = {
    transforms.FastAnalysis: _fast_analysis,
    transforms.FastSynthesis: _fast_synthesis,
    transforms.BalleAnalysis: _balle_analysis,
    transforms.BalleSynthesis: _balle_synthesis,
    hyper.FastHyperAnalysis: _fast_hyper_analysis,
    hyper.FastHyperSynthesis: _fast_hyper_synthesis,
    hyper.BalleHyperAnalysis: _balle_hyper_analysis,
    hyper.BalleHyperSynthesis: _balle_hyper_synthesis,
}
