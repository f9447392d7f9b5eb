"""Signals that end a program: handled while it works, as they were afterwards."""

import contextlib
import os
import signal
import stat
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def handled(handler: Callable, *names: str) -> Iterator[None]:
    """`handler(number, frame)` gets these signals (SIGTERM, ...) meanwhile; those that the system does not have, or
    that whoever started the program wants ignored, as nohup does, are left alone. In the main thread only.
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


def ignore(*names: str) -> None:
    """Ignore these signals for good: in a process that another one will end."""
    for name in names:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def ending(stop: threading.Event) -> Callable:
    """A handler that sets the event, which asks for an end after what is being done. A second Ctrl-C ends at once, by
    KeyboardInterrupt; not under torchrun, which itself repeats the first. What is said after SIGHUP to the terminal
    that is gone goes nowhere, instead of failing.
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
