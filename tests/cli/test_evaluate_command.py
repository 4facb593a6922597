"""``qlassify evaluate``: the same scores as the library, beside the baselines, and files that say so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import polars
import pytest
from command_line import Command

from qlassify import ClassifyPipeline
from tiny_jobs import make_rows, write_table

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def new_tsv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty new rows, one of them with a label that was not trained, one blank."""
    path = tmp_path_factory.mktemp("data") / "new.tsv"
    return write_table(path, ("text", "label"), [*make_rows(40, seed=60), ("a saw", "metal"), ("", "tool")])


def test_scores_baselines_and_files(command: Command, finished_run: Path, new_tsv: Path, tmp_path: Path) -> None:
    done = command("evaluate", finished_run, new_tsv, "--out", tmp_path / "scores")
    assert (done.code, done.err) == (0, "")
    assert "40 rows" in done.out
    assert "always " in done.out
    assert "TF-IDF" in done.out
    assert "1 rows have labels that were not seen in training" in done.out
    assert "1 of 42 rows were rejected" in done.out
    written = {path.name for path in (tmp_path / "scores").iterdir()}
    assert written == {"metrics.json", "predictions.parquet", "report.html", "MODEL_CARD.md"}
    metrics = json.loads((tmp_path / "scores" / "metrics.json").read_text())
    wanted = ClassifyPipeline.load(finished_run).evaluate(new_tsv)
    assert metrics["values"]["accuracy"] == wanted.values["accuracy"]
    assert polars.read_parquet(tmp_path / "scores" / "predictions.parquet").height == 40


def test_the_files_go_into_the_run_by_themselves(command: Command, finished_run: Path, new_tsv: Path) -> None:
    before = (finished_run / "evaluation" / "metrics.json").read_bytes()
    done = command("evaluate", finished_run, new_tsv, "--quiet")
    assert done.code == 0
    assert (finished_run / "evaluation" / "new" / "report.html").is_file()
    assert (finished_run / "evaluation" / "metrics.json").read_bytes() == before, "the run's own scores stay"


def test_json_is_one_document(command: Command, finished_run: Path, new_tsv: Path, tmp_path: Path) -> None:
    done = command("evaluate", finished_run, new_tsv, "--out", tmp_path / "scores", "--json")
    record = json.loads(done.out)
    assert record["written_to"] == str(tmp_path / "scores")
    assert record["evaluated_on"] == "new.tsv"
    assert len(record["baselines"]) == 2


def test_a_model_folder_alone_has_no_baselines(
    command: Command, finished_run: Path, new_tsv: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished_run / "model", tmp_path / "model")
    done = command("evaluate", tmp_path / "model", new_tsv, "--json")
    assert done.code == 0, done.err
    record = json.loads(done.out)
    assert record["baselines"] == {}
    assert any("The baselines are left out" in note for note in record["notes"])


def test_a_model_folder_alone_honours_out(command: Command, finished_run: Path, new_tsv: Path, tmp_path: Path) -> None:
    """A folder that was asked for is written, or the wish is refused; it is not dropped."""
    shutil.copytree(finished_run / "model", tmp_path / "model")
    done = command("evaluate", tmp_path / "model", new_tsv, "--out", tmp_path / "scores", "--json")
    assert done.code != 0 or (tmp_path / "scores" / "metrics.json").is_file()


def test_without_the_training_data_the_scores_are_the_same(
    command: Command, tiny_base: Path, new_tsv: Path, tmp_path: Path
) -> None:
    from qlassify import job
    from tiny_jobs import job_settings

    data = write_table(tmp_path / "a.csv", ("text", "label"), make_rows(60))
    list(job.train(job_settings(tiny_base, data, epochs=1), tmp_path / "run"))
    first = json.loads(command("evaluate", tmp_path / "run", new_tsv, "--json").out)
    data.unlink()
    done = command("evaluate", tmp_path / "run", new_tsv, "--json")
    assert done.code == 0, done.err
    second = json.loads(done.out)
    assert second["values"] == first["values"]
    assert any("the training data cannot be used" in note for note in second["notes"])


@pytest.mark.parametrize(
    ("name", "header", "rows", "part"),
    [
        ("other.csv", ("text", "label"), [("a dog", "metal"), ("a cat", "stone")], "no row has labels that"),
        ("pairs.csv", ("premise", "hypothesis", "label"), [("a", "b", "tool")], "reads single texts"),
        ("plain.csv", ("text", "note"), [("a dog", "x")], "no label column"),
    ],
)
def test_mistakes(
    command: Command, finished_run: Path, tmp_path: Path, name: str, header: tuple[str], rows: list[tuple], part: str
) -> None:
    done = command("evaluate", finished_run, write_table(tmp_path / name, header, rows))
    assert done.code == 2
    assert done.err.startswith("qlassify: ")
    assert part in done.err
    assert "Traceback" not in done.err


