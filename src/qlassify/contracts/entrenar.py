"""C-HP-001 to C-HP-008: the contracts of entrenar's QLoRA file, on the flat ``ClassifyConfig``.

They are a profile of their own: one project's rules for QLoRA on decoders, kept as they fire there for those who rely
on their ids. They know neither method nor size beyond one threshold and are silent or wrong for encoders; the contracts
on ``RunConfig`` widen or replace each of them. Differences from the code that they come from:

* 005 and 007, which its contract file promises and its code lacks, are here.
* 001 has the upper bound of the contract file, its value above 13 B parameters, and refuses NaN and infinity.
* 002 never recommends 0 batches per step and refuses 0.
* 003 has the contract file's tolerance (0.001, not 0.5), and says nothing of rsLoRA, whose scale is another.
* 008 states the expected steps that hold a row of the rarest class; dividing rows by the batch gave "0 updates".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self

from qlassify.config.recommend import LARGE_DECODER_PARAMETERS
from qlassify.contracts import arithmetic, sources
from qlassify.contracts.rule import (
    Contract,
    Example,
    Finding,
    HyperparamDiagnostics,
    Severity,
    Unchecked,
)

SUBJECT = "entrenar's profile: flat settings, QLoRA on decoders"
LEAST_LOW_BIT_RATE = 1.5e-4
RATE_BOUNDS = (5e-5, 5e-4)
ROWS_PER_STEP = 16
ALPHA_TOLERANCE = 1e-3
WARMUP_BOUNDS = (0.03, 0.10)
WARMUP = 0.06
WEIGHT_DECAY = 0.01
IMBALANCE = 5.0
SHORTEST_LIMIT = 4
"""The smallest limit on tokens that there is; nothing smaller can be recommended."""


class CorpusStats(Protocol):
    """The three numbers about a corpus; ``DataStats`` has them."""

    @property
    def p99_token_length(self) -> int:
        """Tokens within which 99 % of the rows lie."""

    @property
    def imbalance_ratio(self) -> float:
        """Rows of the most frequent class over rows of the rarest one."""

    @property
    def minority_count(self) -> int:
        """Rows of the rarest class."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FlatSituation:
    """The fields of ``ClassifyConfig`` that the eight look at, and the facts that they ask for.

    The attributes are those fields by name; then ``model_params`` and the numbers of ``CorpusStats``, None when not
    known.
    """

    num_classes: int
    lora_rank: int
    lora_alpha: float
    use_rslora: bool
    learning_rate: float
    epochs: int
    max_seq_len: int
    batch_size: int
    accumulation_steps: int
    gradient_clip_norm: float | None
    quantize_nf4: bool
    weight_decay: float
    warmup_fraction: float | None
    model_params: int | None = None
    p99_token_length: int | None = None
    imbalance_ratio: float | None = None
    minority_count: int | None = None

    @classmethod
    def of(cls, settings: Mapping[str, Any], facts: Mapping[str, Any]) -> Self:
        """From the fields of a ``ClassifyConfig`` (others are passed over) and what is known."""
        names = [name for name in cls.__dataclass_fields__ if name in settings]
        return cls(**{name: settings[name] for name in names}, **facts)

    def missing(self, needs: Iterable[str]) -> tuple[str, ...]:
        """Those of the facts that are not known."""
        return tuple(name for name in needs if getattr(self, name) is None)

    @property
    def rows_per_step(self) -> int:
        """Rows of an optimiser step."""
        return self.batch_size * self.accumulation_steps


def _learning_rate(flat: FlatSituation) -> Finding | None:
    assert flat.model_params is not None
    small = flat.model_params <= LARGE_DECODER_PARAMETERS
    wanted = 2e-4 if small else 1e-4
    rate, size = flat.learning_rate, arithmetic.parameters_in_words(flat.model_params)
    remedy = {"learning_rate": wanted}
    if not (math.isfinite(rate) and rate > 0):
        message = f"the learning rate is {rate:g}, which is no positive finite number"
        return Finding(Severity.ERROR, message, f"learning_rate={wanted:g}", remedy)
    if not flat.quantize_nf4:
        return None
    low, high = (LEAST_LOW_BIT_RATE if small else RATE_BOUNDS[0]), RATE_BOUNDS[1]
    if low <= rate <= high:
        return None
    side = "below" if rate < low else "above"
    message = f"learning rate {rate:g} is {side} {low:g} to {high:g} for NF4 with {size} parameters"
    return Finding(Severity.WARN, message, f"learning_rate={wanted:g} (QLoRA's, by size)", remedy)


