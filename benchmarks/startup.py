"""Start-up: what a fresh process costs, from its first instruction to its end, beside a plain import.

    python -m benchmarks startup [--data DIR] [--model NAME|FILE] [--rounds N] [--out DIR]

One image compressed and decompressed by `lic` in both backends and by Pillow as AVIF and WebP, PNG in and PNG out, each
in a process of its own, beside `import torch`: seconds and peak memory; what one file more takes in such a process,
PNG to file and file to PNG, which is the time of MANY files less that of FEW; and the time of the networks alone in
ONNX Runtime beside that in PyTorch, fp32, on the same threads. `python -m benchmarks entropy` has entropy coders beside
`import numpy`. Processes take turns; the first turn, which fills caches, is not measured.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path

from PIL import Image

from benchmarks.measure import Report, Spread, machine, machine_line, photographs, ratios, table, take_turns
from codec.coding.codec import Codec
from codec.coding.models import find_model, load_model
from codec.coding.tiles import planes

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


PILLOW = """
import sys
from PIL import Image
Image.open(sys.argv[1]).save(sys.argv[2], **eval(sys.argv[3]))
"""
PEAK = """
import re, sys
arguments = sys.argv[1:]
script = arguments.pop(0)
sys.argv = ["-c", *arguments]
exec(script)
print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1], file=sys.__stdout__)
"""
LIC = "import sys; from codec.cli import main; assert main(sys.argv[1:]) == 0"
SEVERAL = """
import sys
from pathlib import Path
from PIL import Image
for path in sorted(Path(sys.argv[1]).iterdir()):
    Image.open(path).save(Path(sys.argv[2], path.stem + sys.argv[3]), **eval(sys.argv[4]))
"""
FEW, MANY = 2, 24  # files of a process
RIVALS = {"AVIF": dict(quality=60, speed=6, subsampling="4:4:4"), "WebP": dict(quality=75, method=6)}


def scripts(folder: Path, model: Path, image: Image.Image) -> dict[str, list[str]]:
    """A script and its arguments for each process; files lie in the folder."""
    photo, decoded = str(folder / "photo.png"), str(folder / "decoded.png")
    image.save(photo)
    wanted = {"import torch": ["import torch"]}
    for backend in ("onnx", "torch"):
        coded, options = str(folder / f"{backend}.lic"), ["-f", "-m", str(model), "--backend", backend]
        wanted[f"lic compress, {backend}"] = [LIC, "compress", photo, "-o", coded, *options]
        wanted[f"lic decompress, {backend}"] = [LIC, "decompress", coded, "-o", decoded, *options]
    for name, options in RIVALS.items():
        coded = str(folder / f"coded.{name.lower()}")
        wanted[f"Pillow to {name}"] = [PILLOW, photo, coded, repr(options)]
        wanted[f"Pillow from {name}"] = [PILLOW, coded, decoded, "{}"]
    return wanted


def peak(script: list[str]) -> int:
    """Bytes of the largest resident set of a script's process; by itself, since it inherits the peak of its parent."""
    done = subprocess.run([sys.executable, "-c", PEAK, *script], check=True, capture_output=True, text=True)
    return 1024 * int(done.stdout.split()[-1])


def per_file(folder: Path, model: Path, images: list[Image.Image], rounds: int) -> dict[str, list[float]]:
    """Seconds of one file more in a process, by what is done with it, in each round; files lie in the folder."""
    scripts = {}
    for count in (FEW, MANY):
        photos, coded, decoded = (folder / f"{name}{count}" for name in ("photos", "coded", "decoded"))
        for made in (photos, coded, decoded):
            made.mkdir()
        for i in range(count):
            images[i % len(images)].save(photos / f"{i:02}.png")
        options = ["-f", "-m", str(model)]
        scripts["lic compress", count] = [LIC, "compress", str(photos), "-o", str(coded), *options]
        scripts["lic decompress", count] = [LIC, "decompress", str(coded), "-o", str(decoded), *options]
        for name, setting in RIVALS.items():
            other = folder / f"{name}{count}"
            other.mkdir()
            extension = f".{name.lower()}"
            scripts[f"Pillow to {name}", count] = [SEVERAL, str(photos), str(other), extension, repr(setting)]
            scripts[f"Pillow from {name}", count] = [SEVERAL, str(other), str(decoded), ".png", "{}"]
    commands = {key: [sys.executable, "-c", *script] for key, script in scripts.items()}
    times = take_turns({key: partial(timed, command) for key, command in commands.items()}, rounds)
    return {
        name: [(m - f) / (MANY - FEW) for m, f in zip(times[name, MANY], times[name, FEW], strict=True)]
        for name, count in scripts if count == MANY
    }  # fmt: skip


def networks(model: Path, image: Image.Image, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of the networks of the encoder and of the decoder, by backend, in each round."""
    loaded = {name: load_model(model, "cpu", "fp32", name) for name in ("onnx", "torch")}
    quality, pixels = loaded["onnx"].qualities[len(loaded["onnx"].qualities) // 2], planes(image)

    def encode(codec: Codec) -> float:
        start = time.perf_counter()
        codec.latent(pixels, quality)
        return time.perf_counter() - start

    def decode(codec: Codec) -> float:
        start = time.perf_counter()
        codec.reconstruct(latent, pixels.shape[2:], quality)
        return time.perf_counter() - start

    latent = loaded["onnx"].latent(pixels, quality)
    ways = {"encoder": encode, "decoder": decode}
    return {
        way: take_turns({name: partial(work, codec) for name, codec in loaded.items()}, rounds)
        for way, work in ways.items()
    }


def run(data: Path | None, model: str, rounds: int) -> Report:
    """Measure all of it; OSError or ValueError says what is missing."""
    about, images, path = machine(), photographs(data), find_model(model)
    image = images[0]
    with tempfile.TemporaryDirectory() as folder:
        wanted = scripts(Path(folder), path, image)
        commands = {name: [sys.executable, "-c", *script] for name, script in wanted.items()}
        times = take_turns({name: partial(timed, command) for name, command in commands.items()}, rounds)
        memory = {name: peak(script) for name, script in wanted.items()}
        (Path(folder) / "several").mkdir()
        more = per_file(Path(folder) / "several", path, images, rounds)
    base, *_ = times.values()
    rows = [
        [name, f"{Spread.of(mine):.2f}", f"{ratios(mine, base):.2f}", f"{memory[name] / 1e6:.0f}"]
        for name, mine in times.items()
    ]
    further = [
        [name, f"{Spread.of(1e3 * s for s in mine):.1f}", f"{ratios(mine, more['Pillow to AVIF']):.2f}"]
        for name, mine in more.items()
    ]
    network = networks(path, image, 3 * rounds)
    inside = [
        [way, *(f"{1e3 * Spread.of(mine[name]).median:.1f}" for name in mine), f"{ratios(*mine.values()):.2f}"]
        for way, mine in network.items()
    ]
    markdown = "\n\n".join(
        [
            f"# One {image.width}x{image.height} image, a process for each way",
            f"Model {path.stem}; {rounds} rounds, median (quartiles). " + machine_line(about),
            table(["process", "seconds", "ratio to import torch", "peak memory, MB"], rows),
            table(["one file more", "ms", "ratio to AVIF's encoder"], further),
            table(["networks and quantizing, fp32", "onnx, ms", "torch, ms", "ratio"], inside),
        ]
    )
    everything = {
        "machine": about,
        "seconds": times,
        "peak bytes": memory,
        "seconds of a file more": more,
        "network seconds": network,
    }
    return Report("startup", markdown, everything)


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
