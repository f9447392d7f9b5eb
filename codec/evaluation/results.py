"""Results of an evaluation: a row per file, a result per codec; as JSON with CompressAI's keys, and as a table.

    for result in run(codecs, images, folder):      # codec/evaluation/evaluate.py
        print(result.curve(), table([result]), result.to_json())

Each project's tools plot the JSON of the other. Every table, BD-rate and curve is made from the rows.
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

import codec
import entropy
from codec.evaluation.curves import Curve
from codec.evaluation.metrics import METRICS
from codec.machine import version

# A file may be larger than its estimated bits by the entropy coder's loss, and by header and checksums: by hand at most
# by this share and so many bytes. Otherwise the tables do not match the trained densities.
ESTIMATE_SHARE, ESTIMATE_BYTES = 0.005, 64
COLUMNS = (  # of the table: metric, field of Row, heading, decimals
    ("psnr", "psnr", "PSNR", 2),
    ("ms-ssim", "ms_ssim", "MS-SSIM", 4),
    ("ms-ssim", "ms_ssim_db", "dB", 2),
    ("ssimulacra2", "ssimulacra2", "SSIMULACRA 2", 2),
    ("cvvdp", "cvvdp", "CVVDP", 3),
)
LEARNED = ("codecs", "compressai_models")  # modules that only learned codecs depend on


@dataclass
class Row:
    """The figures of one file: an image at a quality."""

    image: str
    quality: int | None
    file: str
    """Path relative to the output folder."""
    bytes: int
    """Size on disk."""
    bpp: float
    psnr: float
    """dB, over R, G and B; inf if the file is lossless."""
    ms_ssim: float = math.nan
    """1 is equal; NaN, as for the other metrics, if the image is too small or it was not measured."""
    encoding_time: float | None = None
    """Seconds; None for an image that was not timed."""
    decoding_time: float | None = None
    encoding_entropy_time: float | None = None
    """The entropy coder's share of encoding_time; the rest is the network. None for a classical codec."""
    decoding_entropy_time: float | None = None
    estimated_bytes: float | None = None
    """Estimated bits / 8: -log2 of the model's float densities in evaluation mode (learned codecs only)."""
    cross_entropy: float | None = None
    """Estimated bits, with those of z, per symbol of y."""
    empirical_entropy: float | None = None
    """Bits per symbol under the latent's own histograms by channel: the cost of perfect densities per channel. A
    hyperprior, whose densities follow the image, can be below."""
    block_edges: float = math.nan
    """metrics.block_edge_ratio of the decoded image."""
    ms_ssim_db: float = math.nan
    """-10 log10(1 - ms_ssim)."""
    ssimulacra2: float = math.nan
    """100 is equal."""
    cvvdp: float | None = None
    """JOD, 10 is equal; None if its package is not installed or it was not measured."""

    @property
    def misses_estimate(self) -> bool:
        """Whether the size is too far from the estimate; never of a lossless file, which has no symbols."""
        estimate = self.estimated_bytes
        if estimate is None or math.isinf(self.psnr):
            return False
        return abs(self.bytes - estimate) > estimate * ESTIMATE_SHARE + ESTIMATE_BYTES


@dataclass
class Result:
    """The results of one codec."""

    name: str
    description: str
    device: str
    versions: dict[str, str]
    images: list[dict[str, Any]]
    """Name, width, height and sha256 (of the 8-bit pixels, row by row) of each image in the means."""
    rows: list[Row] = field(default_factory=list)
    failures: list[dict[str, Any]] = field(default_factory=list)
    """Image, quality and error of every failure. Such an image is left out of the means at all qualities."""
    lossless: list[dict[str, Any]] = field(default_factory=list)
    """Images that a codec of the run kept without loss at some quality, like `images`, with the codecs as `by`. Their
    PSNR is infinite, so they are left out of all means, unless no image would remain. They have rows."""
    dtype: str = "int"
    parameters: int | None = None
    kmac_per_pixel: tuple[float, float] | None = None
    """Of encoder and decoder."""
    peak_memory: dict[str, int] | None = None
    """Peak bytes of a new process that makes the codec and codes the first image at the middle quality: `process` is
    its resident set, with Python and PyTorch, `gpu` the memory allocated there. None if it was not measured."""

    def means(self) -> list[dict[str, Any]]:
        """One dict per quality, by increasing rate: the quality, and the mean over the images of each figure of Row.

        Times are means over the images that were timed.
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

    def metrics(self) -> list[str]:
        """The keys of the metrics for which some file has a finite score."""
        scores = {key: [getattr(row, metric.row) for row in self.rows] for key, metric in METRICS.items()}
        return [key for key in scores if any(score is not None and math.isfinite(score) for score in scores[key])]

    def curve(self, metric: str = "psnr") -> Curve:
        """The rate-distortion curve of the means for a metric (key of METRICS); NaN where it was not measured."""
        means, images = self.means(), sorted(image["sha256"] for image in self.images)
        scores = [point.get(METRICS[metric].row, math.nan) for point in means]
        return Curve(self.name, [point["bpp"] for point in means], scores, metric, images)

    def without_score(self, metric: str) -> list[str]:
        """The names of images in the means whose score is not finite at some quality, so that the curve has holes."""
        good = [image["name"] for image in self.images]
        scores = [(row.image, getattr(row, METRICS[metric].row)) for row in self.rows if row.image in set(good)]
        holes = {name for name, score in scores if score is None or not math.isfinite(score)}
        return [name for name in good if name in holes]

    def to_json(self) -> str:
        """The result as JSON text with CompressAI's keys; NaN and infinity become null."""
        means = self.means()
        theirs = {"psnr": "psnr-rgb", "ms_ssim": "ms-ssim-rgb", "ms_ssim_db": "ms-ssim-rgb-db"}
        keys = means[0] if means else ("bpp", "psnr", "ms_ssim", "ssimulacra2", "encoding_time", "decoding_time")
        results = {theirs.get(key, key): [point.get(key) for point in means] for key in keys}
        document = {"name": self.name, "description": self.description, "results": results, **asdict(self)}
        return json.dumps(_finite(document), indent=1, allow_nan=False)


