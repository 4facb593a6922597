"""``qlassify inspect``: what is in a model file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qlassify.cli import options
from qlassify.cli.printing import say, say_json

if TYPE_CHECKING:
    from qlassify.inspection import FileFacts, Inspection

SHOWN_CHARACTERS = 100
"""Of a value of the metadata; vocabularies and configurations are longer than anybody reads."""


def inspect(
    path: Annotated[Path, typer.Argument(help="File (.apr, .gguf, .safetensors) or folder: model, adapter, run.")],
    verify: Annotated[
        bool, typer.Option("--verify", help="Read all of it: checksums, hashes, finite numbers.")
    ] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Say what a model file holds: versions, geometry, tensors, types, checksums. Nothing is loaded."""
    from qlassify.inspection import inspect as look_at

    found = look_at(path, verify=verify)
    if json:
        say_json(found.as_dict())
        return
    _print_summary(found)
    for file in found.files:
        _print_file(file, tensors=not quiet)


def _print_summary(found: Inspection) -> None:
    from qlassify.planning.plan import human_bytes, human_count

    types = ", ".join(f"{name} {human_bytes(nbytes)}" for name, nbytes in found.bytes_by_type.items())
    say(f"kind      {found.kind}")
    say(f"tensors   {found.num_tensors}, {human_count(found.num_numbers)} numbers: {types or 'none'}")
    if found.quantization is not None:
        say(f"low-bit   {found.quantization}")
    for key, value in (found.settings or {}).items():
        say(f"          {_short(key)}: {_short(value)}")


def _print_file(file: FileFacts, *, tensors: bool) -> None:
    from qlassify.planning.plan import human_bytes

    flags = f", {' '.join(file.flags)}" if file.flags else ""
    say(f"\nfile      {file.path}: {file.format}, {human_bytes(file.bytes)}{flags}")
    for name, value in file.checksums.items():
        say(f"checksum  {name}: {value}")
    for key, value in file.metadata.items():
        say(f"metadata  {_short(key)}: {_short(value)}")
    if tensors:
        for tensor in file.tensors:
            shape = " x ".join(str(size) for size in tensor.shape) or "one number"
            say(f"{tensor.dtype:<9} {_printable(tensor.name)}  {shape}  {human_bytes(tensor.bytes)}")


def _printable(text: str) -> str:
    # What a file holds comes from outside: nothing of it may steer the terminal.
    return "".join(sign if sign.isprintable() else " " for sign in text)


def _short(value: Any) -> str:
    text = _printable(str(value))
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}... ({len(text)} characters)"
