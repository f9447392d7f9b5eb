"""Typed configuration: three dataclasses, one TOML table each; every field has a help text, unknown keys are errors.

The defaults below are the only ones. A file (codec/configs/*.toml) overrides some of them, the command line (`--key
value`) overrides both. The result is stored in the run folder, in every checkpoint and in the exported model.
"""

import argparse
import dataclasses
import json
import math
from dataclasses import dataclass, field
from itertools import pairwise
from numbers import Integral
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from codec.errors import LicError

# Fixed for all families of transforms, since the file format depends on them
STRIDE = 16  # pixels per sample of y, in each direction
CELL = 4  # samples of y per sample of z, in each direction
REACH = 127  # symbols of z are in -127..127, so that h_s is exact; another decoded one is a FormatError


# From here on the optimal step of a quantizer, whose square is 18 / (ln 2 * lmbda) (step_gain of
# codec/network/layers.py), is below one grey level, and nothing is left to be gained.
MOST_LMBDA = 18 / math.log(2)

WIDEST, DEEPEST = 4096, 64  # most channels and blocks, by hand: a forged configuration must not fill the memory


def _option(default: Any, help: str) -> Any:
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


@dataclass
class ModelConfig:
    """The architecture: all that is needed to build the network again."""

    transform: str = _option("fast", "family of g_a and g_s: fast or bmshj2018")
    N: int = _option(128, "channels inside the transforms (fast: N at 1/8, 2N at 1/16 resolution)")
    M: int = _option(320, "channels of the latent y")
    blocks: list[int] = _option([1, 2], "fast: residual blocks at 1/8 and at 1/16 resolution")
    shortcut: bool = _option(True, "fast: linear shortcut, initialised as a block DCT")
    lapped: bool = _option(True, "fast: the shortcut's blocks overlap (a lapped transform)")
    prior: str = _option(
        "mean-scale-hyperprior",
        "of y: factorized, or given z: scale-hyperprior (densities around 0), mean-scale-hyperprior",
    )
    density: str = _option("laplace", "hyperprior: family of the densities of y, laplace or gaussian")
    hyper_N: int = _option(96, "hyperprior: channels inside h_a and h_s")
    hyper_M: int = _option(64, "hyperprior: channels of the hyper-latent z")
    context: int = _option(
        0,
        "hyperprior: channels that the context of the entropy coder looks at for each one, such as 12; 0: no context",
    )
    lmbda: list[float] = _option(
        [0.0009, 0.18],
        "rate-distortion trade-off, loss = bpp + lmbda * 255^2 * mse; two values: the range of an all-rates model",
    )

    def __post_init__(self):
        if self.prior not in ("factorized", "scale-hyperprior", "mean-scale-hyperprior"):
            raise LicError(f"prior must be factorized, scale-hyperprior or mean-scale-hyperprior, not {self.prior!r}")
        if self.density not in ("laplace", "gaussian"):
            raise LicError(f"density must be laplace or gaussian, not {self.density!r}")
        if not 0 <= self.context <= 64 or self.context and self.prior == "factorized":
            raise LicError(f"context must be in 0..64, and 0 with a factorized prior, not {self.context}")
        if not 1 <= min(self.hyper_N, self.hyper_M) <= max(self.hyper_N, self.hyper_M) <= WIDEST:
            raise LicError(f"hyper_N and hyper_M must be in 1..{WIDEST}, not {self.hyper_N} and {self.hyper_M}")
        increasing = all(a < b for a, b in pairwise([0, *self.lmbda, 1e9]))
        if len(self.lmbda) not in (1, 2) or not increasing:
            raise LicError(f"lmbda must be one value, or an increasing pair, above 0 and below 1e9, not {self.lmbda}")
        if self.lmbda[-1] > MOST_LMBDA:
            raise LicError(
                f"lmbda {self.lmbda[-1]:g} is above {MOST_LMBDA:.0f}; usual are 0.0009 to 0.18, as CompressAI counts: "
                f"loss = bpp + lmbda * 255^2 * mse. One for bpp + lmbda * mse of pixels in 0..1 (DCVC) is "
                f"{self.lmbda[-1] / 255**2:.4g} here"
            )
        if len(self.blocks) != 2 or not 0 <= min(self.blocks) <= max(self.blocks) <= DEEPEST:
            raise LicError(f"blocks must be two counts of at most {DEEPEST}, not {self.blocks}")
        if not 8 <= self.N <= WIDEST or not 8 <= self.M <= 768:
            raise LicError(f"N must be in 8..{WIDEST} and M in 8..768, not N={self.N}, M={self.M}")

    @property
    def variable_rate(self) -> bool:
        """Whether this is an all-rates model (quality 0..100), or one for a fixed lambda."""
        return len(self.lmbda) == 2

    @property
    def qualities(self) -> list[int | None]:
        """All qualities of the model: 0..100, or None alone for a fixed lambda."""
        return list(range(101)) if self.variable_rate else [None]

    def check_quality(self, quality: Any) -> None:
        """LicError unless the model has this quality: an integer in 0..100, or None for a fixed lambda."""
        if not self.variable_rate:
            if quality is not None:
                raise LicError(f"this model was trained for one lambda and has no quality, but got {quality!r}")
        elif not isinstance(quality, Integral) or isinstance(quality, bool) or not 0 <= quality <= 100:
            raise LicError(f"quality must be an integer in 0..100, not {quality!r}")

    def lmbda_at(self, quality: Any) -> Any:
        """lambda at a quality 0..100, a number or a tensor, log-linear between both ends; None for a fixed lambda."""
        return self.lmbda[0] if quality is None else self.lmbda[0] * (self.lmbda[1] / self.lmbda[0]) ** (quality / 100)


