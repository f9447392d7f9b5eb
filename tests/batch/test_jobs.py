"""Many files: worker processes, their deaths, sharing among processes, and planning."""

import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from deadly import Deadly
from shared import COMPRESS, COUNT, LIC, NAMES, in_fresh_python, in_process, listing, saved

from codec import files
from codec.batch.jobs import FatalError, run, work_in_processes
from codec.batch.plan import Job, expand, plan, remove_temporaries
from codec.container import bitstream
from codec.errors import LicError


@pytest.mark.usefixtures("served")
def test_workers_write_what_one_process_writes_and_tell_what_failed(lic, here, models):
    (here / "in/a/bad.png").write_bytes(b"not an image")
    assert lic(*COMPRESS)[0] == 1
    named = ("-m", models / "tiny.safetensors", "--jobs", 2, "--device", "cpu")
    code, out, err = lic("compress", "in", "-o", "many", "--precision", "fp32", *named)
    assert (code, out) == (1, "") and len(err) == COUNT + 2
    assert [line for line in err if line.startswith("lic: ")] == [
        "lic: in/a/bad.png: not an image that Pillow can read"
    ]
    assert err[-1] == "20 of 21 files done, 1 failed"
    assert listing("many") == listing("out") and sorted(listing("many")) == sorted(f"{name}.lic" for name in NAMES)
    code, _, err = lic("decompress", "many", "-o", "back", *named)
    assert code == 0 and sorted(listing("back")) == sorted(f"{name}.png" for name in NAMES)


def told_to(kinds: list[str]) -> list[Job]:
    """Jobs for Deadly."""
    for i, kind in enumerate(kinds):
        Path(f"{i}.txt").write_text(kind)
    return [Job(f"{i}.txt", f"{i}.out") for i in range(len(kinds))]


def test_a_worker_that_dies_takes_only_its_file_with_it(capsys, here):
    jobs = told_to(["fine", "kill", "exit", "fail", "kept", "fine", "fine", "exit"])
    assert run(jobs, Deadly(), 2, debug=False) == 1
    *lines, summary = capsys.readouterr().err.splitlines()
    assert (
        sorted(lines)
        == [
            "0.txt has 1 thread, True",  # the first worker speaks for all
            *(line for line in sorted(lines) if line[:5] in ("5.txt", "6.txt")),
            "lic: 1.txt: its process ended by SIGKILL (out of memory?)",
            "lic: 2.txt: its process ended with exit code 3",
            "lic: 3.txt: as it was told",
            "lic: 7.txt: its process ended with exit code 3",
        ]
    )
    assert len(lines) == 7 and summary == "3 of 8 files done, 1 were complete before, 4 failed"
    assert not list(here.glob(".*.part"))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_programming_error_is_told_whole_and_does_not_stop_the_others(capsys, here, monkeypatch, workers):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as worker processes have it
    assert run(told_to(["bug", "fine"]), Deadly(), workers, debug=False) == 1
    told = capsys.readouterr().err
    assert "Traceback" in told and "deadly.py" in told and "ZeroDivisionError: nobody thought of it" in told
    assert "1 of 2 files done, 1 failed" in told


def test_a_worker_is_not_awaited_and_what_it_began_is_removed(here):
    results = work_in_processes(told_to(["fine", "busy"]), Deadly(), 2, debug=False)
    next(results)
    while not Path("1.out").exists():
        time.sleep(0.01)
    closing = threading.Thread(target=results.close, daemon=True)
    closing.start()
    closing.join(30)
    assert not closing.is_alive() and not list(here.glob(".*.part"))


def test_an_interrupt_that_python_drops_is_not_lost(capfd, here, monkeypatch):
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with pytest.raises(KeyboardInterrupt):
        run(told_to(["fine", "told", "fine"]), Deadly(), 1, debug=False)
    assert [line[:5] for line in capfd.readouterr().err.splitlines()] == ["0.txt", "1.txt"]


def test_more_workers_than_files_are_not_started(capsys):
    assert run(told_to(["fine", "fine"]), Deadly(), 1000, debug=False) == 0
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_with_debug_a_worker_tells_the_traceback(capsys):
    assert run(told_to(["fine", "fail"]), Deadly(), 2, debug=True) == 1
    assert "Traceback" in capsys.readouterr().err


def test_what_goes_wrong_with_every_file_ends_the_work():
    with pytest.raises(FatalError, match="no file will"):
        run(told_to(["fine", "hopeless", *["fine"] * 100]), Deadly(), 2, debug=False)


def test_a_model_that_is_not_there_is_told_once(lic):
    code, _, err = lic("compress", "in", "-o", "out", "-m", "nonesuch")
    assert code == 1 and len(err) == 1 and "nonesuch" in err[0]
    assert listing("out") == {}
    assert lic(*COMPRESS)[0] == 0
    code, _, err = lic("decompress", "out", "-o", "back", "-m", "nonesuch")
    assert code == 1 and len(err) == 1 and "nonesuch" in err[0]


