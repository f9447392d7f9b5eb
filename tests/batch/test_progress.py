"""The progress of one file: shares of an image that rise to 1, on a terminal, and nothing elsewhere."""

import io
import sys

import pytest
from PIL import Image

from codec.batch.progress import Progress
from codec.coding import tiles


@pytest.mark.parametrize("effort", [0, 1])
def test_shares_of_an_image_rise_to_one_at_each_quality(hyper, photos, monkeypatch, effort):
    monkeypatch.setattr(tiles, "TILE", 1)
    tall = Image.new("RGB", (64, 256))
    for i, photo in enumerate(photos):
        tall.paste(photo, (0, 64 * i))
    seen = []
    hyper.compress_to(tall, 4000, effort, lambda quality, share=None, **_: seen.append((quality, share)))
    tried = dict.fromkeys(quality for quality, _ in seen)
    assert len(tried) > 1
    for quality in tried:
        *shares, of_z = [share for own, share in seen if own == quality]
        assert shares == [0.25, 0.5, 0.75, 1.0] and of_z is None


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_is_shown_on_a_terminal_and_goes_away(monkeypatch, terminal):
    class Stream(io.StringIO):
        def isatty(self):
            return terminal

    monkeypatch.setattr(sys, "stderr", Stream())
    seen = []
    with Progress("photo.png", lambda quality, **symbols: seen.append((quality, symbols))) as progress:
        progress(50, share=0.5, y="first")
        progress(50, share=1.0, y="last")
        progress(50, z="z")
        progress(25, share=0.25, y="again")
        assert progress.bar.n == 0.25
    assert seen == [(50, {"y": "first"}), (50, {"y": "last"}), (50, {"z": "z"}), (25, {"y": "again"})]
    assert ("photo.png" in sys.stderr.getvalue()) == terminal
