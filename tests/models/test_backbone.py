"""Loading a backbone: what is refused, what is frozen, where positions start, and how packing is tried.

Hidden states are compared with transformers family by family in ``parity/test_backbones.py``; here stand the
properties of one architecture or another.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from qlassify.data.packing import pack
from qlassify.errors import ModelError
from qlassify.models import attention
from qlassify.models.backbone import Backbone, load_backbone
from qlassify.models.classifier import Classifier
from qlassify.models.head import ClassificationHead
from qlassify.models.packed_layout import PackedLayout
from tiny_models import FAMILIES, WIDTH, random_texts, randomise, save_tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")

LENGTHS = (11, 3, 7, 1)


@pytest.fixture
def bert(tiny_directories: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the tiny BERT that a test may damage."""
    return Path(shutil.copytree(tiny_directories["bert"], tmp_path / "bert"))


def edit_weights(directory: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    path = directory / "model.safetensors"
    tensors = load_file(str(path))
    change(tensors)
    save_file(tensors, str(path), metadata={"format": "pt"})


def edit_config(directory: Path, **changes: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def hidden_states(backbone: Backbone, name: str, lengths: tuple[int, ...] = LENGTHS) -> Tensor:
    batch = pack(random_texts(lengths, FAMILIES[name], seed=3), range(len(lengths)))
    types = None if batch.token_type_ids is None else torch.from_numpy(batch.token_type_ids)
    ids, positions = torch.from_numpy(batch.token_ids), torch.from_numpy(batch.position_ids)
    output: Tensor = backbone(ids, positions, types, PackedLayout(batch.lengths))
    return output


# What is refused


def test_a_missing_tensor_is_named(bert: Path) -> None:
    lost = "encoder.layer.2.attention.self.value.weight"
    edit_weights(bert, lambda tensors: tensors.pop(lost))
    with pytest.raises(ModelError, match="1 tensors of the model are missing") as caught:
        load_backbone(bert)
    assert caught.value.got == lost


def test_many_missing_tensors_are_counted(bert: Path) -> None:
    def drop_a_layer(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.startswith("encoder.layer.1.")]:
            del tensors[name]

    edit_weights(bert, drop_a_layer)
    with pytest.raises(ModelError, match=r"16 tensors.*\.\.\."):
        load_backbone(bert)


def test_a_misshapen_tensor_is_refused(bert: Path) -> None:
    def widen(tensors: dict[str, Tensor]) -> None:
        tensors["encoder.layer.0.attention.self.value.weight"] = torch.zeros(WIDTH, WIDTH + 1)

    edit_weights(bert, widen)
    with pytest.raises(ModelError):
        load_backbone(bert)


def test_weights_cut_short_are_refused(bert: Path) -> None:
    path = bert / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match="not a whole safetensors file") as caught:
        load_backbone(bert)
    assert caught.value.where == str(path)


def test_pickles_are_not_loaded(bert: Path) -> None:
    weights = load_file(str(bert / "model.safetensors"))
    (bert / "model.safetensors").unlink()
    torch.save(weights, bert / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot load the weights"):
        load_backbone(bert)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "no-such-architecture"}, "not a model configuration that transformers knows"),
        ({"model_type": None}, "names no architecture"),
    ],
)
def test_an_unknown_architecture_is_refused(bert: Path, changes: dict[str, object], said: str) -> None:
    edit_config(bert, **changes)
    with pytest.raises(ModelError, match=said):
        load_backbone(bert)


def test_code_of_a_checkpoint_is_not_run(bert: Path) -> None:
    edit_config(bert, model_type="own-code", auto_map={"AutoConfig": "own.Config", "AutoModel": "own.Model"})
    (bert / "own.py").write_text("raise SystemExit('the checkpoint ran its own code')", encoding="utf-8")
    with pytest.raises(ModelError, match="never run"):
        load_backbone(bert)


def test_a_directory_without_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json"):
        load_backbone(tmp_path)


# What it is


