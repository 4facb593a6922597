"""The report: one HTML file to read, made from one ``ReportInput``.

It is a single file without scripts, fonts or pictures from elsewhere: it can be mailed, archived and opened in ten
years. An interactive dashboard would show more and need a server to be alive. The same input gives the same bytes.

What needs a decision is decided in ``wording``, ``decision_words`` and ``run_words``, where it can be tested; the
templates print sentences and tables. The page is in ``templates``, one file for each thing that a reader asks.
"""

from __future__ import annotations

from typing import Any

from qlassify.evaluation import decision_words, run_words, wording
from qlassify.evaluation.figures import loss_figure, reliability_figure, training_figures
from qlassify.evaluation.metrics import MULTI_LABEL
from qlassify.evaluation.report_input import ReportInput
from qlassify.evaluation.templating import html_environment

MAX_MATRIX_CLASSES = 25
"""A confusion matrix of more classes is no longer read, it is admired."""
MAX_OPEN_CANDIDATES = 20
"""Rows whose label may be wrong that are shown at once; the others are folded."""


def render_report(report: ReportInput) -> str:
    """The report as one self-contained HTML file."""
    fitted = decision_words.was_fitted(report.rule)
    before = report.decisions.plain.reliability if fitted and report.decisions is not None else None
    figures = {
        "loss_figure": loss_figure(report.history, report.evaluations),
        "training_figures": training_figures(report.history),
        "reliability_figure": reliability_figure(report.metrics.reliability, before),
    }
    candidates = tuple(report.label_noise.get("candidates") or ())
    context = {
        **shared_context(report),
        **figures,
        "has_before": before is not None,
        "slice_groups": run_words.slice_groups(report.slices),
        "plan_rows": run_words.plan_rows(report.plan),
        "plan_note": run_words.plan_note(report.plan, report.environment),
        "memory_rows": run_words.memory_rows(report.plan),
        "plan_facts": run_words.plan_facts(report.plan),
        "contracts": run_words.contract_rows(report.contracts, report.accepted_contracts),
        "unchecked": run_words.unchecked_words(report.contracts),
        "long_words": run_words.long_words(report.model, report.unread),
        "label_rows": run_words.label_rows(report.label_counts),
        "noise_words": run_words.noise_words(report.label_noise),
        "open_candidates": candidates[:MAX_OPEN_CANDIDATES],
        "more_candidates": candidates[MAX_OPEN_CANDIDATES:],
    }
    text = html_environment().get_template("report.html.j2").render(**context)
    return text.strip() + "\n"


def shared_context(report: ReportInput) -> dict[str, Any]:
    """What both documents print: the report's own fields, and what is said about them in words."""
    metrics = report.metrics
    key, main_score = wording.main_score(metrics)
    baseline_notes = tuple(note for one in report.baselines for note in one.notes)
    return {
        "report": report,
        "metrics": metrics,
        "multi_label": metrics.task == MULTI_LABEL,
        "main_key": key,
        "main_score": main_score,
        "headline": wording.headline(metrics, report.evaluated_on, report.baselines),
        "verdict": wording.verdict(metrics, report.baselines),
        "interval": wording.interval_words(metrics),
        "calibration": wording.calibration_words(metrics),
        "calibration_change": decision_words.calibration_change(report),
        "sets_words": decision_words.sets_words(report),
        "thresholds": decision_words.threshold_rows(report),
        "thresholds_words": decision_words.thresholds_words(report),
        "abstained_words": decision_words.abstained_words(report),
        "cost_words": decision_words.cost_words(report),
        "columns": wording.score_columns(metrics),
        "scores": wording.score_table(metrics, report.baselines, report.run_name),
        "classes": sorted(metrics.classes, key=lambda one: one.f1),
        "weak": wording.weak_classes(metrics),
        "absent": wording.absent_classes(metrics),
        "most_confused": wording.most_confused(metrics),
        "show_matrix": metrics.confusion is not None and len(metrics.classes) <= MAX_MATRIX_CLASSES,
        "notes": report.notes + baseline_notes,
        "evaluation_columns": tuple(dict.fromkeys(key for event in report.evaluations for key in event)),
        "meanings": wording.MEANINGS,
    }
