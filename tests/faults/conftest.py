"""Counts of the harm that the tests in this folder do, printed after them, and how much of it they are to do.

    make test-faults

runs this folder alone and in full: every kill, every mutation. In the whole suite the same tests do less of the same.
A test says what it did with ``tally("kills survived", 10)``; only tests that passed are counted.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fault_tally import Tally
from fork_server import ForkServer
from run_results import disturbed_settings

from tiny_jobs import make_rows, save_tiny_base, write_table

PREFIX = "faults: "
FULL = "QLASSIFY_TEST_FAULTS"
"""Environment variable; ``full`` asks for everything."""


@pytest.fixture
def tally(record_property: Callable[[str, object], None]) -> Tally:
    """Count what a test survived: call it with the name of a kind of fault and a number."""

    def count(kind: str, number: int) -> None:
        record_property(PREFIX + kind, number)

    return count


@pytest.fixture(scope="session")
def full_faults() -> bool:
    """Whether everything is to be tried, and not the short form that runs with the whole suite."""
    return os.environ.get(FULL) == "full"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the counts of all tests that passed, and how many failed."""
    counts: Counter[str] = Counter()
    for report in terminalreporter.getreports("passed"):
        for name, number in report.user_properties:
            if name.startswith(PREFIX):
                counts[name.removeprefix(PREFIX)] += int(str(number))
    if not counts:
        return
    lost = [report.nodeid for report in terminalreporter.getreports("failed") if "faults/" in report.nodeid]
    terminalreporter.section("faults survived")
    for kind, number in sorted(counts.items()):
        terminalreporter.write_line(f"{number:6,}  {kind}")
    terminalreporter.write_line(f"{len(lost):6,}  lost")


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with its tokeniser, written once."""
    return save_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def train_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 learnable rows as CSV, of which 90 are trained on."""
    return write_table(tmp_path_factory.mktemp("data") / "train.csv", ("text", "label"), make_rows(120, seed=2))


@pytest.fixture(scope="session")
def fork_server(tiny_base: Path, train_csv: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    """Runs commands in processes of their own, and kills them where it is told to."""
    server = ForkServer(disturbed_settings(tiny_base, train_csv, epochs=1), tmp_path_factory.mktemp("server"))
    yield server
    server.close()
