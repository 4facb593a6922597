"""``qlassify convert``: a base model from one file format into another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qlassify.cli import options
from qlassify.cli.printing import say, say_json

SHOWN_NAMES = 3


def convert(
    source: Annotated[str, typer.Argument(help="Base model: a directory, an id, or an .apr or .gguf file.")],
    target: Annotated[Path, typer.Argument(help="New .apr file; any other name is a new directory of safetensors.")],
    type: Annotated[str | None, typer.Option(help="Of matrices in an .apr file: f32, f16, bf16, aprq4, aprq8.")] = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Write the base model SOURCE as TARGET, tensor by tensor, and say what was lost on the way."""
    import sys

    from rich.progress import Progress, TaskID

    from qlassify.cli.console import make_console
    from qlassify.conversion import convert_to_apr, convert_to_directory
    from qlassify.errors import ConfigError
    from qlassify.planning.plan import human_bytes

    bar = Progress(console=make_console(stderr=True), transient=True, disable=json or quiet or not sys.stderr.isatty())
    task: TaskID = bar.add_task("tensors", total=None)

    def tell(name: str, number: int, count: int) -> None:
        bar.update(task, completed=number, total=count)

    to_apr = target.suffix == ".apr"
    if type is not None and not to_apr:
        raise ConfigError("a directory keeps the types that there are", where="--type", got=type)
    with bar:
        if to_apr:
            result = convert_to_apr(source, target, type, progress=tell)
        else:
            result = convert_to_directory(Path(source), target, progress=tell)
    if json:
        say_json(result.as_dict())
        return
    if quiet:
        say(result.path)
        return
    say(f"tensors   {result.tensors}")
    say(f"size      {human_bytes(result.source_bytes)} -> {human_bytes(result.bytes)}")
    more = f" and {len(result.lossy) - SHOWN_NAMES} more" if len(result.lossy) > SHOWN_NAMES else ""
    names = f": {', '.join(result.lossy[:SHOWN_NAMES])}{more}" if result.lossy else ""
    say(f"rounded   {len(result.lossy)} tensors{names}" if names else "rounded   nothing; every number is the same")
    for note in result.notes:
        say(f"note      {note}")
    say(f"\nnext:\n  qlassify inspect {result.path}\n  qlassify train DATA --base {result.path}")
