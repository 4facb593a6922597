"""C-PREC, C-QUANT, C-METHOD, C-EVAL: whether precision, low-bit weights and method pay here, and what a score can show.

Low-bit weights save memory and nothing else, and how much depends on how much of the model is linear layers; so the
true ratio is computed from bytes, never taken from the number of bits.
"""

from __future__ import annotations

from typing import Any

from qlassify.config.method import LoraConfig
from qlassify.contracts import arithmetic, sources
from qlassify.contracts.rates import LORA_KINDS
from qlassify.contracts.rule import Contract, Example, Finding, Severity
from qlassify.contracts.situation import Situation

SUBJECT = "Precision, low-bit weights, method and what a score can show"
MEMORY_SHARE = 0.8
"""Weights that take this share of the free memory or less are said to fit."""
POOR_RATIO = 2.5
FEW_VALIDATION_ROWS = 500


def _precision(situation: Situation) -> Finding | None:
    if situation.run.model.precision != "bf16" or situation.device.multiplies_bf16:
        return None
    place = f" ({situation.device.kind})" if situation.device.kind else ""
    message = f"bf16 was asked for, and the hardware{place} does not multiply it: less exact than fp32 and no faster"
    return Finding(Severity.WARN, message, "model.precision=auto", {"model.precision": "auto"})


