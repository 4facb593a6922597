"""Scoring a classifier on labelled rows: metrics, baselines, and the files that a program reads.

The baselines see the same training rows and the same scored rows as the model. Without them a score says nothing: 88 %
is a failure where the majority class has 90 %.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qlassify import runs
from qlassify.data.dataset import Dataset, LabelledRows
from qlassify.data.labels import LabelMap
from qlassify.data.tokenise import Encoded
from qlassify.durable import whole_file
from qlassify.evaluation.baselines import Baseline, TfidfBaseline, majority_baseline
from qlassify.evaluation.decision import DecisionRule
from qlassify.evaluation.decision_scores import DecisionScores, evaluate_answers, score_decisions
from qlassify.evaluation.intervals import Interval, multi_label_intervals, single_label_intervals
from qlassify.evaluation.metrics import Metrics, known_labels
from qlassify.evaluation.minority import minority_notes
from qlassify.evaluation.predict import predict_logits, probabilities
from qlassify.evaluation.slices import SliceScores, row_groups, slice_scores
from qlassify.pipeline import ClassifyPipeline
from qlassify.seeding import numpy_generator
from qlassify.unwritten import Unwritten

PREDICTIONS = "predictions.parquet"
METRICS = "metrics.json"
"""File of the scores; the last one of an evaluation that is written."""


@dataclass(frozen=True, slots=True, eq=False)
class Assessment:
    """How a classifier does on some rows.

    Attributes:
        part: what the rows are called: ``test``, ``validation``, or a file's name.
        rows: the rows.
        probabilities: (N, C).
        labels: the classes.
        metrics: scores.
        baselines: scores of the baselines on the same rows.
        predicting_seconds: wall time of computing the probabilities.
        notes: a sentence, with its number, for each thing a reader should know.
        rule: how the answers were read off the probabilities.
        decisions: what the rule is worth.
        intervals: 95 % intervals of some of the scores, by their names in ``metrics.values``.
        slices: scores by length of the texts and by the columns that were asked for.
    """

    part: str
    rows: LabelledRows
    probabilities: npt.NDArray[np.float64]
    labels: LabelMap
    metrics: Metrics
    baselines: tuple[Baseline, ...]
    predicting_seconds: float
    notes: tuple[str, ...]
    rule: DecisionRule
    decisions: DecisionScores
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    slices: tuple[SliceScores, ...] = ()

    @property
    def rows_per_second(self) -> float:
        """Throughput of predicting, tokenising not included."""
        return len(self.rows) / self.predicting_seconds if self.predicting_seconds > 0 else 0.0


def assess(
    pipeline: ClassifyPipeline, dataset: Dataset, encoded: Mapping[str, Encoded], *, notes: tuple[str, ...]
) -> Assessment:
    """Score a run's test rows, or its validation rows when it has no test file, and the baselines beside them."""
    part = "test" if dataset.test is not None else "validation"
    rows = dataset.parts()[part]
    if part == "validation":
        notes = (
            *notes,
            "The scored rows also chose the best weights, so the score is a little kind; give --test for one that is "
            "not.",
        )
    return assess_rows(pipeline, rows, encoded[part], part=part, train=dataset.train, notes=notes)


def assess_rows(
    pipeline: ClassifyPipeline,
    rows: LabelledRows,
    encoded: Encoded,
    *,
    part: str,
    train: LabelledRows | None,
    notes: tuple[str, ...],
) -> Assessment:
    """Score any labelled rows; the baselines are fitted on ``train`` and left out without it."""
    labels, settings = pipeline.labels, pipeline.run.evaluation
    started = time.perf_counter()
    logits = predict_logits(pipeline.trainable.classifier, encoded)
    seconds = time.perf_counter() - started
    rule, multi_label = pipeline.decision, labels.multi_label
    scores = probabilities(logits, multi_label=multi_label)
    metrics = evaluate_answers(rule, rows.targets, scores, labels.names, multi_label=multi_label)
    decisions = score_decisions(
        rule,
        scores,
        probabilities(np.float32(rule.temperature) * logits, multi_label=multi_label),
        rows.targets,
        labels.names,
        multi_label=multi_label,
    )
    baselines: tuple[Baseline, ...] = ()
    if settings.baselines and train is not None:
        baselines = fit_baselines(train, rows, labels, seed=pipeline.run.seed)
    predicted = rule.flags(scores) if multi_label else rule.classes(scores)
    return Assessment(
        part,
        rows,
        scores,
        labels,
        metrics,
        baselines,
        seconds,
        (*notes, *minority_notes(metrics)),
        rule,
        decisions,
        intervals=_intervals(metrics, rows, predicted, seed=pipeline.run.seed),
        slices=slice_scores(
            rows.targets,
            predicted,
            row_groups(encoded.whole_lengths, encoded.lost_tokens, rows.corpus.extra),
            multi_label=multi_label,
            num_classes=len(labels),
        ),
    )


