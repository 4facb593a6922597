"""``qlassify train``: a classifier from a labelled file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TypeVar

import typer

from qlassify.cli import options
from qlassify.cli.options import TRAINING
from qlassify.cli.printing import say
from qlassify.cli.signals import asking, require_no_request

if TYPE_CHECKING:
    from qlassify.errors import StorageError
    from qlassify.job import JobEvent
    from qlassify.repeating import RepeatEvent
    from qlassify.training.loop import StopRequest


Event = TypeVar("Event", contravariant=True)


class View(Protocol[Event]):
    """Shows the events of a job to a person."""

    def show(self, event: Event) -> None:
        """Show one event."""


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
    slices: options.Slices = None,
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
    focal_gamma: options.FocalGamma = None,
    sampling: options.Sampling = None,
    seed: options.Seed = None,
    seeds: options.Seeds = None,
    config: options.ConfigFile = None,
    override: options.Override = None,
    strict: options.Strict = False,
    resume: Annotated[Path | None, typer.Option(help="Continue this run folder.", rich_help_panel=TRAINING)] = None,
    out: options.Out = None,
    track: options.Track = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Train a classifier on DATA. Whatever is not given is chosen for the data, printed and recorded."""
    from qlassify.config.files import gather_settings, layer

    reading = options.reading_settings(
        text=text, text_pair=text_pair, label=label, label_separator=label_separator, header=header, format=format
    )
    files = options.given(train=_text(data), eval=_text(eval_file), test=_text(test), slices=slices or None)
    model = options.given(pooling=pooling, max_length=max_length, long=long, precision=precision, device=device)
    balance = options.given(class_weights=class_weights, focal_gamma=focal_gamma, sampling=sampling)
    flags: dict[str, Any] = {
        "data": {**files, **reading},
        "model": {**options.given(base=base), **model},
        "method": options.given(kind=method, rank=rank, alpha=alpha),
        "training": {**options.given(epochs=epochs, batch_size=batch_size, learning_rate=learning_rate), **balance},
        **options.given(seed=seed, tracking=track or None),
    }
    if resume is not None:
        _require_nothing_else(resume, flags, [data, seeds, config, override, out])
        _resume(resume, as_json=json, quiet=quiet)
    else:
        settings = layer(gather_settings(config, override or ()), flags)
        _start(settings, seeds, out, strict=strict, as_json=json, quiet=quiet)


def _start(
    settings: dict[str, Any], seeds: int | None, out: Path | None, *, strict: bool, as_json: bool, quiet: bool
) -> None:
    """A new run, or a run for each of several seeds."""
    from qlassify import job, repeating
    from qlassify.training.loop import StopRequest

    stop = StopRequest()
    if seeds is None:
        events = job.train(settings, out, stop=stop, strict=strict)
        follow(events, stop, as_json=as_json, quiet=quiet, folder=out)
    else:
        runs_of_seeds = repeating.train_seeds(settings, out, count=seeds, stop=stop, strict=strict)
        follow_seeds(runs_of_seeds, stop, as_json=as_json, quiet=quiet, folder=out)


def follow(
    events: Iterator[JobEvent], stop: StopRequest, *, as_json: bool, quiet: bool, folder: Path | None = None
) -> None:
    """Show a job's events until it ends; SIGINT and SIGTERM ask it to write a checkpoint and stop.

    Args:
        events: the job's.
        stop: its stop request.
        as_json: print JSON lines.
        quiet: print as little as can be.
        folder: the run folder, if it is known already.
    """
    from qlassify.cli.show import TrainView
    from qlassify.job import FinishedEvent, ModelEvent

    printed, problem = True, None
    with TrainView(as_json=as_json, quiet=quiet) as view, _ended(events, stop, lambda: folder):
        for event in events:
            folder = event.folder if isinstance(event, ModelEvent) else folder
            printed = printed and _shown(view, event)
            problem = event.problem if isinstance(event, FinishedEvent) else None
            require_no_request(stop)
    end_with(problem)
    if not printed:
        raise typer.Exit(1)


def _shown(view: View[Event], event: Event) -> bool:
    """Show an event, if it can be printed: that it cannot is told once, and is no reason to stop training."""
    from qlassify.cli.trouble import silence_output

    try:
        view.show(event)
    except BrokenPipeError:
        raise  # the reader has gone, which is its way to say stop
    except OSError as error:
        silence_output()
        say(f"qlassify: standard output cannot be written ({error}); training goes on", error=True)
        return False
    return True


def end_with(problem: StorageError | None) -> None:
    """After the result: exit code 1 and a sentence on standard error if something of it could not be written."""
    if problem is not None:
        say(f"qlassify: {problem}", error=True)
        raise typer.Exit(problem.exit_code)


def follow_seeds(
    events: Iterator[RepeatEvent], stop: StopRequest, *, as_json: bool, quiet: bool, folder: Path | None = None
) -> None:
    """The same for the jobs of several seeds."""
    from qlassify.cli.show_seeds import SeedsView
    from qlassify.repeating import SeedEvent

    printed = True
    with SeedsView(as_json=as_json, quiet=quiet) as view, _ended(events, stop, lambda: folder):
        for event in events:
            folder = event.folder.parent if isinstance(event, SeedEvent) else folder
            printed = printed and _shown(view, event)
            require_no_request(stop)
    if not printed:
        raise typer.Exit(1)


@contextmanager
def _ended(events: Iterator[Any], stop: StopRequest, folder: Callable[[], Path | None]) -> Iterator[None]:
    """Events meanwhile, which are closed at the end; ``folder`` gives the run's folder, if it is known by then."""
    with _told_how_to_go_on(folder), asking(stop), closing(events):  # type: ignore[type-var]
        yield


@contextmanager
def _told_how_to_go_on(folder: Callable[[], Path | None]) -> Iterator[None]:
    """A signal that ends what is done meanwhile ends in a sentence that says how to go on, if there is a run to."""
    from qlassify.errors import Interrupted, StopNow
    from qlassify.runs import SEEDS, are_seeds_finished, is_finished

    try:
        yield
    except StopNow as stopped:
        path = folder()
        if path is None or not any((path / name).is_file() for name in ("run.yaml", SEEDS)):
            raise
        if is_finished(path):
            raise Interrupted(stopped.signal_number, f"the run in {path} was finished") from None
        if are_seeds_finished(path):
            raise Interrupted(stopped.signal_number, f"the runs in {path} were finished") from None
        what = "at once; what was done since the last checkpoint will be done again"
        do = f"Continue with: qlassify train --resume {path}"
        raise Interrupted(stopped.signal_number, what, do=do) from None


def _require_nothing_else(path: Path, flags: dict[str, Any], others: list[Any]) -> None:
    """A run goes on with the settings that it began with."""
    from qlassify.errors import ConfigError

    if any(other is not None and other != [] for other in others) or "seed" in flags or any(flags.values()):
        raise ConfigError(
            "--resume takes the settings that the run began with",
            where=path,
            do="Leave the other options out, or start a new run.",
        )


def _resume(path: Path, *, as_json: bool, quiet: bool) -> None:
    """The rest of an earlier run, or of the runs of several seeds."""
    with _told_how_to_go_on(lambda: path):
        from qlassify import job, repeating
        from qlassify.runs import SEEDS
        from qlassify.training.loop import StopRequest

        stop = StopRequest()
        if (path / SEEDS).is_file():
            events = repeating.resume_seeds(path, stop=stop)
            follow_seeds(events, stop, as_json=as_json, quiet=quiet, folder=path)
        else:
            follow(job.resume(path, stop=stop), stop, as_json=as_json, quiet=quiet, folder=path)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
