"""The driver's table, and which GPUs a process sees. torch's own reading of the variable is the reference."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from qlassify.errors import ConfigError
from qlassify.planning import gpus as gpus_module
from qlassify.planning.gpus import Gpu, parse_gpus, read_gpus, visible_gpus

MIB = 2**20
GPUS = [Gpu(f"GPU-{beginning}-1", "Tester", 1, 1) for beginning in ("aa", "ab", "bb")]


def test_the_table() -> None:
    table = (
        "GPU-5b1c2d3e-0000-1111-2222-333344445555, 143771, 143224, NVIDIA H200\n"
        "GPU-77777777-0000-1111-2222-333344445555, 24564, 0, NVIDIA GeForce RTX 4090\n"
        "\n"
    )
    first, second = parse_gpus(table)
    assert first == Gpu("GPU-5b1c2d3e-0000-1111-2222-333344445555", "NVIDIA H200", 143771 * MIB, 143224 * MIB)
    assert (second.name, second.free_bytes) == ("NVIDIA GeForce RTX 4090", 0)
    assert not first.has_unified_memory
    assert parse_gpus("") == []


def test_a_gpu_without_memory_of_its_own() -> None:
    (gpu,) = parse_gpus("GPU-1, [N/A], [N/A], NVIDIA GB10\n")
    assert (gpu.total_bytes, gpu.free_bytes) == (None, None)
    assert gpu.has_unified_memory
    assert parse_gpus("GPU-1, 62841, 50000, Orin (nvgpu)\n")[0].has_unified_memory


@pytest.mark.parametrize(
    "table",
    ["No devices were found\n", "GPU-1, 5\n", "GPU-1, much, 5, name\n", "uuid, memory.total, memory.free, name\n"],
)
def test_what_is_no_table_is_a_sentence(table: str) -> None:
    with pytest.raises(ConfigError, match="--device cpu"):
        parse_gpus(table)


def tool(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a program called ``nvidia-smi`` before every other on the path."""
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_the_tool_is_asked_for_what_is_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool(tmp_path, f'echo "$@" > {tmp_path}/asked; echo "GPU-1, 100, 50, Tester"', monkeypatch)
    assert read_gpus() == [Gpu("GPU-1", "Tester", 100 * MIB, 50 * MIB)]
    asked = (tmp_path / "asked").read_text()
    assert asked == "--query-gpu=uuid,memory.total,memory.free,name --format=csv,noheader,nounits\n"


def test_a_tool_that_fails_is_a_sentence_with_its_own_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool(tmp_path, 'echo "Failed to initialize NVML: Driver/library version mismatch"; exit 18', monkeypatch)
    with pytest.raises(ConfigError, match="version mismatch"):
        read_gpus()


def test_a_tool_that_hangs_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*_: object, **options: object) -> None:
        raise subprocess.TimeoutExpired("nvidia-smi", 20)

    tool(tmp_path, "", monkeypatch)
    monkeypatch.setattr(gpus_module.subprocess, "run", hang)
    with pytest.raises(ConfigError, match="timed out"):
        read_gpus()


def test_no_tool_is_no_gpu_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"nvidia-smi.*--device cpu"):
        read_gpus()


@pytest.mark.parametrize(
    "value",
    [
        *("0", "1", "2,0", "0,1,2", "0, 1", "2,5,0", "1,-1,0", "-1", "", "0,0", "1,2,1", "7"),
        *("GPU-b", "GPU-aa", "GPU-bb-1,GPU-ab", "GPU-a", "GPU-bb,GPU-a,GPU-ab", "GPU-bb,GPU-bb-1", "GPU-bb,0", "GPU-x"),
    ],
)
def test_the_variable_is_read_as_torch_reads_it(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch.cuda

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    parsed = torch.cuda._parse_visible_devices()
    if parsed and isinstance(parsed[0], str):
        ordinals = torch.cuda._transform_uuid_to_ordinals(parsed, [gpu.uuid for gpu in GPUS])  # type: ignore[arg-type]
    else:
        # A number beyond the last GPU ends the list; torch leaves that to the driver.
        ordinals = []
        for number in parsed:
            if not 0 <= int(number) < len(GPUS):
                break
            ordinals.append(int(number))
    assert visible_gpus(GPUS, {"CUDA_VISIBLE_DEVICES": value}) == [GPUS[number] for number in ordinals]


def test_without_the_variable_all_are_seen() -> None:
    assert visible_gpus(GPUS, {}) == GPUS


def test_parts_of_a_gpu_are_refused() -> None:
    with pytest.raises(ConfigError, match="parts of a GPU"):
        visible_gpus(GPUS, {"CUDA_VISIBLE_DEVICES": "MIG-1"})


def test_numbers_of_different_gpus_mean_something_only_by_bus() -> None:
    mixed = [*GPUS, Gpu("GPU-fast", "Faster", 1, 1)]
    for value in ({}, {"CUDA_VISIBLE_DEVICES": "3"}):
        with pytest.raises(ConfigError, match="PCI_BUS_ID"):
            visible_gpus(mixed, value)
    by_bus = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert visible_gpus(mixed, {**by_bus, "CUDA_VISIBLE_DEVICES": "3"}) == [mixed[3]]
    assert visible_gpus(mixed, by_bus) == mixed
    assert visible_gpus(mixed, {"CUDA_VISIBLE_DEVICES": "GPU-fast"}) == [mixed[3]]
    assert visible_gpus(mixed, {"CUDA_VISIBLE_DEVICES": ""}) == []
