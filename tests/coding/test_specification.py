"""The specification suffices: a decoder written from it alone (tests/tools/plain_decoder.py) finds the same symbols.

The golden files are small: of one lane, one strip and one row of tiles. What else the format has, files and streams
made here hold: rows of tiles, lanes, substreams, strips, models of one lambda and of the other family.
"""

import ast
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import plain_decoder
import pytest
import torch
from PIL import Image
from shared import ALL_RATES, GOLDEN, GOLDEN_HASHES, GOLDEN_MODELS, HYPER, SCALE, digest, random_context, tiny_network

import entropy
from codec.coding import tiles
from codec.coding.models import export, load_model
from codec.coding.tiles import Latent
from codec.container import bitstream
from codec.files import sample_images
from codec.network.hyper import HYPER_TRANSFORMS, Constants
from entropy.integer import IntegerConv2d


class Loaded(dict):
    """A model of the plain decoder whose tensors are given."""

    config: dict


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


def test_a_layer_with_weights_and_biases_between_two_steps():
    rng = np.random.default_rng(0)
    layer = IntegerConv2d(2, 40, 3)
    layer.weight.data[...] = torch.from_numpy(rng.integers(-1800, 1800, layer.weight.shape) / 2**13)
    layer.bias.data[...] = torch.from_numpy((rng.integers(-9, 9, 40) * 2**12 + rng.choice([-0.5, 0.5], 40)) / 2**20)
    model = Loaded({f"h_s.own.{name}": tensor.numpy() for name, tensor in layer.state_dict().items()})
    for x in (np.zeros((2, 3, 3)), rng.integers(0, 2**16, (2, 64, 64)).astype(float)):
        with torch.no_grad():
            fine, rough = (layer(torch.from_numpy(x[None]), drop=drop)[0].numpy() for drop in (0, 5))
        assert np.array_equal(plain_decoder.convolve(model, "own", x), fine)
        assert np.array_equal(plain_decoder.convolve(model, "own", x, shift=17), rough)


@pytest.mark.parametrize("transform", HYPER_TRANSFORMS)
def test_numbers_of_tables_where_activations_and_indices_reach_their_limits(transform):
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    h_s = HYPER_TRANSFORMS[transform][1](24, 16, 12, False)
    torch.nn.init.normal_(h_s.scale.weight, std=0.005)
    model = Loaded({f"h_s.{name}": tensor.numpy() for name, tensor in h_s.state_dict().items()})
    limits = {"step": (1, 2**12), "inner": (-9999, 9999), "outer": (-(2**15), 2**17)}
    sizes = {"step": 12, "inner": h_s.inner.values.shape[1], "outer": 24}
    constants = {name: rng.integers(*limits[name], size) for name, size in sizes.items()}
    model |= {f"tables.{name}": array[None] for name, array in constants.items()} | {"tables.y_sizes": np.zeros(64)}
    model.config = {"transform": transform}
    given = Constants(*(torch.from_numpy(array).double()[None, :, None, None] for array in constants.values()))
    for shape in ((3, 5), (1, 7), (1, 1)):
        z = rng.integers(-127, 128, (12, *shape))
        with torch.no_grad():
            expected = h_s(torch.from_numpy(z[None]), given, 64)[0].numpy()[0]
        assert z.size < 100 or len(np.unique(expected)) > 40
        assert np.array_equal(plain_decoder.hyper_synthesis(z, model, 255), expected)


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
    values[rng.random(shape) < 0.01] *= 1e4
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
    gentle = replace(context, constants=context.constants // np.int32([1, 60, 1]))  # its largest features still matter
    for numbers in (context, gentle, random_context(rng, 6, 3, extreme=True)):
        data = entropy.encode_adapted(values, index, tables, numbers, lanes=lanes)
        assert np.array_equal(plain_decoder.decode_adapted(data, plain, index, numbers.arrays), values)


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
