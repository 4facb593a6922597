"""C-SCALE, C-RANK, C-TARGET, C-DROPOUT: how much a LoRA can change, where, and how it is held back.

What matters of alpha and rank is the factor on the adapter's output, alpha / rank or with rsLoRA alpha / sqrt(rank), so
that is what is tested. Published recipes have it from 0.25 to 8; a rule that one value is right contradicts most of
them."""

from __future__ import annotations

import math
import sys

from qlassify.config.method import ALL_LINEAR, LoraConfig
from qlassify.config.recommend import LARGE_DATA_ROWS
from qlassify.contracts import sources
from qlassify.contracts.rates import LORA_KINDS
from qlassify.contracts.rule import Contract, Example, Finding, Severity
from qlassify.contracts.situation import Situation

SUBJECT = "LoRA's scale, rank, targets and dropout"
SCALE_BOUNDS = (0.125, 8.0)
USUAL_SCALES = (1.0, 2.0)
HIGH_RANK = 64
"""Ranks from here on learn less and less at alpha 16 unless the scale is alpha / sqrt(rank)."""
SMALL_ALPHA = 16.0
MUCH_RANK, FEW_ROWS = 32, 50_000
LEAST_RANK, MANY_CLASSES = 4, 100
SIDE_PER_RANK = 8
USUAL_RANK, USUAL_DROPOUT = 16, 0.1
ATTENTION_LAYERS = frozenset(
    {"query", "key", "value", "query_proj", "key_proj", "value_proj", "q_proj", "k_proj", "v_proj", "o_proj"}
    | {"q_lin", "k_lin", "v_lin", "out_lin", "qkv_proj", "query_key_value", "c_attn", "Wqkv"}
)
"""Last parts of names that only attention has; names that feed-forward networks have too (``dense``) are not here."""


def _lora(situation: Situation) -> LoraConfig:
    """The method, of a contract that is about LoRA only."""
    method = situation.run.method
    assert isinstance(method, LoraConfig)
    return method


def _alpha_for(method: LoraConfig, scale: float, rank: int) -> float:
    """The alpha that gives ``scale`` at ``rank``, to 12 digits so that it is written shortly; positive and finite."""
    alpha = float(f"{scale * (math.sqrt(rank) if method.rslora else rank):.12g}")
    return min(max(alpha, sys.float_info.min), sys.float_info.max)


def _is_near(value: float, other: float) -> bool:
    return math.isclose(value, other, rel_tol=1e-6)


def _published(method: LoraConfig) -> bool:
    """Whether rank and alpha are those of a published recipe with an unusual scale."""
    if method.rslora:
        return _is_near(method.alpha, method.rank)
    return _is_near(method.scaling, 0.25) or _is_near(method.alpha, 32) or (method.rank, method.alpha) == (2, 16)


def _scale(situation: Situation) -> Finding | None:
    method = _lora(situation)
    scale, (low, high) = method.scaling, SCALE_BOUNDS
    formula = "alpha / sqrt(rank)" if method.rslora else "alpha / rank"
    alpha = _alpha_for(method, USUAL_SCALES[1], method.rank)
    remedy = {"method.alpha": alpha}
    if not low <= scale <= high:
        message = f"the scale {formula} is {scale:.3g}, outside all that was published ({low:g} to {high:g})"
        return Finding(Severity.WARN, message, f"method.alpha={alpha:g}", remedy)
    if any(_is_near(scale, usual) for usual in USUAL_SCALES) or _published(method):
        return None
    message = (
        f"the scale {formula} is {scale:.3g}; sources conflict: 2 in LoRA's scripts and by entrenar's rule, 1 in "
        "LoRA+'s, 0.25 in QLoRA's, alpha 32 at every rank in LoRA Without Regret"
    )
    return Finding(Severity.INFO, message, f"method.alpha={alpha:g} for a scale of 2", remedy)


def _high_rank(situation: Situation) -> Finding | None:
    method = _lora(situation)
    if method.rank < HIGH_RANK or method.rslora or method.alpha > SMALL_ALPHA:
        return None
    message = (
        f"rank {method.rank} with alpha {method.alpha:g} has the scale {method.scaling:.3g}, which shrinks as the rank "
        "grows; QLoRA's own scripts do this (64, 16), PEFT's comparison has rank 64 at 47.4 % without rsLoRA and 51.3 "
        "% with it"
    )
    return Finding(Severity.WARN, message, "method.rslora=true", {"method.rslora": True})


def _rank_of(method: LoraConfig, rank: int) -> dict[str, float]:
    """Another rank at the same scale."""
    return {"method.rank": rank, "method.alpha": _alpha_for(method, method.scaling, rank)}


