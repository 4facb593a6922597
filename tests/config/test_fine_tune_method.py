"""``FineTuneMethod``: the original's figures and names, and the bridge to configurations that train."""

from __future__ import annotations

import json
import math

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlassify import FineTuneMethod
from qlassify.config.method import (
    BitfitConfig,
    BottleneckConfig,
    FullConfig,
    Ia3Config,
    LoraConfig,
    MethodConfig,
)
from qlassify.config.quant import QuantConfig
from qlassify.config.run import RunConfig
from qlassify.errors import ConfigError

ALL = (
    FineTuneMethod.lora(16),
    FineTuneMethod.lora(8, alpha=0.5),
    FineTuneMethod.qlora(16),
    FineTuneMethod.qlora(8, bits=8),
    FineTuneMethod.adapter(48),
    FineTuneMethod.prefix(10),
    FineTuneMethod.ia3(),
    FineTuneMethod.full(),
)
RULES = (
    "memory_reduction_factor",
    "trainable_params_percent",
    "memory_multiplier",
    "training_speedup",
    "quality_retention",
    "batch_size_multiplier",
)


def knows_prefix() -> bool:
    """Whether there is a configuration of prefix tuning."""
    try:
        pydantic.TypeAdapter(MethodConfig).validate_python({"kind": "prefix", "num_virtual_tokens": 3})
    except pydantic.ValidationError:
        return False
    return True


@pytest.mark.parametrize(
    ("method", "text"),
    [
        (FineTuneMethod.lora(16, alpha=32), "LoRA(r=16, \N{GREEK SMALL LETTER ALPHA}=32)"),
        (FineTuneMethod.lora(4, alpha=0.5), "LoRA(r=4, \N{GREEK SMALL LETTER ALPHA}=0.5)"),
        (FineTuneMethod.lora(4, alpha=2e6), "LoRA(r=4, \N{GREEK SMALL LETTER ALPHA}=2000000)"),
        (FineTuneMethod.qlora(16), "QLoRA(r=16, 4-bit)"),
        (FineTuneMethod.qlora(16, bits=8), "QLoRA(r=16, 8-bit)"),
        (FineTuneMethod.adapter(), "Adapter"),
        (FineTuneMethod.prefix(), "Prefix"),
        (FineTuneMethod.ia3(), "IA³"),
        (FineTuneMethod.full(), "Full"),
    ],
)
def test_they_are_written_as_the_original_writes_them(method: FineTuneMethod, text: str) -> None:
    assert str(method) == text


@pytest.mark.parametrize(
    ("method", "figures"),
    [
        # By hand from the table of the original's constants, in the order of RULES.
        (FineTuneMethod.lora(1), (100.0, 0.0125, 1.2, 5 / (65 / 64), 0.95390625, 2.0)),
        (FineTuneMethod.lora(8), (12.5, 0.1, 1.2, 5 / 1.125, 0.98125, 2.0)),
        (FineTuneMethod.lora(64), (1.5625, 0.2, 1.2, 2.5, 1.0, 2.0)),
        (FineTuneMethod.qlora(16), (8 / 1.16, 0.2, 1.1, 6.0, 0.93, 4.0)),
        (FineTuneMethod.qlora(8, bits=8), (4 / 1.08, 0.1, 1.1, 6.0, 0.93, 4.0)),
        (FineTuneMethod.adapter(), (10.0, 5.0, 1.5, 4.0, 0.92, 1.5)),
        (FineTuneMethod.prefix(), (20.0, 1.0, 1.3, 5.0, 0.88, 1.8)),
        (FineTuneMethod.ia3(), (50.0, 0.01, 1.1, 8.0, 0.90, 3.0)),
        (FineTuneMethod.full(), (1.0, 100.0, 4.0, 2.0, 1.0, 1.0)),
    ],
)
def test_rules_of_thumb_are_the_original_numbers(method: FineTuneMethod, figures: tuple[float, ...]) -> None:
    found = [getattr(method, name)() for name in RULES]
    # The same few operations in float64, perhaps in another order.
    assert found == pytest.approx(figures, rel=1e-14)


@given(rank=st.integers(1, 10**6))
def test_rules_of_thumb_by_rank(rank: int) -> None:
    """A larger rank saves less, trains more and is never said to retain less or run faster."""
    for make in (FineTuneMethod.lora, FineTuneMethod.qlora):
        less, more = make(rank), make(rank + 1)
        assert less.memory_reduction_factor() > more.memory_reduction_factor() > 0
        assert less.trainable_params_percent() <= more.trainable_params_percent() <= 0.2
        assert less.quality_retention() <= more.quality_retention() <= 1
        assert less.training_speedup() >= more.training_speedup() > 0


