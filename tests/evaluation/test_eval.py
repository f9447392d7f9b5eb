"""eval.py as a program: what it writes, what it compares with what, and how it says what is wrong."""

import json
import os
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image
from shared import SMOOTH, written

import eval as program
from codec.cli import main
from codec.evaluation.codecs import lic_codec, rival_codec
from codec.evaluation.curves import Curve
from codec.evaluation.results import Result, Row

pytestmark = pytest.mark.usefixtures("threads")

OF_COMPRESSAI = pytest.mark.skipif(find_spec("compressai") is None, reason="needs compressai (Python 3.11 or 3.12)")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "photos" / "more").mkdir(parents=True)
    SMOOTH[0][1].save(tmp_path / "photos" / "first.png")
    SMOOTH[1][1].save(tmp_path / "photos" / "more" / "second.png")
    return tmp_path


def test_the_program_writes_everything(folder, models, capsys, monkeypatch):
    out, made = folder / "out", written(monkeypatch)
    codecs = [f"lic:{models / 'tiny.safetensors'}", "jpeg"]
    assert program.main(["--data", str(folder / "photos"), "--codec", *codecs, "--out", str(out)]) == 0
    names = {"lic-tiny.json", "jpeg.json", "files", "rows.jsonl", "table.txt", "bd_rate.json", "latents.png"}
    assert {path.name for path in out.iterdir()} == names | {"rd.png", "rd.svg", "report.html"}
    assert {path.name for path in out.iterdir() if path.is_file()} == {path.name for path in made} | {"rows.jsonl"}
    assert f"--out {out}" in (out / "report.html").read_text()
    assert (out / "files/jpeg/more/second_q50.jpg").exists() and (out / "files/lic-tiny/first_q100.lic").exists()
    printed = capsys.readouterr()
    assert "lic-tiny: model" in printed.out and (out / "table.txt").read_text() in printed.out
    assert printed.err.endswith(f"results are in {out}\n")
    assert json.loads((out / "bd_rate.json").read_text())["anchor"] == "jpeg"
    # on with the same folder, and with this run's result as the anchor; into another one that is not empty only with -f
    again = ["--data", str(folder / "photos"), "--codec", "jpeg", "--anchor", str(out / "jpeg.json"), "--out", str(out)]
    assert program.main([*again, "--range", "33", "35"]) == 0
    document = json.loads((out / "bd_rate.json").read_text())
    about = document["rates"]["psnr"]
    assert about["percent"]["jpeg"] == pytest.approx(0, abs=1e-9)
    assert about["range"] == about["ranges"]["jpeg"] == [33, 35] and "PCHIP" in document["method"]
    assert "PCHIP" in (out / "table.txt").read_text() and "33.00 to 35.00 dB" in (out / "table.txt").read_text()
    assert program.main([*again, "--range", "full"]) == 0
    about = json.loads((out / "bd_rate.json").read_text())["rates"]["psnr"]
    curve = json.loads((out / "jpeg.json").read_text())["results"]["psnr-rgb"]
    assert about["range"] == "full" and about["ranges"]["jpeg"] == [min(curve), max(curve)]
    (folder / "mine").mkdir()
    (folder / "mine" / "precious.txt").write_text("mine")
    again[-1] = str(folder / "mine")
    assert program.main(again) == 1
    assert "not empty" in capsys.readouterr().err
    assert program.main([*again, "--range", "33", "35", "-f"]) == 0
    assert (folder / "mine" / "precious.txt").read_text() == "mine"


