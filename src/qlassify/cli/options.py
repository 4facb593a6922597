"""Options that several verbs share, and how flags become settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

READING = "Reading the data"
MODEL = "Model and method"
TRAINING = "Training"
OUTPUT = "Output"

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.", rich_help_panel=OUTPUT)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only the result.", rich_help_panel=OUTPUT)]
Debug = Annotated[bool, typer.Option("--debug", help="Show a traceback on errors.", rich_help_panel=OUTPUT)]
EvalFile = Annotated[Path | None, typer.Option("--eval", help="Rows for choosing weights.", rich_help_panel=READING)]
TestFile = Annotated[Path | None, typer.Option(help="Rows for the final score.", rich_help_panel=READING)]
ConfigFile = Annotated[Path | None, typer.Option(help="YAML file with settings.", rich_help_panel=TRAINING)]
Strict = Annotated[
    bool, typer.Option("--strict", help="Refuse to start when a contract warns.", rich_help_panel=TRAINING)
]
Out = Annotated[Path | None, typer.Option("--out", help="Run folder to write.", rich_help_panel=OUTPUT)]
Device = Annotated[str | None, typer.Option(help="auto, cpu or cuda.", rich_help_panel=MODEL)]
Base = Annotated[
    str | None,
    typer.Option(
        help="Base model: a directory, an .apr or .gguf file, a packaged model, an id of the hub.",
        rich_help_panel=MODEL,
    ),
]
Pooling = Annotated[str | None, typer.Option(help="auto, last, cls or mean.", rich_help_panel=MODEL)]
MaxLength = Annotated[int | None, typer.Option(help="Longest text in tokens.", rich_help_panel=MODEL)]
Long = Annotated[str | None, typer.Option(help="Longer texts: truncate, head_tail or windows.", rich_help_panel=MODEL)]
Precision = Annotated[str | None, typer.Option(help="auto, bf16 or fp32.", rich_help_panel=MODEL)]
Method = Annotated[
    str | None,
    typer.Option(help="lora, dora, qlora, qdora, ia3, adapter, bitfit, prefix, probe or full.", rich_help_panel=MODEL),
]
Rank = Annotated[int | None, typer.Option(help="LoRA rank.", rich_help_panel=MODEL)]
Alpha = Annotated[float | None, typer.Option(help="LoRA alpha.", rich_help_panel=MODEL)]
Epochs = Annotated[int | None, typer.Option(help="Passes over the rows.", rich_help_panel=TRAINING)]
BatchSize = Annotated[int | None, typer.Option(help="Rows per batch.", rich_help_panel=TRAINING)]
LearningRate = Annotated[float | None, typer.Option(help="Peak learning rate.", rich_help_panel=TRAINING)]
ClassWeights = Annotated[
    str | None, typer.Option(help="uniform, inverse, sqrt_inverse or effective_number.", rich_help_panel=TRAINING)
]
FocalGamma = Annotated[
    float | None, typer.Option(help="Exponent of the focal loss; 0 for none.", rich_help_panel=TRAINING)
]
Sampling = Annotated[
    str | None, typer.Option(help="shuffled, or balanced: every class equally often.", rich_help_panel=TRAINING)
]
Track = Annotated[
    list[str] | None,
    typer.Option("--track", help="Tell tensorboard, mlflow or wandb (repeatable).", rich_help_panel=OUTPUT),
]
Seed = Annotated[int | None, typer.Option(help="The one seed.", rich_help_panel=TRAINING)]
Seeds = Annotated[
    int | None, typer.Option(help="Train with that many seeds; tell mean and spread.", rich_help_panel=TRAINING)
]
Override = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any setting: training.epochs=5 (repeatable).", rich_help_panel=TRAINING),
]
TextColumn = Annotated[
    str | None, typer.Option("--text", help="Text column, by name or 1-based number.", rich_help_panel=READING)
]
PairColumn = Annotated[
    str | None, typer.Option("--text-pair", help="Column of the second text.", rich_help_panel=READING)
]
LabelColumn = Annotated[str | None, typer.Option("--label", help="Label column.", rich_help_panel=READING)]
LabelSeparator = Annotated[
    str | None,
    typer.Option(help="Splits one cell into several labels (multi-label).", rich_help_panel=READING),
]
Header = Annotated[
    bool | None, typer.Option("--header/--no-header", help="Whether the file has a header.", rich_help_panel=READING)
]
Format = Annotated[str | None, typer.Option("--format", help="csv, tsv, jsonl or parquet.", rich_help_panel=READING)]
Slices = Annotated[
    list[str] | None,
    typer.Option("--slice", help="Column by whose values to score as well (repeatable).", rich_help_panel=READING),
]


def reading_settings(
    *,
    text: str | None,
    text_pair: str | None,
    label: str | None,
    label_separator: str | None,
    header: bool | None,
    format: str | None,
    slices: list[str] | None = None,
) -> dict[str, Any]:
    """The reading flags that were given, as settings of the data section."""
    return given(
        text=text,
        text_pair=text_pair,
        label=label,
        label_separator=label_separator,
        header=header,
        format=format,
        slices=slices or None,
    )


def given(**flags: Any) -> dict[str, Any]:
    """The flags that were given: those that are not None."""
    return {name: value for name, value in flags.items() if value is not None}