def check_precision(name: str) -> None:
    """LicError unless the name is a precision: auto or fp32."""
    if name not in ("auto", "fp32"):
        raise LicError(f"the precision must be auto or fp32, not {name!r}")


@dataclass
class DataConfig:
    """Where the images come from and how a training patch is cut.

    There are no epochs: loader processes live as long as the training, and all batches have the same size.
    """

    data: list[str] = _option(
        [],
        "training folders (searched recursively), tar:DIR (WebDataset shards), or cifar10:DIR alone; none: the sample "
        "photographs",
    )
    weights: list[float] = _option(
        [], "share of the samples that each entry of data gets, relative to the others; none: every image equally often"
    )
    val: list[str] = _option([], "validation folders; none: a sample photograph that is not trained on")
    patch: int = _option(128, "side of a training patch in pixels, a multiple of 16")
    resize: list[int] = _option(
        [], "before cropping, bring the shorter side (antialiased) to a random size in MIN MAX; none: off"
    )
    flip: bool = _option(True, "flip every second patch left to right")
    cache: float = _option(
        8.0,
        "gigabytes of decoded training images (3 bytes a pixel) that each process keeps; without loader processes on "
        "the GPU, if there is one",
    )
    workers: int = _option(0, "loader processes; 0 loads in the training process")
    pin_memory: bool = _option(
        True, "CUDA: loader processes hand over page-locked memory, which copies while computing"
    )
    prefetch: int = _option(2, "batches that each loader process prepares ahead")

    def __post_init__(self):
        if self.weights and (len(self.weights) != len(self.data) or min(self.weights) <= 0):
            raise LicError(
                f"weights must be positive, one for each of the {len(self.data)} entries of data, not {self.weights}"
            )
        if self.patch < 16 or self.patch % 16:
            raise LicError(f"patch must be a positive multiple of 16, not {self.patch}")
        if self.resize and (len(self.resize) != 2 or not 1 <= self.resize[0] <= self.resize[1]):
            raise LicError(f"resize must be two sizes MIN MAX, 1 <= MIN <= MAX, not {self.resize}")
        if not 0 <= self.cache < math.inf:
            raise LicError(f"cache must be at least 0 and finite, not {self.cache}")
        if self.workers < 0 or self.prefetch < 1:
            raise LicError(
                f"workers must be at least 0 and prefetch at least 1, not {self.workers} and {self.prefetch}"
            )


