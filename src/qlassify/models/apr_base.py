"""A base model that is an APR file: its architecture, and its tensors under transformers' names.

Files that our converter wrote carry transformers' ``config.json`` whole, under ``qlassify.config``. The format's own
keys were made for decoders; an encoder's activation, its token types or the kind of its norms have no key, and a model
rebuilt without them would load and answer nonsense. Where that key is missing, the configuration is built from the
geometry, for the architectures in ``apr_geometry``.

GGUF keeps queries and keys of Llama models in another order (pairs that turn together lie side by side); files that
came from there say so by ``rope_type`` 0, and the rows are put back when they are read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from qlassify.errors import ModelError
from qlassify.formats.apr import AprFile, is_apr, open_apr
from qlassify.formats.apr_checkpoint import ADAPTER_SUFFIX, inference_names
from qlassify.formats.apr_index import AprEntry
from qlassify.formats.apr_metadata import AprMetadata
from qlassify.formats.apr_names import hf_name, in_gguf_style
from qlassify.formats.apr_shards import AprShards, is_manifest, open_shards
from qlassify.formats.finite import require_finite
from qlassify.models.apr_geometry import BUILDERS, CONFIG_KEY, CONVERT, Geometry, settings_of

POOLING_KEY = "qlassify.pooling"
ADJACENT_PAIRS, SPLIT_HALVES = 0, 2
"""Values of ``rope_type``."""
_QUERY_OR_KEY = re.compile(r"(?:^|\.)self_attn\.([qk])_proj\.(weight|bias)$")


def is_apr_base(path: Path) -> bool:
    """Whether a path is an APR file or a manifest of such files."""
    return is_apr(path) or is_manifest(path)


@dataclass(frozen=True, slots=True, eq=False)
class AprBase:
    """An APR file as a base model.

    Attributes:
        file: the file or its shards.
        settings: what transformers' ``config.json`` would say, ``model_type`` among it.
        names: transformers' name -> the file's.
        entries: transformers' name -> the tensor.
        paired_heads: heads of queries and of keys that are stored in adjacent pairs; None when none are.
    """

    file: AprFile | AprShards
    settings: Mapping[str, Any]
    names: Mapping[str, str]
    entries: Mapping[str, AprEntry]
    paired_heads: Mapping[str, int] | None = None

    @property
    def path(self) -> Path:
        """The file, or the manifest of several."""
        return self.file.path

    @property
    def pooling(self) -> Any:
        """What sentence-transformers said of pooling, as the metadata has it; None without."""
        return self.file.metadata.custom.get(POOLING_KEY)

    def read(self, name: str) -> Tensor:
        """One tensor as transformers wants it.

        Raises:
            ModelError: it holds NaN or infinity (F-CKPT-013), or the file was cut short.
        """
        tensor = self.file.read(self.names[name])
        require_finite(tensor, where=f"{self.file.path}: {self.names[name]}")
        found = _QUERY_OR_KEY.search(name) if self.paired_heads is not None else None
        if found is None or self.paired_heads is None:
            return tensor
        return in_halves(tensor, self.paired_heads[found.group(1)])


def open_apr_base(path: Path, *, verify: bool = False) -> AprBase:
    """Open an APR file as a base model.

    Args:
        path: the file, or a manifest.
        verify: compute the checksum of the whole file, too.

    Raises:
        ModelError: damaged, of an architecture that is not known, or with tensors that its geometry denies.
    """
    if path.name.endswith(ADAPTER_SUFFIX):
        raise ModelError("an adapter, not a base model", where=path, wanted="the .apr file that it was trained on")
    file = open_shards(path, verify=verify) if is_manifest(path) else open_apr(path, verify=verify)
    stored = inference_names(file.entries)
    kept = file.metadata.custom.get(CONFIG_KEY)
    if kept is not None:
        if not isinstance(kept, dict) or not isinstance(kept.get("model_type"), str):
            raise ModelError("no configuration of a model", where=f"{path}: {CONFIG_KEY}", wanted="with model_type")
        _require_few_layers(path, kept, len(stored))
        return AprBase(file, kept, {name: name for name in stored}, {name: file.entries[name] for name in stored})
    architecture = _architecture(path, file.metadata)
    names = {hf_name(name, architecture): name for name in stored}
    if len(names) != len(stored):
        raise ModelError("two tensors have one name", where=path, got="names of GGUF and transformers mixed")
    if architecture == "gemma" and in_gguf_style(stored):
        raise ModelError("a Gemma from GGUF, whose norms are stored plus one", where=path, do=CONVERT)
    entries = {name: file.entries[old] for name, old in names.items()}
    shapes = {name: entry.shape for name, entry in entries.items()}
    settings = settings_of(Geometry(path, file.metadata.typed, shapes), architecture)
    heads = _paired_heads(path, file.metadata, architecture, stored, settings)
    return AprBase(file, {"model_type": architecture, **settings}, names, entries, heads)


def _require_few_layers(path: Path, settings: Mapping[str, Any], tensors: int) -> None:
    """Refuse a configuration with more layers than there are tensors: building them takes memory without weights."""
    for key in ("num_hidden_layers", "num_layers", "n_layers", "n_layer"):
        layers = settings.get(key, 0)
        if isinstance(layers, int) and layers > tensors:
            raise ModelError(
                "a configuration with more layers than the file has tensors",
                where=f"{path}: {CONFIG_KEY}",
                got=f"{key} {layers}, {tensors} tensors",
            )


def read_apr_metadata(path: Path) -> AprMetadata:
    """The metadata of an APR file, or of the first of several.

    Raises:
        ModelError: damaged.
    """
    return (open_shards(path) if is_manifest(path) else open_apr(path)).metadata


def in_halves(tensor: Tensor, heads: int) -> Tensor:
    """Rows of adjacent pairs (x0, y0, x1, y1, ...) of each head -> in halves (x0, x1, ..., y0, y1, ...)."""
    rows = tensor.shape[0]
    split = tensor.reshape(heads, rows // heads // 2, 2, *tensor.shape[1:])
    return split.transpose(1, 2).reshape(tensor.shape).contiguous()


def _architecture(path: Path, metadata: AprMetadata) -> str:
    """The architecture that the metadata names.

    Raises:
        ModelError: none, or one whose configuration cannot be built from geometry.
    """
    named = str(metadata.typed.get("architecture") or metadata.typed.get("model_type", "")).lower()
    if named not in BUILDERS:
        raise ModelError(
            "the file does not say enough of its architecture",
            where=path,
            got=f"architecture {named!r}" if named else "no architecture",
            wanted=f"one of {', '.join(BUILDERS)}, or transformers' config.json under {CONFIG_KEY}",
            do=CONVERT,
        )
    return named


def _paired_heads(
    path: Path, metadata: AprMetadata, architecture: str, names: list[str], settings: Mapping[str, Any]
) -> dict[str, int] | None:
    """Heads of queries and keys that lie in adjacent pairs.

    Raises:
        ModelError: it cannot be told whether they do.
    """
    rope, gguf = metadata.typed.get("rope_type"), in_gguf_style(names)
    if architecture == "bert" or rope == SPLIT_HALVES or (rope is None and not (gguf and architecture == "llama")):
        return None
    if rope not in (None, ADJACENT_PAIRS) or not (gguf and architecture == "llama"):
        raise ModelError(
            "it cannot be told in which order queries and keys are stored",
            where=path,
            got=f"rope_type {rope}, architecture {architecture}, {'GGUF' if gguf else 'transformers'} names",
            wanted="rope_type 2, or 0 with a Llama that has GGUF's names",
            do=CONVERT,
        )
    return {"q": settings["num_attention_heads"], "k": settings["num_key_value_heads"]}
