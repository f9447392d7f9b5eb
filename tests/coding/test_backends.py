"""Two backends, one stream: what ONNX Runtime makes of a model is what PyTorch makes, integers to the last one."""

import itertools
import textwrap

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from shared import ALL_RATES, FACTORIZED, HYPER, ONE_LAMBDA, SCALE, in_fresh_python, noise_image, tiny_network
from torch import nn

import codec
from codec.arguments import EXPORTED
from codec.coding import models as checkpoint
from codec.coding.backend import Step
from codec.coding.codec import Codec
from codec.coding.export import add_graphs
from codec.coding.models import ModelError, export, load_model
from codec.coding.tiles import full, planes
from codec.config import CELL, REACH
from codec.container import bitstream
from codec.network import layers
from codec.network.calibrate import fit
from codec.network.graph import LAYERS
from codec.network.pixels import to_tensor
from codec.network.transforms import FastAnalysis

BALLE = dict(transform="bmshj2018", N=8, M=8)
SHIFTED = dict(shortcut=True, lapped=False)
KINDS = {  # of networks: all that configurations can ask for, in as few as they take
    "factorized": (ALL_RATES, FACTORIZED, {}),
    "hyper": (ALL_RATES, HYPER, {}),
    "context": (ALL_RATES, HYPER, dict(context=3)),
    "fixed, around 0": (ONE_LAMBDA, SCALE, SHIFTED),
    "no shortcut": (ALL_RATES, HYPER, dict(shortcut=False, blocks=[0, 2])),
    "bmshj2018": (ONE_LAMBDA, FACTORIZED, BALLE),
    "bmshj2018, around 0": (ALL_RATES, SCALE, BALLE),
    "mbt2018": (ONE_LAMBDA, HYPER, BALLE),
}


@pytest.fixture(scope="module", params=KINDS)
def pair(request, photo, tmp_path_factory) -> tuple[Codec, Codec]:
    """A model in torch and in onnx."""
    lmbda, prior, options = KINDS[request.param]
    network = tiny_network(photo, lmbda, prior, **options)
    if options is BALLE or not options.get("shortcut", True):
        with torch.no_grad():  # away from the all-zero latent that it starts with
            (network.g_a.layers[-1] if options is BALLE else network.g_a.head).weight *= 300
            fit(network, to_tensor(photo))
    path = tmp_path_factory.mktemp("pair") / "a.safetensors"
    export(network, path)
    return load_model(path, precision="fp32"), load_model(path, backend="onnx")


def qualities(model: Codec) -> list[int | None]:
    return [0, 37, 100] if model.config.variable_rate else [None]


def test_both_have_the_same_parameters_and_halos(pair):
    ours, theirs = (model.backend for model in pair)
    assert (ours.parameters, ours.halos) == (theirs.parameters, theirs.halos)


def test_the_exact_path_gives_the_same_integers_whatever_the_symbols(pair):
    ours, theirs = (model.backend for model in pair)
    if ours.config.prior == FACTORIZED:
        pytest.skip("no hyperprior")
    rng = np.random.default_rng(0)
    for (height, width), quality in itertools.product([(1, 1), (1, 6), (2, 1), (3, 4), (9, 2)], qualities(pair[0])):
        reach = int(rng.choice([2, 20, REACH]))
        z = rng.integers(-reach, reach, (1, ours.config.hyper_M, height, width), np.int32, endpoint=True)
        area, constants = full((height, width)), pair[0].tables.constants[quality]
        a, b = (next(backend.steps(z, area, area.scaled(CELL), quality, constants)) for backend in (ours, theirs))
        assert np.array_equal(a.index, b.index) and a.index.dtype == b.index.dtype == np.uint8
        assert a.mean.shape == b.mean.shape and np.allclose(a.mean, b.mean, atol=1e-4 * (1 + np.abs(a.mean).max()))


def test_floats_are_rounded_and_put_back_alike(pair):
    ours, theirs = (model.backend for model in pair)
    rng = np.random.default_rng(1)
    shape = (1, ours.config.M, 5, 7)
    v = rng.normal(scale=rng.choice([0.3, 1, 30], shape)).astype(np.float32)
    v[..., 0, :] = np.arange(-3, 4) / 2  # in the middle between integers
    v[..., 1, :] = [1e9, -1e9, 0, -0.0, 2**24, -(2.0**24), 1e-30]
    if ours.config.prior == FACTORIZED:
        step = Step((slice(None),) * 4, shape, np.arange(ours.config.M, dtype=np.uint16)[None, :, None, None], None)
    else:
        index, mean = rng.integers(0, 64, shape, np.uint8), rng.normal(size=shape).astype(np.float32)
        step = Step((slice(None),) * 4, shape, index, mean)
    for quality in qualities(pair[0]):
        a, b = (backend.quantize(v, step, quality) for backend in (ours, theirs))
        assert np.array_equal(a, b) and a.dtype == b.dtype == np.int32
        assert np.allclose(*(backend.dequantize(a, step, quality) for backend in (ours, theirs)), rtol=1e-6, atol=1e-6)


