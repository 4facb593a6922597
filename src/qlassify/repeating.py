"""The same training with several seeds: how much of a score is the seed's doing.

    RUN/seeds.json       what was asked, each run's scores, mean and spread
    RUN/seed-42/         a run folder like any other
    RUN/seed-43/         ...

Every seed is a whole job of its own, with bitwise the result of ``train --seed N``: a seed decides the held-out rows,
and with them tokens, audit and plan, so there is little that the runs could share. Reading the file once and handing
it on was the alternative; it would save seconds and cost that promise. What a run came to is read from its folder and
kept nowhere else, so it does not matter which process trained it.

The best seed is the one with the best validation score. Choosing by the test score would make that score too kind; the
mean over seeds stays the honest figure for the method.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qlassify import job, runs
from qlassify.config.files import layer, read_settings
from qlassify.config.run import RunConfig
from qlassify.errors import CheckpointError, ConfigError, Interrupted, StorageError
from qlassify.job import DatasetEvent, FinishedEvent, JobEvent, PlanEvent
from qlassify.models.file_base import is_file_base
from qlassify.run_lock import clear_leavings, own_run
from qlassify.runs import SEEDS, RunFolder
from qlassify.training.loop import StopRequest, is_better


@dataclass(frozen=True, slots=True)
class SeedResult:
    """What one seed's run came to.

    Attributes:
        seed: the seed.
        folder: its run folder, by its name in the outer folder.
        evaluated_on: ``test`` or ``validation``.
        values: the scores by name; None where one has no meaning.
        metric: the score by which weights were chosen.
        validation_score: its value on the validation rows, for the weights that were kept.
        best_step: the step of those weights.
        training_seconds: wall time of training.
    """

    seed: int
    folder: str
    evaluated_on: str
    values: Mapping[str, float | None]
    metric: str
    validation_score: float | None
    best_step: int
    training_seconds: float


@dataclass(frozen=True, slots=True)
class Spread:
    """One score over the runs in which it has a meaning.

    Attributes:
        runs: how many.
        mean: their mean.
        standard_deviation: the sample's (divided by runs - 1); None for one run.
        min: the smallest value.
        max: the largest.
    """

    runs: int
    mean: float
    standard_deviation: float | None
    min: float
    max: float


@dataclass(frozen=True, slots=True)
class SeedEvent:
    """The run of a seed begins; the events of its job follow.

    Attributes:
        seed: the seed.
        number: which of the runs it is, from 1.
        count: how many there are.
        folder: its run folder.
    """

    seed: int
    number: int
    count: int
    folder: Path


@dataclass(frozen=True, slots=True)
class SeedDoneEvent:
    """The run of a seed is finished, now or in an earlier process."""

    result: SeedResult


@dataclass(frozen=True, slots=True)
class SeedsFinishedEvent:
    """All runs are finished.

    Attributes:
        folder: the outer folder.
        results: of each seed.
        spreads: of each score.
        best: the result with the best validation score, the first of equals; None if no run has one.
        notes: a sentence for each thing that a reader should know.
    """

    folder: Path
    results: tuple[SeedResult, ...]
    spreads: Mapping[str, Spread]
    best: SeedResult | None
    notes: tuple[str, ...]


RepeatEvent = JobEvent | SeedEvent | SeedDoneEvent | SeedsFinishedEvent


@dataclass(frozen=True, slots=True)
class _Request:
    """What was asked for, as ``seeds.json`` keeps it for the runs that are still to come."""

    folder: Path
    seeds: tuple[int, ...]
    settings: Mapping[str, Any]
    strict: bool


def train_seeds(
    settings: Mapping[str, Any],
    out: Path | None,
    *,
    count: int,
    stop: StopRequest | None = None,
    strict: bool = False,
) -> Iterator[RepeatEvent]:
    """Train with ``count`` seeds, one after another: the settings' own seed and the numbers after it.

    Args:
        settings: as for ``job.train``.
        out: the outer folder; ``runs/<data>-<time>`` when None.
        count: how many seeds, at least 2.
        stop: lets a signal handler ask for a checkpoint and an end.
        strict: refuse to start when a hyper-parameter contract warns.

    Raises:
        QlassifyError: whatever ``job.train`` refuses, or fewer than two seeds.
    """
    if count < 2:
        raise ConfigError(
            "a spread needs several runs", where="--seeds", got=count, wanted="2 or more", do="Or leave --seeds out."
        )
    asked = RunConfig.parse(settings)
    folder = out or runs.default_run_path(asked.data.train, time.time())
    runs.require_new(folder)
    seeds = tuple(range(asked.seed, asked.seed + count))
    request = _Request(folder, seeds, _from_anywhere(settings, asked), strict)
    with _Outer(request) as outer:
        yield from _carry_on(request, stop, outer)


def resume_seeds(path: Path, *, stop: StopRequest | None = None) -> Iterator[RepeatEvent]:
    """Finish the runs of a folder that ``train_seeds`` began: the interrupted one, then those that never started.

    Raises:
        ConfigError: not such a folder, or another process is working in it.
        CheckpointError: every run is finished, or data or base model have changed.
    """
    record = runs.read_json(path / SEEDS)
    try:
        seeds = tuple(int(seed) for seed in record["seeds"])
        request = _Request(path, seeds, dict(record["settings"]), bool(record["strict"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError("cannot read a file of the run", where=path / SEEDS, got=error) from None
    if runs.are_seeds_finished(path):
        raise CheckpointError("the runs of all seeds are finished", where=path, do=f"Look at {path / SEEDS}.")
    with _Outer(request) as outer:
        outer.own()
        clear_leavings(path)
        yield from _carry_on(request, stop, outer)


def folder_name(seed: int) -> str:
    """The name of a seed's run folder."""
    return f"seed-{seed}"


