"""Train a codec: configuration -> data -> model -> loop. Reads from top to bottom.

    python train.py                                     the default configuration on the sample photographs
    python train.py codec/configs/smoke.toml            two minutes on two CPU cores
    python train.py codec/configs/fast-factorized.toml --data DIR --val DIR --out runs/mine --minutes 60
    python train.py --out runs/mine --resume            go on where it stopped, also after a crash

The run folder holds the resolved config.toml, log.jsonl (every number), tb/ (TensorBoard), last.pt (the newest state),
constant.pt (the state before the learning rate began to fall), best.pt (the best on the validation images) and, when
the schedule is through, model.safetensors with rd.png. Stretches of training add up:

    python train.py --out runs/mine --resume constant.pt --steps 90000 --decay 0.5  a longer plateau, a new decay
    python train.py --out runs/mine --resume --patch 256 --batch 3                  larger patches late
    python train.py CONFIG.toml --init runs/mine/best.pt --out runs/next            another model that begins there
"""

import argparse
import copy
import itertools
import math
import shlex
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

import codec
from codec import config as configuration
from codec import data
from codec.base import Codec
from codec.checkpoint import export, load_checkpoint, load_model, load_weights, save_checkpoint
from codec.config import Config, TrainConfig
from codec.log import Log
from codec.metrics import psnr
from codec.model import build

VERSION = 2  # of training checkpoints


def learning_rate(step: int, c: TrainConfig) -> float:
    """Linear warm-up, constant, then linear decay to lr/100 over the last `decay` of the steps."""
    left = (c.steps - step) / max(1, c.decay * c.steps)
    return c.lr * min(1.0, (step + 1) / max(1, c.warmup), max(0.01, left))


def lmbda_of(quality: Tensor | float, lmbda: list[float]) -> Tensor | float:
    """lambda(q), log-linear in quality 0..100."""
    return lmbda[0] * (lmbda[1] / lmbda[0]) ** (quality / 100)


def draw(step: int, config: Config, device: torch.device) -> tuple[Tensor | None, Tensor]:
    """Quality (B,) or None, and lambda (B,), of the samples of a step; seeds the noise of the step as well."""
    torch.manual_seed(int(np.random.SeedSequence((config.train.seed, 1, step)).generate_state(1)[0]))
    if not config.model.variable_rate:
        return None, torch.full((config.train.batch,), config.model.lmbda[0], device=device)
    # one quality from each of `batch` equal parts of the range: every step sees low and high rates
    quality = (torch.arange(config.train.batch) + torch.rand(config.train.batch)) * (100 / config.train.batch)
    return quality.to(device), lmbda_of(quality, config.model.lmbda).to(device)


def losses(model: Codec, x: Tensor, quality: Tensor | None, lmbda: Tensor) -> dict[str, Tensor]:
    """Rate-distortion terms of a batch, each (B,): bpp, mse in [0, 1] units, and loss = bpp + lmbda * 255^2 * mse."""
    x_hat, bits = model(x, quality)
    bpp = bits / (x.shape[-1] * x.shape[-2])
    mse = (x_hat - x).square().mean(dim=(1, 2, 3))
    return {"bpp": bpp, "mse": mse, "loss": bpp + lmbda * 255**2 * mse}


def validate(model: Codec, images: list, config: Config) -> dict[str, float]:
    """Code the validation images to real bytes and back: mean bpp, psnr, and the weighted RD loss, per quality and in
    all.
    """
    qualities = config.train.val_qualities if config.model.variable_rate else [None]
    model.build_tables(qualities)
    result, total, weights = {}, 0.0, 0.0
    for quality in qualities:
        lmbda = config.model.lmbda[0] if quality is None else lmbda_of(quality, config.model.lmbda)
        bpp, db = [], []
        for image in images:
            stream = model.compress(image, quality)
            bpp.append(8 * len(stream) / (image.width * image.height))
            db.append(psnr(image, model.decompress(stream)))
        mse = np.power(10.0, -np.array(db) / 10)  # of [0, 1] pixels
        loss = float(np.mean(bpp) + lmbda * 255**2 * np.mean(mse))
        name = "" if quality is None else f"_q{quality}"
        result |= {f"bpp{name}": float(np.mean(bpp)), f"psnr{name}": float(np.mean(db)), f"loss{name}": loss}
        total, weights = total + loss / math.sqrt(lmbda), weights + 1 / math.sqrt(lmbda)
    model.tables_of = {}
    return result | {"rd_loss": total / weights}


