"""Codecs x images -> real files, and the numbers read from them.

Every image is written as a file at every quality of every codec, and what is reported comes from that file: its rate
is the size on disk, its PSNR and MS-SSIM are those of the 8-bit image decoded from it. Times are of encode and decode
alone, between memory and memory, after one unmeasured turn per image size, the GPU's queue being empty at both ends.

    codecs = [lic_codec(model), rival_codec("jpeg")]
    results = run(codecs, [("kodim01", Path("kodim01.png"))], Path("results"))
    print(table(results))

eval.py is the program around it. The JSON of a result has CompressAI's keys, so that the tools of both plot both.
"""

import hashlib
import importlib.metadata
import json
import math
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, features
from tqdm import tqdm

from codec import metrics
from codec.meta import processor
from codec.metrics import Curve
from codec.rivals import RIVALS

QUALITIES = tuple(range(0, 101, 10))  # of an all-rates model
# A file may exceed its estimated bits by the coder's loss and by its header and checksums; beyond that, the rate model
# that was trained is not the one that codes.
ESTIMATE_FACTOR, ESTIMATE_BYTES = 1.005, 64


@dataclass(frozen=True)
class Codec:
    """Anything that makes files of images."""

    name: str
    """Unique in a run: its label in tables and plots, its folder of files, its JSON."""
    description: str
    """Settings, for the reader of a table."""
    suffix: str
    """File name ending, with the dot."""
    qualities: tuple[int | None, ...]
    """What to evaluate; (None,) where a codec has no quality."""
    encode: Callable[[Image.Image, int | None], bytes]
    decode: Callable[[bytes], Image.Image]
    model: Any = None
    """The exported model behind it, for estimates; None for a classical codec."""


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
    encoding_time: float
    """Seconds."""
    decoding_time: float
    estimated_bytes: float | None = None
    """Estimated bits / 8: -log2 of the model's float densities in evaluation mode (learned codecs only)."""
    cross_entropy: float | None = None
    """Estimated bits per symbol of the latent, those of a hyper-latent counted in."""
    empirical_entropy: float | None = None
    """Bits per symbol under the latent's own histogram, channel by channel: what perfect densities per channel would
    cost. A hyperprior, whose densities follow the image, can stay below."""
    block_edges: float = math.nan
    """metrics.block_edge_ratio of the decoded image."""

    @property
    def exceeds_estimate(self) -> bool:
        """Whether the file is larger than its estimate allows."""
        estimate = self.estimated_bytes
        return estimate is not None and self.bytes > estimate * ESTIMATE_FACTOR + ESTIMATE_BYTES


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

    def means(self) -> list[dict[str, Any]]:
        """One dict per quality, by increasing rate: the quality, and the mean over the images of each number of Row."""
        good = {image["name"] for image in self.images}
        points: dict[int | None, list[Row]] = {}
        for row in self.rows:
            if row.image in good:
                points.setdefault(row.quality, []).append(row)
        numbers = [f.name for f in fields(Row) if f.name not in ("image", "quality", "file")]
        means = [
            {"quality": quality}
            | {n: float(np.mean([getattr(r, n) for r in rows])) for n in numbers if getattr(rows[0], n) is not None}
            for quality, rows in points.items()
        ]
        return sorted(means, key=lambda point: point["bpp"])

    def curve(self) -> Curve:
        """The curve of means."""
        means = self.means()
        return Curve(self.name, [point["bpp"] for point in means], [point["psnr"] for point in means])

    def to_json(self) -> str:
        """The result as JSON text with CompressAI's keys; NaN and infinity become null."""
        means = self.means()
        theirs = {"psnr": "psnr-rgb", "ms_ssim": "ms-ssim-rgb"}
        keys = means[0] if means else ("bpp", "psnr", "ms_ssim", "encoding_time", "decoding_time")
        results = {theirs.get(key, key): [point[key] for point in means] for key in keys}
        document = {"name": self.name, "description": self.description, "results": results, **asdict(self)}
        return json.dumps(_finite(document), indent=1, allow_nan=False)


