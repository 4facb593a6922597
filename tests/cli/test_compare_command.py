"""``qlassify compare``: two runs on the same rows or on a file, and everything that cannot be compared refused."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import polars
import pytest
import torch
from command_line import Command

from qlassify import ClassifyPipeline, job
from qlassify.cli.show_comparison import visible
from qlassify.comparing import compare_runs
from qlassify.errors import ConfigError, DataError
from tiny_jobs import job_settings, make_multi_label_rows, make_pair_rows, make_rows, write_table

pytestmark = pytest.mark.usefixtures("one_thread")

TEST_ROWS = make_rows(45, seed=80)


@pytest.fixture(scope="module")
def test_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """45 rows that neither run learns from."""
    return write_table(tmp_path_factory.mktemp("data") / "held-out.csv", ("text", "label"), TEST_ROWS)


def trained(base: Path, data: Path, test: Path | None, folder: Path, **training: Any) -> Path:
    settings = job_settings(base, data, **training)
    settings["data"]["test"] = None if test is None else str(test)
    settings["evaluation"] = {"baselines": False}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    list(job.train(settings, folder))
    torch.set_num_threads(threads)
    return folder


@pytest.fixture(scope="module")
def weak(tiny_base: Path, train_csv: Path, test_csv: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that hardly learned."""
    folder = tmp_path_factory.mktemp("runs") / "weak"
    return trained(tiny_base, train_csv, test_csv, folder, epochs=1, learning_rate=1e-5, head_learning_rate=1e-5)


