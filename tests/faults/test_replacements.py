"""What takes the place of something else: never of what is not ours, and never in the middle of a read."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
from fault_tally import Tally
from limited_command import small_disk
from run_results import disturbed_settings

from qlassify import artifact, job
from qlassify.artifact import HEAD, RECORD, model_folder, read_record, read_undamaged
from qlassify.durable import DECIDED, WRITING, is_free, require_place, whole_folder
from qlassify.errors import ConfigError, ModelError
from qlassify.export.exporting import export_classifier
from qlassify.pipeline import ClassifyPipeline
from qlassify.quantization import quantize_model

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


# A new folder in the place of an empty one


def write_into(target: Path) -> dict[str, bytes]:
    """What a model's writer does: files, and a folder in the folder."""
    with whole_folder(target) as scratch:
        (scratch / "config.json").write_text("{}")
        (scratch / "1_Pooling").mkdir()
        (scratch / "1_Pooling" / "config.json").write_text("[]")
    return {"config.json": b"{}", "1_Pooling/config.json": b"[]"}


@pytest.mark.parametrize("there", ["empty", "absent"])
def test_a_link_stays_a_link_and_what_it_leads_to_is_written(tmp_path: Path, there: str) -> None:
    target, link = tmp_path / "elsewhere" / "model", tmp_path / "link"
    if there == "empty":
        target.mkdir(parents=True)
    link.symlink_to(target)
    require_place(link)
    assert write_into(link) == contents(target)
    assert link.is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "link"]
    assert [path.name for path in target.parent.iterdir()] == ["model"]


def test_a_mount_point_is_written_into(tmp_path: Path, tally: Tally) -> None:
    """It cannot be replaced, and nothing can be renamed into it from beside it."""
    with small_disk(tmp_path / "disk", 1 << 20):
        require_place(tmp_path / "disk")
        assert list((tmp_path / "disk").iterdir()) == []
        write_into(tmp_path / "disk")
        assert sorted(contents(tmp_path / "disk")) == ["1_Pooling/config.json", "config.json"]
        assert sorted(path.name for path in (tmp_path / "disk").iterdir()) == ["1_Pooling", "config.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["disk"]
    tally("empty folders that cannot be replaced", 1)


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EXDEV, errno.EACCES])
def test_a_folder_that_does_not_give_way_is_written_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tally: Tally, number: int
) -> None:
    """As the one above where nothing may be mounted, and for a folder whose parent may not be written."""
    target, replace = tmp_path / "out", os.replace
    target.mkdir()
    inode = target.stat().st_ino

    def refuse(source: Path, destination: Path) -> None:
        if Path(destination) == target:
            raise OSError(number, os.strerror(number))
        replace(source, destination)

    monkeypatch.setattr(os, "replace", refuse)
    require_place(target)
    with pytest.raises(ValueError, match="mine"), whole_folder(target):
        raise ValueError("mine")
    assert list(target.iterdir()) == [], "nothing is left of what failed"
    (target / WRITING).mkdir()  # of a process that was killed
    assert is_free(target)
    require_place(target)
    assert write_into(target) == contents(target)
    assert target.stat().st_ino == inode
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    tally("empty folders that cannot be replaced", 1)


def test_a_read_only_disk_is_refused_before_the_work(tmp_path: Path, tiny_base: Path) -> None:
    with small_disk(tmp_path / "disk", 1 << 20) as remount:
        remount("ro")
        for target in (tmp_path / "disk", tmp_path / "disk" / "a" / "b"):
            with pytest.raises(OSError, match="Read-only"):
                require_place(target)
            # Neither the base model nor the classifier is read: there is none.
            with pytest.raises(ConfigError, match=r"cannot write the export; got .*Read-only"):
                export_classifier(tmp_path / "nowhere", target, format="peft")
        with pytest.raises(ConfigError, match=r"cannot write the quantised model; got .*Read-only"):
            quantize_model(str(tiny_base), tmp_path / "disk")


def test_what_is_there_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("full", "file"):
        assert not is_free(tmp_path / name)
        with pytest.raises(OSError, match=name), whole_folder(tmp_path / name):
            raise AssertionError("there was something")
    assert contents(tmp_path) == {"full/mine.txt": b"mine", "file": b"mine"}
    require_place(tmp_path / "a" / "b" / "c")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full"], "a question leaves nothing"
