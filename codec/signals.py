"""Handling of the signals that end a program."""

import contextlib
import os
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def handled(handler: Callable, *names: str) -> Iterator[None]:
    """Within this context `handler(number, frame)` gets the signals of these names (SIGTERM, ...).

    Signals that the system does not have, or that were ignored from the start, as by nohup, are left alone. Afterwards
    the handlers are as before. In the main thread only.
    """
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {n: signal.getsignal(n) for n in numbers if signal.getsignal(n) != signal.SIG_IGN}
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, own in before.items():
            signal.signal(number, own)


@contextlib.contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Within this context SIGTERM and SIGHUP raise KeyboardInterrupt, as Ctrl-C does, so that every `finally` runs.

    They also set the event, to be looked at now and then: Python drops an exception raised in a destructor or in a
    callback from C, where the compilation of the entropy coder spends its time. From then on such exceptions, and those
    in destructors of half-made objects, are not printed: the program ends.
    """
    stopped = threading.Event()
    hook = sys.unraisablehook

    def stop(*_) -> None:
        stopped.set()
        raise KeyboardInterrupt

    sys.unraisablehook = lambda dropped: None if stopped.is_set() else hook(dropped)
    try:
        with handled(stop, "SIGINT", "SIGTERM", "SIGHUP"):
            yield stopped
    finally:
        if not stopped.is_set():
            sys.unraisablehook = hook


def ignore(*names: str) -> None:
    """Ignore these signals for good, in a process that another process will end."""
    for name in names:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def ending(stop: threading.Event) -> Callable:
    """A handler that sets the event `stop`, at which the program ends after its current step.

    A second Ctrl-C raises KeyboardInterrupt, except under torchrun, which repeats the first by itself. After SIGHUP
    output to the closed terminal is discarded, so that it does not fail.
    """

    def handler(number: int, _) -> None:
        if number == getattr(signal, "SIGHUP", None):
            for stream in (1, 2):
                with contextlib.suppress(OSError):  # it is closed
                    if stat.S_ISCHR(os.fstat(stream).st_mode):
                        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        if stop.is_set() and number == signal.SIGINT and "WORLD_SIZE" not in os.environ:
            raise KeyboardInterrupt
        stop.set()

    return handler
