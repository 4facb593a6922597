"""C-LR: learning rates by method and size of model, with the table of bands as data.

The method's own rate matters more than the method: in PEFT's comparison the same IA3 came to 31 % at 1e-4 and to 45 %
at 5e-3. A table of bands is the alternative to one bound for everything, which is wrong for all methods but one. Models
below 60 M parameters have rows of their own, with room above the published rates, because measurements here (MiniLM)
put their best rates there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from qlassify.config.method import LoraConfig, PrefixConfig
from qlassify.config.recommend import (
    HEAD_RATE,
    LARGE_DECODER_PARAMETERS,
    LARGE_ENCODER_PARAMETERS,
    SMALL_ENCODER_PARAMETERS,
)
from qlassify.contracts import arithmetic, sources
from qlassify.contracts.rule import Contract, Example, Finding, Severity
from qlassify.contracts.situation import Situation
from qlassify.contracts.sources import Source

SUBJECT = "Learning rates"
LORA_KINDS = ("lora", "qlora", "dora", "qdora")
STEPPED_KINDS = (*LORA_KINDS, "ia3", "adapter", "bitfit", "prefix", "full")
"""Every method that is trained in steps; a probe is solved for and has no rate."""
PREFIX_NETWORK = "prefix network"
"""The family of a prefix that is the output of a network while it trains."""
FAR_FROM_CENTRE = 4.0
"""A rate inside its band is mentioned from this factor off the centre on; our choice."""
FULL_RATE = 5e-5
"""The upper end of what full fine-tuning of an encoder takes."""
LORA_PLUS_BOUNDS = (4.0, 32.0)
HEAD_HIGHEST = 1e-2
HEAD_OVER_METHOD = 10.0
HUGE_ENCODER_PARAMETERS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Band:
    """One row of the table.

    Attributes:
        family: lora, ia3, adapter, bitfit, prefix, prefix network or full.
        models: which models, in words.
        centre: the rate to take.
        low: the least rate that raises no warning.
        high: the greatest one.
        sources: where the figures are from.
        decoder: whether the row is about decoders; None for both kinds.
        least: parameters from which it holds.
        below: parameters from which it holds no more.
        model_type: an architecture of its own, if it is about one.
    """

    family: str
    models: str
    centre: float
    low: float
    high: float
    sources: tuple[Source, ...]
    decoder: bool | None = None
    least: int = 0
    below: int | None = None
    model_type: str | None = None

    def holds_for(self, family: str, parameters: int, decoder: bool, model_type: str | None) -> bool:
        """Whether this is the row for such a model."""
        return (
            self.family == family
            and self.decoder in (None, decoder)
            and self.least <= parameters
            and (self.below is None or parameters < self.below)
            and self.model_type in (None, model_type)
        )

    def words(self) -> str:
        """``0.0001 to 0.001``."""
        return f"{self.low:g} to {self.high:g}"


_SMALL, _LARGE, _HUGE = SMALL_ENCODER_PARAMETERS, LARGE_ENCODER_PARAMETERS, HUGE_ENCODER_PARAMETERS
_ROOM = sources.OURS.says("room above what was tried, for models below 60 M parameters")
_AXOLOTL_FULL = sources.AXOLOTL.says("1e-5 to 5e-5 for full fine-tuning")
_TFEW_IA3 = sources.TFEW.says("IA3 3e-3, 1000 steps")

BANDS: tuple[Band, ...] = (
    Band("lora", "encoders below 60 M", 1e-3, 1e-4, 3e-3,
         (sources.METHODS_PAGE.says("1e-3 on MiniLM: 95.4 % macro-F1 on TREC's held-out rows"), _ROOM),
         decoder=False, below=_SMALL),
    Band("lora", "encoders of 60 M to 200 M", 4e-4, 1e-4, 1e-3,
         (sources.LORA.says("4e-4 to 5e-4 for RoBERTa-base, rank 8, alpha 16"),),
         decoder=False, least=_SMALL, below=_LARGE),
    Band("lora", "encoders of 200 M to 1 B", 3e-4, 1e-4, 5e-4,
         (sources.LORA.says("2e-4 to 4e-4 for RoBERTa-large"), sources.PEFT_NOTEBOOKS.says("3e-4 for RoBERTa-large")),
         decoder=False, least=_LARGE, below=_HUGE),
    Band("lora", "encoders from 1 B", 1e-4, 6e-5, 3e-4,
         (sources.LORA.says("6e-5 to 2.6e-4 for DeBERTa-v2-XXL, rank 16, alpha 32"),
          sources.OURS.says("3e-4 is recommended for every large encoder, so the band reaches to it")),
         decoder=False, least=_HUGE),
    Band("lora", "decoders up to 13 B", 2e-4, 1e-4, 5e-4,
         (sources.QLORA.says("2e-4 for 7 B and 13 B"), sources.LS_LLAMA.says("1e-4 for 7 B and 13 B"),
          sources.AXOLOTL.says("1e-4 to 3e-4 for LoRA")),
         decoder=True, below=LARGE_DECODER_PARAMETERS + 1),
    Band("lora", "decoders above 13 B", 1e-4, 5e-5, 2e-4,
         (sources.QLORA.says("1e-4 for 33 B and 65 B"),),
         decoder=True, least=LARGE_DECODER_PARAMETERS + 1),
    Band("ia3", "models below 60 M", 1e-2, 1e-3, 3e-2,
         (sources.METHODS_PAGE.says("93.2 % macro-F1 at 0.003, 94.4 % at 0.01, 93.7 % at 0.03 (MiniLM, TREC)"),
          _TFEW_IA3),
         below=_SMALL),
    Band("ia3", "models from 60 M", 3e-3, 1e-3, 1e-2,
         (_TFEW_IA3, sources.PEFT_BENCH.says("45.5 % at 5e-3, 39.8 % at 1e-3, 31.1 % at 1e-4"),
          sources.PEFT_NOTEBOOKS.says("1e-3")),
         least=_SMALL),
    Band("prefix", "models below 60 M", 3e-2, 3e-3, 5e-2,
         (sources.METHODS_PAGE.says("91.6 % macro-F1 at 0.01, 94.4 % at 0.03 (MiniLM, TREC)"), _ROOM),
         below=_SMALL),
    Band("prefix", "models from 60 M", 1e-2, 3e-3, 3e-2,
         (sources.PEFT_NOTEBOOKS.says("1e-2"),
          sources.PTUNING2.says("5e-3 for RoBERTa-large"),
          sources.PEFT_BENCH.says("35.8 % at 5e-3, 18.6 % at 1e-3, started at zero")),
         least=_SMALL),
    Band(PREFIX_NETWORK, "models below 60 M", 1e-3, 1e-4, 3e-3,
         (sources.METHODS_PAGE.says("95.2 % accuracy at 1e-3, 94.4 % at 3e-4, nothing learned at 1e-2"),),
         below=_SMALL),
    Band(PREFIX_NETWORK, "models from 60 M", 1e-3, 5e-5, 1e-2,
         (sources.TFEW.says("prefix tuning 1e-2, with a network of width 512; sources conflict"),
          sources.METHODS_PAGE.says("1e-3 on MiniLM, nothing learned at 1e-2"),
          sources.PREFIX.says("5e-5 for GPT-2 medium and larger")),
         least=_SMALL),
    Band("adapter", "models below 60 M", 1e-3, 5e-5, 5e-3,
         (sources.METHODS_PAGE.says(
             "89.8 % macro-F1 at 0.0001, 93.6 % at 0.001, 94.6 % at 0.003, nothing learned at 0.01 (MiniLM, TREC)"),),
         below=_SMALL),
    Band("adapter", "models from 60 M", 1e-4, 5e-5, 1e-3,
         (sources.ADAPTERS.says("1e-4 works well for most settings"),),
         least=_SMALL),
    Band("bitfit", "models below 60 M", 3e-3, 1e-4, 1e-2,
         (sources.METHODS_PAGE.says(
             "88.9 % macro-F1 at 0.0003, 90.8 % at 0.001, 91.4 % at 0.003, 91.3 % at 0.01 (MiniLM, TREC)"),),
         below=_SMALL),
    Band("bitfit", "models from 60 M", 3e-4, 1e-4, 1e-3, (sources.TFEW.says("3e-4"),), least=_SMALL),
    Band("full", "models below 60 M", 5e-5, 1e-5, 5e-4,
         (sources.METHODS_PAGE.says("94.9 % macro-F1 at 0.00005, 94.6 % at 0.00015, 93.7 % at 0.0005 (MiniLM, TREC)"),
          _AXOLOTL_FULL),
         below=_SMALL),
    Band("full", "ModernBERT", 8e-5, 1e-5, 1e-4,
         (sources.MODERNBERT.says("8e-5 on GLUE"), sources.ROBERTA.says("1e-5 to 2e-5, which is not warned of either")),
         decoder=False, least=_SMALL, model_type="modernbert"),
    Band("full", "encoders from 60 M", 2e-5, 1e-5, 5e-5,
         (sources.ROBERTA.says("1e-5 to 2e-5 for RoBERTa-large"), _AXOLOTL_FULL),
         decoder=False, least=_SMALL),
    Band("full", "decoders from 60 M", 2e-5, 1e-5, 5e-5,
         (_AXOLOTL_FULL, sources.PEFT_BENCH.says("1e-5 for Llama-3.2-3B")),
         decoder=True, least=_SMALL),
)  # fmt: skip
"""The table; the first row that holds is taken. DoRA and LoRA+ take LoRA's row with half its lower end."""
BAND_CONTRACT = "C-LR-001"
"""The contract that the table belongs to."""

