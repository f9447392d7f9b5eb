"""The same work for many files: in this process with all threads, or in several with one thread each
(codec/workers.py). What fails is told in one line and does not stop the others.
"""

import contextlib
import sys
from typing import NamedTuple, Protocol

from codec.files import Failure, Job, rank_and_world
from codec.signals import heeded

DONE, KEPT, FAILED = "done", "kept", "failed"


class Hopeless(Failure):
    """What will go wrong with every file."""


class Work(Protocol):
    """What is done with a file. It goes to worker processes as it was made."""

    announce: bool
    """Whether to say what concerns all workers."""

    def __call__(self, job: Job) -> str | None:
        """Lines for the user, the last one about the result; None if the target was complete before."""


class Result(NamedTuple):
    """What became of a file."""

    outcome: str  # DONE, KEPT as it was, or FAILED
    text: str


def say(message: str) -> None:
    print(message, file=sys.stderr)


def complaint(source: str, text: str) -> str:
    """A line about a file, which is named once."""
    return f"lic: {source}: {text.removeprefix(f'{source}: ')}"


def explain(error: Exception) -> str:
    """One line for an exception; one that no check of ours raised is called by its class."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    text = " ".join(str(error).split())
    return text if isinstance(error, (Failure, OSError, ValueError)) else f"{type(error).__name__}: {text}"


def run(jobs: list[Job], work: Work, workers: int, debug: bool) -> int:
    """Do the work for each job; a failed one is told and does not stop the others. Returns the exit code.

    Hopeless stops everything; in a single process with `debug` so does any exception.
    """
    from tqdm import tqdm

    rank, world = rank_and_world()
    if world > 1:
        say(f"lic: process {rank} of {world}: {len(jobs)} files are its share")
    count = {DONE: 0, KEPT: 0, FAILED: 0}
    many = len(jobs) > 1
    if min(workers, len(jobs)) > 1:
        if any("-" in job for job in jobs):
            raise Failure("stdin and stdout cannot be shared by several processes: leave --jobs out, or - ")
        from codec.workers import work_in_processes  # takes a while to import

        results = work_in_processes(jobs, work, min(workers, len(jobs)), debug)
    else:
        results = ((job, attempt(work, job, debug)) for job in jobs)
    bar = tqdm(total=len(jobs), unit="file", disable=not many or rank > 0 or not sys.stderr.isatty())
    with bar, heeded(_stop, "SIGTERM", "SIGHUP"), contextlib.closing(results):
        for job, (outcome, text) in results:
            count[outcome] += 1
            if outcome == FAILED:
                tqdm.write(complaint(job.source, text), file=sys.stderr)
            elif outcome == DONE:
                tqdm.write(text, file=sys.stderr)
            bar.update()
    if many:
        kept = f", {count[KEPT]} were complete before" if count[KEPT] else ""
        failed = f", {count[FAILED]} failed" if count[FAILED] else ""
        say(f"{count[DONE]} of {len(jobs)} files done{kept}{failed}")
    return 1 if count[FAILED] else 0


def _stop(*_) -> None:
    """SIGTERM, and the SIGHUP of a terminal that is closed, are like Ctrl-C: they go through every `finally`."""
    raise KeyboardInterrupt


def attempt(work: Work, job: Job, debug: bool) -> Result:
    """Do the work for one job; with `debug` its exception is raised instead of told, Hopeless always."""
    try:
        text = work(job)
    except Hopeless:
        raise
    except Exception as error:
        if debug:
            raise
        return Result(FAILED, explain(error))
    return Result(KEPT, "") if text is None else Result(DONE, text)
