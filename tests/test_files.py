"""What the command line must not do to anybody's files, and what it must not be stopped by."""

import io
import json
import os
import struct
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin, features
from shared import LIC, in_process, picture, saved

import codec
from codec.batch import plan
from codec.container import bitstream, metadata
from codec.errors import LicError
from codec.files import LONGEST, write_atomically, write_bytes

TINY = ("-m", "tiny")


@pytest.fixture(autouse=True)
def here(shell, photo):
    """Every test works in a folder with one photograph."""
    photo.save("a.png")
    return shell


def test_out_with_a_slash_is_a_folder(lic, here, photo):
    photo.save("b.png")
    assert lic("compress", "a.png", "-o", "small/", *TINY)[0] == lic("compress", "b.png", "-o", "small/", *TINY)[0] == 0
    assert sorted(os.listdir("small")) == ["a.lic", "b.lic"]


@pytest.mark.parametrize("out", ["a.lic", "./a.lic", "link/a.lic"])
def test_an_input_is_never_written_over(fails, out):
    os.symlink(".", "link")
    os.rename("a.png", "a.lic")  # the image
    assert "would be written over" in fails("compress", "a.lic", "-o", out, "-f", *TINY)


def test_what_an_input_is_a_link_to_is_never_written_over(lic, fails):
    os.mkdir("in")
    os.rename("a.png", "a.lic")
    os.symlink("../a.lic", "in/a.png")
    assert "a.lic is an input, and would be written over" in fails("compress", "in/a.png", "-o", "a.lic", "-f", *TINY)
    os.symlink("../a.lic", "in/a.lic")  # a target that is a link is replaced, and what it leads to stays
    assert lic("compress", "in/a.png", "-f", *TINY)[0] == 0
    assert not os.path.islink("in/a.lic") and Image.open("a.lic").format == "PNG"


def test_names_that_differ_in_case_are_one_where_the_file_system_thinks_so(lic, fails, photo, monkeypatch):
    photo.save("A.png")
    monkeypatch.setattr(plan, "CASELESS", True)
    assert "would both be written to" in fails("compress", "a.png", "A.png", "-o", "out/", *TINY)
    monkeypatch.setattr(plan, "CASELESS", False)
    assert lic("compress", "a.png", "A.png", "-o", "out/", *TINY)[0] == 0


def test_a_folder_that_is_not_there_is_told_by_its_name(fails):
    assert "nowhere/a.lic" in fails("compress", "a.png", "-o", "nowhere/a.lic", *TINY)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_what_is_no_file_is_not_replaced(fails):
    os.mkfifo("pipe")
    os.symlink(os.devnull, "null")
    os.mkdir("folder.lic")
    for out in ("pipe", "null"):
        for force in ([], ["-f"]):
            assert f"{out} is not a file" in fails("compress", "a.png", "-o", out, *force, *TINY)
    with pytest.raises(LicError, match="is not a file"):
        write_bytes("folder.lic", b"", replace=True)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_in_a_folder_is_passed_over_and_a_link_to_nowhere_told(lic, photo):
    os.mkdir("in")
    photo.save("in/a.png")
    os.mkfifo("in/pipe.png")
    os.symlink("nowhere", "in/z.png")
    code, _, err = lic("compress", "in", "-o", "out", *TINY)
    assert code == 1 and err[-1] == "1 of 2 files done, 1 failed" and "z.png" in err[-2]
    assert os.listdir("out") == ["a.lic"]


def test_a_file_that_appears_in_the_meantime_is_not_replaced():
    def other(_: bytes) -> None:
        Path("a.lic").write_bytes(b"theirs")

    with pytest.raises(LicError, match="exists"):
        write_bytes("a.lic", b"mine", replace=False, check=other)
    assert Path("a.lic").read_bytes() == b"theirs" and sorted(os.listdir()) == ["a.lic", "a.png"]
    write_bytes("a.lic", b"mine", replace=True, check=other)
    assert Path("a.lic").read_bytes() == b"mine"


