"""How the command prints lines and JSON documents: nothing from elsewhere in them can steer a terminal.

What is printed goes through ``terminal`` here, so that no verb has to remember it. Tables are in ``console``, which
imports rich.
"""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from qlassify.errors import QlassifyWarning
from qlassify.terminal import json_text, tell, visible


def say(text: object = "", *, error: bool = False) -> None:
    """Print a line on standard output, or on standard error.

    Raises:
        OSError: standard output cannot be written. Standard error is for what is said beside the result: where it
            cannot be written the line is lost, and the result and the exit code are what they are.
    """
    if not error:
        print(visible(str(text)))
    elif sys.stderr is not None:
        with contextlib.suppress(OSError):
            print(visible(str(text)), file=sys.stderr)


def say_json(value: Any) -> None:
    """Print one JSON document in a line."""
    print(json_text(value))


@contextlib.contextmanager
def warnings_told() -> Iterator[None]:
    """Our own warnings are sentences on standard error meanwhile; Python's form names a line of the sources."""
    with warnings.catch_warnings():
        former = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
            if issubclass(category, QlassifyWarning):
                tell(str(message))
            else:
                former(message, category, *place, **more)

        warnings.showwarning = show
        yield


def flush_errors() -> None:
    """Print what waits on standard error; what cannot be printed is lost.

    Without this the interpreter would try once more at its end and turn the exit code into 120.
    """
    if sys.stderr is None:
        return
    try:
        sys.stderr.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stderr.fileno())
        os.close(nowhere)
