"""The rules of the contract apr-checkpoint-v1, each by its number, broken one at a time.

Some are tested elsewhere: 007 to 009, 011 and 015 with the writer, 012 with safetensors files, 013 and 014 with base
models, 017 with the golden file, 018 with PEFT's names. 005 and 006 are about resuming a training from such a file,
which ours are not resumed from; 010 is about what a trainer chooses, and the writer is told.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from qlassify.errors import ModelError
from qlassify.formats.apr import open_apr
from qlassify.formats.apr_checkpoint import Checkpoint, inference_names, read_checkpoint
from qlassify.formats.apr_metadata import AprMetadata
from qlassify.formats.apr_writer import AprTensor, write_apr

SCHEMA = {"__checkpoint__.schema_version": 1}
ADAPTER_SAYS = SCHEMA | {
    "__checkpoint__.type": "adapter", "rank": 2, "alpha": 4.0, "target_modules": ["q_proj", "v_proj"],
}  # fmt: skip
PAIRS = {
    f"lora.{layer}.{target}.lora_{half}": (2, 6) if half == "a" else (5, 2)
    for layer in range(3)
    for target in ("q_proj", "v_proj")
    for half in "ab"
}
ADAPTER = PAIRS | {"classifier.weight": (3, 6), "classifier.bias": (3,)}
TRAINING_SAYS = SCHEMA | {
    "__checkpoint__.type": "training",
    "__training__.epoch": 0, "__training__.step": 7, "__training__.scheduler": {"kind": "linear"},
}  # fmt: skip
TRAINING = ADAPTER | {
    f"__training__.optim.{name}.{moment}": shape
    for name, shape in ADAPTER.items()
    for moment in ("exp_avg", "exp_avg_sq")
}
Shapes = dict[str, tuple[int, ...]]


def write(path: Path, shapes: Shapes, said: dict[str, Any]) -> Path:
    write_apr(path, {name: AprTensor.of(torch.ones(shape)) for name, shape in shapes.items()}, AprMetadata.of(said))
    return path


def without(mapping: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in mapping.items() if key != name}


def refused(path: Path, shapes: Shapes, said: dict[str, Any], number: str) -> None:
    """On writing under the name with the rule; and on reading, if somebody wrote it all the same."""
    with pytest.raises(ModelError, match=f"F-CKPT-{number}"):
        write(path, shapes, said)
    assert not path.exists()
    with pytest.raises(ModelError, match=f"F-CKPT-{number}"):
        read_checkpoint(open_apr(write(path.with_name("free.apr"), shapes, said)))


def test_whole_checkpoints_are_written_and_read(tmp_path: Path) -> None:
    adapter = open_apr(write(tmp_path / "m.adapter.apr", ADAPTER, ADAPTER_SAYS))
    training = open_apr(write(tmp_path / "m.ckpt.apr", TRAINING, TRAINING_SAYS))
    assert read_checkpoint(adapter) == Checkpoint("adapter", 1)
    assert read_checkpoint(training) == Checkpoint("training", 1)
    flat = ADAPTER | {"classifier.weight": (18,)}
    assert read_checkpoint(open_apr(write(tmp_path / "flat.adapter.apr", flat, ADAPTER_SAYS))).type == "adapter"


def test_a_base_model_has_no_such_rules(tmp_path: Path) -> None:
    write(tmp_path / "m.apr", {"a": (2,)}, {})


@pytest.mark.parametrize("name", sorted(ADAPTER))
def test_fckpt_001_an_adapter_is_whole(name: str, tmp_path: Path) -> None:
    refused(tmp_path / "m.adapter.apr", without(ADAPTER, name), ADAPTER_SAYS, "001")


@pytest.mark.parametrize("layer", range(3))
def test_fckpt_001_every_layer_has_every_target(layer: int, tmp_path: Path) -> None:
    """A whole pair is missing: two per layer and target are counted, not only their being two."""
    shapes = {name: shape for name, shape in ADAPTER.items() if not name.startswith(f"lora.{layer}.q_proj")}
    refused(tmp_path / "m.adapter.apr", shapes, ADAPTER_SAYS, "001")


@pytest.mark.parametrize("key", ["rank", "alpha", "target_modules"])
def test_fckpt_001_an_adapter_says_what_it_is(key: str, tmp_path: Path) -> None:
    refused(tmp_path / "m.adapter.apr", ADAPTER, without(ADAPTER_SAYS, key), "001")
    other = {"rank": "2", "alpha": None, "target_modules": ["q_proj", "k_proj"]}
    refused(tmp_path / "m.adapter.apr", ADAPTER, ADAPTER_SAYS | {key: other[key]}, "001")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("schema_version", None), ("schema_version", "1"), ("schema_version", True), ("schema_version", 0),
        ("schema_version", 2), ("type", None), ("type", "model"), ("type", "training"), ("type", 1),
    ],
)  # fmt: skip
def test_fckpt_002_schema_and_type(key: str, value: object, tmp_path: Path) -> None:
    said = ADAPTER_SAYS | {f"__checkpoint__.{key}": value}
    with pytest.raises(ModelError, match="F-CKPT-002"):
        write(tmp_path / "m.adapter.apr", ADAPTER, said)
    if value != "training":  # which, without the name, is another kind of file and breaks another rule
        refused(tmp_path / "m.adapter.apr", ADAPTER, said, "002")


def test_fckpt_003_an_adapter_holds_nothing_of_the_training(tmp_path: Path) -> None:
    refused(tmp_path / "m.adapter.apr", ADAPTER | {"__training__.optim.x.exp_avg": (1,)}, ADAPTER_SAYS, "003")
    refused(tmp_path / "m.adapter.apr", ADAPTER, ADAPTER_SAYS | {"__training__.epoch": 1}, "003")


@pytest.mark.parametrize("key", ["epoch", "step", "scheduler"])
def test_fckpt_004_a_training_says_where_it_stands(key: str, tmp_path: Path) -> None:
    refused(tmp_path / "m.ckpt.apr", TRAINING, without(TRAINING_SAYS, f"__training__.{key}"), "004")


@pytest.mark.parametrize("moment", ["exp_avg", "exp_avg_sq"])
def test_fckpt_004_a_training_has_both_moments_of_everything(moment: str, tmp_path: Path) -> None:
    name = f"__training__.optim.classifier.bias.{moment}"
    refused(tmp_path / "m.ckpt.apr", without(TRAINING, name), TRAINING_SAYS, "004")
    refused(tmp_path / "m.ckpt.apr", TRAINING | {name: (4,)}, TRAINING_SAYS, "004")


@pytest.mark.parametrize("name", ["classifier.bias", "lora.1.q_proj.lora_a", "lora.2.v_proj.lora_b"])
def test_fckpt_008_shapes_agree(name: str, tmp_path: Path) -> None:
    shape = {"classifier.bias": (4,), "lora.1.q_proj.lora_a": (3, 6), "lora.2.v_proj.lora_b": (5, 3)}[name]
    refused(tmp_path / "m.adapter.apr", ADAPTER | {name: shape}, ADAPTER_SAYS, "008")


def test_fckpt_016_who_predicts_sees_nothing_of_the_training() -> None:
    assert inference_names(TRAINING) == list(ADAPTER)
