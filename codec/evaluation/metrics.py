"""Distortion, rate and the Bjøntegaard delta rate: every number of a results table is defined here, once.

PSNR and MS-SSIM compare 8-bit images, as they are read back from a file. A data set's PSNR is the mean over its images
of the PSNR in dB (not the PSNR of the mean error), its rate the mean of the images' bits per pixel.

MS-SSIM: Wang, Simoncelli and Bovik, "Multi-scale structural similarity for image quality assessment" (Asilomar 2003).
BD-rate: Bjøntegaard, "Calculation of average PSNR differences between RD-curves" (VCEG-M33, 2001), here with a monotone
cubic (PCHIP) in place of his polynomial and over a fixed PSNR range, so that a curve's number does not depend on where
another curve happens to end.
"""

import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

BD_RANGE = (29.0, 37.0)  # dB, where photographs at 0.2..1.5 bpp lie
BD_METHOD = "PCHIP of log-rate over PSNR"
ANCHORS = Path(__file__).parent / "anchors.json"
BD_POINTS = 8  # a PCHIP through fewer points over 8 dB follows its own shape more than the codec's
MS_SSIM_SIDE = 161  # the fifth scale must hold the 11-pixel window: min(H, W) > (11 - 1) * 2**4


class Curve(NamedTuple):
    """The rate-distortion points of one codec, each a mean over the same images."""

    name: str
    bpp: list[float]  # bits per pixel, file headers included
    psnr: list[float]  # dB
    images: list[str] | None = None  # hashes of their pixels in increasing order; None: not known, or published points


def read_curve(path: Path, name: str | None = None) -> Curve:
    """Read one curve from a JSON file: a result of ours or of CompressAI, or the points `name` of several.

    Several: {"codecs": {NAME: {"bpp": [...], "psnr": [...]}}}. Raises OSError where the file cannot be read, ValueError
    where it holds no such points.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        several = document.get("codecs")
        if several is None or name in several:
            points = document.get("results", document) if several is None else several[name]
            psnr = points["psnr-rgb"] if "psnr-rgb" in points else points["psnr"]
            images = sorted(image["sha256"] for image in document["images"]) if "images" in document else None
            curve = Curve(name or document.get("name", path.stem), _floats(points["bpp"]), _floats(psnr), images)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} holds no rate-distortion points ({type(error).__name__}: {error})") from None
    if several is not None and name not in several:
        raise ValueError(f"{path} has no curve {name!r}; add :NAME, one of {', '.join(several)}")
    if len(curve.bpp) != len(curve.psnr):
        raise ValueError(f"{path}: {len(curve.bpp)} rates but {len(curve.psnr)} PSNR values")
    return curve


def psnr(a, b) -> float:
    """Return the PSNR in dB between two uint8 images of equal shape (PIL images or arrays); inf where they are equal.

    Raises ValueError if a shape or type does not fit.
    """
    a, b = _uint8_pair(a, b)
    mse = np.mean(np.square(a.astype(np.float64) - b.astype(np.float64)))
    return float(10 * np.log10(255**2 / mse)) if mse > 0 else float("inf")


def ms_ssim(a, b) -> float:
    """Return the MS-SSIM (1 = equal) between two uint8 images (H, W, 3) (PIL or arrays), averaged over the channels.

    It is NaN where the shorter side is below MS_SSIM_SIDE pixels: its fifth scale is not defined there.
    Raises ValueError if a shape or type does not fit.
    """
    a, b = _uint8_pair(a, b)
    if min(a.shape[:2]) < MS_SSIM_SIDE:
        return float("nan")
    import torch
    from pytorch_msssim import ms_ssim as torch_ms_ssim

    # channels_last: the depthwise windows then take a seventh of the time on a CPU
    x, y = (
        torch.from_numpy(image.astype(np.float64)).permute(2, 0, 1)[None].contiguous(memory_format=torch.channels_last)
        for image in (a, b)
    )  # (1, 3, H, W), 0..255; in float32 a bright flat image is more like another than like itself
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # its many small operations wait for one another where another process uses the processor
    try:
        with torch.inference_mode():
            return float(torch_ms_ssim(x, y, data_range=255))
    finally:
        torch.set_num_threads(threads)


def decibel(similarity: float) -> float:
    """Return an MS-SSIM in dB, -10 log10(1 - similarity), where differences near 1 show; inf for 1.

    Of several images: the mean of these. CompressAI's plots show the figure of the mean MS-SSIM, which is lower.
    """
    return math.inf if similarity >= 1 else -10 * math.log10(1 - similarity)


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
    """Return the lowest and the highest PSNR in dB that both curves reach."""
    return max(min(a.psnr), min(b.psnr)), min(max(a.psnr), max(b.psnr))


def bd_rate(
    anchor: Curve, test: Curve, low: float = BD_RANGE[0], high: float = BD_RANGE[1], points: int = BD_POINTS
) -> float:
    """Return in percent how much rate `test` needs on average relative to `anchor` at equal PSNR from low to high dB.

    It is exp(mean over the range of log(rate of test) - log(rate of anchor)) - 1, where log-rate is a PCHIP of PSNR:
    -50 says half the rate. Points come in any order. An anchor of published points may have fewer than BD_POINTS.
    Raises ValueError if a curve was measured on other images than the other, or has fewer than `points` points; if it
    does not span the range, or if its points are not finite and of different PSNR.
    """
    if None not in (anchor.images, test.images) and anchor.images != test.images:
        counts = f"{len(test.images)} and {len(anchor.images)}"
        raise ValueError(f"{test.name} and {anchor.name} did not code the same images ({counts})")
    for curve in (test,) if anchor.images is None else (test, anchor):
        if len(curve.psnr) < points:
            raise ValueError(
                f"{curve.name}: {len(curve.psnr)} points; a BD-rate needs at least {points}: evaluate more qualities"
            )
    if not low < high:
        raise ValueError(f"{anchor.name} and {test.name} have no PSNR in common")
    mean = [_log_rate(curve, low, high).integrate(low, high) / (high - low) for curve in (anchor, test)]
    return 100 * float(np.expm1(mean[1] - mean[0]))


def _log_rate(curve: Curve, low: float, high: float):
    from scipy.interpolate import PchipInterpolator

    order = np.argsort(curve.psnr)
    quality = np.asarray(curve.psnr, dtype=np.float64)[order]
    rate = np.asarray(curve.bpp, dtype=np.float64)[order]
    if not (np.isfinite(quality).all() and np.isfinite(rate).all() and (rate > 0).all()):
        raise ValueError(f"{curve.name}: a BD-rate needs finite PSNR and positive rates")
    if (np.diff(quality) == 0).any():
        raise ValueError(f"{curve.name}: two points have the same PSNR, so that rate is no function of it; remove one")
    if len(quality) < 2 or quality[0] > low or quality[-1] < high:
        span = f"{quality[0]:.2f}..{quality[-1]:.2f} dB" if len(quality) else "no point"
        raise ValueError(
            f"{curve.name}: its points ({span}) do not span {low:g}..{high:g} dB: "
            "evaluate lower or higher qualities, or choose another range"
        )
    return PchipInterpolator(quality, np.log(rate))


def _uint8_pair(a, b) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape:
        raise ValueError(f"images of shape {a.shape} and {b.shape} cannot be compared")
    if a.dtype != np.uint8 or b.dtype != np.uint8:
        raise ValueError(f"metrics are defined on 8-bit images, not on {a.dtype} and {b.dtype}")
    return a, b


def _floats(values: list) -> list[float]:
    return [math.nan if value is None else float(value) for value in values]
