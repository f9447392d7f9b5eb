"""The benchmarks that make promises see when one is broken."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import everything, jobs, offtrack, portability, training
from benchmarks.__main__ import BENCHMARKS, main, parser
from codec.coding.models import load_model


@pytest.mark.parametrize("name", ["hyper", "fixed"])
def test_portability_decodes_what_it_encoded_and_sees_other_symbols_and_images(
    name, models, photos, tmp_path, capsys, monkeypatch
):
    some = [portability.REFERENCE, portability.Cell("cpu", 1, "fp32", 4), portability.Cell("cpu", 1, "bf16", 4)]
    some.append(portability.Cell("onnx", 1, "fp32", 4))
    monkeypatch.setattr(portability, "cells", lambda: some)
    for i, photo in enumerate(photos[:2]):
        photo.save(tmp_path / f"{i}.png")
    model, out = str(models / f"{name}.safetensors"), tmp_path / "out"
    assert portability.main(["encode", "--model", model, "--data", str(tmp_path), "--out", str(out)]) == 0
    decode = ["decode", "--model", model, "--out", str(out)]
    assert portability.main(decode) == 0
    text = capsys.readouterr().out
    assert text.count("PASS") == 3 and "FAIL" not in text and str(tmp_path) not in text

    manifest = (out / "manifest.json").read_text()
    about = json.loads(manifest)
    key = next(iter(about["files"]))
    about["files"][key]["symbols"] = "0" * 64
    (out / "manifest.json").write_text(json.dumps(about))
    assert portability.main(decode) == 1
    assert "FAIL: symbols" in capsys.readouterr().out

    (out / "manifest.json").write_text(manifest)
    photos[2].save(out / f"{key}.png")
    assert portability.main(decode) == 1
    text = capsys.readouterr().out
    assert "PASS: symbols" in text and "FAIL: fp32" in text and "FAIL: bf16" in text

    other = str(models / "tiny.safetensors")
    assert portability.main([*decode[:2], other, *decode[3:]]) == 1
    assert "FAIL: written by model" in capsys.readouterr().out


def test_images_off_the_beaten_track_are_the_same_every_time_and_what_they_say():
    for name, draw in offtrack.IMAGES.items():
        image = draw()
        assert (image.size, image.mode) == (offtrack.SIZE, "RGB") and image.tobytes() == draw().tobytes(), name
    board = np.asarray(offtrack.checkerboard(1))[..., 0]
    assert (
        set(np.unique(board)) == {0, 255} and (board[1:] != board[:-1]).all() and (board[:, 1:] != board[:, :-1]).all()
    )


def test_jpeg_gets_at_most_our_bytes_and_the_worst_block_is_found():
    image = offtrack.text_page()
    coded, quality = offtrack.jpeg(image, 20_000)
    more = len(offtrack.RIVALS["jpeg"].encode(image, quality + 1))
    assert coded.bytes <= 20_000 < more and coded.worst < coded.psnr
    assert offtrack.jpeg(image, 100)[0] is None
    spoilt = np.array(image)
    spoilt[32:48, 64:80] = 255 - spoilt[32:48, 64:80]
    assert offtrack.worst_block(image, offtrack.Image.fromarray(spoilt)) < 4.0


def test_a_codec_that_breaks_the_promise_is_seen(models, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(offtrack, "IMAGES", {"text": offtrack.text_page})
    path = str(models / "hyper.safetensors")
    code = offtrack.main(["--model", path, "--out", str(tmp_path), "--qualities", "20", "70"])
    rows = list(offtrack.rows(load_model(path), [20, 70]))
    assert code == int(not all(row.kept for row in rows)) and (tmp_path / "offtrack.png").is_file()
    assert (tmp_path / "offtrack.md").read_text() in capsys.readouterr().out
    bad = rows[1]._replace(mine=rows[1].theirs._replace(psnr=rows[1].theirs.psnr - 3.1))
    assert not bad.kept and bad.cells()[-1] == "NO"


@pytest.fixture
def small(tmp_path, monkeypatch):
    """The trainings' configuration file with few channels and small patches."""
    text = training.CONFIG.read_text()
    for old, new in (("N = 128", "N = 8"), ("M = 192", "M = 8"), ("patch = 256", "patch = 32"), ("1e-4", "1e-3")):
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "small.toml").write_text(text)
    monkeypatch.setattr(training, "CONFIG", tmp_path / "small.toml")
    monkeypatch.setattr(training, "PIPELINE", 2)


