"""What the comparisons with other libraries share: sides in turn, each sample in a process of its own, one table.

A benchmark script names its sides: a function of the script and a job (a JSON object) for each. ``measure`` runs them
A B C A B C ..., every sample in a fresh process with the same number of threads, and in every round also measures what
the machine's matrix products reach at the model's shapes, so that each figure stands beside what the machine could do
in the same minutes. A child prints one line of JSON, the last of its output; whatever a library prints before it is
ignored. A side that fails stays in the table with its error.

Fresh processes, and not turns within one as in ``compare``: two training libraries in one process share an allocator,
a thread pool and whatever the first one patched, and only the first would have an honest peak of memory. The price is
that a round lasts a minute and not a millisecond, so the spread over the repeats is printed and nothing is called
faster by less than it.

How to read the table: a ratio is the median over rounds of ours over the side's speed in the same round, with the
least and the greatest beside it. ``use of machine`` is model FLOP utilisation: the multiplications and additions that
the model needs (2 per weight and token forward; 4 when frozen weights are trained through) per second, over the
measured rate of products in the precision that the side computed in. Padding counts as nothing: only real tokens do.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import importlib.util
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Job = dict[str, Any]
Record = dict[str, Any]
Children = Mapping[str, Callable[[Job], Record]]

RESULTS = Path(__file__).with_name("results")
PACKAGES = ("qlassify", "torch", "transformers", "peft", "accelerate", "bitsandbytes", "sentence-transformers", "numba")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
CHILD = "--child"
PRODUCT_ROWS = 1024
"""Rows of the matrix products whose rate is measured: about the tokens of a step."""
SAME_WORK = ("rows", "tokens", "steps", "adapted_layers")
"""What the sides of a comparison must agree in, as far as they report it."""


@dataclass(frozen=True, slots=True)
class Side:
    """One contender.

    Attributes:
        name: in the table.
        function: of the script's children, which measures it.
        job: what it is given.
        ours: whether it is this project's.
        other_steps: it takes the same rows in other steps, which is in its name.
    """

    name: str
    function: str
    job: Job
    ours: bool = False
    other_steps: bool = False


@dataclass(slots=True)
class Results:
    """Samples of every side, in the order of the rounds; a failed sample has ``error`` in place of figures."""

    sides: Sequence[Side]
    samples: dict[str, list[Record]] = field(default_factory=dict)
    rates: list[Record] = field(default_factory=list)

    def good(self, side: Side) -> list[Record]:
        return [sample for sample in self.samples[side.name] if "error" not in sample]

    def rate(self, precision: str) -> float | None:
        """Operations per second of matrix products in a precision, the median over rounds."""
        found = [one[precision[:4]] for one in self.rates if precision[:4] in one]
        return statistics.median(found) if found else None


# Options


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that every comparison has."""
    made = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    made.add_argument("--quick", action="store_true", help="few rows and repeats, the smallest model: a first look")
    made.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of every side (all cores)")
    made.add_argument("--repeats", type=int, default=None, help="rounds (3; 1 with --quick)")
    made.add_argument("--results", type=Path, default=RESULTS, help="folder of the .jsonl that samples are appended to")
    made.add_argument("--date", default=datetime.date.today().isoformat(), help="to write beside the samples")
    made.add_argument("--timeout", type=float, default=3600.0, help="seconds after which a sample is given up")
    made.add_argument("--sides", nargs="+", default=None, help="only sides whose name holds one of these words")
    return made


def repeats(arguments: argparse.Namespace) -> int:
    return int(arguments.repeats or (1 if arguments.quick else 3))


def chosen(arguments: argparse.Namespace, sides: Sequence[Side]) -> list[Side]:
    """The sides that ``--sides`` leaves."""
    words = arguments.sides
    return [side for side in sides if words is None or any(word in side.name for word in words)]


# Children


