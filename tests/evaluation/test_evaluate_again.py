"""An evaluation by several processes finds what one finds; it goes on where it stopped; its times are its own."""

import ast
import dataclasses
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import eval as program
from codec.container import bitstream
from codec.errors import LicError
from codec.evaluation import evaluate, results
from codec.evaluation.codecs import make_codec, rival_codec
from codec.evaluation.cost import Clock, entropy_clock, time_coding
from codec.evaluation.evaluate import JOURNAL, run


@pytest.fixture
def folder(photos, tmp_path):
    """Two photographs as PNG, in photos/."""
    (tmp_path / "photos").mkdir()
    for i, photo in enumerate(photos[:2]):
        photo.save(tmp_path / f"photos/{i}.png")
    return tmp_path


def numbers(result):
    """The rows of a result without their times."""
    times = ("encoding_time", "decoding_time", "encoding_entropy_time", "decoding_entropy_time")
    return [str(dataclasses.replace(row, **dict.fromkeys(times))) for row in result.rows]


@pytest.mark.usefixtures("served")
def test_several_processes_find_what_one_finds(folder, models):
    images = [(str(i), folder / f"photos/{i}.png") for i in range(2)] + [("gone", folder / "photos/gone.png")]
    codec = make_codec(f"lic:{models / 'tiny.safetensors'}@20,80", "cpu")
    (one,) = run([dataclasses.replace(codec, text=None)], images, folder / "alone")
    (other,) = run([codec], images, folder / "several", jobs=2)
    assert len(one.rows) == 4 and numbers(one) == numbers(other)
    assert one.images == other.images and one.failures == other.failures and len(one.failures) == 1
    assert one.peak_memory is None and other.peak_memory["process"] > 50e6
    for result in (one, other):
        about = json.loads(result.to_json())
        assert about["dtype"] in ("fp32", "bf16") and about["parameters"] > 0 and len(about["kmac_per_pixel"]) == 2
        assert 0 < about["results"]["encoding_entropy_time"][0] < about["results"]["encoding_time"][0]
        assert 0 < about["results"]["decoding_entropy_time"][0] < about["results"]["decoding_time"][0]
    with pytest.raises(ValueError, match="jpeg was not made by make_codec"):
        run([rival_codec("jpeg")], images, folder / "third", jobs=2)


def test_an_effort_is_part_of_a_codec(folder, models):
    text = f"lic:{models / 'hyper.safetensors'}"
    plain, tried = (make_codec(f"{text}{effort}@60", "cpu") for effort in ("", ":effort=4"))
    assert (plain.name, tried.name) == ("lic-hyper", "lic-hyper-effort-4") and "effort 4" in tried.description
    image = Image.open(folder / "photos/0.png")
    data = tried.encode(image, 60)
    assert bitstream.effort(bitstream.read(data)[1]) == 4 and data != plain.encode(image, 60)
    assert tried.decode(data).size == image.size
    with pytest.raises(LicError, match=r"the effort must be 0\.\.9"):
        make_codec(f"{text}:effort=10", "cpu")


def counting(codec, calls):
    """The codec, every encoding of which is noted."""
    return dataclasses.replace(codec, encode=lambda image, q: calls.append(q) or codec.encode(image, q))


def test_a_run_goes_on_where_it_stopped(tmp_path, photos):
    calls, images = [], [(str(i), photo) for i, photo in enumerate(photos[:2])]
    jpeg = rival_codec("jpeg", [20, 60])

    def interrupted(image, quality):
        if image == photos[1]:
            raise KeyboardInterrupt
        return jpeg.encode(image, quality)

    with pytest.raises(KeyboardInterrupt):
        run([dataclasses.replace(jpeg, encode=interrupted)], images, tmp_path)
    journal = tmp_path / JOURNAL
    journal.write_bytes(journal.read_bytes() + b'{"key": "torn')
    (first,) = run([counting(jpeg, calls)], images, tmp_path)
    assert calls[:2] == [20, 60]  # of the second image; what follows is timing
    calls.clear()
    (again,) = run([counting(jpeg, calls)], images, tmp_path)
    assert not calls and again.to_json() == first.to_json()

    # what changes what a file depends on, or the file, is measured again
    changed = dataclasses.replace(jpeg, description=jpeg.description + ", by another library")
    (tmp_path / first.rows[0].file).write_bytes(b"no longer what it was")
    (repaired,) = run([counting(jpeg, calls)], images, tmp_path)
    assert calls == [first.rows[0].quality] and repaired.to_json() == first.to_json()
    for codec, pictures in ((changed, images), (jpeg, [("0", photos[2]), images[1]])):
        calls.clear()
        run([counting(codec, calls)], pictures, tmp_path)
        assert {20, 60} <= set(calls)


