"""Kill -9 a training at random moments, resume it each time, and compare it with one that was never killed.

    python tests/tools/kill_campaign.py                                         the default model, 600 steps, 10 kills
    python tests/tools/kill_campaign.py --kills 30 -- --data DIR --steps 2000   anything after -- goes to train.py

Both trainings run on one CPU thread. Exit code 0: weights, averaged weights, optimiser and best value are the same, bit
for bit.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from shared import equal

from codec.training.checkpoints import load_checkpoint

PROGRAM = Path(__file__).resolve().parents[2] / "train.py"
DEFAULTS = "--steps 600 --save_every 20 --val_every 100 --log_every 10 --warmup 20 --device cpu"
PARTS = ("step", "model", "average", "optimizer", "best", "first")


def start(out: Path, options: list[str]) -> subprocess.Popen:
    resumed = ["--resume"] if (out / "config.toml").exists() else options
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(PROGRAM), *resumed, "--out", str(out)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1, help="of the moments (default: 1)")
    parser.add_argument("options", nargs="*", help="for train.py, after --")
    args = parser.parse_args()
    options = [*DEFAULTS.split(), *args.options]
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder, "whole"), Path(folder, "killed")
        begun = time.monotonic()
        if start(whole, options).wait() != 0:
            return 1
        took = time.monotonic() - begun
        print(f"never killed: {took:.0f} s")
        dice, kills = random.Random(args.seed), 0
        process = start(killed, options)
        while True:
            try:
                code = process.wait(dice.uniform(0.03, 0.2) * took if kills < args.kills else None)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                kills += 1
                state = load_checkpoint(killed / "last.pt") if (killed / "last.pt").exists() else {"step": "none"}
                print(f"kill {kills}: last checkpoint at step {state['step']}", flush=True)
                process = start(killed, options)
                continue
            break
        if code != 0:
            return 1
        a, b = load_checkpoint(whole / "last.pt"), load_checkpoint(killed / "last.pt")
        different = [part for part in PARTS if not equal(a[part], b[part])]
    print(f"{kills} kills: " + (f"DIFFERENT: {', '.join(different)}" if different else "the same, bit for bit"))
    return bool(different)


if __name__ == "__main__":
    sys.exit(main())
