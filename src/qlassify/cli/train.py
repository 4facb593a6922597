"""``qlassify train``: a classifier from a labelled file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qlassify.cli import options
from qlassify.cli.options import TRAINING

if TYPE_CHECKING:
    from qlassify.job import JobEvent
    from qlassify.training.loop import StopRequest


def train(
    data: Annotated[Path | None, typer.Argument(help="Labelled text: CSV, TSV, JSONL or Parquet.")] = None,
    eval_file: options.EvalFile = None,
    test: options.TestFile = None,
    text: options.TextColumn = None,
    text_pair: options.PairColumn = None,
    label: options.LabelColumn = None,
    label_separator: options.LabelSeparator = None,
    header: options.Header = None,
    format: options.Format = None,
    base: options.Base = None,
    pooling: options.Pooling = None,
    max_length: options.MaxLength = None,
    long: options.Long = None,
    precision: options.Precision = None,
    device: options.Device = None,
    method: options.Method = None,
    rank: options.Rank = None,
    alpha: options.Alpha = None,
    epochs: options.Epochs = None,
    batch_size: options.BatchSize = None,
    learning_rate: options.LearningRate = None,
    class_weights: options.ClassWeights = None,
    seed: options.Seed = None,
    config: options.ConfigFile = None,
    override: options.Override = None,
    strict: options.Strict = False,
    resume: Annotated[Path | None, typer.Option(help="Continue this run folder.", rich_help_panel=TRAINING)] = None,
    out: options.Out = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Train a classifier on DATA. Whatever is not given is chosen for the data, printed and recorded."""
    from qlassify.config.files import gather_settings, layer
    from qlassify.training.loop import StopRequest

    flags: dict[str, Any] = {
        "data": options.given(
            train=_text(data),
            eval=_text(eval_file),
            test=_text(test),
            **options.reading_settings(
                text=text,
                text_pair=text_pair,
                label=label,
                label_separator=label_separator,
                header=header,
                format=format,
            ),
        ),
        "model": options.given(
            base=base, pooling=pooling, max_length=max_length, long=long, precision=precision, device=device
        ),
        "method": options.given(kind=method, rank=rank, alpha=alpha),
        "training": options.given(
            epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, class_weights=class_weights
        ),
        **options.given(seed=seed),
    }
    stop = StopRequest()
    if resume is not None:
        events = _resumed(resume, flags, [data, config, override, out], stop)
    else:
        from qlassify import job

        settings = layer(gather_settings(config, override or ()), flags)
        events = job.train(settings, out, stop=stop, strict=strict)
    follow(events, stop, as_json=json, quiet=quiet)


def follow(events: Iterator[JobEvent], stop: StopRequest, *, as_json: bool, quiet: bool) -> None:
    """Show a job's events until it ends; SIGINT and SIGTERM ask it to write a checkpoint and stop."""
    import signal

    from qlassify.cli.show import TrainView

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with TrainView(as_json=as_json, quiet=quiet) as view:
            for event in events:
                view.show(event)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _resumed(path: Path, flags: dict[str, Any], others: list[Any], stop: StopRequest) -> Iterator[JobEvent]:
    """The rest of an earlier run; its settings are those it began with."""
    from qlassify import job
    from qlassify.errors import ConfigError

    if any(others) or "seed" in flags or any(flags.values()):
        raise ConfigError(
            "--resume takes the settings that the run began with",
            where=path,
            do="Leave the other options out, or start a new run.",
        )
    return job.resume(path, stop=stop)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
