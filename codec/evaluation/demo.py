"""`lic demo`: compress photographs with the default model, JPEG, WebP and AVIF, and show the results.

The photographs are in scikit-image's wheel. Every file is written to disk and decoded from there: rates are file sizes,
PSNR and SSIMULACRA 2 are of the decoded 8-bit image.
"""

from pathlib import Path

from PIL import Image

import codec
from codec.coding.target import fit_size
from codec.evaluation import plot
from codec.evaluation.codecs import FileCodec, lic_codec, rival_codec
from codec.evaluation.evaluate import run
from codec.evaluation.metrics import METRICS, psnr, ssimulacra2
from codec.evaluation.results import table
from codec.files import sample_images, write_atomically

SHOWN = ("psnr", "ssimulacra2")
QUALITIES = {
    "lic": (10, 25, 40, 55, 70, 85),
    "jpeg": (10, 25, 45, 65, 80, 90),
    "webp": (5, 20, 40, 60, 80, 90),
    "avif": (20, 35, 45, 55, 65, 75),
}
CROP = {"astronaut": (150, 0), "coffee": (150, 60), "chelsea": (130, 60), "motorcycle": (250, 150)}  # left, top
CROP_SIDE = 224
CROP_QUALITY = 30  # our quality in the crops; other codecs get as many bytes


def compare_crops(codecs: list[FileCodec], images: list[tuple[str, Image.Image]], path: Path) -> None:
    """Draw crops of every original, and as decoded by each codec from files no larger than ours."""
    rows = []
    for name, image in images:
        left, top = CROP[name]
        box = (left, top, left + CROP_SIDE, top + CROP_SIDE)
        row = [(f"{name}\noriginal", image.crop(box))]
        ours = codecs[0].encode(image, CROP_QUALITY)
        for contender in codecs:
            data = ours if contender is codecs[0] else fit_size(contender.encode, image, len(ours))[0]
            decoded = contender.decode(data)
            scores = psnr(image, decoded), ssimulacra2(image, decoded)  # of the image, not of the crop
            text = f"{METRICS['psnr'].text(scores[0])}, SSIMULACRA 2: {METRICS['ssimulacra2'].text(scores[1])}"
            row.append((f"{contender.name}\n{len(data)} bytes\n{text}", decoded.crop(box)))
        rows.append(row)
    plot.crops(rows, path, "Crops at about equal file size, ours the largest; scores are of the whole image")


def run_demo(out: Path, device: str) -> int:
    """Write files, table and plots to `out`, which must be new or empty; returns the exit code."""
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty, perhaps from an earlier demo: choose another folder with --out")
    model = codec.load(device=device)
    images = sample_images()
    codecs = [lic_codec(model, QUALITIES["lic"])]
    codecs += [rival_codec(name, QUALITIES[name]) for name in ("jpeg", "webp", "avif")]
    results = run(codecs, images, out, SHOWN)
    text = table(results)
    print(text)
    write_atomically(out / "table.txt", text.encode())
    for result in results:
        write_atomically(out / f"{result.name}.json", result.to_json().encode())
    curves = [result.curve(metric) for metric in SHOWN for result in results]
    plot.rd_curves(curves, out / "rd.png", "Four photographs from scikit-image")
    compare_crops(codecs, images, out / "crops.png")
    print(f"rate-distortion plot  {out / 'rd.png'}")
    print(f"crops at equal size   {out / 'crops.png'}")
    print(f"all files             {out / 'files'}")
    return 1 if any(result.failures for result in results) else 0
