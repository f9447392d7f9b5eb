"""The machine and what is installed on it: its devices, its memory, versions, and what is private in PyTorch.

What cannot be found out is None: no work fails for its description.
"""

import ctypes
import importlib.metadata
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h


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


def has_native_bf16(device: torch.device) -> bool:
    """Whether bf16 arithmetic is an instruction of this device and not an emulation."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


def keep_freed_memory() -> None:
    """Have glibc keep what tensors free, up to 256 MiB, instead of giving it back to the system each time: the page
    faults of getting it again took a third of the time of coding an image, and a tenth of a training step. It is a
    setting of the whole process; on other systems nothing happens.
    """
    if not sys.platform.startswith("linux") or not hasattr(libc := ctypes.CDLL(None), "mallopt"):
        return
    for option, value in ((M_MMAP_THRESHOLD, 32 << 20), (M_TRIM_THRESHOLD, 256 << 20), (M_TOP_PAD, 64 << 20)):
        libc.mallopt(option, value)
