"""Files that are not what was written: bits flipped, ends cut off, files gone, files of another run.

Offsets and bits are drawn by a seeded generator. Everything goes through the public way to load, so what is shown is
that no damage becomes an answer: a checkpoint is passed over with a sentence, a classifier is refused.
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fault_tally import Tally

from qlassify import job, scoring
from qlassify.artifact import HEAD, RECORD, read_record
from qlassify.digests import KEY
from qlassify.errors import CheckpointError, ModelError, QlassifyError
from qlassify.pipeline import ClassifyPipeline
from qlassify.training.checkpoint import CheckpointStore, read_checkpoint
from qlassify.training.events import CheckpointEvent
from tiny_jobs import job_settings, make_rows, model_bytes, save_tiny_base, write_table

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = ["the dog is near", "a pear and a plum", "under the hammer"]
FILES = ("adapter_config.json", "adapter_model.safetensors", "head.safetensors", "tokenizer.json", RECORD)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base model."""
    return save_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of learnable rows."""
    return write_table(tmp_path_factory.mktemp("data") / "train.csv", ("text", "label"), make_rows(90, seed=2))


@pytest.fixture(scope="module")
def finished(base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; tests copy it before they do harm."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    list(job.train(job_settings(base, data, epochs=2), folder))
    return folder


@pytest.fixture(scope="module")
def stopped(base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was left with two checkpoints and nothing after them."""
    folder = tmp_path_factory.mktemp("runs") / "stopped"
    events = job.train(job_settings(base, data, epochs=3, checkpoint_every_steps=2), folder)
    while len(CheckpointStore(folder / "checkpoints").paths()) < 2:
        next(events)
    events.close()  # type: ignore[attr-defined]
    return folder


def sampled(path: Path, count: int) -> Iterator[tuple[str, bytes]]:
    """What can become of a file: ``count`` single flipped bits and a quarter as many cuts, drawn for its name."""
    content = path.read_bytes()
    generator = np.random.default_rng(zlib.crc32(path.name.encode()))
    for offset in generator.integers(0, len(content), size=count).tolist():
        bit = int(generator.integers(0, 8))
        damaged = bytearray(content)
        damaged[offset] ^= 1 << bit
        yield f"{path.name}: bit {bit} of byte {offset}", bytes(damaged)
    for length in [0, *generator.integers(1, len(content), size=count // 4).tolist()]:
        yield f"{path.name}: cut to {length} bytes", content[:length]


def refusal(folder: Path) -> QlassifyError | None:
    """The error that loading a classifier ends in; None if it loads. Anything that is no error of ours escapes."""
    try:
        ClassifyPipeline.load(folder)
    except QlassifyError as error:
        return error
    return None


@pytest.mark.parametrize("name", FILES)
def test_no_damage_to_a_saved_classifier_is_taken_for_a_classifier(
    finished: Path, tmp_path: Path, tally: Tally, full_faults: bool, name: str
) -> None:
    """Refused before the base model is read; only a record that still says the same may be taken."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    path = folder / "model" / name
    wanted = read_record(folder / "model")
    count = 0
    for what, content in sampled(path, 400 if full_faults else 60):
        path.write_bytes(content)
        error = refusal(folder)
        if error is not None:
            assert isinstance(error, ModelError), what
            assert name in str(error), what
        else:  # 1e-05 and 1E-05 are the same number
            assert name == RECORD, what
            assert read_record(folder / "model") == wanted, what
        count += 1
    tally("faults injected", count)


@pytest.mark.parametrize("name", FILES)
def test_without_digests_damage_is_still_no_traceback(
    finished: Path, tmp_path: Path, tally: Tally, full_faults: bool, name: str
) -> None:
    """Folders of before there were digests load; what cannot be noticed in them is not, and nothing else escapes."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    record = folder / "model" / RECORD
    settings = json.loads(record.read_text())
    del settings[KEY]
    record.write_text(json.dumps(settings))
    assert ClassifyPipeline.load(folder).predict(TEXTS)
    path = folder / "model" / name
    refused = count = 0
    for _, content in sampled(path, 100 if full_faults else 12):
        path.write_bytes(content)
        refused += refusal(folder) is not None
        count += 1
    assert refused > 0
    tally("faults injected", count)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(finished: Path, tmp_path: Path, tally: Tally, name: str) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / "model" / name).unlink()
    with pytest.raises(ModelError) as caught:
        ClassifyPipeline.load(folder)
    assert name in str(caught.value)
    tally("faults injected", 1)


def test_every_file_of_the_folder_is_covered(finished: Path) -> None:
    """A file that has no digest would be taken however damaged it is."""
    digests = json.loads((finished / "model" / RECORD).read_text())[KEY]
    assert set(digests) == {path.name for path in (finished / "model").iterdir()}


@pytest.mark.parametrize("name", [HEAD, "adapter_model.safetensors", "tokenizer.json", RECORD])
def test_files_of_two_runs_do_not_mix(
    finished: Path, base: Path, data: Path, tmp_path: Path, tally: Tally, name: str
) -> None:
    """The other run differs in its seed alone: every shape fits, and nothing but the digest can tell."""
    other, mixed = tmp_path / "other", tmp_path / "mixed"
    settings = job_settings(base, data, epochs=1)
    list(job.train({**settings, "seed": 4}, other))
    if name == "tokenizer.json":  # the runs share it: another vocabulary, then
        path = other / "model" / name
        path.write_text(path.read_text().replace('"dog"', '"dgo"'))
    shutil.copytree(finished, mixed)
    shutil.copy(other / "model" / name, mixed / "model" / name)
    with pytest.raises(ModelError, match=r"another classifier|damaged"):
        ClassifyPipeline.load(mixed)
    tally("faults injected", 1)


def test_labels_of_another_record_are_refused(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    path = folder / "model" / RECORD
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "labels": settings["labels"][::-1]}))
    with pytest.raises(ModelError, match="damaged, or was edited") as caught:
        ClassifyPipeline.load(folder)
    assert KEY in (caught.value.do or "")


