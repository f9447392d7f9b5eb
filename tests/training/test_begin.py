"""What a training begins with: weights of another model, as far as they match, and densities fitted to them."""

import re

import pytest
import torch
from shared import TINY, equal, start, untrained

from codec.coding.models import export
from codec.config import Config, DataConfig, ModelConfig, TrainConfig
from codec.training.checkpoints import save_checkpoint
from codec.training.run import Run

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("unmeasured")


def begun(**options) -> tuple[Run, str]:
    """A run at step 0, and what it took over; `init` and `prior` and the like are options of the configuration."""
    model = TINY | {"lmbda": [0.01]} | {name: options.pop(name) for name in (*TINY, "prior") if name in options}
    setup = TrainConfig(**options, precision="fp32")  # check_fitted is of what was computed with, to the last digit
    run = Run(Config(ModelConfig(**model), DataConfig(patch=32), setup), CPU)
    return run, run.begin(torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)))


def trained(path: str, **options) -> dict[str, torch.Tensor]:
    """Averaged weights of a run of which none is what it was at step 0, and its checkpoint at `path`."""
    run, taken = begun(**options)
    assert taken == ""
    with torch.no_grad():
        for parameter in (*run.model.parameters(), *run.average.parameters()):
            parameter += 0.01 * torch.randn_like(parameter)
    save_checkpoint(path, run.state())
    return run.state()["average"]


def test_a_run_begins_with_the_weights_of_a_checkpoint_or_of_an_exported_model(tmp_path):
    checkpoint, exported = str(tmp_path / "a.pt"), str(tmp_path / "a.safetensors")
    given = trained(checkpoint, seed=1)
    model = untrained(**TINY, lmbda=[0.01])
    model.load_state_dict(given)
    export(model, exported)  # which rounds
    for path, state in ((checkpoint, given), (exported, model.state_dict())):
        run, taken = begun(seed=2, init=path)
        assert taken == f"{len(state)} of {len(state)} tensors from {path}; new: none; left out: none"
        assert equal(run.model.state_dict(), state) and equal(run.average.state_dict(), state) and run.step == 0


def check_fitted(model) -> None:
    """The hyperprior tells the deviations of y that the weights lead to, whatever z is, and all of z says something."""
    x = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    v = model.analyse(x, None)
    scale = model.conditional.scale_of(model.constants(None).outer[0, :, 0, 0] / 2**8)
    torch.testing.assert_close(scale, v.std(dim=(0, 2, 3), correction=0), rtol=0.01, atol=0.07)
    assert not model.h_s.scale.weight.any() and not model.h_s.scale.bias.any()
    deviation = model.analyse_hyper(v, None).std(dim=(0, 2, 3), correction=0)
    torch.testing.assert_close(deviation, torch.ones_like(deviation), rtol=0, atol=0.02)


@pytest.mark.parametrize("changed", [{"M": 24}, {"hyper_M": 5}, {"hyper_N": 9}])
def test_a_hyperprior_of_other_sizes_is_fitted_to_the_weights_that_are_kept(tmp_path, changed):
    path = str(tmp_path / "a.pt")
    given = trained(path, seed=1)
    run, taken = begun(seed=2, init=path, **changed)
    check_fitted(run.model)
    assert torch.equal(run.model.state_dict()["g_a.stem.weight"], given["g_a.stem.weight"])
    assert "h_s.layers" in taken.split("; new: ")[1] or "hyper_M" not in changed


def test_a_prior_of_y_is_not_taken_for_one_of_z_or_the_other_way_round(tmp_path):
    path = str(tmp_path / "a.pt")
    priors = ["factorized", "mean-scale-hyperprior"]
    for theirs, ours in (priors, priors[::-1]):
        given = trained(path, seed=1, hyper_M=16, prior=theirs)
        own = begun(seed=2, init=path, hyper_M=16, prior=ours)[0].model.state_dict()
        assert not torch.equal(own["prior.matrices.0"], given["prior.matrices.0"])
        assert torch.equal(own["g_a.stem.weight"], given["g_a.stem.weight"])


@pytest.mark.parametrize("freeze", [["h_a"], ["h_s"], ["prior"]])
def test_what_is_frozen_begins_as_it_was_left(tmp_path, freeze):
    path = str(tmp_path / "a.pt")
    run, _ = begun(seed=1)
    with torch.no_grad():
        run.average.h_a.head[-1].weight[1] = 0  # which says nothing any more
    save_checkpoint(path, run.state())
    given = run.state()["average"]
    frozen, _ = begun(seed=2, init=path, freeze=freeze)
    assert equal(frozen.model.state_dict(), given)


def test_one_lambda_and_all_rates_do_not_begin_with_one_another(here, capsys):
    start("one", "--minutes", 0)
    assert start("all", "--minutes", 0, "--init", "one/last.pt", "--lmbda", 0.001, 0.1) == 1
    assert "one/last.pt is of one lambda, and its latent has other units" in capsys.readouterr().err


def test_only_tensors_that_match_are_taken_and_only_new_densities_are_fitted(tmp_path):
    path = str(tmp_path / "a.pt")
    given = trained(path, seed=1, prior="factorized")
    run, taken = begun(seed=2, init=path)
    own, fresh = run.model.state_dict(), begun(seed=2)[0].model.state_dict()
    kept = [name for name in own if name.split(".")[0] in ("g_a", "g_s", "shrink")]  # a prior of z is not one of y
    assert all(torch.equal(own[name], given[name]) and not torch.equal(own[name], fresh[name]) for name in kept)
    words, new, left = re.split("; new: |; left out: ", taken)
    assert left == "prior"
    assert words == f"{len(kept)} of {len(own)} tensors from {path}" and {"h_a", "h_s", "prior"} <= set(new.split(", "))
    check_fitted(run.model)
    wider, taken = begun(seed=2, init=path, N=16)
    assert torch.equal(wider.model.state_dict()["g_a.head.bias"], given["g_a.head.bias"]) and "new: " in taken


def test_a_run_cannot_begin_with_what_is_not_a_model(here, capsys):
    (here / "a.pt").write_bytes(b"nothing of ours")
    for path in ("a.pt", "missing.pt", "missing.safetensors"):
        assert start(f"run-{path}", "--init", path) == 1
        (line,) = [line for line in capsys.readouterr().err.splitlines() if path in line]
        assert line.startswith("train.py: ")


def test_the_command_line_says_what_was_taken_over(here, capsys):
    start("first", "--minutes", 0)
    start("second", "--init", "first/last.pt", "--minutes", 0)
    assert "tensors from first/last.pt; new: none" in capsys.readouterr().out
