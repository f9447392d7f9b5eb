"""What the benchmarks share: turns taken in one run, medians with their spread, the machine, and the report.

Numbers are compared with numbers of the same run only. Every contender has one turn in every round, in an order that
rotates, so that whatever slows the machine down for a while slows down all of them; ratios are taken round by round.
"""

import json
import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image, ImageOps

from codec.files import find_images, sample_images
from codec.machine import device_name, version

SIZE = (768, 512)  # width and height of the photographs of the Kodak set
PACKAGES = ("torch", "onnxruntime", "numpy", "numba", "pillow", "compressai", "constriction")

K, T = TypeVar("K"), TypeVar("T")


class Turn(NamedTuple):
    """What it took to code something and to decode it again."""

    encode: float  # seconds
    decode: float  # seconds
    bytes: int

    @property
    def both(self) -> float:
        """Seconds for encoding and decoding."""
        return self.encode + self.decode


class Spread(NamedTuple):
    """The middle half of several measurements, printed as: median (first quartile-third quartile)."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, samples: Iterable[float]) -> "Spread":
        """Quartiles of at least one sample."""
        low, median, high = np.percentile(list(samples), [25, 50, 75]).tolist()
        return cls(median, low, high)

    def __format__(self, spec: str) -> str:
        return f"{self.median:{spec}} ({self.low:{spec}}-{self.high:{spec}})"


class Report(NamedTuple):
    """The outcome of one benchmark."""

    name: str  # of its files
    markdown: str
    data: dict[str, Any]  # the same, and what every round gave, for JSON

    def publish(self, out: Path | None, command: str) -> None:
        """Print the Markdown, or write NAME.md and NAME.json to a folder, made if need be; the command is in both."""
        markdown = f"{self.markdown}\n\nBy `{command}`."
        if out is None:
            print(markdown)
            return
        out.mkdir(parents=True, exist_ok=True)
        document = {"command": command} | self.data
        for suffix, text in ((".md", markdown + "\n"), (".json", json.dumps(document, indent=1) + "\n")):
            path = out / (self.name + suffix)
            path.write_text(text, encoding="utf-8")
            print(path)


def take_turns(contenders: Mapping[K, Callable[[], T]], rounds: int) -> dict[K, list[T]]:
    """Let every contender have one unmeasured turn, then one in each round; what the measured turns returned."""
    order = list(contenders)
    for contender in order:
        contenders[contender]()
    turns: dict[K, list[T]] = {contender: [] for contender in order}
    for _ in range(rounds):
        for contender in order:
            turns[contender].append(contenders[contender]())
        order.append(order.pop(0))
    return turns


def ratios(numerators: Iterable[float], denominators: Iterable[float]) -> Spread:
    """Spread of the quotients, round by round."""
    return Spread.of(n / d for n, d in zip(numerators, denominators, strict=True))


def photographs(folder: Path | None) -> list[Image.Image]:
    """RGB images of 768x512 pixels: those below a folder, or the sample photographs.

    Others are turned to landscape, scaled and cropped, so that the times of a row are times of one size.
    """
    images = [image for _, image in sample_images()] if folder is None else map(Image.open, find_images(folder))
    fitted = []
    for image in images:
        image = image.convert("RGB")
        if image.height > image.width:
            image = image.transpose(Image.Transpose.ROTATE_90)
        fitted.append(ImageOps.fit(image, SIZE))
    return fitted


def machine() -> dict[str, str]:
    """Processor, threads, load, versions, and whether threads spin while they wait (the default) or sleep."""
    about = {"processor": device_name("cpu"), "cores": str(os.cpu_count())}
    about["load before the run"] = f"{os.getloadavg()[0]:.1f}"
    about["OMP_WAIT_POLICY"] = os.environ.get("OMP_WAIT_POLICY", "not set")
    about["python"] = platform.python_version()
    return about | {package: version(package) or "not installed" for package in PACKAGES}


def machine_line(about: Mapping[str, str]) -> str:
    """The machine in one line of Markdown."""
    return ", ".join(f"{key} {value}" for key, value in about.items())


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, its first column aligned to the left and the others to the right."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
