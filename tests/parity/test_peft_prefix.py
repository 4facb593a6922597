"""Prefix tuning against PEFT on the same tiny models: hidden states, gradients, and files in both directions.

PEFT puts a prefix into the model's cache and runs padded; here it stands inside packed attention. Windows are made wide
enough not to bite: PEFT's prefix moves out of a sliding window as a text goes on, ours is always seen.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from torch import Tensor

from qlassify.config.method import PrefixConfig
from qlassify.methods import prefix
from qlassify.methods.inject import Attachment, attach
from qlassify.methods.state import CONFIG_FILE, load_adapter, read_adapter_config, save_adapter
from qlassify.models.backbone import Backbone, load_backbone
from qlassify.models.packed_layout import PackedLayout
from tiny_models import FAMILIES, random_texts, save_tiny_model

pytestmark = [
    pytest.mark.parity,
    pytest.mark.usefixtures("one_thread"),
    # PEFT 0.21 still asks a model of transformers 5 by an old name.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

# What PEFT 0.21 can do with transformers 5: not DistilBERT, ModernBERT and DeBERTa, as the last tests here hold.
NAMES = ("bert", "roberta", "gpt2", "llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3", "phi3", "phi4")
WINDOWED = ("mistral", "gemma2", "gemma3", "phi3")
TOKENS = 5
LENGTHS = (9, 4)
NEAR = {
    # The house tolerance for a small model against PEFT in fp32.
    torch.float32: {"rtol": 1e-5, "atol": 1e-4},
    # The same products in float64 in another order, through four layers.
    torch.float64: {"rtol": 1e-9, "atol": 1e-9},
}


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("prefix")
    return {
        name: save_tiny_model(name, root / name, **({"sliding_window": 64} if name in WINDOWED else {}))
        for name in (*NAMES, "distilbert", "modernbert")
    }


@pytest.fixture(params=NAMES)
def directory(request: pytest.FixtureRequest, directories: dict[str, Path]) -> Path:
    return directories[str(request.param)]


def base_model(directory: Path, dtype: torch.dtype = torch.float32) -> Any:
    # A pooler has no part in the hidden states, and qlassify never builds it.
    extra = {"add_pooling_layer": False} if directory.name in ("bert", "roberta") else {}
    # transformers' sdpa knows no soft cap, and its eager attention computes every softmax in fp32.
    kind = "eager" if directory.name == "gemma2" else "sdpa"
    model = transformers.AutoModel.from_pretrained(directory, dtype=dtype, attn_implementation=kind, **extra)
    return model.eval().requires_grad_(False)


def peer_of(directory: Path, dtype: torch.dtype, **settings: Any) -> Any:
    config = peft.PrefixTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=TOKENS, **settings)
    peer = peft.get_peft_model(base_model(directory, dtype), config, autocast_adapter_dtype=False).eval()
    peer.prompt_encoder.to(dtype)
    return peer


def texts(name: str) -> list[Tensor]:
    encoded = random_texts(LENGTHS, FAMILIES[name], seed=1)
    return list(torch.from_numpy(encoded.token_ids).long().split(LENGTHS))


def packed(backbone: Backbone, rows: list[Tensor]) -> Tensor:
    positions = torch.cat([torch.arange(len(row)) for row in rows])
    hidden: Tensor = backbone(torch.cat(rows), positions, None, PackedLayout(np.array([len(row) for row in rows])))
    return hidden


def alone(peer: Any, rows: list[Tensor]) -> Tensor:
    """Each text for itself and without padding, as PEFT computes it."""
    return torch.cat([peer(input_ids=row[None]).last_hidden_state[0] for row in rows])


def ours(directory: Path, dtype: torch.dtype, **settings: Any) -> tuple[Backbone, Attachment]:
    backbone = load_backbone(directory, dtype)
    return backbone, attach(backbone.model, PrefixConfig(num_virtual_tokens=TOKENS, **settings), seed=3)


def put(saved: Tensor, attachment: Attachment) -> None:
    """Vectors in PEFT's layout into ours."""
    with torch.no_grad():
        for name, value in prefix.from_tensors(attachment.layers, {prefix.TENSOR: saved}, "here").items():
            attachment.parameters()[name].copy_(value)


def gradients(attachment: Attachment) -> Tensor:
    """Gradients of our vectors in PEFT's layout: a token's numbers, by layer, keys before values."""
    rows = [parameter.grad.flatten(1) for parameter in attachment.parameters().values() if parameter.grad is not None]
    return torch.cat(rows, dim=1)


def assert_near_by_size(found: Tensor, wanted: Tensor, dtype: torch.dtype) -> None:
    """Gradients add up over 13 tokens and cancel: the absolute part is per unit of the largest element."""
    assert float(wanted.abs().max()) > 0
    near = dict(NEAR[dtype])
    near["atol"] *= max(1.0, float(wanted.abs().max()))
    torch.testing.assert_close(found, wanted, **near)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "float64"])
def test_hidden_states_and_gradients_equal_pefts(directory: Path, dtype: torch.dtype) -> None:
    if directory.name == "gemma2" and dtype == torch.float64:
        pytest.skip("the peer's softmax is in fp32")
    rows = texts(directory.name)
    backbone, attachment = ours(directory, dtype)
    peer = peer_of(directory, dtype)
    weight = peer.prompt_encoder["default"].embedding.weight
    put(weight.detach(), attachment)
    found, wanted = packed(backbone, rows), alone(peer, rows)
    torch.testing.assert_close(found, wanted, **NEAR[dtype])
    grad = torch.randn(found.shape, generator=torch.Generator().manual_seed(4), dtype=dtype)
    found.backward(grad)
    wanted.backward(grad)
    assert_near_by_size(gradients(attachment), weight.grad, dtype)


