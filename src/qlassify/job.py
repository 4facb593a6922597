"""One training job, from a data file to a report: the order of things, as a generator of events.

    read -> label and split -> prepare: settle the settings, tokenise, plan, audit, check (``preparation``)
         -> reserve memory -> load the weights -> rehearse -> train -> save -> evaluate beside the baselines -> report

Each stage yields what it came to; the command shows it, and nothing here prints. A finished stage has written its
file, so a run that stops can be read and, from its first checkpoint on, resumed. ``resume`` walks the same road
with the settings that ``run.yaml`` records: whatever was chosen for the first half holds for the second.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qlassify import runs
from qlassify.assessment import Assessment, assess
from qlassify.config.files import layer, read_settings, write_settings
from qlassify.config.run import DataConfig, RunConfig
from qlassify.data.corpus import Corpus, ReadOptions, read_corpus
from qlassify.data.dataset import Dataset, build_dataset
from qlassify.data.labels import label_counts
from qlassify.data.long_reading import long_reading
from qlassify.data.stats import DataStats
from qlassify.dense_copies import settle_dense_copies
from qlassify.errors import CheckpointError, ConfigError, StorageError
from qlassify.pipeline import ClassifyPipeline
from qlassify.planning.devices import HOST
from qlassify.planning.memory import resident_memory_bytes
from qlassify.planning.memory_guard import MemoryGuard, reserve
from qlassify.preparation import Preparation, examine, prepare
from qlassify.recording import Recorder, write_facts
from qlassify.reporting import write_assessment
from qlassify.run_notes import model_notes, token_notes, unused_notes
from qlassify.runs import RunFolder
from qlassify.terminal import tell
from qlassify.tracking.tracker import TrackedRun
from qlassify.tracking.trackers import Trackers, require_trackers
from qlassify.training.checkpoint import RECORD, CheckpointStore
from qlassify.training.events import TrainingEvent
from qlassify.training.loop import StopRequest, TrainingLoop
from qlassify.training.probe import ProbeSolver
from qlassify.unwritten import Unwritten, unwritten_error


@dataclass(frozen=True, slots=True)
class DatasetEvent:
    """The files are read, labelled and split."""

    dataset: Dataset


@dataclass(frozen=True, slots=True)
class ModelEvent:
    """The base model is loaded, the settings are settled, the method is attached.

    Attributes:
        summary: one line on model, method and head.
        run: the settled settings.
        reason: why this precision.
        packed: whether batches run without padding.
        folder: the run folder.
    """

    summary: str
    run: RunConfig
    reason: str
    packed: bool
    folder: Path


@dataclass(frozen=True, slots=True)
class PlanEvent:
    """The rows are tokenised, the run is planned, data and settings are checked; no weight is loaded yet.

    Attributes:
        preparation: plan, audit and contracts.
    """

    preparation: Preparation


@dataclass(frozen=True, slots=True)
class NotesEvent:
    """Everything is ready; ``notes`` has a sentence for each lossy act so far."""

    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ResumeEvent:
    """An earlier run goes on after ``step``; ``problems`` names damaged checkpoints that were passed over."""

    step: int
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SavedEvent:
    """The classifier with its best weights is in ``path``; the last stage, evaluation, begins."""

    path: Path


@dataclass(frozen=True, slots=True)
class FinishedEvent:
    """The run is over.

    Attributes:
        folder: where everything is.
        assessment: scores, baselines, mistakes.
        seconds: wall time of the whole job.
        measured: what the plan's figures turned out to be.
        unwritten: file -> reason for what could not be written; the run is only over when it is empty.
        remedy: what to do about that.
    """

    folder: RunFolder
    assessment: Assessment
    seconds: float
    measured: Mapping[str, float]
    unwritten: Mapping[str, str] = field(default_factory=dict)
    remedy: str = ""

    @property
    def problem(self) -> StorageError | None:
        """What to tell of files that could not be written, and how to make them."""
        if not self.unwritten:
            return None
        path = self.folder.path
        do = f"The classifier is in {self.folder.model}. {self.remedy} Then finish with: qlassify train --resume {path}"
        return unwritten_error(dict(self.unwritten), path, do)


JobEvent = DatasetEvent | PlanEvent | ModelEvent | NotesEvent | ResumeEvent | TrainingEvent | SavedEvent | FinishedEvent


def train(
    settings: Mapping[str, Any],
    out: Path | None,
    *,
    stop: StopRequest | None = None,
    strict: bool = False,
    begin: Callable[[], None] = lambda: None,
) -> Iterator[JobEvent]:
    """Train a classifier in a new run folder.

    Args:
        settings: the user's own settings; everything they leave open is chosen for the data.
        out: the run folder; ``runs/<data>-<time>`` when None.
        stop: lets a signal handler ask for a checkpoint and an end.
        strict: refuse to start when a hyper-parameter contract warns.
        begin: called when nothing refuses the run any more, before its folder is made.

    Raises:
        QlassifyError: whatever is wrong, before anything is written if it can be known then.
    """
    started = time.perf_counter()
    asked = RunConfig.parse(settings)
    require_trackers(asked.tracking)
    if out is not None:
        runs.require_new(out)
    dataset = read_dataset(asked)
    yield DatasetEvent(dataset)
    preparation = prepare(settings, dataset)
    yield PlanEvent(preparation)
    preparation.require_contracts(strict=strict)
    preparation.require_memory()
    pipeline = preparation.pipeline
    pipeline.run = _settled(pipeline.run, preparation)
    with _reserved(preparation) as guard:
        pipeline.load_weights()
        pipeline.prepare_for(dataset)
        begin()
        with runs.create_run_folder(out or runs.default_run_path(asked.data.train, time.time())) as folder:
            write_settings(folder.config, pipeline.run.model_dump(mode="json"))
            yield from _carry_out(preparation, folder, guard, stop=stop, started=started, resumed=False)


def resume(path: Path, *, stop: StopRequest | None = None) -> Iterator[JobEvent]:
    """Continue a run where its last checkpoint stands.

    Raises:
        ConfigError: not a run folder, or another process is working in it.
        CheckpointError: the run is finished, or its data has changed.
    """
    started = time.perf_counter()
    with runs.continue_run_folder(path) as folder:
        yield from _resume(folder, stop, started)


def _resume(folder: RunFolder, stop: StopRequest | None, started: float) -> Iterator[JobEvent]:
    """Everything after the folder was opened."""
    # Runs that do not record it began when every head had a bias.
    settings = layer({"model": {"head_bias": True}}, read_settings(folder.config))
    run = RunConfig.parse(settings, where=str(folder.config))
    require_trackers(run.tracking)
    dataset = read_dataset(run)
    require_same_data(folder, dataset)
    yield DatasetEvent(dataset)
    pipeline = ClassifyPipeline.open(run.model.base, run, weights=False)
    require_same_base(folder, pipeline)
    pipeline.prepare_for(dataset)
    preparation = _examine_rest(pipeline, dataset, lowered_budget(CheckpointStore(folder.checkpoints)))
    yield PlanEvent(preparation)
    preparation.require_memory()
    with _reserved(preparation) as guard:
        pipeline.load_weights()
        pipeline.prepare_for(dataset)
        yield from _carry_out(preparation, folder, guard, stop=stop, started=started, resumed=True)


def lowered_budget(store: CheckpointStore) -> int | None:
    """The token budget that a run has come down to, by the record of its newest checkpoint; None as a rule.

    Good for a plan only. Whether the checkpoint is whole is found when it is read; what is damaged here says nothing.
    """
    paths = store.paths()
    try:
        budget = runs.read_entry(paths[-1] / RECORD, "progress", dict).get("token_budget") if paths else None
    except ConfigError:
        return None
    return budget if isinstance(budget, int) and budget > 0 else None


def _examine_rest(pipeline: ClassifyPipeline, dataset: Dataset, token_budget: int | None) -> Preparation:
    """Plan the rest of a run with the token budget that it has, which its settings do not know of."""
    settled = pipeline.run
    if token_budget is not None:
        pipeline.run = settled.replace(training={**settled.training.model_dump(), "token_budget": token_budget})
    try:
        return examine(pipeline, dataset)
    finally:
        pipeline.run = settled


def _reserved(preparation: Preparation) -> AbstractContextManager[MemoryGuard]:
    """The run's memory, in the ledger that the processes of this machine share."""
    device, runtime = preparation.pipeline.placement.device, preparation.plan.memory.runtime_bytes

    def used() -> int | None:
        if device == "cuda":
            return torch.cuda.memory_reserved() + runtime
        held = resident_memory_bytes()
        return None if held is None else max(0, held - runtime)

    on_cuda = device == "cuda"
    return reserve(
        "cuda" if on_cuda else HOST,
        preparation.plan.total_bytes if on_cuda else preparation.needed_bytes,
        task=f"train {Path(preparation.pipeline.run.data.train).name}",
        measure=used,
        tell=tell,
    )