@dataclass
class TrainConfig:
    """How the model is trained."""

    steps: int = _option(20000, "optimiser steps of the whole schedule")
    batch: int = _option(8, "patches a step, over all processes")
    accumulate: int = _option(1, "parts in which a process computes its patches of a step, one after the other")
    distortion: str = _option(
        "mse",
        "mse; or for the eye ssimulacra2 (patches of at least 128), ms-ssim (at least 176), vgg (VGG-16 features), or "
        "several with a + between them",
    )
    mix: float = _option(0.25, "share of squared error beside a distortion other than mse")
    optimizer: str = _option("adamw", "adamw, adam, sgd or soap")
    lr: float = _option(1e-3, "peak learning rate")
    lr_of: list[str] = _option(
        ["shortcut=0.1", "shortcut_lapped=0.1", "prior=5", "context=5"],
        "learning rates of parts of the model relative to lr, as PART=FACTOR",
    )
    freeze: list[str] = _option([], "parts of the model that are not trained, such as g_a or h_s.mean")
    momentum: float = _option(0.9, "sgd: momentum")
    weight_decay: float = _option(0.0, "weight decay of the optimiser")
    warmup: int = _option(500, "steps of linear warm-up")
    schedule: str = _option("linear", "how the rate falls to lr/100 at the end: linear, cosine, or steps (x0.1, twice)")
    decay: float = _option(0.3, "last fraction of the steps, over which it falls")
    clip: float = _option(1.0, "largest norm of the gradient")
    ema: float = _option(0.999, "decay a step of the averaged weights, which are what is validated and exported")
    init: str = _option(
        "", "exported model or training checkpoint whose weights of the same name and shape to begin with"
    )
    precision: str = _option("auto", "auto: bf16 trunks where the device has bf16 natively; fp32: never")
    compile: bool = _option(
        False, "compile the densities with torch.compile: about 20 s, then a faster step; needs a C++ compiler"
    )
    deterministic: bool = _option(False, "only algorithms whose result is the same every time, on a GPU too; slower")
    seed: int = _option(1, "seed of weights, patches, qualities and noise")
    save_every: int = _option(500, "steps between checkpoints (last.pt)")
    val_every: int = _option(2000, "steps between validations")
    val_qualities: list[int] = _option([10, 30, 50, 70, 90], "qualities validated in an all-rates model")
    log_every: int = _option(100, "steps between log lines")

    def __post_init__(self):
        if min(self.steps, self.batch, self.accumulate, self.log_every, self.val_every, self.save_every) < 1:
            raise LicError("steps, batch, accumulate, log_every, val_every and save_every must be at least 1")
        if self.batch % self.accumulate:
            raise LicError(f"accumulate must divide batch, but {self.accumulate} does not divide {self.batch}")
        for name, choices in (
            ("precision", ("auto", "fp32")),
            ("optimizer", ("adamw", "adam", "sgd", "soap")),
            ("schedule", ("linear", "cosine", "steps")),
        ):
            if getattr(self, name) not in choices:
                raise LicError(
                    f"{name} must be {', '.join(choices[:-1])} or {choices[-1]}, not {getattr(self, name)!r}"
                )
        if self.distortion != "mse" and not set(self.distortion.split("+")) <= {"ssimulacra2", "ms-ssim", "vgg"}:
            raise LicError(
                f"distortion must be mse, or ssimulacra2, ms-ssim or vgg, or several with a + between them, not "
                f"{self.distortion!r}"
            )
        if not (0 <= self.ema < 1 and self.clip > 0 and self.warmup >= 0 and self.seed >= 0):
            raise LicError(
                f"ema must be at least 0 and below 1, clip above 0 (inf: off), warmup and seed at least 0, not "
                f"{self.ema}, {self.clip}, {self.warmup} and {self.seed}"
            )
        if not self.val_qualities or min(self.val_qualities) < 0 or max(self.val_qualities) > 100:
            raise LicError(f"val_qualities must be one or more numbers in 0..100, not {self.val_qualities}")
        for name in ("decay", "mix"):
            if not 0 <= getattr(self, name) <= 1:
                raise LicError(f"{name} must be in 0..1, not {getattr(self, name)}")


