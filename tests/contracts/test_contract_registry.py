"""Every contract passes and fails where it says, its remedy mends, its sources are named, and no run breaks it."""

from __future__ import annotations

import math
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from contract_worlds import FLAT_DEFAULTS, is_flat, recommended_situation, situation_of
from hypothesis import given, settings
from hypothesis import strategies as st

from qlassify.config.recommend import Facts, head_rate
from qlassify.config.run import RunConfig
from qlassify.contracts import entrenar
from qlassify.contracts.held import HELD
from qlassify.contracts.rates import BANDS, STEPPED_KINDS, band_of
from qlassify.contracts.registry import CONTRACTS, RUN_CONTRACTS, check, contract
from qlassify.contracts.rule import Contract, Example, Severity
from qlassify.contracts.situation import (
    DataFacts,
    DeviceFacts,
    ModelFacts,
    Situation,
    TokenLengths,
    Truncation,
)
from qlassify.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = [(one, example) for one in CONTRACTS for example in one.examples]
IDS = [
    f"{one.id}-{'passes' if example.gives is None else example.gives.name}-{number}"
    for one in CONTRACTS
    for number, example in enumerate(one.examples)
]
FAILING = [(one, example) for one, example in EXAMPLES if example.gives is not None]


@pytest.mark.parametrize(("one", "example"), EXAMPLES, ids=IDS)
def test_an_example_gives_what_it_says(one: Contract[Any], example: Example) -> None:
    situation = situation_of(one, example)
    assert situation.missing(one.needs) == ()
    found = one.check(situation)
    assert (None if found is None else found.severity) == example.gives
    if found is not None:
        assert found.contract_id == one.id
        assert found.message
        assert found.recommendation


def test_every_contract_passes_somewhere_and_gives_each_of_its_severities() -> None:
    for one in CONTRACTS:
        assert {example.gives for example in one.examples} == {None, *one.severities}, one.id


def test_ids_are_unique_and_every_contract_says_what_it_is() -> None:
    assert [name for name, count in Counter(one.id for one in CONTRACTS).items() if count > 1] == []
    for one in CONTRACTS:
        assert re.fullmatch(r"C-[A-Z]+-\d{3}", one.id), one.id
        assert one.title
        assert one.rule.endswith("."), one.id
        assert one.sources, one.id
        assert set(one.widens) <= {flat.id for flat in entrenar.CONTRACTS}, one.id


def test_each_of_entrenars_rules_is_widened_or_held() -> None:
    widened = {name for one in RUN_CONTRACTS for name in one.widens}
    held = {name for one in HELD for name in one.widens.split(", ") if name}
    assert widened | held == {one.id for one in entrenar.CONTRACTS}


def changed(one: Contract[Any], situation: Any, remedy: Any) -> Any:
    if not is_flat(one):
        return situation.with_remedy(remedy)
    now = {name: getattr(situation, name) for name in entrenar.FlatSituation.__dataclass_fields__}
    return entrenar.FlatSituation(**{**now, **remedy})


@pytest.mark.parametrize(
    ("one", "example"), FAILING, ids=[f"{one.id}-{number}" for number, (one, _) in enumerate(FAILING)]
)
def test_a_remedy_silences_its_contract_and_raises_no_error(one: Contract[Any], example: Example) -> None:
    situation = situation_of(one, example)
    found = one.check(situation)
    assert found is not None
    assert set(found.remedy) <= set(one.changes)
    assert bool(found.remedy) == bool(one.changes), "a remedy where a setting can mend it, and only there"
    mended = changed(one, situation, found.remedy)
    if found.remedy:
        assert one.check(mended) is None
        everything = entrenar.check(mended) if is_flat(one) else check(mended)
        assert not everything.has_errors()


def test_remedies_name_settings_that_there_are() -> None:
    for one in CONTRACTS:
        for name in one.changes:
            if is_flat(one):
                assert name in FLAT_DEFAULTS, (one.id, name)
                continue
            section, _, option = name.partition(".")
            value = getattr(RunConfig(), section)
            assert not option or hasattr(value, option), (one.id, name)


