"""The cost of coding: time, in all and in the entropy coder; memory; multiply-accumulates.

    seconds = time_coding(codec.encode, codec.decode, image, quality)
    kmac = kmac_per_pixel(lambda image: codec.encode(image, quality), codec.decode)

Entropy coding is timed by wrapping the functions that turn integers into bytes and back: those of `entropy`, and for
compressai's models those of its entropy models and coders, including their Python code. The rest of the time is the
network, and the conversion of images.
"""

import contextlib
import functools
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

import entropy
from codec.coding.codec import Codec
from codec.coding.onnx_backend import OnnxBackend


def now() -> float:
    """Seconds on a clock, after waiting for the GPU."""
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


class Seconds(NamedTuple):
    """Times of encoding and decoding an image, in seconds."""

    encoding: float
    decoding: float
    encoding_entropy: float  # the entropy coder's share of the encoding; 0 if it is not known
    decoding_entropy: float  # likewise


def time_coding(encode: Callable, decode: Callable, image: Image.Image, quality: int | None) -> Seconds:
    """The times of encoding and decoding once, in memory."""
    with entropy_clock() as clock:
        start = now()
        data = encode(image, quality)
        encoding, encoding_entropy = now() - start, clock.seconds
        start = now()
        decode(data)
        decoding = now() - start
    return Seconds(encoding, decoding, encoding_entropy, clock.seconds - encoding_entropy)


class Clock:
    """Adds up the seconds spent in the functions that it wraps; nested calls count once."""

    def __init__(self):
        self.seconds, self._depth = 0.0, 0

    def before(self, function: Callable) -> Callable:
        """The function, timed."""

        @functools.wraps(function)
        def timed(*args, **kwargs):
            start = now()
            self._depth += 1
            try:
                return function(*args, **kwargs)
            finally:
                self._depth -= 1
                if self._depth == 0:
                    self.seconds += now() - start

        return timed


@contextlib.contextmanager
def entropy_clock() -> Iterator[Clock]:
    """A clock that times all known entropy coders within this context."""
    places: list[tuple[Any, str]] = [(entropy, "encode"), (entropy.Decoder, "decode")]
    places += [(entropy, "encode_adapted"), (entropy.Decoder, "decode_adapted")]
    if "compressai" in sys.modules:
        from compressai.ans import BufferedRansEncoder, RansDecoder
        from compressai.entropy_models import EntropyModel

        from entropy import bridge

        places += [(EntropyModel, "compress"), (EntropyModel, "decompress"), (bridge, "_encode"), (bridge, "_decode")]
        places += [(BufferedRansEncoder, "encode_with_indexes"), (BufferedRansEncoder, "flush")]
        places += [(RansDecoder, "set_stream"), (RansDecoder, "decode_stream")]  # of autoregressive models
    clock, saved = Clock(), [(place, name, getattr(place, name)) for place, name in places]
    for place, name, function in saved:
        setattr(place, name, clock.before(function))
    try:
        yield clock
    finally:
        for place, name, function in saved:
            setattr(place, name, function)


def peak_memory() -> int:
    """The peak resident set of this process so far, in bytes."""
    try:  # on Linux getrusage includes the peak of the parent process
        return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])
    except OSError:
        import resource  # which Windows does not have

        unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes elsewhere
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def kmac_per_pixel(
    encode: Callable[[Image.Image], bytes], decode: Callable[[bytes], Image.Image]
) -> tuple[float, float] | None:
    """Thousand multiply-accumulates per pixel of encoder and decoder: all that torch runs for a 256x256 image.

    None if torch runs nothing.
    """
    from torch.utils.flop_counter import FlopCounterMode

    image = Image.effect_noise((256, 256), 50).convert("RGB")  # which no codec keeps without loss
    with FlopCounterMode(display=False) as encoder:
        data = encode(image)
    with FlopCounterMode(display=False) as decoder:
        decode(data)
    flops = encoder.get_total_flops(), decoder.get_total_flops()
    return tuple(n / 2 / 256**2 / 1000 for n in flops) if any(flops) else None


def kmac_of(model: Codec) -> tuple[float, float] | None:
    """kmac_per_pixel of one of our models; None unless it runs in torch."""
    if isinstance(model.backend, OnnxBackend):
        return None
    quality = model.qualities[len(model.qualities) // 2]
    return kmac_per_pixel(functools.partial(model.compress, quality=quality), model.decompress)
