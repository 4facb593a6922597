"""The run folder: what a run writes and where.

    runs/NAME/
      run.yaml           the resolved configuration: enough to repeat the run
      environment.json   versions, hardware, precision, threads
      data.json          hashes, rows kept, rejected and truncated, label counts, token lengths
      plan.json          what was predicted, and what was measured
      metrics.jsonl      one line per event, readable while the run goes on
      checkpoints/       the newest two
      model/             the classifier
      tracking.json      ids in tracking tools, which write beside it; only with ``tracking``
      evaluation/        metrics.json, predictions.parquet, report.html, MODEL_CARD.md

A folder of several seeds holds ``seeds.json`` and one such folder for each seed (see ``repeating``).

Small files are written to a neighbour and renamed, so that a reader never meets half of one.
"""

from __future__ import annotations

import json
import math
import os
import platform
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from qlassify.errors import ConfigError
from qlassify.version import __version__

Kind = TypeVar("Kind")


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths of one run."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "run.yaml"

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints go."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """The trained classifier."""
        return self.path / "model"

    @property
    def evaluation(self) -> Path:
        """Scores, predictions, report and model card."""
        return self.path / "evaluation"

    @property
    def metrics(self) -> Path:
        """Training events, one JSON object per line."""
        return self.path / "metrics.jsonl"

    def file(self, name: str) -> Path:
        """Any other file of the run, by name."""
        return self.path / name


SEEDS = "seeds.json"
"""Stands in a folder that holds the run folders of several seeds."""


def require_new(path: Path) -> None:
    """Refuse a run folder that has something in it.

    Raises:
        ConfigError: it exists and is not empty.
    """
    if path.exists() and any(path.iterdir()):
        raise ConfigError(
            "the run folder is not empty",
            where=path,
            do=f"Choose another with --out, or continue it with: qlassify train --resume {path}",
        )


def create_run_folder(path: Path) -> RunFolder:
    """Make a new run folder.

    Raises:
        ConfigError: it exists and is not empty, or cannot be made.
    """
    try:
        require_new(path)
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError("cannot make the run folder", where=path, got=error) from None
    return RunFolder(path)


def open_run_folder(path: Path) -> RunFolder:
    """An existing run folder.

    Raises:
        ConfigError: it is none.
    """
    folder = RunFolder(path)
    if not folder.config.is_file():
        raise ConfigError("not a run folder", where=path, wanted="a folder with run.yaml, as qlassify train writes it")
    return folder


def default_run_path(data: str, now: float) -> Path:
    """``runs/<data file>-<date>-<time>`` below the current folder, with a number behind it if that exists."""
    stem = Path(data).name.split(".")[0] or "run"
    base = Path("runs") / f"{stem}-{time.strftime('%Y%m%d-%H%M%S', time.localtime(now))}"
    path, number = base, 2
    while path.exists():
        path, number = base.with_name(f"{base.name}-{number}"), number + 1
    return path


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write ``value`` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write ``text`` in UTF-8, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.tmp")
    scratch.write_text(text, encoding="utf-8")
    os.replace(scratch, path)


def read_json(path: Path) -> dict[str, Any]:
    """Read what ``write_json`` wrote.

    Raises:
        ConfigError: missing or damaged.
    """
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError("cannot read a file of the run", where=path, got=error) from None
    if not isinstance(value, dict):
        raise ConfigError("cannot read a file of the run", where=path, got=f"a {type(value).__name__}, not an object")
    return value


def read_entry(path: Path, name: str, kind: type[Kind]) -> Kind:
    """One entry of what ``write_json`` wrote.

    Raises:
        ConfigError: the file is missing or damaged, or has no such entry of that kind.
    """
    found = read_json(path).get(name)
    if not isinstance(found, kind):
        raise ConfigError(
            "cannot read a file of the run", where=path, got=f"{name} {found!r}", wanted=f"a {kind.__name__}"
        )
    return found


class EventLog:
    """``metrics.jsonl``: one line per event, flushed as it is written.

    Args:
        path: the file.
        after_step: when resuming, lines of later steps are dropped, because those steps are taken again.
    """

    def __init__(self, path: Path, *, after_step: int | None = None) -> None:
        kept = []
        if after_step is not None:
            events = read_events(path)
            kept = [event for event in events if event.get("step", 0) <= after_step and event["event"] != "end"]
        write_text(path, "".join(json.dumps(event) + "\n" for event in kept))
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one event; numbers that JSON does not have are written as null."""
        self._file.write(json.dumps(_finite(record)) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """The events of ``metrics.jsonl``; a last line that a crash cut short is passed over."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            try:
                yield json.loads(line)
            except ValueError:
                return


def environment(*, precision: str, device: str, threads: int) -> dict[str, Any]:
    """Versions and hardware, for ``environment.json``."""
    packages = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "scikit-learn", "polars")
    return {
        "qlassify": __version__,
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in packages},
        "platform": platform.platform(),
        "processor": _processor(),
        "threads": threads,
        "device": device,
        "precision": precision,
    }


def _processor() -> str:
    """The CPU's own name where Linux tells it, else the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def peak_memory_bytes() -> int:
    """The most memory this process has held at once (resident set size)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
