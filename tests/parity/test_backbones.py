"""Packed logits against transformers' own padded forward pass, family by family.

The peer is ``AutoModel`` with its eager attention on a right-padded rectangle with an attention mask, pooled text by
text in a loop and multiplied by the same head. In fp32 both sides round differently; in float64 they may differ only
by the order of additions, so a wrong window, position or mask has nowhere to hide.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn

from qlassify.data.packing import pack
from qlassify.data.tokenise import Encoded
from qlassify.models.backbone import Backbone, load_backbone
from qlassify.models.classifier import Classifier
from qlassify.models.head import ClassificationHead
from qlassify.models.pooling import PoolingMode
from tiny_models import FAMILIES, VOCABULARY, Family, random_texts

pytestmark = [pytest.mark.parity, pytest.mark.usefixtures("one_thread")]

NUM_CLASSES = 5
LENGTHS = ((1, 2, 3, 40, 17, 17, 5, 31), (13,), (40, 39, 4, 4, 1, 22))

PEER = {
    # The house tolerance for logits of a small model against another implementation.
    torch.float32: {"rtol": 1e-5, "atol": 1e-4},
    # Logits of order one after four layers; eps is 2e-16, and norms and rotary tables that transformers itself rounds
    # to fp32 are rounded alike on both sides.
    torch.float64: {"rtol": 1e-9, "atol": 1e-9},
}
ALONE = {
    # The house tolerance for one text alone against the same text in any batch.
    torch.float32: {"rtol": 1e-5, "atol": 1e-5},
    torch.float64: {"rtol": 1e-10, "atol": 1e-10},
}


@pytest.fixture(params=FAMILIES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[torch.float32, torch.float64], ids=["fp32", "float64"])
def dtype(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.dtype:
    """The type both sides compute in; in float64 the peer's softmax is kept from rounding to fp32."""
    chosen: torch.dtype = request.param
    if chosen == torch.float64:
        softmax = nn.functional.softmax

        def unrounded(scores: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
            return softmax(scores, dim=dim, dtype=scores.dtype if scores.dtype == torch.float64 else dtype)

        monkeypatch.setattr(nn.functional, "softmax", unrounded)
    return chosen


def build_classifier(backbone: Backbone, pooling: PoolingMode, dtype: torch.dtype) -> Classifier:
    """A classifier whose head is large enough that logits are of order one."""
    head = ClassificationHead(backbone.hidden_size, NUM_CLASSES, seed=0, dtype=dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(0.15 * torch.randn(parameter.shape, generator=generator))
    return Classifier(backbone, head, pooling).eval()


def load_peer(directory: Path, dtype: torch.dtype) -> Any:
    peer = transformers.AutoModel.from_pretrained(directory, dtype=dtype, attn_implementation="eager")
    return peer.eval()


def padded_hidden(peer: Any, encoded: Encoded, family: Family) -> list[Tensor]:
    """Hidden states (L, H) of each text by transformers on one right-padded rectangle."""
    lengths = [int(length) for length in encoded.lengths]
    shape = (len(lengths), max(lengths))
    ids = torch.full(shape, family.pad_token_id)
    mask = torch.zeros(shape, dtype=torch.long)
    types = torch.zeros(shape, dtype=torch.long)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.from_numpy(encoded.row(row).astype(np.int64))
        mask[row, :length] = 1
        if encoded.token_type_ids is not None:
            begin = int(encoded.offsets[row])
            types[row, :length] = torch.from_numpy(encoded.token_type_ids[begin : begin + length].astype(np.int64))
    extra = {"token_type_ids": types} if encoded.token_type_ids is not None else {}
    hidden = peer(input_ids=ids, attention_mask=mask, **extra).last_hidden_state
    return [hidden[row, :length] for row, length in enumerate(lengths)]


def pooled_by_hand(hidden: Sequence[Tensor], pooling: PoolingMode) -> Tensor:
    vector = {
        "last": lambda text_LH: text_LH[-1],
        "cls": lambda text_LH: text_LH[0],
        "mean": lambda text_LH: text_LH.sum(dim=0) / text_LH.shape[0],
    }[pooling]
    return torch.stack([vector(text_LH) for text_LH in hidden])


def logits_in_order(classifier: Classifier, encoded: Encoded, rows: Sequence[int]) -> Tensor:
    """Logits of the given rows in the order in which they were given."""
    batch = pack(encoded, rows)
    logits = classifier(batch)
    position = {int(row): place for place, row in enumerate(batch.rows)}
    return logits[[position[row] for row in rows]]


@torch.no_grad()
def test_logits_equal_the_padded_forward_pass(name: str, dtype: torch.dtype, tiny_directories: dict[str, Path]) -> None:
    family = FAMILIES[name]
    backbone = load_backbone(tiny_directories[name], dtype)
    peer = load_peer(tiny_directories[name], dtype)
    poolings: tuple[PoolingMode, ...] = ("last" if family.causal else "cls", "mean")
    for seed, lengths in enumerate(LENGTHS):
        encoded = random_texts(lengths, family, seed=seed)
        hidden = padded_hidden(peer, encoded, family)
        for pooling in poolings:
            classifier = build_classifier(backbone, pooling, dtype)
            found = logits_in_order(classifier, encoded, range(len(lengths)))
            wanted = nn.functional.linear(pooled_by_hand(hidden, pooling), classifier.head.weight, classifier.head.bias)
            assert found.dtype == dtype
            torch.testing.assert_close(found, wanted, **PEER[dtype])


@torch.no_grad()
def test_logits_do_not_depend_on_the_batch(name: str, dtype: torch.dtype, tiny_directories: dict[str, Path]) -> None:
    family = FAMILIES[name]
    classifier = build_classifier(load_backbone(tiny_directories[name], dtype), "mean", dtype)
    for seed, lengths in enumerate(LENGTHS):
        encoded = random_texts(lengths, family, seed=seed)
        rows = range(len(lengths))
        alone = torch.cat([logits_in_order(classifier, encoded, [row]) for row in rows])
        torch.testing.assert_close(logits_in_order(classifier, encoded, rows), alone, **ALONE[dtype])
        some = list(rows)[::-2]
        torch.testing.assert_close(logits_in_order(classifier, encoded, some), alone[some], **ALONE[dtype])


def test_a_family_is_packed_and_read_in_its_direction(name: str, tiny_directories: dict[str, Path]) -> None:
    backbone = load_backbone(tiny_directories[name])
    assert backbone.packed is FAMILIES[name].packed
    assert backbone.causal is FAMILIES[name].causal
    assert backbone.vocab_size == VOCABULARY


def test_a_family_is_counted_as_its_file_counts_it(name: str, tiny_directories: dict[str, Path]) -> None:
    tensors = load_file(str(tiny_directories[name] / "model.safetensors"))
    # BERT's pooler lies in the file and is not built: it belongs to BERT's own heads.
    wanted = sum(tensor.numel() for key, tensor in tensors.items() if not key.startswith("pooler."))
    assert load_backbone(tiny_directories[name]).num_parameters == wanted


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("modernbert", {"local_attention": 512}),
        ("mistral", {"sliding_window": None}),
        ("gemma2", {"attn_logit_softcapping": None}),
        ("gemma2", {"sliding_window": 512}),
        ("gemma3", {"sliding_window": 512}),
        ("phi3", {"sliding_window": None}),
    ],
)
@torch.no_grad()
def test_the_comparison_would_notice(name: str, changes: dict[str, Any], tiny_directories: dict[str, Path]) -> None:
    """Without its window or its soft cap a family's own hidden states move far beyond the tolerance above."""
    family = FAMILIES[name]
    encoded = random_texts(LENGTHS[0], family, seed=0)
    longest = int(encoded.lengths.argmax())
    peer = load_peer(tiny_directories[name], torch.float32)
    config = transformers.AutoConfig.from_pretrained(tiny_directories[name], **changes)
    other = transformers.AutoModel.from_pretrained(tiny_directories[name], config=config, attn_implementation="eager")
    with_it, without = (padded_hidden(model, encoded, family)[longest] for model in (peer, other.eval()))
    assert float((with_it - without).abs().max()) > 1e-2  # a hundred times the tolerance
