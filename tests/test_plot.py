"""Every figure is a PNG of the expected size that shows what it was given."""

import math

import numpy as np
import pytest
from PIL import Image

from codec import plot
from codec.metrics import Curve


def curves(count):
    return [
        Curve(f"codec number {n}", [0.1 * (k + 1) * (1 + n / 9) for k in range(6)], [28.0 + 2 * k for k in range(6)])
        for n in range(count)
    ]


def drawn(path):
    """The share of pixels that are not white."""
    return (np.asarray(Image.open(path).convert("L")) < 250).mean()


@pytest.mark.parametrize("count", [1, 4, 25])
def test_rd_curves(tmp_path, count):
    plot.rd_curves(curves(count), tmp_path / "rd.png", "Some photographs")
    assert Image.open(tmp_path / "rd.png").size == (1200, 825)
    assert 0.01 < drawn(tmp_path / "rd.png") < 0.4
    corner = np.asarray(Image.open(tmp_path / "rd.png").convert("RGB"))[:5, :5]
    assert (corner == 255).all()


def test_curves_differ_in_more_than_colour():
    styles = {(plot.MARKERS[n % len(plot.MARKERS)], str(plot.DASHES[n % len(plot.DASHES)])) for n in range(25)}
    assert len(styles) == 25


@pytest.mark.parametrize("count", [2, 12, 30])
def test_names_never_overlap_and_stay_beside_the_axes(count):
    figure = plot._figure(8, 5.5)
    axes = figure.add_axes((0.1, 0.1, 0.6, 0.8))
    axes.set_ylim(28, 40)
    ends = [(38 + n / 1000, 1.0, f"codec {n}", {"color": "black", "marker": "o"}) for n in range(count)]
    plot._name_ends(axes, ends)
    levels = [text.get_position()[1] for text in axes.texts if text.get_text()]
    assert len(levels) == count
    assert min(np.diff(levels)) >= min(0.05, 1 / count) - 1e-9
    assert 0 <= levels[0] and levels[-1] <= 1 + 1e-9


def test_points_that_are_not_finite_are_left_out(tmp_path):
    whole = [Curve("a", [0.1, 0.2], [30.0, 33.0])]
    plot.rd_curves(whole, tmp_path / "whole.png")
    holed = [Curve("a", [0.1, 0.15, 0.2, 0.3], [30.0, math.nan, 33.0, math.inf])]
    plot.rd_curves(holed, tmp_path / "holed.png")
    assert (tmp_path / "whole.png").read_bytes() == (tmp_path / "holed.png").read_bytes()
    plot.rd_curves([*whole, Curve("empty", [], [])], tmp_path / "one.png")
    with pytest.raises(ValueError, match="no rate-distortion point"):
        plot.rd_curves([Curve("a", [0.1], [math.nan])], tmp_path / "none.png")


def panels(groups):
    values = np.arange(-40, 41)
    probabilities = np.exp(-abs(values)) / np.exp(-abs(values)).sum()
    return [plot.Panel(f"channel {n}", group, values, probabilities) for n, group in enumerate(groups)]


@pytest.mark.parametrize("count, shape", [(1, (495, 465)), (5, (1665, 765)), (12, (1665, 1065))])
def test_latent_histograms(tmp_path, count, shape):
    rng = np.random.default_rng(0)
    groups = [np.round(rng.laplace(0, scale, 100 * count)).astype(np.int32) for scale in np.geomspace(9, 0.1, count)]
    plot.latent_histograms(panels(groups), tmp_path / "latents.png", "Latents")
    assert Image.open(tmp_path / "latents.png").size == shape
    assert drawn(tmp_path / "latents.png") > 0.05


def test_groups_are_chosen_by_their_spread():
    groups = [np.array([0, k, -k]) for k in range(40)]
    chosen = plot.by_spread(groups)
    assert len(chosen) == 12 and chosen == sorted(chosen, reverse=True) and (chosen[0], chosen[-1]) == (39, 1)
    assert plot.by_spread(groups[:3]) == [2, 1]
    assert plot.by_spread([np.array([0]), np.array([5]), np.array([0, 1, 2])]) == [2, 1]  # always 5 is not always zero


def test_latents_that_are_all_zero_are_drawn(tmp_path):
    groups = np.zeros((3, 9), int)
    assert plot.by_spread(groups) == [0]
    plot.latent_histograms(panels(groups[:1]), tmp_path / "l.png")
    assert drawn(tmp_path / "l.png") > 0.05


def test_crops_show_every_pixel_once(tmp_path):
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 200, (50, 120, 3), dtype=np.uint8)) for _ in range(4)]
    gray = images[3].convert("L")
    rows = [[("original", images[0]), ("jpeg\n1,234 bytes", images[1])], [("original", images[2]), ("gray", gray)]]
    plot.crops(rows, tmp_path / "crops.png", "Crops")
    page = np.asarray(Image.open(tmp_path / "crops.png").convert("RGB"))
    assert page.shape == (40 + 2 * (50 + 42) + 8, 2 * 128 + 8, 3)
    for r, row in enumerate(rows):
        for c, (_, image) in enumerate(row):
            top, left = 40 + 92 * r + 38, 8 + 128 * c
            assert np.array_equal(page[top : top + 50, left : left + 120], np.asarray(image.convert("RGB")))
            assert (page[top - 34 : top - 2, left : left + 120] < 128).any()  # the caption


def test_crops_must_match(tmp_path):
    small, large = Image.new("RGB", (8, 8)), Image.new("RGB", (9, 8))
    for rows in ([[("a", small), ("b", large)]], [[("a", small)], [("a", small), ("b", small)]], []):
        with pytest.raises(ValueError, match="one size"):
            plot.crops(rows, tmp_path / "crops.png")
