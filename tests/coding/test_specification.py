"""The specification suffices: a decoder written from it alone (tests/tools/plain_decoder.py) finds the same symbols.

The golden files are small: of one lane, one strip and one row of tiles. What else the format has, files and streams
made here hold: rows of tiles, lanes, substreams, strips, models of one lambda and of the other family.
"""

import ast
import sys
from functools import partial

import numpy as np
import plain_decoder
import pytest
from PIL import Image
from shared import ALL_RATES, GOLDEN, GOLDEN_HASHES, GOLDEN_MODELS, HYPER, SCALE, digest, random_context, tiny_network

import entropy
from codec.coding import tiles
from codec.coding.models import export, load_model
from codec.coding.tiles import Latent
from codec.container import bitstream
from codec.files import sample_images


def plainly(data: bytes, path) -> Latent:
    """What the plain decoder finds in a file of a model."""
    found = plain_decoder.symbols(plain_decoder.parse(data), plain_decoder.Model(path))
    return Latent(*(None if part is None else part[None] for part in found))


@pytest.fixture
def large(monkeypatch) -> Image.Image:
    """A photograph of several rows of tiles; its sides are no multiples of anything."""
    monkeypatch.setattr(tiles, "TILE", 3)
    return dict(sample_images(["astronaut"]))["astronaut"].crop((20, 0, 270, 401))


def test_the_plain_decoder_imports_nothing_of_ours():
    tree = ast.parse(open(plain_decoder.__file__, encoding="utf-8").read())
    names = [name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names]
    names += [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert {name.split(".")[0] for name in names} - sys.stdlib_module_names == {"numpy"}
    assert "import_module" not in ast.dump(tree) and "__import__" not in ast.dump(tree)


@pytest.mark.parametrize("name", GOLDEN_HASHES)
def test_golden_files(name):
    assert digest(plainly((GOLDEN / f"{name}.lic").read_bytes(), GOLDEN_MODELS[name])) == GOLDEN_HASHES[name]


@pytest.mark.parametrize("name", ["tiny", "fixed", "hyper", "hyper_fixed"])
def test_files_in_rows_of_tiles(models, large, name):
    path = models / f"{name}.safetensors"
    model = load_model(path, precision="fp32")
    data = model.compress(large, 60 if model.config.variable_rate else None)
    header, sections = bitstream.read(data)
    assert len(bitstream.row_streams(header, sections)) > 1
    assert digest(plainly(data, path)) == digest(model.decode(header, sections))


@pytest.mark.parametrize("prior", [SCALE, HYPER])
def test_files_of_the_other_family(photo, tmp_path, prior):
    path = tmp_path / "model.safetensors"
    export(tiny_network(photo, ALL_RATES, prior, transform="bmshj2018"), path)
    model = load_model(path, precision="fp32")
    latent = model.decode(*bitstream.read(data := model.compress(photo, 60)))
    assert len(np.unique(latent.index)) > 3
    assert digest(plainly(data, path)) == digest(latent)


def some_tables(rng) -> tuple[entropy.Tables, list[plain_decoder.Table]]:
    """Tables of different widths, ours and the plain ones; what lies outside of them is not rare."""
    widths = np.linspace(0.2, 20, 30)
    pmfs = [np.exp(-np.abs(np.arange(-k, k + 1)) / width) for k, width in enumerate(widths, 1)]
    tables = entropy.Tables.from_pmfs([0.98 * p / p.sum() for p in pmfs], offsets=[-k for k in range(1, 31)])
    return tables, plain_decoder.split(tables.freqs, tables.sizes, tables.offsets)


def some_symbols(rng, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Values, some of them far outside of the tables, and indices."""
    index = rng.integers(0, 30, shape).astype(np.uint8)
    values = np.rint(rng.laplace(size=shape) * (index + 1) / 2)
    values[rng.random(shape) < 0.001] *= 1e4
    return values.astype(np.int32), index


@pytest.mark.parametrize("lanes", [1, 3, 4, 64])
def test_lanes(lanes):
    """With a context a row is not a multiple of the lanes: they go on in the next one."""
    rng = np.random.default_rng(lanes)
    tables, plain = some_tables(rng)
    values, index = some_symbols(rng, (6, 7, 11))
    data = entropy.encode([(values, index, tables)], lanes=lanes)
    assert np.array_equal(plain_decoder.decode(data, plain, index), values)
    context = random_context(rng, 6, 3)
    data = entropy.encode_adapted(values, index, tables, context, lanes=lanes)
    assert np.array_equal(plain_decoder.decode_adapted(data, plain, index, context.arrays), values)


@pytest.mark.parametrize("adapted", [False, True])
def test_substreams_and_strips(adapted):
    rng = np.random.default_rng(0)
    tables, plain = some_tables(rng)
    values, index = some_symbols(rng, (2, 3, 2**20 // 6 + 5))
    context = random_context(rng, 2, 1)
    if adapted:
        data = entropy.encode_adapted(values, index, tables, context)
        decode = partial(plain_decoder.decode_adapted, context=context.arrays)
    else:
        data, decode = entropy.encode([(values, index, tables)]), plain_decoder.decode
    assert len(plain_decoder.substreams(data)) == 2
    assert np.array_equal(decode(data, plain, index), values)
