"""Two trained classifiers beside each other: whether one is better, where they differ, and what the difference costs.

Without a data file the predictions that each run wrote when it was scored are compared, and only if they are of the
same rows with the same true labels: scores of different rows say nothing about the classifiers. Comparing whatever
rows the two have in common was the alternative; for two validation parts of different seeds these are rows that one of
them happened to be trained on. With a data file both classifiers predict it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qlassify import runs
from qlassify.artifact import ClassifierRecord, model_folder, read_record
from qlassify.config.run import RunConfig
from qlassify.data.corpus import Corpus, read_corpus
from qlassify.data.dataset import label_rows
from qlassify.data.labels import LabelMap
from qlassify.differences import Difference, Labels
from qlassify.errors import ConfigError, DataError
from qlassify.evaluation.comparison import Comparison, compare_predictions
from qlassify.pipeline import ClassifyPipeline
from qlassify.runs import RunFolder
from qlassify.scoring import reading_options, run_of
from qlassify.seeding import numpy_generator

SEED = 42
"""Of the resamples, so that the same predictions always give the same intervals."""


@dataclass(frozen=True, slots=True)
class ScoredRow:
    """A row with its true labels and what was predicted for it; single labels are tuples of one."""

    row: int
    text: str
    text_pair: str | None
    true: Labels
    predicted: Labels


@dataclass(frozen=True, slots=True)
class SettingDifference:
    """A setting that differs between the two runs; None where a run has no such setting."""

    name: str
    a: Any
    b: Any


@dataclass(frozen=True, slots=True)
class Cost:
    """What a classifier took to train and takes to keep; None where only a model folder is there to ask.

    Attributes:
        trainable_parameters: values that were trained, the head's among them.
        training_seconds: wall time of training.
        training_peak_memory_bytes: the most that was resident until training ended.
        saved_bytes: tensor files of the classifier; the base model is not among them.
    """

    trainable_parameters: int | None
    training_seconds: float | None
    training_peak_memory_bytes: int | None
    saved_bytes: int


@dataclass(frozen=True, slots=True, eq=False)
class RunComparison:
    """Everything that is known about two classifiers beside each other.

    Attributes:
        a: the first classifier's folder.
        b: the second's.
        compared_on: ``test``, ``validation`` or a file's name.
        result: the test and the scores.
        differences: rows with different predictions, by row number.
        settings: settings that differ; None where one of the two is no run.
        costs: of A and of B.
        notes: a sentence for each thing that a reader should know.
    """

    a: Path
    b: Path
    compared_on: str
    result: Comparison
    differences: tuple[Difference, ...]
    settings: tuple[SettingDifference, ...] | None
    costs: tuple[Cost, Cost]
    notes: tuple[str, ...]


def compare_runs(
    a: Path,
    b: Path,
    data: Path | None = None,
    reading: Mapping[str, Any] | None = None,
    *,
    base: str | None = None,
    device: str = "auto",
) -> RunComparison:
    """Compare two classifiers on the rows that both were scored on, or on a labelled file.

    Args:
        a: a run folder; with ``data`` also a model folder.
        b: another.
        data: a labelled file for both to predict.
        reading: settings of the data section that say how to read it; those of A's run are the default.
        base: where the base model of both is, if it is not where it was.
        device: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        ConfigError: the classifiers have other labels, or were not scored on the same rows.
        DataError: the file cannot be used, or true labels differ.
        ModelError: no classifier is there.
    """
    record = read_record(model_folder(a))
    _require_same_labels(record, read_record(model_folder(b)), b)
    if data is None:
        parts = _part(a), _part(b)
        rows_a, rows_b = _aligned(_scored_rows(a), _scored_rows(b), a, b)
        compared_on = parts[0] if parts[0] == parts[1] else " and ".join(parts)
        notes = _validation_notes(parts)
    else:
        compared_on = data.name
        rows_a, rows_b, notes = _predicted_rows(a, b, data, reading or {}, base=base, device=device)
    return RunComparison(
        a,
        b,
        compared_on,
        _compare(rows_a, rows_b, record),
        _differences(rows_a, rows_b),
        _setting_differences(a, b),
        (_cost(a), _cost(b)),
        notes,
    )


def _require_same_labels(a: ClassifierRecord, b: ClassifierRecord, where: Path) -> None:
    """The order may differ, the names may not."""
    if a.multi_label != b.multi_label:
        kinds = {True: "several labels per text", False: "one label per text"}
        raise ConfigError(
            "the classifiers cannot be compared", where=where, got=kinds[b.multi_label], wanted=kinds[a.multi_label]
        )
    only_a, only_b = sorted(set(a.labels) - set(b.labels)), sorted(set(b.labels) - set(a.labels))
    if only_a or only_b:
        found = [
            f"{', '.join(map(repr, names[:10]))}{' ...' if len(names) > 10 else ''} only in {side}"
            for side, names in (("A", only_a), ("B", only_b))
            if names
        ]
        raise ConfigError("the classifiers have different labels", where=where, got="; ".join(found))


def _scored_file(path: Path, name: str) -> Path:
    """A file of a run's own scores.

    Raises:
        ConfigError: it is not there.
    """
    file = RunFolder(path).evaluation / name
    if not file.is_file():
        raise ConfigError(
            "there are no predictions to compare",
            where=path,
            wanted=f"a finished run, with {file.relative_to(path)}",
            do="Give a labelled file, which both will predict: qlassify compare A B DATA.",
        )
    return file


def _part(path: Path) -> str:
    return runs.read_entry(_scored_file(path, "metrics.json"), "evaluated_on", str)


def _scored_rows(path: Path) -> list[ScoredRow]:
    """The rows that a run wrote when it was scored, by row number."""
    import polars

    file = _scored_file(path, "predictions.parquet")
    try:
        table = polars.read_parquet(file)
        pairs = table["text_pair"].to_list() if "text_pair" in table.columns else [None] * table.height
        columns = (table[name].to_list() for name in ("row", "text", "true", "predicted"))
        rows = [
            ScoredRow(row, text, pair, tuple(true), tuple(predicted))
            for pair, (row, text, true, predicted) in zip(pairs, zip(*columns, strict=True), strict=True)
        ]
    except (OSError, polars.exceptions.PolarsError, TypeError) as error:
        raise DataError("cannot read the predictions of a run", where=file, got=error) from None
    return sorted(rows, key=lambda one: one.row)


def _aligned(
    rows_a: list[ScoredRow], rows_b: list[ScoredRow], a: Path, b: Path
) -> tuple[list[ScoredRow], list[ScoredRow]]:
    """The rows of both, pair by pair.

    Raises:
        ConfigError: they are not the same rows.
        DataError: they are, with other true labels.
    """
    keys_a, keys_b = ([(one.row, one.text, one.text_pair) for one in rows] for rows in (rows_a, rows_b))
    if keys_a != keys_b:
        raise ConfigError(
            "the runs were scored on different rows",
            where=f"{a} and {b}",
            got=f"{len(keys_a)} rows of A and {len(keys_b)} of B, {len(set(keys_a) & set(keys_b))} of them the same",
            do="Give a labelled file that neither was trained on, which both will predict: qlassify compare A B DATA.",
        )
    for one, other in zip(rows_a, rows_b, strict=True):
        if set(one.true) != set(other.true):
            raise DataError(
                "the runs were scored with different true labels",
                where=f"row {one.row}",
                got=", ".join(other.true) or "no label",
                wanted=", ".join(one.true) or "no label",
                do="Give a labelled file, which both will predict: qlassify compare A B DATA.",
            )
    return rows_a, rows_b


def _validation_notes(parts: tuple[str, str]) -> tuple[str, ...]:
    if "test" in parts:
        return ()
    return (
        "These rows also chose the weights of both runs, so both scores are a little kind; give DATA for rows that did "
        "not.",
    )


def _predicted_rows(
    a: Path, b: Path, data: Path, reading: Mapping[str, Any], *, base: str | None, device: str
) -> tuple[list[ScoredRow], list[ScoredRow], tuple[str, ...]]:
    """The rows of a labelled file as A and as B predict them; one classifier is in memory at a time."""
    corpus = read_corpus(data, reading_options(run_of(a)[1], reading))
    record = read_record(model_folder(a))
    rows = label_rows(corpus, LabelMap(record.labels, record.multi_label))
    notes = [
        f"{data.name} is what {name} was trained on; its score there says nothing about new texts."
        for name, path in (("A", a), ("B", b))
        if corpus.sha256 in _training_files(path)
    ]
    if rows.rejections:
        notes.append(f"{len(rows.rejections)} rows have labels that were not seen in training; they are left out.")
    if corpus.rejections:
        notes.append(f"{len(corpus.rejections)} of {corpus.total_rows} rows were rejected.")
    predicted_a, predicted_b = (_predict(path, rows.corpus, base=base, device=device) for path in (a, b))
    return predicted_a, predicted_b, tuple(notes)


def _training_files(path: Path) -> set[str]:
    """SHA-256 of the files that a run learned from or chose its weights by."""
    folder, _ = run_of(path)
    if folder is None:
        return set()
    files = runs.read_entry(folder.file("data.json"), "files", list)
    return {str(file.get("sha256")) for file in files if isinstance(file, dict) and file.get("part") != "test"}


def _predict(path: Path, corpus: Corpus, *, base: str | None, device: str) -> list[ScoredRow]:
    pipeline = ClassifyPipeline.load(path, device=device, base=base)
    pipeline.abstain_below(None)  # scores count a withheld answer as the answer that was withheld
    answers = pipeline.predict(corpus.texts, corpus.pairs)
    pairs: Sequence[str | None] = corpus.pairs or [None] * len(corpus)
    return [
        ScoredRow(row, text, pair, true, (answer,) if isinstance(answer, str) else answer or ())
        for row, text, pair, true, answer in zip(corpus.rows, corpus.texts, pairs, corpus.labels, answers, strict=True)
    ]


def _compare(rows_a: list[ScoredRow], rows_b: list[ScoredRow], record: ClassifierRecord) -> Comparison:
    """The statistics, on A's numbering of the labels."""
    labels = LabelMap(record.labels, record.multi_label)

    def encode(answers: list[Labels]) -> npt.NDArray[np.int64]:
        if not labels.multi_label:
            return np.array([labels.index(name) for (name,) in answers], dtype=np.int64)
        flags = np.zeros((len(answers), len(labels)), dtype=np.int64)
        for position, names in enumerate(answers):
            flags[position, [labels.index(name) for name in names]] = 1
        return flags

    return compare_predictions(
        encode([one.true for one in rows_a]),
        encode([one.predicted for one in rows_a]),
        encode([one.predicted for one in rows_b]),
        num_classes=len(labels),
        generator=numpy_generator(SEED, "comparison"),
    )


