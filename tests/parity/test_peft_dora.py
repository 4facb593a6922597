"""DoRA against PEFT on the same tiny models: outputs, gradients, and files in both directions.

Without dropout: with it, PEFT lets a dropped element miss the frozen path as well, and the paper does not say.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn

from qlassify.config.method import LoraConfig
from qlassify.methods.dora import DoraLinear
from qlassify.methods.inject import Attachment, attach, linear_layers
from qlassify.methods.state import WEIGHTS_FILE, load_adapter, merge, read_adapter_config, save_adapter
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
VECTOR = "lora_magnitude_vector"


@pytest.fixture(params=TARGETS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["all-linear", "endings"])
def targets(request: pytest.FixtureRequest, name: str) -> str | tuple[str, ...]:
    return "all-linear" if request.param == "all-linear" else TARGETS[name]


@pytest.fixture(params=[False, True], ids=["plain", "rslora"])
def rslora(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def base_model(directory: Path, dtype: torch.dtype = torch.float32) -> Any:
    # BERT's pooler has no part in the hidden states, and qlassify never builds it.
    extra = {"add_pooling_layer": False} if directory.name == "bert" else {}
    model = transformers.AutoModel.from_pretrained(directory, dtype=dtype, **extra)
    return model.eval().requires_grad_(False)


def token_ids(name: str) -> Tensor:
    """Two texts of nine tokens: this file is about linear layers, not about packing."""
    encoded = random_texts((9, 9), FAMILIES[name], seed=1)
    return torch.from_numpy(encoded.token_ids).long().view(2, 9)


def peft_model(model: nn.Module, targets: str | tuple[str, ...], *, rslora: bool) -> Any:
    """PEFT's DoRA on the same layers."""
    config = peft.LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        target_modules=targets if isinstance(targets, str) else list(targets),
        use_rslora=rslora,
        use_dora=True,
        # PEFT has to be told how GPT-2's layers store their weights; otherwise it warns and corrects itself.
        fan_in_fan_out=any(not isinstance(layer, nn.Linear) for layer in linear_layers(model).values()),
    )
    return peft.get_peft_model(model, config, autocast_adapter_dtype=False).eval()


def our_config(targets: str | tuple[str, ...], *, rslora: bool) -> LoraConfig:
    return LoraConfig(kind="dora", rank=RANK, alpha=ALPHA, target_modules=targets, rslora=rslora)


def randomise(parameters: dict[str, nn.Parameter], seed: int) -> None:
    """Factors and lengths away from their start, where B is zero and hides A, and m / n is one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(parameters.items()):
            noise = 0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
            # A length of one tenth more or less.
            parameter.copy_(parameter * (1 + noise) if name.endswith(VECTOR) else noise)


def peers_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """PEFT's trained parameters under the names that its files give them, which are ours."""
    named = {}
    for path, parameter in model.named_parameters():
        if ".lora_" in path:
            path = path.removeprefix("base_model.model.").replace(f"{VECTOR}.default.weight", VECTOR)
            named[path.replace(".default.", ".")] = parameter
    return named


def copy_into(target: dict[str, nn.Parameter], source: dict[str, nn.Parameter]) -> None:
    assert set(target) == set(source)
    with torch.no_grad():
        for name, parameter in target.items():
            parameter.copy_(source[name])


