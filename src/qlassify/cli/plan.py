"""``qlassify plan``: what training would take, before it starts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qlassify.cli import options
from qlassify.cli.options import MODEL, OUTPUT, TRAINING

if TYPE_CHECKING:
    from qlassify.errors import QlassifyError
    from qlassify.prospects import Prospect


def plan(
    data: Annotated[Path, typer.Argument(help="Labelled text: CSV, TSV, JSONL or Parquet.")],
    eval_file: options.EvalFile = None,
    test: options.TestFile = None,
    text: options.TextColumn = None,
    text_pair: options.PairColumn = None,
    label: options.LabelColumn = None,
    label_separator: options.LabelSeparator = None,
    header: options.Header = None,
    format: options.Format = None,
    base: options.Base = None,
    max_length: options.MaxLength = None,
    long: options.Long = None,
    precision: options.Precision = None,
    device: options.Device = None,
    method: Annotated[str | None, typer.Option(help="One method, or all.", rich_help_panel=MODEL)] = None,
    rank: options.Rank = None,
    epochs: options.Epochs = None,
    batch_size: options.BatchSize = None,
    learning_rate: options.LearningRate = None,
    memory: Annotated[
        str | None,
        typer.Option(
            help="Memory that the run may take, such as 8GiB; what is free here by default.", rich_help_panel=TRAINING
        ),
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure/--no-measure", help="Load the weights and time a step.", rich_help_panel=OUTPUT)
    ] = True,
    config: options.ConfigFile = None,
    override: options.Override = None,
    strict: options.Strict = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Say what training on DATA would take and what is doubtful about it. Nothing is trained or written."""
    from qlassify.config.files import gather_settings, layer

    flags: dict[str, Any] = {
        "data": options.given(
            train=str(data),
            eval=None if eval_file is None else str(eval_file),
            test=None if test is None else str(test),
            **options.reading_settings(
                text=text,
                text_pair=text_pair,
                label=label,
                label_separator=label_separator,
                header=header,
                format=format,
            ),
        ),
        "model": options.given(base=base, max_length=max_length, long=long, precision=precision, device=device),
        "method": options.given(kind=None if method == "all" else method, rank=rank),
        "training": options.given(epochs=epochs, batch_size=batch_size, learning_rate=learning_rate),
    }
    settings = layer(gather_settings(config, override or ()), flags)
    _show(settings, method, memory, measure=measure, strict=strict, as_json=json, quiet=quiet)


def _show(
    settings: dict[str, Any],
    method: str | None,
    memory: str | None,
    *,
    measure: bool,
    strict: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Plan, show, and end with the exit code of what stands in the way."""
    from qlassify import prospects as rooms
    from qlassify.cli.show_plan import PlanView
    from qlassify.config.run import RunConfig
    from qlassify.job import read_dataset
    from qlassify.planning.plan import parse_bytes

    memory_bytes = None if memory is None else parse_bytes(memory)
    dataset = read_dataset(RunConfig.parse(settings))
    view = PlanView(dataset, as_json=as_json, quiet=quiet)
    methods = rooms.METHODS if method == "all" else (method or "lora",)
    found: list[Prospect] = []
    for prospect in rooms.prospects(settings, dataset, methods, memory_bytes=memory_bytes, measure=measure):
        found.append(prospect)
        view.progress(prospect)
    refusal = _refusal(found, strict=strict)
    view.finished(found, refusal)
    if refusal is not None:
        raise typer.Exit(refusal.exit_code)


def _refusal(found: list[Prospect], *, strict: bool) -> QlassifyError | None:
    """What ``train`` would end with: for one method its own refusal, for several the first if none could start."""
    from qlassify.errors import QlassifyError

    problems: list[QlassifyError] = []
    for prospect in found:
        try:
            if prospect.preparation is None:
                assert prospect.problem is not None
                raise prospect.problem
            prospect.preparation.require_contracts(strict=strict)
            prospect.preparation.require_memory()
        except QlassifyError as problem:
            problems.append(problem)
        else:
            return None
    return problems[0] if problems else None
