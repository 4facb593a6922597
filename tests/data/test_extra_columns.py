"""Columns that are carried along: the same from every format, and in step with the rows through all that follows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars
import pytest

from qlassify.data.corpus import Corpus, ReadOptions, read_corpus
from qlassify.data.dataset import build_dataset, label_rows
from qlassify.data.labels import build_label_map
from qlassify.errors import DataError

Write = Callable[[str, str | bytes], Path]

CELLS = [
    ("good", "a", "mail", 1),
    ("", "a", "blank text", 2),
    ("fine", "b", None, 3),
    ("no label", None, "lost", 4),
    ("well", "a", " web ", None),
    ("last", "b", "mail", 5),
]
WANTED = {"channel": ("mail", None, "web", "mail"), "stars": ("1", "3", None, "5")}
OPTIONS = ReadOptions(extra=("channel", "stars"))


def write_all(folder: Path, format: str) -> Path:
    path = folder / f"data.{format}"
    names = ("text", "label", "channel", "stars")
    if format == "jsonl":
        path.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in CELLS))
    elif format == "parquet":
        polars.DataFrame([dict(zip(names, row, strict=True)) for row in CELLS]).write_parquet(path)
    else:
        mark = "," if format == "csv" else "\t"
        rows = [names, *(["" if cell is None else str(cell) for cell in row] for row in CELLS)]
        path.write_text("".join(mark.join(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("format", ["csv", "tsv", "jsonl", "parquet"])
def test_every_reader_carries_them_past_rejected_rows(tmp_path: Path, format: str) -> None:
    corpus = read_corpus(write_all(tmp_path, format), OPTIONS)
    assert corpus.texts == ("good", "fine", "well", "last")
    assert corpus.extra == WANTED
    assert corpus.columns.extra == ("channel", "stars")
    assert read_corpus(write_all(tmp_path, format)).extra == {}


def test_they_stay_in_step_when_rows_are_chosen_or_their_label_is_unknown(tmp_path: Path) -> None:
    corpus = read_corpus(write_all(tmp_path, "csv"), OPTIONS)
    assert corpus.select([3, 1]).extra == {"channel": ("mail", None), "stars": ("5", "3")}
    (tmp_path / "train.csv").write_text("text,label\nx,b\ny,c\n")
    labels = build_label_map(read_corpus(tmp_path / "train.csv"))
    assert label_rows(corpus, labels).corpus.extra == {"channel": (None, "mail"), "stars": ("3", "5")}


def test_they_stay_in_step_through_the_split(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label,again\n" + "".join(f"t{n},{'ab'[n % 2]},t{n}\n" for n in range(40)))
    corpus = read_corpus(tmp_path / "a.csv", ReadOptions(extra=("again",)))
    dataset = build_dataset(corpus, None, None, fraction=0.25, seed=0)
    for part in dataset.parts().values():
        assert part.corpus.extra["again"] == part.corpus.texts
    assert sum(len(part) for part in dataset.parts().values()) == 40


def one(write: Write, content: str, *extra: str) -> Corpus:
    return read_corpus(write("data.csv", content), ReadOptions(extra=extra))


def test_they_go_by_name_in_any_case_or_number_and_once(write: Write) -> None:
    corpus = one(write, "text,label,Channel\nx,a,mail\ny,b,web\n", "channel", "3", "Channel", "LABEL")
    assert corpus.extra == {"Channel": ("mail", "web"), "label": ("a", "b")}


def test_without_a_header_they_go_by_number(write: Write) -> None:
    options = ReadOptions(text="1", label="2", header=False, extra=("3",))
    assert read_corpus(write("data.csv", "x,a,mail\ny,b,web\n"), options).extra == {"3": ("mail", "web")}


def test_a_column_that_is_not_there_is_an_error_that_lists_those_that_are(write: Write) -> None:
    with pytest.raises(DataError, match=r"no column 'chanel'.*'text', 'label', 'channel'.*--slice 'channel'"):
        one(write, "text,label,channel\nx,a,mail\n", "chanel")
    with pytest.raises(DataError, match="several columns are named 'note'"):
        one(write, "text,label,note,note\nx,a,1,2\n", "note")


def test_values_of_any_type_become_text(tmp_path: Path) -> None:
    rows = [3.0, 2.5, True, float("nan"), None, "", [1, "b"], 10**20]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": f"t{n}", "label": "a", "x": x}) + "\n" for n, x in enumerate(rows)))
    corpus = read_corpus(path, ReadOptions(extra=("x",)))
    assert corpus.extra["x"] == ("3", "2.5", "true", None, None, None, "[1, 'b']", "100000000000000000000")


def test_bytes_of_a_parquet_file_are_text(tmp_path: Path) -> None:
    polars.DataFrame({"text": ["x"], "label": ["a"], "who": [b"caf\xe9"]}).write_parquet(tmp_path / "a.parquet")
    assert read_corpus(tmp_path / "a.parquet", ReadOptions(extra=("who",))).extra == {"who": ("caf\u00e9",)}


def test_many_batches_of_parquet_keep_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qlassify.data.parquet.BATCH_ROWS", 7)
    numbers = np.arange(30)
    table = {"text": [f"t{n}" for n in numbers], "label": ["a"] * 30, "n": numbers}
    polars.DataFrame(table).write_parquet(tmp_path / "a.parquet")
    corpus = read_corpus(tmp_path / "a.parquet", ReadOptions(extra=("n", "text")))
    assert corpus.extra["n"] == tuple(str(n) for n in numbers)
    assert corpus.extra["text"] == corpus.texts
