"""What comes after a step's backward is tried on stand-ins and scaled; nothing is left behind."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from qlassify.errors import CheckpointError
from qlassify.training import rehearsal
from qlassify.training.checkpoint import CheckpointStore
from qlassify.training.rehearsal import (
    NEGLIGIBLE,
    SAMPLE,
    SAMPLE_SHARE,
    checkpoint_seconds,
    update_seconds,
    usual_seconds,
)

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at the clock is one second after the last."""
    ticks = itertools.count()
    monkeypatch.setattr(rehearsal.time, "perf_counter", lambda: float(next(ticks)))


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize(("count", "wanted"), [(10, 1.0), (SAMPLE, 1.0), (3 * SAMPLE, 3.0)])
def test_a_sample_s_update_is_scaled(count: int, wanted: float) -> None:
    assert update_seconds(count, CPU) == wanted


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize(
    ("count", "wanted"), [(0, 0.0), (NEGLIGIBLE - 1, 0.0), (NEGLIGIBLE, 1.0), (SAMPLE, 1.0), (2 * SAMPLE, 2.0)]
)
def test_a_sample_s_checkpoint_is_scaled_and_removed(
    count: int, wanted: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    save = CheckpointStore.save

    def noted(store: CheckpointStore, state: rehearsal.Checkpoint) -> Path:
        path = save(store, state)
        sizes.append(sum(file.stat().st_size for file in path.iterdir()))
        return path

    monkeypatch.setattr(CheckpointStore, "save", noted)
    folder = tmp_path / "run" / "checkpoints"
    assert checkpoint_seconds(count, folder) == wanted
    # A value, two moments; beside them names and the record.
    for size in sizes:
        assert 12 * min(count, SAMPLE) < size < 12 * min(count, SAMPLE) + 5000
    assert len(sizes) == (wanted > 0)
    assert not folder.exists() or list(folder.iterdir()) == []


def test_of_a_large_checkpoint_a_share_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sixty-fourth of the real sizes, so that nothing large is written here."""
    monkeypatch.setattr(rehearsal, "SAMPLE", SAMPLE // 64)
    monkeypatch.setattr(rehearsal, "NEGLIGIBLE", NEGLIGIBLE // 64)
    sizes: list[int] = []
    monkeypatch.setattr(
        CheckpointStore, "save", lambda _, state: sizes.append(state.trainable["stand_in"].numel()) or tmp_path
    )
    for count in (SAMPLE // 64, SAMPLE // 64 * SAMPLE_SHARE, SAMPLE // 64 * SAMPLE_SHARE * 3):
        checkpoint_seconds(count, tmp_path)
    assert sizes == [SAMPLE // 64, SAMPLE // 64, SAMPLE // 64 * 3]


@pytest.mark.parametrize(
    ("takes", "wanted"),
    [
        pytest.param([0.5, 0.2, 0.3], 0.3, id="middle"),
        pytest.param([0.5, 0.2, 9.0], 0.5, id="hiccup"),
        pytest.param([1.0, 2.5], 1.0, id="slow"),
        pytest.param([9.0, 4.0], 4.0, id="slow-and-cold"),
    ],
)
def test_usual_work_is_tried_thrice_and_slow_work_twice(
    takes: list[float], wanted: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, left = 0.0, list(takes)

    def work() -> None:
        nonlocal now
        now += left.pop(0)

    monkeypatch.setattr(rehearsal.time, "perf_counter", lambda: now)
    assert usual_seconds(work) == pytest.approx(wanted)  # sums of fractions
    assert not left


@pytest.mark.parametrize("below", ["", "run/checkpoints"])
def test_a_folder_that_cannot_be_made_is_said_as_our_error(below: str, tmp_path: Path) -> None:
    """Also for root, for whom every folder can be written: a file stands in the way."""
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(CheckpointError, match="file"):
        checkpoint_seconds(NEGLIGIBLE, file / below)
