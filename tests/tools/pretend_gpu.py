"""A GPU that is not there: tensors with CPU memory that say they are elsewhere, on `meta`, and take part only in what a
GPU allows.

Operations that mix them with tensors of the CPU fail (single values may take part, as on a GPU), so does `numpy()`;
values read back are counted, since a GPU would wait for everything before them. What it does not know: streams,
autocast, graphs, its own random generators, and how kernels of a GPU round.
"""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

GPU = torch.device("meta")
ACROSS = {"aten::_to_copy", "aten::copy_"}  # may see both devices
READS = {"aten::_local_scalar_dense", "aten::is_nonzero", "aten::nonzero", "aten::equal", "aten::masked_select"}


class OnGPU(Tensor):
    """`inner`, a tensor of the CPU, seen from outside."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> "OnGPU":
        return Tensor._make_wrapper_subclass(
            cls, inner.size(), inner.stride(), inner.storage_offset(), dtype=inner.dtype, device=GPU
        )

    def __init__(self, inner: Tensor):
        self.inner = inner

    is_meta = False
    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        with PretendGPU.active:
            return function(*args, **(kwargs or {}))

    def numpy(self, **_):
        raise TypeError("a tensor of the GPU has no memory for numpy")

    __array__ = numpy

    def tolist(self) -> list:
        return self.cpu().tolist()

    def __repr__(self, **_) -> str:
        return f"OnGPU({self.inner})"


class PretendGPU(TorchDispatchMode):
    """Within it there is one GPU. `read` names the operations that read a value back, `sent` holds the shapes that came
    from the CPU.
    """

    active: "PretendGPU"

    def __init__(self):
        super().__init__()
        self.read: list[str] = []
        self.sent: list[torch.Size] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, function.name()
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        here = [tensor for tensor in tensors if isinstance(tensor, OnGPU)]
        if here and any(not isinstance(t, OnGPU) and t.dim() > 0 for t in tensors):
            if name not in ACROSS:
                raise RuntimeError(f"{name}: expected all tensors to be on the same device, the GPU or the CPU")
        if here and name in READS:
            self.read.append(name)
        device = kwargs.get("device")
        on_gpu = bool(here) if device is None else torch.device(device) == GPU
        if name.startswith("aten::copy_"):
            on_gpu = isinstance(args[0], OnGPU)
        inner = tree_map(lambda leaf: leaf.inner if isinstance(leaf, OnGPU) else leaf, (args, kwargs))
        if device is not None:
            inner[1]["device"] = torch.device("cpu")
        inner[1].pop("pin_memory", None)
        out = function(*inner[0], **inner[1])
        if on_gpu:
            if not here or name.startswith("aten::copy_") and not isinstance(args[1], OnGPU):
                self.sent += [tensor.shape for tensor in tensors if not isinstance(tensor, OnGPU)]
            out = tree_map(lambda leaf: OnGPU(leaf) if isinstance(leaf, Tensor) else leaf, out)
        return return_and_correct_aliasing(function, args, kwargs, out) if here and on_gpu else out
