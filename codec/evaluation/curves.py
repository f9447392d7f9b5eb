"""Rate-distortion curves, read from files, and the Bjøntegaard delta rate between two of them.


BD-rate: Bjøntegaard, "Calculation of average PSNR differences between RD-curves" (VCEG-M33, 2001), here with a monotone
cubic (PCHIP) in place of his polynomial. It is taken over a fixed range of PSNR (BD_RANGE) and of SSIMULACRA 2
(SSIMULACRA2_RANGE), so that a curve's number does not depend on where another curve happens to end; of MS-SSIM and
CVVDP, for which nobody has settled a range, over what both curves have. The range is said with every number.
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
BD_POINTS = 8  # a PCHIP through fewer points over 8 dB follows its own shape more than the codec's


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


def _floats(values: list) -> list[float]:
    return [math.nan if value is None else float(value) for value in values]
