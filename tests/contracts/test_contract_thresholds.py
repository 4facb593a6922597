"""Each threshold from both sides: the last value that is kept and the first that is not."""

from __future__ import annotations

import math
from typing import Any

import pytest

from qlassify.contracts.rates import BANDS, PREFIX_NETWORK, Band
from qlassify.contracts.registry import contract
from qlassify.contracts.rule import Severity
from qlassify.contracts.situation import Situation, TokenLengths, Truncation

INFO, WARN, ERROR = Severity.INFO, Severity.WARN, Severity.ERROR
ENCODER, DECODER = {"model.decoder": False}, {"model.decoder": True}
LENGTHS = {"data.token_lengths": TokenLengths(40, 120, 180, 253, 700), "model.max_positions": 512}


def gives(contract_id: str, settings: dict[str, Any], facts: dict[str, Any] | None = None) -> Severity | None:
    one = contract(contract_id)
    situation = Situation.of(settings, facts or {})
    assert situation.missing(one.needs) == ()
    found = one.check(situation)
    return None if found is None else found.severity


def rows(batch: int) -> dict[str, Any]:
    return {"training.batch_size": batch}


def truncated(share: float, limit: int = 64, positions: int = 512) -> tuple[dict[str, Any], dict[str, Any]]:
    cut = Truncation(limit, share)
    return {"model.max_length": limit}, {**LENGTHS, "data.truncation": cut, "model.max_positions": positions}


def by_class(worst: float, share: float) -> tuple[dict[str, Any], dict[str, Any]]:
    cut = Truncation(64, share, (0.0, worst))
    return {"model.max_length": 64}, {**LENGTHS, "data.truncation": cut}