def _rows_per_step(flat: FlatSituation) -> Finding | None:
    batch, accumulation = flat.batch_size, flat.accumulation_steps
    if batch < 1 or accumulation < 1:
        message = f"a step has {batch} x {accumulation} rows, which trains nothing"
        remedy: dict[str, Any] = {"batch_size": ROWS_PER_STEP, "accumulation_steps": 1}
        return Finding(Severity.ERROR, message, f"batch_size={ROWS_PER_STEP} and accumulation_steps=1", remedy)
    if flat.rows_per_step == ROWS_PER_STEP:
        return None
    nearest = arithmetic.accumulation_for(ROWS_PER_STEP, batch)
    message = f"a step has {batch} x {accumulation} = {flat.rows_per_step} rows, not {ROWS_PER_STEP}"
    if nearest * batch == ROWS_PER_STEP:
        return Finding(Severity.WARN, message, f"accumulation_steps={nearest}", {"accumulation_steps": nearest})
    recommendation = (
        f"batch_size={ROWS_PER_STEP}, accumulation_steps=1; with batches of {batch}, {nearest} comes nearest"
    )
    return Finding(Severity.WARN, message, recommendation, {"batch_size": ROWS_PER_STEP, "accumulation_steps": 1})


def _alpha(flat: FlatSituation) -> Finding | None:
    wanted = 2.0 * flat.lora_rank
    if flat.use_rslora or abs(flat.lora_alpha - wanted) <= ALPHA_TOLERANCE:
        return None
    message = (
        f"alpha {flat.lora_alpha:g} is not twice the rank {flat.lora_rank}; sources conflict: entrenar asks for 2, "
        "QLoRA's own scripts have 16/64 = 0.25, LoRA's for GLUE 16/8 = 2"
    )
    return Finding(Severity.WARN, message, f"lora_alpha={wanted:g}", {"lora_alpha": wanted})


def _longest(flat: FlatSituation) -> Finding | None:
    p99 = flat.p99_token_length
    assert p99 is not None
    if p99 <= 0 or flat.max_seq_len <= max(2 * p99, SHORTEST_LIMIT):
        return None
    wanted = max(SHORTEST_LIMIT, arithmetic.next_power_of_two(p99))
    message = (
        f"max_seq_len {flat.max_seq_len} is more than twice the {p99} tokens within which 99 % of the texts lie; where "
        f"batches are padded to it, attention does {(flat.max_seq_len / p99) ** 2:.1f} times the work (here none "
        "is, and it costs nothing)"
    )
    return Finding(Severity.WARN, message, f"max_seq_len={wanted}", {"max_seq_len": wanted})


def _warmup(flat: FlatSituation) -> Finding | None:
    fraction, (low, high) = flat.warmup_fraction, WARMUP_BOUNDS
    if fraction is not None and low <= fraction <= high:
        return None
    found = "there is no warm-up" if not fraction else f"the warm-up takes {arithmetic.percent(fraction)} of the steps"
    message = f"{found}, outside {arithmetic.percent(low)} to {arithmetic.percent(high)}"
    return Finding(Severity.WARN, message, f"warmup_fraction={WARMUP:g}", {"warmup_fraction": WARMUP})


def _clip(flat: FlatSituation) -> Finding | None:
    if flat.gradient_clip_norm is not None:
        return None
    message = "gradients are not clipped; sources conflict on the norm: entrenar has 1.0, QLoRA's own scripts 0.3"
    return Finding(Severity.WARN, message, "gradient_clip_norm=1.0", {"gradient_clip_norm": 1.0})


def _weight_decay(flat: FlatSituation) -> Finding | None:
    if math.isclose(flat.weight_decay, WEIGHT_DECAY):
        return None
    message = (
        f"weight decay is {flat.weight_decay:g}, not {WEIGHT_DECAY:g}; sources conflict: QLoRA's own scripts have 0, "
        "LoRA's for GLUE 0.1"
    )
    return Finding(Severity.WARN, message, f"weight_decay={WEIGHT_DECAY:g}", {"weight_decay": WEIGHT_DECAY})


