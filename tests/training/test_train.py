"""Training: what a run leaves behind, and that a run stopped and resumed is the run that never stopped."""

import math
import tomllib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from shared import ALL_RATES, FACTORIZED, HYPER, ONE_LAMBDA, TINY, equal, log, start, written

import train
from codec.coding.models import load_model
from codec.config import Config, DataConfig, ModelConfig, TrainConfig
from codec.network.distortion import distortion
from codec.training.checkpoints import load_checkpoint
from codec.training.run import Run, draw, losses

pytestmark = pytest.mark.usefixtures("unmeasured")
CPU = torch.device("cpu")
SPEEDS = dict.fromkeys(("img_s", "steps_s", "mpx_s"), 0)


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize("prior, lmbda", [(FACTORIZED, ONE_LAMBDA), (HYPER, ALL_RATES)])
def test_a_run_leaves_a_usable_model_and_everything_about_it(here, photo, capsys, monkeypatch, prior, lmbda):
    made = written(monkeypatch)
    assert start("run", "--prior", prior, "--lmbda", *lmbda) == 0
    out = capsys.readouterr().out
    assert "tensorboard --logdir run/tb" in out and "-m run/model.safetensors" in out
    kept = {"config.toml", "log.jsonl", "last.pt", "constant.pt", "best.pt", "model.safetensors", "rd.png", "tb"}
    assert kept <= {path.name for path in (here / "run").iterdir()}
    assert kept - {"tb"} | {"meta.json", "run.json", "jpeg.json"} <= {path.name for path in made}
    assert tomllib.loads((here / "run/config.toml").read_text())["model"]["lmbda"] == lmbda
    assert [row["step"] for row in log("run", "train")] == [1, 2, 3, 4]
    assert [row["step"] for row in log("run", "val")] == [0, 2, 4]
    figures = [list(row.values())[1:] for row in log("run", "train") + log("run", "val")]
    assert all(map(math.isfinite, sum(figures, [])))
    Image.open("run/rd.png").verify()
    model = load_model("run/model.safetensors")
    assert model.config == ModelConfig(**TINY, prior=prior, lmbda=lmbda)
    assert model.decompress(model.compress(photo, model.qualities[-1])).size == photo.size


@pytest.mark.usefixtures("measured")
def test_a_run_may_be_called_as_the_codec_beside_it(here):
    assert start("jpeg") == 0
    assert {path.name for path in (here / "jpeg/rd").glob("*.json")} >= {"lic.json", "jpeg.json"}


@pytest.mark.parametrize(
    "options",
    [
        ("--lmbda", 0.001, 0.1),
        ("--transform", "bmshj2018", "--prior", "scale-hyperprior"),
        ("--prior", "factorized", "--shortcut", "false", "--ema", 0, "--lapped", "false"),
    ],
)
def test_a_resumed_run_is_the_uninterrupted_run_bit_for_bit(here, options):
    assert start("whole", *options) == 0
    assert start("parts", "--minutes", 0, *options) == 0
    for _ in range(3):
        assert not (here / "parts/model.safetensors").exists()
        assert train.main(["--out", "parts", "--resume", "--minutes", "0"]) == 0
    for name in ("last.pt", "best.pt"):
        assert equal(load_checkpoint(f"whole/{name}"), load_checkpoint(f"parts/{name}"))
    assert load_model("whole/model.safetensors").id == load_model("parts/model.safetensors").id
    for kind in ("train", "val"):
        rows = [[{**row, **SPEEDS} for row in log(out, kind)] for out in ("whole", "parts")]
        assert rows[0] == rows[1]


def test_logged_figures_are_means_over_the_steps_since_the_last_line_also_after_a_resume(here):
    start("each")
    start("pairs", "--log_every", 2)
    start("parts", "--log_every", 2, "--minutes", 0)
    train.main(["--out", "parts", "--resume"])
    each = [row["loss"] for row in log("each", "train")]
    assert [row["loss"] for row in log("pairs", "train")] == pytest.approx([np.mean(each[:2]), np.mean(each[2:])])
    assert [row["loss"] for row in log("parts", "train")] == pytest.approx([each[1], np.mean(each[2:])])


def test_a_finished_run_can_be_extended(here):
    start("run", "--steps", 2)
    assert train.main("--out run --resume --steps 3".split()) == 0
    assert [row["step"] for row in log("run", "train")] == [1, 2, 3]


