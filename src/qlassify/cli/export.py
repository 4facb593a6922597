"""``qlassify export``: a trained classifier for transformers, PEFT or onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from qlassify.cli import options
from qlassify.cli.options import MODEL
from qlassify.cli.printing import say, say_json


def export(
    run: Annotated[Path, typer.Argument(help="Run folder, or the model folder of one.")],
    directory: Annotated[Path, typer.Argument(help="New directory for the export.")],
    format: Annotated[str, typer.Option(help="merged (transformers), peft or onnx.")] = "merged",
    base: options.Base = None,
    precision: Annotated[
        str, typer.Option(help="Type of merged weights: fp32 or bf16.", rich_help_panel=MODEL)
    ] = "fp32",
    into: Annotated[
        str,
        typer.Option(
            help="Weights that a low-bit classifier is merged into: own, or the original ones it was not trained on.",
            rich_help_panel=MODEL,
        ),
    ] = "own",
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Write RUN to DIRECTORY in another library's format, loaded there and compared before it is kept."""
    from qlassify.export.exporting import export_classifier
    from qlassify.export.readme import check_lines
    from qlassify.planning.plan import human_bytes

    chosen: dict[str, Any] = {"format": format, "precision": precision, "into": into}
    result = export_classifier(run, directory, base=base, **chosen)
    if json:
        say_json(result.as_dict())
        return
    if quiet:
        say(directory)
        return
    say(f"format  {result.format}, loads with {result.loads_with}")
    for note in result.notes:
        say(f"note    {note}")
    for sentence in check_lines(result.check):
        say(f"check   {sentence}")
    for name, size in result.files.items():
        say(f"file    {name}  {human_bytes(size)}")
    say(f"saved   {directory}\n\nnext:\n")
    say(result.snippet)
