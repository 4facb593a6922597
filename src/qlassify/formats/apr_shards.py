"""A model in several APR files, with a manifest that says which tensor lies in which.

    {"version", "shard_count", "total_size", "tensor_count", "shards": [{"filename", "index", "size", "tensors"}],
     "weight_map": {tensor: shard index}}

File names in a manifest come from outside. Each must be a bare name of a real file in the manifest's own folder: no
path, and no link that leads elsewhere, so that a manifest cannot have files read that nobody pointed at.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from qlassify.errors import ModelError
from qlassify.formats.apr import SUFFIX, AprFile, open_apr
from qlassify.formats.apr_index import AprEntry
from qlassify.formats.apr_metadata import AprMetadata

MANIFEST_SUFFIX = SUFFIX + ".json"
"""How a manifest's name ends where we look for one: ``model.apr.json``."""
MAX_MANIFEST_BYTES = 64 << 20
MAX_SHARDS = 10_000


@dataclass(frozen=True, slots=True, eq=False)
class AprShards:
    """The files of a model as one.

    Attributes:
        path: the manifest.
        files: the shards in order.
        entries: name -> tensor, sorted by the names' bytes.
        homes: name -> number of its shard.
    """

    path: Path
    files: tuple[AprFile, ...]
    entries: Mapping[str, AprEntry]
    homes: Mapping[str, int]

    @property
    def metadata(self) -> AprMetadata:
        """What the first shard says of the model."""
        return self.files[0].metadata

    def read(self, name: str) -> Tensor:
        """One tensor, as ``AprFile.read``."""
        return self.files[self.homes[name]].read(name)

    def verify(self) -> None:
        """Compute the checksums of all files, as ``AprFile.verify``."""
        for file in self.files:
            file.verify()


def is_manifest(path: Path) -> bool:
    """Whether a path is a file whose name says that it is a manifest of shards."""
    return path.name.endswith(MANIFEST_SUFFIX) and path.is_file()


def open_shards(path: Path, *, verify: bool = False) -> AprShards:
    """Read a manifest and open its files.

    Args:
        path: the manifest.
        verify: compute the checksums of the whole files, too.

    Raises:
        ModelError: the manifest contradicts itself or its files, or names files outside its folder.
    """
    names, homes = _manifest(path)
    files = tuple(open_apr(_inside(path, name), verify=verify) for name in names)
    entries: dict[str, AprEntry] = {}
    for number, file in enumerate(files):
        for name, entry in file.entries.items():
            if name in entries:
                raise _broken(path, f"{name} lies in two shards")
            if homes.get(name) != number:
                raise _broken(path, f"{name} lies in {file.path.name}, the map says shard {homes.get(name)}")
            entries[name] = entry
    missing = next((name for name in homes if name not in entries), None)
    if missing is not None:
        raise _broken(path, f"{missing} is in no shard")
    ordered = dict(sorted(entries.items(), key=lambda item: item[0].encode("utf-8")))
    return AprShards(path, files, ordered, homes)


def shard_paths(path: Path) -> tuple[Path, ...]:
    """The files that a manifest names, in order.

    Raises:
        ModelError: the manifest contradicts itself, or names files outside its folder.
    """
    return tuple(_inside(path, name) for name in _manifest(path)[0])


def _manifest(path: Path) -> tuple[list[str], dict[str, int]]:
    """(file names in order, tensor -> number of its shard)."""
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise _broken(path, f"more than {MAX_MANIFEST_BYTES} bytes")
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _broken(path, str(error)) from None
    if not isinstance(values, dict):
        raise _broken(path, "no object")
    shards, weight_map = values.get("shards"), values.get("weight_map")
    if not isinstance(shards, list) or not isinstance(weight_map, dict) or not 0 < len(shards) <= MAX_SHARDS:
        raise _broken(path, "no shards and weight_map")
    if values.get("shard_count") != len(shards):
        raise _broken(path, f"shard_count {values.get('shard_count')!r} for {len(shards)} shards")
    homes: dict[str, int] = {}
    for name, number in weight_map.items():
        if type(number) is not int or not 0 <= number < len(shards):
            raise _broken(path, f"{name} in shard {number!r} of {len(shards)}")
        homes[name] = number
    return [_file_name(path, number, shard) for number, shard in enumerate(shards)], homes


def _file_name(path: Path, number: int, shard: Any) -> str:
    name = shard.get("filename") if isinstance(shard, dict) else None
    if not isinstance(name, str) or shard.get("index") != number:
        raise _broken(path, f"shard {number} has no file name, or another index")
    # Both separators, and the drive letters that only one system knows: a manifest means the same everywhere.
    if not name.endswith(SUFFIX) or any(sign in name for sign in "/\\:\0") or name.startswith("."):
        raise _broken(path, f"the file name {name!r}", "names of .apr files beside the manifest")
    return name


def _inside(path: Path, name: str) -> Path:
    """The shard's path, if it is a file of this folder and not a way out of it."""
    shard = path.parent / name
    if shard.is_symlink() and shard.resolve().parent != path.parent.resolve():
        raise _broken(path, f"{name} is a link out of the folder", "files beside the manifest")
    if not shard.is_file():
        raise _broken(path, f"no {name}", "all shards beside the manifest")
    return shard


def _broken(path: Path, got: str, wanted: str | None = None) -> ModelError:
    return ModelError("cannot use the manifest of shards", where=path, got=got, wanted=wanted)
