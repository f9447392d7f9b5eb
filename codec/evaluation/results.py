"""What an evaluation found out: a row per file, a result per codec; as JSON with CompressAI's keys, and as a table.

    for result in run(codecs, images, folder):      # codec/evaluation/evaluate.py
        print(result.curve(), table([result]), result.to_json())

The tools of both projects plot the JSON of both. Every table, BD-rate and curve is made from the rows.
"""

import hashlib
import json
import math
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from PIL import features

import entropy
from codec.evaluation.metrics import Curve
from codec.machine import version

# A file may exceed its estimated bits by the coder's loss and by its header and checksums; beyond that, the rate model
# that was trained is not the one that codes.
ESTIMATE_SHARE, ESTIMATE_BYTES = 0.005, 64


@dataclass
class Row:
    """One file: an image at a quality."""

    image: str
    quality: int | None
    file: str
    """Path relative to the output folder."""
    bytes: int
    """Size on disk."""
    bpp: float
    psnr: float
    """dB, over R, G and B; inf where the file is lossless."""
    ms_ssim: float
    """NaN where the image is too small for it or it was not asked for."""
    encoding_time: float | None = None
    """Seconds; None for an image that was not timed."""
    decoding_time: float | None = None
    encoding_entropy_time: float | None = None
    """Of the encoding time, that in the entropy coder; the rest is the network. None for a classical codec."""
    decoding_entropy_time: float | None = None
    estimated_bytes: float | None = None
    """Estimated bits / 8: -log2 of the model's float densities in evaluation mode (learned codecs only)."""
    cross_entropy: float | None = None
    """Estimated bits per symbol of the latent, those of a hyper-latent counted in."""
    empirical_entropy: float | None = None
    """Bits per symbol under the latent's own histogram, channel by channel: what perfect densities per channel would
    cost. A hyperprior, whose densities follow the image, can stay below."""
    block_edges: float = math.nan
    """metrics.block_edge_ratio of the decoded image."""
    ms_ssim_db: float = math.nan
    """-10 log10(1 - ms_ssim)."""

    @property
    def misses_estimate(self) -> bool:
        """Whether the file is larger or smaller than its estimate allows; one without loss has another way."""
        estimate = self.estimated_bytes
        if estimate is None or math.isinf(self.psnr):
            return False
        return abs(self.bytes - estimate) > estimate * ESTIMATE_SHARE + ESTIMATE_BYTES


@dataclass
class Result:
    """What a run found out about one codec."""

    name: str
    description: str
    device: str
    versions: dict[str, str]
    images: list[dict[str, Any]]
    """Name, width, height and sha256 (of the pixels, row by row, 8 bit) of each image behind the means."""
    rows: list[Row] = field(default_factory=list)
    failures: list[dict[str, Any]] = field(default_factory=list)
    """Image, quality and error of what could not be coded. Such an image is left out of the means at every quality."""
    dtype: str = "int"
    parameters: int | None = None
    kmac_per_pixel: tuple[float, float] | None = None
    """Of encoder and decoder."""
    peak_memory: dict[str, int] | None = None
    """Bytes at most in a fresh process that makes the codec and codes the first image at the middle quality: `process`
    is its resident set, Python and PyTorch included, `gpu` what was allocated there. None where it was not measured."""

    def means(self) -> list[dict[str, Any]]:
        """One dict per quality, by increasing rate: the quality, and the mean over the images of each number of Row;
        that of times over the images that were timed.
        """
        good = {image["name"] for image in self.images}
        points: dict[int | None, list[Row]] = {}
        for row in self.rows:
            if row.image in good:
                points.setdefault(row.quality, []).append(row)
        numbers = [f.name for f in fields(Row) if f.name not in ("image", "quality", "file")]
        means = []
        for quality, rows in points.items():
            given = {n: [getattr(r, n) for r in rows if getattr(r, n) is not None] for n in numbers}
            means.append({"quality": quality} | {n: float(np.mean(values)) for n, values in given.items() if values})
        return sorted(means, key=lambda point: point["bpp"])

    def curve(self) -> Curve:
        """The curve of means."""
        means, images = self.means(), sorted(image["sha256"] for image in self.images)
        return Curve(self.name, [point["bpp"] for point in means], [point["psnr"] for point in means], images)

    def to_json(self) -> str:
        """The result as JSON text with CompressAI's keys; NaN and infinity become null."""
        means = self.means()
        theirs = {"psnr": "psnr-rgb", "ms_ssim": "ms-ssim-rgb", "ms_ssim_db": "ms-ssim-rgb-db"}
        keys = means[0] if means else ("bpp", "psnr", "ms_ssim", "encoding_time", "decoding_time")
        results = {theirs.get(key, key): [point.get(key) for point in means] for key in keys}
        document = {"name": self.name, "description": self.description, "results": results, **asdict(self)}
        return json.dumps(_finite(document), indent=1, allow_nan=False)


def table(results: Sequence[Result]) -> str:
    """The means of every codec as text: what it is and took, then a line per quality. Milliseconds in brackets are the
    entropy coder's part; edges is block_edge_ratio.
    """
    lines = []
    for result in results:
        timed = sum(row.encoding_time is not None for row in result.rows) / max(1, len(result.means()))
        lines.append(f"{result.name}: {result.description}")
        memory = "".join(f", peak memory {size / 1e6:.0f} MB ({of})" for of, size in (result.peak_memory or {}).items())
        lines.append(f"  {len(result.images)} images coded; times of {timed:g}, alone, on {result.device}{memory}")
        learned = any(row.estimated_bytes is not None for row in result.rows)
        lines.append(
            "  quality     bpp    PSNR  MS-SSIM     dB  edges          enc ms          dec ms"
            + ("  file bytes  estimated  bits/symbol: model  empirical" if learned else "")
        )
        for p in result.means():
            quality = "-" if p["quality"] is None else p["quality"]
            line = f"  {quality:>7}  {p['bpp']:6.3f}  {p['psnr']:6.2f}  {p['ms_ssim']:7.4f}  {p['ms_ssim_db']:5.2f}"
            line += f"  {p['block_edges']:5.3f}"
            for way in ("encoding", "decoding"):
                whole, part = p.get(f"{way}_time", math.nan), p.get(f"{way}_entropy_time")
                line += f"  {1e3 * whole:6.1f}" + (" " * 8 if part is None else f" ({1e3 * part:5.1f})")
            if learned:
                line += f"  {p['bytes']:10.1f}  {p['estimated_bytes']:9.1f}"
            if "cross_entropy" in p:
                line += f"  {p['cross_entropy']:18.4f}  {p['empirical_entropy']:9.4f}"
            lines.append(line.rstrip())
        lines.append("")
    return "\n".join(lines)


def versions() -> dict[str, str]:
    """Versions of everything that the numbers depend on; of our own packages also a hash of the source."""
    packages = ("lic", "torch", "pillow", "numpy", "numba", "pytorch-msssim")
    libraries = {name: str(features.version(name)) for name in ("libjpeg_turbo", "jpg_2000", "webp", "avif")}
    source = hashlib.sha256()
    for package in (Path(__file__).parents[1], Path(entropy.__file__).parent):
        for path in sorted(package.rglob("*.py")):
            source.update(path.name.encode() + path.read_bytes())
    return (
        {"python": platform.python_version()}
        | {name: str(version(name)) for name in packages}
        | libraries
        | {"source": source.hexdigest()[:16]}
    )


def _finite(value):
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
