"""The command line: round trips, refusals, and one line instead of a traceback for everything that goes wrong."""

import io
import os
import random

import numpy as np
import pytest
from PIL import Image, features
from shared import LIC, in_process

from codec.cli import main
from codec.coding import models as checkpoint
from codec.container import bitstream


@pytest.fixture(autouse=True)
def here(shell):
    """Every test works in an empty folder."""
    return shell


def files(folder) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_compress_and_decompress_are_the_models_own(lic, here, tiny, photo, mode):
    image = photo.convert(mode)
    image.save("a.png")
    code, out, err = lic("compress", "a.png", "-m", "tiny", "-q", 30, "--precision", "fp32")
    data = (here / "a.lic").read_bytes()
    assert (code, out) == (0, "") and data == tiny.compress(image, 30)
    assert f"{len(data)} bytes" in err[-1] and f"{8 * len(data) / (96 * 64):.3f} bpp" in err[-1]
    code, out, err = lic("decompress", "a.lic", "-o", "b.png")
    assert (code, out) == (0, "")
    with Image.open("b.png") as decoded:
        assert (decoded.mode, decoded.size) == (mode, (96, 64))
        expected = np.array(tiny.decompress(data)).astype(int)
        assert np.abs(np.array(decoded) - expected).max() <= 4  # bf16 trunks where they are native
    assert files(here) == ["a.lic", "a.png", "b.png"]


def test_the_default_quality_is_50_and_a_model_of_one_lambda_has_none(lic, fails, photo):
    photo.save("a.png")
    lic("compress", "a.png", "-m", "tiny")
    assert bitstream.read(open("a.lic", "rb").read())[0].quality == 50
    lic("compress", "a.png", "-o", "b.lic", "-m", "fixed")
    assert bitstream.read(open("b.lic", "rb").read())[0].quality is None
    assert lic("decompress", "b.lic")[0] == 0
    assert "one lambda: leave --quality out" in fails("compress", "a.png", "b.png", "-fo", ".", "-m", "fixed", "-q", 50)


def test_a_target_holds_for_each_of_several_inputs(lic, here, tiny, photos):
    os.makedirs("in")
    images = {"in/a": photos[0], "in/b": photos[1].crop((0, 0, 50, 60)), "c": photos[2]}
    for name, image in images.items():
        image.save(f"{name}.png")
    for option, bpp, size in (("--bpp", 1.5, None), ("--size", None, 600)):
        options = ("-o", "out", "-f", "-m", "tiny", "--precision", "fp32", option, bpp or size)
        code, _, err = lic("compress", "in", "c.png", *options)
        assert code == 0 and files(here / "out") == ["c.lic", "in/a.lic", "in/b.lic"]
        for line, (name, image) in zip(err, images.items(), strict=False):
            pixels = image.width * image.height
            data, quality = tiny.compress_to(image, size or bpp * pixels / 8)
            assert (here / f"out/{name}.lic").read_bytes() == data
            assert line.endswith(f"{len(data)} bytes, {8 * len(data) / pixels:.3f} bpp, quality {quality}")


def test_a_target_that_cannot_be_met_is_an_error_that_tells_the_least(fails, tiny, photo):
    photo.save("a.png")
    least = len(tiny.compress(photo, 0))
    for target in (("--size", least - 1), ("--size", 1), ("--bpp", 0.001)):
        error = fails("compress", "a.png", "-m", "tiny", "--precision", "fp32", *target)
        assert f"quality 0 takes {least} bytes" in error
    assert "one lambda" in fails("compress", "a.png", "--size", 5000, "-m", "fixed")


