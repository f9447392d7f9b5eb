"""Metrics of distortion and rate: the definition of every figure in a results table. BD-rates are in curves.py.

Metrics compare 8-bit images, as decoded from a file. The score of a data set is the mean of the scores of its images
(of PSNR and MS-SSIM the mean of decibels, not the decibels of a mean), its rate the mean of the bits per pixel. METRICS
describes each metric for tables, figures and BD-rates; more is better for all.

PSNR measures squared error, by which the literature compares codecs. The others follow the eye:

MS-SSIM: Wang, Simoncelli and Bovik, "Multi-scale structural similarity for image quality assessment" (Asilomar 2003).
SSIMULACRA 2: Jon Sneyers (Cloudinary, libjxl), through the package `ssimulacra2`. 100 is equal, 90 visually lossless,
    70 high quality, 50 medium, 30 low; far worse images are below zero.
CVVDP: Mantiuk et al., "ColorVideoVDP: A visual difference predictor for image, video and display metrics" (SIGGRAPH
    2024), through the package `cvvdp` (extra `perceptual`), on its display standard_4k: 10 is equal, and a difference
    of 1 JOD is one that three of four people see.

An image with a shorter side than a metric needs has the score NaN.
"""

import contextlib
import functools
import importlib.util
import logging
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from codec.coding import target
from codec.errors import LicError

BD_RANGE = (29.0, 37.0)  # dB: photographs at 0.2 to 1.5 bpp
# Of SSIMULACRA 2, from between low and medium quality to where hardly anybody sees a difference: 0.25 to 1.4 bpp, which
# all codecs here reach. Scores below are of pictures too bad to keep.
SSIMULACRA2_RANGE = (40.0, 80.0)
MS_SSIM_SIDE = 161  # the fifth scale must hold the 11-pixel window: min(H, W) > (11 - 1) * 2**4
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the scales, from the paper
MS_SSIM_C1, MS_SSIM_C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
CVVDP_SIDE = 8  # pixels, by hand: the metric is a pyramid, and was not fitted to images of a few pixels


class Metric(NamedTuple):
    """A metric as it is shown and read; more is better."""

    key: str  # on the command line, in bd_rate.json and in the report
    row: str  # the field of results.Row
    columns: dict[str, Callable[[float], float]]  # its keys in JSON results, ours first -> conversion to this metric
    label: str  # in headings
    unit: str  # behind a number
    axis: str  # beside an axis
    digits: int  # decimals shown
    bd_range: tuple[float, float] | None  # default range of BD-rates; None: that of both curves

    def text(self, value: float) -> str:
        """A number of this metric with its unit."""
        return f"{value:.{self.digits}f} {self.unit}".rstrip()

    def range_text(self, low: float, high: float) -> str:
        """A range of this metric with its unit."""
        return f"{low:.{self.digits}f} to {high:.{self.digits}f} {self.unit}".rstrip()


def decibel(similarity: float) -> float:
    """An MS-SSIM in dB, -10 log10(1 - similarity), which spreads values near 1; inf for 1.

    The figure of several images is the mean of theirs; CompressAI's plots convert the mean MS-SSIM, which is lower.
    """
    return math.inf if similarity >= 1 else -10 * math.log10(1 - similarity)


METRICS = {
    metric.key: metric
    for metric in (
        Metric("psnr", "psnr", {"psnr-rgb": float, "psnr": float}, "PSNR", "dB", "PSNR in dB", 2, BD_RANGE),
        Metric(
            "ms-ssim",
            "ms_ssim_db",
            {"ms-ssim-rgb-db": float, "ms-ssim-rgb": decibel, "ms-ssim": decibel},
            "MS-SSIM",
            "dB",
            "MS-SSIM in dB: -10 log10(1 - MS-SSIM)",
            2,
            None,
        ),
        Metric(
            "ssimulacra2",
            "ssimulacra2",
            {"ssimulacra2": float},
            "SSIMULACRA 2",
            "",
            "SSIMULACRA 2",
            2,
            SSIMULACRA2_RANGE,
        ),
        Metric("cvvdp", "cvvdp", {"cvvdp": float}, "CVVDP", "JOD", "CVVDP in JOD", 3, None),
    )
}


def measurable() -> tuple[str, ...]:
    """The keys of the metrics that can be measured here: all, CVVDP only if its package is installed."""
    return tuple(key for key in METRICS if key != "cvvdp" or importlib.util.find_spec("pycvvdp"))


def psnr(a, b) -> float:
    """The PSNR in dB between two uint8 images of equal shape (PIL images or arrays); inf if they are equal.

    Raises LicError if a shape or type does not fit.
    """
    a, b = _uint8_pair(a, b)
    mse = np.mean(np.square(a.astype(np.float64) - b.astype(np.float64)))
    return float(10 * np.log10(255**2 / mse)) if mse > 0 else float("inf")


