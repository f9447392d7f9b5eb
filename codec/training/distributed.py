"""Training in several processes, as `torchrun` starts them: one per GPU, or per share of a CPU.

    torchrun --nproc_per_node 8 train.py codec/configs/high.toml --data DIR --val DIR --out runs/high

torch.distributed and DistributedDataParallel do the work; here is only who does which part of it. A process that was
started by hand is a world of its own.
"""

import gc
import importlib
import os
import warnings
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class World:
    """This process among those of a training."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """The part of a global batch of `count` samples, a multiple of `size`, that this process computes."""
        part = count // self.size
        return slice(self.rank * part, (self.rank + 1) * part)

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def agreed(self, flag: bool, device: torch.device) -> bool:
        """Whether the flag is set in any process: the same answer in all."""
        return flag if self.size == 1 else bool(self.total(torch.tensor(float(flag), device=device)))

    def spread(self, model: nn.Module) -> None:
        """Give all processes the parameters and buffers of the first."""
        if self.size > 1:
            for tensor in [*model.parameters(), *model.buffers()]:
                dist.broadcast(tensor.data, src=0)

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model, its gradients averaged over all processes."""
        if self.size == 1:
            return model
        warnings.filterwarnings("ignore", "Grad strides do not match")  # those of 1x1 weights, where any stride will do
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated")  # its successor is of PyTorch 2.15
        return DistributedDataParallel(model, broadcast_buffers=False)

    def leave(self) -> None:
        """Take leave of the others, when nothing refers to a wrapped model any more."""
        if self.size > 1:
            gc.collect()  # what still held the group would keep its threads running into the interpreter's end: SIGABRT
            dist.destroy_process_group()


def join(device: str) -> tuple[World, torch.device]:
    """Take the place that torchrun gives in the environment, on `device`, what `codec.pick_device` gave."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return World(), torch.device(device)
    importlib.import_module("torch.distributed.nn")  # later, its default values would hold on to the group for ever
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    return World(dist.get_rank(), dist.get_world_size()), torch.device(device)
