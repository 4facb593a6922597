"""Corpora to labelled rows for training, validation and test, with an account of what that cost.

The label map comes from the training corpus alone. Validation rows are a file of their own or a stratified share of
the training rows; test rows are a file that nothing else looks at. Rows whose label was not seen in training are
rejected and counted, and texts that stand in more than one part are counted: a leak makes a score that no new text
will reproduce.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from qlassify.data.corpus import Corpus
from qlassify.data.labels import LabelMap, build_label_map, label_counts
from qlassify.data.records import Rejection
from qlassify.data.split import stratified_split, text_keys
from qlassify.data.text_groups import text_numbers
from qlassify.errors import DataError

Targets = npt.NDArray[np.int64] | npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class LabelledRows:
    """Texts with targets; all sequences run in parallel.

    Attributes:
        corpus: the rows.
        targets: (N,) int64 classes, or (N, C) float32 flags when multi-label.
        rejections: rows of the same file whose labels could not be used.
    """

    corpus: Corpus
    targets: Targets
    rejections: tuple[Rejection, ...] = ()

    def __len__(self) -> int:
        return len(self.corpus)


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Everything that one run reads.

    Attributes:
        labels: the classes, in the order of the logits.
        train: rows to learn from.
        validation: rows for choosing weights.
        test: rows that are looked at once, or None.
        notes: a sentence, with its number, for each thing a reader of the results should know.
    """

    labels: LabelMap
    train: LabelledRows
    validation: LabelledRows
    test: LabelledRows | None
    notes: tuple[str, ...]
    _files: tuple[tuple[str, Corpus], ...] = field(default=(), repr=False)

    def parts(self) -> dict[str, LabelledRows]:
        """Name -> rows of each part there is."""
        parts = {"train": self.train, "validation": self.validation}
        return parts if self.test is None else {**parts, "test": self.test}

    def files(self) -> tuple[tuple[str, Corpus], ...]:
        """(part, corpus) of each file as it was read, before it was split and before unknown labels were left out."""
        return self._files

    def facts(self) -> dict[str, Any]:
        """The account for ``data.json``: files, rows kept and rejected, label counts, notes."""
        files = []
        for name, corpus in self._files:
            rejections = [*corpus.rejections, *(self.parts()[name].rejections)]
            reasons: dict[str, int] = {}
            for rejection in rejections:
                reasons[rejection.reason] = reasons.get(rejection.reason, 0) + 1
            files.append(
                {
                    "part": name,
                    "path": corpus.path,
                    "sha256": corpus.sha256,
                    "format": corpus.format,
                    "columns": {
                        "text": corpus.columns.text,
                        "text_pair": corpus.columns.text_pair,
                        "label": corpus.columns.label,
                    },
                    "rows": corpus.total_rows,
                    "kept": corpus.total_rows - len(rejections),
                    "rejected": dict(sorted(reasons.items(), key=lambda item: -item[1])),
                    "first_rejected_rows": [
                        {"row": rejection.row, "reason": rejection.reason} for rejection in rejections[:20]
                    ],
                    "repaired_rows": list(corpus.repaired_rows[:20]),
                    "num_repaired": corpus.repaired,
                }
            )
        counts = {
            name: dict(zip(self.labels.names, label_counts(part.targets, len(self.labels)).tolist(), strict=True))
            for name, part in self.parts().items()
        }
        return {
            "task": "multi_label" if self.labels.multi_label else "single_label",
            "files": files,
            "rows": {name: len(part) for name, part in self.parts().items()},
            "label_counts": counts,
            "notes": list(self.notes),
        }


