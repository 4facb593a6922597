"""``qlassify train --seeds``: a table for a person, one document for a machine, and a stop that says how to go on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import Command

pytestmark = pytest.mark.usefixtures("one_thread")


def arguments(train_csv: Path, tiny_base: Path, out: Path, *more: object) -> list[object]:
    return ["train", train_csv, "--base", tiny_base, "--epochs", 1, "--seed", 7, "--out", out, *more]


def test_a_person_sees_each_run_and_the_spread(
    command: Command, tiny_base: Path, train_csv: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    done = command(*arguments(train_csv, tiny_base, out, "--seeds", 2))
    assert (done.code, done.err) == (0, "")
    assert f"seed 7 (1 of 2), {out / 'seed-7'}" in done.out
    assert f"seed 8 (2 of 2), {out / 'seed-8'}" in done.out
    assert done.out.count("epoch     1") == 2
    assert "validation: 2 seeds" in done.out
    record = json.loads((out / "seeds.json").read_text())
    spread = record["scores"]["macro_f1"]
    assert f"{spread['mean']:.4f} +- {spread['standard_deviation']:.4f}" in done.out
    assert f"qlassify predict {out / record['best']['folder']} FILE" in done.out
    assert "qlassify train --resume" not in done.out
    resumed = command("train", "--resume", out)
    assert resumed.code == 1
    assert "the runs of all seeds are finished" in resumed.err


def test_a_machine_gets_one_document(command: Command, tiny_base: Path, train_csv: Path, tmp_path: Path) -> None:
    done = command(*arguments(train_csv, tiny_base, tmp_path / "run", "--seeds", 2, "--json"))
    assert (done.code, done.err) == (0, "")
    found = json.loads(done.out)
    record = json.loads((tmp_path / "run" / "seeds.json").read_text())
    assert found["run"] == str(tmp_path / "run")
    for key in ("seeds", "finished", "runs", "scores", "best", "notes"):
        assert found[key] == record[key]
    assert found["next"][0].startswith(f"qlassify predict {tmp_path / 'run' / record['best']['folder']}")


def test_quiet_prints_the_table_only(command: Command, tiny_base: Path, train_csv: Path, tmp_path: Path) -> None:
    done = command(*arguments(train_csv, tiny_base, tmp_path / "run", "--seeds", 2, "--quiet"))
    assert done.code == 0
    assert "mean +- s.d." in done.out
    assert "epoch " not in done.out
    assert "(1 of 2)" not in done.out


@pytest.mark.parametrize("count", ["1", "0", "-3"])
def test_fewer_than_two_seeds_are_refused(
    command: Command, tiny_base: Path, train_csv: Path, tmp_path: Path, count: str
) -> None:
    done = command(*arguments(train_csv, tiny_base, tmp_path / "run", f"--seeds={count}"))
    assert done.code == 2
    assert "a spread needs several runs" in done.err
    assert not (tmp_path / "run").exists()


def test_no_file_is_a_sentence(command: Command) -> None:
    done = command("train", "--seeds", 2)
    assert done.code == 2
    assert "no training data was given" in done.err


def test_resume_takes_no_number_of_seeds(command: Command, tmp_path: Path) -> None:
    done = command("train", "--resume", tmp_path, "--seeds", 0)
    assert done.code == 2
    assert "--resume takes the settings that the run began with" in done.err


def test_a_real_interrupt_is_resumed_as_it_says(tiny_base: Path, train_csv: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    start = [sys.executable, "-c", "from qlassify.cli.app import main; main()"]
    words = [str(one) for one in arguments(train_csv, tiny_base, out, "--seeds", 2)]
    words[words.index("--epochs") + 1] = "300"  # long enough to be met in its middle
    process = subprocess.Popen(
        [*start, *words, "--set", "training.early_stopping_patience=null", "--set", "training.log_interval=1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    events = out / "seed-7" / "metrics.jsonl"
    while process.poll() is None and not (events.is_file() and events.read_text().count('"step"') > 3):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130, err
    assert f"Continue with: qlassify train --resume {out}" in err.splitlines()[-1]
    assert json.loads((out / "seeds.json").read_text())["finished"] is False
    assert (out / "seed-7" / "checkpoints").is_dir()
