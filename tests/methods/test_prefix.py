"""Prefix tuning: what a prefix is, where it stands, what is saved of it, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from qlassify import ClassifyPipeline, RunConfig
from qlassify.config.method import LoraConfig, PrefixConfig, positions_before_text
from qlassify.data.labels import LabelMap
from qlassify.errors import ConfigError, ModelError
from qlassify.methods import prefix
from qlassify.methods.inject import attach
from qlassify.methods.state import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    load_adapter,
    read_adapter_config,
    read_tensors,
    save_adapter,
    write_tensors,
)
from qlassify.models.backbone import Backbone, load_backbone
from qlassify.models.packed_layout import PackedLayout
from tiny_jobs import save_tiny_base
from tiny_models import FAMILIES, random_texts, save_tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")

PACKED = [name for name, family in FAMILIES.items() if family.packed]
# Decoders whose every layer sees the whole text: the beginning of a text is then a prefix of its end.
UNWINDOWED = ("gpt2", "llama", "qwen2", "qwen3", "phi4")


def hidden(backbone: Backbone, rows: list[Tensor]) -> Tensor:
    positions = torch.cat([torch.arange(len(row)) for row in rows])
    output: Tensor = backbone(torch.cat(rows), positions, None, PackedLayout(np.array([len(row) for row in rows])))
    return output


def texts(name: str, lengths: tuple[int, ...]) -> list[Tensor]:
    return list(torch.from_numpy(random_texts(lengths, FAMILIES[name], seed=1).token_ids).long().split(lengths))


# What it computes


@torch.no_grad()
@pytest.mark.parametrize("name", UNWINDOWED)
def test_a_beginning_put_into_the_prefix_gives_the_hidden_states_of_the_end(
    name: str, tiny_directories: dict[str, Path]
) -> None:
    """In a decoder, keys and values of a text's beginning do not depend on its end, and positions run on behind it."""
    beginning, one_end, other_end = texts(name, (5, 9, 3))
    backbone = load_backbone(tiny_directories[name], torch.float64)
    wanted = [hidden(backbone, [torch.cat([beginning, end])])[5:] for end in (one_end, other_end)]
    peer = transformers.AutoModel.from_pretrained(tiny_directories[name], dtype=torch.float64).eval()
    cache = peer(input_ids=beginning[None], use_cache=True).past_key_values
    attachment = attach(backbone.model, PrefixConfig(num_virtual_tokens=5), seed=0)
    for layer, cached in zip(attachment.layers.values(), cache.layers, strict=True):
        parameters = layer.trainable()
        parameters["prefix_key"].copy_(cached.keys[0].transpose(0, 1))
        parameters["prefix_value"].copy_(cached.values[0].transpose(0, 1))
    # The same products in float64 in another order, through four layers; rotary tables are fp32 on both sides.
    torch.testing.assert_close(hidden(backbone, [one_end, other_end]), torch.cat(wanted), rtol=1e-9, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("name", PACKED)
def test_a_text_is_the_same_alone_and_among_others(name: str, tiny_directories: dict[str, Path]) -> None:
    backbone = load_backbone(tiny_directories[name], torch.float64)
    attach(backbone.model, PrefixConfig(num_virtual_tokens=3), seed=0)
    rows = texts(name, (40, 9, 1, 30))
    alone = torch.cat([hidden(backbone, [row]) for row in rows])
    # Products of another shape add in another order: float64 rounding through four layers.
    torch.testing.assert_close(hidden(backbone, rows), alone, rtol=1e-9, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("name", PACKED)
def test_each_layer_has_a_prefix_that_matters(name: str, tiny_directories: dict[str, Path]) -> None:
    backbone = load_backbone(tiny_directories[name])
    attachment = attach(backbone.model, PrefixConfig(num_virtual_tokens=3), seed=0)
    rows = texts(name, (30,))
    before = hidden(backbone, rows)
    assert len(attachment.layers) == 4
    for path, parameter in attachment.parameters().items():
        parameter.add_(1)
        # Also the last tokens of a text far longer than any window see it.
        assert not torch.equal(hidden(backbone, rows)[-1], before[-1]), path
        parameter.sub_(1)


def test_the_wrapped_modules_keep_their_dropout_asleep(tiny_directories: dict[str, Path]) -> None:
    backbone = load_backbone(tiny_directories["bert"])
    attachment = attach(backbone.model, PrefixConfig(num_virtual_tokens=3), seed=0)
    rows = texts("bert", (9,))
    evaluating = hidden(backbone.eval(), rows)
    assert torch.equal(hidden(backbone.train(), rows), evaluating)
    assert all(layer.training and not layer.base.training for layer in attachment.layers.values())


def test_a_wrapped_module_still_answers_for_itself(tiny_directories: dict[str, Path]) -> None:
    backbone = load_backbone(tiny_directories["qwen2"])
    layer = next(iter(attach(backbone.model, PrefixConfig(), seed=0).layers.values()))
    assert layer.head_dim == layer.base.head_dim
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = layer.no_such_thing


def test_what_a_layer_draws_does_not_depend_on_the_others(tmp_path: Path) -> None:
    """Nor do two layers, or keys and values, get the same numbers."""
    vectors = []
    for layers in (2, 3):
        folder = save_tiny_model("bert", tmp_path / str(layers), num_hidden_layers=layers)
        attachment = attach(load_backbone(folder).model, PrefixConfig(num_virtual_tokens=3), seed=5)
        vectors.append([parameter.detach() for parameter in attachment.parameters().values()])
    assert all(torch.equal(few, many) for few, many in zip(vectors[0], vectors[1][:4], strict=True))
    assert len({tuple(vector.flatten().tolist()) for vector in vectors[1]}) == 6


# Positions


def test_positions_and_room(tiny_directories: dict[str, Path], tmp_path: Path) -> None:
    backbone = load_backbone(save_tiny_model("bert", tmp_path, max_position_embeddings=20))
    assert (backbone.position_shift, backbone.longest_text(512), backbone.longest_text(7)) == (0, 20, 7)
    assert (backbone.longest_text(512, behind=16), backbone.longest_text(4, behind=16)) == (4, 4)
    with pytest.raises(ConfigError, match=r"too few of the model's positions.*17.*at most 16"):
        backbone.longest_text(512, behind=17)
    attachment = attach(backbone.model, PrefixConfig(num_virtual_tokens=6), seed=0)
    assert backbone.position_shift == 6
    assert torch.isfinite(hidden(backbone, texts("bert", (14, 3)))).all()
    attachment.detach()
    assert backbone.position_shift == 0
    unbounded = load_backbone(tiny_directories["deberta"])
    assert unbounded.position_shift == 0


def test_texts_are_cut_to_what_the_prefix_leaves(tmp_path: Path) -> None:
    base = save_tiny_base(tmp_path / "base")  # 64 positions
    run = RunConfig.parse({"model": {"base": str(base), "precision": "fp32", "device": "cpu"}})
    prefixed = run.replace(method=PrefixConfig(num_virtual_tokens=20))
    pipeline = ClassifyPipeline.open(str(base), prefixed)
    assert pipeline.encoder.max_length == 44
    pipeline.prepare(LabelMap(("a", "b"), multi_label=False))
    assert pipeline.predict_proba(["dog " * 100]).shape == (1, 2)
    # Opened for a method without a prefix, the tokeniser makes texts that would not fit.
    pipeline = ClassifyPipeline.open(str(base), run)
    with pytest.raises(ConfigError, match=r"no positions for texts that long.*64.*at most 44"):
        pipeline.prepare(LabelMap(("a", "b"), multi_label=False), prefixed)


@torch.no_grad()
def test_positions_can_stay(tiny_directories: dict[str, Path]) -> None:
    """Moved by hand, they give what the shift gives."""
    rows = texts("bert", (9, 4))
    found = {}
    for shift in (True, False):
        backbone = load_backbone(tiny_directories["bert"])
        attachment = attach(backbone.model, PrefixConfig(num_virtual_tokens=3, shift_positions=shift), seed=0)
        assert backbone.position_shift == positions_before_text(attachment.config) == 3 * shift
        found[shift] = hidden(backbone, rows)
    positions = torch.cat([torch.arange(len(row)) for row in rows])
    moved = backbone(torch.cat(rows), positions + 3, None, PackedLayout(np.array([9, 4])))
    assert torch.equal(moved, found[True])
    assert not torch.allclose(found[True], found[False])


# Files


def save(directory: Path, folder: Path, **settings: Any) -> Tensor:
    attachment = attach(load_backbone(directory).model, PrefixConfig.parse(settings), seed=2)
    folder.mkdir(exist_ok=True)
    save_adapter(attachment, folder, base_model="tiny")
    return prefix.to_tensor(attachment.layers)


@pytest.mark.parametrize("reparametrize", [False, True])
def test_a_prefix_that_leaves_positions_is_not_called_pefts(
    reparametrize: bool, tiny_directories: dict[str, Path], tmp_path: Path
) -> None:
    saved = save(
        tiny_directories["bert"],
        tmp_path,
        num_virtual_tokens=3,
        reparametrize=reparametrize,
        shift_positions=False,
    )
    assert "peft_type" not in json.loads((tmp_path / CONFIG_FILE).read_text())
    config = read_adapter_config(tmp_path)
    assert config == PrefixConfig(num_virtual_tokens=3, shift_positions=False)
    attachment = attach(load_backbone(tiny_directories["bert"]).model, config, seed=0)
    load_adapter(attachment, tmp_path)
    assert torch.equal(prefix.to_tensor(attachment.layers), saved)


@pytest.mark.parametrize("reparametrize", [False, True])
def test_only_the_vectors_are_saved(reparametrize: bool, tiny_directories: dict[str, Path], tmp_path: Path) -> None:
    saved = save(tiny_directories["qwen2"], tmp_path, num_virtual_tokens=3, reparametrize=reparametrize)
    tensors = read_tensors(tmp_path / WEIGHTS_FILE)
    assert list(tensors) == ["prompt_embeddings"]
    assert torch.equal(tensors["prompt_embeddings"], saved)
    assert saved.shape == (3, 4 * 2 * 2 * 16)  # layers, key and value, heads, width
    assert read_adapter_config(tmp_path) == PrefixConfig(num_virtual_tokens=3)


def test_vectors_do_not_go_into_a_network(tiny_directories: dict[str, Path], tmp_path: Path) -> None:
    save(tiny_directories["bert"], tmp_path, num_virtual_tokens=3)
    config = PrefixConfig(num_virtual_tokens=3, reparametrize=True)
    attachment = attach(load_backbone(tiny_directories["bert"]).model, config, seed=0)
    with pytest.raises(ModelError, match="cannot be put into the network"):
        load_adapter(attachment, tmp_path)


def test_another_models_prefix_is_refused(tiny_directories: dict[str, Path], tmp_path: Path) -> None:
    save(tiny_directories["qwen2"], tmp_path, num_virtual_tokens=3)
    attachment = attach(load_backbone(tiny_directories["bert"]).model, read_adapter_config(tmp_path), seed=0)
    with pytest.raises(ModelError, match=r"prompt_embeddings is \(3, 256\), not \(3, 512\)"):
        load_adapter(attachment, tmp_path)


def test_further_tensors_are_named(tiny_directories: dict[str, Path], tmp_path: Path) -> None:
    save(tiny_directories["bert"], tmp_path, num_virtual_tokens=3)
    tensors = read_tensors(tmp_path / WEIGHTS_FILE)
    write_tensors(tmp_path / WEIGHTS_FILE, tensors | {"extra": torch.zeros(1)})
    attachment = attach(load_backbone(tiny_directories["bert"]).model, read_adapter_config(tmp_path), seed=0)
    with pytest.raises(ModelError, match="unknown extra"):
        load_adapter(attachment, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_transformer_submodules": 2}, "encoder and a decoder"),
        ({"num_virtual_tokens": 0}, "num_virtual_tokens"),
        ({"num_virtual_tokens": None}, "num_virtual_tokens"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(
    changes: dict[str, Any], message: str, tiny_directories: dict[str, Path], tmp_path: Path
) -> None:
    save(tiny_directories["bert"], tmp_path, num_virtual_tokens=3)
    settings = json.loads((tmp_path / CONFIG_FILE).read_text()) | changes
    (tmp_path / CONFIG_FILE).write_text(json.dumps(settings))
    with pytest.raises(ModelError, match=message):
        read_adapter_config(tmp_path)


# What is refused


def test_an_architecture_that_runs_padded_is_refused(tiny_directories: dict[str, Path]) -> None:
    backbone = load_backbone(tiny_directories["deberta"])
    with pytest.raises(ConfigError, match=r"packed texts.*DebertaV2Model.*lora"):
        attach(backbone.model, PrefixConfig(), seed=0)
    attach(backbone.model, LoraConfig(), seed=0)  # nothing was left behind


def test_a_model_that_no_backbone_prepared_is_refused(tiny_directories: dict[str, Path]) -> None:
    """Its attention would take the prefix as one of the arguments that it need not know."""
    model = transformers.AutoModel.from_pretrained(tiny_directories["llama"])
    with pytest.raises(ConfigError, match="packed texts"):
        attach(model, PrefixConfig(), seed=0)


def test_layers_of_several_shapes_are_refused(tiny_directories: dict[str, Path]) -> None:
    backbone = load_backbone(tiny_directories["llama"])
    last = backbone.model.get_submodule("layers.3.self_attn")
    setattr(last, "key_value_shapes", (torch.Size((1, 16)), torch.Size((1, 16))))  # noqa: B010
    with pytest.raises(ConfigError, match="1 heads of 16, 2 heads of 16"):
        attach(backbone.model, PrefixConfig(), seed=0)
