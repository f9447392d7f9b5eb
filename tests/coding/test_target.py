"""A file made to a size is never above it, and the closest below it."""

import pytest

from codec.coding.models import load_model


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
