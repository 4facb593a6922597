"""Fixtures: two tiny base models and a file of learnable rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiny_jobs import make_rows, save_tiny_base, write_table


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with its tokeniser, written once."""
    return save_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def other_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same architecture and tokeniser with other weights."""
    return save_tiny_base(tmp_path_factory.mktemp("other"), seed=1)


@pytest.fixture(scope="session")
def train_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 learnable rows as CSV."""
    path = tmp_path_factory.mktemp("data") / "train.csv"
    return write_table(path, ("text", "label"), make_rows(240, seed=2))
