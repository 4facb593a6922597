"""Every file that is written has the permissions that the user's umask gives, not more and not less.

A private mask (077) has to make everything private. The usual one (022) has to let a colleague read a run: some
writers make their files private whatever the mask is, and a report that nobody else can open is found out late.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qlassify import job
from qlassify.cli.app import main
from tiny_jobs import job_settings, make_rows, save_tiny_base, write_table

Tally = Callable[[str, int], None]
MASKS = (0o077, 0o022, 0o027)


@pytest.fixture(params=MASKS, ids=lambda mask: f"{mask:03o}")
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    mask = int(request.param)
    former = os.umask(mask)
    yield mask
    os.umask(former)


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    """``qlassify``, which has to end well."""
    monkeypatch.setattr(sys, "argv", ["qlassify", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code in (None, 0), arguments


@pytest.mark.usefixtures("one_thread")
def test_files_have_the_users_permissions(
    umask: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tally: Tally, capsys: pytest.CaptureFixture[str]
) -> None:
    good = tmp_path / "good"
    base = save_tiny_base(good / "base")
    data = write_table(good / "rows.csv", ("text", "label"), make_rows(240, seed=2))
    out = tmp_path / "out"
    run = out / "run"
    settings = job_settings(base, data, epochs=1, checkpoint_every_steps=5)
    settings["data"]["token_cache"] = str(tmp_path / "tokens")
    settings["evaluation"] = {"coverage": 0.5}
    list(job.train(settings, run))
    command(monkeypatch, "evaluate", run, data, "--out", out / "scored")
    command(monkeypatch, "calibrate", run, data)
    command(monkeypatch, "compare", run, run, data, "--out", out / "rows.parquet")
    command(monkeypatch, "compare", run, run, data, "--out", out / "rows.csv")
    command(monkeypatch, "export", run, out / "merged")
    command(monkeypatch, "export", run, out / "peft", "--format", "peft")
    command(monkeypatch, "quantize", base, out / "low-bit")
    command(monkeypatch, "convert", base, out / "base.apr")
    command(monkeypatch, "convert", out / "base.apr", out / "back")
    capsys.readouterr()
    paths = sorted(out.rglob("*"))
    assert len(paths) > 50
    odd = {
        str(path.relative_to(out)): oct(path.stat().st_mode & 0o777)
        for path in paths
        if path.stat().st_mode & 0o777 != (0o777 if path.is_dir() else 0o666) & ~umask
    }
    assert odd == {}
    tally("files with the user's permissions", len(paths))


def test_cached_tokens_are_the_users_own(umask: int, tmp_path: Path) -> None:
    """Token ids are the texts in another spelling; an entry is private whatever the mask is."""
    from qlassify.data.token_store import TokenStore
    from qlassify.data.tokenise import TextEncoder

    base = save_tiny_base(tmp_path / "base")
    TokenStore(tmp_path / "tokens").encode(TextEncoder.load(base, 32), ["the dog", "the pear"])
    entries = [path for path in (tmp_path / "tokens").iterdir() if path.is_dir()]
    assert entries
    assert all(path.stat().st_mode & 0o077 == 0 for path in entries)