def test_a_text_that_was_cut_fits_after_the_remedy() -> None:
    """The count of cut texts is of the old limit; at the new one, no more than one text in a hundred is longer."""
    for share, limit in ((0.04, 200), (0.09, 128), (0.35, 64)):
        lengths = TokenLengths(40, 120, 180, 253, 700)
        run = RunConfig.parse({"model": {"max_length": limit}})
        situation = Situation(
            run, ModelFacts(max_positions=512), DataFacts(token_lengths=lengths, truncation=Truncation(limit, share))
        )
        (found,) = [item for item in check(situation).items if item.contract_id == "C-SEQ-001"]
        assert found.remedy["model.max_length"] >= lengths.p99


def test_a_model_without_positions_is_told_to_read_in_parts() -> None:
    run = RunConfig.parse({"model": {"max_length": 128}})
    data = DataFacts(token_lengths=TokenLengths(90, 300, 400, 500, 900), truncation=Truncation(128, 0.45, (0.1, 0.95)))
    found = check(Situation(run, ModelFacts(max_positions=128), data)).items
    by_id = {item.contract_id: item for item in found}
    assert by_id["C-SEQ-001"].severity is Severity.WARN
    assert by_id["C-SEQ-001"].remedy == by_id["C-SEQ-002"].remedy == {"model.long": "windows"}
    assert "no more positions" in by_id["C-SEQ-001"].recommendation


def test_a_limit_that_the_model_has_no_positions_for_is_no_larger_limit() -> None:
    """The default gives way to the model's positions, and what was cut there is told all the same."""
    data = DataFacts(token_lengths=TokenLengths(90, 300, 400, 500, 900), truncation=Truncation(128, 0.45))
    found = check(Situation(RunConfig(), ModelFacts(max_positions=128), data)).items
    assert "C-SEQ-001" in {item.contract_id for item in found}


def test_texts_fit_into_the_windows_that_are_advised() -> None:
    """A window is 382 tokens ahead of the one before it; the first holds 510 beside two special ones."""
    cut = Truncation(512, 0.04, long="windows", max_windows=4, window_step=382)
    data = DataFacts(token_lengths=TokenLengths(500, 1000, 1500, 3000, 9000), truncation=cut)
    run = RunConfig.parse({"model": {"long": "windows", "max_windows": 4}})
    (found,) = [
        one for one in check(Situation(run, ModelFacts(max_positions=512), data)).items if "SEQ" in one.contract_id
    ]
    number = found.remedy["model.max_windows"]
    assert 512 + (number - 1) * 382 >= 3000 > 512 + (number - 3) * 382
    assert "4 windows" in found.message


# What is recommended


METHODS: list[dict[str, Any]] = [
    *({"kind": kind} for kind in (*STEPPED_KINDS, "probe")),
    {"kind": "prefix", "reparametrize": True},
]
SIZES = [
    (4_000_000, False),
    (22_565_376, False),
    (59_999_999, False),
    (60_000_000, False),
    (125_000_000, False),
    (200_000_000, False),
    (355_000_000, False),
    (1_500_000_000, False),
    (30_000_000, True),
    (494_000_000, True),
    (13_000_000_000, True),
    (13_000_000_001, True),
    (70_000_000_000, True),
]
DATA = [(20, 2), (100, 2), (999, 5), (1000, 5), (5452, 6), (10_003, 77), (43_410, 28), (99_999, 150), (500_000, 4)]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: "-".join(str(value) for value in method.values()))
def test_what_is_recommended_breaks_no_contract(method: dict[str, Any]) -> None:
    for parameters, decoder in SIZES:
        for rows, classes in DATA:
            for multi_label in (False, True):
                facts = Facts(parameters, decoder, classes, rows, multi_label)
                found = check(recommended_situation(facts, method))
                broken = [str(item) for item in found.items if item.severity > Severity.INFO]
                assert broken == [], (facts, broken)
                assert found.unchecked == ()


