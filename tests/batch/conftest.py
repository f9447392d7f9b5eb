"""The folder that tests of many files work in."""

from pathlib import Path

import pytest
from shared import NAMES


@pytest.fixture(autouse=True)
def here(shell, photos):
    """An empty folder with 20 images of 96x64 in `in`."""
    for i, name in enumerate(NAMES):
        path = Path(f"in/{name}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        photos[i % 4].rotate(i).save(path)
    return shell
