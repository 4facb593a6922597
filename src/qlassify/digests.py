"""SHA-256 of the files of a saved classifier, written into its record and compared when it is loaded.

A flipped bit in a file of weights is still a file of weights. safetensors has no checksum, a label whose name lost a
letter is still a label, and a head that was copied from another run has the right shape as often as not: all three
would load and answer. So ``classifier.json`` says what each file was when it was written, and what the record itself
was. Hashing goes at the disk's speed or near it (1 GB/s on one core of the machine that this was written on), beside
the base model's weights, whose hash is compared as well.

The digests are inside the record and not in a file of their own beside it, so that a record and its files can only be
exchanged together. They protect from accidents: whoever can write the folder can write the digests too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from qlassify.errors import ModelError

KEY = "sha256"
"""Key of the digests in a record; one that has none was written before there were any, and is taken as it is."""
RESTORE = "Take the folder from a copy, or train again."


def with_digests(record: Mapping[str, Any], name: str, files: Iterable[Path]) -> dict[str, Any]:
    """A record with the digests of files, and one of itself that covers them.

    Args:
        record: what it says, fit for JSON.
        name: under which its own digest stands.
        files: beside it.

    Raises:
        OSError: a file cannot be read.
    """
    digests = {path.name: _file_digest(path) for path in sorted(files)}
    return {**record, KEY: {**digests, name: _record_digest(record, digests)}}


def verify_record(settings: Mapping[str, Any], path: Path) -> None:
    """Compare a record with the digest of itself that it holds, if it holds one.

    Args:
        settings: the record, as it was read.
        path: its file.

    Raises:
        ModelError: it is another one than was written.
    """
    digests = _digests(settings, path)
    if digests is None:
        return
    others = {name: digest for name, digest in digests.items() if name != path.name}
    found = _record_digest({key: value for key, value in settings.items() if key != KEY}, others)
    if found != digests.get(path.name):
        raise ModelError(
            "the record of the saved classifier is damaged, or was edited",
            where=path,
            got=f"SHA-256 {found[:16]}...",
            wanted=f"{str(digests.get(path.name))[:16]}...",
            do=f'{RESTORE} If it was edited on purpose, remove its "{KEY}".',
        )


def verify_files(settings: Mapping[str, Any], path: Path) -> None:
    """Compare the files beside a record with the digests in it; arguments as ``verify_record``.

    Raises:
        ModelError: names the first file that is missing, damaged, or of another classifier.
    """
    for name, wanted in (_digests(settings, path) or {}).items():
        if name == path.name:
            continue
        file = path.parent / Path(name).name  # whatever the record says, nothing outside its folder is read
        try:
            found = _file_digest(file)
        except OSError as error:
            raise ModelError(
                "a file of the saved classifier cannot be read", where=file, got=error, do=RESTORE
            ) from None
        if found != wanted:
            raise ModelError(
                "a file of the saved classifier is damaged, or of another classifier",
                where=file,
                got=f"SHA-256 {found[:16]}...",
                wanted=f"{str(wanted)[:16]}...",
                do=RESTORE,
            )


def _digests(settings: Mapping[str, Any], path: Path) -> Mapping[str, Any] | None:
    """What a record says of files.

    Raises:
        ModelError: something that is no digests.
    """
    if KEY not in settings:
        return None
    digests = settings[KEY]
    if not isinstance(digests, dict):
        raise ModelError("the record of the saved classifier is damaged", where=path, got=f"{KEY}: {digests!r}"[:80])
    return digests


def _record_digest(record: Mapping[str, Any], digests: Mapping[str, Any]) -> str:
    """Of what it says, the digests of files included, whatever its layout."""
    return hashlib.sha256(json.dumps([record, digests], sort_keys=True).encode("utf-8")).hexdigest()


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
