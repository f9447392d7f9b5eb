"""Entropy coders: integers to bytes and back, ours beside compressai's and constriction's.

    python -m benchmarks entropy [--data DIR] [--model NAME|FILE] [--rounds N] [--out DIR]

Latents are int32 arrays (C, h, w); everything from there to bytes and back to int32 arrays is timed, on one thread
unless said otherwise, and every round trip is verified. A turn codes all latents of a case (see latents.py) one after
another: repeating a single small one lets the processor learn its branches, which flatters every coder by half. The
ideal is -log2 of the float densities; what a stream has above it is the loss of tables, coder, flush and framing.

The peers, each used as its makers intend: compressai.ans as compressai's models call it, which turns tensors, indices
and tables into lists at every call, and again with all lists made beforehand; constriction's ANS coder with one
Categorical per channel or, for Gaussian latents, per scale, the symbols sorted by it.
"""

import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import entropy
from benchmarks import startup
from benchmarks.latents import KODAK, LARGE, Case, factorized_case, gaussian_case, trained_case
from benchmarks.measure import (
    Report,
    Spread,
    Turn,
    machine,
    machine_line,
    ratios,
    table,
    take_turns,
)
from codec.coding.models import ModelError
from entropy.rans import SUBSTREAM

ROUNDS = 9
KODAK_COUNT = 8  # different latents of the small size; a large one is too long to be learnt
PEER, PREPARED = "compressai.ans, as its models call it", "compressai.ans, lists made beforehand"


class Coder(NamedTuple):
    """An entropy coder that has been given a case; both functions take the number of a latent."""

    name: str
    threads: int
    encode: Callable[[int], bytes]
    decode: Callable[[int, bytes], object]  # the values, as an int32 array or tensor of their shape, or as a list


def ours(case: Case, threads: int) -> Coder:
    """entropy.encode and entropy.Decoder."""

    def encode(i: int) -> bytes:
        return entropy.encode([(case.values[i], case.index[i], case.tables)], threads=threads)

    def decode(i: int, data: bytes) -> NDArray[np.int32]:
        decoder = entropy.Decoder(data, threads)
        values = decoder.decode(case.index[i], case.tables, case.values[i].shape)
        decoder.finish()
        return values

    return Coder("lic" if threads == 1 else f"lic, {threads} threads", threads, encode, decode)


def compressai_coders(case: Case) -> list[Coder]:
    """compressai.ans, as compressai's models call it and with lists made beforehand; ImportError if it is missing."""
    import torch
    from compressai import ans
    from compressai.entropy_models import EntropyBottleneck
    from compressai.entropy_models.entropy_models import pmf_to_quantized_cdf

    supports = case.supports(occurring=False)
    cdfs = []
    for row, support in zip(case.pmf, supports, strict=True):
        inside = torch.from_numpy(row[support])
        cdfs.append(pmf_to_quantized_cdf(torch.cat((inside, (1 - inside.sum()).clamp(min=0)[None]))))
    cdf = torch.nn.utils.rnn.pad_sequence(cdfs, batch_first=True)
    sizes = torch.tensor([len(cdf) for cdf in cdfs], dtype=torch.int32)
    offsets = torch.tensor([case.first + support.start for support in supports], dtype=torch.int32)
    encoder, decoder = ans.RansEncoder(), ans.RansDecoder()
    values = [torch.from_numpy(v) for v in case.values]
    by_channel = case.index[0].size < values[0].numel()

    def index_of(i: int) -> torch.Tensor:
        if by_channel:
            return EntropyBottleneck._build_indexes((1, *values[i].shape))[0]
        return torch.from_numpy(case.index[i])

    def lists(i: int) -> tuple[list, ...]:
        return index_of(i).reshape(-1).int().tolist(), cdf.tolist(), sizes.tolist(), offsets.tolist()

    def encode(i: int) -> bytes:
        return encoder.encode_with_indexes(values[i].reshape(-1).int().tolist(), *lists(i))

    def decode(i: int, data: bytes) -> torch.Tensor:
        return torch.tensor(decoder.decode_with_indexes(data, *lists(i)), dtype=torch.int32).reshape(values[i].shape)

    def encode_prepared(i: int) -> bytes:
        return encoder.encode_with_indexes(symbols[i], *prepared[i])

    def decode_prepared(i: int, data: bytes) -> list[int]:
        return decoder.decode_with_indexes(data, *prepared[i])

    prepared = [lists(i) for i in range(len(values))]
    symbols = [v.reshape(-1).tolist() for v in values]
    return [Coder(PEER, 1, encode, decode), Coder(PREPARED, 1, encode_prepared, decode_prepared)]


