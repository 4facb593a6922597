"""read_corpus over written files: every row kept or accounted for, whatever the format."""

import csv
import gzip
import hashlib
import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlassify.data.corpus import Columns, Corpus, ReadOptions, Rejection, read_corpus
from qlassify.errors import ConfigError, DataError

Write = Callable[[str, str | bytes], Path]

# No blank ends (they are stripped), no NUL, no surrogates: everything else must survive.
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=30).filter(
    lambda text: text == text.strip()
)
names = texts.filter(lambda name: not set(name) & set("\r\n") and not name.startswith("["))


def pairs_of(corpus: Corpus) -> list[tuple[str, str]]:
    return [(text, label) for text, (label,) in zip(corpus.texts, corpus.labels, strict=True)]


@given(rows=st.lists(st.tuples(texts, names), min_size=1, max_size=20), zipped=st.booleans())
def test_csv_round_trip(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], zipped: bool) -> None:
    file = io.StringIO()
    csv.writer(file).writerows([("text", "label"), *rows])
    path = tmp_path_factory.mktemp("round") / "data.csv"
    data = file.getvalue().encode()
    path.write_bytes(gzip.compress(data) if zipped else data)
    corpus = read_corpus(path)
    assert pairs_of(corpus) == rows
    assert corpus.rows == tuple(range(1, len(rows) + 1))
    assert corpus.rejections == ()
    assert corpus.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@given(st.lists(st.tuples(texts, names), min_size=1, max_size=20), st.booleans())
def test_json_round_trip(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], ensure_ascii: bool
) -> None:
    objects = [{"input": text, "label": label} for text, label in rows]
    folder = tmp_path_factory.mktemp("round")
    lines = "\n".join(json.dumps(item, ensure_ascii=ensure_ascii) for item in objects)
    (folder / "data.jsonl").write_bytes(lines.encode())
    (folder / "data.json").write_bytes(json.dumps(objects, ensure_ascii=ensure_ascii, indent=1).encode())
    for name in ("data.jsonl", "data.json"):
        corpus = read_corpus(folder / name)
        assert pairs_of(corpus) == rows
        assert corpus.rows == tuple(range(1, len(rows) + 1))


@given(st.binary(max_size=300))
def test_any_bytes_after_a_header_are_accounted_for(tmp_path_factory: pytest.TempPathFactory, noise: bytes) -> None:
    folder = tmp_path_factory.mktemp("noise")
    for name, good in (("a.csv", b"text,label\ngood,a\n"), ("a.tsv", b"text\tlabel\ngood\ta\n"),
                       ("a.jsonl", b'{"text": "good", "label": "a"}\n')):  # fmt: skip
        (folder / name).write_bytes(good + noise)
        corpus = read_corpus(folder / name)
        assert len(corpus) + len(corpus.rejections) == corpus.total_rows
        assert (corpus.texts[0], corpus.labels[0]) == ("good", ("a",))
        numbers = sorted([*corpus.rows, *(rejection.row for rejection in corpus.rejections)])
        assert len(set(numbers)) == corpus.total_rows
        if name != "a.jsonl":  # There blank lines have numbers too.
            assert numbers == list(range(1, corpus.total_rows + 1))


def test_the_account_of_a_damaged_csv(write: Write) -> None:
    content = (
        b"\xef\xbb\xbfid,text,label\r\n"
        b"1,good,a\r\n"
        b"2,  ,a\r\n"
        b"3,no label,\r\n"
        b"4,too,many,a\r\n"
        b"5,few\r\n"
        b'6,"stray,a\r\n'
        b'7,"two\r\nlines, one row",b\r\n'
        b"8,nul\0,a\r\n"
        b"9,caf\xe9,b\r\n"
        b"\r\n"
        b"10,last ,b\r\n"
    )
    corpus = read_corpus(write("data.csv", content))
    assert pairs_of(corpus) == [("good", "a"), ("two\r\nlines, one row", "b"), ("caf\u00e9", "b"), ("last", "b")]
    assert corpus.rows == (1, 7, 9, 10)
    assert corpus.rejections == (
        Rejection(2, "blank text"),
        Rejection(3, "missing label"),
        Rejection(4, "4 fields, wanted 3"),
        Rejection(5, "2 fields, wanted 3"),
        Rejection(6, "quote never closed"),
        Rejection(8, "NUL character"),
    )
    assert corpus.total_rows == 10
    assert corpus.repaired_rows == (9,)
    assert corpus.repaired == 1
    assert corpus.columns == Columns("text", None, "label")
    assert (corpus.format, corpus.encoding, corpus.quoting) == ("csv", "utf-8", "rfc4180")


