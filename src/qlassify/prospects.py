"""What training would take, for one method or for all, before anything is spent: the work behind ``qlassify plan``.

For each method the run is prepared as ``train`` would prepare it, with that method's recommended settings, and planned
from a sketch. If wanted, the weights are then loaded and one ordinary step is timed: nothing else says as well how long
a run takes on this machine. Where a run does not fit, settings that would are looked for, the cheapest change first.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qlassify.config.files import layer
from qlassify.data.dataset import Dataset
from qlassify.errors import ConfigError, QlassifyError, QlassifyWarning
from qlassify.preparation import Preparation, prepare
from qlassify.training.loop import TrainingLoop

METHODS = ("lora", "qlora", "dora", "qdora", "ia3", "prefix", "adapter", "bitfit", "probe", "full")
"""Every method, in the order in which they are shown."""
SMALLEST_BUDGET = 64
"""Tokens at once below which a smaller budget saves nothing worth having."""


@dataclass(frozen=True, slots=True, eq=False)
class Prospect:
    """One method's.

    Attributes:
        method: its name, as ``--method`` takes it.
        preparation: the run as it would start; None if it cannot.
        problem: why it cannot.
        seconds: wall time of training on this machine; None when no step was timed.
        would_fit: settings with which a run that does not fit would; None if there are none, none are needed,
            or there are other methods to choose from.
    """

    method: str
    preparation: Preparation | None
    problem: QlassifyError | None = None
    seconds: float | None = None
    would_fit: Mapping[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        """For a machine."""
        if self.preparation is None:
            assert self.problem is not None
            return {"method": self.method, "verdict": "Blocked", "problem": self.problem.as_dict()}
        preparation = self.preparation
        return {
            "method": self.method,
            "verdict": preparation.verdict,
            "fits": preparation.fits,
            "free_bytes": preparation.free_bytes,
            "needed_bytes": preparation.needed_bytes,
            "plan": preparation.plan.as_dict(),
            "training_seconds": None if self.seconds is None else round(self.seconds, 1),
            "seconds_per_epoch": None if self.seconds is None else round(self.seconds / preparation.plan.epochs, 1),
            "would_fit": None if self.would_fit is None else dict(self.would_fit),
            "settings": preparation.pipeline.run.model_dump(mode="json"),
            "contracts": preparation.contracts.as_dict(),
        }


def prospects(
    settings: Mapping[str, Any],
    dataset: Dataset,
    methods: Sequence[str],
    *,
    memory_bytes: int | None = None,
    measure: bool = True,
) -> Iterator[Prospect]:
    """What each method would take.

    Args:
        settings: the user's own.
        dataset: the rows.
        methods: names; one is as ``settings`` say, with several each has its recommended settings.
        memory_bytes: memory that a run may take; what is free when None.
        measure: load the weights and time a step of what fits.

    Raises:
        QlassifyError: the only method cannot work with these settings (of several, those that can't say so); or
            settings of one method are given for several.
    """
    if len(methods) > 1 and set(settings.get("method") or {}) - {"kind"}:
        raise ConfigError(
            "settings of one method do not go with several",
            where="method",
            got=", ".join(sorted(set(settings["method"]) - {"kind"})),
            do="Name the one method that they belong to, or leave them out.",
        )
    known: Preparation | None = None
    single = len(methods) == 1
    for method in methods:
        own = settings if single else _with_method(settings, method)
        try:
            preparation = prepare(own, dataset, memory_bytes=memory_bytes, known=known)
        except ConfigError as problem:
            if single:
                raise
            yield Prospect(method, None, problem)
            continue
        known = known or preparation
        seconds = _measured(preparation) if measure and preparation.fits else None
        yield Prospect(
            preparation.pipeline.run.method.kind,
            preparation,
            seconds=seconds,
            would_fit=_what_would_fit(own, preparation, memory_bytes) if single and not preparation.fits else None,
        )


def _with_method(settings: Mapping[str, Any], method: str) -> dict[str, Any]:
    """The user's settings with another method: what was set of the method itself is of one kind only."""
    return {**settings, "method": {"kind": method}}


def _measured(preparation: Preparation) -> float | None:
    """Wall time of training, from an ordinary step on the real model; the sketch is in place again afterwards.

    A probe has no steps: its one pass over the rows is what a prediction takes, and is not timed.
    """
    pipeline = preparation.pipeline
    with pipeline.loaded():
        pipeline.prepare_for(preparation.dataset)
        loop = pipeline.training_loop(preparation.dataset, preparation.encoded)
        if not isinstance(loop, TrainingLoop):
            return None
        rehearsal = loop.rehearse()
        if loop.token_budget != pipeline.run.training.token_budget:
            warnings.warn(
                f"memory ran out in the rehearsal; train would go on with training.token_budget {loop.token_budget}",
                QlassifyWarning,
                stacklevel=2,
            )
        return preparation.seconds(rehearsal)["training_seconds"]


def _what_would_fit(
    settings: Mapping[str, Any], preparation: Preparation, memory_bytes: int | None
) -> Mapping[str, Any] | None:
    """The first of some changes with which the run fits: fewer tokens at once, then weights in few bits, then both."""
    budget = min(preparation.plan.heaviest_tokens, preparation.pipeline.run.training.token_budget)
    budgets = []
    while budget // 2 >= SMALLEST_BUDGET:
        budget //= 2
        budgets.append({"training": {"token_budget": budget}})
    quantised: list[dict[str, Any]] = []
    if preparation.pipeline.run.quant is None and preparation.pipeline.run.method.kind in ("lora", "dora"):
        kind = f"q{preparation.pipeline.run.method.kind}"
        quantised = [{"method": {"kind": kind}}, *({"method": {"kind": kind}, **change} for change in budgets)]
    for change in (*budgets, *quantised):
        tried = prepare(layer(settings, change), preparation.dataset, memory_bytes=memory_bytes, known=preparation)
        if tried.fits:
            return {f"{section}.{name}": value for section, one in change.items() for name, value in one.items()}
    return None
