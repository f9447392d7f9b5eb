"""meta.json: what a run depended on, found out without ever failing."""

import json
import os
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version

import pytest
import torch

import codec
from codec import machine as meta
from codec.config import Config, TrainConfig


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository with one committed file, and a function that calls git in it."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))

    def git(*arguments):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        command = ["git", "-C", str(tmp_path / "lic"), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    (tmp_path / "lic/codec").mkdir(parents=True)
    (tmp_path / "lic/codec/network/model.py").write_text("M = 1\n")
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    return tmp_path / "lic", git


def test_it_holds_what_a_run_depended_on_and_is_json():
    about = {"images": 3, "sha256": "00"}
    found = meta.meta(Config(train=TrainConfig(seed=5)), about)
    assert json.loads(json.dumps(found)) == found
    assert (found["seed"], found["data"], found["threads"]) == (5, about, torch.get_num_threads())
    assert found["versions"]["lic"] == codec.__version__ and found["versions"]["numpy"] == version("numpy")
    assert found["processor"] and found["system"] and found["cores"] >= 1 and isinstance(found["gpus"], list)
    age = datetime.now(UTC) - datetime.fromisoformat(found["started"])
    assert 0 <= age.total_seconds() < 60


def test_the_commit_of_the_checkout_and_whether_it_was_changed(checkout):
    folder, git = checkout
    commit = git("rev-parse", "HEAD")
    assert meta.git(folder / "codec") == {"commit": commit, "dirty": False}
    (folder / "codec/network/model.py").write_text("M = 2\n")
    assert meta.git(folder / "codec") == {"commit": commit, "dirty": True}


def test_a_package_that_lies_in_the_checkout_of_something_else_has_no_commit(checkout):
    folder, _ = checkout
    (folder / "venv/codec").mkdir(parents=True)
    (folder / "venv/codec/network/model.py").write_text("M = 1\n")
    assert meta.git(folder / "venv/codec") is None


def test_no_git_no_checkout_and_no_answer_are_no_commit(tmp_path, checkout, monkeypatch):
    folder, _ = checkout
    (tmp_path / "plain").mkdir()
    assert meta.git(tmp_path / "plain") is None
    monkeypatch.setattr(subprocess, "run", lambda *_, **options: expire(options["timeout"]))
    assert meta.git(folder / "codec") is None
    monkeypatch.undo()
    monkeypatch.setenv("PATH", "")
    assert meta.git(folder / "codec") is None


def expire(timeout):
    raise subprocess.TimeoutExpired("git", timeout)


def test_what_cannot_be_found_out_is_null(monkeypatch):
    def missing(package):
        raise PackageNotFoundError(package)

    monkeypatch.setattr(meta.importlib.metadata, "version", missing)
    monkeypatch.setattr(meta, "open", lambda path: open("no such file"), raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = meta.meta(Config(), {})
    assert found["versions"]["torchvision"] is None and found["versions"]["cudnn"] is None and found["gpus"] == []
    assert isinstance(found["processor"], str)
