"""``QuantConfig``: what follows from what, which combinations are refused, and the size in closed form."""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlassify.config.quant import BITS, SCALES_PER_SUPER_GROUP, QuantConfig
from qlassify.errors import ConfigError

POSSIBLE: dict[tuple[str, bool, bool], bool] = {
    # (kind, double, zero_point): possible?
    **{(kind, double, False): True for kind in ("nf4", "fp4", "int4", "int8") for double in (False, True)},
    **{(kind, False, True): kind.startswith("int") for kind in ("nf4", "fp4", "int4", "int8")},
    **{(kind, True, True): False for kind in ("nf4", "fp4", "int4", "int8")},
}


def configs() -> st.SearchStrategy[QuantConfig]:
    possible = [key for key, allowed in POSSIBLE.items() if allowed]
    return st.builds(
        lambda key, size: QuantConfig(kind=key[0], double=key[1], zero_point=key[2], group_size=size),
        st.sampled_from(possible),
        st.one_of(st.integers(1, 300), st.integers(1, 10**7)),
    )


def test_defaults() -> None:
    config = QuantConfig()
    assert config.model_dump() == {"kind": "nf4", "bits": 4, "group_size": 64, "double": True, "zero_point": False}


@pytest.mark.parametrize(
    ("settings", "kind", "bits", "double"),
    [
        ({"bits": 8}, "int8", 8, False),
        ({"bits": 4}, "nf4", 4, True),
        ({"kind": "int8"}, "int8", 8, False),
        ({"kind": "int8", "bits": 8}, "int8", 8, False),
        ({"kind": "int8", "double": True}, "int8", 8, True),
        ({"kind": "int4"}, "int4", 4, True),
        ({"kind": "int4", "zero_point": True}, "int4", 4, False),
        ({"kind": "int8", "zero_point": True}, "int8", 8, False),
        ({"bits": 8, "zero_point": True}, "int8", 8, False),
        ({"kind": "fp4", "bits": 4}, "fp4", 4, True),
        ({"double": False}, "nf4", 4, False),
    ],
)
def test_what_follows_from_what(settings: dict[str, Any], kind: str, bits: int, double: bool) -> None:
    config = QuantConfig.parse(settings)
    assert (config.kind, config.bits, config.double) == (kind, bits, double)
    assert QuantConfig(**settings) == config


@pytest.mark.parametrize(("kind", "double", "zero_point"), POSSIBLE)
def test_every_combination_is_possible_or_refused(kind: str, double: bool, zero_point: bool) -> None:
    settings = {"kind": kind, "double": double, "zero_point": zero_point}
    if POSSIBLE[kind, double, zero_point]:
        assert QuantConfig.parse(settings).model_dump(include=set(settings)) == settings
        return
    option = "quant.zero_point" if kind in ("nf4", "fp4") else "quant.double"
    with pytest.raises(ConfigError, match=option):
        QuantConfig.parse(settings)


@pytest.mark.parametrize(("kind", "bits"), list(itertools.product(BITS, (4, 8))))
def test_bits_must_be_the_kinds(kind: str, bits: int) -> None:
    if bits == (8 if kind == "int8" else 4):
        assert QuantConfig.parse({"kind": kind, "bits": bits}).bits == bits
        return
    with pytest.raises(ConfigError, match=rf"quant\.bits is {bits}, but {kind} has {12 - bits}"):
        QuantConfig.parse({"kind": kind, "bits": bits})


@pytest.mark.parametrize(
    ("settings", "option"),
    [
        ({"kind": "nf3"}, "kind"),
        ({"kind": None}, "kind"),
        ({"kind": ["nf4"]}, "kind"),
        ({"bits": 3}, "bits"),
        ({"bits": "eight"}, "bits"),
        ({"group_size": 0}, "group_size"),
        ({"group_size": -64}, "group_size"),
        ({"group_size": 1.5}, "group_size"),
        ({"double": "perhaps"}, "double"),
        ({"zero_point": "perhaps"}, "zero_point"),
        ({"group": 64}, "group_size"),
    ],
)
def test_what_is_no_setting_is_refused_by_name(settings: dict[str, Any], option: str) -> None:
    with pytest.raises(ConfigError, match=option):
        QuantConfig.parse(settings)


def test_a_config_does_not_change() -> None:
    with pytest.raises(Exception, match="frozen"):
        QuantConfig().group_size = 32  # type: ignore[misc]


@given(configs())
def test_a_dump_parsed_again_is_the_same(config: QuantConfig) -> None:
    for mode in ("python", "json"):
        again = QuantConfig.parse(config.model_dump(mode=mode))
        assert again == config
        # Levels are looked up by the config, so equal ones have to hash equally.
        assert hash(again) == hash(config)
    assert config.replace() == config
    assert config.replace(group_size=config.group_size + 1).model_dump() == {
        **config.model_dump(),
        "group_size": config.group_size + 1,
    }


def test_replacing_validates() -> None:
    with pytest.raises(ConfigError, match="group_size"):
        QuantConfig().replace(group_size=0)
    with pytest.raises(ConfigError, match=r"quant\.zero_point"):
        QuantConfig(double=False).replace(zero_point=True)


@pytest.mark.parametrize(
    ("settings", "bits"),
    [
        # 4 + 8/64 + 32/(64 * 256), and the same with an fp32 scale: 4 + 32/64.
        ({}, 4.126953125),
        ({"double": False}, 4.5),
        ({"kind": "int4", "zero_point": True}, 5.0),
        ({"kind": "int8"}, 8.5),
        ({"kind": "int8", "zero_point": True, "group_size": 128}, 8.5),
        ({"kind": "fp4", "group_size": 32}, 4.25390625),
    ],
)
def test_bits_per_weight(settings: dict[str, Any], bits: float) -> None:
    assert QuantConfig.parse(settings).bits_per_weight == bits


@given(configs(), st.integers(1, 10**10))
def test_storage_in_closed_form(config: QuantConfig, count: int) -> None:
    """Counted again from the parts, in whole bits; and against ``bits_per_weight``, which leaves the remainders out."""
    groups = len(range(0, count, config.group_size))
    total = 8 * len(range(0, count * config.bits, 8))
    if config.double:
        total += 8 * groups + 32 * len(range(0, groups, SCALES_PER_SUPER_GROUP)) + 32
    else:
        total += 32 * groups
    total += 32 * groups if config.zero_point else 0
    assert config.storage_bytes(count) * 8 == total

    # Rounded up: the last byte of codes, the last group's scale and zero point, the last maximum (and what it grows by
    # for that last group); and the mean. Below, only float64's rounding of the 1e10 times some bits.
    rounded_up = total - Fraction(config.bits_per_weight) * count
    assert -1e-4 <= rounded_up < 8 + 64 + 33 + 32


def test_no_weights_take_no_more_than_the_mean() -> None:
    assert QuantConfig(double=False).storage_bytes(0) == 0
    assert QuantConfig().storage_bytes(0) == 4


@given(configs())
def test_the_text_says_what_counts(config: QuantConfig) -> None:
    text = str(config)
    assert text.startswith(f"{config.kind.upper()} (groups of {config.group_size}")
    assert ("double" in text) == config.double
    assert ("zero points" in text) == config.zero_point
    assert f"{config.bits_per_weight:.3f} bits per weight" in text
