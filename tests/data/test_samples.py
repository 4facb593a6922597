"""The original pipeline's JSONL files: numbered classes, every line must fit, every error has its line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from qlassify.data.samples import MultiLabelSample, Sample, read_multi_label_samples, read_samples
from qlassify.errors import DataError

Write = Callable[[str, str | bytes], Path]


def test_single_labels(write: Write) -> None:
    path = write("a.jsonl", '{"input": "ls", "label": 0}\n\n  \n{"input": "rm -rf /", "label": 4, "id": 7}\n')
    assert read_samples(path, 5) == [Sample("ls", 0), Sample("rm -rf /", 4)]


def test_a_byte_order_mark_and_other_line_ends(write: Write) -> None:
    path = write("a.jsonl", b'\xef\xbb\xbf{"input": "na\xc3\xafve", "label": 1}\r\n{"input": "b", "label": 0}')
    assert read_samples(path, 2) == [Sample("naïve", 1), Sample("b", 0)]


def test_several_labels(write: Write) -> None:
    path = write("a.jsonl", '{"input": "x", "labels": [1, 0.5, 0.51]}\n{"input": "y", "label": 2}\n')
    assert read_multi_label_samples(path, 3) == [
        MultiLabelSample("x", (1.0, 0.5, 0.51)),
        MultiLabelSample("y", (0.0, 0.0, 1.0)),
    ]


@pytest.mark.parametrize("label", ["5", "-1", '"1"', "1.0", "true", "null", "[1]"])
def test_a_label_out_of_range(write: Write, label: str) -> None:
    path = write("a.jsonl", f'{{"input": "a", "label": 0}}\n\n{{"input": "b", "label": {label}}}\n')
    with pytest.raises(DataError, match="F-CLASS-002") as caught:
        read_samples(path, 5)
    assert caught.value.where == f"{path}, line 3"
    assert caught.value.wanted == "an integer from 0 to 4"
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "content", ['"labels": [1, 0]', '"labels": [1, 0, 0, 0]', '"labels": ["1", 0, 0]', '"labels": []', '"label": 3']
)
def test_flags_that_are_not_one_per_class(write: Write, content: str) -> None:
    path = write("a.jsonl", f'{{"input": "b", {content}}}\n')
    with pytest.raises(DataError, match="F-CLASS-001") as caught:
        read_multi_label_samples(path, 3)
    assert caught.value.where == f"{path}, line 1"
    assert caught.value.wanted == "3 numbers"


def test_flags_that_are_no_numbers(write: Write) -> None:
    """Python's JSON reader takes NaN; a loss made of it is not finite."""
    path = write("a.jsonl", '{"input": "b", "labels": [NaN, 0, 1]}\n')
    with pytest.raises(DataError, match="line 1"):
        read_multi_label_samples(path, 3)


@pytest.mark.parametrize("line", ["{", "[1]", "3", '{"label": 1}', '{"input": 5, "label": 1}'])
def test_lines_that_are_no_samples(write: Write, line: str) -> None:
    path = write("a.jsonl", f'{{"input": "a", "label": 0}}\n{line}\n')
    for read in (read_samples, read_multi_label_samples):
        with pytest.raises(DataError, match="invalid JSONL") as caught:
            read(path, 2)
        assert caught.value.where == f"{path}, line 2"


def test_files_that_cannot_be_read(write: Write, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="corpus file not found"):
        read_samples(tmp_path / "nowhere.jsonl", 2)
    with pytest.raises(DataError, match="cannot read the corpus"):
        read_samples(write("a.jsonl", b'{"input": "\xff", "label": 0}'), 2)


def test_an_empty_file_has_no_samples(write: Write) -> None:
    assert read_samples(write("a.jsonl", ""), 2) == []
