"""No room on the disk: a file system that is full, a file that may not grow, a folder that is read-only.

A small file system in memory is filled and emptied at chosen moments of a run. ``RLIMIT_FSIZE`` stands for a quota
where nothing may be mounted: the command runs in a process in which no file may be larger than the limit. Whatever
happens, the command ends in its own words, and with room again the run ends with bitwise the undisturbed weights.
"""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_tally import Tally
from limited_command import Ended, World, fill, make_world, run_command, small_disk

from qlassify import job
from qlassify.artifact import require_undamaged
from qlassify.errors import QlassifyError, StorageError
from qlassify.job import FinishedEvent, JobEvent, SavedEvent
from qlassify.runs import EventLog, read_events
from qlassify.training.checkpoint import CheckpointStore
from qlassify.training.events import CheckpointEvent, CheckpointFailedEvent, TrainingEndEvent
from tiny_jobs import model_bytes

pytestmark = pytest.mark.usefixtures("one_thread")

MEGABYTE = 2**20


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A base model and rows."""
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def undisturbed(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing happened to."""
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    list(job.train(world.settings, folder))
    return folder


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Eight megabytes, a dozen times what the run takes."""
    with small_disk(tmp_path / "disk", 8 * MEGABYTE):
        yield tmp_path / "disk"


def until(events: Iterator[JobEvent], kind: type) -> None:
    """Go on to the first event of a kind."""
    next(event for event in events if isinstance(event, kind))


def require_sentence(ended: Ended) -> None:
    """It ended in its own words and with a code of its own."""
    assert "Traceback" not in ended.err, ended.err
    assert ended.code in (0, 1, 2), (ended.code, ended.err)
    if ended.code != 0:
        assert len(ended.sentences) >= 1, ended.err


def test_a_disk_that_is_full_for_a_while_costs_nothing(
    world: World, undisturbed: Path, disk: Path, tally: Tally, capsys: pytest.CaptureFixture[str]
) -> None:
    """Full from the second step to the end of training: log lines wait, checkpoints fail, and all is there at last."""
    run = disk / "run"
    events = job.train(world.settings, run)
    until(events, CheckpointEvent)
    before = [path.name for path in CheckpointStore(run / "checkpoints").paths()]
    filler, failed = fill(disk), 0
    for event in events:
        failed += isinstance(event, CheckpointFailedEvent)
        if isinstance(event, TrainingEndEvent):
            break
    assert failed >= 3
    assert [path.name for path in CheckpointStore(run / "checkpoints").paths()] == before, "earlier ones are untouched"
    assert list((run / "checkpoints").glob(".*")) == [], "and nothing half written takes room"
    filler.unlink()
    (finished,) = (event for event in events if isinstance(event, FinishedEvent))
    assert finished.problem is None
    assert model_bytes(run / "model") == model_bytes(undisturbed / "model")
    wanted, found = (
        [line for line in read_events(folder / "metrics.jsonl") if not line["event"].startswith("checkpoint")]
        for folder in (undisturbed, run)
    )
    timeless = [[{**line, "seconds": None} for line in lines] for lines in (wanted, found)]
    assert timeless[0] == timeless[1], "no line is missing, cut or out of order"
    said = capsys.readouterr().err
    assert said.count("could not be written") == 1, "checkpoints in a row are told of once"
    assert said.count("metrics.jsonl cannot be written") == 1
    assert any("checkpoint after step" in note for note in finished.assessment.notes)
    tally("faults injected", failed + 1)


def test_a_disk_that_is_full_at_the_end_leaves_a_run_that_goes_on(
    world: World, undisturbed: Path, disk: Path, tally: Tally
) -> None:
    """The classifier itself cannot be written: an error, and the checkpoints have everything."""
    run = disk / "run"
    events = job.train(world.settings, run)
    until(events, TrainingEndEvent)
    filler = fill(disk)
    with pytest.raises(StorageError, match="the classifier is trained and cannot be written") as caught:
        list(events)
    assert f"--resume {run}" in (caught.value.do or "")
    filler.unlink()
    (finished,) = (event for event in job.resume(run) if isinstance(event, FinishedEvent))
    assert finished.problem is None
    assert model_bytes(run / "model") == model_bytes(undisturbed / "model")
    tally("faults injected", 1)


def test_a_disk_that_is_full_for_the_reports_keeps_the_classifier(
    world: World, undisturbed: Path, disk: Path, tally: Tally
) -> None:
    run = disk / "run"
    events = job.train(world.settings, run)
    until(events, SavedEvent)
    filler = fill(disk)
    (finished,) = (event for event in events if isinstance(event, FinishedEvent))
    wanted = {"plan.json", "report.html", "MODEL_CARD.md", "predictions.parquet", "metrics.json"}
    assert set(finished.unwritten) == wanted
    assert finished.problem is not None
    assert f"--resume {run}" in str(finished.problem)
    assert finished.assessment.metrics.num_rows == 30, "the scores are known all the same"
    require_undamaged(run / "model")
    assert model_bytes(run / "model") == model_bytes(undisturbed / "model")
    assert [path.name for path in (run / "evaluation").rglob("*") if path.name.startswith(".")] == []
    assert json.loads((run / "plan.json").read_text())["measured"] is None, "the former file is whole"
    filler.unlink()
    (again,) = (event for event in job.resume(run) if isinstance(event, FinishedEvent))
    assert again.problem is None
    assert not [event for event in read_events(run / "metrics.jsonl") if event["event"] == "end"][1:]
    assert {path.name for path in (run / "evaluation").iterdir()} == wanted - {"plan.json"}
    tally("faults injected", len(wanted))


def test_a_read_only_disk_is_refused_before_anything_is_trained(world: World, tmp_path: Path, tally: Tally) -> None:
    with small_disk(tmp_path / "disk", MEGABYTE) as remount:
        remount("ro")
        events: list[JobEvent] = []
        with pytest.raises(QlassifyError, match=r"cannot make the run folder.*Read-only") as caught:
            events.extend(job.train(world.settings, tmp_path / "disk" / "run"))
        assert caught.value.exit_code == 2
        tally("faults injected", 1)


def test_a_disk_that_becomes_read_only_does_not_stop_the_training(
    world: World, undisturbed: Path, tmp_path: Path, tally: Tally
) -> None:
    """Mount errors make Linux do so by itself. The run is resumed when the disk can be written again."""
    run = tmp_path / "disk" / "run"
    with small_disk(tmp_path / "disk", 8 * MEGABYTE) as remount:
        events = job.train(world.settings, run)
        until(events, SavedEvent)
        remount("ro")
        (finished,) = (event for event in events if isinstance(event, FinishedEvent))
        assert "Read-only file system" in str(finished.problem)
        remount("rw")
        (again,) = (event for event in job.resume(run) if isinstance(event, FinishedEvent))
        assert again.problem is None
        assert model_bytes(run / "model") == model_bytes(undisturbed / "model")
    tally("faults injected", 1)


# 50,000 bytes stop checkpoints and the report, 1,000 the settings, 100,000 checkpoints alone.
SHORT = (50_000,)
FULL = (1, 1_000, 2_500, 8_000, 29_800, 100_000)


def finish(run: Path, world: World) -> None:
    """Once there is room: go on, or begin where nothing was begun, which needs a new folder."""
    if (run / "evaluation" / "metrics.json").is_file():
        return
    if (run / "run.yaml").is_file():
        ended = run_command("train", "--resume", run, "-q")
    else:
        ended = run_command("train", "--config", world.file, "--out", run, "-q")
    assert ended.code == 0, ended.err


@pytest.mark.slow
def test_a_quota_never_costs_more_than_what_does_not_fit(
    world: World, undisturbed: Path, tmp_path: Path, tally: Tally, full_faults: bool
) -> None:
    codes = {}
    for limit in (*SHORT, *(FULL if full_faults else ())):
        run = tmp_path / f"run-{limit}"
        ended = run_command("train", "--config", world.file, "--out", run, "-q", limits={resource.RLIMIT_FSIZE: limit})
        require_sentence(ended)
        codes[limit] = ended.code
        if (run / "model" / "classifier.json").is_file():
            require_undamaged(run / "model")
        if ended.code == 0:
            assert (run / "evaluation" / "metrics.json").is_file()
        finish(run, world)
        assert model_bytes(run / "model") == model_bytes(undisturbed / "model"), limit
        tally("faults injected", 1)
    wanted = {50_000: 1, **({1_000: 1, 100_000: 0} if full_faults else {})}
    assert {limit: codes[limit] for limit in wanted} == wanted, "the limits stop what they are meant to stop"


@pytest.mark.slow
def test_small_disks_never_end_in_a_traceback(
    world: World, undisturbed: Path, tmp_path: Path, tally: Tally, full_faults: bool
) -> None:
    """The real command on file systems of growing size, of which the last is large enough."""
    sizes = [64, 160, 320, 500] if full_faults else [320]
    for kilobytes in sizes:
        folder = tmp_path / f"disk-{kilobytes}"
        with small_disk(folder, kilobytes * 1024):
            ended = run_command("train", "--config", world.file, "--out", folder / "run", "-q")
            require_sentence(ended)
            assert (ended.code == 0) == (folder / "run" / "evaluation" / "metrics.json").is_file()
            if (folder / "run" / "model" / "classifier.json").is_file() and ended.code == 0:
                assert model_bytes(folder / "run" / "model") == model_bytes(undisturbed / "model")
        tally("faults injected", 1)


@pytest.mark.slow
def test_output_that_goes_nowhere_does_not_stop_the_training(
    world: World, undisturbed: Path, tmp_path: Path, tally: Tally
) -> None:
    """``qlassify train ... > log`` on a full disk; a prediction, which is nothing but output, is an error."""
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    run = tmp_path / "run"
    ended = run_command("train", "--config", world.file, "--out", run, stdout="/dev/full")
    assert ended.code == 1
    assert ended.sentences == [
        "qlassify: standard output cannot be written ([Errno 28] No space left on device); training goes on"
    ]
    assert (run / "evaluation" / "metrics.json").is_file()
    assert model_bytes(run / "model") == model_bytes(undisturbed / "model")
    predicted = run_command("predict", run, world.data, stdout="/dev/full")
    assert predicted.code == 1
    assert len(predicted.sentences) == 1
    assert "No space left on device" in predicted.err
    assert "Traceback" not in predicted.err
    assert "Exception ignored" not in predicted.err
    tally("faults injected", 2)


def test_lines_that_find_no_room_wait_and_none_is_cut(tmp_path: Path, tally: Tally) -> None:
    """Room for a line and a half, then for everything: the file holds whole lines at each moment, and all at last."""
    path = tmp_path / "disk" / "metrics.jsonl"
    with small_disk(tmp_path / "disk", 8192):
        log = EventLog(path)
        records = [{"event": "step", "step": step, "text": "x" * 700} for step in range(12)]
        filler = path.with_name("filler")
        filler.write_bytes(bytes(4096))
        for record in records:
            log.write(record)
            assert [event["step"] for event in read_events(path)] == list(range(len(records)))[: len(log_lines(path))]
        assert 0 < len(log_lines(path)) < len(records)
        assert log.waiting == len(records) - len(log_lines(path))
        assert log.problem is not None
        assert path.read_bytes().endswith(b"\n")
        os.unlink(filler)
        log.close()
        # 8,192 bytes hold 11 of the 12 lines of some 730.
        assert log.waiting == 1
        assert [event["step"] for event in read_events(path)] == list(range(11))
    tally("faults injected", 1)


def log_lines(path: Path) -> list[bytes]:
    """The lines of a file, the last one whole or not."""
    return path.read_bytes().splitlines()
