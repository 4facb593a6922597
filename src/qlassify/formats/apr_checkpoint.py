"""What the three kinds of APR files may and must hold; the kind is said by the end of the name.

    .apr            a base model
    .adapter.apr    adapters and a head, without anything of the training
    .ckpt.apr       the state to resume a training from

The rules are those of the contract apr-checkpoint-v1; its numbers (F-CKPT-...) stand beside each. They are held when a
file is written and, by ``read_checkpoint``, when one is read. Tensors and metadata under ``__training__.`` are
invisible to whoever wants to predict (F-CKPT-016): ``inference_names``.

Our own runs are resumed from checkpoints of their own (``training/checkpoint.py``), which hold more than this format
has names for (random states, the place in the data); so what the contract says of resuming itself (005, 006) is not a
matter of these files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlassify.errors import ModelError
from qlassify.formats.apr import SUFFIX, AprFile
from qlassify.formats.apr_metadata import AprMetadata

ADAPTER_SUFFIX = ".adapter" + SUFFIX
TRAINING_SUFFIX = ".ckpt" + SUFFIX
SCHEMA_KEY = "__checkpoint__.schema_version"
TYPE_KEY = "__checkpoint__.type"
SCHEMA_VERSION = 1
"""Newest schema that is read, and the one that is written."""
TRAINING_PREFIX = "__training__."
MOMENTS = (".exp_avg", ".exp_avg_sq")
ADAPTER_KEYS = ("rank", "alpha", "target_modules")
TRAINING_KEYS = tuple(f"{TRAINING_PREFIX}{key}" for key in ("epoch", "step", "scheduler"))
HEAD = ("classifier.weight", "classifier.bias")
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What an adapter or training file says of itself.

    Attributes:
        type: ``adapter`` or ``training``.
        schema_version: of the rules that it was written by.
    """

    type: str
    schema_version: int


def inference_names(names: Iterable[str]) -> list[str]:
    """Names without those of the training's state (F-CKPT-016)."""
    return [name for name in names if not name.startswith(TRAINING_PREFIX)]


def require_flavour(path: Path, metadata: AprMetadata, shapes: Shapes) -> None:
    """Hold a file that is to be written against the rules for its name.

    Args:
        path: where it is to go.
        metadata: what it says.
        shapes: name -> shape of its tensors.

    Raises:
        ModelError: names the rule and what breaks it.
    """
    if path.name.endswith(ADAPTER_SUFFIX):
        _require_checkpoint(path, metadata, "adapter")
        _require_adapter(path, metadata.custom, shapes)
    elif path.name.endswith(TRAINING_SUFFIX):
        _require_checkpoint(path, metadata, "training")
        _require_training(path, metadata.custom, shapes)


def read_checkpoint(file: AprFile) -> Checkpoint:
    """What an adapter or training file says of itself, after its rules have been held against it.

    Raises:
        ModelError: it is of a newer schema, or breaks a rule of its kind.
    """
    kind = file.metadata.custom.get(TYPE_KEY)
    checkpoint = _require_checkpoint(file.path, file.metadata, kind if isinstance(kind, str) else "adapter or training")
    shapes = {name: entry.shape for name, entry in file.entries.items()}
    if checkpoint.type == "adapter":
        _require_adapter(file.path, file.metadata.custom, shapes)
    else:
        _require_training(file.path, file.metadata.custom, shapes)
    return checkpoint


def _require_checkpoint(path: Path, metadata: AprMetadata, kind: str) -> Checkpoint:
    """F-CKPT-002: schema and type, and no newer schema than this one."""
    version, found = metadata.custom.get(SCHEMA_KEY), metadata.custom.get(TYPE_KEY)
    if type(version) is not int or version < 1:
        raise _broken("002", path, f"{SCHEMA_KEY} is {version!r}", "a whole number")
    if version > SCHEMA_VERSION:
        raise _broken("002", path, f"{SCHEMA_KEY} is {version}", f"at most {SCHEMA_VERSION}")
    if found != kind or kind not in ("adapter", "training"):
        raise _broken("002", path, f"{TYPE_KEY} is {found!r}", kind)
    return Checkpoint(kind, version)


def _require_adapter(path: Path, custom: Mapping[str, Any], shapes: Shapes) -> None:
    """F-CKPT-001 and 003: whole adapters with a head and their settings, and nothing of the training."""
    training = [name for name in (*shapes, *custom) if name.startswith(TRAINING_PREFIX)]
    if training:
        raise _broken("003", path, training[0], f"no {TRAINING_PREFIX}* in an adapter")
    absent = [key for key in ADAPTER_KEYS if custom.get(key) is None]
    if absent:
        raise _broken("001", path, f"no {', '.join(absent)} in the metadata", ", ".join(ADAPTER_KEYS))
    _require_head(path, shapes)
    _require_pairs(path, custom, shapes)


def _require_head(path: Path, shapes: Shapes) -> None:
    missing = [name for name in HEAD if name not in shapes]
    if missing:
        raise _broken("001", path, f"no {missing[0]}", "the head's weight and bias")
    weight, bias = (shapes[name] for name in HEAD)
    if len(bias) != 1 or not weight or weight[0] % max(bias[0], 1):
        raise _broken("008", path, f"{HEAD[0]} {list(weight)}, {HEAD[1]} {list(bias)}", "one bias for each class")


def _require_pairs(path: Path, custom: Mapping[str, Any], shapes: Shapes) -> None:
    rank, targets = custom["rank"], custom["target_modules"]
    if type(rank) is not int or rank < 1 or not isinstance(targets, list) or not targets:
        raise _broken("001", path, f"rank {rank!r}, target_modules {targets!r}", "a number and a list of names")
    first = {name.removesuffix(".lora_a") for name in shapes if name.endswith(".lora_a")}
    second = {name.removesuffix(".lora_b") for name in shapes if name.endswith(".lora_b")}
    for name in sorted(first ^ second):
        raise _broken("001", path, f"{name} has one of lora_a and lora_b", "both of every pair")
    layers: dict[str, set[str]] = {}
    for name in first:
        layer, _, target = name.rpartition(".")
        layers.setdefault(target, set()).add(layer)
        a, b = shapes[f"{name}.lora_a"], shapes[f"{name}.lora_b"]
        if len(a) != 2 or len(b) != 2 or a[0] != rank or b[1] != rank:
            raise _broken("008", path, f"{name}: lora_a {list(a)}, lora_b {list(b)}", f"(rank, in), (out, rank {rank})")
    if set(layers) != set(targets) or len({frozenset(found) for found in layers.values()}) != 1:
        raise _broken("001", path, f"pairs for {sorted(layers)}", f"one for each of {targets} in every layer")


def _require_training(path: Path, custom: Mapping[str, Any], shapes: Shapes) -> None:
    """F-CKPT-004: both moments of everything that is trained, in its shape; and where the training stands."""
    absent = [key for key in TRAINING_KEYS if custom.get(key) is None]
    if absent:
        raise _broken("004", path, f"no {', '.join(absent)} in the metadata", ", ".join(TRAINING_KEYS))
    for name in inference_names(shapes):
        for moment in MOMENTS:
            found = shapes.get(f"{TRAINING_PREFIX}optim.{name}{moment}")
            if found != shapes[name]:
                got = "none" if found is None else f"one of shape {list(found)}"
                raise _broken("004", path, f"{moment[1:]} of {name}: {got}", f"one of shape {list(shapes[name])}")


def _broken(number: str, path: Path, got: str, wanted: str) -> ModelError:
    return ModelError(f"the file breaks rule F-CKPT-{number}", where=path, got=got, wanted=wanted)
