"""Classifiers on base models that are APR files: bitwise those on the directory, and where they cannot go.

The tokeniser lies beside the file, as the converter leaves it, or where the test says.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from qlassify import ClassifyPipeline, RunConfig, job
from qlassify.artifact import read_record
from qlassify.conversion import convert_to_apr, convert_to_directory
from qlassify.data.tokenizer_files import TokenizerFiles
from qlassify.errors import ConfigError, ModelError
from qlassify.export.exporting import export_classifier
from qlassify.formats.apr import open_apr
from qlassify.inspection import inspect
from qlassify.models.source import resolve
from qlassify.quantization import quantize_model
from tiny_jobs import job_settings, make_rows, model_bytes, save_tiny_base, write_table

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = [text for text, _ in make_rows(24, seed=9)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base model as ``base`` and ``base.apr``, mean pooling, and training rows."""
    folder = tmp_path_factory.mktemp("apr")
    save_tiny_base(folder / "base")
    (folder / "base" / "1_Pooling").mkdir()
    (folder / "base" / "1_Pooling" / "config.json").write_text('{"pooling_mode": "mean"}')
    convert_to_apr(str(folder / "base"), folder / "base.apr")
    write_table(folder / "rows.csv", ("text", "label"), make_rows(48))
    return folder


def settings(base: Path, world: Path, **sections: Any) -> RunConfig:
    values = job_settings(base, world / "rows.csv", epochs=2) | sections
    values.pop("data")
    return RunConfig.parse(values)


@pytest.mark.parametrize("quant", [None, {}], ids=["lora", "qlora"])
def test_training_is_bitwise_that_on_the_directory(quant: Any, world: Path, tmp_path: Path) -> None:
    found: dict[str, Any] = {}
    for name in ("base", "base.apr"):
        run = settings(world / name, world, **({} if quant is None else {"quant": quant}))
        make = ClassifyPipeline.from_apr if name.endswith(".apr") else ClassifyPipeline.from_pretrained
        pipeline = make(world / name, config=run)
        pipeline.fit(world / "rows.csv")
        pipeline.save(tmp_path / name)
        found[name] = pipeline.predict_proba(TEXTS)
        assert pipeline.pooling == "mean"
        again = ClassifyPipeline.load(tmp_path / name)
        np.testing.assert_array_equal(again.predict_proba(TEXTS), found[name])
    np.testing.assert_array_equal(found["base.apr"], found["base"])
    for name in ("adapter_model.safetensors", "head.safetensors", "tokenizer.json"):
        assert (tmp_path / "base.apr" / name).read_bytes() == (tmp_path / "base" / name).read_bytes(), name
    record = read_record(tmp_path / "base.apr")
    assert record.base_model == str(world / "base.apr")


def test_a_link_is_known_by_its_own_name(world: Path, tmp_path: Path) -> None:
    """Stores that keep files under their hashes give out links; what these lead to says neither kind nor tokeniser."""
    shutil.copyfile(world / "base.apr", tmp_path / "3f2a")
    (tmp_path / "names").mkdir()
    link = tmp_path / "names" / "m.apr"
    link.symlink_to(tmp_path / "3f2a")
    shutil.copyfile(world / "base.tokenizer.json", tmp_path / "names" / "m.tokenizer.json")
    source = resolve(str(link))
    assert source.weight_files() == (link,)
    assert source.sha256() == resolve(str(world / "base.apr")).sha256()
    assert isinstance(source.tokenizer_files(), TokenizerFiles)


def test_a_tokeniser_that_lies_there_is_not_written_over(world: Path, tmp_path: Path) -> None:
    other = tmp_path / "m.tokenizer.json"
    other.write_text("{}")
    with pytest.raises(ConfigError, match="already"):
        convert_to_apr(str(world / "base"), tmp_path / "m.apr")
    assert other.read_text() == "{}"
    assert not (tmp_path / "m.apr").exists()


