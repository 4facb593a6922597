"""``qlassify export``: a trained classifier for transformers, PEFT or onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from qlassify.cli import options
from qlassify.cli.options import MODEL


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
    import json as json_module

    from qlassify.export.exporting import export_classifier
    from qlassify.export.readme import check_lines
    from qlassify.planning.plan import human_bytes

    chosen: dict[str, Any] = {"format": format, "precision": precision, "into": into}
    result = export_classifier(run, directory, base=base, **chosen)
    if json:
        print(json_module.dumps(result.as_dict(), ensure_ascii=False))
        return
    if quiet:
        print(directory)
        return
    print(f"format  {result.format}, loads with {result.loads_with}")
    for note in result.notes:
        print(f"note    {note}")
    for sentence in check_lines(result.check):
        print(f"check   {sentence}")
    for name, size in result.files.items():
        print(f"file    {name}  {human_bytes(size)}")
    print(f"saved   {directory}\n\nnext:\n")
    print(result.snippet)
