"""All contracts in order, and the check of a run against those about runs.

Calling it is all that a caller has to do:

    diagnostics = check(Situation(run, model=ModelFacts(parameters=..., decoder=...), data=DataFacts(rows=...)))
    require_no_errors(diagnostics, strict=False)

What is left unknown is left unchecked, so the same call serves before the data is read and after.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection
from typing import Any

from qlassify.contracts import batch, capacity, entrenar, means, rates, schedule, texts
from qlassify.contracts.rule import Contract, HyperparamDiagnostic, HyperparamDiagnostics, Severity, Unchecked
from qlassify.contracts.situation import Situation
from qlassify.errors import ConfigError

RUN_CONTRACTS: tuple[Contract[Situation], ...] = (
    *rates.CONTRACTS,
    *batch.CONTRACTS,
    *capacity.CONTRACTS,
    *schedule.CONTRACTS,
    *texts.CONTRACTS,
    *means.CONTRACTS,
)
"""Those about a ``RunConfig``, in order."""
CONTRACTS: tuple[Contract[Any], ...] = (*entrenar.CONTRACTS, *RUN_CONTRACTS)
"""All, in order: the eight about ``ClassifyConfig`` first."""


def contract(contract_id: str) -> Contract[Any]:
    """The contract of this id, in whatever case it is written.

    Raises:
        ConfigError: there is none; names the nearest.
    """
    by_id = {one.id: one for one in CONTRACTS}
    found = by_id.get(contract_id.upper())
    if found is None:
        close = difflib.get_close_matches(contract_id.upper(), by_id, n=1, cutoff=0.0)
        raise ConfigError(
            "there is no such contract",
            got=repr(contract_id),
            do=f"Did you mean {close[0]}? qlassify contracts lists all.",
        )
    return found


def check(situation: Situation, *, silenced: Collection[str] = ()) -> HyperparamDiagnostics:
    """What the contracts say of a run.

    Args:
        situation: the run and what is known.
        silenced: ids of contracts that are not to be heard of; an error is heard all the same.

    Raises:
        ConfigError: a silenced id does not exist: a misspelt one would silence nothing.
    """
    unheard = {contract(name).id for name in silenced}
    items: list[HyperparamDiagnostic] = []
    quiet: list[HyperparamDiagnostic] = []
    unchecked: list[Unchecked] = []
    for one in RUN_CONTRACTS:
        if one.kinds and situation.run.method.kind not in one.kinds:
            continue
        missing = situation.missing(one.needs)
        if missing:
            unchecked.append(Unchecked(one.id, missing))
            continue
        found = one.check(situation)
        if found is None:
            continue
        silent = one.id in unheard and found.severity is not Severity.ERROR
        (quiet if silent else items).append(found)
    return HyperparamDiagnostics(tuple(items), tuple(unchecked), tuple(quiet))
