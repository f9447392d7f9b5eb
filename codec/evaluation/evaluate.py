"""Evaluation: images coded to real files by every codec at all its qualities, and the figures of these files.

All figures come from files on disk: the rate is the size of the file; PSNR, MS-SSIM, SSIMULACRA 2 and, where its
package is installed, CVVDP (codec/evaluation/metrics.py) are those of the 8-bit image decoded from it.

    codecs = [lic_codec(model), rival_codec("jpeg")]
    results = run(codecs, [("kodim01", Path("kodim01.png"))], Path("results"))
    print(table(results))

Files may be made by several processes at once, with one thread each (AVIF's encoder has threads of its own, as its
settings say). Times are measured afterwards, alone: the first few images are coded once more, in memory, one after
another, with all threads, after a warm-up per image size.

Every figure is written at once to rows.jsonl of the folder, under a key that is a hash of all it depends on: codec,
settings, model, pixels, metrics, versions, and those files of our source that code or measure. A later run takes
figures of the same key from there if the file is unchanged. So a run that was stopped goes on, and adding a codec costs
only that codec.

eval.py is the program around it.
"""

import concurrent.futures
import contextlib
import functools
import hashlib
import json
import multiprocessing
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from codec.container.modes import check_depth
from codec.errors import MENDABLE, LicError, explain
from codec.evaluation import metrics
from codec.evaluation.codecs import FileCodec, check_unique, make_codec
from codec.evaluation.cost import peak_memory, time_coding
from codec.evaluation.results import Result, Row, set_apart_lossless, versions
from codec.journal import Keyed
from codec.machine import device_name

JOURNAL = "rows.jsonl"  # of an output folder
FIELDS = [field.name for field in fields(Row)]  # part of the key: a journal with other figures cannot be used
TIMED = 4  # images, by hand
Source = Image.Image | Path


