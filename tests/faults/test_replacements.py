"""What takes the place of something else: never of what is not ours, and never in the middle of a read."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from fault_tally import Tally
from run_results import disturbed_settings

from qlassify import artifact, job
from qlassify.artifact import HEAD, RECORD, model_folder, read_record, read_undamaged
from qlassify.durable import DECIDED
from qlassify.errors import ConfigError, ModelError
from qlassify.pipeline import ClassifyPipeline

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tiny_base: Path, train_csv: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a classifier; tests copy it before they do harm."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    list(job.train(disturbed_settings(tiny_base, train_csv, epochs=1), folder))
    return folder / "model"


@pytest.fixture(scope="module")
def other(tiny_base: Path, train_csv: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same but for its seed, so that only digests tell the files apart."""
    folder = tmp_path_factory.mktemp("runs") / "other"
    list(job.train({**disturbed_settings(tiny_base, train_csv, epochs=1), "seed": 9}, folder))
    return folder / "model"


def contents(folder: Path) -> dict[str, bytes]:
    """Every file by its path in the folder."""
    return {one.relative_to(folder).as_posix(): one.read_bytes() for one in folder.rglob("*") if one.is_file()}


# Only what this program decided is carried out


@pytest.mark.parametrize("name", [".new", ".writing", ".qlassify", DECIDED])
def test_folders_of_somebody_else_are_left_alone(tmp_path: Path, tally: Tally, name: str) -> None:
    """Also one that has our name, in a folder that has no classifier's record anywhere."""
    for folder in (tmp_path, tmp_path / "model"):
        (folder / name).mkdir(parents=True)
        (folder / name / "notes.txt").write_text("draft")
        (folder / "notes.txt").write_text("final")
    before = contents(tmp_path)
    assert model_folder(tmp_path) == tmp_path
    with pytest.raises(ModelError, match="no saved classifier here"):
        ClassifyPipeline.load(tmp_path)
    assert contents(tmp_path) == before
    tally("folders of others left alone", 1)


@pytest.mark.parametrize("moved", range(3))
def test_a_decided_replacement_is_carried_out(
    model: Path, other: Path, tmp_path: Path, tally: Tally, moved: int
) -> None:
    """However far it had come, the record moved or not."""
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    shutil.copytree(other, folder / DECIDED)
    names = sorted(path.name for path in other.iterdir())
    for name in names[: (0, names.index(RECORD) + 1, len(names) - 1)[moved]]:
        os.replace(folder / DECIDED / name, folder / name)
    assert model_folder(tmp_path) == folder
    assert contents(folder) == contents(other)
    assert not (folder / DECIDED).exists()
    tally("replacements carried out", 1)


# Read whole, or refused


def replaced(folder: Path, by: Path) -> None:
    """As another process replaces a classifier: new files, renamed over the old ones."""
    for path in by.iterdir():
        shutil.copyfile(path, folder / ".coming")
        os.replace(folder / ".coming", folder / path.name)


def test_a_classifier_that_is_replaced_while_it_is_read_is_refused(
    model: Path, other: Path, tmp_path: Path, tally: Tally
) -> None:
    """The record had been yielded before: its labels and the other one's weights are no classifier."""
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    with pytest.raises(ModelError, match="replaced while it was read") as caught, read_undamaged(folder):
        replaced(folder, other)
    assert "again" in (caught.value.do or "")
    with read_undamaged(folder) as record:
        assert record == read_record(other)
    tally("replacements met while reading", 1)


def test_an_error_of_a_read_that_met_a_replacement_is_told_as_that(model: Path, other: Path, tmp_path: Path) -> None:
    """Any error of ours can come of a mixture; with nothing replaced it stays what it is."""
    folder = tmp_path / "model"
    shutil.copytree(model, folder)

    def fail(by: Path | None = None) -> None:
        if by is not None:
            replaced(folder, by)
        raise ConfigError("no such targets")

    with pytest.raises(ConfigError, match="no such targets"), read_undamaged(folder):
        fail()
    with pytest.raises(ModelError, match=r"replaced while it was read; got .*no such targets"), read_undamaged(folder):
        fail(other)


def test_a_replacement_between_record_and_files_is_met_by_reading_again(
    model: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, verify = tmp_path / "model", artifact.verify_files
    shutil.copytree(model, folder)
    calls: list[Path] = []

    def replace_once(settings: dict[str, object], path: Path) -> None:
        if not calls:
            replaced(folder, other)
        calls.append(path)
        verify(settings, path)

    monkeypatch.setattr(artifact, "verify_files", replace_once)
    with read_undamaged(folder) as record:
        assert record == read_record(other)
    assert len(calls) == 2


def test_damage_is_told_before_the_base_model_is_read(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    data = bytearray((folder / HEAD).read_bytes())
    data[-1] ^= 1
    (folder / HEAD).write_bytes(data)

    def unexpected(*args: object, **options: object) -> None:
        raise AssertionError("the base model was read")

    monkeypatch.setattr(artifact, "load_base", unexpected)
    with pytest.raises(ModelError, match="damaged, or of another classifier") as caught:
        ClassifyPipeline.load(folder)
    assert HEAD in str(caught.value)


def test_files_that_the_record_does_not_name_may_change_meanwhile(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    with read_undamaged(folder):
        (folder / "notes.txt").write_text("mine")
