"""A file made to a size is never above it, and the closest below it."""

import math
from bisect import bisect_left

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from codec.coding.models import load_model
from codec.coding.target import BACKGROUNDS, lowest, ssimulacra2


@given(st.lists(st.floats(-50, 100), min_size=101, max_size=101), st.floats(-60, 110))
def test_the_lowest_quality_is_found_whatever_the_curve_looks_like(values, target):
    values.sort()
    tried = []
    found = lowest(lambda quality: tried.append(quality) or values[quality], target, lambda value: value, 0.5)
    assert found == bisect_left(values, target) and {found - 1, found} & set(range(101)) <= set(tried)
    assert len(tried) == len(set(tried)) <= 15


def test_a_curve_that_is_nearly_what_was_expected_takes_few_trials():
    for target in range(15, 88):
        tried = []
        scores = [100 - 88 * 2 ** (-0.028 * (quality + 2 * math.sin(quality / 9))) for quality in range(101)]
        linear = lambda score: -math.log2(100 - score)  # noqa: E731
        lowest(lambda quality: tried.append(quality) or scores[quality], target, linear, 0.028)  # noqa: B023
        assert len(tried) <= 5


@pytest.mark.parametrize("name", ["tiny", "hyper"])
@pytest.mark.parametrize("share", [0.05, 0.4, 0.9])
def test_a_target_is_never_exceeded_and_the_next_quality_would(models, photo, name, share):
    model = load_model(models / f"{name}.safetensors", precision="fp32")
    least, most = (len(model.compress(photo, quality)) for quality in (0, 100))
    target = least + share * (most - least)
    data, quality = model.compress_to(photo, target)
    assert 0 < quality < 100 and data == model.compress(photo, quality)
    assert len(data) <= target < len(model.compress(photo, quality + 1))


def test_a_target_is_met_exactly_and_the_best_quality_is_the_last(tiny, photo):
    for quality in (0, 77, 100):
        data = tiny.compress(photo, quality)
        assert tiny.compress_to(photo, len(data)) == (data, quality)
    assert tiny.compress_to(photo, 10**9) == (data, 100)


def test_a_target_that_cannot_be_met_is_an_error_that_tells_the_least(tiny, fixed, photo):
    least = len(tiny.compress(photo, 0))
    for target in (least - 1, 0, -5, float("nan")):
        with pytest.raises(ValueError, match=f"quality 0 takes {least} bytes"):
            tiny.compress_to(photo, target)
    with pytest.raises(ValueError, match="one lambda"):
        fixed.compress_to(photo, 5000)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_a_score_is_reached_and_the_quality_below_would_not(hyper, photo, mode):
    image = photo.convert(mode)
    if mode == "RGBA":
        image.putalpha(photo.convert("L"))
    score = {quality: ssimulacra2(image, hyper.decompress(hyper.compress(image, quality))) for quality in (0, 100)}
    least = (score[0] + score[100]) / 2
    data, quality, reached = hyper.compress_to_score(image, least)
    assert 0 < quality < 100 and data == hyper.compress(image, quality)
    assert reached == ssimulacra2(image, hyper.decompress(data)) >= least
    assert ssimulacra2(image, hyper.decompress(hyper.compress(image, quality - 1))) < least


def test_a_score_out_of_reach_is_an_error_that_tells_the_best(hyper, hyper_fixed, photo):
    for least in (100.5, float("nan")):
        with pytest.raises(ValueError, match=r"quality 100 scores \d+\.\d\d in SSIMULACRA 2"):
            hyper.compress_to_score(photo, least)
    with pytest.raises(ValueError, match="one lambda"):
        hyper_fixed.compress_to_score(photo, 50)
    assert hyper.compress_to_score(photo, -1e9)[1] == 0


def test_what_is_kept_without_loss_scores_100(hyper):
    drawing = Image.new("RGB", (300, 260), "white")
    drawing.paste("navy", (10, 20, 150, 60))
    data, quality, reached = hyper.compress_to_score(drawing, 100)
    assert (quality, reached) == (0, 100) and hyper.decompress(data).tobytes() == drawing.tobytes()


def test_a_transparent_image_scores_as_over_the_background_where_it_looks_worse():
    dark, light = (Image.new("RGBA", (240, 240), (level, level, level, 128)) for level in (100, 140))
    alone = [ssimulacra2(*(Image.blend(Image.new("RGB", (240, 240), (b, b, b)), image.convert("RGB"), 128 / 255)
                           for image in (dark, light))) for b in BACKGROUNDS]  # fmt: skip
    assert ssimulacra2(dark, light) == pytest.approx(min(alone), abs=1) and abs(alone[0] - alone[1]) > 2


def test_small_images_are_scored_as_mirrored_ones(photo):
    assert ssimulacra2(photo, photo) == 100 > ssimulacra2(photo, photo.point(lambda level: level // 2))
