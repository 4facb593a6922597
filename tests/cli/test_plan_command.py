"""``qlassify plan``: what is said, what a machine reads, and the exit codes of ``train``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import Command

from qlassify.prospects import METHODS
from qlassify.training.loop import TrainingLoop

pytestmark = pytest.mark.usefixtures("one_thread")


def test_one_method_in_words(command: Command, tiny_base: Path, train_csv: Path, tmp_path: Path) -> None:
    before = sorted(train_csv.parent.iterdir())
    done = command("plan", train_csv, "--base", tiny_base, "--device", "cpu", "--precision", "fp32", "--memory", "1TB")
    assert done.code == 0, done.err
    for words in ("108 train", "3 labels", "memory at the peak", "optimiser's moments", "together", "LoRA"):
        assert words in done.out
    assert sorted(train_csv.parent.iterdir()) == before


def test_without_measuring_no_step_is_timed(
    command: Command, tiny_base: Path, train_csv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrainingLoop, "rehearse", lambda self: pytest.fail("a step was computed"))
    done = command("plan", train_csv, "--base", tiny_base, "--no-measure", "--json", "--memory", "1TB")
    assert done.code == 0, done.err
    record = json.loads(done.out)
    (method,) = record["methods"]
    assert method["training_seconds"] is None
    assert record["rows"] == {"train": 108, "validation": 12}
    assert method["fits"] is True
    assert method["free_bytes"] + method["plan"]["memory"]["runtime_bytes"] == 10**12
    memory = method["plan"]["memory"]
    assert memory["total_bytes"] == sum(count for name, count in memory.items() if name != "total_bytes")


def test_the_policy_for_long_texts_counts_in_the_plan(command: Command, tiny_base: Path, train_csv: Path) -> None:
    """More tokens in windows; a policy that there is not is refused by its name."""
    given = ("plan", train_csv, "--base", tiny_base, "--no-measure", "--json", "--max-length", "6", "--epochs", "4")
    given = (*given, "--memory", "1TB", "--set", 'accepted_contracts=["C-SEQ-001"]')
    tokens = {}
    for policy in ("truncate", "head_tail", "windows"):
        done = command(*given, "--long", policy)
        assert done.code == 0, done.err
        tokens[policy] = json.loads(done.out)["methods"][0]["plan"]["tokens"]
    assert tokens["windows"] > tokens["truncate"] == tokens["head_tail"]
    refused = command(*given, "--long", "all")
    assert refused.code == 2
    assert "model.long" in refused.err


def test_a_timed_step_gives_seconds(command: Command, tiny_base: Path, train_csv: Path) -> None:
    done = command("plan", train_csv, "--base", tiny_base, "--json", "--memory", "1TB", "--epochs", "4")
    assert done.code == 0, done.err
    (method,) = json.loads(done.out)["methods"]
    assert method["training_seconds"] >= 0
    assert method["plan"]["epochs"] == 4


def test_all_methods_side_by_side(command: Command, tiny_base: Path, train_csv: Path) -> None:
    done = command(
        "plan", train_csv, "--base", tiny_base, "--method", "all", "--no-measure", "--json", "--memory", "1TB"
    )
    assert done.code == 0, done.err
    found = {one["method"]: one for one in json.loads(done.out)["methods"]}
    assert tuple(found) == METHODS
    assert found["full"]["plan"]["trainable_parameters"] > found["bitfit"]["plan"]["trainable_parameters"]


@pytest.mark.parametrize("methods", [(), ("--method", "all")])
def test_what_does_not_fit_ends_with_code_4(
    command: Command, tiny_base: Path, train_csv: Path, methods: tuple[str, ...]
) -> None:
    done = command("plan", train_csv, "--base", tiny_base, "--no-measure", "--memory", "1MB", *methods)
    assert done.code == 4
    assert "Blocked: memory" in done.out
    assert "does not fit into memory" in done.err
    assert "Traceback" not in done.err


def test_with_strict_a_warning_ends_with_code_3(command: Command, tiny_base: Path, train_csv: Path) -> None:
    reckless = ("plan", train_csv, "--base", tiny_base, "--no-measure", "--memory", "1TB", "--learning-rate", "50")
    done = command(*reckless)
    assert done.code == 0, done.err
    assert "C-LR-001" in done.out
    done = command(*reckless, "--strict")
    assert done.code == 3
    assert "C-LR-001" in done.err
    assert command("train", train_csv, "--base", tiny_base, "--learning-rate", "50", "--strict").code == 3


@pytest.mark.parametrize("size", ["plenty", "8XB", "0"])
def test_a_size_that_is_none_ends_with_code_2(command: Command, tiny_base: Path, train_csv: Path, size: str) -> None:
    done = command("plan", train_csv, "--base", tiny_base, "--memory", size)
    assert done.code == 2
    assert "8GiB" in done.err


def test_quiet_says_the_verdict_only(command: Command, tiny_base: Path, train_csv: Path) -> None:
    done = command("plan", train_csv, "--base", tiny_base, "--no-measure", "--quiet", "--memory", "1TB")
    assert done.code == 0, done.err
    assert "memory at the peak" not in done.out
    assert "verdict" in done.out