@pytest.mark.parametrize("model_type", ["modernbert", "deberta-v2", "bert"])
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_what_is_recommended_is_within_the_bands_of_architectures_of_their_own(model_type: str, kind: str) -> None:
    for parameters in (22_000_000, 149_000_000, 395_000_000, 1_500_000_000):
        situation = recommended_situation(Facts(parameters, False, 4, 5000), {"kind": kind})
        model = ModelFacts(parameters=parameters, decoder=False, model_type=model_type)
        assert not check(Situation(situation.run, model)).has_warning("C-LR-001")


@pytest.mark.parametrize(
    ("kind", "rate"),
    [("ia3", 3e-2), ("adapter", 5e-3), ("bitfit", 1e-2), ("prefix", 5e-2), ("full", 5e-4), ("lora", 1e-3)],
)
def test_small_encoders_have_room_above_the_published_rates(kind: str, rate: float) -> None:
    method = RunConfig.parse({"method": {"kind": kind}}).method
    training = {"learning_rate": rate, "head_learning_rate": head_rate(method, rate)}
    run = RunConfig.parse({"method": {"kind": kind}, "training": training})
    found = check(Situation(run, ModelFacts(parameters=22_565_376, decoder=False)))
    assert [str(item) for item in found.items if item.severity > Severity.INFO] == []
    if kind != "lora":
        assert check(Situation(run, ModelFacts(parameters=355_000_000, decoder=False))).has_warning("C-LR-001")


def test_everything_wrong_at_once_is_all_said_and_all_mended() -> None:
    """A gate like entrenar's for runs: each fault is named, and the remedies do not undo one another."""
    settings = {
        "method": {"kind": "lora", "rank": 64, "alpha": 4.0, "target_modules": ["q_proj"], "lora_plus_ratio": 100.0},
        "training": {
            "learning_rate": 1e-6,
            "head_learning_rate": 1e-6,
            "batch_size": 512,
            "epochs": 1,
            "weight_decay": 1.0,
            "warmup_fraction": 0.0,
            "gradient_clip_norm": None,
            "selection_metric": "accuracy",
            "label_smoothing": 0.1,
        },
        "model": {"max_length": 64, "precision": "bf16"},
        "quant": {"kind": "nf4"},
    }
    data = DataFacts(
        rows=2000,
        class_counts=(1990, 10),
        token_lengths=TokenLengths(40, 120, 180, 253, 700),
        truncation=Truncation(64, 0.35, (0.34, 0.9)),
        multi_label=True,
    )
    model = ModelFacts(parameters=7 * 10**9, decoder=True, max_positions=4096)
    situation = Situation(RunConfig.parse(settings), model, data, DeviceFacts("cpu", multiplies_bf16=False))
    found = check(situation)
    serious = {item.contract_id for item in found.items if item.severity > Severity.INFO}
    assert serious == {
        "C-LR-002",
        "C-LR-003",
        "C-LR-004",
        "C-BATCH-001",
        "C-SCALE-001",
        "C-SCALE-002",
        "C-TARGET-001",
        "C-DECAY-001",
        "C-CLIP-001",
        "C-EPOCH-001",
        "C-EPOCH-002",
        "C-SEQ-001",
        "C-SEQ-002",
        "C-LABEL-005",
        "C-IMB-001",
        "C-PREC-001",
    }
    assert mended_runs(situation) <= 2


def mended_runs(situation: Situation) -> int:
    """How often all remedies of warnings and errors have to be applied until there are none."""
    for rounds in range(10):
        serious = [item for item in check(situation).items if item.severity > Severity.INFO]
        if not serious:
            return rounds
        for item in serious:
            assert item.remedy, item
            situation = situation.with_remedy(item.remedy)
    raise AssertionError(f"remedies undo one another: {[str(item) for item in serious]}")


# The table of bands