def _intervals(
    metrics: Metrics, rows: LabelledRows, predicted: npt.NDArray[Any], *, seed: int
) -> Mapping[str, Interval]:
    """Intervals of the scores of decisions; ``predicted`` (N, C) is looked at for multi-label only."""
    generator = numpy_generator(seed, "bootstrap")
    if metrics.confusion is not None:
        return single_label_intervals(np.array(metrics.confusion), generator)
    truth, known = known_labels(rows.targets, predicted.shape)
    return multi_label_intervals(truth, predicted, known, generator)


def fit_baselines(train: LabelledRows, rows: LabelledRows, labels: LabelMap, *, seed: int) -> tuple[Baseline, ...]:
    """The majority class and TF-IDF + logistic regression, fitted on ``train`` and scored on ``rows``."""
    majority = majority_baseline(train.targets, rows.targets, labels.names, multi_label=labels.multi_label)
    tfidf = TfidfBaseline.fit(
        train.corpus.texts,
        train.targets,
        multi_label=labels.multi_label,
        num_classes=len(labels),
        pairs=train.corpus.pairs,
        seed=seed,
    )
    return majority, tfidf.evaluate(rows.corpus.texts, rows.targets, labels.names, pairs=rows.corpus.pairs)


def write_scores(directory: Path, assessment: Assessment, unwritten: Unwritten) -> None:
    """Write predictions.parquet and, last and only if nothing is missing, metrics.json: where it is, all is there.

    Args:
        directory: made if need be.
        assessment: the scores.
        unwritten: is told what could not be written, and may know already of something.
    """
    forget_scores(directory, unwritten)

    def write_rows() -> None:
        with whole_file(directory / PREDICTIONS) as scratch:
            write_predictions(scratch, assessment)

    unwritten.attempt(PREDICTIONS, write_rows)
    if unwritten:
        unwritten.add(METRICS, "it is written last, when nothing else is missing")
    else:
        unwritten.attempt(METRICS, lambda: runs.write_json(directory / METRICS, as_json(assessment)))


def forget_scores(directory: Path, unwritten: Unwritten) -> None:
    """Remove the scores of an earlier evaluation before anything else of it is replaced."""
    unwritten.attempt(METRICS, lambda: (directory / METRICS).unlink(missing_ok=True))


def as_json(assessment: Assessment) -> dict[str, Any]:
    """Scores and baselines for a machine."""
    return {
        "evaluated_on": assessment.part,
        **assessment.metrics.as_dict(),
        "intervals": {name: [one.low, one.high] for name, one in assessment.intervals.items()},
        "slices": [one.as_dict() for one in assessment.slices],
        "rows_per_second": round(assessment.rows_per_second, 1),
        "baselines": {one.name: one.metrics.as_dict()["values"] for one in assessment.baselines},
        "decision": assessment.rule.model_dump(mode="json"),
        "decisions": assessment.decisions.as_dict(),
        "notes": list(assessment.notes),
    }


def write_predictions(path: Path, assessment: Assessment) -> None:
    """One line per scored row: row number, text, true and predicted labels, probability of each label.

    The file is written where it is asked for, as far as there is room; ``whole_file`` makes it all or nothing. For a
    classifier that abstains, a column says on which rows; their predicted label is the one that is withheld.

    Raises:
        OSError: the file cannot be written.
    """
    import polars

    corpus = assessment.rows.corpus
    rule, scores = assessment.rule, assessment.probabilities
    predicted = rule.replace(abstain_below=None).answers(scores, assessment.labels)
    listed = [[label] if isinstance(label, str) else list(label or ()) for label in predicted]
    columns: dict[str, Any] = {"row": list(corpus.rows), "text": list(corpus.texts)}
    if corpus.pairs is not None:
        columns["text_pair"] = list(corpus.pairs)
    columns["true"] = [list(labels) for labels in corpus.labels]
    columns["predicted"] = polars.Series(listed, dtype=polars.List(polars.String))
    if rule.abstain_below is not None:
        columns["abstained"] = rule.abstains(scores)
    for index, name in enumerate(assessment.labels.names):
        columns[f"p({name})"] = assessment.probabilities[:, index]
    try:
        polars.DataFrame(columns).write_parquet(path)
    except polars.exceptions.PolarsError as error:  # which a full disk is to polars
        raise OSError(str(error)) from None