def read_dataset(run: RunConfig) -> Dataset:
    """Read, label and split the files of a run; the columns of slices only from the file that is scored."""
    data = run.data
    if not data.train:
        raise ConfigError("no training data was given", where="data.train", wanted="a CSV, TSV, JSONL or Parquet file")
    scored = data.test or data.eval or data.train

    def read(path: str) -> Corpus:
        options = read_options(data)
        return read_corpus(path, options if path == scored else replace(options, extra=()))

    return build_dataset(
        read(data.train),
        None if data.eval is None else read(data.eval),
        None if data.test is None else read(data.test),
        fraction=data.eval_fraction,
        seed=run.seed,
    )


def read_options(data: DataConfig) -> ReadOptions:
    """How the data section says that files are to be read."""
    return ReadOptions(
        text=data.text,
        text_pair=data.text_pair,
        label=data.label,
        format=data.format,
        header=data.header,
        label_separator=data.label_separator,
        multi_label=data.multi_label,
        extra=data.slices,
    )


def _settled(run: RunConfig, preparation: Preparation) -> RunConfig:
    """The settings with everything that was ``auto`` in its place, and paths that hold from any folder."""
    pipeline, store = preparation.pipeline, preparation.store
    base = pipeline.source
    paths = {name: getattr(run.data, name) for name in ("train", "eval", "test")}
    return run.replace(
        quant=pipeline.backbone.quant,
        data={
            **run.data.model_dump(),
            **{name: str(Path(path).resolve()) for name, path in paths.items() if path is not None},
            "token_cache": "off" if store is None else str(store.folder),
        },
        model={
            **run.model.model_dump(),
            "base": str(base.directory) if base.kind == "path" else base.name,
            "pooling": pipeline.pooling,
            "head_bias": pipeline.head_bias,
            "max_length": pipeline.encoder.max_length,
            "window_overlap": pipeline.encoder.long.window_overlap,
            "precision": pipeline.placement.precision,
            "device": pipeline.placement.device,
        },
    )


