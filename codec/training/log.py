"""The log of a training: log.jsonl, TensorBoard, and the terminal.

TensorBoard has two runs, train and val, with loss, bpp, mse and PSNR on common axes, for an all-rates model averaged
over the rates by `journal.summary`. Single qualities are below `bpp_by_quality` and the like.
"""

import contextlib
import io
import json
import math
import os
import platform
import re
import threading
import time
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

import codec
from codec import journal, machine
from codec.coding.codec import Codec
from codec.coding.tables import CodecTables
from codec.coding.tiles import planes
from codec.coding.torch_backend import TorchBackend
from codec.config import Config, TrainConfig
from codec.errors import LicError
from codec.files import write_atomically
from codec.network.model import Network
from codec.training.distributed import World
from codec.training.optimise import learning_rate

PACKAGES = ("torch", "torchvision", "numpy", "pillow")
DIVERGED = 100.0  # a mean loss so many times that of the first line of the log
SHOWN = {
    "loss": ".4f",
    "bpp": ".4f",
    "psnr": ".2f",
    "ssimulacra2": ".2f",
    "ms-ssim": ".4f",
    "vgg": ".3f",
    "lr": ".2e",
    "grad_norm": ".2f",
    "img_s": ".1f",
}


def meta(config: Config, data: dict[str, Any]) -> dict[str, Any]:
    """A record of a training that begins now, ready for JSON: versions, machine, seed, and `data` (images, hash)."""
    gpu = torch.cuda.is_available()
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": machine.git(Path(__file__).parent),
        "versions": {"lic": codec.__version__, "python": platform.python_version()}
        | {name: machine.version(name) for name in PACKAGES}
        | {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version() if gpu else None},
        "system": platform.platform(),
        "processor": machine.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if gpu else [],
        "seed": config.train.seed,
        "data": data,
    }


def _tell_thread(args: threading.ExceptHookArgs, otherwise: Callable = threading.excepthook) -> None:
    """What has ended a thread; of one that writes for TensorBoard the next call tells it, in a line."""
    if not type(args.thread).__module__.startswith("tensorboard."):
        otherwise(args)


class Board:
    """TensorBoard files of one kind of figures. If they cannot be written, `broken` has the reason."""

    def __init__(self, folder: Path, first: int):
        self.broken, self.writer = "", None
        threading.excepthook = _tell_thread
        try:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(folder, purge_step=first, flush_secs=10)
        except Exception as error:  # of a package that is not ours, in any state
            self.broken = " ".join(f"{type(error).__name__}: {error}".split())

    def __getattr__(self, name: str) -> Callable[..., None]:
        """A method of the writer; an OSError, of a full disk say, ends the files and not the training."""

        def call(*arguments, **options) -> None:
            if self.writer is None:
                return
            try:
                getattr(self.writer, name)(*arguments, **options)
            except OSError as error:
                self.writer, self.broken = None, str(error)
                tqdm.write(f"no more TensorBoard files: {error}")

        return call


class SilentLog:
    """A log that does nothing, for all processes of a training but the first, with the methods of Log."""

    def __init__(self):
        self.bar = tqdm(disable=True)

    def __getattr__(self, name: str) -> Callable[..., None]:
        getattr(Log, name)  # AttributeError for what a log does not have
        return lambda *_: None


