"""Requests to stop a training: Ctrl-C and SIGTERM."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """While open, the first Ctrl-C or SIGTERM is a request, met after the step at hand; a second Ctrl-C stops at once.

    Yields:
        An event that is set by the request; never set outside the main thread, which alone hears of signals.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    held = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, frame: FrameType | None) -> None:
        stop.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    for s in held:
        signal.signal(s, ask)
    try:
        yield stop
    finally:
        for s, handler in held.items():
            signal.signal(s, handler)
