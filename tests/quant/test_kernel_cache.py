"""numba's kernels in processes of their own: what importing costs, the cache on disk and what can be wrong with it, a
machine without numba, threads and forks.

The weights are quantised and brought back by a fresh interpreter, which prints a digest of every byte; this process
knows the digest from the reference. Compilations are counted by numba's own events.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from qlassify.quant import double, tensor
from qlassify.quant.kernels import cpu, reference

WAIT = 300
"""Seconds after which a process hangs; none takes a tenth of it."""

RUNNING = {name for name in cpu._KERNELS if cpu.AVX512 or not name.endswith(("_simd", "_double"))}
"""The kernels that this processor runs."""

COMPUTE = """
import hashlib
import torch
from qlassify.config.quant import QuantConfig
from qlassify.quant.tensor import quantize

SETTINGS = [{"kind": "nf4", "double": True}, {"kind": "int4", "zero_point": True}, {"kind": "int8", "double": False}]

def digest(settings=SETTINGS, extra=5):
    weight = torch.randn(64 * 300 + extra, generator=torch.Generator().manual_seed(0))
    found = hashlib.sha256()
    for one, count in [(one, count) for one in settings for count in (64 * 300, len(weight))]:
        quantized = quantize(weight[:count], QuantConfig.parse(one))
        for values in quantized.tensors().values():
            found.update(values.numpy().tobytes())
        for dtype in (torch.float32, torch.bfloat16):
            found.update(quantized.dequantize(dtype).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
"""

REPORT = """
import json, sys, warnings
report = {"warnings": [], "compiled": 0}
caught = warnings.catch_warnings(record=True)
heard = caught.__enter__()
warnings.simplefilter("always")
"""

COUNT = """
import numba.core.event
recorder = numba.core.event.RecordingListener()
numba.core.event.register("numba:compile", recorder)
"""

FINISH = """
report["warnings"] = [str(one.message) for one in heard]
if "recorder" in globals():
    report["compiled"] = sum(event.is_start for _, event in recorder.buffer)
print(json.dumps(report))
"""


def start(script: str, **environment: str) -> subprocess.Popen[str]:
    """A fresh interpreter that runs ``script`` between the bookkeeping around it."""
    keep = ("NUMBA_CACHE_DIR",)
    settings = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_") or name in keep}
    command = [sys.executable, "-c", REPORT + script + FINISH]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=settings | environment)


def report_of(process: subprocess.Popen[str]) -> dict[str, Any]:
    output, errors = process.communicate(timeout=WAIT)
    assert process.returncode == 0, errors
    report: dict[str, Any] = json.loads(output.splitlines()[-1])
    return report


def run(script: str, **environment: str) -> dict[str, Any]:
    return report_of(start(script, **environment))


@cache
def expected() -> str:
    """The digest, from the reference."""
    names: dict[str, Any] = {}
    exec(COMPUTE, names)
    with pytest.MonkeyPatch.context() as patched:
        for module in (tensor, double):
            patched.setattr(module, "kernels_for", lambda device: reference)
        return str(names["digest"]())


SCALES = """
import torch
from qlassify.kernels import compiling
from qlassify.quant.kernels import cpu, reference

def scales_are_right(kernel=None):
    values = torch.linspace(-1, 1, 1000)
    found, wanted = (torch.empty(1000, dtype=torch.uint8) for _ in range(2))
    reference.quantize_scales(values, wanted)
    if kernel is not None:
        cpu._KERNELS["_nearest_scales"] = kernel
    cpu.quantize_scales(values, found)
    return torch.equal(found, wanted)
"""
"""The smallest kernel, for tests that compile it again and again."""


def files_in(folder: Path) -> dict[str, tuple[int, str]]:
    """Name -> (time of the last change, digest of the content) of everything below ``folder``."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_digest_sees_every_byte() -> None:
    """The child's computation, run here by numba, against the reference; and with one number changed, which shows."""
    names: dict[str, Any] = {}
    exec(COMPUTE, names)
    assert names["digest"]() == expected()
    assert names["digest"](extra=4) != expected()


def test_importing_loads_no_numba_and_compiles_nothing(tmp_path: Path) -> None:
    script = """
import qlassify, qlassify.config.quant
from qlassify.quant import codebook, double, kernels, linear, tensor
from qlassify.quant.kernels import reference
report["loaded"] = [name for name in sys.modules if name.partition(".")[0] in ("numba", "llvmlite")]
"""
    count = "from qlassify.quant.kernels import cpu\n"
    report = run(script + COUNT + count, NUMBA_CACHE_DIR=str(tmp_path))
    assert report == {"warnings": [], "compiled": 0, "loaded": []}
    assert files_in(tmp_path) == {}


@pytest.mark.slow
def test_a_second_process_compiles_nothing(tmp_path: Path) -> None:
    """Each kernel is compiled once and for all processes; in a third one the cache is not even written to."""
    script = COUNT + COMPUTE + "report['digest'] = digest()\n"
    first = run(script, NUMBA_CACHE_DIR=str(tmp_path))
    written = files_in(tmp_path)
    # Of each kernel that ran an index and the code.
    assert {Path(name).suffix for name in written} == {".nbi", ".nbc"}
    assert len(written) == 2 * len(RUNNING)
    assert first["compiled"] >= len(RUNNING)
    second = run(script, NUMBA_CACHE_DIR=str(tmp_path))
    assert second["compiled"] == 0
    assert first["digest"] == second["digest"] == expected()
    assert first["warnings"] == second["warnings"] == []
    assert files_in(tmp_path) == written


def test_a_cache_that_cannot_be_made(tmp_path: Path) -> None:
    """Below a regular file no folder can be made, not even by root."""
    (tmp_path / "file").write_text("in the way")
    report = run(SCALES + "report['right'] = scales_are_right()\n", NUMBA_CACHE_DIR=str(tmp_path / "file" / "cache"))
    assert report == {"warnings": [], "compiled": 0, "right": True}
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_full_disk(tmp_path: Path) -> None:
    """Nothing can be written to any file: the folder is there, and the kernel's code does not get into it."""
    script = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
report["right"] = scales_are_right() and scales_are_right()
"""
    report = run(SCALES + script, NUMBA_CACHE_DIR=str(tmp_path), PYTHONDONTWRITEBYTECODE="1")
    assert report == {"warnings": [], "compiled": 0, "right": True}
    assert all(path.stat().st_size == 0 for path in tmp_path.rglob("*") if path.is_file())


DAMAGE = """
import random
from pathlib import Path

whole = {path: path.read_bytes() for path in Path(folder).rglob("*.nb?")}
assert sorted(path.suffix for path in whole) == [".nbc", ".nbi"], whole
rng = random.Random(0)
damages = {
    "empty": lambda old: b"",
    "zeros": lambda old: bytes(len(old)),
    "text": lambda old: b"no cache at all",
    "first half": lambda old: old[: len(old) // 2],
    "another pickle": lambda old: b"N.",
    "an unknown protocol": lambda old: bytes([0x80, 0xFF]) + old[2:],
    "a global that is not there": lambda old: b"cqlassify\\nnothing\\n.",
    "a module that is not there": lambda old: b"cno_such_module\\nnothing\\n.",
    "a string that is not UTF-8": lambda old: bytes([0x80, 4, 0x8C, 2, 0xFF, 0xFE]) + b".",
    "a tuple of nothing": lambda old: b"\\x80\\x04\\x85.",
    "a huge length": lambda old: b"\\x80\\x04\\x8e" + b"\\xff" * 8 + b".",
    "random bytes": lambda old: rng.randbytes(len(old)),
}
function = cpu._KERNELS["_nearest_scales"].__wrapped__
report["wrong"] = []
for suffix in (".nbi", ".nbc"):
    for name, damage in damages.items():
        for path, old in whole.items():
            path.write_bytes(damage(old) if path.suffix == suffix else old)
        try:
            right = scales_are_right(compiling.kernel(function))
        except Exception as error:
            right = repr(error)
        if right is not True:
            report["wrong"].append([suffix, name, right])
"""


def test_a_damaged_cache(tmp_path: Path) -> None:
    """Unpickling damaged bytes can raise nearly anything; the kernel is compiled afresh whatever it was."""
    script = SCALES + f"assert scales_are_right()\nfolder = {str(tmp_path)!r}\n" + DAMAGE
    report = run(script, NUMBA_CACHE_DIR=str(tmp_path))
    assert report == {"warnings": [], "compiled": 0, "wrong": []}


@pytest.mark.slow
def test_two_processes_fill_one_cache(tmp_path: Path) -> None:
    script = SCALES + "report['right'] = scales_are_right()\n"
    processes = [start(script, NUMBA_CACHE_DIR=str(tmp_path)) for _ in range(2)]
    for process in processes:
        assert report_of(process) == {"warnings": [], "compiled": 0, "right": True}
    third = run(COUNT + script, NUMBA_CACHE_DIR=str(tmp_path))
    assert third == {"warnings": [], "compiled": 0, "right": True}


@pytest.mark.parametrize("without", ["missing", "switched off"])
def test_without_numba_there_is_one_warning(without: str) -> None:
    """Importing is silent; the first weight says why it is slow, the second and the third say nothing more."""
    script = """
import qlassify.quant.tensor
report["at import"] = len(heard)
""" + (COMPUTE + "report['digest'] = [digest(), digest()]\n")
    if without == "missing":
        report = run("sys.modules['numba'] = None\n" + script)
    else:
        report = run(script, NUMBA_DISABLE_JIT="1")
    assert report["at import"] == 0
    assert report["digest"] == [expected()] * 2
    assert len(report["warnings"]) == 1
    assert "numba" in report["warnings"][0]
    assert without == "missing" or "NUMBA_DISABLE_JIT" in report["warnings"][0]


@pytest.mark.slow
def test_a_processor_without_vectors(tmp_path: Path) -> None:
    """The code that any processor runs, with the same results; nothing of AVX-512 is used in it."""
    script = COMPUTE + "from qlassify.quant.kernels import cpu\nreport['AVX512'] = cpu.AVX512\n"
    script += "report['digest'] = digest()\n"
    report = run(script, NUMBA_CACHE_DIR=str(tmp_path), NUMBA_CPU_NAME="generic")
    assert report == {"warnings": [], "compiled": 0, "AVX512": False, "digest": expected()}


def test_threads_and_forks_do_not_show() -> None:
    """One thread, several, more of them than before; then in a forked process, which has none of its parent's threads
    and makes its own."""
    script = (
        COMPUTE
        + """
import os, signal
from qlassify.quant.kernels import cpu
cpu.PART = 1000
report["digests"] = []
for count in (1, 2, 5, 3):
    torch.set_num_threads(count)
    report["digests"].append(digest())
child = os.fork()
if not child:
    signal.alarm(200)
    os._exit(0 if digest() == report["digests"][0] else 1)
report["child"] = os.waitpid(child, 0)[1]
"""
    )
    report = run(script)
    assert report["digests"] == [expected()] * 4
    assert report["child"] == 0


def test_the_formats_of_the_digest() -> None:
    """Every kernel is in it, so that the tests above speak of all of them."""
    called: set[str] = set()
    names: dict[str, Any] = {}
    exec(COMPUTE, names)
    with pytest.MonkeyPatch.context() as patched:
        for name, kernel in list(cpu._KERNELS.items()):
            patched.setitem(cpu._KERNELS, name, lambda *a, n=name, k=kernel: called.add(n) or k(*a))
        names["digest"]()
    assert called == RUNNING
