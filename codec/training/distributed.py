"""Training in several processes started by `torchrun`: one per GPU, or several on a CPU.

    torchrun --nproc_per_node 8 train.py codec/configs/high.toml --data DIR --val DIR --out runs/high

torch.distributed and DistributedDataParallel do the work; this module divides it. A process without torchrun is a world
of one.
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
    """The processes of a training, and the rank of this one."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """The samples that this process computes of a global batch of `count`, a multiple of `size`."""
        own = count // self.size
        return slice(self.rank * own, (self.rank + 1) * own)

    def total(self, values: Tensor) -> Tensor:
        """The sum of a tensor over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def agreed(self, flag: bool, device: torch.device) -> bool:
        """Whether the flag is set in any process."""
        return flag if self.size == 1 else bool(self.total(torch.tensor(float(flag), device=device)))

    def spread(self, model: nn.Module) -> None:
        """Copy the parameters and buffers of the first process to all."""
        if self.size > 1:
            for tensor in [*model.parameters(), *model.buffers()]:
                dist.broadcast(tensor.data, src=0)

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model, wrapped so that gradients are averaged over all processes."""
        if self.size == 1:
            return model
        warnings.filterwarnings("ignore", "Grad strides do not match")  # of 1x1 weights; harmless
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated")  # its successor is of PyTorch 2.15
        return DistributedDataParallel(model, broadcast_buffers=False)

    def leave(self) -> None:
        """Leave the process group, after the last reference to a wrapped model is gone."""
        if self.size > 1:
            gc.collect()  # a remaining reference to the group would keep its threads alive at exit: SIGABRT
            dist.destroy_process_group()


def join(device: str) -> tuple[World, torch.device]:
    """Join the process group that torchrun describes in the environment; `device` is from `codec.pick_device`."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return World(), torch.device(device)
    importlib.import_module("torch.distributed.nn")  # imported later, its default arguments would keep the group alive
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    return World(dist.get_rank(), dist.get_world_size()), torch.device(device)