class Run:
    """The state of a training: what a checkpoint holds, and nothing else."""

    def __init__(self, config: Config, device: torch.device):
        torch.manual_seed(config.train.seed)
        self.config = config
        self.device = device
        self.model = build(config.model).to(device).use_bf16(config.train.precision)
        self.average = copy.deepcopy(self.model).requires_grad_(False).eval()  # what is validated and exported
        self.lr_scale = {"shortcut": config.train.shortcut_lr, "prior": config.train.prior_lr, "": 1.0}
        parts: dict[str, list[Tensor]] = {part: [] for part in self.lr_scale}
        for name, parameter in self.model.named_parameters():
            parts[next(part for part in parts if part in name)].append(parameter)
        groups = [{"params": parameters} for parameters in parts.values()]
        self.optimizer = torch.optim.AdamW(
            groups, lr=config.train.lr, weight_decay=config.train.weight_decay, fused=True
        )
        if config.train.compile:
            self.model.bits = torch.compile(self.model.bits)
        self.step = 0
        self.skipped = 0  # steps whose gradient was not finite
        self.first = math.nan  # validation RD loss at step 0
        self.best = math.inf  # lowest validation RD loss so far

    def state(self) -> dict:
        return {
            "version": VERSION, "config": configuration.to_dict(self.config), "step": self.step,
            "skipped": self.skipped, "first": self.first, "best": self.best, "model": self.model.state_dict(),
            "average": self.average.state_dict(), "optimizer": self.optimizer.state_dict(),
        }  # fmt: skip

    def load(self, state: dict) -> None:
        if state["version"] != VERSION:
            raise ValueError(f"a checkpoint of version {state['version']}; this program continues version {VERSION}")
        self.step, self.skipped, self.first, self.best = (state[k] for k in ("step", "skipped", "first", "best"))
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])

    @torch.no_grad()
    def begin(self, x: Tensor) -> str:
        """Before step 0, with a batch (B, 3, H, W) in [0, 1]: take over weights where `init` names some, fit the
        densities that are new. Returns what was taken.
        """
        taken = ""
        kept: dict[str, Tensor] = {}
        if self.config.train.init:
            own = self.model.state_dict()
            given = load_weights(self.config.train.init)
            kept = {name: t for name, t in given.items() if name in own and t.shape == own[name].shape}
            self.model.load_state_dict(kept, strict=False)
            new = sorted({name.split(".")[0] for name in own.keys() - kept.keys()})
            taken = f"{len(kept)} of {len(own)} tensors from {self.config.train.init}; new: {', '.join(new) or 'none'}"
        if not any(name.startswith("prior.") for name in kept):
            self.model.fit(x)
        elif woken := self.model.wake(x):
            taken += f"; {woken} channels of z, all but zero, start anew"
        self.average.load_state_dict(self.model.state_dict())
        return taken

    def update(self, x: Tensor) -> dict[str, Tensor]:
        """One optimiser step on a batch (B, 3, H, W) in [0, 1]; returns figures as tensors: nothing waits."""
        c = self.config.train
        for group, scale in zip(self.optimizer.param_groups, self.lr_scale.values(), strict=True):
            group["lr"] = learning_rate(self.step, c) * scale
        quality, lmbda = draw(self.step, self.config, x.device)
        terms = losses(self.model, x, quality, lmbda)
        weight = lmbda.rsqrt() / lmbda.rsqrt().mean()  # high lambdas would drown low rates
        (terms["loss"] * weight).mean().backward()
        terms["grad_norm"] = torch.nn.utils.clip_grad_norm_(self.model.parameters(), c.clip)
        if torch.isfinite(terms["grad_norm"]):
            self.optimizer.step()
            follow = 1 - min(c.ema, (1 + self.step) / (10 + self.step))  # an average over few steps at the beginning
            with torch.no_grad():
                torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), follow)
        else:
            self.skipped += 1
        self.optimizer.zero_grad()
        self.step += 1
        return terms


def train(run: Run, out: Path, minutes: float) -> bool:
    """The loop: until the schedule is through (True) or the minutes are over (False). Saves last.pt and best.pt."""
    config, c = run.config, run.config.train
    started = time.monotonic()
    resident = run.device if config.data.workers == 0 else "cpu"  # photographs that fit stay on the GPU
    images = data.training_images(config.data, resident)
    patches = data.Patches(images, data.patch_transform(config.data), c.seed, c.steps * c.batch)
    held_out = data.validation_images(config.data)
    log = Log(out, run.step, c.steps)
    log.say(
        f"{len(patches.images)} training, {len(held_out)} validation images, {c.steps} steps of {c.batch} patches of "
        f"{config.data.patch}x{config.data.patch}, {run.model.parameter_count() / 1e6:.2f} M parameters, "
        f"{run.device.type}, {run.model.precision}\nwatch it: tensorboard --logdir {out / 'tb'}"
    )

    def check() -> None:
        result = validate(run.average, held_out, config)
        log.numbers("val", run.step, result)
        log.picture(run.average, run.step, held_out[0])
        if run.step == 0:
            run.first = result["rd_loss"]
        if result["rd_loss"] < run.best:
            run.best = result["rd_loss"]
            save_checkpoint(out / "best.pt", run.state())

    if run.step == 0:
        x = torch.stack([patches[n] for n in range(min(64, len(patches)))]).to(run.device) / 255
        if taken := run.begin(x):
            log.say(taken)
        check()
    loader = DataLoader(
        Subset(patches, range(run.step * c.batch, len(patches))), c.batch, num_workers=config.data.workers,
        multiprocessing_context="spawn" if config.data.workers else None,
        pin_memory=config.data.workers > 0 and run.device.type == "cuda",
    )  # fmt: skip
    run.model.train()
    sums: dict[str, Tensor] = {}
    since, logged = time.monotonic(), run.step
    for x in loader:
        terms = run.update(x.to(run.device, non_blocking=True) / 255)
        log.bar.update()
        sums = {name: sums.get(name, 0.0) + term.detach().mean() for name, term in terms.items()}
        if run.step % c.log_every == 0:
            count = run.step - logged  # fewer than log_every after a resume
            figures = {name: (total / count).item() for name, total in sums.items()}
            figures["psnr"] = -10 * math.log10(max(figures["mse"], 1e-10))
            figures["lr"] = learning_rate(run.step, c)
            speed = count / (time.monotonic() - since)
            figures |= {"steps_s": speed, "img_s": speed * c.batch, "mpx_s": speed * c.batch * x.shape[-1] ** 2 / 1e6}
            log.numbers("train", run.step, figures)
            sums, since, logged = {}, time.monotonic(), run.step
        over = (time.monotonic() - started) / 60 > minutes
        if run.step == round(c.steps * (1 - c.decay)):
            save_checkpoint(out / "constant.pt", run.state())
        if run.step % c.val_every == 0 or run.step == c.steps:
            check()
            since = time.monotonic()
        if run.step % c.val_every == 0 or run.step == c.steps or over:
            save_checkpoint(out / "last.pt", run.state())
        if over:
            break
    change = 100 * (run.best / run.first - 1)
    log.say(f"validation RD loss: {run.first:.4f} at step 0, {run.best:.4f} at best ({change:+.1f} %)")
    if run.skipped:
        log.say(f"{run.skipped} steps with a gradient that was not finite were skipped")
    log.close()
    return run.step == c.steps


