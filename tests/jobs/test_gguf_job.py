"""Classifiers on base models that are GGUF files: those on the directory, bit for bit, and where they cannot go."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from qlassify import ClassifyPipeline, RunConfig, job
from qlassify.artifact import read_record
from qlassify.cli.app import app
from qlassify.conversion import convert_to_apr, convert_to_directory
from qlassify.errors import ConfigError, ModelError
from qlassify.export.exporting import export_classifier
from qlassify.formats.apr import open_apr
from qlassify.inspection import inspect
from qlassify.models.backbone import load_backbone
from qlassify.models.gguf_base import open_gguf_base
from qlassify.quantization import quantize_model
from reference.quant import same_bits
from tiny_gguf import write_gguf
from tiny_jobs import job_settings, make_rows, model_bytes, save_tiny_base, save_tokenizer, write_table
from tiny_models import save_tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = [text for text, _ in make_rows(24, seed=9)]
ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}, "rope_scaling": None, "dtype": "float32"}
FAMILIES = ("bert", "llama", "qwen2")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with directories of models, ``NAME.gguf`` and its tokeniser for each, and training rows."""
    folder = tmp_path_factory.mktemp("gguf")
    save_tiny_base(folder / "bert")
    for family in ("llama", "qwen2"):
        changes = {"num_hidden_layers": 2, "max_position_embeddings": 64, "vocab_size": 200} | ROPE
        if family == "qwen2":
            changes |= {"use_sliding_window": False, "sliding_window": None}
        save_tiny_model(family, folder / family, **changes)
        save_tokenizer(folder / family)
        settings = json.loads((folder / family / "tokenizer_config.json").read_text())
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
        settings["model_input_names"] = ["input_ids", "attention_mask"]
        (folder / family / "tokenizer_config.json").write_text(json.dumps(settings))
    for family in FAMILIES:
        write_gguf(folder / family, folder / f"{family}.gguf")
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(folder / family / name, folder / f"{family}.{name}")
    write_table(folder / "rows.csv", ("text", "label"), make_rows(48))
    return folder


def settings(base: Path, world: Path, **sections: Any) -> RunConfig:
    values = job_settings(base, world / "rows.csv", epochs=2) | sections
    values.pop("data")
    return RunConfig.parse(values)


