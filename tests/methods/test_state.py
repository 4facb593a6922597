"""Adapters on disk: bitwise round trips, strict loading, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from qlassify.config.method import LoraConfig
from qlassify.errors import ModelError
from qlassify.methods.inject import Attachment, attach
from qlassify.methods.peft_format import PREFIX
from qlassify.methods.state import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    copy_tensors,
    load_adapter,
    read_adapter_config,
    read_tensors,
    save_adapter,
)


def toy() -> nn.Module:
    model = nn.ModuleDict({name: nn.Linear(8, 6) for name in ("query", "key", "value")})
    model["inner"] = nn.ModuleDict({"query": nn.Linear(6, 8), "norm": nn.LayerNorm(8)})
    return model


def attached(config: LoraConfig, *, seed: int = 0) -> Attachment:
    """An attachment whose factors are all random."""
    attachment = attach(toy(), config, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in attachment.parameters().values():
            parameter.normal_(generator=generator)
    return attachment


def values(attachment: Attachment) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in attachment.parameters().items()}


def saved(directory: Path, config: LoraConfig | None = None) -> Attachment:
    attachment = attached(config or LoraConfig(rank=2))
    save_adapter(attachment, directory, base_model="org/model")
    return attachment


def edit_tensors(directory: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    path = directory / WEIGHTS_FILE
    tensors = load_file(str(path))
    change(tensors)
    save_file(tensors, str(path))


def edit_config(directory: Path, **changes: Any) -> None:
    path = directory / CONFIG_FILE
    settings = json.loads(path.read_text(encoding="utf-8")) | changes
    settings = {key: value for key, value in settings.items() if value is not ...}
    path.write_text(json.dumps(settings), encoding="utf-8")


# Round trips


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(rank=2),
        LoraConfig(rank=3, alpha=7.5, dropout=0.1, rslora=True),
        LoraConfig(rank=1, target_modules=("query",)),
        LoraConfig(rank=2, target_modules=("inner.query", "value")),
        LoraConfig(kind="dora", rank=2, rslora=True),
    ],
    ids=["all", "rslora", "ending", "path", "dora"],
)
def test_a_round_trip_is_bitwise(config: LoraConfig, tmp_path: Path) -> None:
    first = saved(tmp_path, config)
    found = read_adapter_config(tmp_path)
    assert (found.rank, found.alpha, found.dropout) == (config.rank, config.alpha, config.dropout)
    assert (found.rslora, found.scaling, found.dora) == (config.rslora, config.scaling, config.dora)
    second = attach(toy(), found, seed=99)
    assert list(second.layers) == list(first.layers)
    load_adapter(second, tmp_path)
    wanted = values(first)
    assert list(second.parameters()) == list(wanted)
    for name, parameter in second.parameters().items():
        assert torch.equal(parameter, wanted[name]), name
        assert parameter.requires_grad


def test_a_second_saving_writes_the_same_bytes(tmp_path: Path) -> None:
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    saved(folders[0])
    again = attach(toy(), read_adapter_config(folders[0]), seed=5)
    load_adapter(again, folders[0])
    save_adapter(again, folders[1], base_model="org/model")
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


def test_the_file_holds_the_adapter_and_nothing_else(tmp_path: Path) -> None:
    attachment = saved(tmp_path, LoraConfig(rank=2, target_modules=("query",)))
    assert set(read_tensors(tmp_path / WEIGHTS_FILE)) == {
        f"{PREFIX}{path}.lora_{factor}.weight" for path in ("query", "inner.query") for factor in "AB"
    }
    assert all(torch.equal(read_tensors(tmp_path / WEIGHTS_FILE)[PREFIX + n], p) for n, p in values(attachment).items())


def test_lengths_are_saved_with_dora_and_only_with_dora(tmp_path: Path) -> None:
    attachment = saved(tmp_path, LoraConfig(kind="dora", rank=2, target_modules=("query",)))
    endings = ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector")
    named = {f"{path}.{ending}" for path in ("query", "inner.query") for ending in endings}
    found = read_tensors(tmp_path / WEIGHTS_FILE)
    assert set(found) == {PREFIX + name for name in named}
    assert all(torch.equal(found[PREFIX + name], value) for name, value in values(attachment).items())
    assert found[PREFIX + "inner.query.lora_magnitude_vector"].shape == (8,)


def test_targets_are_endings_only_where_they_name_the_same_layers(tmp_path: Path) -> None:
    saved(tmp_path, LoraConfig(rank=2, target_modules=("query",)))
    assert json.loads((tmp_path / CONFIG_FILE).read_text())["target_modules"] == ["query"]
    saved(tmp_path, LoraConfig(rank=2, target_modules=("inner.query",)))
    assert json.loads((tmp_path / CONFIG_FILE).read_text())["target_modules"] == ["inner.query"]


# Strict loading


def without(name: str) -> Callable[[dict[str, Tensor]], None]:
    return lambda tensors: tensors.__delitem__(PREFIX + name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("query.lora_A.weight"), r"missing query\.lora_A\.weight"),
        (lambda tensors: tensors.update({PREFIX + "other.lora_A.weight": torch.zeros(2, 8)}), "unknown other.lora_A"),
        (
            lambda tensors: tensors.update({PREFIX + "query.lora_B.weight": torch.zeros(6, 3)}),
            r"query\.lora_B\.weight is \(6, 3\), not \(6, 2\)",
        ),
        (
            lambda tensors: tensors.update({PREFIX + "query.lora_B.weight": torch.zeros(2, 6)}),
            r"query\.lora_B\.weight is \(2, 6\), not \(6, 2\)",
        ),
        (
            lambda tensors: tensors.update({PREFIX + "query.lora_B.weight": torch.zeros(1, 1)}),
            r"query\.lora_B\.weight is \(1, 1\)",  # would broadcast
        ),
    ],
    ids=["missing", "unknown", "rank", "transposed", "broadcast"],
)
def test_every_difference_is_named_and_nothing_is_copied(
    change: Callable[[dict[str, Tensor]], None], message: str, tmp_path: Path
) -> None:
    saved(tmp_path)
    edit_tensors(tmp_path, change)
    target = attached(LoraConfig(rank=2), seed=7)
    before = values(target)
    with pytest.raises(ModelError, match=message):
        load_adapter(target, tmp_path)
    for name, parameter in target.parameters().items():
        assert torch.equal(parameter, before[name]), name


@pytest.mark.parametrize(
    ("kind", "other", "message"),
    [
        ("lora", "dora", r"missing query\.lora_magnitude_vector"),
        ("dora", "lora", r"unknown query\.lora_magnitude_vector"),
    ],
)
def test_lora_is_not_read_as_dora_nor_the_reverse(kind: str, other: str, message: str, tmp_path: Path) -> None:
    """A configuration that says the other kind than the tensors would give other logits."""
    saved(tmp_path, LoraConfig(kind=kind, rank=2))  # type: ignore[arg-type]
    edit_config(tmp_path, use_dora=other == "dora")
    target = attach(toy(), read_adapter_config(tmp_path), seed=7)
    assert target.config.kind == other
    with pytest.raises(ModelError, match=message):
        load_adapter(target, tmp_path)


def test_many_differences_are_counted(tmp_path: Path) -> None:
    saved(tmp_path, LoraConfig(rank=2))
    with pytest.raises(ModelError, match="; and 4 more"):
        load_adapter(attached(LoraConfig(rank=3)), tmp_path)


def test_a_tensor_keeps_the_parameters_type() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    copy_tensors({"weight": parameter}, {"weight": torch.ones(2, dtype=torch.bfloat16)}, "here")
    assert parameter.dtype == torch.float32
    assert torch.equal(parameter, torch.ones(2))


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "missing"])
def test_a_damaged_file_is_refused(damage: str, tmp_path: Path) -> None:
    target = saved(tmp_path)
    path = tmp_path / WEIGHTS_FILE
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"cut": path.read_bytes()[:-8], "empty": b"", "text": b"not a tensor file"}[damage])
    before = values(target)
    with pytest.raises(ModelError, match="cannot read the tensors") as caught:
        load_adapter(target, tmp_path)
    assert str(path) in str(caught.value)
    assert all(torch.equal(parameter, before[name]) for name, parameter in target.parameters().items())


# Configurations that are not ours


@pytest.mark.parametrize("text", ["{", None, "[]"])
def test_an_unreadable_configuration_is_refused(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / CONFIG_FILE).write_text(text, encoding="utf-8")
    with pytest.raises(ModelError, match=r"adapter_config\.json"):
        read_adapter_config(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"peft_type": "IA3"},
        {"peft_type": ...},
        # Each of these changes what the factors mean; read as LoRA they would give other logits, silently.
        {"alpha_pattern": {"query": 64}},
        {"init_lora_weights": "pissa"},
        # These cannot be read at all.
        {"r": ...},
        {"target_modules": ...},
        {"target_modules": ".*query"},
        {"lora_alpha": "many"},
    ],
    ids=lambda changes: " ".join(f"{key} {value}" for key, value in changes.items()).replace("Ellipsis", "absent"),
)
def test_a_configuration_that_would_be_misread_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    saved(tmp_path)
    edit_config(tmp_path, **changes)
    with pytest.raises(ModelError, match=r"adapter_config\.json"):
        read_adapter_config(tmp_path)


def test_what_peft_writes_for_plain_lora_is_accepted(tmp_path: Path) -> None:
    saved(tmp_path)
    edit_config(
        tmp_path,
        alpha_pattern={}, rank_pattern={}, use_dora=False, lora_bias=False, layer_replication=None, auto_mapping=None,
        exclude_modules=None, layers_pattern=None, layers_to_transform=None, revision=None, megatron_config=None,
        target_parameters=None, peft_version="0.18.0", init_lora_weights=True,
    )  # fmt: skip
    assert read_adapter_config(tmp_path).rank == 2