def test_a_saved_classifier_refuses_another_file(world: Path, tmp_path: Path) -> None:
    shutil.copyfile(world / "base.apr", tmp_path / "m.apr")
    pipeline = ClassifyPipeline.from_apr(tmp_path / "m.apr", world / "base", settings(tmp_path / "m.apr", world))
    pipeline.fit(world / "rows.csv")
    pipeline.save(tmp_path / "saved")
    tensors = load_file(str(world / "base" / "model.safetensors"))
    tensors["embeddings.word_embeddings.weight"][0, 0] += 1
    shutil.copytree(world / "base", tmp_path / "other")
    save_file(tensors, str(tmp_path / "other" / "model.safetensors"), metadata={"format": "pt"})
    (tmp_path / "m.apr").unlink()
    with pytest.raises(ModelError, match="not a model directory"):
        ClassifyPipeline.load(tmp_path / "saved")
    convert_to_apr(str(tmp_path / "other"), tmp_path / "m.apr")
    with pytest.raises(ModelError, match="not the one that the classifier was trained on"):
        ClassifyPipeline.load(tmp_path / "saved")
    moved = ClassifyPipeline.load(tmp_path / "saved", base=str(world / "base.apr"))
    np.testing.assert_array_equal(moved.predict_proba(TEXTS), pipeline.predict_proba(TEXTS))


def test_a_run_of_the_command_on_a_file(world: Path, tmp_path: Path) -> None:
    """With its sketch, its plan and its report."""
    for name in ("base", "base.apr"):
        list(job.train(job_settings(world / name, world / "rows.csv", epochs=1), tmp_path / name))
    ours, theirs = (model_bytes(tmp_path / name / "model") for name in ("base.apr", "base"))
    differing = [name for name in ours if ours[name] != theirs[name]]
    # The base model's name and hash stand in the record and PEFT's file.
    assert set(differing) <= {"classifier.json", "adapter_config.json"}
    assert (tmp_path / "base.apr" / "evaluation" / "report.html").is_file()


