"""What is written about a run cannot be: the run keeps its classifier, says what is missing, and goes on from there.

A folder of the file's name stands in its way, which stops every user, the superuser included. It is put there while the
run goes on, so that only this one file fails.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from fault_tally import Tally
from limited_command import World, make_world

from qlassify import job, repeating
from qlassify.artifact import require_undamaged
from qlassify.cli.app import main
from qlassify.cli.train import follow
from qlassify.cli.trouble import trouble
from qlassify.errors import ConfigError, Interrupted, StorageError
from qlassify.job import FinishedEvent, JobEvent, SavedEvent
from qlassify.training.loop import StopRequest
from qlassify.unwritten import Unwritten
from tiny_jobs import make_rows, model_bytes, write_table

pytestmark = pytest.mark.usefixtures("one_thread")

OUTPUTS = {
    "report.html": "evaluation/report.html",
    "MODEL_CARD.md": "evaluation/MODEL_CARD.md",
    "predictions.parquet": "evaluation/predictions.parquet",
    "metrics.json": "evaluation/metrics.json",
    "plan.json": "plan.json",
}
OBSTACLES = {**OUTPUTS, "plan.json": ".plan.json.tmp"}
"""Where something stands in the way. The report is made of the former plan, which a full disk would have left."""


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


def obstruct(path: Path) -> None:
    """Put a folder in the place of a file that is going to be written."""
    path.unlink(missing_ok=True)
    (path / "in the way").mkdir(parents=True)


def obstructed(events: Iterator[JobEvent], path: Path) -> Iterator[JobEvent]:
    """The events of a job; when its classifier is saved, ``path`` can no longer be written."""
    for event in events:
        if isinstance(event, SavedEvent):
            obstruct(path)
        yield event


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_file_that_cannot_be_written_is_named_and_can_be_made_later(
    world: World, undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], tally: Tally, name: str
) -> None:
    run = tmp_path / "run"
    events = obstructed(job.train(world.settings, run), run / OBSTACLES[name])
    with pytest.raises(typer.Exit) as ended:
        follow(events, StopRequest(), as_json=False, quiet=True)
    assert ended.value.exit_code == 1
    said = capsys.readouterr()
    (sentence,) = [line for line in said.err.splitlines() if line.startswith("qlassify: ")]
    assert f"no {name} (" in sentence
    assert f"qlassify train --resume {run}" in sentence
    assert "accuracy" in said.out, "the scores are shown all the same"
    require_undamaged(run / "model")
    assert model_bytes(run / "model") == model_bytes(undisturbed / "model")
    assert not (run / "evaluation" / "metrics.json").is_file(), "the run is not finished"
    others = set(OUTPUTS) - {name, "metrics.json"}
    assert all((run / OUTPUTS[other]).is_file() for other in others), "one failure costs no other file"
    shutil.rmtree(run / OBSTACLES[name])
    (again,) = (event for event in job.resume(run) if isinstance(event, FinishedEvent))
    assert again.problem is None
    assert all((run / path).is_file() for path in OUTPUTS.values())
    assert model_bytes(run / "model") == model_bytes(undisturbed / "model")
    tally("faults injected", 1)


def test_a_damaged_file_of_the_run_costs_the_report_and_nothing_else(
    world: World, undisturbed: Path, tmp_path: Path, tally: Tally
) -> None:
    """The report is made of the run's files; here one can no longer be read."""
    run = tmp_path / "run"
    for event in job.train(world.settings, run):
        if isinstance(event, SavedEvent):
            (run / "data.json").write_text("{")
        if isinstance(event, FinishedEvent):
            assert set(event.unwritten) == {"report.html", "MODEL_CARD.md", "metrics.json"}
            assert "Make room" not in str(event.problem), "room would not help"
            assert "Mend what is named" in str(event.problem)
    assert model_bytes(run / "model") == model_bytes(undisturbed / "model")
    tally("faults injected", 1)