def test_rejections_are_counted_by_reason_the_most_frequent_first(write: Write) -> None:
    corpus = read_corpus(write("a.csv", "text,label\nx,\n ,a\n,a\n,\ny,a\n"))
    assert list(corpus.rejection_counts().items()) == [("blank text", 3), ("missing label", 1)]


def test_select_keeps_rows_parallel(write: Write) -> None:
    content = b"sentence1,sentence2,label\na,b,x\n,d,x\ne,\xe9,y\ng,h,z\n"
    corpus = read_corpus(write("a.csv", content))
    chosen = corpus.select([2, 1])
    assert chosen.texts == ("g", "e")
    assert chosen.pairs == ("h", "\u00e9")
    assert chosen.labels == (("z",), ("y",))
    assert chosen.rows == (4, 3)
    assert chosen.repaired_rows == (3,)
    assert corpus.select([0]).repaired_rows == ()
    assert len(chosen) + len(chosen.rejections) == chosen.total_rows == 2


def test_blank_second_texts_reject_their_row(write: Write) -> None:
    corpus = read_corpus(write("a.csv", "premise,hypothesis,label\na,b,x\nc, ,y\n"))
    assert corpus.rejection_counts() == {"blank second text": 1}


def test_a_crlf_file_has_no_carriage_returns_in_its_labels(write: Write) -> None:
    for quoting in ("", '"'):
        corpus = read_corpus(write("a.tsv", f"sentence\tlabel\r\n{quoting}x{quoting}\t0\r\ny\t1\r\n"))
        assert corpus.labels == (("0",), ("1",))


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_a_csv_file_may_use_another_separator(write: Write, separator: str) -> None:
    corpus = read_corpus(write("a.csv", f'text{separator}label\n"a{separator}b, c"{separator}x\nd, e{separator}y\n'))
    assert pairs_of(corpus) == [(f"a{separator}b, c", "x"), ("d, e", "y")]


def test_headerless_files(write: Write) -> None:
    path = write("a.tsv", "good\t1\nbad\t0\n")
    with pytest.raises(DataError, match=r"cannot tell.*--no-header"):
        read_corpus(path)
    for options in (ReadOptions(text="1", label="2"), ReadOptions(text="1", label="2", header=False)):
        corpus = read_corpus(path, options)
        assert pairs_of(corpus) == [("good", "1"), ("bad", "0")]
        assert corpus.columns == Columns("1", None, "2")
    named = write("b.tsv", "text\tlabel\ngood\t1\n")
    assert pairs_of(read_corpus(named, ReadOptions(text="1", label="2"))) == [("good", "1")]
    assert read_corpus(named, ReadOptions(text="1", label="2", header=False)).total_rows == 2


def test_a_file_in_utf16(write: Write) -> None:
    corpus = read_corpus(write("a.csv", "text,label\r\nna\u00efve,\u0434\u0430\r\n".encode("utf-16")))
    assert pairs_of(corpus) == [("na\u00efve", "\u0434\u0430")]
    assert corpus.encoding == "utf-16"


