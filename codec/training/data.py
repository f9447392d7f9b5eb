"""Images for training and validation: folders, tar shards, CIFAR-10, or the photographs inside scikit-image's wheel.

A training patch depends on (seed, sample number) alone: it is the same for any number of workers and processes, and
after a resume. Images that cannot be read are skipped and listed.
"""

import hashlib
import io
import os
import tarfile
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from codec import journal, signals
from codec.config import DataConfig
from codec.errors import LicError
from codec.files import IMAGES, find_images, sample_images
from codec.network.layers import mirror_pad
from codec.network.pixels import to_pixels

TRAINING_SAMPLES = ("astronaut", "chelsea", "motorcycle", "rocket")
BLOCK = 1000  # samples in which each weighted source has its exact share; by hand


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as 8-bit RGB, for training.

    CMYK, YCbCr, grey and palette are converted by Pillow. Transparent images are put over middle grey, since colours
    under transparency are arbitrary. 16-bit grey becomes x / 257, rounded (Pillow would clip it at 255). LicError for
    samples without a defined range: modes I (except from a PPM file, where it is 16 bits) and F.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        image = Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise LicError(f"samples of mode {image.mode} have no defined range; save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (128, 128, 128, 255)), image)
    return image.convert("RGB")


class Entry(NamedTuple):
    """An encoded image: a file, or a member of a tar shard; `name` is relative to `folder`."""

    folder: Path
    name: str
    shard: str = ""
    offset: int = 0
    size: int = -1  # bytes; -1: to the end of the file

    @property
    def path(self) -> Path:
        """The path for messages: the file, or SHARD/MEMBER."""
        return self.folder / self.name

    def read(self) -> bytes:
        """The bytes of the encoded image."""
        with open(self.folder / (self.shard or self.name), "rb") as file:  # opened each time: safe in any process
            file.seek(self.offset)
            return file.read(self.size)

    def length(self) -> int:
        """The number of bytes; 0 for a broken link, which reading will report."""
        return self.size if self.shard else os.path.getsize(self.path) if os.path.exists(self.path) else 0


def find_members(folder: Path | str) -> list[Entry]:
    """The images in the tar shards (WebDataset) below a folder, sorted by shard and member; only headers are read.

    FileNotFoundError if there are none, LicError names a damaged shard.
    """
    folder = Path(folder)
    entries = []
    for path in sorted(folder.rglob("*.tar")):
        shard = str(path.relative_to(folder))
        try:
            with tarfile.open(path, "r:") as tar:
                members = tar.getmembers()  # stops at a damaged header, or at the end mark: a block of zeros
                tar.fileobj.seek(tar.offset)
                if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                    raise tarfile.ReadError(f"no header and no end mark at byte {tar.offset}")
        except tarfile.TarError as error:
            raise LicError(f"{path} is damaged ({error}): replace it, or take it out of {folder}") from error
        entries += sorted(
            Entry(folder, f"{shard}/{member.name}", shard, member.offset_data, member.size)
            for member in members
            if member.isfile() and Path(member.name).suffix.lower() in IMAGES
        )
    if not entries:
        raise FileNotFoundError(f"no images in tar shards in {folder} (*.tar with {', '.join(sorted(IMAGES))})")
    return entries


def find_entries(name: str) -> list[Entry]:
    """The images of one entry of `data`: a folder or tar:DIR."""
    if name.startswith("tar:"):
        return find_members(name.removeprefix("tar:"))
    return [Entry(Path(name), str(path.relative_to(name))) for path in find_images(name)]


class CIFAR10Images(Sequence):
    """The 50,000 training images of a local CIFAR-10 copy, in the layout torchvision expects; never downloads."""

    def __init__(self, folder: str):
        from torchvision.datasets import CIFAR10

        try:
            self.images = CIFAR10(folder, train=True, download=False).data  # (50000, 32, 32, 3) uint8
        except RuntimeError as error:
            raise FileNotFoundError(
                f"no CIFAR-10 below {folder}: expected {folder}/cifar-10-batches-py/ with data_batch_1..5, test_batch, "
                "batches.meta: the unpacked cifar-10-python.tar.gz of https://www.cs.toronto.edu/~kriz/cifar.html"
            ) from error

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return torch.from_numpy(self.images[index]).permute(2, 0, 1)


class StoredImages(Sequence):
    """Encoded images as uint8 (3, H, W) tensors on `device`, decoded when indexed.

    The first `cache` gigabytes of decoded images are kept. An image that cannot be read is replaced by the next one
    that can; each process that meets one appends it to the file `skipped`, once. `sources` are the entries of each
    folder, `weights` their shares of the samples (empty: every image equally often). LicError if none can be read.
    """

    def __init__(
        self,
        sources: list[list[Entry]],
        weights: Sequence[float] = (),
        cache: float = 0.0,
        device: torch.device | str = "cpu",
        skipped: Path | None = None,
    ):
        self.entries = [entry for source in sources for entry in source]
        self.sizes, self.weights = ([len(source) for source in sources], weights) if weights else ([len(self)], [1.0])
        self.device = device
        self.kept: dict[int, Tensor] = {}
        self.room = self.cache = int(cache * 1e9)  # bytes
        self.unreadable: dict[int, str] = {}
        self.skipped = skipped

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Tensor:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        for i in chain(range(index, len(self)), range(index)):
            if i in self.kept:
                return self.kept[i]
            if i not in self.unreadable and (pixels := self.decode(i)) is not None:
                return pixels
        raise LicError(
            f"none of the {len(self)} training images can be read; {self.entries[index].path}: {self.unreadable[index]}"
        )

    def __getstate__(self) -> dict:
        return self.__dict__ | {"kept": {}, "room": self.cache}  # a loader process has a cache of its own

    def decode(self, index: int) -> Tensor | None:
        """The pixels of an image, uint8 (3, H, W); None if it cannot be read, after listing it."""
        entry = self.entries[index]
        try:
            with Image.open(io.BytesIO(entry.read())) as image:
                pixels = to_pixels(to_rgb(image))
        except Exception as error:  # Pillow raises almost anything for damaged files
            reason = "not an image" if isinstance(error, UnidentifiedImageError) else f"{type(error).__name__}: {error}"
            self.unreadable[index] = " ".join(reason.split())
            if self.skipped:
                journal.note(self.skipped, os.fsencode(f"{entry.path}\t{self.unreadable[index]}\n"))
            return None
        pixels = pixels.to(self.device)
        if pixels.numel() <= self.room:
            self.room -= pixels.numel()
            self.kept[index] = pixels
        return pixels


def read_skipped(path: Path) -> list[tuple[str, str]]:
    """The unreadable images listed in the file of a training, each once: sorted (path, reason)."""
    if not path.exists():
        return []
    lines = os.fsdecode(path.read_bytes()).split("\n")
    return sorted({name: reason for name, tab, reason in (line.partition("\t") for line in lines) if tab}.items())


def training_images(
    config: DataConfig, device: torch.device | str = "cpu", skipped: Path | None = None
) -> Sequence[Tensor]:
    """The images of the option `data`: uint8 tensors (3, H, W); those of files are on `device`.

    Files that cannot be read are listed in `skipped` (see `read_skipped`) when their turn comes. FileNotFoundError if a
    folder has no images.
    """
    if not config.data:
        return [to_pixels(photo) for _, photo in sample_images(TRAINING_SAMPLES)]
    if any(name.startswith("cifar10:") for name in config.data):
        if len(config.data) > 1:
            raise LicError("cifar10:DIR stands alone in data")
        return CIFAR10Images(config.data[0].removeprefix("cifar10:"))
    return StoredImages([find_entries(name) for name in config.data], config.weights, config.cache, device, skipped)


def validation_images(config: DataConfig) -> list[Image.Image]:
    """The images of the option `val`, in RGB; by default the sample photograph `coffee`. LicError for a file that
    cannot be read: a validation set never shrinks.
    """
    if not config.val:
        return [photo for _, photo in sample_images(["coffee"])]
    images = []
    for path in (path for folder in config.val for path in find_images(folder)):
        try:
            with Image.open(path) as image:
                images.append(to_rgb(image))
        except Exception as error:  # Pillow raises almost anything for damaged files
            raise LicError(f"validation image {path} cannot be read ({error}): repair it or take it out") from error
    return images


def describe(images: Sequence[Tensor]) -> dict[str, int | str]:
    """The number of images, and a SHA-256 that identifies them: of sorted names (relative to their folders) and sizes
    of files, or of shapes and pixels of images in memory.
    """
    digest = hashlib.sha256()
    if isinstance(images, StoredImages):
        lines = sorted(f"{entry.name}\t{entry.length()}\n" for entry in images.entries)
        digest.update(os.fsencode("".join(lines)))
    else:
        for image in images:
            digest.update(repr(tuple(image.shape)).encode() + image.contiguous().numpy().tobytes())
    return {"images": len(images), "sha256": digest.hexdigest()}


def cut_patch(pixels: Tensor, rng: np.random.Generator, patch: int, resize: Sequence[int], flip: bool) -> Tensor:
    """A random patch uint8 (3, patch, patch) of an image uint8 (3, H, W) of any size, in memory of its own.

    With `resize` the image is first scaled so that its shorter side has a random size in MIN..MAX (only the window of
    the patch is computed). An image smaller than the patch is mirrored at the right and at the bottom.
    """
    sides = pixels.shape[-2:]
    scale = rng.integers(resize[0], resize[1] + 1) / min(sides) if resize else 1.0
    height, width = (min(side, max(1, round(patch / scale))) for side in sides)
    top, left = rng.integers(sides[0] - height + 1), rng.integers(sides[1] - width + 1)
    x = pixels[:, top : top + height, left : left + width]
    if resize:
        from torchvision.transforms.v2.functional import resize as resample  # takes as long to import as torch

        x = resample(x, [min(patch, max(1, round(side * scale))) for side in (height, width)], antialias=True)
    if min(x.shape[-2:]) < patch:
        x = mirror_pad(x[None], 0, patch - x.shape[-1], 0, patch - x.shape[-2])[0]
    return x.flip(-1) if flip and rng.random() < 0.5 else x.clone()


def patch_transform(config: DataConfig) -> Callable[[Tensor, np.random.Generator], Tensor]:
    """The function that cuts patches: (uint8 (3, H, W), random generator) -> uint8 (3, patch, patch)."""
    return partial(cut_patch, patch=config.patch, resize=config.resize, flip=config.flip)


class Order:
    """The order of samples: sample number -> image number. Images come from sources of `sizes` images, with `weights`.

    Every epoch of a source visits each of its images once, in a new order. Of each BLOCK samples every source has its
    exact share, in random places. LicError for a weight below 1/BLOCK of their sum.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], seed: int):
        bounds = np.floor(BLOCK * np.cumsum(weights) / np.sum(weights) + 0.5).astype(int)
        self.quotas = np.diff(bounds, prepend=0)
        if self.quotas.min() < 1:
            raise LicError(f"weights must each be at least 1/{BLOCK} of their sum, not {weights}")
        self.sizes, self.starts, self.seed = sizes, np.cumsum(sizes) - sizes, seed
        self.block, self.sources = -1, np.empty(0, dtype=np.int64)  # the source of each sample of the latest block
        self.orders: dict[int, tuple[int, np.ndarray]] = {}  # source -> its latest epoch, and the order in it

    def __call__(self, n: int) -> int:
        block, place = divmod(n, BLOCK)
        if block != self.block:
            self.block = block
            self.sources = self.rng(1, block).permutation(np.repeat(np.arange(len(self.quotas)), self.quotas))
        source = int(self.sources[place])
        visit = block * int(self.quotas[source]) + np.count_nonzero(self.sources[:place] == source)
        epoch, position = divmod(visit, self.sizes[source])
        if self.orders.get(source, (-1,))[0] != epoch:
            self.orders[source] = epoch, self.rng(2, source, epoch).permutation(self.sizes[source])
        return int(self.starts[source] + self.orders[source][1][position])

    def rng(self, *key: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, 2, *key))  # 2: apart from other uses of this seed


class Patches(Dataset):
    """The training set: sample number -> uint8 patch (3, patch, patch), independent of earlier reads."""

    def __init__(self, images: Sequence[Tensor], transform: Callable, seed: int, samples: int):
        self.images, self.transform, self.seed, self.samples = images, transform, seed, samples
        stored = isinstance(images, StoredImages)
        self.order = Order(images.sizes if stored else [len(images)], images.weights if stored else [1.0], seed)

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, n: int) -> Tensor:
        return self.transform(self.images[self.order(n)], self.order.rng(3, n))


def stack(patches: list[Tensor]) -> Tensor:
    """Patches (3, patch, patch) as a batch (B, 3, patch, patch), channels last in memory."""
    return torch.stack([patch.permute(1, 2, 0) for patch in patches]).permute(0, 3, 1, 2)


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device, without waiting for the copy, for which a GPU needs page-locked memory."""
    from_cpu = device.type == "cuda" and tensor.device.type == "cpu"
    return (tensor.pin_memory() if from_cpu else tensor).to(device, non_blocking=True)


def ignore_signals(_: int) -> None:
    """For loader processes: they end with the training, which a signal to all processes may have save first."""
    signals.ignore("SIGTERM", "SIGINT", "SIGHUP")


def loader(
    patches: Patches, batches: Iterable[Sequence[int]], config: DataConfig, device: torch.device
) -> DataLoader[Tensor]:
    """Batches uint8 (B, 3, patch, patch) of the sample numbers in `batches`, in order."""
    several = config.workers > 0
    return DataLoader(
        patches,
        batch_sampler=batches,
        collate_fn=stack,
        num_workers=config.workers,
        worker_init_fn=ignore_signals,
        multiprocessing_context="spawn" if several else None,
        prefetch_factor=config.prefetch if several else None,
        pin_memory=config.pin_memory and several and device.type == "cuda",
    )
