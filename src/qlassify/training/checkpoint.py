"""Checkpoints: everything that a run's future depends on, written so that it is whole or not there.

    checkpoints/step-000120/
        state.safetensors    trainable/..., optimizer/..., best/..., generator/dropout
        state.json           progress, the SHA-256 of state.safetensors, and one of itself

A checkpoint is written into a hidden folder beside the others, flushed to the disk, and renamed; a rename within one
folder is atomic, so a reader sees the whole checkpoint or none, whenever the process dies. One of the same step, which
is there when a lowered token budget makes it another state or when it is damaged, is first renamed to
``.step-000120.aside``; a process that dies before the new one has its name leaves it there, and whoever comes next puts
it back. The newest two are kept: if the newest turns out damaged (its checksum differs), the one before it is used and
the caller is told.

The best weights so far are part of every checkpoint rather than a checkpoint of their own: resuming needs one folder,
and adapters are small.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from qlassify.durable import flush
from qlassify.errors import CheckpointError
from qlassify.formats.safetensors import write_safetensors

FORMAT = 1
TENSORS = "state.safetensors"
RECORD = "state.json"
ASIDE = ".aside"
"""End of the name of a checkpoint whose place another one of its step is about to take."""
KEPT = 2


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands.

    Attributes:
        step: optimiser steps taken or skipped.
        best_step: step after which the best weights were; 0 before the first evaluation.
        best_score: their selection score.
        since_best: evaluations since then.
        skipped_steps: steps that were not taken because they were not finite.
        skipped_in_a_row: such steps directly before now.
        stopped_early: whether patience has run out.
        token_budget: tokens computed at once, since memory ran out at what the settings say; None before. It decides
            how rows share micro-batches, and with that which elements dropout drops.
    """

    step: int = 0
    best_step: int = 0
    best_score: float | None = None
    since_best: int = 0
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    stopped_early: bool = False
    token_budget: int | None = None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One checkpoint in memory.

    Attributes:
        progress: where the run stands.
        trainable: name -> value of each trainable parameter.
        optimizer: the optimiser's state tensors.
        best: name -> value at ``progress.best_step``; empty before the first evaluation.
        dropout_state: state of the dropout generator, uint8.
    """

    progress: Progress
    trainable: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    best: Mapping[str, Tensor]
    dropout_state: Tensor


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        directory: the run's ``checkpoints`` folder; made when the first one is written.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write a checkpoint and remove those older than the newest two.

        Raises:
            CheckpointError: it could not be written; earlier ones are untouched.
        """
        name = f"step-{checkpoint.progress.step:06d}"
        final, scratch = self.directory / name, self.directory / f".{name}.tmp"
        if _holds(final, checkpoint.progress):
            return final  # the same step of the same run: the same state
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._put_back()
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir()
            # Wide types first, so that every tensor of the file is aligned. Nothing is copied on the way: with full
            # fine-tuning the state is four times the model.
            tensors = sorted(_flatten(checkpoint).items(), key=lambda item: -item[1].element_size())
            write_safetensors(scratch / TENSORS, dict(tensors), {})
            record = {
                "format": FORMAT,
                "progress": asdict(checkpoint.progress),
                "sha256": _sha256(scratch / TENSORS),
            }
            record["record_sha256"] = _record_sha256(record)
            (scratch / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
            for path in (scratch / TENSORS, scratch / RECORD, scratch):
                flush(path)
            self._take_place(scratch, final)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(scratch, ignore_errors=True)  # on a full disk it holds the room that the next one needs
            raise CheckpointError(
                "cannot write a checkpoint",
                where=final,
                got=error,
                do="Free space or fix the permissions, then continue with: qlassify train --resume RUN.",
            ) from None
        for old in self.paths()[:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)
        return final

    def _take_place(self, scratch: Path, final: Path) -> None:
        """Rename a whole checkpoint to its name; there is one of that name or one aside at every moment."""
        aside = final.with_name(f".{final.name}{ASIDE}")
        if final.exists():
            final.rename(aside)
        try:
            scratch.rename(final)
        except OSError:
            self._put_back()
            raise
        flush(self.directory)
        shutil.rmtree(aside, ignore_errors=True)

    def _put_back(self) -> None:
        """Give checkpoints that were set aside their names back, unless others have taken them."""
        for aside in self.directory.glob(f".step-*{ASIDE}"):
            final = aside.with_name(aside.name.removeprefix(".").removesuffix(ASIDE))
            if final.exists():
                shutil.rmtree(aside, ignore_errors=True)
            else:
                with suppress(OSError):  # it is not lost for that, and there may be others
                    aside.rename(final)

    def paths(self) -> list[Path]:
        """The whole checkpoints, oldest first."""
        return [path for path in self._folders() if (path / RECORD).is_file()]

    def _folders(self) -> list[Path]:
        """Everything that has the name of a checkpoint, oldest first; what has no record has lost it."""
        found = [path for path in self.directory.glob("step-*") if path.name.removeprefix("step-").isdecimal()]
        return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))

    def latest(self) -> tuple[Checkpoint | None, tuple[str, ...]]:
        """The newest undamaged checkpoint, and a sentence for each damaged one that was passed over.

        For the process that goes on with the run: what a killed one had set aside is put back first.

        Returns:
            ``(None, ())`` when none was ever written.

        Raises:
            CheckpointError: there are checkpoints and all of them are damaged.
        """
        self._put_back()
        problems: list[str] = []
        for path in reversed(self._folders()):
            try:
                return read_checkpoint(path), tuple(problems)
            except CheckpointError as error:
                problems.append(str(error))
        if problems:
            raise CheckpointError(
                "no checkpoint of this run can be read",
                where=self.directory,
                got="; ".join(problems),
                do=f"Train anew with its settings: qlassify train --config {self.directory.parent / 'run.yaml'}",
            )
        return None, ()


