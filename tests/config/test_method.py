"""``LoraConfig`` and ``PrefixConfig``: scaling and parameter counts in closed form."""

from __future__ import annotations

import math

import pytest

from qlassify.config.method import LoraConfig, PrefixConfig, positions_before_text
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


def test_the_parameters_of_a_prefix() -> None:
    """BERT-base with 20 virtual tokens: 20 x 2 x 12 x 768 = 368,640."""
    assert PrefixConfig(num_virtual_tokens=20).parameter_count(12, 768) == 368_640
    # Embedding 20 x 768, then 768 x 32 + 32 and 32 x 18,432 + 18,432.
    network = PrefixConfig(num_virtual_tokens=20, reparametrize=True, hidden_size=32)
    assert network.parameter_count(12, 768) == 15_360 + 24_608 + 608_256
    assert network.replace(hidden_size=None).parameter_count(12, 768) == 15_360 + 769 * 768 + 769 * 18_432


def test_a_prefix_takes_positions() -> None:
    assert positions_before_text(PrefixConfig(num_virtual_tokens=7)) == 7
    assert positions_before_text(PrefixConfig(num_virtual_tokens=7, shift_positions=False)) == 0
    assert positions_before_text(LoraConfig()) == 0


def test_a_prefix_says_what_it_is() -> None:
    assert str(PrefixConfig(num_virtual_tokens=7)) == "prefix tuning(7 tokens)"
    assert str(PrefixConfig(num_virtual_tokens=7, reparametrize=True)) == "prefix tuning(7 tokens, reparametrised)"


@pytest.mark.parametrize("settings", [{"num_virtual_tokens": 0}, {"hidden_size": 0}, {"reparametrize": "often"}])
def test_a_prefix_out_of_range(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        PrefixConfig.parse(settings)