def build_dataset(
    train: Corpus,
    validation: Corpus | None,
    test: Corpus | None,
    *,
    fraction: float,
    seed: int,
    labels: LabelMap | None = None,
) -> Dataset:
    """Label, split and check corpora.

    Args:
        train: the training file.
        validation: a file for model selection, or None to hold out a share of ``train``.
        test: a file for the final score, or None.
        fraction: the share that is held out.
        seed: the run's seed.
        labels: the classes in their order, if they are known; those of ``train`` when None.

    Raises:
        DataError: fewer than two labels, no usable row in a part, or texts in pairs in one file and not in another.
    """
    labels = labels or build_label_map(train)
    for other in (validation, test):
        if other is not None and (other.pairs is None) != (train.pairs is None):
            raise DataError(
                "one file has text pairs and the other has not",
                where=f"{train.path} and {other.path}",
                do="Name the columns with --text and --text-pair.",
            )
    whole = label_rows(train, labels)
    notes: list[str] = []
    files = [("train", train)]
    if validation is None:
        split = stratified_split(
            whole.targets,
            whole.corpus.texts,
            fraction=fraction,
            seed=seed,
            multi_label=labels.multi_label,
            pairs=whole.corpus.pairs,
            names=labels.names,
        )
        notes += split.notes
        training = _select(whole, split.train)
        held_out = _select(whole, split.held_out)
    else:
        training, held_out = whole, label_rows(validation, labels)
        files.append(("validation", validation))
        notes += _leak_notes(training.corpus, held_out.corpus, "validation")
    tested = None
    if test is not None:
        tested = label_rows(test, labels)
        files.append(("test", test))
        notes += _leak_notes(training.corpus, tested.corpus, "test")
        notes += _leak_notes(held_out.corpus, tested.corpus, "test", "validation")
    for name, corpus in files:
        notes += _reading_notes(name, corpus)
    for name, part in (("validation", held_out), ("test", tested)):
        if part is not None and part.rejections and part.corpus.path != train.path:
            notes.append(
                f"{len(part.rejections)} {name} rows have labels that the training rows do not have; they are left out."
            )
    return Dataset(labels, training, held_out, tested, tuple(notes), tuple(files))


def label_rows(corpus: Corpus, labels: LabelMap) -> LabelledRows:
    """The rows of ``corpus`` whose labels ``labels`` knows, and the rejections of the others."""
    encoded = labels.encode(corpus)
    kept = corpus if len(encoded.kept) == len(corpus) else corpus.select(encoded.kept)
    return LabelledRows(kept, encoded.targets, encoded.rejections)


def _select(rows: LabelledRows, indices: npt.NDArray[np.int64]) -> LabelledRows:
    return LabelledRows(rows.corpus.select(indices), rows.targets[indices], rows.rejections)


def _leak_notes(known_rows: Corpus, other: Corpus, name: str, known_name: str = "training") -> list[str]:
    keys = chain(text_keys(known_rows.texts, known_rows.pairs), text_keys(other.texts, other.pairs))
    numbers = text_numbers(keys, len(known_rows) + len(other))
    leaked = int(np.isin(numbers[len(known_rows) :], numbers[: len(known_rows)]).sum())
    if not leaked:
        return []
    return [f"{leaked} of {len(other)} {name} texts also stand in the {known_name} rows; they are kept and scored."]


MAX_UNREAD_COLUMNS = 8
"""Columns that a note names one by one."""


def _reading_notes(name: str, corpus: Corpus) -> list[str]:
    notes: list[str] = []
    # Files without a header have numbers for names, of which nothing can be told.
    unread = [column for column in corpus.columns.unread if not column.isdigit()]
    if unread and name == "train":
        more = len(unread) - MAX_UNREAD_COLUMNS
        listed = ", ".join(unread[:MAX_UNREAD_COLUMNS]) + (f" and {more} more" if more > 0 else "")
        notes.append(f"Columns of the training file that are not read: {listed}.")
    if corpus.rejections:
        reasons = ", ".join(f"{count} x {reason}" for reason, count in list(corpus.rejection_counts().items())[:4])
        notes.append(f"{len(corpus.rejections)} of {corpus.total_rows} {name} rows were rejected: {reasons}.")
    if corpus.repaired:
        notes.append(f"{corpus.repaired} {name} rows held bytes that are not UTF-8 and were read as Windows-1252.")
    return notes
