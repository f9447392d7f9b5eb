"""Every figure is a PNG of the expected size that shows what it was given; `lic plot` says in a line what it cannot."""

import io
import json
import math
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from codec.arguments import parser
from codec.cli import main
from codec.evaluation import plot
from codec.evaluation.curves import Curve
from codec.evaluation.metrics import METRICS


def curves(count):
    return [
        Curve(f"codec number {n}", [0.1 * (k + 1) * (1 + n / 9) for k in range(6)], [28.0 + 2 * k for k in range(6)])
        for n in range(count)
    ]


def drawn(path):
    """The share of pixels that are not white."""
    return (np.asarray(Image.open(path).convert("L")) < 250).mean()


@pytest.fixture
def figures(monkeypatch):
    """Figures as they would be written, instead of the files."""
    written = []
    monkeypatch.setattr(plot, "_save", lambda figure, *_, **__: written.append(figure))
    return written


@pytest.mark.parametrize("count", [1, 25])
def test_rd_curves(tmp_path, count):
    plot.rd_curves(curves(count), tmp_path / "rd.png", "Some photographs")
    assert Image.open(tmp_path / "rd.png").size == (1200, 825)
    assert 0.01 < drawn(tmp_path / "rd.png") < 0.4
    corner = np.asarray(Image.open(tmp_path / "rd.png").convert("RGB"))[:5, :5]
    assert (corner == 255).all()


def test_rd_curves_as_svg_are_the_same_figure_each_time(tmp_path):
    for name in ("a.svg", "b.svg"):
        plot.rd_curves([Curve("<lic> & co", [0.1, 0.2], [30.0, 33.0])], tmp_path / name, "Some photographs")
    text = (tmp_path / "a.svg").read_text()
    assert text == (tmp_path / "b.svg").read_text()
    root = ElementTree.fromstring(text)
    assert root.tag.endswith("svg") and root.get("viewBox") == "0 0 576 396"  # 8 x 5.5 inches
    assert "<text" not in text


def test_curves_differ_in_more_than_colour(figures):
    plot.rd_curves(curves(25), "rd.png")
    lines = [line for line in figures[0].axes[0].lines if len(line.get_xdata()) > 1]
    styles = {(line.get_marker(), str(line._dash_pattern)) for line in lines}
    assert len(lines) == len(styles) == 25


@pytest.mark.parametrize("metrics, size", [(2, (1800, 750)), (3, (1800, 1500)), (4, (1800, 1500))])
def test_each_metric_has_a_panel(tmp_path, metrics, size):
    several = [curve._replace(metric=key) for key in list(METRICS)[:metrics] for curve in curves(3)]
    plot.rd_curves(several, tmp_path / "rd.png", "Some photographs")
    page = np.asarray(Image.open(tmp_path / "rd.png").convert("L"))
    assert page.shape == size[::-1]
    places = [page[y : y + 750, x : x + 900] for y in range(0, size[1], 750) for x in (0, 900)]
    assert all(((place < 250).mean() > 0.01) == (n < metrics) for n, place in enumerate(places))
    # what has no point has no panel, and looks of a name do not depend on the order of metrics
    holed = [*several, Curve("codec number 0", [0.1], [math.nan], "cvvdp")] if metrics < 4 else several[::-1]
    plot.rd_curves([several[0], *holed], tmp_path / "again.png", "Some photographs")
    assert Image.open(tmp_path / "again.png").size == size


@pytest.mark.parametrize("count", [2, 12, 30])
def test_names_never_overlap_and_stay_beside_the_axes(figures, count):
    plot.rd_curves([Curve(f"codec {n}", [0.1, 1.0], [28.0, 38 + n / 1000]) for n in range(count)], "rd.png")
    boxes = [text.get_window_extent() for text in figures[0].axes[0].texts if text.get_text()]
    boxes.sort(key=lambda box: box.y0)
    assert len(boxes) == count
    axes = figures[0].axes[0].get_window_extent()
    assert all(a.y1 <= b.y0 + 1 for a, b in zip(boxes[:-1], boxes[1:], strict=True))  # pixels
    assert axes.y0 - boxes[0].height <= boxes[0].y0 and boxes[-1].y1 <= axes.y1 + boxes[0].height


