"""Figures: rate-distortion curves, training curves, histograms of latents, crops side by side.

    from codec.evaluation.plot import rd_curves
    rd_curves([Curve("lic", [0.2, 0.5], [30.1, 33.0], "psnr")], "rd.png", "Kodak")

Figures are drawn without pyplot, and so without a display or shared state. They are readable in grey: curves differ by
marker and dashes, and their names are at their ends.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image
from scipy.ndimage import convolve1d, median_filter
from scipy.optimize import isotonic_regression

from codec import journal
from codec.errors import LicError
from codec.evaluation.curves import Curve, read_curve
from codec.evaluation.metrics import METRICS
from codec.files import write_atomically

# Colours that stay apart for colour-blind readers (Okabe and Ito, "Color universal design", 2008), yellow left out
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
DASHES = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)), (0, (8, 2)), (0, (3, 1, 1, 1, 1, 1)))
DPI = 150
LINE = 0.225  # inches from one name to the next


def plot_files(names: Sequence[str], file: BinaryIO, metric: str | None = None) -> tuple[str, list[Curve]]:
    """Draw files: runs (folders, or logs) as training curves, or results (.json) as rate-distortion curves of a metric
    (key of METRICS, by default PSNR).

    Returns the kind of figure, `training` or `rd`, and the curves of results; curves of equal names are renamed to
    their files. Raises OSError if a file cannot be read; LicError if one is damaged or empty or lacks the metric, if
    both kinds are given, or a metric for runs.
    """
    results = [name.endswith(".json") for name in names]
    if not any(results):
        if metric is not None:
            raise LicError(f"--metric {metric} is for results (.json); training runs show what is in their logs")
        logs = [path / "log.jsonl" if path.is_dir() else path for path in map(Path, names)]
        titles = [(log.resolve().parent if log.name == "log.jsonl" else log).stem.removesuffix(".log") for log in logs]
        training_curves(list(zip(_distinct(titles, names), map(journal.read, logs), strict=True)), file)
        return "training", []
    if not all(results):
        raise LicError("results (.json) and training runs do not share a figure: plot one kind after the other")
    curves = [read_curve(Path(name), metric=metric or "psnr") for name in names]
    titles = _distinct([curve.name for curve in curves], names)
    curves = [curve._replace(name=title) for curve, title in zip(curves, titles, strict=True)]
    rd_curves(curves, file)
    return "rd", curves


def _distinct(titles: Sequence[str], names: Sequence[str]) -> list[str]:
    """The titles, with the file name in place of a title that occurs twice."""
    return [title if titles.count(title) == 1 else name for title, name in zip(titles, names, strict=True)]


def rd_curves(curves: Sequence[Curve], path: Path | str | BinaryIO, title: str = "") -> None:
    """Write curves over bits per pixel as a PNG, with a panel for each of their metrics.

    It has 1200x825 pixels for one metric, 1800x750 for two, a second row for more. Points that are not finite are left
    out. Curves of one name have one style. If the path, or the name of an open file, ends in .svg, it is an SVG, with
    text as paths. Raises LicError if no curve has a point.
    """
    names = list(dict.fromkeys(curve.name for curve in curves))
    panels: dict[str, list[tuple[int, np.ndarray, np.ndarray]]] = {}  # metric -> (number of the name, rates, scores)
    for curve in sorted(curves, key=lambda curve: list(METRICS).index(curve.metric)):
        rate, score = np.asarray(curve.bpp, dtype=float), np.asarray(curve.scores, dtype=float)
        finite = np.isfinite(rate) & np.isfinite(score)
        order = np.argsort(rate[finite])
        if len(order):
            points = (names.index(curve.name), rate[finite][order], score[finite][order])
            panels.setdefault(curve.metric, []).append(points)
    if not panels:
        raise LicError("there is no rate-distortion point to plot")

    columns, rows = min(2, len(panels)), -(-len(panels) // 2)
    width, height = (8, 5.5) if columns == 1 else (6, 5)  # inches of a panel
    labels = [_shorten(name, 40 if columns == 1 else 24) for name in names]
    figure = _figure(columns * width, rows * height)
    room = _room(labels) * 8 / width
    for k, (metric, points) in enumerate(panels.items()):
        left, bottom = k % columns / columns, 1 - (k // columns + 1) / rows
        inner = (0.085 * 8 / width, 0.11, 0.985 - 0.085 * 8 / width - room, 0.81)  # of the panel's place
        place = (left + inner[0] / columns, bottom + inner[1] / rows, inner[2] / columns, inner[3] / rows)
        axes = _axes(figure, place, METRICS[metric].axis)
        axes.set_xlabel("rate in bits per pixel")
        if columns == 1:
            axes.set_title(title)
        ends = []
        for n, rate, score in points:
            style = _style(n)
            axes.plot(rate, score, linestyle=_dashes(n), linewidth=1.3 if n else 2, zorder=2 if n else 3, **style)
            ends.append((score[-1], rate[-1], labels[n], style))
        axes.set_xlim(left=0)
        _name_ends(axes, sorted(ends, key=lambda end: end[0]))
    if columns > 1:
        figure.suptitle(title, fontsize=12, y=1 - 0.03 / rows)
    _save(figure, path)


def _name_ends(axes, ends: Sequence[tuple[float, float, str, dict]]) -> None:
    """Put the name of each curve right of the axes, as close to the height of its last point as other names allow.

    ends: (y and x of the last point, name, marker style), from the lowest to the highest y.
    """
    low, high = axes.get_ylim()
    wanted = np.array([(end[0] - low) / (high - low) for end in ends])  # of the axes' height
    inches = axes.get_window_extent().height / axes.figure.dpi
    line = min(LINE / inches, 1 / len(ends))
    size = min(9, 60 * line * inches)  # in points of 1/72 inch
    steps = line * np.arange(len(ends))
    # least squares with each height at least a line above the one below: isotonic regression, without the lines
    heights = isotonic_regression(wanted - steps).x.clip(0, 1 - steps[-1]) + steps
    for height, (y, x, name, style) in zip(heights, ends, strict=True):
        axes.annotate(
            "",
            xy=(x, y),
            xytext=(1.025, height),
            textcoords="axes fraction",
            arrowprops={"arrowstyle": "-", "color": "0.75", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 0, "zorder": 1},
            annotation_clip=False,
            zorder=1,
        )
        axes.plot([1.03], [height], transform=axes.transAxes, clip_on=False, **style)
        axes.text(1.05, height, name, transform=axes.transAxes, color=style["color"], fontsize=size, va="center")


def training_curves(runs: Sequence[tuple[str, list[dict[str, Any]]]], path: Path | str | BinaryIO) -> None:
    """Write loss, bpp and PSNR over the steps of runs, each a name and the entries of its log, as a PNG of 1350x1350.

    Thick lines with markers are validation, thin lines training, smoothed if the log is long. The beginning of a run
    may be outside of the axes. Raises LicError if a run lacks one of these figures.
    """
    names = [_shorten(name, 40) for name, _ in runs]
    figure = _figure(9, 9)
    panels = (("loss", "rate-distortion loss"), ("bpp", "rate in bits per pixel"), ("psnr", "PSNR in dB"))
    for row, (value, label) in enumerate(panels):
        axes = _axes(figure, (0.085, 0.69 - 0.315 * row, 0.9 - _room(names), 0.295), label)
        curves, ends = [], []
        for n, (name, (_, lines)) in enumerate(zip(names, runs, strict=True)):
            training, validation = (_over_steps(lines, kind, value) for kind in ("train", "val"))
            training = training[0], _smooth(training[1])
            here = [curve for curve in (training, validation) if len(curve[0])]
            if not here:
                raise LicError(f"{name}: the log holds no {value} yet")
            style, dashes = _style(n), _dashes(n)
            axes.plot(*training, linestyle=dashes, linewidth=0.7, alpha=0.8, color=style["color"])
            axes.plot(*validation, linestyle=dashes, linewidth=1.5, **style)
            steps, values = here[-1]
            ends.append((values[-1], steps[-1], name, style))
            curves += here
        axes.set_ylim(_limits(curves))
        axes.set_xlim(left=0)
        _name_ends(axes, sorted(ends, key=lambda end: end[0]))
        axes.tick_params(labelbottom=row == len(panels) - 1)
    axes.set_xlabel("step (thin: training, with markers: validation)")
    _save(figure, path)


def _over_steps(rows: list[dict[str, Any]], kind: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The steps, increasing, and finite values (n,) of a figure in the entries of one kind."""
    points = {row["step"]: journal.summary(row).get(name, np.nan) for row in rows if row["kind"] == kind}
    steps, values = np.array(sorted(points.items()), dtype=float).reshape(-1, 2).T
    finite = np.isfinite(values)
    return steps[finite], values[finite]