def run(
    codecs: Sequence[FileCodec],
    images: Sequence[tuple[str, Source]],
    folder: Path,
    wanted: Sequence[str] | None = None,
    jobs: int = 1,
) -> list[Result]:
    """Code every image with every codec at each of its qualities into files under `folder`; one Result per codec.

    Images are (name, PIL image or path) with different names; they are taken as 8-bit RGB or L, without metadata. A
    file is `folder`/files/CODEC/IMAGE_qQUALITY.SUFFIX. An image that cannot be read or coded becomes a failure in the
    results, with its reason, and does not stop the run. An image that one codec keeps without loss is left out of all
    means (Result.lossless). `wanted` are keys of metrics.METRICS, by default all that can be measured here; PSNR is
    always measured. With `jobs` above 1 so many processes make the files; each codec must then come from make_codec.
    The memory of such codecs is measured, too. Raises LicError if names repeat, or if a process dies.
    """
    for codec in codecs:
        if jobs > 1 and codec.text is None:
            raise LicError(f"{codec.name} was not made by make_codec: it cannot be made in another process")
    check_unique("codec", [codec.name for codec in codecs])
    check_unique("image", [name for name, _ in images])
    wanted = [key for key in metrics.METRICS if key in (metrics.measurable() if wanted is None else wanted)]
    journal = Keyed(folder / JOURNAL)
    environments = {learned: versions(learned) for learned in {codec.learned for codec in codecs}}
    results = [
        Result(
            codec.name, codec.description, device_name(codec.device), environments[codec.learned], [],
            dtype=codec.dtype, parameters=codec.parameters, kmac_per_pixel=codec.kmac,
        )
        for codec in codecs
    ]  # fmt: skip

    folder.mkdir(parents=True, exist_ok=True)  # even if it stays empty
    sources, described = dict(images), {}
    for name, source in images:
        try:
            image = load_image(source)
        except Exception as error:
            for result in results:
                result.failures.append(_failure(name, None, f"{type(error).__name__}: {error}"))
        else:
            sha256 = hashlib.sha256(image.tobytes()).hexdigest()
            described[name] = {"name": name, "width": image.width, "height": image.height, "sha256": sha256}

    def key(what: str, codec: FileCodec, *facts) -> str:
        """The key in the journal of a kind of figure that depends on a codec and these facts."""
        everything = [what, codec.name, codec.description, codec.suffix, device_name(codec.device)]
        everything += [environments[codec.learned], *facts]
        return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()

    tasks, files = [], {}  # files to make; (codec, image, quality) -> entry of the journal, or error
    keys = {}
    for name in described:
        for codec in codecs:
            missing = []
            for quality in codec.qualities:
                k = keys[codec.name, name, quality] = key("file", codec, described[name], quality, wanted, FIELDS)
                entry = journal.entries.get(k)
                if entry and _sha256(folder / entry["row"]["file"]) == entry["sha256"]:
                    files[codec.name, name, quality] = entry
                else:
                    missing.append(quality)
            if missing:
                tasks.append((codec, name, sources[name], missing, folder, wanted))
    with tqdm(total=len(keys), initial=len(files), unit="file", disable=None) as bar:  # None: only on a terminal
        for codec, name, outcomes in _work(tasks, jobs):
            for quality, outcome in outcomes:
                if isinstance(outcome, dict):
                    journal.add(keys[codec.name, name, quality], **outcome)
                files[codec.name, name, quality] = outcome
            bar.set_postfix_str(f"{codec.name} {name}", refresh=False)
            bar.update(len(outcomes))

    for codec, result in zip(codecs, results, strict=True):
        for name, image in described.items():
            outcomes = [(quality, files[codec.name, name, quality]) for quality in codec.qualities]
            failures = [_failure(name, quality, error) for quality, error in outcomes if isinstance(error, str)]
            result.rows += [Row(**outcome["row"]) for _, outcome in outcomes if isinstance(outcome, dict)]
            result.failures += failures
            if not failures:
                result.images.append(image)
        first = [image["name"] for image in result.images[:TIMED]]
        timed = [
            (row, key("times", codec, described[row.image], row.quality)) for row in result.rows if row.image in first
        ]
        _time(codec, timed, sources, journal)
        if first and codec.text:
            quality = codec.qualities[len(codec.qualities) // 2]
            k = key("memory", codec, described[first[0]], quality)
            if k not in journal.entries:
                with _processes(1) as pool:
                    memory = pool.submit(_memory, codec.text, codec.device, sources[first[0]], quality)
                    try:
                        journal.add(k, **memory.result())
                    except BrokenProcessPool:
                        tqdm.write(f"{codec.name}: no figure for its memory: that process was killed", file=sys.stderr)
            result.peak_memory = journal.entries.get(k)
    set_apart_lossless(results)
    return results


def _work(tasks: list[tuple], jobs: int) -> Iterator[tuple[FileCodec, str, list[tuple[int | None, Any]]]]:
    """Do tasks (codec, *arguments of _code_image), with several jobs in other processes; yields them as they finish."""
    if jobs == 1 or not tasks:
        for codec, name, *rest in tasks:
            yield codec, name, _code_image(codec, name, *rest)
        return
    with _one_thread_each(), _processes(min(jobs, len(tasks))) as pool:
        futures = {pool.submit(_code_elsewhere, task[0].text, task[0].device, *task[1:]): task for task in tasks}
        try:
            for future in concurrent.futures.as_completed(futures):
                codec, name, *_ = futures[future]
                yield codec, name, future.result()
        except BrokenProcessPool:
            raise LicError(
                "a process that made files has died, perhaps for want of memory; what is done is kept: "
                "run the same again with fewer --jobs"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _processes(count: int) -> concurrent.futures.ProcessPoolExecutor:
    """A pool of new processes; forked ones would inherit locks of threads that they do not have."""
    return concurrent.futures.ProcessPoolExecutor(count, multiprocessing.get_context("spawn"))


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    """Processes started within this context have one thread each.

    torch and numba read OMP_NUM_THREADS when they are imported, the entropy coder whenever it codes.
    """
    name, before = "OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS")
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


_make_once = functools.cache(make_codec)


def _code_elsewhere(text: str, device: str, *arguments) -> list[tuple[int | None, Any]]:
    """_code_image in another process, which makes the codec once."""
    return _code_image(_make_once(text, device), *arguments)


def _code_image(
    codec: FileCodec, name: str, source: Source, qualities: list[int | None], folder: Path, wanted: Sequence[str]
) -> list[tuple[int | None, Any]]:
    """For each quality an entry of the journal, the row and the hash of its file, or an error as text."""
    image, outcomes = load_image(source), []
    for quality in qualities:
        mark = "" if quality is None else f"_q{quality:02d}"
        file = folder / "files" / codec.name / f"{name}{mark}{codec.suffix}"
        try:
            numbers = _code(codec, image, quality, file, wanted)
        except MENDABLE as error:
            file.unlink(missing_ok=True)
            outcomes.append((quality, explain(error)))
        except Exception:  # whatever happens to one file, the others are still worth measuring
            file.unlink(missing_ok=True)
            outcomes.append((quality, traceback.format_exc()))
        else:
            row = Row(name, quality, file.relative_to(folder).as_posix(), **numbers)
            outcomes.append((quality, {"sha256": _sha256(file), "row": asdict(row)}))
    return outcomes


def _code(
    codec: FileCodec, image: Image.Image, quality: int | None, file: Path, wanted: Sequence[str]
) -> dict[str, Any]:
    """Make a file, decode it, and measure: fields of a Row."""
    file.parent.mkdir(parents=True, exist_ok=True)  # an image name may hold folders
    file.write_bytes(codec.encode(image, quality))
    decoded = codec.decode(file.read_bytes())
    if decoded.size != image.size:
        raise LicError(f"decoded to {decoded.size} instead of {image.size}")
    original, decoded = image.convert("RGB"), decoded.convert("RGB")
    size = file.stat().st_size
    numbers = {
        "bytes": size,
        "bpp": metrics.bpp(size, *image.size),
        "psnr": metrics.psnr(original, decoded),
        "block_edges": metrics.block_edge_ratio(decoded),
    }
    if "ms-ssim" in wanted:
        similarity = metrics.ms_ssim(original, decoded)
        numbers |= {"ms_ssim": similarity, "ms_ssim_db": metrics.decibel(similarity)}
    if "ssimulacra2" in wanted:
        numbers["ssimulacra2"] = metrics.ssimulacra2(original, decoded)
    if "cvvdp" in wanted:
        numbers["cvvdp"] = metrics.cvvdp(original, decoded)
    return numbers | (codec.estimate(image, quality) if codec.estimate else {})


def _time(codec: FileCodec, rows: list[tuple[Row, str]], sources: dict[str, Source], journal: Keyed) -> None:
    """Measure the times of rows, each with its key, in this process, and put them into the rows.

    Nothing else should run meanwhile.
    """
    warm, loaded = set(), ("", None)
    for row, k in tqdm(rows, desc=f"timing {codec.name}", unit="file", disable=None, leave=False):
        if k not in journal.entries:
            if loaded[0] != row.image:
                loaded = row.image, load_image(sources[row.image])
            image = loaded[1]
            if image.size not in warm:
                time_coding(codec.encode, codec.decode, image, row.quality)
                warm.add(image.size)
            journal.add(k, **time_coding(codec.encode, codec.decode, image, row.quality)._asdict())
        times = journal.entries[k]
        row.encoding_time, row.decoding_time = times["encoding"], times["decoding"]
        if codec.learned:
            row.encoding_entropy_time = times["encoding_entropy"]
            row.decoding_entropy_time = times["decoding_entropy"]


def _memory(text: str, device: str, source: Source, quality: int | None) -> dict[str, int]:
    """The peak memory of this process, and of the GPU, after one turn of a codec, in bytes."""
    codec, image = make_codec(text, device), load_image(source)
    codec.decode(codec.encode(image, quality))
    memory = {"process": peak_memory()}
    if device.startswith("cuda"):
        import torch

        memory["gpu"] = torch.cuda.max_memory_allocated()
    return memory


def load_image(source: Source) -> Image.Image:
    """An image as pixels only, 8-bit L or RGB: without alpha, and without metadata, which some codecs store.

    Raises OSError if the file is missing or no image, LicError if it has more than 8 bits a sample.
    """
    if not isinstance(source, Image.Image):
        with Image.open(source) as opened:
            return load_image(opened)
    check_depth(source)
    if source.mode.startswith(("I", "F")):
        raise LicError(f"images are evaluated at 8 bits; this one has mode {source.mode}: convert it first")
    image = source if source.mode in ("L", "RGB") else source.convert("RGB")
    return Image.fromarray(np.array(image))


def _failure(image: str, quality: int | None, error: str) -> dict[str, Any]:
    """An entry of Result.failures."""
    return {"image": image, "quality": quality, "error": error}


def _sha256(file: Path) -> str | None:
    """The SHA-256 of a file's content; None if it does not exist."""
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else None
