"""The integer tables of a model: made once, at export, stored with the weights, never rebuilt.

    tables = CodecTables.of(network)              for all qualities
    tensors = tables.to_tensors()                 NumPy arrays by name, as a model file holds them
    tables = CodecTables.from_tensors(tensors, network)

Without a hyperprior there is one table for each channel of y, at each quality. With one there is a table for each scale
of y, the same at all qualities, one for each channel of z at each quality, and the constants of the exact path of h_s;
and the integers of the context, if there is one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

import entropy
from codec.config import ModelConfig
from codec.errors import LicError

if TYPE_CHECKING:
    from codec.network.model import Network

PARTS = ("freqs", "sizes", "offsets")  # of entropy.Tables
CONTEXT = ("order", "parents", "weights", "constants")  # of entropy.Context


@dataclass(frozen=True)
class CodecTables:
    """What turns symbols into bytes, by quality 0..100, or None for a fixed lambda."""

    y: dict[int | None, entropy.Tables]
    z: dict[int | None, entropy.Tables] | None = None
    constants: dict[int | None, dict[str, NDArray[np.int32]]] | None = None  # (C,) each, by name
    context: entropy.Context | None = None  # of y, of a model that has one

    @classmethod
    def of(cls, network: "Network", qualities: Sequence[int | None] | None = None) -> "CodecTables":
        """Those of a network at some qualities, by default at all. LicError if its exact path is not exact."""
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
        """The arrays that a model file holds."""
        if self.z is None:
            return pack(list(self.y.values()), "tables.")
        first = next(iter(self.constants.values()))
        stacked = {f"tables.{name}": np.stack([c[name] for c in self.constants.values()]) for name in first}
        context = {f"tables.context_{name}": getattr(self.context, name) for name in CONTEXT} if self.context else {}
        y = pack([next(iter(self.y.values()))], "tables.y_")
        return pack(list(self.z.values()), "tables.") | y | stacked | context

    @classmethod
    def from_tensors(cls, tensors: dict[str, NDArray], network: "Network") -> "CodecTables":
        """What `to_tensors` gave, of a network of this shape; LicError if they do not fit it or break a rule."""
        config, qualities = network.config, network.config.qualities
        if config.prior == "factorized":
            return cls(dict(zip(qualities, unpack(tensors, "tables.", config.M, len(qualities)), strict=True)))
        z = dict(zip(qualities, unpack(tensors, "tables.", config.hyper_M, len(qualities)), strict=True))
        (y,) = unpack(tensors, "tables.y_", network.conditional.levels, 1)
        sizes = {name: len(own) for name, own in network.constants_of(network.level_of(qualities[0])).items()}
        for name, size in sizes.items():
            stored, shape = tensors.get(f"tables.{name}"), (len(qualities), size)
            if stored is None or stored.dtype != np.int32 or stored.shape != shape:
                raise LicError(f"tables.{name} is not int32 {shape}")
        constants = {q: {name: tensors[f"tables.{name}"][i] for name in sizes} for i, q in enumerate(qualities)}
        check_bounds(network, constants)
        context = context_of(tensors, config) if config.context else None
        return cls(dict.fromkeys(qualities, y), z, constants, context)


def check_bounds(network: "Network", constants: dict[int | None, dict[str, NDArray[np.int32]]]) -> None:
    """LicError unless the exact path of a network is exact with these constants, whatever the symbols."""
    try:
        network.h_s.check_bounds(network.constants_from(list(constants.values())))
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
    """Tables one after another, as named arrays."""
    together = entropy.Tables.concatenate(tables)
    return {prefix + part: getattr(together, part).copy() for part in PARTS}


def unpack(tensors: dict[str, NDArray], prefix: str, count: int, times: int) -> list[entropy.Tables]:
    """The inverse of `pack`: `times` Tables of `count` each; LicError unless there are so many that are valid."""
    names = [prefix + part for part in PARTS]
    if missing := [name for name in names if name not in tensors]:
        raise LicError(f"no {', '.join(missing)}")
    together = entropy.Tables(*(tensors[name] for name in names))
    if len(together) != count * times:
        raise LicError(f"{len(together)} tables in {names[0]} instead of {count * times}")
    return [together.rows(i * count, (i + 1) * count) for i in range(times)]


def channels(count: int) -> NDArray[np.uint16]:
    """The table of each symbol of a latent with one table per channel: (1, count, 1, 1)."""
    return np.arange(count, dtype=np.uint16)[None, :, None, None]
