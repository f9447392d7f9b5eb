"""CompressAI's models from their checkpoints, as codecs of files: with its own coder, or with ours (entropy/bridge.py).

    net = load("mbt2018-mean", Path("checkpoint_best_loss.pth.tar"))
    encode, decode = coder(net)          # or bridged(net): the same symbols through our coder
    data = encode(image)                 # PIL image, any size -> bytes
    image = decode(data)

A checkpoint is what CompressAI's training example saves or its update_model exports. Tables in it are used as they are;
a checkpoint without tables is updated first. Images are mirrored up to multiples of 64. A file is height and width
(uint16 each), then either every string after its length (uint32), or a frame of the bridge; all little-endian.

Needs compressai, which nothing else of this package imports.
"""

import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from codec.errors import LicError
from codec.network.pixels import crop, pad, to_image, to_tensor

STRIDE = 64  # of all its architectures: 16 of the latent times 4 of the hyper-latent


def load(architecture: str, path: Path, device: str = "cpu") -> nn.Module:
    """The model of a checkpoint, ready to code.

    Raises LicError for an unknown architecture or a file that is no checkpoint of it, OSError if the file does not
    exist or compressai is not installed.
    """
    try:
        from compressai.zoo.image import model_architectures
    except ImportError as error:
        raise OSError(f"compressai:{architecture} needs compressai (Python 3.11 or 3.12): {error}") from None
    if architecture not in model_architectures:
        raise LicError(f"compressai has no architecture {architecture!r}, but {', '.join(model_architectures)}")
    try:
        document = torch.load(path, map_location="cpu", weights_only=True)
        state = next((document[key] for key in ("network", "state_dict") if key in document), document)
        state = {key.removeprefix("module."): value for key, value in state.items()}  # of DataParallel
        net = model_architectures[architecture].from_state_dict(state).eval()
    except (pickle.UnpicklingError, KeyError, TypeError, AttributeError, RuntimeError, EOFError) as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise LicError(f"{path} is no checkpoint of {architecture} ({why})") from None
    net.update()
    return net.requires_grad_(False).to(device)


def coder(net: nn.Module, bf16: bool = False) -> tuple[Callable[[Image.Image], bytes], Callable[[bytes], Image.Image]]:
    """Encoder and decoder of `net` as CompressAI runs it, or with `bf16` faster: autocast and channels_last."""
    layout = torch.channels_last if bf16 else torch.contiguous_format
    net = net.to(memory_format=layout)
    device = next(net.parameters()).device

    @torch.inference_mode()
    def encode(image: Image.Image) -> bytes:
        x = pad(to_tensor(image), STRIDE).to(device).contiguous(memory_format=layout)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            strings = [string for (string,) in net.compress(x)["strings"]]
        return _size(image) + b"".join(struct.pack("<I", len(string)) + string for string in strings)

    @torch.inference_mode()
    def decode(data: bytes) -> Image.Image:
        (height, width), begin, strings = struct.unpack_from("<HH", data), 4, []
        while begin < len(data):
            (size,) = struct.unpack_from("<I", data, begin)
            strings.append([data[begin + 4 : begin + 4 + size]])
            begin += 4 + size
        factor = net.downsampling_factor
        shape = (-(-height // STRIDE) * STRIDE // factor, -(-width // STRIDE) * STRIDE // factor)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            x_hat = net.decompress(strings, shape)["x_hat"]
        return to_image(crop(x_hat.float(), height, width), "RGB")

    return encode, decode


def bridged(net: nn.Module) -> tuple[Callable[[Image.Image], bytes], Callable[[bytes], Image.Image]]:
    """Encoder and decoder of `net` with our coder; LicError if it is autoregressive."""
    from entropy.bridge import Bridge

    try:
        bridge, device = Bridge(net), next(net.parameters()).device
    except ValueError as error:  # what a programmer sees of entropy.bridge
        raise LicError(str(error)) from error

    def encode(image: Image.Image) -> bytes:
        return _size(image) + bridge.compress(pad(to_tensor(image), STRIDE).to(device))

    def decode(data: bytes) -> Image.Image:
        return to_image(crop(bridge.decompress(data[4:]), *struct.unpack_from("<HH", data)), "RGB")

    return encode, decode


@torch.inference_mode()
def estimated_bits(net: nn.Module, image: Image.Image) -> float:
    """Estimated bits of an image: -log2 of the likelihoods of forward, over all symbols."""
    x = pad(to_tensor(image), STRIDE).to(next(net.parameters()).device)
    return -sum(likelihood.log2().sum().item() for likelihood in net(x)["likelihoods"].values())


def _size(image: Image.Image) -> bytes:
    return struct.pack("<HH", image.height, image.width)
