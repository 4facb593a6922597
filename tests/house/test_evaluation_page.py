"""The page on evaluation: its table has the keys that there are, and its numbers and example are the code's."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from qlassify.evaluation import intervals, minority, slices
from qlassify.evaluation.decision import DecisionRule
from qlassify.evaluation.decision_scores import score_decisions
from qlassify.evaluation.metrics import evaluate_predictions

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
WORDS = " ".join(PAGE.split())


def section(heading: str) -> str:
    return re.split(r"^## ", PAGE.split(f"\n## {heading}\n")[1], maxsplit=1, flags=re.MULTILINE)[0]


@pytest.mark.parametrize(("task", "multi_label"), [("single", False), ("multi", True)])
def test_the_table_has_the_keys_of_values_and_no_others(task: str, multi_label: bool) -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|", section("The scores"), re.MULTILINE)
    assert len(dict(rows)) == len(rows)
    targets = np.eye(2)[[0]] if multi_label else np.array([0])
    metrics = evaluate_predictions(targets, np.array([[0.7, 0.3]]), ["a", "b"], multi_label=multi_label)
    assert {key for key, of in rows if of in (task, "both")} == set(metrics.values)


def test_the_intervals_that_are_named_are_those_that_there_are() -> None:
    rng = np.random.default_rng(0)
    truth, predicted = rng.random((40, 3)) < 0.5, rng.random((40, 3)) < 0.5
    found = {
        *intervals.single_label_intervals(rng.integers(1, 9, (3, 3)), rng),
        *intervals.multi_label_intervals(truth, predicted, np.ones_like(truth), rng),
    }
    bullets = "".join(line for line in section("Intervals").split("\n\n") if line.startswith("- "))
    assert set(re.findall(r"`(\w+)`", bullets)) == found
    assert f"over {intervals.NUM_RESAMPLES:,} draws" in WORDS
    assert f"30 of 30 right is {100 * intervals.share_interval(30, 30).low:.1f} to 100 %" in WORDS


def test_the_fields_of_a_slice_are_named() -> None:
    one = slices.slice_scores(
        np.array([0, 1]), np.array([0, 1]), slices.column_groups("c", ["x", "x"]), multi_label=False, num_classes=2
    )
    table = next(part for part in section("Slices").split("\n\n") if part.startswith("| field |"))
    assert set(re.findall(r"`(\w+)`", "".join(row.split("|")[1] for row in table.splitlines()))) == set(
        one[0].as_dict()
    )
    assert f"more than {slices.MAX_VALUES} different values" in WORDS
    assert f"fewer than {slices.FEW_ROWS}" in WORDS
    assert f"`{slices.OTHER}`" in PAGE
    assert f"`{slices.MISSING}`" in PAGE


def test_the_thresholds_of_the_notes_are_the_codes() -> None:
    assert f"at most {100 * minority.MAJORITY_MARGIN:.0f} points above" in WORDS
    assert f"more than {100 * minority.MACRO_GAP:.0f} points below accuracy" in WORDS
    assert f"with {minority.MIN_ROWS} rows or more" in WORDS


def test_the_keys_of_the_file_are_named(tmp_path: Path) -> None:
    from qlassify.assessment import Assessment, as_json
    from qlassify.data.corpus import read_corpus
    from qlassify.data.dataset import label_rows
    from qlassify.data.labels import build_label_map

    (tmp_path / "a.csv").write_text("text,label\nx,a\ny,b\n")
    corpus = read_corpus(tmp_path / "a.csv")
    labels = build_label_map(corpus)
    rows, scores = label_rows(corpus, labels), np.array([[0.9, 0.1], [0.2, 0.8]])
    metrics = evaluate_predictions(rows.targets, scores, labels.names, multi_label=False)
    decisions = score_decisions(DecisionRule(), scores, scores, rows.targets, labels.names, multi_label=False)
    written = as_json(Assessment("test", rows, scores, labels, metrics, (), 1.0, (), DecisionRule(), decisions))
    table = re.findall(r"^\| (`.*?) \|", section("metrics.json"), re.MULTILINE)
    assert {key for cell in table for key in re.findall(r"`(\w+)`", cell)} == set(written)


def test_its_example_runs() -> None:
    block = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert block is not None
    exec(compile(block.group(1), "docs/evaluation.md", "exec"), {})
