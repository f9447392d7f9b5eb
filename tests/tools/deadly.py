"""Work for tests/batch/test_jobs.py that dies, fails or succeeds as the source file says; imported by workers, so that
nothing heavy is imported here.
"""

import os
import signal
import time
from pathlib import Path

from codec.batch.jobs import FatalError
from codec.batch.plan import Job
from codec.errors import LicError


class TellsItself:
    """Has the process ended where Python drops the exception."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)


class Deadly:
    """Does what is written in the source."""

    announce = True

    def expect(self, job: Job) -> None:
        Path(f"{job.source}.expected").touch()

    def __call__(self, job: Job) -> str | None:
        match Path(job.source).read_text():
            case "kill":
                Path(f".{job.target}.0123abcd.part").write_text("half")
                os.kill(os.getpid(), signal.SIGKILL)
            case "exit":
                os._exit(3)
            case "busy":
                Path(f".{job.target}.0123abcd.part").write_text("half")
                Path(job.target).touch()
                time.sleep(60)
            case "told":
                TellsItself()
            case "fail":
                raise LicError("as it\nwas told")
            case "hopeless":
                raise FatalError("no file will be better off")
            case "bug":
                raise ZeroDivisionError("nobody thought of it")
            case "kept":
                return None
        return f"{job.source} has {os.environ['OMP_NUM_THREADS']} thread, {self.announce}"
