"""The report that tests/evaluation looks at: its names, rates and curve, and the JSON in its page."""

import re

from codec.evaluation.curves import BD_METHOD, Curve

HOSTILE = "</script><img src=x onerror=\"document.title='broken'\"><!--<script>[[data]]"
PERCENT = {"lic": -12.34, "jpeg": 0.0, "webp": "its points do not span <b>29..37</b> dB", "avif": -12.0}
RATES = {
    "anchor": "jpeg",
    "method": BD_METHOD,
    "metric": "psnr",
    "rates": {
        "psnr": {"range": [29.0, 37.0], "percent": PERCENT},
        "ssimulacra2": {"range": "full", "percent": PERCENT | {"lic": 5.4}},
    },
}
VTM = Curve("vtm", [0.9, 0.1, float("nan")], [36.0, 28.0, 30.0])


def element(page: str, name: str) -> str:
    """The text of an element of data in a page."""
    return re.search(rf'<script type="[\w/]+" id="{name}">(.*?)</script>', page, re.DOTALL)[1]
