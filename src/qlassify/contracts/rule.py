"""What a contract is, and what it says when a run breaks it.

A contract's predicate looks at a situation and returns a finding or None. The finding carries its remedy as settings
(``{"training.learning_rate": 2e-4}``), so that a program can apply what a person reads; a test applies every one of
them and looks again.
"""

from __future__ import annotations

import enum
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from qlassify.contracts.sources import Source
from qlassify.errors import ContractError

S = TypeVar("S")


class Severity(enum.IntEnum):
    """How much a finding matters; an error refuses the run."""

    INFO = 1
    WARN = 2
    ERROR = 3


@dataclass(frozen=True, slots=True)
class Finding:
    """What a predicate found.

    Attributes:
        severity: how much it matters.
        message: what is so, with the numbers.
        recommendation: what to do about it.
        remedy: dotted setting -> value that does it; empty where no setting can.
    """

    severity: Severity
    message: str
    recommendation: str
    remedy: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HyperparamDiagnostic:
    """One broken contract.

    Attributes:
        contract_id: which one, as ``C-LR-001``.
        severity: how much it matters.
        message: what is so, with the numbers.
        recommendation: what to do about it.
        remedy: setting -> value that does it; empty where no setting can. Names are dotted settings of ``RunConfig``,
            and for C-HP-001 to 008 fields of ``ClassifyConfig``.
    """

    contract_id: str
    severity: Severity
    message: str
    recommendation: str
    remedy: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"[HP-{self.severity.name}] {self.contract_id}: {self.message} -> {self.recommendation}"

    def as_dict(self) -> dict[str, Any]:
        """The same for a machine; the severity is ``info``, ``warn`` or ``error``."""
        return {
            "contract_id": self.contract_id,
            "severity": self.severity.name.lower(),
            "message": self.message,
            "recommendation": self.recommendation,
            "remedy": dict(self.remedy),
        }


@dataclass(frozen=True, slots=True)
class Unchecked:
    """A contract that could not be checked.

    Attributes:
        contract_id: which one.
        missing: names of the facts that were not known, as ``data.rows``.
    """

    contract_id: str
    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class HyperparamDiagnostics:
    """What a check came to.

    Attributes:
        items: the broken contracts, in the registry's order.
        unchecked: contracts that apply but whose facts were not known; they say nothing.
        silenced: broken contracts that the caller asked not to hear of.
    """

    items: tuple[HyperparamDiagnostic, ...] = ()
    unchecked: tuple[Unchecked, ...] = ()
    silenced: tuple[HyperparamDiagnostic, ...] = ()

    def has_warning(self, contract_id: str) -> bool:
        """Whether this contract is broken with severity warn or error."""
        return any(item.contract_id == contract_id and item.severity >= Severity.WARN for item in self.items)

    def has_errors(self) -> bool:
        """Whether any contract is broken with severity error."""
        return any(item.severity is Severity.ERROR for item in self.items)

    def of(self, severity: Severity) -> tuple[HyperparamDiagnostic, ...]:
        """The items of one severity."""
        return tuple(item for item in self.items if item.severity is severity)

    def print_all(self) -> None:
        """Write one line for each item to standard error."""
        for item in self.items:
            print(item, file=sys.stderr)

    def as_dict(self) -> dict[str, Any]:
        """The same for a machine."""
        return {
            "items": [item.as_dict() for item in self.items],
            "unchecked": [{"contract_id": one.contract_id, "missing": list(one.missing)} for one in self.unchecked],
            "silenced": [item.contract_id for item in self.silenced],
        }


def require_no_errors(
    diagnostics: HyperparamDiagnostics, *, strict: bool = False, accepted: Collection[str] = ()
) -> None:
    """Refuse to go on with broken contracts.

    Args:
        diagnostics: what a check came to.
        strict: refuse warnings, too.
        accepted: ids of contracts that are broken knowingly.

    Raises:
        ContractError: names every contract that refuses; exit code 3.
    """
    least = Severity.WARN if strict else Severity.ERROR
    refusing = [item for item in diagnostics.items if item.severity >= least and item.contract_id not in accepted]
    if not refusing:
        return
    names = ", ".join(item.contract_id for item in refusing)
    raise ContractError(
        f"the settings break {len(refusing)} hyper-parameter contract{'s' if len(refusing) > 1 else ''}",
        where=names,
        got="; ".join(f"{item.contract_id}: {item.message}" for item in refusing),
        do=" ".join(f"{item.contract_id}: {item.recommendation}." for item in refusing)
        + f" If it is meant so: --set 'accepted_contracts=[{names}]'.",
    )


@dataclass(frozen=True, slots=True)
class Example:
    """A situation that a contract passes or fails, as settings and facts.

    Attributes:
        settings: dotted setting -> value; everything else has its default.
        facts: dotted fact -> value, as ``model.parameters``.
        gives: the severity that it fails with; None where it passes.
    """

    settings: Mapping[str, Any]
    facts: Mapping[str, Any] = field(default_factory=dict)
    gives: Severity | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Contract(Generic[S]):
    """One rule, about situations of type ``S``.

    Attributes:
        id: its name for good.
        title: what it is about.
        subject: the heading it stands under.
        rule: the rule in words, with its thresholds.
        severities: those that it can give.
        sources: where its figures are from.
        predicate: the rule itself; None when it is kept.
        examples: at least one that passes, and one for each severity.
        needs: facts without which it cannot be checked, as ``data.rows``.
        kinds: methods that it applies to; all when empty.
        changes: settings that its remedy may change; none where only data, model or place can mend it.
        widens: entrenar's rules that it widens or replaces.
    """

    id: str
    title: str
    subject: str
    rule: str
    severities: tuple[Severity, ...]
    sources: tuple[Source, ...]
    predicate: Callable[[S], Finding | None]
    examples: tuple[Example, ...]
    needs: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()
    widens: tuple[str, ...] = ()

    def check(self, situation: S) -> HyperparamDiagnostic | None:
        """What this contract says of a situation in which everything that it needs is known."""
        finding = self.predicate(situation)
        if finding is None:
            return None
        return HyperparamDiagnostic(self.id, finding.severity, finding.message, finding.recommendation, finding.remedy)


@dataclass(frozen=True, slots=True)
class Held:
    """A rule that the code leaves no way to break.

    Attributes:
        rule: the rule in words.
        why: what makes it hold.
        test: the test that would fail if it did not, as ``tests/folder/file.py::function``.
        widens: entrenar's rule that it answers, if any.
    """

    rule: str
    why: str
    test: str
    widens: str = ""