def require_same_data(folder: RunFolder, dataset: Dataset) -> None:
    """The files are still those that the run began with, if it had come far enough to record them."""
    if not folder.file("data.json").is_file():
        return
    recorded = runs.read_entry(folder.file("data.json"), "files", list)
    known = {file.get("part"): file.get("sha256") for file in recorded if isinstance(file, dict)}
    for file in dataset.facts()["files"]:
        if known.get(file["part"]) != file["sha256"]:
            raise CheckpointError(
                "the data has changed since the run began",
                where=file["path"],
                got=f"SHA-256 {file['sha256'][:16]}...",
                wanted=f"{str(known.get(file['part']))[:16]}...",
                do="Restore the file, or start a new run.",
            )


def require_same_base(folder: RunFolder, pipeline: ClassifyPipeline) -> None:
    """The base model's weights are still those that the run began with, if it had come far enough to record them."""
    if not folder.file("environment.json").is_file():
        return
    known, found = runs.read_json(folder.file("environment.json")).get("base_sha256"), pipeline.source.sha256()
    if known != found:
        raise CheckpointError(
            "the base model has changed since the run began",
            where=pipeline.source.directory,
            got=f"SHA-256 {found[:16]}...",
            wanted=f"{str(known)[:16]}...",
            do="Restore it, or start a new run.",
        )