def test_a_region_is_that_part_of_the_image(lic, fails, here, photo):
    photo.save("a.png")
    lic("compress", "a.png", "-m", "tiny")
    lic("decompress", "a.lic", "-o", "whole.png")
    code, _, err = lic("decompress", "a.lic", "-o", "part.png", "--region", "8,0,40,17")
    assert code == 0 and err[-1] == "a.lic -> part.png: 40x17 RGB"
    part, whole = (np.asarray(Image.open(here / name), int) for name in ("part.png", "whole.png"))
    assert np.abs(part - whole[:17, 8:48]).max() <= 1
    assert "96x64" in fails("decompress", "a.lic", "-o", "b.png", "--region", "60,0,40,17")


def test_a_dash_is_stdin_and_stdout(photo, here):
    photo.save("a.png")
    for command, source, target in (("compress -", "a.png", "a.lic"), ("decompress - -o -", "a.lic", "b.png")):
        process = in_process(LIC, *command.split(), "-m", "tiny", stdin=source, stdout=target, stderr="said.txt")
        process.join()
        assert process.exitcode == 0, (here / "said.txt").read_text()
    assert bitstream.read((here / "a.lic").read_bytes())[0].width == 96
    assert Image.open("b.png").size == (96, 64)


def test_a_folder_is_coded_into_a_folder_of_the_same_structure_and_back(lic, here, photo):
    os.makedirs("in/deep")
    photo.save("in/x.png")
    photo.convert("L").save("in/deep/y.jpg")
    (here / "in/notes.txt").write_text("not an image")
    assert lic("compress", "in", "-o", "coded", "-m", "tiny")[0] == 0
    assert files(here / "coded") == ["deep/y.lic", "x.lic"]
    assert lic("decompress", "coded", "-o", "out")[0] == 0
    assert files(here / "out") == ["deep/y.png", "x.png"]
    assert lic("compress", "in/x.png", "-o", "out", "-m", "tiny")[0] == 0  # OUT is a folder because it is one
    assert files(here / "out") == ["deep/y.png", "x.lic", "x.png"]


def test_several_folders_stay_apart_by_their_names(lic, here, photo):
    for name in ("in/a/x", "in/b/x", "in/b/deep/x", "y"):
        os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
        photo.save(f"{name}.png")
    assert lic("compress", "in/a/", "in/b", "y.png", "-o", "out", "-m", "tiny")[0] == 0
    assert files(here / "out") == ["a/x.lic", "b/deep/x.lic", "b/x.lic", "y.lic"]
    assert lic("compress", "in/b", "-m", "tiny")[0] == 0  # beside the images
    assert files(here / "in/b") == ["deep/x.lic", "deep/x.png", "x.lic", "x.png"]


def test_one_bad_file_does_not_stop_the_others(lic, here, photo):
    photo.save("good.png")
    (here / "bad.png").write_bytes(b"nothing")
    code, _, err = lic("compress", "bad.png", "good.png", "-m", "tiny")
    assert code == 1 and files(here) == ["bad.png", "good.lic", "good.png"]
    assert len(err) == 3 and "bad.png" in err[0] and "1 failed" in err[-1]


def test_photo_to_lic_to_photo_never_replaces_the_original(lic, fails, here, photo):
    photo.save("photo.png")
    original = (here / "photo.png").read_bytes()
    lic("compress", "photo.png", "-m", "tiny")
    assert "photo.png exists" in fails("decompress", "photo.lic")
    assert (here / "photo.png").read_bytes() == original


def test_an_existing_output_is_replaced_only_by_force(lic, fails, here, photo):
    photo.save("a.png")
    photo.save("b.png")
    (here / "b.lic").write_text("mine")
    assert "-f" in fails("compress", "a.png", "b.png", "-m", "tiny")  # and a.lic was not written either
    assert lic("compress", "a.png", "b.png", "-m", "tiny", "-f")[0] == 0
    assert (here / "b.lic").read_bytes()[:4] == bitstream.MAGIC


