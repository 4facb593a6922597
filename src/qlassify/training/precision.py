"""Where to compute and in which floating-point type: chosen from the hardware, said aloud, never assumed.

Only the frozen backbone changes type. Adapters, head, optimiser states and loss stay in fp32 whatever is chosen here.
bf16 is chosen where the hardware multiplies it faster than fp32 (AMX, AVX512-BF16 on AMD, BF16 on Arm, Ampere and later
on CUDA): twice as fast and more; elsewhere it is emulated and slower. Intel's AVX512-BF16 alone is slower too: on a
Sapphire Rapids whose AMX a virtual machine hides, products in bf16 ran at 0.6 times the rate of fp32. The choice
follows from what the processor says of itself and not from a measurement, so that a machine always makes the same one.
fp16 is not offered: its range overflows in the attention of several families, and bf16 has the same speed.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

import torch

from qlassify.errors import ConfigError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Placement:
    """Device and type of the backbone.

    Attributes:
        device: ``cpu`` or ``cuda``.
        precision: ``bf16`` or ``fp32``.
        reason: why, in words.
    """

    device: str
    precision: str
    reason: str

    @property
    def dtype(self) -> torch.dtype:
        """The backbone's floating-point type."""
        return DTYPES[self.precision]


def choose_placement(device: str = "auto", precision: str = "auto") -> Placement:
    """Resolve ``auto`` for this machine.

    Raises:
        ConfigError: CUDA is asked for and there is none.
    """
    has_cuda = torch.cuda.is_available()
    if device == "cuda" and not has_cuda:
        raise ConfigError(
            "no CUDA device is available",
            where="model.device",
            got="cuda",
            wanted="auto or cpu",
            do="Install a CUDA build of torch and check the driver, or use --set model.device=cpu.",
        )
    where = "cuda" if device != "cpu" and has_cuda else "cpu"
    if precision != "auto":
        return Placement(where, precision, "as configured")
    fast = _cuda_has_bf16() if where == "cuda" else cpu_has_fast_bf16()
    name = "this GPU" if where == "cuda" else "this CPU"
    if fast:
        return Placement(where, "bf16", f"{name} multiplies bf16 in hardware")
    return Placement(where, "fp32", f"{name} multiplies bf16 no faster than fp32")


def cpu_has_fast_bf16() -> bool:
    """Whether the CPU has instructions for bf16 products that are faster than those for fp32."""
    capabilities = torch.cpu.get_capabilities()
    if any(capabilities.get(flag) for flag in ("amx_bf16", "arm_bf16", "bf16")):
        return True
    if capabilities.get("avx512_bf16"):
        return "GenuineIntel" not in (_cpuinfo("vendor_id") or platform.processor())
    if platform.machine() in ("aarch64", "arm64"):
        return " bf16 " in f" {_cpuinfo('Features')} "
    return False


def _cpuinfo(field: str) -> str:
    """A field of Linux's /proc/cpuinfo, of the first processor; an empty string where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")


def _cuda_has_bf16() -> bool:
    return torch.cuda.get_device_capability() >= (8, 0)
