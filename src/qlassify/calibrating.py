"""Choosing the decisions of a trained classifier anew: another file, other costs, another coverage, the same weights.

Training chooses them on the validation rows, which also chose the best weights. Rows that nobody has looked at make
the promises exact, and costs are often known only when the classifier is about to be used. Neither is a reason to
train again.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qlassify.artifact import model_folder
from qlassify.config.files import layer
from qlassify.config.run import EvaluationConfig
from qlassify.data.corpus import read_corpus
from qlassify.data.dataset import LabelledRows, label_rows
from qlassify.errors import ConfigError, DataError
from qlassify.evaluation.decision import DecisionRule
from qlassify.evaluation.decision_fit import MIN_ROWS
from qlassify.evaluation.decision_scores import evaluate_answers
from qlassify.evaluation.metrics import Metrics
from qlassify.evaluation.predict import predict_logits, probabilities
from qlassify.job import read_dataset, require_same_data
from qlassify.pipeline import ClassifyPipeline
from qlassify.run_lock import own_run
from qlassify.scoring import reading_options, run_of


@dataclass(frozen=True, slots=True)
class Calibration:
    """What calibrating came to.

    Attributes:
        directory: the model folder that was written.
        part: what the rows are called.
        labels: the classes.
        former: the rule that was replaced.
        rule: the one in its place.
        before: scores of the rows with the former rule.
        after: with the new one; both were made on the rows on which the new one was chosen.
        notes: a sentence for what could not be chosen.
    """

    directory: Path
    part: str
    labels: tuple[str, ...]
    former: DecisionRule
    rule: DecisionRule
    before: Metrics
    after: Metrics
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """For a machine."""
        return {
            "model": str(self.directory),
            "rows": self.after.num_rows,
            "part": self.part,
            "labels": list(self.labels),
            "former_decision": self.former.model_dump(mode="json"),
            "decision": self.rule.model_dump(mode="json"),
            "before": dict(self.before.values),
            "after": dict(self.after.values),
            "notes": list(self.notes),
        }


def calibrate_run(
    path: Path,
    data: Path | None,
    reading: Mapping[str, Any],
    wanted: Mapping[str, Any],
    *,
    base: str | None = None,
    device: str = "auto",
) -> Calibration:
    """Choose temperature, thresholds and label sets of a saved classifier anew, and save it.

    Args:
        path: a run folder, or a model folder.
        data: labelled rows that were not trained on; the run's validation rows when None.
        reading: settings of the data section that say how to read them; the run's own are the default.
        wanted: settings of the evaluation section; the run's own are the default.
        base: where the base model is, if it is not where it was.
        device: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        ConfigError: the settings ask for a decision that these labels have no place for, or no rows are given and none
            are known; or another process is writing into the run.
        DataError: the rows are too few; the saved classifier is as it was.
    """
    folder, _ = run_of(path)
    with nullcontext() if folder is None else own_run(folder.path):
        return _calibrate(path, data, reading, wanted, base=base, device=device)


def _calibrate(
    path: Path,
    data: Path | None,
    reading: Mapping[str, Any],
    wanted: Mapping[str, Any],
    *,
    base: str | None,
    device: str,
) -> Calibration:
    pipeline = ClassifyPipeline.load(path, device=device, base=base)
    _, run = run_of(path)
    own = EvaluationConfig() if run is None else run.evaluation
    settings = EvaluationConfig.parse(layer(own.model_dump(), wanted))
    pipeline.run = pipeline.run.replace(evaluation=settings.model_dump())
    rows, part = _rows(path, pipeline, data, reading)
    if settings.calibrate and len(rows) < MIN_ROWS:
        raise DataError(
            "too few rows to choose decisions on",
            where=part,
            got=f"{len(rows)} rows",
            wanted=f"{MIN_ROWS} or more",
            do="Give a file with more rows, or --plain for costs and abstentions without calibration.",
        )
    encoded = pipeline.encode_corpus(rows.corpus)
    logits = predict_logits(pipeline.trainable.classifier, encoded)
    former, before = pipeline.decision, _scores(pipeline, rows, logits)
    notes = pipeline.calibrate(rows, encoded, logits)
    cooled = logits * np.float32(former.temperature / pipeline.decision.temperature)
    after = _scores(pipeline, rows, cooled)
    directory = model_folder(path)
    pipeline.save(directory)
    return Calibration(directory, part, pipeline.labels.names, former, pipeline.decision, before, after, notes)


def _scores(pipeline: ClassifyPipeline, rows: LabelledRows, logits_NC: npt.NDArray[np.float32]) -> Metrics:
    """The scores of rows whose logits are known."""
    labels, multi_label = pipeline.labels, pipeline.labels.multi_label
    scores = probabilities(logits_NC, multi_label=multi_label)
    return evaluate_answers(pipeline.decision, rows.targets, scores, labels.names, multi_label=multi_label)


def _rows(
    path: Path, pipeline: ClassifyPipeline, data: Path | None, reading: Mapping[str, Any]
) -> tuple[LabelledRows, str]:
    """The rows to choose on, and what they are called."""
    folder, run = run_of(path)
    if data is None:
        if folder is None or run is None:
            raise ConfigError(
                "a model folder does not say what it was validated on",
                where=path,
                do="Give a labelled file: qlassify calibrate MODEL DATA.",
            )
        dataset = read_dataset(run)
        require_same_data(folder, dataset)
        return dataset.validation, "validation"
    corpus = read_corpus(data, reading_options(run, reading))
    pipeline.require_pairs(corpus.pairs is not None)
    return label_rows(corpus, pipeline.labels), data.name
