"""What two runs that went the same way have in common, and what a run was trained on here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars

from tiny_jobs import job_settings

"""The fixture ``tally``: called with the name of a kind of fault and how many were survived."""


def disturbed_settings(base: Path, data: Path, **training: Any) -> dict[str, Any]:
    """A run of 45 steps with whatever a stop could upset: dropout, uneven last steps, two evaluations an epoch."""
    settings = job_settings(
        base,
        data,
        epochs=5,
        batch_size=10,
        evaluations_per_epoch=2,
        checkpoint_every_steps=4,
        log_interval=1,
        early_stopping_patience=None,
    )
    settings["method"]["dropout"] = 0.2
    settings["training"] |= training
    return settings


def events_of(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without wall time and paths, and without the notes that a checkpoint was written."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    dropped = ("seconds", "path")
    return [{k: v for k, v in one.items() if k not in dropped} for one in lines if one["event"] != "checkpoint"]


def scores_of(folder: Path) -> dict[str, Any]:
    """``metrics.json`` without the one figure that is a time."""
    scores: dict[str, Any] = json.loads((folder / "evaluation" / "metrics.json").read_text())
    scores.pop("rows_per_second")
    return scores


def result_of(folder: Path) -> dict[str, Any]:
    """Everything of a finished run that does not depend on how long it took, by name."""
    table = polars.read_parquet(folder / "evaluation" / "predictions.parquet")
    return {
        "files": sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*")),
        "model": {path.name: path.read_bytes() for path in sorted((folder / "model").iterdir())},
        "events": events_of(folder),
        "scores": scores_of(folder),
        "predictions": table.to_dicts(),
        "checkpoints": {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted((folder / "checkpoints").rglob("*"))
            if path.is_file()
        },
    }


def require_same(found: dict[str, Any], wanted: dict[str, Any], where: object) -> None:
    """Bitwise the same, part by part; says where they differ without printing weights.

    A run that died when its last checkpoint was there and an older one not yet removed keeps the older one, too.
    """
    oldest = min(name for name in wanted["files"] if name.startswith("checkpoints/step-"))
    kept = [name for name in found["files"] if not "checkpoints/step-" <= name < oldest]
    assert kept == wanted["files"], where
    for part in ("model", "checkpoints"):
        differing = [name for name in wanted[part] if found[part][name] != wanted[part][name]]
        assert not differing, (where, part, differing)
    assert found["events"] == wanted["events"], where
    assert found["scores"] == wanted["scores"], where
    assert found["predictions"] == wanted["predictions"], where