@dataclass
class Config:
    """The resolved configuration of a run: [model], [data] and [train] of a TOML file."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


SECTIONS = {"model": ModelConfig, "data": DataConfig, "train": TrainConfig}


def _typed(section: str, name: str, kind: Any, value: Any) -> Any:
    """A value as the type of its field; LicError for another type."""
    if get_origin(kind) is list:
        (item,) = get_args(kind)
        return [_typed(section, name, item, v) for v in (value if isinstance(value, list) else [value])]
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise LicError(f"[{section}] {name} must be {kind.__name__}, not {value!r}")
    return value


def from_dict(values: dict[str, dict[str, Any]]) -> Config:
    """Build a Config from TOML-like tables; LicError names an unknown section or key, or a wrong type."""
    resolved = {}
    for section in values:
        if section not in SECTIONS:
            raise LicError(f"unknown section [{section}]; there are {', '.join(SECTIONS)}")
    for section, cls in SECTIONS.items():
        types = get_type_hints(cls)
        table = values.get(section, {})
        for name in table:
            if name not in types:
                raise LicError(f"unknown key {name!r} in [{section}]; there are {', '.join(types)}")
        resolved[section] = cls(**{name: _typed(section, name, types[name], value) for name, value in table.items()})
    return Config(**resolved)


def to_dict(config: Config) -> dict[str, dict[str, Any]]:
    """The tables of a Config, every field present."""
    return dataclasses.asdict(config)


def load(path: Path | str) -> dict[str, dict[str, Any]]:
    """The tables of a TOML file, unchecked: from_dict checks them once the command line is merged in.

    LicError if it is not TOML, OSError if it cannot be read.
    """
    import tomllib

    with open(path, "rb") as file:
        try:
            tables = tomllib.load(file)
        except ValueError as error:  # also of text that is not UTF-8
            raise LicError(f"{path}: {error}") from error
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise LicError(f"{path}: {name} stands outside of the tables [{'], ['.join(SECTIONS)}]")
    return tables


def _literal(value: Any) -> str:
    """A TOML value."""
    if isinstance(value, list):
        return f"[{', '.join(map(_literal, value))}]"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else str(value).lower()


def dump(config: Config) -> str:
    """The Config as TOML text that `load` reads back."""
    return "\n".join(
        f"[{section}]\n" + "".join(f"{name} = {_literal(value)}\n" for name, value in table.items())
        for section, table in to_dict(config).items()
    )


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"true or false, not {text!r}")
    return text.lower() == "true"


def add_options(parser: argparse.ArgumentParser) -> None:
    """One `--key value` per field of the three sections, with help and default taken from the dataclass."""
    for section, cls in SECTIONS.items():
        group = parser.add_argument_group(f"[{section}]", cls.__doc__)
        types = get_type_hints(cls)
        for f in dataclasses.fields(cls):
            default = f.default_factory() if f.default is dataclasses.MISSING else f.default
            many = get_origin(types[f.name]) is list
            kind = get_args(types[f.name])[0] if many else types[f.name]
            shown = " ".join(map(str, default)) if many else str(default).lower() if kind is bool else default
            group.add_argument(
                f"--{f.name}",
                dest=f"{section}.{f.name}",
                type=_boolean if kind is bool else kind,
                nargs="*" if many else None,
                default=argparse.SUPPRESS,
                metavar={int: "INT", float: "NUMBER", str: "TEXT", bool: "true|false"}[kind],
                help=f.metadata["help"] + (f" (default: {shown})" if shown != "" else ""),
            )


def merge_options(values: dict[str, dict[str, Any]], options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """`values`, overridden by the options that were given on the command line."""
    merged = {section: dict(table) for section, table in values.items()}
    for key, value in vars(options).items():
        section, _, name = key.partition(".")
        if name:
            merged.setdefault(section, {})[name] = value
    return merged
