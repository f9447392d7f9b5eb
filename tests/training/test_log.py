"""The log of a training: every figure once, whatever was killed when; a board that overlays training and validation."""

import io
import json
import os
import re
import sys
import threading
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from shared import ALL_RATES, FACTORIZED, HYPER, ONE_LAMBDA, TINY, start, tiny_network, untrained
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer.record_writer import RecordWriter

import codec
from codec import journal
from codec.config import Config, TrainConfig
from codec.training.log import Log, SilentLog, meta

TRAIN = {"bpp": 0.9, "mse": 6e-4, "loss": 1.4, "psnr": 31.9, "grad_norm": 2.5, "lr": 1e-3, "img_s": 50.0}
VAL = {"bpp_q10": 0.2, "psnr_q10": 28.0, "loss_q10": 0.4, "bpp_q90": 1.6, "psnr_q90": 38.0, "loss_q90": 2.8}


def board(folder, kind):
    events = EventAccumulator(str(folder / "tb" / kind), {"scalars": 0, "histograms": 0})
    return events.Reload()


def rows(folder):
    return [(row["kind"], row["step"]) for row in journal.read(folder / "log.jsonl")]


def write(folder, start, stop, validated=2):
    """What a training from one step to another logs: validation also at step 0."""
    log = Log(folder, start, 8)
    for step in range(start if start == 0 else start + 1, stop + 1):
        if step:
            log.numbers("train", step, TRAIN)
        if step % validated == 0:
            log.numbers("val", step, VAL | {"rd_loss": 0.7})
    log.close()


def test_every_number_is_in_the_file(tmp_path):
    write(tmp_path, 0, 2)
    val, train, *_ = map(json.loads, open(tmp_path / "log.jsonl"))
    assert train == {"kind": "train", "step": 1} | TRAIN and val == {"kind": "val", "step": 0} | VAL | {"rd_loss": 0.7}


@pytest.mark.parametrize("saved", range(9))
def test_a_resumed_run_logs_every_step_once(tmp_path, saved):
    write(tmp_path, 0, 8)
    whole = (tmp_path / "log.jsonl").read_bytes()
    with open(tmp_path / "log.jsonl", "ab") as file:
        file.write(b'{"kind": "train", "step": 9, "bp')  # killed while writing
    write(tmp_path, saved, 8)
    assert (tmp_path / "log.jsonl").read_bytes() == whole
    assert [event.step for event in board(tmp_path, "train").Scalars("training/lr")] == list(range(1, 9))
    assert [event.step for event in board(tmp_path, "val").Scalars("rate_distortion/bpp")] == [0, 2, 4, 6, 8]


def test_a_log_cut_at_any_byte_is_read_to_its_last_whole_line(tmp_path):
    write(tmp_path, 0, 2)
    whole = (tmp_path / "log.jsonl").read_bytes()
    for length in range(0, len(whole), 7):
        (tmp_path / "log.jsonl").write_bytes(whole[:length])
        assert len(rows(tmp_path)) == whole[:length].count(b"\n")


def test_training_and_validation_share_axes_and_qualities_have_their_own(tmp_path):
    write(tmp_path, 0, 2)
    train, val = board(tmp_path, "train"), board(tmp_path, "val")
    shared = {f"rate_distortion/{name}" for name in ("loss", "bpp", "psnr")}
    assert set(train.Tags()["scalars"]) == shared | {
        "rate_distortion/mse", "training/lr", "training/grad_norm", "training/img_s",
    }  # fmt: skip
    by_quality = {f"{name}_by_quality/q{q}" for name in ("loss", "bpp", "psnr") for q in (10, 90)}
    assert set(val.Tags()["scalars"]) == shared | by_quality
    assert val.Scalars("rate_distortion/bpp")[0].value == pytest.approx(0.9)  # the mean of both qualities
    assert val.Scalars("rate_distortion/loss")[0].value == pytest.approx(0.7)  # rd_loss
    assert val.Scalars("psnr_by_quality/q90")[0].value == pytest.approx(38.0)


def test_figures_of_one_rate_are_their_own_summary():
    figures = {"bpp": 0.5, "psnr": 30.0, "loss": 1.0, "rd_loss": 1.0, "lr": 1e-3}
    assert journal.summary(figures) == {"bpp": 0.5, "psnr": 30.0, "loss": 1.0}
    assert journal.summary({"lr": 1e-3}) == {}


def test_a_file_gets_one_readable_line_an_interval_and_no_bar(tmp_path, capsys):
    write(tmp_path, 0, 2)
    out, err = capsys.readouterr()
    lines = [line.split() for line in out.splitlines()]
    assert err == "" and [line[:2] for line in lines] == [
        ["val", "0/8"],
        ["train", "1/8"],
        ["train", "2/8"],
        ["val", "2/8"],
    ]
    shown = [dict(zip(line[2::2], map(float, line[3::2]), strict=True)) for line in lines]
    assert shown[0] == shown[3] == {"loss": 0.7, "bpp": 0.9, "psnr": 33.0}  # over both qualities
    assert (
        shown[1] == shown[2] and shown[1].items() <= TRAIN.items() and {"loss", "bpp", "psnr", "lr"} <= shown[1].keys()
    )


