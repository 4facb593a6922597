"""Jobs on a trained classifier: score a labelled file, predict a file of any size."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from qlassify import runs
from qlassify.assessment import Assessment, assess_rows, write_scores
from qlassify.config.files import layer, read_settings
from qlassify.config.run import DataConfig, RunConfig
from qlassify.data.corpus import ReadOptions, read_corpus
from qlassify.data.dataset import Dataset, label_rows
from qlassify.data.rows import RowChunk, iter_text_rows
from qlassify.errors import ConfigError, QlassifyError, StorageError
from qlassify.evaluation.decision import Answer, named_sets
from qlassify.job import read_dataset, read_options, require_same_data
from qlassify.pipeline import ClassifyPipeline
from qlassify.reporting import REPORT, write_assessment
from qlassify.run_notes import token_notes
from qlassify.runs import RunFolder
from qlassify.unwritten import Unwritten, unwritten_error

CHUNK_ROWS = 2048
"""Rows in memory at once while predicting a file."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """An assessment and what was written of it.

    Attributes:
        assessment: the scores.
        directory: where scores and predictions are; None where nothing was written.
        report: the report; None where it could not be written (``unwritten`` names it then), and for a model folder
            without its run, which cannot say how it was trained.
        unwritten: file -> reason for what could not be written.
        remedy: what to do about that.
    """

    assessment: Assessment
    directory: Path | None
    report: Path | None
    unwritten: Mapping[str, str] = field(default_factory=dict)
    remedy: str = ""

    @property
    def problem(self) -> StorageError | None:
        """What to tell of files that could not be written."""
        if not self.unwritten or self.directory is None:
            return None
        do = f"{self.remedy} Then give the same command again."
        return unwritten_error(dict(self.unwritten), self.directory, do)


@dataclass(frozen=True, slots=True)
class Prediction:
    """One row's answer.

    Attributes:
        row: number of the row in its file, from 1.
        label: the label, or the tuple of labels when multi-label; empty with an error; None where the classifier
            abstains.
        probabilities: (C,) in the order of the labels; empty with an error.
        error: why the row could not be predicted, or None.
        label_set: the labels of which one is the true one with the promised coverage, the likeliest first; None
            where nobody asked.
    """

    row: int
    label: Answer
    probabilities: tuple[float, ...]
    error: str | None = None
    label_set: tuple[str, ...] | None = None


def evaluate_run(
    path: Path,
    data: Path,
    reading: Mapping[str, Any],
    *,
    base: str | None = None,
    device: str = "auto",
    out: Path | None = None,
) -> Evaluation:
    """Score a trained classifier on a labelled file.

    Args:
        path: a run folder, or a model folder (then without baselines).
        data: the file.
        reading: settings of the data section that say how to read it; the run's own are the default.
        base: where the base model is, if it is not where it was.
        device: ``auto``, ``cpu`` or ``cuda``.
        out: folder for scores, predictions and report; ``RUN/evaluation/<file>`` when None. For a model folder scores
            and predictions are written if it is given; a report needs the run.
    """
    if out is not None:
        _require_folder(out)
    pipeline = ClassifyPipeline.load(path, device=device, base=base)
    folder, run = run_of(path)
    corpus = read_corpus(data, reading_options(run, reading))
    pipeline.require_pairs(corpus.pairs is not None)
    rows = label_rows(corpus, pipeline.labels)
    train, notes = _training_rows(folder, run)
    if rows.rejections:
        notes = (*notes, f"{len(rows.rejections)} rows have labels that were not seen in training; they are left out.")
    if corpus.rejections:
        notes = (*notes, f"{len(corpus.rejections)} of {corpus.total_rows} rows were rejected.")
    encoded = pipeline.encode_corpus(rows.corpus)
    notes = (*notes, *token_notes({data.name: encoded}, pipeline))
    if run is not None:
        pipeline.run = pipeline.run.replace(
            evaluation=run.evaluation.model_dump(), data=run.data.model_dump(), seed=run.seed
        )
    assessment = assess_rows(
        pipeline, rows, encoded, part=data.name, train=None if train is None else train.train, notes=notes
    )
    directory, report = out, None
    unwritten = Unwritten()
    if folder is None and out is not None:
        write_scores(out, assessment, unwritten)
    if folder is not None:
        directory = out or folder.evaluation / data.name.split(".")[0]
        environment = runs.environment(
            precision=pipeline.placement.precision,
            device=pipeline.placement.device,
            threads=torch.get_num_threads(),
        )
        write_assessment(
            folder, pipeline, assessment, environment=environment, unwritten=unwritten, directory=directory
        )
        report = None if REPORT in unwritten.as_dict() else directory / REPORT
    return Evaluation(assessment, directory, report, unwritten.as_dict(), unwritten.remedy)


def _require_folder(path: Path) -> None:
    """Refuse a place where no folder can be, before anything is computed that would be lost there."""
    nearest = next((one for one in (path, *path.parents) if one.exists()), None)
    if nearest is not None and not nearest.is_dir():
        raise ConfigError(
            "cannot write scores there",
            where=path,
            got=f"{nearest}, which is a file",
            wanted="a folder, new or old",
            do="Choose another with --out.",
        )


READING = ("text", "text_pair", "label", "label_separator", "header", "multi_label")


def reading_options(run: RunConfig | None, reading: Mapping[str, Any]) -> ReadOptions:
    """How to read a labelled file for a trained classifier: as asked, and else as its run read the training rows."""
    own = {} if run is None else run.data.model_dump(include=set(READING))
    return read_options(
        DataConfig.parse(layer({key: value for key, value in own.items() if value is not None}, reading))
    )


def run_of(path: Path) -> tuple[RunFolder | None, RunConfig | None]:
    """The run folder that ``path`` is or lies in, with its settings; None twice when there is none."""
    for candidate in (path, path.resolve().parent):
        folder = RunFolder(candidate)
        if folder.config.is_file() and folder.file("data.json").is_file():
            return folder, RunConfig.parse(read_settings(folder.config), where=str(folder.config))
    return None, None


def _training_rows(folder: RunFolder | None, run: RunConfig | None) -> tuple[Dataset | None, tuple[str, ...]]:
    """The run's data set, for the baselines, or a note why they are left out."""
    if folder is None or run is None:
        return None, ("The baselines are left out: a model folder does not say what it was trained on.",)
    try:
        dataset = read_dataset(run)
        require_same_data(folder, dataset)
        return dataset, ()
    except QlassifyError as error:
        return None, (f"The baselines are left out: the training data cannot be used ({error.what}).",)


