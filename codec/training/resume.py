"""Where a training may begin, and what one that goes on may change of its configuration."""

import hashlib
import os
import re
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any

from PIL import Image
from torch import nn

from codec.config import Config, TrainConfig
from codec.errors import LicError
from codec.training.optimise import factors

BEGUN = {"config.toml", "meta.json", "log.jsonl", "skipped.txt", "tb"}  # what a start that failed leaves


def is_new(folder: Path) -> bool:
    """Whether nothing is in a run folder but what a start leaves that failed before anything was saved."""
    return not folder.exists() or {path.name for path in folder.iterdir()} <= BEGUN


def check_batch(c: TrainConfig, processes: int) -> None:
    """LicError if a step's batch has no equal parts."""
    if c.batch % (processes * c.accumulate):
        raise LicError(
            f"--batch counts the patches of a step over all processes: {c.batch} cannot be shared by {processes} "
            f"processes in {c.accumulate} parts each"
        )


def check(model: nn.Module, saved: Config, config: Config, step: int) -> None:
    """LicError if a run that is at `step` cannot go on with `config` instead of `saved`."""
    if config.model != saved.model:
        raise LicError("--resume continues with the model of the run: [model] cannot change")
    if config.train.init != saved.train.init:
        raise LicError("--init begins a new run, in another folder: leave it or --resume out")
    if step > config.train.steps:
        raise LicError(f"the run is at step {step} already: --steps {config.train.steps} is too few")
    names = [name for name, _ in model.named_parameters()]
    before, now = (list(factors(names, c.train).values()) for c in (saved, config))
    if config.train.optimizer != saved.train.optimizer or before != now:
        raise LicError(
            "--resume continues with the state of the optimiser: neither --optimizer, nor which parts --freeze and "
            "--lr_of tell apart, can change. A new run can begin here: --init OUT/last.pt"
        )


def absolute(names: list[str]) -> list[str]:
    """Entries of `data` or `val` that mean the same in any working folder."""
    split = [re.fullmatch(r"(tar:|cifar10:)?(.*)", name, re.DOTALL).groups("") for name in names]
    return [kind + os.path.abspath(folder) for kind, folder in split]


def describe_photos(photos: Sequence[Image.Image]) -> dict[str, int | str]:
    """How many validation images there are, and a SHA-256 of their sizes and pixels."""
    digest = hashlib.sha256()
    for photo in photos:
        digest.update(repr(photo.size).encode() + photo.tobytes())
    return {"images": len(photos), "sha256": digest.hexdigest()}


def changed_images(starts: list[dict[str, Any]], record: dict[str, Any], anew: Set[str]) -> str:
    """A line about what is not the same in `record`, the start of a run that goes on, as in the last of its `starts`
    before: its training images (data) or validation images (val). LicError unless `anew` says that it may.
    """
    lines = []
    for name, kind in (("data", "training"), ("val", "validation")):
        before, now = (starts[-1] if starts else {}).get(name), record[name]
        if before and before["sha256"] != now["sha256"]:
            line = f"the {kind} images are others than before: {now['images']} now, {before['images']} then"
            if name not in anew:
                raise LicError(f"{line}. Restore them, or say that these are meant: --{name} FOLDER")
            lines.append(line)
    return "\n".join(lines)


def best_before(saved: Config, config: Config, best: float | None) -> float | None:
    """The best figure so far; None if it was measured on other images or in another way."""
    before, now = ((c.data.val, c.train.val_qualities, c.train.distortion, c.train.mix) for c in (saved, config))
    return best if before == now else None
