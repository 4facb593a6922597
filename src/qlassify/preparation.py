"""Everything that can be known of a run before its weights are loaded: its settings, its tokens, its plan, what the
contracts and the audit say, and whether it may start.

    data -> sketch of the model -> settings -> tokens -> audit -> plan -> contracts -> verdict

``train`` and ``plan`` both begin here. Nothing is written and no weight is read, so a run that cannot work ends in a
second or two and not after the model is in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from qlassify.auditing import DataAudit, audit
from qlassify.config import recommend
from qlassify.config.files import layer
from qlassify.config.run import RunConfig
from qlassify.contracts.registry import check, contract
from qlassify.contracts.rule import HyperparamDiagnostics, Severity, require_no_errors
from qlassify.contracts.situation import DataFacts, DeviceFacts, ModelFacts, Situation, TokenLengths, Truncation
from qlassify.data.dataset import Dataset
from qlassify.data.findings import WARNING, Finding
from qlassify.data.labels import label_counts
from qlassify.data.telling import untold
from qlassify.data.token_cache import chosen_store
from qlassify.data.token_store import TokenStore
from qlassify.data.tokenise import Encoded
from qlassify.errors import ConfigError, MemoryPlanError
from qlassify.forecasting import make_forecast, model_shape, runtime_bytes, step_seconds, training_seconds
from qlassify.methods.base_layer import linear_shape
from qlassify.methods.inject import linear_layers
from qlassify.pipeline import ClassifyPipeline
from qlassify.planning.memory import limit_in_force
from qlassify.planning.plan import Plan, human_bytes, summarise
from qlassify.training.precision import cpu_has_fast_bf16
from qlassify.training.rehearsal import Rehearsal

Verdict = Literal["Ready", "Warnings", "Blocked"]


@dataclass(frozen=True, slots=True, eq=False)
class Preparation:
    """A run that could start.

    Attributes:
        dataset: the labelled rows.
        pipeline: a sketch, with the settled settings, the method and the head.
        encoded: token ids of each part.
        plan: what the run will need.
        stats: token lengths of the training rows.
        audit: what the data is like; None where the settings leave it out.
        contracts: what the hyper-parameter contracts say.
        free_bytes: memory that it may take beside what the process holds already; None where the system does not say.
        store: where the tokens are kept on disk; None if they are in memory.
    """

    dataset: Dataset
    pipeline: ClassifyPipeline
    encoded: Mapping[str, Encoded]
    plan: Plan
    stats: Mapping[str, float]
    audit: DataAudit | None
    contracts: HyperparamDiagnostics
    free_bytes: int | None
    store: TokenStore | None = None

    @property
    def needed_bytes(self) -> int:
        """What the run takes beside what the process holds already."""
        return self.plan.total_bytes - self.plan.memory.runtime_bytes

    @property
    def fits(self) -> bool:
        """Whether it fits into the memory that is free; yes where that is not known."""
        return self.free_bytes is None or self.needed_bytes <= self.free_bytes

    @property
    def verdict(self) -> Verdict:
        """Blocked by memory or by a contract's error; Warnings if a contract or the audit warns; else Ready."""
        accepted = {name.upper() for name in self.pipeline.run.accepted_contracts}
        refusing = [one for one in self.contracts.of(Severity.ERROR) if one.contract_id not in accepted]
        if not self.fits or refusing:
            return "Blocked"
        return "Warnings" if self.contracts.of(Severity.WARN) or self.warnings else "Ready"

    @property
    def store_notes(self) -> tuple[str, ...]:
        """A sentence for each thing that went wrong with tokens on disk."""
        return () if self.store is None else tuple(self.store.notes)

    @property
    def plan_notes(self) -> tuple[str, ...]:
        """A sentence for each figure of the plan that is less than counted."""
        if self.plan.rehearsed:
            return ()
        return ("The architecture cannot be computed without values; what its activations take is a rough estimate.",)

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """What the audit warns of."""
        findings = () if self.audit is None else self.audit.findings()
        return tuple(finding for finding in findings if finding.severity == WARNING)

    @property
    def reading_notes(self) -> tuple[str, ...]:
        """What reading the files came to, less what the audit warns of: it says the same with more numbers."""
        return untold(self.dataset.notes, (finding.what for finding in self.warnings))

    @property
    def warning_notes(self) -> tuple[str, ...]:
        """A sentence for each thing that the audit or a contract warns of, for the report."""
        broken = (item for item in self.contracts.items if item.severity >= Severity.WARN)
        return (
            *(finding.what for finding in self.warnings),
            *(f"{item.contract_id}: {item.message}; recommended: {item.recommendation}." for item in broken),
        )

    def seconds(self, rehearsal: Rehearsal) -> dict[str, float]:
        """Wall time of the mean step and of training, as a rehearsed step promises them; as ``plan.json`` has them."""
        training = training_seconds(
            self.plan,
            rehearsal,
            validation_tokens=self.encoded["validation"].num_tokens,
            config=self.pipeline.run.training,
        )
        return {"step_seconds": round(step_seconds(self.plan, rehearsal), 4), "training_seconds": round(training, 3)}

    def require_contracts(self, *, strict: bool) -> None:
        """Refuse a run that breaks a contract which its settings do not accept.

        Args:
            strict: refuse warnings, too.

        Raises:
            ContractError: names every contract that refuses.
            ConfigError: an accepted contract does not exist.
        """
        accepted = {contract(name).id for name in self.pipeline.run.accepted_contracts}
        require_no_errors(self.contracts, strict=strict, accepted=accepted)

    def require_memory(self) -> None:
        """Refuse a run that does not fit.

        Raises:
            MemoryPlanError: says by how much, and the largest terms.
        """
        if self.fits:
            return
        assert self.free_bytes is not None
        terms = sorted(self.plan.memory.as_dict().items(), key=lambda term: -term[1])
        left_out = ("total_bytes", "runtime_bytes")
        shown = [f"{human_bytes(count)} {name.removesuffix('_bytes')}" for name, count in terms if name not in left_out]
        limit = limit_in_force(self.free_bytes) if self.pipeline.placement.device == "cpu" else None
        raise MemoryPlanError(
            "the run does not fit into memory",
            where=f"{self.pipeline.source.name} with {self.pipeline.run.method}",
            got=f"{human_bytes(self.needed_bytes)} needed beside the libraries ({', '.join(shown[:4])})",
            wanted=f"at most {human_bytes(self.free_bytes)}" + ("" if limit is None else f"; {limit}"),
            do="Lower training.token_budget or take another method; `qlassify plan DATA --method all` compares them.",
        )