FRESH = """
import json, sys
import torch
torch.set_num_threads(1)
from qlassify import ClassifyPipeline
print(json.dumps(ClassifyPipeline.load(sys.argv[1]).predict_proba(json.loads(sys.argv[2])).tolist()))
"""


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("quant", [None, {}], ids=["lora", "qlora"])
def test_training_is_bitwise_that_on_the_directory(quant: Any, family: str, world: Path, tmp_path: Path) -> None:
    found: dict[str, Any] = {}
    for name in (family, f"{family}.gguf"):
        run = settings(world / name, world, **({} if quant is None else {"quant": quant}))
        make = ClassifyPipeline.from_gguf if name.endswith(".gguf") else ClassifyPipeline.from_pretrained
        pipeline = make(world / name, config=run)
        pipeline.fit(world / "rows.csv")
        pipeline.save(tmp_path / name)
        found[name] = pipeline.predict_proba(TEXTS)
    file = tmp_path / f"{family}.gguf"
    np.testing.assert_array_equal(found[f"{family}.gguf"], found[family])
    for name in ("adapter_model.safetensors", "head.safetensors"):
        assert (file / name).read_bytes() == (tmp_path / family / name).read_bytes(), name
    assert read_record(file).base_model == str(world / f"{family}.gguf")
    command = [sys.executable, "-c", FRESH, str(file), json.dumps(TEXTS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.array(json.loads(done.stdout)), found[f"{family}.gguf"])


def test_a_saved_classifier_refuses_another_file(world: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    shutil.copyfile(world / "qwen2.gguf", path)
    pipeline = ClassifyPipeline.from_gguf(path, world / "qwen2", config=settings(path, world))
    pipeline.fit(world / "rows.csv")
    pipeline.save(tmp_path / "saved")
    write_gguf(world / "qwen2", path, kind="Q8_0")
    with pytest.raises(ModelError, match="not the one that the classifier was trained on"):
        ClassifyPipeline.load(tmp_path / "saved")
    moved = ClassifyPipeline.load(tmp_path / "saved", base=str(world / "qwen2.gguf"))
    np.testing.assert_array_equal(moved.predict_proba(TEXTS), pipeline.predict_proba(TEXTS))


def test_a_run_of_the_command_on_a_file_in_few_bits(world: Path, tmp_path: Path) -> None:
    """With its sketch, its plan and its report; the weights go from Q4_0 straight into NF4."""
    path = write_gguf(world / "qwen2", tmp_path / "m.gguf", kind="Q4_0")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(world / f"qwen2.{name}", tmp_path / f"m.{name}")
    list(job.train(job_settings(path, world / "rows.csv", epochs=1) | {"quant": {}}, tmp_path / "run"))
    assert (tmp_path / "run" / "evaluation" / "report.html").is_file()
    assert model_bytes(tmp_path / "run" / "model")["head.safetensors"]


def test_what_is_no_such_file_is_refused(world: Path) -> None:
    for path in (world / "bert", world / "gone.gguf", world / "rows.csv"):
        with pytest.raises(ModelError, match="not a GGUF file"):
            ClassifyPipeline.from_gguf(path)


def test_where_a_file_cannot_stand_for_a_directory(world: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not quantised into a directory"):
        quantize_model(str(world / "bert.gguf"), tmp_path / "low")
    pipeline = ClassifyPipeline.from_gguf(world / "bert.gguf", config=settings(world / "bert.gguf", world))
    pipeline.fit(world / "rows.csv")
    pipeline.save(tmp_path / "saved")
    with pytest.raises(ModelError, match="PEFT cannot load"):
        export_classifier(tmp_path / "saved", tmp_path / "peft", format="peft")
    exported = export_classifier(tmp_path / "saved", tmp_path / "merged", format="merged")
    assert exported.directory.is_dir()


# Converting and looking


@pytest.mark.parametrize("kind", ["F32", "Q5_1"])
def test_a_file_becomes_a_directory_or_an_apr_file(kind: str, world: Path, tmp_path: Path) -> None:
    path = write_gguf(
        world / "llama", tmp_path / "m.gguf", kind=kind, more={"general.name": "m"}, said={"pooling_type": 1}
    )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(world / f"llama.{name}", tmp_path / f"m.{name}")
    base = open_gguf_base(path)
    directory = convert_to_directory(path, tmp_path / "back")
    apr = convert_to_apr(str(path), tmp_path / "n.apr")
    decoded = () if kind == "F32" else (f"{kind} is written as the fp32 numbers that it stands for",)
    for result in (directory, apr):
        assert result.notes == (*decoded, "metadata without a place: general.name")
        assert (result.lossy, result.tensors) == ((), len(base.entries))
        assert result.source_bytes == sum(entry.nbytes for entry in base.entries.values())
    tensors, file = load_file(str(tmp_path / "back" / "model.safetensors")), open_apr(tmp_path / "n.apr")
    for name in base.entries:
        assert same_bits(tensors[name], base.read(name)), name
        assert same_bits(file.read(name), base.read(name)), name
    wanted = load_backbone(path).model.state_dict()
    for converted in (tmp_path / "back", tmp_path / "n.apr"):
        found = load_backbone(converted).model.state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
        pipeline = ClassifyPipeline.from_pretrained(converted)
        theirs = ClassifyPipeline.from_gguf(path)
        assert pipeline.pooling == theirs.pooling == "mean"
        np.testing.assert_array_equal(
            pipeline.encoder.encode(TEXTS).token_ids, theirs.encoder.encode(TEXTS).token_ids
        )  # fmt: skip


def test_a_file_without_a_tokeniser_is_converted_and_that_is_said(world: Path, tmp_path: Path) -> None:
    path = write_gguf(world / "llama", tmp_path / "m.gguf")
    for result in (convert_to_directory(path, tmp_path / "back"), convert_to_apr(str(path), tmp_path / "n.apr")):
        assert len(result.notes) == 1
        assert "no tokeniser for the model" in result.notes[0]
    assert not list(tmp_path.glob("**/*tokenizer*"))


def test_nothing_is_left_of_a_conversion_that_fails(world: Path, tmp_path: Path) -> None:
    """At a tensor in the middle, when some have been written."""
    wrong = {"blk.1.ffn_up.weight": np.full((96, 64), np.inf, np.float32)}
    path = write_gguf(world / "llama", tmp_path / "m.gguf", tensors=wrong)
    for convert in (
        lambda: convert_to_directory(path, tmp_path / "back"),
        lambda: convert_to_apr(str(path), tmp_path / "n.apr"),
    ):
        with pytest.raises(ModelError, match="not finite"):
            convert()
    assert [one.name for one in tmp_path.iterdir()] == ["m.gguf"]


def test_rounding_on_the_way_is_said(world: Path, tmp_path: Path) -> None:
    result = convert_to_apr(str(world / "llama.gguf"), tmp_path / "m.apr", "f16")
    assert len(result.lossy) == 15  # seven matrices in each of two layers, and the embeddings
    with pytest.raises(ConfigError, match="not an APR or GGUF file"):
        convert_to_directory(world / "rows.csv", tmp_path / "no")


def test_looking_at_a_file(world: Path, tmp_path: Path) -> None:
    path = write_gguf(world / "llama", tmp_path / "m.gguf", kind="Q8_0", more={"k": [f"{n}" for n in range(100)]})
    found = inspect(path, verify=True)
    entries = open_gguf_base(path).entries
    assert found.kind == "base model"
    assert found.num_tensors == len(entries)
    assert found.num_numbers == sum(int(np.prod(entry.shape)) for entry in entries.values())
    assert set(found.bytes_by_type) == {"Q8_0", "F32"}
    assert found.files[0].format == "GGUF 3"
    assert found.files[0].metadata["general.architecture"] == "llama"
    assert found.files[0].metadata["k"] == "100 strings"
    json.dumps(found.as_dict())
    assert inspect(path).files[0].checksums == {"sha256": "not computed"}


def test_the_commands(world: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    done = runner.invoke(app, ["inspect", str(world / "qwen2.gguf")])
    assert done.exit_code == 0, done.output
    assert "GGUF 3" in done.output
    assert "blk.1.attn_q.weight" in done.output
    done = runner.invoke(app, ["convert", str(world / "qwen2.gguf"), str(tmp_path / "m.apr"), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["lossy"] == []
    done = runner.invoke(app, ["convert", str(world / "qwen2.gguf"), str(tmp_path / "directory")])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "directory" / "tokenizer.json").is_file()
