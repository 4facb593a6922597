"""The sentences and numbers that the report and the model card share."""

from __future__ import annotations

import math

import numpy as np
import pytest

from qlassify.evaluation import wording
from qlassify.evaluation.baselines import Baseline
from qlassify.evaluation.metrics import Metrics, evaluate_predictions


def scored(num_right: int, num_rows: int) -> Metrics:
    """Metrics of a two-class evaluation with ``num_right`` rows right."""
    predicted = np.where(np.arange(num_rows) < num_right, 0, 1)
    probabilities = np.eye(2)[predicted] * 0.8 + 0.1
    return evaluate_predictions(np.zeros(num_rows, dtype=int), probabilities, ["a", "b"], multi_label=False)


def baseline(name: str, num_right: int, num_rows: int) -> Baseline:
    return Baseline(name=name, metrics=scored(num_right, num_rows), seconds=1.0)


def test_headline_says_rows_interval_and_baselines_best_first() -> None:
    sentence = wording.headline(scored(482, 500), "test", [baseline("low", 94, 500), baseline("high", 441, 500)])
    assert sentence == (
        "96.4 % of 500 test rows right (95 % Wilson interval 94.4 to 97.7 %); high: 88.2 %; low: 18.8 %."
    )


def test_multi_label_headline_heads_with_micro_f1() -> None:
    targets = np.array([[1, 0], [1, 1]])
    metrics = evaluate_predictions(targets, np.array([[0.9, 0.1], [0.9, 0.2]]), ["a", "b"], multi_label=True)
    sentence = wording.headline(metrics, "", [])
    assert sentence.startswith("Micro-F1 80.0 % on 2 rows; 50.0 % with every label right (95 % Wilson interval ")


def test_wilson_interval_equals_its_closed_form() -> None:
    right, rows, z = 37, 40, 1.959963984540054
    share = right / rows
    centre = (share + z * z / (2 * rows)) / (1 + z * z / rows)
    half = z / (1 + z * z / rows) * math.sqrt(share * (1 - share) / rows + z * z / (4 * rows * rows))
    interval = wording.accuracy_interval(scored(right, rows))
    assert (interval.low, interval.high) == pytest.approx((centre - half, centre + half))


@pytest.mark.parametrize(
    ("ours", "theirs", "rows", "expected"),
    [
        (480, 400, 500, "The model is 16.0 points of accuracy above the best baseline, other."),
        (18, 17, 20, "20 rows cannot tell the two apart."),
        (300, 400, 500, "The model loses to other by 20.0 points of accuracy."),
        (300, 300, 500, "The model only equals other."),
    ],
)
def test_verdict(ours: int, theirs: int, rows: int, expected: str) -> None:
    assert expected in str(wording.verdict(scored(ours, rows), [baseline("other", theirs, rows)]))


def test_no_verdict_without_baselines() -> None:
    assert wording.verdict(scored(1, 2), []) is None


def test_score_table_has_gaps_against_the_model() -> None:
    table = wording.score_table(scored(9, 10), [baseline("other", 6, 10)], "ours")
    assert [row.name for row in table] == ["ours", "other"]
    assert [row.is_model for row in table] == [True, False]
    assert table[0].gap is None
    assert table[1].gap == pytest.approx(0.3)


@pytest.mark.parametrize("multi_label", [False, True])
def test_every_score_has_a_meaning_and_every_column_a_score(multi_label: bool) -> None:
    targets = np.eye(2)[[0]] if multi_label else np.array([0])
    metrics = evaluate_predictions(targets, np.array([[0.7, 0.3]]), ["a", "b"], multi_label=multi_label)
    assert set(metrics.values) <= set(wording.MEANINGS)
    assert set(wording.score_columns(metrics)) <= set(metrics.values)


@pytest.mark.parametrize(
    ("share", "shown"), [(0.9642, "96.4 %"), (1.0, "100.0 %"), (0.99999, "99.9 %"), (0.0, "0.0 %"), (None, "-")]
)
def test_percent(share: float | None, shown: str) -> None:
    assert wording.percent(share) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "-"),
        (True, "yes"),
        (22713216, "22713216"),
        (0.00012345678, "0.0001235"),
        (float("nan"), "nan"),
        (("query", 2.0), "query, 2"),
        ({"a": False}, "a: no"),
        ("text", "text"),
    ],
)
def test_number(value: object, shown: str) -> None:
    assert wording.number(value) == shown


def test_settings_keep_their_digits() -> None:
    assert wording.number(3.14159e-4, 9) == "0.000314159"


class TestShorten:
    def test_short_texts_stay(self) -> None:
        assert wording.shorten("short", 5) == "short"

    def test_cuts_at_a_word_near_the_limit(self) -> None:
        assert wording.shorten("one two three four", 15) == "one two three\N{HORIZONTAL ELLIPSIS}"

    def test_cuts_inside_a_word_without_spaces(self) -> None:
        assert wording.shorten("a" * 20, 10) == "a" * 10 + "\N{HORIZONTAL ELLIPSIS}"

    def test_never_tears_a_visible_character(self) -> None:
        family = "\U0001f469\N{ZERO WIDTH JOINER}\U0001f467"
        accented = "e\N{COMBINING ACUTE ACCENT}"
        thumb = "\U0001f44d\N{EMOJI MODIFIER FITZPATRICK TYPE-4}"
        for unit in (family, accented, thumb):
            for limit in range(1, 12):
                kept = wording.shorten(unit * 8, limit).removesuffix("\N{HORIZONTAL ELLIPSIS}")
                assert kept == unit * (limit // len(unit))


def test_calibration_says_which_way_it_errs() -> None:
    assert "too sure of itself: it states 90.0 % on average and is right 50.0 %" in wording.calibration_words(
        scored(5, 10)
    )
    assert "too modest" in wording.calibration_words(scored(10, 10))
    assert "says what it can hold" in wording.calibration_words(scored(9, 10))


def test_weak_absent_and_confused_classes() -> None:
    names = ["good", "weak", "absent"]
    targets = np.array([0] * 8 + [1] * 4)
    predicted = np.array([0] * 8 + [0, 0, 0, 1])
    metrics = evaluate_predictions(targets, np.eye(3)[predicted], names, multi_label=False)
    assert [one.name for one in wording.weak_classes(metrics)] == ["weak"]
    assert [one.name for one in wording.absent_classes(metrics)] == ["absent"]
    (confused,) = wording.most_confused(metrics)
    assert (confused.name, confused.wrong, confused.support, confused.mostly) == ("weak", 3, 4, "good")
