"""Which type is chosen on which processor, by what torch and the system say of it."""

from __future__ import annotations

import platform

import pytest
import torch

from qlassify.errors import ConfigError
from qlassify.training import precision
from qlassify.training.precision import choose_placement


@pytest.mark.parametrize(
    ("capabilities", "vendor", "machine", "features", "wanted"),
    [
        ({"avx512_bf16": True, "amx_bf16": True}, "GenuineIntel", "x86_64", "", "bf16"),
        ({"avx512_bf16": True, "amx_bf16": False}, "GenuineIntel", "x86_64", "", "fp32"),
        ({"avx512_bf16": True}, "AuthenticAMD", "x86_64", "", "bf16"),
        ({"avx2": True}, "AuthenticAMD", "x86_64", "", "fp32"),
        ({}, "", "aarch64", "fp asimd bf16 i8mm", "bf16"),
        ({}, "", "aarch64", "fp asimd", "fp32"),
        ({"arm_bf16": True}, "", "arm64", "", "bf16"),
    ],
)
def test_bf16_where_it_is_faster(
    monkeypatch: pytest.MonkeyPatch,
    capabilities: dict[str, bool],
    vendor: str,
    machine: str,
    features: str,
    wanted: str,
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    monkeypatch.setattr(precision, "_cpuinfo", lambda field: {"vendor_id": vendor, "Features": features}[field])
    monkeypatch.setattr(platform, "machine", lambda: machine)
    placement = choose_placement("cpu", "auto")
    assert (placement.precision, placement.device) == (wanted, "cpu")
    assert ("in hardware" in placement.reason) is (wanted == "bf16")
    assert choose_placement("cpu", "bf16").precision == "bf16"


def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="no CUDA device"):
        choose_placement("cuda", "auto")
