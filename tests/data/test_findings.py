"""The phrases that all findings share."""

from __future__ import annotations

import pytest

from qlassify.data.findings import WARNING, Finding, counted, excerpt, listed, named, share, verb


def test_a_finding_as_json() -> None:
    finding = Finding("leaks", WARNING, "Two rows leak.", "Remove them.")
    assert finding.as_dict() == {
        "check": "leaks", "severity": "warning", "what": "Two rows leak.", "do": "Remove them."
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("short", "short"),
        ("a\nb\t  c", "a b c"),
        ("abcdefghij", "abcdefghij"),
        ("abcdefghijk", "abcdefg..."),
    ],
)
def test_excerpts_are_one_line_of_at_most_so_many_characters(text: str, wanted: str) -> None:
    assert excerpt(text, 10) == wanted


def test_an_excerpt_of_blanks_says_that_there_is_more() -> None:
    assert excerpt("a" + " " * 50 + "b", 10) == "a..."


def test_numbers_and_their_nouns() -> None:
    assert (counted(1, "row"), counted(2, "row"), counted(0, "row")) == ("1 row", "2 rows", "0 rows")
    assert counted(2, "entry", "entries") == "2 entries"
    assert (verb(1, "has", "have"), verb(2, "has", "have")) == ("has", "have")
    assert share(1, 8) == "1 of 8 (12.5 %)"
    assert share(0, 0) == "0 of 0 (0.0 %)"
    assert (named("train"), named("test")) == ("training", "test")


def test_lists_say_how_many_they_leave_out() -> None:
    assert listed([1, 2, 3]) == "1, 2, 3"
    assert listed([1, 2, 3], 2) == "1, 2 and 1 more"
    assert listed([1, 2, 3], 3, 10) == "1, 2, 3 and 7 more"
