"""LoRA against PEFT on the same tiny models: outputs, gradients, and files in both directions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import Tensor, nn

from qlassify.config.method import LoraConfig
from qlassify.methods.inject import Attachment, attach, linear_layers
from qlassify.methods.state import load_adapter, merge, read_adapter_config, save_adapter
from tiny_models import FAMILIES, random_texts

pytestmark = [
    pytest.mark.parity,
    pytest.mark.usefixtures("one_thread"),
    # PEFT 0.21 still asks a model of transformers 5 by an old name.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

RANK, ALPHA = 4, 6
TARGETS: dict[str, tuple[str, ...]] = {
    "bert": ("query", "value", "intermediate.dense"),
    "llama": ("q_proj", "v_proj", "down_proj"),
    "gpt2": ("c_attn", "c_proj"),
}
NEAR = {
    # The house tolerance for a small model against PEFT in fp32.
    torch.float32: {"rtol": 1e-5, "atol": 1e-4},
    # The same products in float64 in another order, through four layers.
    torch.float64: {"rtol": 1e-9, "atol": 1e-10},
}


@pytest.fixture(params=TARGETS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["all-linear", "endings"])
def targets(request: pytest.FixtureRequest, name: str) -> str | tuple[str, ...]:
    return "all-linear" if request.param == "all-linear" else TARGETS[name]


def base_model(directory: Path, dtype: torch.dtype = torch.float32) -> Any:
    # BERT's pooler has no part in the hidden states, and qlassify never builds it.
    extra = {"add_pooling_layer": False} if directory.name == "bert" else {}
    model = transformers.AutoModel.from_pretrained(directory, dtype=dtype, **extra)
    return model.eval().requires_grad_(False)


def token_ids(name: str) -> Tensor:
    """Two texts of nine tokens: this file is about linear layers, not about packing."""
    encoded = random_texts((9, 9), FAMILIES[name], seed=1)
    return torch.from_numpy(encoded.token_ids).long().view(2, 9)


def peft_config(model: nn.Module, targets: str | tuple[str, ...], *, rslora: bool = False) -> peft.LoraConfig:
    """PEFT's configuration for the same adapter."""
    names = targets if isinstance(targets, str) else list(targets)
    return peft.LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        target_modules=names,
        use_rslora=rslora,
        # PEFT has to be told how GPT-2's layers store their weights; otherwise it warns and corrects itself.
        fan_in_fan_out=any(not isinstance(layer, nn.Linear) for layer in linear_layers(model).values()),
    )


def randomise_factors(attachment: Attachment) -> None:
    """B is zero at first and would hide A; with both random every term of the gradients counts."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in attachment.parameters().values():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))


def factors_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """PEFT's factors under our names."""
    named = {}
    for path, parameter in model.named_parameters():
        if ".lora_" in path:
            named[path.removeprefix("base_model.model.").replace(".default.", ".")] = parameter
    return named


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "float64"])
@pytest.mark.parametrize("rslora", [False, True], ids=["plain", "rslora"])
def test_hidden_states_and_gradients_equal_pefts(
    name: str,
    targets: str | tuple[str, ...],
    rslora: bool,
    dtype: torch.dtype,
    tiny_directories: dict[str, Path],
) -> None:
    ours, theirs = (base_model(tiny_directories[name], dtype) for _ in range(2))
    attachment = attach(ours, LoraConfig(rank=RANK, alpha=ALPHA, target_modules=targets, rslora=rslora), seed=0)
    randomise_factors(attachment)
    peer = peft.get_peft_model(theirs, peft_config(theirs, targets, rslora=rslora), autocast_adapter_dtype=False).eval()
    peer_factors = factors_of(peer)
    assert set(peer_factors) == set(attachment.parameters())
    with torch.no_grad():
        for key, parameter in attachment.parameters().items():
            peer_factors[key].copy_(parameter)

    ids = token_ids(name)
    found, wanted = ours(input_ids=ids).last_hidden_state, peer(input_ids=ids).last_hidden_state
    torch.testing.assert_close(found, wanted, **NEAR[dtype])
    grad = torch.randn(found.shape, generator=torch.Generator().manual_seed(4), dtype=dtype)
    found.backward(grad)
    wanted.backward(grad)
    for key, parameter in attachment.parameters().items():
        peer_grad = peer_factors[key].grad
        assert parameter.grad is not None
        assert peer_grad is not None
        assert float(peer_grad.abs().max()) > 0, key
        # Gradients add up over 18 tokens and grow backwards through the layers: the absolute part is per unit of the
        # largest element.
        near = dict(NEAR[dtype])
        near["atol"] *= max(1.0, float(peer_grad.abs().max()))
        torch.testing.assert_close(parameter.grad, peer_grad, msg=lambda m, key=key: f"{key}: {m}", **near)


