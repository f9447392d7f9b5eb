"""Distortion and rate: every number of a results table is defined here, once; codec/evaluation/curves.py has BD-rates.

Metrics compare 8-bit images, as they are read back from a file. A data set's score is the mean over its images of each
image's score (of PSNR and MS-SSIM the mean of decibels, not the decibels of the mean), its rate the mean of the images'
bits per pixel. METRICS has what tables, figures and BD-rates need to know about each of them; on all, more is better.

PSNR counts squared errors, and that is what codecs in the literature are compared by. The others follow the eye:

MS-SSIM: Wang, Simoncelli and Bovik, "Multi-scale structural similarity for image quality assessment" (Asilomar 2003).
SSIMULACRA 2: Jon Sneyers (Cloudinary, libjxl), through the package `ssimulacra2`. 100 is equal, 90 visually lossless,
    70 high quality, 50 medium, 30 low; far worse images are below zero.
CVVDP: Mantiuk et al., "ColorVideoVDP: A visual difference predictor for image, video and display metrics" (SIGGRAPH
    2024), through the package `cvvdp` (extra `perceptual`), on its display standard_4k: 10 is equal, and a difference
    of 1 JOD is one that three of four people see.

Where the shorter side of an image has fewer pixels than a metric needs its score is NaN.
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

BD_RANGE = (29.0, 37.0)  # dB, where photographs at 0.2..1.5 bpp lie
# Of SSIMULACRA 2, from between low and medium quality to where hardly anybody sees a difference; 0.25..1.4 bpp, which
# all codecs here reach. Below, the scale runs on for fifty points of pictures that nobody would keep.
SSIMULACRA2_RANGE = (40.0, 80.0)
MS_SSIM_SIDE = 161  # the fifth scale must hold the 11-pixel window: min(H, W) > (11 - 1) * 2**4
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the scales, from the paper
MS_SSIM_C1, MS_SSIM_C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
CVVDP_SIDE = 8  # a pixel has no pyramid; what four pixels look like is nothing that anybody was asked


class Metric(NamedTuple):
    """What is to be known of a metric to show it; more of it is better."""

    key: str  # on the command line, in bd_rate.json and in the report
    row: str  # the field of results.Row
    columns: dict[str, Callable[[float], float]]  # keys in JSON results, ours first, with what makes it this metric
    label: str  # in headings
    unit: str  # behind a number
    axis: str  # beside an axis
    digits: int  # decimals shown
    bd_range: tuple[float, float] | None  # of BD-rates, unless another one is asked for; None: what both curves have

    def text(self, value: float) -> str:
        """A number of this metric with its unit."""
        return f"{value:.{self.digits}f} {self.unit}".rstrip()

    def range_text(self, low: float, high: float) -> str:
        """A range of this metric with its unit."""
        return f"{low:.{self.digits}f} to {high:.{self.digits}f} {self.unit}".rstrip()


def decibel(similarity: float) -> float:
    """Return an MS-SSIM in dB, -10 log10(1 - similarity), where differences near 1 show; inf for 1.

    Of several images: the mean of these. CompressAI's plots show the figure of the mean MS-SSIM, which is lower.
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
    """The keys of the metrics that can be measured here: all, but CVVDP only where its package is installed."""
    return tuple(key for key in METRICS if key != "cvvdp" or importlib.util.find_spec("pycvvdp"))


def psnr(a, b) -> float:
    """Return the PSNR in dB between two uint8 images of equal shape (PIL images or arrays); inf where they are equal.

    Raises LicError if a shape or type does not fit.
    """
    a, b = _uint8_pair(a, b)
    mse = np.mean(np.square(a.astype(np.float64) - b.astype(np.float64)))
    return float(10 * np.log10(255**2 / mse)) if mse > 0 else float("inf")