def prepare(
    settings: Mapping[str, Any], dataset: Dataset, *, memory_bytes: int | None = None, known: Preparation | None = None
) -> Preparation:
    """Settle a run's settings and find out what it would need.

    Args:
        settings: the user's own; everything they leave open is chosen for the data.
        dataset: the rows.
        memory_bytes: memory that the process may take in all; what is free when None.
        known: another run on the same rows, of which the audit and the size of the libraries hold here, too.

    Raises:
        QlassifyError: the settings cannot work with the model or the data.
    """
    asked = RunConfig.parse(settings)
    pipeline = ClassifyPipeline.open(asked.model.base, asked, weights=False)
    require_positions(settings, pipeline)
    facts = pipeline.facts(dataset)
    run = RunConfig.parse(layer(recommend.recommended_settings(facts, asked.method), settings))
    pipeline.run = run.replace(quant=pipeline.backbone.quant)
    pipeline.prepare_for(dataset)
    return examine(pipeline, dataset, memory_bytes=memory_bytes, known=known)


def examine(
    pipeline: ClassifyPipeline,
    dataset: Dataset,
    *,
    memory_bytes: int | None = None,
    known: Preparation | None = None,
) -> Preparation:
    """Tokenise for a prepared sketch, plan, audit and check; arguments as ``prepare``."""
    store = chosen_store(pipeline.run.data.token_cache, (part.corpus for part in dataset.parts().values()))
    encoded = _encode(pipeline, dataset, store)
    found = None if known is None else known.audit
    if known is None and pipeline.run.data.audit:
        special = pipeline.encoder.num_special_tokens(pair=pipeline.text_pair)
        found = audit(dataset, encoded, special_tokens=special, seed=pipeline.run.seed, long=pipeline.encoder.long)
    # After the audit, whose libraries and leavings are there while the run trains.
    runtime = runtime_bytes(pipeline.placement.device) if known is None else known.plan.memory.runtime_bytes
    plan = make_forecast(pipeline, encoded["train"], runtime_bytes=runtime, targets=dataset.train.targets)
    free = pipeline.free_memory_bytes() if memory_bytes is None else max(0, memory_bytes - runtime)
    situation = _situation(pipeline, dataset, encoded["train"], found, free)
    lengths = encoded["train"].whole_lengths
    stats, diagnostics = summarise(lengths), check(situation)
    return Preparation(dataset, pipeline, encoded, plan, stats, found, diagnostics, free, store)


