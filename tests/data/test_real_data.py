"""The published data sets, oddities and all. Counts were established with tools other than this reader."""

import csv
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from qlassify.data.corpus import Columns, ReadOptions, read_corpus
from qlassify.data.labels import build_label_map
from qlassify.data.rows import iter_text_rows
from qlassify.data.split import stratified_split

Shared = Callable[[str], Path]


@pytest.mark.parametrize(("name", "num_rows"), [("train", 10_003), ("test", 3_080)])
def test_banking77_texts_with_a_quoted_newline(shared_data: Shared, name: str, num_rows: int) -> None:
    path = shared_data(f"banking77/{name}.csv")
    corpus = read_corpus(path)
    with path.open(newline="", encoding="utf-8") as file:
        reference = list(csv.DictReader(file, strict=True))
    assert len(corpus) == corpus.total_rows == num_rows
    assert list(corpus.texts) == [row["text"].strip() for row in reference]
    assert [label for (label,) in corpus.labels] == [row["category"] for row in reference]
    assert len(build_label_map(corpus)) == 77
    assert sum("\n" in row["text"] for row in reference) == {"train": 10, "test": 3}[name]


@pytest.mark.parametrize(("name", "num_rows"), [("train", 67_349), ("dev", 872), ("test-labeled", 1_821)])
def test_sst2_tabs_without_quoting(shared_data: Shared, name: str, num_rows: int) -> None:
    path = shared_data(f"sst2/{name}.tsv")
    corpus = read_corpus(path)
    reference = [line.split("\t") for line in path.read_bytes().decode().replace("\r", "").split("\n")[1:] if line]
    assert len(corpus) == corpus.total_rows == num_rows
    assert list(corpus.texts) == [text.strip() for text, _ in reference]
    # test-labeled.tsv has CRLF: no label may be "0\r".
    assert [label for (label,) in corpus.labels] == [label for _, label in reference]
    assert set(corpus.labels) == {("0",), ("1",)}


GOEMOTIONS = ReadOptions(text="1", label="2", label_separator=",", header=False)


@pytest.mark.parametrize(("name", "num_rows"), [("train", 43_410), ("dev", 5_426), ("test", 5_427)])
def test_goemotions_without_a_header(shared_data: Shared, name: str, num_rows: int) -> None:
    path = shared_data(f"goemotions/{name}.tsv")
    corpus = read_corpus(path, GOEMOTIONS)
    with path.open(newline="", encoding="utf-8") as file:
        reference = list(csv.reader(file, delimiter="\t", strict=True))
    assert len(corpus) == corpus.total_rows == num_rows
    # 1,097 texts of train are quoted in the manner of RFC 4180, in a .tsv file: the dialect is found by evidence.
    assert list(corpus.texts) == [text.strip() for text, _, _ in reference]
    assert list(corpus.labels) == [tuple(ids.split(",")) for _, ids, _ in reference]
    assert build_label_map(corpus).names == tuple(str(number) for number in range(28))


def test_goemotions_cardinality(shared_data: Shared) -> None:
    corpus = read_corpus(shared_data("goemotions/train.tsv"), GOEMOTIONS)
    assert Counter(map(len, corpus.labels)) == {1: 36_308, 2: 6_541, 3: 532, 4: 28, 5: 1}


@pytest.mark.parametrize(("name", "num_rows"), [("train", 4_076), ("test", 1_725)])
def test_mrpc_pairs_with_unbalanced_quotes(shared_data: Shared, name: str, num_rows: int) -> None:
    path = shared_data(f"mrpc/msr_paraphrase_{name}.txt")
    corpus = read_corpus(path)
    lines = path.read_bytes().decode("utf-8-sig").replace("\r", "").split("\n")
    reference = [line.split("\t") for line in lines[1:] if line]
    assert corpus.columns == Columns("#1 String", "#2 String", "Quality")
    assert len(corpus) == corpus.total_rows == num_rows
    assert list(corpus.texts) == [row[3].strip() for row in reference]
    assert corpus.pairs == tuple(row[4].strip() for row in reference)
    assert [label for (label,) in corpus.labels] == [row[0] for row in reference]
    options = ReadOptions(format="tsv")
    rows = [text for chunk in iter_text_rows(path, options, wants_pair=True) for text in chunk.pairs or ()]
    assert rows == list(corpus.pairs)


def test_trec_one_byte_that_is_not_utf8(shared_data: Shared, tmp_path: Path) -> None:
    data = shared_data("trec/TREC.train").read_bytes()
    # "LABEL:fine text": a tab for the first blank of each line makes it a table, and leaves every other byte alone.
    table = b"".join(line.replace(b" ", b"\t", 1) for line in data.splitlines(keepends=True))
    (tmp_path / "train.tsv").write_bytes(table)
    corpus = read_corpus(tmp_path / "train.tsv", ReadOptions(text="2", label="1"))
    assert len(corpus) == corpus.total_rows == 5_452
    assert Counter(label.partition(":")[0] for (label,) in corpus.labels) == {
        "ENTY": 1250, "HUM": 1223, "DESC": 1162, "NUM": 896, "LOC": 835, "ABBR": 86
    }  # fmt: skip
    assert corpus.repaired == 1
    [text] = [text for row, text in zip(corpus.rows, corpus.texts, strict=True) if row in corpus.repaired_rows]
    assert "sister\u00f0city" in text


def test_the_seed_schema(shared_data: Shared) -> None:
    corpus = read_corpus(shared_data("shell_safety/bashrs_adversarial.jsonl"))
    assert corpus.columns == Columns("input", None, "label")
    assert Counter(corpus.labels) == {("1",): 50, ("2",): 100, ("3",): 100, ("4",): 100}
    assert corpus.rejections == ()


@pytest.mark.parametrize("fraction", [0.1, 0.2])
def test_splits_of_real_corpora(shared_data: Shared, fraction: float) -> None:
    corpora = [
        read_corpus(shared_data("banking77/train.csv")),
        read_corpus(shared_data("goemotions/train.tsv"), GOEMOTIONS),
        read_corpus(shared_data("mrpc/msr_paraphrase_train.txt")),
    ]
    for corpus in corpora:
        label_map = build_label_map(corpus)
        targets = label_map.encode(corpus).targets
        split = stratified_split(
            targets, corpus.texts, fraction=fraction, seed=0, multi_label=corpus.multi_label, pairs=corpus.pairs
        )
        assert abs(len(split.held_out) - fraction * len(corpus)) <= 3
        train, held_out = corpus.select(split.train), corpus.select(split.held_out)
        keys = [
            {" ".join(f"{text}\n{pair}".casefold().split()) for text, pair in zip(texts, pairs, strict=True)}
            for texts, pairs in ((side.texts, side.pairs or side.texts) for side in (train, held_out))
        ]
        assert not keys[0] & keys[1]
        names = set(label_map.names)
        assert {name for row in train.labels for name in row} == names
        assert {name for row in held_out.labels for name in row} == names
