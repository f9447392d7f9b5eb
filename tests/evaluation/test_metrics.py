"""The laws of PSNR, MS-SSIM and BD-rate."""

import json
import math

import numpy as np
import pytest

from codec.evaluation.metrics import (
    BD_POINTS,
    MS_SSIM_SIDE,
    Curve,
    bd_rate,
    block_edge_ratio,
    bpp,
    decibel,
    ms_ssim,
    psnr,
    read_curve,
)


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


def test_ms_ssim_is_the_librarys_and_falls_with_damage():
    torch = pytest.importorskip("torch")
    from pytorch_msssim import ms_ssim as oracle

    a = photo()
    noise = np.random.default_rng(2).normal(0, 1, a.shape)
    little, much = ((a + sigma * noise).round().clip(0, 255).astype(np.uint8) for sigma in (4, 20))
    tensors = [torch.from_numpy(image).permute(2, 0, 1)[None].double() for image in (a, little)]
    assert ms_ssim(a, little) == pytest.approx(float(oracle(*tensors, data_range=255)), abs=1e-5)
    assert ms_ssim(a, a) == pytest.approx(1, abs=1e-6)
    assert ms_ssim(a, a) > ms_ssim(a, little) > ms_ssim(a, much)


def test_ms_ssim_of_bright_flat_images_is_at_most_1():
    pytest.importorskip("torch")
    a = np.full((176, 176, 3), 254, np.uint8)
    b = a.copy()
    b[::7, ::5] += 1
    similarity = ms_ssim(a, b)
    assert 0.9 < similarity < 1 and 0 < decibel(similarity) < 200
    assert decibel(1 + 1e-7) == decibel(1.0) == math.inf and math.isnan(decibel(math.nan))


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
    mixed = Curve("mixed", [shuffled.bpp[i] for i in order], [shuffled.psnr[i] for i in order])
    assert bd_rate(curve(), mixed) == bd_rate(curve(), shuffled)


def test_bd_rate_equals_bjontegaard_where_both_curves_end_with_the_range():
    bjontegaard = pytest.importorskip("bjontegaard")
    a, b = curve(low=29, high=37), Curve("b", [0.11 * 1.35**n for n in range(9)], [29.0 + n for n in range(9)])
    expected = bjontegaard.bd_rate(a.bpp, a.psnr, b.bpp, b.psnr, method="pchip", require_matching_points=False)
    assert bd_rate(a, b) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("low, high", [(29.01, 40), (27, 36.99)])
def test_a_curve_that_does_not_span_the_range_is_an_error(low, high):
    short = curve("short", low=low, high=high)
    with pytest.raises(ValueError, match="short: its points .* do not span 29..37 dB"):
        bd_rate(curve(), short)
    with pytest.raises(ValueError, match="short: its points .* do not span 29..37 dB"):
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
        bd_rate(good, good._replace(psnr=[good.psnr[1], *good.psnr[1:]]))
    with pytest.raises(ValueError, match="finite"):
        bd_rate(good, good._replace(psnr=[*good.psnr[:-1], math.inf]))
    with pytest.raises(ValueError, match="no point"):
        bd_rate(good._replace(bpp=[], psnr=[]), good)


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
    assert (read.name, read.bpp, read.psnr[0]) == ("vtm", [0.1, 0.2], 27.0)
    assert math.isnan(read.psnr[1])


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
