"""What the command line tells: versions, help, what files and models are, and that it compiles."""

import io
import json
import os
import subprocess
import sys

import pytest

import codec
import entropy
from codec.cli import main
from codec.coding.models import export, load_model


def test_the_version_is_that_of_the_program_its_backends_and_its_models(models, shell, capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    first, backends, *ids = capsys.readouterr().out.splitlines()
    assert first == f"lic {codec.__version__}" and "onnx (onnxruntime " in backends
    assert f"tiny: id {load_model(models / 'tiny.safetensors').id}" in ids and len(ids) >= 8
    assert "decodes files of 9c2199511d07c064, too" in " ".join(ids)  # photo-0.1 of the weights of `photo` of 0.1.0


def test_a_reader_of_the_version_may_have_seen_enough():
    ours, theirs = os.pipe()
    os.close(ours)
    done = subprocess.run([sys.executable, "-m", "codec.cli", "--version"], stdout=theirs, stderr=subprocess.PIPE)
    os.close(theirs)
    assert (done.returncode, done.stderr) == (1, b"")


def test_help_tells_what_is_kept_and_fits_the_screen(capsys):
    for command in ("compress", "decompress"):
        with pytest.raises(SystemExit, match="0"):
            main([command, "--help"])
        told = capsys.readouterr().out
        assert "--resume\n  skips" in told and max(map(len, told.splitlines())) <= 120


def test_info_tells_what_the_header_says(lic, small, tiny):
    code, out, err = lic("info", "a.lic", "--json")
    (row,) = json.loads(out)
    assert (code, err) == (0, [])
    expected = {
        "file": "a.lic", "bytes": len(small), "width": 30, "height": 20, "mode": "RGB", "quality": 20, "model": tiny.id,
        "version": 1, "bpp": 8 * len(small) / 600,
    }  # fmt: skip
    assert expected.items() <= row.items()
    assert "30x20 RGB, quality 20" in lic("info", "a.lic")[1]


def test_info_reports_the_intact_files_and_fails_for_a_damaged_one(lic, shell, small):
    (shell / "b.lic").write_bytes(small[:-1])
    code, out, err = lic("info", "a.lic", "b.lic", "missing.lic", "--json")
    assert code == 1 and [row["file"] for row in json.loads(out)] == ["a.lic"]
    assert len(err) == 2 and "b.lic" in err[0] and "missing.lic" in err[1]


def test_compiling_is_announced_of_what_will_be_used(lic, photo, monkeypatch):
    photo.save("a.png")
    monkeypatch.setattr(entropy, "kernels_cached", lambda encode=True, decode=True: not decode)
    for command, announced in (
        ("compress a.png -m tiny", False), ("compress a.png -m tiny -f --verify", True), ("decompress a.lic -f", True)
    ):  # fmt: skip
        code, _, err = lic(*command.split())
        assert code == 0 and len(err) == 1 + announced and ("compiling" in err[0]) == announced


def test_compiling_is_not_said_to_be_once_where_no_cache_can_be_kept(lic, photo, monkeypatch):
    photo.save("a.png")
    monkeypatch.setattr(entropy, "kernels_cached", lambda *_, **__: False)
    for kept, told in ((True, "once"), (False, "at each start: no folder in NUMBA_CACHE_DIR")):
        monkeypatch.setattr(entropy, "kernels_kept", lambda kept=kept: kept)
        assert told in lic("compress", "a.png", "-m", "tiny", "-f")[2][0]


def test_models_lists_each_model_with_its_id_and_rates(lic, models):
    code, out, _ = lic("models")
    assert code == 0
    for name, prior in (("tiny", "factorized"), ("hyper", "mean-scale-hyperprior"), ("fixed", "factorized")):
        model = load_model(models / f"{name}.safetensors")
        (line,) = (line for line in out.splitlines() if line.startswith(f"{name}: id {model.id}, "))
        assert f", {prior}, " in line
        assert line.endswith("lambda 0.013" if name == "fixed" else "quality 0..100, lambda 0.0009 to 0.18")


def test_models_tells_the_rates_that_the_export_was_told(lic, shell, tiny, monkeypatch):
    export(tiny.backend.network, shell / "told.safetensors", {"rates": "0.11 to 2.3 bpp on Kodak"})
    monkeypatch.setenv("LIC_MODELS", str(shell))
    assert "quality 0..100, 0.11 to 2.3 bpp on Kodak\n" in lic("models")[1]


def test_a_foreign_file_among_the_models_does_not_hide_them(lic, shell, models, small, monkeypatch):
    folder = shell / "models"
    folder.mkdir()
    (folder / "a-foreign.safetensors").write_bytes(b"not a model of ours")
    (folder / "tiny.safetensors").write_bytes((models / "tiny.safetensors").read_bytes())
    monkeypatch.setenv("LIC_MODELS", str(folder))
    assert lic("decompress", "a.lic")[0] == 0
    code, out, err = lic("models")
    assert code == 1 and "a-foreign" in err[0] and "\ntiny: id" in out


@pytest.mark.parametrize(
    "command, message",
    [
        ("compress a.png -o b.jpg", "b.jpg: what is written is a .lic file"),
        ("compress a.png b.png -o c.lic", "c.lic: the name of a file"),
        ("compress folder -o file", "file is a file, and a folder is wanted"),
        ("compress a.png -o no/deep/b.lic", "no/deep/b.lic: there is no folder no/deep"),
        ("decompress a.png", "a.png: an image, not a .lic file"),
    ],
)
def test_a_mistake_in_names_is_told_as_that(fails, here, photo, command, message):
    (here / "folder").mkdir()
    for name in ("a.png", "b.png", "folder/c.png"):
        photo.save(here / name)
    (here / "file").touch()
    assert message in fails(*command.split(), "-m", "tiny")


def test_a_terminal_gets_no_bytes_of_a_file_unless_it_is_asked_for(fails, here, photo, monkeypatch):
    class Terminal(io.TextIOWrapper):
        def isatty(self):
            return True

    photo.save(here / "a.png")
    stdin = open(here / "a.png")
    monkeypatch.setattr("sys.stdin", stdin)
    monkeypatch.setattr("sys.stdout", terminal := Terminal(io.BytesIO(), encoding="utf-8"))
    assert "stdout is a terminal" in fails("compress", "-", "-m", "tiny") and not terminal.buffer.getvalue()
    stdin.close()
