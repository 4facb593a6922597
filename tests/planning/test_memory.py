"""How much memory is left, from the files in which Linux says it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from qlassify.planning import memory


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files of a system with 8 GiB to spare and no limits."""
    proc, group = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (group / "jobs" / "mine").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal:       16777216 kB\nMemFree: 100 kB\nMemAvailable:    8388608 kB\n")
    (proc / "self" / "cgroup").write_text("0::/jobs/mine\n")
    monkeypatch.setattr(memory, "_PROC", proc)
    monkeypatch.setattr(memory, "_CGROUP", group)
    return tmp_path


def limit(system: Path, most: str, used: str) -> None:
    folder = system / "cgroup" / "jobs" / "mine"
    (folder / "memory.max").write_text(f"{most}\n")
    (folder / "memory.current").write_text(f"{used}\n")


def test_without_limits_the_kernels_estimate_counts(system: Path) -> None:
    assert memory.available_memory_bytes() == 8 << 30
    limit(system, "max", "5")
    assert memory.available_memory_bytes() == 8 << 30


def test_the_groups_limit_counts_when_it_is_tighter(system: Path) -> None:
    limit(system, str(3 << 30), str(1 << 30))
    assert memory.available_memory_bytes() == 2 << 30
    limit(system, str(64 << 30), str(1 << 30))
    assert memory.available_memory_bytes() == 8 << 30


def test_a_group_beyond_its_limit_leaves_nothing(system: Path) -> None:
    limit(system, "1000", "2000")
    assert memory.available_memory_bytes() == 0


def test_a_system_that_does_not_say_is_not_guessed(system: Path) -> None:
    (system / "proc" / "meminfo").unlink()
    assert memory.available_memory_bytes() is None


def test_the_whole_is_the_machines_or_the_groups(system: Path) -> None:
    assert memory.total_memory_bytes() == 16 << 30
    limit(system, str(3 << 30), str(1 << 30))
    assert memory.total_memory_bytes() == 3 << 30
    limit(system, str(64 << 30), str(1 << 30))
    assert memory.total_memory_bytes() == 16 << 30


def test_a_group_above_can_be_the_tighter_one(system: Path) -> None:
    limit(system, "max", str(1 << 30))
    above = system / "cgroup" / "jobs"
    (above / "memory.max").write_text(str(4 << 30))
    (above / "memory.current").write_text(str(3 << 30))
    assert memory.available_memory_bytes() == 1 << 30
    assert memory.total_memory_bytes() == 4 << 30


def test_file_caches_of_the_group_count_as_available(system: Path) -> None:
    limit(system, str(4 << 30), str(3 << 30))
    (system / "cgroup" / "jobs" / "mine" / "memory.stat").write_text(
        f"anon 5\ninactive_file {2 << 30}\nactive_file 7\n"
    )
    assert memory.available_memory_bytes() == 3 << 30


@pytest.mark.parametrize("path", ["/jobs/mine", "/../../host/path/that/is/not/mounted"])
def test_the_first_version_of_the_interface(system: Path, path: str) -> None:
    """In a container the path is often the host's, and only the mount's root is there."""
    (system / "proc" / "self" / "cgroup").write_text(f"5:cpu,cpuacct:/a\n4:memory:{path}\n0::/\n")
    root = system / "cgroup" / "memory"
    root.mkdir()
    (root / "memory.limit_in_bytes").write_text(f"{2 << 30}\n")
    (root / "memory.usage_in_bytes").write_text(f"{1 << 30}\n")
    (root / "memory.stat").write_text(f"inactive_file 1\ntotal_inactive_file {1 << 29}\n")
    assert memory.total_memory_bytes() == 2 << 30
    assert memory.available_memory_bytes() == (1 << 30) + (1 << 29)


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's own files")
def test_this_machine_has_some_memory_left() -> None:
    found = memory.available_memory_bytes()
    assert found is not None
    assert 1 << 20 < found < 1 << 50


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's own files")
def test_this_process_holds_some_memory() -> None:
    held, total = memory.resident_memory_bytes(), memory.total_memory_bytes()
    assert held is not None
    assert total is not None
    assert 1 << 20 < held < total
