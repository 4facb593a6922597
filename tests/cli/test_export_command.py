"""``qlassify export``: what it says, what it writes, and the sentences for what cannot be."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import Command

from qlassify import ClassifyPipeline

pytestmark = pytest.mark.usefixtures("one_thread")


def test_it_says_what_was_written_and_how_far_the_logits_moved(
    command: Command, finished_run: Path, tmp_path: Path
) -> None:
    done = command("export", finished_run, tmp_path / "export")
    assert (done.code, done.err) == (0, "")
    assert "loads with transformers.AutoModelForSequenceClassification.from_pretrained" in done.out
    assert "compared with the classifier on 30 validation rows" in done.out
    assert "; 0 predictions changed" in done.out
    assert "Validation macro_f1: " in done.out
    assert "(+0.0000)" in done.out
    assert f"saved   {tmp_path / 'export'}" in done.out
    readme = (tmp_path / "export" / "README.md").read_text()
    assert "AutoModelForSequenceClassification" in readme
    assert "Labels: beast, fruit, tool" in readme


def test_json_agrees_with_what_was_written(command: Command, finished_run: Path, tmp_path: Path) -> None:
    record = json.loads(command("export", finished_run, tmp_path / "export", "--json").out)
    sizes = {
        path.relative_to(tmp_path / "export").as_posix(): path.stat().st_size
        for path in (tmp_path / "export").rglob("*")
        if path.is_file()
    }
    assert record["files"] == sizes
    assert record["format"] == "merged"
    metrics = json.loads((finished_run / "evaluation" / "metrics.json").read_text())
    assert record["check"]["rows"] == 30
    # The run was scored on the same rows in the same precision.
    assert record["check"]["before"] == pytest.approx(metrics["values"]["macro_f1"], abs=1e-12)
    assert record["check"]["after"] == record["check"]["before"]
    # Rounding of fp32 sums, four texts' logits of order one to ten.
    assert 0 < record["check"]["max_abs_delta"] < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("format", ["merged", "peft", "onnx"])
def test_the_printed_program_runs_in_a_fresh_process(
    command: Command, finished_run: Path, tmp_path: Path, format: str
) -> None:
    record = json.loads(command("export", finished_run, tmp_path / "export", "--format", format, "--json").out)
    done = subprocess.run([sys.executable, "-c", record["snippet"]], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    wanted = ClassifyPipeline.load(finished_run, precision="fp32").predict(["some text", "another, longer text"])
    assert done.stdout.strip().splitlines()[-1] == str(wanted)


def test_without_the_data_nothing_is_measured(command: Command, finished_run: Path, tmp_path: Path) -> None:
    done = command("export", finished_run / "model", tmp_path / "with-run", "--json")
    assert json.loads(done.out)["check"]["part"] == "validation rows"
    alone = tmp_path / "alone"
    alone.mkdir()
    for path in (finished_run / "model").iterdir():
        (alone / path.name).write_bytes(path.read_bytes())
    check = json.loads(command("export", alone, tmp_path / "export", "--json").out)["check"]
    assert check["part"] == "made-up token sequences"
    assert (check["metric"], check["before"], check["after"]) == (None, None, None)
    assert "does not say what it was trained on" in check["note"]


def test_data_that_has_changed_is_not_measured_on(command: Command, finished_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    facts = json.loads((run / "data.json").read_text())
    facts["files"][0]["sha256"] = "0" * 64
    (run / "data.json").write_text(json.dumps(facts))
    check = json.loads(command("export", run, tmp_path / "export", "--json").out)["check"]
    assert (check["part"], check["before"]) == ("made-up token sequences", None)
    assert "the data has changed since the run began" in check["note"]


def test_quiet_says_where(command: Command, finished_run: Path, tmp_path: Path) -> None:
    done = command("export", finished_run, tmp_path / "export", "--quiet")
    assert done.out == f"{tmp_path / 'export'}\n"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--format", "gguf"), "merged, peft, onnx"),
        (("--precision", "fp16"), "fp32, bf16"),
        (("--format", "onnx", "--precision", "bf16"), "written in fp32"),
        (("--format", "peft", "--into", "original"), "not merged into anything"),
        (("--into", "original"), "not trained on low-bit"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    command: Command, finished_run: Path, tmp_path: Path, options: tuple[str, ...], sentence: str
) -> None:
    done = command("export", finished_run, tmp_path / "export", *options)
    assert done.code == 2
    assert sentence in done.err
    assert "Traceback" not in done.err
    assert not list(tmp_path.iterdir())


def test_a_run_that_is_nowhere_is_one_sentence(command: Command, tmp_path: Path) -> None:
    done = command("export", tmp_path / "nowhere", tmp_path / "export")
    assert done.code == 2
    assert "no saved classifier here" in done.err