def test_a_damaged_journal_is_an_error_that_names_the_line(tmp_path, photos):
    (tmp_path / JOURNAL).write_text('{"key": "a"}\n{"key": \n')
    with pytest.raises(ValueError, match="rows.jsonl: line 2 is no line of a journal"):
        run([rival_codec("jpeg", [20])], [("a", photos[0])], tmp_path)


def test_a_folder_of_another_version_is_measured_anew(tmp_path, photos):
    calls, jpeg = [], rival_codec("jpeg", [20])
    row = {"image": "a", "quality": 20, "file": "files/jpeg/a_q20.jpg", "bytes": 1, "bpp": 1, "sharpness": 3}
    (tmp_path / JOURNAL).write_text(json.dumps({"key": "old", "sha256": "0", "row": row}) + "\n")
    (result,) = run([counting(jpeg, calls)], [("a", photos[0])], tmp_path)
    assert calls and len(result.rows) == 1


@pytest.mark.parametrize("learned", [False, True])
def test_our_source_is_part_of_the_key(tmp_path, photos, monkeypatch, learned):
    calls, jpeg = [], rival_codec("jpeg", [20])
    codec = dataclasses.replace(jpeg, parameters=1) if learned else jpeg
    run([codec], [("a", photos[0])], tmp_path)
    versions = evaluate.versions
    for changed in (True, False):
        calls.clear()
        change = {"source": "another"}
        monkeypatch.setattr(evaluate, "versions", lambda of: versions(of) | (change if of == changed else {}))  # noqa: B023
        run([counting(codec, calls)], [("a", photos[0])], tmp_path)
        assert bool(calls) == (changed == learned)