# A decoder of less than 60 M parameters takes the row of decoders for LoRA, and of small models for everything else.


def family_of(situation: Situation) -> str:
    """The family of the run's method in the table."""
    method = situation.run.method
    if isinstance(method, LoraConfig):
        return "lora"
    if isinstance(method, PrefixConfig) and method.reparametrize:
        return PREFIX_NETWORK
    return method.kind


def band_of(situation: Situation) -> Band:
    """The row for the run's method on its model, whose size and kind have to be known; never for a probe."""
    method, model = situation.run.method, situation.model
    assert model.parameters is not None
    assert model.decoder is not None
    family = family_of(situation)
    band = next(row for row in BANDS if row.holds_for(family, model.parameters, model.decoder, model.model_type))
    if isinstance(method, LoraConfig) and (method.dora or method.lora_plus_ratio > 1):
        return replace(band, low=band.low / 2)
    return band


def _full_rate_on_lora(situation: Situation) -> bool:
    """A LoRA rate that only full fine-tuning takes, unless the band of this very model reaches down to it."""
    rate, model = situation.run.training.learning_rate, situation.model
    if not isinstance(situation.run.method, LoraConfig) or rate > FULL_RATE:
        return False
    known = model.parameters is not None and model.decoder is not None
    return not (known and rate >= band_of(situation).low)


