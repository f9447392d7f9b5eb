"""The next file is opened while one is at work: once, and what is wrong with it is told in its turn."""

import os
import threading
from pathlib import Path

import pytest
from deadly import Deadly

from codec.batch import reading
from codec.batch.jobs import run
from codec.batch.plan import Job
from codec.batch.reading import Ahead
from codec.errors import LicError


def test_a_file_is_opened_once_in_a_thread_and_its_error_comes_when_it_is_taken(tmp_path, monkeypatch):
    opened = []

    def open(name: str) -> str:
        opened.append((name, threading.current_thread() is threading.main_thread()))
        if name.endswith("bad"):
            raise LicError("damaged")
        return name.upper()

    names = {name: str(tmp_path / name) for name in ("a", "bad", "large")}
    for name in names.values():
        Path(name).write_bytes(b"1")
    Path(names["large"]).write_bytes(bytes(100))
    monkeypatch.setattr(reading, "LARGEST", 99)
    ahead = Ahead(open)
    ahead.expect(names["bad"])
    ahead.expect(names["a"])  # one at a time
    with pytest.raises(LicError, match="damaged"):
        ahead.take(names["bad"])
    for name in ("a", "large", "missing", "-"):
        ahead.expect(names.get(name, name))
        assert ahead.take(names.get(name, name)) == names.get(name, name).upper()
    threads = {Path(name).name: not main for name, main in opened}
    assert threads == {"bad": True, "a": True, "large": False, "missing": False, "-": False} and len(opened) == 5


def test_a_file_that_was_changed_since_it_was_opened_is_opened_again(tmp_path):
    path = tmp_path / "a"
    path.write_text("old")
    ahead = Ahead(lambda name: Path(name).read_text())
    ahead.expect(str(path))
    ahead.begun[2].result()
    path.write_text("new")
    os.utime(path, ns=(1, 1))
    assert ahead.take(str(path)) == "new" and ahead.begun is None


def test_in_one_process_all_but_the_first_file_are_expected(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for i in range(3):
        Path(f"{i}.txt").write_text("fine")
    assert run([Job(f"{i}.txt", f"{i}.out") for i in range(3)], Deadly(), 1, debug=False) == 0
    assert sorted(path.name for path in tmp_path.glob("*.expected")) == ["1.txt.expected", "2.txt.expected"]
