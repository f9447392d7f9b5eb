"""Every figure of the project: rate-distortion curves, training curves, latent histograms, crops side by side.

    from codec.evaluation.plot import rd_curves
    rd_curves([Curve("lic", [0.2, 0.5], [30.1, 33.0], "psnr")], "rd.png", "Kodak")

Figures are drawn without pyplot, so that nothing here depends on a display or on what else draws in the process. They
are readable in grey: a curve differs from its neighbours by marker and dashes, and its name stands at its end.
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
    """Draw what is in files: runs (folders, or logs) as training curves, results (.json) as rate-distortion curves of a
    metric (key of METRICS, by default PSNR).

    Returns what it is, `training` or `rd`, and the curves of results; those of one name are called by their files.
    Raises OSError where a file cannot be read, LicError where one is damaged or empty or has no such metric, where
    there are both kinds, or where training runs are given a metric.
    """
    results = [name.endswith(".json") for name in names]
    if not any(results):
        if metric is not None:
            raise LicError(f"--metric {metric} is for results (.json); training runs show what is in their logs")
        logs = [path / "log.jsonl" if path.is_dir() else path for path in map(Path, names)]
        titles = [(log.resolve().parent if log.name == "log.jsonl" else log).stem.removesuffix(".log") for log in logs]
        training_curves(list(zip(_told_apart(titles, names), map(journal.read, logs), strict=True)), file)
        return "training", []
    if not all(results):
        raise LicError("results (.json) and training runs do not share a figure: plot one kind after the other")
    curves = [read_curve(Path(name), metric=metric or "psnr") for name in names]
    titles = _told_apart([curve.name for curve in curves], names)
    curves = [curve._replace(name=title) for curve, title in zip(curves, titles, strict=True)]
    rd_curves(curves, file)
    return "rd", curves


def _told_apart(titles: Sequence[str], names: Sequence[str]) -> list[str]:
    """The titles, but the name in place of one that is there twice."""
    return [title if titles.count(title) == 1 else name for title, name in zip(titles, names, strict=True)]


def rd_curves(curves: Sequence[Curve], path: Path | str | BinaryIO, title: str = "") -> None:
    """Write the curves over bits per pixel as a PNG, one panel for each metric that they have, without points that are
    not finite: 1200x825 pixels for one metric, 1800x750 for two, a second row for more. Curves of one name look alike.

    A path, or the name of an open file, that ends in .svg makes it an SVG, without fonts, for papers. Raises LicError
    where no curve has a point.
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
    """Name each curve right of the axes, as near to the level of its last point as the other names leave room.

    ends: (y and x of the last point, name, marker style), from the lowest to the highest y.
    """
    low, high = axes.get_ylim()
    wanted = np.array([(end[0] - low) / (high - low) for end in ends])  # of the axes' height
    height = axes.get_window_extent().height / axes.figure.dpi
    line = min(LINE / height, 1 / len(ends))
    size = min(9, 60 * line * height)  # in points of 1/72 inch
    steps = line * np.arange(len(ends))
    # least squares where each level is at least a line above the one below: monotone regression of what is left of them
    levels = isotonic_regression(wanted - steps).x.clip(0, 1 - steps[-1]) + steps
    for level, (y, x, name, style) in zip(levels, ends, strict=True):
        axes.annotate(
            "",
            xy=(x, y),
            xytext=(1.025, level),
            textcoords="axes fraction",
            arrowprops={"arrowstyle": "-", "color": "0.75", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 0, "zorder": 1},
            annotation_clip=False,
            zorder=1,
        )
        axes.plot([1.03], [level], transform=axes.transAxes, clip_on=False, **style)
        axes.text(1.05, level, name, transform=axes.transAxes, color=style["color"], fontsize=size, va="center")