def test_without_links_a_file_gets_its_name_by_renaming(monkeypatch):
    def refuse(*_) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    write_bytes("a.lic", b"mine", replace=False)
    assert Path("a.lic").read_bytes() == b"mine" and sorted(os.listdir()) == ["a.lic", "a.png"]


def test_a_name_of_any_length_that_the_target_may_have(lic, photo):
    name = "y" * 251
    os.rename("a.png", f"{name}.png")
    assert lic("compress", f"{name}.png", *TINY)[0] == 0
    left = f".{(name + '.lic')[:LONGEST]}.01234567.part"
    Path(left).touch()
    Path(f"{name}.lic").write_bytes(b"")
    assert lic("compress", f"{name}.png", "--resume", *TINY)[0] == 0
    assert sorted(os.listdir()) == [f"{name}.lic", f"{name}.png"]


def test_a_disk_that_fills_is_told_by_the_name_of_the_file(monkeypatch):
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space") as error:
        write_atomically("b.lic", b"mine")
    assert error.value.filename == "b.lic" and os.listdir() == ["a.png"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(monkeypatch):
    write_atomically("b", b"old")

    def fail(*_):
        raise OSError("no space")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        write_atomically("b", b"new")
    assert Path("b").read_bytes() == b"old" and sorted(os.listdir()) == ["a.png", "b"]


def test_a_written_file_has_the_permissions_of_any_new_file():
    Path("plain").write_bytes(b"")
    write_atomically("ours", b"")
    assert Path("ours").stat().st_mode == Path("plain").stat().st_mode


@pytest.mark.parametrize("name", ["b.jpg", "b.webp", "b.tif", "b.bmp", "b.gif"])
def test_resume_makes_a_truncated_image_again_and_keeps_what_is_foreign(lic, fails, name):
    lic("compress", "a.png", *TINY)
    assert lic("decompress", "a.lic", "-o", name)[0] == 0
    whole, again = Path(name).read_bytes(), ("decompress", "a.lic", "-o", name, "--resume")
    assert lic(*again) == (0, "", [])
    for damaged in (whole[: len(whole) // 2], whole[:20]):
        Path(name).write_bytes(damaged)
        assert lic(*again)[0] == 0 and Path(name).read_bytes() == whole
    Path(name).write_text("my notes")
    assert "not what would be written" in fails(*again)


def test_linked_folders_are_searched_but_not_in_circles(lic, photo):
    os.makedirs("in/a/b")
    os.mkdir("elsewhere")
    photo.save("elsewhere/x.png")
    photo.save("in/a/y.png")
    os.symlink("../../../elsewhere", "in/a/b/link")
    os.symlink("../..", "in/a/b/up")
    assert lic("compress", "in", "-o", "out", *TINY)[2][-1] == "2 of 2 files done"
    assert sorted(map(str, Path("out").rglob("*.lic"))) == ["out/a/b/link/x.lic", "out/a/y.lic"]


def test_images_of_all_kinds_are_found_and_what_is_left_out_is_told(lic, photo):
    os.mkdir("in")
    for extension in ("gif", "jp2", "pgm", "tga", "jfif", "bmp"):
        photo.convert("L").save(f"in/{extension}.{extension}")
    for name in ("notes.txt", "b.TXT", "README", "old.lic"):
        Path("in", name).touch()
    code, _, err = lic("compress", "in", *TINY)
    assert code == 0 and err[-2:] == ["6 of 6 files done", "lic: left out, by extension: 2 .txt, 1 without extension"]


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="names of open files are another matter here")
@pytest.mark.parametrize("name", ["/proc/self/fd/1", "/dev/stdout", "/dev/fd/1", "link", "further"])
def test_what_leads_to_stdout_is_stdout_and_no_link_is_replaced(tiny, photo, name):
    os.symlink("/proc/self/fd/1", "link")
    os.symlink("link", "further")
    before = os.path.lexists(name) and os.path.islink(name)
    process = in_process(LIC, "compress", "-f", "a.png", "-o", name, *TINY, stdout="got.lic", stderr="said.txt")
    process.join()
    assert process.exitcode == 0 and os.path.islink(name) == before
    assert bitstream.read(Path("got.lic").read_bytes())[0].width == photo.width
    arguments = ("decompress", "-f", "/dev/stdin", "-o", name, "-m", "tiny")
    process = in_process(LIC, *arguments, stdin="got.lic", stdout="got.png", stderr="said.txt")
    process.join()
    assert process.exitcode == 0 and Path("got.png").read_bytes().startswith(b"\x89PNG")
    assert not list(Path("/dev").glob("stdin.*"))


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="names of open files are another matter here")
def test_another_open_file_is_written_to_by_its_number(lic):
    reader, writer = os.pipe()
    os.symlink(f"/dev/fd/{writer}", "pipe")
    assert lic("compress", "-f", "a.png", "-o", "pipe", *TINY)[0] == 0
    os.close(writer)
    with open(reader, "rb") as file:
        assert bitstream.read(file.read())
    assert os.path.islink("pipe") and "Bad file descriptor" in lic("compress", "-f", "a.png", "-o", "pipe", *TINY)[2][0]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_no_device_no_pipe_and_no_link_to_one_is_replaced(fails):
    os.mkfifo("pipe")
    os.symlink("pipe", "link")
    os.symlink("/dev/null", "nothing")
    for name in ("pipe", "link", "nothing", "/dev/null"):
        assert "not a file that could be replaced" in fails("compress", "-f", "a.png", "-o", name, *TINY)


def test_closed_streams_are_told_in_a_line(lic, fails, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    assert "stdin is closed" in fails("compress", "-", "-o", "b.lic", *TINY)
    process = in_process(LIC, "compress", "a.png", "-o", "-", *TINY, stdout=None, stderr="said.txt")
    process.join()
    assert process.exitcode == 1 and Path("said.txt").read_text() == "lic: a.png: stdout is closed\n"
    process = in_process(LIC, "compress", "a.png", "-o", "b.lic", *TINY, stderr=None)
    process.join()
    assert process.exitcode == 0 and bitstream.read(Path("b.lic").read_bytes())


@pytest.mark.skipif(sys.platform != "linux", reason="file names are text there")
def test_info_prints_names_that_are_not_text(tiny, photo):
    Path(os.fsdecode(b"\xe9.lic")).write_bytes(tiny.compress(photo, 50))
    run = subprocess.run(
        [sys.executable, "-m", "codec.cli", "info", "--check", "."],
        env=os.environ | {"PYTHONIOENCODING": "utf-8:strict"}, capture_output=True,
    )  # fmt: skip
    assert (run.returncode, run.stdout) == (0, b"./\xe9.lic: intact\n")


def test_what_is_asked_in_other_words_is_an_error():
    for device in ("mps", "cuda:0", "gpu"):
        with pytest.raises(ValueError, match=device):
            codec.load("tiny", device)
    with pytest.raises(ValueError, match="fp16"):
        codec.load("tiny", "cpu", "fp16")
    model = codec.load("tiny", "cpu")
    for wrong in ("a.png", None, 3):
        with pytest.raises(TypeError, match="PIL image"):
            model.compress(wrong, 50)
        with pytest.raises(TypeError, match="bytes"):
            codec.decompress(wrong)


def test_text_that_only_says_that_it_is_exif_is_left_out(lic, photo):
    text = PngImagePlugin.PngInfo()
    text.add_text("Raw profile type exif", "\nexif\n  10\nzzzz")
    photo.save("b.png", pnginfo=text)
    assert lic("compress", "b.png", *TINY)[0] == 0
    assert "exif" not in codec.decompress(Path("b.lic").read_bytes()).info


def test_a_tiff_without_a_resolution_has_none_afterwards(tiny, photo):
    for options, expected in (({}, None), ({"dpi": (72, 72)}, (72.0, 72.0))):
        with Image.open(io.BytesIO(saved(photo, "TIFF", **options))) as image:
            assert tiny.decompress(tiny.compress(image, 20)).info.get("dpi") == expected


def test_an_image_beyond_pillows_limit_is_saved_without_a_word(photo, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # half of what is an error
    with warnings.catch_warnings(action="error"):
        for form in ("PNG", "JPEG", "TIFF", "WEBP"):
            assert metadata.save(photo, form)[0]


def test_an_image_inside_an_icon_is_bound_by_the_limit_too(fails, monkeypatch):
    large = saved(Image.new("RGB", (300, 300)), "PNG")
    small = saved(Image.new("RGB", (16, 16)), "ICO", sizes=[(16, 16)])
    Path("a.ico").write_bytes(small[:14] + struct.pack("<II", len(large), 22) + large)
    monkeypatch.setattr(bitstream, "MAX_PIXELS", 20_000)
    assert "its pixels are more than the limit of 20000" in fails("compress", "a.ico", *TINY)


def test_alpha_goes_into_an_icon_and_many_colours_into_a_gif_with_a_word(lic, photo):
    picture(photo, 32, 32).save("b.png")
    assert lic("compress", "a.png", "b.png", "-o", ".", *TINY)[0] == 0
    assert lic("decompress", "b.lic", "-o", "b.ico")[0] == 0
    with Image.open("b.ico") as icon, Image.open("b.png") as original:
        assert icon.getchannel("A").tobytes() == original.getchannel("A").tobytes()
    code, _, err = lic("decompress", "a.lic", "-o", "a.gif")
    assert code == 0 and "GIF cannot hold more than 256 colours: not kept" in err[0]


@pytest.mark.parametrize("form, side", [("JPEG", 65500), ("WEBP", 16383), ("GIF", 65535)])
def test_an_image_larger_than_a_format_can_be_is_refused_with_a_remedy(form, side):
    with pytest.raises(ValueError, match=f"{form} cannot hold {side + 1}x1 pixels: write PNG"):
        metadata.save(Image.new("L", (side + 1, 1)), form)
    if form in ("JPEG", "GIF") or features.check("webp"):
        assert metadata.save(Image.new("L", (side, 1)), form)[0]


def test_a_file_is_named_once_and_an_unnamed_or_doubled_one_refused(fails):
    assert fails("compress", "no/b.png", *TINY).count("no/b.png") == 1
    assert "stdin can be read once only" in fails("compress", "-", "-", "-o", "out/", *TINY)
    assert "OUT has no name" in fails("compress", "a.png", "-o", "", *TINY)


def test_info_tells_as_json_what_it_has_read_before_an_empty_folder(lic, tmp_path):
    os.mkdir("empty")
    assert lic("compress", "a.png", *TINY)[0] == 0
    code, out, err = lic("info", "--json", "a.lic", "empty")
    assert code == 1 and [row["file"] for row in json.loads(out)] == ["a.lic"] and "no files in empty" in err[0]


def test_names_that_stdout_cannot_show_are_escaped(tiny, photo):
    Path("b\u00e9.lic").write_bytes(tiny.compress(photo, 50))
    command = [sys.executable, "-m", "codec.cli", "info", "b\u00e9.lic"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    assert b"b\\xe9.lic: 96x64" in subprocess.run(command, env=environment, capture_output=True, check=True).stdout


def test_a_format_that_changes_the_size_is_refused_and_a_lossy_one_loses_little(lic, fails, photo):
    photo.resize((320, 300)).save("a.png")
    lic("compress", "a.png", *TINY)
    assert "ICO cannot hold 320x300" in fails("decompress", "a.lic", "-o", "b.ico")
    with warnings.catch_warnings(action="ignore"):
        lic("decompress", "a.lic", "-o", "b.jpg")
    with Image.open("b.jpg") as image:
        assert max(max(table) for table in image.quantization.values()) < 20  # Pillow's default has 99