def constriction_coder(case: Case) -> Coder:
    """constriction's ANS coder, a Categorical per row of the densities; ImportError if it is missing."""
    import constriction

    Categorical, AnsCoder = constriction.stream.model.Categorical, constriction.stream.stack.AnsCoder

    supports = case.supports(occurring=True)  # it has no escape
    models = [Categorical(row[support], perfect=False) for row, support in zip(case.pmf, supports, strict=True)]
    offsets = np.array([case.first + support.start for support in supports], np.int32)
    by_channel = case.index[0].size < case.values[0].size

    def encode(i: int) -> bytes:
        coder = AnsCoder()
        symbols = case.values[i] - offsets[case.index[i]]
        if by_channel:
            groups = list(zip(symbols.reshape(len(models), -1), models, strict=True))
        else:
            order, ends = sort(i)
            groups = list(zip(np.split(symbols.reshape(-1)[order], ends[:-1]), models, strict=True))
        for group, model in reversed(groups):
            coder.encode_reverse(group, model)
        return coder.get_compressed().tobytes()

    def decode(i: int, data: bytes) -> NDArray[np.int32]:
        coder = AnsCoder(np.frombuffer(data, np.uint32))
        values = np.empty(case.values[i].shape, np.int32)
        if by_channel:
            for row, model in zip(values.reshape(len(models), -1), models, strict=True):
                row[:] = coder.decode(model, row.size)
        else:
            order, ends = sort(i)
            counts = np.diff(ends, prepend=0).tolist()
            decoded = [coder.decode(model, count) for model, count in zip(models, counts, strict=True)]
            values.reshape(-1)[order] = np.concatenate(decoded)
        values += offsets[case.index[i]]
        return values

    def sort(i: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        index = case.index[i].reshape(-1)
        return np.argsort(index, kind="stable"), np.cumsum(np.bincount(index, minlength=len(models)))

    return Coder("constriction ANS", 1, encode, decode)


def coders_of(case: Case) -> tuple[list[Coder], dict[str, str]]:
    """Everyone who can take part, ours first, and why the others cannot."""
    present, absent = [ours(case, 1)], {}
    if max(values.size for values in case.values) > SUBSTREAM:
        present.append(ours(case, 2))
    peers = {"compressai.ans": compressai_coders, "constriction ANS": lambda case: [constriction_coder(case)]}
    for name, make in peers.items():
        try:
            present += make(case)
        except ImportError as error:
            absent[name] = f"cannot be imported: {error}"
    return present, absent


def turn(coder: Coder, case: Case) -> Turn:
    """Code all latents of the case; AssertionError if one does not come back as it was."""
    start = time.perf_counter()
    coded = [coder.encode(i) for i in range(len(case.values))]
    middle = time.perf_counter()
    decoded = [coder.decode(i, data) for i, data in enumerate(coded)]
    end = time.perf_counter()
    for values, expected in zip(decoded, case.values, strict=True):
        assert np.array_equal(np.asarray(values, np.int32).reshape(-1), expected.reshape(-1)), coder.name
    return Turn(middle - start, end - middle, sum(map(len, coded)))


def work(connection: Connection, make: Callable[[], Case]) -> None:
    """A process that encodes and decodes a case on one thread, each time that it is told to, until told to stop."""
    case = make()
    coder, latents = ours(case, 1), range(len(case.values))
    connection.send(0)
    while connection.recv():
        coded = [coder.encode(i) for i in latents]
        connection.send(sum(map(len, coded)))
        connection.recv()
        decoded = [coder.decode(i, data) for i, data in enumerate(coded)]
        connection.send(0)
        assert all(map(np.array_equal, decoded, case.values))


@contextmanager
def two_processes(make: Callable[[], Case]) -> Iterator[Callable[[], Turn]]:
    """A function that lets two processes code the same case at the same time; bytes are those of both."""
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(2)]
    processes = [context.Process(target=work, args=(theirs, make), daemon=True) for _, theirs in pipes]

    def together() -> tuple[float, int]:
        start = time.perf_counter()
        for mine, _ in pipes:
            mine.send(True)
        size = sum(mine.recv() for mine, _ in pipes)
        return time.perf_counter() - start, size

    def both() -> Turn:
        (encode, size), (decode, _) = together(), together()
        return Turn(encode, decode, size)

    for process, (_, theirs) in zip(processes, pipes, strict=True):
        process.start()
        theirs.close()  # so that recv raises EOFError if the process dies
    for mine, _ in pipes:
        mine.recv()
    yield both
    for mine, _ in pipes:
        mine.send(False)
    for process in processes:
        process.join()


