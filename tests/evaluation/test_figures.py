"""The inline figures: drawn or left out, the same bytes every time, and fit to live inside a page."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from qlassify.evaluation import figures
from qlassify.evaluation.calibration_error import reliability_bins

HISTORY = [{"step": float(step), "loss": 1.0 / step} for step in range(1, 101)]
EVALUATIONS = [{"step": 50.0, "loss": 0.3}, {"step": 100.0, "loss": 0.2}]
BINS = reliability_bins(np.array([0.35, 0.62, 0.91]), np.array([False, True, True]))


def drawn() -> list[str]:
    svgs = [figures.loss_figure(HISTORY, EVALUATIONS), figures.reliability_figure(BINS, BINS)]
    rates = [{**step, "learning_rate": 1e-3, "grad_norm": 2.0, "tokens": 90, "seconds": 0.5} for step in HISTORY]
    return [*(svg for svg in svgs if svg is not None), *figures.training_figures(rates)]


def test_all_are_well_formed_and_described() -> None:
    assert len(drawn()) == 5
    for svg in drawn():
        # Inside HTML the xlink prefix needs no declaration; an XML parser wants one.
        root = ElementTree.fromstring(svg.replace("<svg", '<svg xmlns:xlink="x"', 1))
        assert root.get("role") == "img"
        assert root.get("aria-label")
        assert any(text.text for text in root.iter("text"))


def test_same_numbers_same_bytes() -> None:
    assert drawn() == drawn()


def test_colours_are_the_pages() -> None:
    for svg in drawn():
        assert "var(--ink)" in svg or "var(--accent)" in svg
        assert not {figures.INK, figures.MUTED, figures.ACCENT} & set(re.findall(r"#[0-9a-f]{6}", svg))
        assert "font-family" not in svg
        assert "<style" not in svg
        assert "http" not in svg


def test_ids_are_unique_on_a_page_and_resolve() -> None:
    page = "".join(drawn())
    ids = re.findall(r'\bid="([^"]+)"', page)
    references = re.findall(r'(?:href="#|url\(#)([^")]+)', page)
    assert references
    assert len(ids) == len(set(ids))
    assert set(references) <= set(ids)


def test_nothing_to_draw_is_none() -> None:
    assert figures.loss_figure([], []) is None
    assert figures.loss_figure([{"step": 1.0}, {"loss": 2.0}, {"step": 2.0, "loss": float("nan")}], []) is None
    assert figures.reliability_figure(reliability_bins(np.zeros(0), np.zeros(0, dtype=bool))) is None


@pytest.mark.parametrize(("history", "evaluations"), [(HISTORY[:3], []), ([], EVALUATIONS)])
def test_either_curve_alone(history: list[dict[str, float]], evaluations: list[dict[str, float]]) -> None:
    svg = figures.loss_figure(history, evaluations)
    assert svg is not None
    assert (">training<" in svg) == bool(history)
    assert (">evaluation<" in svg) == bool(evaluations)


def test_before_calibration_is_drawn_behind_and_named() -> None:
    both = figures.reliability_figure(BINS, reliability_bins(np.array([0.55, 0.95]), np.array([True, True])))
    alone = figures.reliability_figure(BINS)
    assert both is not None
    assert alone is not None
    assert both.index(">as trained<") < both.index(">calibrated<")
    assert ">calibrated<" not in alone
    nothing = reliability_bins(np.zeros(0), np.zeros(0, dtype=bool))
    assert figures.reliability_figure(BINS, nothing) == alone


def test_running_mean_by_hand() -> None:
    assert figures.running_mean([1.0, 2.0, 6.0, 3.0], 2) == pytest.approx([1.0, 1.5, 4.0, 4.5])
    assert figures.running_mean([1.0, 2.0, 6.0], 3) == pytest.approx([1.5, 3.0, 4.0])


def test_global_settings_are_neither_read_nor_changed() -> None:
    import matplotlib

    expected = drawn()
    with matplotlib.rc_context({"font.size": 31.0, "axes.labelsize": 31.0, "svg.fonttype": "path"}):
        assert drawn() == expected
        assert matplotlib.rcParams["font.size"] == 31.0
        assert matplotlib.rcParams["svg.fonttype"] == "path"
