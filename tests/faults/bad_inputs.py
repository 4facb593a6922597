"""What a bad input is to the tests: how it is made, the command that meets it, and what a person has to read.

The tables are in ``bad_data_inputs``, ``bad_setting_inputs``, ``bad_command_inputs`` and ``bad_model_inputs``; they are
one list here. A command line is written with places: ``{tmp}`` is an empty folder of the case's own, ``{base}`` a base
model, ``{data}`` a good file of rows, ``{run}`` a finished run; the makers put what is bad into ``{tmp}``.
"""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor


@dataclass(frozen=True)
class World:
    """The good things that bad ones are made of, and the folder to make them in."""

    tmp: Path
    base: Path
    data: Path
    run: Path

    def fill(self, line: str) -> list[str]:
        """The arguments of a command line with places."""
        places = {"tmp": self.tmp, "base": self.base, "data": self.data, "run": self.run}
        return [part.format(**places) for part in shlex.split(line)]

    def rows(self) -> str:
        """The good file."""
        return self.data.read_text(encoding="utf-8")


Maker = Callable[[World], None]


@dataclass(frozen=True)
class BadInput:
    """One bad input.

    Attributes:
        id: its name.
        line: the command, with places and without ``--json``.
        says: what the sentence has to contain, places filled in.
        make: puts what is bad into ``{tmp}``.
        code: the exit code.
        plain: the verb or the mistake leaves no room for ``--json``.
        process: also tried as a process of its own.
    """

    id: str
    line: str
    says: tuple[str, ...]
    make: Maker = lambda world: None
    code: int = 2
    plain: bool = False
    process: bool = False


TRAIN = "train {tmp}/rows.csv --base {base} --out {tmp}/out"
"""Training on the case's own file."""
GOOD = "train {data} --base {base} --out {tmp}/out"
"""Training on the good file."""


def file(name: str, content: str | bytes) -> Maker:
    """A file with this content."""

    def make(world: World) -> None:
        data = content.encode() if isinstance(content, str) else content
        (world.tmp / name).write_bytes(data)

    return make


def rows(content: str | bytes) -> Maker:
    """``rows.csv`` with this content."""
    return file("rows.csv", content)


def changed(name: str, change: Callable[[str], str]) -> Maker:
    """The good rows, changed, under this name."""
    return lambda world: file(name, change(world.rows()))(world)


def both(*makers: Maker) -> Maker:
    """One after the other."""

    def make(world: World) -> None:
        for one in makers:
            one(world)

    return make


def base(*damage: Callable[[Path], None]) -> Maker:
    """A copy of the base model in ``{tmp}/base``, damaged."""
    return lambda world: _copy(world.base, world.tmp / "base", damage)


def model(*damage: Callable[[Path], None]) -> Maker:
    """A copy of the run's classifier in ``{tmp}/model``, as a version without digests wrote it, damaged."""
    return lambda world: _copy(world.run / "model", world.tmp / "model", (_undigested("classifier.json"), *damage))


def sealed_model(*damage: Callable[[Path], None]) -> Maker:
    """A copy of the run's classifier in ``{tmp}/model`` with the digests of its files, damaged."""
    return lambda world: _copy(world.run / "model", world.tmp / "model", damage)


def run(*damage: Callable[[Path], None]) -> Maker:
    """A copy of the run in ``{tmp}/run``, whose classifier has no digests, damaged."""
    return lambda world: _copy(world.run, world.tmp / "run", (_undigested("model/classifier.json"), *damage))


def _undigested(name: str) -> Callable[[Path], None]:
    return edited(name, lambda record: record.pop("sha256") and None)


def _copy(source: Path, target: Path, damage: tuple[Callable[[Path], None], ...]) -> None:
    shutil.copytree(source, target)
    for one in damage:
        one(target)


def without(name: str) -> Callable[[Path], None]:
    """Damage: a file is gone."""
    return lambda folder: (folder / name).unlink()


def holding(name: str, content: str | bytes) -> Callable[[Path], None]:
    """Damage: a file holds something else."""
    return lambda folder: (
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content) and None
    )


def cut(name: str, size: int) -> Callable[[Path], None]:
    """Damage: only the first bytes of a file are there; from the end if negative."""
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size]) and None


def edited(name: str, change: Callable[[dict[str, Any]], Mapping[str, Any] | None]) -> Callable[[Path], None]:
    """Damage: a JSON document is changed, in place or by what is returned."""

    def damage(folder: Path) -> None:
        document = json.loads((folder / name).read_text(encoding="utf-8"))
        returned = change(document)
        (folder / name).write_text(json.dumps(document if returned is None else returned), encoding="utf-8")

    return damage


def setting(name: str, **values: Any) -> Callable[[Path], None]:
    """Damage: values of a JSON document are others."""
    return edited(name, lambda document: document.update(values))


def retensored(name: str, change: Callable[[dict[str, Tensor]], None]) -> Callable[[Path], None]:
    """Damage: the tensors of a safetensors file are changed."""

    def damage(folder: Path) -> None:
        tensors = safetensors.torch.load_file(folder / name)
        change(tensors)
        (folder / name).write_bytes(safetensors.torch.save(tensors, metadata={"format": "pt"}))

    return damage