@pytest.mark.parametrize("name", ["bert", "qwen2"])
def test_the_network_and_its_gradients_equal_pefts(name: str, directories: dict[str, Path]) -> None:
    dtype = torch.float64
    rows = texts(name)
    backbone, attachment = ours(directories[name], dtype, reparametrize=True, hidden_size=7)
    peer = peer_of(directories[name], dtype, prefix_projection=True, encoder_hidden_size=7)
    encoder = peer.prompt_encoder["default"]
    own = attachment.parameters()
    outer = {kind: [p for key, p in own.items() if key.endswith(f".{kind}")] for kind in ("up", "up_bias")}
    trunk = [next(p for key, p in own.items() if key.endswith(end)) for end in (".embedding", ".down", ".down_bias")]
    theirs = [encoder.embedding.weight, encoder.transform[0].weight, encoder.transform[0].bias]
    with torch.no_grad():
        for parameter, value in zip(theirs, trunk, strict=True):
            parameter.copy_(value)
        for kind, parameter in (("up", encoder.transform[2].weight), ("up_bias", encoder.transform[2].bias)):
            parameter.copy_(torch.cat(outer[kind]))
    found, wanted = packed(backbone, rows), alone(peer, rows)
    torch.testing.assert_close(found, wanted, **NEAR[dtype])
    found.square().sum().backward()
    wanted.square().sum().backward()
    for parameter, value in zip(theirs, trunk, strict=True):
        assert value.grad is not None
        assert_near_by_size(value.grad, parameter.grad, dtype)
    for kind, parameter in (("up", encoder.transform[2].weight), ("up_bias", encoder.transform[2].bias)):
        assert_near_by_size(torch.cat([p.grad for p in outer[kind] if p.grad is not None]), parameter.grad, dtype)


@torch.no_grad()
@pytest.mark.parametrize("reparametrize", [False, True])
def test_peft_loads_what_we_save(directory: Path, reparametrize: bool, tmp_path: Path) -> None:
    rows = texts(directory.name)
    backbone, attachment = ours(directory, torch.float32, reparametrize=reparametrize)
    save_adapter(attachment, tmp_path, base_model=str(directory))
    peer = peft.PeftModel.from_pretrained(base_model(directory), tmp_path).eval()
    assert torch.equal(peer.prompt_encoder["default"].embedding.weight, prefix.to_tensor(attachment.layers))
    torch.testing.assert_close(packed(backbone, rows), alone(peer, rows), **NEAR[torch.float32])


@torch.no_grad()
@pytest.mark.parametrize("projection", [False, True])
def test_we_load_what_peft_saves(directory: Path, projection: bool, tmp_path: Path) -> None:
    rows = texts(directory.name)
    peer = peer_of(directory, torch.float32, prefix_projection=projection)
    peer.save_pretrained(tmp_path)
    backbone = load_backbone(directory)
    config = read_adapter_config(tmp_path)
    assert config == PrefixConfig(num_virtual_tokens=TOKENS)
    load_adapter(attach(backbone.model, config, seed=0), tmp_path)
    torch.testing.assert_close(packed(backbone, rows), alone(peer, rows), **NEAR[torch.float32])


def test_our_settings_are_those_that_peft_finds_itself(directory: Path, tmp_path: Path) -> None:
    _, attachment = ours(directory, torch.float32)
    save_adapter(attachment, tmp_path, base_model=str(directory))
    saved = json.loads((tmp_path / CONFIG_FILE).read_text())
    found = peer_of(directory, torch.float32).peft_config["default"]
    same = ("num_virtual_tokens", "num_layers", "num_attention_heads", "token_dim", "num_transformer_submodules")
    assert {name: saved[name] for name in same} == {name: getattr(found, name) for name in same}


@torch.no_grad()
def test_peft_cannot_give_distilbert_a_prefix(directories: dict[str, Path], tmp_path: Path) -> None:
    """It loads ours without complaint, and the model computes what it does without."""
    rows = texts("distilbert")
    backbone, attachment = ours(directories["distilbert"], torch.float32)
    save_adapter(attachment, tmp_path, base_model="tiny")
    bare = alone(base_model(directories["distilbert"]), rows)
    peer = peft.PeftModel.from_pretrained(base_model(directories["distilbert"]), tmp_path).eval()
    assert torch.equal(alone(peer, rows), bare)
    assert not torch.allclose(packed(backbone, rows), bare, atol=1e-2)


@torch.no_grad()
def test_peft_cannot_give_modernbert_a_prefix(directories: dict[str, Path]) -> None:
    """With a mask it fails, and without one the prefix does nothing."""
    peer, rows = peer_of(directories["modernbert"], torch.float32), texts("modernbert")
    with pytest.raises(RuntimeError, match="must match the size"):
        peer(input_ids=rows[0][None], attention_mask=torch.ones(1, LENGTHS[0]))
    assert torch.equal(alone(peer, rows), alone(base_model(directories["modernbert"]), rows))
