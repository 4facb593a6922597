"""The job from a data file to a report: what it writes, and that it can stop anywhere and go on as if it had not.

Most stops are made in this process: the job is a generator, so closing it after an event leaves exactly what a process
that died at that moment would leave. A few real processes get real signals, because handlers, exit codes and half
written files cannot be had otherwise.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars
import pytest
import yaml

from qlassify import ClassifyPipeline, job
from qlassify.config.files import read_settings
from qlassify.errors import CheckpointError, ConfigError, DataError, Interrupted
from qlassify.job import FinishedEvent, JobEvent, ModelEvent, NotesEvent, SavedEvent
from qlassify.training.events import CheckpointEvent, EvaluationEvent, StepEvent, TrainingEndEvent
from qlassify.training.loop import StopRequest
from tiny_jobs import job_settings, make_rows, model_bytes, write_table

pytestmark = pytest.mark.usefixtures("one_thread")

CREATED = {
    "run.yaml",
    "environment.json",
    "data.json",
    "plan.json",
    "metrics.jsonl",
    "checkpoints",
    "model",
    "evaluation",
}


def settings_of(base: Path, data: Path, **training: Any) -> dict[str, Any]:
    """Dropout, an odd number of rows per step, two evaluations an epoch: whatever a stop could upset."""
    settings = job_settings(
        base, data, epochs=2, batch_size=16, evaluations_per_epoch=2, checkpoint_every_steps=5, log_interval=1
    )
    settings["method"]["dropout"] = 0.2
    settings["training"] |= training
    return settings


def finish(events: Iterator[JobEvent]) -> FinishedEvent:
    last = list(events)[-1]
    assert isinstance(last, FinishedEvent)
    return last


def records(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without wall time and paths, and without the notes that a checkpoint was written."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    dropped = ("seconds", "path")
    return [{k: v for k, v in one.items() if k not in dropped} for one in lines if one["event"] != "checkpoint"]


def outcome(folder: Path) -> tuple[dict[str, bytes], list[dict[str, Any]], dict[str, Any]]:
    """What two runs that went the same way have in common: model files, events, scores."""
    scores = json.loads((folder / "evaluation" / "metrics.json").read_text())
    scores.pop("rows_per_second")
    return model_bytes(folder / "model"), records(folder), scores


@pytest.fixture(scope="module")
def reference(tiny_base: Path, train_csv: Path, tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    """The undisturbed run."""
    folder = tmp_path_factory.mktemp("runs") / "reference"
    finish(job.train(settings_of(tiny_base, train_csv), folder))
    return folder


# What a run writes


def test_the_run_folder_has_everything(reference: Path) -> None:
    assert {path.name for path in reference.iterdir()} == CREATED
    assert {path.name for path in (reference / "evaluation").iterdir()} == {
        "metrics.json",
        "predictions.parquet",
        "report.html",
        "MODEL_CARD.md",
    }
    assert {path.name for path in (reference / "model").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "head.safetensors",
        "classifier.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    checkpoints = sorted(path.name for path in (reference / "checkpoints").iterdir())
    assert len(checkpoints) == 2
    assert checkpoints[-1] == "step-000024"


def test_the_settings_on_record_leave_nothing_open(reference: Path, tiny_base: Path, train_csv: Path) -> None:
    run = yaml.safe_load((reference / "run.yaml").read_text())
    assert run["data"]["train"] == str(train_csv.resolve())
    assert run["model"] == {
        "base": str(tiny_base.resolve()),
        "pooling": "cls",
        "max_length": 64,
        "long": "truncate",
        "window_overlap": None,
        "max_windows": 16,
        "head_bias": True,
        "precision": "fp32",
        "device": "cpu",
        "dense_copies": "never",
    }
    assert (run["quant"], run["method"]["kind"]) == (None, "lora")
    assert run["training"]["epochs"] == 2
    assert "auto" not in (reference / "run.yaml").read_text()


def test_the_account_of_the_data_balances(reference: Path, train_csv: Path) -> None:
    import hashlib

    data = json.loads((reference / "data.json").read_text())
    (file,) = data["files"]
    assert file["sha256"] == hashlib.sha256(train_csv.read_bytes()).hexdigest()
    assert (file["rows"], file["kept"], file["rejected"]) == (240, 240, {})
    assert data["rows"] == {"train": 180, "validation": 60}
    assert data["label_counts"]["train"] == {"beast": 60, "fruit": 60, "tool": 60}
    assert data["truncated"] == {"train": 0, "validation": 0}
    assert data["stats"]["minority_count"] == 60


def test_the_environment_and_the_plan_are_on_record(reference: Path) -> None:
    environment = json.loads((reference / "environment.json").read_text())
    assert environment["precision"] == "fp32"
    assert environment["threads"] == 1
    assert {"torch", "transformers", "tokenizers"} <= environment["packages"].keys()
    plan = json.loads((reference / "plan.json").read_text())
    pipeline = ClassifyPipeline.load(reference)
    assert plan["planned"]["trainable_parameters"] == pipeline.num_trainable_parameters()
    assert plan["planned"]["frozen_parameters"] == pipeline.backbone.num_parameters
    assert plan["planned"]["steps"] == plan["measured"]["steps"] == 24
    logged = [json.loads(line) for line in (reference / "metrics.jsonl").read_text().splitlines()]
    assert plan["planned"]["tokens"] == sum(one["tokens"] for one in logged if one["event"] == "step")


def test_the_metrics_are_lines_that_tell_the_whole_run(reference: Path) -> None:
    lines = [json.loads(line) for line in (reference / "metrics.jsonl").read_text().splitlines()]
    assert [one["step"] for one in lines if one["event"] == "step"] == list(range(1, 25))
    assert [one["step"] for one in lines if one["event"] == "evaluation"] == [6, 12, 18, 24]
    assert [one["step"] for one in lines if one["event"] == "checkpoint"] == [5, 6, 10, 12, 15, 18, 20, 24]
    assert lines[-1]["event"] == "end"
    assert {"loss", "macro_f1", "accuracy"} <= next(one for one in lines if one["event"] == "evaluation")[
        "scores"
    ].keys()


def test_predictions_are_those_of_the_saved_model(reference: Path) -> None:
    table = polars.read_parquet(reference / "evaluation" / "predictions.parquet")
    assert table.height == 60
    pipeline = ClassifyPipeline.load(reference)
    assert [one.to_list() for one in table["predicted"]] == [[label] for label in pipeline.predict(table["text"])]
    scores = json.loads((reference / "evaluation" / "metrics.json").read_text())
    right = (table["true"].list.first() == table["predicted"].list.first()).mean()
    assert scores["values"]["accuracy"] == pytest.approx(right)
    assert scores["evaluated_on"] == "validation"
    assert len(scores["baselines"]) == 2
    assert any("chose the best weights" in note for note in scores["notes"])


def test_a_test_file_is_what_is_scored(tiny_base: Path, train_csv: Path, tmp_path: Path) -> None:
    settings = settings_of(tiny_base, train_csv, epochs=1)
    test = write_table(tmp_path / "test.csv", ("text", "label"), [*make_rows(30, seed=50), ("a saw", "metal")])
    settings["data"]["test"] = str(test)
    finished = finish(job.train(settings, tmp_path / "run"))
    assert finished.assessment.part == "test"
    assert finished.assessment.metrics.num_rows == 30
    data = json.loads((tmp_path / "run" / "data.json").read_text())
    assert data["files"][1]["rejected"] == {"label not seen in training: 'metal'": 1}


def test_texts_that_were_cut_are_in_the_record(tiny_base: Path, tmp_path: Path) -> None:
    # One in ten: when most texts lose their end, a contract refuses the run.
    rows = [
        (f"{text} {'very ' * 80}" if number % 10 == 0 else text, label)
        for number, (text, label) in enumerate(make_rows(60, seed=4))
    ]
    long = write_table(tmp_path / "a.csv", ("text", "label"), rows)
    settings = settings_of(tiny_base, long, epochs=1)
    settings["model"]["max_length"] = 32
    finished = finish(job.train(settings, tmp_path / "run"))
    data = json.loads((tmp_path / "run" / "data.json").read_text())
    assert data["truncated"].keys() == {"train", "validation"}
    assert sum(data["truncated"].values()) == 6
    words = sum(max(0, len(text.split()) + 2 - 32) for text, _ in rows)
    assert sum(data["lost_tokens"].values()) == words
    assert any("longer than 32 tokens; model.long=truncate does not read" in note for note in finished.assessment.notes)


def test_the_record_repeats_the_run(reference: Path, tmp_path: Path) -> None:
    finish(job.train(read_settings(reference / "run.yaml"), tmp_path / "again"))
    assert outcome(tmp_path / "again") == outcome(reference)


def test_another_seed_is_another_run(reference: Path, tmp_path: Path) -> None:
    settings = {**read_settings(reference / "run.yaml"), "seed": 4}
    finish(job.train(settings, tmp_path / "other"))
    assert model_bytes(tmp_path / "other" / "model") != model_bytes(reference / "model")


def test_the_token_budget_changes_nothing_that_counts(reference: Path, tmp_path: Path) -> None:
    """Micro-batches of one text are another order of the same sums; without dropout, whose masks are drawn per
    micro-batch, the run goes the same way."""
    runs = []
    for budget in (8192, 1):
        settings = read_settings(reference / "run.yaml")
        settings["training"] |= {"token_budget": budget, "epochs": 1}
        settings["method"]["dropout"] = 0.0
        finish(job.train(settings, tmp_path / str(budget)))
        runs.append([one["loss"] for one in records(tmp_path / str(budget)) if one["event"] == "step"])
    # Twelve Adam steps let the last bits of fp32 gradients grow; a wrong cut would differ in the first digits.
    assert runs[1] == pytest.approx(runs[0], rel=1e-3)


# Stopping and going on

Predicate = Callable[[JobEvent], bool]

STOPS: dict[str, Predicate] = {
    "settings settled": lambda event: isinstance(event, ModelEvent),
    "ready": lambda event: isinstance(event, NotesEvent),
    "first step": lambda event: isinstance(event, StepEvent),
    "after the first checkpoint": lambda event: isinstance(event, StepEvent) and event.step == 7,
    "scored but not written": lambda event: isinstance(event, EvaluationEvent) and event.step == 12,
    "middle of an epoch": lambda event: isinstance(event, CheckpointEvent) and event.step == 15,
    "last step": lambda event: isinstance(event, StepEvent) and event.step == 24,
    "trained": lambda event: isinstance(event, TrainingEndEvent),
    "saved": lambda event: isinstance(event, SavedEvent),
}


@pytest.mark.parametrize("moment", STOPS)
def test_a_run_that_died_is_resumed_to_the_same_end(
    reference: Path, tiny_base: Path, train_csv: Path, tmp_path: Path, moment: str
) -> None:
    folder = tmp_path / "run"
    events = job.train(settings_of(tiny_base, train_csv), folder)
    stopped = next(event for event in events if STOPS[moment](event))
    assert stopped is not None
    events.close()  # type: ignore[attr-defined]
    finish(job.resume(folder))
    assert outcome(folder) == outcome(reference)
    assert {path.name for path in folder.iterdir()} == CREATED


def test_dying_several_times_changes_nothing_either(
    reference: Path, tiny_base: Path, train_csv: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    events = job.train(settings_of(tiny_base, train_csv), folder)
    for stop in (6, 8, 16, 19):
        for event in events:
            if isinstance(event, StepEvent) and event.step == stop:
                break
        events.close()  # type: ignore[attr-defined]
        events = job.resume(folder)
    finish(events)
    assert outcome(folder) == outcome(reference)


def test_a_line_that_was_cut_short_is_written_again(
    reference: Path, tiny_base: Path, train_csv: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    events = job.train(settings_of(tiny_base, train_csv), folder)
    next(event for event in events if isinstance(event, StepEvent) and event.step == 9)
    events.close()  # type: ignore[attr-defined]
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"event": "step", "step": 10, "lo')
    finish(job.resume(folder))
    assert outcome(folder) == outcome(reference)


def test_a_damaged_checkpoint_costs_time_and_not_the_run(
    reference: Path, tiny_base: Path, train_csv: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    events = job.train(settings_of(tiny_base, train_csv), folder)
    next(event for event in events if isinstance(event, StepEvent) and event.step == 17)
    events.close()  # type: ignore[attr-defined]
    newest = sorted((folder / "checkpoints").iterdir())[-1] / "state.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1] + b"\xff")
    told = [event for event in job.resume(folder) if isinstance(event, job.ResumeEvent)]
    assert told[0].step == 12
    assert "step-000015" in told[0].problems[0]
    assert outcome(folder) == outcome(reference)


def test_a_stop_request_writes_a_checkpoint_and_is_resumed(
    reference: Path, tiny_base: Path, train_csv: Path, tmp_path: Path
) -> None:
    folder, stop = tmp_path / "run", StopRequest()
    events = job.train(settings_of(tiny_base, train_csv), folder, stop=stop)
    next(event for event in events if isinstance(event, StepEvent) and event.step == 8)
    stop(signal.SIGTERM)
    with pytest.raises(Interrupted) as caught:
        next(events)
    assert caught.value.exit_code == 143
    assert (folder / "checkpoints" / "step-000008" / "state.json").is_file()
    assert not (folder / "model").exists()
    finish(job.resume(folder))
    assert outcome(folder) == outcome(reference)


def test_changed_data_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    data = write_table(tmp_path / "a.csv", ("text", "label"), make_rows(60))
    folder = tmp_path / "run"
    events = job.train(settings_of(tiny_base, data), folder)
    next(event for event in events if isinstance(event, StepEvent))
    events.close()  # type: ignore[attr-defined]
    write_table(data, ("text", "label"), make_rows(61))
    with pytest.raises(CheckpointError, match="the data has changed since the run began") as caught:
        list(job.resume(folder))
    assert caught.value.where == str(data)
    data.unlink()
    with pytest.raises(DataError):
        list(job.resume(folder))


def test_a_changed_base_model_is_refused(tiny_base: Path, other_base: Path, train_csv: Path, tmp_path: Path) -> None:
    """Adapters that began on one base model and go on on another are neither's."""
    import shutil

    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    folder = tmp_path / "run"
    events = job.train(settings_of(base, train_csv), folder)
    next(event for event in events if isinstance(event, StepEvent) and event.step == 7)
    events.close()  # type: ignore[attr-defined]
    shutil.copy(other_base / "model.safetensors", base / "model.safetensors")
    with pytest.raises(CheckpointError):
        list(job.resume(folder))