def test_json_says_what_is_missing_in_its_one_document(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    events = obstructed(job.train(world.settings, run), run / "evaluation" / "report.html")
    with pytest.raises(typer.Exit):
        follow(events, StopRequest(), as_json=True, quiet=False)
    (line,) = capsys.readouterr().out.splitlines()
    document = json.loads(line)
    assert set(document["unwritten"]) == {"report.html", "metrics.json"}
    assert document["values"]["accuracy"] is not None


def test_a_tracker_that_cannot_write_is_switched_off(
    world: World, undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], tally: Tally
) -> None:
    pytest.importorskip("tensorboard")
    run = tmp_path / "run"
    settings = {**world.settings, "tracking": ["tensorboard"]}
    for event in job.train(settings, run):
        if isinstance(event, job.ModelEvent):  # before the trackers begin
            (run / "tensorboard").write_text("in the way")
        if isinstance(event, FinishedEvent):
            assert event.problem is None
    assert capsys.readouterr().err.count("tensorboard is switched off") == 1
    assert model_bytes(run / "model") == model_bytes(undisturbed / "model")
    tally("faults injected", 1)


def test_a_token_store_that_cannot_be_written_is_done_without(
    world: World, undisturbed: Path, tmp_path: Path, tally: Tally
) -> None:
    run, store = tmp_path / "run", tmp_path / "tokens"
    store.write_text("in the way")
    settings = {**world.settings, "data": {**world.settings["data"], "token_cache": str(store)}}  # type: ignore[dict-item]
    (finished,) = (event for event in job.train(settings, run) if isinstance(event, FinishedEvent))
    assert finished.problem is None
    assert any("kept in memory" in note for note in finished.assessment.notes)
    assert model_bytes(run / "model") == model_bytes(undisturbed / "model")
    tally("faults injected", 1)


def test_of_several_seeds_the_unfinished_one_is_finished_first(world: World, tmp_path: Path, tally: Tally) -> None:
    outer = tmp_path / "seeds"
    report = outer / "seed-3" / "evaluation" / "report.html"

    def train() -> None:
        for event in repeating.train_seeds({**world.settings, "seed": 3}, outer, count=2):
            if isinstance(event, SavedEvent):
                obstruct(report)

    with pytest.raises(StorageError, match=r"no report\.html") as caught:
        train()
    assert f"--resume {outer}" in (caught.value.do or "")
    shutil.rmtree(report)
    events = list(repeating.resume_seeds(outer))
    assert isinstance(events[-1], repeating.SeedsFinishedEvent)
    assert [result.seed for result in events[-1].results] == [3, 4]
    tally("faults injected", 1)


