"""Others beside us: CompressAI's checkpoints, published curves, Kodak's images, and plots of both projects."""

import dataclasses
import json
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

import eval as program
from codec.errors import LicError
from codec.evaluation import compressai_models, evaluate, kodak
from codec.evaluation.codecs import make_codec, rival_codec
from codec.evaluation.cost import time_coding
from codec.evaluation.curves import ANCHORS, anchors, bd_rate, full_range, read_curve
from codec.evaluation.evaluate import run

# ---- CompressAI's models from their checkpoints ----


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """As CompressAI's training example saves them, of models whose last layers give symbols that are not all zero."""
    models = pytest.importorskip("compressai.models")
    folder = tmp_path_factory.mktemp("compressai")
    torch.manual_seed(3)
    kinds = {
        "bmshj2018-factorized": models.FactorizedPrior,
        "mbt2018-mean": models.MeanScaleHyperprior,
        "mbt2018": models.JointAutoregressiveHierarchicalPriors,
    }
    for name, kind in kinds.items():
        net = kind(8, 12)
        with torch.no_grad():
            net.g_a[-1].weight.mul_(30)
        optimizer = torch.optim.Adam(net.parameters())
        state = {"epoch": 0, "state_dict": net.state_dict(), "loss": 1.0, "optimizer": optimizer.state_dict()}
        torch.save(state, folder / f"{name}.pth.tar")
    return folder


@pytest.mark.parametrize("name", ["bmshj2018-factorized", "mbt2018-mean"])
def test_a_checkpoint_of_compressai_codes_with_its_own_coder_and_through_the_bridge(
    name, checkpoints, photos, tmp_path
):
    from compressai.zoo.image import model_architectures

    path = checkpoints / f"{name}.pth.tar"
    codecs = [make_codec(f"{kind}:{name}:{path}", "cpu") for kind in ("compressai", "bridge")]
    codecs = [dataclasses.replace(codec, text=None) for codec in codecs]  # its memory is not of interest here
    images = [("even", photos[0].resize((128, 64))), ("odd", photos[1].crop((0, 0, 70, 51)))]
    own, bridge = run(codecs, images, tmp_path)
    assert not own.failures and not bridge.failures

    net = model_architectures[name].from_state_dict(torch.load(path)["state_dict"]).eval()
    net.update()
    x = torch.from_numpy(np.array(images[0][1])).permute(2, 0, 1)[None] / 255
    coded = net.compress(x)
    strings = [string for (string,) in coded["strings"]]
    data = (tmp_path / own.rows[0].file).read_bytes()
    assert all(string in data for string in strings) and len(data) == 4 + sum(4 + len(s) for s in strings)
    with torch.no_grad():
        x_hat = net.decompress(coded["strings"], coded["shape"])["x_hat"]
        bits = -sum(p.log2().sum().item() for p in net(x)["likelihoods"].values())
    assert codecs[0].decode(data).tobytes() == (
        (x_hat[0] * 255).round().clamp(0, 255).byte().permute(1, 2, 0).numpy().tobytes()
    )
    assert own.rows[0].estimated_bytes == pytest.approx(bits / 8, rel=1e-5)
    for theirs, ours in zip(own.rows, bridge.rows, strict=True):
        assert theirs.psnr == ours.psnr and theirs.estimated_bytes == ours.estimated_bytes
        assert 0 < theirs.encoding_entropy_time < theirs.encoding_time
        assert 0 < ours.decoding_entropy_time < ours.decoding_time
    assert own.parameters == sum(p.numel() for p in net.parameters()) and min(own.kmac_per_pixel) > 0


def test_an_autoregressive_model_codes_with_its_own_coder_only(checkpoints, photos):
    net = compressai_models.load("mbt2018", checkpoints / "mbt2018.pth.tar")
    encode, decode = compressai_models.coder(net)
    image = photos[0].crop((0, 0, 50, 60))
    seconds = time_coding(lambda image, _: encode(image), decode, image, None)
    assert decode(encode(image)).size == (50, 60)
    assert 0 < seconds.encoding_entropy < seconds.encoding and 0 < seconds.decoding_entropy < seconds.decoding
    with pytest.raises(LicError, match="cannot be bridged"):
        compressai_models.bridged(net)


def test_a_file_that_is_no_checkpoint_is_an_error_that_names_it(checkpoints, tmp_path):
    (tmp_path / "text.pth").write_text("no checkpoint")
    for name, path in (("mbt2018-mean", tmp_path / "text.pth"), ("mbt2018-mean", checkpoints / "mbt2018.pth.tar")):
        with pytest.raises(ValueError, match=f"{path.name} is no checkpoint of {name}"):
            make_codec(f"compressai:{name}:{path}", "cpu")


# ---- published figures, and the images they are of ----


def test_published_curves_give_the_published_table():
    known = {
        "compressai-bmshj2018-hyperprior": 30.5,
        "compressai-mbt2018-mean": 21.3,
        "bpg": 22.0,
        "elic": -7.4,
        "tcm-large": -11.7,
        "mlic++": -15.0,
        "dcae": -17.0,
        "hpcm-base": -16.0,
        "hpcm-large": -20.0,
    }
    vtm = read_curve(ANCHORS, "vtm")
    for name, percent in known.items():
        curve = read_curve(ANCHORS, name)
        assert bd_rate(vtm, curve, *full_range(vtm, curve), points=2) == pytest.approx(percent, abs=0.3), name


