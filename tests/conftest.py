"""Fixtures that every folder of the suite shares."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from tiny_models import FAMILIES, save_tiny_model, shared_root

# Tests never time, on a busy machine least of all. Where a change is judged, the same examples are drawn every time.
settings.register_profile(
    "house", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=bool(os.environ.get("CI"))
)
settings.load_profile("house")


@pytest.fixture(scope="session", autouse=True)
def own_ledger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A memory ledger of this test process: no test waits for the user's jobs, and none of them for a test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QLASSIFY_LEDGER", str(tmp_path_factory.mktemp("ledger") / "ledger.json"))
        yield


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """The folder of published configurations, tokenisers and data sets that may lie beside the repository."""
    folder = shared_root()
    if not folder.is_dir():
        pytest.skip(f"needs {folder.name}/ beside the repository: published configurations, tokenisers, data sets")
    return folder


@pytest.fixture
def generator() -> torch.Generator:
    """A seeded generator of this test's own."""
    return torch.Generator().manual_seed(20240229)


@pytest.fixture(scope="session")
def tiny_directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Directory of a tiny random-weight model of each family, written once."""
    root = tmp_path_factory.mktemp("tiny")
    return {name: save_tiny_model(name, root / name) for name in FAMILIES}


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """One thread for torch: on tensors of a few kilobytes, threads wait for one another longer than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
