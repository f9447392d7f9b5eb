"""Files decode everywhere: whatever thread count, precision, batch, device or process wrote them, and for ever.

Floats may differ from machine to machine, and so may the encoder's symbols and, by a grey level, the decoder's image.
What the decoder reads may not. tests/golden/ holds files that were written once: `python tests/tools/make_golden.py`
makes them anew and prints their hashes, which is right only after a deliberate change of the format or the weights.
"""

import itertools
import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from shared import GOLDEN, GOLDEN_HASHES, GOLDEN_MODELS, digest, in_fresh_python

from codec.coding.export import add_graphs
from codec.coding.models import find_model, load_model
from codec.coding.tiles import full, planes
from codec.config import CELL
from codec.container import bitstream
from codec.evaluation.metrics import psnr
from codec.files import sample_images

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
CELLS = list(itertools.product(DEVICES, (1, 2), (False, True)))  # device, threads, bf16 trunks

DECODE = """
import sys
from pathlib import Path
import torch
from codec.coding.models import load_model
from codec.container import bitstream
from shared import digest
torch.set_num_threads(2)
for folder in map(Path, sys.argv[1:]):
    model = load_model((folder / "model").read_text())
    for path in sorted(folder.glob("*.lic")):
        print(digest(model.decode(*bitstream.read(path.read_bytes()))))
"""


def set_up(model, device: str, threads: int, bf16: bool) -> None:
    torch.set_num_threads(threads)
    model.backend.network.to(device).bf16 = bf16


@pytest.fixture(autouse=True)
def one_thread_afterwards():
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def all_written(models, photos):
    """Of two models their path, and the different files that they wrote in all cells: name -> (bytes, latent)."""
    return {name: write(models / f"{name}.safetensors", photos[:2]) for name in ("tiny", "hyper")}


def write(path, photos):
    model = load_model(path)
    x = np.concatenate([planes(photo) for photo in photos])
    files = {}
    for device, threads, bf16 in CELLS:
        set_up(model, device, threads, bf16)
        batch = model.latent(x, 70)
        ways = {
            "batch": [batch.of(i) for i in range(len(x))],
            "alone": [model.latent(x[i : i + 1], 70) for i in range(len(x))],
        }
        for (way, latents), i in itertools.product(ways.items(), range(len(x))):
            data = model.encode(latents[i], 70, "RGB", (64, 96))
            files[data] = f"{device}-threads{threads}-{model.precision}-{way}{i}", latents[i]
    return path, {name: (data, latent) for data, (name, latent) in files.items()}


@pytest.fixture(params=["tiny", "hyper"])
def written(request, all_written):
    return all_written[request.param]


@pytest.mark.parametrize("device, threads, bf16", CELLS)
def test_every_cell_decodes_the_symbols_of_every_other(written, device, threads, bf16):
    path, files = written
    model = load_model(path)
    set_up(model, device, threads, bf16)
    for data, latent in files.values():
        assert digest(model.decode(*bitstream.read(data))) == digest(latent)


@pytest.mark.parametrize("device, threads", sorted({cell[:2] for cell in CELLS}))
def test_in_a_batch_every_symbol_of_z_leads_to_the_same_table(written, device, threads):
    path, files = written
    model, latents = load_model(path), [latent for _, latent in files.values()]
    if latents[0].z is None:
        pytest.skip("no hyperprior")
    set_up(model, device, threads, bf16=False)
    z, area = np.concatenate([latent.z for latent in latents]), full(latents[0].y.shape[-2:])
    (step,) = model.backend.steps(z, area.coarse(CELL), area, 70, model.tables.constants[70])
    assert np.array_equal(step.index, np.concatenate([latent.index for latent in latents]))


def test_another_process_decodes_the_same_symbols(all_written, tmp_path):
    expected = []
    for name, (path, files) in all_written.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "model").write_text(str(path))
        for i, (data, latent) in enumerate(files.values()):
            (tmp_path / name / f"{i:02}.lic").write_bytes(data)
            expected.append(digest(latent))
    done = in_fresh_python(DECODE, *(tmp_path / name for name in all_written))
    assert done.stdout.split() == expected