def test_stretches_of_training_add_up(here):
    """From constant.pt on, a longer schedule is what it would have been from the beginning; patches may change too."""
    for out, steps, decay in (("short", 10, 0.8), ("long", 20, 0.5)):
        start(out, "--steps", steps, "--decay", decay, "--batch", 8, "--minutes", 0)
        for _ in range(3):
            train.main(f"--out {out} --resume --minutes 0".split())
    assert load_checkpoint("short/constant.pt")["step"] == 2
    assert not equal(*(load_checkpoint(f"{out}/last.pt")["model"] for out in ("short", "long")))
    assert train.main("--out short --resume constant.pt --steps 20 --decay 0.5 --minutes 0".split()) == 0
    assert train.main("--out short --resume --minutes 0".split()) == 0
    short, long = (load_checkpoint(f"{out}/last.pt") for out in ("short", "long"))
    assert short["step"] == long["step"] == 4
    assert equal(short["model"], long["model"]) and equal(short["average"], long["average"])
    assert train.main("--out short --resume --patch 48 --batch 1 --minutes 0".split()) == 0
    assert load_checkpoint("short/last.pt")["step"] == 5


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_weights_are_averaged_over_the_steps(ema):
    config = Config(ModelConfig(**TINY, lmbda=[0.01]), DataConfig(patch=32), TrainConfig(batch=2, warmup=0, ema=ema))
    run = Run(config, CPU)
    run.begin(torch.rand(2, 3, 32, 32))
    expected = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    for step in range(12):
        run.update(torch.rand(2, 3, 32, 32))
        keep = min(ema, (1 + step) / (10 + step))
        expected = {name: keep * e + (1 - keep) * run.model.state_dict()[name] for name, e in expected.items()}
    for name, tensor in run.average.state_dict().items():
        torch.testing.assert_close(tensor, expected[name])
    assert equal(run.average.state_dict(), run.model.state_dict()) == (ema == 0)
    assert not any(p.requires_grad or p.grad_fn for p in run.average.parameters())  # or every step would be remembered


def test_the_same_seed_trains_the_same_model_and_another_seed_another(here):
    for out, seed in (("a", 5), ("b", 5), ("c", 6)):
        start(out, "--seed", seed, "--minutes", 0)
    a, b, c = (load_checkpoint(f"{out}/last.pt")["model"] for out in "abc")
    assert equal(a, b) and not equal(a, c)


@pytest.mark.parametrize("prior", [FACTORIZED, HYPER])
def test_training_from_nothing_lowers_the_loss(here, prior):
    schedule = ("--steps", 60, "--log_every", 20, "--val_every", 60, "--lr", 0.003, "--ema", 0.8)
    start("run", "--shortcut", "false", "--prior", prior, *schedule)
    first, *_, last = log("run", "train")
    assert last["loss"] < 0.9 * first["loss"]
    begin, end = log("run", "val")
    assert end["rd_loss"] < 0.9 * begin["rd_loss"]


def test_without_arguments_it_takes_the_sample_photographs_and_a_fresh_folder(here, capsys):
    options = "--N 8 --M 16 --blocks 0 0 --hyper_N 8 --lmbda 0.013 --patch 32 --batch 2 --minutes 0".split()
    for name in ("001", "002"):
        assert train.main(options) == 0
        assert (here / "runs" / name / "last.pt").exists()
    out = capsys.readouterr().out
    assert "4 training, 1 validation images" in out and "--out runs/002 --resume" in out


def test_what_is_in_a_run_folder_is_not_overwritten(here, capsys):
    start("run", "--minutes", 0)
    before = (here / "run/last.pt").read_bytes()
    assert start("run") == 1
    assert "run is not empty" in capsys.readouterr().err
    assert (here / "run/last.pt").read_bytes() == before


def test_a_resumed_run_keeps_its_model(here, capsys):
    start("run", "--minutes", 0)
    assert train.main("--out run --resume --N 16".split()) == 1
    assert "[model]" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv", [["--stepz", "4"], ["--steps", "many"], ["--resume"], ["a.toml", "--resume", "--out", "x"]]
)
def test_a_command_line_that_makes_no_sense_exits_with_2(here, argv):
    with pytest.raises(SystemExit) as exit:
        train.main(argv)
    assert exit.value.code == 2 and not (here / "runs").exists()