def test_a_backbone_says_what_it_is(tiny_directories: dict[str, Path]) -> None:
    backbone = load_backbone(tiny_directories["bert"], torch.bfloat16)
    assert (backbone.model_type, backbone.hidden_size, backbone.dtype) == ("bert", WIDTH, torch.bfloat16)
    assert backbone.device == torch.device("cpu")
    assert backbone.directory == tiny_directories["bert"]
    assert not any("pooler" in name for name, _ in backbone.named_parameters())


@pytest.mark.parametrize("name", ["bert", "llama", "deberta"])
def test_every_pretrained_parameter_is_frozen(name: str, tiny_directories: dict[str, Path]) -> None:
    backbone = load_backbone(tiny_directories[name])
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


@pytest.mark.parametrize("name", ["bert", "gpt2", "deberta"])
@torch.no_grad()
def test_training_mode_stays_out_of_the_pretrained_model(name: str, tiny_directories: dict[str, Path]) -> None:
    backbone = load_backbone(tiny_directories[name])
    assert any(isinstance(module, nn.Dropout) and module.p > 0 for module in backbone.modules())
    calm = hidden_states(backbone, name)
    classifier = Classifier(backbone, ClassificationHead(WIDTH, 2, seed=0), "mean").train()
    assert classifier.training
    assert classifier.head.training
    assert not any(module.training for module in backbone.model.modules())
    assert torch.equal(hidden_states(backbone, name), calm)


def test_training_mode_reaches_what_is_attached(tiny_directories: dict[str, Path]) -> None:
    class Adapter(nn.Module):
        is_adapter = True

    backbone = load_backbone(tiny_directories["bert"])
    adapter = backbone.model.adapter = Adapter()
    for mode in (True, False, True):
        assert backbone.train(mode) is backbone
        assert adapter.training is mode
    assert not backbone.eval().training
    assert not adapter.training


# Positions


@pytest.mark.parametrize(
    ("name", "offset", "positions"),
    [
        ("bert", 0, 512),
        ("distilbert", 0, 512),
        ("roberta", 2, 512),  # 514 rows, of which two come before the first position
        ("gpt2", 0, 1024),
        ("gemma2", 0, 8192),
    ],
)
def test_positions(name: str, offset: int, positions: int, tmp_path: Path) -> None:
    key = {"gpt2": "n_positions"}.get(name, "max_position_embeddings")
    backbone = load_backbone(save_tiny_model(name, tmp_path, **{key: positions + offset}))
    assert (backbone.position_offset, backbone.max_positions) == (offset, positions)


@pytest.mark.parametrize("name", ["bert", "roberta", "gpt2"])
@torch.no_grad()
def test_the_longest_text_has_a_position_for_each_token(name: str, tmp_path: Path) -> None:
    key = {"gpt2": "n_positions"}.get(name, "max_position_embeddings")
    backbone = load_backbone(save_tiny_model(name, tmp_path, **{key: 20}))
    assert backbone.max_positions is not None
    assert hidden_states(backbone, name, (backbone.max_positions, 3)).isfinite().all()
    with pytest.raises((IndexError, RuntimeError)):
        hidden_states(backbone, name, (backbone.max_positions + 1,))


@torch.no_grad()
def test_roberta_is_packed_and_counts_from_behind_the_padding_id(tiny_directories: dict[str, Path]) -> None:
    """Every token's hidden state is transformers' own, which counts positions from padding_idx + 1."""
    backbone = load_backbone(tiny_directories["roberta"])
    encoded = random_texts(LENGTHS, FAMILIES["roberta"], seed=3)
    peer = transformers.AutoModel.from_pretrained(tiny_directories["roberta"]).eval()
    rows = pack(encoded, range(len(LENGTHS))).rows
    texts = [torch.from_numpy(encoded.row(int(row)).astype(np.int64))[None] for row in rows]
    wanted = torch.cat([peer(input_ids=ids).last_hidden_state[0] for ids in texts])
    assert backbone.packed
    # The house tolerance against another implementation in fp32; hidden states are of order one.
    torch.testing.assert_close(hidden_states(backbone, "roberta"), wanted, rtol=1e-5, atol=1e-4)


