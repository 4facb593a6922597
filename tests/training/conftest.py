"""Fixtures: one tiny base model and one set of learnable rows for the whole folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiny_jobs import make_rows, save_tiny_base


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with its tokeniser, written once."""
    return save_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def rows() -> list[tuple[str, str]]:
    """Sixty learnable texts of unequal length."""
    return make_rows(60, seed=1, longest=20)
