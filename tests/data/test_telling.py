"""Facts that reading and the audit both know are told once, whichever kind they are, and none is lost."""

from __future__ import annotations

from pathlib import Path

from qlassify.auditing import file_rows
from qlassify.data.corpus import read_corpus
from qlassify.data.dataset import Dataset, build_dataset
from qlassify.data.leaks import find_leaks
from qlassify.data.near_duplicates import near_duplicates
from qlassify.data.repeats import distinct_texts
from qlassify.data.telling import untold
from tiny_jobs import make_rows, write_table


def faulty(folder: Path) -> Dataset:
    """Files with blank rows, a label that was not trained, and texts in both of them."""
    rows = make_rows(60, seed=3)
    train = write_table(folder / "train.csv", ("text", "label"), [*rows[:40], ("", "tool")])
    held = write_table(folder / "held.csv", ("text", "label"), [*rows[30:], ("", "tool"), ("new", "metal")])
    return build_dataset(read_corpus(train), read_corpus(held), None, fraction=0.1, seed=0)


def findings(dataset: Dataset) -> list[str]:
    """What the audit says of rejected rows and of leaks."""
    parts = {name: rows.corpus for name, rows in dataset.parts().items()}
    distinct = distinct_texts(parts)
    near = near_duplicates(distinct.texts, seed=0)
    checks = (*file_rows(dataset), *find_leaks(parts, distinct, near, near))
    return [finding.what for check in checks for finding in check.findings()]


def test_what_the_audit_tells_is_left_out(tmp_path: Path) -> None:
    dataset = faulty(tmp_path)
    assert len(dataset.notes) == 4, "leak, two rejections, an unknown label"
    assert untold(dataset.notes, findings(dataset)) == ()


def test_without_an_audit_everything_stays(tmp_path: Path) -> None:
    notes = faulty(tmp_path).notes
    assert untold(notes, ()) == notes


def test_a_finding_about_another_part_tells_nothing(tmp_path: Path) -> None:
    dataset = faulty(tmp_path)
    others = [what.replace("validation", "test").replace("training", "other") for what in findings(dataset)]
    assert untold(dataset.notes, others) == dataset.notes


def test_a_note_that_no_finding_knows_stays() -> None:
    note = "3 train rows held bytes that are not UTF-8 and were read as Windows-1252."
    assert untold((note,), ("3 of 9 (33.3 %) rows of the training file are not used: 3 x blank text.",)) == (note,)
