"""A base model from one file format into another, tensor by tensor.

A directory becomes an APR file with transformers' ``config.json``, the pooling and the tokeniser's settings in its
metadata and the tokeniser beside it under the file's name, so that the file is a base model as the directory was. Back,
an APR file becomes a directory of safetensors and ``config.json``. A GGUF file becomes either, with the configuration
that is built from its metadata and the numbers that its blocks stand for; GGUF is not written.

Only one tensor is in memory. What is lost (numbers in fewer bits, fp32 from numbers in few bits, files that have no
place in the other format) is in the result, by name.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from qlassify.data.tokenise import TextEncoder
from qlassify.data.tokenizer_files import SETTINGS, TOKENIZER, TokenizerFiles, read_settings, staged
from qlassify.durable import require_place, whole_folder
from qlassify.errors import ConfigError, ModelError
from qlassify.formats.apr import SUFFIX
from qlassify.formats.apr_metadata import AprMetadata
from qlassify.formats.apr_types import PLAIN, AprType
from qlassify.formats.apr_writer import WRITABLE, AprTensor, write_apr
from qlassify.formats.safetensors import SafetensorsFile, open_safetensors, write_safetensors
from qlassify.models.apr_base import POOLING_KEY, SPLIT_HALVES, AprBase
from qlassify.models.apr_geometry import CONFIG_KEY
from qlassify.models.apr_tokenizer import SETTINGS_KEY
from qlassify.models.file_base import FileBase, is_file_base, open_file_base
from qlassify.models.gguf_base import GgufBase
from qlassify.models.quantized import WEIGHTS
from qlassify.models.source import ModelSource, resolve
from qlassify.version import __version__

GEOMETRY = {
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "vocab_size": "vocab_size",
    "intermediate_size": "intermediate_size",
    "max_position_embeddings": "max_position_embeddings",
    "rms_norm_eps": "rms_norm_eps",
    "head_dim": "head_dim",
}
"""The format's key -> the one of ``config.json``."""
VERSION_KEY = "qlassify.version"
_File = SafetensorsFile | FileBase
Progress = Callable[[str, int, int], None]
"""Called with a tensor's name, its number from 1 on, and how many there are."""