CASES: list[tuple[str, Severity | None, dict[str, Any], dict[str, Any]]] = [
    ("C-LR-002", WARN, {"training.learning_rate": 5e-5}, {}),
    ("C-LR-002", None, {"training.learning_rate": 5.1e-5}, {}),
    ("C-LR-003", WARN, {"training.head_learning_rate": 5e-5}, {}),
    ("C-LR-003", INFO, {"training.head_learning_rate": 5.1e-5}, {}),
    ("C-LR-003", None, {"method.kind": "full", "training.head_learning_rate": 1e-5}, {}),
    ("C-LR-003", None, {"training.learning_rate": 2e-3, "training.head_learning_rate": 2e-2}, {}),
    ("C-LR-003", WARN, {"training.learning_rate": 2e-3, "training.head_learning_rate": 2.1e-2}, {}),
    ("C-LR-003", None, {"training.head_learning_rate": 1e-2}, {}),
    ("C-LR-003", WARN, {"training.head_learning_rate": 1.1e-2}, {}),
    ("C-LR-003", None, {"method.kind": "prefix", "training.learning_rate": 1e-2}, {}),
    ("C-LR-004", None, {"method.lora_plus_ratio": 4}, {}),
    ("C-LR-004", WARN, {"method.lora_plus_ratio": 3.9}, {}),
    ("C-LR-004", None, {"method.lora_plus_ratio": 32}, {}),
    ("C-LR-004", WARN, {"method.lora_plus_ratio": 32.1}, {}),
    ("C-BATCH-001", INFO, rows(15), ENCODER),
    ("C-BATCH-001", None, rows(16), ENCODER),
    ("C-BATCH-001", None, rows(256), ENCODER),
    ("C-BATCH-001", INFO, rows(257), ENCODER),
    ("C-BATCH-001", INFO, rows(7), DECODER),
    ("C-BATCH-001", None, rows(8), DECODER),
    ("C-BATCH-001", None, rows(32), DECODER),
    ("C-BATCH-001", INFO, rows(33), DECODER),
    ("C-BATCH-001", INFO, rows(64), DECODER),
    ("C-BATCH-001", WARN, rows(65), DECODER),
    ("C-SCALE-001", INFO, {"method.rank": 16, "method.alpha": 2.0}, {}),
    ("C-SCALE-001", WARN, {"method.rank": 16, "method.alpha": 1.9}, {}),
    ("C-SCALE-001", INFO, {"method.rank": 16, "method.alpha": 128.0}, {}),
    ("C-SCALE-001", WARN, {"method.rank": 16, "method.alpha": 129.0}, {}),
    ("C-SCALE-001", None, {"method.rank": 64, "method.alpha": 16.0}, {}),
    ("C-SCALE-001", None, {"method.rank": 256, "method.alpha": 32.0}, {}),
    ("C-SCALE-001", WARN, {"method.rank": 257, "method.alpha": 32.0}, {}),
    ("C-SCALE-001", None, {"method.rank": 2, "method.alpha": 16.0}, {}),
    ("C-SCALE-002", None, {"method.rank": 63, "method.alpha": 16.0}, {}),
    ("C-SCALE-002", WARN, {"method.rank": 64, "method.alpha": 16.0}, {}),
    ("C-SCALE-002", None, {"method.rank": 64, "method.alpha": 16.1}, {}),
    ("C-RANK-001", None, {"method.rank": 32}, {"data.rows": 49_999}),
    ("C-RANK-001", INFO, {"method.rank": 33}, {"data.rows": 49_999}),
    ("C-RANK-001", None, {"method.rank": 33}, {"data.rows": 50_000}),
    ("C-RANK-002", None, {"method.rank": 3}, {"data.class_counts": (9,) * 100}),
    ("C-RANK-002", WARN, {"method.rank": 3}, {"data.class_counts": (9,) * 101}),
    ("C-RANK-002", None, {"method.rank": 4}, {"data.class_counts": (9,) * 101}),
    ("C-RANK-003", None, {"method.rank": 16}, {"model.smallest_side": 128}),
    ("C-RANK-003", INFO, {"method.rank": 17}, {"model.smallest_side": 128}),
    ("C-TARGET-001", WARN, {"method.target_modules": ("self_attn.q_proj", "v_proj")}, DECODER),
    ("C-TARGET-001", None, {"method.target_modules": ("q_proj", "up_proj")}, DECODER),
    ("C-DROPOUT-001", None, {"method.dropout": 0.1}, {"data.rows": 99_999}),
    ("C-DROPOUT-001", INFO, {"method.dropout": 0.11}, {"data.rows": 99_999}),
    ("C-DROPOUT-001", INFO, {"method.dropout": 0.01}, {"data.rows": 100_000}),
    ("C-WARM-001", None, {"training.warmup_fraction": 0.03}, {}),
    ("C-WARM-001", INFO, {"training.warmup_fraction": 0.029}, {}),
    ("C-WARM-001", None, {"training.warmup_fraction": 0.1}, {}),
    ("C-WARM-001", INFO, {"training.warmup_fraction": 0.101}, {}),
    ("C-WARM-001", WARN, {"training.warmup_fraction": 0, "training.learning_rate": 1e-4}, {}),
    ("C-WARM-001", INFO, {"training.warmup_fraction": 0, "training.learning_rate": 9e-5}, {}),
    ("C-DECAY-001", None, {"training.weight_decay": 0.1}, {}),
    ("C-DECAY-001", WARN, {"training.weight_decay": 0.11}, {}),
    ("C-CLIP-001", None, {"training.gradient_clip_norm": 0.3}, {}),
    ("C-CLIP-001", INFO, {"training.gradient_clip_norm": 0.29}, {}),
    ("C-CLIP-001", INFO, {"training.gradient_clip_norm": 1.01}, {}),
    ("C-CLIP-001", WARN, {"quant.kind": "int8", "training.gradient_clip_norm": None}, {}),
    ("C-EPOCH-001", WARN, {"training.epochs": 7}, {"data.rows": 7 * 32}),  # 49 steps
    ("C-EPOCH-001", INFO, {"training.epochs": 10}, {"data.rows": 5 * 32}),  # 50 steps
    ("C-EPOCH-001", INFO, {"training.epochs": 9}, {"data.rows": 111 * 32}),  # 999 steps
    ("C-EPOCH-001", None, {"training.epochs": 10}, {"data.rows": 100 * 32}),  # 1,000 steps
    ("C-EPOCH-001", None, {"training.epochs": 3}, {"data.rows": 5000}),
    ("C-EPOCH-001", INFO, {"training.epochs": 3}, {"data.rows": 4999}),
    ("C-EPOCH-001", INFO, {"training.epochs": 19}, {"data.rows": 100}),
    ("C-EPOCH-001", None, {"training.epochs": 20}, {"data.rows": 10}),
    ("C-EPOCH-002", WARN, {"training.epochs": 2}, {"data.rows": 10_000, "data.class_counts": (9851, 149)}),
    ("C-EPOCH-002", None, {"training.epochs": 2}, {"data.rows": 10_000, "data.class_counts": (9850, 150)}),
    ("C-EPOCH-002", None, {"training.epochs": 1}, {"data.rows": 60, "data.class_counts": (50, 10)}),
    ("C-EPOCH-002", WARN, {"training.epochs": 1}, {"data.rows": 61, "data.class_counts": (51, 10)}),
    ("C-SEQ-001", None, *truncated(0.01)),
    ("C-SEQ-001", INFO, *truncated(0.011)),
    ("C-SEQ-001", INFO, *truncated(0.05)),
    ("C-SEQ-001", WARN, *truncated(0.051)),
    ("C-SEQ-001", WARN, *truncated(0.2)),
    ("C-SEQ-001", ERROR, *truncated(0.201)),
    ("C-SEQ-001", WARN, *truncated(0.9, limit=512, positions=8192)),  # the usual limit is never refused
    ("C-SEQ-001", WARN, *truncated(0.9, limit=128, positions=128)),
    ("C-SEQ-002", None, *by_class(0.05, 0.01)),
    ("C-SEQ-002", WARN, *by_class(0.051, 0.01)),
    ("C-SEQ-002", WARN, *by_class(0.4, 0.2)),
    ("C-SEQ-002", None, *by_class(0.39, 0.2)),
    ("C-LABEL-002", INFO, {}, {"data.leaks": 1, "data.validation_counts": (50, 50)}),
    ("C-LABEL-002", WARN, {}, {"data.leaks": 2, "data.validation_counts": (50, 50)}),
    ("C-LABEL-003", INFO, {}, {"data.conflicts": 10, "data.rows": 1000}),
    ("C-LABEL-003", WARN, {}, {"data.conflicts": 11, "data.rows": 1000}),
    ("C-LABEL-004", None, {}, {"data.duplicates": 50, "data.rows": 1000}),
    ("C-LABEL-004", INFO, {}, {"data.duplicates": 51, "data.rows": 1000}),
    ("C-IMB-001", None, {"training.selection_metric": "accuracy"}, {"data.class_counts": (100, 10)}),
    ("C-IMB-001", WARN, {"training.selection_metric": "accuracy"}, {"data.class_counts": (101, 10)}),
    ("C-EVAL-002", INFO, {}, {"data.validation_counts": (250, 249)}),
    ("C-EVAL-002", None, {}, {"data.validation_counts": (250, 250)}),
]