@pytest.mark.parametrize(
    "jobs, send, number",
    [
        (1, os.kill, signal.SIGTERM),
        (2, os.killpg, signal.SIGINT),
        (2, os.killpg, signal.SIGHUP),
        (2, os.killpg, signal.SIGTERM),
    ],
)
def test_kill_ctrl_c_and_a_closed_terminal_leave_no_partial_and_no_temporary_file(photo, jobs, send, number):
    big = saved(photo.resize((1000, 800)), "BMP")
    for path in Path("in").rglob("*.png"):
        path.write_bytes(big)
    process = in_process(LIC, *COMPRESS, "--jobs", jobs, group=True, stderr="said.txt")
    while not any(Path("out").rglob("*.lic")):
        assert process.exitcode is None
        time.sleep(0.005)
    time.sleep(random.Random(jobs).uniform(0, 0.1))
    send(process.pid, number)
    process.join(30)
    error = Path("said.txt").read_text()
    assert (
        process.exitcode == 1
        and error.endswith("lic: interrupted; --resume goes on with what is not done\n")
        and "Traceback" not in error
    )
    left = listing("out")
    assert 0 < len(left) < COUNT and all(name.endswith(".lic") for name in left)
    for data in left.values():
        bitstream.read(data)
    with pytest.raises(ProcessLookupError):  # no worker outlives its parent
        for _ in range(100):  # but multiprocessing's own helper, for a moment
            os.killpg(process.pid, 0)
            time.sleep(0.05)


def test_processes_of_torchrun_share_the_files():
    told = []
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"} for rank in range(2)]
    processes = [in_process(LIC, *COMPRESS, environment=env, stderr=f"{env['RANK']}.txt") for env in ranks]
    for rank, process in enumerate(processes):
        process.join()
        assert process.exitcode == 0
        told.append(Path(f"{rank}.txt").read_text().splitlines())
    assert [lines[0] for lines in told] == [f"lic: process {rank} of 2: 10 files are its share" for rank in range(2)]
    assert all(len(lines) == 12 and lines[-1] == "10 of 10 files done" for lines in told)
    assert sorted(listing("out")) == sorted(f"{name}.lic" for name in NAMES)


@pytest.mark.parametrize("rank, world", [("2", "2"), ("-1", "2"), ("a", "2"), ("0", "0")])
def test_a_rank_that_cannot_be_is_an_error_that_names_it(lic, monkeypatch, rank, world):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world)
    monkeypatch.setenv("LOCAL_RANK", "0")
    code, _, err = lic(*COMPRESS)
    assert code == 1 and len(err) == 1 and f"RANK={rank} and WORLD_SIZE={world}" in err[0]


def test_a_rank_left_over_in_the_environment_takes_nothing_away(lic, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, err = lic(*COMPRESS)
    assert code == 0 and err[-1] == "20 of 20 files done"
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert lic("compress", "in/a/02.png", "-o", "one.lic", "-m", "tiny")[0] == 0 and Path("one.lic").exists()
    piped = in_process(LIC, "compress", "-", "-m", "tiny", stdin="in/a/02.png", stdout="piped.lic", stderr="said.txt")
    piped.join()
    assert piped.exitcode == 0 and bitstream.read(Path("piped.lic").read_bytes())


def test_stdin_is_not_for_several_processes(lic):
    code, _, err = lic("compress", "-", "in/a/02.png", "-m", "tiny", "--jobs", 2)
    assert code == 1 and len(err) == 1 and "--jobs" in err[0]


@pytest.mark.parametrize("jobs", ["0", "-1", "many"])
def test_a_number_of_jobs_that_makes_no_sense_is_refused(lic, jobs):
    with pytest.raises(SystemExit):
        lic("compress", "in", "--jobs", jobs)


def test_planning_visits_every_folder_and_file_a_fixed_number_of_times(monkeypatch):
    """Linear: calls to the system grow with the files, not with their square."""

    def calls(count: int) -> int:
        for i in range(count):
            Path(f"{count}/{i % 10}").mkdir(parents=True, exist_ok=True)
            Path(f"{count}/{i % 10}/{i}.png").touch()
        seen = 0

        def counted(function):
            def count(*args, **kwargs):
                nonlocal seen
                seen += 1
                return function(*args, **kwargs)

            return count

        with monkeypatch.context() as patch:
            for name in ("lstat", "stat", "scandir", "mkdir"):
                patch.setattr(os, name, counted(getattr(os, name)))
            jobs = plan([str(count)], files.IMAGES, f"{count} out", ".lic", replace=False)
            remove_temporaries(jobs)
        assert len(jobs) == count and jobs == sorted(jobs)
        return seen

    few, many = calls(100), calls(1000)
    assert many - few <= 3 * 900


def test_info_checks_folders_without_torch(lic, tiny, photo):
    assert lic(*COMPRESS)[0] == 0
    Path("out/b/05.lic").write_bytes(Path("out/b/05.lic").read_bytes()[:-1])
    code, out, err = lic("info", "--check", "out", "out/a/02.lic")
    assert code == 1 and len(out.splitlines()) == 20 and all(line.endswith(".lic: intact") for line in out.splitlines())
    assert err == [
        "lic: out/b/05.lic: truncated: the file ends inside its checksum",
        "20 of 21 files are intact",
    ]
    told = "import sys, codec.cli; code = codec.cli.main(['info', '--check', 'out/a']); "
    told += "assert not {'torch', 'numba', 'numpy', 'PIL'} & sys.modules.keys(); sys.exit(code)"
    in_fresh_python(told)


def test_a_folder_that_cannot_be_listed_is_an_error_and_does_not_stop_the_others(lic, here, monkeypatch):
    with pytest.raises(OSError):
        list(files.below(here / "gone", files.IMAGES))
    with pytest.raises(LicError, match="no files in"):
        list(expand(["in"], {".lic"}))
    scandir = os.scandir

    def locked(path):
        if os.path.basename(path) == "b":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", locked)
    code, _, err = lic(*COMPRESS)
    assert code == 1 and "in/b" in err[-2] and err[-1].endswith("files done, 1 failed")
    assert "a/02.lic" in listing("out") and not any("b" in Path(name).parts for name in listing("out"))
