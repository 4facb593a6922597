"""``qlassify calibrate``, and ``predict`` with label sets and abstentions."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import Command

from qlassify import ClassifyPipeline
from tiny_jobs import make_rows, write_table

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = [text for text, _ in make_rows(12, seed=31)]


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished_run, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    return write_table(tmp_path / "fresh.csv", ("text", "label"), make_rows(90, seed=40))


def test_it_says_what_it_chose_and_saves_it(command: Command, run: Path, fresh: Path) -> None:
    done = command("calibrate", run, fresh, "--coverage", "0.8")
    assert done.code == 0
    chosen = ClassifyPipeline.load(run).decision
    assert chosen.coverage == 0.8
    assert chosen.fitted_rows == 90
    assert f"temperature  {chosen.temperature:.3f} (was 1.000)" in done.out
    assert "90 fresh.csv rows" in done.out
    assert f"every class from {chosen.set_floor:.4f} on, for a coverage of 80%" in done.out


def test_json_and_quiet(command: Command, run: Path, fresh: Path) -> None:
    told = json.loads(command("calibrate", run, fresh, "--json").out)
    assert told["decision"] == ClassifyPipeline.load(run).decision.model_dump(mode="json")
    assert told["rows"] == 90
    assert set(told["before"]) == set(told["after"])
    assert command("calibrate", run, fresh, "--quiet").out.strip() == str(run / "model")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--positive", "dog"), "evaluation.positive"),
        (("--threshold", "often"), "it should be tuned, or greater than 0"),
        (("--coverage", "1.5"), "coverage is 1.5"),
        (("--label", "colour"), "colour"),
    ],
    ids=["a positive class of three", "no threshold", "an impossible coverage", "no such column"],
)
def test_mistakes_end_in_a_sentence(
    command: Command, run: Path, fresh: Path, arguments: tuple[str, ...], said: str
) -> None:
    before = (run / "model" / "classifier.json").read_bytes()
    done = command("calibrate", run, fresh, *arguments)
    assert done.code in (2, 3)
    assert said in done.err
    assert (run / "model" / "classifier.json").read_bytes() == before


def test_label_sets_in_every_form(command: Command, run: Path, fresh: Path, tmp_path: Path) -> None:
    command("calibrate", run, fresh)
    new = write_table(tmp_path / "new.csv", ("text",), [(text,) for text in TEXTS])
    wanted = ClassifyPipeline.load(run).predict_sets(TEXTS)
    lines = [json.loads(line) for line in command("predict", run, new, "--sets").out.splitlines()]
    assert [tuple(line["label_set"]) for line in lines] == wanted
    rows = list(csv.DictReader(io.StringIO(command("predict", run, new, "--sets", "--output", "csv").out)))
    assert [tuple(row["label_set"].split("|")) for row in rows] == wanted
    assert "label_set" not in json.loads(command("predict", run, new).out.splitlines()[0])


def test_sets_that_were_never_made(command: Command, run: Path) -> None:
    """Thirty validation rows are too few to choose them on."""
    done = command("predict", run, "--text", TEXTS[0], "--sets")
    assert done.code != 0
    assert "qlassify calibrate" in done.err


def test_abstentions_are_null_and_empty_cells(command: Command, run: Path, tmp_path: Path) -> None:
    new = write_table(tmp_path / "new.csv", ("text",), [(text,) for text in TEXTS])
    sure = ClassifyPipeline.load(run).predict_proba(TEXTS).max(axis=1)
    limit = float(np.median(sure))
    lines = [json.loads(line) for line in command("predict", run, new, "--abstain-below", limit).out.splitlines()]
    assert [line["label"] is None for line in lines] == (sure < limit).tolist()
    # What it would have said is still there.
    assert [line["probability"] for line in lines] == pytest.approx(sure.tolist(), abs=2e-6)
    out = command("predict", run, new, "--abstain-below", limit, "--output", "csv").out
    assert [row["label"] == "" for row in csv.DictReader(io.StringIO(out))] == (sure < limit).tolist()


def test_too_few_rows_leave_the_classifier_alone(command: Command, run: Path) -> None:
    before = (run / "model" / "classifier.json").read_bytes()
    done = command("calibrate", run)
    assert done.code != 0
    assert "30 rows" in done.err
    assert (run / "model" / "classifier.json").read_bytes() == before
    assert command("calibrate", run, "--plain", "--abstain-below", "0.5").code == 0
    assert ClassifyPipeline.load(run).decision.abstain_below == 0.5


def test_from_inside_the_model_folder(
    command: Command, run: Path, fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run / "model")
    assert command("calibrate", ".", fresh).code == 0
    assert ClassifyPipeline.load(run).decision.fitted_rows == 90