def test_every_method_and_size_has_one_band_and_its_centre_is_inside() -> None:
    for band in BANDS:
        assert band.low <= band.centre <= band.high, band
        assert band.sources, band
    for method in METHODS:
        if method["kind"] == "probe":
            continue
        for parameters, decoder in [*SIZES, (1, False), (10**12, True), (10**12, False)]:
            run = RunConfig.parse({"method": method})
            assert band_of(Situation(run, ModelFacts(parameters=parameters, decoder=decoder)))


def test_dora_and_lora_plus_may_go_lower_than_lora() -> None:
    def rate_is_warned_of(method: dict[str, Any]) -> bool:
        run = RunConfig.parse({"method": method, "training": {"learning_rate": 6e-5}})
        return check(Situation(run, ModelFacts(parameters=7 * 10**9, decoder=True))).has_warning("C-LR-001")

    assert rate_is_warned_of({"kind": "lora"})
    assert not rate_is_warned_of({"kind": "dora"})
    assert not rate_is_warned_of({"kind": "lora", "lora_plus_ratio": 16})


def test_a_full_rate_on_lora_is_said_once() -> None:
    run = RunConfig.parse({"training": {"learning_rate": 2e-5}})
    found = check(Situation(run, ModelFacts(parameters=125_000_000, decoder=False)))
    assert [item.contract_id for item in found.items if item.contract_id.startswith("C-LR")] == ["C-LR-002"]


# The check


def test_what_is_not_known_is_listed_and_says_nothing() -> None:
    found = check(Situation(RunConfig()))
    assert not {item.contract_id for item in found.items} & {one.contract_id for one in found.unchecked}
    needing = {one.id for one in RUN_CONTRACTS if one.needs and (not one.kinds or "lora" in one.kinds)}
    assert {one.contract_id for one in found.unchecked} == needing
    missing = {one.contract_id: one.missing for one in found.unchecked}
    assert missing["C-LR-001"] == ("model.parameters", "model.decoder")


def test_contracts_of_other_methods_are_not_even_listed() -> None:
    found = check(Situation(RunConfig.parse({"method": {"kind": "probe"}})))
    said = {one.contract_id for one in found.unchecked} | {item.contract_id for item in found.items}
    assert not any(name.startswith(("C-LR", "C-SCALE", "C-RANK", "C-WARM", "C-EPOCH")) for name in said)


def test_silencing_keeps_what_it_silences_and_no_error() -> None:
    run = RunConfig.parse({"training": {"gradient_clip_norm": None}, "model": {"max_length": 64}})
    data = DataFacts(token_lengths=TokenLengths(40, 120, 180, 253, 700), truncation=Truncation(64, 0.35))
    situation = Situation(run, ModelFacts(max_positions=512), data)
    found = check(situation, silenced=["c-clip-001", "C-SEQ-001"])
    assert [item.contract_id for item in found.silenced] == ["C-CLIP-001"]
    assert "C-CLIP-001" not in {item.contract_id for item in found.items}
    assert found.has_errors()
    with pytest.raises(ConfigError, match="Did you mean C-CLIP-001"):
        check(situation, silenced=["C-CLIPP-001"])


def test_a_contract_is_found_by_its_id_in_any_case() -> None:
    assert contract("c-lr-001").id == "C-LR-001"
    with pytest.raises(ConfigError, match="C-LR-00"):
        contract("C-LR-999")


def test_rules_held_by_construction_name_tests_that_there_are() -> None:
    for held in HELD:
        path, _, name = held.test.partition("::")
        assert re.search(rf"^def {re.escape(name)}\(", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE), held


# Any run


def numbers(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, exclude_min=True)


