"""Ours beside its peers, measured in one run.

    python -m benchmarks all --out DIR      everything below, and rates, offtrack and portability (python -m
                                            benchmarks.rates, ...), each in a process: about an hour and a half
    python -m benchmarks codecs             images to bytes and back
    python -m benchmarks effort             context and effort: what they save, and what time they take
    python -m benchmarks entropy            integers to bytes and back
    python -m benchmarks startup            one image, a process each: seconds, memory; ONNX Runtime beside PyTorch
    python -m benchmarks jobs               many files: worker processes beside independent ones
    python -m benchmarks gpu                1920x1080 on one GPU, pipelined; exits with 1 where there is none
    python -m benchmarks memory             an image of 100 megapixels: peak memory, time per megapixel
    python -m benchmarks training           a published architecture trained by CompressAI's loop and by ours
        --data DIR         photographs (default: the samples in scikit-image's wheel)
        --val DIR          of all: other photographs, for effort
        --model NAME|FILE  our model (default: the shipped one); training has none
        --rounds N         turns of every contender
        --out DIR          write Markdown and JSON there instead of printing Markdown

Peers: compressai, constriction (`pip install -e '.[bench]'`) and the codecs of Pillow; one that is missing is named as
such, and the others still run. On a busy machine trust the ratios of single-threaded rows only: threads that have to
wait for each other suffer most from other processes, and the more so the shorter their tasks are
(OMP_WAIT_POLICY=PASSIVE, which lets them sleep instead of spin, relieves that).
"""

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks import codecs, effort, entropy, everything, gpu, jobs, memory, startup, training
from codec.coding.models import DEFAULT

BENCHMARKS = {
    "codecs": codecs, "effort": effort, "entropy": entropy, "startup": startup, "memory": memory, "jobs": jobs,
    "gpu": gpu, "training": training,
}  # fmt: skip


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="python -m benchmarks", description="Ours beside its peers, in one run.")
    commands = top.add_subparsers(dest="name", required=True, metavar="|".join(["all", *BENCHMARKS]))
    sub = commands.add_parser("all", help=everything.__doc__.partition("\n")[0])
    sub.add_argument("--data", type=Path, metavar="DIR", help="photographs (default: samples in scikit-image)")
    sub.add_argument("--val", type=Path, metavar="DIR", help="other photographs, for effort (default: those of --data)")
    sub.add_argument("--model", default=DEFAULT, metavar="NAME|FILE", help=f"our model (default: {DEFAULT})")
    sub.add_argument("--out", type=Path, metavar="DIR", required=True)
    for name, module in BENCHMARKS.items():
        sub = commands.add_parser(name, help=module.__doc__.partition("\n")[0])
        sub.add_argument("--data", type=Path, metavar="DIR", help="photographs (default: samples in scikit-image)")
        if module is training:
            training.add_options(sub)
        else:
            sub.add_argument("--model", default=DEFAULT, metavar="NAME|FILE", help=f"our model (default: {DEFAULT})")
        sub.add_argument("--rounds", type=int, default=module.ROUNDS, metavar="N", help=f"default: {module.ROUNDS}")
        sub.add_argument("--out", type=Path, metavar="DIR", help="write Markdown and JSON there, print nothing else")
    return top


def command(name: str, options: dict[str, Any]) -> str:
    """What gives the same figures again; of files and folders the name alone, whatever lies above them."""
    words = ["python", "-m", "benchmarks", name]
    for option, value in options.items():
        if value is not None:
            words += [f"--{option}", Path(value).name if option in ("data", "val", "model") else str(value)]
    return shlex.join(words)


def main(argv: list[str] | None = None) -> int:
    """Run one benchmark, or all; returns the exit code."""
    args = parser().parse_args(argv)
    if args.name == "all":
        names = [name for name in BENCHMARKS if name != "gpu" or torch.cuda.is_available()]
        return everything.run(everything.plan(names, args.data, args.val, args.model, args.out), args.out)
    try:
        if args.rounds < 1:
            raise ValueError(f"--rounds {args.rounds}: at least 1 is needed")
        options = {key: value for key, value in vars(args).items() if key not in ("name", "out")}
        BENCHMARKS[args.name].run(**options).publish(args.out, command(args.name, options))
    except (OSError, ValueError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