def _encode(pipeline: ClassifyPipeline, dataset: Dataset, store: TokenStore | None) -> dict[str, Encoded]:
    """Token ids of each part, through the store if there is one."""
    if store is None:
        return pipeline.encode_dataset(dataset)
    parts = {name: part.corpus for name, part in dataset.parts().items()}
    return {name: store.encode(pipeline.encoder, corpus.texts, corpus.pairs) for name, corpus in parts.items()}


def require_positions(settings: Mapping[str, Any], pipeline: ClassifyPipeline) -> None:
    """A maximal length that was asked for is one that the model has positions for; the default gives way by itself."""
    asked = (settings.get("model") or {}).get("max_length")
    if asked is not None and asked > pipeline.encoder.max_length:
        raise ConfigError(
            "the model has no positions for texts that long",
            where="model.max_length",
            got=asked,
            wanted=f"at most {pipeline.encoder.max_length}",
        )


def _situation(
    pipeline: ClassifyPipeline, dataset: Dataset, train: Encoded, audit: DataAudit | None, free_bytes: int | None
) -> Situation:
    """What the contracts look at."""
    backbone, run = pipeline.backbone, pipeline.run
    shape = model_shape(backbone)
    linear_bytes = shape.num_linear_parameters * shape.bytes_per_parameter
    sides = [min(linear_shape(layer)) for layer in linear_layers(backbone.model).values()]
    model = ModelFacts(
        parameters=shape.num_parameters,
        decoder=backbone.causal,
        smallest_side=min(sides, default=None),
        max_positions=backbone.max_positions,
        model_type=backbone.model_type,
        linear_bytes=linear_bytes,
        other_bytes=shape.num_parameters * shape.bytes_per_parameter - linear_bytes,
        bytes_per_parameter=shape.bytes_per_parameter,
    )
    device: Literal["cpu", "cuda"] = "cuda" if pipeline.placement.device == "cuda" else "cpu"
    fast = pipeline.placement.precision == "bf16" or (device == "cpu" and cpu_has_fast_bf16())
    return Situation(run, model, _data_facts(pipeline, dataset, train, audit), DeviceFacts(device, fast, free_bytes))


def _data_facts(pipeline: ClassifyPipeline, dataset: Dataset, train: Encoded, audit: DataAudit | None) -> DataFacts:
    """Rows, classes, lengths and what the audit counted."""
    labels, targets = dataset.labels, dataset.train.targets
    encoder = pipeline.encoder
    long = encoder.long
    lengths = train.whole_lengths
    percentiles = [int(value) for value in np.percentile(lengths, [50, 90, 95, 99, 100], method="inverted_cdf")]
    cut = train.lost_tokens > 0
    counts = label_counts(targets, len(labels))
    by_class = label_counts(targets[cut], len(labels)) / np.maximum(counts, 1)
    own = None if audit is None else next(one for one in audit.duplicates if one.part == "train")
    leaks = (
        () if audit is None else tuple(one for one in audit.leaks if (one.known, one.scored) == ("train", "validation"))
    )
    return DataFacts(
        rows=len(dataset.train),
        class_counts=tuple(int(count) for count in counts),
        class_names=labels.names,
        token_lengths=TokenLengths(*percentiles),
        truncation=Truncation(
            encoder.max_length,
            float(cut.mean()),
            tuple(float(share) for share in by_class),
            end="middle" if long.policy == "head_tail" else "tail",
            long=long.policy,
            max_windows=long.max_windows,
            window_step=long.step(encoder.max_length, encoder.num_special_tokens(pair=False)),
        ),
        pairs=pipeline.text_pair,
        duplicates=None if own is None else own.same.surplus,
        conflicts=None if own is None else own.same.conflicting_rows,
        leaks=None if audit is None else sum(count.rows for one in leaks for count in one.counts.values()),
        validation_counts=tuple(int(c) for c in label_counts(dataset.validation.targets, len(labels))),
        multi_label=labels.multi_label,
    )
