"""What a quality promises: every quality of a model on every photograph, real files, beside their estimates.

    python -m benchmarks.rates --data DIR [--model NAME|FILE] [--out DIR]

Prints a table, of every tenth quality, and writes it to DIR/rates.md. The promises: a file differs from its estimate by
at most 0.5 % and 64 bytes; a higher quality makes a larger file of every image; it raises the mean PSNR over the
images. Exit code 1 if one is broken.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks.measure import machine, machine_line, photographs, table
from codec.coding.codec import Codec
from codec.coding.models import DEFAULT, find_model, load_model
from codec.evaluation.metrics import psnr
from codec.evaluation.results import ESTIMATE_BYTES, ESTIMATE_SHARE


def measure(model: Codec, images: list) -> np.ndarray:
    """(qualities, images, 3): bytes, estimated bytes, PSNR in dB."""
    found = np.empty((len(model.qualities), len(images), 3))
    for i, image in enumerate(tqdm(images, unit="image", disable=None)):
        for j, quality in enumerate(model.qualities):
            data = model.compress(image, quality)
            found[j, i] = len(data), model.estimate(image, quality).bits / 8, psnr(image, model.decompress(data))
    return found


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="DIR", help="photographs (default: samples in scikit-image)")
    parser.add_argument("--model", default=DEFAULT, metavar="NAME|FILE", help=f"default: {DEFAULT}")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write rates.md there, too")
    args = parser.parse_args(argv)
    model, images = load_model(find_model(args.model)), photographs(args.data)
    found = measure(model, images)
    size, estimate, db = np.moveaxis(found, 2, 0)  # each (qualities, images)
    pixels = np.array([image.width * image.height for image in images])
    off = size - estimate
    beyond = np.sign(off) * np.maximum(np.abs(off) - ESTIMATE_SHARE * estimate, 0)  # the share, in bytes
    rows = [
        [str(q), f"{(8 * size[j] / pixels).mean():.4f}", f"{db[j].mean():.3f}",
         f"{beyond[j].min():+.1f}", f"{beyond[j].max():+.1f}"]
        for j, q in enumerate(model.qualities) if q is None or q % 10 == 0
    ]  # fmt: skip
    steps, rises = np.diff(size, axis=0), np.diff(db.mean(axis=1))
    promises = {
        f"a file differs from its estimate by at most {ESTIMATE_SHARE:.1%} + {ESTIMATE_BYTES} bytes: beyond the share "
        f"{beyond.min():+.1f} to {beyond.max():+.1f} bytes": np.abs(beyond).max() <= ESTIMATE_BYTES,
        f"the file grows with the quality: {(steps > 0).sum()} of {steps.size} steps": (steps > 0).all(),
        f"the mean PSNR rises with it: {(rises > 0).sum()} of {rises.size} steps": (rises > 0).all(),
    }
    text = "\n\n".join(
        [
            f"## Qualities of {args.model}, {len(images)} photographs",
            f"Model {model.id}, {model.precision}. {machine_line(machine())}",
            table(["quality", "bpp", "PSNR in dB", "bytes beyond 0.5 %, least", "most"], rows),
            "\n".join(f"- {'PASS' if kept else 'FAIL'}: {promise}" for promise, kept in promises.items()),
        ]
    )
    print(text)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "rates.md").write_text(text + "\n", encoding="utf-8")
    return int(not all(promises.values()))


if __name__ == "__main__":
    sys.exit(main())
