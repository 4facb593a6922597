"""Slices and intervals from the command to the files: ``evaluate --slice`` and ``train --slice``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars
import pytest
from command_line import Command

from qlassify import ClassifyPipeline
from tiny_jobs import job_settings, make_rows, write_table

pytestmark = pytest.mark.usefixtures("one_thread")

CHANNELS = ("mail", "web", None)


@pytest.fixture(scope="module")
def new_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 new rows with a channel (every third missing) and a number, and two rows that cannot be used between them."""
    rows: list[tuple[Any, ...]] = [
        (text, label, CHANNELS[number % 3], number) for number, (text, label) in enumerate(make_rows(36, seed=60))
    ]
    rows[5:5] = [("", "tool", "lost", 99), ("a saw", "metal", "lost", 99)]
    path = tmp_path_factory.mktemp("data") / "new.csv"
    return write_table(path, ("text", "label", "channel", "number"), rows)


def test_scores_by_column(command: Command, finished_run: Path, new_csv: Path, tmp_path: Path) -> None:
    out = tmp_path / "scores"
    done = command("evaluate", finished_run, new_csv, "--slice", "Channel", "--slice", "number", "--out", out)
    assert (done.code, done.err) == (0, "")
    record = json.loads((out / "metrics.json").read_text())
    slices = {(one["column"], one["value"]): one for one in record["slices"]}
    assert [value for column, value in slices if column == "channel"] == ["mail", "web", "(missing)"]
    assert [value for column, value in slices if column == "number"] == ["0 to 8", "9 to 17", "18 to 26", "27 to 35"]
    tokens = [one for (column, _), one in slices.items() if column == "tokens"]
    assert sum(one["num_rows"] for one in tokens) == 36

    # The predictions that were written, grouped here, must give what the slices say.
    table = polars.read_parquet(out / "predictions.parquet")
    right = [true == found for true, found in zip(table["true"].to_list(), table["predicted"].to_list(), strict=True)]
    mail = right[0::3]
    one = slices["channel", "mail"]
    assert (one["num_rows"], one["few_rows"]) == (12, True)
    assert one["accuracy"] == sum(mail) / 12
    assert one["gap"] == pytest.approx(sum(mail) / 12 - sum(right) / 36)
    assert one["interval"][0] <= one["accuracy"] <= one["interval"][1]

    low, high = record["intervals"]["accuracy"]
    assert low <= record["values"]["accuracy"] <= high
    assert f"{low:.4f} to {high:.4f}" in done.out
    assert "slices, worst first" in done.out
    assert "12 (few)" in done.out
    assert "Cohen's kappa" in done.out


def test_without_a_column_there_are_the_lengths(command: Command, finished_run: Path, new_csv: Path) -> None:
    record = json.loads(command("evaluate", finished_run, new_csv, "--json").out)
    assert {one["column"] for one in record["slices"]} == {"tokens"}
    again = json.loads(command("evaluate", finished_run, new_csv, "--json").out)
    assert again["intervals"] == record["intervals"], "the draws follow from the run's seed"


def test_a_column_that_is_not_there(command: Command, finished_run: Path, new_csv: Path) -> None:
    done = command("evaluate", finished_run, new_csv, "--slice", "chanel")
    assert done.code == 2
    assert "no column 'chanel'" in done.err
    assert "--slice 'channel'" in done.err
    assert "Traceback" not in done.err


def test_train_asks_the_scored_file_alone(command: Command, tiny_base: Path, new_csv: Path, tmp_path: Path) -> None:
    """The test file has the column, the training file has not; the settings of the run name it."""
    data = write_table(tmp_path / "train.csv", ("text", "label"), make_rows(60, seed=2))
    settings = job_settings(tiny_base, data, epochs=1)
    config = tmp_path / "run.yaml"
    config.write_text(json.dumps(settings))  # JSON is YAML
    arguments = ("train", "--config", config, "--out", tmp_path / "run", "--json", "--slice", "channel")
    done = command(*arguments, "--test", new_csv)
    assert done.code == 0, done.err
    record = json.loads(done.out)
    assert {one["column"] for one in record["slices"]} == {"tokens", "channel"}
    assert record["evaluated_on"] == "test"
    assert "channel" in (tmp_path / "run" / "run.yaml").read_text()
    refused = command(*arguments[:4], tmp_path / "other", *arguments[5:])
    assert refused.code == 2
    assert "no column 'channel'" in refused.out + refused.err


def test_a_score_that_hides_a_class_is_told(command: Command, finished_run: Path, tmp_path: Path) -> None:
    """Every row has the label that the model gives it, but for twelve, which are all there is of another class."""
    texts = [text for text, _ in make_rows(90, seed=61)]
    given = list(zip(texts, ClassifyPipeline.load(finished_run).predict(texts), strict=True))
    others = [(text, label) for text, label in given if label != "tool"]
    rows = [*others[12:], *((text, "tool") for text, _ in others[:12])]
    data = write_table(tmp_path / "odd.csv", ("text", "label"), rows)
    record = json.loads(command("evaluate", finished_run, data, "--json").out)
    assert any("1 class is never found" in note and "'tool' (12 rows)" in note for note in record["notes"])


def test_training_ends_with_it_as_well(command: Command, tiny_base: Path, tmp_path: Path) -> None:
    """Too short and too slow to learn anything: 80 rows of one class are all that is found."""
    rows = [(text, "rare" if label == "tool" else "common") for text, label in make_rows(120, seed=2)]
    data = write_table(tmp_path / "a.csv", ("text", "label"), rows)
    settings = job_settings(tiny_base, data, epochs=1, learning_rate=1e-9, head_learning_rate=1e-9)
    settings["data"]["eval"] = str(
        write_table(tmp_path / "b.csv", ("text", "label"), [*rows[:40], ("a fig", "common")])
    )
    (tmp_path / "run.yaml").write_text(json.dumps(settings))
    done = command("train", "--config", tmp_path / "run.yaml", "--out", tmp_path / "run", "--quiet")
    assert done.code == 0, done.err
    notes = json.loads((tmp_path / "run" / "evaluation" / "metrics.json").read_text())["notes"]
    told = [line.split(None, 1)[1] for line in done.out.splitlines() if line.startswith("note")]
    assert told
    assert set(told) <= set(notes)


def test_multi_label_has_subset_accuracy_and_micro_f1(command: Command, tiny_base: Path, tmp_path: Path) -> None:
    from qlassify import job
    from tiny_jobs import make_multi_label_rows

    rows = [(text, labels, number % 2 == 0) for number, (text, labels) in enumerate(make_multi_label_rows(60))]
    data = write_table(tmp_path / "a.jsonl", ("text", "labels", "even"), rows)
    settings = job_settings(tiny_base, data, epochs=1, selection_metric="roc_auc")
    settings["data"]["slices"] = ["even"]
    list(job.train(settings, tmp_path / "run"))
    record = json.loads((tmp_path / "run" / "evaluation" / "metrics.json").read_text())
    assert "subset_accuracy" in record["intervals"]
    assert [one["value"] for one in record["slices"] if one["column"] == "even"] == ["false", "true"]
    low, high = record["intervals"]["micro_f1"]
    assert low <= record["values"]["micro_f1"] <= high
    assert record["values"]["roc_auc"] == pytest.approx(sum(one["roc_auc"] for one in record["classes"]) / 3)