def test_both_trainings_move_every_weight_and_are_reported(small, tmp_path, capsys):
    pytest.importorskip("compressai")
    config = training.settings(None, None, "fp32")
    peer, ours = (cls(config, torch.device("cpu")) for cls in (training.Peer, training.Ours))
    ours.take(peer)
    x = training.prepare(next(training.stream(config, torch.device("cpu"))), torch.device("cpu"))
    still = set()
    for net, update in ((peer.net, peer.update), (ours.model, ours.update)):
        before = {name: p.detach().clone() for name, p in net.named_parameters()}
        update(x)
        still |= {name for name, p in net.named_parameters() if torch.equal(p, before[name])}
    assert still <= {"shrink.values", "g_s.layers.0.weight"}  # their gradients are 0 where all symbols are
    assert main(["training", "--rounds", "2", "--steps", "20", "--out", str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "out" / "training-cpu.json").read_text())
    assert report["command"] == "python -m benchmarks training --device cpu --steps 20 --rounds 2"
    assert report["command"] in (tmp_path / "out" / "training-cpu.md").read_text()
    losses = report["losses"]
    assert losses["lic"] < losses["lic at step 0"] and losses["compressai"] < losses["compressai at step 0"]
    assert all(len(rates) == 2 and min(rates) > 0 for rates in report["pixels_s"].values())


def test_a_missing_peer_or_device_ends_the_comparison(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "compressai.losses", None)
    assert main(["training"]) == 1 and "compressai cannot be imported" in capsys.readouterr().err
    assert main(["training", "--steps", "-1"]) == 1 and "--steps -1" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["training", "--device", "cuda"]) == 1 and "no CUDA device" in capsys.readouterr().err


@pytest.mark.parametrize("seconds, share, told", [(5.5, "0.91", "reached"), (8.0, "0.62", "MISSED")])
def test_workers_are_compared_with_independent_processes_on_the_same_files(models, monkeypatch, seconds, share, told):
    def timed(commands):
        images = [path for command in commands for path in Path(command[4]).rglob("*.png")]
        assert len(images) == 6 and {Image.open(path).size for path in images} == {(512, 512)}
        return seconds if "--jobs" in commands[0] else 10 / len(commands)

    monkeypatch.setattr(jobs, "COUNT", 6)
    monkeypatch.setattr(jobs, "timed", timed)
    report = jobs.run(None, str(models / "tiny.safetensors"), 2)
    assert f"gains {share} ({share}-{share}) of what two" in report.markdown and f"0.85, {told}" in report.markdown
    assert report.data["seconds"][jobs.TWO] == [5.0, 5.0]


def test_all_benchmarks_are_planned_and_run_whatever_becomes_of_one(tmp_path, capsys):
    plan = everything.plan(list(BENCHMARKS), tmp_path, None, "photo", tmp_path / "out")
    assert plan.keys() == BENCHMARKS.keys() | {"rates", "offtrack", "portability"}
    for name in BENCHMARKS:
        ((program, *arguments),) = plan[name]
        assert program == "benchmarks" and parser().parse_args(arguments).name == name
    code = everything.run({"bad": [["no_such_module"], ["platform"]], "fine": [["platform"]]}, tmp_path / "out")
    told = capsys.readouterr().out.splitlines()
    assert code == 1 and len(told) == 2 and "[1/2] bad" in told[0] and "exit code 1" in told[0]
    assert "no_such_module" in (tmp_path / "out/bad.log").read_text()
    assert (tmp_path / "out/fine.log").read_text() and (tmp_path / "out/all.md").read_text().count("\n") == 4