@pytest.mark.parametrize(
    ("contract_id", "severity", "settings", "facts"), CASES, ids=[f"{case[0]}-{i}" for i, case in enumerate(CASES)]
)
def test_a_threshold_from_both_sides(
    contract_id: str, severity: Severity | None, settings: dict[str, Any], facts: dict[str, Any]
) -> None:
    assert gives(contract_id, settings, facts) == severity


@pytest.mark.parametrize("free", [10_000, 12_499, 12_500])
def test_weights_fit_up_to_four_fifths_of_the_memory(free: int) -> None:
    facts = {"model.linear_bytes": 9000, "model.other_bytes": 1000, "model.bytes_per_parameter": 2}
    found = gives("C-QUANT-001", {"method.kind": "qlora"}, {**facts, "device.free_bytes": free})
    assert found == (INFO if free == 12_500 else None)


@pytest.mark.parametrize("band", BANDS, ids=lambda band: f"{band.family}, {band.models}")
def test_a_band_ends_where_it_says(band: Band) -> None:
    """Also that no earlier row takes what this one is about."""
    decoder = bool(band.decoder)
    facts: dict[str, Any] = {"model.parameters": max(band.least, 1), "model.decoder": decoder}
    if band.model_type is not None:
        facts["model.model_type"] = band.model_type
    method: dict[str, Any] = {"method.kind": band.family}
    if band.family == PREFIX_NETWORK:
        method = {"method.kind": "prefix", "method.reparametrize": True}

    def at(rate: float) -> Severity | None:
        return gives("C-LR-001", {**method, "training.learning_rate": rate}, facts)

    assert at(band.low) in (None, INFO)
    assert at(band.high) in (None, INFO)
    assert at(band.centre) is None
    assert at(math.nextafter(band.high, 1)) is WARN
    below = math.nextafter(band.low, 0)
    # LoRA at a rate of full fine-tuning is the next contract's.
    assert at(below) is (WARN if band.family != "lora" or below > 5e-5 else None)
    if band.below is not None:
        facts["model.parameters"] = band.below - 1
        assert at(math.nextafter(band.high, 1)) is WARN
        assert at(band.high) in (None, INFO)


def test_inside_its_band_a_rate_is_mentioned_from_a_factor_of_four_on() -> None:
    facts = {"model.parameters": 22_565_376, "model.decoder": False}
    method = {"method.kind": "ia3"}  # 1e-3 to 3e-2 around 1e-2
    assert gives("C-LR-001", {**method, "training.learning_rate": 2.6e-3}, facts) is None
    assert gives("C-LR-001", {**method, "training.learning_rate": 2.4e-3}, facts) is INFO
