"""The README: what it shows exists and runs as shown."""

import re
import textwrap
from pathlib import Path

from entropy import rans

README = Path(__file__).parent.parent / "README.md"


def test_the_example_of_the_coder_is_the_one_of_its_docstring():
    example = textwrap.dedent(rans.__doc__[rans.__doc__.index("    >>>") :]).strip()
    assert example in README.read_text(encoding="utf-8")


def test_every_file_that_it_names_exists():
    text = README.read_text(encoding="utf-8")
    named = re.findall(r"\]\(([\w./-]+)\)", text) + re.findall(r"`((?:codec|entropy|benchmarks)/[\w./-]+)`", text)
    assert len(named) > 10 and [name for name in named if not (README.parent / name).exists()] == []