def test_every_published_curve_has_its_source_and_can_be_an_anchor():
    for name, source in anchors().items():
        curve = program.find_anchor(name, ["lic"])["psnr"]
        assert "/" in source and len(curve.bpp) == len(curve.scores) >= 6
        assert curve.bpp == sorted(curve.bpp) and curve.scores == sorted(curve.scores)


@pytest.fixture
def fake_kodak(tmp_path, monkeypatch, photos):
    """A server's folder with two images that are taken for Kodak, and an empty cache."""
    server, hashes = tmp_path / "server", {}
    server.mkdir()
    for i, photo in enumerate(photos[:2]):
        photo.save(server / f"kodim0{i}.png")
        digests = (evaluate._sha256(server / f"kodim0{i}.png"), kodak.hashlib.sha256(photo.tobytes()).hexdigest())
        hashes[f"kodim0{i}.png"] = dict(zip(("file", "pixels"), digests, strict=True))
    monkeypatch.setattr(kodak, "HASHES", hashes)
    monkeypatch.setattr(kodak, "URL", server.as_uri() + "/")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("LIC_KODAK", raising=False)
    monkeypatch.chdir(tmp_path)
    return server


def test_kodak_is_downloaded_once_and_its_results_may_be_compared_with_published_ones(fake_kodak, monkeypatch, capsys):
    monkeypatch.setattr(evaluate, "_processes", ThreadPoolExecutor)
    options = ["--data", "kodak", "--codec", "jpeg", "--anchor", "vtm", "--range", "31", "34"]
    assert program.main([*options, "--out", "out"]) == 0, capsys.readouterr()
    assert "24 images" not in capsys.readouterr().out
    assert isinstance(json.loads(open("out/bd_rate.json").read())["rates"]["psnr"]["percent"]["jpeg"], float)
    for path in fake_kodak.iterdir():
        path.unlink()
    assert sorted(path.name for path in kodak.kodak().iterdir()) == ["kodim00.png", "kodim01.png"]


def test_kodak_without_a_network_says_where_to_put_it(fake_kodak, monkeypatch):
    (fake_kodak / "kodim01.png").unlink()
    with pytest.raises(OSError, match="kodim01.png cannot be had .* put kodim01.png .* or set LIC_KODAK"):
        kodak.kodak()


def test_a_wrong_image_is_never_taken_for_kodak(fake_kodak, monkeypatch, tmp_path):
    (fake_kodak / "kodim01.png").write_bytes(b"another")
    with pytest.raises(ValueError, match="is not Kodak's kodim01.png"):
        kodak.kodak()
    assert not list((tmp_path / "cache").rglob("*kodim01*"))  # nothing wrong was kept
    monkeypatch.setenv("LIC_KODAK", str(fake_kodak))
    with pytest.raises(ValueError, match="is not Kodak's kodim01.png"):
        kodak.kodak()
    (fake_kodak / "kodim01.png").unlink()
    with pytest.raises(FileNotFoundError, match="kodim01.png is not there"):
        kodak.kodak()


def test_the_hashes_are_those_of_24_different_images():
    assert len(kodak.HASHES) == 24
    for kind in ("file", "pixels"):
        digests = {hashes[kind] for hashes in kodak.HASHES.values()}
        assert len(digests) == 24 and all(len(digest) == 64 for digest in digests)


# ---- the tools of both projects ----


def test_compressai_plots_our_results_and_we_plot_theirs(tmp_path, photos, lic):
    plot = pytest.importorskip("compressai.utils.plot.__main__")
    image = photos[0].resize((192, 168), Image.Resampling.BICUBIC)
    codec = rival_codec("jpeg", [20, 40, 60, 80])
    (result,) = run([codec], [("large", image)], tmp_path)
    ours = tmp_path / "ours.json"
    ours.write_text(result.to_json())
    for metric, values in (("psnr", [p["psnr"] for p in result.means()]), ("ms-ssim", result.means())):
        points = plot.parse_json_file(ours, metric)
        assert points["name"] == "jpeg" and points["xs"] == result.curve().bpp
        if metric == "psnr":
            assert points["ys"] == values
        else:
            assert list(points["ys"]) == pytest.approx([-10 * math.log10(1 - p["ms_ssim"]) for p in values])
        plot.main(["-f", str(ours), "-m", metric, "-o", str(tmp_path / f"{metric}.png")])
        assert (tmp_path / f"{metric}.png").stat().st_size > 1000

    theirs = tmp_path / "theirs.json"  # as its eval_model prints them
    results = {"psnr-rgb": [28.0, 30.5], "ms-ssim-rgb": [0.9, 0.95], "bpp": [0.2, 0.5]}
    results |= {"encoding_time": [0.1, 0.1], "decoding_time": [0.2, 0.2]}
    theirs.write_text(json.dumps({"name": "mbt2018-mean-mse", "description": "Inference (ans)", "results": results}))
    code, out, err = lic("plot", ours, theirs, "-o", tmp_path / "both.png")
    assert code == 0 and (tmp_path / "both.png").exists() and "mbt2018-mean-mse" in "".join(err)
