"""Train a codec: configuration -> data -> model -> loop. Reads from top to bottom.

    python train.py                                     the default configuration on the sample photographs
    python train.py codec/configs/smoke.toml            two minutes on two CPU cores
    python train.py codec/configs/fast-factorized.toml --data DIR --val DIR --out runs/mine --minutes 60
    python train.py --out runs/mine --resume            go on where it stopped, also after a crash
    torchrun --nproc_per_node 8 train.py ...            the same on 8 GPUs: the same batches, an eighth of each on each

The run folder holds the resolved config.toml, meta.json (commit, versions, machine, data), log.jsonl (every number),
tb/ (TensorBoard), last.pt (the newest state), constant.pt (the state before the learning rate began to fall), best.pt
(the best on the validation images) and, when the schedule is through, model.safetensors with rd.png. Stretches of
training add up:

    python train.py --out runs/mine --resume constant.pt --steps 90000 --decay 0.5  a longer plateau, a new decay
    python train.py --out runs/mine --resume --patch 256 --batch 3                  larger patches late
    python train.py CONFIG.toml --init runs/mine/best.pt --out runs/next            another model that begins there

--lmbda with one value trains for one trade-off, with two one model for all rates in between. --prior factorized leaves
the hyperprior out, --context 12 gives the entropy coder of a model with one a context of 12 channels. There is no
auxiliary optimiser and no update(): integer tables are made at export. Parts of a model are trained otherwise with
--lr_of prior=5 g_a=0.1 and --freeze g_a h_a, or begin with tensors of the same name and shape in any model with --init.
--distortion ssimulacra2 (or ms-ssim; vgg, with torchvision's weights on disk) has a share of squared error, --mix.
Validated and exported are weights averaged over the last thousand steps or so.

--data takes any folders, A B --weights 3 1 mixes them three to one; unreadable images are skipped and listed in
skipped.txt, small ones mirrored, what Pillow can turn into 8-bit RGB is (not I and F). tar:DIR reads images out of
WebDataset shards, cifar10:DIR a local CIFAR-10. What lies below a run folder is never data.

What a sample is (its image, crop, flip, quality and noise) depends on the seed and its number alone, not on workers,
processes or where a run was stopped: --resume leads to the weights of a run that was never killed, bit for bit on one
CPU thread. --batch counts samples over all processes, --accumulate computes them in parts. What --resume cannot change
is refused, and so are other images than before, unless --data names them anew. SIGTERM, Ctrl-C and a closed terminal
end a run as --minutes does: everything saved, exit code 0 (of torchrun 1). A full disk keeps the last good checkpoint;
a step whose gradient is not finite is skipped and counted. Four machines of 8 GPUs, SHARED being a folder of them all:

    torchrun --nnodes 4 --nproc_per_node 8 --rdzv_backend c10d --rdzv_endpoint HOST:29500 train.py \\
        codec/configs/high.toml --batch 64 --data DIR --val DIR --out SHARED/high
"""

import argparse
import json
import math
import os
import shlex
import sys
import threading
import time
from collections.abc import Set
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported: codec/machine.py says why

try:
    import torch
except ModuleNotFoundError as error:
    sys.exit(f"train.py: {error.name} is not installed: pip install -e '.[train]'")

import codec
from codec import config as configuration
from codec.errors import MENDABLE, LicError, explain
from codec.files import free_folder, write_atomically
from codec.machine import compiler_errors, keep_freed_memory, prepare_process
from codec.network import graphs as graphs  # of use at the end: a mistake in it is seen at the beginning
from codec.signals import ending, handled
from codec.training import data, resume
from codec.training.checkpoints import load_checkpoint, save_checkpoint
from codec.training.distributed import World, join
from codec.training.log import Log, Meter, SilentLog, meta
from codec.training.run import Run
from codec.training.validate import validate


