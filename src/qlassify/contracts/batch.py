"""C-BATCH: rows of an optimiser step. A band by kind of model, where entrenar's rule has the one number 16."""

from __future__ import annotations

from qlassify.contracts import arithmetic, sources
from qlassify.contracts.rates import LORA_KINDS
from qlassify.contracts.rule import Contract, Example, Finding, Severity
from qlassify.contracts.situation import Situation

SUBJECT = "Batches"
DECODER_BOUNDS, DECODER_TARGET = (8, 32), 16
DECODER_HIGHEST = 64
"""More rows than this a step and a decoder's LoRA wants a rate of its own."""
ENCODER_BOUNDS, ENCODER_TARGET = (16, 256), 32


def _rows_per_step(situation: Situation) -> Finding | None:
    decoder, rows, batch = situation.model.decoder, situation.rows_per_step, situation.run.training.batch_size
    (low, high), target = (DECODER_BOUNDS, DECODER_TARGET) if decoder else (ENCODER_BOUNDS, ENCODER_TARGET)
    if low <= rows <= high:
        return None
    kind = "decoder" if decoder else "encoder"
    message = f"a step has {rows} rows; LoRA on {kind}s was published with {low} to {high}"
    if rows < low:
        count = arithmetic.accumulation_for(target, batch)
        recommendation = f"training.accumulation_steps={count} makes it {batch * count}, whatever memory allows at once"
        return Finding(Severity.INFO, message, recommendation, {"training.accumulation_steps": count})
    severity = Severity.WARN if decoder and rows > DECODER_HIGHEST else Severity.INFO
    if severity is Severity.WARN:
        message += ", and bears large batches worse than full fine-tuning does, at any rank"
    recommendation = f"training.batch_size={target}, or a search for the rate that goes with {rows} rows"
    remedy = {"training.batch_size": target, "training.accumulation_steps": 1}
    return Finding(severity, message, recommendation, remedy)


_ENCODER = {"model.decoder": False}
_DECODER = {"model.decoder": True}

CONTRACTS: tuple[Contract[Situation], ...] = (
    Contract(
        id="C-BATCH-001",
        title="Rows per step with LoRA",
        subject=SUBJECT,
        rule="Info if batch_size x accumulation_steps is outside 16 to 256 for an encoder or 8 to 32 for a decoder; "
        "warn above 64 for a decoder.",
        severities=(Severity.INFO, Severity.WARN),
        sources=(
            sources.QLORA.says("16 rows"),
            sources.LS_LLAMA.says("8 rows"),
            sources.LORA.says("32 to 256 rows on GLUE"),
            sources.LORAPLUS.says("32 rows for RoBERTa"),
            sources.REGRET.says("LoRA bears large batches worse, not mended by rank; below 32 rows"),
        ),
        predicate=_rows_per_step,
        kinds=LORA_KINDS,
        needs=("model.decoder",),
        changes=("training.batch_size", "training.accumulation_steps"),
        widens=("C-HP-002",),
        examples=(
            Example({"training.batch_size": 32}, _ENCODER),
            Example({"training.batch_size": 4, "training.accumulation_steps": 4}, _DECODER),
            Example({"training.batch_size": 5}, _ENCODER, Severity.INFO),
            Example({"training.batch_size": 64}, _DECODER, Severity.INFO),
            Example({"training.batch_size": 128}, _DECODER, Severity.WARN),
        ),
    ),
)
