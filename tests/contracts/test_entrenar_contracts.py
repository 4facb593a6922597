"""C-HP-001 to 008 on ``ClassifyConfig`` fire where entrenar's code fires, and where its contract file promises it."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest

from qlassify import ClassifyConfig, DataStats, HyperparamDiagnostic, HyperparamDiagnostics
from qlassify.contracts.rule import Severity

FOUR_BILLION = 4_000_000_000
BALANCED = DataStats(p99_token_length=253, imbalance_ratio=1.0, minority_count=5000)
IMBALANCED = DataStats(p99_token_length=253, imbalance_ratio=14.5, minority_count=926)


def good(**changes: Any) -> ClassifyConfig:
    """Settings that break none of the eight, changed without the settings' own checks."""
    fields = {name: getattr(ClassifyConfig(), name) for name in ClassifyConfig.model_fields}
    fields |= {"lora_alpha": 32.0, "batch_size": 16, "max_seq_len": 256, "learning_rate": 2e-4, "quantize_nf4": True}
    return ClassifyConfig.model_construct(**{**fields, **changes})


def broken(config: ClassifyConfig, params: int = FOUR_BILLION, stats: DataStats = BALANCED) -> dict[str, Severity]:
    """Id -> severity of what both validations say."""
    items = (*config.validate_hyperparameters(params).items, *config.validate_with_data(stats).items)
    assert len({item.contract_id for item in items}) == len(items)
    return {item.contract_id: item.severity for item in items}


WARN, ERROR = Severity.WARN, Severity.ERROR


def test_good_settings_break_nothing() -> None:
    assert broken(good()) == {}


# The eight tests of the contract file; its seventh is of rule 008, and its eighth of the default.


def test_falsify_hp_001() -> None:
    """NF4 at 1e-4 on four billion parameters."""
    config = ClassifyConfig.qlora_default(FOUR_BILLION).replace(learning_rate=1e-4)
    assert config.validate_hyperparameters(FOUR_BILLION).has_warning("C-HP-001")
    assert broken(good(learning_rate=1e-4)) == {"C-HP-001": WARN}


def test_falsify_hp_002() -> None:
    """Four rows a step."""
    assert broken(good(batch_size=4, accumulation_steps=1)) == {"C-HP-002": WARN}
    assert broken(good(batch_size=4, accumulation_steps=4)) == {}


def test_falsify_hp_003() -> None:
    """Alpha 16 at rank 16."""
    assert broken(good(lora_rank=16, lora_alpha=16.0)) == {"C-HP-003": WARN}


def test_falsify_hp_004() -> None:
    """512 tokens where 99 % of the texts have 253."""
    assert broken(good(max_seq_len=512)) == {"C-HP-004": WARN}
    (found,) = good(max_seq_len=512).validate_with_data(BALANCED).items
    assert found.remedy == {"max_seq_len": 256}


@pytest.mark.parametrize("fraction", [None, 0.0, 0.029, 0.101, 0.5])
def test_falsify_hp_005(fraction: float | None) -> None:
    """No warm-up, or one out of its range."""
    assert broken(good(warmup_fraction=fraction)) == {"C-HP-005": WARN}


def test_falsify_hp_006() -> None:
    """Gradients are not clipped."""
    assert broken(good(gradient_clip_norm=None)) == {"C-HP-006": WARN}


def test_falsify_hp_007() -> None:
    """One epoch at 14.5 rows to one."""
    assert broken(good(epochs=1), stats=IMBALANCED) == {"C-HP-008": WARN}


def test_falsify_hp_008() -> None:
    """The QLoRA default breaks nothing: 2e-4, 16 rows a step, alpha twice the rank, clipping at 1."""
    config = ClassifyConfig.qlora_default(FOUR_BILLION)
    assert config.validate_hyperparameters(FOUR_BILLION).items == ()
    assert (config.learning_rate, config.batch_size * config.accumulation_steps) == (2e-4, 16)
    assert (config.lora_alpha, config.gradient_clip_norm) == (2.0 * config.lora_rank, 1.0)
    assert config.validate_with_data(IMBALANCED).items == ()


@pytest.mark.parametrize("weight_decay", [0.0, 0.1, 0.011])
def test_weight_decay_which_the_contract_file_promises(weight_decay: float) -> None:
    assert broken(good(weight_decay=weight_decay)) == {"C-HP-007": WARN}