def _epochs(flat: FlatSituation) -> Finding | None:
    ratio, minority = flat.imbalance_ratio, flat.minority_count
    assert ratio is not None
    assert minority is not None
    if not (ratio > IMBALANCE and flat.epochs < 2):
        return None
    # With two classes the rows follow from the ratio. With more they are at least those of one class as frequent as the
    # ratio says and of all others as rare as the rarest; the expectation grows with the rows.
    rows = max(1, minority) * (max(2, flat.num_classes) - 1 + ratio)
    bearing = arithmetic.expected_bearing_steps(rows, minority, max(1, flat.rows_per_step), flat.epochs)
    least = "about" if flat.num_classes == 2 else "at least about"
    message = (
        f"the most frequent class has {ratio:.3g} times the {minority} rows of the rarest, which {flat.epochs} epoch"
        f" shows {minority * flat.epochs} times, in {least} {bearing:.0f} steps"
    )
    return Finding(Severity.WARN, message, "epochs=3", {"epochs": 3})


_STATS = {"p99_token_length": 253, "imbalance_ratio": 14.5, "minority_count": 926}
_7B = {"model_params": 7_000_000_000}
_33B = {"model_params": 33_000_000_000}
WARN, ERROR = Severity.WARN, Severity.ERROR

SETTINGS: tuple[Contract[FlatSituation], ...] = (
    Contract(
        id="C-HP-001",
        title="Learning rate with NF4",
        subject=SUBJECT,
        rule="Warn with NF4 if the rate is outside 1.5e-4 to 5e-4 up to 13 B parameters, or 5e-5 to 5e-4 above; error "
        "if it is not positive and finite.",
        severities=(WARN, ERROR),
        sources=(
            sources.ENTRENAR.says(
                "2e-4 up to 13 B parameters, 1e-4 above, always within 5e-5 to 5e-4; warn below 1.5e-4"
            ),
            sources.QLORA.says("2e-4 for 7 B and 13 B, 1e-4 for 33 B and 65 B"),
        ),
        predicate=_learning_rate,
        needs=("model_params",),
        changes=("learning_rate",),
        examples=(
            Example({"learning_rate": 2e-4, "quantize_nf4": True}, _7B),
            Example({"learning_rate": 1e-4, "quantize_nf4": True}, _33B),
            Example({"learning_rate": 1e-4, "quantize_nf4": True}, {"model_params": 4_000_000_000}, WARN),
            Example({"learning_rate": 1e-3, "quantize_nf4": True}, _33B, WARN),
            Example({"learning_rate": 0.0}, _7B, ERROR),
            Example({"learning_rate": math.nan}, _7B, ERROR),
        ),
    ),
    Contract(
        id="C-HP-002",
        title="Rows per step",
        subject=SUBJECT,
        rule="Warn unless batch_size x accumulation_steps is 16; error if either is 0.",
        severities=(WARN, ERROR),
        sources=(
            sources.ENTRENAR.says("16 rows a step, as QLoRA for 7 B"),
            sources.QLORA.says("4 x 4 rows a step"),
            sources.LORA.says("32 to 256 rows a step on GLUE, which this rule warns of"),
        ),
        predicate=_rows_per_step,
        changes=("batch_size", "accumulation_steps"),
        examples=(
            Example({"batch_size": 4, "accumulation_steps": 4}),
            Example({"batch_size": 4, "accumulation_steps": 1}, gives=WARN),
            Example({"batch_size": 32, "accumulation_steps": 1}, gives=WARN),
            Example({"batch_size": 0}, gives=ERROR),
            Example({"batch_size": 16, "accumulation_steps": 0}, gives=ERROR),
        ),
    ),
    Contract(
        id="C-HP-003",
        title="Alpha is twice the rank",
        subject=SUBJECT,
        rule="Warn if |alpha - 2 rank| > 0.001, rsLoRA apart.",
        severities=(WARN,),
        sources=(
            sources.ENTRENAR.says("alpha = 2 rank, tolerance 0.001"),
            sources.QLORA.says("rank 64 with alpha 16, which this rule warns of"),
            sources.LORA.says("rank 8 with alpha 16 for RoBERTa"),
        ),
        predicate=_alpha,
        changes=("lora_alpha",),
        examples=(
            Example({"lora_rank": 16, "lora_alpha": 32.0}),
            Example({"lora_rank": 16, "lora_alpha": 16.0}, gives=WARN),
            Example({"lora_rank": 16, "lora_alpha": 32.4}, gives=WARN),
        ),
    ),
    Contract(
        id="C-HP-005",
        title="Warm-up",
        subject=SUBJECT,
        rule="Warn if the warm-up is outside 3 % to 10 % of the steps, or there is none.",
        severities=(WARN,),
        sources=(
            sources.ENTRENAR.says("0.03 to 0.10, by default 0.06; promised there and missing in its code"),
            sources.QLORA.says("3 %"),
        ),
        predicate=_warmup,
        changes=("warmup_fraction",),
        examples=(
            Example({"warmup_fraction": 0.06}),
            Example({"warmup_fraction": 0.0}, gives=WARN),
            Example({"warmup_fraction": 0.2}, gives=WARN),
        ),
    ),
    Contract(
        id="C-HP-006",
        title="Gradients are clipped",
        subject=SUBJECT,
        rule="Warn if gradients are not clipped.",
        severities=(WARN,),
        sources=(
            sources.ENTRENAR.says("1.0, which it ascribes to QLoRA"),
            sources.QLORA.says("0.3"),
        ),
        predicate=_clip,
        changes=("gradient_clip_norm",),
        examples=(
            Example({"gradient_clip_norm": 1.0}),
            Example({"gradient_clip_norm": None}, gives=WARN),
        ),
    ),
    Contract(
        id="C-HP-007",
        title="Weight decay",
        subject=SUBJECT,
        rule="Warn unless weight decay is 0.01.",
        severities=(WARN,),
        sources=(
            sources.ENTRENAR.says("0.01; promised there and missing in its code"),
            sources.QLORA.says("0, which this rule warns of"),
            sources.LORA.says("0.1 for RoBERTa, which this rule warns of"),
        ),
        predicate=_weight_decay,
        changes=("weight_decay",),
        examples=(
            Example({"weight_decay": 0.01}),
            Example({"weight_decay": 0.0}, gives=WARN),
        ),
    ),
)
"""Those that need no data, in order."""