def test_max_field_chars(write: Write) -> None:
    path = write("a.csv", 'text,label\nabc,x\n"ab\ncd",x\n')
    corpus = read_corpus(path, ReadOptions(max_field_chars=3))
    assert corpus.texts == ("abc",)
    assert corpus.rejections == (Rejection(2, "text longer than 3 characters"),)


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("a.csv", "", "empty"),
        ("a.csv", "\n\n", "no rows"),
        ("a.csv", "text,label\n", "no rows"),
        ("a.csv", "text,label\n,a\nb\n", r"every row was rejected.*1 x blank text, 1 x 1 field, wanted 2"),
        ("a.csv", '"text,label\n', "first row is damaged"),
        ("a.csv", "te\0xt,label\na,b\n", "first row is damaged"),
        ("a.csv", "t\0e\0x\0t\0,\0", "UTF-16 without its byte-order mark"),
        ("a.jsonl", "\n\n", "no rows"),
        ("a.jsonl", "text,label\n", "no row is a JSON object"),
        ("a.json", "[]", "no rows"),
        ("a.json", '[{"text": "a"}, ', "not a valid JSON array"),
        ("a.parquet", "text,label\n", "not a readable Parquet file"),
        ("a.xyz", "nothing to see\n", "unknown data format"),
    ],
)
def test_files_without_a_usable_row(write: Write, name: str, content: str, what: str) -> None:
    with pytest.raises(DataError, match=what) as caught:
        read_corpus(write(name, content))
    assert caught.value.where is not None
    assert name in caught.value.where