def test_points_that_are_not_finite_are_left_out(tmp_path):
    whole = [Curve("a", [0.1, 0.2], [30.0, 33.0])]
    plot.rd_curves(whole, tmp_path / "whole.png")
    holed = [Curve("a", [0.1, 0.15, 0.2, 0.3], [30.0, math.nan, 33.0, math.inf])]
    plot.rd_curves(holed, tmp_path / "holed.png")
    assert (tmp_path / "whole.png").read_bytes() == (tmp_path / "holed.png").read_bytes()
    plot.rd_curves([*whole, Curve("empty", [], [])], tmp_path / "one.png")
    with pytest.raises(ValueError, match="no rate-distortion point"):
        plot.rd_curves([Curve("a", [0.1], [math.nan])], tmp_path / "none.png")


def training(scale=1.0, lines=120, first=1.0):
    """The log of a run: noisy losses that fall, `first` times as high at step 0, and a validation every 1000 steps."""
    rng = np.random.default_rng(0)
    rows = []
    for k in range(lines + 1):
        loss = scale * (1 + math.exp(-k / 20)) * (first if k == 0 else 1)
        figures = {"loss": loss, "bpp": loss / 2, "psnr": 35 - loss}
        if k:
            noisy = {name: value * rng.uniform(0.97, 1.03) for name, value in figures.items()}
            rows.append({"kind": "train", "step": 100 * k} | noisy)
        if k % 10 == 0:
            by_quality = {f"{name}_q{q}": value for name, value in figures.items() for q in (10, 90)}
            rows.append({"kind": "val", "step": 100 * k, "rd_loss": loss} | by_quality)
    return rows


REST = {"bpp": 1.0, "psnr": 30.0}


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("count", [1, 12])
def test_training_curves(tmp_path, count):
    runs = [(f"run {n}", training(1 + n / 10)) for n in range(count)]
    plot.training_curves(runs, tmp_path / "training.png")
    assert Image.open(tmp_path / "training.png").size == (1350, 1350)
    assert 0.01 < drawn(tmp_path / "training.png") < 0.4


@pytest.mark.parametrize("rows", [training(lines=1), training()[:1], training()[1:2]], ids=["one", "val", "train"])
def test_a_run_that_has_just_begun_is_drawn(tmp_path, rows):
    plot.training_curves([("young", rows), ("old", training())], tmp_path / "training.png")
    assert drawn(tmp_path / "training.png") > 0.01


def test_a_run_without_figures_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="empty: the log holds no loss yet"):
        plot.training_curves([("full", training()), ("empty", [])], tmp_path / "training.png")


def test_what_an_untrained_model_does_and_a_single_spike_leave_the_axes_to_the_rest(figures):
    spiked = training(first=50)
    next(row for row in spiked if (row["kind"], row["step"]) == ("train", 7000))["loss"] = 1e6
    for rows in (training(), spiked):
        plot.training_curves([("run", rows)], "training.png")
    (low, high), others = (figure.axes[0].get_ylim() for figure in figures)
    assert 0.8 < low < 1 and 1.5 < high < 2.2
    assert others == pytest.approx((low, high), abs=0.3)


def drawn_losses(figures, rows):
    """Steps and values of the line of training, and of that of validation."""
    plot.training_curves([("run", rows)], "training.png")
    return [(line.get_xdata().tolist(), line.get_ydata()) for line in figures.pop().axes[0].lines[:2]]


def test_smoothing_keeps_constants_and_short_logs(figures):
    (_, values), _ = drawn_losses(figures, [{"kind": "train", "step": n, "loss": 3.0} | REST for n in range(500)])
    assert values == pytest.approx(3.0)
    short = np.random.default_rng(0).uniform(size=40)
    (_, values), _ = drawn_losses(
        figures, [{"kind": "train", "step": n, "loss": v} | REST for n, v in enumerate(short)]
    )
    assert np.array_equal(values, short)


def test_steps_increase_and_count_once_and_what_is_not_finite_is_left_out(figures):
    rows = [{"kind": "train", "step": n, "loss": v} | REST for n, v in ((1, 5.0), (3, math.nan), (2, 4.0), (1, 6.0))]
    (steps, values), (none, _) = drawn_losses(figures, rows)
    assert steps == [1, 2] and values.tolist() == [6, 4] and none == []


