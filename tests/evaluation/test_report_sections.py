"""Sections that depend on what was found: decisions, plan, contracts, lengths; and how large a page gets."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from qlassify.evaluation import decision_words, run_words
from qlassify.evaluation.decision import DecisionRule, PositiveRule
from qlassify.evaluation.decision_scores import DecisionScores, SetScores, evaluate_answers, score_decisions
from qlassify.evaluation.figures import training_figures
from qlassify.evaluation.intervals import single_label_intervals
from qlassify.evaluation.model_card import render_model_card
from qlassify.evaluation.report import render_report
from qlassify.evaluation.report_input import PartLengths, ReportInput
from qlassify.evaluation.slices import row_groups, slice_scores
from report_page import ReportPage, texts

HOSTILE = "<i>a</i> | b"
BELIEVED, DECISIONS, PLAN = "Can its probabilities be believed?", "Decisions", "Settings and plan"


def report(rule: DecisionRule, num_classes: int = 3, num_rows: int = 200, **changes: Any) -> ReportInput:
    """A report on answers of a model that is right most of the time, read off by ``rule``."""
    rng = np.random.default_rng(num_classes)
    targets = rng.integers(0, num_classes, num_rows)
    logits = rng.normal(size=(num_rows, num_classes))
    logits[np.arange(num_rows), targets] += 3.0
    scores, plain = (np.exp(factor * logits) for factor in (1.0, 2.0))
    scores, plain = scores / scores.sum(1, keepdims=True), plain / plain.sum(1, keepdims=True)
    names = [HOSTILE, *(f"a name of label number {k}" for k in range(1, num_classes))]
    metrics = evaluate_answers(rule, targets, scores, names, multi_label=False)
    decisions = score_decisions(rule, scores, plain, targets, names, multi_label=False)
    predicted = rule.classes(scores)
    groups = row_groups(
        rng.integers(3, 90, num_rows), np.zeros(num_rows, np.int64), {"source": ["a", HOSTILE] * (num_rows // 2)}
    )
    nothing: dict[str, object] = {}
    given = ReportInput(
        title="Title",
        created="today",
        run_name="run",
        model=nothing,
        method=nothing,
        training=nothing,
        data=nothing,
        plan=nothing,
        environment=nothing,
        metrics=metrics,
        evaluated_on="test",
        baselines=(),
        history=(),
        evaluations=(),
        examples=(),
        notes=(),
        commands=(),
        intervals=single_label_intervals(np.array(metrics.confusion), rng, 50),
        slices=slice_scores(targets, predicted, groups, multi_label=False, num_classes=num_classes),
        rule=rule,
        decisions=decisions,
    )
    return dataclasses.replace(given, **changes)


FITTED = DecisionRule(temperature=2.0, fitted_rows=500, coverage=0.9, set_floor=0.1)


def page_of(given: ReportInput) -> ReportPage:
    return ReportPage(render_report(given))


class TestCalibration:
    def test_without_a_fit_there_is_one_curve_and_a_sentence(self) -> None:
        given = report(DecisionRule())
        raw = render_report(given)
        assert "No temperature was fitted" in ReportPage(raw).sections[BELIEVED].text
        assert "as trained<" not in raw
        assert "Grey: before calibration" not in raw

    def test_with_a_fit_there_are_two(self) -> None:
        raw = render_report(report(FITTED))
        assert "as trained<" in raw
        assert "calibrated<" in raw
        assert "Grey: before calibration" in raw

    def test_the_rows_of_the_fit_are_named_as_such(self) -> None:
        assert "rows that it was fitted on" not in (decision_words.calibration_change(report(FITTED)) or "")
        own = report(FITTED, evaluated_on="validation")
        assert "rows that it was fitted on" in (decision_words.calibration_change(own) or "")


def with_sets(**changes: float) -> ReportInput:
    sets = SetScores(0.9, 0.9, 0.85, 0.95, 1.2, 0.8)
    given = report(FITTED)
    decisions = given.decisions
    assert isinstance(decisions, DecisionScores)
    return dataclasses.replace(
        given, decisions=dataclasses.replace(decisions, sets=dataclasses.replace(sets, **changes))
    )


@pytest.mark.parametrize(
    ("changes", "said", "not_said"),
    [
        ({}, "which chance explains", "not kept"),
        ({"coverage": 0.8}, "The promise is not kept", "which chance explains"),
        ({"coverage": 0.97, "expected_high": 0.98, "single": 1.0, "mean_size": 1.0}, "right more often", "not kept"),
        ({"coverage": 0.88, "single": 1.0, "mean_size": 1.0}, "the coverage is the accuracy", "right more often"),
    ],
)
def test_label_sets_in_words(changes: dict[str, float], said: str, not_said: str) -> None:
    given = with_sets(**changes)
    text = page_of(given).sections[DECISIONS].text
    assert said in text
    assert not_said not in text
    assert said in render_model_card(given)


def test_costs_and_abstentions() -> None:
    positive = PositiveRule(index=1, threshold=0.25, false_positive_cost=1.0, false_negative_cost=3.0)
    given = report(FITTED.replace(positive=positive.model_dump(), abstain_below=0.6), num_classes=2)
    text = " ".join(page_of(given).sections[DECISIONS].text.split())
    assert "from a probability of 0.25" in text
    assert "and to miss it costs 3" in text
    assert given.decisions is not None
    assert given.decisions.cost is not None
    assert f"A decision costs {given.decisions.cost.cost:.4g} on average" in text
    assert 0 < given.decisions.abstained < 1
    assert f"that is {100 * given.decisions.abstained:.1f} % of these rows" in text


def test_terminal_lines() -> None:
    given = report(FITTED)
    assert given.rule is not None
    assert given.decisions is not None
    lines = dict(decision_words.decision_lines(given.rule, given.decisions, given.metrics))
    assert lines["calibrated"].startswith("temperature 2: ECE ")
    assert set(lines) == {"calibrated", "label sets"}
    nothing = report(DecisionRule())
    assert nothing.decisions is not None
    assert decision_words.decision_lines(DecisionRule(), nothing.decisions, nothing.metrics) == []


MEMORY = {
    "runtime_bytes": 600_000_000,
    "activation_bytes": 150_000_000,
    "low_bit_bytes": 0,
    "total_bytes": 750_000_000,
}
PLAN_FACTS = {
    "verdict": "Ready",
    "planned": {"steps": 100, "training_seconds": 80.0, "memory": MEMORY},
    "measured": {"steps": 90, "training_seconds": 100.0, "training_peak_memory_bytes": 600_000_000},
}


class TestPlan:
    def test_differences(self) -> None:
        rows = {row.what: row for row in run_words.plan_rows(PLAN_FACTS)}
        assert [row.difference for row in rows.values()] == ["-10.0 %", "+25.0 %", "-20.0 %"]
        assert rows["peak memory in training"].measured == "600.0 MB"

    def test_terms_of_the_memory_in_words(self) -> None:
        assert [row[1:] for row in run_words.memory_rows(PLAN_FACTS)] == [
            ("600.0 MB", "80.0 %"),
            ("150.0 MB", "20.0 %"),
        ]

    def test_before_the_run_is_over(self) -> None:
        rows = run_words.plan_rows({**PLAN_FACTS, "measured": None})
        assert {row.measured for row in rows} == {"-"}
        assert {row.difference for row in rows} == {""}

    def test_memory_of_a_gpu_is_not_compared_with_the_hosts(self) -> None:
        gpu = page_of(report(FITTED, plan=PLAN_FACTS, environment={"device": "cuda"})).sections[PLAN]
        rows = {row[0]: row[3] for row in texts(gpu.tables["plan"])}
        assert (rows["peak memory in training"], rows["training time"]) == ("", "+25.0 %")
        assert "their difference says nothing" in gpu.text


def item(contract_id: str, severity: str, **remedy: object) -> dict[str, object]:
    words = {"message": f"{contract_id} is so {HOSTILE}", "recommendation": "do this"}
    return {"contract_id": contract_id, "severity": severity, "remedy": remedy, **words}


def test_contracts_gravest_first_and_accepted_by_name() -> None:
    contracts = {
        "items": [item("C-A-001", "info"), item("C-B-002", "error", **{"training.epochs": 9}), item("C-C-003", "warn")],
        "unchecked": [{"contract_id": "C-D-004", "missing": ["data.leaks"]}],
    }
    section = page_of(report(FITTED, contracts=contracts, accepted_contracts=("c-b-002",))).sections[PLAN]
    rows = section.tables["contracts"][1:]
    assert [(row[0].text, row[0].small) for row in rows] == [
        ("C-B-002", "error, accepted"),
        ("C-C-003", "warning"),
        ("C-A-001", "worth knowing"),
    ]
    assert rows[0][1].text == f"C-B-002 is so {HOSTILE}"
    assert "--set training.epochs=9" in rows[0][2].text
    assert "Not checked, because a fact was not known: C-D-004 (data.leaks)." in section.text


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"max_length": 512}, "A text of more than 512 tokens loses its end (model.long=truncate)."),
        ({"max_length": 64, "long": "head_tail"}, "loses its middle (model.long=head_tail)."),
        ({"max_length": 64, "long": "windows", "window_overlap": 16, "max_windows": 4}, "share 16 tokens"),
    ],
)
def test_long_texts_in_words(model: dict[str, object], words: str) -> None:
    assert words in (run_words.long_words(model, {}) or "")


def test_what_other_policies_would_leave_out() -> None:
    words = run_words.long_words({"max_length": 64}, {"truncate": 1200, "head_tail": 1200, "windows": 0})
    assert (words or "").endswith("1,200 tokens are not read; it would be 1,200 with head_tail, 0 with windows.")


class TestTrainingCurves:
    STEPS = tuple(
        {"step": s, "loss": 1.0, "learning_rate": 1e-3 / s, "grad_norm": 2.0, "rows": 8, "tokens": 90, "seconds": 0.5}
        for s in range(1, 50)
    )

    def drawn(self, *steps: dict[str, float]) -> list[str]:
        shown = ("learning rate<", "gradient norm before clipping<", "tokens per second<", "rows per second<")
        page = "".join(training_figures(steps))
        return [name.removesuffix("<") for name in shown if name in page]

    def test_all(self) -> None:
        assert self.drawn(*self.STEPS) == ["learning rate", "gradient norm before clipping", "tokens per second"]

    def test_only_what_has_data(self) -> None:
        probe = ({**step, "learning_rate": 0.0, "tokens": 0} for step in self.STEPS)
        assert self.drawn(*probe) == ["gradient norm before clipping", "rows per second"]
        assert self.drawn(*({"step": step["step"], "loss": 1.0} for step in self.STEPS)) == []
        assert self.drawn(self.STEPS[0]) == []


CANDIDATE = {
    "row": 5,
    "given": [HOSTILE],
    "suggested": "b",
    "probability": 0.9,
    "given_probability": 0.1,
    "excerpt": HOSTILE,
}


def large() -> ReportInput:
    """As large as a report of BANKING77's test rows is: 3,080 rows, 77 classes, a long log, everything found."""
    steps = tuple(
        {
            "step": 10 * s,
            "epoch": s / 100,
            "loss": 1 / s,
            "learning_rate": 1e-3 / s,
            "grad_norm": 1.0 + s % 7,
            "rows": 32,
            "tokens": 500 + s % 90,
            "seconds": 0.9,
        }
        for s in range(1, 1001)
    )
    names = [f"a name of label number {k}" for k in range(77)]
    long = "a text that is as long as a text may be and then some more of it " * 20
    example = {"row": 17, "text": long, "true": names[3], "predicted": names[4], "probability": 0.99}
    noise = {
        "candidates": [CANDIDATE] * 100,
        "num_candidates": 700,
        "num_rows": 9003,
        "skill": 0.9,
        "num_fit_rows": 6752,
    }
    return report(
        FITTED,
        num_classes=77,
        num_rows=3080,
        history=steps,
        evaluations=tuple({"step": 1000 * k, "loss": 0.3, "accuracy": 0.9} for k in range(1, 11)),
        examples=(example,) * 25,
        label_noise=noise,
        label_counts={part: dict.fromkeys(names, 40) for part in ("train", "validation", "test")},
        lengths=(PartLengths("train", 9003, 13, 28, 53, 98, 0, 0, 0, 146_000),),
        plan=PLAN_FACTS,
        contracts={"items": [item(f"C-X-{k:03}", "warn") for k in range(20)], "unchecked": []},
    )


def test_a_large_report_stays_small() -> None:
    """Rows add nothing but numbers: what is listed is bounded, and 77 classes have no matrix."""
    text = render_report(large())
    # Measured: 0.14 MB. The bound is what can still be mailed and opened on a phone.
    assert len(text.encode()) < 3_000_000
    # Measured: about 2,700. Browsers begin to lag at some ten thousand.
    assert ReportPage(text).elements < 10_000
    assert "<i>" not in text


def test_candidates_are_folded_after_the_first() -> None:
    section = page_of(large()).sections["Likely label errors"]
    assert "80 more" in section.text
    assert "The 100 most doubtful are listed." in section.text
    assert section.text.count("training row 5") == 100