TRAINING = st.fixed_dictionaries(
    {},
    optional={
        "epochs": st.integers(1, 1000),
        "batch_size": st.integers(1, 10_000),
        "accumulation_steps": st.integers(1, 1000),
        "learning_rate": numbers(0, 1e300),
        "head_learning_rate": numbers(0, 1e300),
        "weight_decay": numbers(0, 1e300),
        "schedule": st.sampled_from(["linear", "cosine", "constant"]),
        "warmup_fraction": st.floats(0, 1, exclude_max=True),
        "gradient_clip_norm": st.none() | numbers(0, 1e300),
        "class_weights": st.sampled_from(["uniform", "inverse"]) | st.tuples(numbers(0, 9), numbers(0, 9)),
        "label_smoothing": st.floats(0, 0.99),
        "selection_metric": st.sampled_from(["macro_f1", "accuracy", "loss"]),
    },
)
LORA = st.fixed_dictionaries(
    {"kind": st.sampled_from(["lora", "qlora", "dora", "qdora"])},
    optional={
        "rank": st.integers(1, 100_000),
        "alpha": numbers(0, sys.float_info.max),
        "rslora": st.booleans(),
        "dropout": st.floats(0, 0.99),
        "lora_plus_ratio": numbers(0, 1e300),
        "target_modules": st.sampled_from(["all-linear", ("query",), ("a.b.dense", "q_proj"), (".",)]),
    },
)
METHOD = LORA | st.sampled_from([one for one in METHODS if "lora" not in one["kind"]])
COUNTS = st.lists(st.integers(0, 10**6), min_size=1, max_size=4).map(tuple)
MODEL = st.builds(
    ModelFacts,
    parameters=st.none() | st.integers(1, 10**12),
    decoder=st.none() | st.booleans(),
    smallest_side=st.none() | st.integers(1, 10**5),
    max_positions=st.none() | st.integers(1, 10**5),
    model_type=st.sampled_from([None, "bert", "modernbert"]),
    linear_bytes=st.none() | st.integers(0, 10**12),
    other_bytes=st.none() | st.integers(0, 10**12),
    bytes_per_parameter=st.sampled_from([None, 2, 4]),
)
FACTS = st.builds(
    DataFacts,
    rows=st.none() | st.integers(0, 10**7),
    class_counts=st.none() | COUNTS,
    token_lengths=st.none() | st.just(TokenLengths(1, 2, 3, 4, 5)),
    truncation=st.none() | st.builds(Truncation, st.integers(1, 9000), st.floats(0, 1), st.just((0.5, 0.0))),
    conflicts=st.none() | st.integers(0, 100),
    leaks=st.none() | st.integers(0, 100),
    validation_counts=st.none() | COUNTS,
    multi_label=st.none() | st.booleans(),
)


@settings(max_examples=40)
@given(training=TRAINING, method=METHOD, model=MODEL, rows=st.integers(50, 10**6), share=st.floats(0.001, 0.5))
def test_remedies_never_undo_one_another(
    training: dict[str, Any], method: dict[str, Any], model: ModelFacts, rows: int, share: float
) -> None:
    """From any run on data that settings can do justice to, remedies lead to one without warnings."""
    rare = max(1, int(share * rows))
    data = DataFacts(rows=rows, class_counts=(rows - rare, rare), multi_label=False)
    run = RunConfig.parse({"training": training, "method": method})
    assert mended_runs(Situation(run, model, data, DeviceFacts("cpu", True, 10**10))) <= 4


@settings(max_examples=60)
@given(training=TRAINING, method=METHOD, model=MODEL, data=FACTS, free=st.none() | st.integers(0, 10**12))
def test_no_run_breaks_the_check_and_each_remedy_mends(
    training: dict[str, Any], method: dict[str, Any], model: ModelFacts, data: DataFacts, free: int | None
) -> None:
    run = RunConfig.parse({"training": training, "method": method})
    situation = Situation(run, model, data, DeviceFacts("cpu", False, free))
    found = check(situation)
    for item in found.items:
        assert all(part and part.isprintable() for part in (item.message, item.recommendation))
        assert not any(isinstance(value, float) and not math.isfinite(value) for value in item.remedy.values())
        if item.remedy and run.method.kind != "probe":
            mended = check(situation.with_remedy(item.remedy))
            assert item.contract_id not in {other.contract_id for other in mended.items}, item
