"""``qlassify train``: one argument is enough, machines get one document, and a mistake gets one sentence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from command_line import Command, Done

from tiny_jobs import make_multi_label_rows, make_pair_rows, make_rows, write_table

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_a_file_and_a_base_are_enough(command: Command, tiny_base: Path, tmp_path: Path, suffix: str) -> None:
    data = write_table(tmp_path / f"data.{suffix}", ("text", "label"), make_rows(60))
    done = command("train", data, "--base", tiny_base, "--epochs", 1, "--out", tmp_path / "run")
    assert done.code == 0, done.err
    assert "54 train, 6 validation rows; text -> label, single-label" in done.out
    assert "3: beast, fruit, tool" in done.out
    assert "always " in done.out, "the baselines stand beside the score"
    assert f"qlassify predict {tmp_path / 'run'}" in done.out
    run = yaml.safe_load((tmp_path / "run" / "run.yaml").read_text())
    assert run["training"]["learning_rate"] == 1e-3, "what was not given was recommended"
    assert run["training"]["epochs"] == 1, "what was given was not"


def test_without_a_name_the_run_goes_below_the_current_folder(
    command: Command, tiny_base: Path, train_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = command("train", train_csv, "--base", tiny_base, "--epochs", 1, "--json")
    assert done.code == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("train-")
    assert (tmp_path / json.loads(done.out)["run"]).samefile(folder)


def test_json_is_one_document_and_nothing_else(
    command: Command, tiny_base: Path, train_csv: Path, tmp_path: Path
) -> None:
    done = command("train", train_csv, "--base", tiny_base, "--epochs", 1, "--out", tmp_path / "run", "--json")
    assert (done.code, done.err) == (0, "")
    record = json.loads(done.out)
    assert record["run"] == str(tmp_path / "run")
    assert 0 <= record["values"]["accuracy"] <= 1
    assert len(record["baselines"]) == 2
    assert record["measured"]["steps"] == 7
    assert record["next"][0].startswith("qlassify predict")


def test_a_real_process_keeps_json_clean_too(tiny_base: Path, train_csv: Path, tmp_path: Path) -> None:
    """What libraries print on their own behalf (progress bars, reports, warnings) would be seen only here."""
    arguments = ["train", train_csv, "--base", tiny_base, "--epochs", 1, "--out", tmp_path / "run", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", "from qlassify.cli.app import main; main()", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["run"] == str(tmp_path / "run")


def test_quiet_prints_the_result_only(command: Command, tiny_base: Path, train_csv: Path, tmp_path: Path) -> None:
    done = command("train", train_csv, "--base", tiny_base, "--epochs", 1, "--out", tmp_path / "run", "--quiet")
    assert (done.code, done.err) == (0, "")
    assert "accuracy" in done.out
    for head in ("plan ", "epoch ", "trained "):
        assert not any(line.startswith(head) for line in done.out.splitlines())


def test_pairs_and_several_labels_are_found_out(command: Command, tiny_base: Path, tmp_path: Path) -> None:
    pairs = write_table(tmp_path / "p.csv", ("premise", "hypothesis", "label"), make_pair_rows(60))
    done = command("train", pairs, "--base", tiny_base, "--epochs", 1, "--out", tmp_path / "pairs")
    assert done.code == 0, done.err
    assert "premise + hypothesis -> label, single-label" in done.out
    assert "--text-pair" in done.out
    several = write_table(
        tmp_path / "m.csv", ("text", "label"), [(text, ";".join(labels)) for text, labels in make_multi_label_rows(80)]
    )
    done = command(
        "train", several, "--label-separator", ";", "--base", tiny_base, "--epochs", 1, "--out", tmp_path / "multi"
    )
    assert done.code == 0, done.err
    assert "multi-label" in done.out
    record = json.loads((tmp_path / "multi" / "model" / "classifier.json").read_text())
    assert record["multi_label"] is True


def test_settings_come_from_file_then_set_then_flags(
    command: Command, tiny_base: Path, train_csv: Path, tmp_path: Path
) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(
        f"data: {{train: {train_csv}}}\nmodel: {{base: {tiny_base}, precision: fp32}}\n"
        "method: {rank: 2, alpha: 4}\ntraining: {epochs: 7, batch_size: 60, learning_rate: 2e-3}\nseed: 5\n"
    )
    done = command(
        "train", "--config", config, "--set", "training.epochs=3", "--set", "training.learning_rate=5e-3",
        "--epochs", 1, "--out", tmp_path / "run",
    )  # fmt: skip
    assert done.code == 0, done.err
    run = yaml.safe_load((tmp_path / "run" / "run.yaml").read_text())
    assert run["training"]["epochs"] == 1
    assert run["training"]["learning_rate"] == 5e-3
    assert (run["training"]["batch_size"], run["method"]["rank"], run["seed"]) == (60, 2, 5)


# Mistakes


def assert_mistake(done: Done, *parts: str) -> None:
    """Exit code 2, a sentence on standard error, no traceback, nothing on standard output."""
    assert done.code == 2, (done.out, done.err)
    err = done.err
    assert err.startswith("qlassify: ")
    assert "Traceback" not in err
    assert "pydantic" not in err.casefold()
    for part in parts:
        assert part in err
    assert done.out == ""


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--set", "training.epoch=3"], ["unknown option training.epoch", "Did you mean training.epochs?"]),
        (["--set", "traning.epochs=3"], ["traning", "training"]),
        (["--set", "training.epochs=many"], ["training.epochs", "many", "integer"]),
        (["--set", "training.epochs"], ["--set", "NAME=VALUE"]),
        (["--set", "training.schedule=quadratic"], ["training.schedule", "quadratic", "linear", "cosine"]),
        (["--epochs", "0"], ["training.epochs", "0", "greater than or equal to 1"]),
        (["--learning-rate", "nan"], ["training.learning_rate", "nan"]),
        (["--rank", "1000"], ["rank", "1000", "at most 64"]),
        (["--method", "adalora"], ["method.kind", "adalora", "'lora'", "'qdora'"]),
        (["--pooling", "max"], ["model.pooling", "max"]),
        (["--label", "lable"], ["no column 'lable'", "label"]),
        (["--text", "body"], ["no column 'body'", "text"]),
        (["--class-weights", "balanced"], ["training.class_weights", "balanced"]),
        (["--set", "method.target_modules=[querry]"], ["querry", "query"]),
        (["--set", "training.selection_metric=makro_f1"], ["makro_f1", "macro_f1"]),
        (["--config", "nowhere.yaml"], ["nowhere.yaml"]),
        (["--test", "nowhere.csv"], ["nowhere.csv"]),
        (["--base", "./nowhere"], ["./nowhere", "not a model directory"]),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, list) else None,
)
def test_a_mistake_is_a_sentence(
    command: Command, tiny_base: Path, train_csv: Path, tmp_path: Path, arguments: list[str], parts: list[str]
) -> None:
    base = [] if "--base" in arguments else ["--base", tiny_base]
    done = command("train", train_csv, *base, "--out", tmp_path / "run", "--quiet", *arguments)
    assert_mistake(done, *parts)


def test_imbalance_has_options(command: Command, tiny_base: Path, train_csv: Path, tmp_path: Path) -> None:
    options = ["--sampling", "balanced", "--focal-gamma", 2, "--epochs", 1]
    done = command("train", train_csv, "--base", tiny_base, *options, "--out", tmp_path / "run")
    assert done.code == 0, done.err
    run = yaml.safe_load((tmp_path / "run" / "run.yaml").read_text())
    assert (run["training"]["sampling"], run["training"]["focal_gamma"]) == ("balanced", 2.0)
    assert run["tracking"] == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--sampling", "balanced", "--method", "probe"], "training.sampling does not go with method.kind=probe"),
        (["--focal-gamma", "1", "--set", "training.label_smoothing=0.1"], "do not go together"),
        (["--track", "comet"], "tracking"),
    ],
)
def test_settings_that_do_not_go_together_are_a_sentence(
    command: Command, train_csv: Path, options: list[str], said: str
) -> None:
    done = command("train", train_csv, *options)
    assert done.code == 2
    assert said in done.err


def test_a_missing_file_is_a_sentence(command: Command, tmp_path: Path) -> None:
    assert_mistake(command("train", tmp_path / "nowhere.csv"), "nowhere.csv")


def test_no_file_is_a_sentence(command: Command) -> None:
    assert_mistake(command("train"), "no training data was given", "CSV, TSV, JSONL or Parquet")


def test_one_class_is_a_sentence(command: Command, tiny_base: Path, tmp_path: Path) -> None:
    data = write_table(tmp_path / "a.csv", ("text", "label"), [(text, "same") for text, _ in make_rows(10)])
    assert_mistake(command("train", data, "--base", tiny_base), "fewer than two labels", "same")


def test_an_unknown_flag_is_told_by_the_command_line(command: Command, train_csv: Path) -> None:
    done = command("train", train_csv, "--epoch", 3)
    assert done.code == 2
    assert "--epochs" in done.err
    assert "Traceback" not in done.err


def test_a_mistake_is_json_for_a_machine(command: Command, train_csv: Path, tiny_base: Path) -> None:
    done = command("train", train_csv, "--base", tiny_base, "--set", "training.epoch=3", "--json")
    assert done.code == 2
    record = json.loads(done.out)
    assert (record["error"], record["exit_code"]) == ("ConfigError", 2)
    assert record["do"] == "Did you mean training.epochs?"


def test_debug_shows_where_a_mistake_was_met(command: Command, train_csv: Path, tiny_base: Path) -> None:
    from qlassify.errors import ConfigError

    with pytest.raises(ConfigError):
        command("train", train_csv, "--base", tiny_base, "--set", "training.epoch=3", "--debug")


# Resuming


@pytest.mark.parametrize(
    "others",
    [
        ["train.csv"],
        ["--epochs", "3"],
        ["--seed", "5"],
        ["--seed", "0"],
        ["--set", "training.epochs=3"],
        ["--config", "c.yaml"],
        ["--out", "elsewhere"],
        ["--no-header"],
        ["--eval", "dev.csv"],
    ],
    ids=lambda others: "_".join(others),
)
def test_resume_takes_no_other_settings(command: Command, finished_run: Path, others: list[str]) -> None:
    done = command("train", "--resume", finished_run, *others)
    assert_mistake(done, "--resume takes the settings that the run began with")


def test_a_finished_run_is_not_resumed(command: Command, finished_run: Path) -> None:
    done = command("train", "--resume", finished_run)
    assert done.code == 1, "not a mistake in the command line, but there is nothing to do"
    assert "the run is finished" in done.err


def test_what_is_no_run_is_not_resumed(command: Command, tmp_path: Path) -> None:
    assert_mistake(command("train", "--resume", tmp_path), "not a run folder")


def test_a_folder_that_is_not_empty_is_not_written_into(
    command: Command, finished_run: Path, train_csv: Path, tiny_base: Path
) -> None:
    done = command("train", train_csv, "--base", tiny_base, "--out", finished_run, "--quiet")
    assert_mistake(done, "the run folder is not empty", f"qlassify train --resume {finished_run}")
