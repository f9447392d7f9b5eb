"""log.jsonl of a run: one JSON object a line, {"kind": "train" or "val", "step": 100, "bpp": 0.9, ...}.

A training adds lines to it as it goes, so that a process killed while writing leaves a last line without its end: such
a line does not count. Of one kind and step there is never more than one line.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np


def read(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a log. Raises OSError where it cannot be read, ValueError where a line is no line of a log."""
    *lines, _ = path.read_bytes().split(b"\n")  # the rest is nothing, or torn
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not _is_row(row):
            raise ValueError(f"{path}: line {number} is no line of a training log: {line[:40]!r}; remove it")
        rows.append(row)
    return rows


def _is_row(row: Any) -> bool:
    if not isinstance(row, dict) or not isinstance(row.get("kind"), str) or type(row.get("step")) is not int:
        return False
    return all(isinstance(value, (int, float)) for name, value in row.items() if name != "kind")


def summary(figures: dict[str, Any]) -> dict[str, float]:
    """What there is of loss, bpp, mse, psnr and the score trained for, over all rates: means of figures per quality
    (bpp_q10, bpp_q30, ...), but of the losses the weighted mean `rd_loss` where it is given.
    """
    whole = {}
    for name in ("loss", "bpp", "mse", "psnr", "ssimulacra2", "ms-ssim", "vgg"):
        given = [figures[name]] if name in figures else [v for key, v in figures.items() if key.startswith(f"{name}_q")]
        if given:
            whole[name] = float(np.mean(given))
    return whole | ({"loss": figures["rd_loss"]} if "rd_loss" in figures else {})