def predict_texts(
    pipeline: ClassifyPipeline, texts: Sequence[str], pairs: Sequence[str] | None, *, sets: bool = False
) -> list[Prediction]:
    """Predictions for texts at hand, numbered from 1, with label sets if asked for; a blank text has an error."""
    pipeline.require_pairs(pairs is not None)
    blank = [not text.strip() for text in texts]
    kept = [index for index, empty in enumerate(blank) if not empty]
    answers = _answer(
        pipeline,
        [texts[i] for i in kept],
        None if pairs is None else [pairs[i] for i in kept],
        [i + 1 for i in kept],
        sets=sets,
    )
    errors = [Prediction(index + 1, (), (), "blank text") for index, empty in enumerate(blank) if empty]
    return sorted(answers + errors, key=lambda prediction: prediction.row)


def predict_file(
    pipeline: ClassifyPipeline, path: Path, source: str, reading: Mapping[str, Any], *, sets: bool = False
) -> Iterator[list[Prediction]]:
    """Predictions for a file of any size, chunk by chunk, in the order of its rows.

    Args:
        pipeline: the classifier.
        path: the run or model folder it comes from; columns that the run was told by name are the default.
        source: a path, or ``-`` for standard input.
        reading: settings that say how to read it.
        sets: give label sets, too.
    """
    _, run = run_of(path)
    own = (
        {} if run is None or not _has_columns(source) else run.data.model_dump(include={"text", "text_pair", "header"})
    )
    settings = layer({key: value for key, value in own.items() if value is not None}, reading)
    options = read_options(DataConfig.parse(settings))
    origin = sys.stdin.buffer if source == "-" else source
    for chunk in iter_text_rows(origin, options, wants_pair=pipeline.text_pair, chunk_rows=CHUNK_ROWS):
        yield _predict_chunk(pipeline, chunk, sets=sets)


def _has_columns(source: str) -> bool:
    """Whether rows have columns at all: not so for one text a line."""
    if source != "-":
        return Path(source).suffix.lower() != ".txt"
    stream = sys.stdin.buffer
    return isinstance(stream, io.BufferedReader) and stream.peek(4096).lstrip()[:1] == b"{"


def _predict_chunk(pipeline: ClassifyPipeline, chunk: RowChunk, *, sets: bool) -> list[Prediction]:
    answers = _answer(pipeline, chunk.texts, chunk.pairs, chunk.rows, sets=sets)
    errors = [Prediction(rejection.row, (), (), rejection.reason) for rejection in chunk.rejections]
    return sorted(answers + errors, key=lambda prediction: prediction.row)


def _answer(
    pipeline: ClassifyPipeline, texts: Sequence[str], pairs: Sequence[str] | None, rows: Sequence[int], *, sets: bool
) -> list[Prediction]:
    if not texts:
        return []
    scores = pipeline.predict_proba(texts, pairs)
    rule = pipeline.decision
    answers = rule.answers(scores, pipeline.labels)
    named = named_sets(scores, rule.require_sets(scores), pipeline.labels) if sets else [None] * len(rows)
    return [
        Prediction(row, answer, tuple(values), label_set=label_set)
        for row, answer, values, label_set in zip(rows, answers, scores.tolist(), named, strict=True)
    ]
