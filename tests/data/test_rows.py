import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from qlassify.data import jsonl, parquet
from qlassify.data.corpus import ReadOptions, Rejection, read_corpus
from qlassify.data.rows import RowChunk, iter_text_rows
from qlassify.errors import ConfigError, DataError

Write = Callable[[str, str | bytes], Path]
ZERO = ReadOptions()


def texts_of(chunks: list[RowChunk]) -> list[str]:
    return [text for chunk in chunks for text in chunk.texts]


def test_chunks_hold_every_row_once_and_in_order(write: Write) -> None:
    content = "id,text\n" + "".join(f"{n},{'' if n % 5 == 0 else f'text {n}'}\n" for n in range(1, 24))
    chunks = list(iter_text_rows(write("a.csv", content), ZERO, wants_pair=False, chunk_rows=4))
    sizes = [len(chunk.rows) + len(chunk.rejections) for chunk in chunks]
    assert sizes == [4, 4, 4, 4, 4, 3]
    assert [row for chunk in chunks for row in chunk.rows] == [n for n in range(1, 24) if n % 5]
    assert texts_of(chunks) == [f"text {n}" for n in range(1, 24) if n % 5]
    rejected = [rejection for chunk in chunks for rejection in chunk.rejections]
    assert rejected == [Rejection(n, "blank text") for n in (5, 10, 15, 20)]
    assert all(chunk.pairs is None for chunk in chunks)


def test_the_same_texts_as_in_training(write: Write) -> None:
    content = 'text,label\n"a\nb",x\n"stray,y\nc\0,z\nd ,w\n"e, f",v\n,u\n'
    path = write("a.csv", content)
    corpus = read_corpus(path)
    [chunk] = iter_text_rows(path, ZERO, wants_pair=False)
    assert (chunk.rows, chunk.texts, chunk.rejections) == (corpus.rows, corpus.texts, corpus.rejections)


def test_a_label_that_is_absent_does_not_matter(write: Write) -> None:
    options = ReadOptions(text="opinion", label="stars")
    [chunk] = iter_text_rows(write("a.csv", "opinion\ngood\n"), options, wants_pair=False)
    assert chunk.texts == ("good",)
    [chunk] = iter_text_rows(write("b.csv", "opinion,stars\ngood,\n"), options, wants_pair=False)
    assert chunk.texts == ("good",)


def test_pairs(write: Write) -> None:
    path = write("a.csv", "premise,hypothesis\na,b\nc,\ne,f\n")
    [chunk] = iter_text_rows(path, ZERO, wants_pair=True)
    assert (chunk.texts, chunk.pairs) == (("a", "e"), ("b", "f"))
    assert chunk.rejections == (Rejection(2, "blank second text"),)
    chunks = list(iter_text_rows(path, ZERO, wants_pair=True, chunk_rows=1))
    assert [(chunk.texts, chunk.pairs) for chunk in chunks] == [(("a",), ("b",)), ((), ()), (("e",), ("f",))]
    with pytest.raises(DataError, match="one text column"):
        iter_text_rows(write("b.csv", "text\na\n"), ZERO, wants_pair=True)


def test_text_files_and_streams_hold_one_text_a_line(write: Write) -> None:
    content = b'\xef\xbb\xbffirst, with a comma\r\n\n"second"\ncaf\xe9'
    wanted = ("first, with a comma", '"second"', "caf\u00e9")
    for source in (write("a.txt", content), write("b.txt.gz", gzip.compress(content)), io.BytesIO(content)):
        [chunk] = iter_text_rows(source, ZERO, wants_pair=False)
        assert chunk.texts == wanted
        assert chunk.rows == (1, 3, 4)
        assert chunk.rejections == (Rejection(2, "blank text"),)


def test_text_files_and_streams_hold_json_if_they_begin_with_a_brace(write: Write) -> None:
    content = b'\n {"text": "a"}\n{"text": \n{"text": "b", "label": 1}\n'
    for source in (write("a.txt", content), io.BytesIO(content)):
        [chunk] = iter_text_rows(source, ZERO, wants_pair=False)
        assert chunk.texts == ("a", "b")
        assert chunk.rows == (2, 4)
        assert [rejection.row for rejection in chunk.rejections] == [3]


def test_a_stream_is_left_open_and_can_be_gzip() -> None:
    stream = io.BytesIO(gzip.compress(b"one\ntwo\n"))
    assert texts_of(list(iter_text_rows(stream, ZERO, wants_pair=False))) == ["one", "two"]
    assert not stream.closed
    with pytest.raises(ConfigError, match="csv"):
        iter_text_rows(io.BytesIO(b"text\na\n"), ReadOptions(format="csv"), wants_pair=False)


def test_no_rows_are_no_error(write: Write) -> None:
    for source in (io.BytesIO(b""), write("a.csv", "text,label\n"), write("a.jsonl", "\n"), write("a.json", "[]")):
        assert list(iter_text_rows(source, ZERO, wants_pair=False)) == []
    with pytest.raises(DataError, match="empty"):
        iter_text_rows(write("b.csv", ""), ZERO, wants_pair=False)


def test_errors_come_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        iter_text_rows(tmp_path / "none.csv", ZERO, wants_pair=False)
    with pytest.raises(ConfigError, match="chunk_rows"):
        iter_text_rows(tmp_path / "none.csv", ZERO, wants_pair=False, chunk_rows=0)


def test_only_what_is_needed_is_read_of_a_stream() -> None:
    class Endless(io.RawIOBase):
        served = 0

        def readable(self) -> bool:
            return True

        def read(self, size: int = -1) -> bytes:
            self.served += 1
            return (json.dumps({"text": f"row {self.served}"}) + "\n").encode()

    endless = Endless()
    chunks = iter_text_rows(endless, ZERO, wants_pair=False, chunk_rows=10)
    assert next(chunks).texts[0] == "row 1"
    assert next(chunks).rows == tuple(range(11, 21))
    # Keys are looked for in the first rows, and text decoders read ahead; but it ends.
    assert endless.served < jsonl.LOOK_AHEAD + 200


def test_parquet_is_read_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "BATCH_ROWS", 7)
    heights = []
    read_batch = parquet.ParquetTable._batch

    def spy(self: parquet.ParquetTable, start: int, names: list[str]) -> pl.DataFrame:
        batch = read_batch(self, start, names)
        heights.append((batch.height, batch.columns))
        return batch

    monkeypatch.setattr(parquet.ParquetTable, "_batch", spy)
    path = tmp_path / "a.parquet"
    frame = pl.DataFrame({"other": range(20), "text": [f"t{n}" for n in range(20)]})
    frame.write_parquet(path, row_group_size=6)
    chunks = list(iter_text_rows(path, ZERO, wants_pair=False, chunk_rows=8))
    assert texts_of(chunks) == [f"t{n}" for n in range(20)]
    assert [row for chunk in chunks for row in chunk.rows] == list(range(1, 21))
    assert heights == [(7, ["text"]), (7, ["text"]), (6, ["text"]), (0, ["text"])]
