"""How bytes are damaged: streams, .lic files and model files, by chance, the same for the same seed.

    damage(rng, kind, data)                  one of BASIC, done to any bytes
    damage_stream(rng, kind, data)           one of KINDS, done to a stream of entropy/rans.py
    damage_file(rng, kind, data, others)     one of FILE_KINDS, done to a .lic file
    stamp(data)                              the file with right checksums
    damage_model(rng, path)                  an exported model of other content, its id right

Nothing here looks at what the damage leads to; tests/tools/damage_targets.py does.
"""

import functools
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.random import Generator

from codec.coding import models as checkpoint
from codec.container import bitstream, metadata
from entropy import rans

BASIC = ("flip", "burst", "truncate", "cut out", "extend", "random")
KINDS = (*BASIC, "swap", "forge")
FILE_KINDS = (*KINDS, "splice", "payload", "bomb")


@dataclass(frozen=True)
class Number:
    """A length or count at bytes begin..end-1 of what is to be damaged."""

    begin: int
    end: int
    value: int
    write: Callable[[int], bytes]


def numbers_of_stream(data: bytes, first: int) -> list[Number]:
    """Those of the stream that begins at byte `first`: its head, lengths of substreams and of side sections."""
    numbers = []

    def read(begin: int) -> int:
        value, after = rans.read_varint(data, begin)
        numbers.append(Number(begin, after, value, rans.varint))
        return after

    begin = read(first)
    for _ in range(numbers[0].value // rans.MAX_LANES - 1):
        begin = read(begin)
    for length in [number.value for number in numbers[1:]]:
        read(begin)
        begin += length
    read(begin)
    return numbers


def sections_of_file(data: bytes) -> tuple[list[Number], list[tuple[int, int, int]]]:
    """Numbers of the file itself, and begin, begin of payload, and end of each section, up to where it is truncated."""
    reader, numbers, sections = bitstream._Reader(data), [], []

    def read() -> int:
        begin, value = reader.position, reader.varint("")
        numbers.append(Number(begin, reader.position, value, bitstream._varint))
        return value

    try:
        count = reader.take(16, "")[15]
        numbers.append(Number(15, 16, count, lambda value: bytes([value % 256])))
        read(), read()
        for _ in range(count):
            begin = reader.position
            reader.take(1, "")
            length, payload = read(), reader.position
            reader.take(length + 4, "")
            sections.append((begin, payload, reader.position))
    except bitstream.FormatError:
        pass
    return numbers, sections


def stamp(data: bytes) -> bytes:
    """The file with right checksums, up to where it is truncated."""
    _, sections = sections_of_file(data)
    stamped, checksum = bytearray(data), zlib.crc32(data[: sections[0][0]] if sections else b"")
    for begin, _, end in sections:
        checksum = zlib.crc32(data[begin : end - 4], checksum)
        stamped[end - 4 : end] = checksum.to_bytes(4, "little")
    return bytes(stamped)


def damage(rng: Generator, kind: str, data: bytes) -> bytes:
    """Any bytes, damaged once in one of the BASIC ways."""
    place, length = int(rng.integers(len(data) + 1)), int(rng.integers(1, 65))
    match kind:
        case "flip":
            broken = np.frombuffer(data, np.uint8).copy()
            if broken.size:
                broken[rng.integers(broken.size, size=rng.integers(1, 9))] ^= np.uint8(1 << rng.integers(8))
            return broken.tobytes()
        case "burst":
            return data[:place] + rng.bytes(min(length, len(data) - place)) + data[place + length :]
        case "truncate":
            return data[:place]
        case "cut out":
            return data[:place] + data[place + length :]
        case "extend":
            return data + (rng.bytes(length) if rng.random() < 0.7 else data[place:])
    assert kind == "random"
    place = rng.choice([0, 18, place])  # 18: where a file's sections begin
    return data[:place] + rng.bytes(int(rng.integers(len(data) + 1)))


def forge(rng: Generator, data: bytes, numbers: list[Number]) -> bytes:
    """One length or count replaced by another number."""
    number = numbers[rng.integers(len(numbers))]
    near = [number.value + int(step) for step in (-64, -1, 1, 64) if number.value + step >= 0]
    far = [0, 1, 2 * number.value, *(2 ** int(rng.integers(1, 65)) - int(rng.integers(2)) for _ in range(4))]
    options = near if rng.random() < 0.5 else far
    return data[: number.begin] + number.write(options[rng.integers(len(options))]) + data[number.end :]


def swap(rng: Generator, data: bytes, blocks: list[tuple[int, int]]) -> bytes:
    """Two of the blocks (begin, end), which are in order, in each other's place."""
    first, second = sorted(rng.choice(len(blocks), 2, replace=False).tolist())
    (a, b), (c, d) = blocks[first], blocks[second]
    return data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]


