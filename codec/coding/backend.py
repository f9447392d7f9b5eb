"""The interface of backends, which run the networks of a codec: NumPy arrays in, NumPy arrays out.

A codec (codec/coding/codec.py) cuts images into tiles, calls a backend for the networks' outputs on each, and codes the
integers. The symbols of the latent y are coded in steps: `Backend.steps` is a generator that yields, for each step,
the places of the symbols, their table indices and their predicted means, and receives the symbols before it goes on.
The encoder gets the symbols of a step by quantizing, the decoder by decoding:

    steps = backend.steps(z, place, box, quality, constants)
    step = next(steps)
    symbols = backend.quantize(v[step.where], step, quality)          the encoder
    symbols = decoder.decode(step.index, tables, step.shape)          the decoder
    step = steps.send(symbols)                                        until it stops

One rule makes files decode everywhere: the index of a step depends only on integers that are decoded before it (z, and
the symbols of earlier steps), through exact arithmetic. The mean may be computed in floats, since it is added after
decoding. All present priors have one step.
"""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from codec.coding.tiles import Box
from codec.config import ModelConfig
from codec.errors import LicError

Constants = dict[str, NDArray[np.int32]]  # of h_s at a quality, (C,) each, by name (codec/coding/tables.py)


@dataclass(frozen=True)
class Step:
    """Symbols of y that are coded together."""

    where: tuple[slice, ...]  # their places in y (B, M, h, w) of the box
    shape: tuple[int, ...]  # of the symbols
    index: NDArray  # uint8 or uint16, broadcastable to the shape: the table of each symbol
    mean: NDArray[np.float32] | None  # of the shape, the predicted mean; symbols code v - mean; None: 0


Steps = Generator[Step, NDArray[np.int32], None]


@dataclass(frozen=True)
class Halos:
    """The halo of each transform, how far it sees: in cells of y for g_a and g_s, in cells of z for h_a and h_s."""

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
    parameters: int  # their number
    encodes: bool  # whether it has the networks of the encoder; a model that was replaced may be without

    def analyse(self, pixels: NDArray[np.uint8], quality: int | None) -> NDArray[np.float32]:
        """Pixels (B, 3, H, W) -> v (B, M, ceil(H/16), ceil(W/16)), to be quantized with steps of 1.

        LicError if the backend does not encode.
        """

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
        """The steps in which y is coded in the box `box` of an image.

        z (B, K, *place.shape): the symbols of z in the box `place`, which is `box` in cells of z, grown by the halo of
        h_s up to the borders of the image; None without a hyperprior, as are `constants`.
        """

    def quantize(self, v: NDArray[np.float32], step: Step, quality: int | None) -> NDArray[np.int32]:
        """The symbols of v (*step.shape), the latent at the places of a step; same shape."""

    def search(
        self,
        v: NDArray[np.float32],
        step: Step,
        quality: int | None,
        passes: int,
        image: NDArray[np.uint8],
        counted: Box,
    ) -> NDArray[np.int32]:
        """Better symbols than those of `quantize` (codec/network/search.py), for v (1, M, h, w) in one step.

        `image` (1, 3, H, W): the original pixels, of which those in the box `counted` count. LicError if the backend
        cannot search.
        """

    def dequantize(self, symbols: NDArray[np.int32], step: Step, quality: int | None) -> NDArray[np.float32]:
        """The dequantized v_hat of the symbols of a step; same shape."""

    def synthesise(
        self, v_hat: NDArray[np.float32], quality: int | None, size: tuple[int, int], gray: bool = False
    ) -> NDArray[np.uint8]:
        """v_hat (B, M, h, w) -> pixels (B, 3, *size), or with `gray` their mean over the colours (B, 1, *size)."""


def check_encodes(backend: Backend) -> None:
    """LicError if the backend does not encode."""
    if not backend.encodes:
        raise LicError("this model only decodes: it is kept for the files that it wrote")


def answered(steps: Steps, answer: Callable[[Step], NDArray[np.int32]]) -> Iterator[tuple[Step, NDArray[np.int32]]]:
    """Run the generator of steps: each step with its symbols, which `answer` gives."""
    step = next(steps, None)
    while step is not None:
        symbols = answer(step)
        yield step, symbols
        try:
            step = steps.send(symbols)
        except StopIteration:
            return