def measure_case(case: Case, rounds: int) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """A cell for every coder that can take part, and why the others cannot."""
    present, absent = coders_of(case)
    turns = take_turns({coder.name: partial(turn, coder, case) for coder in present}, rounds)
    cells = []
    for coder in present:
        mine = turns[coder.name]
        cell = {
            "latents": case.name, "shape": case.values[0].shape, "count": len(case.values), "coder": coder.name,
            "threads": coder.threads, "bytes": mine[0].bytes / len(case.values),
            "ideal_bytes": case.ideal_bytes / len(case.values),
        }  # fmt: skip
        for name in ("encode", "decode"):
            times = [getattr(t, name) for t in mine]
            cell[f"{name}_msym_s"] = Spread.of(case.symbols / t / 1e6 for t in times)._asdict()
            if PEER in turns:
                cell[f"{name}_gain"] = ratios((getattr(t, name) for t in turns[PEER]), times)._asdict()
        cells.append(cell | {"turns": [t._asdict() for t in mine]})
    return cells, absent


def measure_gain(make: Callable[[], Case], rounds: int) -> dict[str, Any]:
    """What a second thread gains, and what a second process gains, over one thread in one process."""
    case = make()
    with two_processes(make) as both:
        contenders = {n: partial(turn, ours(case, n), case) for n in (1, 2)} | {"processes": both}
        turns = take_turns(contenders, rounds)
    cell = {"latents": case.name, "shape": case.values[0].shape}
    for name in ("encode", "decode"):
        one, threads, processes = ([getattr(t, name) for t in turns[who]] for who in (1, 2, "processes"))
        cell[f"{name}_threads"] = ratios(one, threads)._asdict()
        cell[f"{name}_processes"] = ratios((2 * t for t in one), processes)._asdict()
        cell[f"{name}_quotient"] = ratios(processes, (2 * t for t in threads))._asdict()
    return cell


def shown(spread: dict[str, float], spec: str) -> str:
    """A spread that has become a dict."""
    return format(Spread(**spread), spec)


def coder_row(cell: dict[str, Any]) -> list[str]:
    """A cell as a row of the first table."""
    over = cell["bytes"] - cell["ideal_bytes"]
    gains = [shown(cell[key], ".1f") if key in cell else "-" for key in ("encode_gain", "decode_gain")]
    return [
        f"{cell['latents']} {'x'.join(map(str, cell['shape']))}", cell["coder"],
        shown(cell["encode_msym_s"], ".1f"), shown(cell["decode_msym_s"], ".1f"), *gains,
        f"{cell['bytes']:.0f}", f"{100 * over / cell['ideal_bytes']:.3f} %", f"{over:.1f}",
    ]  # fmt: skip


def gain_row(cell: dict[str, Any]) -> list[str]:
    """A cell as a row of the second table."""
    keys = [f"{name}_{what}" for name in ("encode", "decode") for what in ("threads", "processes", "quotient")]
    return [f"{cell['latents']} {'x'.join(map(str, cell['shape']))}", *(shown(cell[key], ".2f") for key in keys)]


def run(data: Path | None, model: str, rounds: int) -> Report:
    """Measure everything; OSError if there are no photographs."""
    about, cells, absent = machine(), [], {}
    makers = [factorized_case, gaussian_case, partial(trained_case, name=model, folder=data)]
    for size, count in ((KODAK, KODAK_COUNT), (LARGE, 1)):
        for make in makers:
            try:
                case = make(size, count)
            except ModelError as error:
                absent["trained latents"] = str(error)
                continue
            measured, missing = measure_case(case, rounds)
            cells += measured
            absent |= missing
    gains = [measure_gain(partial(make, LARGE, 1), rounds) for make in (factorized_case, gaussian_case)]
    cold = startup.coders(absent)

    header = ["latents", "coder", "encode Msym/s", "decode Msym/s", "encode x peer", "decode x peer"]
    gain_header = [f"{name}: {what}" for name in ("encode", "decode") for what in ("threads", "processes", "quotient")]
    lines = [
        "## Entropy coders, int32 array -> bytes -> int32 array",
        machine_line(about),
        table([*header, "bytes", "over ideal", "bytes over"], map(coder_row, cells)),
        f"Median (quartiles) of {rounds} rounds, all coders of a case interleaved in each; one thread unless named "
        f'otherwise; {KODAK_COUNT} different latents of the small size in turn; round trips verified. "x peer" is the '
        f"speed over that of {PEER}, round by round.",
        *(f"{name}: {why}" for name, why in absent.items()),
        "## Gain of two threads beside that of two independent processes",
        table(["latents", *gain_header], map(gain_row, gains)),
        "## Cold start: a fresh process up to the first decoded symbols",
        startup.start_table(cold),
    ]
    document = {"machine": about, "rounds": rounds, "cells": cells, "absent": absent, "gains": gains}
    return Report("entropy", "\n\n".join(lines), document | {"cold_start_s": cold})