def rival_codec(name: str, qualities: Iterable[int] = ()) -> Codec:
    """The classical codec `name` (a key of RIVALS) at `qualities`, or at its default ones.

    Raises ValueError for an unknown name or quality, OSError where this Pillow lacks the format.
    """
    if name not in RIVALS:
        raise ValueError(f"unknown codec {name!r}; there are lic, {', '.join(RIVALS)}")
    rival = RIVALS[name]
    rival.check()
    levels = _qualities(name, qualities) or rival.qualities
    return Codec(name, rival.settings, rival.suffix, levels, rival.encode, rival.decode)


def lic_codec(model, qualities: Iterable[int] = (), name: str = "lic") -> Codec:
    """An exported model at `qualities`, or from 0 to 100 in steps of 10 (a fixed-lambda model has but one point).

    Raises ValueError for a quality that the model does not have.
    """
    levels: tuple[int | None, ...] = _qualities(name, qualities)
    if not model.config.variable_rate:
        if levels:
            raise ValueError(f"{name} is a model of one fixed lambda: it takes no qualities, not {list(levels)}")
        levels = (None,)
    analysis, synthesis = model.kmac()
    parameters = model.parameter_count() / 1e6
    description = (
        f"model {model.id}, {parameters:.2f} M parameters, {analysis:.1f} + {synthesis:.1f} kMAC/pixel, "
        f"{model.precision} on {device_name(model.device)}"
    )
    return Codec(name, description, ".lic", levels or QUALITIES, model.compress, model.decompress, model)


