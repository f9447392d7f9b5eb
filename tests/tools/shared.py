"""What several test files share: tiny models, small images, equality, a tiny training, and fresh processes.

Models for tests are made here alone:

    untrained(**config)                       a network as training begins with it
    tiny_network(photo, lmbda, prior)         a small one that is not trivial
    codec_of(network)                         the codec of a network, with its tables
    tiny_codec(photo, lmbda, prior)           both
"""

import hashlib
import importlib
import io
import json
import multiprocessing
import os
import subprocess
import sys
from multiprocessing import forkserver
from pathlib import Path
from typing import NoReturn
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image

import entropy
from codec.coding.codec import Codec
from codec.coding.models import WEIGHTS
from codec.coding.tables import CodecTables
from codec.coding.tiles import Latent
from codec.coding.torch_backend import TorchBackend
from codec.config import ModelConfig
from codec.network.calibrate import fit
from codec.network.model import Network, build
from codec.network.pixels import to_tensor
from codec.training.log import Log
from entropy import Context, Decoder, StreamError, substream

ROOT = Path(__file__).resolve().parents[2]
FACTORIZED, SCALE, HYPER = "factorized", "scale-hyperprior", "mean-scale-hyperprior"
ALL_RATES, ONE_LAMBDA = [0.0009, 0.18], [0.013]
TINY = dict(N=8, M=16, blocks=[1, 0], hyper_N=8, hyper_M=4)  # what tests train
GOLDEN = ROOT / "tests/golden"
GOLDEN_MODELS = (
    {"hyper": GOLDEN / "hyper.safetensors"}
    | {name: WEIGHTS / f"{name}.safetensors" for name in ("fast-factorized", "fast", "photo")}
    | {"fast-context": WEIGHTS / "fast.safetensors", "photo-0.1": WEIGHTS / "photo-0.1.safetensors"}
)
GOLDEN_HASHES = {  # of the symbols that the golden files hold
    "hyper": "a86b42ca4d22867072ccc32c73acaad205b6106b7c071816c4dadc7982c01eeb",
    "fast-factorized": "f42e75e7f96568b4bc7c68c09c1503db530f0e4126db0a4e4708e608d835da4f",
    "photo": "c532866678e5f716c223e7c95d2a2df6441dcfc110688629ce56d8132fd596df",
    "photo-0.1": "59576defb2eceaa2544e26d920915b3e77a260894892dafec02e741ebef0a4dc",
    "fast-context": "4509a47352fcc84cc175db310cff53b185b9a12f72677c92ed4544d3da8aaae2",
    "fast": "4509a47352fcc84cc175db310cff53b185b9a12f72677c92ed4544d3da8aaae2",
}
INT32 = np.iinfo(np.int32)


# ---- models ----


def untrained(**config) -> Network:
    """The network of a configuration as training begins with it."""
    return build(ModelConfig(**config))


def tiny_network(photo: Image.Image, lmbda: list[float], prior: str = FACTORIZED, **options) -> Network:
    """An untrained small network, moved off its start so that no weight is zero and every layer has an effect."""
    torch.manual_seed(7)
    sizes = dict(N=16, M=24, blocks=[1, 1], hyper_N=12, hyper_M=10)
    network = untrained(**sizes | options, lmbda=lmbda, prior=prior)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += torch.randn_like(parameter) * (0.1 * parameter.std() if parameter.any() else 0.001)
        if prior != FACTORIZED:  # an index and a mean that listen to the hyper-latent
            network.h_s.scale.weight.normal_(std=0.1)
            network.h_s.inner.values.normal_(std=0.1)
            network.centroid.normal_(std=0.05)
            for parameter in () if network.h_s.mean is None else network.h_s.mean.parameters():
                parameter += 0.05 * torch.randn_like(parameter)
            if network.context is not None:  # one that changes most indices
                network.context.slope.uniform_(0.3, 1.0)
        fit(network, to_tensor(photo).expand(5, -1, -1, -1))  # at five qualities
    return network


