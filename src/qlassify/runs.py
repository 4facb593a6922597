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

import contextlib
import json
import math
import os
import platform
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from qlassify.durable import write_text
from qlassify.errors import CheckpointError, ConfigError
from qlassify.run_lock import LOCK, clear_leavings, own_run, require_free
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


BEGINNING = frozenset({LOCK, ".run.yaml.tmp", f".{SEEDS}.tmp"})
"""What may be in a run folder before ``run.yaml`` is, and in one of several seeds before its record."""


def require_new(path: Path) -> None:
    """Refuse a run folder that has something in it, or in which another process is working.

    What a run leaves that was killed before it had written its settings does not count.

    Raises:
        ConfigError: it exists and is not empty.
    """
    require_free(path)
    require_empty(path)


def require_empty(path: Path) -> None:
    """``require_new`` for whoever holds the folder's lock.

    Raises:
        ConfigError: there is something in it, or it cannot be looked at.
    """
    try:
        held = path.exists() and any(one.name not in BEGINNING for one in path.iterdir())
    except OSError as error:
        raise ConfigError(
            "not a place for a run folder", where=path, got=error, do="Choose another with --out."
        ) from None
    if held:
        raise ConfigError(
            "the run folder is not empty",
            where=path,
            do=f"Choose another with --out, or continue it with: qlassify train --resume {path}",
        )


@contextmanager
def create_run_folder(path: Path) -> Iterator[RunFolder]:
    """Make a new run folder and keep other processes out of it.

    Raises:
        ConfigError: it exists and is not empty, another process is working in it, or it cannot be made.
    """
    try:
        require_new(path)
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError("cannot make the run folder", where=path, got=error) from None
    with own_run(path):
        require_empty(path)  # another process may have been here since
        yield RunFolder(path)


def open_run_folder(path: Path) -> RunFolder:
    """An existing run folder.

    Raises:
        ConfigError: it is none.
    """
    folder = RunFolder(path)
    if not folder.config.is_file():
        raise ConfigError("not a run folder", where=path, wanted="a folder with run.yaml, as qlassify train writes it")
    return folder


def is_finished(path: Path) -> bool:
    """Whether a run folder holds a finished run: its scores are written last."""
    return (RunFolder(path).evaluation / "metrics.json").is_file()


def are_seeds_finished(path: Path) -> bool:
    """Whether a folder of several seeds holds nothing but finished runs, and its record says so."""
    try:
        record = read_json(path / SEEDS)
        folders = [path / str(one["folder"]) for one in record["runs"]]
    except (ConfigError, KeyError, TypeError):
        return False
    return record.get("finished") is True and all(is_finished(folder) for folder in folders)


@contextmanager
def continue_run_folder(path: Path) -> Iterator[RunFolder]:
    """An existing run folder whose run is not finished; other processes are kept out, a dead one's leavings removed.

    Raises:
        ConfigError: it is none, or another process is working in it.
        CheckpointError: the run is finished.
    """
    folder = open_run_folder(path)
    _require_unfinished(folder)
    with own_run(path):
        _require_unfinished(folder)  # by another process, since then
        clear_leavings(path)
        yield folder


def _require_unfinished(folder: RunFolder) -> None:
    if is_finished(folder.path):
        report = folder.evaluation / "report.html"
        raise CheckpointError("the run is finished", where=folder.path, do=f"Look at {report}, or train anew.")


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
    """``metrics.jsonl``: one line per event, written as it happens, or as soon as there is room for it.

    Args:
        path: the file.
        after_step: when resuming, lines of later steps are dropped, because those steps are taken again.

    Attributes:
        problem: why lines are waiting, or were; None if every one was written at once.

    Raises:
        OSError: the file cannot be begun.
    """

    def __init__(self, path: Path, *, after_step: int | None = None) -> None:
        kept = []
        if after_step is not None:
            events = read_events(path)
            kept = [event for event in events if event.get("step", 0) <= after_step and event["event"] != "end"]
        write_text(path, "".join(json.dumps(event) + "\n" for event in kept))
        # Without a buffer: what a full disk refuses would stay in it and be refused again when the file is closed.
        self._file = path.open("ab", buffering=0)
        self._lines: list[bytes] = []
        self.problem: str | None = None

    @property
    def waiting(self) -> int:
        """Events that are not written yet."""
        return len(self._lines)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one event, after those that wait; numbers that JSON does not have are written as null."""
        self._lines.append(json.dumps(_finite(record)).encode("utf-8") + b"\n")
        self._drain()

    def close(self) -> None:
        """Try once more what is waiting, and close the file."""
        if self._lines:
            self._drain()
        with contextlib.suppress(OSError):  # a network's file system may refuse here what it took before
            self._file.close()

    def _drain(self) -> None:
        """Write what waits, whole lines only."""
        size = None
        try:
            size = self._file.seek(0, os.SEEK_END)
            while self._lines:
                line = self._lines[0]
                written = self._file.write(line)
                if written != len(line):  # the room ended within the line; this write says why
                    self._file.write(line[written:])
                    raise OSError("the file could not be written at once")
                size += len(line)
                del self._lines[0]
        except OSError as error:
            self.problem = str(error)
            with contextlib.suppress(OSError):
                if size is not None:
                    self._file.truncate(size)


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