def _much_rank(situation: Situation) -> Finding | None:
    method, rows = _lora(situation), situation.data.rows
    assert rows is not None
    if method.rank <= MUCH_RANK or rows >= FEW_ROWS:
        return None
    bits = ""
    if situation.data.class_counts and not situation.data.multi_label and len(situation.data.class_counts) > 1:
        count = rows * math.log2(len(situation.data.class_counts))
        bits = f", whose labels hold at most {count:,.0f} bits"
    message = f"rank {method.rank} for {rows:,} rows{bits}: rank 8 to 16 is nearly always enough, and costs less"
    return Finding(Severity.INFO, message, f"method.rank={USUAL_RANK} at the same scale", _rank_of(method, USUAL_RANK))


def _little_rank(situation: Situation) -> Finding | None:
    method, counts = _lora(situation), situation.data.class_counts
    assert counts is not None
    if method.rank >= LEAST_RANK or len(counts) <= MANY_CLASSES:
        return None
    message = f"rank {method.rank} for {len(counts)} classes"
    return Finding(Severity.WARN, message, f"method.rank={USUAL_RANK} at the same scale", _rank_of(method, USUAL_RANK))


def _rank_of_layers(situation: Situation) -> Finding | None:
    method, side = _lora(situation), situation.model.smallest_side
    assert side is not None
    most = max(1, side // SIDE_PER_RANK)
    if method.rank <= most:
        return None
    message = f"rank {method.rank} is more than an eighth of the smallest target's shorter side ({side})"
    return Finding(Severity.INFO, message, f"method.rank={most} at the same scale", _rank_of(method, most))


def _attention_only(situation: Situation) -> Finding | None:
    targets = _lora(situation).target_modules
    if not situation.model.decoder or isinstance(targets, str):
        return None
    if any(name.rpartition(".")[2] not in ATTENTION_LAYERS for name in targets):
        return None
    message = (
        f"only attention layers of a decoder are adapted ({', '.join(targets)}); its feed-forward layers matter more"
    )
    return Finding(Severity.WARN, message, f"method.target_modules={ALL_LINEAR}", {"method.target_modules": ALL_LINEAR})


def _dropout(situation: Situation) -> Finding | None:
    value, rows = _lora(situation).dropout, situation.data.rows
    assert rows is not None
    if rows >= LARGE_DATA_ROWS:
        if value == 0:
            return None
        message, wanted = f"dropout {value:g} on the adapters' input with {rows:,} rows, which need none", 0.0
    elif 0 < value <= USUAL_DROPOUT:
        return None
    else:
        wanted = USUAL_DROPOUT
        message = f"dropout {value:g} on the adapters' input with {rows:,} rows; QLoRA's scripts have 0.1 for 7 B "
        message += "and 0.05 for 65 B, and 0.1 was a little better than none here"
    return Finding(Severity.INFO, message, f"method.dropout={wanted:g}", {"method.dropout": wanted})


INFO, WARN = Severity.INFO, Severity.WARN
_DECODER = {"model.decoder": True}
_ALL_CLASSES = {"data.class_counts": (40,) * 150}

CONTRACTS: tuple[Contract[Situation], ...] = (
    Contract(
        id="C-SCALE-001",
        title="The adapter's scale",
        subject=SUBJECT,
        rule="Warn if alpha / rank, or with rsLoRA alpha / sqrt(rank), is outside 0.125 to 8; info if it is neither 1 "
        "nor 2 and no published recipe (0.25; alpha 32 at any rank; 16 at rank 2; with rsLoRA alpha = rank).",
        severities=(INFO, WARN),
        sources=(
            sources.LORA.says("16/8 = 2 for RoBERTa, 32/16 = 2 for DeBERTa"),
            sources.QLORA.says("16/64 = 0.25"),
            sources.LORAPLUS.says("8/8 = 1"),
            sources.LS_LLAMA.says("32/12 = 2.7"),
            sources.REGRET.says("alpha 32, so that the scale is 32 / rank"),
            sources.PEFT_BENCH.says("rank 64, alpha 64 with rsLoRA (a scale of 8) is the best of the table"),
        ),
        predicate=_scale,
        kinds=LORA_KINDS,
        changes=("method.alpha",),
        widens=("C-HP-003",),
        examples=(
            Example({"method.rank": 16, "method.alpha": 32}),
            Example({"method.rank": 64, "method.alpha": 64, "method.rslora": True}),
            Example({"method.rank": 16, "method.alpha": 24}, gives=INFO),
            Example({"method.rank": 8, "method.alpha": 256}, gives=WARN),
            Example({"method.rank": 512, "method.alpha": 1024, "method.rslora": True}, gives=WARN),
        ),
    ),
    Contract(
        id="C-SCALE-002",
        title="A high rank at a small alpha",
        subject=SUBJECT,
        rule="Warn from rank 64 on if alpha is 16 or less and the scale is alpha / rank.",
        severities=(WARN,),
        sources=(
            sources.PEFT_BENCH.says("rank 64: 47.4 % without rsLoRA, 51.3 % with it"),
            sources.RSLORA.says("alpha / sqrt(rank) in place of alpha / rank"),
            sources.QLORA.says("rank 64 with alpha 16, which this rule warns of"),
        ),
        predicate=_high_rank,
        kinds=LORA_KINDS,
        changes=("method.rslora",),
        widens=("C-HP-003",),
        examples=(
            Example({"method.rank": 64, "method.alpha": 128}),
            Example({"method.rank": 64, "method.alpha": 16}, gives=WARN),
        ),
    ),
    Contract(
        id="C-RANK-001",
        title="More rank than the data asks for",
        subject=SUBJECT,
        rule="Info above rank 32 with fewer than 50,000 rows.",
        severities=(INFO,),
        sources=(
            sources.ARITHMETIC.says("n rows of K classes hold at most n log2 K bits of labels"),
            sources.REGRET.says("capacity has to exceed the data; for small data it does at every rank"),
            sources.LORA.says("rank 8 on GLUE"),
        ),
        predicate=_much_rank,
        kinds=LORA_KINDS,
        needs=("data.rows",),
        changes=("method.rank", "method.alpha"),
        examples=(
            Example({"method.rank": 16}, {"data.rows": 5000}),
            Example({"method.rank": 64, "method.alpha": 128}, {"data.rows": 5000}, INFO),
        ),
    ),
    Contract(
        id="C-RANK-002",
        title="Little rank for many classes",
        subject=SUBJECT,
        rule="Warn below rank 4 with more than 100 classes.",
        severities=(WARN,),
        sources=(
            sources.REGRET.says("too little capacity for the data learns worse"),
            sources.ENTRENAR.says("rank at least 4"),
            sources.OURS.says("100 classes as where it matters"),
        ),
        predicate=_little_rank,
        kinds=LORA_KINDS,
        needs=("data.class_counts",),
        changes=("method.rank", "method.alpha"),
        examples=(
            Example({"method.rank": 4, "method.alpha": 8}, _ALL_CLASSES),
            Example({"method.rank": 2, "method.alpha": 4}, _ALL_CLASSES, WARN),
        ),
    ),
    Contract(
        id="C-RANK-003",
        title="Rank against the layers",
        subject=SUBJECT,
        rule="Info if the rank exceeds an eighth of the smallest target's shorter side.",
        severities=(INFO,),
        sources=(
            sources.OURS.says("an eighth: above it the factors have a quarter of a square layer's weights or more"),
        ),
        predicate=_rank_of_layers,
        kinds=LORA_KINDS,
        needs=("model.smallest_side",),
        changes=("method.rank", "method.alpha"),
        examples=(
            Example({"method.rank": 48, "method.alpha": 96}, {"model.smallest_side": 384}),
            Example({"method.rank": 64, "method.alpha": 128}, {"model.smallest_side": 384}, INFO),
        ),
    ),
    Contract(
        id="C-TARGET-001",
        title="Attention only on a decoder",
        subject=SUBJECT,
        rule="Warn if all targets on a decoder are attention layers. Encoders are not warned of it.",
        severities=(WARN,),
        sources=(
            sources.REGRET.says("attention alone loses even at equal numbers of parameters"),
            sources.QLORA.says("adapters on all layers (--lora_modules all)"),
            sources.PEFT_BENCH.says("feed-forward at rank 10: 49.4 %, queries and values at rank 32: 47.8 %"),
        ),
        predicate=_attention_only,
        kinds=LORA_KINDS,
        needs=("model.decoder",),
        changes=("method.target_modules",),
        examples=(
            Example({"method.target_modules": "all-linear"}, _DECODER),
            Example({"method.target_modules": ("query", "value")}, {"model.decoder": False}),
            Example({"method.target_modules": ("q_proj", "v_proj")}, _DECODER, WARN),
        ),
    ),
    Contract(
        id="C-DROPOUT-001",
        title="Dropout on the adapters' input",
        subject=SUBJECT,
        rule="Info below 100,000 rows if there is none or more than 0.1; info from there on if there is any.",
        severities=(INFO,),
        sources=(
            sources.QLORA.says("0.1 for 7 B, 0.05 for 65 B"),
            sources.LS_LLAMA.says("0.1"),
            sources.RECOMMEND.says("94.7 % with 0.1, 94.3 % without, on TREC's validation rows"),
        ),
        predicate=_dropout,
        kinds=LORA_KINDS,
        needs=("data.rows",),
        changes=("method.dropout",),
        examples=(
            Example({"method.dropout": 0.1}, {"data.rows": 5000}),
            Example({"method.dropout": 0.0}, {"data.rows": 500_000}),
            Example({"method.dropout": 0.0}, {"data.rows": 5000}, INFO),
            Example({"method.dropout": 0.5}, {"data.rows": 5000}, INFO),
            Example({"method.dropout": 0.1}, {"data.rows": 500_000}, INFO),
        ),
    ),
)