def test_f_hp_gate() -> None:
    """Rate 1e-6, batch 1 and one epoch trigger all that is about them; with everything else wrong, too, all eight, and
    the eight remedies together end them all."""
    gate = {"learning_rate": 1e-6, "batch_size": 1, "epochs": 1}
    assert broken(good(**gate), stats=IMBALANCED) == {"C-HP-001": WARN, "C-HP-002": WARN, "C-HP-008": WARN}
    worst = good(
        **gate,
        lora_alpha=16.0,
        max_seq_len=1024,
        warmup_fraction=0.0,
        gradient_clip_norm=None,
        weight_decay=0.0,
    )
    assert broken(worst, stats=IMBALANCED) == {f"C-HP-00{number}": WARN for number in range(1, 9)}
    items = (*worst.validate_hyperparameters(FOUR_BILLION).items, *worst.validate_with_data(IMBALANCED).items)
    mended = worst
    for item in items:
        mended = mended.model_copy(update=dict(item.remedy))
    assert broken(mended, stats=IMBALANCED) == {}
    ClassifyConfig.parse(mended.model_dump())


# The defaults


@pytest.mark.parametrize("params", [22_565_376, 494_032_768, 7 * 10**9, 70 * 10**9])
def test_the_default_breaks_002_and_003_and_nothing_else(params: int) -> None:
    found = ClassifyConfig().validate_hyperparameters(params)
    assert isinstance(found, HyperparamDiagnostics)
    assert all(isinstance(item, HyperparamDiagnostic) for item in found.items)
    assert [(item.contract_id, item.severity) for item in found.items] == [("C-HP-002", WARN), ("C-HP-003", WARN)]
    assert found.has_warning("C-HP-002")
    assert not found.has_warning("C-HP-001")
    assert not found.has_errors()


@pytest.mark.parametrize("params", [1, 4 * 10**9, 13 * 10**9, 13 * 10**9 + 1, 70 * 10**9])
def test_the_qlora_default_breaks_nothing_at_any_size(params: int) -> None:
    assert ClassifyConfig.qlora_default(params).validate_hyperparameters(params).items == ()


# Against entrenar's code, as predicates


def entrenar_code(config: ClassifyConfig, params: int, stats: DataStats) -> dict[str, Severity]:
    """What entrenar's two functions give, written from their conditions."""
    fired: dict[str, Severity] = {}
    if config.quantize_nf4 and params <= 13_000_000_000 and config.learning_rate < 1.5e-4:
        fired["C-HP-001"] = WARN
    if config.batch_size * config.accumulation_steps != 16:
        fired["C-HP-002"] = WARN
    if abs(config.lora_alpha - 2 * config.lora_rank) > 0.5:
        fired["C-HP-003"] = WARN
    if config.gradient_clip_norm is None:
        fired["C-HP-006"] = WARN
    if config.learning_rate <= 0:
        fired["C-HP-001"] = ERROR
    if config.batch_size == 0:
        fired["C-HP-002"] = ERROR
    if stats.p99_token_length > 0 and config.max_seq_len > 2 * stats.p99_token_length:
        fired["C-HP-004"] = WARN
    if stats.imbalance_ratio > 5 and config.epochs < 2:
        fired["C-HP-008"] = WARN
    return fired


def test_they_fire_where_entrenars_code_fires() -> None:
    """Away from what was mended: rates within the upper bound, alphas not within half of twice the rank."""
    count = 0
    for rate, nf4, params in itertools.product(
        (-1.0, 0.0, 1e-6, 1.4e-4, 1.5e-4, 2e-4, 5e-4), (False, True), (10**8, 13 * 10**9, 13 * 10**9 + 1)
    ):
        if nf4 and params > 13 * 10**9 and 0 < rate < 5e-5:
            continue  # mended: there is a lower bound above 13 B parameters
        for batch, accumulation, alpha in itertools.product((0, 1, 4, 16, 32), (1, 4), (16.0, 32.0, 33.0)):
            config = good(
                learning_rate=rate,
                quantize_nf4=nf4,
                batch_size=batch,
                accumulation_steps=accumulation,
                lora_alpha=alpha,
            )
            assert broken(config, params) == entrenar_code(config, params, BALANCED), config
            count += 1
    for longest, p99, epochs, ratio, clip in itertools.product(
        (8, 64, 505, 506, 507, 512), (0, 4, 32, 253), (1, 2, 3), (1.0, 5.0, 5.01, 14.5), (None, 1.0)
    ):
        stats = DataStats(p99, ratio, 100)
        config = good(max_seq_len=longest, epochs=epochs, gradient_clip_norm=clip)
        assert broken(config, stats=stats) == entrenar_code(config, FOUR_BILLION, stats), (config, stats)
        count += 1
    assert count > 1000


# What was mended