def train(run: Run, out: Path, minutes: float, stop: threading.Event, anew: Set[str] = frozenset()) -> bool:
    """The loop: until the schedule is through (True), or the minutes are over or `stop` is set (False). Saves last.pt,
    constant.pt and best.pt. LicError if a run goes on with other images, unless `anew` names data or val.
    """
    config, c, world = run.config, run.config.train, run.world
    started = time.monotonic()
    # photographs that fit stay on the GPU, unless they are resized, which is not to the last bit the same there
    resident = "cpu" if config.data.workers or config.data.resize else run.device
    images = data.training_images(config.data, resident, out / "skipped.txt")
    patches = data.Patches(images, data.patch_transform(config.data), c.seed, c.steps * c.batch)
    held_out = data.validation_images(config.data)
    record = {"step": run.step, "processes": world.size} | meta(config, data.describe(images))
    record["val"] = resume.describe_photos(held_out)
    path = out / "meta.json"
    starts = json.loads(path.read_text()) if run.step and path.exists() else []
    changed = resume.changed_images(starts, record, anew)
    log = Log(out, run.step, c.steps) if world.first else SilentLog()
    if world.first:
        write_atomically(path, (json.dumps([*starts, record], indent=1) + "\n").encode())
    log.say(
        f"{len(images)} training, {len(held_out)} validation images, {c.steps} steps of {c.batch} patches of "
        f"{config.data.patch}x{config.data.patch}, {run.model.parameter_count() / 1e6:.2f} M parameters, "
        f"{run.device.type}, {run.model.precision}"
        + (f", {world.size} processes" if world.size > 1 else "")
        + f"\nwatch it: tensorboard --logdir {out / 'tb'}"
    )
    if not config.data.data:
        log.say("no --data: the sample photographs, enough to try it out, not to train")
    if changed:
        log.say(changed)

    def save(name: str) -> bool:
        """Whether that checkpoint is now what the first process has."""
        if not world.first:
            return True
        try:
            save_checkpoint(out / name, run.state())
            return True
        except OSError as error:  # a full disk: the file before it is still there
            before = "the one before it is kept" if (out / name).exists() else "there is none before it"
            log.say(f"{name} could not be saved at step {run.step} ({error}); {before}")
            return False

    def check() -> None:
        result = validate(run.average, held_out, config, run.compare, world)
        log.numbers("val", run.step, result)
        log.picture(run.average, run.step, held_out[0])
        if run.best is None:  # at step 0, and after a resume that measures otherwise
            run.first = result["rd_loss"]
        if run.best is None or result["rd_loss"] < run.best:
            before, run.best = run.best, result["rd_loss"]
            run.best = run.best if save("best.pt") else before  # best.pt is still that

    if run.step == 0:
        if run.first is None:  # not resumed
            x = data.stack([patches[n] for n in range(min(64, len(patches)))]).to(run.device) / 255
            if taken := run.begin(x):
                log.say(taken)
        log.graph(run.average)
        check()
        save("last.pt")
    elif run.step == c.steps and run.best is None:  # a finished run whose best.pt is gone, or of other images
        check()
    part = world.share(c.batch)
    batches = (range(c.batch * step + part.start, c.batch * step + part.stop) for step in range(run.step, c.steps))
    run.model.train()
    meter = Meter(run.step, c, world)
    over = False
    for x in data.loader(patches, batches, config.data, run.device):
        meter.add(run.update(data.send(x, run.device) / 255))
        log.bar.update()
        if run.step % c.log_every == 0:
            log.numbers("train", run.step, meter.read(run.step, x.shape[-1]))
        if world.size == 1 or run.step % 10 == 0 or run.step == c.steps:
            over = world.agreed(stop.is_set() or (time.monotonic() - started) / 60 > minutes, run.device)
        if run.step == round(c.steps * (1 - c.decay)):
            save("constant.pt")
        if run.step % c.val_every == 0 or run.step == c.steps:
            log.gradients(run.model, run.step)
            paused = time.monotonic()
            check()
            meter.since += time.monotonic() - paused
        if run.step % c.save_every == 0 or run.step % c.val_every == 0 or run.step == c.steps or over:
            save("last.pt")
        if over:
            break
    if run.best is not None:
        change = 100 * (run.best / run.first - 1)
        log.say(f"validation RD loss: {run.first:.4f} at first, {run.best:.4f} at best ({change:+.1f} %)")
    if run.skipped:
        log.say(f"{int(run.skipped)} steps with a gradient that was not finite were skipped")
    if skipped := data.read_skipped(out / "skipped.txt"):
        log.say(f"{len(skipped)} images could not be read and were skipped: {out / 'skipped.txt'}")
    log.close()
    return run.step == c.steps


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """What the command line says; ends the program where that makes no sense."""
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
        parser.error("--resume takes --out RUN and no configuration file: it continues with that of the run")
    if args.out is None and "WORLD_SIZE" in os.environ:
        parser.error("under torchrun, name the run folder: --out RUN")
    return args


