"""Checkpoints are whole or not there, verified when read, and the newest two are kept."""

from __future__ import annotations

import contextlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qlassify.errors import CheckpointError
from qlassify.run_lock import clear_leavings
from qlassify.training import checkpoint as module
from qlassify.training.checkpoint import Checkpoint, CheckpointStore, Progress, generator_state, read_checkpoint


def make(step: int, *, best_step: int = 1, seed: int = 0) -> Checkpoint:
    """A checkpoint with values of its own; the best weights differ from the current ones unless they are of now."""
    generator = torch.Generator().manual_seed(1000 * seed + step)

    def values() -> dict[str, torch.Tensor]:
        return {
            "encoder.layer.0.query.lora_A.weight": torch.randn(3, 4, generator=generator),
            "head.bias": torch.randn(2, generator=generator),
        }

    trainable = values()
    optimizer = {f"{kind}/{name}": value for kind in ("exp_avg", "exp_avg_sq") for name, value in values().items()}
    optimizer |= {f"step/{name}": torch.tensor(float(step)) for name in trainable}
    return Checkpoint(
        progress=Progress(step, best_step, 0.1 + 0.2, 3, 2, 1, stopped_early=False),
        trainable=trainable,
        optimizer=optimizer,
        best=trainable if best_step == step else values(),
        dropout_state=generator_state(torch.Generator().manual_seed(step)),
    )


def assert_equal(left: Checkpoint, right: Checkpoint) -> None:
    assert left.progress == right.progress
    for name in ("trainable", "optimizer", "best"):
        mine, other = getattr(left, name), getattr(right, name)
        assert mine.keys() == other.keys(), name
        assert all(torch.equal(mine[key], other[key]) and mine[key].dtype == other[key].dtype for key in mine), name
    assert torch.equal(left.dropout_state, right.dropout_state)


@pytest.mark.parametrize("best_step", [0, 3, 7])
def test_what_is_read_is_what_was_written(tmp_path: Path, best_step: int) -> None:
    """Bitwise; also when the best weights are the current ones, which are then written once."""
    written = make(7, best_step=best_step)
    if best_step == 0:
        written = Checkpoint(Progress(7), written.trainable, written.optimizer, {}, written.dropout_state)
    path = CheckpointStore(tmp_path / "checkpoints").save(written)
    assert path.name == "step-000007"
    assert_equal(read_checkpoint(path), written)
    from_store, problems = CheckpointStore(tmp_path / "checkpoints").latest()
    assert from_store is not None
    assert_equal(from_store, written)
    assert problems == ()