def test_images_of_fp32_cells_differ_by_a_grey_level_at_most_and_hardly_ever(written):
    path, files = written
    model, decoded = load_model(path), []
    for cell in CELLS:
        if not cell[2]:
            set_up(model, *cell)
            decoded.append([np.asarray(model.decompress(data), np.int16) for data, _ in files.values()])
    difference = np.abs(np.array(decoded) - decoded[0])
    assert difference.max() <= 1 and (difference > 0).mean() <= 0.001


@pytest.mark.parametrize("quality", [10, 50, 90])
def test_bf16_trunks_of_the_shipped_model_cost_at_most_two_hundredths_of_a_decibel(quality):
    model = load_model(GOLDEN_MODELS["fast-factorized"], precision="fp32")
    cells = {}
    for name, photo in sample_images():
        photo = photo.crop((100, 50, 356, 242))
        for encoder, decoder in itertools.product((False, True), repeat=2):
            model.backend.network.bf16 = encoder
            data = model.compress(photo, quality)
            model.backend.network.bf16 = decoder
            cells[name, encoder, decoder] = psnr(photo, model.decompress(data))
    for (name, _, _), value in cells.items():
        assert math.isclose(value, cells[name, False, False], abs_tol=0.02)
    assert len(set(cells.values())) > len(cells) / 2  # they do differ


@pytest.mark.parametrize("quality", [10, 50, 90])
def test_bf16_trunks_of_the_default_model_change_little(quality):
    """In the decoder at most 0.02 dB; in the encoder, which may choose other symbols, at most 1 % of the loss."""
    model = load_model(find_model("fast"), precision="fp32")
    lmbda, different = model.config.lmbda_at(quality), 0
    for _, photo in sample_images():
        photo, losses = photo.crop((100, 50, 356, 242)), []
        for encoder in (False, True):
            model.backend.network.bf16 = encoder
            data, db = model.compress(photo, quality), []
            for model.backend.network.bf16 in (False, True):
                db.append(psnr(photo, model.decompress(data)))
            assert abs(db[1] - db[0]) <= 0.02
            different += db[1] != db[0]
            losses.append(8 * len(data) / (256 * 192) + lmbda * 255**2 * 10 ** (-db[0] / 10))
        assert math.isclose(*losses, rel_tol=0.01)
    assert different


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("name", GOLDEN_HASHES)
def test_golden_files_decode_for_ever(name, bf16, device):
    model = load_model(GOLDEN_MODELS[name], device, precision="fp32")
    model.backend.network.bf16 = bf16
    data = (GOLDEN / f"{name}.lic").read_bytes()
    latent = model.decode(*bitstream.read(data))
    assert digest(latent) == GOLDEN_HASHES[name]
    assert all(part is None or len(np.unique(part)) > 5 for part in (latent.y, latent.z, latent.index))
    expected = np.asarray(Image.open(GOLDEN / f"{name}.png"), np.int16)
    decoded = np.asarray(model.decompress(data), np.int16)
    assert decoded.shape == expected.shape == (96, 128, 3)
    if not bf16:
        assert np.abs(decoded - expected).max() <= 1


@pytest.mark.parametrize("name", GOLDEN_HASHES)
def test_golden_files_decode_in_onnx_runtime(name, tmp_path):
    path = shutil.copy(GOLDEN_MODELS[name], tmp_path)
    if name != "photo-0.1":  # which only decodes
        add_graphs(path)
    model, data = load_model(path, backend="onnx"), (GOLDEN / f"{name}.lic").read_bytes()
    assert digest(model.decode(*bitstream.read(data))) == GOLDEN_HASHES[name]
    expected = np.asarray(Image.open(GOLDEN / f"{name}.png"), np.int16)
    assert np.abs(np.asarray(model.decompress(data), np.int16) - expected).max() <= 1
