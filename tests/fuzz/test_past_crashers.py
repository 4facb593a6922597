"""What fuzzing has found stays found: every file of the corpus is read or refused, and nothing else happens.

Files called ``reached-...`` broke nothing; each reaches code that those before it did not. The others are crashers.
"""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from fuzz.readers import CORPUS, READERS, seeds, try_bytes
from qlassify.errors import ModelError
from qlassify.formats.apr import open_apr
from qlassify.models.gguf_base import open_gguf_base

PAST = sorted(CORPUS.glob("*/*"))


@pytest.mark.parametrize("path", PAST, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_a_find_is_read_or_refused(path: Path, tmp_path: Path) -> None:
    try_bytes(path.parent.name, path.read_bytes(), tmp_path)  # imports are no part of what is measured
    tracemalloc.start()
    try:
        try_bytes(path.parent.name, path.read_bytes(), tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20  # files of 4 KB, read in stretches of at most some MB
    finally:
        tracemalloc.stop()


def test_every_reader_has_seeds_that_are_whole(tmp_path: Path) -> None:
    """A fuzzer that begins with refused files would see nothing but the first check."""
    assert {path.parent.name for path in PAST} <= set(READERS)
    for number, raw in enumerate(seeds("apr")):
        (tmp_path / f"{number}.apr").write_bytes(raw)
        file = open_apr(tmp_path / f"{number}.apr", verify=True)
        for name in file.entries:
            file.read(name)
    (tmp_path / "m.gguf").write_bytes(seeds("gguf")[1])
    base = open_gguf_base(tmp_path / "m.gguf")
    for name in base.entries:
        base.read(name)


def test_what_is_not_our_error_comes_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path, **_: object) -> None:
        raise IndexError

    monkeypatch.setattr("qlassify.formats.gguf.open_gguf", broken)
    with pytest.raises(IndexError):
        try_bytes("gguf", seeds("gguf")[0], tmp_path)
    monkeypatch.setattr("qlassify.formats.gguf.open_gguf", lambda path: (_ for _ in ()).throw(ModelError("no")))
    try_bytes("gguf", seeds("gguf")[0], tmp_path)
