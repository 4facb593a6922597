"""What a run took, in rows of tables and plain words: plan, contracts, lengths, slices, doubtful labels.

The input are mappings as a run's files hold them (``plan.json``, ``data.json``). A file of an older run lacks some of
them; what is not there is left out and never guessed.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qlassify.evaluation.slices import TOKENS, SliceScores
from qlassify.evaluation.wording import number, percent
from qlassify.planning.plan import MEMORY_TERMS, human_bytes, human_count, human_seconds

SEVERITIES = {"info": "worth knowing", "warn": "warning", "error": "error"}
"""A contract's severity in words."""


@dataclass(frozen=True, slots=True)
class PlanRow:
    """One figure of the plan beside what it turned out to be, both as they are shown."""

    what: str
    planned: str
    measured: str
    difference: str
    """Of the measured from the planned, in percent; empty where they are not the same thing."""


@dataclass(frozen=True, slots=True)
class ContractRow:
    """One broken contract as it is shown."""

    contract_id: str
    severity: str
    message: str
    recommendation: str
    settings: tuple[str, ...]
    """What would have to be typed to follow it."""


@dataclass(frozen=True, slots=True)
class LabelRow:
    """The rows of one label in each part."""

    name: str
    counts: tuple[int, ...]


def plan_rows(plan: Mapping[str, Any]) -> tuple[PlanRow, ...]:
    """Steps, time and memory, planned and measured; of a figure that neither side has there is no row."""
    planned, measured = plan.get("planned") or {}, plan.get("measured") or {}
    memory = (planned.get("memory") or {}).get("total_bytes")
    found = (
        ("optimiser steps", planned.get("steps"), measured.get("steps"), lambda count: f"{count:,}"),
        ("training time", planned.get("training_seconds"), measured.get("training_seconds"), human_seconds),
        ("peak memory in training", memory, measured.get("training_peak_memory_bytes"), human_bytes),
        ("peak memory, scoring included", None, measured.get("peak_memory_bytes"), human_bytes),
        ("whole run", None, measured.get("total_seconds"), human_seconds),
    )
    return tuple(
        PlanRow(what, _shown(before, words), _shown(after, words), _difference(before, after))
        for what, before, after, words in found
        if before is not None or after is not None
    )


def plan_note(plan: Mapping[str, Any], environment: Mapping[str, Any]) -> str | None:
    """Why planned and measured memory must not be compared; None where they may."""
    if environment.get("device") != "cuda" or not plan.get("planned"):
        return None
    return "The planned memory is the GPU's and the measured one the host's; their difference says nothing."


def memory_rows(plan: Mapping[str, Any]) -> tuple[tuple[str, str, str], ...]:
    """(what it is, bytes, share of the whole) of each term of the planned memory that is not zero."""
    memory = (plan.get("planned") or {}).get("memory") or {}
    total = memory.get("total_bytes") or 1
    return tuple(
        (words, human_bytes(memory[name]), percent(memory[name] / total))
        for name, words in MEMORY_TERMS.items()
        if memory.get(name)
    )


def plan_facts(plan: Mapping[str, Any]) -> dict[str, str]:
    """The other figures of the plan."""
    planned = plan.get("planned") or {}
    counts = {
        "trained parameters": planned.get("trainable_parameters"),
        "frozen parameters": planned.get("frozen_parameters"),
        "training tokens, all epochs": planned.get("tokens"),
        "tokens of the heaviest micro-batch": planned.get("heaviest_tokens"),
    }
    facts = {name: f"{count:,}" for name, count in counts.items() if count is not None}
    if planned.get("train_flop") is not None:
        facts["floating point operations"] = human_count(planned["train_flop"])
    return facts


def contract_rows(contracts: Mapping[str, Any], accepted: Collection[str]) -> tuple[ContractRow, ...]:
    """The contracts that a run breaks, the gravest first, those it breaks knowingly named as such."""
    order = list(reversed(SEVERITIES))
    items = sorted(contracts.get("items") or (), key=lambda item: order.index(item["severity"]))
    known = {name.upper() for name in accepted}
    return tuple(
        ContractRow(
            item["contract_id"],
            SEVERITIES[item["severity"]] + (", accepted" if item["contract_id"].upper() in known else ""),
            item["message"],
            item["recommendation"],
            tuple(f"--set {name}={_typed(value)}" for name, value in item["remedy"].items()),
        )
        for item in items
    )