def read_checkpoint(path: Path) -> Checkpoint:
    """Read and verify one checkpoint folder.

    Raises:
        CheckpointError: unreadable, of an unknown format, or its checksum differs.
    """
    progress, wanted = _read_record(path)
    try:
        _require_whole(path, wanted)
        tensors = load_file(str(path / TENSORS))
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError("the checkpoint cannot be read", where=path, got=error) from None
    parts: dict[str, dict[str, Tensor]] = {"trainable": {}, "optimizer": {}, "best": {}, "generator": {}}
    for key, value in tensors.items():
        part, _, name = key.partition("/")
        parts[part][name] = value
    best = parts["best"]
    if progress.best_step == progress.step and progress.best_step > 0:
        best = dict(parts["trainable"])
    return Checkpoint(progress, parts["trainable"], parts["optimizer"], best, parts["generator"]["dropout"])


def _read_record(path: Path) -> tuple[Progress, str]:
    """(progress, SHA-256 of the tensors) of a checkpoint, from its verified record."""
    try:
        record: dict[str, Any] = json.loads((path / RECORD).read_text(encoding="utf-8"))
        if record.get("format") != FORMAT:
            raise CheckpointError("unknown checkpoint format", where=path, got=record.get("format"), wanted=FORMAT)
        known = record.pop("record_sha256", None)  # records of before there was one have none
        if known is not None and known != _record_sha256(record):
            raise CheckpointError("the checkpoint's record is damaged", where=path / RECORD)
        return Progress(**record["progress"]), str(record["sha256"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError("the checkpoint cannot be read", where=path, got=error) from None


def _require_whole(path: Path, wanted: str) -> None:
    found = _sha256(path / TENSORS)
    if found != wanted:
        raise CheckpointError("the checkpoint is damaged", where=path, got=found, wanted=wanted)


def _holds(path: Path, progress: Progress) -> bool:
    """Whether there is an undamaged checkpoint at ``path`` of just this state; a lowered budget makes it another.

    The tensors are hashed as the file is read, and never held: the state is as large as the one in memory.
    """
    try:
        found, wanted = _read_record(path)
        if found != progress:
            return False
        _require_whole(path, wanted)
    except (CheckpointError, OSError):
        return False
    return True


def _flatten(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """All tensors under one name each; the best weights only when they are not the current ones."""
    progress = checkpoint.progress
    best = {} if progress.best_step == progress.step else checkpoint.best
    tensors: dict[str, Tensor] = {"generator/dropout": checkpoint.dropout_state}
    for part, values in (("trainable", checkpoint.trainable), ("optimizer", checkpoint.optimizer), ("best", best)):
        tensors |= {f"{part}/{name}": value.detach().cpu().contiguous() for name, value in values.items()}
    return tensors


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _record_sha256(record: Mapping[str, Any]) -> str:
    """Of what a record says, whatever its layout."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode("utf-8")).hexdigest()


def generator_state(generator: torch.Generator) -> Tensor:
    """A generator's state as a tensor that can be saved."""
    return generator.get_state().clone()
