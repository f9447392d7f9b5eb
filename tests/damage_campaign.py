"""The damage campaign: intact streams are damaged in every way, and decoded where a crash or a hang can be seen.

    python tests/damage_campaign.py [--streams 100000] [--seed 0]

Half of the damage is done to .lic files as they are, and their checksums must find it. A quarter is done to files whose
checksums are then stamped anew, a quarter to bare streams; these may decode to other symbols than were encoded, since
only a checksum sees all damage. None may crash, hang, raise another error than the documented ones, or allocate more
than a few bytes for each symbol that was asked for and each byte that was given.

Trials run in forked children under limits of time and address space. One that kills its child is counted, and the next
child goes on behind it. Needs Linux. Exit code 1 if a law is broken.
"""

import argparse
import mmap
import os
import resource
import signal
import sys
import time
import traceback
import tracemalloc
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from codec import bitstream
from entropy import Decoder, StreamError, Tables, encode, rans

AS_IT_IS, STAMPED, BARE = "file as it is", "file, stamped anew", "bare stream"
WAYS = (AS_IT_IS, STAMPED, AS_IT_IS, BARE)  # in turn
KINDS = ("flip", "burst", "truncate", "cut out", "extend", "random", "swap", "forge")
NOT_DONE, REFUSED, IDENTICAL, DIFFERENT, WRONG_ERROR, MEMORY, CRASH, HANG = range(8)
OUTCOMES = (
    "not done", "refused", "decoded identically", "decoded differently", "wrong error", "memory", "crash", "hang",
)  # fmt: skip

BATCH = 2000  # trials per child
TIME_LIMIT = 5.0  # seconds per trial; most take half a millisecond
ADDRESS_SPACE = 1 << 28  # bytes that a child may map beyond what it inherits
MAX_PIXELS = 1 << 20  # of a file whose size was forged


@dataclass(frozen=True)
class Sample:
    """An intact stream and a file that contains it; the steps are ranges of channels, table = channel."""

    values: NDArray[np.int32]  # (C, h, w)
    index: NDArray[np.uint8]  # (C, 1, 1)
    tables: Tables
    steps: list[tuple[int, int]]
    substream: int  # symbols; with the coder's own number all these streams would have one substream
    stream: bytes
    file: bytes


def make_samples(rng: Generator) -> list[Sample]:
    """Streams of 0.1 to 15 kB with one step and two, 1 lane and 4, one substream and many, escapes and none."""
    shapes = [(10, 8, 8), (24, 12, 16), (64, 16, 20), (160, 12, 20)]
    return [
        make_sample(rng, shape, escapes, substream, steps)
        for shape in shapes for escapes in (0, 0.03) for substream, steps in ((1 << 20, 1), (500, 1), (1 << 20, 2))
    ]  # fmt: skip


def make_sample(rng: Generator, shape: tuple[int, int, int], escapes: float, substream: int, steps: int) -> Sample:
    """Laplace-distributed values, a share of them replaced by any int32."""
    count, height, width = shape
    scales = np.exp(rng.uniform(-2, 1, (count, 1, 1)))
    values = np.rint(rng.laplace(0, scales, shape)).astype(np.int32)
    thrown = rng.random(shape) < escapes
    values[thrown] = rng.integers(-(2**31), 2**31, thrown.sum()) >> rng.integers(32, size=thrown.sum())
    pmfs = np.exp(-np.abs(np.arange(-30, 31)) / scales[:, 0])
    tables = Tables.from_pmfs(pmfs / pmfs.sum(axis=1, keepdims=True), [-30] * count)
    ranges = list(pairwise(np.linspace(0, count, steps + 1, dtype=int).tolist()))
    index = np.arange(count, dtype=np.uint8)[:, None, None]
    rans.SUBSTREAM = substream
    stream = encode([(values[i:j], index[i:j], tables) for i, j in ranges])
    ancillary = [bitstream.Section(tag, rng.bytes(20)) for tag in (200, 201)]
    sections = [ancillary[0], bitstream.Section(bitstream.LATENT, stream), ancillary[1]]
    file = bitstream.write(bitstream.Header("0123456789abcdef", 50, "RGB", 16 * width - 5, 16 * height), sections)
    return Sample(values, index, tables, ranges, substream, stream, file)