def unchecked_words(contracts: Mapping[str, Any]) -> str | None:
    """Which contracts could not be checked, and what was not known; None where all were."""
    unchecked = contracts.get("unchecked") or ()
    if not unchecked:
        return None
    named = ", ".join(f"{one['contract_id']} ({', '.join(one['missing'])})" for one in unchecked)
    return f"Not checked, because a fact was not known: {named}."


def long_words(model: Mapping[str, Any], unread: Mapping[str, int]) -> str | None:
    """What is read of a text that is longer than the limit; None where the limit is not known.

    Args:
        model: the settings of the model.
        unread: policy -> tokens of the training texts that it does not read.
    """
    limit = model.get("max_length")
    if limit is None:
        return None
    policy = model.get("long", "truncate")
    manner = {
        "truncate": "loses its end",
        "head_tail": "keeps its beginning and its end and loses its middle",
        "windows": (
            f"is read in windows that share {number(model.get('window_overlap'))} tokens with the one before, at most "
            f"{number(model.get('max_windows'))} of them"
        ),
    }
    others = [f"{count:,} with {other}" for other, count in unread.items() if other != policy]
    words = f"A text of more than {limit:,} tokens {manner[policy]} (model.long={policy})."
    if not unread.get(policy) and not any(unread.values()):
        return words
    rest = f"; it would be {', '.join(others)}" if others else ""
    return f"{words} Of the training texts {unread.get(policy, 0):,} tokens are not read{rest}."


def label_rows(counts: Mapping[str, Mapping[str, int]]) -> tuple[LabelRow, ...]:
    """Rows of each label in each part, the label with the fewest in the first part first."""
    parts = list(counts.values())
    names = list(dict.fromkeys(name for part in parts for name in part))
    rows = (LabelRow(name, tuple(part.get(name, 0) for part in parts)) for name in names)
    return tuple(sorted(rows, key=lambda row: row.counts[0]))


def noise_words(noise: Mapping[str, Any]) -> str | None:
    """What the rows with doubtful labels are, and what they are not; None where nobody looked for them."""
    if not noise.get("num_rows"):
        return None
    looked = (
        f"A bag of words, trained on other rows of the training data (at most {noise['num_fit_rows']:,}), has judged "
        f"{noise['num_rows']:,} training rows"
    )
    if not noise["num_candidates"]:
        return f"{looked} and contradicts none of their labels firmly."
    share = percent(noise["num_candidates"] / noise["num_rows"])
    rest = len(noise["candidates"])
    shown = "" if rest == noise["num_candidates"] else f" The {rest} most doubtful are listed."
    return (
        f"{looked} and firmly speaks for another label in {noise['num_candidates']:,} of them ({share}).{shown} They "
        "are candidates and not errors: some labels will be wrong, some texts need more than their words."
    )


def slice_groups(slices: Sequence[SliceScores]) -> tuple[tuple[str, tuple[SliceScores, ...]], ...]:
    """(what the slices are by, slices with the worst first), the lengths of the texts before the columns."""
    columns = sorted(dict.fromkeys(one.column for one in slices), key=lambda column: column != TOKENS)
    return tuple(
        (
            "length in tokens" if column == TOKENS else column,
            tuple(sorted((one for one in slices if one.column == column), key=lambda one: one.gap)),
        )
        for column in columns
    )


def _shown(value: float | None, words: Any) -> str:
    return "-" if value is None else str(words(value))


def _difference(planned: float | None, measured: float | None) -> str:
    if not planned or measured is None:
        return ""
    return f"{100 * (measured - planned) / planned:+.1f} %".replace("+0.0", "0.0").replace("-0.0", "0.0")


def _typed(value: object) -> str:
    """A setting's value as it is typed on the command line."""
    return value if isinstance(value, str) else json.dumps(value)