def _from_anywhere(settings: Mapping[str, Any], asked: RunConfig) -> Mapping[str, Any]:
    """The user's settings with paths that hold from any folder, since a later process may stand elsewhere."""
    files = {name: getattr(asked.data, name) for name in ("train", "eval", "test")}
    paths: dict[str, Any] = {
        "data": {name: str(Path(path).resolve()) for name, path in files.items() if path},
    }
    base = Path(asked.model.base).expanduser()
    if base.is_dir() or is_file_base(base):
        paths["model"] = {"base": str(base.resolve())}
    return layer(settings, paths)


class _Outer:
    """The outer folder while this process works in it; let go of at the end of a ``with``."""

    def __init__(self, request: _Request) -> None:
        self._request = request
        self._held = ExitStack()
        self._owned = False

    def __enter__(self) -> _Outer:
        return self

    def __exit__(self, *error: object) -> None:
        self._held.close()

    def own(self) -> None:
        """Keep other processes out of the folder, which is there."""
        self._held.enter_context(own_run(self._request.folder))
        self._owned = True

    def begin(self) -> None:
        """Make it, before the first run's: a process that dies between the two leaves what can be resumed.

        Called before each run that is new; does nothing once the folder is this process's.

        Raises:
            ConfigError: another process has taken the folder since it was found empty.
        """
        if not self._owned:
            self._request.folder.mkdir(parents=True, exist_ok=True)
            self.own()
            runs.require_empty(self._request.folder)
            _write(self._request, [])


def _carry_on(request: _Request, stop: StopRequest | None, outer: _Outer) -> Iterator[RepeatEvent]:
    """Every seed in turn: finished ones are read, others trained or resumed."""
    folder, results = request.folder, []
    for number, seed in enumerate(request.seeds, 1):
        inner = folder / folder_name(seed)
        if not runs.is_finished(inner):
            yield SeedEvent(seed, number, len(request.seeds), inner)
            yield from _one_seed(request, seed, stop, outer)
        results.append(_read_result(inner, seed))
        _write(request, results)
        gc.collect()  # models hold themselves in circles, and the next one needs the memory
        yield SeedDoneEvent(results[-1])
    yield SeedsFinishedEvent(folder, tuple(results), spreads(results), best_of(results), _notes(request))


