"""The machine and its software: devices, memory, versions; settings of the process, for main programs; and all uses of
private parts of PyTorch.

What cannot be found out is None: nothing fails for lack of a description. Importing this module does not import torch.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codec.errors import LicError

if TYPE_CHECKING:
    import torch

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h


def git(folder: Path) -> dict[str, Any] | None:
    """The commit of the checkout that has the files of `folder`, and whether it has changes; None without one."""

    def ask(*arguments: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        if not ask("ls-files", "."):  # the folder lies in a checkout, but does not belong to it
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
    if str(device).startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    torch = sys.modules.get("torch")  # if it is in use, its number of threads counts
    return f"{processor()}, {torch.get_num_threads() if torch else threads()} threads"


def threads() -> int:
    """The number of threads for computations: OMP_NUM_THREADS, as in PyTorch, or one per processor of this process."""
    wanted = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]  # may be a list, for nested regions
    if wanted.isdecimal() and int(wanted):
        return int(wanted)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def version(package: str) -> str | None:
    """The version of an installed package; None if it is not installed."""
    import importlib.metadata

    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def require(package: str, extra: str, what: str) -> None:
    """Import a package that `what` needs; LicError with the pip command if it is not installed."""
    try:
        importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        remedy = f"pip install -e '.[{extra}]'"
        raise LicError(f"{what} needs the package {package}, which is not installed: {remedy}") from None


def may_have_gpu() -> bool:
    """Whether a GPU is possible, before PyTorch is imported, which takes long: False on Linux without a driver."""
    drivers = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/kfd", "/dev/dxg")  # NVIDIA, AMD, Windows below Linux
    return "torch" in sys.modules or not sys.platform.startswith("linux") or any(map(os.path.exists, drivers))


def has_native_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for bf16 arithmetic, so that it is not emulated."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


def keep_freed_memory() -> None:
    """Have glibc keep freed memory, up to 256 MiB, instead of returning it to the system.

    Page faults of getting it back took a third of the time of coding an image, and a tenth of that of a training step.
    The sizes are by hand. The setting is of the whole process; on other systems nothing happens.
    """
    if not sys.platform.startswith("linux") or not hasattr(libc := ctypes.CDLL(None), "mallopt"):
        return
    for option, value in ((M_MMAP_THRESHOLD, 32 << 20), (M_TRIM_THRESHOLD, 256 << 20), (M_TOP_PAD, 64 << 20)):
        libc.mallopt(option, value)


def prepare_process() -> None:
    """Settings of a main program for its process, before PyTorch is imported: threads wait asleep.

    Spinning threads make everything ten times slower when another program uses a core.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@contextlib.contextmanager
def exact_convolutions() -> Iterator[None]:
    """Within this context a GPU computes float32 convolutions in float32, not in TF32.

    In TF32 a hundredth of an image's samples would differ by a grey level from those of a CPU.
    """
    import torch

    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    try:
        yield
    finally:
        torch.backends.cudnn.conv.fp32_precision = before


def lerp_all(targets: list[torch.Tensor], sources: list[torch.Tensor], weight: float) -> None:
    """target += weight * (source - target) for each pair, in place and in few kernels."""
    import torch

    torch._foreach_lerp_(targets, sources, weight)


def compiler_errors() -> type[Exception]:
    """The class of exceptions that torch.compile raises."""
    import torch

    return torch._dynamo.exc.TorchDynamoException
