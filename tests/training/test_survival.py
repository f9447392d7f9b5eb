"""A training that is killed, told to stop, fed with nonsense or left without disk space."""

import json
import math
import os
import random
import signal
import time

import numpy as np
import pytest
from PIL import Image
from shared import TRAIN, equal, in_process, log, start

import train
from codec.training.checkpoints import load_checkpoint

pytestmark = pytest.mark.usefixtures("unmeasured")
MODEL = "--N 8 --M 16 --blocks 1 0 --hyper_N 8 --hyper_M 4 --lmbda 0.013 --data data --val val"
SETUP = "--patch 32 --batch 2 --steps 60 --warmup 0 --val_every 30 --save_every 7 --log_every 5 --out run"


def train_on(resumed: bool):
    """A training in this folder, in a process of its own, begun or resumed."""
    return in_process(TRAIN, *("--out run --resume" if resumed else f"{MODEL} {SETUP}").split())


def test_killed_at_four_moments_and_resumed_it_is_the_run_that_was_never_killed(here):
    """More of them: tests/tools/kill_campaign.py."""
    begun = time.monotonic()
    process = train_on(False)
    process.join()
    assert process.exitcode == 0
    took = time.monotonic() - begun
    whole, rows = load_checkpoint(here / "run/last.pt"), log("run", "train")
    os.rename(here / "run", here / "whole")

    dice, kills = random.Random(4), 0
    process = train_on(False)
    while kills < 4 and process.exitcode != 0:
        process.join(dice.uniform(0.1, 0.4) * took)
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            kills += 1
            process = train_on((here / "run/config.toml").exists())
    process.join()
    assert process.exitcode == 0 and kills >= 2
    killed = load_checkpoint(here / "run/last.pt")
    assert all(equal(killed[part], whole[part]) for part in ("step", "model", "average", "optimizer", "best", "first"))
    assert [row["step"] for row in log("run", "train")] == [row["step"] for row in rows]


def test_sigterm_saves_and_exits_with_0(here):
    process = in_process(TRAIN, *MODEL.split(), *"--steps 100000 --patch 32 --batch 2 --out run".split())
    while not (here / "run/last.pt").exists():
        time.sleep(0.05)
    time.sleep(0.3)
    process.terminate()
    process.join()
    assert process.exitcode == 0
    assert load_checkpoint(here / "run/last.pt")["step"] > 0


def test_a_full_disk_keeps_the_last_good_checkpoint_and_the_training(here, capsys, monkeypatch):
    written = []

    def full(path, state):
        written.append(path.name)
        if len(written) > 2:
            raise OSError(28, "No space left on device")
        save(path, state)

    save = train.save_checkpoint
    monkeypatch.setattr(train, "save_checkpoint", full)
    assert start("run", "--save_every", 1) == 0
    assert "could not be saved at step 1 ([Errno 28] No space left on device)" in capsys.readouterr().out
    assert load_checkpoint(here / "run/last.pt")["step"] == 0


def test_a_best_state_that_could_not_be_saved_does_not_count(here, monkeypatch):
    losses, kept = iter([0.9, 0.5, 0.7]), train.save_checkpoint  # at steps 0, 2 and 4

    def full(path, state):
        if path.name == "best.pt" and state["step"] == 2:
            raise OSError(28, "No space left on device")
        kept(path, state)

    validate = train.validate
    monkeypatch.setattr(train, "save_checkpoint", full)
    monkeypatch.setattr(train, "validate", lambda *args: validate(*args) | {"rd_loss": next(losses)})
    assert start("run") == 0
    best = load_checkpoint(here / "run/best.pt")
    assert (best["step"], best["best"]) == (4, 0.7) and load_checkpoint(here / "run/last.pt")["best"] == 0.7