def finish(run: Run, out: Path, command: str) -> None:
    """Export the best state and draw its rate-distortion curve on the validation images beside JPEG's."""
    from codec.evaluate import lic_codec, rival_codec
    from codec.evaluate import run as evaluate
    from codec.plot import rd_curves

    run.load(load_checkpoint(out / "best.pt"))
    path = out / "model.safetensors"
    about = {"command": command, "steps": str(run.step)}
    id = export(run.average, path, about)
    images = [(f"val{i:02d}", image) for i, image in enumerate(data.validation_images(run.config.data))]
    model = load_model(path, run.device, run.config.train.precision)
    results = evaluate([lic_codec(model), rival_codec("jpeg")], images, out / "rd", ms_ssim=False)
    rates = [point["bpp"] for point in results[0].means()]
    export(run.average, path, about | {"rates": f"{min(rates):.2g} to {max(rates):.2g} bpp"})  # the id stays
    rd_curves([result.curve() for result in results], out / "rd.png", "Validation images")
    print(f"exported step {run.step} as {path} (id {id}); its curve: {out / 'rd.png'}")
    print(f"use it: lic compress photo.png -m {path}")


def free_folder() -> Path:
    """The first of runs/001, runs/002, ... that does not exist."""
    return next(path for n in itertools.count(1) if not (path := Path("runs") / f"{n:03d}").exists())


def main(argv: list[str] | None = None) -> int:
    """Train as the command line says; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", help="TOML file; none: the defaults below")
    parser.add_argument("--out", type=Path, help="run folder, new or empty (default: the first free runs/NNN)")
    parser.add_argument(
        "--resume", nargs="?", const="last.pt", metavar="CHECKPOINT",
        help="continue from OUT/CHECKPOINT (default: last.pt) with the configuration in it; options given beside it, "
        "such as --steps, --decay, --patch and --batch, replace what is in [data] and [train]",
    )  # fmt: skip
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="stop after so many minutes with everything saved"
    )
    parser.add_argument(
        "--device", default="auto", choices=("auto", "cpu", "cuda"), help="default: the GPU if there is one"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    configuration.add_options(parser)
    args = parser.parse_args(argv)
    if args.resume and (args.config or args.out is None):
        parser.error(
            "--resume takes --out RUN and no configuration file: it continues with the configuration of the run"
        )
    command = "python train.py " + shlex.join(sys.argv[1:] if argv is None else argv)
    try:
        out = args.out or free_folder()
        state = load_checkpoint(out / args.resume) if args.resume else None
        values = state["config"] if state else configuration.load(args.config) if args.config else {}
        config = configuration.from_dict(configuration.merge_options(values, args))
        if state and configuration.to_dict(config)["model"] != state["config"]["model"]:
            raise ValueError("--resume continues with the model of the run: [model] cannot change")
        if not state and out.exists() and any(out.iterdir()):
            raise ValueError(f"{out} is not empty: choose another --out, or --resume what is there")
        run = Run(config, torch.device(codec.pick_device(args.device)))
        if state:
            run.load(state)
        out.mkdir(parents=True, exist_ok=True)
        (out / "config.toml").write_text(configuration.dump(config))
        if train(run, out, args.minutes):
            finish(run, out, command)
        else:
            print(
                f"stopped at step {run.step} of {config.train.steps}; go on with: python train.py --out {out} --resume"
            )
    except (OSError, ValueError) as error:
        if args.debug:
            raise
        print(f"train.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