def _smooth(values: np.ndarray) -> np.ndarray:
    """Values (n,) after a median and then a moving mean, both centred, over about n / 30 of them; same shape."""
    window = 2 * (len(values) // 60) + 1
    return convolve1d(median_filter(values, window, mode="nearest"), np.full(window, 1 / window), mode="nearest")


def _limits(curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[float, float]:
    """The range of an axis for curves (steps, values): that after the first tenth of the steps, and values near it."""
    late = np.concatenate([values[steps >= 0.1 * steps[-1]] for steps, values in curves])
    everything = np.concatenate([values for _, values in curves])
    span = np.ptp(late) or abs(late[0]) or 1.0
    near = everything[(everything >= late.min() - span / 2) & (everything <= late.max() + span / 2)]
    return near.min() - 0.06 * span, near.max() + 0.06 * span


class Panel(NamedTuple):
    """Symbols that share one density, as a panel of `latent_histograms`."""

    name: str
    symbols: np.ndarray  # (n,) integers, as quantized
    values: np.ndarray  # (m,) consecutive integers
    probabilities: np.ndarray  # (m,) of the values, by the model


def by_spread(groups: Sequence[np.ndarray], count: int = 12) -> list[int]:
    """The indices of at most `count` groups of symbols, from the largest to the smallest variance, at even ranks.

    Groups of zeros are left out; if there are no others, the first group is returned.
    """
    spread = [group.astype(np.float64).var() if group.any() else -1.0 for group in groups]
    alive = [int(i) for i in np.argsort(-np.array(spread), kind="stable") if spread[i] >= 0] or [0]
    return [alive[i] for i in np.unique(np.linspace(0, len(alive) - 1, min(count, len(alive))).round().astype(int))]


def latent_histograms(panels: Sequence[Panel], path: Path | str, title: str = "") -> None:
    """Write a PNG with histograms of symbols and the probabilities that the model gives them, a panel each.

    The scale is logarithmic, down to a tenth of one symbol in the largest panel.
    """
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure = _figure(2.6 * columns + 0.7, 2.0 * rows + 1.1)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    floor = 0.1 / max(panel.symbols.size for panel in panels)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, panel in zip(grid.flat, panels, strict=False):
        occurring, counts = np.unique(panel.symbols, return_counts=True)
        inside = (panel.values >= occurring[0] - 2) & (panel.values <= occurring[-1] + 2)
        axes.bar(occurring, counts / counts.sum(), width=1, color="0.78", label="symbols of the images")
        axes.plot(
            panel.values[inside],
            panel.probabilities[inside],
            color="black",
            marker="." if inside.sum() < 40 else None,
            linewidth=1,
            label="density of the model",
        )
        axes.set_yscale("log")
        axes.set_ylim(floor, 2)
        axes.set_title(panel.name, fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.tick_params(labelsize=8)
    figure.suptitle(title, fontsize=11, x=0.02, ha="left")
    figure.legend(*grid.flat[0].get_legend_handles_labels(), fontsize=8, loc="upper right", ncols=2, frameon=False)
    figure.supxlabel("symbol", fontsize=10)
    figure.supylabel("probability", fontsize=10)
    figure.tight_layout()
    _save(figure, path)


def crops(rows: Sequence[Sequence[tuple[str, Image.Image]]], path: Path | str, title: str = "") -> None:
    """Write rows of (caption, crop) as a PNG, in which a pixel of a crop is a pixel.

    Crops are PIL images; a caption may have several lines. Raises LicError unless all crops have one size, and all rows
    one length.
    """
    sizes = {image.size for row in rows for _, image in row}
    if len(sizes) != 1 or len({len(row) for row in rows}) != 1:
        raise LicError(f"crops must have one size and rows one length, not {sorted(sizes)}, {[len(r) for r in rows]}")
    ((width, height),) = sizes
    gap, head = 8, 40 if title else 0
    line = 17  # pixels of a line of caption
    caption = line * max(text.count("\n") + 1 for row in rows for text, _ in row) + gap
    page_width = len(rows[0]) * (width + gap) + gap
    page_height = head + len(rows) * (height + caption) + gap
    pixels = np.full((page_height, page_width, 3), 255, dtype=np.uint8)
    figure = _figure(page_width / 100, page_height / 100, dpi=100)
    for r, row in enumerate(rows):
        top = head + r * (height + caption)
        for c, (text, image) in enumerate(row):
            left = gap + c * (width + gap)
            pixels[top + caption - gap // 2 :, left : left + width][:height] = np.asarray(image.convert("RGB"))
            x, y = left / page_width, 1 - (top + gap // 2) / page_height
            figure.text(x, y, text, fontsize=9, va="top", linespacing=1.2)
    if title:
        figure.text(gap / page_width, 1 - gap / page_height, title, fontsize=12, va="top")
    figure.figimage(pixels, zorder=-1)
    _save(figure, path, dpi=100)


def _figure(width: float, height: float, dpi: int = DPI) -> Figure:
    figure = Figure(figsize=(width, height), dpi=dpi, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _axes(figure: Figure, place: tuple[float, float, float, float], label: str):
    """Axes with a grid at a place (left, bottom, width, height) of the figure."""
    axes = figure.add_axes(place)
    axes.set_ylabel(label)
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def _room(names: Sequence[str]) -> float:
    """The fraction of a figure's width that the names beside the axes take."""
    return 0.05 + 0.009 * max(map(len, names))


def _style(n: int) -> dict[str, Any]:
    """Colour and marker of curve n."""
    return {"color": COLOURS[n % len(COLOURS)], "marker": MARKERS[n % len(MARKERS)], "markersize": 5}


def _dashes(n: int):
    """Line style of curve n."""
    return DASHES[n % len(DASHES)]


def _save(figure: Figure, path: Path | str | BinaryIO, dpi: int = DPI) -> None:
    svg = getattr(path, "name", str(path)).lower().endswith(".svg")
    options = {"format": "svg", "metadata": {"Date": None}} if svg else {"format": "png"}
    drawn = io.BytesIO()
    with rc_context({"svg.hashsalt": "lic"}):  # so that equal figures are equal files
        figure.savefig(drawn, dpi=dpi, facecolor="white", **options)
    if isinstance(path, (str, Path)):
        write_atomically(path, drawn.getvalue())
    else:
        path.write(drawn.getvalue())


def _shorten(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
