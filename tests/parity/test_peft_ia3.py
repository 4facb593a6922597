"""IA3 against PEFT on the same tiny models: outputs, gradients, merging, and files in both directions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import Tensor, nn

from qlassify.config.method import Ia3Config
from qlassify.methods.inject import Attachment, attach
from qlassify.methods.state import load_adapter, merge, read_adapter_config, save_adapter
from tiny_models import FAMILIES, random_texts

pytestmark = [
    pytest.mark.parity,
    pytest.mark.usefixtures("one_thread"),
    # PEFT 0.21 still asks a model of transformers 5 by an old name.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

# Architecture -> (outputs, inputs) that our own choice comes to, spelled for PEFT.
PLACES: dict[str, tuple[list[str], list[str]]] = {
    "bert": (["key", "value"], [f"encoder.layer.{i}.output.dense" for i in range(4)]),
    "llama": (["k_proj", "v_proj"], ["down_proj"]),
    "gpt2": (["c_attn"], ["mlp.c_proj"]),
}
NEAR = {
    # The house tolerance for a small model against PEFT in fp32.
    torch.float32: {"rtol": 1e-5, "atol": 1e-4},
    # The same products in float64 in another order, through four layers.
    torch.float64: {"rtol": 1e-9, "atol": 1e-10},
}


@pytest.fixture(params=PLACES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def base_model(directory: Path, dtype: torch.dtype = torch.float32) -> Any:
    # BERT's pooler has no part in the hidden states, and qlassify never builds it.
    extra = {"add_pooling_layer": False} if directory.name == "bert" else {}
    model = transformers.AutoModel.from_pretrained(directory, dtype=dtype, **extra)
    return model.eval().requires_grad_(False)


def token_ids(name: str) -> Tensor:
    encoded = random_texts((9, 9), FAMILIES[name], seed=1)
    return torch.from_numpy(encoded.token_ids).long().view(2, 9)


def peer_of(name: str, model: nn.Module) -> Any:
    outputs, inputs = PLACES[name]
    config = peft.IA3Config(
        target_modules=[*outputs, *inputs], feedforward_modules=inputs, fan_in_fan_out=name == "gpt2"
    )
    return peft.get_peft_model(model, config, autocast_adapter_dtype=False).eval()


def vectors_of(peer: nn.Module) -> dict[str, nn.Parameter]:
    """PEFT's vectors under our names."""
    return {
        path.removeprefix("base_model.model.").removesuffix(".default"): parameter
        for path, parameter in peer.named_parameters()
        if ".ia3_l" in path
    }


def randomise(attachment: Attachment) -> None:
    """All vectors are one at first, which would hide an exchange of any two."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in attachment.parameters().values():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "float64"])
def test_hidden_states_and_gradients_equal_pefts(
    name: str, dtype: torch.dtype, tiny_directories: dict[str, Path]
) -> None:
    ours, theirs = (base_model(tiny_directories[name], dtype) for _ in range(2))
    attachment = attach(ours, Ia3Config(), seed=0)
    randomise(attachment)
    peer = peer_of(name, theirs)
    vectors = vectors_of(peer)
    assert set(vectors) == set(attachment.parameters())
    with torch.no_grad():
        for key, parameter in attachment.parameters().items():
            vectors[key].copy_(parameter.view(vectors[key].shape))
    ids = token_ids(name)
    found, wanted = ours(input_ids=ids).last_hidden_state, peer(input_ids=ids).last_hidden_state
    torch.testing.assert_close(found, wanted, **NEAR[dtype])
    grad = torch.randn(found.shape, generator=torch.Generator().manual_seed(4), dtype=dtype)
    found.backward(grad)
    wanted.backward(grad)
    for key, parameter in attachment.parameters().items():
        theirs_grad = vectors[key].grad
        assert parameter.grad is not None
        assert theirs_grad is not None
        assert float(theirs_grad.abs().max()) > 0, key
        near = dict(NEAR[dtype])
        # Gradients add up over 18 tokens: the absolute part is per unit of the largest element.
        near["atol"] *= max(1.0, float(theirs_grad.abs().max()))
        torch.testing.assert_close(
            parameter.grad, theirs_grad.reshape(-1), msg=lambda m, key=key: f"{key}: {m}", **near
        )


@torch.no_grad()
def test_peft_loads_what_we_save(name: str, tiny_directories: dict[str, Path], tmp_path: Path) -> None:
    ours = base_model(tiny_directories[name])
    attachment = attach(ours, Ia3Config(), seed=0)
    randomise(attachment)
    save_adapter(attachment, tmp_path, base_model=str(tiny_directories[name]))
    peer = peft.PeftModel.from_pretrained(base_model(tiny_directories[name]), tmp_path).eval()
    vectors = vectors_of(peer)
    assert set(vectors) == set(attachment.parameters())
    for key, parameter in attachment.parameters().items():
        assert torch.equal(vectors[key].reshape(-1), parameter), key
    ids = token_ids(name)
    torch.testing.assert_close(
        ours(input_ids=ids).last_hidden_state, peer(input_ids=ids).last_hidden_state, **NEAR[torch.float32]
    )


@torch.no_grad()
def test_we_load_what_peft_saves(name: str, tiny_directories: dict[str, Path], tmp_path: Path) -> None:
    peer = peer_of(name, base_model(tiny_directories[name]))
    generator = torch.Generator().manual_seed(5)
    for vector in vectors_of(peer).values():
        vector.add_(0.3 * torch.randn(vector.shape, generator=generator))
    peer.save_pretrained(tmp_path)
    ours = base_model(tiny_directories[name])
    attachment = attach(ours, read_adapter_config(tmp_path), seed=0)
    load_adapter(attachment, tmp_path)
    for key, vector in vectors_of(peer).items():
        assert torch.equal(attachment.parameters()[key], vector.reshape(-1)), key
    ids = token_ids(name)
    torch.testing.assert_close(
        ours(input_ids=ids).last_hidden_state, peer(input_ids=ids).last_hidden_state, **NEAR[torch.float32]
    )


@torch.no_grad()
def test_a_merge_equals_pefts(name: str, tiny_directories: dict[str, Path]) -> None:
    ours, theirs = (base_model(tiny_directories[name], torch.float64) for _ in range(2))
    attachment = attach(ours, Ia3Config(), seed=0)
    randomise(attachment)
    peer = peer_of(name, theirs)
    for key, vector in vectors_of(peer).items():
        vector.copy_(attachment.parameters()[key].view(vector.shape))
    merge(attachment)
    wanted = dict(peer.merge_and_unload().named_parameters())
    found = dict(ours.named_parameters())
    assert set(found) == set(wanted)
    for key, parameter in found.items():
        # One float64 product on both sides.
        torch.testing.assert_close(parameter, wanted[key], rtol=1e-12, atol=1e-14, msg=lambda m, key=key: f"{key}: {m}")
