"""Start-up: what a fresh process costs, from its first instruction to its end, beside a plain import.

Part of `python -m benchmarks codecs` (the command line beside `import torch`) and of `python -m benchmarks entropy`
(entropy coders beside `import numpy`). Processes take turns; the first turn, which fills caches, is not measured.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path

from PIL import Image

from benchmarks.measure import Spread, ratios, table, take_turns

ROUNDS = 5

# What a fresh process does up to its first coded and decoded symbols, the tables being at hand.
OURS_COLD = """
import numpy as np, entropy
tables = entropy.Tables(np.array([8192, 8191, 1], np.uint16), np.array([3], np.int32), np.array([0], np.int32))
values = np.array([0, 1, 1, 0], np.int32)
decoder = entropy.Decoder(entropy.encode([(values, np.uint8(0), tables)]))
assert (decoder.decode(np.uint8(0), tables, values.shape) == values).all()
decoder.finish()
"""
COMPRESSAI_COLD = """
import numpy as np
from compressai import ans
tables = [[0, 32768, 65535, 65536]], [4], [0]
data = ans.RansEncoder().encode_with_indexes([0, 1, 1, 0], [0] * 4, *tables)
assert ans.RansDecoder().decode_with_indexes(data, [0] * 4, *tables) == [0, 1, 1, 0]
"""
CONSTRICTION_COLD = """
import numpy as np, constriction
values = np.array([0, 1, 1], np.int32)
model = constriction.stream.model.Categorical(np.array([0.5, 0.5]), perfect=False)
coder = constriction.stream.stack.AnsCoder()
coder.encode_reverse(values, model)
assert (constriction.stream.stack.AnsCoder(coder.get_compressed()).decode(model, 3) == values).all()
"""
NO_CACHE = "import os, tempfile; cache = tempfile.TemporaryDirectory(); os.environ['NUMBA_CACHE_DIR'] = cache.name\n"
CODERS = {
    "import numpy": "import numpy",
    "lic, warm cache": OURS_COLD,
    "lic, first run ever (compiles)": NO_CACHE + OURS_COLD,
    "compressai.ans": COMPRESSAI_COLD,
    "constriction ANS": CONSTRICTION_COLD,
}


def timed(command: Sequence[str]) -> float:
    """Seconds from start to end; CalledProcessError if it fails."""
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def wall_times(commands: Mapping[str, Sequence[str]]) -> dict[str, list[float]]:
    """Seconds of each command in each round."""
    return take_turns({name: partial(timed, command) for name, command in commands.items()}, ROUNDS)


def command_line(model: Path, image: Image.Image) -> dict[str, list[float]]:
    """Seconds of `import torch`, and of compressing and decompressing one image, PNG in and PNG out."""
    with tempfile.TemporaryDirectory() as folder:
        photo, coded, decoded = (str(Path(folder) / name) for name in ("photo.png", "photo.lic", "decoded.png"))
        image.save(photo)
        lic = [sys.executable, "-m", "codec.cli"]
        options = ["-f", "-m", str(model)]
        return wall_times(
            {
                "import torch": [sys.executable, "-c", "import torch"],
                "lic compress": [*lic, "compress", photo, "-o", coded, *options],
                "lic decompress": [*lic, "decompress", coded, "-o", decoded, *options],
            }
        )


def coders(absent: Collection[str]) -> dict[str, list[float]]:
    """Seconds of `import numpy`, and of the first symbols coded by each entropy coder that is not absent."""
    scripts = {name: script for name, script in CODERS.items() if name not in absent}
    return wall_times({name: [sys.executable, "-c", script] for name, script in scripts.items()})


def start_table(times: Mapping[str, Sequence[float]]) -> str:
    """Markdown; the first process is what the others are compared with."""
    base_name, base = next(iter(times.items()))
    rows = []
    for name, mine in times.items():
        over = Spread.of(m - b for m, b in zip(mine, base, strict=True))
        rows.append([name, f"{Spread.of(mine):.2f}", f"{over:.2f}", f"{ratios(mine, base):.2f}"])
    return table(["process", "seconds", f"over {base_name}", "ratio"], rows)
