"""The damage campaign: intact bytes are damaged in every way, and decoded where a crash or a hang can be seen.

    python tests/tools/damage_campaign.py                                  all four targets, 46 minutes on a busy core
    python tests/tools/damage_campaign.py parser --trials 50000 --seed 1   one target, fewer trials, other damage

The targets are in damage_targets.py, the damage in damage.py; fuzz.py finds other damage by coverage.
The same seed makes the same damage. No trial may crash, take more than a second of processor time, raise another error
than the documented ones or one whose message is not one line, take more memory than the size of the input and the
pixels that it claims account for, or accept a damaged file whose checksums were not stamped anew.

Trials run in forked children under limits of time and address space. One that kills its child is counted, and the next
child goes on behind it. Memory is what the process has grown by at its peak (VmHWM), whoever allocated it. Needs Linux.
Prints a table for each target, and the trials that broke a law by their number. Exit code 0: no law broken, 1: some.
"""

import argparse
import mmap
import os
import resource
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
from damage_targets import AS_IT_IS, DIFFERENT, REFUSED, TARGETS, Target
from memory import reset_watermark, watermark
from numpy.typing import NDArray

WRONG_ERROR, MEMORY, CRASH, HANG = range(4, 8)
OUTCOMES = (
    "not done", "refused", "decoded identically", "decoded differently", "wrong error", "memory", "crash", "hang",
)  # fmt: skip

BATCH = 2000  # trials per child
SLOW = 1.0  # seconds of processor time that are a hang; most trials take half a millisecond
TIME_LIMIT = 10.0  # seconds after which a child is killed
ADDRESS_SPACE = 1 << 29  # bytes that a child may map beyond what it inherits


class Results(NamedTuple):
    """One entry for each trial."""

    outcomes: NDArray[np.uint32]
    seconds: NDArray[np.float32]  # of processor time
    grown: NDArray[np.uint32]  # KiB by which the process grew at its peak


def run(
    count: int, trial: Callable[[int], int], begin_child: Callable[[], Any] = int, time_limit: float = TIME_LIMIT
) -> Results:
    """Trials 0..count-1, each in a child process that may die of it."""
    shared = (np.frombuffer(mmap.mmap(-1, 4 * count), f"{kind}4") for kind in "ufu")
    results = Results(*shared)
    begin = 0
    while begin < count:
        end = min(begin + BATCH, count)
        child = os.fork()
        if not child:
            work(results, begin, end, trial, begin_child, time_limit)
        _, status = os.waitpid(child, 0)
        undone = np.flatnonzero(results.outcomes[begin:end] == 0)
        if undone.size:
            fatal = begin + int(undone[0])
            timeout = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM
            results.outcomes[fatal] = HANG if timeout else CRASH
        begin = fatal + 1 if undone.size else end
    return results


def work(
    results: Results, begin: int, end: int, trial: Callable[[int], int], begin_child: Callable, time_limit: float
) -> NoReturn:
    """A child's life: trials begin..end-1 under limits."""
    try:
        begin_child()
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # no handler: compiled code would not let it run
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (mapped + ADDRESS_SPACE, hard))
        for number in range(begin, end):
            signal.setitimer(signal.ITIMER_REAL, time_limit)
            before, started = reset_watermark(), time.process_time()
            try:
                outcome = trial(number)
            except Exception as error:
                print(f"trial {number}:", file=sys.stderr)
                traceback.print_exc()
                outcome = MEMORY if isinstance(error, MemoryError) else WRONG_ERROR
            results.seconds[number] = time.process_time() - started
            results.grown[number] = max(0, watermark() - before) >> 10
            results.outcomes[number] = HANG if results.seconds[number] > SLOW else outcome
    finally:
        os._exit(0)


Counts = Counter[tuple[str, str, int]]


def count(target: Target, results: Results) -> Counts:
    """How many trials of each way and kind had each outcome."""
    return Counter((*target.way_and_kind(i), outcome) for i, outcome in enumerate(results.outcomes.tolist()))


def is_broken(way: str, outcome: int) -> bool:
    """Whether this may not happen."""
    return outcome > DIFFERENT or way == AS_IT_IS and outcome != REFUSED


def broken_laws(counts: Counts) -> list[str]:
    """What may not happen and did."""
    return [
        f"{number} x {OUTCOMES[outcome]}: {kind}, {way}"
        for (way, kind, outcome), number in counts.items()
        if is_broken(way, outcome)
    ]


def table(target: Target, counts: Counts) -> str:
    """Markdown."""
    shown = range(REFUSED, len(OUTCOMES))
    lines = [["", "damage", *(OUTCOMES[outcome] for outcome in shown)], ["---"] * (2 + len(shown))]
    for way in dict.fromkeys(target.ways):
        for kind in (*target.kinds, "all"):
            kinds = target.kinds if kind == "all" else (kind,)
            lines.append([way, kind, *(str(sum(counts[way, k, outcome] for k in kinds)) for outcome in shown)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def campaign(name: str, trials: int, seed: int) -> bool:
    """Attack a target and print what came of it; whether all laws hold."""
    start = time.perf_counter()
    make, _ = TARGETS[name]
    target = make(seed)
    results = run(trials, target.trial, target.begin)
    counts = count(target, results)
    print(
        f"## {name}: {trials} trials in {time.perf_counter() - start:.0f} s, seed {seed}\n\n{table(target, counts)}\n"
    )
    slowest, largest = int(results.seconds.argmax()), int(results.grown.argmax())
    print(
        f"slowest: trial {slowest}, {results.seconds[slowest]:.3f} s (mean {1000 * results.seconds.mean():.2f} ms); "
        f"largest: trial {largest}, {results.grown[largest] / 1024:.1f} MiB"
    )
    broken = [i for i, o in enumerate(results.outcomes.tolist()) if is_broken(target.way_and_kind(i)[0], o)]
    print(
        "; ".join(broken_laws(counts)) or "no law broken", f"(trials {broken[:20]})\n" if broken else "\n", flush=True
    )
    return not broken


def main(argv: list[str] | None = None) -> int:
    """Run the campaign, return 1 if a law is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"{', '.join(TARGETS)} (default: all)")
    parser.add_argument("--trials", type=int, help="how many of each (default: those of the target)")
    parser.add_argument("--seed", type=int, default=0, help="of everything (default: %(default)s)")
    options = parser.parse_args(argv)
    unknown = set(options.targets) - TARGETS.keys()
    if unknown:
        parser.error(f"no target {', '.join(unknown)}; there are {', '.join(TARGETS)}")
    laws_hold = [
        campaign(name, options.trials or trials, options.seed)
        for name, (_, trials) in TARGETS.items()
        if name in (options.targets or TARGETS)
    ]
    return int(not all(laws_hold))


if __name__ == "__main__":
    sys.exit(main())