def serve(children: Children) -> bool:
    """Do a child's work if this process is one; False if it is not.

    Args:
        children: the script's functions by name.
    """
    if len(sys.argv) < 4 or sys.argv[1] != CHILD:
        return False
    job: Job = json.loads(Path(sys.argv[3]).read_text(encoding="utf-8"))
    print(json.dumps(run_child({"rates": rates, **children}, sys.argv[2], job)), flush=True)
    return True


def run_child(children: Children, function: str, job: Job) -> Record:
    """A child's record: what its function measured, the process's peak, and what it ran on."""
    import torch

    torch.set_num_threads(job["threads"])
    record = children[function](job)
    return {
        **record,
        "threads": torch.get_num_threads(),
        # The most that was resident up to the end of the timed part, if the function took it there.
        "peak_bytes": record.get("peak_bytes") or peak_bytes(),
        "max_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def peak_bytes() -> int:
    """The most that this process had resident so far (VmHWM; ``ru_maxrss`` where there is no /proc)."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


class Stopwatch:
    """Wall and processor seconds between entering and leaving; ``peak`` is the process's when it is left."""

    def __enter__(self) -> Stopwatch:
        self._cpu, self._wall = time.process_time(), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self.seconds = time.perf_counter() - self._wall
        self.cpu_seconds = time.process_time() - self._cpu
        self.peak = peak_bytes()

    def as_record(self) -> Record:
        return {"seconds": self.seconds, "cpu_seconds": self.cpu_seconds, "peak_bytes": self.peak}


def rates(job: Job) -> Record:
    """Operations per second of x W^T over a model's linear layers, in fp32 and bf16.

    Args:
        job: ``shapes``, a list of (out, in, how many layers), and ``seconds`` that each product is repeated for.
    """
    import torch

    found: Record = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        seconds = operations = 0.0
        for width_out, width_in, count in job["shapes"]:
            x = torch.randn(PRODUCT_ROWS, width_in).to(dtype)
            weight = torch.randn(width_out, width_in).to(dtype)
            seconds += count * _seconds_of(lambda x=x, w=weight: torch.nn.functional.linear(x, w), job["seconds"])
            operations += count * 2.0 * PRODUCT_ROWS * width_in * width_out
        found[name] = operations / seconds
    return found


def _seconds_of(call: Callable[[], object], at_least: float) -> float:
    """The median time of a call, repeated for so many seconds and at least five times."""
    call()
    samples: list[float] = []
    while len(samples) < 5 or sum(samples) < at_least:
        start = time.perf_counter()
        call()
        samples.append(time.perf_counter() - start)
    return statistics.median(samples)


# The parent


def measure(
    script: str,
    sides: Sequence[Side],
    arguments: argparse.Namespace,
    *,
    rounds: int,
    shapes: Sequence[tuple[int, int, int]] = (),
) -> Results:
    """All sides in turn, ``rounds`` times, each sample in a process of its own.

    Args:
        script: path of the benchmark, which is started again as the child.
        sides: who takes part; ours first.
        arguments: ``threads`` and ``timeout``.
        rounds: samples of each side.
        shapes: (out, in, count) of the model's linear layers, to measure the machine's rate at; none if empty.
    """
    results = Results(sides, {side.name: [] for side in sides})
    for number in range(rounds):
        if shapes:
            job: Job = {"shapes": list(shapes), "seconds": 0.02 if arguments.quick else 0.1}
            sample = in_process(script, "rates", job, arguments)
            if "error" not in sample:
                results.rates.append(sample)
        for side in sides:
            sample = in_process(script, side.function, side.job, arguments)
            results.samples[side.name].append(sample)
            said = sample.get("error") or f"{sample['seconds']:.2f} s"
            print(f"# {number + 1}/{rounds} {side.name}: {said}", file=sys.stderr, flush=True)
    return results


def in_process(script: str, function: str, job: Job, arguments: argparse.Namespace) -> Record:
    """What a child function measures in a new process, or ``error`` with the end of what it wrote to stderr."""
    threads = str(arguments.threads)
    environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, threads), "TOKENIZERS_PARALLELISM": "true"}
    # rayon is the thread pool of the tokenizers library; models are local, and a hub must not be asked.
    environment |= {"RAYON_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    with tempfile.TemporaryDirectory(prefix="side_by_side_") as folder:
        path = Path(folder) / "job.json"
        path.write_text(json.dumps({**job, "threads": arguments.threads, "folder": folder}), encoding="utf-8")
        command = [sys.executable, script, CHILD, function, str(path)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, env=environment, timeout=arguments.timeout
            )
        except subprocess.TimeoutExpired:
            return {"error": f"not finished after {arguments.timeout:g} s"}
    lines = done.stdout.splitlines()
    if done.returncode == 0 and lines:
        record: Record = json.loads(lines[-1])
        return record
    said = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
    return {"error": said[-1].strip()[:300], "stderr": "\n".join(said[-20:])}


def quickest(
    script: str, candidates: Sequence[Side], arguments: argparse.Namespace
) -> tuple[Side, list[tuple[str, Record]]]:
    """The candidate with the most rows per second in a short trial, and what every one of them came to at its best.

    Two rounds (one with ``--quick``), and the better counts: a disturbance must not cost a peer its best setting. The
    first candidate is taken if none works, so that its error is printed with the results.
    """
    tried: dict[str, Record] = {}
    for _ in range(1 if arguments.quick else 2):
        for side in candidates:
            sample = in_process(script, side.function, side.job, arguments)
            known = tried.get(side.name)
            if known is None or _speed(sample) > _speed(known):
                tried[side.name] = sample
    best = max(candidates, key=lambda side: _speed(tried[side.name]))
    return best, list(tried.items())


def _speed(sample: Record) -> float:
    """Rows per second; none where a sample failed."""
    return 0.0 if "error" in sample else float(sample["rows"] / sample["seconds"])


# What is said


def disagreements(results: Results) -> list[str]:
    """A sentence for each kind of work in which the sides differ; a ratio means nothing where there is one."""
    said = []
    for key in SAME_WORK:
        found = {
            side.name: sample[key]
            for side in results.sides
            for sample in results.good(side)
            if sample.get(key) is not None and not (key == "steps" and side.other_steps)
        }
        if len(set(found.values())) > 1:
            said.append(f"{key} differ: " + ", ".join(f"{name} {value}" for name, value in found.items()))
    return said


def ratios(results: Results, side: Side) -> list[float]:
    """Speed of our first side over that of ``side``, round by round, where both worked."""
    ours = next((one for one in results.sides if one.ours), None)
    if ours is None or ours is side:
        return []
    pairs = zip(results.samples[ours.name], results.samples[side.name], strict=True)
    return [theirs["seconds"] / mine["seconds"] for mine, theirs in pairs if "error" not in {**mine, **theirs}]


def table(results: Results, *, operations_per_token: float | None = None, score: str = "accuracy") -> str:
    """Markdown: a line per side, then what went wrong.

    Args:
        results: the samples.
        operations_per_token: multiplications and additions that the model needs; None leaves the column empty.
        score: what the children's ``score`` is called.
    """
    titles = ("side", "computes in", "rows/s", "tokens/s", "ours is faster by", "seconds, of processors")
    titles += ("loss first, last", score, "peak memory", "use of machine")
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for side in results.sides:
        good = results.good(side)
        if good:
            cells = _cells(results, side, good, operations_per_token)
        else:
            cells = [side.name, f"failed: {results.samples[side.name][0]['error']}", *[""] * (len(titles) - 2)]
        lines.append(f"| {' | '.join(cells)} |")
    for name in ("fp32", "bf16"):
        rate = results.rate(name)
        if rate is not None:
            lines.append(f"\nmatrix products in {name}: {rate / 1e9:.0f} GFLOP/s at the model's shapes")
    return "\n".join([*lines, *_remarks(results)])


def simple_table(results: Results, columns: Mapping[str, Callable[[Record], float]]) -> str:
    """Markdown: a line per side with medians of what ``columns`` make of its samples, and how much faster ours is.

    Args:
        results: the samples.
        columns: title -> a number of a sample.
    """
    lines = [f"| side | {' | '.join(columns)} | ours is faster by |", "|---|" + "---|" * (len(columns) + 1)]
    for side in results.sides:
        good = results.good(side)
        if not good:
            cells = [f"failed: {results.samples[side.name][0]['error']}", *[""] * len(columns)]
        else:
            cells = [f"{statistics.median(map(function, good)):,.4g}" for function in columns.values()]
            cells.append(_faster(ratios(results, side)))
        lines.append(f"| {side.name} | {' | '.join(cells)} |")
    return "\n".join([*lines, *_remarks(results)])


def _remarks(results: Results) -> list[str]:
    """What must not be overlooked: sides that did other work, and samples that failed."""
    failed = {side.name: len(results.samples[side.name]) - len(results.good(side)) for side in results.sides}
    return [
        *(f"\nDIFFERENT WORK: {said}" for said in disagreements(results)),
        *(f"\n{name}: {count} samples failed" for name, count in failed.items() if count),
    ]


def _faster(found: Sequence[float]) -> str:
    return f"{statistics.median(found):.2f} x ({min(found):.2f} to {max(found):.2f})" if found else ""


def _cells(results: Results, side: Side, good: Sequence[Record], operations_per_token: float | None) -> list[str]:
    middle = {key: statistics.median(one[key] / one["seconds"] for one in good) for key in ("rows", "tokens")}
    first = good[0]
    losses = "" if first.get("loss_first") is None else f"{first['loss_first']:.3f}, {first['loss_last']:.3f}"
    score = "" if first.get("score") is None else f"{100 * first['score']:.1f} %"
    rate = results.rate(first["precision"])
    share = operations_per_token and rate and operations_per_token * middle["tokens"] / rate
    return [
        side.name,
        str(first.get("computes", first["precision"])),
        f"{middle['rows']:.1f}",
        f"{middle['tokens']:.0f}",
        _faster(ratios(results, side)),
        ", ".join(f"{statistics.median(one[key] for one in good):.1f}" for key in ("seconds", "cpu_seconds")),
        losses,
        score,
        f"{max(one['peak_bytes'] for one in good) / 1e6:.0f} MB",
        f"{100 * share:.0f} %" if share else "",
    ]


def machine(arguments: argparse.Namespace) -> Record:
    """What the samples were measured on and with."""
    from compare import processor

    versions = {name: _version(name) for name in PACKAGES}
    cores = len(os.sched_getaffinity(0))
    found = {"processor": processor(), "cores": cores, "threads": arguments.threads, "date": arguments.date}
    return {**found, "python": platform.python_version(), "versions": versions}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def append(name: str, results: Results, arguments: argparse.Namespace, setting: Record) -> Path:
    """Append one line of JSON per sample to ``<results>/<name>.jsonl``, with the setting and the machine."""
    arguments.results.mkdir(parents=True, exist_ok=True)
    path: Path = arguments.results / f"{name}.jsonl"
    common = {"benchmark": name, **setting, **machine(arguments)}
    with path.open("a", encoding="utf-8") as file:
        for number, one in enumerate(results.rates):
            file.write(json.dumps({**common, "side": "matrix products", "round": number, "sample": one}) + "\n")
        for side in results.sides:
            for number, one in enumerate(results.samples[side.name]):
                file.write(json.dumps({**common, "side": side.name, "round": number, "sample": one}) + "\n")
    return path


def in_words(found: Record) -> str:
    """The machine in one line."""
    versions = ", ".join(f"{name} {version or 'not installed'}" for name, version in found["versions"].items())
    return (
        f"{found['date']}; {found['processor']}, {found['threads']} of {found['cores']} cores; "
        f"Python {found['python']}, {versions}"
    )


def installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
