"""report.html of an evaluation: curves, BD-rates, speeds and pictures side by side, in one self-contained file.

    write_report(Path("results"), results, images, codecs, curves=[vtm], rates=bd_rate_document, command="eval.py ...")

eval.py calls it at its end. The page is made of the files in codec/evaluation/page: report.html, whose [[marks]] are
filled in here, report.css, and scripts that draw everything from one JSON element. It opens from disk and uses no
network: its content security policy allows only pictures inside the file and this script. Files that browsers decode
are embedded as they are, others as lossless WebP of the decoded image. A control switches curves, BD-rates and captions
between the metrics.
"""

import base64
import hashlib
import html
import io
import json
import math
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from codec import machine
from codec.evaluation import plot
from codec.evaluation.codecs import FileCodec
from codec.evaluation.curves import Curve
from codec.evaluation.evaluate import load_image
from codec.evaluation.metrics import METRICS
from codec.evaluation.results import Result
from codec.files import write_atomically

PAGE = Path(__file__).parent / "page"
SCRIPTS = ("page.js", "charts.js", "viewer.js")  # in this order, as one script
# By hand:
TARGETS = (0.15, 0.25, 0.4, 0.7, 1.2)  # bits per pixel at which pictures are compared
MAX_IMAGES = 6
LIMIT = 30_000_000  # characters of all pictures; no further image is shown beyond
CROP = (768, 512)  # longer and shorter side of the crop that is shown of an image
BROWSERS = {".jpg": "image/jpeg", ".webp": "image/webp", ".avif": "image/avif"}  # formats that browsers decode


