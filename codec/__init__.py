"""A learned image codec: train it, trust it, use it.

    >>> import codec                                           # doctest: +SKIP
    >>> model = codec.load()                                   # doctest: +SKIP
    >>> data = model.compress(image, quality=50)               # a PIL image in, the bytes of a .lic file out
    >>> image = codec.decompress(data)                         # finds the model by the id in the file

Importing this package is fast; `load` and `decompress` import what runs networks: ONNX Runtime, or PyTorch.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import TYPE_CHECKING

from codec import machine
from codec.container.bitstream import MAX_PIXELS, FormatError, Header, Section
from codec.errors import LicError

if TYPE_CHECKING:
    from PIL import Image

    from codec.coding.codec import Codec

__version__ = "0.2.0"
DEFAULT_QUALITY = 50
__all__ = ["FormatError", "LicError", "decompress", "load"]


def load(model: str | None = None, device: str = "auto", precision: str = "auto", backend: str = "auto") -> Codec:
    """An exported model, by name or by path of its .safetensors file.

    Without a name it is the default model, `photo`, which is trained for how pictures look (SSIMULACRA 2); `fast`, the
    same network, is trained for squared error (PSNR). `device` is auto (the GPU if PyTorch has one), cpu or cuda.
    `backend` is onnx (ONNX Runtime, CPU only), torch, or auto, which is onnx on a CPU. `precision` auto has PyTorch run
    the transforms' trunks in bfloat16 where the device has it natively, fp32 never; ONNX Runtime always uses fp32.
    Raises LicError if there is no such model or its file is damaged, or for a device or backend that is not available.
    """
    from codec.coding import models as checkpoint

    path = checkpoint.find_model(model or checkpoint.DEFAULT)
    return checkpoint.load_model(path, pick_device(device, backend), precision, backend)


def decompress(
    data: bytes,
    model: Codec | None = None,
    device: str = "auto",
    max_pixels: int = MAX_PIXELS,
    region: tuple[int, int, int, int] | None = None,
    backend: str = "auto",
) -> Image.Image:
    """The image of a .lic file: RGB, L, RGBA or LA, with its metadata in `info`.

    With `region` (left, top, width, height), in pixels, only that rectangle. Without `model` the one that the file
    names is loaded, once per process. Raises FormatError if the bytes are damaged or the image has more than
    `max_pixels`, ModelError if the model is not available, LicError if the region is not inside the image.
    """
    from codec.container import modes

    def paint(header: Header, sections: list[Section], box: modes.Corners) -> Image.Image:
        from codec.coding import models as checkpoint

        shared = checkpoint.shared_model(id=header.model, device=pick_device(device, backend), backend=backend)
        return shared.paint(header, sections, box)

    return modes.decode(data, max_pixels, region, paint if model is None else model.paint)


def pick_device(name: str, backend: str = "auto") -> str:
    """The device, cpu or cuda, for auto, cpu or cuda.

    Under torchrun it also makes the GPU of number LOCAL_RANK this process's cuda; where processes outnumber GPUs, they
    share them. LicError for another name, for a GPU that is not there, or for a backend that does not run on it.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise LicError(f"the device must be auto, cpu or cuda, not {name!r}")
    if backend not in ("auto", "onnx", "torch"):
        raise LicError(f"the backend must be auto, onnx or torch, not {backend!r}")
    if name == "cuda":
        if backend == "onnx":
            raise LicError("the backend onnx runs on the CPU alone: leave --device cuda out, or take torch")
        machine.require("torch", "train", "--device cuda")
    elif name == "cpu" or backend == "onnx" or not machine.may_have_gpu() or not find_spec("torch"):
        return "cpu"
    import torch

    if not torch.cuda.is_available():
        if name == "cuda":
            raise LicError("--device cuda: torch finds no GPU here")
        return "cpu"
    if "LOCAL_RANK" in os.environ:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    return "cuda"
