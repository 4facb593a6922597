"""Reliability bins and the expected calibration error at their edges."""

from __future__ import annotations

import numpy as np
import pytest

from qlassify.evaluation.calibration_error import expected_calibration_error, reliability_bins


@pytest.mark.parametrize(
    ("confidence", "expected"), [(0.0, 0), (0.05, 0), (0.1, 0), (0.3, 2), (0.5, 4), (0.5000001, 5), (0.9, 8), (1.0, 9)]
)
def test_bins_hold_their_upper_edge(confidence: float, expected: int) -> None:
    bins = reliability_bins(np.array([confidence]), np.array([True]))
    assert [bin_.count for bin_ in bins] == [int(b == expected) for b in range(10)]


def test_bins_by_hand() -> None:
    bins = reliability_bins(np.array([0.6, 0.7, 0.9, 0.95]), np.array([True, False, True, True]), num_bins=2)
    assert [(b.lower, b.upper) for b in bins] == [(0.0, 0.5), (0.5, 1.0)]
    assert (bins[0].count, bins[0].confidence, bins[0].accuracy) == (0, None, None)
    assert bins[1].confidence == pytest.approx(0.7875)
    assert bins[1].accuracy == 0.75
    assert expected_calibration_error(bins) == pytest.approx(0.0375)


def test_no_predictions_have_no_error() -> None:
    assert expected_calibration_error(reliability_bins(np.zeros(0), np.zeros(0, dtype=bool))) == 0.0