@pytest.mark.parametrize("rate", [0.0, -1e-4, math.nan, math.inf])
def test_rates_that_are_no_rates_are_errors(rate: float) -> None:
    for nf4 in (True, False):
        found = good(learning_rate=rate, quantize_nf4=nf4).validate_hyperparameters(FOUR_BILLION)
        assert found.has_errors()
        assert [(item.contract_id, item.remedy) for item in found.items] == [("C-HP-001", {"learning_rate": 2e-4})]


@pytest.mark.parametrize(
    ("rate", "params", "fires"),
    [
        (5e-4, FOUR_BILLION, False),
        (5.1e-4, FOUR_BILLION, True),
        (5e-5, 33 * 10**9, False),
        (4.9e-5, 33 * 10**9, True),
        (5.1e-4, 33 * 10**9, True),
    ],
)
def test_the_bounds_of_the_contract_file(rate: float, params: int, fires: bool) -> None:
    found = good(learning_rate=rate).validate_hyperparameters(params)
    assert found.has_warning("C-HP-001") == fires


@pytest.mark.parametrize(
    ("alpha", "fires"), [(32.0, False), (32.0005, False), (32.4, True), (31.9, True), (math.nan, True)]
)
def test_alphas_tolerance_is_the_contract_files(alpha: float, fires: bool) -> None:
    assert (broken(good(lora_alpha=alpha)) == {"C-HP-003": WARN}) == fires


def test_alpha_over_rank_says_nothing_of_rslora() -> None:
    assert broken(good(lora_alpha=16.0, use_rslora=True)) == {}


@pytest.mark.parametrize("batch", range(1, 65))
def test_no_recommendation_of_no_batches(batch: int) -> None:
    """16 // batch is 0 from 17 on; every remedy makes it sixteen rows."""
    for accumulation in (1, 2, 7):
        for item in (
            good(batch_size=batch, accumulation_steps=accumulation).validate_hyperparameters(FOUR_BILLION).items
        ):
            assert item.contract_id == "C-HP-002"
            now = {"batch_size": batch, "accumulation_steps": accumulation, **item.remedy}
            assert now["batch_size"] * now["accumulation_steps"] == 16
            assert "accumulation_steps=0" not in item.recommendation


@pytest.mark.parametrize(("batch", "accumulation"), [(0, 1), (16, 0), (0, 0)])
def test_no_rows_a_step_are_an_error(batch: int, accumulation: int) -> None:
    found = broken(good(batch_size=batch, accumulation_steps=accumulation))
    assert found == {"C-HP-002": ERROR}


@pytest.mark.parametrize(
    ("params", "words"), [(494_032_768, "494 M parameters"), (22_565_376, "22.6 M"), (7 * 10**9, "7 B"), (10**6, "1 M")]
)
def test_a_small_model_is_not_one_of_0_b(params: int, words: str) -> None:
    (found,) = good(learning_rate=1e-5).validate_hyperparameters(params).items
    assert words in found.message
    assert "0B" not in found.message


def test_steps_with_a_rare_row_are_the_expectation() -> None:
    """926 of 14,353 rows, 16 a step: 588 of 897 full steps hold one by S(1 - (1-p)^B), where rows over batch has 57."""
    (found,) = good(epochs=1, num_classes=2).validate_with_data(IMBALANCED).items
    rows = 926 * (1 + 14.5)
    expected = math.ceil(rows / 16) * (1 - (1 - 926 / rows) ** 16)
    assert round(expected) == 589  # the last, short step is counted as a full one
    assert "in about 589 steps" in found.message
    assert "926 times" in found.message


def test_a_rare_class_smaller_than_a_batch_is_not_shown_never() -> None:
    """Rows over batch is 0 for 10 rows; the truth is that each of them comes once an epoch."""
    stats = DataStats(p99_token_length=253, imbalance_ratio=50.0, minority_count=10)
    (found,) = good(epochs=1, num_classes=2).validate_with_data(stats).items
    assert "10 times" in found.message
    assert "0 updates" not in found.message


@pytest.mark.parametrize("p99", [1, 2, 3, 20, 64, 65, 253, 256, 300, 1000])
def test_the_recommended_limit_is_the_next_power_of_two(p99: int) -> None:
    stats = DataStats(p99, 1.0, 100)
    (found,) = good(max_seq_len=8192).validate_with_data(stats).items
    limit = found.remedy["max_seq_len"]
    assert limit == max(4, next(power for power in (2**exponent for exponent in range(20)) if power >= p99))
    assert good(max_seq_len=limit).validate_with_data(stats).items == ()


def test_data_that_is_not_known_is_not_an_excuse() -> None:
    """No texts at all: entrenar's rule is silent, too."""
    assert good().validate_with_data(DataStats(0, 1.0, 0)).items == ()
