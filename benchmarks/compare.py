"""What the benchmarks share: equal threads for both sides, runs in turn, medians with their spread, a table.

Other programs share the machine, the clock goes up and down, and both move a figure more than most changes do. So the
contenders take turns within one process: one sample of each makes a round, each round begins with another contender,
and a ratio is the median of the ratios within rounds, in which whatever lasted longer than a round cancels. It is
therefore not exactly the quotient of the two medians beside it. Spreads are quartiles.

Waiting for a processor that another program has got counts as time. ``--clock cpu`` leaves it out by counting the
process's processor time; that is the same thing on an idle machine with one thread, and is refused with more.

Fresh memory is the other thing that moves. A tensor of a few megabytes or more is either made of pages that the C
library still holds, or of new ones, each of which costs a page fault, and which of the two it is depends on what was
allocated and freed before: times of a contender that asks for such memory at each call can be twofold from one run
to the next. ``--heap kept`` has glibc keep all memory that it was ever given, so that there are no page faults after
warming up. A program does not run like this by itself, but it is the case that favours fresh memory most.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.metadata
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

PEER, OURS = "bitsandbytes", "qlassify"
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True, slots=True)
class Spread:
    """A median and its quartiles."""

    median: float
    low: float
    high: float

    @property
    def share(self) -> float:
        """Distance between the quartiles over the median."""
        return (self.high - self.low) / self.median

    def as_dict(self) -> dict[str, float]:
        return {"median": self.median, "low": self.low, "high": self.high}


def spread(values: Sequence[float]) -> Spread:
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(middle, low, high)


def parser(description: str | None, *, times: bool = True) -> argparse.ArgumentParser:
    """The options that every benchmark has, and those of the ones that compare times."""
    made = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    made.add_argument("--quick", action="store_true", help="fewer sizes and rounds, for a first look")
    made.add_argument("--json", action="store_true", help="print one JSON document in place of tables")
    made.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of both sides (torch's default)")
    if times:
        help_clock = "cpu: of one thread, when other programs keep the machine busy"
        help_heap = "kept: fresh memory without page faults, the best case of the side that asks for it"
        made.add_argument("--clock", choices=tuple(CLOCKS), default="wall", help=help_clock)
        made.add_argument("--heap", choices=("usual", "kept"), default="usual", help=help_heap)
    else:
        made.set_defaults(clock="wall", heap="usual")
    return made


def prepare(arguments: argparse.Namespace) -> None:
    """Give every library of this process the same number of threads; starts the program again if it must.

    bitsandbytes brings compiled OpenMP loops. Where they run on another OpenMP library than torch's, as they do with
    some builds of torch, ``torch.set_num_threads`` does not reach them; the environment of a new process does.
    """
    if arguments.clock == "cpu" and arguments.threads != 1:
        raise SystemExit("--clock cpu adds the threads' times up and says nothing of several: use --threads 1 with it")
    if arguments.heap == "kept":
        keep_heap()
    torch.set_num_threads(arguments.threads)
    wanted = {name: str(arguments.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    if len(_openmp_libraries()) != 1 and any(os.environ.get(name) != value for name, value in wanted.items()):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **wanted})


def keep_heap() -> None:
    """Have glibc take large blocks from its heap, too, and never shrink it."""
    trim_threshold, most_mapped = -1, -4  # M_TRIM_THRESHOLD, M_MMAP_MAX in malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        raise SystemExit("--heap kept is for glibc") from None
    if not (mallopt(most_mapped, 0) and mallopt(trim_threshold, -1)):
        raise SystemExit("the C library does not keep its heap")


def _openmp_libraries() -> set[str]:
    """Paths of the OpenMP libraries in this process; empty where the system does not say."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return set()
    paths = {line.split(maxsplit=5)[-1] for line in lines if "/" in line}
    return {path for path in paths if Path(path).name.startswith(("libgomp", "libomp", "libiomp"))}


def machine(arguments: argparse.Namespace, *packages: str) -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "cpu": processor(),
        "cores": os.cpu_count(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "clock": arguments.clock,
        "heap": arguments.heap,
        "python": platform.python_version(),
    } | {name: importlib.metadata.version(name) for name in ("torch", "bitsandbytes", "numba", *packages)}


def processor() -> str:
    """The processor's name; hypervisors hide it, hence its family and model."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    named = fields.get("model name", platform.machine())
    return f"{named} (family {fields.get('cpu family', '?')}, model {fields.get('model', '?')})"


def in_turn(
    contenders: dict[str, Callable[[], object]],
    *,
    clock: str,
    rounds: int,
    at_least: float = 2e-3,
    before: Callable[[], object] | None = None,
) -> dict[str, list[float]]:
    """Seconds per call of each contender, one number per round.

    Args:
        contenders: name -> what is timed.
        clock: of ``CLOCKS``.
        rounds: samples of each.
        at_least: seconds that a sample should last; short calls are repeated within it.
        before: called before every call, outside the timed part.
    """
    now = CLOCKS[clock]
    warm = {name: min(_sample(now, call, before, 1) for _ in range(3)) for name, call in contenders.items()}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders)
    for _ in range(rounds):
        for name in order:
            seconds[name].append(_sample(now, contenders[name], before, math.ceil(at_least / warm[name])))
        order.append(order.pop(0))
    return seconds


def _sample(
    now: Callable[[], float], call: Callable[[], object], before: Callable[[], object] | None, repeats: int
) -> float:
    if before is None:
        start = now()
        for _ in range(repeats):
            call()
        return (now() - start) / repeats
    total = 0.0
    for _ in range(repeats):
        before()
        start = now()
        call()
        total += now() - start
    return total / repeats


def times_faster(seconds: dict[str, list[float]], than: str, name: str) -> Spread:
    """How many times ``name`` is as fast as ``than``, round by round."""
    return spread([slow / fast for slow, fast in zip(seconds[than], seconds[name], strict=True)])


def verdict(met: bool) -> str:
    return "met" if met else "MISSED"


def in_words(seconds: Spread) -> str:
    """A time with its spread, as ``1.23 ms ±4%``: half the distance between the quartiles over the median."""
    unit, factor = next(
        (pair for pair in (("s", 1.0), ("ms", 1e3), ("us", 1e6)) if seconds.median * pair[1] >= 1), ("us", 1e6)
    )
    return f"{seconds.median * factor:.4g} {unit} ±{seconds.share * 50:.0f}%"


def ratio_in_words(ratio: Spread) -> str:
    return f"{ratio.median:.2f} ({ratio.low:.2f}-{ratio.high:.2f})"


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns under their names, all but the first at the right edge."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    print(f"\n{title}\n")
    for row in (header, ["-" * width for width in widths], *rows):
        cells = [
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


def print_machine(found: dict[str, Any]) -> None:
    print(", ".join(f"{name} {value}" for name, value in found.items()))


def print_json(document: dict[str, Any]) -> None:
    print(json.dumps(document, indent=2))
