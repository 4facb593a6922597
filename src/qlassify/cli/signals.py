"""What SIGINT and SIGTERM do to a command: it ends in a sentence, with exit code 130 or 143.

Everywhere they end it at once, by an exception that no library catches. While a training loop runs, the first one asks
it to write a checkpoint after the step and the second one ends it. Python's own ``KeyboardInterrupt`` would do for
SIGINT alone, and typer answers it with a word of its own and another exit code.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from qlassify.errors import StopNow

if TYPE_CHECKING:
    from qlassify.training.loop import StopRequest

SIGNALS = (signal.SIGINT, signal.SIGTERM)
PATIENCE_SECONDS = 3.0
"""For how long a command that is ending takes further signals for the same request: a terminal and a parent process may
both send one, and the sentence is to come out. After that, one ends the process without any tidying."""


def _end(signal_number: int, frame: object) -> None:
    """Raise ``StopNow``; the handlers of the rest of the process are set for its end."""
    let_end()
    raise StopNow(signal_number)


def let_end() -> None:
    """From now on the process is ending because of a signal, and further ones do not disturb it for a while."""
    began = time.monotonic()

    def again(number: int, frame: object) -> None:
        if time.monotonic() - began > PATIENCE_SECONDS:
            os.write(2, f"qlassify: stopped by {signal.Signals(number).name} while ending\n".encode())
            os._exit(128 + number)

    if threading.current_thread() is threading.main_thread():
        for one in SIGNALS:
            signal.signal(one, again)


@contextmanager
def handled(handler: Callable[[int, object], None] = _end) -> Iterator[None]:
    """SIGINT and SIGTERM go to ``handler`` meanwhile; by default they raise ``StopNow``.

    Only a process's main thread can say what signals do; in another one nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, former in previous.items():
            if signal.getsignal(number) is handler:  # not where the process is ending
                signal.signal(number, former)


@contextmanager
def asking(stop: StopRequest) -> Iterator[None]:
    """The first signal while a loop runs is a request to it; every other one ends the command."""

    def ask(signal_number: int, frame: object) -> None:
        if not stop.armed or stop.signal_number is not None:
            _end(signal_number, frame)
        stop(signal_number, frame)

    with handled(ask):
        yield


def require_no_request(stop: StopRequest) -> None:
    """End at once if a signal came when the loop had looked for one the last time.

    Raises:
        StopNow: it did.
    """
    if stop.signal_number is not None and not stop.armed:
        _end(stop.signal_number, None)