def test_two_inputs_for_one_output_are_refused_before_any_work(fails, photo):
    os.makedirs("deep")
    os.makedirs("other/deep")
    for name in ("a.png", "a.bmp", "deep/a.png", "other/deep/a.png"):
        photo.save(name)
    os.symlink("deep", "link")
    assert "a.png and a.bmp would both be" in fails("compress", "a.png", "a.bmp", "-m", "tiny")
    assert "would both be" in fails("compress", "a.png", "deep/a.png", "-o", "out", "-m", "tiny")
    assert "would both be" in fails("compress", "deep", "other/deep", "-o", "out", "-m", "tiny")
    assert "would both be" in fails("compress", "deep", "link", "-m", "tiny")
    assert "stdout" in fails("compress", "a.png", "deep/a.png", "-o", "-", "-m", "tiny")


def test_every_truncation_is_an_error_of_one_line(fails, here, small):
    for length in range(len(small)):
        (here / "a.lic").write_bytes(small[:length])
        assert fails("decompress", "a.lic", "-o", "a.png").startswith("lic: a.lic: ")


def test_flipped_bits_are_an_error_of_one_line(fails, here, small):
    """All of them: tests/coding/test_damage_files.py."""
    rng = random.Random(1)
    bits = [[bit] for bit in rng.sample(range(8 * len(small)), 200)]  # one alone, then several at once
    while len(bits) < 300:
        bits.append(rng.sample(range(8 * len(small)), rng.randint(2, 20)))
    for flips in bits:
        damaged = bytearray(small)
        for bit in flips:
            damaged[bit // 8] ^= 1 << bit % 8
        (here / "a.lic").write_bytes(damaged)
        assert fails("decompress", "a.lic", "-o", "a.png").startswith("lic: a.lic: ")


@pytest.mark.parametrize("command", ["compress", "decompress"])
def test_an_input_that_cannot_be_read_is_an_error_of_one_line(fails, here, command):
    os.makedirs("empty folder")
    (here / "empty").write_bytes(b"")
    (here / "text").write_text("This is neither an image nor a compressed one.")
    options = ("-o", "out", "-m", "tiny")
    assert "missing" in fails(command, "missing", *options)
    assert "empty" in fails(command, "empty", *options)
    assert "not a" in fails(command, "text", *options)
    assert "empty folder" in fails(command, "empty folder", *options)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF", "PPM", *filter(features.check, ("webp", "avif"))])
def test_a_damaged_image_is_coded_or_is_an_error_of_one_line(lic, here, photo, kind):
    """A flip in the pixels is not an error; no flip is a traceback."""
    packed = io.BytesIO()
    photo.crop((0, 0, 20, 10)).save(packed, kind)
    rng = random.Random(2)
    for _ in range(25):
        damaged = bytearray(packed.getvalue())
        damaged[rng.randrange(min(len(damaged), 400))] ^= 1 << rng.randrange(8)
        (here / "a.img").write_bytes(damaged[: rng.choice((None, rng.randrange(1, len(damaged))))])
        code, _, err = lic("compress", "a.img", "-f", "-m", "tiny")
        *warnings, last = err  # a flip can make a second page
        assert code == 0 or last.startswith("lic: a.img: "), err
        assert all("more than one frame or page" in warning for warning in warnings), err


@pytest.mark.parametrize("mode", ["CMYK", "I;16", "I", "F"])
def test_an_image_mode_that_is_not_coded_is_an_error_that_names_it(fails, mode):
    Image.new(mode, (9, 9)).save("a.tif")
    assert f"mode {mode}: " in fails("compress", "a.tif", "-m", "tiny")


def test_an_image_beyond_the_limit_is_refused(fails, lic, photo, monkeypatch, small):
    photo.save("a.png")
    monkeypatch.setattr(bitstream, "MAX_PIXELS", 96 * 64 - 1)
    assert "6143" in fails("compress", "a.png", "-o", "b.lic", "-m", "tiny")


def test_an_image_is_turned_upright_by_its_exif_orientation(lic, photo):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    photo.save("a.jpg", exif=exif)
    lic("compress", "a.jpg", "-m", "tiny")
    header, _ = bitstream.read(open("a.lic", "rb").read())
    assert (header.width, header.height) == (64, 96)


def test_a_wrong_or_unknown_model_is_an_error_that_names_it(
    fails, here, photo, small, tiny, fixed, models, monkeypatch
):
    photo.save("b.png")
    (here / "broken.safetensors").write_bytes((models / "tiny.safetensors").read_bytes()[:-1])
    for command, source, target in (("compress", "b.png", "b.lic"), ("decompress", "a.lic", "a.png")):
        assert "nonesuch" in fails(command, source, "-o", target, "-m", "nonesuch")
        assert "gone.safetensors" in fails(command, source, "-o", target, "-m", "gone.safetensors")
        assert "broken.safetensors" in fails(command, source, "-o", target, "-m", "broken.safetensors")
    error = fails("decompress", "a.lic", "-m", "fixed")
    assert tiny.id in error and fixed.id in error
    monkeypatch.setattr(checkpoint, "_shared", {})  # as a new process begins
    monkeypatch.setenv("LIC_MODELS", "one" + os.pathsep + "two")
    error = fails("decompress", "a.lic")
    assert tiny.id in error and "LIC_MODELS" in error and f"{checkpoint.WEIGHTS}, one, two" in error


def test_an_output_that_cannot_be_written_is_an_error_that_names_it(fails, here, photo, small):
    photo.save("b.png")
    os.makedirs("folder.lic/x")
    assert "missing/b.lic" in fails("compress", "b.png", "-o", "missing/b.lic", "-m", "tiny")
    assert "missing/a.png" in fails("decompress", "a.lic", "-o", "missing/a.png")
    assert "b.png/c.lic" in fails("compress", "b.png", "-o", "b.png/c.lic", "-m", "tiny")
    (here / "b.lic").mkdir()
    assert "b.lic" in fails("compress", "b.png", "-f", "-m", "tiny")
    for name in ("a.xyz", "a.psd", "a"):  # unknown to Pillow, read-only, none at all
        assert name in fails("decompress", "a.lic", "-o", name)


def test_a_gpu_that_is_not_there_is_an_error(fails, photo, small):
    photo.save("b.png")
    assert "cuda" in fails("compress", "b.png", "-m", "tiny", "--device", "cuda")
    assert "cuda" in fails("decompress", "a.lic", "--device", "cuda")


@pytest.mark.parametrize(
    "line",
    [
        "", "shrink", "compress a -q high", "compress a -q 101", "compress a -q -1", "compress a -q 9 --bpp 1",
        "compress a --size big", "compress a --size 0", "compress a --bpp nan", "compress a --bpp 0",
        "info a --unknown",
    ],
)  # fmt: skip
def test_a_command_line_that_makes_no_sense_exits_with_2(line, capsys):
    with pytest.raises(SystemExit) as exit:
        main(line.split())
    assert exit.value.code == 2 and "usage:" in capsys.readouterr().err


def test_debug_shows_the_traceback():
    with pytest.raises(FileNotFoundError):
        main(["decompress", "missing.lic", "--debug"])


def test_compress_to_a_score_prints_it_and_says_what_cannot_be_reached(lic, fails, photo, shell):
    photo.save("a.png")
    code, _, (line,) = lic("compress", "a.png", "-m", "hyper", "--ssimulacra2", -500)
    assert code == 0 and ", quality 0, SSIMULACRA 2 " in line
    assert lic("compress", "a.png", "-m", "hyper", "--ssimulacra2", -500, "--resume")[::2] == (0, [])
    (shell / "a.lic").unlink()
    assert "quality 100 scores" in fails("compress", "a.png", "-m", "hyper", "--ssimulacra2", 100)
    for wrong in ("nan", "101"):
        with pytest.raises(SystemExit, match="2"):
            lic("compress", "a.png", "--ssimulacra2", wrong)
