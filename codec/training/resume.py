"""Rules for beginning and resuming a training: what a run folder may contain, and which options may change."""

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

BEGUN = {"config.toml", "meta.json", "log.jsonl", "skipped.txt", "tb"}  # what a failed start leaves


def is_new(folder: Path) -> bool:
    """Whether a run folder has no checkpoint: it does not exist, or has what a failed start leaves."""
    return not folder.exists() or {path.name for path in folder.iterdir()} <= BEGUN


def check_batch(c: TrainConfig, processes: int) -> None:
    """LicError unless a batch can be divided equally among processes and accumulation steps."""
    if c.batch % (processes * c.accumulate):
        raise LicError(
            f"--batch counts the patches of a step over all processes: {c.batch} cannot be shared by {processes} "
            f"processes in {c.accumulate} parts each"
        )


def check(model: nn.Module, saved: Config, config: Config, step: int) -> None:
    """LicError if a run at `step` with the configuration `saved` cannot continue with `config`."""
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
    """Entries of `data` or `val` with absolute paths."""
    split = [re.fullmatch(r"(tar:|cifar10:)?(.*)", name, re.DOTALL).groups("") for name in names]
    return [kind + os.path.abspath(folder) for kind, folder in split]


def describe_photos(photos: Sequence[Image.Image]) -> dict[str, int | str]:
    """The number of validation images, and a SHA-256 of their sizes and pixels."""
    digest = hashlib.sha256()
    for photo in photos:
        digest.update(repr(photo.size).encode() + photo.tobytes())
    return {"images": len(photos), "sha256": digest.hexdigest()}


def changed_images(starts: list[dict[str, Any]], record: dict[str, Any], anew: Set[str]) -> str:
    """Lines on training images (data) and validation images (val) that differ from those of the last start of a run.

    record: the present start; starts: the earlier ones; anew: the names, data or val, that may differ. LicError if
    another one does.
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
    """The best validation loss so far; None if it was measured on other images or in another way."""
    before, now = ((c.data.val, c.train.val_qualities, c.train.distortion, c.train.mix) for c in (saved, config))
    return best if before == now else None
