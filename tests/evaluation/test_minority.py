"""Sentences about classes that the main score hides, and silence where it hides none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qlassify.evaluation.metrics import Metrics, evaluate_predictions
from qlassify.evaluation.minority import minority_notes
from qlassify.evaluation.wording import kappa_words


def of_confusion(confusion: Any) -> Metrics:
    """Metrics of predictions that have exactly this confusion matrix."""
    table = np.array(confusion)
    true, predicted = (np.repeat(axis.ravel(), table.ravel()) for axis in np.indices(table.shape))
    names = ["common", "rare", "third"][: len(table)]
    return evaluate_predictions(true, np.eye(len(table))[predicted], names, multi_label=False)


BOTH = ["exactly the", "Macro-F1 is"]


@pytest.mark.parametrize(
    ("confusion", "parts"),
    [
        pytest.param([[50, 5], [5, 40]], [], id="nothing hidden"),
        pytest.param([[88, 2], [8, 2]], ["90.0 %, exactly the", "Macro-F1 is"], id="equal by luck"),
        pytest.param([[90, 0], [8, 2]], ["92.0 %, only 2.0 points above", "Macro-F1 is"], id="two points above, told"),
        pytest.param([[90, 0], [7, 3]], ["is 71.2 % where accuracy is 93.0 %"], id="three points above, not told"),
        pytest.param([[80, 10], [5, 5]], ["85.0 %, 5.0 points below", "Macro-F1 is"], id="below"),
        pytest.param([[60, 0], [15, 25]], [], id="macro-F1 seven points below, not told"),
        pytest.param([[20, 0], [9, 0]], BOTH, id="nine rows never found, not told"),
        pytest.param([[20, 0], [10, 0]], [*BOTH, "1 class is never found"], id="ten rows never found, told"),
    ],
)
def test_one_sentence_for_each_sign(confusion: Any, parts: list[str]) -> None:
    notes = minority_notes(of_confusion(confusion))
    assert len(notes) == len(parts)
    for note, part in zip(notes, parts, strict=True):
        assert part in note


def test_the_sentences_in_full() -> None:
    assert minority_notes(of_confusion([[90, 0], [10, 0]])) == (
        "Accuracy is 90.0 %, exactly the 90.0 % that always answering 'common' would have: it says nothing about the "
        "other classes. Look at macro-F1 and at the recall of each class.",
        "Macro-F1 is 47.4 % where accuracy is 90.0 %: counting every class the same costs 42.6 points. Look at the "
        "classes one by one.",
        "1 class is never found, with a recall of 0: 'rare' (10 rows).",
    )


def test_classes_without_rows_are_named_as_the_cause() -> None:
    """Two of three classes all right, none of the third: macro-F1 is two thirds."""
    notes = minority_notes(of_confusion([[30, 0, 0], [0, 20, 0], [0, 0, 0]]))
    assert len(notes) == 1
    assert "(1 of 3 have no row here and count as 0) costs 33.3 points" in notes[0]


def test_labels_have_no_majority_but_may_never_be_found() -> None:
    targets = np.zeros((60, 2))
    targets[:50, 0], targets[50:, 1] = 1, 1
    metrics = evaluate_predictions(targets, np.tile([0.9, 0.1], (60, 1)), ["often", "seldom"], multi_label=True)
    notes = minority_notes(metrics)
    assert len(notes) == 2
    assert "where micro-F1 is" in notes[0]
    assert notes[1] == "1 label is never found, with a recall of 0: 'seldom' (10 rows)."


def test_many_lost_classes_are_counted_and_five_are_named() -> None:
    targets = np.repeat(np.arange(8), 12)
    names = [f"c{k}" for k in range(8)]
    metrics = evaluate_predictions(targets, np.eye(8)[np.zeros(96, int)], names, multi_label=False)
    assert "7 classes are never found, with a recall of 0: 'c1' (12 rows)" in minority_notes(metrics)[-1]
    assert minority_notes(metrics)[-1].endswith("'c5' (12 rows), and 2 more.")


@pytest.mark.parametrize(
    ("kappa", "words"),
    [
        (None, None),
        (-0.01, "poor"),
        (0.0, "slight"),
        (0.20, "slight"),
        (0.21, "fair"),
        (0.41, "moderate"),
        (0.61, "substantial"),
        (0.80, "substantial"),
        (0.81, "almost perfect"),
        (1.0, "almost perfect"),
    ],
)
def test_kappa_in_the_words_of_landis_and_koch(kappa: float | None, words: str | None) -> None:
    assert kappa_words(kappa) == words
