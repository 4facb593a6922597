"""What SIGINT and SIGTERM do to a command: it ends in a sentence, with exit code 130 or 143.

Everywhere they end it at once, by an exception that no library catches. While a training loop runs, the first one asks
it to write a checkpoint after the step and the second one ends it. Python's own ``KeyboardInterrupt`` would do for
SIGINT alone, and typer answers it with a word of its own and another exit code.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from qlassify.errors import StopNow

if TYPE_CHECKING:
    from qlassify.training.loop import StopRequest

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def _end(signal_number: int, frame: object) -> None:
    raise StopNow(signal_number)


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
            signal.signal(number, former)


@contextmanager
def asking(stop: StopRequest) -> Iterator[None]:
    """The first signal while a loop runs is a request to it; every other one ends the command."""

    def ask(signal_number: int, frame: object) -> None:
        if not stop.armed or stop.signal_number is not None:
            raise StopNow(signal_number)
        stop(signal_number, frame)

    with handled(ask):
        yield


def require_no_request(stop: StopRequest) -> None:
    """End at once if a signal came when the loop had looked for one the last time.

    Raises:
        StopNow: it did.
    """
    if stop.signal_number is not None and not stop.armed:
        raise StopNow(stop.signal_number)