@torch.no_grad()
@pytest.mark.parametrize("rslora", [False, True], ids=["plain", "rslora"])
def test_peft_loads_what_we_save(
    name: str, targets: str | tuple[str, ...], rslora: bool, tiny_directories: dict[str, Path], tmp_path: Path
) -> None:
    ours = base_model(tiny_directories[name])
    attachment = attach(ours, LoraConfig(rank=RANK, alpha=ALPHA, target_modules=targets, rslora=rslora), seed=0)
    randomise_factors(attachment)
    save_adapter(attachment, tmp_path, base_model=str(tiny_directories[name]))
    peer = peft.PeftModel.from_pretrained(base_model(tiny_directories[name]), tmp_path).eval()
    assert set(factors_of(peer)) == set(attachment.parameters())
    for key, parameter in factors_of(peer).items():
        assert torch.equal(parameter, attachment.parameters()[key]), key
    ids = token_ids(name)
    torch.testing.assert_close(
        ours(input_ids=ids).last_hidden_state, peer(input_ids=ids).last_hidden_state, **NEAR[torch.float32]
    )


@torch.no_grad()
@pytest.mark.parametrize("rslora", [False, True], ids=["plain", "rslora"])
def test_we_load_what_peft_saves(
    name: str, targets: str | tuple[str, ...], rslora: bool, tiny_directories: dict[str, Path], tmp_path: Path
) -> None:
    theirs = base_model(tiny_directories[name])
    peer = peft.get_peft_model(theirs, peft_config(theirs, targets, rslora=rslora)).eval()
    generator = torch.Generator().manual_seed(5)
    for parameter in factors_of(peer).values():
        parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    peer.save_pretrained(tmp_path)

    ours = base_model(tiny_directories[name])
    config = read_adapter_config(tmp_path)
    assert (config.rank, config.alpha, config.rslora) == (RANK, ALPHA, rslora)
    attachment = attach(ours, config, seed=0)
    load_adapter(attachment, tmp_path)
    for key, parameter in factors_of(peer).items():
        assert torch.equal(attachment.parameters()[key], parameter), key
    ids = token_ids(name)
    torch.testing.assert_close(
        ours(input_ids=ids).last_hidden_state, peer(input_ids=ids).last_hidden_state, **NEAR[torch.float32]
    )


@torch.no_grad()
def test_a_merge_equals_pefts(name: str, tiny_directories: dict[str, Path]) -> None:
    ours, theirs = (base_model(tiny_directories[name], torch.float64) for _ in range(2))
    attachment = attach(ours, LoraConfig(rank=RANK, alpha=ALPHA), seed=0)
    randomise_factors(attachment)
    peer = peft.get_peft_model(theirs, peft_config(theirs, "all-linear"), autocast_adapter_dtype=False)
    for key, parameter in factors_of(peer).items():
        parameter.copy_(attachment.parameters()[key])
    merge(attachment)
    wanted = dict(peer.merge_and_unload().named_parameters())
    found = dict(ours.named_parameters())
    assert set(found) == set(wanted)
    for key, parameter in found.items():
        # One product of four terms added in float64 on both sides.
        torch.testing.assert_close(parameter, wanted[key], rtol=1e-12, atol=1e-14, msg=lambda m, key=key: f"{key}: {m}")
