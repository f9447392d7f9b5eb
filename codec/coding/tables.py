"""Tables of a model as named tensors, which is how they are stored; and what takes one table per channel."""

import numpy as np
import torch
from torch import Tensor

import entropy


def pack(tables: list[entropy.Tables], prefix: str = "tables.") -> dict[str, Tensor]:
    """Tables one after another, as named tensors."""
    whole = entropy.Tables.concatenate(tables)
    return {prefix + part: torch.from_numpy(getattr(whole, part).copy()) for part in ("freqs", "sizes", "offsets")}


def unpack(tensors: dict[str, np.ndarray], count: int, prefix: str = "tables.") -> entropy.Tables:
    """The inverse of `pack`, still in one; ValueError unless there are `count` tables that keep the rules."""
    names = [prefix + part for part in ("freqs", "sizes", "offsets")]
    if missing := [name for name in names if name not in tensors]:
        raise ValueError(f"no {', '.join(missing)}")
    tables = entropy.Tables(*(tensors[name] for name in names))
    if len(tables) != count:
        raise ValueError(f"{len(tables)} tables in {names[0]} instead of {count}")
    return tables


def channels(count: int) -> np.ndarray:
    """The table of each symbol of a latent with one table per channel: (1, count, 1, 1) uint16."""
    return np.arange(count, dtype=np.uint16)[None, :, None, None]


def decode_all(
    decoder: entropy.Decoder, index: np.ndarray, tables: entropy.Tables, shape: tuple[int, ...]
) -> np.ndarray:
    """The symbols of a stream that holds nothing else: int32 of that shape."""
    symbols = decoder.decode(index, tables, shape)
    decoder.finish()
    return symbols