def begin(args: argparse.Namespace, device: torch.device, world: World) -> tuple[Run, Path]:
    """The run that the command line asks for, new or resumed, and its folder, made."""
    out = args.out or free_folder("runs/")
    state, values = None, configuration.load(args.config) if args.config else {}
    if args.resume == "last.pt" and (out / "config.toml").exists() and not (out / "last.pt").exists():
        values = configuration.load(out / "config.toml")
        print(f"nothing was saved in {out} yet: starting over")
    elif args.resume:
        state = load_checkpoint(out / args.resume)
        values = state["config"]
    config = configuration.from_dict(configuration.merge_options(values, args))
    config.data.data, config.data.val = resume.absolute(config.data.data), resume.absolute(config.data.val)
    if world.first and not args.resume and not resume.is_new(out):
        raise LicError(f"{out} is not empty: choose another --out, or --resume what is there")
    resume.check_batch(config.train, world.size)
    if config.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as PyTorch's notes on reproducibility ask
        torch.use_deterministic_algorithms(True)
    run = Run(config, device, world)
    if state:
        saved = configuration.from_dict(state["config"])
        saved.data.val = resume.absolute(saved.data.val)
        resume.check(run.model, saved, config, state["step"])
        run.load(state)
        run.best = resume.best_before(saved, config, run.best) if (out / "best.pt").exists() else None
    out.mkdir(parents=True, exist_ok=True)
    if world.first:
        write_atomically(out / "config.toml", configuration.dump(config).encode())
    return run, out


def main(argv: list[str] | None = None) -> int:
    """Train as the command line says; returns the exit code."""
    args = arguments(argv)
    prepare_process()
    keep_freed_memory()
    command = "python train.py " + shlex.join(sys.argv[1:] if argv is None else argv)
    world, stop, run = World(), threading.Event(), None
    try:
        with handled(ending(stop), "SIGTERM", "SIGINT", "SIGHUP"):
            world, device = join(codec.pick_device(args.device))
            run, out = begin(args, device, world)
            through = train(run, out, args.minutes, stop, {name for name in ("data", "val") if f"data.{name}" in args})
            if through and world.first and not (out / "best.pt").exists():
                raise LicError(f"{out / 'best.pt'} could not be saved: make room, and go on with --resume")
            if through and world.first:
                run.load(load_checkpoint(out / "best.pt"))
                about = {"command": command, "steps": str(run.step), "distortion": run.config.train.distortion}
                about["mix"] = str(run.config.train.mix)
                from codec.evaluation.publish import publish  # draws, and needs what draws

                metrics = ["psnr"] if run.config.train.distortion == "mse" else ["psnr", "ssimulacra2"]
                id = publish(run.average, about, data.validation_images(run.config.data), out, metrics)
                print(f"exported step {run.step} as {out / 'model.safetensors'} (id {id}); its curve: {out / 'rd.png'}")
                print(f"use it: lic compress photo.png -m {out / 'model.safetensors'}")
            elif world.first:
                steps = run.config.train.steps
                reason = " by a signal" if stop.is_set() else ""
                print(
                    f"stopped{reason} at step {run.step} of {steps}; go on with: python train.py --out {out} --resume"
                )
    except MENDABLE as error:
        if args.debug:
            raise
        print(f"train.py: {explain(error)}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        if args.debug or not isinstance(error, compiler_errors()):
            raise
        reason = " ".join(str(error).strip().partition("\n\n")[0].split())
        print(f"train.py: torch.compile failed ({reason}); --compile false does without it", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("train.py: interrupted; what was saved last is in last.pt", file=sys.stderr)
        return 1
    finally:
        run = None  # with its wrapped model
        world.leave()
        torch.use_deterministic_algorithms(False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
