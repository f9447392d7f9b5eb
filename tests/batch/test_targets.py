"""What is right on disk: which targets --resume keeps and which it makes again, and what --verify lets through."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from shared import COMPRESS, COUNT, NAMES, listing, picture

from codec.coding.verify import Mismatch, Witness
from codec.container import bitstream

# ---- --resume ----


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