def test_evaluate_shows_the_scores_and_names_what_is_missing(
    undisturbed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tally: Tally,
) -> None:
    rows = write_table(tmp_path / "more.csv", ("text", "label"), make_rows(40, seed=7))
    out = tmp_path / "out"

    def evaluate() -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["qlassify", "evaluate", str(undisturbed), str(rows), "--out", str(out)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    obstruct(out / "predictions.parquet")
    code, shown, error = evaluate()
    assert code == 1
    assert "accuracy" in shown
    assert "no predictions.parquet" in error
    assert "give the same command again" in error
    assert (out / "report.html").is_file()
    assert not (out / "metrics.json").is_file()
    shutil.rmtree(out / "predictions.parquet")
    code, _, error = evaluate()
    assert (code, error) == (0, "")
    assert (out / "metrics.json").is_file()
    tally("faults injected", 1)


def test_a_folder_that_may_not_be_written_is_refused_by_name(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tally: Tally
) -> None:
    """As for a user without permission; the superuser, whom permissions do not stop, is stopped by a file."""
    (tmp_path / "file").write_text("not a folder")
    run = tmp_path / "file" / "run"
    monkeypatch.setattr(sys, "argv", ["qlassify", "train", "--config", str(world.file), "--out", str(run), "-q"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "cannot make the run folder" in capsys.readouterr().err
    tally("faults injected", 1)


NO_SPACE = OSError(28, "No space left on device", "/data/x.json")


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (NO_SPACE, 1, "/data/x.json: a file could not be read or written; got No space left on device. Make room"),
        (OSError(122, "Disk quota exceeded"), 1, "got Disk quota exceeded. Make room"),
        (PermissionError(13, "Permission denied", "/data"), 1, "/data: .*Fix the permissions, or name another place"),
        (OSError(30, "Read-only file system", "/data"), 1, "Fix the permissions"),
        (OSError("a server said no"), 1, "the system refused an operation; got a server said no"),
        (OSError(12, "Cannot allocate memory"), 4, "memory ran out; got .*Cannot allocate memory"),
        (MemoryError(), 4, "memory ran out; got MemoryError"),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), 4, "memory ran out"),
    ],
)
def test_what_the_system_says_becomes_a_sentence(error: Exception, code: int, words: str) -> None:
    found = trouble(error)
    assert found is not None
    assert found.exit_code == code
    assert re.search(words, str(found)), found


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        ImportError("No module named 'x'"),
        # A mount that nothing may be executed on: more memory would not help.
        ImportError("x.so: failed to map segment from shared object: Operation not permitted"),
    ],
)
def test_mistakes_stay_what_they_are(error: Exception) -> None:
    assert trouble(error) is None


def test_an_error_is_known_by_what_it_came_from() -> None:
    """llvmlite says that a library was not found when there was no memory to load it into."""
    error = OSError("could not find library")
    error.__cause__ = OSError("libllvmlite.so: failed to map segment from shared object")
    found = trouble(error)
    assert found is not None
    assert found.exit_code == 4


def test_a_signal_while_a_report_is_written_ends_the_job() -> None:
    """It is an error of ours, too, and must not be taken for a file that could not be written."""
    unwritten, stop = Unwritten(), StopRequest()
    with pytest.raises(Interrupted) as caught:
        unwritten.attempt("report.html", lambda: stop(15))
    assert caught.value.exit_code == 143
    assert not unwritten


def test_what_to_do_follows_from_what_went_wrong() -> None:
    def damaged() -> None:
        raise ConfigError("the plan is damaged", where="plan.json", do="Restore it.")

    def full() -> None:
        raise OSError(28, "No space left on device")

    unwritten = Unwritten()
    unwritten.attempt("report.html", damaged)
    assert (unwritten.as_dict(), unwritten.remedy) == ({"report.html": "plan.json: the plan is damaged"}, "Restore it.")
    unwritten.attempt("MODEL_CARD.md", full)
    unwritten.add("metrics.json", "it is written last")
    assert unwritten.remedy == "Restore it. Make room or fix the permissions."


@pytest.mark.parametrize("kind", ["run", "model"])
def test_evaluate_says_nothing_of_a_report_that_could_not_be_written_but_that(
    undisturbed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tally: Tally,
    kind: str,
) -> None:
    """Neither that the folder is none of a run, nor where scores are that are not there."""
    rows = write_table(tmp_path / "more.csv", ("text", "label"), make_rows(40, seed=7))
    out = tmp_path / "out"
    source = undisturbed if kind == "run" else shutil.copytree(undisturbed / "model", tmp_path / "model")
    obstruct(out / ("report.html" if kind == "run" else "predictions.parquet"))
    monkeypatch.setattr("webbrowser.open", lambda _: pytest.fail("there is nothing to open"))
    monkeypatch.setattr(sys, "argv", ["qlassify", "evaluate", str(source), str(rows), "--out", str(out), "--open"])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    assert ended.value.code == 1
    assert f"scores {out}" not in said.out
    assert f"report {out}" not in said.out
    assert ("model folder without its run" in said.err) == (kind == "model")
    assert "no report.html (" in said.err or kind == "model"
    assert "Make room or fix the permissions. Then give the same command again" in said.err
    tally("faults injected", 1)