@contextmanager
def at_most(size: int) -> Iterator[None]:
    """MemoryError, whatever else is raised, if more than `size` bytes are allocated at one time."""
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    try:
        yield
    finally:
        peak = tracemalloc.get_traced_memory()[1] - before
        if peak > size:
            raise MemoryError(f"{peak} bytes were allocated, {size} are allowed")


def decode_stream(data: bytes, sample: Sample, shape: tuple[int, int]) -> list[NDArray[np.int32]]:
    """The symbols of each step, (C, *shape) in all; StreamError, and MemoryError if they take too much of it."""
    rans.SUBSTREAM = sample.substream
    symbols = len(sample.values) * shape[0] * shape[1]
    with at_most(8 * symbols + 16 * len(data) + (1 << 16) + 1000 * (symbols // sample.substream)):
        decoder = Decoder(data, threads=2)
        values = [decoder.decode(sample.index[i:j], sample.tables, (j - i, *shape)) for i, j in sample.steps]
        decoder.finish()
    return values


def decode_file(data: bytes, sample: Sample) -> list[NDArray[np.int32]]:
    """As `decode_stream`, for the shape that the file says; FormatError besides."""
    with at_most(16 * len(data) + (1 << 16)):
        header, sections = bitstream.read(data, MAX_PIXELS)
        stream = bitstream.find(sections, bitstream.LATENT)
    return decode_stream(stream, sample, (-(-header.height // 16), -(-header.width // 16)))


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


def swap_substreams(rng: Generator, data: bytes) -> bytes:
    """Two substreams and their lengths in each other's place; pieces of any length where there is only one."""
    numbers = numbers_of_stream(data, 0)
    if len(numbers) == 2:  # head, side section
        return swap(rng, data, list(pairwise(sorted(rng.integers(len(data), size=4).tolist()))))
    begins = [number.begin for number in numbers[len(numbers) // 2 :]]
    parts = [data[i:j] for i, j in pairwise([*begins, len(data)])]
    first, second = rng.choice(len(parts), 2, replace=False)
    parts[first], parts[second] = parts[second], parts[first]
    return data[: numbers[0].end] + b"".join(rans.varint(len(part)) for part in parts[:-1]) + b"".join(parts)


def damage(rng: Generator, kind: str, sample: Sample, is_file: bool) -> bytes:
    """The sample's file or bare stream, damaged once."""
    data = sample.file if is_file else sample.stream
    place, length = int(rng.integers(len(data))), int(rng.integers(1, 65))
    match kind:
        case "flip":
            broken = np.frombuffer(data, np.uint8).copy()
            broken[rng.integers(len(data), size=rng.integers(1, 9))] ^= np.uint8(1 << rng.integers(8))
            return broken.tobytes()
        case "burst":
            return data[:place] + rng.bytes(min(length, len(data) - place)) + data[place + length :]
        case "truncate":
            return data[:place]
        case "cut out":
            return data[:place] + data[place + length :]
        case "extend":
            return data + (rng.bytes(length) if rng.random() < 0.7 else data[place:])
        case "random":
            place = rng.choice([0, 18, place])  # 18: where a file's sections begin
            return data[:place] + rng.bytes(int(rng.integers(len(data) + 1)))
    if is_file:
        numbers, sections = sections_of_file(data)
        if kind == "forge":
            streams = [payload for begin, payload, _ in sections if data[begin] in (bitstream.LATENT, bitstream.HYPER)]
            return forge(rng, data, sum((numbers_of_stream(data, payload) for payload in streams), numbers))
        whole = rng.random() < 0.5  # sections, or only their lengths and payloads
        return swap(rng, data, [(i, k) if whole else (i + 1, k - 4) for i, _, k in sections])
    if kind == "forge":
        return forge(rng, data, numbers_of_stream(data, 0))
    return swap_substreams(rng, data)


def trial(samples: list[Sample], seed: int, number: int) -> int:
    """Damage a sample as the number says, and tell the outcome."""
    rng = np.random.default_rng([seed, number])
    way, kind = way_and_kind(number)
    sample = samples[rng.integers(len(samples))]
    intact = broken = sample.stream if way == BARE else sample.file
    while broken == intact:
        broken = damage(rng, kind, sample, way != BARE)
        broken = stamp(broken) if way == STAMPED else broken
    try:
        decoded = decode_stream(broken, sample, sample.values.shape[1:]) if way == BARE else decode_file(broken, sample)
    except (StreamError, bitstream.FormatError):
        return REFUSED
    same = all(np.array_equal(d, sample.values[i:j]) for d, (i, j) in zip(decoded, sample.steps, strict=True))
    return IDENTICAL if same else DIFFERENT


def way_and_kind(number: int) -> tuple[str, str]:
    """What trial `number` does."""
    return WAYS[number % len(WAYS)], KINDS[number // len(WAYS) % len(KINDS)]


def run(count: int, trial: Callable[[int], int], time_limit: float = TIME_LIMIT) -> bytes:
    """The outcomes of trials 0..count-1, each in a child process that may die of it."""
    board = mmap.mmap(-1, count)  # shared with the children
    begin = 0
    while begin < count:
        end = min(begin + BATCH, count)
        child = os.fork()
        if not child:
            work(board, begin, end, trial, time_limit)
        _, status = os.waitpid(child, 0)
        fatal = board.find(bytes([NOT_DONE]), begin, end)
        if fatal >= 0:
            board[fatal] = HANG if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM else CRASH
        begin = end if fatal < 0 else fatal + 1
    return bytes(board)


def work(board: mmap.mmap, begin: int, end: int, trial: Callable[[int], int], time_limit: float) -> NoReturn:
    """A child's life: trials begin..end-1 under limits, outcomes to the board."""
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # no handler: compiled code would not let it run
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (mapped + ADDRESS_SPACE, hard))
        tracemalloc.start()
        for number in range(begin, end):
            signal.setitimer(signal.ITIMER_REAL, time_limit)
            try:
                board[number] = trial(number)
            except Exception as error:
                traceback.print_exc()
                board[number] = MEMORY if isinstance(error, MemoryError) else WRONG_ERROR
    finally:
        os._exit(0)


def campaign(count: int, seed: int = 0) -> Counter[tuple[str, str, int]]:
    """How many trials of each way and kind had each outcome."""
    made = make_samples(np.random.default_rng(seed))
    for sample in made:  # intact ones are what they should be; this compiles the kernels, too
        assert np.array_equal(np.concatenate(decode_file(sample.file, sample)), sample.values)
    outcomes = run(count, partial(trial, made, seed))
    return Counter((*way_and_kind(number), outcome) for number, outcome in enumerate(outcomes))


def broken_laws(counts: Counter[tuple[str, str, int]]) -> list[str]:
    """What may not happen and did."""
    return [
        f"{count} x {OUTCOMES[outcome]}: {kind}, {way}"
        for (way, kind, outcome), count in counts.items()
        if outcome > DIFFERENT or way == AS_IT_IS and outcome != REFUSED
    ]


def table(counts: Counter[tuple[str, str, int]]) -> str:
    """Markdown."""
    shown = range(REFUSED, len(OUTCOMES))
    lines = [["", "damage", *(OUTCOMES[outcome] for outcome in shown)], ["---"] * (2 + len(shown))]
    for way in (AS_IT_IS, STAMPED, BARE):
        for kind in (*KINDS, "all"):
            kinds = KINDS if kind == "all" else (kind,)
            lines.append([way, kind, *(str(sum(counts[way, k, outcome] for k in kinds)) for outcome in shown)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(argv: list[str] | None = None) -> int:
    """Run the campaign, print its table, return 1 if a law is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=100_000, help="how many (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of everything (default: %(default)s)")
    options = parser.parse_args(argv)
    start = time.perf_counter()
    counts = campaign(options.streams, options.seed)
    seconds, laws = time.perf_counter() - start, broken_laws(counts)
    print(f"{table(counts)}\n\n{options.streams} streams in {seconds:.0f} s;", "; ".join(laws) or "no law broken")
    return int(bool(laws))


if __name__ == "__main__":
    sys.exit(main())