def _band(situation: Situation) -> Finding | None:
    if _full_rate_on_lora(situation):
        return None  # C-LR-002 says it
    rate, band = situation.run.training.learning_rate, band_of(situation)
    assert situation.model.parameters is not None
    remedy = {"training.learning_rate": band.centre}
    size = arithmetic.parameters_in_words(situation.model.parameters)
    place = f"{situation.run.method} on {size} parameters ({band.models})"
    if not band.low <= rate <= band.high:
        side = "below" if rate < band.low else "above"
        message = f"learning rate {rate:g} is {side} {band.words()}, the band for {place}"
        return Finding(Severity.WARN, message, f"training.learning_rate={band.centre:g}", remedy)
    factor = max(rate / band.centre, band.centre / rate)
    if factor <= FAR_FROM_CENTRE:
        return None
    message = f"learning rate {rate:g} is within {band.words()} for {place}, but {factor:.3g} times off its centre"
    return Finding(Severity.INFO, message, f"try training.learning_rate={band.centre:g}", remedy)


def _lora_at_a_full_rate(situation: Situation) -> Finding | None:
    if not _full_rate_on_lora(situation):
        return None
    model, rate = situation.model, situation.run.training.learning_rate
    known = model.parameters is not None and model.decoder is not None
    wanted = band_of(situation).centre if known else 2e-4
    message = f"learning rate {rate:g} is one for full fine-tuning; LoRA takes about ten times as much"
    return Finding(Severity.WARN, message, f"training.learning_rate={wanted:g}", {"training.learning_rate": wanted})


def _head(situation: Situation) -> Finding | None:
    run = situation.run
    rate, head = run.training.learning_rate, run.training.head_learning_rate
    full, prefix = run.method.kind == "full", isinstance(run.method, PrefixConfig)
    wanted = HEAD_RATE if full or prefix else max(rate, HEAD_RATE)
    remedy = {"training.head_learning_rate": wanted}
    recommendation = f"training.head_learning_rate={wanted:g}"
    if head <= FULL_RATE and not full:
        message = f"the head's learning rate {head:g} is one for pretrained weights, and the head begins at random"
        return Finding(Severity.WARN, message, recommendation, remedy)
    highest = HEAD_HIGHEST if full or prefix else max(HEAD_HIGHEST, HEAD_OVER_METHOD * rate)
    if head > highest:
        message = f"the head's learning rate {head:g} is above {highest:g}"
        return Finding(Severity.WARN, message, recommendation, remedy)
    if head < rate and not full and not prefix:
        message = f"the head's learning rate {head:g} is below the method's {rate:g}"
        return Finding(Severity.INFO, message, recommendation, remedy)
    return None


def _lora_plus(situation: Situation) -> Finding | None:
    method = situation.run.method
    assert isinstance(method, LoraConfig)
    ratio, (low, high) = method.lora_plus_ratio, LORA_PLUS_BOUNDS
    if ratio == 1 or low <= ratio <= high:
        return None
    message = f"B learns {ratio:g} times as fast as A, outside {low:g} to {high:g}"
    if ratio < 1:
        message += "; the method's argument is that B has to be the faster one"
    return Finding(
        Severity.WARN, message, "method.lora_plus_ratio=16, or 1 for plain LoRA", {"method.lora_plus_ratio": 16.0}
    )