def _carry_out(
    preparation: Preparation,
    folder: RunFolder,
    guard: MemoryGuard,
    *,
    stop: StopRequest | None,
    started: float,
    resumed: bool,
) -> Iterator[JobEvent]:
    """Everything from the loaded weights to the report."""
    pipeline, dataset, encoded = preparation.pipeline, preparation.dataset, preparation.encoded
    placement, plan = pipeline.placement, preparation.plan
    yield ModelEvent(pipeline.summary(), pipeline.run, placement.reason, pipeline.backbone.packed, folder.path)
    notes = (
        *preparation.reading_notes,
        *preparation.store_notes,
        *model_notes(pipeline),
        *unused_notes(pipeline, dataset),
    )
    notes = (*notes, *token_notes(encoded, pipeline), *preparation.plan_notes, *_guard_notes(guard))
    copies = settle_dense_copies(
        pipeline.backbone,
        pipeline.run.model.dense_copies,
        plan,
        free_bytes=pipeline.free_memory_bytes(),
        dtype=placement.dtype,
    )
    notes = notes if copies is None else (*notes, copies)
    yield NotesEvent(notes)
    environment = runs.environment(
        precision=placement.precision, device=placement.device, threads=torch.get_num_threads()
    )
    loop = pipeline.training_loop(dataset, encoded, store=CheckpointStore(folder.checkpoints), stop=stop)
    if resumed:
        yield _resume_loop(loop, folder)  # first, so that what is rehearsed is what will be trained
    planned = _planned(preparation, loop)
    if not folder.file("plan.json").is_file():
        recorded = {**environment, "base_model": pipeline.source.name, "base_sha256": pipeline.source.sha256()}
        facts = {"environment": recorded, "data": _data_facts(preparation), "plan": {**planned, "measured": None}}
        write_facts(folder, facts)
    after = loop.progress.step if resumed else None
    tracked = TrackedRun(folder.path, pipeline.run.model_dump(mode="json"), after)
    unwritten = Unwritten()
    with Trackers(pipeline.run.tracking, tracked, tell) as trackers:
        recorder = Recorder(folder, trackers, unwritten, tell)
        training_started = time.perf_counter()
        yield from recorder.events(loop, resumed=resumed)
        training_seconds = time.perf_counter() - training_started
        training_peak = runs.peak_memory_bytes()
        notes = (*notes, *recorder.notes, *pipeline.calibrate(dataset.validation, encoded["validation"]))
        _save(pipeline, folder)
        yield SavedEvent(folder.model)
        assessment = assess(pipeline, dataset, encoded, notes=(*notes, *preparation.warning_notes))
        trackers.end(loop.progress.step, assessment.metrics.values)
    measured = {
        "training_seconds": round(training_seconds, 3),
        "training_peak_memory_bytes": training_peak,
        "peak_memory_bytes": runs.peak_memory_bytes(),
        "steps": loop.progress.step,
        "total_seconds": round(time.perf_counter() - started, 3),
    }
    plan_file = folder.file("plan.json")
    unwritten.attempt(plan_file.name, lambda: runs.write_json(plan_file, {**planned, "measured": measured}))
    write_assessment(folder, pipeline, assessment, environment=environment, unwritten=unwritten)
    seconds = time.perf_counter() - started
    yield FinishedEvent(folder, assessment, seconds, measured, unwritten.as_dict(), unwritten.remedy)


def _planned(preparation: Preparation, loop: TrainingLoop | ProbeSolver) -> dict[str, Any]:
    """What ``plan.json`` says before the run: the plan, and the time that a rehearsed step promises."""
    planned = preparation.plan.as_dict()
    if isinstance(loop, TrainingLoop):
        planned = {**planned, **preparation.seconds(loop.rehearse())}
    return {
        "verdict": preparation.verdict,
        "planned": planned,
        "contracts": preparation.contracts.as_dict(),
    }


def _save(pipeline: ClassifyPipeline, folder: RunFolder) -> None:
    """Write the classifier, which is what the run was for.

    Raises:
        StorageError: it cannot be written; the checkpoints have what it is made of.
    """
    try:
        pipeline.save(folder.model)
    except OSError as error:
        raise StorageError(
            "the classifier is trained and cannot be written",
            where=folder.model,
            got=error,
            do=f"Make room or fix the permissions, then continue with: qlassify train --resume {folder.path}",
        ) from None


def _guard_notes(guard: MemoryGuard) -> tuple[str, ...]:
    return () if guard.off is None else (guard.off,)


def _resume_loop(loop: TrainingLoop | ProbeSolver, folder: RunFolder) -> ResumeEvent:
    """Put the newest whole checkpoint into the loop; without one, the run starts from its beginning."""
    checkpoint, problems = CheckpointStore(folder.checkpoints).latest()
    if checkpoint is not None:
        loop.resume(checkpoint)
    return ResumeEvent(loop.progress.step, problems)


def _data_facts(preparation: Preparation) -> dict[str, Any]:
    dataset, encoded, pipeline = preparation.dataset, preparation.encoded, preparation.pipeline
    counts = label_counts(dataset.train.targets, len(dataset.labels))
    summary = DataStats.from_corpus(encoded["train"], counts)
    return {
        **dataset.facts(),
        "train_tokens": dict(preparation.stats),
        "truncated": {name: part.num_truncated for name, part in encoded.items()},
        "long_texts": {
            name: long_reading(part, pipeline.encoder, pair=pipeline.text_pair).as_dict()
            for name, part in encoded.items()
        },
        "lost_tokens": {name: int(np.sum(part.lost_tokens)) for name, part in encoded.items()},
        "stats": {
            "p99_token_length": summary.p99_token_length,
            "imbalance_ratio": round(summary.imbalance_ratio, 3),
            "minority_count": summary.minority_count,
        },
        "audit": None if preparation.audit is None else preparation.audit.as_dict(),
    }
