"""``ClassifyConfig``: the twelve fields and defaults of the original pipeline, and what ours add to them."""

from __future__ import annotations

from typing import Any

import pydantic
import pytest

from qlassify.config import recommend
from qlassify.config.classify import ClassifyConfig
from qlassify.config.run import RunConfig, TrainingConfig
from qlassify.errors import ConfigError

SEED_DEFAULTS: dict[str, Any] = {
    "num_classes": 5,
    "lora_rank": 16,
    "lora_alpha": 16.0,
    "learning_rate": 1e-4,
    "epochs": 3,
    "max_seq_len": 512,
    "log_interval": 100,
    "batch_size": 32,
    "accumulation_steps": 1,
    "gradient_clip_norm": 1.0,
    "class_weights": None,
    "quantize_nf4": False,
}


def test_the_twelve_fields_come_first_with_their_defaults() -> None:
    assert list(ClassifyConfig.model_fields)[:12] == list(SEED_DEFAULTS)
    config = ClassifyConfig()
    assert {name: getattr(config, name) for name in SEED_DEFAULTS} == SEED_DEFAULTS


def test_every_field_says_what_it_is() -> None:
    assert [name for name, field in ClassifyConfig.model_fields.items() if not field.description] == []


@pytest.mark.parametrize(
    ("params", "rate"),
    [
        (1, 2e-4),
        (7_000_000_000, 2e-4),
        (13_000_000_000, 2e-4),
        (13_000_000_001, 1e-4),
        (70_000_000_000, 1e-4),
    ],
)
def test_qlora_default(params: int, rate: float) -> None:
    """Two classes, alpha twice the rank, 256 tokens, batch 16, NF4; the lower rate above 13 billion parameters."""
    config = ClassifyConfig.qlora_default(params)
    changed = {
        "num_classes": 2,
        "lora_alpha": 32.0,
        "learning_rate": rate,
        "max_seq_len": 256,
        "batch_size": 16,
        "quantize_nf4": True,
    }
    assert {name: getattr(config, name) for name in SEED_DEFAULTS} == SEED_DEFAULTS | changed


@pytest.mark.parametrize("quantize", [True, False])
def test_quantize_nf4_is_qlora_on_nf4_in_groups_of_64(quantize: bool) -> None:
    """What the field says, and nothing else of the run depends on it."""
    run = ClassifyConfig.qlora_default(600_000_000).replace(quantize_nf4=quantize).to_run_config()
    assert run.method.kind == ("qlora" if quantize else "lora")
    if quantize:
        assert run.quant is not None
        assert run.quant == run.wanted_quant
        found = (run.quant.kind, run.quant.bits, run.quant.group_size, run.quant.double, run.quant.zero_point)
        assert found == ("nf4", 4, 64, True, False)
    else:
        assert run.quant is None
        assert run.wanted_quant is None
    assert (run.method.rank, run.method.alpha, run.training.batch_size) == (16, 32.0, 16)


@pytest.mark.parametrize(
    ("weights", "fits"),
    [
        (None, True),
        ((1.0, 2.0, 3.0), True),
        ((1.0, 2.0), False),
        ((1.0, 2.0, 3.0, 4.0), False),
        ((), False),
        ((1.0, 0.0, 1.0), False),
        ((1.0, -1.0, 1.0), False),
        ((1.0, float("nan"), 1.0), False),
    ],
)
def test_class_weights_are_one_positive_number_per_class(weights: tuple[float, ...] | None, fits: bool) -> None:
    if fits:
        assert ClassifyConfig.parse({"num_classes": 3, "class_weights": weights}).class_weights == weights
    else:
        with pytest.raises(ConfigError, match="class_weights"):
            ClassifyConfig.parse({"num_classes": 3, "class_weights": weights})


