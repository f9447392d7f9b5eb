"""What runs the networks of a codec: six calls with NumPy arrays at the border.

A codec (codec/coding/codec.py) cuts images into tiles, asks a backend what the networks make of each, and turns the
integers into bytes. Between analysis and synthesis lies the latent y, whose symbols are coded in steps: a backend
tells, step after step, where symbols are, which table each has and which mean is predicted for it, and is told the
symbols before it goes on. The encoder answers a step by quantizing, the decoder by decoding:

    steps = backend.steps(z, place, box, quality, constants)
    step = next(steps)
    symbols = backend.quantize(v[step.where], step, quality)          the encoder
    symbols = decoder.decode(step.index, tables, step.shape)          the decoder
    step = steps.send(symbols)                                        until it stops

One rule makes files decode everywhere: the index of a step depends on integers that are decoded before alone (z, and
the symbols of earlier steps), through exact arithmetic; the mean may depend on anything, in floats, since it is added
after decoding. The priors of today have one step.
"""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from codec.coding.tiles import Box
from codec.config import ModelConfig

Constants = dict[str, NDArray[np.int32]]


@dataclass(frozen=True)
class Step:
    """Symbols that are coded together."""

    where: tuple[slice, ...]  # their places in the y (B, M, h, w) of the box
    shape: tuple[int, ...]  # of that part
    index: NDArray  # uint8 or uint16, broadcastable to the shape: the table of each symbol
    mean: NDArray[np.float32] | None  # of the shape, the predicted mean; symbols code v - mean; None: 0


Steps = Generator[Step, NDArray[np.int32], None]


@dataclass(frozen=True)
class Halos:
    """How far each transform sees, in cells of its latent: y of g_a and g_s, z of h_a and h_s."""

    g_a: int
    g_s: int
    h_a: int
    h_s: int


class Backend(Protocol):
    """The networks of one model. Arrays are C-contiguous or views; `quality` is 0..100, or None for a fixed lambda."""

    config: ModelConfig
    halos: Halos
    device: str  # cpu or cuda
    precision: str  # of the trunks: bf16 or fp32
    parameters: int  # how many

    def analyse(self, pixels: NDArray[np.uint8], quality: int | None) -> NDArray[np.float32]:
        """Pixels (B, 3, H, W) -> v (B, M, ceil(H/16), ceil(W/16)), in steps of 1."""

    def hyper_analyse(self, v: NDArray[np.float32], quality: int | None) -> NDArray[np.int32] | None:
        """v (B, M, h, w) -> symbols of z (B, K, ceil(h/4), ceil(w/4)); None without a hyperprior."""

    def steps(
        self,
        z: NDArray[np.int32] | None,
        place: Box,
        box: Box,
        quality: int | None,
        constants: Constants | None,
    ) -> Steps:
        """What there is to code of the part `box` of y. z (B, K, *place.shape) are the symbols around it: `place` is
        the box in cells of z with the halo of h_s, as far as the image goes.
        """

    def quantize(self, v: NDArray[np.float32], step: Step, quality: int | None) -> NDArray[np.int32]:
        """Symbols of that part of v."""

    def search(
        self,
        v: NDArray[np.float32],
        step: Step,
        quality: int | None,
        passes: int,
        image: NDArray[np.uint8],
        counted: Box,
    ) -> NDArray[np.int32]:
        """Better symbols of v (1, M, h, w), all in one step, than `quantize` gives: of the `image` (1, 3, H, W), of
        which the pixels `counted` count. A backend that cannot search raises LicError.
        """

    def dequantize(self, symbols: NDArray[np.int32], step: Step, quality: int | None) -> NDArray[np.float32]:
        """v_hat, what is put back for the symbols of a step."""

    def synthesise(
        self, v_hat: NDArray[np.float32], quality: int | None, size: tuple[int, int], gray: bool = False
    ) -> NDArray[np.uint8]:
        """v_hat (B, M, h, w) -> pixels (B, 3, *size), or if `gray` the mean of the colours (B, 1, *size)."""


def answered(steps: Steps, answer: Callable[[Step], NDArray[np.int32]]) -> Iterator[tuple[Step, NDArray[np.int32]]]:
    """Each step with its symbols, which are asked of `answer` in turn."""
    step = next(steps, None)
    while step is not None:
        symbols = answer(step)
        yield step, symbols
        try:
            step = steps.send(symbols)
        except StopIteration:
            return