def pieces(rng: Generator, data: bytes) -> list[tuple[int, int]]:
    """Three pieces of any length, one after another."""
    return list(pairwise(sorted(rng.integers(len(data), size=4).tolist())))


# ---- streams ----


def damage_stream(rng: Generator, kind: str, data: bytes) -> bytes:
    """A bare stream, damaged once in one of the ways KINDS."""
    if kind == "forge":
        return forge(rng, data, numbers_of_stream(data, 0))
    return swap_substreams(rng, data) if kind == "swap" else damage(rng, kind, data)


def swap_substreams(rng: Generator, data: bytes) -> bytes:
    """Two substreams and their lengths in each other's place; pieces of any length where there is only one."""
    numbers = numbers_of_stream(data, 0)
    if len(numbers) == 2:  # head, side section
        return swap(rng, data, pieces(rng, data))
    begins = [number.begin for number in numbers[len(numbers) // 2 :]]
    parts = [data[i:j] for i, j in pairwise([*begins, len(data)])]
    first, second = rng.choice(len(parts), 2, replace=False)
    parts[first], parts[second] = parts[second], parts[first]
    return data[: numbers[0].end] + b"".join(rans.varint(len(part)) for part in parts[:-1]) + b"".join(parts)


# ---- files ----


@dataclass(frozen=True)
class Part:
    """A section as it is in a file."""

    tag: int
    payload: bytes
    checksum: bytes


def split(data: bytes) -> tuple[bytes, list[Part]]:
    """The header of an intact file, and its sections."""
    _, cuts = sections_of_file(data)
    return data[: cuts[0][0]], [Part(data[i], data[j : k - 4], data[k - 4 : k]) for i, j, k in cuts]


def join(header: bytes, parts: list[Part]) -> bytes:
    """The inverse of `split`, whatever the number of sections."""
    bodies = (bytes([p.tag]) + bitstream._varint(len(p.payload)) + p.payload + p.checksum for p in parts)
    return header[:15] + bytes([len(parts)]) + header[16:] + b"".join(bodies)


def damage_file(rng: Generator, kind: str, data: bytes, others: list[bytes]) -> bytes:
    """A .lic file, damaged once in one of the ways FILE_KINDS; `others` are what sections are taken from."""
    if kind in BASIC:
        return damage(rng, kind, data)
    numbers, cuts = sections_of_file(data)
    match kind:
        case "forge":
            streams = [place for begin, place, _ in cuts if data[begin] in (bitstream.LATENT, bitstream.HYPER)]
            return forge(rng, data, sum((numbers_of_stream(data, place) for place in streams), numbers))
        case "swap":
            whole = rng.random() < 0.5  # sections, or only their lengths and payloads
            blocks = [(i, k) if whole else (i + 1, k - 4) for i, _, k in cuts]
            return swap(rng, data, blocks if len(blocks) > 1 else pieces(rng, data))
        case "splice":
            header, parts = split(data)
            _, given = split(others[rng.integers(len(others))])
            parts[rng.integers(len(parts))] = given[rng.integers(len(given))]
            return join(header, parts)
        case "payload":
            header, parts = split(data)
            i = rng.integers(len(parts))
            parts[i] = Part(parts[i].tag, damage_payload(rng, parts[i]), parts[i].checksum)
            return join(header, parts)
    assert kind == "bomb"
    header, parts = split(data)
    tag = int(rng.choice(list(bitstream.METADATA)))
    more = int(rng.choice([0, 1, metadata.LARGEST, 40 * metadata.LARGEST]))
    return join(header, [*(p for p in parts if p.tag != tag), Part(tag, bomb(metadata.LARGEST + more), bytes(4))])


@functools.cache
def bomb(size: int) -> bytes:
    """A payload of metadata that inflates to so many bytes."""
    return b"\1" + zlib.compress(bytes(size), 9)


def damage_payload(rng: Generator, part: Part) -> bytes:
    """The payload of a section, damaged once: at times what is inside of its zlib stream, or the size of its WebP."""
    payload, kind = part.payload, BASIC[rng.integers(len(BASIC))]
    if part.tag in bitstream.METADATA and payload[:1] == b"\1" and rng.random() < 0.5:
        return b"\1" + zlib.compress(damage(rng, kind, zlib.decompress(payload[1:])))
    if part.tag in (bitstream.LOSSLESS, bitstream.ALPHA) and rng.random() < 0.3:
        return payload[:21] + rng.bytes(4) + payload[25:]  # where WebP has width and height
    return damage(rng, kind, payload)


# ---- models ----

FORGED: tuple[Any, ...] = (
    None, True, 0, -1, 1, 7, 10**5, 10**9, 2**70, 0.5, 1e308, float("nan"), float("inf"), "", "fast", "factorized",
    "scale-hyperprior", "gaussian", [], [0], [1, 1], [10**7, 1], [1e-9, 1e9], [0.013, 0.013], [1, 2, 3], {},
)  # fmt: skip
DTYPES = (np.float64, np.float32, np.float16, np.int64, np.int32, np.uint8, np.uint16, np.bool_)


def damage_model(rng: Generator, path: Path) -> bytes:
    """The bytes of an exported model with another configuration or other tensors, its id made to fit. Graphs stay: what
    is decoded in PyTorch does not read them.
    """
    about, tensors = checkpoint.about(path), safetensors.numpy.load_file(path)
    if rng.random() < 0.4:
        about["config"] = forge_config(rng, about["config"])
    else:
        tables = [name for name in tensors if name.startswith("tables.")]
        names = tables if rng.random() < 0.5 else [name for name in tensors if not name.startswith("graph.")]
        forge_tensor(rng, tensors, names[rng.integers(len(names))])
    return safetensors.numpy.save(tensors, about | {"id": checkpoint._identify(about["config"], tensors)})


def forge_config(rng: Generator, text: str) -> str:
    """One value replaced, left out or added, or something that is no configuration at all."""
    config = json.loads(text)
    key = list(config)[rng.integers(len(config))]
    match rng.integers(10):
        case 0:
            del config[key]
        case 1:
            config["depth"] = 1
        case 2:
            return ("", "{", "[]", "3", "null", '{"N": 1e999}', "[" * 100_000)[rng.integers(7)]
        case _:
            config[key] = FORGED[rng.integers(len(FORGED))]
    return json.dumps(config)


def forge_tensor(rng: Generator, tensors: dict[str, np.ndarray], name: str) -> None:
    """One tensor left out, of another type or shape, or with a value that is none."""
    tensor = tensors[name].copy()
    match rng.integers(6):
        case 0:
            del tensors[name]
            return
        case 1:
            with np.errstate(all="ignore"):
                tensor = tensor.astype(DTYPES[rng.integers(len(DTYPES))])
        case 2:
            tensor = tensor.reshape(-1) if tensor.ndim > 1 else tensor[None]
        case 3:
            tensor = tensor[: rng.integers(len(tensor) + 1)]
        case 4:
            limits = np.finfo(tensor.dtype) if tensor.dtype.kind == "f" else np.iinfo(tensor.dtype)
            values = [limits.min, limits.max, 0, 1] + [np.nan, np.inf] * (tensor.dtype.kind == "f")
            tensor.flat[rng.integers(tensor.size)] = values[rng.integers(len(values))]
        case 5:
            tensors[f"tables.more.{name}" if rng.random() < 0.5 else f"more.{name}"] = tensor
            return
    tensors[name] = tensor