def write_report(
    folder: Path,
    results: Sequence[Result],
    images: Sequence[tuple[str, Image.Image | Path]],
    codecs: Sequence[FileCodec],
    curves: Sequence[Curve] = (),
    rates: Mapping[str, Any] | None = None,
    command: str = "",
    title: str = "Evaluation",
    metric: str = "psnr",
) -> None:
    """Write `folder`/report.html on results whose files are in `folder`.

    images: those of the run; codecs: they decode its files; curves: published ones to draw beside the results; rates:
    the content of bd_rate.json; metric: the key of METRICS that is shown first. Raises OSError if a file of the results
    cannot be read.
    """
    documents = [json.loads(result.to_json()) for result in results]
    note, shown, embedded = pictures(folder, documents, images, {codec.name: codec for codec in codecs})
    commit = machine.git(Path(__file__).parent)
    points = {document["name"]: _measured(document) for document in documents}
    for curve in curves:
        points.setdefault(curve.name, []).extend(_published(curve))
    there = [key for key in METRICS if any(point[key] is not None for some in points.values() for point in some)]
    data = {
        "codecs": [{key: d[key] for key in d if key not in ("rows", "images", "versions")} for d in documents],
        "metrics": [
            {name: getattr(METRICS[key], name) for name in ("key", "label", "unit", "axis", "digits")} for key in there
        ],
        "metric": metric if metric in there else next(iter(there), metric),
        "curves": [_curve(n, name, some) for n, (name, some) in enumerate(points.items())],
        "bd": rates,
        "pictures": {"note": note, "targets": TARGETS, "images": shown},
        "images": list({image["name"]: image for d in documents for image in _coded(d)}.values()),
        "failures": [failure | {"codec": d["name"]} for d in documents for failure in d["failures"]],
        "versions": {key: value for d in reversed(documents) for key, value in d["versions"].items()},
        "system": platform.platform(),
        "commit": "" if commit is None else commit["commit"] + (", changed" if commit["dirty"] else ""),
        "command": command,
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
    script = "\n" + "\n".join((PAGE / name).read_text(encoding="utf-8") for name in SCRIPTS)
    page = {
        "title": html.escape(title),
        "style": (PAGE / "report.css").read_text(encoding="utf-8"),
        "script": script,
        "hash": "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        # no name in it can end the element or begin another one
        "data": json.dumps(data, allow_nan=False).replace("<", "\\u003c"),
        "pictures": "\n".join(
            f'<script type="text/plain" id="picture-{n}">{uri}</script>' for n, uri in enumerate(embedded)
        ),
    }
    template = (PAGE / "report.html").read_text(encoding="utf-8")
    text = re.sub(r"\[\[(\w+)\]\]", lambda mark: page[mark[1]], template)
    write_atomically(folder / "report.html", text.encode())


def pictures(
    folder: Path,
    documents: Sequence[Mapping[str, Any]],
    images: Sequence[tuple[str, Image.Image | Path]],
    codecs: Mapping[str, FileCodec],
) -> tuple[str, list[dict[str, Any]], list[str]]:
    """A note on what is shown, descriptions of the images and their files, and all their pictures as data URIs.

    Up to MAX_IMAGES of the images that every codec coded are shown, evenly spaced, as many as LIMIT allows. Of each
    image there are the files of the first codec nearest to the target rates, and those of the other codecs nearest to
    these in size.
    """
    coded = set.intersection(*({image["name"] for image in _coded(document)} for document in documents))
    candidates = [(name, source) for name, source in images if name in coded]
    chosen = np.unique(np.linspace(0, len(candidates) - 1, min(MAX_IMAGES, len(candidates))).round().astype(int))
    shown: list[dict[str, Any]] = []
    embedded: list[str] = []
    cropped = False
    for name, source in (candidates[i] for i in chosen):
        original = load_image(source)
        box = _crop(original.size)
        files = list(_nearest_files(documents, name, original.width * original.height))
        uris = [_lossless(original.crop(box))]
        uris += [_embed(folder / row["file"], codecs[codec], box, original.size) for codec, row in files]
        if shown and sum(map(len, embedded)) + sum(map(len, uris)) > LIMIT:
            break
        described = [
            {"codec": codec, "picture": len(embedded) + 1 + n}
            | {key: row[key] for key in ("quality", "bytes", "bpp")}
            | {key: row[metric.row] for key, metric in METRICS.items()}
            for n, (codec, row) in enumerate(files)
        ]
        shown.append(
            {
                "name": name,
                "width": original.width,
                "height": original.height,
                "original": len(embedded),
                "files": described,
            }
        )
        embedded += uris
        cropped = cropped or (box[2] - box[0], box[3] - box[1]) != original.size
    if not shown:
        return "No image was coded by every codec, so that there is nothing to compare.", [], []
    note = f"Of each image, the files that come nearest to {len(TARGETS)} rates and to each other. "
    if len(shown) < len(images):
        note += (
            f"Shown are {len(shown)} of {len(images)} images; the page stays small with at most {MAX_IMAGES} of them "
        )
        note += f"and {LIMIT / 1e6:g} MB. "
    if cropped:
        note += f"Of large images the middle is shown, {CROP[0]}x{CROP[1]} pixels; figures are of the whole file. "
    return note + "Errors are differences from the original.", shown, embedded


def _nearest_files(documents: Sequence[Mapping], image: str, pixels: int) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(codec, row) of each file of an image that is shown."""
    rows = [[row for row in document["rows"] if row["image"] == image] for document in documents]
    seen = set()
    for target in TARGETS:
        wanted = target * pixels / 8
        for document, mine in zip(documents, rows, strict=True):
            row = min(mine, key=lambda row: abs(math.log(row["bytes"] / wanted)))
            if document is documents[0]:
                wanted = row["bytes"]
            if row["file"] not in seen:
                seen.add(row["file"])
                yield document["name"], row


def _crop(size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The crop (left, top, right, bottom) that is shown of an image, in its middle."""
    width, height = (
        min(side, most) for side, most in zip(size, CROP if size[0] >= size[1] else CROP[::-1], strict=True)
    )
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return left, top, left + width, top + height


def _embed(file: Path, codec: FileCodec, box: tuple[int, int, int, int], size: tuple[int, int]) -> str:
    """The crop of a file as a data URI: the file itself if a browser decodes it and all of it is shown."""
    data = file.read_bytes()
    if file.suffix in BROWSERS and box == (0, 0, *size):
        return _uri(BROWSERS[file.suffix], data)
    return _lossless(codec.decode(data).crop(box))


def _lossless(image: Image.Image) -> str:
    packed = io.BytesIO()
    image.convert("RGB").save(packed, "WEBP", lossless=True, method=2, quality=0)  # 60 ms, 5 % larger than at its best
    return _uri("image/webp", packed.getvalue())


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _coded(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The images that a codec coded at all qualities, in the means or not."""
    return document["images"] + document["lossless"]


def _measured(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The points of a result: quality, bpp, and a score, or None, for each key of METRICS."""
    means = document["results"]
    missing = [None] * len(means["bpp"])
    columns = {"quality": means.get("quality", missing), "bpp": means["bpp"]}
    columns |= {key: means.get(next(iter(metric.columns)), missing) for key, metric in METRICS.items()}
    return [dict(zip(columns, point, strict=True)) for point in zip(*columns.values(), strict=True)]


def _published(curve: Curve) -> list[dict[str, Any]]:
    """The finite points of a curve, by increasing rate, as `_measured` has them."""
    points = sorted(
        (bpp, score) for bpp, score in zip(*curve[1:3], strict=True) if math.isfinite(bpp) and math.isfinite(score)
    )
    return [dict.fromkeys(METRICS) | {"quality": None, "bpp": bpp, curve.metric: score} for bpp, score in points]


def _curve(n: int, name: str, points: list[dict[str, Any]]) -> dict[str, Any]:
    """Curve n with its style in plot.py; dashes are in line widths."""
    dash = plot.DASHES[n % len(plot.DASHES)]
    style = {"colour": plot.COLOURS[n % len(plot.COLOURS)], "marker": plot.MARKERS[n % len(plot.MARKERS)]}
    return {"name": name, "points": points, "dash": [] if dash == "-" else dash[1]} | style
