"""All benchmarks in order, each in a process of its own, with a line of progress: `python -m benchmarks all`.

What each writes lies in the folder afterwards: NAME.md and NAME.json, what it printed in NAME.log, and all.md, a line
for each with its minutes. Run it on a machine that does nothing else; the files say how busy it was.
"""

import subprocess
import sys
import time
from pathlib import Path

from benchmarks.measure import table


def plan(names: list[str], data: Path | None, val: Path | None, model: str, out: Path) -> dict[str, list[list[str]]]:
    """The commands behind each name, in order: those of `names`, which are of the table in benchmarks/__main__.py, and
    of three programs of their own. What effort gives is told of `fast`, whose aim is PSNR.
    """
    found = {}
    for name in names:
        folder = val or data if name == "effort" else data
        options = ["--data", str(folder)] if folder else []
        options += [] if name == "training" else ["--model", "fast" if name == "effort" else model]
        found[name] = [["benchmarks", name, *options, "--out", str(out)]]
    own, photographs = ["--model", model, "--out"], ["--data", str(data)] if data else []
    found["rates"] = [["benchmarks.rates", *photographs, *own, str(out)]]
    found["offtrack"] = [["benchmarks.offtrack", *own, str(out)]]
    if data:
        files = [*own, str(out / "portability")]
        found["portability"] = [
            ["benchmarks.portability", "encode", *photographs, *files],
            ["benchmarks.portability", "decode", *files],
        ]
    return found


def run(commands: dict[str, list[list[str]]], out: Path) -> int:
    """Run all of them, whatever becomes of one; returns the largest exit code."""
    out.mkdir(parents=True, exist_ok=True)
    rows, worst = [], 0
    for number, (name, several) in enumerate(commands.items(), 1):
        print(f"[{number}/{len(commands)}] {name} ...", end=" ", flush=True)
        start, code = time.monotonic(), 0
        with open(out / f"{name}.log", "w", encoding="utf-8") as log:
            for command in several:
                program = [sys.executable, "-m", *command]
                code = max(code, abs(subprocess.run(program, stdout=log, stderr=subprocess.STDOUT).returncode))
        minutes = (time.monotonic() - start) / 60
        told = "done" if code == 0 else f"exit code {code}, see {out / name}.log"
        print(f"{told}, {minutes:.1f} minutes", flush=True)
        rows.append([name, f"{minutes:.1f}", str(code)])
        worst = max(worst, code)
    (out / "all.md").write_text(table(["benchmark", "minutes", "exit code"], rows) + "\n", encoding="utf-8")
    return worst