def test_every_field_reaches_the_run() -> None:
    """Each field with a value that is not its default, so that one that is forgotten shows."""
    config = ClassifyConfig(
        num_classes=3,
        lora_rank=3,
        lora_alpha=5.0,
        learning_rate=7e-4,
        epochs=11,
        max_seq_len=77,
        log_interval=13,
        batch_size=17,
        accumulation_steps=2,
        gradient_clip_norm=None,
        class_weights=(1.0, 2.0, 3.0),
        head_learning_rate=9e-4,
        weight_decay=0.2,
        warmup_fraction=0.3,
        schedule="cosine",
        label_smoothing=0.05,
        lora_dropout=0.15,
        target_modules=("query",),
        use_rslora=True,
        pooling="mean",
        long="windows",
        window_overlap=9,
        max_windows=5,
        head_bias=True,
        precision="fp32",
        device="cpu",
        seed=99,
    )
    run = config.to_run_config("somewhere")
    assert run.model.model_dump() == {
        "base": "somewhere",
        "pooling": "mean",
        "max_length": 77,
        "long": "windows",
        "window_overlap": 9,
        "max_windows": 5,
        "head_bias": True,
        "precision": "fp32",
        "device": "cpu",
        "dense_copies": "never",
    }
    assert run.method.model_dump() == {
        "kind": "lora",
        "rank": 3,
        "alpha": 5.0,
        "dropout": 0.15,
        "target_modules": ("query",),
        "rslora": True,
        "start": "zero",
        "lora_plus_ratio": 1.0,
    }
    wanted = TrainingConfig().model_dump() | {
        "epochs": 11,
        "batch_size": 17,
        "accumulation_steps": 2,
        "learning_rate": 7e-4,
        "head_learning_rate": 9e-4,
        "weight_decay": 0.2,
        "schedule": "cosine",
        "warmup_fraction": 0.3,
        "gradient_clip_norm": None,
        "class_weights": (1.0, 2.0, 3.0),
        "label_smoothing": 0.05,
        "log_interval": 13,
    }
    assert run.training.model_dump() == wanted
    assert run.seed == 99
    not_settings = {"num_classes", "multi_label", "quantize_nf4"}
    changed = {name for name, value in config.model_dump().items() if value != getattr(ClassifyConfig(), name)}
    assert changed == set(ClassifyConfig.model_fields) - not_settings | {"num_classes"}


def test_the_head_has_the_adapters_rate_unless_it_is_given() -> None:
    assert ClassifyConfig(learning_rate=3e-4).to_run_config().training.head_learning_rate == 3e-4


def test_no_default_lives_twice() -> None:
    """Ours that both faces have agree."""
    flat, run = ClassifyConfig(), RunConfig()
    for name in ("weight_decay", "warmup_fraction", "schedule", "label_smoothing", "gradient_clip_norm", "epochs"):
        assert getattr(flat, name) == getattr(run.training, name), name
    for name in ("long", "window_overlap", "max_windows"):
        assert getattr(flat, name) == getattr(run.model, name), name
    assert flat.seed == run.seed


# Recommended settings


@pytest.mark.parametrize(
    ("params", "decoder", "rate"),
    [
        (22_713_216, False, 1e-3),
        (59_999_999, False, 1e-3),
        (60_000_000, False, 4e-4),
        (125_000_000, False, 4e-4),
        (199_999_999, False, 4e-4),
        (200_000_000, False, 3e-4),
        (355_000_000, False, 3e-4),
        (500_000_000, True, 2e-4),
        (13_000_000_000, True, 2e-4),
        (13_000_000_001, True, 1e-4),
    ],
)
def test_rates_by_size_and_kind(params: int, decoder: bool, rate: float) -> None:
    config = ClassifyConfig.recommended(4, num_rows=5000, model_params=params, decoder=decoder)
    assert config.learning_rate == rate
    assert config.head_learning_rate == max(rate, 1e-3)
    assert (config.lora_rank, config.lora_alpha) == (16, 32.0)


@pytest.mark.parametrize(
    ("rows", "decoder", "batch"), [(999, False, 16), (1000, False, 32), (100_000, True, 16), (10, True, 16)]
)
def test_batch_sizes(rows: int, decoder: bool, batch: int) -> None:
    assert ClassifyConfig.recommended(2, num_rows=rows, decoder=decoder).batch_size == batch


