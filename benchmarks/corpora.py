"""Labelled text for the comparisons: ``NAME=TRAIN[:TEST]`` on the command line, the packaged demo without.

A file is read by the reader that ``qlassify train`` uses. Three published forms are not tables, and are told apart by
the file itself or by the name of the data set: lines with the label in front (TREC, SST's sentences), GoEmotions'
headerless columns, and OneStopEnglish's archive of one file per text. Every side is given the same texts in the same
order with the same class numbers, so nobody's reader is part of what is measured.
"""

from __future__ import annotations

import argparse
import json
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qlassify.data.corpus import ReadOptions, read_corpus
from qlassify.data.dataset import label_rows
from qlassify.data.labels import LabelMap, build_label_map

TABLES = {".csv", ".tsv", ".jsonl", ".parquet"}
GOEMOTIONS = ReadOptions(text="1", label="2", header=False, label_separator=",")
LEVELS = {"Adv-Txt": "advanced", "Ele-Txt": "elementary", "Int-Txt": "intermediate"}
"""Folders of OneStopEnglish's archive and their labels."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a data set lies."""

    name: str
    train: Path
    test: Path | None

    @classmethod
    def parse(cls, text: str) -> Source:
        name, _, files = text.partition("=")
        train, _, test = files.partition(":")
        if not name or not train:
            raise argparse.ArgumentTypeError(f"{text!r} is not NAME=TRAIN or NAME=TRAIN:TEST")
        for path in filter(None, (train, test)):
            if not Path(path).is_file():
                raise argparse.ArgumentTypeError(f"no such file: {path}")
        return cls(name, Path(train), Path(test) if test else None)


@dataclass(frozen=True, slots=True)
class Rows:
    """Texts with class numbers, or with a flag for each label."""

    texts: list[str]
    targets: list[Any]

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: Sequence[int]) -> Rows:
        return Rows([self.texts[index] for index in indices], [self.targets[index] for index in indices])

    def as_job(self) -> dict[str, Any]:
        return {"texts": self.texts, "targets": self.targets}


@dataclass(frozen=True, slots=True)
class Labelled:
    """A data set: training rows in an order that the seed decides, test rows or none, and the labels' names."""

    name: str
    train: Rows
    test: Rows | None
    labels: tuple[str, ...]
    multi_label: bool


def demo() -> Source:
    """The demo's corpus, which comes with the package."""
    import qlassify.demo_corpus

    folder = Path(qlassify.demo_corpus.__file__).parent
    return Source("demo", folder / "train.jsonl", folder / "test.jsonl")


def load(source: Source, *, seed: int = 0) -> Labelled:
    """Read a data set and shuffle its training rows."""
    with tempfile.TemporaryDirectory() as folder:
        path, options = _as_table(source.name, source.train, Path(folder))
        corpus = read_corpus(path, options)
        labels = build_label_map(corpus)
        train = _rows(corpus, labels)
        test = None
        if source.test is not None:
            path, options = _as_table(source.name, source.test, Path(folder))
            test = _rows(read_corpus(path, options), labels)
    order = np.random.default_rng(seed).permutation(len(train)).tolist()
    return Labelled(source.name, train.take(order), test, labels.names, labels.multi_label)


def _rows(corpus: Any, labels: LabelMap) -> Rows:
    labelled = label_rows(corpus, labels)
    return Rows(list(labelled.corpus.texts), labelled.targets.tolist())


def _as_table(name: str, path: Path, folder: Path) -> tuple[Path, ReadOptions]:
    """A file that the reader takes, and how to read it."""
    if path.name.endswith(".tar.gz"):
        return _write(folder, _levels(path)), ReadOptions()
    if path.suffix not in TABLES:
        return _write(folder, _label_first(path)), ReadOptions()
    return path, GOEMOTIONS if name == "goemotions" else ReadOptions()


def _write(folder: Path, rows: Sequence[tuple[str, str]]) -> Path:
    path = folder / "rows.jsonl"
    lines = [json.dumps({"text": text, "label": label}) for label, text in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _label_first(path: Path) -> list[tuple[str, str]]:
    """(label, text) of lines like ``LOC:city What county ...``; what follows the colon is a finer class."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    parts = [line.partition(" ") for line in lines if line.strip()]
    return [(label.partition(":")[0], text.strip()) for label, _, text in parts]


def _levels(path: Path) -> list[tuple[str, str]]:
    """(level, text) of each article. The files directly in ``Int-Txt`` name their level and are left out."""
    rows = []
    with tarfile.open(path) as archive:
        for member in sorted(archive.getmembers(), key=lambda one: one.name):
            parts = Path(member.name).parts
            if not member.isfile() or not member.name.endswith(".txt") or len(parts) < 3:
                continue
            if parts[1] not in LEVELS or (parts[1] == "Int-Txt") != (len(parts) == 4):
                continue
            file = archive.extractfile(member)
            assert file is not None
            text = file.read().decode("utf-8-sig", errors="replace")
            rows.append((LEVELS[parts[1]], " ".join(text.split())))
    return rows
