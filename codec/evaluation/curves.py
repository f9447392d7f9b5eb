"""Rate-distortion curves, read from files, and the Bjøntegaard delta rate (BD-rate) between two of them.

Bjøntegaard, "Calculation of average PSNR differences between RD-curves" (VCEG-M33, 2001), with a monotone cubic (PCHIP)
in place of the polynomial. It is taken over a fixed range of PSNR (BD_RANGE) and of SSIMULACRA 2 (SSIMULACRA2_RANGE),
so that it does not depend on where a curve happens to end; for MS-SSIM and CVVDP, which have no usual range, over the
range of both curves. The range is reported with every number.
"""

import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from codec.errors import LicError
from codec.evaluation.metrics import METRICS

BD_METHOD = "PCHIP of log-rate over the metric"
ANCHORS = Path(__file__).parent / "anchors.json"
BD_POINTS = 8  # fewest points of a curve, by hand: between fewer over 8 dB, PCHIP's shape counts more than the codec's


class Curve(NamedTuple):
    """The rate-distortion points of one codec, each a mean over the same images."""

    name: str
    bpp: list[float]  # bits per pixel, file headers included
    scores: list[float]  # in the metric's unit
    metric: str = "psnr"  # key of METRICS
    images: list[str] | None = None  # hashes of their pixels in increasing order; None: not known, or published points


def read_curves(path: Path, name: str | None = None) -> dict[str, Curve]:
    """The curves of one codec by metric, from a JSON file: a result of ours or of CompressAI, or the codec `name` of a
    file of several, {"codecs": {NAME: {"bpp": [...], "psnr": [...]}}}.

    Raises OSError if the file cannot be read, LicError if it has no such points.
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
    """The curve of one codec and metric; raises what read_curves does, and LicError if the file lacks the metric."""
    curves = read_curves(path, name)
    if metric not in curves:
        there = ", ".join(METRICS[key].label for key in curves)
        raise LicError(f"{path} has no {METRICS[metric].label}, but {there}: choose another metric, or measure it")
    return curves[metric]


def anchors() -> dict[str, str]:
    """The source of each published curve, by name."""
    return {name: codec["source"] for name, codec in json.loads(ANCHORS.read_text())["codecs"].items()}


def full_range(a: Curve, b: Curve) -> tuple[float, float]:
    """The lowest and the highest score that both curves reach; LicError if one has no finite score."""
    ends = []
    for curve in (a, b):
        if not (finite := [score for score in curve.scores if math.isfinite(score)]):
            raise LicError(f"{curve.name} has no point with a finite {METRICS[curve.metric].label}")
        ends.append((min(finite), max(finite)))
    return max(low for low, _ in ends), min(high for _, high in ends)


def bd_range(a: Curve, b: Curve, wanted: tuple[float, float] | str | None = None) -> tuple[float, float]:
    """The range (low, high) of scores over which the BD-rate of two curves is taken.

    `wanted` is such a range, "full" for all that both curves reach, or None for that of the metric.
    """
    limits = METRICS[a.metric].bd_range if wanted is None else wanted
    return full_range(a, b) if limits in (None, "full") else limits


def bd_rate(anchor: Curve, test: Curve, low: float, high: float, points: int = BD_POINTS) -> float:
    """The average difference in rate of `test` relative to `anchor`, in percent, at equal scores from low to high.

    It is 100 * (exp(mean over the range of log(rate of test) - log(rate of anchor)) - 1), where log-rate is a PCHIP of
    the score: -50 means half the rate. Points may be in any order. An anchor of published points may have fewer than
    `points`. Raises LicError if the curves have different metrics or images, if one has fewer than `points` points or
    does not span the range, or if its points are not finite, increasing, and of different scores.
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
    """The PCHIP of a curve's log-rate over its score; LicError if there is none that spans low..high."""
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


def _floats(values: list) -> list[float]:
    """Numbers of a JSON file; null is NaN."""
    return [math.nan if value is None else float(value) for value in values]
