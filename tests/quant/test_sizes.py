"""The size arithmetic: against brainwires' published figures and against layers that are really built."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qlassify import QLoraLayer
from qlassify.errors import ConfigError
from qlassify.quant.tensor import quantize


def test_brainwires_own_figures_for_a_square_layer_of_4096() -> None:
    layer = QLoraLayer.int4(4096, 4096, 16, 32.0)
    assert layer.brainwires_base_bytes() == 8_388_608 + 524_288
    assert layer.adapter_bytes() == 262_144
    assert round(100 * layer.brainwires_savings_ratio(), 2) == 72.66
    assert layer.scaling == 2.0
    assert layer.trainable_params() == 131_072


def test_double_quantisation_is_counted() -> None:
    layer = QLoraLayer.int4(4096, 4096, 16, 32.0)
    # 262,144 groups: one byte each, 1,024 maxima and one mean in fp32.
    assert layer.quantized_base_bytes() == 8_388_608 + 262_144 + 4 * 1024 + 4
    single = QLoraLayer(4096, 4096, 16, 32.0, double_quant=False)
    assert single.quantized_base_bytes() == 8_388_608 + 4 * 262_144
    assert layer.vram_savings_ratio() > layer.brainwires_savings_ratio() > single.vram_savings_ratio()


def test_eight_bits_take_a_byte_per_weight() -> None:
    layer = QLoraLayer.int8(256, 128, 8, 8.0)
    assert layer.bits == 8
    assert layer.quantized_base_bytes() == 256 * 128 + 512 + 4 * 2 + 4
    assert layer.brainwires_base_bytes() == 256 * 128 + 512 * 2


@given(
    st.integers(1, 40), st.integers(1, 40), st.sampled_from([4, 8]), st.integers(1, 100), st.booleans(), st.integers(0)
)
def test_the_count_is_what_a_built_layer_takes(
    rows: int, columns: int, bits: int, group_size: int, double: bool, seed: int
) -> None:
    layer = QLoraLayer(columns, rows, 1, 1.0, bits=bits, group_size=group_size, double_quant=double)
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed % 2**31))
    assert quantize(weight, layer.format).nbytes == layer.quantized_base_bytes()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"in_features": 0}, "in_features"),
        ({"out_features": -1}, "out_features"),
        ({"rank": 0}, "rank"),
        ({"rank": 9}, "at most 8"),
        ({"alpha": 0.0}, "alpha"),
        ({"alpha": float("nan")}, "alpha"),
        ({"bits": 3}, "4 or 8"),
        ({"group_size": 0}, "group_size"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, float], named: str) -> None:
    sizes = {"in_features": 16, "out_features": 8, "rank": 4, "alpha": 8.0, **changes}
    with pytest.raises(ConfigError, match=named):
        QLoraLayer(**sizes)  # type: ignore[arg-type]
