"""The command's entry: its verbs, and the one place where an error becomes a sentence and an exit code.

A verb's module is small and imports the rooms below only when the verb runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import Annotated, NoReturn

import typer

from qlassify.cli import (
    calibrate,
    compare,
    contracts,
    convert,
    demo,
    evaluate,
    export,
    inspect,
    ledger,
    plan,
    predict,
    quantize,
    train,
)
from qlassify.cli.printing import flush_errors, say, say_json, warnings_told
from qlassify.cli.signals import handled, let_end
from qlassify.cli.usage import HELPED, USAGE_ERROR, usage_error
from qlassify.errors import Interrupted, QlassifyError, StopNow
from qlassify.version import __version__

app = typer.Typer(
    name="qlassify",
    help="Fine-tune pretrained transformers into text classifiers that you can trust.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("train")(train.train)
app.command("plan")(plan.plan)
app.command("evaluate")(evaluate.evaluate)
app.command("calibrate")(calibrate.calibrate)
app.command("compare")(compare.compare)
app.command("predict")(predict.predict)
app.command("export")(export.export)
app.command("quantize")(quantize.quantize)
app.command("convert")(convert.convert)
app.command("inspect")(inspect.inspect)
app.command("contracts")(contracts.contracts)
app.command("ledger")(ledger.ledger)
app.command("demo")(demo.demo)


def _print_version(value: bool) -> None:
    if value:
        print(f"qlassify {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Fine-tune pretrained transformers into text classifiers that you can trust."""


CACHED_PRIMITIVES = "32"
"""Compiled matrix products that oneDNN, and torch's layer above it, keep: what a step of one length needs, and little
more. Nearly every step has another number of tokens, so the thousand that both keep by default are hardly used again,
and they lie between the tensors: with all-MiniLM-L6-v2 in bf16 a process grew by 416 MB in 30 steps, by 112 MB with
these, which also took a tenth less processor time."""


def _speak_utf8() -> None:
    """Write UTF-8 into files and pipes, whatever the locale, and what a terminal cannot show as an escape.

    Predictions are the same bytes everywhere, and a label that a locale has no letters for ends no command.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            encoding = stream.encoding if stream.isatty() else "utf-8"
            stream.reconfigure(encoding=encoding, errors="backslashreplace")


HEAVY = frozenset(
    {"train", "plan", "evaluate", "calibrate", "compare", "predict", "export", "quantize", "convert", "demo"}
)
"""Verbs that import torch."""


def _run() -> None:
    """The verb, while signals are handled."""
    try:
        if HEAVY.intersection(sys.argv[1:2]) and "--help" not in sys.argv:
            from qlassify.cli.trouble import require_room_for_libraries

            require_room_for_libraries()
        sys.exit(app(standalone_mode=False))
    except SystemExit:
        sys.stdout.flush()  # what cannot be printed is to be told here and not in the interpreter's last moments
        raise
    except StopNow as stopped:
        end(Interrupted(stopped.signal_number, "nothing more was written"))
    except USAGE_ERROR as error:
        told = usage_error(error)
        if told is HELPED:
            sys.exit(told.exit_code)
        end(told)
    except typer.Abort:  # Ctrl-C where nobody listens for it
        say("qlassify: stopped", error=True)
        sys.exit(130)
    except QlassifyError as error:
        if "--debug" in sys.argv:
            raise
        end(error)


def main() -> None:
    """Run the command; a user's mistake ends in a sentence on standard error and its exit code."""
    for variable in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(variable, CACHED_PRIMITIVES)  # before torch is imported; a user's own value holds
    _speak_utf8()
    try:
        with handled(), warnings_told():
            _run()
    except BrokenPipeError:
        # The reader of our output has gone (as with `| head`); the rest has nobody to go to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except (OSError, MemoryError, RuntimeError, ImportError) as error:
        from qlassify.cli.trouble import trouble

        problem = None if "--debug" in sys.argv else trouble(error)
        if problem is None:
            raise
        end(problem)
    finally:
        flush_errors()


def end(problem: QlassifyError) -> NoReturn:
    """Tell an error, as JSON too where that was asked for, and exit with its code."""
    from qlassify.cli.trouble import flush_output

    if isinstance(problem, Interrupted):
        let_end()
    with contextlib.suppress(OSError):  # where nothing can be printed, the sentence and the exit code still say it
        if "--json" in sys.argv:
            say_json(problem.as_dict())
    flush_output()
    say(f"qlassify: {problem}", error=True)
    sys.exit(problem.exit_code)
