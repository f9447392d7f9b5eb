"""What a training depended on beside its configuration: code, versions, machine, data. meta.json of a run folder.

What cannot be found out is null: no training fails for its description.
"""

import importlib.metadata
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import codec
from codec.config import Config

PACKAGES = ("torch", "torchvision", "numpy", "pillow")


def meta(config: Config, data: dict[str, Any]) -> dict[str, Any]:
    """The facts of a training that begins now, ready for JSON; `data` (number of images, hash) is taken in as it is."""
    gpu = torch.cuda.is_available()
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": git(Path(__file__).parent),
        "versions": {"lic": codec.__version__, "python": platform.python_version()}
        | {name: version(name) for name in PACKAGES}
        | {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version() if gpu else None},
        "system": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if gpu else [],
        "seed": config.train.seed,
        "data": data,
    }


def git(folder: Path) -> dict[str, Any] | None:
    """Commit of the checkout whose files are in `folder`, and whether anything in it differs from that commit."""

    def ask(*arguments: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        if not ask("ls-files", "."):  # installed into a folder that lies in somebody else's checkout
            return None
        return {"commit": ask("rev-parse", "HEAD"), "dirty": ask("status", "--porcelain") != ""}
    except (OSError, subprocess.SubprocessError):  # no git, no checkout, one that git distrusts, or no answer
        return None


def processor() -> str:
    """The name of the processor."""
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def device_name(device: torch.device | str) -> str:
    """The name of a GPU, or of the processor with the number of threads in use."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor()}, {torch.get_num_threads()} threads"


def version(package: str) -> str | None:
    """Of an installed package; None if it is not there."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