def test_latents_of_a_hyperprior_are_shown_under_its_gaussians_and_densities(hyper, photos, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(program.plot, "latent_histograms", lambda panels, path, title: seen.extend(panels))
    program.plot_latents(lic_codec(hyper), [(str(n), image) for n, image in enumerate(photos)], tmp_path / "l.png")
    names = [panel.name.partition(",")[0] for panel in seen]
    assert names == ["z"] * 4 + ["y"] * (len(seen) - 4) and 5 <= len(seen) <= 12
    for panel in seen:
        assert len(panel.values) == len(panel.probabilities) and panel.symbols.size > 0
        assert panel.probabilities.sum() == pytest.approx(1, abs=1e-4)
    monkeypatch.undo()
    program.plot_latents(lic_codec(hyper), [("a", photos[0])], tmp_path / "l.png")
    assert (tmp_path / "l.png").exists()


def test_without_arguments_it_runs_our_model_beside_the_rivals_on_the_sample_photographs(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    seen = []
    monkeypatch.setattr(program, "make_codec", lambda text, device: seen.append(text) or rival_codec("jpeg", [5]))
    monkeypatch.setattr(program, "sample_images", lambda: SMOOTH)
    assert program.main(["--jobs", "1"]) == 1
    assert seen == ["lic", "jpeg", "webp", "avif"] and "'jpeg' is there twice" in capsys.readouterr().err
    (tmp_path / "runs/eval-001").mkdir(parents=True)
    assert program.main(["--codec", "jpeg", "--jobs", "1"]) == 0
    assert (tmp_path / "runs/eval-002/table.txt").exists()


def test_a_failing_image_gives_exit_code_1_and_the_rest_of_the_results(folder, capsys):
    (folder / "photos" / "broken.png").write_bytes(b"no image")
    out = folder / "out"
    assert program.main(["--data", str(folder / "photos"), "--codec", "jpeg@30,60", "--out", str(out)]) == 1
    assert "jpeg failed on broken: " in capsys.readouterr().err
    assert len(json.loads((out / "jpeg.json").read_text())["rows"]) == 4
    assert (out / "rd.png").exists()


def test_bd_rates_need_an_anchor_that_coded_the_same_images():
    def result(name, factor, images):
        rows = [Row("a", q, "", 1, factor * 0.1 * 1.3**q, 28.0 + q, 0.9, 0.1, 0.1) for q in range(11)]  # 28..38 dB
        return Result(name, "", "", {}, [{"name": image, "sha256": image} for image in images], rows)

    anchor, half, other = result("jpeg", 1, "ab"), result("half", 0.5, "ab"), result("other", 1, "a")
    rates = program.bd_rates([anchor, half, other], anchor, "psnr")
    assert rates["jpeg"] == (0, 29, 37) and rates["half"] == (pytest.approx(-50), 29, 37)
    assert "did not code the same images (1 and 2)" in rates["other"]
    assert program.bd_rates([half], Curve("file", *anchor.curve()[1:]), "psnr")["half"][0] == pytest.approx(-50)
    assert "do not span" in program.bd_rates([half], anchor, "psnr", (20, 30))["half"]
    far, lower = Curve("far", [0.1, 0.2], [20.0, 31.0]), Curve("far", [0.1, 0.2], [20.0, 21.0])
    assert program.bd_rates([half], far, "psnr", "full")["half"][1:] == (28, 31)
    assert "no PSNR in common" in program.bd_rates([half], lower, "psnr", "full")["half"]


def judged(name, factor=1.0, images="ab", **scores):
    """A result of 11 qualities whose rate at every score is `factor` times that of another one."""
    return Result(
        name, "", "", {}, [{"name": image, "sha256": image} for image in images],
        [
            Row(image, q, f"{image}{q}", 1, factor * 0.1 * 1.3**q, 28.0 + q, 0.9, ms_ssim_db=8.0 + q)
            for image in images for q in range(11)
        ],
    )  # fmt: skip


def test_bd_rates_are_of_every_metric_over_its_own_range(tmp_path):
    results = [judged("jpeg"), judged("half", 0.5)]
    for result in results:
        for row in result.rows:
            row.ssimulacra2, row.cvvdp = 35.0 + 5 * row.quality, 8 + row.quality / 10
    text, document = program.compare(results, "jpeg", "ssimulacra2")
    assert (
        list(document["rates"]) == ["ssimulacra2", "psnr", "ms-ssim", "cvvdp"] and document["metric"] == "ssimulacra2"
    )
    assert {key: rates["range"] for key, rates in document["rates"].items()} == {
        "psnr": (29, 37), "ms-ssim": "full", "ssimulacra2": (40, 80), "cvvdp": "full",
    }  # fmt: skip
    assert {key: rates["ranges"]["half"] for key, rates in document["rates"].items()} == {
        "psnr": (29, 37), "ms-ssim": (8, 18), "ssimulacra2": (40, 80), "cvvdp": (8, 9),
    }  # fmt: skip
    assert all(rates["percent"]["half"] == pytest.approx(-50) for rates in document["rates"].values())
    assert text.index("at equal SSIMULACRA 2") < text.index("at equal PSNR") and "8.000 to 9.000 JOD" in text
    rates = program.compare(results, "jpeg", "cvvdp", (8.2, 8.5))[1]["rates"]
    assert rates["cvvdp"]["ranges"]["half"] == (8.2, 8.5) and rates["psnr"]["ranges"]["half"] == (29, 37)
    (tmp_path / "old.json").write_text(results[0].to_json())
    anchor = program.find_anchor(str(tmp_path / "old.json"), [], "cvvdp")
    assert list(program.compare(results[1:], anchor, "cvvdp")[1]["rates"]) == [
        "cvvdp",
        "psnr",
        "ms-ssim",
        "ssimulacra2",
    ]
    published = {"psnr": Curve("vtm", *results[0].curve()[1:3])}
    assert list(program.compare(results, published, "psnr")[1]["rates"]) == ["psnr"]


def test_a_score_that_is_not_finite_is_told_with_its_image():
    results = [judged("jpeg"), judged("lic")]
    results[1].rows[3].ms_ssim_db = float("inf")
    rates = program.compare(results, "jpeg", "ms-ssim")[1]["rates"]["ms-ssim"]["percent"]
    assert rates["lic"] == "lic has no finite MS-SSIM of every image (a)" and rates["jpeg"] == 0


def test_a_curve_in_a_file_knows_its_images_and_needs_as_many_points_as_any(tmp_path, capsys):
    def written(name, images, levels=range(11)):
        rows = [Row("a", q, "", 1, 0.1 * 1.3**q, 28.0 + q, 0.9) for q in levels]
        result = Result(name, "", "", {}, [{"name": n, "sha256": f"of {n}"} for n in images], rows)
        (tmp_path / f"{name}.json").write_text(result.to_json())
        return result, program.find_anchor(str(tmp_path / f"{name}.json"), [])["psnr"]

    (mine, _), (_, same), (_, other) = written("mine", "ab"), written("same", "ba"), written("other", "ac")
    assert program.bd_rates([mine], same, "psnr")["mine"][0] == pytest.approx(0)
    assert program.find_anchor(str(tmp_path / "same.json"), ["same"])["psnr"].name == str(tmp_path / "same.json")
    assert "mine and other did not code the same images (2 and 2)" in program.bd_rates([mine], other, "psnr")["mine"]
    _, few = written("few", "ab", range(0, 11, 2))
    assert "few: 6 points" in program.bd_rates([mine], few, "psnr")["mine"]
    assert (
        main(["plot", *(str(tmp_path / f"{name}.json") for name in ("mine", "other")), "-o", f"{tmp_path}/a.png"]) == 0
    )
    assert "did not code the same images" in capsys.readouterr().err


def test_a_run_in_which_all_is_lossless_has_a_report_without_a_figure(here):
    drawing = Image.new("RGB", (200, 180), "white")
    drawing.paste("navy", (10, 10, 60, 60))
    os.mkdir("drawings")
    drawing.save("drawings/a.png")
    assert program.main(["--data", "drawings", "--codec", "lic@30,60", "--out", "out", "--jobs", "1"]) == 0
    assert not Path("out/rd.png").exists() and Path("out/report.html").exists()
    assert json.loads(Path("out/lic.json").read_text())["results"]["psnr-rgb"] == [None, None]


def test_published_anchors_are_compared_on_kodak_only(monkeypatch):
    rows = [Row("a", q, "", 1, 0.1 * 1.3**q, 28.0 + q, 0.9) for q in range(11)]
    result = Result("mine", "", "", {}, [{"name": "a", "sha256": "pixels"}], rows)
    vtm = program.find_anchor("vtm", ["mine"])["psnr"]
    assert "24 Kodak images, which these are not" in program.bd_rates([result], vtm, "psnr")["mine"]
    monkeypatch.setattr(program, "is_kodak", lambda pixels: list(pixels) == ["pixels"])
    assert program.bd_rates([result], vtm, "psnr")["mine"][0] > 0
    with pytest.raises(ValueError, match="has no SSIMULACRA 2, but PSNR"):
        program.find_anchor("vtm", ["mine"], "ssimulacra2")


@pytest.mark.parametrize(
    "options, message",
    [
        (["--codec", "gif"], "unknown codec 'gif'"),
        (["--codec", "jpeg@10,x"], "unknown codec 'jpeg@10,x'"),
        (["--codec", "jpeg@10,101"], "101 is not in 0..100"),
        (["--codec", "lic:missing.safetensors"], "missing.safetensors"),
        (["--codec", "jpeg", "--data", "missing"], "missing"),
        (["--codec", "jpeg", "--anchor", "vvc"], "neither a codec of this run (jpeg), published (compressai-jpeg, "),
        pytest.param(["--codec", "compressai:elic:x.pth"], "no architecture 'elic'", marks=OF_COMPRESSAI),
        pytest.param(["--codec", "compressai:mbt2018-mean:missing.pth"], "missing.pth", marks=OF_COMPRESSAI),
        (["--codec", "bridge:mbt2018-mean:x.pth@50"], "takes no qualities"),
        (["--codec", "jpeg@20", "--anchor", "jpeg"], "1 points; a BD-rate needs at least 8"),
        (["--codec", "jpeg", "--anchor", "vtm", "--metric", "ms-ssim"], "has no MS-SSIM, but PSNR"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(folder, monkeypatch, capsys, options, message):
    monkeypatch.chdir(folder)
    if "--data" not in options:
        options = [*options, "--data", "photos"]
    assert program.main([*options, "--out", "out"]) == 1
    printed = capsys.readouterr()
    if "1 points" in message:  # it ran; only the BD-rate asked for is missing
        assert message in printed.out
    else:
        assert message in printed.err and printed.err.count("\n") == 1 and not (folder / "out").exists()


def test_a_metric_whose_package_is_missing_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(program, "measurable", lambda: ("psnr",))
    with pytest.raises(SystemExit):
        program.main(["--metric", "cvvdp"])
    assert "pip install -e '.[perceptual]'" in capsys.readouterr().err


def test_a_wrong_command_line_is_exit_code_2():
    for options in (
        ["--metric", "lpips"],
        ["--colour"],
        ["--device", "tpu"],
        ["--range", "37", "29"],
        ["--range", "all"],
        ["--metric", "lpips"],
        ["--jobs", "0"],
    ):
        with pytest.raises(SystemExit) as stop:
            program.main(options)
        assert stop.value.code == 2


def test_ctrl_c_is_told_in_a_line(folder, monkeypatch, capsys):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(program, "evaluate", interrupted)
    assert program.main(["--data", str(folder), "--codec", "jpeg"]) == 1
    assert capsys.readouterr().err == "eval.py: interrupted: the same command goes on where it was\n"