@pytest.mark.parametrize(
    "toml, argv, message",
    [
        ("[train]\nstepz = 4", [], "stepz"),
        ("[trains]\nsteps = 4", [], "trains"),
        ("[train]\nsteps = 'many'", [], "steps"),
        ("not toml", [], ""),
        ("", ["--steps", "0"], "steps"),
        ("", ["--data", "nowhere"], "nowhere"),
        ("", ["--val", "nowhere"], "nowhere"),
        ("", ["--data", "cifar10:nowhere"], "cifar-10-batches-py"),
        ("", ["--resume", "--out", "nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_trained_is_an_error_of_one_line(here, capsys, toml, argv, message):
    (here / "c.toml").write_text(toml)
    arguments = argv if "--resume" in argv else ["c.toml", "--out", "run", *argv]
    assert train.main(arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("train.py: ") and message in line
    assert not (here / "run/last.pt").exists()


def test_a_damaged_checkpoint_is_an_error_of_one_line(here, capsys):
    start("run", "--minutes", 0)
    data = (here / "run/last.pt").read_bytes()
    for damaged in (data[:-100], b"", b"nothing of ours"):
        (here / "run/last.pt").write_bytes(damaged)
        capsys.readouterr()
        assert train.main(["--out", "run", "--resume"]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert "last.pt" in line


def test_cifar10_trains_from_a_local_copy(here, cifar10):
    assert start("run", "--data", f"cifar10:{cifar10.parent}", "--steps", 1) == 0


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_steps_with_a_gradient_that_is_not_finite_are_skipped(optimizer):
    config = Config(ModelConfig(**TINY, lmbda=[0.01]), DataConfig(patch=32), TrainConfig(batch=2, optimizer=optimizer))
    run = Run(config, CPU)
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    run.update(torch.full((2, 3, 32, 32), math.nan))
    assert (run.step, int(run.skipped)) == (1, 1) and equal(run.model.state_dict(), before)
    run.update(torch.rand(2, 3, 32, 32))
    assert (run.step, int(run.skipped)) == (2, 1) and not equal(run.model.state_dict(), before)
    assert all(p.isfinite().all() and p.abs().max() < 1e3 for p in run.model.parameters())
    if optimizer == "sgd":  # the first step that counts begins from rest
        for p, state in run.optimizer.state.items():
            torch.testing.assert_close(state["momentum_buffer"], p.grad)


def test_a_compiled_loss_is_the_loss(here, monkeypatch):
    """Traced, but not handed to a compiler, which would take half a minute."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    for compiled in ("false", "true"):
        assert start(compiled, "--steps", 3, "--compile", compiled) == 0
    eager, traced = (load_checkpoint(Path(name, "last.pt"))["model"] for name in ("false", "true"))
    for name, tensor in eager.items():
        torch.testing.assert_close(traced[name], tensor, rtol=1e-4, atol=1e-5)


def test_without_a_compiler_an_option_is_told(here, capsys, monkeypatch):
    def compiled(function):
        raise torch._dynamo.exc.BackendCompilerFailed(compiled, RuntimeError("No working C++ compiler found"), None)

    monkeypatch.setattr(torch, "compile", compiled)
    assert start("run", "--compile", "true") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "No working C++ compiler found" in line and "--compile false" in line


def test_the_loss_is_bits_per_pixel_plus_lambda_times_the_squared_error_of_grey_levels(tiny):
    network = tiny.backend.network.eval()
    x = torch.rand(2, 3, 20, 30)
    quality, lmbda = torch.tensor([20.0, 80.0]), torch.tensor([0.002, 0.05])
    x_hat, bits, _ = network(x, quality)
    terms = losses(network, x, quality, lmbda, distortion("mse", 0.25, network.config.lmbda, CPU))
    assert not terms["bpp_z"].any()  # of a factorized prior
    squared = ((255 * x_hat - 255 * x) ** 2).flatten(1).mean(dim=1)
    torch.testing.assert_close(terms["loss"], bits / 600 + lmbda * squared)


def test_every_step_draws_low_and_high_qualities_with_their_lambdas():
    config = Config(ModelConfig(lmbda=[0.001, 0.1]), train=TrainConfig(batch=8))
    quality, lmbda = draw(3, config)
    again, _ = draw(3, config)
    other, _ = draw(4, config)
    assert (quality / 12.5).floor().tolist() == list(range(8))
    assert torch.equal(quality, again) and not torch.equal(quality, other)
    torch.testing.assert_close(lmbda.log10(), quality / 50 - 3)
    assert draw(3, Config(ModelConfig(lmbda=[0.02])))[0] is None


def test_a_training_for_the_eye_logs_what_it_is_trained_for(here, photo):
    photo.resize((128, 128)).save("val/face.png")
    options = ("--distortion", "ssimulacra2", "--patch", 128, "--lmbda", 0.0009, 0.18, "--val_qualities", 10, 90)
    assert start("run", *options) == 0
    for row in log("run", "val"):
        for quality in (10, 90):
            lmbda = ModelConfig().lmbda_at(quality)
            distance = 0.75 * 0.0045 * (lmbda / 0.0009) ** 0.6 * (100 - row[f"ssimulacra2_q{quality}"])
            squared = 0.25 * lmbda * 255**2 * row[f"mse_q{quality}"]
            assert row[f"loss_q{quality}"] == pytest.approx(row[f"bpp_q{quality}"] + distance + squared)
        assert row["rd_loss"] == pytest.approx(math.sqrt(row["loss_q10"] * row["loss_q90"]))