def quietly_loaded(directory: Path, model: nn.Module) -> Any:
    """The adapter as PEFT loads it; a tensor that is missing or not known is a warning of its own, here an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        return peft.PeftModel.from_pretrained(model, directory).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "float64"])
def test_hidden_states_and_gradients_equal_pefts(
    name: str,
    targets: str | tuple[str, ...],
    rslora: bool,
    dtype: torch.dtype,
    tiny_directories: dict[str, Path],
) -> None:
    ours, theirs = (base_model(tiny_directories[name], dtype) for _ in range(2))
    attachment = attach(ours, our_config(targets, rslora=rslora), seed=0)
    peer = peft_model(theirs, targets, rslora=rslora)
    peer_parameters = peers_parameters(peer)
    assert set(peer_parameters) == set(attachment.parameters())
    for key, parameter in attachment.parameters().items():
        if key.endswith(VECTOR):
            # Both start at the lengths of the frozen rows; sums of up to 96 squares in another order.
            rtol = 1e-6 if dtype == torch.float32 else 1e-14
            torch.testing.assert_close(parameter.detach(), peer_parameters[key].detach(), rtol=rtol, atol=0)
    randomise(attachment.parameters(), 3)
    copy_into(peer_parameters, attachment.parameters())

    ids = token_ids(name)
    found, wanted = ours(input_ids=ids).last_hidden_state, peer(input_ids=ids).last_hidden_state
    torch.testing.assert_close(found, wanted, **NEAR[dtype])
    grad = torch.randn(found.shape, generator=torch.Generator().manual_seed(4), dtype=dtype)
    found.backward(grad)
    wanted.backward(grad)
    for key, parameter in attachment.parameters().items():
        peer_grad = peer_parameters[key].grad
        assert parameter.grad is not None
        assert peer_grad is not None
        assert float(peer_grad.abs().max()) > 0, key
        # Gradients add up over 18 tokens and grow backwards through the layers: the absolute part is per unit of the
        # largest element.
        near = dict(NEAR[dtype])
        near["atol"] *= max(1.0, float(peer_grad.abs().max()))
        torch.testing.assert_close(parameter.grad, peer_grad, msg=lambda m, key=key: f"{key}: {m}", **near)


@torch.no_grad()
def test_peft_loads_what_we_save(
    name: str, targets: str | tuple[str, ...], rslora: bool, tiny_directories: dict[str, Path], tmp_path: Path
) -> None:
    ours = base_model(tiny_directories[name])
    attachment = attach(ours, our_config(targets, rslora=rslora), seed=0)
    randomise(attachment.parameters(), 3)
    save_adapter(attachment, tmp_path, base_model=str(tiny_directories[name]))
    peer = quietly_loaded(tmp_path, base_model(tiny_directories[name]))
    assert peer.peft_config["default"].use_dora
    found = peers_parameters(peer)
    assert set(found) == set(attachment.parameters())
    for key, parameter in found.items():
        assert torch.equal(parameter, attachment.parameters()[key]), key
    ids = token_ids(name)
    torch.testing.assert_close(
        ours(input_ids=ids).last_hidden_state, peer(input_ids=ids).last_hidden_state, **NEAR[torch.float32]
    )


@torch.no_grad()
def test_we_load_what_peft_saves(
    name: str, targets: str | tuple[str, ...], rslora: bool, tiny_directories: dict[str, Path], tmp_path: Path
) -> None:
    theirs = base_model(tiny_directories[name])
    peer = peft_model(theirs, targets, rslora=rslora)
    randomise(peers_parameters(peer), 5)
    peer.save_pretrained(tmp_path)

    ours = base_model(tiny_directories[name])
    config = read_adapter_config(tmp_path)
    assert (config.kind, config.rank, config.alpha, config.rslora) == ("dora", RANK, ALPHA, rslora)
    attachment = attach(ours, config, seed=0)
    assert {type(layer) for layer in attachment.layers.values()} == {DoraLinear}
    load_adapter(attachment, tmp_path)
    for key, parameter in peers_parameters(peer).items():
        assert torch.equal(attachment.parameters()[key], parameter), key
    ids = token_ids(name)
    torch.testing.assert_close(
        ours(input_ids=ids).last_hidden_state, peer(input_ids=ids).last_hidden_state, **NEAR[torch.float32]
    )


@torch.no_grad()
def test_both_write_the_same_file(name: str, tiny_directories: dict[str, Path], tmp_path: Path) -> None:
    """The same names, shapes, types and numbers, and settings that say the same."""
    ours, theirs = (base_model(tiny_directories[name]) for _ in range(2))
    attachment = attach(ours, our_config("all-linear", rslora=True), seed=0)
    peer = peft_model(theirs, "all-linear", rslora=True)
    copy_into(peers_parameters(peer), attachment.parameters())
    folders = tmp_path / "ours", tmp_path / "theirs"
    for folder in folders:
        folder.mkdir()
    save_adapter(attachment, folders[0], base_model=str(tiny_directories[name]))
    peer.save_pretrained(folders[1])
    found, wanted = (load_file(str(folder / WEIGHTS_FILE)) for folder in folders)
    assert {key: (value.shape, value.dtype) for key, value in found.items()} == {
        key: (value.shape, value.dtype) for key, value in wanted.items()
    }
    assert all(torch.equal(found[key], value) for key, value in wanted.items())
    settings = [json.loads((folder / "adapter_config.json").read_text()) for folder in folders]
    for key in ("peft_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "bias", "fan_in_fan_out"):
        assert settings[0][key] == settings[1][key], key


@torch.no_grad()
def test_a_merge_equals_pefts(name: str, tiny_directories: dict[str, Path]) -> None:
    ours, theirs = (base_model(tiny_directories[name], torch.float64) for _ in range(2))
    attachment: Attachment = attach(ours, our_config("all-linear", rslora=False), seed=0)
    randomise(attachment.parameters(), 3)
    peer = peft_model(theirs, "all-linear", rslora=False)
    copy_into(peers_parameters(peer), attachment.parameters())
    merge(attachment)
    wanted = dict(peer.merge_and_unload().named_parameters())
    found = dict(ours.named_parameters())
    assert set(found) == set(wanted)
    for key, parameter in found.items():
        # One product of four terms, a sum of up to 96 squares, a quotient: in float64 on both sides.
        torch.testing.assert_close(parameter, wanted[key], rtol=1e-12, atol=1e-14, msg=lambda m, key=key: f"{key}: {m}")
