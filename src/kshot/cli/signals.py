"""Ctrl-C and SIGTERM: both end a command in order, and the exit status tells which of them it was."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


class Stopped(KeyboardInterrupt):
    """A command that was asked to stop, stopped in order, and has a last word to say."""


@contextmanager
def listening() -> Iterator[Callable[[], list[int]]]:
    """Treat SIGTERM like Ctrl-C while open, and remember which signals came.

    Whoever handles a signal (training has handlers of its own), Python also writes its number to a socket of ours.

    Yields:
        A function that returns the numbers of the signals so far.
    """
    if threading.current_thread() is not threading.main_thread():
        yield list
        return
    held: list[int] = []
    mine, pythons = socket.socketpair()
    for end in (mine, pythons):
        end.setblocking(False)

    def heard() -> list[int]:
        with suppress(BlockingIOError):
            held.extend(n for n in mine.recv(64) if n in (signal.SIGINT, signal.SIGTERM))
        return held

    fd_before = signal.set_wakeup_fd(pythons.fileno(), warn_on_full_buffer=False)
    term_before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield heard
    finally:
        signal.signal(signal.SIGTERM, term_before)
        signal.set_wakeup_fd(fd_before)
        mine.close()
        pythons.close()