def run(
    codecs: Sequence[Codec], images: Sequence[tuple[str, Image.Image | Path]], folder: Path, ms_ssim: bool = True
) -> list[Result]:
    """Code every image with every codec at each of its qualities into files under `folder`; one Result per codec.

    Images are (name, PIL image or path) with different names; they are taken as 8-bit RGB or L, without metadata. A
    file is `folder`/files/CODEC/IMAGE_qQUALITY.SUFFIX. What cannot be read or coded becomes a failure in the results,
    with its reason, and does not stop the run. Raises ValueError if names repeat.
    """
    _check_unique("codec", [codec.name for codec in codecs])
    _check_unique("image", [name for name, _ in images])
    results = [
        Result(codec.name, codec.description, device_name(codec.model.device if codec.model else "cpu"), versions(), [])
        for codec in codecs
    ]
    warm = set()  # (codec, image size) after the first turn
    turns = len(images) * sum(len(codec.qualities) for codec in codecs)
    with tqdm(total=turns, unit="file", disable=None) as bar:  # None: only on a terminal
        for name, source in images:
            try:
                image = load_image(source)
            except Exception as error:
                for result in results:
                    result.failures.append(_failure(name, None, error))
                bar.update(turns // len(images))
                continue
            sha256 = hashlib.sha256(image.tobytes()).hexdigest()
            about = {"name": name, "width": image.width, "height": image.height, "sha256": sha256}
            for codec, result in zip(codecs, results, strict=True):
                bar.set_postfix_str(f"{codec.name} {name}", refresh=False)
                failures = []
                for quality in codec.qualities:
                    level = "" if quality is None else f"_q{quality:02d}"
                    file = folder / "files" / codec.name / f"{name}{level}{codec.suffix}"
                    try:
                        if (codec.name, image.size) not in warm:
                            codec.decode(codec.encode(image, quality))
                            warm.add((codec.name, image.size))
                        numbers = _code(codec, image, quality, file, ms_ssim)
                    except Exception as error:  # whatever happens to one file, the others are still worth measuring
                        file.unlink(missing_ok=True)
                        failures.append(_failure(name, quality, error))
                    else:
                        path = file.relative_to(folder).as_posix()
                        result.rows.append(Row(image=name, quality=quality, file=path, **numbers))
                    bar.update()
                result.failures += failures
                if not failures:
                    result.images.append(about)
    return results


def _failure(image: str, quality: int | None, error: Exception) -> dict[str, Any]:
    return {"image": image, "quality": quality, "error": f"{type(error).__name__}: {error}"}


def _code(codec: Codec, image: Image.Image, quality: int | None, file: Path, ms_ssim: bool) -> dict[str, Any]:
    start = _now()
    data = codec.encode(image, quality)
    encoding_time = _now() - start
    file.parent.mkdir(parents=True, exist_ok=True)  # an image name may hold folders
    file.write_bytes(data)
    data = file.read_bytes()
    start = _now()
    decoded = codec.decode(data)
    decoding_time = _now() - start
    if decoded.size != image.size:
        raise ValueError(f"decoded to {decoded.size} instead of {image.size}")
    original, decoded = image.convert("RGB"), decoded.convert("RGB")
    size = file.stat().st_size
    numbers = {
        "bytes": size,
        "bpp": metrics.bpp(size, *image.size),
        "psnr": metrics.psnr(original, decoded),
        "ms_ssim": metrics.ms_ssim(original, decoded) if ms_ssim else math.nan,
        "encoding_time": encoding_time,
        "decoding_time": decoding_time,
        "block_edges": metrics.block_edge_ratio(decoded),
    }
    if codec.model is not None:
        estimate = codec.model.estimate(image, quality)
        numbers |= {
            "estimated_bytes": estimate.bits / 8,
            "cross_entropy": estimate.cross_entropy,
            "empirical_entropy": estimate.empirical_entropy,
        }
    return numbers


def load_image(source: Image.Image | Path) -> Image.Image:
    """Return an image as its pixels alone, 8-bit L or RGB: without alpha, without metadata, which some codecs store.

    Raises OSError where the file is missing or no image, ValueError where it has more than 8 bits.
    """
    if not isinstance(source, Image.Image):
        with Image.open(source) as opened:
            return load_image(opened)
    if source.mode.startswith(("I", "F")):
        raise ValueError(f"images are evaluated at 8 bits; this one has mode {source.mode}: convert it first")
    image = source if source.mode in ("L", "RGB") else source.convert("RGB")
    return Image.fromarray(np.array(image))


def table(results: Sequence[Result]) -> str:
    """The means of every codec as text: a line of settings, then one line per quality; edges is block_edge_ratio."""
    lines = []
    for result in results:
        lines.append(f"{result.name}: {result.description}")
        lines.append(f"  {len(result.images)} images coded; times on {result.device}")
        learned = any(row.estimated_bytes is not None for row in result.rows)
        lines.append(
            "  quality     bpp    PSNR  MS-SSIM  edges  enc ms  dec ms"
            + ("  file bytes  estimated  bits/symbol: model  empirical" if learned else "")
        )
        for p in result.means():
            quality = "-" if p["quality"] is None else p["quality"]
            line = f"  {quality:>7}  {p['bpp']:6.3f}  {p['psnr']:6.2f}  {p['ms_ssim']:7.4f}  {p['block_edges']:5.3f}"
            line += f"  {1e3 * p['encoding_time']:6.1f}  {1e3 * p['decoding_time']:6.1f}"
            if learned:
                line += f"  {p['bytes']:10.1f}  {p['estimated_bytes']:9.1f}"
                line += f"  {p['cross_entropy']:18.4f}  {p['empirical_entropy']:9.4f}"
            lines.append(line)
        lines.append("")
    return "\n".join(lines)


def device_name(device: torch.device | str) -> str:
    """The name of a GPU, or of the processor with the number of threads in use."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor()}, {torch.get_num_threads()} threads"


def versions() -> dict[str, str]:
    """Versions of everything that the numbers depend on."""
    packages = ("lic", "torch", "pillow", "numpy", "pytorch-msssim")
    libraries = {name: str(features.version(name)) for name in ("libjpeg_turbo", "webp", "avif")}
    return {"python": platform.python_version()} | {n: importlib.metadata.version(n) for n in packages} | libraries


def _now() -> float:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def _qualities(name: str, qualities: Iterable[int]) -> tuple[int, ...]:
    qualities = tuple(qualities)
    for quality in qualities:
        if not 0 <= quality <= 100:
            raise ValueError(f"{name}: quality {quality} is not in 0..100")
    _check_unique(f"quality of {name}", qualities)
    return qualities


def _check_unique(what: str, names: Sequence) -> None:
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"the {what} {twice[0]!r} is there twice")


def _finite(value):
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