def set_apart_lossless(results: Sequence[Result]) -> None:
    """Move images that some codec kept without loss from `images` of every result to `lossless`, unless these are all
    of its images.
    """
    by: dict[str, list[str]] = {}
    for result in results:
        for name in dict.fromkeys(row.image for row in result.rows if math.isinf(row.psnr)):
            by.setdefault(name, []).append(result.name)
    for result in results:
        rest = [image for image in result.images if image["name"] not in by]
        if rest:
            result.lossless = [image | {"by": by[image["name"]]} for image in result.images if image["name"] in by]
            result.images = rest


def table(results: Sequence[Result]) -> str:
    """The results as text: for every codec its settings and cost, then a line of means per quality.

    Milliseconds in brackets are the entropy coder's share; edges is block_edge_ratio.
    """
    lines = []
    for result in results:
        good = {image["name"] for image in result.images}
        timed = len({row.image for row in result.rows if row.encoding_time is not None and row.image in good})
        lines.append(f"{result.name}: {result.description}")
        peaks = (result.peak_memory or {}).items()
        memory = "".join(f", peak memory {size / 1e6:.0f} MB ({where})" for where, size in peaks)
        lines.append(f"  {len(result.images)} images coded; times of {timed}, alone, on {result.device}{memory}")
        if result.lossless:
            kept = ", ".join(f"{image['name']} (by {', '.join(image['by'])})" for image in result.lossless)
            lines.append(f"  {len(result.lossless)} more, kept without loss and in no mean: {kept}")
        measured = result.metrics()
        for metric in measured:
            if holes := result.without_score(metric):
                lines.append(f"  no mean {METRICS[metric].label}: it is not finite for {', '.join(holes)}")
        columns = [column for column in COLUMNS if column[0] == "psnr" or column[0] in measured]
        learned = any(row.estimated_bytes is not None for row in result.rows)
        lines.append(
            "  quality     bpp"
            + "".join(f"  {label:>6}" for _, _, label, _ in columns)
            + "  edges          enc ms          dec ms"
            + ("  file bytes  estimated  bits/symbol: model  empirical" if learned else "")
        )
        for p in result.means():
            line = f"  {'-' if p['quality'] is None else p['quality']:>7}  {p['bpp']:6.3f}"
            for _, key, label, digits in columns:
                line += f"  {p.get(key, math.nan):{max(6, len(label))}.{digits}f}"
            line += f"  {p['block_edges']:5.3f}"
            for way in ("encoding", "decoding"):
                total, coder = p.get(f"{way}_time", math.nan), p.get(f"{way}_entropy_time")
                line += f"  {1e3 * total:6.1f}" + (" " * 8 if coder is None else f" ({1e3 * coder:5.1f})")
            if learned:
                line += f"  {p['bytes']:10.1f}  {p['estimated_bytes']:9.1f}"
            if "cross_entropy" in p:
                line += f"  {p['cross_entropy']:18.4f}  {p['empirical_entropy']:9.4f}"
            lines.append(line.rstrip())
        lines.append("")
    return "\n".join(lines)


def versions(learned: bool) -> dict[str, str]:
    """The versions of everything that the figures of a codec depend on; of our own source a hash.

    The hash is of what measures, and for a learned codec also of what codes. A classical one depends on Pillow's
    libraries instead.
    """
    packages = ["pillow", "numpy", "scipy", "ssimulacra2", "cvvdp"]
    packages += ["lic", "torch", "onnxruntime", "numba", "compressai"] if learned else []
    found = {"python": platform.python_version()} if learned else {}
    found |= {name: number for name in packages if (number := version(name)) is not None}
    if not learned:
        found |= {name: str(features.version(name)) for name in ("libjpeg_turbo", "jpg_2000", "webp", "avif")}
    return found | {"source": source_hash(sources(learned))}


def sources(learned: bool) -> list[Path]:
    """Our source files that the figures of a codec depend on; those that draw, report or train are not among them."""
    package = Path(codec.__file__).parent
    names = [f"evaluation/{name}.py" for name in ("metrics", "cost", *(LEARNED if learned else ("rivals",)))]
    files = [package / name for name in (*names, "coding/target.py", "errors.py")]  # target.py has SSIMULACRA 2
    if learned:
        folders = [package / "network", package / "container", package / "coding", Path(entropy.__file__).parent]
        files += [path for folder in folders for path in folder.rglob("*.py")]
        files += [package / f"{name}.py" for name in ("machine", "config", "files")]
    return sorted(set(files))


def source_hash(files: Sequence[Path]) -> str:
    """A hash (16 hex digits) of the names and contents of files."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.parent.name}/{path.name}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _finite(value):
    """A nested value with None in place of NaN and infinity."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
