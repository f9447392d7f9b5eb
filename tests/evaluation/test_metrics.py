"""The laws of PSNR, MS-SSIM and BD-rate."""

import io
import json
import math
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from shared import saved

from codec.coding.target import SIDE
from codec.evaluation import curves, metrics
from codec.evaluation.curves import BD_POINTS, Curve, bd_range, full_range, read_curve, read_curves
from codec.evaluation.metrics import (
    BD_RANGE,
    METRICS,
    MS_SSIM_SIDE,
    block_edge_ratio,
    bpp,
    cvvdp,
    decibel,
    ms_ssim,
    psnr,
    ssimulacra2,
)


def bd_rate(anchor, test, low=BD_RANGE[0], high=BD_RANGE[1]):
    return curves.bd_rate(anchor, test, low, high)


def curve(name="test", factor=1.0, low=27.0, high=40.0, points=12):
    """A curve like a codec's: rate grows exponentially with PSNR, a little bent."""
    quality = np.linspace(low, high, points)
    rate = factor * 0.1 * np.exp(0.28 * (quality - 27) - 0.004 * (quality - 27) ** 2)
    return Curve(name, rate.tolist(), quality.tolist())


def photo(height=180, width=200, seed=0):
    """A smooth random RGB image (uint8) with some noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [128 + 90 * np.sin(x / rng.uniform(5, 30) + rng.uniform(0, 6)) * np.cos(y / 17) for _ in range(3)]
    return (np.stack(waves, axis=-1) + rng.normal(0, 4, (height, width, 3))).round().clip(0, 255).astype(np.uint8)


def test_psnr_is_the_formula():
    a, b = photo(7, 5), photo(7, 5, seed=1)
    mse = ((a.astype(int) - b.astype(int)) ** 2).sum() / a.size
    assert psnr(a, b) == pytest.approx(20 * math.log10(255) - 10 * math.log10(mse), abs=1e-12)
    assert psnr(a, a) == math.inf
    assert psnr(np.uint8([[0]]), np.uint8([[255]])) == 0  # and uint8 does not wrap round


def test_metrics_refuse_what_is_not_two_8_bit_images_of_one_shape():
    with pytest.raises(ValueError, match="shape"):
        psnr(photo(7, 5), photo(5, 7))
    with pytest.raises(ValueError, match="8-bit"):
        psnr(photo(7, 5), photo(7, 5) / 255)


@pytest.mark.parametrize("height, width", [(180, 200), (161, 223), (177, 334)])
def test_ms_ssim_is_the_librarys_and_falls_with_damage(height, width):
    torch = pytest.importorskip("torch")
    from pytorch_msssim import ms_ssim as oracle

    a = photo(height, width)
    noise = np.random.default_rng(2).normal(0, 1, a.shape)
    little, much = ((a + sigma * noise).round().clip(0, 255).astype(np.uint8) for sigma in (4, 20))
    for image in (little, much, 255 - a):  # of the last one structure is negative, and counts as none
        tensors = [torch.from_numpy(i).permute(2, 0, 1)[None].double() for i in (a, image)]
        assert ms_ssim(a, image) == pytest.approx(float(oracle(*tensors, data_range=255)), abs=1e-6)
    assert ms_ssim(a, a) == pytest.approx(1, abs=1e-12)
    assert ms_ssim(a, a) > ms_ssim(a, little) > ms_ssim(a, much)


def test_ms_ssim_of_bright_flat_images_is_at_most_1():
    pytest.importorskip("torch")
    a = np.full((176, 176, 3), 254, np.uint8)
    b = a.copy()
    b[::7, ::5] += 1
    similarity = ms_ssim(a, b)
    assert 0.9 < similarity < 1 and 0 < decibel(similarity) < 200
    assert decibel(1 + 1e-7) == decibel(1.0) == math.inf and math.isnan(decibel(math.nan))


@pytest.fixture(scope="module")
def ladder():
    """A photograph, and JPEGs of it from bad to good."""
    from skimage import data

    original = Image.fromarray(data.astronaut()).crop((100, 0, 340, 240))
    return original, [Image.open(io.BytesIO(saved(original, "JPEG", quality=quality))) for quality in (5, 20, 60, 95)]


@pytest.mark.parametrize("name", ["ms-ssim", "ssimulacra2", "cvvdp"])
def test_metrics_of_the_eye_grow_with_the_quality_up_to_that_of_equal_images(name, ladder):
    if name == "cvvdp":
        pytest.importorskip("pycvvdp")
    measure = {"ms-ssim": ms_ssim, "ssimulacra2": ssimulacra2, "cvvdp": cvvdp}[name]
    original, damaged = ladder
    scores = [measure(original, image) for image in damaged]
    equal = measure(original, original)
    assert scores == sorted(scores) and scores[-1] < equal == pytest.approx({"ms-ssim": 1, "cvvdp": 10}.get(name, 100))
    with pytest.raises(ValueError, match="shape"):
        measure(original, damaged[0].crop((0, 0, 9, 9)))
    assert math.isnan(measure(original.crop((0, 0, 7, 300)), original.crop((0, 0, 7, 300))))


def test_ssimulacra2_is_the_packages_of_the_files_of_both_images(ladder, tmp_path):
    from ssimulacra2 import compute_ssimulacra2

    original, (_, damaged, *_) = ladder
    original.save(tmp_path / "a.png")
    damaged.save(tmp_path / "b.png")
    assert ssimulacra2(original, damaged) == compute_ssimulacra2(tmp_path / "a.png", tmp_path / "b.png")


def test_ssimulacra2_is_nan_where_a_scale_is_missing():
    small, large = (np.zeros((side, 300, 3), np.uint8) for side in (SIDE - 1, SIDE))
    assert math.isnan(ssimulacra2(small, small)) and ssimulacra2(large, large) == 100


def test_cvvdp_is_measured_where_its_package_is_installed(monkeypatch):
    monkeypatch.undo()
    for found, there in ((None, False), ("it", True)):
        monkeypatch.setattr(metrics.importlib.util, "find_spec", lambda name, found=found: found)
        assert ("cvvdp" in metrics.measurable()) == there
        assert {"psnr", "ms-ssim", "ssimulacra2"} <= set(metrics.measurable())


def test_cvvdp_says_nothing_on_its_own():
    pytest.importorskip("pycvvdp")
    program = "import numpy as np; from codec.evaluation.metrics import cvvdp; x = np.zeros((9, 9, 3), np.uint8)"
    program += "; import logging; cvvdp(x, x); assert logging.root.manager.disable == logging.NOTSET"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == done.stderr == ""


def test_ms_ssim_is_nan_where_it_is_not_defined():
    assert math.isnan(ms_ssim(photo(MS_SSIM_SIDE - 1, 200), photo(MS_SSIM_SIDE - 1, 200)))
    assert not math.isnan(ms_ssim(photo(MS_SSIM_SIDE, 200), photo(MS_SSIM_SIDE, 200)))


def test_block_edges_are_the_formula():
    a = np.random.default_rng(0).integers(0, 256, (21, 35, 3), dtype=np.uint8)
    steps = {True: [], False: []}
    for y in range(21):
        for x in range(35):
            if y:
                steps[y % 16 == 0].append(abs(a[y].astype(int) - a[y - 1])[x].mean())
            if x:
                steps[x % 16 == 0].append(abs(a[y, x].astype(int) - a[y, x - 1]).mean())
    assert block_edge_ratio(a) == pytest.approx(np.mean(steps[True]) / np.mean(steps[False]), rel=1e-12)


def test_block_edges_are_1_without_a_grid_and_grow_with_one():
    a = photo(192, 192)
    assert block_edge_ratio(a) == pytest.approx(1, abs=0.05)
    means = a.reshape(12, 16, 12, 16, 3).mean(axis=(1, 3), keepdims=True)
    blocky = (0.7 * a + 0.3 * np.broadcast_to(means, (12, 16, 12, 16, 3)).reshape(a.shape)).astype(np.uint8)
    assert block_edge_ratio(blocky) > 1.1
    assert block_edge_ratio(blocky[5:, 7:]) < 1  # the steps are at other positions now
    assert block_edge_ratio(blocky, size=8) > 1
    flat = np.zeros((32, 32, 3), np.uint8)
    assert math.isnan(block_edge_ratio(flat)) and math.isnan(block_edge_ratio(a[:16, :16]))
    flat[16:] = 255
    assert block_edge_ratio(flat) == math.inf


def test_bpp_counts_every_byte():
    assert bpp(n_bytes=6, width=4, height=3) == 4


def test_bd_rate_of_a_curve_with_itself_is_zero():
    assert bd_rate(curve(), curve()) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("factor", [0.5, 0.9, 2.0])
def test_bd_rate_of_a_scaled_rate_is_the_scale(factor):
    assert bd_rate(curve(), curve(factor=factor)) == pytest.approx(100 * (factor - 1), abs=1e-9)
    points = curve(factor=factor, low=26, high=41, points=17)  # the same curve by other points
    assert bd_rate(curve(), points) == pytest.approx(100 * (factor - 1), abs=0.2)


def test_bd_rates_there_and_back_cancel():
    other = Curve("other", [0.05 * 1.32**n for n in range(13)], [26.5 + 1.1 * n for n in range(13)])
    there, back = bd_rate(curve(), other), bd_rate(other, curve())
    assert (1 + there / 100) * (1 + back / 100) == pytest.approx(1, abs=1e-12)
    assert abs(there) > 1


def test_bd_rate_does_not_depend_on_the_order_of_points():
    shuffled = curve(factor=0.8)
    order = np.random.default_rng(0).permutation(len(shuffled.bpp))
    mixed = Curve("mixed", [shuffled.bpp[i] for i in order], [shuffled.scores[i] for i in order])
    assert bd_rate(curve(), mixed) == bd_rate(curve(), shuffled)


def test_bd_rate_equals_bjontegaard_where_both_curves_end_with_the_range():
    bjontegaard = pytest.importorskip("bjontegaard")
    a, b = curve(low=29, high=37), Curve("b", [0.11 * 1.35**n for n in range(9)], [29.0 + n for n in range(9)])
    expected = bjontegaard.bd_rate(a.bpp, a.scores, b.bpp, b.scores, method="pchip", require_matching_points=False)
    assert bd_rate(a, b) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("low, high", [(29.01, 40), (27, 36.99)])
def test_a_curve_that_does_not_span_the_range_is_an_error(low, high):
    short = curve("short", low=low, high=high)
    with pytest.raises(ValueError, match="short: its points .* do not span 29.00 to 37.00 dB"):
        bd_rate(curve(), short)
    with pytest.raises(ValueError, match="short: its points .* do not span 29.00 to 37.00 dB"):
        bd_rate(short, curve())
    assert bd_rate(curve(), short, 30, 36) == pytest.approx(0, abs=0.2)


def test_a_curve_of_few_points_is_an_error_but_published_anchors_are_not():
    few = curve("few", points=BD_POINTS - 1)
    with pytest.raises(ValueError, match="few: 7 points"):
        bd_rate(curve(), few)
    assert math.isfinite(bd_rate(few, curve()))
    with pytest.raises(ValueError, match="few: 7 points"):
        bd_rate(few._replace(images=["a"]), curve())


def test_points_that_define_no_curve_are_an_error():
    good = curve()
    with pytest.raises(ValueError, match="same PSNR"):
        bd_rate(good, good._replace(scores=[good.scores[1], *good.scores[1:]]))
    with pytest.raises(ValueError, match="finite"):
        bd_rate(good, good._replace(scores=[*good.scores[:-1], math.inf]))
    with pytest.raises(ValueError, match="test folds back: 30.00 dB at 0.0.* bpp, but only 29.* dB at 0.9"):
        bd_rate(good, Curve("test", [0.9, 0.05, *np.linspace(1, 2, 8)], [29.5, 30.0, *np.linspace(31, 38, 8)]), 30, 37)
    with pytest.raises(ValueError, match="no point"):
        bd_rate(good._replace(bpp=[], scores=[]), good)


@pytest.mark.parametrize(
    "document",
    [
        {"name": "vtm", "description": "", "results": {"bpp": [0.1, 0.2], "psnr-rgb": [27.0, None]}},
        {"name": "vtm", "results": {"bpp": [0.1, 0.2], "psnr": [27.0, None], "ms-ssim": [0.9, 0.95]}},
        {"codecs": {"vtm": {"bpp": [0.1, 0.2], "psnr": [27.0, None]}, "other": {"bpp": [], "psnr": []}}},
    ],
)
def test_curves_are_read_from_each_kind_of_file(tmp_path, document):
    path = tmp_path / "points.json"
    path.write_text(json.dumps(document))
    read = read_curve(path, "vtm")
    assert (read.name, read.bpp, read.scores[0]) == ("vtm", [0.1, 0.2], 27.0)
    assert math.isnan(read.scores[1])


def test_curves_of_every_metric_are_read_whoever_wrote_them(tmp_path):
    path = tmp_path / "points.json"
    theirs = {"bpp": [0.1, 0.2], "psnr-rgb": [27.0, 28.0], "ms-ssim-rgb": [0.9, 0.99]}
    path.write_text(json.dumps({"name": "theirs", "results": theirs}))
    assert read_curve(path, metric="ms-ssim").scores == pytest.approx([10, 20])
    with pytest.raises(ValueError, match="points.json has no SSIMULACRA 2, but PSNR, MS-SSIM"):
        read_curve(path, metric="ssimulacra2")
    ours = theirs | {"ms-ssim-rgb-db": [10.5, 20.5], "ssimulacra2": [40, 50], "cvvdp": [8.5, None]}
    path.write_text(json.dumps({"name": "ours", "results": ours, "images": [{"sha256": "b"}, {"sha256": "a"}]}))
    read = read_curves(path)
    assert list(read) == list(METRICS) and all(curve.images == ["a", "b"] for curve in read.values())
    assert read["ms-ssim"].scores == [10.5, 20.5] and math.isnan(read["cvvdp"].scores[1])
    path.write_text(json.dumps({"results": ours | {"ssimulacra2": [1]}}))
    with pytest.raises(ValueError, match="2 rates but 1 SSIMULACRA 2 values"):
        read_curves(path)


def test_each_metric_has_its_own_range():
    a, b = curve("a", low=27, high=40), curve("b", low=30, high=45)
    assert bd_range(a, b) == BD_RANGE and bd_range(a, b, "full") == full_range(a, b) == (30, 40)
    assert bd_range(a, b, (31, 32)) == (31, 32)
    judged = [c._replace(metric="cvvdp", scores=[*c.scores[:-1], math.nan]) for c in (a, b)]
    assert bd_range(*judged) == (30, pytest.approx(judged[0].scores[-2]))
    with pytest.raises(ValueError, match="b is a curve of cvvdp, a of psnr"):
        bd_rate(a, judged[1])
    with pytest.raises(ValueError, match="none has no point with a finite CVVDP"):
        bd_range(judged[0], Curve("none", [1.0], [math.nan], "cvvdp"))


@pytest.mark.parametrize(
    "text",
    [
        "no JSON",
        "3",
        "{}",
        '{"results": {"bpp": [1]}}',
        '{"results": {"bpp": [1], "psnr": [1, 2]}}',
        '{"codecs": {"a": {}}}',
        '{"codecs": {"vtm": {"bpp": [1]}}}',
        '{"results": {"bpp": ["x"], "psnr": [1]}}',
    ],
)
def test_other_files_are_an_error_that_names_them(tmp_path, text):
    path = tmp_path / "points.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="points.json"):
        read_curve(path, "vtm")
