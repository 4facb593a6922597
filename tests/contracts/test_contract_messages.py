"""Diagnostics as a person and a program read them, refusing, and the numbers in messages against sums done here."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from qlassify.config.quant import QuantConfig
from qlassify.config.run import RunConfig
from qlassify.contracts import arithmetic
from qlassify.contracts.registry import check
from qlassify.contracts.rule import HyperparamDiagnostic, HyperparamDiagnostics, Severity, require_no_errors
from qlassify.contracts.situation import DataFacts, DeviceFacts, ModelFacts, Situation
from qlassify.errors import ContractError

INFO = HyperparamDiagnostic("C-A-001", Severity.INFO, "a is so", "do a")
WARN = HyperparamDiagnostic("C-B-002", Severity.WARN, "b is so", "do b", {"training.epochs": 3})
ERROR = HyperparamDiagnostic("C-C-003", Severity.ERROR, "c is so", "do c")


def found(situation: Situation, contract_id: str) -> HyperparamDiagnostic:
    (item,) = [item for item in check(situation).items if item.contract_id == contract_id]
    return item


def test_a_line_for_each_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    HyperparamDiagnostics((INFO, WARN, ERROR)).print_all()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "[HP-INFO] C-A-001: a is so -> do a",
        "[HP-WARN] C-B-002: b is so -> do b",
        "[HP-ERROR] C-C-003: c is so -> do c",
    ]


def test_a_warning_is_one_by_id_and_from_warn_on() -> None:
    both = HyperparamDiagnostics((INFO, WARN, ERROR))
    assert [both.has_warning(name) for name in ("C-A-001", "C-B-002", "C-C-003", "C-D-004")] == [
        False,
        True,
        True,
        False,
    ]
    assert both.has_errors()
    assert not HyperparamDiagnostics((INFO, WARN)).has_errors()
    assert both.of(Severity.WARN) == (WARN,)


def test_for_a_machine() -> None:
    record = HyperparamDiagnostics((WARN,), silenced=(INFO,)).as_dict()
    assert record == {
        "items": [
            {
                "contract_id": "C-B-002",
                "severity": "warn",
                "message": "b is so",
                "recommendation": "do b",
                "remedy": {"training.epochs": 3},
            }
        ],
        "unchecked": [],
        "silenced": ["C-A-001"],
    }


def test_errors_refuse_and_warnings_only_when_strict() -> None:
    require_no_errors(HyperparamDiagnostics())
    require_no_errors(HyperparamDiagnostics((INFO, WARN)))
    require_no_errors(HyperparamDiagnostics((INFO,)), strict=True)
    second = HyperparamDiagnostic("C-E-005", Severity.ERROR, "e is so", "do e")
    with pytest.raises(ContractError) as caught:
        require_no_errors(HyperparamDiagnostics((INFO, WARN, ERROR, second)))
    assert caught.value.exit_code == 3
    for part in ("2 hyper-parameter contracts", "C-C-003", "c is so", "do c", "C-E-005", "do e"):
        assert part in str(caught.value)
    assert "C-B-002" not in str(caught.value)
    with pytest.raises(ContractError, match=r"C-B-002.*C-C-003"):
        require_no_errors(HyperparamDiagnostics((INFO, WARN, ERROR)), strict=True)


# Closed forms


@pytest.mark.parametrize(
    ("rows", "batch", "epochs", "steps"), [(100, 32, 3, 12), (96, 32, 3, 9), (1, 16, 5, 5), (0, 8, 2, 0)]
)
def test_optimiser_steps(rows: int, batch: int, epochs: int, steps: int) -> None:
    assert arithmetic.optimiser_steps(rows, batch, epochs) == steps


def test_expected_bearing_steps_are_what_shuffling_gives() -> None:
    """2,000 shuffles of 400 rows with 20 of the class, 16 a step.

    Drawing without replacement makes a batch bear a little more often than the binomial says, at most by the batch's
    share of the rows (4 %); the mean of 2,000 shuffles has a standard error of about 0.03 steps.
    """
    rows, of_class, batch = 400, 20, 16
    generator = np.random.default_rng(7)
    labels = np.zeros(rows, dtype=bool)
    labels[:of_class] = True
    bearing = [generator.permutation(labels).reshape(-1, batch).any(axis=1).sum() for _ in range(2000)]
    expected = arithmetic.expected_bearing_steps(rows, of_class, batch, 1)
    assert expected == pytest.approx(25 * (1 - 0.95**16))
    assert float(np.mean(bearing)) == pytest.approx(expected, rel=0.04)


def test_every_step_bears_a_class_that_all_rows_have() -> None:
    assert arithmetic.expected_bearing_steps(100, 100, 10, 3) == 30
    assert arithmetic.expected_bearing_steps(100, 0, 10, 3) == 0


@pytest.mark.parametrize(
    ("target", "batch", "count"), [(16, 4, 4), (16, 16, 1), (16, 32, 1), (16, 1000, 1), (16, 5, 3), (32, 1, 32)]
)
def test_accumulation(target: int, batch: int, count: int) -> None:
    assert arithmetic.accumulation_for(target, batch) == count


@pytest.mark.parametrize(("count", "power"), [(1, 1), (2, 2), (3, 4), (253, 256), (256, 256), (257, 512)])
def test_next_power_of_two(count: int, power: int) -> None:
    assert arithmetic.next_power_of_two(count) == power


def test_half_width_of_mrpc() -> None:
    """408 rows at 90 %: a standard error of 1.49 points, 2.9 on each side."""
    assert arithmetic.accuracy_half_width(408) == pytest.approx(1.96 * 0.014852, rel=1e-4)


@pytest.mark.parametrize(
    ("count", "words"), [(494_032_768, "494 M"), (7_000_000_000, "7 B"), (22_565_376, "22.6 M"), (500, "0.0005 M")]
)
def test_parameters_in_words(count: int, words: str) -> None:
    assert arithmetic.parameters_in_words(count) == words


# Numbers in messages


def test_a_rare_class_is_counted() -> None:
    run = RunConfig.parse({"training": {"epochs": 3, "batch_size": 16}})
    data = DataFacts(rows=14_353, class_counts=(13_427, 926), class_names=("safe", "unsafe"))
    assert not check(Situation(run, data=data)).has_warning("C-EPOCH-002")  # 2,778 times in about 1,766 steps
    rare = DataFacts(rows=13_517, class_counts=(13_427, 90), class_names=("safe", "unsafe"))
    item = found(Situation(run, data=rare), "C-EPOCH-002")
    steps = 3 * math.ceil(13_517 / 16)
    bearing = steps * (1 - (1 - 90 / 13_517) ** 16)
    for part in (
        "'unsafe'",
        "90 of 13,517",
        f"{13_427 / 90:.3g} times fewer",
        "270 times",
        f"{bearing:.0f} of {steps} steps",
    ):
        assert part in item.message, part
    assert "training.epochs=4 for 360 times" in item.recommendation


def test_steps_are_counted() -> None:
    run = RunConfig.parse({"training": {"epochs": 2, "batch_size": 8, "accumulation_steps": 4}})
    item = found(Situation(run, data=DataFacts(rows=1001)), "C-EPOCH-001")
    assert "1,001 rows in 2 epochs of 32 rows a step are 64 optimiser steps" in item.message
    assert item.remedy == {"training.epochs": 20}  # 1,000 steps would be 32 epochs, more than is ever recommended


def test_the_true_ratio_of_few_bits() -> None:
    """Qwen2.5-0.5B: 357.8 M parameters in linear layers, 136.1 M in the embedding; bf16 988 MB, NF4 457 MB."""
    linear, embedding = 357_826_560, 136_206_208
    model = ModelFacts(linear_bytes=2 * linear, other_bytes=2 * embedding, bytes_per_parameter=2)
    run = RunConfig.parse({"method": {"kind": "qlora"}})
    item = found(Situation(run, model, device=DeviceFacts(free_bytes=8 * 10**9)), "C-QUANT-002")
    low = 2 * embedding + QuantConfig().storage_bytes(linear)
    assert low / 1e6 == pytest.approx(457, abs=0.5)  # as docs/quantisation.md counts layer by layer
    assert "2.16 times smaller and not 4 times" in item.message
    assert f"{low / 1e6:.1f} MB" in item.message
    saved = found(Situation(run, model, device=DeviceFacts(free_bytes=8 * 10**9)), "C-QUANT-001")
    assert f"save {(2 * linear + 2 * embedding - low) / 1e6:.1f} MB" in saved.message
    assert "988.1 MB of 8,000.0 MB" in saved.message
    tight = Situation(run, model, device=DeviceFacts(free_bytes=1_200_000_000))
    assert "C-QUANT-001" not in {one.contract_id for one in check(tight).items}


def test_a_format_of_its_own_keeps_the_method() -> None:
    """IA3 on 4 bits: the remedy takes the format away and leaves the method."""
    run = RunConfig.parse({"method": {"kind": "ia3"}, "quant": {"kind": "int8"}})
    model = ModelFacts(linear_bytes=1000, other_bytes=1000, bytes_per_parameter=2)
    item = found(Situation(run, model, device=DeviceFacts(free_bytes=10**9)), "C-QUANT-001")
    assert item.remedy == {"quant": None}
    assert Situation(run, model).with_remedy(item.remedy).run.method.kind == "ia3"


@pytest.mark.parametrize("method", [{"rank": 16, "alpha": 24.0}, {"rank": 64, "alpha": 24.0, "rslora": True}])
def test_another_rank_keeps_the_scale(method: dict[str, float]) -> None:
    run = RunConfig.parse({"method": {**method, "rank": 64}})
    item = found(Situation(run, data=DataFacts(rows=100)), "C-RANK-001")
    mended = Situation(run).with_remedy(item.remedy).run.method
    assert mended.rank == 16
    # alpha is written to 12 digits
    assert mended.scaling == pytest.approx(run.method.scaling, rel=1e-11)


def test_the_weighted_loss_is_least_where_the_message_says() -> None:
    """Two classes with true odds 3 to 1 and weights 1 to 5: the minimum is at odds 3 to 5, found on a grid."""
    grid = np.linspace(1e-4, 1 - 1e-4, 99_999)
    loss = -(0.75 * 1 * np.log(grid) + 0.25 * 5 * np.log(1 - grid))
    best = grid[int(np.argmin(loss))]
    # the grid's step is 1e-5
    assert best / (1 - best) == pytest.approx(3 / 5, abs=1e-4)
    run = RunConfig.parse({"training": {"class_weights": [1.0, 5.0]}})
    assert "the true ones times the ratio of their weights" in found(Situation(run), "C-IMB-002").message


def test_sources_that_conflict_are_both_named() -> None:
    """Alpha, clipping, rows per step: the literature has more than one answer."""
    scale = found(Situation(RunConfig.parse({"method": {"alpha": 24.0}})), "C-SCALE-001").message
    assert re.search(r"2 in LoRA's.*0\.25 in QLoRA's", scale)
    clip = found(Situation(RunConfig.parse({"training": {"gradient_clip_norm": None}})), "C-CLIP-001").message
    assert "QLoRA's scripts have 0.3, entrenar 1.0" in clip


@pytest.mark.parametrize("alpha", [5e-324, 1e-300, 1e300, 1.7e308])
def test_another_rank_has_an_alpha_that_there_is(alpha: float) -> None:
    """At the same scale, an alpha at either end of the floating-point numbers would come to zero or to infinity."""
    for settings, facts in (
        ({"method.rank": 33, "method.alpha": alpha}, {"data.rows": 10}),
        ({"method.rank": 1, "method.alpha": alpha}, {"data.class_counts": (5,) * 101}),
    ):
        situation = Situation.of(settings, facts)
        for item in check(situation).items:
            situation.with_remedy(item.remedy)