def _one_seed(request: _Request, seed: int, stop: StopRequest | None, outer: _Outer) -> Iterator[JobEvent]:
    """One job; its last event, with the predictions in it, is left out: the folder has them."""
    inner = request.folder / folder_name(seed)
    if RunFolder(inner).config.is_file():
        events = job.resume(inner, stop=stop)
    else:
        settings = {**request.settings, "seed": seed}
        events = job.train(settings, inner, stop=stop, strict=request.strict, begin=outer.begin)
    first = RunFolder(request.folder / folder_name(request.seeds[0]))
    try:
        with closing(events):  # type: ignore[type-var]
            for event in events:
                if isinstance(event, DatasetEvent):
                    job.require_same_data(first, event.dataset)
                elif isinstance(event, PlanEvent):
                    job.require_same_base(first, event.preparation.pipeline)
                if not isinstance(event, FinishedEvent):
                    yield event
                elif event.problem is not None:
                    raise event.problem
    except Interrupted as stopped:
        if not (request.folder / SEEDS).is_file():
            raise
        what = stopped.what.partition(": ")[2]
        do = f"Continue with: qlassify train --resume {request.folder}"
        raise Interrupted(stopped.signal_number, what, do=do) from None
    except StorageError as full:
        do = f"Make room, then continue with: qlassify train --resume {request.folder}"
        raise StorageError(full.what, where=full.where, got=full.got, do=do) from None


def _read_result(inner: Path, seed: int) -> SeedResult:
    """What a finished run came to, from its files."""
    folder = RunFolder(inner)
    scores = runs.read_json(folder.evaluation / "metrics.json")
    end = next((event for event in runs.read_events(folder.metrics) if event["event"] == "end"), None)
    if end is None:
        raise ConfigError("the run's events do not say how it ended", where=folder.metrics)
    run = RunConfig.parse(read_settings(folder.config), where=str(folder.config))
    return SeedResult(
        seed=seed,
        folder=inner.name,
        evaluated_on=scores["evaluated_on"],
        values=scores["values"],
        metric=run.training.selection_metric,
        validation_score=end["best_score"],
        best_step=end["best_step"],
        training_seconds=runs.read_json(folder.file("plan.json"))["measured"]["training_seconds"],
    )


def spreads(results: list[SeedResult]) -> dict[str, Spread]:
    """Mean and spread of every score that has a meaning in at least one run."""
    found: dict[str, Spread] = {}
    for name in results[0].values:
        values = [value for one in results if (value := one.values.get(name)) is not None]
        if values:
            deviation = statistics.stdev(values) if len(values) > 1 else None
            # Dividing may round the mean of equal values past them.
            mean = min(max(math.fsum(values) / len(values), min(values)), max(values))
            found[name] = Spread(len(values), mean, deviation, min(values), max(values))
    return found


def best_of(results: list[SeedResult]) -> SeedResult | None:
    """The run with the best validation score, the first of equals; None if none has one."""
    best: SeedResult | None = None
    for one in results:
        if is_better(one.validation_score, None if best is None else best.validation_score, one.metric):
            best = one
    return best


def _notes(request: _Request) -> tuple[str, ...]:
    data = RunConfig.parse(request.settings).data
    if data.eval is not None:
        return ()
    notes = [
        "Each seed held out validation rows of its own. The spread contains that choice, and validation scores of "
        "different seeds are of different rows; give --eval to keep them the same."
    ]
    if data.test is None:
        notes.append("There is no test file, so the scores are of those different rows, too.")
    return tuple(notes)


def as_json(request_seeds: tuple[int, ...], results: list[SeedResult], notes: tuple[str, ...]) -> dict[str, Any]:
    """Scores, spread and the best seed for a machine."""
    best = best_of(results)
    return {
        "seeds": list(request_seeds),
        "finished": len(results) == len(request_seeds),
        "runs": [asdict(one) for one in results],
        "scores": {name: asdict(one) for name, one in spreads(results).items()} if results else {},
        "best": None if best is None else {"seed": best.seed, "folder": best.folder},
        "notes": list(notes),
    }


def _write(request: _Request, results: list[SeedResult]) -> None:
    record = as_json(request.seeds, results, _notes(request))
    asked = {"settings": request.settings, "strict": request.strict}
    runs.write_json(request.folder / SEEDS, {**record, **asked})
