"""A base model that is a GGUF file: its architecture, and its tensors under transformers' names.

Three things are stored in another way than transformers keeps them, and are put back when a tensor is read: rows of
Llama's queries and keys (pairs that turn together lie side by side), Gemma's norms (plus one), and names. Everything
else is a tensor of the model or is refused; a tensor without a place would be dropped by the loader without a word.

transformers has a loader of its own for these files. It holds the whole model in fp32, reads metadata with a reader
that believes what it is told, and drops what scales positions; here it is the other side of a parity test.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from qlassify.errors import ModelError
from qlassify.formats.apr_names import TABLES, hf_name
from qlassify.formats.finite import require_finite
from qlassify.formats.gguf import GgufEntry, GgufFile, open_gguf
from qlassify.formats.gguf_types import require_decoder
from qlassify.models.apr_base import in_halves
from qlassify.models.gguf_geometry import architecture_of, gguf_settings

POOLING_MODES = {1: "mean", 2: "cls", 3: "lasttoken"}
"""``pooling_type`` -> what sentence-transformers calls it; 0 says that there is none."""
RANKING = 4
_QUERY_OR_KEY = re.compile(r"\.self_attn\.([qk])_proj\.(?:weight|bias)$")
_NOT_OF_THE_BASE = re.compile(r"output\.weight|cls(?:\.output)?(?:\.\w+)?|rope_\w+\.weight")
"""What need not be a tensor of the base model: heads, and factors of positions, which ``gguf_geometry`` looks at."""


@dataclass(frozen=True, slots=True, eq=False)
class GgufBase:
    """A GGUF file as a base model.

    Attributes:
        file: the file.
        architecture: as the format names it.
        settings: what transformers' ``config.json`` would say, ``model_type`` among it.
        names: transformers' name -> the file's.
        entries: transformers' name -> the tensor.
        paired_heads: heads of queries and of keys that are stored in adjacent pairs; None when none are.
    """

    file: GgufFile
    architecture: str
    settings: Mapping[str, Any]
    names: Mapping[str, str]
    entries: Mapping[str, GgufEntry]
    paired_heads: Mapping[str, int] | None

    @property
    def path(self) -> Path:
        """The file."""
        return self.file.path

    @property
    def pooling(self) -> dict[str, str] | None:
        """What ``1_Pooling/config.json`` would say; None when the file says nothing.

        Raises:
            ModelError: a pooling that nothing here does.
        """
        kind = self.file.metadata.get(f"{self.architecture}.pooling_type", 0)
        if kind in (0, RANKING):
            return None
        if type(kind) is not int or kind not in POOLING_MODES:
            raise ModelError("an unknown pooling", where=f"{self.path}: {self.architecture}.pooling_type", got=kind)
        return {"pooling_mode": POOLING_MODES[kind]}

    def read(self, name: str) -> Tensor:
        """One tensor as transformers wants it.

        Raises:
            ModelError: it holds NaN or infinity, its type cannot be decoded, or the file was cut short.
        """
        where = f"{self.path}: {self.names[name]}"
        tensor = self.file.read(self.names[name])
        require_finite(tensor, where=where)
        if self.architecture.startswith("gemma") and name.endswith("norm.weight"):
            return tensor.sub_(1)
        found = _QUERY_OR_KEY.search(name) if self.paired_heads is not None else None
        if found is None or self.paired_heads is None:
            return tensor
        heads = self.paired_heads[found.group(1)]
        if not tensor.dim() or tensor.shape[0] % (2 * heads):
            raise ModelError("rows that are not pairs in heads", where=where, got=list(tensor.shape), wanted=heads)
        return in_halves(tensor, heads)


def open_gguf_base(path: Path) -> GgufBase:
    """Open a GGUF file as a base model.

    Raises:
        ModelError: damaged, of an architecture that is not built, with tensors that its metadata denies or that have
            no place, or in a type that cannot be decoded.
    """
    file = open_gguf(path)
    architecture = architecture_of(file)
    names: dict[str, str] = {}
    for old in file.entries:
        name = hf_name(old, architecture)
        if name == old:
            if _NOT_OF_THE_BASE.fullmatch(old):
                continue
            raise ModelError(
                "a tensor that the architecture has no place for", where=f"{path}: {old}", got=architecture,
                wanted=", ".join(TABLES[architecture]),
            )  # fmt: skip
        names[name] = old
    entries = {name: file.entries[old] for name, old in names.items()}
    for name, entry in entries.items():
        require_decoder(entry.type, where=f"{path}: {names[name]}")
        if architecture.startswith("gemma") and name.endswith("norm.weight") and entry.type.name != "F32":
            # One was added in fp32; in fewer bits, what is left after taking it away is not the norm.
            raise ModelError("a norm in few bits", where=f"{path}: {names[name]}", got=entry.type.name, wanted="F32")
    settings = gguf_settings(file, architecture, {name: entry.shape for name, entry in entries.items()})
    heads = None
    if architecture == "llama":
        heads = {"q": settings["num_attention_heads"], "k": settings["num_key_value_heads"]}
    return GgufBase(file, architecture, settings, names, entries, heads)