def test_a_disk_that_is_full_from_the_first_is_told_at_the_end_and_with_room_the_run_begins(here, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(train, "save_checkpoint", full)
        assert start("run") == 1
    out, err = capsys.readouterr()
    assert "there is none before it" in out and "the one before it is kept" not in out
    assert err == "train.py: run/best.pt could not be saved: make room, and go on with --resume\n"
    assert train.main(["--out", "run", "--resume"]) == 0 and (here / "run/model.safetensors").exists()


@pytest.mark.usefixtures("measured")
def test_a_disk_that_is_full_for_the_curve_is_told_in_a_line(here, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("codec.evaluation.evaluate._code", full)
    assert start("run") == 1 and (here / "run/model.safetensors").exists()
    told = "train.py: run/model.safetensors is exported, but has no curve: No space left on device\n"
    assert capsys.readouterr().err == told


def test_a_diverged_training_stops_and_says_what_to_try(here, capsys):
    assert start("run", "--lr", 1e6, "--steps", 200, "--clip", 1e9) == 1
    error = capsys.readouterr().err
    assert "diverged: over the 1 steps to step" in error and "Try a lower --lr than 1e+06" in error
    assert math.isfinite(load_checkpoint(here / "run/best.pt")["best"])


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_over(here, capsys):
    assert start("whole") == 0
    os.mkdir("run")
    (here / "run/config.toml").write_text((here / "whole/config.toml").read_text())
    assert train.main(["--out", "run", "--resume"]) == 0
    assert "nothing was saved in run yet: starting over" in capsys.readouterr().out
    assert equal(load_checkpoint("run/last.pt")["model"], load_checkpoint("whole/last.pt")["model"])


def test_meta_json_has_one_entry_for_every_start(here):
    assert start("run") == 0 and train.main(["--out", "run", "--resume", "--steps", "6"]) == 0
    starts = json.loads((here / "run/meta.json").read_text())
    assert [entry["step"] for entry in starts] == [0, 4] and starts[0]["processes"] == 1
    assert starts[0]["data"]["images"] == 3 and starts[0]["seed"] == 1


@pytest.mark.parametrize("options, message", [
    (["--accumulate", "3"], "accumulate must divide batch"),
    (["--distortion", "ms-ssim"], "161 pixels a side"),
    (["--optimizer", "lion"], "optimizer must be adamw, adam, sgd or soap"),
    (["--freeze", "g_x"], "no parameter belongs to 'g_x'"),
])  # fmt: skip
def test_settings_that_cannot_be_are_errors_of_one_line(here, capsys, options, message):
    assert start("run", *options) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize("options", [["--optimizer", "sgd"], ["--accumulate", "2"], ["--schedule", "cosine"],
                                     ["--deterministic", "true"], ["--freeze", "g_a"]])  # fmt: skip
def test_every_choice_trains_to_the_end(here, options):
    assert start("run", *options) == 0
    assert all(math.isfinite(row["loss"]) for row in log("run", "train"))


def test_a_folder_full_of_trouble_trains_to_the_end_and_says_what_was_skipped(here, photo, capsys):
    for path in (here / "data").iterdir():
        path.unlink()
    photo.save(here / "data/whole.jpg")
    (here / "data/truncated.jpg").write_bytes((here / "data/whole.jpg").read_bytes()[:900])
    (here / "data/text.png").write_text("not an image")
    photo.convert("CMYK").save(here / "data/cmyk.jpg")
    Image.fromarray(np.linspace(0, 65535, 40 * 40).astype(np.uint16).reshape(40, 40)).save(here / "data/deep.png")
    photo.convert("P").save(here / "data/palette.png", transparency=3)
    Image.new("RGB", (1, 1), "red").save(here / "data/one.png")
    Image.new("RGB", (20000, 3), "blue").save(here / "data/long.png")
    assert start("run", "--steps", 12) == 0
    assert "2 images could not be read and were skipped: run/skipped.txt" in capsys.readouterr().out
    listed = (here / "run/skipped.txt").read_text()
    assert "truncated.jpg\t" in listed and "text.png\t" in listed and listed.count("\n") == 2
