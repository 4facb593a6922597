"""Fixtures: the command called as ``main`` is called, and one finished run to ask things of.

``main`` reads ``sys.argv`` and ends the process, as a command does; here it runs in this process, so that a test costs
milliseconds where a fresh interpreter would cost seconds. Nothing of the command is replaced.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
import torch
from command_line import Command, Done

from qlassify import job
from qlassify.cli.app import main
from tiny_jobs import job_settings, make_rows, save_tiny_base, write_table


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Calls ``qlassify`` with arguments and standard input."""

    def call(*arguments: object, stdin: str | bytes = b"") -> Done:
        content = stdin if isinstance(stdin, bytes) else stdin.encode()
        monkeypatch.setattr(sys, "argv", ["qlassify", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))
        monkeypatch.setenv("COLUMNS", "200")
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        captured = capsys.readouterr()
        return Done(code, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with its tokeniser, written once."""
    return save_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def train_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 learnable rows as CSV."""
    return write_table(tmp_path_factory.mktemp("data") / "train.csv", ("text", "label"), make_rows(120, seed=2))


@pytest.fixture(scope="session")
def finished_run(tiny_base: Path, train_csv: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder; tests only read it."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    list(job.train(job_settings(tiny_base, train_csv, epochs=4), folder))
    torch.set_num_threads(threads)
    return folder