_MINILM = {"model.parameters": 22_565_376, "model.decoder": False}
_BASE = {"model.parameters": 125_000_000, "model.decoder": False}
_7B = {"model.parameters": 7_000_000_000, "model.decoder": True}
INFO, WARN = Severity.INFO, Severity.WARN

CONTRACTS: tuple[Contract[Situation], ...] = (
    Contract(
        id=BAND_CONTRACT,
        title="Learning rate by method and size",
        subject=SUBJECT,
        rule="Warn if training.learning_rate is outside the band for the method and the model's size; info if it is "
        "inside and more than 4 times off the centre. DoRA and LoRA+ may have half of LoRA's lowest rate.",
        severities=(INFO, WARN),
        sources=(
            sources.PEFT_BENCH.says("the rate matters more than the method: IA3 31.1 % at 1e-4, 45.5 % at 5e-3"),
            sources.DORA.says("a slightly lower rate than LoRA's"),
            *dict.fromkeys(source for band in BANDS for source in band.sources),
        ),
        predicate=_band,
        kinds=STEPPED_KINDS,
        needs=("model.parameters", "model.decoder"),
        changes=("training.learning_rate",),
        widens=("C-HP-001",),
        examples=(
            Example({"training.learning_rate": 4e-4}, _BASE),
            Example({"training.learning_rate": 1e-2}, _BASE, WARN),
            Example({"method.kind": "ia3", "training.learning_rate": 1e-4}, _BASE, WARN),
            Example({"method.kind": "full", "training.learning_rate": 1e-3}, _BASE, WARN),
            Example({"method.kind": "adapter", "training.learning_rate": 1e-4}, _MINILM, INFO),
        ),
    ),
    Contract(
        id="C-LR-002",
        title="A full fine-tuning rate on LoRA",
        subject=SUBJECT,
        rule="Warn if a LoRA method learns at 5e-5 or less, unless the band of the model reaches there.",
        severities=(WARN,),
        sources=(
            sources.REGRET.says("about 10 times the rate of full fine-tuning, 15 times below 100 steps"),
            sources.PEFT_NOTEBOOKS.says("LoRA on Gemma-2-2B at 2e-5: 82.4 % on MRPC, RoBERTa-large at 3e-4: 89.5 %"),
            sources.Source(
                "vllm-project/semantic-router, issue 591", "issue", "BERT with LoRA at 2e-5, 12 epochs: 77.8 and 81.2 %"
            ),
        ),
        predicate=_lora_at_a_full_rate,
        kinds=LORA_KINDS,
        changes=("training.learning_rate",),
        widens=("C-HP-001",),
        examples=(
            Example({"training.learning_rate": 2e-4}),
            Example({"training.learning_rate": 2e-5}, gives=WARN),
            Example({"training.learning_rate": 2e-5}, _7B, WARN),
            Example({"training.learning_rate": 5e-5}, {"model.parameters": 33_000_000_000, "model.decoder": True}),
        ),
    ),
    Contract(
        id="C-LR-003",
        title="The head's learning rate",
        subject=SUBJECT,
        rule="Warn if training.head_learning_rate is 5e-5 or less beside anything but full fine-tuning, or above both "
        "0.01 and 10 times the method's; info if it is below the method's (prefix tuning and full fine-tuning apart).",
        severities=(INFO, WARN),
        sources=(
            sources.PEFT_NOTEBOOKS.says("the head at the adapter's rate, or 4e-3 to 1e-2 beside very small adapters"),
            sources.OURS.says("10 times the method's rate as the upper end"),
        ),
        predicate=_head,
        kinds=STEPPED_KINDS,
        changes=("training.head_learning_rate",),
        examples=(
            Example({"training.head_learning_rate": 1e-3}),
            Example({"training.head_learning_rate": 2e-5}, gives=WARN),
            Example({"training.head_learning_rate": 0.1}, gives=WARN),
            Example({"training.learning_rate": 4e-4, "training.head_learning_rate": 2e-4}, gives=INFO),
        ),
    ),
    Contract(
        id="C-LR-004",
        title="LoRA+'s ratio",
        subject=SUBJECT,
        rule="Warn if method.lora_plus_ratio is neither 1 nor within 4 to 32.",
        severities=(WARN,),
        sources=(sources.LORAPLUS.says("16; the RoBERTa script 20, with 1e-4 for A"),),
        predicate=_lora_plus,
        kinds=LORA_KINDS,
        changes=("method.lora_plus_ratio",),
        examples=(
            Example({"method.lora_plus_ratio": 16}),
            Example({"method.lora_plus_ratio": 0.5}, gives=WARN),
            Example({"method.lora_plus_ratio": 100}, gives=WARN),
        ),
    ),
)
