"""Files of rows that no command can use."""

from __future__ import annotations

import gzip
import json
import os

import polars
from bad_inputs import GOOD, TRAIN, BadInput, Maker, World, file, rows

_HEAD = "text,label\n"
_GOOD_ROWS = "the dog,beast\nthe pear,fruit\n" * 8
_CLASSIFY = "predict {run} {tmp}/rows.csv"
_SCORE = "evaluate {run} {tmp}/rows.csv --out {tmp}/out"


def _parquet(**columns: list[object]) -> Maker:
    return lambda world: polars.DataFrame(columns).write_parquet(world.tmp / "rows.parquet")


def _damaged_parquet(world: World) -> None:
    _parquet(text=["the dog", "the pear"] * 500, label=["beast", "fruit"] * 500)(world)
    path = world.tmp / "rows.parquet"
    content = bytearray(path.read_bytes())
    content[4:200] = bytes(196)
    path.write_bytes(bytes(content))


def _jsonl(*lines: object) -> str:
    return "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)


_ROWS_JSONL = TRAIN.replace("rows.csv", "rows.jsonl")
_ROWS_PARQUET = TRAIN.replace("rows.csv", "rows.parquet")

DATA = (
    BadInput("no data file", TRAIN, ("rows.csv: no such file",), process=True),
    BadInput("a name nearly right", TRAIN, ("no such file", "row.csv"), file("row.csv", _HEAD)),
    BadInput("empty file", TRAIN, ("the file is empty", "got 0 bytes"), rows(b"")),
    BadInput("a header and no row", TRAIN, ("the file has no rows", "a text and a label"), rows(_HEAD)),
    BadInput("blank lines only", TRAIN, ("the file has no rows",), rows("\n\n\n")),
    BadInput("random bytes", TRAIN, ("rows.csv",), rows(bytes(range(256)) * 40), process=True),
    BadInput("a file of NUL bytes", TRAIN, ("not a text file", "NUL"), rows(bytes(4096))),
    BadInput(
        "NUL byte in every text", TRAIN, ("every row was rejected", "NUL character"), rows(_HEAD + "a\0b,x\n" * 9)
    ),
    BadInput(
        "UTF-16 without its mark",
        TRAIN,
        ("not a text file", "UTF-16", "save it as UTF-8"),
        rows((_HEAD + _GOOD_ROWS).encode("utf-16-le")),
    ),
    BadInput(
        "UTF-16 cut in two",
        TRAIN,
        ("not valid UTF-16", "Save it as UTF-8"),
        rows((_HEAD + _GOOD_ROWS).encode("utf-16")[:-1]),
    ),
    BadInput(
        "a zip archive", TRAIN, ("zip archive or an Excel sheet", "Export it as CSV"), rows(b"PK\x03\x04" + bytes(80))
    ),
    BadInput("a PDF", TRAIN, ("a PDF",), rows(b"%PDF-1.7\n" + bytes(80))),
    BadInput("gzip cut short", TRAIN, ("damaged gzip data",), rows(gzip.compress((_HEAD + _GOOD_ROWS).encode())[:40])),
    BadInput(
        "gzip with a wrong checksum",
        TRAIN,
        ("damaged gzip data", "download it again"),
        rows(gzip.compress((_HEAD + _GOOD_ROWS).encode())[:-8] + bytes(8)),
    ),
    BadInput("gzip of nothing useful", TRAIN, ("rows.csv",), rows(gzip.compress(bytes(5000)))),
    BadInput(
        "a directory", TRAIN, ("this is a directory", "Name one file in it"), lambda w: (w.tmp / "rows.csv").mkdir()
    ),
    BadInput(
        "a pipe", TRAIN, ("not a regular file", "Save it first"), lambda w: os.mkfifo(w.tmp / "rows.csv"), process=True
    ),
    BadInput("a device", GOOD.replace("{data}", "/dev/null"), ("/dev/null: not a regular file",)),
    BadInput(
        "no label column",
        TRAIN,
        ("no label column found", "'text', 'other'", "--label NAME"),
        rows("text,other\na,b\nc,d\n"),
    ),
    BadInput("no text column", TRAIN, ("no text column found", "--text NAME"), rows("a,b,label\nx,y,1\nx,z,2\n")),
    BadInput(
        "two text columns",
        TRAIN,
        ("several columns could be the text", "'review'", "'comment'", "Pass --text NAME"),
        rows("review,comment,label\na,b,1\nc,d,2\n"),
    ),
    BadInput(
        "two label columns",
        TRAIN,
        ("several columns could be the label", "'intent'", "'topic'", "--label NAME"),
        rows("text,intent,topic\na,b,1\nc,d,2\n"),
    ),
    BadInput(
        "a column named twice",
        TRAIN,
        ("several columns could be the label", "'label', 'label'"),
        rows("text,label,label\na,b,c\nd,e,f\n"),
    ),
    BadInput(
        "a column that is not there",
        TRAIN + " --label lable",
        ("no column 'lable'", "Did you mean --label 'label'?"),
        rows(_HEAD + _GOOD_ROWS),
    ),
    BadInput(
        "a column number too large", TRAIN + " --no-header --text 1 --label 9", ("no column '9'",), rows(_GOOD_ROWS)
    ),
    BadInput(
        "one column twice",
        TRAIN + " --text text --label text",
        ("column 'text' is used twice",),
        rows(_HEAD + _GOOD_ROWS),
    ),
    BadInput(
        "one class",
        TRAIN,
        ("fewer than two labels", "'beast'", "at least two classes"),
        rows(_HEAD + "the dog,beast\n" * 9),
    ),
    BadInput("one row", TRAIN, ("fewer than two labels",), rows(_HEAD + "the dog,beast\n")),
    BadInput(
        "two rows",
        TRAIN,
        ("nothing can be held out", "2 rows", "Give a validation file"),
        rows(_HEAD + "the dog,beast\nthe pear,fruit\n"),
    ),
    BadInput(
        "labels that are ids",
        TRAIN,
        ("almost every row has a label of its own", "pass --label"),
        rows(_HEAD + "".join(f"the dog {n},{n}\n" for n in range(40))),
    ),
    BadInput("empty labels", TRAIN, ("every row was rejected", "missing label"), rows(_HEAD + "the dog,\nthe pear,\n")),
    BadInput(
        "labels of blanks",
        TRAIN,
        ("every row was rejected", "missing label"),
        rows(_HEAD + "the dog,   \nthe pear,\t\n"),
    ),
    BadInput("blank texts", TRAIN, ("every row was rejected", "blank text"), rows(_HEAD + "  ,beast\n ,fruit\n")),
    BadInput("quotes that never close", TRAIN, ("every row was rejected", "quote"), rows(_HEAD + '"the dog,beast\n')),
    BadInput("ragged rows", TRAIN, ("every row was rejected", "field"), rows("text,label,more\na,b\nc,d,e,f\n")),
    BadInput(
        "a field of two million characters",
        TRAIN,
        ("every row was rejected", "longer than 1000000 characters"),
        rows(_HEAD + "a" * 2_000_000 + ",beast\n"),
    ),
    BadInput("a line of 20 million characters", TRAIN, ("rows.csv",), rows(_HEAD + "a" * 20_000_000)),
    BadInput(
        "no delimiter at all",
        TRAIN.replace(".csv", ".data"),
        ("unknown data format", "Pass --format"),
        file("rows.data", "abc\ndef\n"),
    ),
    BadInput(
        "JSON lines that are none",
        _ROWS_JSONL,
        ("no row is a JSON object", "not valid JSON"),
        file("rows.jsonl", "{'a': 1}\n"),
    ),
    BadInput("JSON lines of numbers", _ROWS_JSONL, ("no row is a JSON object", "int"), file("rows.jsonl", "1\n2\n")),
    BadInput(
        "JSON nested 100,000 deep",
        _ROWS_JSONL,
        ("nested too deeply",),
        file("rows.jsonl", "[" * 0 + '{"text":' * 100_000 + "\n"),
    ),
    BadInput(
        "an array nested 100,000 deep", _ROWS_JSONL, ("not a valid JSON array",), file("rows.jsonl", "[" * 100_000)
    ),
    BadInput(
        "a damaged JSON array",
        _ROWS_JSONL,
        ("not a valid JSON array", "One object a line"),
        file("rows.jsonl", '[{"text": "a", "label": "b"},'),
    ),
    BadInput(
        "JSON labels that are NaN",
        _ROWS_JSONL,
        ("every row was rejected", "missing label"),
        file("rows.jsonl", '{"text": "a", "label": NaN}\n{"text": "b", "label": NaN}\n'),
    ),
    BadInput(
        "JSON labels that are objects",
        _ROWS_JSONL,
        ("every row was rejected", "label is of type dict"),
        file("rows.jsonl", _jsonl({"text": "a", "label": {"x": 1}}, {"text": "b", "label": {}})),
    ),
    BadInput(
        "JSON texts that are numbers",
        _ROWS_JSONL,
        ("every row was rejected", "text is of type int"),
        file("rows.jsonl", _jsonl({"text": 1, "label": "a"}, {"text": 2, "label": "b"})),
    ),
    BadInput(
        "JSON keys twice",
        _ROWS_JSONL,
        ("fewer than two labels",),
        file("rows.jsonl", '{"text": "a", "label": "x", "label": "z"}\n{"text": "b", "label": "z"}\n'),
    ),
    BadInput("a Parquet file named csv", TRAIN, ("a Parquet file", "--format parquet"), rows(b"PAR1" + bytes(40))),
    BadInput(
        "text named parquet", _ROWS_PARQUET, ("not a readable Parquet file",), file("rows.parquet", _HEAD + _GOOD_ROWS)
    ),
    BadInput("a damaged Parquet file", _ROWS_PARQUET, ("rows.parquet", "Parquet"), _damaged_parquet),
    BadInput(
        "Parquet texts that are numbers",
        _ROWS_PARQUET,
        ("every row was rejected", "text is of type int"),
        _parquet(text=[1, 2, 3], label=["a", "b", "a"]),
    ),
    BadInput(
        "Parquet labels that are structs",
        _ROWS_PARQUET,
        ("every row was rejected", "label is of type dict"),
        _parquet(text=["a", "b"], label=[{"x": 1}, {"x": 2}]),
    ),
    BadInput(
        "an eval file without labels",
        GOOD + " --eval {tmp}/rows.csv",
        ("rows.csv: no label column found",),
        rows("text\nthe dog\nthe pear\n"),
    ),
    BadInput(
        "a test file without labels",
        GOOD + " --test {tmp}/rows.csv",
        ("rows.csv: no label column found",),
        rows("text\nthe dog\nthe pear\n"),
    ),
    BadInput(
        "a test file of unknown labels",
        GOOD + " --test {tmp}/rows.csv",
        ("no row has labels that the classifier knows", "'planet'", "'beast'"),
        rows(_HEAD + "the dog,planet\nthe cat,planet\n"),
    ),
    BadInput("an empty test file", GOOD + " --test {tmp}/rows.csv", ("the file is empty",), rows(b"")),
    BadInput("a second text that is not there", GOOD + " --text-pair other", ("no column 'other'", "'text', 'label'")),
    BadInput(
        "an eval file without pairs",
        TRAIN + " --eval {data}",
        ("train.csv",),
        rows("sentence1,sentence2,label\n" + "the dog,a cat,same\na pear,the dog,other\n" * 9),
    ),
    BadInput(
        "a label separator of no character",
        GOOD + " --label-separator ''",
        ("the label separator is empty", "one or more characters"),
    ),
    BadInput("a slice that is not there", GOOD + " --slice region", ("no column 'region'", "'text', 'label'")),
    BadInput("predict: empty file", _CLASSIFY, ("the file is empty",), rows(b"")),
    BadInput("predict: no text column", _CLASSIFY, ("rows.csv", "text"), rows("a,b,c\n1,2,3\n")),
    BadInput("predict: an archive", _CLASSIFY, ("zip archive",), rows(b"PK\x03\x04" + bytes(80))),
    BadInput(
        "predict: gzip damaged further down",
        "predict {run} {tmp}/rows.csv.gz",
        ("damaged gzip data",),
        file("rows.csv.gz", gzip.compress((_HEAD + _GOOD_ROWS * 1000).encode(), compresslevel=0)[:-100_000]),
    ),
    BadInput(
        "predict: sets that were never chosen",
        "predict {run} {data} --sets",
        ("qlassify calibrate RUN DATA --coverage",),
    ),
    BadInput("predict: a pair for a single text", "predict {run} --text dog --text-pair cat", ("text",)),
    BadInput(
        "evaluate: unknown labels",
        _SCORE,
        ("no row has labels that the classifier knows", "'planet'"),
        rows(_HEAD + "the dog,planet\n"),
        process=True,
    ),
    BadInput("evaluate: no labels", _SCORE, ("no label column found",), rows("text\nthe dog\nthe pear\n")),
    BadInput(
        "evaluate: pairs", _SCORE, ("text",), rows("sentence1,sentence2,label\nthe dog,the cat,beast\nx,y,fruit\n")
    ),
    BadInput(
        "evaluate: a slice that is not there",
        "evaluate {run} {data} --slice region --out {tmp}/out",
        ("no column 'region'",),
    ),
    BadInput(
        "calibrate: unknown labels",
        "calibrate {run} {tmp}/rows.csv",
        ("no row has labels that the classifier knows",),
        rows(_HEAD + "the dog,planet\n"),
    ),
    BadInput("compare: a file that is not there", "compare {run} {run} {tmp}/rows.csv", ("no such file",)),
    BadInput(
        "plan: no label column",
        "plan {tmp}/rows.csv --base {base}",
        ("no label column found",),
        rows("text,other\na,b\nc,d\n"),
    ),
)
