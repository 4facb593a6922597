"""Damage that is made in the test by the conversion that makes it in life, and text that only looks like it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlassify.data.corpus import read_corpus
from qlassify.data.damage import MAX_DAMAGED_ROWS, find_damage, mojibake_at

Write = Callable[[str, str | bytes], Path]


def as_windows_1252(text: str) -> str:
    """UTF-8 read as Windows-1252; the five bytes without a character there become Latin-1's."""
    return "".join(bytes([byte]).decode("cp1252", "ignore") or chr(byte) for byte in text.encode())


@pytest.mark.parametrize(
    "text",
    [
        "café",
        "naïve",
        "It\u2019s fine",
        "a \u2013 b",
        "“quoted”",
        "10 €",
        "¿Qué?",
        "Größe",
        "😂 haha",
        "Привет",
        "…",
        "½",
    ],
)
def test_mojibake_is_found_where_it_begins(text: str) -> None:
    place = next(index for index, character in enumerate(text) if not character.isascii())
    assert mojibake_at(as_windows_1252(text)) == place
    assert mojibake_at(text.encode().decode("latin-1")) == place
    assert mojibake_at(text) == -1


@settings(max_examples=200)
@given(st.text(st.characters(min_codepoint=0xC0, max_codepoint=0x17F), min_size=1, max_size=12))
def test_letters_alone_are_no_mojibake(text: str) -> None:
    # No accented letter stands for a byte that continues a sequence, but those that Windows-1252 has below 0xA0.
    if not set(text) & set("ŠšŽžŒœŸƒ"):
        assert mojibake_at(text) == -1


@pytest.mark.parametrize(
    "text",
    [
        "CAFÉ\u00a0!",
        "« À\u00a0la carte »",
        "« CAFÉ »",
        "Ã",
        "SÃO PAULO",
        "Üben Äpfel Öl",
        "naïve façade",
        "5 °C ± 1",
        "Ελληνικά",
        "русский",
        "日本語",
        "Š",
        "",
    ],
)
def test_honest_text(text: str) -> None:
    assert mojibake_at(text) == -1


def found_in(write: Write, texts: list[str]) -> dict[str, tuple[int, ...]]:
    rows = [json.dumps({"text": text, "label": "x"}) for text in texts]
    return {
        damage.kind: damage.rows for damage in find_damage("train", read_corpus(write("rows.jsonl", "\n".join(rows))))
    }


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("lost \ufffd here", "replacement"),
        ("cafÃ© au lait", "mojibake"),
        ("bell \x07 rings", "control"),
        ("next line \x85 of Latin-1", "control"),
        ("first\ufeffsecond", "byte_order_mark"),
        ("\ufefffirst", "byte_order_mark"),
        ("salt &amp; pepper", "html_entity"),
        ("it&#39;s", "html_entity"),
        ("it&#x27;s", "html_entity"),
        ("one\r\ntwo\nthree", "mixed_line_ends"),
        ("one\rtwo\nthree", "mixed_line_ends"),
    ],
)
def test_each_kind_by_its_row(write: Write, text: str, kind: str) -> None:
    assert found_in(write, ["fine", "", text, "also fine"]) == {kind: (3,)}


@pytest.mark.parametrize(
    "text", ["AT&T; yes", "a & b", "&c.", "&foo;", "tab\tand\nline", "one\r\ntwo\r\nthree", "zero\u200bwidth", "naïve"]
)
def test_what_is_no_damage(write: Write, text: str) -> None:
    assert found_in(write, [text]) == {}


def test_one_row_counts_once_for_each_kind(write: Write) -> None:
    texts = ["\ufffd \ufffd &lt;&gt; \x07"] * (MAX_DAMAGED_ROWS + 3)
    rows = [json.dumps({"text": text, "label": "x"}) for text in texts]
    found = find_damage("test", read_corpus(write("rows.jsonl", "\n".join(rows))))
    assert {damage.kind: damage.num_rows for damage in found} == dict.fromkeys(
        ("replacement", "control", "html_entity"), len(texts)
    )
    assert all(damage.rows == tuple(range(1, MAX_DAMAGED_ROWS + 1)) for damage in found)
    [finding] = found[0].findings()
    assert finding.what.startswith("8 of 8 (100.0 %) test texts hold the replacement character U+FFFD: rows 1, 2, 3")
    assert "and 5 more" in finding.what


def test_the_second_text_counts(write: Write) -> None:
    line = json.dumps({"sentence1": "fine", "sentence2": "not \ufffd fine", "label": "x"})
    [damage] = find_damage("train", read_corpus(write("pairs.jsonl", line)))
    assert damage.kind == "replacement"


def test_repaired_bytes_are_told_with_their_rows(write: Write) -> None:
    path = write("rows.csv", b"text,label\nfine,x\ncaf\xe9,y\n")
    [damage] = find_damage("train", read_corpus(path))
    assert (damage.kind, damage.rows, damage.examples) == ("repaired", (2,), ("café",))