def test_files_of_each_decode_in_the_other(pair, photo):
    """To the encoder's symbols, and to pixels that hardly ever differ, and then by a grey level."""
    different = count = 0
    for i, (width, height) in enumerate([(1, 1), (2, 130), (16, 17), (64, 5), (47, 65), (96, 64)]):
        image = photo.resize((width, height)) if i % 2 else noise_image(width, height)
        image = image.convert("L") if i == 3 else image
        for writer, reader in (pair, pair[::-1]):
            quality = qualities(writer)[i % len(qualities(writer))]
            data = writer.compress(image, quality)
            latent, found = writer.latent(planes(image), quality), reader.decode(*bitstream.read(data))
            assert np.array_equal(latent.y, found.y) and np.array_equal(latent.z, found.z)
            assert np.array_equal(latent.index, found.index)
            a, b = (np.asarray(model.decompress(data), np.int16) for model in (writer, reader))
            assert a.shape == b.shape and np.abs(a - b).max() <= 1
            different, count = different + (a != b).sum(), count + a.size
    assert different <= 0.001 * count + 1


def test_encoders_choose_nearly_the_same_symbols(pair, photo):
    for quality in qualities(pair[0]):
        a, b = (model.latent(planes(photo), quality) for model in pair)
        assert a.y.any() and (a.y != b.y).mean() <= 0.001
        assert a.z is None or (a.z != b.z).mean() <= 0.01


# ---- graphs in model files ----


