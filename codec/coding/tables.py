"""The integer tables of a model: made once, at export, stored with the weights, never rebuilt.

    tables = CodecTables.from_network(network)    for all qualities
    tensors = tables.to_tensors()                 NumPy arrays by name, as a model file holds them
    tables = CodecTables.from_tensors(tensors, config)

Without a hyperprior there is one table for each channel of y, at each quality. With one there is a table for each scale
of y, the same at all qualities, one for each channel of z at each quality, and the constants of the exact path of h_s;
and the integers of the context, if there is one. Q is the number of qualities: 101, or 1 in a model of one lambda.

    tables.freqs          uint16   frequencies of all tables, one table after the other (entropy/tables.py)
    tables.sizes          int32    how many of them each table has, its escape symbol included
    tables.offsets        int32    the value of the first entry of each table
                                   table q * M + c is that of quality q and channel c of y; with a hyperprior,
                                   table q * K + c that of quality q and channel c of z
    tables.y_freqs, tables.y_sizes, tables.y_offsets               the same of the tables of y: there is a hyperprior
    tables.step, tables.inner, tables.outer                        int32 (Q, channels), constants of h_s
    tables.context_order, _parents, _weights, _constants           those of entropy.Context
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

import entropy
from codec.config import REACH, ModelConfig
from codec.errors import LicError
from entropy import exact

if TYPE_CHECKING:
    from codec.network.model import Network

EXACT_WEIGHT = re.compile(r"h_s\.(layers\.\d+|scale)\.weight")  # of the layers that decide an index
ARRAYS = ("freqs", "sizes", "offsets")  # fields of entropy.Tables
CONTEXT = ("order", "parents", "weights", "constants")  # fields of entropy.Context


@dataclass(frozen=True)
class CodecTables:
    """The tables that turn symbols into bytes, by quality 0..100, or by None for a fixed lambda."""

    y: dict[int | None, entropy.Tables]
    z: dict[int | None, entropy.Tables] | None = None
    constants: dict[int | None, dict[str, NDArray[np.int32]]] | None = None  # (C,) each, by name
    context: entropy.Context | None = None  # of y, of a model that has one

    @classmethod
    def from_network(cls, network: "Network", qualities: Sequence[int | None] | None = None) -> "CodecTables":
        """The tables of a network at some qualities, by default at all. LicError if its exact path is not exact."""
        y, z, constants, support = {}, {}, {}, network.prior.support()
        for quality in network.config.qualities if qualities is None else qualities:
            level = network.level_of(quality)
            if network.config.prior == "factorized":
                y[quality] = network.y_tables(level, support)
                continue
            y[quality] = next(iter(y.values()), None) or network.y_tables(level, support)
            z[quality] = network.z_tables(level, support)
            constants[quality] = network.constants_of(level)
        if not z:
            return cls(y)
        check_bounds(network, constants)
        return cls(y, z, constants, network.context.context() if network.config.context else None)

    def to_tensors(self) -> dict[str, NDArray]:
        """The tables as the arrays of a model file, by name (above)."""
        if self.z is None:
            return pack(list(self.y.values()), "tables.")
        first = next(iter(self.constants.values()))
        stacked = {f"tables.{name}": np.stack([c[name] for c in self.constants.values()]) for name in first}
        context = {f"tables.context_{name}": getattr(self.context, name) for name in CONTEXT} if self.context else {}
        y = pack([next(iter(self.y.values()))], "tables.y_")
        return pack(list(self.z.values()), "tables.") | y | stacked | context

    @classmethod
    def from_tensors(cls, tensors: dict[str, NDArray], config: ModelConfig) -> "CodecTables":
        """The inverse of `to_tensors`, from all tensors of a model file; LicError if they are missing or invalid."""
        qualities = config.qualities
        if config.prior == "factorized":
            return cls(dict(zip(qualities, unpack(tensors, "tables.", config.M, len(qualities)), strict=True)))
        z = dict(zip(qualities, unpack(tensors, "tables.", config.hyper_M, len(qualities)), strict=True))
        (y,) = unpack(tensors, "tables.y_", len(tensors["centroid"]), 1)
        sizes = {"step": config.hyper_M, "inner": tensors["h_s.inner.values"].shape[1], "outer": config.M}
        for name, size in sizes.items():
            stored, shape = tensors.get(f"tables.{name}"), (len(qualities), size)
            if stored is None or stored.dtype != np.int32 or stored.shape != shape:
                raise LicError(f"tables.{name} is not int32 {shape}")
        constants = {q: {name: tensors[f"tables.{name}"][i] for name in sizes} for i, q in enumerate(qualities)}
        check_stored(tensors)
        context = context_of(tensors, config) if config.context else None
        return cls(dict.fromkeys(qualities, y), z, constants, context)


def check_bounds(network: "Network", constants: dict[int | None, dict[str, NDArray[np.int32]]]) -> None:
    """LicError unless the exact path of a network is exact with these constants for all symbols of z."""
    try:
        network.h_s.check_bounds(network.constants_from(list(constants.values())))
    except ValueError as error:
        raise LicError(f"weights of h_s are too large for exact arithmetic: {error}") from error


def check_stored(tensors: dict[str, NDArray]) -> None:
    """`check_bounds` for the weights and constants in a model file, without PyTorch."""
    layers = sorted(name.removesuffix(".weight") for name in tensors if EXACT_WEIGHT.fullmatch(name))
    for name in layers:
        step, outer = (float(np.abs(tensors[f"tables.{which}"], dtype=np.float64).max()) for which in ("step", "outer"))
        largest = REACH * step if name == "h_s.layers.0" else exact.LARGEST
        offset = outer if name == "h_s.scale" else 0.0
        try:
            exact.check_bound(tensors[f"{name}.weight"], tensors[f"{name}.bias"], largest, offset)
        except ValueError as error:
            raise LicError(f"weights of h_s are too large for exact arithmetic: {error}") from error


def context_of(tensors: dict[str, NDArray], config: ModelConfig) -> entropy.Context:
    """The stored context of a model; LicError if it breaks a rule."""
    names = [f"tables.context_{name}" for name in CONTEXT]
    if missing := [name for name in names if name not in tensors]:
        raise LicError(f"no {', '.join(missing)}")
    context = entropy.Context(*(tensors[name] for name in names))
    if len(context) != config.M:
        raise LicError(f"a context of {len(context)} channels in a model of {config.M}")
    return context


def pack(tables: list[entropy.Tables], prefix: str) -> dict[str, NDArray]:
    """All tables of a list, one after another, as arrays by name."""
    together = entropy.Tables.concatenate(tables)
    return {prefix + name: getattr(together, name).copy() for name in ARRAYS}


def unpack(tensors: dict[str, NDArray], prefix: str, count: int, times: int) -> list[entropy.Tables]:
    """The inverse of `pack`: `times` Tables of `count` tables each; LicError unless there are so many, all valid."""
    names = [prefix + name for name in ARRAYS]
    if missing := [name for name in names if name not in tensors]:
        raise LicError(f"no {', '.join(missing)}")
    together = entropy.Tables(*(tensors[name] for name in names))
    if len(together) != count * times:
        raise LicError(f"{len(together)} tables in {names[0]} instead of {count * times}")
    return [together.between(i * count, (i + 1) * count) for i in range(times)]


def channels(count: int) -> NDArray[np.uint16]:
    """Table indices of a latent with one table per channel: 0..count - 1, (1, count, 1, 1)."""
    return np.arange(count, dtype=np.uint16)[None, :, None, None]