def test_a_finished_run_is_refused(reference: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in reference.rglob("*")}
    with pytest.raises(CheckpointError, match="the run is finished"):
        list(job.resume(reference))
    assert {path: path.stat().st_mtime_ns for path in reference.rglob("*")} == before


def test_what_is_no_run_folder_is_refused(tmp_path: Path, tiny_base: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere", tiny_base):
        with pytest.raises(ConfigError, match="not a run folder"):
            list(job.resume(path))


def test_a_folder_that_holds_something_is_not_written_into(tiny_base: Path, train_csv: Path, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(ConfigError, match="the run folder is not empty") as caught:
        list(job.train(settings_of(tiny_base, train_csv), tmp_path))
    assert "--resume" in (caught.value.do or "")
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


def test_without_data_it_says_so() -> None:
    with pytest.raises(ConfigError, match="no training data was given"):
        list(job.train({}, None))


def test_a_mistake_in_the_settings_leaves_no_folder(tiny_base: Path, train_csv: Path, tmp_path: Path) -> None:
    for section, change in (("method", {"rank": 1000}), ("training", {"class_weights": [1.0, 2.0]})):
        settings = settings_of(tiny_base, train_csv)
        settings[section] |= change
        with pytest.raises(ConfigError, match=section):
            list(job.train(settings, tmp_path / "run"))
        assert not (tmp_path / "run").exists()


def test_a_selection_metric_that_does_not_exist_is_found_before_training(
    tiny_base: Path, train_csv: Path, tmp_path: Path
) -> None:
    """Found at the first evaluation it has cost an epoch."""
    settings = settings_of(tiny_base, train_csv, selection_metric="makro_f1")
    with pytest.raises(ConfigError, match="selection"):
        list(job.train(settings, tmp_path / "run"))
    assert not (tmp_path / "run" / "metrics.jsonl").exists(), "no step was taken"


# Real processes and real signals


def long_settings(base: Path, data: Path) -> dict[str, Any]:
    """184 steps of some ten milliseconds, a checkpoint every ten."""
    return settings_of(base, data, epochs=8, batch_size=8, early_stopping_patience=None, checkpoint_every_steps=10)


def start(arguments: list[str], folder: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    code = "import sys; from qlassify.cli.app import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, "train", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=environment,
    )


def wait_for(process: subprocess.Popen[str], ready: Callable[[], bool]) -> None:
    """Until something is there; the process must not end before it."""
    for _ in range(12_000):
        if ready():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    raise AssertionError("nothing happened within two minutes")


@pytest.fixture(scope="module")
def long_reference(
    tiny_base: Path, train_csv: Path, tmp_path_factory: pytest.TempPathFactory, one_thread: None
) -> Path:
    """The undisturbed long run."""
    folder = tmp_path_factory.mktemp("long") / "reference"
    finish(job.train(long_settings(tiny_base, train_csv), folder))
    return folder


@pytest.fixture
def long_yaml(tiny_base: Path, train_csv: Path, tmp_path: Path) -> Path:
    path = tmp_path / "settings.yaml"
    path.write_text(yaml.safe_dump(long_settings(tiny_base, train_csv)))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_signal_ends_the_command_with_a_checkpoint(
    long_reference: Path, long_yaml: Path, tmp_path: Path, number: signal.Signals
) -> None:
    folder = tmp_path / "run"
    process = start(["--config", str(long_yaml), "--out", str(folder), "--quiet"], tmp_path)
    wait_for(process, lambda: (folder / "checkpoints" / "step-000010").exists())
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 128 + number
    assert out == ""
    assert f"stopped by {number.name}: checkpoint written to" in err
    assert f"Continue with: qlassify train --resume {folder}" in err
    assert "Traceback" not in err
    finish(job.resume(folder))
    assert outcome(folder) == outcome(long_reference)


@pytest.mark.slow
def test_killed_at_random_moments_it_still_ends_the_same(long_reference: Path, long_yaml: Path, tmp_path: Path) -> None:
    """SIGKILL cannot be handled: whatever is on the disk at that moment has to be enough.

    The moments are drawn from a seed that ``QLASSIFY_KILL_SEED`` changes.
    """
    folder = tmp_path / "run"
    moments = random.Random(os.environ.get("QLASSIFY_KILL_SEED", "3"))
    arguments = ["--config", str(long_yaml), "--out", str(folder), "--quiet"]
    for _ in range(2):
        known = (folder / "metrics.jsonl").stat().st_size if (folder / "metrics.jsonl").exists() else 0
        process = start(arguments, tmp_path)
        wait_for(process, lambda known=known: _grown(folder / "metrics.jsonl", known))  # type: ignore[misc]
        time.sleep(moments.uniform(0.0, 0.8))
        process.kill()
        process.communicate()
        arguments = ["--resume", str(folder), "--quiet"]
        if (folder / "evaluation" / "metrics.json").exists():
            break
    else:
        process = start(arguments, tmp_path)
        _, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
    assert model_bytes(folder / "model") == model_bytes(long_reference / "model")
    assert outcome(folder) == outcome(long_reference)


def _grown(path: Path, known: int) -> bool:
    """Whether a file was written to; a resumed run rewrites its log shorter first, which counts as well."""
    return path.exists() and path.stat().st_size not in (0, known)