class Wide(nn.Module):
    """A layer that somebody has added."""

    def __init__(self, channels: int):
        super().__init__()
        self.layer = layers.Conv2d(channels, channels, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layer(x)


def test_a_layer_that_graphs_do_not_know_is_told_and_left_to_torch(photo, tmp_path, capsys, monkeypatch):
    made = FastAnalysis.__init__

    def changed(self, N: int, **options):
        made(self, N, **options)
        self.eighth = Wide(N)

    monkeypatch.setattr(FastAnalysis, "__init__", changed)
    export(tiny_network(photo, ONE_LAMBDA), tmp_path / "a.safetensors")
    assert capsys.readouterr().err == "lic: without PyTorch the model will not be read: no graph of a Wide\n"
    assert load_model(tmp_path / "a.safetensors", backend="auto").compress(photo)
    with pytest.raises(ModelError, match="it has no graphs"):
        load_model(tmp_path / "a.safetensors", backend="onnx")
    monkeypatch.setitem(LAYERS, Wide, lambda g, wide, x: x + g.module(wide.layer, x))  # the README's line
    export(tiny_network(photo, ONE_LAMBDA), tmp_path / "a.safetensors")
    assert load_model(tmp_path / "a.safetensors", backend="onnx").compress(photo)


def test_a_layer_that_was_changed_in_pytorch_alone_is_seen(photo, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(layers.Block, "forward", lambda self, x: 2 * x + self.mix(x))
    export(tiny_network(photo, ONE_LAMBDA), tmp_path / "a.safetensors")
    assert "the graph of g_a does not compute what PyTorch does" in capsys.readouterr().err
    assert "graph.g_a" not in load_file(tmp_path / "a.safetensors")


@pytest.fixture
def old(models, tmp_path):
    """A model as they were before there were graphs."""
    tensors = {name: t for name, t in load_file(models / "hyper.safetensors").items() if not name.startswith("graph.")}
    about = checkpoint.about(models / "hyper.safetensors")
    checkpoint.write_model(tmp_path / "old.safetensors", about["config"], tensors, None)
    return tmp_path / "old.safetensors"


def test_a_model_gets_graphs_and_still_decodes_its_files(old, photo, tmp_path, monkeypatch, hyper):
    before = load_model(old, precision="fp32")
    data = before.compress(photo, 50)
    id = add_graphs(old)
    after = load_model(old, backend="auto")
    assert after.id == id == hyper.id and after.backend.precision == "fp32" and list(after.replaces) == [before.id]
    assert np.array_equal(after.decode(*bitstream.read(data)).y, before.decode(*bitstream.read(data)).y)
    monkeypatch.setenv("LIC_MODELS", str(tmp_path))
    assert checkpoint.find_model(id=before.id) == checkpoint.find_model(id=id) == old
    assert np.abs(np.asarray(codec.decompress(data), int) - np.asarray(before.decompress(data))).max() <= 1
    assert add_graphs(old) == id


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
import codec
from codec.coding.models import load_model
from PIL import Image
for load in (lambda: load_model(sys.argv[1], backend="auto"), lambda: codec.load(sys.argv[2], backend="torch"),
             lambda: codec.load(sys.argv[2], "cuda")):
    try:
        load()
    except ValueError as error:
        print(error)
codec.load(sys.argv[2]).decompress(codec.load(sys.argv[2], "auto").compress(Image.new("RGB", (9, 9)), 50))
"""


def test_where_pytorch_is_missing_is_said_in_a_line(old, models):
    done = in_fresh_python(WITHOUT_TORCH, old, models / "hyper.safetensors", NUMBA_DISABLE_JIT=1)
    lines = done.stdout.splitlines()
    assert len(lines) == 3 and all(line.endswith("pip install -e '.[train]'") for line in lines)
    assert "a model without graphs for ONNX Runtime needs the package torch" in lines[0]
    assert "the backend torch needs" in lines[1] and "--device cuda needs" in lines[2]


@pytest.mark.parametrize("arguments, message", [
    (("tiny", "cuda", "auto", "onnx"), "onnx runs on the CPU alone"),
    (("tiny", "auto", "auto", "jax"), "the backend must be auto, onnx or torch, not 'jax'"),
    (("tiny", "cpu", "fp16", "onnx"), "the precision must be auto or fp32"),
])  # fmt: skip
def test_what_onnx_runtime_does_not_do_is_refused(shell, arguments, message):
    with pytest.raises(ValueError, match=message):
        codec.load(*arguments)


def test_onnx_runtime_tells_no_estimates_and_does_not_search(models, photo):
    model = load_model(models / "hyper.safetensors", backend="onnx")
    for ask in (model.estimate, lambda image, quality: model.compress(image, quality, effort=1)):
        with pytest.raises(ValueError, match="backend='torch'"):
            ask(photo, 50)


@pytest.mark.parametrize("name", ["graph.g_a", "graph.g_a.weights", "g_s.stem.bias", "tables.step"])
def test_a_graph_that_is_damaged_or_has_no_weights_is_an_error(models, tmp_path, photo, name):
    tensors = load_file(models / "hyper.safetensors")
    if name == "graph.g_a":
        tensors[name] = tensors[name][:-100].copy()
    elif name == "graph.g_a.weights":
        tensors[name] = np.frombuffer(tensors[name].tobytes().replace(b"g_a.stem", b"g_a.mets"), np.uint8)
    else:
        tensors[name] = tensors[name][..., 1:].copy()
    about = checkpoint.about(models / "hyper.safetensors")
    checkpoint.write_model(tmp_path / "a.safetensors", about["config"], tensors, None)
    with pytest.raises(ValueError, match="the graph of g_a cannot be run|its graph wants|is not int32"):
        model = load_model(tmp_path / "a.safetensors", backend="onnx")
        model.decompress(model.compress(photo, 50))


# ---- lic and lic export ----


@pytest.mark.parametrize("writer, reader", [("torch", "onnx"), ("onnx", "torch")])
def test_lic_takes_the_backend_that_is_asked_for(lic, shell, photo, monkeypatch, writer, reader):
    photo.save("a.png")
    assert lic("compress", "a.png", "-m", "hyper", "--backend", writer, "--verify")[0] == 0
    assert lic("decompress", "a.lic", "-o", "b.png", "--backend", reader)[0] == 0
    assert Image.open("b.png").size == photo.size


def test_exported_files_do_what_their_documentation_says(lic, shell, photo, hyper):
    assert lic("export", "hyper", "DIR")[0] == 0
    code = EXPORTED.partition("in Python:\n")[2].partition("\nand, its second half")[0]
    names = {"image": planes(photo)}
    exec(textwrap.dedent(code), names)
    latent = hyper.latent(planes(photo), 50)
    assert np.array_equal(names["z"], latent.z) and np.array_equal(names["index"][..., :4, :6], latent.index)
    decoded = names["decoded"][0, :, :64, :96].transpose(1, 2, 0)
    assert (
        np.abs(decoded - np.asarray(photo, int)).mean()
        < 1.5 * np.abs(np.asarray(hyper.decompress(hyper.compress(photo, 50)), int) - np.asarray(photo)).mean()
    )


def test_export_refuses_what_is_there_and_what_has_no_graphs(fails, lic, shell, old):
    assert lic("export", "tiny", "out") == (0, "", ["tiny -> out/g_a.onnx", "tiny -> out/g_s.onnx"])
    assert "out/g_a.onnx exists (and 1 more); -f replaces it" in fails("export", "tiny", "out")
    assert lic("export", "tiny", "out", "-f")[0] == 0
    assert "has no graphs" in fails("export", str(old), "elsewhere")