@pytest.fixture
def lic(tmp_path, monkeypatch, capsys):
    """lic(*argv) -> exit code and lines of stderr of `lic plot` in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*argv):
        code = main(["plot", *argv])
        out, err = capsys.readouterr()
        assert out == ""
        return code, err.splitlines()

    return run


def test_plot_draws_runs_and_logs_and_replaces_a_file_only_with_f(lic, tmp_path):
    write(tmp_path / "runs/a/log.jsonl", training())
    write(tmp_path / "b.jsonl", training(2))
    assert lic("runs/a", "b.jsonl") == (0, ["runs/a, b.jsonl -> training.png"])
    first = (tmp_path / "training.png").read_bytes()
    assert lic("b.jsonl") == (1, ["lic: training.png exists; -f replaces it"])
    assert (tmp_path / "training.png").read_bytes() == first
    assert lic("b.jsonl", "-f")[0] == 0 and (tmp_path / "training.png").read_bytes() != first
    assert lic("runs/a/log.jsonl", "b.jsonl", "-o", "other.png")[0] == 0
    assert (tmp_path / "other.png").read_bytes() == first


def test_the_extension_is_the_kind_of_figure(lic, tmp_path, monkeypatch):
    write(tmp_path / "run/log.jsonl", training())
    assert lic("run", "-o", "a.svg")[0] == 0 and "<svg" in (tmp_path / "a.svg").read_text()
    assert lic("run", "-o", "a.pdf") == (1, ["lic: a.pdf: a figure is a .png or a .svg"])
    seen = []
    monkeypatch.setattr(plot, "training_curves", lambda runs, file: seen.extend(name for name, _ in runs))
    monkeypatch.chdir("run")
    lic(".")
    assert seen == ["run"]


def test_runs_of_one_name_are_named_by_their_paths(lic, tmp_path, monkeypatch):
    for folder in ("x/run", "y/run", "z"):
        write(tmp_path / folder / "log.jsonl", training())
    seen = []
    monkeypatch.setattr(plot, "training_curves", lambda runs, file: seen.extend(name for name, _ in runs))
    lic("x/run", "y/run/", "z", "-f")
    assert seen == ["x/run", "y/run/", "z"]


def test_plot_draws_results(lic, tmp_path):
    points = {"name": "mine", "results": {"bpp": [0.2, 0.5], "psnr-rgb": [30.0, 33.0]}}
    (tmp_path / "mine.json").write_text(json.dumps(points))
    assert lic("mine.json") == (0, ["mine.json -> rd.png"])
    expected = io.BytesIO()
    plot.rd_curves([Curve("mine", [0.2, 0.5], [30.0, 33.0])], expected)
    assert (tmp_path / "rd.png").read_bytes() == expected.getvalue()
    write(tmp_path / "log.jsonl", training())
    code, (line,) = lic("mine.json", "log.jsonl", "-f")
    assert code == 1 and "do not share a figure" in line


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "holds no loss yet"),
        (b'{"kind": "train", "step": 1, "lo', "holds no loss yet"),
        (b'{"kind": "train", "step": 1, "lr": 0.1}\n', "holds no loss yet"),
        (b'{"kind": "train", "step": 1, "loss": 1}\n{"kind": "tr\n', "line 2 is no line of a training log"),
        (b'{"kind": "train", "step": 1, "loss": "low"}\n', "line 1 is no line"),
        (b'{"kind": "train", "loss": 1}\n', "line 1 is no line"),
        (b"[]\n", "line 1 is no line"),
        (b"\x89PNG\r\n\x1a\n\0\0", "line 1 is no line"),
    ],
)
def test_an_empty_or_damaged_log_is_an_error_of_one_line(lic, tmp_path, content, message):
    (tmp_path / "log.jsonl").write_bytes(content)
    code, lines = lic("log.jsonl")
    assert code == 1 and len(lines) == 1 and message in lines[0]
    assert not (tmp_path / "training.png").exists()


def test_a_folder_that_is_no_run_is_an_error_of_one_line(lic, tmp_path):
    (tmp_path / "empty").mkdir()
    assert lic("empty") == (1, ["lic: empty/log.jsonl: No such file or directory"])
    assert lic("nowhere") == (1, ["lic: nowhere: No such file or directory"])


def panels(groups):
    values = np.arange(-40, 41)
    probabilities = np.exp(-abs(values)) / np.exp(-abs(values)).sum()
    return [plot.Panel(f"channel {n}", group, values, probabilities) for n, group in enumerate(groups)]


@pytest.mark.parametrize("count, shape", [(1, (495, 465)), (5, (1665, 765))])
def test_latent_histograms(tmp_path, count, shape):
    rng = np.random.default_rng(0)
    groups = [np.round(rng.laplace(0, scale, 100 * count)).astype(np.int32) for scale in np.geomspace(9, 0.1, count)]
    plot.latent_histograms(panels(groups), tmp_path / "latents.png", "Latents")
    assert Image.open(tmp_path / "latents.png").size == shape
    assert drawn(tmp_path / "latents.png") > 0.05


def test_groups_are_chosen_by_their_spread():
    groups = [np.array([0, k, -k]) for k in range(40)]
    chosen = plot.by_spread(groups)
    assert len(chosen) == 12 and chosen == sorted(chosen, reverse=True) and (chosen[0], chosen[-1]) == (39, 1)
    assert plot.by_spread(groups[:3]) == [2, 1]
    assert plot.by_spread([np.array([0]), np.array([5]), np.array([0, 1, 2])]) == [2, 1]  # always 5 is not always zero


def test_latents_that_are_all_zero_are_drawn(tmp_path):
    groups = np.zeros((3, 9), int)
    assert plot.by_spread(groups) == [0]
    plot.latent_histograms(panels(groups[:1]), tmp_path / "l.png")
    assert drawn(tmp_path / "l.png") > 0.05


def test_crops_show_every_pixel_once(tmp_path):
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 200, (50, 120, 3), dtype=np.uint8)) for _ in range(4)]
    gray = images[3].convert("L")
    rows = [[("original", images[0]), ("jpeg\n1,234 bytes", images[1])], [("original", images[2]), ("gray", gray)]]
    plot.crops(rows, tmp_path / "crops.png", "Crops")
    page = np.asarray(Image.open(tmp_path / "crops.png").convert("RGB"))
    assert page.shape == (40 + 2 * (50 + 42) + 8, 2 * 128 + 8, 3)
    for r, row in enumerate(rows):
        for c, (_, image) in enumerate(row):
            top, left = 40 + 92 * r + 38, 8 + 128 * c
            assert np.array_equal(page[top : top + 50, left : left + 120], np.asarray(image.convert("RGB")))
            assert (page[top - 34 : top - 2, left : left + 120] < 128).any()  # the caption


def test_crops_must_match(tmp_path):
    small, large = Image.new("RGB", (8, 8)), Image.new("RGB", (9, 8))
    for rows in ([[("a", small), ("b", large)]], [[("a", small)], [("a", small), ("b", small)]], []):
        with pytest.raises(ValueError, match="one size"):
            plot.crops(rows, tmp_path / "crops.png")


def test_rate_distortion_curves_are_plotted_with_their_bd_rate_against_the_first(tmp_path, lic):
    psnr = [28.0 + i for i in range(11)]
    for name, factor, count in (("base", 1.0, 11), ("better", 0.9, 11), ("short", 1.0, 4)):
        points = {"name": name, "results": {"bpp": [factor * 1.2**i for i in range(count)], "psnr-rgb": psnr[:count]}}
        (tmp_path / f"{name}.json").write_text(json.dumps(points))
    code, lines = lic("base.json", "better.json", "short.json")
    assert code == 0 and lines[1] == "better: BD-rate -10.0 % against base, PSNR 29.00 to 37.00 dB"
    assert lines[2].startswith("short: no BD-rate (short: 4 points;")


def test_results_are_plotted_by_the_metric_that_is_asked_for(tmp_path, lic):
    for folder, factor in (("a", 1.0), ("b", 0.8)):
        (tmp_path / folder).mkdir()
        rates = [factor * 1.2**i for i in range(11)]
        results = {"bpp": rates, "psnr-rgb": [28.0 + i for i in range(11)], "cvvdp": [8 + i / 10 for i in range(11)]}
        (tmp_path / folder / "mine.json").write_text(json.dumps({"name": "mine", "results": results}))
    code, lines = lic("a/mine.json", "b/mine.json", "--metric", "cvvdp")  # of one name: they are called by their files
    assert code == 0
    assert lines[1] == "b/mine.json: BD-rate -20.0 % against a/mine.json, CVVDP 8.000 to 9.000 JOD"
    code, (line,) = lic("a/mine.json", "--metric", "ssimulacra2", "-f")
    assert code == 1 and "a/mine.json has no SSIMULACRA 2, but PSNR, CVVDP" in line
    write(tmp_path / "run/log.jsonl", training())
    code, (line,) = lic("run", "--metric", "cvvdp")
    assert code == 1 and "--metric cvvdp is for results" in line


def test_every_metric_can_be_asked_for():
    for metric in METRICS:
        assert parser().parse_args(["plot", "a.json", "--metric", metric]).metric == metric