def test_a_head_of_another_size_is_refused_without_digests_too(
    finished: Path, base: Path, data: Path, tmp_path: Path
) -> None:
    rows = [(text, "thing" if label == "tool" else "living") for text, label in make_rows(90, seed=2)]
    two = write_table(tmp_path / "two.csv", ("text", "label"), rows)
    list(job.train(job_settings(base, two, epochs=1), tmp_path / "two"))
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    shutil.copy(tmp_path / "two" / "model" / HEAD, folder / "model" / HEAD)
    path = folder / "model" / RECORD
    settings = json.loads(path.read_text())
    del settings[KEY]
    path.write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="not those of this model") as caught:
        ClassifyPipeline.load(folder)
    assert "weight is (2, 64), not (3, 64)" in str(caught.value.got)


def test_calibrating_writes_digests_anew(finished: Path, tmp_path: Path) -> None:
    from qlassify.calibrating import calibrate_run

    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    rows = write_table(tmp_path / "more.csv", ("text", "label"), make_rows(90, seed=8))
    before = (folder / "model" / HEAD).read_bytes()
    calibrate_run(folder, rows, {}, {})
    assert (folder / "model" / HEAD).read_bytes() != before
    assert scoring.evaluate_run(folder, rows, {}, out=tmp_path / "out").assessment.metrics.num_rows == 90


def damaged_checkpoints(path: Path, count: int) -> Iterator[tuple[str, Path, bytes | None]]:
    """Every kind of damage to the files of a checkpoint: what, which file, and its content (None: it is gone)."""
    for file in sorted(path.iterdir()):
        for what, content in sampled(file, count):
            yield what, file, content
        yield f"{file.name}: gone", file, None


def test_a_damaged_checkpoint_is_passed_over_with_a_sentence(
    stopped: Path, tmp_path: Path, tally: Tally, full_faults: bool
) -> None:
    """Wherever it is damaged; a record whose damage says nothing else is as good as before."""
    folder = tmp_path / "checkpoints"
    shutil.copytree(stopped / "checkpoints", folder)
    store = CheckpointStore(folder)
    older, newest = store.paths()
    wanted, before = read_checkpoint(newest), read_checkpoint(older)
    count = 0
    for what, file, content in damaged_checkpoints(newest, 400 if full_faults else 120):
        whole = file.read_bytes()
        if content is None:
            file.unlink()
        else:
            file.write_bytes(content)
        found, problems = store.latest()
        assert found is not None, what
        if problems:
            assert len(problems) == 1, what
            assert newest.name in problems[0], what
            assert found.progress == before.progress, what
        else:
            assert file.name == "state.json", what
            assert found.progress == wanted.progress, what
        file.write_bytes(whole)
        count += 1
    tally("faults injected", count)


def test_a_run_resumed_past_a_damaged_checkpoint_ends_as_if_nothing_had_been(
    stopped: Path, base: Path, data: Path, tmp_path: Path, tally: Tally
) -> None:
    whole = tmp_path / "whole"
    list(job.train(job_settings(base, data, epochs=3, checkpoint_every_steps=2), whole))
    for damage in ("flipped", "cut", "gone"):
        folder = tmp_path / damage
        shutil.copytree(stopped, folder)
        older, newest = CheckpointStore(folder / "checkpoints").paths()
        path = newest / "state.safetensors"
        content = bytearray(path.read_bytes())
        if damage == "flipped":
            content[len(content) // 2] ^= 4
            path.write_bytes(content)
        elif damage == "cut":
            path.write_bytes(content[: len(content) // 2])
        else:
            path.unlink()
        events = list(job.resume(folder))
        (resumed,) = (event for event in events if isinstance(event, job.ResumeEvent))
        assert resumed.step == int(older.name.removeprefix("step-"))
        assert len(resumed.problems) == 1
        assert newest.name in resumed.problems[0]
        assert any(isinstance(event, CheckpointEvent) for event in events), "the damaged one was written anew"
        assert model_bytes(folder / "model") == model_bytes(whole / "model")
        tally("faults injected", 1)


def test_all_damaged_is_an_error_with_the_way_out(stopped: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(stopped, folder)
    for path in CheckpointStore(folder / "checkpoints").paths():
        (path / "state.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no checkpoint of this run can be read") as caught:
        list(job.resume(folder))
    assert f"--config {folder / 'run.yaml'}" in (caught.value.do or "")
