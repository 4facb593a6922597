"""What is in a model file: format, geometry, tensors, checksums. Nothing is loaded, and only headers are read.

APR, GGUF and safetensors files and folders of them (base models, adapters, saved classifiers, runs) answer
in the same form. With ``verify`` whole files are read: checksums are computed, and numbers that are not finite found.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qlassify.artifact import HEAD, RECORD, model_folder
from qlassify.data.tokenizer_files import read_settings
from qlassify.errors import ModelError
from qlassify.formats.apr import AprFile, is_apr, open_apr
from qlassify.formats.apr_checkpoint import ADAPTER_SUFFIX, TRAINING_SUFFIX, read_checkpoint
from qlassify.formats.apr_shards import is_manifest, open_shards
from qlassify.formats.finite import require_finite
from qlassify.formats.gguf import GgufFile, is_gguf, open_gguf
from qlassify.formats.safetensors import NAMES, SafetensorsFile, open_safetensors
from qlassify.methods.state import CONFIG_FILE, WEIGHTS_FILE
from qlassify.models.quantized import quantized_base
from qlassify.models.source import weight_files

SUFFIX = ".safetensors"


@dataclass(frozen=True, slots=True)
class TensorFacts:
    """A tensor in a file.

    Attributes:
        name: its name there.
        dtype: its type there.
        shape: its shape.
        bytes: its size there.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int

    @property
    def count(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class FileFacts:
    """A file of tensors.

    Attributes:
        path: the file.
        format: with its version.
        flags: what its header says, by name; APR files only.
        bytes: its size.
        tensors: in the file's order.
        metadata: what it says beside them.
        checksums: name -> what was found: ``right``, ``not computed``, or a hash.
    """

    path: Path
    format: str
    flags: tuple[str, ...]
    bytes: int
    tensors: tuple[TensorFacts, ...]
    metadata: Mapping[str, Any]
    checksums: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Inspection:
    """A model file or folder.

    Attributes:
        path: what was asked for.
        kind: what it is, in words.
        files: its files of tensors.
        settings: what ``config.json``, ``adapter_config.json`` or ``classifier.json`` say; None for a single file.
        quantization: the format of low-bit weights, in words, or None.
    """

    path: Path
    kind: str
    files: tuple[FileFacts, ...]
    settings: Mapping[str, Any] | None
    quantization: str | None

    @property
    def num_tensors(self) -> int:
        """Tensors of all files."""
        return sum(len(file.tensors) for file in self.files)

    @property
    def num_numbers(self) -> int:
        """Numbers of all tensors."""
        return sum(tensor.count for file in self.files for tensor in file.tensors)

    @property
    def bytes_by_type(self) -> dict[str, int]:
        """Type -> bytes of all tensors that are stored in it, the largest first."""
        found: dict[str, int] = {}
        for file in self.files:
            for tensor in file.tensors:
                found[tensor.dtype] = found.get(tensor.dtype, 0) + tensor.bytes
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        values = asdict(self)
        values["path"] = str(self.path)
        for file, facts in zip(values["files"], self.files, strict=True):
            file["path"] = str(facts.path)
        counts = {"tensors": self.num_tensors, "numbers": self.num_numbers, "bytes_by_type": self.bytes_by_type}
        return {**values, **counts}


def inspect(path: Path, *, verify: bool = False) -> Inspection:
    """Look at a model file, or at a folder of such files.

    Args:
        path: ``.apr``, ``.apr.json``, ``.gguf``, ``.safetensors``, a model directory, an adapter, a saved classifier or
            a run.
        verify: read whole files: checksums, hashes, and numbers that are not finite.

    Raises:
        ModelError: nothing that is known; damaged; or, with ``verify``, numbers that are not finite.
    """
    if path.is_dir():
        return _folder(path, verify)
    if is_manifest(path):
        files = tuple(_apr(file, verify) for file in open_shards(path).files)
        return Inspection(path, f"base model in {len(files)} files", files, None, None)
    if is_apr(path):
        file = open_apr(path)
        return Inspection(path, _apr_kind(file), (_apr(file, verify),), None, None)
    if is_gguf(path):
        return Inspection(path, "base model", (_gguf(open_gguf(path), verify),), None, None)
    if path.suffix == SUFFIX and path.is_file():
        return Inspection(path, "tensors", (_safetensors(path, verify),), None, None)
    raise ModelError(
        "not a model file",
        where=path,
        got="a file of another kind" if path.exists() else "nothing there",
        wanted=".apr, .apr.json, .gguf, .safetensors, a model directory, an adapter, a saved classifier or a run",
    )


def _apr_kind(file: AprFile) -> str:
    """What an APR file is, after the rules for its kind have been held against it."""
    if file.path.name.endswith(ADAPTER_SUFFIX):
        return f"adapter, schema {read_checkpoint(file).schema_version}"
    if file.path.name.endswith(TRAINING_SUFFIX):
        return f"state of a training, schema {read_checkpoint(file).schema_version}"
    return "base model"


def _apr(file: AprFile, verify: bool) -> FileFacts:
    checksums = {"header": "right", "file": "not computed"}
    if verify:
        file.verify()
        _require_finite(file)
        checksums |= {"file": "right", "sha256": _sha256(file.path), "canonical sha256": file.canonical_sha256()}
    return FileFacts(
        path=file.path,
        format="APR 2.0",
        flags=tuple(str(flag.name) for flag in file.header.flags),
        bytes=file.path.stat().st_size,
        tensors=tuple(
            TensorFacts(name, entry.type.name, entry.shape, entry.nbytes) for name, entry in file.entries.items()
        ),
        metadata={**file.metadata.typed, **file.metadata.custom},
        checksums=checksums,
    )


def _gguf(file: GgufFile, verify: bool) -> FileFacts:
    """Long arrays of the metadata are said by their lengths; the format has no checksum."""
    if verify:
        _require_finite(file)
    return FileFacts(
        path=file.path,
        format=f"GGUF {file.version}",
        flags=(),
        bytes=file.path.stat().st_size,
        tensors=tuple(
            TensorFacts(name, entry.type.name, entry.shape, entry.nbytes) for name, entry in file.entries.items()
        ),
        metadata={
            key: value if isinstance(value, (bool, int, float, str, list)) else str(value)
            for key, value in file.metadata.items()
        },
        checksums={"sha256": _sha256(file.path) if verify else "not computed"},
    )


def _safetensors(path: Path, verify: bool) -> FileFacts:
    file = open_safetensors(path)
    if verify:
        _require_finite(file)
    return FileFacts(
        path=path,
        format="safetensors",
        flags=(),
        bytes=path.stat().st_size,
        tensors=tuple(
            TensorFacts(name, NAMES[entry.dtype], entry.shape, entry.nbytes) for name, entry in file.entries.items()
        ),
        metadata=dict(file.metadata),
        checksums={"sha256": _sha256(path) if verify else "not computed"},
    )


def _folder(path: Path, verify: bool) -> Inspection:
    """A folder of safetensors: a classifier, an adapter or a base model, looked for in this order."""
    folder = model_folder(path)
    adapter = tuple(folder / name for name in (WEIGHTS_FILE, HEAD) if (folder / name).is_file())
    for record, kind in ((RECORD, "saved classifier"), (CONFIG_FILE, "adapter")):
        if (folder / record).is_file() and adapter:
            settings = read_settings(folder / record)
            files = tuple(_safetensors(one, verify) for one in adapter)
            return Inspection(path, kind, files, settings, None)
    if not (folder / "config.json").is_file():
        raise ModelError(
            "not a model folder",
            where=path,
            got="no config.json, adapter_config.json or classifier.json",
            wanted="a model directory, an adapter, a saved classifier or a run",
        )
    quantized = quantized_base(folder)
    return Inspection(
        path,
        "base model",
        tuple(_safetensors(one, verify) for one in weight_files(folder)),
        read_settings(folder / "config.json"),
        None if quantized is None else str(quantized.config),
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _require_finite(file: AprFile | GgufFile | SafetensorsFile) -> None:
    for name in file.entries:
        require_finite(file.read(name), where=f"{file.path}: {name}")
