"""Configuration: TOML and command line into typed fields, nothing unknown and nothing of a wrong type."""

import argparse
import dataclasses
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import codec
from codec.config import SECTIONS, Config, DataConfig, ModelConfig, TrainConfig, add_options, dump, from_dict, load
from codec.config import merge_options as merge

SHIPPED = sorted((Path(codec.__file__).parent / "configs").glob("*.toml"))
OPTIONS = [field.name for section in SECTIONS.values() for field in dataclasses.fields(section)]


def options(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_options(parser)
    return parser.parse_args(argv)


texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]))
configs = st.builds(
    Config,
    st.builds(
        ModelConfig,
        N=st.integers(8, 999),
        shortcut=st.booleans(),
        prior=st.sampled_from(["factorized", "scale-hyperprior", "mean-scale-hyperprior"]),
        density=st.sampled_from(["laplace", "gaussian"]),
        lmbda=st.just([1e-5]) | st.just([0.1, 3.0]),
    ),
    st.builds(DataConfig, data=st.lists(texts), resize=st.just([]) | st.just([40, 50])),
    st.builds(
        TrainConfig, lr=st.floats(1e-9, 1), clip=st.just(float("inf")) | st.floats(0.1, 9), decay=st.floats(0, 1)
    ),
)


@given(configs)
def test_what_is_dumped_is_loaded_back(config):
    assert from_dict(tomllib.loads(dump(config))) == config


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_configuration_is_valid(path):
    assert isinstance(from_dict(load(path)), Config)


def test_some_configurations_are_shipped():
    assert {"smoke", "cifar10", "fast", "photo", "fast-factorized"} <= {path.stem for path in SHIPPED}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_configuration_is_what_its_name_says(path):
    model = from_dict(load(path)).model
    assert ("factorized" in path.stem) <= (model.prior == "factorized")
    assert ("bmshj2018" in path.stem or "mbt2018" in path.stem) == (model.transform == "bmshj2018")
    assert path.stem != "bmshj2018-hyperprior" or model.prior == "scale-hyperprior"
    assert path.stem not in ("mbt2018-mean", "fast", "photo", "high") or model.prior == "mean-scale-hyperprior"


@pytest.mark.parametrize(
    "values, message",
    [
        ({"modell": {}}, r"\[modell\].*model, data, train"),
        ({"model": {"stepz": 1}}, r"'stepz' in \[model\]"),
        ({"train": {"N": 8}}, r"'N' in \[train\]"),
        ({"train": {"steps": "4"}}, r"\[train\] steps must be int, not '4'"),
        ({"train": {"steps": 4.0}}, r"\[train\] steps must be int, not 4.0"),
        ({"train": {"steps": True}}, r"\[train\] steps must be int, not True"),
        ({"model": {"shortcut": 1}}, r"\[model\] shortcut must be bool, not 1"),
        ({"model": {"blocks": [1, "2"]}}, r"\[model\] blocks must be int, not '2'"),
        ({"model": {"prior": "gaussian"}}, "prior.*'gaussian'"),
        ({"model": {"density": "cauchy"}}, "density.*'cauchy'"),
        ({"model": {"hyper_N": 0}}, "hyper_N.*0 and 64"),
        ({"model": {"hyper_M": 0}}, "hyper_M.*96 and 0"),
        ({"model": {"lmbda": [0.2, 0.1]}}, "lmbda"),
        ({"model": {"lmbda": []}}, "lmbda"),
        ({"model": {"lmbda": -1.0}}, "lmbda"),
        ({"model": {"lmbda": [0.1, 0.1]}}, "lmbda"),
        ({"model": {"lmbda": float("nan")}}, "lmbda"),
        ({"model": {"lmbda": [0.1, float("inf")]}}, "lmbda"),
        ({"model": {"blocks": [1]}}, "blocks"),
        ({"model": {"M": 769}}, "M=769"),
        ({"data": {"patch": 40}}, "patch.*40"),
        ({"data": {"resize": [40]}}, "resize"),
        ({"data": {"cache": float("inf")}}, "cache"),
        ({"train": {"batch": 0}}, "batch"),
        ({"train": {"decay": 1.5}}, "decay.*1.5"),
        ({"train": {"precision": "fp16"}}, "precision.*'fp16'"),
    ],
)
def test_what_is_unknown_of_a_wrong_type_or_out_of_range_is_named(values, message):
    with pytest.raises(ValueError, match=message):
        from_dict(values)


def test_a_value_outside_of_the_tables_is_named(tmp_path):
    path = tmp_path / "flat.toml"
    path.write_text("N = 128")
    with pytest.raises(ValueError, match=r"flat.toml: N stands outside of the tables \[model\]"):
        load(path)


def test_an_integer_is_taken_for_a_float_and_a_value_for_a_list_of_one():
    config = from_dict({"model": {"lmbda": 1}, "train": {"lr": 1}})
    assert config.model.lmbda == [1.0] and type(config.model.lmbda[0]) is type(config.train.lr) is float


def test_the_command_line_has_the_last_word():
    values = {"model": {"N": 64, "M": 96}, "train": {"lr": 0.5}}
    argv = "--N 32 --lmbda 0.001 0.1 --shortcut false --data a b --resize --precision fp32".split()
    config = from_dict(merge(values, options(*argv)))
    assert (config.model.N, config.model.M, config.model.lmbda, config.model.shortcut) == (32, 96, [0.001, 0.1], False)
    assert (config.data.data, config.data.resize) == (["a", "b"], [])
    assert (config.train.lr, config.train.precision) == (0.5, "fp32")
    assert values["model"]["N"] == 64
    assert from_dict(merge({}, options())) == Config()


@pytest.mark.parametrize("argv", [["--N", "many"], ["--shortcut", "maybe"], ["--stepz", "1"]])
def test_an_option_of_a_wrong_type_is_a_usage_error(argv, capsys):
    with pytest.raises(SystemExit) as exit:
        options(*argv)
    assert exit.value.code == 2 and argv[0] in capsys.readouterr().err


def test_no_two_sections_share_a_key():
    assert len(set(OPTIONS)) == len(OPTIONS)


def test_the_help_names_every_field_with_its_default():
    parser = argparse.ArgumentParser()
    add_options(parser)
    text = " ".join(parser.format_help().split())
    for section in SECTIONS.values():
        for field in dataclasses.fields(section):
            assert f"--{field.name} " in text and field.metadata["help"].split(":")[0] in text
    assert "(default: 0.0009 0.18)" in text and "(default: true)" in text


@pytest.mark.parametrize("lmbda", [[256.0], [0.0009, 840.0], [1e8]])
def test_a_lambda_of_another_scale_is_told_with_the_usual_range(lmbda):
    with pytest.raises(ValueError, match=f"above 26; usual are 0.0009 to 0.18.* is {lmbda[-1] / 255**2:.4g} here"):
        ModelConfig(lmbda=lmbda)
    assert ModelConfig(lmbda=[25.0]).lmbda == [25.0]
