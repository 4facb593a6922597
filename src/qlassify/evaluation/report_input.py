"""``ReportInput``: everything that the report and the model card say, as plain values.

The two documents are made from this and from nothing else: no file is read while they are made and no clock is looked
at, so the same input gives the same bytes. Who fills it in (``reporting``) knows where things stand in a run folder;
the templates know how they look; neither knows the other. Passing the run folder itself would be shorter, and then a
report could only be tested by training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qlassify.evaluation.baselines import Baseline
from qlassify.evaluation.decision import DecisionRule
from qlassify.evaluation.decision_scores import DecisionScores
from qlassify.evaluation.intervals import Interval
from qlassify.evaluation.metrics import Metrics
from qlassify.evaluation.slices import SliceScores


@dataclass(frozen=True, slots=True)
class PartLengths:
    """Token lengths of one part of the data; what nobody counted is None.

    Attributes:
        part: train, validation or test.
        rows: its texts.
        median: half of the texts are at most this long, in tokens, before anything is cut.
        p90: nine in ten are.
        p99: ninety-nine in a hundred are.
        longest: of the longest text.
        longer: texts that are longer than the limit.
        cut: texts of which something is not read.
        unread: tokens that are not read, in all.
        tokens: of all texts.
    """

    part: str
    rows: int
    median: int | None
    p90: int | None
    p99: int | None
    longest: int | None
    longer: int | None
    cut: int
    unread: int
    tokens: int | None


@dataclass(frozen=True, slots=True)
class ReportInput:
    """Everything that a report says. Mappings are shown as they are, in their order, nested ones folded."""

    title: str
    created: str
    """Date and time in words; the caller reads the clock."""
    run_name: str
    model: Mapping[str, object]
    """The model card takes ``base_model`` (an id on the hub), ``license`` and ``language`` from here, where given."""
    method: Mapping[str, object]
    training: Mapping[str, object]
    data: Mapping[str, object]
    """The model card takes the data set's ``name`` from here, where given."""
    plan: Mapping[str, Any]
    """As in ``plan.json``: ``verdict``, ``planned`` and ``measured``; what is missing there is not told."""
    environment: Mapping[str, object]
    """Versions and hardware of the training."""
    metrics: Metrics
    evaluated_on: str
    """Which rows were scored, as a word before "rows": ``test``, ``validation``, a file name."""
    baselines: tuple[Baseline, ...]
    history: tuple[Mapping[str, float], ...]
    """Step events: step, epoch, loss, learning_rate, grad_norm, rows, tokens, seconds."""
    evaluations: tuple[Mapping[str, float], ...]
    """Evaluations during training: step, epoch, loss, scores."""
    examples: tuple[Mapping[str, object], ...]
    """The most confident mistakes: row, text (and pair), true, predicted, probability."""
    notes: tuple[str, ...]
    """Lossy acts and warnings, one sentence each, with its number; none that stands elsewhere in the report."""
    commands: tuple[str, ...]
    """What to run next."""
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    """95 % intervals by the names of scores."""
    slices: tuple[SliceScores, ...] = ()
    """Scores by group of rows."""
    rule: DecisionRule | None = None
    """How answers are read off the probabilities."""
    decisions: DecisionScores | None = None
    """What the rule is worth on the scored rows."""
    label_noise: Mapping[str, Any] = field(default_factory=dict)
    """As in ``data.json``: ``candidates``, ``num_candidates``, ``num_rows``, ``skill``, ``num_fit_rows``."""
    findings: tuple[Mapping[str, str], ...] = ()
    """What the audit of the data found: check, severity, what, do."""
    lengths: tuple[PartLengths, ...] = ()
    """Token lengths, part by part."""
    unread: Mapping[str, int] = field(default_factory=dict)
    """Policy for long texts -> tokens of the training texts that it does not read."""
    label_counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Part -> label -> rows."""
    contracts: Mapping[str, Any] = field(default_factory=dict)
    """As in ``plan.json``: ``items`` and ``unchecked``."""
    accepted_contracts: tuple[str, ...] = ()
    """Contracts that the settings break knowingly."""
    hashes: Mapping[str, str] = field(default_factory=dict)
    """What a file is -> its SHA-256."""
    scoring_environment: Mapping[str, object] = field(default_factory=dict)
    """Of ``environment``, what was different where the rows were scored."""
    repeat_command: str = ""
    """What trains the same classifier again; empty where there is no run to repeat."""
