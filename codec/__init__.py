"""A learned image codec: train it, trust it, use it.

    >>> import codec                                           # doctest: +SKIP
    >>> model = codec.load()                                   # doctest: +SKIP
    >>> data = model.compress(image, quality=50)               # a PIL image in, the bytes of a .lic file out
    >>> image = codec.decompress(data)                         # finds the model by the id in the file

Importing this package imports neither torch nor the network; `load` and `decompress` do.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from codec.container.bitstream import MAX_PIXELS, FormatError, Header, Section
from codec.errors import LicError

if TYPE_CHECKING:
    from PIL import Image

    from codec.coding.codec import Codec

__version__ = "0.1.0.dev0"
DEFAULT_QUALITY = 50
__all__ = ["FormatError", "decompress", "load"]


def load(model: str | None = None, device: str = "auto", precision: str = "auto") -> Codec:
    """An exported model by name or by path of its .safetensors file; none: the default model, `photo`, which is trained
    for how pictures look (SSIMULACRA 2). `fast`, the same network, is trained for squared error (PSNR).

    `device` is auto (the GPU if there is one), cpu or cuda; `precision` auto runs the transforms' trunks in bfloat16
    where the device has it natively, fp32 never. Raises checkpoint.ModelError if there is no such model or its file is
    damaged.
    """
    from codec.coding import models as checkpoint

    return checkpoint.load_model(checkpoint.find_model(model or checkpoint.DEFAULT), pick_device(device), precision)


def decompress(
    data: bytes,
    model: Codec | None = None,
    device: str = "auto",
    max_pixels: int = MAX_PIXELS,
    region: tuple[int, int, int, int] | None = None,
) -> Image.Image:
    """The image of a .lic file: RGB, L, RGBA or LA, with its metadata in `info`; with `region` (left, top, width,
    height) that part of it. FormatError if the bytes are damaged, ModelError if a model is needed and not at
    hand, LicError if the region is not inside. Without `model` each one is loaded once per process.
    """
    from codec.container import modes

    def paint(header: Header, sections: list[Section], box: modes.Corners) -> Image.Image:
        from codec.coding import models as checkpoint

        return checkpoint.shared_model(id=header.model, device=pick_device(device)).paint(header, sections, box)

    return modes.decode(data, max_pixels, region, paint if model is None else model.paint)


def pick_device(name: str) -> str:
    """auto, cpu or cuda -> cpu or cuda; LicError for another name, or if the GPU asked for is not there. Under
    torchrun, cuda is from here on the GPU of this process, its LOCAL_RANK; where processes outnumber GPUs, they share
    them.
    """
    import torch

    if name not in ("auto", "cpu", "cuda"):
        raise LicError(f"the device must be auto, cpu or cuda, not {name!r}")
    if name == "cpu" or not torch.cuda.is_available():
        if name == "cuda":
            raise LicError("--device cuda: torch finds no GPU here")
        return "cpu"
    if "LOCAL_RANK" in os.environ:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    return "cuda"
