"""Training that goes on with other options: what may change does, what may not is refused, and nothing is written."""

import math
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from shared import TRAIN, in_process, log, start, train_folders

import train
from codec import signals
from codec.config import DataConfig, TrainConfig
from codec.training.checkpoints import load_checkpoint

pytestmark = pytest.mark.usefixtures("unmeasured")
ENDLESS = [
    *"--N 8 --M 16 --blocks 1 0 --hyper_N 8 --hyper_M 4 --lmbda 0.013 --data data --val val --patch 32".split(),
    *"--batch 2 --steps 100000 --val_every 100000 --log_every 1 --device cpu --out run".split(),
]  # fmt: skip


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, photos):
    """A run that stopped at step 2 of 4."""
    folder = tmp_path_factory.mktemp("stopped")
    train_folders(folder, photos)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert start("run", "--minutes", 0) == train.main("--out run --resume --minutes 0".split()) == 0
    return folder / "run"


@pytest.fixture
def run(here, stopped):
    """A copy of it."""
    return Path(shutil.copytree(stopped, here / "run"))


def test_options_of_the_optimiser_change(run):
    options = "--weight_decay 0.5 --lr_of shortcut=0.1 shortcut_lapped=0.1 prior=50 --lr 1e-5 --minutes 0"
    assert train.main(["--out", "run", "--resume", *options.split()]) == 0
    groups = load_checkpoint(run / "last.pt")["optimizer"]["param_groups"]
    assert {group["weight_decay"] for group in groups} == {0.5} and {1.0, 0.1, 50.0} == {g["factor"] for g in groups}
    assert max(group["lr"] / group["factor"] for group in groups) <= 1.01e-5
    assert load_checkpoint(run / "last.pt")["optimizer"]["state"][0]["step"] == 3  # its moments go on


@pytest.mark.parametrize(
    "options, told",
    [
        ("--optimizer sgd", "--optimizer"),
        ("--freeze g_a", "--freeze"),
        ("--lr_of prior=5 g_a=2", "--lr_of"),
        ("--init best.pt", "--init begins a new run"),
        ("--steps 1", "at step 2 already"),
        ("--N 16", "[model] cannot change"),
    ],
)
def test_what_cannot_change_is_refused_and_changes_nothing(run, capsys, options, told):
    before = (run / "config.toml").read_text()
    assert train.main(["--out", "run", "--resume", *options.split()]) == 1
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1 and (run / "config.toml").read_text() == before


@pytest.mark.parametrize("options", ["--val data", "--distortion ms-ssim --patch 192 --val big"])
def test_the_best_starts_anew_when_it_is_measured_otherwise(run, photo, capsys, options):
    os.mkdir("big")
    photo.resize((200, 200)).save("big/a.png")
    state = load_checkpoint(run / "last.pt")
    state["best"] = state["first"] = 1e-9  # nothing would ever be better
    torch.save(state, run / "last.pt")
    assert train.main(["--out", "run", "--resume", *options.split()]) == 0
    assert load_checkpoint(run / "best.pt")["step"] == 4 and load_checkpoint(run / "best.pt")["first"] > 1e-3
    assert "exported step 4" in capsys.readouterr().out


@pytest.mark.parametrize("minutes", [math.inf, 0])
def test_a_checkpoint_goes_on_in_a_folder_without_the_best(run, minutes):
    for name in ("moved", "finished"):
        os.mkdir(name)
    os.rename("run/last.pt", "moved/last.pt")
    assert train.main(["--out", "moved", "--resume"]) == 0  # to the end
    os.rename("moved/last.pt", "finished/last.pt")
    assert train.main(["--out", "finished", "--resume", "--minutes", str(minutes)]) == 0
    for name in ("moved", "finished"):
        assert Path(name, "model.safetensors").exists() and load_checkpoint(f"{name}/best.pt")["step"] == 4


