"""Kernels on torch's own threads: every part is computed once, whoever computes it; without a team, all by one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from qlassify.kernels import team
from qlassify.kernels.compiling import OPTIONS
from qlassify.kernels.team import Kernel, bits, edge, fp32_of, next_part, numbers_of, part_done, take, whole_at
from qlassify.methods import dropout
from qlassify.models import attention

numba = pytest.importorskip("numba")


@numba.njit(**OPTIONS)
def _count(numbers, first, last):  # type: ignore[no-untyped-def]
    """Adds one to each place of a range of int64 numbers."""
    for index in range(first, last):
        take(whole_at(numbers, 0) + 8 * index)


def _count_task(data):  # type: ignore[no-untyped-def]
    part = next_part(data)
    while part >= 0:
        _count(numbers_of(data), edge(data, part), edge(data, part + 1))
        part_done(data)
        part = next_part(data)


COUNT = Kernel(_count, _count_task)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("edges", [[0, 100], [0, 1, 2, 50, 50, 100], [10, 20, 90], list(range(0, 101, 2))])
def test_every_place_is_visited_once(threads: int, edges: list[int]) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        places = np.zeros(100, np.int64)
        for _ in range(20):
            COUNT.run((places.ctypes.data,), edges)
    finally:
        torch.set_num_threads(before)
    wanted = np.zeros(100, np.int64)
    wanted[edges[0] : edges[-1]] = 20
    assert np.array_equal(places, wanted)


@numba.njit(**OPTIONS)
def _fail(numbers, first, last):  # type: ignore[no-untyped-def]
    """Asks for more memory than there is in the last part."""
    if last == whole_at(numbers, 0):
        np.empty(1 << 58, np.float32)[0] = 1


def _fail_task(data):  # type: ignore[no-untyped-def]
    part = next_part(data)
    while part >= 0:
        _fail(numbers_of(data), edge(data, part), edge(data, part + 1))
        part_done(data)
        part = next_part(data)


FAIL = Kernel(_fail, _fail_task)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("edges", [[0, 9], [0, 3, 9], [0, 1, 2, 9]])
def test_a_part_that_fails_is_not_taken_for_done(edges: list[int]) -> None:
    with pytest.raises(MemoryError):
        FAIL.run((9,), edges)
    FAIL.run((10,), edges)


def test_without_a_team_one_thread_does_it_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(team, "_region", lambda: None)
    places = np.zeros(10, np.int64)
    COUNT.run((places.ctypes.data,), [2, 5, 9])
    assert places.tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 1, 0]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the team is looked for in /proc")
def test_the_team_is_torch_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """Among several OpenMP libraries of a process, that of torch's own folder is taken; else only one that is alone."""
    path = team._library()
    assert path is not None
    assert "omp" in path

    def found(*paths: str) -> str | None:
        lines = "".join(f"7f00-7f01 r-xp 00000000 00:00 1   {one}\n" for one in paths)
        monkeypatch.setattr(team.Path, "read_text", lambda *_, **__: lines)
        return team._library()

    home = str(team.Path(torch.__file__).resolve().parent)
    assert found(f"{home}/lib/libgomp-1.so.1", "/x/scikit_learn.libs/libgomp-2.so.1") == f"{home}/lib/libgomp-1.so.1"
    assert found(f"{home}.libs/libgomp-1.so.1", "/usr/lib/libomp.so") == f"{home}.libs/libgomp-1.so.1"
    assert found("/usr/lib/libiomp5.so", "/usr/lib/libc.so.6") == "/usr/lib/libiomp5.so"
    assert found("/usr/lib/libiomp5.so", "/usr/lib/libgomp.so.1") is None
    assert found("/usr/lib/libc.so.6") is None


def test_a_library_without_the_call_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(team, "_library", lambda: "/no/such/libgomp.so")
    assert team._region.__wrapped__() is None


def test_an_fp32_number_travels_in_its_bits() -> None:
    @numba.njit(**OPTIONS)
    def back(whole: int) -> float:
        return fp32_of(whole)  # type: ignore[no-any-return]

    for number in (0.0, 1.0, -2.5, 32**-0.5, 1e-30):
        assert back(bits(number)) == np.float32(number)


SCRIPT = """
import json, sys, threading
import numpy as np, torch
sys.path.insert(0, {folder!r})
torch.set_num_threads(2)
from test_team import COUNT
def work():
    torch.set_num_threads(2)
    for _ in range(200):
        COUNT.run((places.ctypes.data,), [0, 30, 60, 100])
places = np.zeros(100, np.int64)
torch.ones(1 << 20).add_(1)
threads = [threading.Thread(target=work) for _ in range(3)]
[one.start() for one in threads]
[one.join() for one in threads]
print(json.dumps(sorted(set(places.tolist()))))
"""


def test_several_python_threads_may_use_it() -> None:
    """A server predicts from several threads; each has a team of its own."""
    folder = str(team.Path(__file__).parent)
    script = SCRIPT.format(folder=folder)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert json.loads(done.stdout) == [600]


@pytest.mark.parametrize(
    ("loader", "kernels"),
    [(attention._text_kernels, "qlassify.kernels.attention"), (dropout._kernels, "qlassify.kernels.drop")],
)
def test_without_numba_torch_computes_and_it_is_said_once(
    loader: Any, kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(name: str) -> None:
        assert name == kernels
        raise ImportError("NUMBA_DISABLE_JIT is set")

    monkeypatch.setattr("importlib.import_module", refused)
    with pytest.warns(UserWarning, match="plain torch.*NUMBA_DISABLE_JIT is set"):
        assert loader.__wrapped__() is None


def test_disabled_compilation_is_an_import_error() -> None:
    script = "import qlassify.kernels.attention"
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, env=environment)
    assert "ImportError: NUMBA_DISABLE_JIT is set" in done.stderr