def low_bit_bytes(situation: Situation) -> tuple[int, int] | None:
    """Bytes of all weights as they are loaded, and with linear layers in the run's format; None without a format.

    The linear layers are counted as one weight, so the last group of each may be short by less than one scale.
    """
    quant, model = situation.run.wanted_quant, situation.model
    if quant is None:
        return None
    assert model.linear_bytes is not None
    assert model.other_bytes is not None
    assert model.bytes_per_parameter is not None
    whole = model.linear_bytes + model.other_bytes
    return whole, model.other_bytes + quant.storage_bytes(model.linear_bytes // model.bytes_per_parameter)


def _without_low_bit(situation: Situation) -> dict[str, Any]:
    """The settings of the same method on weights that keep their numbers."""
    method = situation.run.method
    low_bit_name = isinstance(method, LoraConfig) and method.low_bit
    remedy: dict[str, Any] = {"quant": None}
    return {**remedy, "method.kind": method.kind.removeprefix("q")} if low_bit_name else remedy


def _quantise_or_not(situation: Situation) -> Finding | None:
    found, free = low_bit_bytes(situation), situation.device.free_bytes
    assert free is not None
    if found is None or found[0] > MEMORY_SHARE * free:
        return None
    whole, low = found
    message = (
        f"the weights as they are take {arithmetic.megabytes(whole)} of {arithmetic.megabytes(free)} that are free: "
        f"few bits save {arithmetic.megabytes(whole - low)} that are not needed, round the weights and save no time"
    )
    remedy = _without_low_bit(situation)
    return Finding(Severity.INFO, message, _said(remedy), remedy)


def _true_ratio(situation: Situation) -> Finding | None:
    found, quant = low_bit_bytes(situation), situation.run.wanted_quant
    if found is None or quant is None:
        return None
    whole, low = found
    ratio = whole / max(1, low)
    if ratio >= POOR_RATIO:
        return None
    assert situation.model.bytes_per_parameter is not None
    naive = 8 * situation.model.bytes_per_parameter / quant.bits
    message = (
        f"in {quant.kind} the model is {arithmetic.megabytes(low)}, {ratio:.3g} times smaller and not {naive:.3g} "
        "times: embeddings keep their numbers"
    )
    remedy = _without_low_bit(situation)
    return Finding(Severity.INFO, message, f"{_said(remedy)} where the rest fits", remedy)


def _said(remedy: dict[str, Any]) -> str:
    """The settings in words."""
    return ", ".join(f"{name}={'null' if value is None else value}" for name, value in remedy.items())


def _dora(situation: Situation) -> Finding | None:
    method = situation.run.method
    assert isinstance(method, LoraConfig)
    if not method.dora:
        return None
    message = (
        "DoRA costs more time than LoRA: here 1.12 times as much on MiniLM, in PEFT's comparison 1.26 times, where it "
        "gained nothing (46.9 % against 47.8 %)"
    )
    kind = method.kind.replace("dora", "lora")
    return Finding(Severity.INFO, message, f"compare with method.kind={kind}", {"method.kind": kind})


def _baselines(situation: Situation) -> Finding | None:
    if situation.run.evaluation.baselines:
        return None
    message = "without the majority class and TF-IDF with logistic regression beside it, no score says what it is worth"
    return Finding(Severity.INFO, message, "evaluation.baselines=true", {"evaluation.baselines": True})


def _noise(situation: Situation) -> Finding | None:
    counts = situation.data.validation_counts
    assert counts is not None
    rows = sum(counts)
    if situation.data.multi_label or not 0 < rows < FEW_VALIDATION_ROWS:
        return None
    half = arithmetic.accuracy_half_width(rows)
    message = (
        f"{rows} validation rows: an accuracy near 90 % is known to within {100 * half:.1f} points (95 % interval)"
    )
    return Finding(
        Severity.INFO, message, "compare settings over three seeds or more before one of them is said to win"
    )


INFO, WARN = Severity.INFO, Severity.WARN
_QWEN = {
    "model.linear_bytes": 715_800_000,
    "model.other_bytes": 272_300_000,
    "model.bytes_per_parameter": 2,
}
_7B = {"model.linear_bytes": 13_000_000_000, "model.other_bytes": 500_000_000, "model.bytes_per_parameter": 2}

CONTRACTS: tuple[Contract[Situation], ...] = (
    Contract(
        id="C-PREC-001",
        title="bf16 where the hardware has none",
        subject=SUBJECT,
        rule="Warn if model.precision is bf16 and the device does not multiply bf16.",
        severities=(WARN,),
        sources=(sources.Source("training/precision.py", "file", "auto takes bf16 only where hardware multiplies it"),),
        predicate=_precision,
        needs=("device.multiplies_bf16",),
        changes=("model.precision",),
        examples=(
            Example({"model.precision": "bf16"}, {"device.multiplies_bf16": True}),
            Example({"model.precision": "bf16"}, {"device.multiplies_bf16": False}, WARN),
        ),
    ),
    Contract(
        id="C-QUANT-001",
        title="Low-bit weights where the others fit",
        subject=SUBJECT,
        rule="Info if weights are kept in few bits and would take 80 % of the free memory or less as they are.",
        severities=(INFO,),
        sources=(
            sources.METHODS_PAGE.says("a step with NF4 weights takes 1.01 times LoRA's: no time is saved"),
            sources.OURS.says("80 %"),
        ),
        predicate=_quantise_or_not,
        needs=("model.linear_bytes", "model.other_bytes", "model.bytes_per_parameter", "device.free_bytes"),
        changes=("quant", "method.kind"),
        examples=(
            Example({"method.kind": "qlora"}, {**_7B, "device.free_bytes": 8_000_000_000}),
            Example({"method.kind": "qlora"}, {**_QWEN, "device.free_bytes": 8_000_000_000}, INFO),
        ),
    ),
    Contract(
        id="C-QUANT-002",
        title="What low-bit weights truly save",
        subject=SUBJECT,
        rule="Info if the whole model shrinks less than 2.5 times.",
        severities=(INFO,),
        sources=(
            sources.ARITHMETIC.says("Qwen2.5-0.5B from bf16 to NF4: 988 MB to 457 MB, 2.16 times and not 4"),
            sources.Source("docs/quantisation.md", "measured here", "the same by loading it"),
        ),
        predicate=_true_ratio,
        needs=("model.linear_bytes", "model.other_bytes", "model.bytes_per_parameter"),
        changes=("quant", "method.kind"),
        examples=(
            Example({"method.kind": "qlora"}, _7B),
            Example({"method.kind": "qlora"}, _QWEN, INFO),
        ),
    ),
    Contract(
        id="C-METHOD-001",
        title="What DoRA costs",
        subject=SUBJECT,
        rule="Info with dora and qdora.",
        severities=(INFO,),
        sources=(
            sources.PEFT_BENCH.says("DoRA 46.9 % in 1191 s, LoRA 47.8 % in 942 s, both rank 32"),
            sources.METHODS_PAGE.says("1.12 times LoRA's time a step"),
            sources.Source("huggingface/peft, issues 1474 and 2651", "issue", "about twice LoRA's time a step"),
        ),
        predicate=_dora,
        kinds=LORA_KINDS,
        changes=("method.kind",),
        examples=(
            Example({"method.kind": "lora"}),
            Example({"method.kind": "dora"}, gives=INFO),
        ),
    ),
    Contract(
        id="C-EVAL-001",
        title="Baselines",
        subject=SUBJECT,
        rule="Info if evaluation.baselines is off.",
        severities=(INFO,),
        sources=(
            sources.Source(
                "README.md", "measured here", "TF-IDF with logistic regression: 88.2 % on TREC, 88.7 % on BANKING77"
            ),
        ),
        predicate=_baselines,
        changes=("evaluation.baselines",),
        examples=(
            Example({"evaluation.baselines": True}),
            Example({"evaluation.baselines": False}, gives=INFO),
        ),
    ),
    Contract(
        id="C-EVAL-002",
        title="Few validation rows",
        subject=SUBJECT,
        rule="Info with fewer than 500 validation rows and one label per row.",
        severities=(INFO,),
        sources=(
            sources.ARITHMETIC.says("half the 95 % interval is 1.96 sqrt(a (1 - a) / n)"),
            sources.Source("README.md", "measured here", "TREC at one seed: 96.2 % with one thread, 96.8 % with two"),
        ),
        predicate=_noise,
        needs=("data.validation_counts",),
        examples=(
            Example({}, {"data.validation_counts": (300, 300)}),
            Example({}, {"data.validation_counts": (60, 61)}, INFO),
        ),
    ),
)
