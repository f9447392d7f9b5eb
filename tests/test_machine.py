"""What is known of the machine and the checkout, found out without ever failing."""

import os
import subprocess

import pytest

from codec import machine


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

    (tmp_path / "lic/codec/network").mkdir(parents=True)
    (tmp_path / "lic/codec/network/model.py").write_text("M = 1\n")
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    return tmp_path / "lic", git


def test_the_commit_of_the_checkout_and_whether_it_was_changed(checkout):
    folder, git = checkout
    commit = git("rev-parse", "HEAD")
    assert machine.git(folder / "codec") == {"commit": commit, "dirty": False}
    (folder / "codec/network/model.py").write_text("M = 2\n")
    assert machine.git(folder / "codec") == {"commit": commit, "dirty": True}


def test_a_package_that_lies_in_the_checkout_of_something_else_has_no_commit(checkout):
    folder, _ = checkout
    (folder / "venv/codec/network").mkdir(parents=True)
    (folder / "venv/codec/network/model.py").write_text("M = 1\n")
    assert machine.git(folder / "venv/codec") is None


def test_no_git_no_checkout_and_no_answer_are_no_commit(tmp_path, checkout, monkeypatch):
    folder, _ = checkout
    (tmp_path / "plain").mkdir()
    assert machine.git(tmp_path / "plain") is None
    monkeypatch.setattr(subprocess, "run", lambda *_, **options: expire(options["timeout"]))
    assert machine.git(folder / "codec") is None
    monkeypatch.undo()
    monkeypatch.setenv("PATH", "")
    assert machine.git(folder / "codec") is None


def expire(timeout):
    raise subprocess.TimeoutExpired("git", timeout)


def test_what_cannot_be_found_out_is_none(monkeypatch):
    def missing(package):
        raise machine.importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(machine.importlib.metadata, "version", missing)
    monkeypatch.setattr(machine, "open", lambda path: open("no such file"), raising=False)
    assert machine.version("numpy") is None and isinstance(machine.processor(), str)
