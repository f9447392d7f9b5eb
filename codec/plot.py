"""Every figure of the project: rate-distortion curves, latent histograms, crops side by side.

    from codec.plot import rd_curves
    rd_curves([Curve("lic", [0.2, 0.5], [30.1, 33.0])], "rd.png", "Kodak")

Figures are drawn without pyplot, so that nothing here depends on a display or on what else draws in the process. They
are readable in grey: a curve differs from its neighbours by marker and dashes, and its name stands at its end.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image
from scipy.optimize import isotonic_regression

from codec.metrics import Curve

# Colours that stay apart for colour-blind readers (Okabe and Ito, "Color universal design", 2008), yellow left out
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
DASHES = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)), (0, (8, 2)), (0, (3, 1, 1, 1, 1, 1)))
DPI = 150


def rd_curves(curves: Sequence[Curve], path: Path | str, title: str = "") -> None:
    """Write PSNR in dB over bits per pixel of `curves` as a PNG of 1200x825 pixels, without points that are not finite.

    Raises ValueError where no curve has a point.
    """
    points = []
    for curve in curves:
        rate, quality = np.asarray(curve.bpp, dtype=float), np.asarray(curve.psnr, dtype=float)
        finite = np.isfinite(rate) & np.isfinite(quality)
        order = np.argsort(rate[finite])
        points.append((rate[finite][order], quality[finite][order]))
    if not any(len(rate) for rate, _ in points):
        raise ValueError("there is no rate-distortion point to plot")

    names = [_shorten(curve.name, 40) for curve in curves]
    right = 0.05 + 0.009 * max(map(len, names))  # of the figure, for the names
    figure = _figure(8, 5.5)
    axes = figure.add_axes((0.085, 0.11, 0.9 - right, 0.81))
    axes.set_xlabel("rate in bits per pixel")
    axes.set_ylabel("PSNR in dB")
    axes.set_title(title)
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    ends = []
    for n, (name, (rate, quality)) in enumerate(zip(names, points, strict=True)):
        if len(rate) == 0:
            continue
        style = {"color": COLOURS[n % len(COLOURS)], "marker": MARKERS[n % len(MARKERS)], "markersize": 5}
        first = n == 0
        dashes = DASHES[n % len(DASHES)]
        axes.plot(rate, quality, linestyle=dashes, linewidth=2 if first else 1.3, zorder=3 if first else 2, **style)
        ends.append((quality[-1], rate[-1], name, style))
    axes.set_xlim(left=0)
    _name_ends(axes, sorted(ends, key=lambda end: end[0]))
    _save(figure, path)


def _name_ends(axes, ends: Sequence[tuple[float, float, str, dict]]) -> None:
    """Name each curve right of the axes, as near to the level of its last point as the other names leave room.

    ends: (PSNR and rate of the last point, name, marker style), from the lowest to the highest PSNR.
    """
    low, high = axes.get_ylim()
    wanted = np.array([(end[0] - low) / (high - low) for end in ends])  # of the axes' height
    line = min(0.05, 1 / len(ends))
    steps = line * np.arange(len(ends))
    # least squares where each level is at least a line above the one below: monotone regression of what is left of them
    levels = isotonic_regression(wanted - steps).x.clip(0, 1 - steps[-1]) + steps
    for level, (quality, rate, name, style) in zip(levels, ends, strict=True):
        axes.annotate(
            "",
            xy=(rate, quality),
            xytext=(1.025, level),
            textcoords="axes fraction",
            arrowprops={"arrowstyle": "-", "color": "0.75", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 0, "zorder": 1},
            annotation_clip=False,
            zorder=1,
        )
        axes.plot([1.03], [level], transform=axes.transAxes, clip_on=False, **style)
        axes.text(1.05, level, name, transform=axes.transAxes, color=style["color"], fontsize=9, va="center")


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

    All crops (PIL images) have one size, all rows one length; a caption may have lines. Raises ValueError otherwise.
    """
    sizes = {image.size for row in rows for _, image in row}
    if len(sizes) != 1 or len({len(row) for row in rows}) != 1:
        raise ValueError(f"crops must have one size and rows one length, not {sorted(sizes)}, {[len(r) for r in rows]}")
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


def _save(figure: Figure, path: Path | str, dpi: int = DPI) -> None:
    figure.savefig(path, dpi=dpi, format="png", facecolor="white")


def _shorten(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