@pytest.mark.parametrize(
    ("rows", "classes", "epochs"),
    [
        (100, 2, 20),  # 7 steps an epoch, 640 wanted: 90 epochs, bounded
        (5000, 6, 5),  # 157 steps an epoch, 720 wanted
        (10_000, 77, 7),  # 313 steps an epoch, 2140 wanted
        (1_000_000, 2, 3),
        (1, 2, 20),
    ],
)
def test_epochs_from_steps(rows: int, classes: int, epochs: int) -> None:
    assert ClassifyConfig.recommended(classes, num_rows=rows).epochs == epochs


def test_recommended_settings_are_valid_settings() -> None:
    facts = recommend.Facts(125_000_000, False, 10, 4000)
    RunConfig.parse(recommend.recommended_settings(facts))
    config = ClassifyConfig.recommended(10, num_rows=4000, multi_label=True)
    assert config.multi_label
    config.to_run_config()


@pytest.mark.parametrize(
    ("method", "small", "base", "head_rate"),
    [
        ({"kind": "lora"}, 1e-3, 4e-4, 1e-3),
        ({"kind": "ia3"}, 1e-2, 3e-3, 3e-3),
        ({"kind": "adapter"}, 1e-3, 1e-4, 1e-3),
        ({"kind": "bitfit"}, 3e-3, 3e-4, 1e-3),
        ({"kind": "full"}, 5e-5, 2e-5, 1e-3),
        ({"kind": "prefix"}, 3e-2, 1e-2, 1e-3),
        ({"kind": "prefix", "reparametrize": True}, 1e-3, 1e-3, 1e-3),
    ],
)
def test_rates_by_method(method: dict[str, object], small: float, base: float, head_rate: float) -> None:
    """Measured on MiniLM below 60 M parameters, as published from there on; the head's is one of weights."""
    config = RunConfig.parse({"method": method}).method
    for params, rate in ((22_713_216, small), (110_000_000, base)):
        training = recommend.recommended_settings(recommend.Facts(params, False, 6, 5000), config)["training"]
        assert (training["learning_rate"], training["head_learning_rate"]) == (rate, head_rate)


# Mistakes


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"num_classes": 1}, ["num_classes", "1", "greater than or equal to 2"]),
        ({"learning_rate": 0}, ["learning_rate", "0", "greater than 0"]),
        ({"learning_rate": float("nan")}, ["learning_rate", "finite"]),
        ({"learning_rate": "fast"}, ["learning_rate", "fast", "number"]),
        ({"epochs": 2.5}, ["epochs", "2.5", "integer"]),
        ({"label_smoothing": 1.0}, ["label_smoothing", "1.0", "less than 1"]),
        ({"schedule": "square"}, ["schedule", "square", "linear", "cosine", "constant"]),
        ({"target_modules": []}, ["target_modules", "names no module"]),
        ({"lora_rang": 4}, ["unknown option lora_rang", "Did you mean lora_rank?"]),
        ({"max_length": 128}, ["unknown option max_length"]),
        ({"epochs": 0, "batch_size": 0}, ["epochs", "batch_size"]),
    ],
)
def test_mistakes_name_option_value_and_what_is_accepted(settings: dict[str, Any], parts: list[str]) -> None:
    """All of them at once, in our words."""
    with pytest.raises(ConfigError) as caught:
        ClassifyConfig.parse(settings)
    for part in parts:
        assert part in str(caught.value)
    assert caught.value.exit_code == 2


def test_keywords_give_the_same_error_as_a_mapping() -> None:
    """``ClassifyConfig(lora_rang=4)`` is how the library is used; its reader wants the sentence too."""
    with pytest.raises(ConfigError, match="Did you mean lora_rank"):
        ClassifyConfig(lora_rang=4)  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="num_classes is 1"):
        ClassifyConfig(num_classes=1)


def test_it_is_frozen_and_replaced() -> None:
    config = ClassifyConfig()
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        config.epochs = 4
    assert (config.replace(epochs=4).epochs, config.epochs) == (4, 3)
    with pytest.raises(ConfigError, match="epochs is 0"):
        config.replace(epochs=0)
    with pytest.raises(ConfigError, match="Did you mean epochs"):
        config.replace(epoch=4)
