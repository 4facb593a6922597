"""What typer finds wrong with a command line, as one of our errors.

typer prints such mistakes itself, in a frame and on several lines, and knows no ``--json``. Here they become a
``ConfigError`` like every other mistake, so that a program reads the same five parts whatever is wrong. Checking every
option in our own code was the alternative, and would have meant a second parser.
"""

from __future__ import annotations

import re
import sys
from typing import Any

import typer

from qlassify.errors import ConfigError

USAGE_ERROR: type[Exception] = typer.BadParameter.__bases__[0]
"""What typer raises for a command line that it cannot read. It gives the class no name of its own."""


HELPED = ConfigError("nothing was asked for")
"""Without any argument typer prints the help and raises an error without a word; there is nothing to add."""


def usage_error(error: Any) -> ConfigError:
    """The same mistake in our words, or ``HELPED``.

    Args:
        error: a ``USAGE_ERROR``.
    """
    if not error.format_message().strip():
        return HELPED
    context = error.ctx
    verb = context.command_path if context is not None else "qlassify"
    message = " ".join(error.format_message().split()).rstrip(".")
    did_you_mean = re.search(r"(?:\(Possible options: (.+)\)|Did you mean (.+?)\??)$", message)
    help_line = f"{verb} --help lists what there is."
    do = help_line
    if did_you_mean is not None:
        message = message[: did_you_mean.start()].rstrip(" .")
        meant = (did_you_mean[1] or did_you_mean[2]).replace("'", "").rstrip("?")
        do = f"Did you mean {meant}? {help_line}"
    option = _option(error)
    if option is not None:
        message = re.sub(r"^Invalid value for [^:]+: ", "", message)
    what = message[:1].lower() + message[1:]
    return ConfigError(what, where=option or verb, got=None if option is None else _given(option), do=do)


def _option(error: Any) -> str | None:
    """The option that a value was wrong for, as it is written."""
    names = getattr(getattr(error, "param", None), "opts", None) or ()
    return next((name for name in names if name.startswith("--")), None)


def _given(option: str) -> str | None:
    """What stands behind an option on the command line."""
    for place, word in enumerate(sys.argv):
        if word == option and place + 1 < len(sys.argv):
            return repr(sys.argv[place + 1])
        if word.startswith(f"{option}="):
            return repr(word.removeprefix(f"{option}="))
    return None
