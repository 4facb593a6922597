"""Pooling against loops over texts, its gradients, and the choice of a pooling from a checkpoint's own files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from qlassify.errors import ModelError
from qlassify.models.packed_layout import PackedLayout
from qlassify.models.pooling import PoolingMode, choose_pooling, pool

LENGTHS = (3, 1, 9, 1, 4)
MODES: tuple[PoolingMode, ...] = ("last", "cls", "mean")


def by_hand(hidden_TH: Tensor, mode: PoolingMode) -> Tensor:
    rows: list[Tensor] = []
    for text in hidden_TH.split(LENGTHS):
        if mode == "last":
            rows.append(text[len(text) - 1])
        elif mode == "cls":
            rows.append(text[0])
        else:
            rows.append(sum(text[index] for index in range(len(text))) / len(text))
    return torch.stack(rows)


@pytest.mark.parametrize("mode", MODES)
def test_vectors_and_gradients_equal_a_loop(mode: PoolingMode, generator: torch.Generator) -> None:
    layout = PackedLayout(np.array(LENGTHS))
    hidden = torch.randn(sum(LENGTHS), 5, generator=generator, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(len(LENGTHS), 5, generator=generator, dtype=torch.float64)
    found, wanted = pool(hidden, layout, mode), by_hand(hidden, mode)
    # Up to nine additions in float64, perhaps in another order.
    torch.testing.assert_close(found, wanted, rtol=1e-14, atol=1e-14)
    gradients = [torch.autograd.grad(result, hidden, grad)[0] for result in (found, wanted)]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("mode", MODES)
def test_half_precision_is_pooled_in_fp32(mode: PoolingMode, generator: torch.Generator) -> None:
    hidden = torch.randn(sum(LENGTHS), 5, generator=generator).bfloat16()
    found = pool(hidden, PackedLayout(np.array(LENGTHS)), mode)
    assert found.dtype == torch.float32
    # bf16 values are exact in fp32, so only the order of nine fp32 additions is free.
    torch.testing.assert_close(found, by_hand(hidden.float(), mode), rtol=1e-6, atol=1e-6)


def test_the_mean_of_a_long_text_loses_nothing() -> None:
    # 4,096 ones and one 4,096 in bf16: a bf16 sum would stop growing at 256.
    hidden = torch.ones(4097, 1, dtype=torch.bfloat16)
    hidden[0] = 4096
    found = pool(hidden, PackedLayout(np.array([4097])), "mean")
    torch.testing.assert_close(found, torch.tensor([[8192 / 4097]]), rtol=1e-6, atol=0)


@pytest.mark.parametrize("mode", MODES)
def test_a_poisoned_neighbour_does_not_reach_a_text(mode: PoolingMode, generator: torch.Generator) -> None:
    hidden = torch.randn(sum(LENGTHS), 5, generator=generator)
    poisoned = hidden.clone()
    poisoned[:3] = float("nan")
    layout = PackedLayout(np.array(LENGTHS))
    assert torch.equal(pool(poisoned, layout, mode)[1:], pool(hidden, layout, mode)[1:])


def write_settings(directory: Path, settings: Any) -> None:
    folder = directory / "1_Pooling"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")


@pytest.mark.parametrize(("causal", "wanted"), [(True, "last"), (False, "cls")])
def test_without_a_word_the_architecture_decides(tmp_path: Path, causal: bool, wanted: str) -> None:
    assert choose_pooling(tmp_path, causal=causal) == wanted


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, "cls"),
        ({"pooling_mode_lasttoken": True, "pooling_mode_max_tokens": False}, "last"),
        ({"pooling_mode": "mean"}, "mean"),
        ({"pooling_mode": "cls"}, "cls"),
        ({"pooling_mode": "lasttoken"}, "last"),
    ],
)
@pytest.mark.parametrize("causal", [True, False])
def test_the_checkpoint_decides_where_it_says(tmp_path: Path, settings: Any, wanted: str, causal: bool) -> None:
    write_settings(tmp_path, settings)
    assert choose_pooling(tmp_path, causal=causal) == wanted


@pytest.mark.parametrize(
    "settings",
    [
        {"pooling_mode_max_tokens": True},
        {"pooling_mode": "max"},
        {},
        {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True},
        {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True},
        {"pooling_mode_mean_tokens": True, "pooling_mode_mean_sqrt_len_tokens": True},
    ],
    ids=["max flag", "max name", "nothing", "two of ours", "concatenated with another", "concatenated with sqrt"],
)
def test_another_pooling_is_refused(tmp_path: Path, settings: Any) -> None:
    write_settings(tmp_path, settings)
    with pytest.raises(ModelError, match="not supported"):
        choose_pooling(tmp_path, causal=False)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    write_settings(tmp_path, {})
    (tmp_path / "1_Pooling" / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ModelError, match="cannot read the pooling"):
        choose_pooling(tmp_path, causal=False)
