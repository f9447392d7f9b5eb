"""The fuzzer: damage that reaches code not reached before is damaged further (libFuzzer, by way of atheris).

    pip install -e '.[fuzz]'
    python tests/tools/fuzz.py parser  -runs=1000000        what needs no model: header, sections, metadata, alpha, WebP
    python tests/tools/fuzz.py decoder -runs=20000          Codec.decompress
    python tests/tools/fuzz.py parser CORPUS -runs=0        the files of a folder, and what was found in an earlier run

Options after the target, and folders with inputs, are libFuzzer's (`-help=1`); -seed=1 is the same run again, on one
machine. Half of the inputs are stamped anew with right checksums. It begins with the intact files of the damage
campaign and holds its laws (damage_targets.py) but that of files as they are, which needs to know the intact one.
Exit code 0: no law broken; otherwise the input is written to crash-... or timeout-..., and the traceback shown.
"""

import sys
import tempfile
import time
import zlib
from pathlib import Path

import atheris
import numpy as np

with atheris.instrument_imports(include=["codec", "PIL"]):  # the kernels of `entropy` are not Python
    import damage_targets as targets
    from damage import FILE_KINDS, damage_file, stamp

SLOW = 1.0  # seconds of processor time, as for the campaign


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in ("parser", "decoder"):
        sys.exit(f"usage: {sys.argv[0]} parser|decoder [FOLDER ...] [-runs=N] [-seed=N] ...")
    samples = targets.samples_of(name)
    targets.warm_up(samples)
    by_model = {sample.data[5:13]: sample for sample in samples}
    intact = [sample.data for sample in samples]

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        """libFuzzer's own damage, or that of the campaign, which knows the format; every second stamped anew."""
        rng = np.random.default_rng(seed)
        try:
            kind = FILE_KINDS[rng.integers(len(FILE_KINDS))]
            broken = damage_file(rng, kind, data, intact) if rng.random() < 0.5 else atheris.Mutate(data, len(data))
        except (IndexError, ValueError, zlib.error):  # not enough is left of the file for this kind
            broken = atheris.Mutate(data, max_size)
        return (stamp(broken) if rng.random() < 0.5 else broken)[:max_size]

    def execute(data: bytes) -> None:
        started = time.process_time()
        targets.execute(by_model.get(data[5:13], samples[0]), data)
        if time.process_time() - started > SLOW:
            raise TimeoutError(f"more than {SLOW} s")

    with tempfile.TemporaryDirectory() as folder:
        for number, data in enumerate(intact):
            Path(folder, str(number)).write_bytes(data)
        options = ["-timeout=10", "-rss_limit_mb=4096", "-max_len=65536", *sys.argv[2:]]
        folders = [] if any(not option.startswith("-") for option in options) else [folder]
        atheris.Setup([sys.argv[0], *options, *folders], execute, custom_mutator=mutate)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
