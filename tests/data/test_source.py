import gzip
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlassify.data import source
from qlassify.data.records import ReadOptions
from qlassify.data.source import detect_format, existing_file, repair, text_source
from qlassify.errors import DataError


def escaped(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


@given(st.text())
def test_repair_leaves_valid_utf8_alone(text: str) -> None:
    valid = text.encode("utf-8", "ignore")
    assert repair(escaped(valid)) == valid.decode()


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (b"sister\xf0city", "sister\u00f0city"),
        (b"\x93quoted\x94 \x80 5", "\u201cquoted\u201d \u20ac 5"),
        ("caf\u00e9 ".encode() + b"caf\xe9", "caf\u00e9 caf\u00e9"),  # valid and not, side by side
        (b"\x81", "\x81"),  # undefined in Windows-1252
    ],
)
def test_invalid_bytes_are_read_as_windows_1252(data: bytes, wanted: str) -> None:
    assert repair(escaped(data)) == wanted


@given(st.binary(max_size=40))
def test_repaired_text_can_always_be_encoded(data: bytes) -> None:
    repair(escaped(data)).encode("utf-8")


TEXT = "text,label\r\nna\u00efve \u2028 \U0001f600,\u0434\u0430\r\n"


@pytest.mark.parametrize(
    ("encoding", "found"),
    [
        ("utf-8", "utf-8"),
        ("utf-8-sig", "utf-8"),
        ("utf-16", "utf-16"),  # native byte order, with its mark
        ("utf-32", "utf-32"),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("streamed", [False, True])
def test_encodings_and_gzip(tmp_path: Path, encoding: str, found: str, zipped: bool, streamed: bool) -> None:
    data = TEXT.encode(encoding)
    if zipped:
        data = gzip.compress(data)
    stream = io.BytesIO(data)
    (tmp_path / "file").write_bytes(data)
    looked = text_source(stream if streamed else tmp_path / "file")
    assert looked.encoding == found
    assert list(looked.lines()) == [first + "\n" for first in TEXT.split("\n")[:2]]
    del looked
    assert not stream.closed


def test_big_endian_utf16(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"\xfe\xff" + TEXT.encode("utf-16-be"))
    assert "".join(text_source(tmp_path / "file").lines()) == TEXT


def test_carriage_returns_alone_end_lines_where_nothing_else_does(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"a,b\rc,d\r")
    assert list(text_source(tmp_path / "old").lines()) == ["a,b\r", "c,d\r"]
    (tmp_path / "new").write_bytes(b"a\rb\nc\r\n")
    assert list(text_source(tmp_path / "new").lines()) == ["a\rb\n", "c\r\n"]


def test_an_overlong_line_is_cut_and_the_next_one_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "LINE_LIMIT", 10)
    (tmp_path / "file").write_text("0123456789\n" + "x" * 57 + "\nshort\n" + "y" * 11)
    assert list(text_source(tmp_path / "file").lines()) == ["0123456789\n", "x" * 11, "short\n", "y" * 11]


def test_a_pipe_is_read_as_its_bytes_arrive() -> None:
    class Pipe(io.RawIOBase):
        def __init__(self) -> None:
            self.parts = [b"first\nsec", b"ond\n", b""]

        def readable(self) -> bool:
            return True

        def read(self, size: int = -1) -> bytes:
            raise AssertionError("read waits until it has all the bytes that it is asked for")

        def read1(self, size: int = -1) -> bytes:
            return self.parts.pop(0)

    pipe = Pipe()
    lines = text_source(pipe).lines()
    assert next(lines) == "first\n"
    assert pipe.parts == [b"ond\n", b""]
    assert list(lines) == ["second\n"]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (gzip.compress(b"text,label\n" * 20_000, mtime=0)[:-200], "damaged gzip"),
        (b"\x1f\x8bnot gzip at all", "damaged gzip"),
        (b"\xff\xfea\x00\x00\xd8b\x00", "not valid UTF-16"),
        (b"PK\x03\x04 a sheet", "not a text file"),
        (b"PAR1....", "not a text file"),
    ],
)
def test_damage_is_a_data_error(tmp_path: Path, content: bytes, what: str) -> None:
    path = tmp_path / "file.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=what):
        list(text_source(path).lines())


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_bytes(b"")
    with pytest.raises(DataError, match="directory"):
        existing_file(tmp_path)
    with pytest.raises(DataError, match=r"no such file.*train\.csv"):
        existing_file(tmp_path / "tarin.csv")
    with pytest.raises(DataError, match="empty"):
        existing_file(tmp_path / "train.csv")


@pytest.mark.parametrize(
    ("name", "content", "wanted"),
    [
        ("a.CSV", b"", "csv"),
        ("a.tsv.gz", b"", "tsv"),
        ("a.ndjson", b"", "jsonl"),
        ("a.json", b"", "jsonl"),
        ("a.parquet", b"", "parquet"),
        ("a.txt", b"x\ty\n", "tsv"),
        ("a.dat", b"x,y\n", "csv"),
        ("a", b'\xef\xbb\xbf\n {"a": 1}', "jsonl"),
        ("a", b"PAR1", "parquet"),
        ("a", gzip.compress(b"a\tb\n", mtime=0), "tsv"),
    ],
)
def test_format_by_suffix_then_by_content(tmp_path: Path, name: str, content: bytes, wanted: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert detect_format(tmp_path / name, ReadOptions(), for_prediction=False) == wanted
    assert detect_format(tmp_path / name, ReadOptions(format="tsv"), for_prediction=False) == "tsv"


def test_text_files_hold_lines_for_prediction_only(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one, two\n")
    assert detect_format(tmp_path / "a.txt", ReadOptions(), for_prediction=True) == "lines"
    assert detect_format(tmp_path / "a.txt", ReadOptions(), for_prediction=False) == "csv"
    (tmp_path / "b.txt").write_text("no separator\n")
    with pytest.raises(DataError, match="unknown data format"):
        detect_format(tmp_path / "b.txt", ReadOptions(), for_prediction=False)
