"""A builder of ONNX graphs: tensors with operators, and the nodes of each layer of codec/network/layers.py.

    graph = Graph(network)
    y = graph.module(network.g_a.stem, Value(graph, "x"))
    data = graph.model("g_a", {"x": ("float32", (1, 3, "H", "W"))}, {"y": (y, "float32", (1, 128, "H", "W"))})

Weights are declared by their names in the model file; the runtime gets them when it opens a session. LAYERS maps types
of layers to functions that add their nodes; Graph.module raises Unknown for other types.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from codec.errors import LicError
from codec.network import layers
from codec.network.model import Network
from entropy.exact import ACTIVATION_BITS, WEIGHT_BITS
from entropy.integer import IntegerConv2d

OPSET, IR_VERSION = 20, 9  # the first opset with Gelu, and its format


class Unknown(LicError):
    """A layer or transform of this network has no ONNX graph."""


class Value:
    """A tensor of an unfinished graph; operators on it add nodes."""

    def __init__(self, graph: "Graph", name: str):
        self.graph, self.name = graph, name

    def __add__(self, other):
        return self.graph("Add", self, other)

    def __sub__(self, other):
        return self.graph("Sub", self, other)

    def __mul__(self, other):
        return self.graph("Mul", self, other)

    def __truediv__(self, other):
        return self.graph("Div", self, other)

    def to(self, dtype: str) -> "Value":
        return self.graph("Cast", self, to=self.graph.type_of(dtype))

    def size(self, axis: int) -> "Value":
        """The length of an axis: int64 (1,)."""
        return self.graph("Shape", self, start=axis, end=axis + 1)

    def reshape(self, *shape: int) -> "Value":
        """Reshape as ONNX does: 0 keeps a dimension, -1 takes what remains."""
        return self.graph("Reshape", self, self.graph.constant(shape, "int64"))


class Graph:
    """Nodes, small constants and declared weights of one graph; calling it with an operator adds a node."""

    def __init__(self, network: Network):
        import onnx

        self.onnx, self.network = onnx, network
        self.names = {id(t): name for name, t in network.state_dict(keep_vars=True).items()}
        self.nodes: list[Any] = []
        self.constants: dict[tuple, Any] = {}
        self.weights: dict[str, Any] = {}

    def type_of(self, dtype: str) -> int:
        return self.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))

    def __call__(self, operator: str, *inputs: Value, count: int = 1, **attributes) -> Any:
        """Add a node; returns its output, or a list of `count` outputs."""
        outputs = [f"t{len(self.nodes)}" + "abcd"[i] * (count > 1) for i in range(count)]
        names = [x.name if isinstance(x, Value) else "" for x in inputs]
        self.nodes.append(self.onnx.helper.make_node(operator, names, outputs, **attributes))
        values = [Value(self, name) for name in outputs]
        return values[0] if count == 1 else values

    def constant(self, values: Any, dtype: str = "float32") -> Value:
        """A constant tensor; equal ones are stored once."""
        array = np.asarray(values, dtype)
        key = dtype, array.shape, array.tobytes()
        if key not in self.constants:
            self.constants[key] = self.onnx.numpy_helper.from_array(array, f"c{len(self.constants)}")
        return Value(self, self.constants[key].name)

    def weight(self, tensor: Tensor, *shape: int) -> Value:
        """A weight, declared by its name in the model file: float32, in its own shape or in the one given."""
        return self.declare(self.names[id(tensor)], shape or tuple(tensor.shape), "float32")

    def declare(self, name: str, shape: Sequence[int], dtype: str) -> Value:
        """Declare an array of the model file as external data; one array may be declared in several shapes."""
        own = f"{name}:{'x'.join(map(str, shape))}"
        declared = self.onnx.TensorProto(
            name=own, dims=shape, data_type=self.type_of(dtype), data_location=self.onnx.TensorProto.EXTERNAL
        )
        declared.external_data.add(key="location", value=name)
        self.weights[own] = declared
        return Value(self, own)

    def module(self, layer: nn.Module, x: Value) -> Value:
        """The output of a layer for input x; Unknown for a type that LAYERS does not have."""
        if type(layer) not in LAYERS:
            raise Unknown(f"no graph of a {type(layer).__name__}")
        return LAYERS[type(layer)](self, layer, x)

    def knots(self, table: Value, count: int) -> Value:
        """A table of knots (count, C) interpolated at the quality: (1, C, 1, 1); its first knot for a fixed lambda."""
        if not self.network.config.variable_rate:
            return self("Gather", table, self.constant([0], "int64"), axis=0).reshape(1, -1, 1, 1)
        level = Value(self, "quality") / self.constant(100)
        position = self("Clip", level, self.constant(0), self.constant(1)) * self.constant(count - 1)
        below = self("Min", self("Floor", position), self.constant(count - 2))
        first = below.to("int64")
        low = self("Gather", table, first, axis=0)
        high = self("Gather", table, first + self.constant(1, "int64"), axis=0)
        return (low + (high - low) * (position - below)).reshape(1, -1, 1, 1)

    def at_quality(self, knots: layers.Knots) -> Value:
        """layers.Knots at the quality: (1, C, 1, 1)."""
        return self.knots(self.weight(knots.values), len(knots.values))

    def gain(self, gain: layers.Gain | None) -> Value:
        """layers.Gain at the quality: (1, C, 1, 1); ones for a fixed lambda."""
        if gain is None:
            return self.constant(np.ones((1, 1, 1, 1)))
        count = len(gain.growth)
        total = self("MatMul", self.constant(np.tri(count)), self("Softplus", self.weight(gain.growth)))
        first = self.weight(gain.first)
        return self("Exp", self.knots(self("Concat", first, first + total, axis=0), count + 1))

    def mirrored(self, x: Value, axis: int, places: Value) -> Value:
        """The samples of x at `places` outside of an axis that is mirrored at its borders, however far away."""
        one = self.constant([1], "int64")
        last = x.size(axis) - one
        period = self("Max", last + last, one)  # an axis of one sample repeats it
        place = self("Mod", places, period)
        return self("Gather", x, self("Min", place, period - place), axis=axis)

    def pad(self, x: Value, margin: int) -> Value:
        """layers.mirror_pad by `margin` samples on each side."""
        for axis in (2, 3) if margin else ():
            before = self.mirrored(x, axis, self.constant(range(-margin, 0), "int64"))
            after = self.mirrored(x, axis, x.size(axis) + self.constant(range(margin), "int64"))
            x = self("Concat", before, x, after, axis=axis)
        return x

    def pad_to(self, x: Value, stride: int) -> Value:
        """x mirrored at the right and at the bottom, up to multiples of `stride`."""
        for axis in (2, 3):
            begin = self("Squeeze", x.size(axis))
            end = begin + self("Mod", self("Neg", begin), self.constant(stride, "int64"))
            places = self("Range", begin, end, self.constant(1, "int64"))
            x = self("Concat", x, self.mirrored(x, axis, places), axis=axis)
        return x

    def shuffle(self, x: Value, size: int) -> Value:
        return self("DepthToSpace", x, blocksize=size, mode="CRD")

    def model(self, name: str, inputs: dict[str, tuple], outputs: dict[str, tuple[Value, str, Sequence]]) -> bytes:
        """The finished graph, as the bytes of an ONNX model.

        inputs: name -> (dtype, shape); outputs: name -> (value, dtype, shape).
        """
        helper = self.onnx.helper
        if self.network.config.variable_rate:
            inputs = inputs | {"quality": ("float32", (1,))}
        own = {value.name: output for output, (value, _, _) in outputs.items()}
        for node in self.nodes:
            for names in (node.input, node.output):
                names[:] = [own.get(n, n) for n in names]
        info = [
            [helper.make_tensor_value_info(n, self.type_of(dtype), shape) for n, (*_, dtype, shape) in group.items()]
            for group in (inputs, outputs)
        ]
        graph = helper.make_graph(self.nodes, name, *info, [*self.weights.values(), *self.constants.values()])
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="lic"
        )
        return model.SerializeToString(deterministic=True)


# ---- layers ----


def _conv(g: Graph, layer: layers.Conv2d, x: Value) -> Value:
    (k, _), (stride, _) = layer.kernel_size, layer.stride
    weight, bias = g.weight(layer.weight), g.weight(layer.bias)
    return g("Conv", g.pad(x, k // 2), weight, bias, kernel_shape=[k, k], strides=[stride] * 2, group=layer.groups)


def _fold_conv(g: Graph, layer: layers.FoldConv2d, x: Value) -> Value:
    return folded(g, x, layer, 2)


def folded(g: Graph, x: Value, layer: nn.Module, size: int) -> Value:
    """A 1x1 convolution of layers.fold(x, size), as a convolution of that size and stride."""
    weight, bias = layer.weight, getattr(layer, "bias", None)
    own = g.weight(weight, len(weight), weight[0].numel() // size**2, size, size)
    rest = [] if bias is None else [g.weight(bias)]
    return g("Conv", x, own, *rest, kernel_shape=[size] * 2, strides=[size] * 2)


def _conv_transpose(g: Graph, layer: layers.ConvTranspose2d, x: Value) -> Value:
    weight, bias = g.weight(layer.weight), g.weight(layer.bias)
    options = dict(kernel_shape=[5, 5], strides=[2, 2], pads=[4] * 4, output_padding=[1, 1])
    return g("ConvTranspose", g.pad(x, 1), weight, bias, **options)


def _gdn(g: Graph, layer: layers.GDN, x: Value) -> Value:
    def positive(tensor: Tensor, least: float, *shape: int) -> Value:
        root = g("Max", g.weight(tensor, *shape), g.constant((least + layer.PEDESTAL) ** 0.5))
        return root * root - g.constant(layer.PEDESTAL)

    count = len(layer.beta)
    norm = g("Conv", x * x, positive(layer.gamma, 0.0, count, count, 1, 1), positive(layer.beta, 1e-6))
    return x * g("Sqrt", norm) if layer.inverse else x / g("Sqrt", norm)


def _block(g: Graph, layer: layers.Block, x: Value) -> Value:
    x = x + g.module(layer.mix, x)
    return x + g.module(layer.feed, x)


def _sequential(g: Graph, layer: nn.Sequential, x: Value) -> Value:
    for inner in layer:
        x = g.module(inner, x)
    return x


def integer_conv(g: Graph, layer: IntegerConv2d, x: Value, offset: Value | None = None, drop: int = 0) -> Value:
    """IntegerConv2d in float64, with the same offset and drop."""

    def grid(tensor: Tensor, bits: int, *shape: int) -> Value:
        return g("Round", g.weight(tensor, *shape).to("float64") * g.constant(2.0**bits, "float64"))

    def cut(x: Value, axis: int, begin: int) -> Value:
        end = x.size(axis) - g.constant([layer.kernel_size - 1 - begin], "int64")
        return g("Slice", x, g.constant([begin], "int64"), end, g.constant([axis], "int64"))

    count, taps = len(layer.weight), [x]
    if (k := layer.kernel_size) > 1:
        rows = [cut(x, 2, i) for i in range(k)]
        taps = [cut(row, 3, j) for row in rows for j in range(k)]
    unsqueezed = [g("Unsqueeze", tap, g.constant([2], "int64")) for tap in taps]
    columns = g("Concat", *unsqueezed, axis=2)  # (B, C, k^2, h, w)
    bias = grid(layer.bias, WEIGHT_BITS + ACTIVATION_BITS, count, 1)
    if offset is not None:
        bias = bias + offset.reshape(1, -1, 1) * g.constant(2.0**WEIGHT_BITS, "float64")
    weight = grid(layer.weight, WEIGHT_BITS, count, layer.weight[0].numel())
    sums = g("MatMul", weight, columns.reshape(0, layer.weight[0].numel(), -1)) + bias
    sums = g("Floor", sums * g.constant(2.0 ** -(WEIGHT_BITS + drop), "float64"))
    return g("Reshape", sums, g("Concat", g.constant([-1, count], "int64"), g("Shape", taps[0], start=2), axis=0))


LAYERS: dict[type, Callable[[Graph, Any, Value], Value]] = {
    layers.Conv2d: _conv,
    layers.FoldConv2d: _fold_conv,
    layers.ConvTranspose2d: _conv_transpose,
    layers.GDN: _gdn,
    layers.Block: _block,
    nn.Sequential: _sequential,
    nn.GELU: lambda g, _, x: g("Gelu", x),
    nn.ReLU: lambda g, _, x: g("Relu", x),
}