@pytest.fixture(scope="module")
def strong(tiny_base: Path, train_csv: Path, test_csv: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that learned."""
    return trained(tiny_base, train_csv, test_csv, tmp_path_factory.mktemp("runs") / "strong", epochs=4)


def copied(run: Path, to: Path) -> Path:
    return Path(shutil.copytree(run, to))


def rewrite_predictions(run: Path, change: Any) -> None:
    file = run / "evaluation" / "predictions.parquet"
    change(polars.read_parquet(file)).write_parquet(file)


# What it says


def test_the_scores_are_those_of_the_runs_and_the_counts_those_of_the_rows(
    command: Command, weak: Path, strong: Path
) -> None:
    done = command("compare", weak, strong, "--json")
    assert (done.code, done.err) == (0, "")
    found = json.loads(done.out)
    tables = [polars.read_parquet(run / "evaluation" / "predictions.parquet") for run in (weak, strong)]
    right = [(table["true"].list.first() == table["predicted"].list.first()).to_list() for table in tables]
    assert found["mcnemar"]["only_b_right"] == sum(b and not a for a, b in zip(*right, strict=True)) > 5
    assert found["mcnemar"]["only_a_right"] == sum(a and not b for a, b in zip(*right, strict=True))
    for side, run in (("a", weak), ("b", strong)):
        values = json.loads((run / "evaluation" / "metrics.json").read_text())["values"]
        for name in ("accuracy", "macro_f1"):
            assert found["scores"][name][side] == pytest.approx(values[name], abs=1e-12)
    assert found["mcnemar"]["p_value"] < 0.05
    assert "larger than chance explains" in found["verdict"]
    assert (found["compared_on"], found["num_rows"], found["notes"]) == ("test", 45, [])
    changed = {one["name"]: (one["a"], one["b"]) for one in found["settings"]}
    assert changed == {
        "training.epochs": (1, 4),
        "training.learning_rate": (1e-5, 5e-3),
        "training.head_learning_rate": (1e-5, 1e-2),
    }
    for side, run in (("a", weak), ("b", strong)):
        plan = json.loads((run / "plan.json").read_text())
        assert found[side]["trainable_parameters"] == plan["planned"]["trainable_parameters"]
        assert found[side]["training_seconds"] == plan["measured"]["training_seconds"]
        assert found[side]["saved_bytes"] == sum(file.stat().st_size for file in (run / "model").glob("*.safetensors"))


def test_a_person_sees_scores_rows_settings_and_costs(command: Command, weak: Path, strong: Path) -> None:
    done = command("compare", weak, strong)
    assert (done.code, done.err) == (0, "")
    for part in ("test: 45 rows", "accuracy", "macro F1", "95 % interval", "B is right on", "rows with different"):
        assert part in done.out
    for part in ("training.learning_rate", "trained parameters", "saved weights", "and "):
        assert part in done.out
    quiet = command("compare", weak, strong, "--quiet")
    assert "B is right on" in quiet.out
    assert "training.learning_rate" not in quiet.out


def test_a_run_equals_itself(command: Command, strong: Path) -> None:
    found = json.loads(command("compare", strong, strong, "--json").out)
    assert (found["mcnemar"]["p_value"], found["num_different_predictions"], found["settings"]) == (1.0, 0, [])
    assert all((one["difference"], one["low"], one["high"]) == (0, 0, 0) for one in found["scores"].values())
    assert "The settings of both runs are the same." in command("compare", strong, strong).out


def test_a_file_that_both_predict_gives_what_their_own_scores_give(
    command: Command, weak: Path, strong: Path, test_csv: Path
) -> None:
    own = json.loads(command("compare", weak, strong, "--json").out)
    on_file = json.loads(command("compare", weak, strong, test_csv, "--json").out)
    assert on_file["compared_on"] == "held-out.csv"
    assert {key: on_file[key] for key in ("scores", "mcnemar", "settings")} == {
        key: own[key] for key in ("scores", "mcnemar", "settings")
    }


def test_model_folders_are_compared_on_a_file(
    command: Command, weak: Path, strong: Path, test_csv: Path, tmp_path: Path
) -> None:
    model = copied(strong / "model", tmp_path / "moved")
    found = json.loads(command("compare", weak, model, test_csv, "--json").out)
    predicted = ClassifyPipeline.load(model).predict([text for text, _ in TEST_ROWS])
    right = [one == label for one, (_, label) in zip(predicted, TEST_ROWS, strict=True)]
    assert found["scores"]["accuracy"]["b"] == pytest.approx(sum(right) / 45)
    assert found["settings"] is None
    assert (found["b"]["trainable_parameters"], found["b"]["training_seconds"]) == (None, None)
    done = command("compare", weak, model)
    assert done.code == 2
    assert "there are no predictions to compare" in done.err


def test_the_order_of_the_label_map_does_not_matter(weak: Path, strong: Path, tmp_path: Path) -> None:
    other = copied(strong, tmp_path / "other")
    record = other / "model" / "classifier.json"
    settings = json.loads(record.read_text())
    settings["labels"] = settings["labels"][::-1]
    del settings["sha256"]  # it was edited on purpose
    record.write_text(json.dumps(settings))
    for pair, wanted in (((weak, other), (weak, strong)), ((other, weak), (strong, weak))):
        found, known = compare_runs(*pair), compare_runs(*wanted)
        assert found.result.test == known.result.test
        assert found.differences == known.differences
        for one, two in zip(found.result.scores, known.result.scores, strict=True):
            # Sums over classes in another order.
            assert (one.a, one.b, one.low, one.high) == pytest.approx((two.a, two.b, two.low, two.high), abs=1e-12)


def test_the_order_of_the_predictions_does_not_matter(weak: Path, strong: Path, tmp_path: Path) -> None:
    other = copied(strong, tmp_path / "other")
    rewrite_predictions(other, lambda table: table.reverse())
    found, known = compare_runs(weak, other), compare_runs(weak, strong)
    assert (found.result, found.differences) == (known.result, known.differences)


def test_what_chose_the_weights_is_said(tiny_base: Path, train_csv: Path, finished_run: Path, command: Command) -> None:
    found = json.loads(command("compare", finished_run, finished_run, "--json").out)
    assert found["compared_on"] == "validation"
    assert "chose the weights" in found["notes"][0]
    found = json.loads(command("compare", finished_run, finished_run, train_csv, "--json").out)
    assert [note.split(" is what ")[1][0] for note in found["notes"]] == ["A", "B"]


def test_several_labels_and_pairs(command: Command, tiny_base: Path, tmp_path: Path) -> None:
    several = [(text, ";".join(labels)) for text, labels in make_multi_label_rows(90)]
    data = write_table(tmp_path / "m.csv", ("text", "label"), several)
    settings = job_settings(tiny_base, data, epochs=1)
    settings["data"]["label_separator"] = ";"
    settings["evaluation"] = {"baselines": False}
    list(job.train(settings, tmp_path / "one"))
    list(job.train({**settings, "training": {**settings["training"], "epochs": 4}}, tmp_path / "four"))
    out = tmp_path / "rows.csv"
    done = command("compare", tmp_path / "one", tmp_path / "four", "--json", "--out", out)
    found = json.loads(done.out)
    assert list(found["scores"]) == ["subset_accuracy", "micro_f1", "macro_f1"]
    for side, name in (("a", "one"), ("b", "four")):
        values = json.loads((tmp_path / name / "evaluation" / "metrics.json").read_text())["values"]
        for score in found["scores"]:
            assert found["scores"][score][side] == pytest.approx(values[score], abs=1e-12)
    with out.open(newline="") as file:
        written = list(csv.DictReader(file))
    assert len(written) == found["num_different_predictions"] > 0
    assert any("|" in one["true"] for one in written)

    pairs = write_table(tmp_path / "p.csv", ("premise", "hypothesis", "label"), make_pair_rows(60))
    list(job.train(job_settings(tiny_base, pairs, epochs=1), tmp_path / "pairs"))
    assert command("compare", tmp_path / "pairs", tmp_path / "pairs").code == 0
    done = command("compare", tmp_path / "pairs", tmp_path / "four")
    assert (done.code, "cannot be compared" in done.err) == (2, True)


# The rows that differ


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "tsv", "parquet"])
def test_all_rows_that_differ_are_written(
    command: Command, weak: Path, strong: Path, tmp_path: Path, suffix: str
) -> None:
    out = tmp_path / "new" / f"rows.{suffix}"
    done = command("compare", weak, strong, "--out", out, "--quiet")
    assert done.code == 0, done.err
    tables = [polars.read_parquet(run / "evaluation" / "predictions.parquet") for run in (weak, strong)]
    wanted = [
        (one["row"], one["text"], one["true"][0], one["predicted"][0], other["predicted"][0])
        for one, other in zip(*(table.sort("row").to_dicts() for table in tables), strict=True)
        if one["predicted"] != other["predicted"]
    ]
    if suffix == "jsonl":
        read = [json.loads(line) for line in out.read_text().splitlines()]
    elif suffix == "parquet":
        read = polars.read_parquet(out).to_dicts()
    else:
        with out.open(newline="") as file:
            read = list(csv.DictReader(file, delimiter="," if suffix == "csv" else "\t"))
    first = (lambda value: value) if suffix in ("csv", "tsv") else (lambda value: value[0])
    found = [(int(one["row"]), one["text"], first(one["true"]), first(one["a"]), first(one["b"])) for one in read]
    assert found == wanted
    sides = {"a": lambda row: row[3] == row[2], "b": lambda row: row[4] == row[2]}
    assert [one["right"] for one in read] == [
        next((side for side, is_right in sides.items() if is_right(row)), "neither") for row in wanted
    ]


def test_a_text_does_not_command_the_terminal(command: Command, strong: Path, weak: Path, tmp_path: Path) -> None:
    evil = "clear \x1b[2J\x1b]0;title\x07 [bold]the\nscreen\u202e"
    pair = [copied(run, tmp_path / run.name) for run in (weak, strong)]
    for run in pair:
        rewrite_predictions(run, lambda table: table.with_columns(polars.lit(evil).alias("text")))
    done = command("compare", *pair)
    assert done.code == 0, done.err
    assert "\x1b" not in done.out
    assert "\u202e" not in done.out
    assert "clear \\x1b[2J\\x1b]0;title\\x07 [bold]the screen\\u202e" in done.out


def test_visible_leaves_what_can_be_seen() -> None:
    assert visible("Grüße, 世界 \N{THUMBS UP SIGN}\n\tnext") == "Grüße, 世界 \N{THUMBS UP SIGN} next"


# Refusals


def test_rows_that_are_not_the_same_are_refused(weak: Path, strong: Path, finished_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="scored on different rows") as caught:
        compare_runs(weak, finished_run)
    assert "qlassify compare A B DATA" in str(caught.value)
    other = copied(strong, tmp_path / "text")
    rewrite_predictions(other, lambda table: table.with_columns((polars.col("text") + ".").alias("text")))
    with pytest.raises(ConfigError, match="45 rows of A and 45 of B, 0 of them the same"):
        compare_runs(weak, other)
    other = copied(strong, tmp_path / "fewer")
    rewrite_predictions(other, lambda table: table.head(40))
    with pytest.raises(ConfigError, match="45 rows of A and 40 of B, 40 of them the same"):
        compare_runs(weak, other)
    other = copied(strong, tmp_path / "truth")
    rewrite_predictions(other, lambda table: table.with_columns(polars.lit(["tool"]).alias("true")))
    with pytest.raises(DataError, match="different true labels"):
        compare_runs(weak, other)


def test_other_labels_are_named(command: Command, tiny_base: Path, strong: Path, tmp_path: Path) -> None:
    rows = [(text, "animal" if label == "beast" else label) for text, label in make_rows(60)]
    data = write_table(tmp_path / "a.csv", ("text", "label"), rows)
    other = trained(tiny_base, data, None, tmp_path / "other", epochs=1)
    done = command("compare", strong, other)
    assert done.code == 2
    assert "'beast' only in A; 'animal' only in B" in done.err


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--out", "rows.xlsx"], ".jsonl, .csv, .tsv or .parquet"),
        (["--device", "cpu"], "without DATA nothing is read or predicted"),
        (["--label", "label"], "without DATA nothing is read or predicted"),
        (["nowhere.csv"], "nowhere.csv"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_a_mistake_is_a_sentence(command: Command, strong: Path, arguments: list[str], part: str) -> None:
    done = command("compare", strong, strong, *arguments)
    assert done.code == 2
    assert part in done.err
    assert "Traceback" not in done.err


def test_what_is_no_classifier_is_refused(command: Command, strong: Path, tmp_path: Path) -> None:
    done = command("compare", strong, tmp_path)
    assert done.code == 2
    assert "no saved classifier here" in done.err