def test_changed_training_data_gives_no_baselines(
    command: Command, tiny_base: Path, new_tsv: Path, tmp_path: Path
) -> None:
    """Baselines of other rows than the model's would be compared with it as if they were of the same."""
    from qlassify import job
    from tiny_jobs import job_settings

    data = write_table(tmp_path / "a.csv", ("text", "label"), make_rows(60))
    list(job.train(job_settings(tiny_base, data, epochs=1), tmp_path / "run"))
    assert json.loads(command("evaluate", tmp_path / "run", new_tsv, "--json").out)["baselines"]
    write_table(data, ("text", "label"), make_rows(50, seed=7))
    found = json.loads(command("evaluate", tmp_path / "run", new_tsv, "--json").out)
    assert found["baselines"] == {}
    assert any("the data has changed" in note for note in found["notes"])


def test_texts_that_are_cut_are_counted(command: Command, tiny_base: Path, tmp_path: Path) -> None:
    from qlassify import job
    from qlassify.errors import ConfigError, ContractError
    from tiny_jobs import job_settings

    data = write_table(tmp_path / "a.csv", ("text", "label"), make_rows(60))
    settings = job_settings(tiny_base, data, epochs=1)
    settings["model"]["max_length"] = 4
    with pytest.raises(ContractError, match="C-SEQ-001") as refused:
        list(job.train(settings, tmp_path / "refused"))
    assert refused.value.exit_code == 3
    assert "accepted_contracts=[C-SEQ-001]" in str(refused.value)
    settings["accepted_contracts"] = ["c-seq-001"]
    list(job.train(settings, tmp_path / "run"))
    kept = json.loads((tmp_path / "run" / "plan.json").read_text(encoding="utf-8"))
    assert "C-SEQ-001" in [item["contract_id"] for item in kept["contracts"]["items"]]
    settings["accepted_contracts"] = ["C-NONE-001"]
    with pytest.raises(ConfigError, match="no such contract"):
        list(job.train(settings, tmp_path / "misspelt"))
    settings["accepted_contracts"] = []
    longer = write_table(
        tmp_path / "b.csv", ("text", "label"), [(f"{text} {text}", label) for text, label in make_rows(9)]
    )
    found = json.loads(command("evaluate", tmp_path / "run", longer, "--json").out)
    assert any("9 of 9 b.csv texts" in note and "longer than 4 tokens" in note for note in found["notes"])
    settings["model"]["max_length"] = 100_000
    with pytest.raises(ConfigError, match="no positions"):
        list(job.train(settings, tmp_path / "other"))


class TestOpen:
    """``--open`` shows the report, and is never what a command fails by."""

    @pytest.fixture
    def opened(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """The addresses that a browser was asked for."""
        asked: list[str] = []
        monkeypatch.setattr("webbrowser.open", lambda address: asked.append(address) or True)
        return asked

    def test_the_report_that_was_written(
        self, command: Command, finished_run: Path, new_tsv: Path, tmp_path: Path, opened: list[str]
    ) -> None:
        done = command("evaluate", finished_run, new_tsv, "--out", tmp_path / "scores", "--open", "--quiet")
        assert (done.code, done.err) == (0, "")
        assert opened == [(tmp_path / "scores" / "report.html").as_uri()]

    def test_without_a_browser_its_path_is_told(
        self, command: Command, finished_run: Path, new_tsv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("webbrowser.open", lambda address: False)
        done = command("evaluate", finished_run, new_tsv, "--out", tmp_path / "scores", "--open", "--json")
        assert done.code == 0
        assert json.loads(done.out)["evaluated_on"] == "new.tsv"
        assert f"no browser was found; the report is {tmp_path / 'scores' / 'report.html'}" in done.err

    def test_a_model_folder_alone_has_none(
        self, command: Command, finished_run: Path, new_tsv: Path, tmp_path: Path, opened: list[str]
    ) -> None:
        shutil.copytree(finished_run / "model", tmp_path / "model")
        done = command("evaluate", tmp_path / "model", new_tsv, "--out", tmp_path / "scores", "--open")
        assert done.code == 0
        assert opened == []
        assert "there is no report to open: this is a model folder without its run" in done.err
        assert "report.html" not in done.out, "a file that was not written is not named"
        assert f"scores {tmp_path / 'scores'}" in done.out


def test_the_terminal_says_what_calibration_did(
    command: Command, tiny_base: Path, tmp_path: Path, new_tsv: Path
) -> None:
    from qlassify import job
    from tiny_jobs import job_settings

    data = write_table(tmp_path / "a.csv", ("text", "label"), make_rows(200, seed=4))
    settings = job_settings(tiny_base, data, epochs=1)
    settings["data"]["eval_fraction"] = 0.5
    list(job.train(settings, tmp_path / "run"))
    done = command("evaluate", tmp_path / "run", new_tsv)
    scores = json.loads((tmp_path / "run" / "evaluation" / "new" / "metrics.json").read_text())
    before, after = scores["decisions"]["plain"]["ece"], scores["values"]["ece"]
    temperature = f"temperature {scores['decision']['temperature']:.3g}"
    assert f"calibrated   {temperature}: ECE {100 * before:.1f} % -> {100 * after:.1f} %" in done.out
    assert "label sets   " in done.out
