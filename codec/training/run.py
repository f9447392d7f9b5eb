"""The state of a training, and a training step: qualities and noise of the samples, loss, update of the weights."""

import contextlib
import copy

import numpy as np
import torch
from torch import Tensor, nn

from codec import config as configuration
from codec.config import Config
from codec.errors import LicError
from codec.network.calibrate import fit
from codec.network.distortion import Distortion, distortion
from codec.network.model import build
from codec.network.quantize import SampleNoise
from codec.training import data
from codec.training.checkpoints import take_weights
from codec.training.distributed import World
from codec.training.optimise import follow, learning_rate, optimizer, restore

VERSION = 3  # of training checkpoints


def seed_of(*key: int) -> int:
    """A seed of 32 bits derived from the numbers of `key`."""
    return int(np.random.SeedSequence(key).generate_state(1)[0])


def draw(step: int, config: Config) -> tuple[Tensor | None, Tensor]:
    """Random quality (B,), None for a fixed lambda, and lambda (B,) of a step's samples, over all processes."""
    if not config.model.variable_rate:
        return None, torch.full((config.train.batch,), config.model.lmbda[0])
    generator = torch.Generator().manual_seed(seed_of(config.train.seed, 1, step))
    # one quality from each of `batch` equal parts of the range: every step sees low and high rates
    place = torch.arange(config.train.batch) + torch.rand(config.train.batch, generator=generator)
    quality = place * (100 / config.train.batch)
    return quality, config.model.lmbda_at(quality)


def losses(
    net: nn.Module, x: Tensor, quality: Tensor | None, lmbda: Tensor, compare: Distortion, **options
) -> dict[str, Tensor]:
    """Rate-distortion terms of a batch x (B, 3, H, W) in [0, 1], each (B,): bpp, bpp_z (that of z), mse, psnr in dB,
    and loss = bpp + distortion by `compare`, which is lmbda * 255^2 * mse by default. `net` is a network, or wraps one.
    """
    x_hat, bits, bits_z = net(x, quality, **options)
    pixels = x.shape[-1] * x.shape[-2]
    bpp = bits / pixels
    mse = (x_hat.detach() - x).square().mean(dim=(1, 2, 3))
    psnr = -10 * torch.log10(mse.clamp_min(1e-10))
    loss = bpp + compare(x_hat, x, lmbda)
    return {"bpp": bpp, "bpp_z": bits_z.detach() / pixels, "mse": mse, "psnr": psnr, "loss": loss}


class Run:
    """The state of a training, which a checkpoint holds, and its step."""

    def __init__(self, config: Config, device: torch.device, world: World = World()):  # noqa: B008 (immutable)
        torch.manual_seed(config.train.seed)
        self.config, self.device, self.world = config, device, world
        self.model = build(config.model).to(device).use_bf16(config.train.precision)
        self.average = copy.deepcopy(self.model).requires_grad_(False).eval()  # what is validated and exported
        self.optimizer = optimizer(self.model, config.train)
        self.net = world.wrap(self.model)
        self.compare = distortion(config.train.distortion, config.train.mix, config.model.lmbda, device)
        if config.train.compile:
            self.model.bits = torch.compile(self.model.bits)
        self.step = 0
        self.skipped = torch.zeros((), device=device)  # steps whose gradient was not finite
        self.first: float | None = None  # validation RD loss at step 0, once it is known
        self.best: float | None = None  # lowest validation RD loss so far, by today's measure

    def state(self) -> dict:
        """The state as a checkpoint has it."""
        return {
            "version": VERSION, "config": configuration.to_dict(self.config), "step": self.step,
            "skipped": int(self.skipped), "first": self.first, "best": self.best, "model": self.model.state_dict(),
            "average": self.average.state_dict(), "optimizer": self.optimizer.state_dict(),
        }  # fmt: skip

    def load(self, state: dict) -> None:
        """Restore the state of a checkpoint; LicError for one of another version."""
        if state["version"] != VERSION:
            raise LicError(
                f"a checkpoint of version {state['version']}; this program continues version {VERSION}. Begin a new "
                "run with its weights: --init CHECKPOINT"
            )
        self.step, self.first, self.best = (state[k] for k in ("step", "first", "best"))
        self.skipped.fill_(state["skipped"])
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        restore(self.optimizer, state["optimizer"])

    @torch.no_grad()
    def begin(self, x: Tensor) -> str:
        """Before step 0: load the weights of the option `init`, and fit new densities to x (B, 3, H, W) in [0, 1].

        Returns a line on the weights loaded, or "".
        """
        kept, taken = take_weights(self.model, self.config.train.init) if self.config.train.init else (set(), "")
        fit(self.model, x, kept)
        self.world.spread(self.model)  # fitted densities may differ in the last bit between GPUs
        self.average.load_state_dict(self.model.state_dict())
        return taken

    def update(self, x: Tensor) -> dict[str, Tensor]:
        """A training step on this process's patches x (B, 3, H, W) in [0, 1], without waiting for the device.

        Returns means over the patches: the terms of `losses`, the weighted rd_loss, and grad_norm. A step whose
        gradient is not finite leaves the weights as they are.
        """
        c = self.config.train
        self.optimizer.zero_grad()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, c) * group["factor"]
        own = self.world.share(c.batch)
        quality, lmbda = draw(self.step, self.config)
        seeds = [seed_of(c.seed, 2, n) for n in range(self.step * c.batch, (self.step + 1) * c.batch)]
        numbers = torch.stack([lmbda, *([] if quality is None else [quality])])[:, own]
        lmbda, *quality = data.send(numbers, x.device)
        sums: dict[str, Tensor] = {}
        for places in np.array_split(np.arange(len(x)), c.accumulate):
            some = slice(places[0], places[-1] + 1)
            last = some.stop == len(x)
            noise = SampleNoise(seeds[own][some], x.device)
            with contextlib.nullcontext() if last or self.world.size == 1 else self.net.no_sync():
                q = quality[0][some] if quality else None
                terms = losses(self.net, x[some], q, lmbda[some], self.compare, noise=noise)
                terms["rd_loss"] = terms["loss"] * self.compare.weights(lmbda[some], terms["bpp"])
                terms["rd_loss"].sum().div(len(x)).backward()
            sums = {name: sums.get(name, 0.0) + term.detach().sum() for name, term in terms.items()}
        means = {name: total / len(x) for name, total in sums.items()}
        means["grad_norm"] = torch.nn.utils.clip_grad_norm_(self.model.parameters(), c.clip)
        bad = (~torch.isfinite(means["grad_norm"])).float()
        self.optimizer.found_inf = bad  # fused kernels change nothing where this is 1
        self.optimizer.step()
        follow(self.average, self.model, self.step, c.ema)
        self.skipped += bad
        self.step += 1
        return means