def _differences(rows_a: list[ScoredRow], rows_b: list[ScoredRow]) -> tuple[Difference, ...]:
    return tuple(
        Difference(one.row, one.text, one.text_pair, one.true, one.predicted, other.predicted)
        for one, other in zip(rows_a, rows_b, strict=True)
        if set(one.predicted) != set(other.predicted)
    )


def _setting_differences(a: Path, b: Path) -> tuple[SettingDifference, ...] | None:
    """What differs between the settled settings of two runs, defaults included."""
    run_a, run_b = run_of(a)[1], run_of(b)[1]
    if run_a is None or run_b is None:
        return None
    flat_a, flat_b = _flat(run_a), _flat(run_b)
    names = [*flat_a, *(name for name in flat_b if name not in flat_a)]
    return tuple(
        SettingDifference(name, flat_a.get(name), flat_b.get(name))
        for name in names
        if flat_a.get(name) != flat_b.get(name)
    )


def _flat(run: RunConfig) -> dict[str, Any]:
    """Settings by their dotted names."""
    flat: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key, item in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), item)
        else:
            flat[prefix] = value

    walk("", run.model_dump(mode="json"))
    return flat


def _cost(path: Path) -> Cost:
    saved = sum(file.stat().st_size for file in model_folder(path).glob("*.safetensors"))
    folder, _ = run_of(path)
    if folder is None or not folder.file("plan.json").is_file():
        return Cost(None, None, None, saved)
    planned = runs.read_entry(folder.file("plan.json"), "planned", dict)
    measured = runs.read_json(folder.file("plan.json")).get("measured") or {}
    return Cost(
        planned.get("trainable_parameters"),
        measured.get("training_seconds"),
        measured.get("training_peak_memory_bytes"),
        saved,
    )


def as_json(comparison: RunComparison) -> dict[str, Any]:
    """The comparison for a machine; of the rows that differ only their number, since their texts may be many."""
    from qlassify.evaluation.comparison import verdict_words

    settings = comparison.settings
    return {
        "a": {"path": str(comparison.a), **asdict(comparison.costs[0])},
        "b": {"path": str(comparison.b), **asdict(comparison.costs[1])},
        "compared_on": comparison.compared_on,
        **comparison.result.as_dict(),
        "verdict": verdict_words(comparison.result),
        "num_different_predictions": len(comparison.differences),
        "settings": None if settings is None else [asdict(one) for one in settings],
        "notes": list(comparison.notes),
    }
