"""Distortion, rate and the Bjøntegaard delta rate: every number of a results table is defined here, once.

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

Where the shorter side of an image has fewer pixels than a metric needs (LEAST_SIDES) its score is NaN.

BD-rate: Bjøntegaard, "Calculation of average PSNR differences between RD-curves" (VCEG-M33, 2001), here with a monotone
cubic (PCHIP) in place of his polynomial. It is taken over a fixed range of PSNR (BD_RANGE) and of SSIMULACRA 2
(SSIMULACRA2_RANGE), so that a curve's number does not depend on where another curve happens to end; of MS-SSIM and
CVVDP, for which nobody has settled a range, over what both curves have. The range is said with every number.
"""

import contextlib
import functools
import importlib.util
import json
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from codec.coding import target
from codec.errors import LicError

BD_RANGE = (29.0, 37.0)  # dB, where photographs at 0.2..1.5 bpp lie
# Of SSIMULACRA 2, from between low and medium quality to where hardly anybody sees a difference; 0.25..1.4 bpp, which
# all codecs here reach. Below, the scale runs on for fifty points of pictures that nobody would keep.
SSIMULACRA2_RANGE = (40.0, 80.0)
BD_METHOD = "PCHIP of log-rate over the metric"
ANCHORS = Path(__file__).parent / "anchors.json"
BD_POINTS = 8  # a PCHIP through fewer points over 8 dB follows its own shape more than the codec's
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


class Curve(NamedTuple):
    """The rate-distortion points of one codec, each a mean over the same images."""

    name: str
    bpp: list[float]  # bits per pixel, file headers included
    scores: list[float]  # in the metric's unit
    metric: str = "psnr"  # key of METRICS
    images: list[str] | None = None  # hashes of their pixels in increasing order; None: not known, or published points


def read_curves(path: Path, name: str | None = None) -> dict[str, Curve]:
    """Read the curves of one codec, by metric, from a JSON file: a result of ours or of CompressAI, or the points
    `name` of several.

    Several: {"codecs": {NAME: {"bpp": [...], "psnr": [...]}}}. Raises OSError where the file cannot be read, LicError
    where it holds no such points.
    """
    curves = {}
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        several = document.get("codecs")
        if several is None or name in several:
            points = document.get("results", document) if several is None else several[name]
            images = sorted(image["sha256"] for image in document["images"]) if "images" in document else None
            name, rates = name or document.get("name", path.stem), _floats(points["bpp"])
            for metric in METRICS.values():
                if column := next((column for column in metric.columns if column in points), None):
                    scores = [metric.columns[column](score) for score in _floats(points[column])]
                    curves[metric.key] = Curve(name, rates, scores, metric.key, images)
            if not curves:
                raise KeyError("psnr-rgb")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise LicError(f"{path} holds no rate-distortion points ({type(error).__name__}: {error})") from None
    if several is not None and name not in several:
        raise LicError(f"{path} has no curve {name!r}; add :NAME, one of {', '.join(several)}")
    for curve in curves.values():
        if len(curve.bpp) != len(curve.scores):
            label = METRICS[curve.metric].label
            raise LicError(f"{path}: {len(curve.bpp)} rates but {len(curve.scores)} {label} values")
    return curves


def read_curve(path: Path, name: str | None = None, metric: str = "psnr") -> Curve:
    """Read one of them; LicError, too, where the file has nothing of this metric."""
    curves = read_curves(path, name)
    if metric not in curves:
        there = ", ".join(METRICS[key].label for key in curves)
        raise LicError(f"{path} has no {METRICS[metric].label}, but {there}: choose another metric, or measure it")
    return curves[metric]


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


def anchors() -> dict[str, str]:
    """Return the source of each published curve by its name."""
    return {name: about["source"] for name, about in json.loads(ANCHORS.read_text())["codecs"].items()}


