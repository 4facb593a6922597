"""``qlassify quantize``: what it says, what it writes, and the sentences for what cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import Command

from qlassify.models.backbone import load_backbone
from qlassify.quant.linear import low_bit_layers

pytestmark = pytest.mark.usefixtures("one_thread")


def test_it_writes_a_base_model_that_trains(command: Command, tiny_base: Path, train_csv: Path, tmp_path: Path) -> None:
    done = command("quantize", tiny_base, tmp_path / "low")
    assert (done.code, done.err) == (0, "")
    assert "NF4 (groups of 64, double: 4.127 bits per weight)" in done.out
    assert "% of the weights' size" in done.out
    assert f"qlassify train DATA --base {tmp_path / 'low'}" in done.out
    done = command("train", train_csv, "--base", tmp_path / "low", "--epochs", 1, "--out", tmp_path / "run")
    assert done.code == 0, done.err
    assert "+ LoRA" in done.out
    assert "in NF4" in done.out
    assert "4.127 bits each" in done.out


def test_json_agrees_with_what_was_written(command: Command, tiny_base: Path, tmp_path: Path) -> None:
    done = command("quantize", tiny_base, tmp_path / "low", "--kind", "int8", "--group-size", 32, "--json")
    record = json.loads(done.out)
    backbone = load_backbone(tmp_path / "low")
    layers = low_bit_layers(backbone.model).values()
    assert record["layers"] == len(layers) > 0
    assert record["num_low_bit"] == sum(layer.in_features * layer.out_features for layer in layers)
    assert record["num_low_bit"] + record["num_other"] == backbone.num_parameters
    # The header and the rounding of its length come on top of the tensors.
    assert 0 < (tmp_path / "low" / "model.safetensors").stat().st_size - record["bytes"] < 20_000
    assert record["source_bytes"] == (tiny_base / "model.safetensors").stat().st_size
    # Half a step of 1/127 of the absmax at most; for normal weights about 0.4 % of their size with groups of 32.
    assert 0.002 < record["relative_error"] < 0.01
    assert backbone.quant is not None
    assert (backbone.quant.kind, backbone.quant.group_size, backbone.quant.double) == ("int8", 32, False)


def test_quiet_says_where(command: Command, tiny_base: Path, tmp_path: Path) -> None:
    assert command("quantize", tiny_base, tmp_path / "low", "--quiet").out == f"{tmp_path / 'low'}\n"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--kind", "nf5"), "kind"),
        (("--group-size", 0), "group_size"),
        (("--zero-point",), "zero_point"),
        (("--kind", "int4", "--zero-point", "--double"), "double"),
    ],
)
def test_a_format_that_cannot_be_is_one_sentence(
    command: Command, tiny_base: Path, tmp_path: Path, options: tuple[object, ...], sentence: str
) -> None:
    done = command("quantize", tiny_base, tmp_path / "low", *options)
    assert done.code == 2
    assert sentence in done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "low").exists()


def test_a_folder_that_is_not_empty_stays_as_it_was(command: Command, tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    done = command("quantize", tiny_base, tmp_path)
    assert done.code == 2
    assert "not empty" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_quantised_model_is_not_quantised_again(command: Command, tiny_base: Path, tmp_path: Path) -> None:
    assert command("quantize", tiny_base, tmp_path / "low").code == 0
    done = command("quantize", tmp_path / "low", tmp_path / "lower")
    assert done.code == 2
    assert "quantised already" in done.err


def test_a_model_that_is_nowhere_is_one_sentence(command: Command, tmp_path: Path) -> None:
    done = command("quantize", tmp_path / "nowhere", tmp_path / "low")
    assert done.code == 2
    assert "nowhere" in done.err
    assert "Traceback" not in done.err