def test_best_weights_that_are_the_current_ones_are_written_once(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    apart, together = store.save(make(7, best_step=3)), store.save(make(8, best_step=8))
    sizes = [(path / module.TENSORS).stat().st_size for path in (apart, together)]
    assert sizes[1] < sizes[0]


def test_the_generator_goes_on_where_it_stood(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(11)
    torch.rand(5, generator=generator)
    written = make(1)
    state = generator_state(generator)
    wanted = torch.rand(5, generator=generator)
    path = CheckpointStore(tmp_path).save(
        Checkpoint(written.progress, written.trainable, written.optimizer, written.best, state)
    )
    other = torch.Generator()
    other.set_state(read_checkpoint(path).dropout_state)
    assert torch.equal(torch.rand(5, generator=other), wanted)


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for step in (2, 4, 6, 10):
        store.save(make(step))
    assert [path.name for path in store.paths()] == ["step-000006", "step-000010"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000006", "step-000010"], "nothing is left over"


def test_the_newest_two_are_the_newest_by_number(tmp_path: Path) -> None:
    """From a million steps on the folder's name has a digit more, and sorts before 999999 as text."""
    store = CheckpointStore(tmp_path)
    for step in (999_998, 999_999, 1_000_000, 1_000_001):
        store.save(make(step))
    newest, _ = store.latest()
    assert newest is not None
    assert newest.progress.step == 1_000_001
    assert [int(path.name.partition("-")[2]) for path in store.paths()] == [1_000_000, 1_000_001]


def test_without_any_there_is_none(tmp_path: Path) -> None:
    assert CheckpointStore(tmp_path / "never").latest() == (None, ())


@pytest.mark.parametrize("moment", ["write_safetensors", "flush", "rename"])
def test_a_crash_while_writing_leaves_the_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """A crash is anything that is no exception of ours: it must not be caught on the way, nor leave half a folder."""

    class Crash(BaseException):
        """The process died here."""

    def crash(*args: object, **options: object) -> None:
        raise Crash

    store = CheckpointStore(tmp_path)
    older = make(4)
    store.save(older)
    with monkeypatch.context() as patch:
        if moment == "rename":
            patch.setattr(Path, "rename", crash)
        else:
            patch.setattr(module, moment, crash)
        with pytest.raises(Crash):
            store.save(make(6))
    found, problems = CheckpointStore(tmp_path).latest()
    assert found is not None
    assert_equal(found, older)
    assert problems == (), "what was half written is not even looked at"
    newer = make(6, seed=1)
    CheckpointStore(tmp_path).save(newer)
    found, _ = store.latest()
    assert found is not None
    assert_equal(found, newer)


def test_a_crash_while_writing_the_same_step_again_leaves_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal right after an evaluation writes the step's checkpoint a second time; the first must survive it."""

    class Crash(BaseException):
        """The process died here."""

    def crash(*args: object) -> None:
        raise Crash

    store = CheckpointStore(tmp_path)
    only = make(4)
    store.save(only)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", crash)
        with contextlib.suppress(Crash):  # a store that sees that it has this checkpoint has nothing to rename
            store.save(make(4))
    found, _ = store.latest()
    assert found is not None
    assert_equal(found, only)


@pytest.mark.parametrize("renames", [0, 1])
def test_a_crash_while_another_state_of_the_same_step_is_written_loses_no_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renames: int
) -> None:
    """A lowered budget makes another state of the step: before its place is taken the old one is there, or aside."""

    class Crash(BaseException):
        """The process died here."""

    folder, rename, done = tmp_path / "checkpoints", Path.rename, list[Path]()
    store = CheckpointStore(folder)
    first = make(4)
    store.save(first)
    second = replace(first, progress=replace(first.progress, token_budget=64))

    def crash(path: Path, target: Path) -> Path:
        if len(done) == renames:
            raise Crash
        done.append(path)
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", crash)
        with pytest.raises(Crash):
            store.save(second)
    clear_leavings(tmp_path)
    found, problems = CheckpointStore(folder).latest()
    assert found is not None
    assert_equal(found, first)
    assert problems == ()
    store.save(second)
    found, _ = store.latest()
    assert found is not None
    assert_equal(found, second)
    assert [path.name for path in folder.iterdir()] == ["step-000004"]


def test_a_place_that_cannot_be_taken_leaves_the_older_state_of_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, rename = CheckpointStore(tmp_path), Path.rename
    first = make(4)
    store.save(first)

    def full(path: Path, target: Path) -> Path:
        if path.name.endswith(".tmp"):
            raise OSError(28, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(CheckpointError, match="No space left"):
        store.save(replace(first, progress=replace(first.progress, token_budget=64)))
    assert [path.name for path in tmp_path.iterdir()] == ["step-000004"]
    assert_equal(read_checkpoint(tmp_path / "step-000004"), first)


def test_what_is_there_already_is_compared_without_its_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state in memory may be all that there is room for."""
    store = CheckpointStore(tmp_path)
    path = store.save(make(4))
    number = path.stat().st_ino

    def unexpected(*args: object) -> None:
        raise MemoryError

    monkeypatch.setattr(module, "load_file", unexpected)
    assert store.save(make(4)) == path
    assert path.stat().st_ino == number, "it was not written again"


def test_a_damaged_checkpoint_of_the_same_step_is_written_again(tmp_path: Path) -> None:
    """As when a run was resumed from the one before it and comes to the damaged one's step."""
    store = CheckpointStore(tmp_path)
    flip_a_byte(store.save(make(4)) / module.TENSORS)
    store.save(make(4))
    found, problems = store.latest()
    assert found is not None
    assert_equal(found, make(4))
    assert problems == ()


def test_a_full_disk_is_an_error_that_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    store = CheckpointStore(tmp_path)
    store.save(make(4))
    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(CheckpointError, match=r"step-000006: cannot write a checkpoint; got .*No space left") as caught:
        store.save(make(6))
    assert "--resume" in (caught.value.do or "")
    assert [path.name for path in store.paths()] == ["step-000004"]


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def other_format(path: Path) -> None:
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "format": 99}))


def unknown_progress(path: Path) -> None:
    record = json.loads(path.read_text())
    del record["record_sha256"]  # as if a later version had written it
    path.write_text(json.dumps({**record, "progress": {"stage": 3}}))


DAMAGES = [
    (module.TENSORS, flip_a_byte, "damaged"),
    (module.TENSORS, cut_short, "damaged"),
    (module.TENSORS, Path.unlink, "cannot be read"),
    (module.RECORD, cut_short, "cannot be read"),
    (module.RECORD, other_format, "unknown checkpoint format; got 99; wanted 1"),
    (module.RECORD, unknown_progress, "cannot be read"),
]


@pytest.mark.parametrize(("file", "damage", "sentence"), DAMAGES)
def test_a_damaged_newest_one_is_passed_over_with_a_sentence(
    tmp_path: Path, file: str, damage: object, sentence: str
) -> None:
    store = CheckpointStore(tmp_path)
    older = make(4)
    store.save(older)
    newest = store.save(make(6))
    damage(newest / file)  # type: ignore[operator]
    found, problems = store.latest()
    assert found is not None
    assert_equal(found, older)
    assert len(problems) == 1
    assert sentence in problems[0]
    assert "step-000006" in problems[0]


def test_all_damaged_is_an_error_that_names_each(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for step in (4, 6):
        flip_a_byte(store.save(make(step)) / module.TENSORS)
    with pytest.raises(CheckpointError) as caught:
        store.latest()
    assert "step-000004" in str(caught.value)
    assert "step-000006" in str(caught.value)


def test_a_folder_without_its_record_is_no_checkpoint_and_is_told_of(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(make(4))
    (store.save(make(6)) / module.RECORD).unlink()
    assert [path.name for path in store.paths()] == ["step-000004"]
    found, problems = store.latest()
    assert found is not None
    assert found.progress.step == 4
    assert len(problems) == 1
    assert "step-000006" in problems[0]
    shutil.rmtree(tmp_path / "step-000004")
    with pytest.raises(CheckpointError, match="step-000006"):
        store.latest()
    shutil.rmtree(tmp_path / "step-000006")
    assert store.latest() == (None, ())