def full_range(a: Curve, b: Curve) -> tuple[float, float]:
    """Return the lowest and the highest score that both curves reach; LicError where one has none."""
    ends = []
    for curve in (a, b):
        if not (finite := [score for score in curve.scores if math.isfinite(score)]):
            raise LicError(f"{curve.name} has no point with a finite {METRICS[curve.metric].label}")
        ends.append((min(finite), max(finite)))
    return max(low for low, _ in ends), min(high for _, high in ends)


def bd_range(a: Curve, b: Curve, wanted: tuple[float, float] | str | None = None) -> tuple[float, float]:
    """Return where the BD-rate of two curves is taken: (low, high) as wanted, "full" all that both have, None the
    metric's own.
    """
    limits = METRICS[a.metric].bd_range if wanted is None else wanted
    return full_range(a, b) if limits in (None, "full") else limits


def bd_rate(anchor: Curve, test: Curve, low: float, high: float, points: int = BD_POINTS) -> float:
    """Return in percent how much rate `test` needs on average relative to `anchor` at equal scores from low to high.

    It is exp(mean over the range of log(rate of test) - log(rate of anchor)) - 1, where log-rate is a PCHIP of the
    score: -50 says half the rate. Points come in any order. An anchor of published points may have fewer than
    BD_POINTS. Raises LicError if the curves are of different metrics; if one was measured on other images than the
    other, or has fewer than `points` points; if it does not span the range, or if its points are not finite and of
    different score.
    """
    if anchor.metric != test.metric:
        raise LicError(f"{test.name} is a curve of {test.metric}, {anchor.name} of {anchor.metric}")
    if None not in (anchor.images, test.images) and anchor.images != test.images:
        counts = f"{len(test.images)} and {len(anchor.images)}"
        raise LicError(f"{test.name} and {anchor.name} did not code the same images ({counts})")
    for curve in (test,) if anchor.images is None else (test, anchor):
        if len(curve.scores) < points:
            raise LicError(
                f"{curve.name}: {len(curve.scores)} points; a BD-rate needs at least {points}: evaluate more qualities"
            )
    if not low < high:
        raise LicError(f"{anchor.name} and {test.name} have no {METRICS[test.metric].label} in common")
    mean = [_log_rate(curve, low, high).integrate(low, high) / (high - low) for curve in (anchor, test)]
    return 100 * float(np.expm1(mean[1] - mean[0]))


def _log_rate(curve: Curve, low: float, high: float):
    from scipy.interpolate import PchipInterpolator

    metric = METRICS[curve.metric]
    order = np.argsort(curve.scores)
    score = np.asarray(curve.scores, dtype=np.float64)[order]
    rate = np.asarray(curve.bpp, dtype=np.float64)[order]
    if not (np.isfinite(score).all() and np.isfinite(rate).all() and (rate > 0).all()):
        raise LicError(f"{curve.name}: a BD-rate needs finite {metric.label} and positive rates")
    if (np.diff(score) == 0).any():
        raise LicError(
            f"{curve.name}: two points have the same {metric.label}, so that rate is no function of it; remove one"
        )
    if (np.diff(rate) <= 0).any():
        fold = int(np.argmax(np.diff(rate) <= 0))
        raise LicError(
            f"{curve.name} folds back: {metric.text(score[fold + 1])} at {rate[fold + 1]:.4f} bpp, but only "
            f"{metric.text(score[fold])} at {rate[fold]:.4f} bpp; leave that quality out"
        )
    if len(score) < 2 or score[0] > low or score[-1] < high:
        span = metric.range_text(score[0], score[-1]) if len(score) else "no point"
        raise LicError(
            f"{curve.name}: its points ({span}) do not span {metric.range_text(low, high)}: "
            "evaluate lower or higher qualities, or choose another range"
        )
    return PchipInterpolator(score, np.log(rate))


def _uint8_pair(a, b) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape:
        raise LicError(f"images of shape {a.shape} and {b.shape} cannot be compared")
    if a.dtype != np.uint8 or b.dtype != np.uint8:
        raise LicError(f"metrics are defined on 8-bit images, not on {a.dtype} and {b.dtype}")
    return a, b


def _floats(values: list) -> list[float]:
    return [math.nan if value is None else float(value) for value in values]
