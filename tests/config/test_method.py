"""``LoraConfig``: scaling and parameter count in closed form."""

from __future__ import annotations

import math

import pytest

from qlassify.config.method import LoraConfig
from qlassify.errors import ConfigError


@pytest.mark.parametrize("rank", [1, 4, 8, 16, 64, 256])
def test_scaling(rank: int) -> None:
    assert LoraConfig(rank=rank, alpha=32.0).scaling == 32.0 / rank
    assert LoraConfig(rank=rank, alpha=32.0, rslora=True).scaling == 32.0 / math.sqrt(rank)


def test_defaults() -> None:
    config = LoraConfig()
    assert (config.rank, config.alpha, config.dropout, config.target_modules) == (16, 32.0, 0.0, "all-linear")
    assert (config.rslora, config.scaling) == (False, 2.0)


def test_parameter_count_of_a_known_model() -> None:
    """Qwen2-0.5B, rank 16 on queries and values: width 896, 128 values, 24 layers; 1,081,344 as published."""
    shapes = [(896, 896), (128, 896)] * 24
    assert LoraConfig(rank=16).parameter_count(shapes) == 1_081_344
    assert LoraConfig(rank=16).parameter_count(iter(shapes)) == 1_081_344
    assert LoraConfig().parameter_count([]) == 0


@pytest.mark.parametrize(
    ("kind", "dora", "low_bit"),
    [("lora", False, False), ("qlora", False, True), ("dora", True, False), ("qdora", True, True)],
)
def test_what_a_kind_means(kind: str, dora: bool, low_bit: bool) -> None:
    """DoRA has one length per row of each layer besides the factors; few bits change no count."""
    config = LoraConfig.parse({"kind": kind, "rank": 16})
    assert (config.dora, config.low_bit) == (dora, low_bit)
    assert config.parameter_count([(896, 896), (128, 896)] * 24) == 1_081_344 + (896 + 128) * 24 * dora


@pytest.mark.parametrize(
    "settings",
    [{"rank": 0}, {"alpha": 0}, {"dropout": 1.0}, {"dropout": -0.1}, {"target_modules": []}, {"kind": "adalora"}],
)
def test_out_of_range(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        LoraConfig.parse(settings)