@dataclass(frozen=True, slots=True)
class Conversion:
    """What became of a model.

    Attributes:
        path: what was written.
        tensors: how many.
        source_bytes: of the weights as they were.
        bytes: of the weights as they are.
        lossy: tensors whose numbers were rounded.
        notes: what else is not the same, in words.
    """

    path: Path
    tensors: int
    source_bytes: int
    bytes: int
    lossy: tuple[str, ...]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Name -> value."""
        return {**asdict(self), "path": str(self.path), "lossy": list(self.lossy), "notes": list(self.notes)}


def convert_to_apr(base: str, path: Path, type: str | None = None, *, progress: Progress | None = None) -> Conversion:
    """Write a base model as an APR file, with its tokeniser beside it.

    Args:
        base: a directory, a GGUF file, a packaged model or a Hugging Face id.
        path: the new ``.apr`` file.
        type: of matrices' elements: f32, f16, bf16, aprq4 or aprq8; each tensor's own when None. Vectors (norms,
            biases) are a thousandth of a model and keep their own type in all cases.
        progress: told of each tensor.

    Raises:
        ModelError: the base model cannot be found, read or written so.
        ConfigError: an unknown type, or the file or its tokeniser's is there already.
    """
    kind = _type(type)
    if path.suffix != SUFFIX:
        raise ConfigError("not the name of an APR file", where=path, wanted=f"a name that ends in {SUFFIX}")
    source = resolve(base)
    opened = open_file_base(source.directory) if is_file_base(source.directory) else None
    if isinstance(opened, AprBase):
        raise ConfigError("an APR file already", where=base)
    if source.quantized() is not None:
        raise ConfigError("the base model is quantised already", where=source.directory, do="Convert the original one.")
    for one in (path, *_tokenizer_paths(path)):
        _require_absent(one)
    files: tuple[_File, ...] = (
        tuple(open_safetensors(one) for one in source.weight_files()) if opened is None else (opened,)
    )
    names = [(file, name) for file in files for name in file.entries]
    tensors: dict[str, AprTensor] = {}
    lossy: list[str] = []
    for number, (file, name) in enumerate(names, 1):
        tensors[name], rounded = _tensor(file, name, kind, _told(progress, name, number, len(names)))
        lossy += [name] if rounded else []
    said, notes = _said(source) if opened is None else _said_by(opened)
    metadata = AprMetadata.of(_metadata(said, files))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The tokeniser first: a file that is there with its weights alone would look finished, and might be taken
        # together with another tokeniser that lies nearby.
        notes += _put_tokenizer(source, path)
        write_apr(path, tensors, metadata)
    except BaseException as error:
        for one in _tokenizer_paths(path):
            one.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        raise ConfigError("cannot write the file", where=path, got=error) from None
    nbytes = sum(tensor.nbytes for tensor in tensors.values())
    return Conversion(path, len(tensors), _total(files), nbytes, tuple(lossy), notes)


def _tokenizer_paths(path: Path) -> tuple[Path, Path]:
    """Where the tokeniser of an APR file goes, and its settings where the metadata does not have them."""
    return path.with_name(f"{path.stem}.{TOKENIZER}"), path.with_name(f"{path.stem}.{SETTINGS}")


def _put_tokenizer(source: ModelSource, path: Path) -> tuple[str, ...]:
    """The tokeniser beside an APR file, under its name; where there is none, a note that says so."""
    target, settings = _tokenizer_paths(path)
    directory = source.directory
    if directory.is_file():
        # Its settings go along in a file of their own: they were not known when the metadata was written.
        with tempfile.TemporaryDirectory(prefix="qlassify-tokenizer-") as folder:
            notes = _write_tokenizer(source, Path(folder))
            if not notes:
                shutil.copyfile(Path(folder) / TOKENIZER, target)
                shutil.copyfile(Path(folder) / SETTINGS, settings)
        return tuple(notes)
    if (directory / TOKENIZER).is_file():
        shutil.copyfile(directory / TOKENIZER, target)
        return ()
    try:
        # From the vocabulary files of a known kind of tokeniser; 512 is of no consequence.
        encoder = TextEncoder.load(directory, 512)
    except ModelError as error:
        return (f"{error.what} in {directory}: the file has none beside it",)
    with tempfile.TemporaryDirectory(prefix="qlassify-tokenizer-") as folder:
        encoder.save(folder)
        shutil.copyfile(Path(folder) / TOKENIZER, target)
    return ()


def _type(name: str | None) -> AprType | None:
    if name is None:
        return None
    kind = WRITABLE.get(name.lower())
    if kind is None or not (kind.decoded.is_floating_point):
        floats = [key for key, one in WRITABLE.items() if one.decoded.is_floating_point]
        raise ConfigError("an unknown type", where="--type", got=name, wanted=", ".join(floats))
    return kind


def _require_absent(path: Path) -> None:
    if path.exists():
        raise ConfigError("there is something already", where=path, do="Give a new name.")


def _told(progress: Progress | None, name: str, number: int, count: int) -> Callable[[], None]:
    def tell() -> None:
        if progress is not None:
            progress(name, number, count)

    return tell


def _tensor(file: _File, name: str, kind: AprType | None, tell: Callable[[], None]) -> tuple[AprTensor, bool]:
    """(the tensor to write, whether its numbers are rounded)."""
    entry = file.entries[name]
    own = PLAIN.get(entry.dtype)
    wanted = kind if kind is not None and entry.dtype.is_floating_point and len(entry.shape) > 1 else own
    if wanted is None:
        raise ModelError("a type that APR files do not have", where=f"{file.path}: {name}", got=entry.dtype)

    def read() -> torch.Tensor:
        tell()
        return file.read(name)

    return AprTensor.later(read, entry.dtype, entry.shape, wanted), _rounds(entry.dtype, wanted)


def _rounds(dtype: torch.dtype, kind: AprType) -> bool:
    """Whether not every number of a type is one of the other."""
    return kind.quantized or (torch.promote_types(dtype, kind.decoded) != kind.decoded)


def _total(files: tuple[_File, ...]) -> int:
    return sum(entry.nbytes for file in files for entry in file.entries.values())


def _said(source: ModelSource) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What a directory says beside its tensors, under our keys; and notes, of which there are none."""
    said: dict[str, Any] = {CONFIG_KEY: read_settings(source.directory / "config.json")}
    pooling, settings = source.directory / "1_Pooling" / "config.json", source.directory / SETTINGS
    if pooling.is_file():
        said[POOLING_KEY] = read_settings(pooling)
    if settings.is_file():
        said[SETTINGS_KEY] = read_settings(settings)
    return said, ()