def ms_ssim(a, b) -> float:
    """The MS-SSIM (1 = equal) between two uint8 images (H, W, 3) (PIL or arrays), averaged over the channels.

    It equals pytorch-msssim in float64 to a millionth (whose window is rounded to float32), in a third of the time;
    float32 is too inaccurate for bright flat images. NaN if the shorter side is below MS_SSIM_SIDE pixels, where the
    fifth scale is not defined. Raises LicError if a shape or type does not fit.
    """
    a, b = _uint8_pair(a, b)
    if min(a.shape[:2]) < MS_SSIM_SIDE:
        return math.nan
    x, y = (np.moveaxis(image, -1, 0).astype(np.float64) for image in (a, b))  # (3, H, W), 0..255
    product = np.ones(len(x))
    for scale, weight in enumerate(MS_SSIM_WEIGHTS):
        if scale:
            x, y = _halved(x), _halved(y)
        mean_x, mean_y = _windowed(x), _windowed(y)
        square_x, square_y, both = mean_x * mean_x, mean_y * mean_y, mean_x * mean_y
        variances = _windowed(x * x) - square_x + _windowed(y * y) - square_y
        similar = (2 * (_windowed(x * y) - both) + MS_SSIM_C2) / (variances + MS_SSIM_C2)
        if scale == len(MS_SSIM_WEIGHTS) - 1:
            similar *= (2 * both + MS_SSIM_C1) / (square_x + square_y + MS_SSIM_C1)
        product *= np.maximum(similar.mean(axis=(1, 2)), 0) ** weight
    return float(product.mean())


def _windowed(x: np.ndarray) -> np.ndarray:
    """x (C, H, W) blurred by the Gaussian window of MS-SSIM, without padding: (C, H - 10, W - 10)."""
    from scipy.ndimage import correlate1d

    place = np.arange(-5, 6)
    window = np.exp(-(place**2) / (2 * 1.5**2))
    window /= window.sum()
    down = correlate1d(x, window, axis=1, mode="constant")[:, 5:-5]
    return correlate1d(down, window, axis=2, mode="constant")[:, :, 5:-5]


def _halved(x: np.ndarray) -> np.ndarray:
    """Means of 2x2 samples: (C, H, W) -> (C, ceil(H/2), ceil(W/2)); an odd side is padded with a zero at both ends."""
    x = np.pad(x, [(0, 0), *((side % 2, side % 2) for side in x.shape[1:])])
    height, width = (side // 2 * 2 for side in x.shape[1:])
    x = x[:, :height, :width]
    return (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4


def ssimulacra2(a, b) -> float:
    """The SSIMULACRA 2 (100 = equal) of b compared with a, two uint8 images (H, W, 3) (PIL or arrays).

    It is NaN if the shorter side is below target.SIDE pixels. A Kodak image takes half a second.
    Raises LicError if a shape or type does not fit.
    """
    a, b = _uint8_pair(a, b)
    if min(a.shape[:2]) < target.SIDE:
        return math.nan
    return target.ssimulacra2(*map(Image.fromarray, (a, b)))


def cvvdp(a, b) -> float:
    """The CVVDP in JOD (10 = equal) of b compared with a, two uint8 images (H, W, 3) (PIL or arrays).

    It is NaN if the shorter side is below CVVDP_SIDE pixels. A Kodak image takes half a second.
    Raises ImportError without the package, LicError if a shape or type does not fit.
    """
    a, b = _uint8_pair(a, b)
    if min(a.shape[:2]) < CVVDP_SIDE:
        return math.nan
    import torch

    with torch.inference_mode(), _one_thread(torch), _silence():
        test, reference = torch.from_numpy(b.copy()), torch.from_numpy(a.copy())
        return float(_visual_difference_predictor().predict(test, reference, dim_order="HWC")[0])


@functools.cache
def _visual_difference_predictor() -> Any:
    """The metric CVVDP, loaded once."""
    import pycvvdp
    import torch

    return pycvvdp.cvvdp(display_name="standard_4k", device=torch.device("cpu"))


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """No logging within this context: CVVDP logs displays and dark images, its imports missing compilers."""
    before = logging.root.manager.disable
    logging.disable()
    try:
        yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def _one_thread(torch: Any) -> Iterator[None]:
    """One thread for torch within this context: threads would wait for one another if a core is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def block_edge_ratio(image, size: int = 16) -> float:
    """The visibility of a grid of `size` pixels in an 8-bit image (PIL or array); 1 means none.

    It is the mean absolute difference of neighbouring samples across the lines of the grid (pixels k * size - 1 and
    k * size), divided by that elsewhere; over both directions and all channels. NaN if the image has no grid line or is
    flat.
    """
    pixels = np.asarray(image).astype(np.int16)
    sums, counts = np.zeros(2), np.zeros(2)  # inside the blocks, across the lines
    for axis in (0, 1):
        steps = np.abs(np.diff(pixels, axis=axis))
        line = np.arange(1, pixels.shape[axis]) % size == 0
        for i, chosen in enumerate((~line, line)):
            some = np.compress(chosen, steps, axis=axis)
            sums[i] += some.sum()
            counts[i] += some.size
    with np.errstate(divide="ignore", invalid="ignore"):
        inside, across = sums / counts
        return float(across / inside)


def bpp(n_bytes: int, width: int, height: int) -> float:
    """The bits per pixel of a file of `n_bytes` bytes, header included."""
    return 8 * n_bytes / (width * height)


def _uint8_pair(a, b) -> tuple[np.ndarray, np.ndarray]:
    """Two images as uint8 arrays; LicError unless they have that type and one shape."""
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape:
        raise LicError(f"images of shape {a.shape} and {b.shape} cannot be compared")
    if a.dtype != np.uint8 or b.dtype != np.uint8:
        raise LicError(f"metrics are defined on 8-bit images, not on {a.dtype} and {b.dtype}")
    return a, b
