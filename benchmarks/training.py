"""Training the codec of bmshj2018-factorized (N = 128, M = 192): CompressAI's loop and ours, in turn.

    python -m benchmarks training [--data DIR] [--val DIR] [--device cpu|cuda] [--rounds N] [--steps N] [--out DIR]

Theirs is what compressai documents and its examples/train.py does: its FactorizedPrior and RateDistortionLoss, Adam at
1e-4 for the network, another Adam at 1e-3 for the quantiles of the entropy bottleneck and a backward pass for them, the
gradient's norm clipped at 1, float32. Ours is `Run.update` (codec/training/run.py) with bmshj2018-factorized.toml,
averaged weights included. Same batches; theirs pads with zeros inside the convolutions and takes pixels in [0, 1], ours
mirrors before them and takes pixels around 0.

With --steps both are trained that long from the same weights on the same patches, ours with the learning rate of
theirs; the loss is then that of each one's own evaluation-mode forward on the same images: bpp + lmbda * 255^2 * mse.
"""

import argparse
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

import codec
from benchmarks.measure import Report, Spread, machine, machine_line, ratios, table, take_turns
from codec import config as configuration
from codec.config import Config
from codec.machine import has_native_bf16
from codec.network.pixels import to_tensor
from codec.training import data
from codec.training.run import Run

ROUNDS = 7
BATCHES = 6  # that the turns go round
PIPELINE = 30  # batches that the input pipeline is timed with, after as many that are not
TURN = {"cpu": 1, "cuda": 20}  # steps
COMPARED = {"cpu": 128, "cuda": 256}  # side of the patches with --steps: a thousand take half an hour on two cores
WANTED = {"step": 2.0, "loss": 1.02, "pipeline": 3.0}
CONFIG = Path(codec.__file__).parent / "configs" / "bmshj2018-factorized.toml"


class Peer:
    """CompressAI's training of its FactorizedPrior; OSError without compressai."""

    def __init__(self, config: Config, device: torch.device):
        try:
            from compressai.losses import RateDistortionLoss
            from compressai.models import FactorizedPrior
        except ImportError as error:
            raise OSError(f"training: compressai cannot be imported ({error}): pip install -e '.[bench]'") from error
        torch.manual_seed(config.train.seed)
        self.net = FactorizedPrior(config.model.N, config.model.M).to(device).train()
        named = dict(self.net.named_parameters())
        self.optimizer = torch.optim.Adam((p for name, p in named.items() if not name.endswith(".quantiles")), lr=1e-4)
        self.aux = torch.optim.Adam((p for name, p in named.items() if name.endswith(".quantiles")), lr=1e-3)
        self.criterion = RateDistortionLoss(config.model.lmbda[0])

    def update(self, x: Tensor) -> None:
        """One step on a batch (B, 3, H, W) in [0, 1]."""
        self.optimizer.zero_grad()
        self.aux.zero_grad()
        self.criterion(self.net(x), x)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimizer.step()
        self.net.aux_loss().backward()
        self.aux.step()

    @torch.no_grad()
    def loss(self, images: list[Tensor]) -> float:
        """Mean over images (1, 3, H, W), sides multiples of 16."""
        self.net.eval()
        return sum(self.criterion(self.net(x), x)["loss"].item() for x in images) / len(images)


class Ours(Run):
    """The run of a training."""

    def take(self, peer: Peer) -> None:
        """Begin with the weights of a peer."""
        for own, theirs in ((self.model.g_a, peer.net.g_a), (self.model.g_s, peer.net.g_s)):
            missing = own.layers.load_state_dict(theirs.state_dict(), strict=False).missing_keys
            assert not missing, missing
        self.model.prior.load_compressai(peer.net.entropy_bottleneck.state_dict())

    @torch.no_grad()
    def loss(self, images: list[Tensor]) -> float:
        """Mean over images (1, 3, H, W)."""
        self.model.eval()
        total = 0.0
        for x in images:
            x_hat, bits, _ = self.model(x)
            mse = (x_hat - x).square().mean()
            total += (bits[0] / x[0, 0].numel() + self.config.model.lmbda[0] * 255**2 * mse).item()
        return total / len(images)


def settings(folder: Path | None, val: Path | None, precision: str) -> Config:
    """The published configuration, its learning rate equal to the peer's from the first step and in all parts."""
    config = configuration.from_dict(configuration.load(CONFIG))
    config.data.data = [] if folder is None else [str(folder)]
    config.data.val = [] if val is None else [str(val)]
    config.train.warmup, config.train.lr_of, config.train.precision = 0, [], precision
    return config


def stream(config: Config, device: torch.device) -> Iterator[Tensor]:
    """Batches uint8 (B, 3, patch, patch) without end, as train.py loads them; OSError if there are no images."""
    images = data.training_images(config.data, device if config.data.workers == 0 else "cpu")
    patches = data.Patches(images, data.patch_transform(config.data), config.train.seed, config.train.steps)
    size = config.train.batch
    numbers = (range(step * size, (step + 1) * size) for step in itertools.count())
    return iter(data.loader(patches, numbers, config.data, device))


def prepare(batch: Tensor, device: torch.device) -> Tensor:
    """Pixels as train.py hands them to a network."""
    return batch.to(device, non_blocking=True) / 255