def ms_ssim(a, b) -> float:
    """Return the MS-SSIM (1 = equal) between two uint8 images (H, W, 3) (PIL or arrays), averaged over the channels.

    It is what pytorch-msssim computes in float64, to a millionth (its window is rounded to float32), in a third of the
    time; in float32 a bright flat image would be more like another than like itself. NaN where the shorter side is
    below MS_SSIM_SIDE pixels: its fifth scale is not defined there. Raises LicError if a shape or type does not fit.
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
    """Means of x (C, H, W) under the Gaussian window of MS-SSIM, where all of it is inside: (C, H - 10, W - 10)."""
    from scipy.ndimage import correlate1d

    place = np.arange(-5, 6)
    window = np.exp(-(place**2) / (2 * 1.5**2))
    window /= window.sum()
    down = correlate1d(x, window, axis=1, mode="constant")[:, 5:-5]
    return correlate1d(down, window, axis=2, mode="constant")[:, :, 5:-5]


def _halved(x: np.ndarray) -> np.ndarray:
    """Means of 2x2 samples of x (C, H, W), which is framed by zeros along a side of odd length."""
    x = np.pad(x, [(0, 0), *((side % 2, side % 2) for side in x.shape[1:])])
    height, width = (side // 2 * 2 for side in x.shape[1:])
    x = x[:, :height, :width]
    return (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4


def ssimulacra2(a, b) -> float:
    """Return the SSIMULACRA 2 (100 = equal) of b, compared with a, two uint8 images (H, W, 3) (PIL or arrays).

    It is NaN where the shorter side is below target.SIDE pixels. A Kodak image takes half a second.
    Raises LicError if a shape or type does not fit.
    """
    a, b = _uint8_pair(a, b)
    if min(a.shape[:2]) < target.SIDE:
        return math.nan
    return target.ssimulacra2(*map(Image.fromarray, (a, b)))


def cvvdp(a, b) -> float:
    """Return the CVVDP in JOD (10 = equal) of b, compared with a, two uint8 images (H, W, 3) (PIL or arrays).

    It is NaN where the shorter side is below CVVDP_SIDE pixels. A Kodak image takes half a second.
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
    import pycvvdp
    import torch

    return pycvvdp.cvvdp(display_name="standard_4k", device=torch.device("cpu"))


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """No logging: CVVDP tells of displays and of dark images, and what it imports of compilers that are missing."""
    before = logging.root.manager.disable
    logging.disable()
    try:
        yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def _one_thread(torch: Any) -> Iterator[None]:
    """Many small operations wait for one another where another process uses the processor."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def block_edge_ratio(image, size: int = 16) -> float:
    """How visible a grid of `size` pixels is in an 8-bit image (PIL or array): 1 where its lines are like any others.

    It is the mean absolute difference of neighbouring samples across the lines of the grid, between pixels
    k * size - 1 and k * size, over that at all other positions; both directions, all channels together. NaN where the
    image has no line of the grid or is flat.
    """
    pixels = np.asarray(image).astype(np.int16)
    sums, counts = np.zeros(2), np.zeros(2)  # inside the blocks, across the lines
    for axis in (0, 1):
        steps = np.abs(np.diff(pixels, axis=axis))
        line = np.arange(1, pixels.shape[axis]) % size == 0
        for i, chosen in enumerate((~line, line)):
            part = np.compress(chosen, steps, axis=axis)
            sums[i] += part.sum()
            counts[i] += part.size
    with np.errstate(divide="ignore", invalid="ignore"):
        inside, across = sums / counts
        return float(across / inside)


def bpp(n_bytes: int, width: int, height: int) -> float:
    """Return the bits per pixel of a file of `n_bytes` bytes, everything in it counted."""
    return 8 * n_bytes / (width * height)


def _uint8_pair(a, b) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape:
        raise LicError(f"images of shape {a.shape} and {b.shape} cannot be compared")
    if a.dtype != np.uint8 or b.dtype != np.uint8:
        raise LicError(f"metrics are defined on 8-bit images, not on {a.dtype} and {b.dtype}")
    return a, b