def _said_by(base: FileBase) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What a file says beside its tensors, under our keys; and what is not the same afterwards, in words."""
    said: dict[str, Any] = {CONFIG_KEY: dict(base.settings)}
    if base.pooling is not None:
        said[POOLING_KEY] = base.pooling
    return said, tuple(_left_behind(base))


def _metadata(said: Mapping[str, Any], files: tuple[_File, ...]) -> dict[str, Any]:
    """The format's own keys as far as they are known, and what they cannot say under keys of ours."""
    config = said[CONFIG_KEY]
    values: dict[str, Any] = {
        "model_type": str(config.get("model_type", "")),
        "architecture": config.get("model_type"),
        "original_format": "gguf" if any(isinstance(file, GgufBase) for file in files) else "safetensors",
        "param_count": sum(math.prod(entry.shape) for file in files for entry in file.entries.values()),
        VERSION_KEY: __version__,
        **said,
    }
    for key, theirs in GEOMETRY.items():
        if isinstance(config.get(theirs), (int, float)) and not isinstance(config[theirs], bool):
            values[key] = config[theirs]
    rope = config.get("rope_theta", (config.get("rope_parameters") or {}).get("rope_theta"))
    if isinstance(rope, (int, float)):
        values |= {"rope_theta": rope, "rope_type": SPLIT_HALVES}
    template = said.get(SETTINGS_KEY, {}).get("chat_template")
    return values | ({"chat_template": template} if isinstance(template, str) else {})


class _Tensors(Mapping[str, torch.Tensor]):
    """A file's tensors as a mapping of which nothing is held: each is read whenever it is asked for."""

    def __init__(self, base: FileBase, progress: Progress | None) -> None:
        self._base = base
        self._progress = progress

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._base.read(name)

    def __iter__(self) -> Iterator[str]:
        for number, name in enumerate(self._base.entries, 1):
            if self._progress is not None:
                self._progress(name, number, len(self))
            yield name

    def __len__(self) -> int:
        return len(self._base.entries)


def convert_to_directory(path: Path, directory: Path, *, progress: Progress | None = None) -> Conversion:
    """Write a base model that is an APR or GGUF file as a directory of safetensors, ``config.json`` and a tokeniser.

    Numbers in few bits are written as the fp32 numbers that they stand for; nothing is rounded.

    Args:
        path: the file, or the manifest of several.
        directory: the new directory.
        progress: told of each tensor, twice: sizes are written before all numbers.

    Raises:
        ModelError: the file cannot be read as a base model.
        ConfigError: there is something at ``directory`` already.
    """
    if not is_file_base(path):
        wanted = "FILE.apr or FILE.gguf and DIRECTORY, or DIRECTORY and FILE.apr"
        raise ConfigError("not an APR or GGUF file", where=path, wanted=wanted)
    _require_absent(directory)
    try:
        require_place(directory)
    except OSError as error:
        raise ConfigError("cannot write the directory", where=directory, got=error) from None
    base = open_file_base(path, verify=True)
    try:
        with whole_folder(directory) as scratch:
            write_safetensors(scratch / WEIGHTS, _Tensors(base, progress), {"format": "pt"})
            _write_json(scratch / "config.json", base.settings)
            if isinstance(base.pooling, dict):
                (scratch / "1_Pooling").mkdir()
                _write_json(scratch / "1_Pooling" / "config.json", base.pooling)
            notes = _write_tokenizer(resolve(str(path)), scratch)
    except OSError as error:
        raise ConfigError("cannot write the directory", where=directory, got=error) from None
    return Conversion(
        directory,
        len(base.entries),
        sum(entry.nbytes for entry in base.entries.values()),
        _total((open_safetensors(directory / WEIGHTS),)),
        (),
        (*notes, *_left_behind(base)),
    )


def _left_behind(base: FileBase) -> list[str]:
    """What is in a file and not in what it becomes, in words."""
    decoded = sorted({entry.type.name for entry in base.entries.values() if entry.type.quantized})
    notes = [f"{name} is written as the fp32 numbers that it stands for" for name in decoded]
    known = (CONFIG_KEY, POOLING_KEY, SETTINGS_KEY, VERSION_KEY)
    left = [key for key in base.file.metadata.custom if key not in known] if isinstance(base, AprBase) else []
    if isinstance(base, GgufBase):
        # What the architecture's and the tokeniser's keys say is in config.json and tokenizer.json.
        apart = (f"{base.architecture}.", "tokenizer.", "general.architecture", "general.alignment")
        left = [key for key in base.file.metadata if not key.startswith(apart)]
    return [*notes, f"metadata without a place: {', '.join(left)}"] if left else notes


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(dict(values), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_tokenizer(source: ModelSource, directory: Path) -> list[str]:
    """The tokeniser's files; without one, a note that says so."""
    try:
        files = source.tokenizer_files()
    except ModelError as error:
        return [f"{error.what}: {error.got}"]
    assert isinstance(files, TokenizerFiles)
    with staged(files) as folder:
        for name in (TOKENIZER, SETTINGS):
            shutil.copyfile(folder / name, directory / name)
    return []