def test_the_tokeniser_that_is_named_is_taken(world: Path, tmp_path: Path) -> None:
    shutil.copyfile(world / "base.apr", tmp_path / "m.apr")
    with pytest.raises(ModelError, match="no tokeniser for the model"):
        ClassifyPipeline.from_apr(tmp_path / "m.apr")
    wanted = ClassifyPipeline.from_apr(world / "base.apr").encoder.encode(TEXTS).token_ids
    for given in (world / "base", world / "base" / "tokenizer.json"):
        pipeline = ClassifyPipeline.from_apr(tmp_path / "m.apr", given)
        np.testing.assert_array_equal(pipeline.encoder.encode(TEXTS).token_ids, wanted)
    (tmp_path / "m.tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="no usable tokeniser") as caught:
        ClassifyPipeline.from_apr(tmp_path / "m.apr")
    assert caught.value.where == str(tmp_path / "m.tokenizer.json")


def test_what_is_no_such_file_is_refused(world: Path) -> None:
    for path in (world / "base", world / "gone.apr", world / "rows.csv"):
        with pytest.raises(ModelError, match="not an APR file"):
            ClassifyPipeline.from_apr(path)


def test_where_a_file_cannot_stand_for_a_directory(world: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not quantised into a directory"):
        quantize_model(str(world / "base.apr"), tmp_path / "low")
    pipeline = ClassifyPipeline.from_apr(world / "base.apr", config=settings(world / "base.apr", world))
    pipeline.fit(world / "rows.csv")
    pipeline.save(tmp_path / "saved")
    with pytest.raises(ModelError, match="PEFT cannot load"):
        export_classifier(tmp_path / "saved", tmp_path / "peft", format="peft")
    exported = export_classifier(tmp_path / "saved", tmp_path / "merged", format="merged")
    assert exported.directory.is_dir()


# Converting and looking


def test_there_and_back_is_the_same_directory(world: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    result = convert_to_directory(world / "base.apr", tmp_path / "back", progress=lambda *told: seen.append(told))
    before, after = (load_file(str(folder / "model.safetensors")) for folder in (world / "base", tmp_path / "back"))
    assert set(before) == set(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    for name in ("config.json", "1_Pooling/config.json", "tokenizer.json", "tokenizer_config.json"):
        ours, theirs = (json.loads((folder / name).read_text()) for folder in (tmp_path / "back", world / "base"))
        assert ours == theirs, name
    assert (result.lossy, result.notes, result.tensors) == ((), (), len(before))
    assert {name for name, _, _ in seen} == set(before)
    assert seen[-1][1:] == (len(before), len(before))
    convert_to_apr(str(tmp_path / "back"), tmp_path / "again.apr")
    assert (tmp_path / "again.apr").read_bytes() == (world / "base.apr").read_bytes()
    assert not list(tmp_path.glob("*.partial"))


def test_nothing_is_written_over(world: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="something already"):
        convert_to_apr(str(world / "base"), world / "base.apr")
    with pytest.raises(ConfigError, match="something already"):
        convert_to_directory(world / "base.apr", world / "base")
    with pytest.raises(ConfigError, match="an APR file already"):
        convert_to_apr(str(world / "base.apr"), tmp_path / "b.apr")
    with pytest.raises(ConfigError, match="not the name of an APR file"):
        convert_to_apr(str(world / "base"), tmp_path / "b")
    with pytest.raises(ConfigError, match="an unknown type"):
        convert_to_apr(str(world / "base"), tmp_path / "b.apr", "q4_k")
    assert list(tmp_path.iterdir()) == []


def test_few_bits_are_written_as_what_they_stand_for(world: Path, tmp_path: Path) -> None:
    convert_to_apr(str(world / "base"), tmp_path / "m.apr", "aprq4")
    result = convert_to_directory(tmp_path / "m.apr", tmp_path / "back")
    assert result.notes == ("AprQ4 is written as the fp32 numbers that it stands for",)
    file = open_apr(tmp_path / "m.apr")
    for name, tensor in load_file(str(tmp_path / "back" / "model.safetensors")).items():
        assert torch.equal(tensor, file.read(name)), name


def test_a_failure_half_way_leaves_nothing(world: Path, tmp_path: Path) -> None:
    def failing(name: str, number: int, count: int) -> None:
        if number == 5:
            raise KeyboardInterrupt

    for convert in (
        lambda: convert_to_apr(str(world / "base"), tmp_path / "m.apr", progress=failing),
        lambda: convert_to_directory(world / "base.apr", tmp_path / "back", progress=failing),
    ):
        with pytest.raises(KeyboardInterrupt):
            convert()
        assert list(tmp_path.iterdir()) == []


def test_looking_at_files_and_folders(world: Path, tmp_path: Path) -> None:
    tensors = load_file(str(world / "base" / "model.safetensors"))
    folder, file = inspect(world / "base", verify=True), inspect(world / "base.apr", verify=True)
    for found in (folder, file, inspect(world / "base" / "model.safetensors")):
        assert found.num_tensors == len(tensors)
        assert found.num_numbers == sum(tensor.numel() for tensor in tensors.values())
        assert found.bytes_by_type == {"F32": sum(tensor.nbytes for tensor in tensors.values())}
    assert (folder.kind, file.kind) == ("base model", "base model")
    assert folder.settings is not None
    assert folder.settings["model_type"] == file.files[0].metadata["architecture"] == "bert"
    assert file.files[0].checksums["file"] == "right"
    assert inspect(world / "base.apr").files[0].checksums["file"] == "not computed"
    json.dumps(file.as_dict())
    raw = bytearray((world / "base.apr").read_bytes())
    raw[-5] ^= 1
    (tmp_path / "m.apr").write_bytes(bytes(raw))
    inspect(tmp_path / "m.apr")
    with pytest.raises(ModelError, match="checksum"):
        inspect(tmp_path / "m.apr", verify=True)
    for path in (world / "rows.csv", world / "gone"):
        with pytest.raises(ModelError, match="not a model file"):
            inspect(path)
    with pytest.raises(ModelError, match="not a model folder"):
        inspect(tmp_path)


def test_looking_at_a_classifier(world: Path, tmp_path: Path) -> None:
    pipeline = ClassifyPipeline.from_pretrained(world / "base", settings(world / "base", world))
    pipeline.fit(world / "rows.csv")
    pipeline.save(tmp_path / "run" / "model")
    for path in (tmp_path / "run", tmp_path / "run" / "model"):
        found = inspect(path)
        assert found.kind == "saved classifier"
        assert [file.path.name for file in found.files] == ["adapter_model.safetensors", "head.safetensors"]
        assert found.settings is not None
        assert found.settings["labels"] == ["beast", "fruit", "tool"]


def test_a_tokeniser_of_vocabulary_files_goes_along(world: Path, tmp_path: Path) -> None:
    """As older BERT directories have it."""
    base = tmp_path / "base"
    shutil.copytree(world / "base", base)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (base / name).unlink()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted({word for text in TEXTS for word in text.split()})]
    (base / "vocab.txt").write_text("\n".join(words) + "\n")
    convert_to_apr(str(base), tmp_path / "m.apr")
    encoded = ClassifyPipeline.from_apr(tmp_path / "m.apr").encoder.encode(TEXTS)
    wanted = ClassifyPipeline.from_pretrained(base).encoder.encode(TEXTS)
    np.testing.assert_array_equal(encoded.token_ids, wanted.token_ids)
    (base / "vocab.txt").unlink()
    result = convert_to_apr(str(base), tmp_path / "none.apr")
    assert len(result.notes) == 1
    assert "tokeniser" in result.notes[0]
    assert not (tmp_path / "none.tokenizer.json").exists()
