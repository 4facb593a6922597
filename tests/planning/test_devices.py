"""Names of devices, their capacities, and what is free of them, with a tool and a system of our own."""

from __future__ import annotations

from pathlib import Path

import pytest

from qlassify.errors import ConfigError, MemoryPlanError
from qlassify.planning import devices as devices_module
from qlassify.planning.devices import SystemDevices

MIB = 2**20


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two GPUs of 1000 MiB and a host of 64,000 MiB; the tool's table is a file that a test may change."""
    script = tmp_path / "nvidia-smi"
    script.write_text(f"#!/bin/sh\ncat {tmp_path}/table\n")
    script.chmod(0o755)
    (tmp_path / "table").write_text("GPU-a, 1000, 900, Tester\nGPU-b, 1000, 100, Tester\n")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(devices_module, "total_memory_bytes", lambda: 64_000 * MIB)
    monkeypatch.setattr(devices_module, "available_memory_bytes", lambda: 30_000 * MIB)
    return tmp_path


def test_names_lead_to_uuids(system: Path) -> None:
    plain = SystemDevices({})
    assert plain.find("cuda").key == plain.find("cuda:0").key == "cuda:GPU-a"
    assert plain.find("cuda:1").key == plain.find("cuda:GPU-b").key == "cuda:GPU-b"
    turned = SystemDevices({"CUDA_VISIBLE_DEVICES": "1,0"})
    assert (turned.find("cuda").key, turned.find("cuda:1").key) == ("cuda:GPU-b", "cuda:GPU-a")
    assert plain.find("cpu") == plain.find("host")


@pytest.mark.parametrize(
    ("visible", "name"), [("", "cuda"), ("0", "cuda:1"), ("0,1", "cuda:2"), ("0", "cuda:GPU-c"), ("-1", "cuda:0")]
)
def test_a_gpu_that_is_not_there_is_a_sentence(system: Path, visible: str, name: str) -> None:
    with pytest.raises(ConfigError, match=r"no such GPU.*GPU-a, GPU-b"):
        SystemDevices({"CUDA_VISIBLE_DEVICES": visible}).find(name)


@pytest.mark.parametrize("name", ["gpu", "cuda:one", "mps", ""])
def test_a_device_that_is_none_is_a_sentence(system: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="no such device"):
        SystemDevices({}).find(name)


def test_capacities_and_what_is_free(system: Path) -> None:
    found = SystemDevices({})
    gpu, host = found.find("cuda:1"), found.find("host")
    assert (gpu.total_bytes, gpu.capacity_bytes) == (1000 * MIB, 850 * MIB)
    assert host.capacity_bytes == 54_400 * MIB
    assert found.free_bytes(gpu) == 100 * MIB
    assert found.free_bytes(host) == 30_000 * MIB
    (system / "table").write_text("GPU-a, 1000, 900, Tester\nGPU-b, 1000, 333, Tester\n")
    assert found.free_bytes(gpu) == 333 * MIB


@pytest.mark.parametrize("table", ["GPU-u, [N/A], [N/A], NVIDIA GB10\n", "GPU-u, 64000, 30000, Orin\n"])
def test_a_gpu_that_shares_the_hosts_memory(system: Path, table: str) -> None:
    (system / "table").write_text(table)
    found = SystemDevices({})
    gpu = found.find("cuda")
    assert gpu.pool == found.find("host").pool
    assert gpu.capacity_bytes == int(64_000 * MIB * 0.6)
    assert found.free_bytes(gpu) == 30_000 * MIB


def test_the_list_says_when_there_is_no_gpu(system: Path) -> None:
    listed, note = SystemDevices({}).every_device()
    assert [one.key for one in listed] == ["host", "cuda:GPU-a", "cuda:GPU-b"]
    assert note is None
    (system / "nvidia-smi").unlink()
    listed, note = SystemDevices({}).every_device()
    assert [one.key for one in listed] == ["host"]
    assert note is not None
    assert "nvidia-smi" in note


def test_a_gpu_that_has_gone_is_not_taken_for_a_free_one(system: Path) -> None:
    found = SystemDevices({})
    gpu = found.find("cuda:1")
    (system / "table").write_text("GPU-a, 1000, 900, Tester\n")
    with pytest.raises(MemoryPlanError, match="does not say"):
        found.free_bytes(gpu)