class Log:
    """The log of a run that continues after `step` of `steps`; later entries in its file are dropped first."""

    def __init__(self, folder: Path, step: int, steps: int):
        self.steps = steps
        self.bar = tqdm(initial=step, total=steps, unit="step", dynamic_ncols=True, disable=None)  # None: on a terminal
        first = step + 1 if step else 0  # of the steps whose figures are written; validation at step 0 is one of them
        path = folder / "log.jsonl"
        kept = [entry for entry in journal.read(path) if entry["step"] < first] if path.exists() else []
        write_atomically(path, "".join(json.dumps(entry) + "\n" for entry in kept).encode())
        self.file = open(path, "a", buffering=1)
        self.boards = {kind: Board(folder / "tb" / kind, first) for kind in ("train", "val")}
        if broken := self.boards["train"].broken:
            self.say(f"no TensorBoard files: {broken}")

    def numbers(self, kind: str, step: int, values: dict[str, float]) -> None:
        """Log figures of a kind (train, val): all to the file and to TensorBoard, the main ones in a line."""
        try:
            self.file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        except OSError as error:  # a full disk, which does not end a training
            self.say(f"log.jsonl lacks step {step}: {error}")
        whole = journal.summary(values)
        for name, value in whole.items():
            self.boards[kind].add_scalar(f"rate_distortion/{name}", value, step)
        for name, value in values.items():
            if match := re.fullmatch(r"([\w-]+)_(q\d+)", name):
                self.boards[kind].add_scalar(f"{match[1]}_by_quality/{match[2]}", value, step)
            elif name not in whole and name != "rd_loss":
                self.boards[kind].add_scalar(f"training/{name}", value, step)
        shown = {**values, **whole}
        figures = "  ".join(f"{name} {shown[name]:{form}}" for name, form in SHOWN.items() if name in shown)
        self.say(f"{kind:5} {step:{len(str(self.steps))}}/{self.steps}  {figures}")

    def picture(self, network: Network, step: int, image: Image.Image) -> None:
        """To TensorBoard: an image and its reconstruction at quality 50, and histograms of weights and latents."""
        pixels, quality = planes(image)[..., :512, :512], 50 if network.config.variable_rate else None
        model = Codec(TorchBackend(network), CodecTables.from_network(network, [quality]))
        latent = model.latent(pixels, quality)
        decoded = model.reconstruct(latent, pixels.shape[-2:], quality)
        self.boards["val"].add_images("input_and_reconstruction", np.concatenate((pixels, decoded)), step)
        self._histograms("val", "latent", {"y": latent.y, "z": latent.z}, step)
        self._histograms("val", "weights", dict(network.named_parameters()), step)

    def gradients(self, model: torch.nn.Module, step: int) -> None:
        """To TensorBoard: histograms of the current gradients."""
        self._histograms("train", "gradients", {name: p.grad for name, p in model.named_parameters()}, step)

    def _histograms(self, kind: str, group: str, tensors: dict, step: int) -> None:
        """Histograms of the finite values of tensors or arrays; None is left out."""
        for name, values in tensors.items():
            if values is None:
                continue
            values = torch.as_tensor(values).detach().float()
            values = values[values.isfinite()]
            if len(values):
                self.boards[kind].add_histogram(f"{group}/{name}", values, step)

    def graph(self, model: Network) -> None:
        """To TensorBoard: the graph of a model in evaluation mode, traced on a 64x64 image; a line if that fails."""
        x = torch.full((1, 3, 64, 64), 0.5, device=model.device)
        inputs: tuple[Tensor, ...] = (x, torch.full((1,), 50.0, device=model.device))[: 1 + model.config.variable_rate]
        modes = {module: module.training for module in model.modules()}
        model.eval()
        try:
            with torch.no_grad(), warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(io.StringIO()):
                self.boards["val"].add_graph(model, inputs, use_strict_trace=False)
        except Exception as error:  # tracing has no class of its own for what it cannot do
            reason = str(error).strip().partition("\n")[0]
            self.say(f"no graph of the model on the board: {type(error).__name__}: {reason}")
        finally:
            for module, training in modes.items():
                module.training = training

    def say(self, text: str) -> None:
        """Print a line."""
        tqdm.write(text)

    def close(self) -> None:
        self.bar.close()
        try:
            self.file.close()
        except OSError as error:  # lines that it still held for a disk with room
            self.say(f"log.jsonl is not complete: {error}")
        for board in self.boards.values():
            board.close()


class Diverged(LicError):
    """A training has diverged."""


class Meter:
    """Means of figures since the last line of the log, over steps and processes, without skipped steps."""

    def __init__(self, step: int, c: TrainConfig, world: World):
        self.c, self.world = c, world
        self.first = math.inf
        self.restart(step)

    def restart(self, step: int) -> None:
        """Begin new means after `step`."""
        self.sums: dict[str, Tensor] = {}
        self.good: Tensor | float = 0.0
        self.since, self.step = time.monotonic(), step

    def add(self, means: dict[str, Tensor]) -> None:
        """Add the figures of a step; they do not count if its gradient is not finite."""
        good = torch.isfinite(means["grad_norm"])
        self.good = self.good + good
        self.sums = {name: self.sums.get(name, 0.0) + torch.where(good, m, 0.0) for name, m in means.items()}

    def read(self, step: int, patch: int) -> dict[str, float]:
        """The means up to `step`, then restart; Diverged if no gradient was finite, or the loss is DIVERGED times the
        first.
        """
        c = self.c
        count = step - self.step  # fewer than log_every after a resume
        totals = self.world.total(torch.stack([*self.sums.values(), self.good.to(self.sums["loss"].dtype)])).tolist()
        figures = {name: total / max(1, totals[-1]) for name, total in zip(self.sums, totals, strict=False)}
        if totals[-1] == 0 or figures["loss"] > DIVERGED * self.first:
            what = "no step had a finite gradient" if totals[-1] == 0 else f"the mean loss was {figures['loss']:.4g}"
            raise Diverged(
                f"diverged: over the {count} steps to step {step} {what}, {self.first:.4g} at first. "
                f"best.pt is intact. Try a lower --lr than {c.lr:g}, a longer --warmup than {c.warmup}, a smaller "
                f"--clip than {c.clip:g}, or --precision fp32"
            )
        self.first = figures["loss"] if math.isinf(self.first) else self.first
        figures["lr"] = learning_rate(step, c)
        speed = count / (time.monotonic() - self.since)
        figures |= {"steps_s": speed, "img_s": speed * c.batch, "mpx_s": speed * c.batch * patch**2 / 1e6}
        self.restart(step)
        return figures