DATA: tuple[Contract[FlatSituation], ...] = (
    Contract(
        id="C-HP-004",
        title="Longest text against the data",
        subject=SUBJECT,
        rule="Warn if max_seq_len is more than twice the 99th percentile of the texts' tokens.",
        severities=(WARN,),
        sources=(sources.ENTRENAR.says("99th percentile up to twice that; the next power of two, 256 for 253"),),
        predicate=_longest,
        needs=("p99_token_length",),
        changes=("max_seq_len",),
        examples=(
            Example({"max_seq_len": 256}, _STATS),
            Example({"max_seq_len": 512}, _STATS, WARN),
        ),
    ),
    Contract(
        id="C-HP-008",
        title="Epochs against imbalance",
        subject=SUBJECT,
        rule="Warn if the most frequent class has more than 5 times the rows of the rarest and there is one epoch.",
        severities=(WARN,),
        sources=(
            sources.ENTRENAR.says("3 epochs from a ratio of 5 on; by its own reasoning"),
            sources.ARITHMETIC.says("S (1 - (1 - p)^B) of S steps of B rows hold a row of a class of share p"),
        ),
        predicate=_epochs,
        needs=("imbalance_ratio", "minority_count"),
        changes=("epochs",),
        examples=(
            Example({"epochs": 3}, _STATS),
            Example({"epochs": 1}, _STATS, WARN),
        ),
    ),
)
"""Those about the data, in order."""

CONTRACTS: tuple[Contract[FlatSituation], ...] = tuple(sorted((*SETTINGS, *DATA), key=lambda one: one.id))
"""All eight."""


def check(situation: FlatSituation, contracts: Iterable[Contract[FlatSituation]] = CONTRACTS) -> HyperparamDiagnostics:
    """What the eight say of flat settings; never raises, whatever the settings are."""
    items, unchecked = [], []
    for contract in contracts:
        missing = situation.missing(contract.needs)
        if missing:
            unchecked.append(Unchecked(contract.id, missing))
            continue
        found = contract.check(situation)
        if found is not None:
            items.append(found)
    return HyperparamDiagnostics(tuple(items), tuple(unchecked))
