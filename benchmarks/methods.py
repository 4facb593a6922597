"""Every fine-tuning method with its defaults: accuracy, cost and file size, and the evidence for its learning rate.

    python benchmarks/methods.py run RESULTS.jsonl --data trec=train.tsv:test.tsv [--methods lora ia3] [--seeds 1 2 3]
    python benchmarks/methods.py rates RESULTS.jsonl --data trec=train.tsv:test.tsv --methods ia3 --rates 3e-3 1e-2
    python benchmarks/methods.py table RESULTS.jsonl

Each run is the command that a user types, ``qlassify train``, in a process of its own with nothing set but the method
and the seed. Runs go one after another, and what a run came to is appended to RESULTS as one line of JSON when it is
finished; a run whose line is there already is not repeated, so that hours of work can be done in pieces.

A table of accuracies is not a place to choose learning rates in: ``rates`` trains with several of them and shows the
score on the held-out tenth of the training rows, which is what a rate may be chosen by.

Rows per second are per processor second with one thread, which other programs on the machine change little; peak
memory is the whole process's.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

METHODS = ("lora", "qlora", "dora", "qdora", "ia3", "prefix", "adapter", "bitfit", "probe", "full")
ADAPTER = "adapter_model.safetensors"


@dataclass(frozen=True, slots=True)
class Result:
    """One finished run.

    Attributes:
        data: name of the data set.
        method: ``--method``, with what else was set of it.
        seed: ``--seed``.
        rate: the learning rate that was given; None for the recommended one.
        used_rate: the one that it was trained with.
        validation: selection score on the held-out rows.
        accuracy: on the test rows; None without test rows.
        majority: accuracy of always answering the most frequent class.
        trainable: trained values, the head's among them.
        rows_per_cpu_second: training rows seen per second of processor time of the whole command.
        peak_memory_bytes: resident memory of the process at its highest.
        adapter_bytes: size of the adapter's file.
        steps: optimiser steps.
        version: qlassify's.
        precision: of the frozen backbone.
        processor: what the system calls it.
    """

    data: str
    method: str
    seed: int
    rate: float | None
    used_rate: float
    validation: float | None
    accuracy: float | None
    majority: float | None
    trainable: int
    rows_per_cpu_second: float
    peak_memory_bytes: int
    adapter_bytes: int
    steps: int
    version: str
    precision: str
    processor: str

    @property
    def key(self) -> tuple[Any, ...]:
        return self.data, self.method, self.seed, self.rate


@dataclass(frozen=True, slots=True)
class Data:
    """A training file and, perhaps, a test file."""

    name: str
    train: Path
    test: Path | None

    @classmethod
    def parse(cls, text: str) -> Data:
        name, _, files = text.partition("=")
        train, _, test = files.partition(":")
        if not name or not train:
            raise argparse.ArgumentTypeError(f"{text!r} is not NAME=TRAIN:TEST")
        return cls(name, Path(train), Path(test) if test else None)


def read(path: Path) -> list[Result]:
    """The runs that a results file holds."""
    if not path.is_file():
        return []
    return [Result(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines() if line]


def measure(data: Data, method: str, seed: int, rate: float | None, *, test: bool) -> Result:
    """Train once, in a process of its own."""
    name, *settings = method.split()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [Path(sys.executable).with_name("qlassify"), "train", data.train, "--method", name]
        command += ["--seed", str(seed), "--out", out, "--quiet"]
        for setting in settings:
            command += ["--set", setting]
        if rate is not None:
            command += ["--learning-rate", str(rate)]
        if test and data.test is not None:
            command += ["--test", data.test]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode:
            raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return _result(out, data, method, seed, rate, seconds)


def _result(out: Path, data: Data, method: str, seed: int, rate: float | None, cpu_seconds: float) -> Result:
    import yaml

    plan = json.loads((out / "plan.json").read_text(encoding="utf-8"))
    scores = json.loads((out / "evaluation" / "metrics.json").read_text(encoding="utf-8"))
    run = yaml.safe_load((out / "run.yaml").read_text(encoding="utf-8"))
    environment = json.loads((out / "environment.json").read_text(encoding="utf-8"))
    events = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    end = next(event for event in reversed(events) if event["event"] == "end")
    seen = [event["rows"] for event in events if event["event"] == "step"]
    rows = plan["measured"]["steps"] * (max(seen) if seen else 0)
    tested = scores["evaluated_on"] == "test"
    majority = next((one for name, one in scores["baselines"].items() if name.startswith("always ")), {})
    return Result(
        data=data.name,
        method=method,
        seed=seed,
        rate=rate,
        used_rate=run["training"]["learning_rate"],
        validation=end["best_score"],
        accuracy=scores["values"]["accuracy"] if tested else None,
        majority=majority.get("accuracy"),
        trainable=plan["planned"]["trainable_parameters"],
        rows_per_cpu_second=round(rows / cpu_seconds, 1),
        peak_memory_bytes=plan["measured"]["peak_memory_bytes"],
        adapter_bytes=(out / "model" / ADAPTER).stat().st_size,
        steps=plan["measured"]["steps"],
        version=environment["qlassify"],
        precision=environment["precision"],
        processor=environment["processor"],
    )


def carry_out(path: Path, wanted: Iterable[tuple[Data, str, int, float | None]], *, test: bool) -> None:
    """The runs that the file does not hold yet, each appended to it when it is finished."""
    done = {result.key for result in read(path)}
    for data, method, seed, rate in wanted:
        if (data.name, method, seed, rate) in done:
            continue
        result = measure(data, method, seed, rate, test=test)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(result)) + "\n")
        shown = result.accuracy if test else result.validation
        print(f"{data.name} {method} seed {seed} rate {result.used_rate:g}: {shown}", flush=True)


def accuracy_table(results: Sequence[Result]) -> str:
    """Markdown: a line per method, a column per data set, then what it costs."""
    chosen = [result for result in results if result.rate is None and result.accuracy is not None]
    names = sorted({result.data for result in chosen}, key=[result.data for result in chosen].index)
    majority = {name: next((r.majority for r in chosen if r.data == name and r.majority), None) for name in names}
    head = " | ".join(name if one is None else f"{name} ({100 * one:.1f})" for name, one in majority.items())
    lines = [
        f"| method | {head} | trained | rows/s | memory | file |",
        "|---|" + "---|" * (len(names) + 4),
    ]
    for method in sorted({result.method for result in chosen}, key=_order):
        mine = [result for result in chosen if result.method == method]
        cells = [_mean_and_spread([100 * (r.accuracy or 0) for r in mine if r.data == name]) for name in names]
        first = [result for result in mine if result.data == mine[0].data]
        rate = statistics.median(result.rows_per_cpu_second for result in first)
        memory = max(result.peak_memory_bytes for result in mine)
        cost = f"{first[0].trainable:,} | {rate:.0f} | {memory / 1e9:.1f} GB | {first[0].adapter_bytes / 1e6:.2f} MB"
        lines.append(f"| `{method}` | {' | '.join(cells)} | {cost} |")
    return "\n".join(lines)


def rates_table(results: Sequence[Result]) -> str:
    """Markdown: a line per method and rate, with the score on the held-out rows for each seed."""
    chosen = [result for result in results if result.rate is not None]
    lines = ["| data | method | rate | held-out score |", "|---|---|---|---|"]
    for data, method, rate in sorted({(r.data, r.method, r.rate) for r in chosen}, key=lambda key: (key[0], key[1:])):
        scores = [100 * (r.validation or 0) for r in chosen if (r.data, r.method, r.rate) == (data, method, rate)]
        lines.append(f"| {data} | `{method}` | {rate:g} | {_mean_and_spread(scores)} |")
    return "\n".join(lines)


def _order(method: str) -> tuple[int, str]:
    name = method.split()[0]
    return (METHODS.index(name) if name in METHODS else len(METHODS), method)


def _mean_and_spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("run", "rates", "table"))
    parser.add_argument("results", type=Path)
    parser.add_argument("--data", type=Data.parse, nargs="+", default=[])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help="names, or 'NAME section.setting=value'")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rates", type=float, nargs="+", default=[])
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if options.action == "table":
        results = read(options.results)
        print(accuracy_table(results), rates_table(results), sep="\n\n")
        return
    rates = options.rates if options.action == "rates" else [None]
    wanted = [
        (data, method, seed, rate)
        for seed in options.seeds
        for data in options.data
        for method in options.methods
        for rate in rates
    ]
    carry_out(options.results, wanted, test=options.action == "run")


if __name__ == "__main__":
    main()
