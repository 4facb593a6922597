import math
from decimal import Decimal

import pytest

from qlassify.data.cells import RejectedRow, clean_text, label_reader, scalar_name
from qlassify.data.records import ReadOptions


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "missing text"),
        ("", "blank text"),
        (" \t\r\n\u00a0", "blank text"),
        (7, "text is of type int"),
        ("abcdef", "text longer than 5 characters"),
        ("a\0b", "NUL character"),
        ("a\ud83d", "unpaired surrogate in text"),
    ],
)
def test_texts_that_reject_their_row(value: object, reason: str) -> None:
    with pytest.raises(RejectedRow, match=f"^{reason}$"):
        clean_text(value, 5)


def test_a_text_loses_the_blanks_at_its_ends_only() -> None:
    assert clean_text("\n a  b\t", 5) == "a  b"


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (3, "3"),
        (3.0, "3"),
        (-1, "-1"),
        (0.5, "0.5"),
        (True, "true"),
        (False, "false"),
        (" a b\r", "a b"),
        ("3.0", "3.0"),
    ],
)
def test_names_of_labels(value: object, name: str) -> None:
    assert scalar_name(value) == name


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "missing label"),
        ("  ", "missing label"),
        (math.nan, "missing label"),
        ({"a": 1}, "label is of type dict"),
        (Decimal(1), "label is of type Decimal"),
        ("a\nb", "label spans lines"),
        ("a\0", "NUL character in label"),
    ],
)
def test_labels_that_reject_their_row(value: object, reason: str) -> None:
    with pytest.raises(RejectedRow, match=f"^{reason}$"):
        scalar_name(value)


def read(values: list[object], **options: object) -> list[tuple[str, ...] | str]:
    reader = label_reader(values, ReadOptions(**options))  # type: ignore[arg-type]
    found: list[tuple[str, ...] | str] = []
    for value in values:
        try:
            found.append(reader.names(value))
        except RejectedRow as rejected:
            found.append(str(rejected))
    return found


def test_scalars_are_one_label_a_row() -> None:
    assert read(["a", 3, "a,b", "[x"]) == [("a",), ("3",), ("a,b",), ("[x",)]
    assert not label_reader(["a"], ReadOptions()).multi_label


def test_lists_make_a_file_multi_label() -> None:
    assert read([["b", "a", "b"], [], "c", None]) == [("b", "a"), (), ("c",), "missing label"]
    assert label_reader(["a", ["a"]], ReadOptions()).multi_label
    assert read([["a", None]]) == ["missing label"]


def test_a_separator_splits_cells() -> None:
    found = read(["2,5", " 2 , 2,", "", ",", 7], label_separator=",")
    assert found == [("2", "5"), ("2",), "missing label", "missing label", ("7",)]
    assert label_reader(["a"], ReadOptions(label_separator=",")).multi_label


def test_cells_that_spell_lists() -> None:
    assert read(['["a", "b"]', "[]", " [3] "]) == [("a", "b"), (), ("3",)]
    assert read(["['a', 'it\\'s']", "['b']"]) == [("a", "it's"), ("b",)]
    # One cell that is no list: they are names with brackets.
    assert read(['["a"]', "b"]) == [('["a"]',), ("b",)]
    assert read(["[a] b [c]", "[a"]) == [("[a] b [c]",), ("[a",)]


def test_the_option_overrides() -> None:
    assert read([["a"], ["a", "b"], []], multi_label=False) == [("a",), "2 labels, wanted 1", "missing label"]
    assert label_reader(["a"], ReadOptions(multi_label=True)).multi_label


def test_flag_vectors() -> None:
    values: list[object] = [[0, 1, 0, 1], [0.0, 0.0, 0.0, 0.0], [0.4, 0.6, 0.5, 1]]
    assert read(values) == [("1", "3"), (), ("1", "3")]
    assert label_reader(values, ReadOptions()).declared == ("0", "1", "2", "3")
    assert read([[0, 1], [1, 0], [1, 1]]) == [("1",), ("0",), ("0", "1")]
    assert read([[True, False, False], [False, False, True]]) == [("0",), ("2",)]


def test_one_bad_vector_costs_its_row_and_does_not_change_the_others() -> None:
    values: list[object] = [[0, 1, 0]] * 9
    assert read([*values, [0, 1]]) == [("1",)] * 9 + ["2 label flags, wanted 3"]
    assert read([*values, [0, 1, 7]])[:9] == [("1",)] * 9


def test_flags_and_single_classes_in_one_file() -> None:
    values: list[object] = [[0, 1, 0], [1, 0, 0], 2, 9]
    assert read(values) == [("1",), ("0",), ("2",), "label is none of the 3 that have flags in this file"]


def test_lists_of_class_ids() -> None:
    assert read([[2, 5], [0], [5.0]]) == [("2", "5"), ("0",), ("5",)]
    assert read([[2, 5], [3, 7]]) == [("2", "5"), ("3", "7")]
    assert read([[0], [1]]) == [("0",), ("1",)]
    assert label_reader([[2, 5]], ReadOptions()).declared == ()
