"""``qlassify predict``: one line for each row, in order, whatever the form it came in and leaves in."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import Command

from qlassify import ClassifyPipeline, job
from tiny_jobs import LABELS, job_settings, make_multi_label_rows, make_pair_rows, make_rows, write_table

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = [text for text, _ in make_rows(12, seed=30)]


@pytest.fixture(scope="module")
def wanted(finished_run: Path) -> dict[str, tuple[str, list[float]]]:
    """Text -> label and probabilities, by the library."""
    pipeline = ClassifyPipeline.load(finished_run)
    scores = pipeline.predict_proba(TEXTS)
    return {
        text: (label, row)
        for text, label, row in zip(TEXTS, pipeline.predict(TEXTS), scores.tolist(), strict=True)  # type: ignore[misc]
    }


def json_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def assert_answers(lines: list[dict[str, Any]], wanted: dict[str, tuple[str, list[float]]]) -> None:
    assert [line["row"] for line in lines] == list(range(1, len(TEXTS) + 1))
    for line, text in zip(lines, TEXTS, strict=True):
        label, scores = wanted[text]
        assert line["label"] == label
        assert list(line["probabilities"]) == list(LABELS)
        # Six decimals are printed; other company in the batch moves the seventh.
        assert list(line["probabilities"].values()) == pytest.approx(scores, abs=2e-6)
        assert line["probability"] == max(line["probabilities"].values())


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet", "txt"])
def test_files_of_every_kind(
    command: Command, finished_run: Path, wanted: dict[str, Any], tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"new.{suffix}"
    if suffix == "txt":
        path.write_text("\n".join(TEXTS) + "\n")
    else:
        write_table(path, ("id", "text"), [(f"n{number}", text) for number, text in enumerate(TEXTS)])
    done = command("predict", finished_run, path)
    assert done.code == 0, done.err
    assert done.err == "12 rows predicted, 0 rejected\n"
    assert_answers(json_lines(done.out), wanted)


def test_standard_input(command: Command, finished_run: Path, wanted: dict[str, Any]) -> None:
    done = command("predict", finished_run, "-", "--quiet", stdin="\n".join(TEXTS) + "\n")
    assert (done.code, done.err) == (0, "")
    assert_answers(json_lines(done.out), wanted)
    done = command("predict", finished_run, "-", stdin="".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    assert_answers(json_lines(done.out), wanted)


def test_a_real_pipe(finished_run: Path, wanted: dict[str, Any]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from qlassify.cli.app import main; main()", "predict", str(finished_run), "-"],
        input="\n".join(TEXTS),
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "12 rows predicted, 0 rejected\n")
    assert_answers(json_lines(done.stdout), wanted)


def test_texts_on_the_command_line(command: Command, finished_run: Path, wanted: dict[str, Any]) -> None:
    flags = [part for text in TEXTS for part in ("--text", text)]
    done = command("predict", finished_run, *flags)
    assert done.code == 0
    assert_answers(json_lines(done.out), wanted)


@pytest.mark.parametrize(("form", "delimiter"), [("csv", ","), ("tsv", "\t")])
def test_tables_parse_back(
    command: Command, finished_run: Path, wanted: dict[str, Any], tmp_path: Path, form: str, delimiter: str
) -> None:
    path = write_table(tmp_path / "new.csv", ("text",), [(text,) for text in TEXTS])
    done = command("predict", finished_run, path, "--output", form)
    rows = list(csv.DictReader(io.StringIO(done.out), delimiter=delimiter))
    assert list(rows[0]) == ["row", "label", "probability", "error", *(f"p({label})" for label in LABELS)]
    assert [row["label"] for row in rows] == [wanted[text][0] for text in TEXTS]
    for row, text in zip(rows, TEXTS, strict=True):
        assert [float(row[f"p({label})"]) for label in LABELS] == pytest.approx(wanted[text][1], abs=2e-6)


def test_rows_that_cannot_be_read_keep_their_place_and_number(
    command: Command, finished_run: Path, tmp_path: Path
) -> None:
    path = tmp_path / "new.jsonl"
    lines = ['{"text": "a dog"}', '{"text": "  "}', "{not json", "", '{"text": null}', '{"text": "a saw"}', "[1]"]
    path.write_text("\n".join(lines) + "\n")
    done = command("predict", finished_run, path)
    assert done.code == 0
    assert done.err == "6 rows predicted, 4 rejected\n"
    found = json_lines(done.out)
    assert [(line["row"], "error" in line) for line in found] == [
        (1, False),
        (2, True),
        (3, True),
        (5, True),
        (6, False),
        (7, True),
    ]
    assert [line.get("error", "")[:10] for line in found if "error" in line] == [
        "blank text",
        "not valid ",
        "missing te",
        "not a JSON",
    ]
    done = command("predict", finished_run, path, "--output", "csv")
    rows = list(csv.DictReader(io.StringIO(done.out)))
    assert [bool(row["error"]) for row in rows] == [False, True, True, True, False, True]
    assert all((row["label"] == "") == bool(row["error"]) for row in rows)


def test_blank_texts_on_the_command_line(command: Command, finished_run: Path) -> None:
    done = command("predict", finished_run, "--text", " ", "--text", "a dog", "--text", "")
    assert [("error" in line, line["row"]) for line in json_lines(done.out)] == [(True, 1), (False, 2), (True, 3)]


def test_more_rows_than_are_held_at_once(
    command: Command, finished_run: Path, wanted: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from qlassify import scoring

    monkeypatch.setattr(scoring, "CHUNK_ROWS", 5)
    path = write_table(tmp_path / "new.csv", ("text",), [(text,) for text in TEXTS])
    assert_answers(json_lines(command("predict", finished_run, path).out), wanted)


def test_an_empty_pipe_is_no_error(command: Command, finished_run: Path) -> None:
    done = command("predict", finished_run, "-")
    assert (done.code, done.out, done.err) == (0, "", "0 rows predicted, 0 rejected\n")


def test_the_column_that_was_trained_on_is_the_one_that_is_read(
    command: Command, tiny_base: Path, tmp_path: Path
) -> None:
    """Trained on ``body`` of a file that also has ``text``: reading ``text`` now would answer about other texts."""
    rows = [(text, "the dog", label) for text, label in make_rows(60)]
    data = write_table(tmp_path / "train.csv", ("body", "text", "label"), rows)
    settings = job_settings(tiny_base, data, epochs=1)
    settings["data"]["text"] = "body"
    list(job.train(settings, tmp_path / "run"))
    explicit = command("predict", tmp_path / "run", data, "--text-column", "body")
    implicit = command("predict", tmp_path / "run", data)
    assert explicit.code == 0
    assert implicit.code != 0 or implicit.out == explicit.out


def test_one_json_document_for_a_machine(command: Command, finished_run: Path) -> None:
    """``--json`` promises one document, here as for every other verb."""
    done = command("predict", finished_run, "--text", "a dog", "--text", "a saw", "--json")
    assert done.code == 0
    assert json.loads(done.out)


def test_the_output_form_holds_for_texts_too(command: Command, finished_run: Path) -> None:
    """An option that is given is honoured or refused."""
    done = command("predict", finished_run, "--text", "a dog", "--output", "csv")
    assert done.code == 2 or done.out.startswith("row,label,")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "give either a file (or -) or --text"),
        (["a.csv", "--text", "a dog"], "give either a file (or -) or --text"),
        (["--text", "a dog", "--text-pair", "a", "--text-pair", "b"], "once for each --text; got 2; wanted 1"),
        (["--text", "a dog", "--text-pair", "a cat"], "the classifier reads single texts"),
        (["nowhere.csv"], "nowhere.csv"),
        (["-", "--output", "xml"], "unknown output form; got xml; wanted jsonl, csv, tsv"),
        (["-", "--format", "xlsx"], "xlsx"),
        (["-", "--base", "./nowhere"], "./nowhere"),
    ],
)
def test_mistakes(command: Command, finished_run: Path, arguments: list[str], part: str) -> None:
    done = command("predict", finished_run, *arguments, stdin="a dog\n")
    assert done.code == 2
    assert done.err.startswith("qlassify: ")
    assert part in done.err.replace("--output: ", "")
    assert done.out == ""


def test_no_classifier_there(command: Command, tmp_path: Path) -> None:
    done = command("predict", tmp_path, "--text", "a dog")
    assert done.code == 2
    assert "no saved classifier here" in done.err
    assert "Traceback" not in done.err


def test_pairs(command: Command, tiny_base: Path, tmp_path: Path) -> None:
    rows = make_pair_rows(60)
    data = write_table(tmp_path / "p.csv", ("sentence1", "sentence2", "label"), rows)
    list(job.train(job_settings(tiny_base, data, epochs=1), tmp_path / "run"))
    pipeline = ClassifyPipeline.load(tmp_path / "run")
    wanted = pipeline.predict([row[0] for row in rows], [row[1] for row in rows])
    done = command("predict", tmp_path / "run", data)
    assert [line["label"] for line in json_lines(done.out)] == wanted
    done = command("predict", tmp_path / "run", "--text", rows[0][0], "--text-pair", rows[0][1])
    assert json_lines(done.out)[0]["label"] == wanted[0]
    done = command("predict", tmp_path / "run", "--text", rows[0][0])
    assert done.code == 2
    assert "--text-pair" in done.err


def test_several_labels(command: Command, tiny_base: Path, tmp_path: Path) -> None:
    rows = make_multi_label_rows(60)
    data = write_table(tmp_path / "m.jsonl", ("text", "labels"), rows)
    list(job.train(job_settings(tiny_base, data, epochs=1), tmp_path / "run"))
    texts = [text for text, _ in rows[:10]]
    wanted = ClassifyPipeline.load(tmp_path / "run").predict(texts)
    done = command("predict", tmp_path / "run", "-", stdin="\n".join(texts))
    assert [tuple(line["labels"]) for line in json_lines(done.out)] == wanted
    done = command("predict", tmp_path / "run", "-", "--output", "csv", stdin="\n".join(texts))
    found = [row["label"] for row in csv.DictReader(io.StringIO(done.out))]
    assert found == ["|".join(labels) for labels in wanted]