# Packing is tried


@torch.no_grad()
def test_deberta_runs_padded_and_says_so(tiny_directories: dict[str, Path]) -> None:
    """Its relative positions live inside its attention: rectangles, a mask, and the hidden states of transformers."""
    backbone = load_backbone(tiny_directories["deberta"], torch.float64)
    assert not backbone.packed
    encoded = random_texts(LENGTHS, FAMILIES["deberta"], seed=3)
    peer = transformers.AutoModel.from_pretrained(tiny_directories["deberta"], dtype=torch.float64).eval()
    batch = pack(encoded, range(len(LENGTHS)))
    ids = torch.zeros(len(LENGTHS), max(LENGTHS), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for place, row in enumerate(batch.rows):
        length = int(batch.lengths[place])
        ids[place, :length] = torch.from_numpy(encoded.row(int(row)).astype(np.int64))
        mask[place, :length] = 1
    hidden = peer(input_ids=ids, attention_mask=mask).last_hidden_state
    wanted = torch.cat([hidden[place, :length] for place, length in enumerate(batch.lengths)])
    # The same code on the same tokens in float64, with another id in the masked places.
    torch.testing.assert_close(hidden_states(backbone, "deberta"), wanted, rtol=1e-10, atol=1e-10)


def test_an_architecture_that_fails_the_trial_keeps_its_own_attention(tiny_directories: dict[str, Path]) -> None:
    assert load_backbone(tiny_directories["deberta"]).model.config._attn_implementation != attention.IMPLEMENTATION
    assert load_backbone(tiny_directories["bert"]).model.config._attn_implementation == attention.IMPLEMENTATION


@pytest.mark.parametrize("name", ["bert", "llama"])
@torch.no_grad()
def test_an_attention_that_mixes_texts_fails_the_trial(
    name: str, tiny_directories: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trial itself is tried: packed attention that takes the batch for one text must not be believed."""
    right = attention.packed_attention

    def mixing(*args: object, packed_layout: PackedLayout, **kwargs: object) -> object:
        return right(*args, packed_layout=PackedLayout(np.array([packed_layout.num_tokens])), **kwargs)  # type: ignore[arg-type]

    good = hidden_states(load_backbone(tiny_directories[name]), name)
    monkeypatch.setattr(attention, "packed_attention", mixing)
    backbone = load_backbone(tiny_directories[name])
    monkeypatch.undo()
    attention.register()  # transformers' registry is the process's own: leave the right function in it
    assert not backbone.packed
    # What falls back is still right, by transformers' own attention: the house tolerance for another implementation.
    torch.testing.assert_close(hidden_states(backbone, name), good, rtol=1e-5, atol=1e-4)


@torch.no_grad()
def test_a_window_that_only_the_mask_knows_is_honoured(tmp_path: Path) -> None:
    """Qwen2-MoE gives its window to its mask and not to its attention; the text here is longer than the window."""
    config = transformers.Qwen2MoeConfig(
        vocab_size=200, hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, moe_intermediate_size=32, shared_expert_intermediate_size=32, num_experts=2,
        num_experts_per_tok=2, use_sliding_window=True, sliding_window=12, layer_types=["sliding_attention"] * 2,
    )  # fmt: skip
    model = transformers.AutoModel.from_config(config)
    randomise(model, seed=0)
    model.save_pretrained(tmp_path)
    backbone = load_backbone(tmp_path)
    encoded = random_texts((40,), FAMILIES["qwen2"], seed=3)
    peer = transformers.AutoModel.from_pretrained(tmp_path, attn_implementation="sdpa").eval()
    wanted = peer(input_ids=torch.from_numpy(encoded.token_ids.astype(np.int64))[None]).last_hidden_state[0]
    # The house tolerance against another implementation in fp32; hidden states are of order one.
    torch.testing.assert_close(hidden_states(backbone, "qwen2", (40,)), wanted, rtol=1e-5, atol=1e-4)
