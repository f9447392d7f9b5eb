"""The READMEs: what they show exists and runs as shown, and the first one is short."""

import re
import textwrap
from pathlib import Path

import pytest
import torch

from codec.network import graphs, transforms
from entropy import rans

ROOT = Path(__file__).parent.parent
READMES = [
    ROOT / name for name in ("README.md", "codec/network/README.md", "entropy/README.md", "benchmarks/README.md")
]
CARDS = sorted((ROOT / "codec/weights").glob("*.md"))


def test_the_example_of_the_coder_is_the_one_of_its_docstring():
    example = textwrap.dedent(rans.__doc__[rans.__doc__.index("    >>>") :]).strip()
    assert example in (ROOT / "entropy/README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", READMES + CARDS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_that_it_names_exists(path):
    text = path.read_text(encoding="utf-8")
    names = re.findall(r"\]\(([\w./-]+)\)", text) + re.findall(r"`([\w./-]+\.(?:py|md|csv))`", text)
    names += re.findall(r"`((?:codec|entropy|benchmarks|tests)/[\w./-]+)`", text)
    assert (
        names and [name for name in names if not any((folder / name).exists() for folder in (path.parent, ROOT))] == []
    )


def test_the_first_one_is_read_in_five_minutes():
    assert len((ROOT / "README.md").read_bytes()) <= 10_000


def test_its_experiment_fits_where_it_says(monkeypatch):
    monkeypatch.setattr(graphs, "LAYERS", dict(graphs.LAYERS))
    wide, line = re.findall(r"```python\n((?:class Wide|LAYERS).*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    exec(wide, names := dict(vars(transforms)))
    monkeypatch.setattr(transforms, "Wide", names["Wide"], raising=False)
    exec(line, vars(graphs))
    assert graphs.LAYERS[transforms.Wide] and transforms.Wide(4)(torch.zeros(1, 4, 9, 9)).shape == (1, 4, 9, 9)
    source = Path(transforms.__file__).read_text()
    assert (
        re.search(r"self.sixteenth = nn.Sequential\(\*\(.*for _ in range\(blocks\[1\]\)", source)
        and "self.halo = " in source
    )
