"""Many files: worker processes, their deaths, resuming, sharing, and what is left on disk."""

import io
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from deadly import Deadly
from PIL import Image
from shared import LIC, in_fresh_python, in_process, picture

from codec import files
from codec.batch.jobs import FatalError, run, work_in_processes
from codec.batch.plan import Job, expand, plan, remove_temporaries
from codec.coding.verify import Mismatch, Witness
from codec.container import bitstream
from codec.errors import LicError

COUNT = 20


@pytest.fixture(autouse=True)
def here(shell, photos):
    """An empty folder with 20 images of 96x64 in `in`."""
    for i in range(COUNT):
        path = Path(f"in/{'ab'[i % 2]}/deep" if i % 3 == 0 else f"in/{'ab'[i % 2]}", f"{i:02}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        photos[i % 4].rotate(i).save(path)
    return shell


def listing(folder) -> dict[str, bytes]:
    """All files of a folder, hidden ones too, with what is in them."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


NAMES = [f"{'ab'[i % 2]}/{'deep/' * (i % 3 == 0)}{i:02}" for i in range(COUNT)]
COMPRESS = ("compress", "in", "-o", "out", "-m", "tiny", "--device", "cpu", "--precision", "fp32")


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


@pytest.mark.parametrize("kind", ["deaf", "stuck"])
def test_a_worker_that_did_not_hear_that_it_should_end_is_not_awaited_for_ever(here, monkeypatch, kind):
    monkeypatch.setattr("codec.batch.jobs.PATIENCE", 0.5)
    results = work_in_processes(told_to(["fine", kind]), Deadly(), 2, debug=False)
    next(results)
    while not Path("1.out").exists():
        time.sleep(0.01)
    closing = threading.Thread(target=results.close, daemon=True)
    closing.start()
    closing.join(30)
    assert not closing.is_alive() and not list(here.glob(".*.part"))


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


def test_killed_in_the_middle_and_resumed_nothing_is_lost_or_done_twice(lic):
    program = [sys.executable, "-m", "codec.cli", *COMPRESS, "--jobs", "2"]  # as it is, workers spawned and all
    begun = subprocess.Popen(program, stderr=subprocess.DEVNULL, start_new_session=True)
    while len(list(Path("out").rglob("*.lic"))) < 6:
        assert begun.poll() is None
        time.sleep(0.005)
    os.killpg(begun.pid, signal.SIGKILL)
    begun.wait()
    complete = listing("out")
    inodes = {path: path.stat().st_ino for path in Path("out").rglob("*.lic")}
    Path("out/a/.02.lic.0123abcd.part").write_bytes(b"half")  # what a kill between open and rename leaves
    Path("out/a/.02.lic.bak").write_bytes(b"mine")  # and what it does not
    Path("out/a/.mine.lic.0123abcd.part").write_bytes(b"mine")
    assert 6 <= len(inodes) < COUNT
    code, _, err = lic(*COMPRESS, "--resume")
    assert code == 0 and err[-1] == f"{COUNT - len(inodes)} of 20 files done, {len(inodes)} were complete before"
    expected = {f"{name}.lic" for name in NAMES} | {"a/.02.lic.bak", "a/.mine.lic.0123abcd.part"}
    assert listing("out").keys() == expected
    assert all(path.stat().st_ino == inode for path, inode in inodes.items())
    assert complete.items() - listing("out").items() <= {(n, d) for n, d in complete.items() if n.endswith(".part")}
    assert lic("info", "--check", "out")[0] == 0
    assert lic(*COMPRESS, "--resume")[2] == ["0 of 20 files done, 20 were complete before"]


def test_resume_makes_again_what_is_damaged_and_leaves_alone_what_is_foreign(lic, here):
    assert lic(*COMPRESS)[0] == 0
    whole = listing("out")
    for name, damage in (
        ("a/02", lambda d: d[:-1]),
        ("a/04", lambda d: b""),
        ("b/01", lambda d: d[:30] + b"?" + d[31:]),
    ):
        (here / f"out/{name}.lic").write_bytes(damage(whole[f"{name}.lic"]))
    (here / "out/b/05.lic").write_bytes(b"a license")
    code, _, err = lic(*COMPRESS, "--resume")
    assert code == 1 and err[-1] == "3 of 20 files done, 16 were complete before, 1 failed"
    assert [line for line in err if "05" in line and "-f replaces it" in line]
    assert listing("out") == whole | {"b/05.lic": b"a license"}
    os.unlink("out/b/05.lic")

    assert lic("decompress", "out", "-o", "back", "--device", "cpu")[0] == 0
    whole = listing("back")
    (here / "back/a/02.png").write_bytes(whole["a/02.png"][:-20])
    (here / "back/a/04.png").write_bytes(whole["a/04.png"][:400] + b"????" + whole["a/04.png"][404:])
    (here / "back/b/01.png").write_bytes(b"mine")
    code, _, err = lic("decompress", "out", "-o", "back", "--device", "cpu", "--resume")
    assert code == 1 and err[-1] == "2 of 19 files done, 16 were complete before, 1 failed"
    assert listing("back") == whole | {"b/01.png": b"mine"}


@pytest.mark.parametrize(
    "jobs, send, number",
    [(1, os.kill, signal.SIGTERM), (2, os.killpg, signal.SIGINT), (2, os.killpg, signal.SIGHUP)],
)
def test_kill_ctrl_c_and_a_closed_terminal_leave_no_partial_and_no_temporary_file(photo, jobs, send, number):
    big = io.BytesIO()
    photo.resize((1000, 800)).save(big, "BMP")
    for path in Path("in").rglob("*.png"):
        path.write_bytes(big.getvalue())
    process = in_process(LIC, *COMPRESS, "--jobs", jobs, group=True, stderr="said.txt")
    while not any(Path("out").rglob("*.lic")):
        assert process.exitcode is None
        time.sleep(0.005)
    time.sleep(random.Random(jobs).uniform(0, 0.1))
    send(process.pid, number)
    process.join(30)
    error = Path("said.txt").read_text()
    assert process.exitcode == 1 and error.endswith("lic: interrupted\n") and "Traceback" not in error
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


@pytest.mark.parametrize("inputs", [["in/a/02.png", "-o", "one.lic"], ["in/a", "-o", "some"]])
def test_resume_makes_again_what_is_of_another_quality_or_model_or_older_than_its_input(lic, models, inputs):
    def again(*options: str) -> list[str]:
        code, _, err = lic("compress", *inputs, "--resume", *options)
        assert code == 0
        return [line for line in err if "made again" in line]

    assert again("-m", "tiny", "-q", "20") == again("-m", "tiny", "-q", "20") == []
    path = next(Path(inputs[-1]).rglob("*.lic")) if inputs[-1] == "some" else Path("one.lic")
    small, target = path.read_bytes(), str(path)
    told = [line for line in again("-m", "tiny", "-q", "70") if target in line]
    assert told == [f"lic: {target}: made again: it was of quality 20, not 70"]
    assert bitstream.read(path.read_bytes())[0].quality == 70 and again("-m", "tiny", "-q", "70") == []
    assert len([line for line in again("-m", "hyper", "-q", "70") if "it was of model" in line]) >= 1
    assert len(again("-m", "tiny", "--size", str(len(small)))) >= 1 and len(path.read_bytes()) <= len(small)
    kept = path.read_bytes()
    again("-m", "tiny", "--size", str(len(small)))
    assert path.read_bytes() == kept
    assert any("a higher one fits" in line for line in again("-m", "tiny", "--size", str(2 * len(small))))
    again("-m", "tiny", "-q", "20")
    source = Path("in/a/02.png")
    later = Path("some/02.lic" if inputs[-1] == "some" else "one.lic").stat().st_mtime + 10
    os.utime(source, (later, later))
    assert [line.endswith("made again: the input is newer") for line in again("-m", "tiny", "-q", "20")] == [True]


def test_an_input_from_the_future_is_made_once_and_again_when_it_changes(lic):
    coded, decoded = ("compress", "in/a/02.png", "-o", "a.lic", "-m", "tiny"), ("decompress", "a.lic", "-o", "a.png")
    for year in (1, 2):
        later = time.time() + year * 365 * 86400
        os.utime("in/a/02.png", (later, later))
        for command in (coded, decoded):
            assert [len(lic(*command, "--resume")[2]) for _ in range(3)] == [year, 0, 0]


def test_a_file_of_another_effort_is_made_again(lic):
    def said(*options: str) -> list[str]:
        code, out, err = lic("compress", "in/a/02.png", "-o", "a.lic", "-m", "hyper", "-q", "60", "--resume", *options)
        assert code == 0
        return [line for line in [*out, *err] if "made again" in line]

    assert said("--effort", "2") == said("--effort", "2") == []
    assert bitstream.effort(bitstream.read(Path("a.lic").read_bytes())[1]) == 2
    assert said() == ["lic: a.lic: made again: it was of effort 2, not 0"]
    code, out, _ = lic("info", "a.lic")
    assert code == 0 and "effort" not in out[0]


def test_resume_makes_an_image_again_that_is_of_another_region(lic):
    assert lic("compress", "in/a/02.png", "-o", "a.lic", "-m", "tiny")[0] == 0
    assert lic("decompress", "a.lic", "-o", "a.png", "--region", "0,0,20,10")[0] == 0
    code, _, err = lic("decompress", "a.lic", "-o", "a.png", "--resume")
    assert code == 0 and err[0].startswith("lic: a.png: made again: it was of 20x10 pixels, not ")
    assert lic("decompress", "a.lic", "-o", "a.png", "--resume") == (0, "", [])


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


# ---- --verify ----


def test_verify_accepts_what_is_right(lic, photo):
    picture(photo, 50, 40).save("in/a/alpha.png")
    Image.new("RGB", (64, 64), "red").save("in/a/drawing.png")
    photo.save("in/a/meta.jpg", dpi=(72, 72), xmp=b"<x/>")
    for model in ("tiny", "hyper", "hyper_fixed"):
        code, _, err = lic("compress", "in/a", "-o", model, "-m", model, "--device", "cpu", "--verify")
        assert code == 0 and all(line.endswith(", verified") for line in err[:-1])
    assert lic("compress", "in/a", "-o", "small", "-m", "hyper", "--device", "cpu", "--verify", "--size", 2000)[0] == 0


def spoil(data: bytes, tag: int, other: bytes) -> bytes:
    """The file with a section of another one, checksums right."""
    header, sections = bitstream.read(data)
    theirs = {section.tag: section for section in bitstream.read(other)[1]}
    return bitstream.write(header, [theirs[tag] if section.tag == tag else section for section in sections])


@pytest.mark.parametrize("tag, message", [
    (bitstream.LATENT, "symbols|damaged"), (bitstream.HYPER, "symbols|damaged"), (bitstream.ALPHA, "alpha"),
    (bitstream.XMP, "metadata"),
])  # fmt: skip
def test_verify_sees_what_is_wrong_behind_right_checksums(hyper, photos, tag, message):
    images = [picture(photo, 80, 60) for photo in photos[:2]]
    for i, image in enumerate(images):
        image.info = {"xmp": b"<x/>" * (i + 1)}
    witness = Witness()
    data, other = hyper.compress(images[0], 40, witness=witness), hyper.compress(images[1], 40)
    witness.check(hyper, data, images[0])
    with pytest.raises((Mismatch, bitstream.FormatError), match=message):
        witness.check(hyper, spoil(data, tag, other), images[0])
    with pytest.raises(Mismatch):
        witness.check(hyper, other, images[1])  # symbols that were not seen
    with pytest.raises(Mismatch, match="instead of"):
        witness.check(hyper, data, images[0].convert("RGB"))


def test_verify_sees_a_lossless_image_that_is_another(tiny):
    witness = Witness()
    data = tiny.compress(Image.new("RGB", (64, 64), "red"), 50, witness=witness)
    with pytest.raises(Mismatch, match="pixels"):
        witness.check(tiny, data, Image.new("RGB", (64, 64), "blue"))


def test_a_file_that_is_not_what_was_meant_never_gets_its_name(lic, monkeypatch, here):
    """The disk gives back another byte than was written."""
    before = listing(here)
    read_bytes = Path.read_bytes

    def faulty(path: Path) -> bytes:
        data = read_bytes(path)
        return data if path.suffix != ".part" else data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", faulty)
        code, _, err = lic("compress", "in/a/02.png", "-m", "tiny", "--verify")
        assert code == 1 and len(err) == 1 and "checksum" in err[0]
        assert listing(here) == before
        (here / "in/a/02.lic").write_bytes(b"mine")
        assert lic("compress", "in/a/02.png", "-m", "tiny", "--verify", "-f")[0] == 1
    assert listing(here) == before | {"in/a/02.lic": b"mine"}


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