def test_a_terminal_shows_a_bar_with_the_time_left(tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    log = Log(tmp_path, 4, 8)
    log.bar.mininterval = 0
    log.bar.update()
    log.close()
    assert re.search(r"5/8 \[\d\d:\d\d<\d\d:\d\d", sys.stderr.getvalue())


def test_without_a_folder_nothing_is_written_or_shown(tmp_path, tiny, photo, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(type(tiny), "latent", None)  # nor computed
    log = SilentLog()
    log.numbers("train", 1, TRAIN)
    log.picture(tiny.backend.network, 1, photo)
    log.gradients(tiny.backend.network, 1)
    log.graph(tiny.backend.network)
    log.say("something")
    log.bar.update()
    log.close()
    assert capsys.readouterr() == ("", "") and list(tmp_path.iterdir()) == []


def test_picture_shows_the_reconstruction_beside_the_input(tmp_path, torch_model, photo):
    log = Log(tmp_path, 0, 8)
    log.picture(torch_model.backend.network, 0, photo)
    log.close()
    val = board(tmp_path, "val")
    image = np.array(Image.open(io.BytesIO(val.Images("input_and_reconstruction")[0].encoded_image_string)))
    beside = np.hstack((np.array(photo), np.array(torch_model.decompress(torch_model.compress(photo, 50)))))
    assert np.abs(image.astype(int) - beside).max() <= 1 and np.array_equal(image[:, :96], beside[:, :96])
    names = {f"weights/{name}" for name, _ in torch_model.backend.network.named_parameters()}
    latent = {"latent/y"} if torch_model.config.prior == FACTORIZED else {"latent/y", "latent/z"}
    assert set(val.Tags()["histograms"]) == names | latent


def test_gradients_are_those_there_are_and_finite_in_part(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1, bias=False))
    model[0].weight.grad = torch.tensor([[1.0, torch.nan, 2.0], [torch.inf, 3.0, 4.0]])
    model[0].bias.grad = torch.full((2,), torch.nan)
    log = Log(tmp_path, 0, 8)
    log.gradients(model, 3)
    log.close()
    train = board(tmp_path, "train")
    assert train.Tags()["histograms"] == ["gradients/0.weight"]
    (event,) = train.Histograms("gradients/0.weight")
    assert event.step == 3 and event.histogram_value.num == 4 and event.histogram_value.sum == 10


@pytest.mark.parametrize(
    "transform, prior, lmbda",
    [
        ("fast", HYPER, ALL_RATES), ("bmshj2018", FACTORIZED, ONE_LAMBDA),
    ],
)  # fmt: skip
def test_the_graph_is_drawn_and_changes_nothing(tmp_path, capsys, transform, prior, lmbda):
    model = untrained(transform=transform, **TINY, prior=prior, lmbda=lmbda)
    model.g_a.eval()  # a mixture of modes
    modes = [module.training for module in model.modules()]
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    log = Log(tmp_path, 0, 8)
    log.graph(model)
    log.close()
    assert capsys.readouterr() == ("", "")
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    nodes = {node.name for node in board(tmp_path, "val").Graph().node}
    assert any("g_a" in name for name in nodes) and any("g_s" in name for name in nodes)


def test_a_model_without_a_graph_is_told_in_one_line(tmp_path, capsys, photo, monkeypatch):
    model = tiny_network(photo, [0.013])

    def forward(*args):
        raise RuntimeError("cannot be traced\nfor many reasons")

    monkeypatch.setattr(model, "forward", forward)
    log = Log(tmp_path, 0, 8)
    log.graph(model)
    log.close()
    assert capsys.readouterr().out == "no graph of the model on the board: RuntimeError: cannot be traced\n"
    assert all(module.training for module in model.modules())


# ---- meta.json ----


def test_it_holds_what_a_run_depended_on_and_is_json():
    about = {"images": 3, "sha256": "00"}
    found = meta(Config(train=TrainConfig(seed=5)), about)
    assert json.loads(json.dumps(found)) == found
    assert (found["seed"], found["data"], found["threads"]) == (5, about, torch.get_num_threads())
    assert found["versions"]["lic"] == codec.__version__ and found["versions"]["numpy"] == version("numpy")
    assert found["processor"] and found["system"] and found["cores"] >= 1 and isinstance(found["gpus"], list)
    age = datetime.now(UTC) - datetime.fromisoformat(found["started"])
    assert 0 <= age.total_seconds() < 60


def test_a_run_without_a_gpu_has_none_and_is_described_all_the_same(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = meta(Config(), {})
    assert found["versions"]["cudnn"] is None and found["gpus"] == []


def test_a_training_goes_on_without_tensorboard_and_says_so(here, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert start("run") == 0
    out = capsys.readouterr().out
    assert out.count("no TensorBoard files: ") == 1 and Path("run/model.safetensors").exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no disk here that is always full")
def test_a_disk_that_is_full_for_the_log_does_not_end_a_training(here, capsys, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    made = Log(here, 0, 4)
    made.file.close()
    made.file = open("/dev/full", "a", buffering=1)
    monkeypatch.setattr(made.boards["train"].writer, "add_scalar", full)
    for step in (1, 2):
        made.numbers("train", step, {"loss": 1.0, "bpp": 0.5, "psnr": 30.0})
    made.close()
    out = capsys.readouterr().out
    assert out.count("log.jsonl lacks step") == 2 and out.count("no more TensorBoard files") == 1
    assert out.count("log.jsonl is not complete") == 1


def test_a_disk_that_is_full_for_tensorboards_own_thread_is_told_in_a_line(here, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    ended = []
    monkeypatch.setattr(threading, "excepthook", ended.append)
    monkeypatch.setattr(RecordWriter, "write", full)
    made = Log(here, 0, 4)
    made.numbers("train", 1, {"loss": 1.0})
    made.close()
    assert capsys.readouterr().out.count("TensorBoard files: ") >= 1 and not ended