def wait(device: torch.device) -> None:
    """Until the device has done what it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def turn(update: Callable[[Tensor], object], batches: list[Tensor], device: torch.device) -> Callable[[], float]:
    """A few steps, each on the next batch; pixels per second."""
    following = itertools.cycle(batches)

    def one() -> float:
        wait(device)
        start, pixels = time.perf_counter(), 0
        for x in itertools.islice(following, TURN[device.type]):
            update(x)
            pixels += x.numel() // 3
        wait(device)
        return pixels / (time.perf_counter() - start)

    return one


def pipeline(config: Config, device: torch.device) -> list[float]:
    """Pixels per second that reach the device, batch by batch, when nothing is computed with them."""
    batches, rates = stream(config, device), []
    for _ in range(2 * PIPELINE):
        start = time.perf_counter()
        x = prepare(next(batches), device)
        wait(device)
        rates.append(x.numel() / 3 / (time.perf_counter() - start))
    return rates[PIPELINE:]


def compare(folder: Path | None, val: Path | None, device: torch.device, steps: int) -> dict[str, float]:
    """Validation loss of both after `steps` from the same weights, and of those weights."""
    config = settings(folder, val, "auto")
    config.data.patch = min(config.data.patch, COMPARED[device.type])
    peer, ours = Peer(config, device), Ours(config, device)
    ours.take(peer)
    images = []
    for photo in data.validation_images(config.data):
        x = to_tensor(photo)
        images.append(x[..., : x.shape[-2] // 16 * 16, : x.shape[-1] // 16 * 16].to(device))
    losses = {"compressai at step 0": peer.loss(images), "lic at step 0": ours.loss(images)}
    peer.net.train()
    ours.model.train()
    for batch in itertools.islice(stream(config, device), steps):
        x = prepare(batch, device)
        peer.update(x)
        ours.update(x)
    return losses | {"compressai": peer.loss(images), "lic": ours.loss(images)}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those that no other benchmark has."""
    parser.add_argument(
        "--val", type=Path, metavar="DIR", help="validation photographs for --steps (default: a sample)"
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="default: cpu")
    parser.add_argument("--steps", type=int, default=0, metavar="N", help="compare the loss after N steps (default: 0)")


def run(data: Path | None, rounds: int, val: Path | None = None, device: str = "cpu", steps: int = 0) -> Report:
    """Measure; OSError without compressai, without images or without the device; ValueError for negative steps."""
    if device == "cuda" and not torch.cuda.is_available():
        raise OSError("training: torch finds no CUDA device here; --device cpu measures the processor")
    if steps < 0:
        raise ValueError(f"--steps {steps}: at least 0 are needed; 0 compares no losses")
    about, place = machine(), torch.device(device)
    if device == "cuda":
        about["GPU"] = torch.cuda.get_device_name()
    config = settings(data, val, "auto")
    trainings: dict[str, Peer | Ours] = {"compressai fp32": Peer(config, place)}
    for precision in ("auto", "fp32") if has_native_bf16(place) else ("fp32",):
        ours = Ours(settings(data, val, precision), place)
        ours.model.train()
        trainings[f"lic {ours.model.precision}"] = ours
    batches = [prepare(batch, place) for batch in itertools.islice(stream(config, place), BATCHES)]
    rates = take_turns({name: turn(t.update, batches, place) for name, t in trainings.items()}, rounds)
    theirs, best = list(rates.values())[:2]
    fed = pipeline(config, place)

    gain, supply = {name: ratios(rate, theirs) for name, rate in rates.items()}, Spread.of(fed)
    consumed = Spread.of(best).median
    rows = [[name, f"{Spread.of(r / 1e6 for r in rate):.3f}", f"{gain[name]:.2f}"] for name, rate in rates.items()]
    rows.append(["input pipeline alone", f"{Spread.of(r / 1e6 for r in fed):.2f}", "-"])
    c, patch = config.train, config.data.patch
    lines = [
        f"## Training step of bmshj2018-factorized, N {config.model.N}, M {config.model.M}, batch {c.batch} of "
        f"{patch}x{patch}, {device}",
        machine_line(about),
        table(["", "Mpixel/s", "ratio to compressai"], rows),
        f"Median (quartiles) of {rounds} rounds of {TURN[device]} steps, interleaved, over {BATCHES} batches in turn; "
        "ratios round by round. Theirs pads with zeros inside its convolutions, ours mirrors before them.",
        f"- the step: {gain[list(rates)[1]].median:.2f} times as fast as compressai's (wanted: at least "
        f"{WANTED['step']:g})",
        f"- the input pipeline: {supply.median / patch**2:.0f} patches/s, {config.data.workers} loader processes, "
        f"images seen before in memory; {supply.median / consumed:.1f} times what the network consumes (wanted: "
        f"at least {WANTED['pipeline']:g})",
    ]
    document = {"machine": about, "device": device, "rounds": rounds, "pixels_s": rates, "pipeline_pixels_s": fed}
    document |= {"ratio": {name: spread._asdict() for name, spread in gain.items()}}
    document |= {"pipeline_ratio": supply.median / consumed}
    if steps:
        losses = compare(data, val, place, steps)
        ratio = losses["lic"] / losses["compressai"]
        lines.append(
            f"- the validation loss after {steps} steps from the same weights, patches of at most {COMPARED[device]}: "
            f"{losses['lic']:.4f}, compressai's "
            f"{losses['compressai']:.4f}: {ratio:.4f} of it (wanted: at most {WANTED['loss']:g}); at step 0 "
            f"{losses['lic at step 0']:.4f} and {losses['compressai at step 0']:.4f}"
        )
        document |= {"steps": steps, "losses": losses, "loss_ratio": ratio}
    return Report(f"training-{device}", "\n\n".join([*lines[:4], "\n".join(lines[4:])]), document)