def codec_of(network: Network) -> Codec:
    """The codec of a network, with its tables."""
    return Codec(TorchBackend(network), CodecTables.from_network(network))


def tiny_codec(photo: Image.Image, lmbda: list[float], prior: str = FACTORIZED, **options) -> Codec:
    """The codec of a tiny network."""
    return codec_of(tiny_network(photo, lmbda, prior, **options))


# ---- images ----


def noise_image(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """An image of random pixels."""
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def smooth_image(width: int = 72, height: int = 56, seed: int = 0) -> Image.Image:
    """A smooth random RGB image."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


SMOOTH = [("first", smooth_image()), ("second", smooth_image(40, 64, seed=1))]


def picture(photo: Image.Image, width: int, height: int) -> Image.Image:
    """An RGBA picture of any size: partly transparent, opaque and in between."""
    image = photo.resize((width, height)).convert("RGBA")
    image.putalpha(photo.convert("L").resize((width, height)).point(lambda level: min(max(3 * level - 300, 0), 255)))
    return image


def saved(image: Image.Image, form: str, **options) -> bytes:
    """The bytes of an image file of Pillow's format `form`."""
    packed = io.BytesIO()
    image.save(packed, form, **options)
    return packed.getvalue()


# ---- many files ----

COUNT = 20
NAMES = [f"{'ab'[i % 2]}/{'deep/' * (i % 3 == 0)}{i:02}" for i in range(COUNT)]  # images in `in`
COMPRESS = ("compress", "in", "-o", "out", "-m", "tiny", "--device", "cpu", "--precision", "fp32")


def listing(folder: Path | str) -> dict[str, bytes]:
    """All files of a folder, hidden ones too, with their content."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


# ---- equality ----


def equal(a, b) -> bool:
    """Equality of nested states, bit for bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(equal, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def digest(latent: Latent) -> str:
    """SHA-256 of everything about a latent that is exact, the same on every machine."""
    sha = hashlib.sha256()
    for part in (latent.y, latent.z, latent.index):
        sha.update(b"none" if part is None else f"{part.shape}".encode() + part.astype("<i4").tobytes())
    return sha.hexdigest()


# ---- the entropy coder ----


def decoded(data: bytes, steps: list, threads: int | None = None) -> list[np.ndarray]:
    """The values of each step (values, index, tables) from a stream, to its end; StreamError if it is damaged."""
    decoder = Decoder(data, threads)
    values = [decoder.decode(index, tables, values.shape) for values, index, tables in steps]
    decoder.finish()
    return values


def verdict(data: bytes, steps: list) -> list | None:
    """What a stream decodes to, as lists; None if it is refused."""
    try:
        return [values.tolist() for values in decoded(data, steps)]
    except StreamError:
        return None


def in_plain_python(function, *arguments):
    """What a function of the coder returns without numba."""
    with patch.object(substream, "numba_or_none", lambda: None):
        return function(*arguments)


def random_context(rng, channels, parents, extreme=False):
    """Any numbers that the rules allow, or those at their ends."""
    order = rng.permutation(channels).astype(np.uint16)
    links = np.zeros((channels, parents), np.uint16)
    weights = rng.integers(0, 256, (channels, parents + 4)).astype(np.uint8)
    for place, c in enumerate(order):
        if place:
            links[c] = rng.choice(order[:place], parents)
        else:
            links[c], weights[c, :parents] = c, 0
    if extreme:
        weights[weights > 0] = 255
    sums = weights.sum(axis=1, dtype=np.int64) * (1023 << 8)
    floor = rng.integers(1, 1 << 10, channels) if rng.random() < 0.5 else (1 << 31) - 1 - sums
    slope = rng.integers(-(1 << 16) + 1, 1 << 16, channels) if extreme else rng.integers(-4000, 12000, channels)
    bias = rng.integers(-(1 << 24) + 1, 1 << 24, channels) if extreme else rng.integers(-70000, 70000, channels)
    return Context(order, links, weights, np.stack([floor, slope, bias], axis=1).astype(np.int32))


# ---- trainings ----


def written(monkeypatch) -> list[Path]:
    """A list of the files that get their names from now on once they are complete."""
    names, replace = [], os.replace

    def noted(temporary, path) -> None:
        names.append(Path(path))
        replace(temporary, path)

    monkeypatch.setattr(os, "replace", noted)
    return names


def start(out: str, *options) -> int:
    """Train a tiny fixed-lambda model, unless the options say otherwise, for 4 steps with a validation after 2; the
    exit code.
    """
    import train

    model = "--N 8 --M 16 --blocks 1 0 --hyper_N 8 --hyper_M 4 --lmbda 0.013"
    setup = "--data data --val val --patch 32 --batch 2 --steps 4 --warmup 0 --val_every 2 --log_every 1"
    return train.main([*model.split(), *setup.split(), "--out", out, *map(str, options)])


def train_folders(folder: Path, photos: list[Image.Image]) -> None:
    """What `start` trains with: photographs in data/, one of 64x64 in val/."""
    for name in ("data", "val"):
        (folder / name).mkdir()
    for i, photo in enumerate(photos[1:]):
        photo.save(folder / f"data/{i}.png")
    photos[0].crop((0, 0, 64, 64)).save(folder / "val/face.png")


def log(out: str, kind: str) -> list[dict]:
    """The lines of a run's log of a kind, train or val."""
    rows = [json.loads(line) for line in open(f"{out}/log.jsonl")]
    return [row for row in rows if row["kind"] == kind]


# ---- processes ----

SERVER = multiprocessing.get_context("forkserver")  # has imported what takes seconds, and forks in milliseconds
SERVER.set_forkserver_preload(["train", "codec.batch.work", "numba"])
TRAIN, LIC = "train", "codec.cli"
STREAMS = ("stdin", "stdout", "stderr")


def in_process(program: str, *arguments, group: bool = False, environment: dict | None = None, **streams):
    """A process of TRAIN or LIC in this folder, started, that nothing but its arguments comes from: `stdin`, `stdout`
    and `stderr` are paths, or None for a stream that is closed; with `group` it leads a group and session of its own.
    `process.exitcode` is None while it runs.
    """
    forkserver.ensure_running()
    arguments = [program, os.getcwd(), [*map(str, arguments)], group, dict(os.environ) | (environment or {}), streams]
    process = SERVER.Process(target=_run, args=arguments)
    process.start()
    return process


def _run(program: str, folder: str, arguments: list[str], group: bool, environment: dict, streams: dict) -> NoReturn:
    os.chdir(folder)
    os.environ.update(environment)
    if group:
        os.setsid()
    for name, path in streams.items():
        number = STREAMS.index(name)
        if path is None:
            os.close(number)
            setattr(sys, name, None)
            continue
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)  # a terminal: from here on that of the process
        os.dup2(file, number)
        os.close(file)
        setattr(sys, name, open(number, "w" if number else "r", closefd=False))
    torch.set_num_threads(1)
    torch.cuda.is_available = lambda: False
    entropy.kernels_cached = lambda *_, **__: True
    Log.graph = Log._histograms = lambda *_: None  # half of what a tiny training takes
    if program == LIC:  # whose processes, too, are to begin quickly
        multiprocessing.get_context = lambda _: multiprocessing.context.ForkContext()
    raise SystemExit(importlib.import_module(program).main(arguments))


def in_fresh_python(program: str, *arguments, root: Path = ROOT, **environment) -> subprocess.CompletedProcess:
    """A program text in a new interpreter that finds our packages in `root`, its output as text; an error if it
    fails.
    """
    path = os.pathsep.join([str(root), str(ROOT / "tests/tools")])
    variables = os.environ | {"PYTHONPATH": path} | {name: str(value) for name, value in environment.items()}
    command = [sys.executable, "-P", "-W", "always", "-c", program, *map(str, arguments)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done
