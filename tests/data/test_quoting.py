"""Records and dialects. The standard library's csv module is the independent reference."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlassify.data import quoting
from qlassify.data.quoting import NO_QUOTING, RFC4180, Grammar, choose_quoting, plain_records, quoted_records

# Small alphabets make collisions of delimiters, quotes and line ends the rule and not the exception.
cells = st.text(alphabet='ab",\n\r\t ', max_size=8)
rows = st.lists(st.lists(cells, min_size=3, max_size=3).filter(any), min_size=1, max_size=12)


def lines(text: str) -> list[str]:
    return io.StringIO(text, newline="\n").readlines()


def outcome(text: str, delimiter: str = ",") -> list[list[str] | str]:
    return [record.reason or record.fields for record in quoted_records(lines(text), delimiter)]


@given(rows, st.sampled_from([",", "\t", ";", "|"]), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_what_csv_writes_is_read_back(table: list[list[str]], delimiter: str, line_end: str, quote_all: bool) -> None:
    if line_end == "\n":  # csv then leaves a carriage return at a line's end unquoted, where it is part of the end.
        table = [[cell.replace("\r", "x") for cell in row] for row in table]
    file = io.StringIO()
    style = csv.QUOTE_ALL if quote_all else csv.QUOTE_MINIMAL
    csv.writer(file, delimiter=delimiter, lineterminator=line_end, quoting=style).writerows(table)
    assert outcome(file.getvalue(), delimiter) == table


@given(st.text(alphabet='ab",', max_size=12))
def test_the_grammar_agrees_with_strict_csv_on_one_line(text: str) -> None:
    fields = Grammar(",").fields(text)
    if fields is None:
        # csv lets a quote through inside a field that did not begin with one; all else that we refuse it refuses.
        assert _refused_by_csv(text) or any('"' in part[1:] for part in text.split(",") if not part.startswith('"'))
    elif text:
        assert fields == next(csv.reader([text], strict=True))


def _refused_by_csv(text: str) -> bool:
    try:
        next(csv.reader([text], strict=True))
    except csv.Error:
        return True
    return False


@given(st.text(alphabet='ab",\n', max_size=60))
def test_no_character_of_any_input_disappears(text: str) -> None:
    seen = "\n".join(record.text for record in quoted_records(lines(text), ","))
    assert sorted(seen.replace("\n", "")) == sorted(text.replace("\n", ""))


def test_a_stray_quote_costs_its_own_row_only() -> None:
    text = 'text,label\ngood,a\n"never closed,b\nfine,c\n"quoted, well",d\nlast,e\n'
    assert outcome(text) == [
        ["text", "label"],
        ["good", "a"],
        "quote never closed",
        ["fine", "c"],
        ["quoted, well", "d"],
        ["last", "e"],
    ]


@pytest.mark.parametrize("damaged", ['5" pipe,b', '"a" b,b', 'a,"b" ', '"a"b"c",b', 'a"b"c,b'])
def test_a_quote_where_none_may_stand_costs_its_row(damaged: str) -> None:
    assert outcome(f'text,label\n{damaged}\n"x, y",c\n') == [["text", "label"], "stray quote", ["x, y", "c"]]


def test_a_stray_quote_before_a_text_of_many_lines_does_not_swallow_it() -> None:
    text = 't,l\n"open,a\none,b\n"two\nlines",c\n'
    assert outcome(text) == [["t", "l"], "quote never closed", ["one", "b"], ["two\nlines", "c"]]
    assert outcome(text.replace("one,b\n", ""))[1:] == ["quote never closed", ["two\nlines", "c"]]


def test_two_stray_quotes_do_not_swallow_the_rows_between_them() -> None:
    text = 't,l\n"open,a\none,b\ntwo,c\nthree,d\n"open again,e\nfour,f\n'
    found = outcome(text)
    assert [fields for fields in found if isinstance(fields, list)] == [
        ["t", "l"], ["one", "b"], ["two", "c"], ["three", "d"], ["four", "f"]
    ]  # fmt: skip
    assert len(found) == 7


def test_a_damaged_text_of_many_lines_is_one_rejected_row() -> None:
    # Its inner lines must not come to life as rows; "and, so" alone would be a text with the label "so".
    text = 't,l\n"Dear all\nand, so\non it\ngoes",a,surplus\nnext,b\n'
    assert outcome(text) == [["t", "l"], "3 fields, wanted 2", ["next", "b"]]


def test_a_field_that_is_open_for_too_many_lines_is_damaged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quoting, "RECORD_LINES", 3)
    text = 't,l\n"1\n2\n3",kept\n"1\n2\n3\n4",lost\n'
    found = outcome(text)
    assert found[1] == ["1\n2\n3", "kept"]
    assert found[2] == "quote never closed"
    assert all(isinstance(record, str) for record in found[2:])


def test_a_line_that_is_too_long_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quoting, "LINE_LIMIT", 10)
    assert outcome("t,l\nabcdefghijklm,x\nok,y\n") == [["t", "l"], "line longer than 10 characters", ["ok", "y"]]


def test_empty_lines_are_no_records_and_nul_is_damage() -> None:
    text = "t,l\n\n\r\na,b\nc\0,d\n   \n"
    wanted = [["t", "l"], ["a", "b"], "NUL character", "1 field, wanted 2"]
    assert outcome(text) == wanted
    assert [record.reason or record.fields for record in plain_records(lines(text), ",")] == wanted


@pytest.mark.parametrize(
    ("format", "text", "wanted"),
    [
        ("csv", "t,l\na,b\n", RFC4180),
        ("csv", 't,l\n"a, b",c\n', RFC4180),
        ("csv", 't,l\na,b\n"stray,c\n', RFC4180),  # one damaged row is an accident
        ("csv", 't,l\n5" pipe,b\n6" pipe,c\n', NO_QUOTING),  # two are a habit
        ("csv", 't,l\n"a",b\n"c",d\n"e",f\n5" pipe,b\n6" pipe,c\n', RFC4180),
        ("csv", 't,l\n"a, "b" c",d\n"e, "f" g",h\n', RFC4180),  # without quotes there would be too many fields
        ("tsv", "t\tl\na\tb\n", NO_QUOTING),
        ("tsv", 't\tl\n"Stop!"\tb\nx\ty\n', NO_QUOTING),  # nothing in there needed its quotes
        ("tsv", 't\tl\n"He said ""no"""\tb\nx\ty\n', RFC4180),
        ("tsv", 't\tl\n"two\nlines"\tb\nx\ty\n', RFC4180),
        ("tsv", '"t"\t"l"\n"a"\t"b"\n', RFC4180),  # everything is quoted
        ("tsv", 't\tl\n"He said ""no"""\tb\n"unclosed\ty\nhe "said"\tz\n', NO_QUOTING),
    ],
)
def test_the_dialect_follows_the_evidence(format: str, text: str, wanted: str) -> None:
    assert choose_quoting(lines(text), "\t" if format == "tsv" else ",", format) == wanted


@given(rows)
def test_a_csv_file_that_a_writer_wrote_is_never_read_without_quoting(table: list[list[str]]) -> None:
    file = io.StringIO()
    csv.writer(file).writerows(table)
    assert choose_quoting(lines(file.getvalue()), ",", "csv") == RFC4180
