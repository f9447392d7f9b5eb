"""The same work for many files: in this process with all threads, or in several with one thread each, for `--jobs`.

A file that fails is reported in one line and does not stop the others. A worker process gets one file at a time. If it
dies, only that file is lost: it is reported, and a new worker goes on with the rest. When the parent stops, also by
Ctrl-C or SIGTERM, it kills the workers, and removes their temporary files.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from itertools import zip_longest
from multiprocessing.connection import Connection, wait
from typing import NamedTuple, Protocol

from codec.batch.plan import Job, remove_temporaries
from codec.errors import MENDABLE, LicError, explain
from codec.files import is_stream
from codec.signals import handled, ignore, interruptible

DONE, KEPT, FAILED = "done", "kept", "failed"


class FatalError(LicError):
    """An error that would occur with every file: it stops all work."""


class Work(Protocol):
    """What is done with each file: a callable that can be pickled, for worker processes."""

    announce: bool
    """Whether to print what concerns all workers; True in the first worker only."""

    def expect(self, job: Job) -> None:
        """Maybe begin with the job that comes next, in a thread."""

    def __call__(self, job: Job) -> str | None:
        """Do a job; returns lines for the user, the last one on the result; None if the target was complete before."""


class Result(NamedTuple):
    """The outcome of a job."""

    outcome: str  # DONE, KEPT (the target is as it was), or FAILED
    text: str  # lines for the user


def say(message: str) -> None:
    """Print a line for the user, on stderr."""
    print(message, file=sys.stderr)


def complaint(source: str, text: str) -> str:
    """A line on a file that begins with its name, once."""
    return f"lic: {source}: {text.removeprefix(f'{source}: ')}"


def run(jobs: list[Job], work: Work, workers: int, debug: bool, share: tuple[int, int] = (0, 1)) -> int:
    """Do the work for each job, in `workers` processes; returns the exit code, 1 if a job failed.

    A failed job is reported and does not stop the others. FatalError stops everything; in a single process with `debug`
    so does any exception. `share`: the rank of this process, and the number of processes that each have such a list.
    """
    from tqdm import tqdm

    rank, world = share
    if world > 1:
        say(f"lic: process {rank} of {world}: {len(jobs)} files are its share")
    count = {DONE: 0, KEPT: 0, FAILED: 0}
    many = len(jobs) > 1
    if min(workers, len(jobs)) > 1:
        if any(is_stream(name) for job in jobs for name in job):
            raise LicError("stdin and stdout cannot be shared by several processes: leave --jobs out, or - ")
        results = work_in_processes(jobs, work, min(workers, len(jobs)), debug)
    else:
        results = work_here(jobs, work, debug)
    bar = tqdm(total=len(jobs), unit="file", disable=not many or rank > 0 or not sys.stderr.isatty())
    with bar, interruptible() as stopped, contextlib.closing(results):
        for job, (outcome, text) in results:
            count[outcome] += 1
            if outcome == FAILED:
                tqdm.write(complaint(job.source, text), file=sys.stderr)
            elif outcome == DONE:
                tqdm.write(text, file=sys.stderr)
            bar.update()
            if stopped.is_set():
                raise KeyboardInterrupt
    if many:
        kept = f", {count[KEPT]} were complete before" if count[KEPT] else ""
        failed = f", {count[FAILED]} failed" if count[FAILED] else ""
        say(f"{count[DONE]} of {len(jobs)} files done{kept}{failed}")
    return 1 if count[FAILED] else 0


def work_here(jobs: list[Job], work: Work, debug: bool) -> Iterator[tuple[Job, Result]]:
    """Each job with its result, one after the other in this process."""
    for job, following in zip_longest(jobs, jobs[1:]):
        if following:
            work.expect(following)
        yield job, attempt(work, job, debug)


def attempt(work: Work, job: Job, debug: bool) -> Result:
    """Do the work for one job; an exception becomes its result, with a traceback if no user can mend it.

    FatalError is always raised; with `debug` all exceptions are.
    """
    try:
        text = work(job)
    except FatalError:
        raise
    except MENDABLE as error:
        if debug:
            raise
        return Result(FAILED, explain(error))
    except Exception:
        if debug:
            raise
        return Result(FAILED, traceback.format_exc())
    return Result(KEPT, "") if text is None else Result(DONE, text)


class _Worker:
    """A worker process, its pipe, and its current job."""

    def __init__(self, work: Work, debug: bool, job: Job):
        context = multiprocessing.get_context("spawn")  # fork would share the threads of torch and numba in any state
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, work, debug), daemon=True)
        with handled(signal.SIG_IGN, "SIGINT"):  # inherited: Ctrl-C is for the parent, which ends them
            self.process.start()
        theirs.close()
        self.give(job)

    def give(self, job: Job) -> None:
        """Send the next job."""
        self.job = job
        with contextlib.suppress(BrokenPipeError):  # the process has died, which `result` reports
            self.pipe.send(job)

    def result(self) -> Result | FatalError | None:
        """The result of the current job; None if the process died."""
        try:
            return self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            return None

    def exit_reason(self) -> str:
        """How the process ended, for the user."""
        code = self.process.exitcode
        ended = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        return f"its process ended {ended}" + (" (out of memory?)" if ended.endswith("SIGKILL") else "")


def work_in_processes(jobs: list[Job], work: Work, count: int, debug: bool) -> Iterator[tuple[Job, Result]]:
    """Each job with its result, in the order in which they finish; FatalError stops all."""
    todo = iter(jobs)
    started: list[_Worker] = []
    workers: list[_Worker] = []  # those that have a job

    def start(job: Job) -> None:
        started.append(_Worker(work, debug, job))
        workers.append(started[-1])
        work.announce = False  # only the first worker does

    try:
        for _ in range(count):
            start(next(todo))
        while workers:
            ready = wait([worker.pipe for worker in workers])
            for worker in [worker for worker in workers if worker.pipe in ready]:
                job, result, following = worker.job, worker.result(), next(todo, None)
                if isinstance(result, FatalError):
                    raise result
                if result is None or following is None:
                    workers.remove(worker)
                    worker.pipe.close()
                if result is None:
                    remove_temporaries([job])
                    result = Result(FAILED, worker.exit_reason())
                    if following is not None:
                        start(following)
                elif following is not None:
                    worker.give(following)
                yield job, result
    finally:
        for worker in started:
            worker.process.kill()  # an exception at any moment is more than the libraries in it can take
            worker.pipe.close()
        for worker in started:
            worker.process.join()
        remove_temporaries([worker.job for worker in started])


def _serve(pipe: Connection, work: Work, debug: bool) -> None:
    """The main function of a worker: it ends with the parent, or when there are no more jobs."""
    ignore("SIGTERM", "SIGHUP")  # as with Ctrl-C, the parent ends its workers
    os.environ["OMP_NUM_THREADS"] = "1"  # of torch, which is not imported yet, and of the entropy coder
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        try:
            answer = attempt(work, job, debug)
        except FatalError as error:
            answer = error
        except Exception:  # with --debug
            answer = Result(FAILED, traceback.format_exc())
        try:
            pipe.send(answer)
        except BrokenPipeError:
            return
