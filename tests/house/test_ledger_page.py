"""The page on the memory ledger: its numbers are the code's, and its example runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from qlassify.planning import devices, ledger_file, memory_guard, memory_request, wait_queue

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "ledger.md").read_text(encoding="utf-8")
WORDS = " ".join(PAGE.split())


def test_its_numbers_are_the_codes() -> None:
    assert f"total x {devices.DISCRETE_FACTOR:.2f}; total x {devices.UNIFIED_FACTOR:.2f} for a GPU that shares" in WORDS
    assert f"lease of {memory_request.LEASE_SECONDS:.0f} seconds" in WORDS
    beat = memory_request.LEASE_SECONDS / memory_guard._BEATS_PER_LEASE
    assert f"renews it every {beat:.0f}." in WORDS
    assert f"asked by a thread every {beat:.0f} seconds" in WORDS
    assert f"above {memory_guard.OVERSHOOT:.0%} of".replace("%", " %") in WORDS
    assert f"For {ledger_file.CLOSED_SECONDS:.0f} seconds its successor" in WORDS
    assert 2 * beat <= ledger_file.CLOSED_SECONDS, "every owner writes itself back within that time"
    assert f"after {wait_queue.FIRST_INTERVAL_SECONDS:g} s" in WORDS


@pytest.mark.skipif(sys.platform != "linux", reason="the ledger needs Linux")
def test_its_example_runs(tmp_path: Path) -> None:
    block = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert block is not None
    # A byte instead of gigabytes, so that the example fits wherever the suite runs.
    code = block.group(1).replace("4_000_000_000", "1")
    environment = {"QLASSIFY_LEDGER": str(tmp_path / "ledger.json"), "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "my job holds 3.5 GB of host" in done.stderr, "the overshoot is said"
    assert '"reservations": []' in (tmp_path / "ledger.json").read_text()
