"""Worker processes, for `--jobs`: each has one file at a time, handed out as it gets free.

One that dies takes only that file with it: it is reported, and another worker goes on with the rest. When the parent
stops, by Ctrl-C or SIGTERM too, it stops the workers, which remove what they have half written.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait

from codec.files import Job, remove_temporaries
from codec.jobs import FAILED, Hopeless, Result, Work, attempt
from codec.signals import heeded, ignore


class _Worker:
    """A process that works for one pipe, with the job it has."""

    def __init__(self, work: Work, debug: bool, job: Job):
        context = multiprocessing.get_context("spawn")  # fork would share the threads of torch and numba in any state
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, work, debug), daemon=True)
        with heeded(signal.SIG_IGN, "SIGINT"):  # inherited: Ctrl-C is for the parent, which tells them
            self.process.start()
        theirs.close()
        self.give(job)

    def give(self, job: Job) -> None:
        self.job = job
        with contextlib.suppress(BrokenPipeError):  # it has died, which `result` finds out
            self.pipe.send(job)

    def result(self) -> Result | Hopeless | None:
        """What it answers; None if it died instead."""
        try:
            return self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            return None

    def epitaph(self) -> str:
        code = self.process.exitcode
        ended = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        return f"its process ended {ended}" + (" (out of memory?)" if ended.endswith("SIGKILL") else "")


def work_in_processes(jobs: list[Job], work: Work, count: int, debug: bool) -> Iterator[tuple[Job, Result]]:
    """Each job with its result, in the order in which they end."""
    todo = iter(jobs)
    started: list[_Worker] = []
    workers: list[_Worker] = []  # those that have a job

    def start(job: Job) -> None:
        started.append(_Worker(work, debug, job))
        workers.append(started[-1])
        work.announce = False  # the first one has said it

    try:
        for _ in range(count):
            start(next(todo))
        while workers:
            ready = wait([worker.pipe for worker in workers])
            for worker in [worker for worker in workers if worker.pipe in ready]:
                job, result, following = worker.job, worker.result(), next(todo, None)
                if isinstance(result, Hopeless):
                    raise result
                if result is None or following is None:
                    workers.remove(worker)
                    worker.pipe.close()
                if result is None:
                    remove_temporaries([job])
                    result = Result(FAILED, worker.epitaph())
                    if following is not None:
                        start(following)
                elif following is not None:
                    worker.give(following)
                yield job, result
    finally:
        for worker in started:
            worker.process.terminate()
            worker.pipe.close()  # which also ends one that was where Python loses what a signal raises
        for worker in started:
            worker.process.join()


def _serve(pipe: Connection, work: Work, debug: bool) -> None:
    """A worker's life: it ends when the parent does, or has no more jobs."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # through every `finally`
    ignore("SIGHUP")  # as with Ctrl-C, the parent tells
    os.environ["OMP_NUM_THREADS"] = "1"  # of torch, which is not imported yet, and of the entropy coder
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        try:
            answer = attempt(work, job, debug)
        except Hopeless as error:
            answer = error
        except Exception:  # with --debug
            answer = Result(FAILED, traceback.format_exc())
        try:
            pipe.send(answer)
        except BrokenPipeError:
            return
