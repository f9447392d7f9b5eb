"""Kinds of arguments on a command line: text -> value, or what is wrong with it; and what takes more to explain."""

import argparse
import math

EXPORTED = """
  file      inputs                        outputs
  g_a.onnx  image uint8 (B, 3, H, W)      v float32 (B, M, h, w): h, w = H, W / 16, rounded up
  h_a.onnx  v float32 (B, M, h, w)        z int32 (B, K, h', w'), -127..127: h', w' = h, w / 4, rounded up
  h_s.onnx  z int32 (B, K, h', w')        index uint8, mean float32 (B, M, 4 h', 4 w'): the first h x w are of v
  g_s.onnx  v_hat float32 (B, M, h, w)    image uint8 (B, 3, 16 h, 16 w), gray uint8 (B, 1, ...): the first H x W

Sides are of any length from 1. An image is planes of R, G and B, a gray one three equal planes; `gray` is for those.
In models of all rates each has an input `quality`, too: float32 (1,), 0..100. A model without a hyperprior has no h_a
and h_s, one with densities around 0 no mean. Symbols of y are the integers nearest to v - mean; each is coded with the
table that its index names, those of z with a table per channel: codec/container/bitstream.py has the file, the
.safetensors file of the model the tables. The index is exact, in float64; a runtime must compute it in that. There and
back without a file, in Python:

    import numpy as np, onnxruntime

    def run(name, **inputs):
        return onnxruntime.InferenceSession(f"DIR/{name}.onnx").run(None, inputs)

    quality = np.array([50], np.float32)
    (v,) = run("g_a", image=image, quality=quality)
    (z,) = run("h_a", v=v, quality=quality)
    index, mean = run("h_s", z=z, quality=quality)
    mean = mean[..., : v.shape[2], : v.shape[3]]
    decoded, gray = run("g_s", v_hat=np.rint(v - mean) + mean, quality=quality)

and, its second half, in JavaScript (onnxruntime-node, onnxruntime-web):

    const g_s = await ort.InferenceSession.create("DIR/g_s.onnx");
    const v_hat = new ort.Tensor("float32", values, [1, M, h, w]);  // Float32Array
    const quality = new ort.Tensor("float32", Float32Array.of(50), [1]);
    const { image } = await g_s.run({ v_hat, quality });  // image.data: Uint8Array
"""


def positive(text: str) -> int:
    """A number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return int(text)


def quality(text: str) -> int:
    """A number from 0 to 100."""
    if not text.isdecimal() or int(text) > 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 100")
    return int(text)


def rate(text: str) -> float:
    """A finite number above 0."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not above 0 and finite")
    return value


def score(text: str) -> float:
    """A number of at most 100."""
    value = float(text)
    if not -math.inf < value <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a score of at most 100")
    return value


def rectangle(text: str) -> tuple[int, int, int, int]:
    """Left, top, width and height."""
    parts = text.split(",")
    if len(parts) != 4 or not all(part.isdecimal() for part in parts) or "0" in parts[2:]:
        raise argparse.ArgumentTypeError(f"{text!r} is not X,Y,W,H in pixels, such as 0,0,640,480")
    return tuple(map(int, parts))