def imported(path, package):
    """The files of `package` that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            for file in (package.parent.joinpath(*name.split(".")).with_suffix(".py"),):
                if file.is_file():
                    yield file


def test_the_key_covers_what_codes_and_not_what_tells():
    """A change there makes files anew; one in what draws, trains or talks does not."""
    package = Path(results.__file__).parents[1]
    ours, theirs = results.sources(True), results.sources(False)
    for path in {*ours, *theirs}:
        covered = ours if path in ours else theirs
        for file in imported(path, package):
            assert file in covered or file in {*ours, *theirs}, f"{path} imports {file}, which is in no key"
    folders = {path.parent.name for path in ours}
    assert folders == {"codec", "entropy", "network", "container", "coding", "evaluation"}
    assert {path.name for path in theirs} == {"rivals.py", "metrics.py", "cost.py", "target.py", "errors.py"}
    for path in ("cli", "journal", "evaluation/report", "evaluation/plot", "training/log"):
        assert package / f"{path}.py" not in ours


def test_the_hash_of_source_is_of_names_and_contents(tmp_path):
    (tmp_path / "a.py").write_text("a")
    before = results.source_hash([tmp_path / "a.py"])
    (tmp_path / "a.py").write_text("b")
    after = results.source_hash([tmp_path / "a.py"])
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    assert len({before, after, results.source_hash([tmp_path / "b.py"])}) == 3


def test_processes_that_make_files_begin_with_one_thread_each_also_for_the_coder(photos, tmp_path, monkeypatch):
    """Threads in place of processes, which inherit the environment as it is then."""
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setattr(evaluate, "_processes", ThreadPoolExecutor)
    monkeypatch.setattr(evaluate, "_code_elsewhere", lambda *_: os.environ["OMP_NUM_THREADS"])
    task = (make_codec("jpeg@50"), "a", photos[0], [50], tmp_path, ["psnr"])
    assert [outcome for _, _, outcome in evaluate._work([task], 2)] == ["1"]
    assert os.environ["OMP_NUM_THREADS"] == "3"
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert [outcome for _, _, outcome in evaluate._work([task], 2)] == ["1"]
    assert "OMP_NUM_THREADS" not in os.environ


def test_times_of_few_images_stand_for_all(tmp_path, photos, monkeypatch):
    monkeypatch.setattr(evaluate, "TIMED", 1)
    jpeg = rival_codec("jpeg", [20])
    (result,) = run([jpeg], [(str(i), photo) for i, photo in enumerate(photos[:3])], tmp_path)
    assert [row.encoding_time is None for row in result.rows] == [False, True, True]
    assert result.means()[0]["encoding_time"] == result.rows[0].encoding_time
    assert "encoding_entropy_time" not in result.means()[0]


def test_a_process_that_dies_is_said_in_a_line(folder, monkeypatch, capsys):
    class Broken:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def submit(self, *_):
            future = evaluate.concurrent.futures.Future()
            future.set_exception(evaluate.BrokenProcessPool("gone"))
            return future

        def shutdown(self, **_):
            pass

    monkeypatch.setattr(evaluate, "_processes", lambda count: Broken())
    options = ["--data", str(folder / "photos"), "--codec", "jpeg@50", "--out", str(folder / "out"), "--jobs", "2"]
    assert program.main(options) == 1
    assert "fewer --jobs" in capsys.readouterr().err


def test_the_clock_counts_nested_calls_once_and_leaves_no_trace(hyper, photo):
    import entropy

    encode, clock = entropy.encode, Clock()
    inner = clock.before(lambda: time.sleep(0.02))
    begun = time.perf_counter()
    clock.before(inner)()
    assert 0.02 <= clock.seconds <= time.perf_counter() - begun
    with entropy_clock() as clock:
        assert entropy.encode is not encode
        hyper.compress(photo, 50)
    assert entropy.encode is encode and clock.seconds > 0
    seconds = time_coding(hyper.compress, hyper.decompress, photo, 50)
    assert 0 < seconds.encoding_entropy < seconds.encoding and 0 < seconds.decoding_entropy < seconds.decoding


def test_the_clock_counts_coding_with_a_context(hyper, photo, monkeypatch):
    import entropy

    def later(function):
        def slow(*args):
            time.sleep(0.03)
            return function(*args)

        return slow

    monkeypatch.setattr(entropy, "encode_adapted", later(entropy.encode_adapted))
    monkeypatch.setattr(entropy.Decoder, "decode_adapted", later(entropy.Decoder.decode_adapted))
    seconds = time_coding(hyper.compress, hyper.decompress, photo, 50)
    assert min(seconds.encoding_entropy, seconds.decoding_entropy) >= 0.03


def test_the_numbers_are_those_of_the_files(tmp_path, photos):
    codec = rival_codec("avif", [40, 60])
    (result,) = run([codec], [("a", photos[0])], tmp_path)
    for row in result.rows:
        original = np.asarray(photos[0], np.float64)
        decoded = np.asarray(Image.open(tmp_path / row.file).convert("RGB"), np.float64)
        assert row.bytes == (tmp_path / row.file).stat().st_size and row.bpp == 8 * row.bytes / (96 * 64)
        assert row.psnr == pytest.approx(10 * np.log10(255**2 / np.square(original - decoded).mean()), abs=1e-9)


def killed(*_):
    os._exit(9)


@pytest.mark.usefixtures("served")
def test_a_process_that_memory_does_not_suffice_for_costs_a_figure_only(folder, monkeypatch, capsys):
    monkeypatch.setattr(evaluate, "_memory", killed)
    [result] = run([make_codec("jpeg@50", "cpu")], [("0", folder / "photos/0.png")], folder / "out")
    assert result.peak_memory is None and len(result.rows) == 1 and not result.failures
    assert "jpeg: no figure for its memory" in capsys.readouterr().err