def training_curves(runs: Sequence[tuple[str, list[dict[str, Any]]]], path: Path | str | BinaryIO) -> None:
    """Write loss, bpp and PSNR over the steps of runs, each a name and the rows of its log, as a PNG of 1350x1350.

    Thick lines with markers are validation, thin ones training, smoothed where a log is long. The beginning of a run
    may lie outside the axes. Raises LicError where a run has none of these figures yet.
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
    """Steps, increasing, and values (n,) of a figure, where it is finite, in the rows of one kind."""
    points = {row["step"]: journal.summary(row).get(name, np.nan) for row in rows if row["kind"] == kind}
    steps, values = np.array(sorted(points.items()), dtype=float).reshape(-1, 2).T
    finite = np.isfinite(values)
    return steps[finite], values[finite]


def _smooth(values: np.ndarray) -> np.ndarray:
    """Centred moving mean over about n / 30 of the values (n,), after a median over as many against outliers."""
    window = 2 * (len(values) // 60) + 1
    return convolve1d(median_filter(values, window, mode="nearest"), np.full(window, 1 / window), mode="nearest")


def _limits(curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[float, float]:
    """A range for what (steps, values) show after the first tenth of their steps, and what lies near it before."""
    late = np.concatenate([values[steps >= 0.1 * steps[-1]] for steps, values in curves])
    everything = np.concatenate([values for _, values in curves])
    span = np.ptp(late) or abs(late[0]) or 1.0
    near = everything[(everything >= late.min() - span / 2) & (everything <= late.max() + span / 2)]
    return near.min() - 0.06 * span, near.max() + 0.06 * span


class Panel(NamedTuple):
    """Symbols that share one density, for `latent_histograms`."""

    name: str
    symbols: np.ndarray  # (n,) integers, as quantized
    values: np.ndarray  # (m,) consecutive integers,
    probabilities: np.ndarray  # and what the model gives them


def by_spread(groups: Sequence[np.ndarray], count: int = 12) -> list[int]:
    """The numbers of at most `count` groups of symbols, from the most to the least spread, evenly ranked among those
    that are not always zero; of the first group if there are none.
    """
    spread = [group.astype(np.float64).var() if group.any() else -1.0 for group in groups]
    alive = [int(i) for i in np.argsort(-np.array(spread), kind="stable") if spread[i] >= 0] or [0]
    return [alive[i] for i in np.unique(np.linspace(0, len(alive) - 1, min(count, len(alive))).round().astype(int))]


def latent_histograms(panels: Sequence[Panel], path: Path | str, title: str = "") -> None:
    """Write how often each symbol occurs under the probability that the model gives it, panel by panel, as a PNG.

    Both are in log scale, down to one symbol in ten times as many as the largest panel has.
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
    """Write rows of (caption, crop) as a PNG in which every pixel of a crop is exactly one pixel.

    All crops (PIL images) have one size, all rows one length; a caption may have lines. Raises LicError otherwise.
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
    """Axes in a part (left, bottom, width, height) of the figure, with a grid."""
    axes = figure.add_axes(place)
    axes.set_ylabel(label)
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def _room(names: Sequence[str]) -> float:
    """The part of a figure's width that names beside the axes take."""
    return 0.05 + 0.009 * max(map(len, names))


def _style(n: int) -> dict[str, Any]:
    """Colour and marker of the curve n."""
    return {"color": COLOURS[n % len(COLOURS)], "marker": MARKERS[n % len(MARKERS)], "markersize": 5}


def _dashes(n: int):
    """Line style of the curve n."""
    return DASHES[n % len(DASHES)]


def _save(figure: Figure, path: Path | str | BinaryIO, dpi: int = DPI) -> None:
    svg = getattr(path, "name", str(path)).lower().endswith(".svg")
    options = {"format": "svg", "metadata": {"Date": None}} if svg else {"format": "png"}
    drawn = io.BytesIO()
    with rc_context({"svg.hashsalt": "lic"}):  # the same figure is the same file
        figure.savefig(drawn, dpi=dpi, facecolor="white", **options)
    if isinstance(path, (str, Path)):
        write_atomically(path, drawn.getvalue())
    else:
        path.write(drawn.getvalue())


def _shorten(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