def test_missing_file_and_directory(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_corpus(tmp_path / "none.csv")
    with pytest.raises(DataError, match="directory"):
        read_corpus(os.fspath(tmp_path))


def test_options_that_a_format_cannot_honour(write: Write) -> None:
    path = write("a.jsonl", '{"text": "a", "label": "b"}')
    with pytest.raises(ConfigError, match="header"):
        read_corpus(path, ReadOptions(header=False))
    with pytest.raises(DataError, match="no labels"):
        read_corpus(write("a.txt", "a"), ReadOptions(format="lines"))


def test_multi_label_csv(write: Write) -> None:
    path = write("a.csv", 'text,labels\nx,"a,b"\ny,b\nz,\n')
    corpus = read_corpus(path, ReadOptions(label_separator=","))
    assert corpus.multi_label
    assert corpus.labels == (("a", "b"), ("b",))
    assert corpus.rejection_counts() == {"missing label": 1}
    assert not read_corpus(path).multi_label
    spelled = read_corpus(write("b.csv", 'text,labels\nx,"[""a"", ""b""]"\ny,[]\n'))
    assert spelled.labels == (("a", "b"), ())


# -- JSON lines


def test_the_account_of_damaged_json_lines(write: Write) -> None:
    content = (
        b'\xef\xbb\xbf{"input": "a", "label": 3}\n'
        b"\n"
        b'{"input": "b", "label": 3.0}\r\n'
        b'{"input": "c", "label"\n'
        b'["d", 1]\n'
        b'{"input": "e"}\n'
        b'{"label": 1}\n'
        b'{"input": 5, "label": 1}\n'
        b'{"input": "caf\xe9", "label": true}\n'
        b'{"input": "\\ud83d", "label": 1}\n'
        b'{"input": "nul \\u0000", "label": 1}\n'
        b'{"input": "f", "label": NaN}\n'
        b'{"input": "g", "label": ' + b"9" * 5000 + b"}\n"
        b'{"input": ' + b"[" * 100_000 + b"\n"
    )
    corpus = read_corpus(write("a.jsonl", content))
    assert pairs_of(corpus) == [("a", "3"), ("b", "3"), ("caf\u00e9", "true")]
    assert corpus.rows == (1, 3, 9)
    assert corpus.repaired_rows == (9,)
    assert {rejection.row: rejection.reason for rejection in corpus.rejections} == {
        4: "not valid JSON: Expecting ':' delimiter",
        5: "not a JSON object but list",
        6: "missing label",
        7: "missing text",
        8: "text is of type int",
        10: "unpaired surrogate in text",
        11: "NUL character",
        12: "missing label",
        13: "not valid JSON: nested too deeply or a number too long",
        14: "not valid JSON: nested too deeply or a number too long",
    }
    assert corpus.total_rows == 13


def test_flag_vectors_declare_classes_that_no_row_has(write: Write) -> None:
    lines = ['{"input": "a", "labels": [0.0, 1.0, 0.0]}', '{"input": "b", "labels": [0, 0, 0]}']
    corpus = read_corpus(write("a.jsonl", "\n".join(lines)))
    assert corpus.multi_label
    assert corpus.labels == (("1",), ())
    assert corpus.declared_labels == ("0", "1", "2")
    assert corpus.select([1]).declared_labels == ("0", "1", "2")


def test_label_and_labels_on_different_lines_are_one_column(write: Write) -> None:
    lines = ['{"input": "a", "label": 2}', '{"input": "b", "labels": [1, 0, 0]}']
    for order in (lines, lines[::-1]):
        corpus = read_corpus(write("a.jsonl", "\n".join(order)))
        assert dict(zip(corpus.texts, corpus.labels, strict=True)) == {"a": ("2",), "b": ("0",)}
        assert corpus.multi_label
    both = write("b.jsonl", '{"text": "a", "label": "x", "labels": ["y"]}')
    with pytest.raises(DataError, match="several columns could be the label"):
        read_corpus(both)
    assert read_corpus(both, ReadOptions(label="labels")).labels == (("y",),)


def test_lists_of_names_and_an_override(write: Write) -> None:
    path = write("a.jsonl", '{"text": "a", "labels": ["x"]}\n{"text": "b", "labels": ["x", "y"]}\n')
    assert read_corpus(path).labels == (("x",), ("x", "y"))
    single = read_corpus(path, ReadOptions(multi_label=False))
    assert not single.multi_label
    assert single.rejections == (Rejection(2, "2 labels, wanted 1"),)


def test_a_repaired_element_of_a_json_array(write: Write) -> None:
    path = write("a.json", b'[{"text": "plain", "label": 1}, {"text": "caf\xe9", "label": 2}]')
    corpus = read_corpus(path)
    assert corpus.texts == ("plain", "caf\u00e9")
    assert corpus.repaired_rows == (2,)


# -- Parquet


def test_parquet_types(tmp_path: Path) -> None:
    texts = ["a", None, " ", "d", "e"]
    columns = {
        "int": pl.Series([3, 1, 1, None, 2]),
        "float": pl.Series([3.0, 1.0, 1.0, float("nan"), 2.0]),
        "bool": pl.Series([True, False, False, None, False]),
        "category": pl.Series(["x", "y", "y", None, "z"], dtype=pl.Categorical),
        "enum": pl.Series(["x", "y", "y", None, "z"], dtype=pl.Enum(["x", "y", "z"])),
    }
    wanted = {"int": "32", "float": "32", "category": "xz", "enum": "xz"}
    for name, labels in columns.items():
        path = tmp_path / f"{name}[1].parquet"
        pl.DataFrame({"text": texts, "label": labels}).write_parquet(path)
        corpus = read_corpus(path)
        assert corpus.labels == ((("true",), ("false",)) if name == "bool" else tuple((c,) for c in wanted[name]))
        assert corpus.rejections == (
            Rejection(2, "missing text"),
            Rejection(3, "blank text"),
            Rejection(4, "missing label"),
        )
        assert corpus.rows == (1, 5)


@pytest.mark.parametrize("dtype", [pl.List(pl.Int64), pl.Array(pl.Int64, 3)])
def test_parquet_lists_are_multi_label(tmp_path: Path, dtype: pl.DataType) -> None:
    path = tmp_path / "a.parquet"
    frame = pl.DataFrame({"text": ["a", "b"], "labels": pl.Series([[0, 1, 1], [0, 0, 0]], dtype=dtype)})
    frame.write_parquet(path)
    corpus = read_corpus(path)
    assert corpus.labels == (("1", "2"), ())
    assert corpus.declared_labels == ("0", "1", "2")


def test_parquet_texts_as_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pl.DataFrame({"text": [b"na\xc3\xafve", b"caf\xe9"], "label": [0, 1]}).write_parquet(path)
    corpus = read_corpus(path)
    assert corpus.texts == ("na\u00efve", "caf\u00e9")
    assert corpus.repaired_rows == (2,)


def test_parquet_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pl.DataFrame({"text": ["a"] * 1000, "label": range(1000)}).write_parquet(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="not a readable Parquet file"):
        read_corpus(path)