def test_a_run_finds_its_images_from_any_folder(run, monkeypatch, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert train.main(["--out", str(run), "--resume"]) == 0 and load_checkpoint(run / "last.pt")["step"] == 4


@pytest.mark.parametrize("name, kind", [("data", "training"), ("val", "validation")])
def test_a_run_does_not_go_on_with_other_images_unless_told_to(here, photo, capsys, name, kind):
    assert start("run", "--minutes", 0) == 0
    photo.save(here / name / "more.png")
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    assert train.main(["--out", "run", "--resume"]) == 1
    error = capsys.readouterr().err
    assert f"the {kind} images are others than before" in error and f"--{name} FOLDER" in error
    assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before
    assert train.main(["--out", "run", "--resume", f"--{name}", name]) == 0
    assert f"the {kind} images are others than before" in capsys.readouterr().out
    assert train.main(["--out", "run", "--resume", "--steps", "5"]) == 0  # now they are the run's


def test_a_run_inside_its_own_data_does_not_train_on_its_pictures(here, photo, capsys):
    for out in ("data/run", "val/run"):
        assert start(out) == 0
        photo.save(f"{out}/rd.png")  # as the end of a training draws it
        assert train.main(["--out", out, "--resume", "--steps", "6"]) == 0
        told = [line for line in capsys.readouterr().out.splitlines() if "training, " in line]
        assert len({line.partition(",")[0] for line in told}) == 1 and "others than before" not in str(told)


def test_a_start_that_failed_does_not_block_the_next(here, capsys):
    assert start("run", "--data", "nowhere") == 1
    assert start("run") == 0 and [row["step"] for row in log("run", "val")] == [0, 2, 4]
    assert start("run") == 1
    assert "not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [dict(clip=0.0), dict(ema=2.0), dict(warmup=-5), dict(seed=-1), dict(val_qualities=[]), dict(val_qualities=[200])],
)
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        TrainConfig(**options)
    with pytest.raises(ValueError, match="cache"):
        DataConfig(cache=-1.0)
    assert TrainConfig(clip=math.inf).clip == math.inf


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_all_processes_saves_with_loader_workers_too(here, number):
    Path("out.txt").touch()
    process = in_process(TRAIN, *ENDLESS, "--workers", 1, group=True, stdout="out.txt", stderr="out.txt")
    while "train " not in Path("out.txt").read_text():
        assert process.exitcode is None
        time.sleep(0.05)
    os.killpg(process.pid, number)
    process.join(60)
    assert process.exitcode == 0
    said = Path("out.txt").read_text()
    assert "Traceback" not in said and "go on with" in said and load_checkpoint("run/last.pt")["step"] > 0


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs pseudo-terminals")
def test_a_terminal_that_is_closed_saves(here):
    ours, theirs = os.openpty()
    name = os.ttyname(theirs)
    process = in_process(TRAIN, *ENDLESS, group=True, stdin=name, stdout=name, stderr=name)
    said = b""
    while b"train " not in said:
        said += os.read(ours, 4096)
    os.close(theirs)
    os.close(ours)
    process.join(60)
    assert process.exitcode == 0
    assert load_checkpoint("run/last.pt")["step"] > 0


def test_a_stream_that_is_closed_does_not_keep_a_signal_from_being_heard(monkeypatch):
    def closed(_):
        raise OSError(9, "Bad file descriptor")

    end = signals.ending(stop := threading.Event())
    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", closed)
        end(signal.SIGHUP, None)
    assert stop.is_set()


def test_a_second_ctrl_c_ends_at_once_but_not_what_torchrun_repeats(monkeypatch):
    end = signals.ending(stop := threading.Event())
    monkeypatch.setenv("WORLD_SIZE", "2")
    for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
        end(number, None)
    assert stop.is_set()
    monkeypatch.delenv("WORLD_SIZE")
    end(signal.SIGTERM, None)
    with pytest.raises(KeyboardInterrupt):
        end(signal.SIGINT, None)