def test_alpha_is_the_rank_unless_it_is_given() -> None:
    assert FineTuneMethod.lora(16).alpha == 16
    assert FineTuneMethod.qlora(8).alpha == 8
    assert FineTuneMethod.lora(16, alpha=32) != FineTuneMethod.lora(16)
    assert FineTuneMethod.lora(16, alpha=16) == FineTuneMethod.lora(16)
    assert len({FineTuneMethod.lora(16), FineTuneMethod.lora(16), FineTuneMethod.qlora(16)}) == 2


@pytest.mark.parametrize("method", ALL, ids=str)
def test_as_data_and_back(method: FineTuneMethod) -> None:
    settings = json.loads(json.dumps(method.as_dict()))
    assert FineTuneMethod.parse(settings) == method
    assert None not in settings.values()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"rank": 4},
        {"kind": "bitfit"},
        {"kind": "lora"},
        {"kind": "lora", "rank": 4},
        {"kind": "lora", "rank": 0, "alpha": 1.0},
        {"kind": "lora", "rank": 4, "alpha": math.nan},
        {"kind": "lora", "rank": 4, "alpha": 4.0, "bits": 4},
        {"kind": "lora", "rank": "4", "alpha": 4.0},
        {"kind": "lora", "rank": True, "alpha": 4.0},
        {"kind": "lora", "rank": 2.5, "alpha": 4.0},
        {"kind": "qlora", "rank": 4, "alpha": 4.0, "bits": 0},
        {"kind": "qlora", "rank": 4, "alpha": 4.0, "bits": 3},
        {"kind": "full", "rank": 4},
        {"kind": "adapter", "size": -1},
        {"kind": "adapter", "size": 4, "width": 3},
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        FineTuneMethod.parse(settings)


@pytest.mark.parametrize(
    ("method", "config", "quant"),
    [
        (FineTuneMethod.lora(16), LoraConfig(rank=16, alpha=16.0), None),
        (FineTuneMethod.lora(8, alpha=0.5), LoraConfig(rank=8, alpha=0.5), None),
        (FineTuneMethod.qlora(16), LoraConfig(kind="qlora", rank=16, alpha=16.0), QuantConfig()),
        (FineTuneMethod.qlora(8, 8), LoraConfig(kind="qlora", rank=8, alpha=8.0), QuantConfig(kind="int8")),
        (FineTuneMethod.adapter(48), BottleneckConfig(size=48), None),
        (FineTuneMethod.ia3(), Ia3Config(), None),
        (FineTuneMethod.full(), FullConfig(), None),
    ],
    ids=str,
)
def test_the_bridge_and_back(method: FineTuneMethod, config: MethodConfig, quant: QuantConfig | None) -> None:
    assert method.to_config() == config
    assert method.to_quant() == quant
    assert FineTuneMethod.from_config(config, quant) == method
    run = RunConfig.parse(
        {"method": config.model_dump(), "quant": None if quant is None else quant.model_dump()}
    )  # what a job takes
    assert FineTuneMethod.from_config(run.method, run.wanted_quant) == method


def test_lora_on_low_bit_weights_is_qlora_by_either_name() -> None:
    wanted = FineTuneMethod.qlora(4)
    assert FineTuneMethod.from_config(LoraConfig(kind="qlora", rank=4, alpha=4.0)) == wanted
    assert FineTuneMethod.from_config(LoraConfig(rank=4, alpha=4.0), QuantConfig(kind="fp4")) == wanted


@pytest.mark.parametrize(
    "config",
    [LoraConfig(kind="dora"), LoraConfig(kind="qdora"), LoraConfig(rslora=True), BitfitConfig()],
    ids=str,
)
def test_methods_without_a_name_are_refused(config: MethodConfig) -> None:
    with pytest.raises(ConfigError, match="no name for this method"):
        FineTuneMethod.from_config(config)


def test_a_value_that_no_configuration_takes() -> None:
    with pytest.raises(ConfigError, match="cannot be trained"):
        FineTuneMethod.lora(4, alpha=math.inf).to_config()


def test_prefix_goes_through_the_settings() -> None:
    """Refused in words while there is no such method, and the same there and back once there is."""
    method = FineTuneMethod.prefix(10)
    if not knows_prefix():
        with pytest.raises(ConfigError, match="Prefix"):
            method.to_config()
        return
    config = method.to_config()
    assert config.model_dump()["num_virtual_tokens"] == 10
    assert FineTuneMethod.from_config(config) == method
    assert method.to_quant() is None
