"""Samples with class numbers, and the JSONL files of the original pipeline.

A line is ``{"input": "text", "label": 3}``, or ``{"input": "text", "labels": [0, 1, 0]}`` with one flag per class, of
which those above 0.5 are active. Here, unlike in ``corpus``, the number of classes is given and every line must fit:
these files feed step-by-step training, where a dropped line would shift everything after it.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlassify.errors import DataError


@dataclass(frozen=True, slots=True)
class Sample:
    """A text and its class number."""

    input: str
    label: int


@dataclass(frozen=True, slots=True)
class TokenizedSample:
    """Token ids and their class number."""

    token_ids: tuple[int, ...]
    label: int


@dataclass(frozen=True, slots=True)
class MultiLabelSample:
    """A text and one flag per class; above 0.5 is active."""

    input: str
    labels: tuple[float, ...]


def read_samples(path: str | os.PathLike[str], num_classes: int) -> list[Sample]:
    """Read single-label lines; blank lines are passed over.

    Raises:
        DataError: no such file, a line that is not valid, or a label outside 0 .. num_classes - 1 (F-CLASS-002).
    """
    samples = []
    for number, record in _records(path):
        label = record.get("label")
        if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < num_classes:
            raise DataError(
                "F-CLASS-002: the label is out of range",
                where=f"{path}, line {number}",
                got=repr(label),
                wanted=f"an integer from 0 to {num_classes - 1}",
            )
        samples.append(Sample(record["input"], label))
    return samples


def read_multi_label_samples(path: str | os.PathLike[str], num_classes: int) -> list[MultiLabelSample]:
    """Read multi-label lines; a line with a single ``label`` becomes one active flag.

    Raises:
        DataError: no such file, a line that is not valid, or flags that are not ``num_classes`` (F-CLASS-001).
    """
    samples = []
    for number, record in _records(path):
        flags = _flags(record, num_classes)
        if len(flags) != num_classes:
            raise DataError(
                "F-CLASS-001: the labels are not one number per class",
                where=f"{path}, line {number}",
                got=repr(record.get("labels", record.get("label"))),
                wanted=f"{num_classes} numbers",
            )
        samples.append(MultiLabelSample(record["input"], tuple(flags)))
    return samples


def _flags(record: dict[str, Any], num_classes: int) -> list[float]:
    """One number per class from ``labels``, or from a single ``label``; empty when there are none."""
    flags, label = record.get("labels"), record.get("label")
    if flags is None and isinstance(label, int) and 0 <= label < num_classes:
        return [float(index == label) for index in range(num_classes)]
    if isinstance(flags, list) and all(isinstance(flag, (int, float)) and math.isfinite(flag) for flag in flags):
        return [float(flag) for flag in flags]
    return []


def _records(path: str | os.PathLike[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, object) of each line that is not blank."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        raise DataError("corpus file not found", where=path) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError("cannot read the corpus", where=path, got=error) from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise DataError("invalid JSONL", where=f"{path}, line {number}", got=error) from None
        if not isinstance(record, dict) or not isinstance(record.get("input"), str):
            raise DataError(
                "invalid JSONL", where=f"{path}, line {number}", got=line[:80], wanted='{"input": ..., "label": ...}'
            )
        yield number, record
