"""The tables of docs/performance.md, from the samples in benchmarks/results.

    python benchmarks/summary.py

For each setting the latest run counts. A test holds the page to what this prints.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

Record = dict[str, Any]
RESULTS = Path(__file__).parent / "results"
BENCHMARKS = ("train_cpu", "qlora_cpu", "infer_cpu", "load", "tokenise")
RATES = "matrix products"
_SETTING = ("data", "model", "layers", "weights", "format", "precision")


def runs(lines: Iterable[str]) -> list[list[Record]]:
    """The samples of each setting's latest run, in the order in which settings were first run."""
    latest: dict[str, list[Record]] = {}
    for line in lines:
        sample = json.loads(line)
        key = json.dumps([sample.get(name) for name in _SETTING])
        first = sample["round"] == 0 and (not latest.get(key) or sample["side"] == latest[key][0]["side"])
        latest[key] = [*([] if first else latest[key]), sample]
    return list(latest.values())


def heading(samples: Sequence[Record]) -> str:
    """What was run, in a line."""
    one = samples[0]
    rates = [found["sample"] for found in samples if found["side"] == RATES]
    words = [str(one["data"])] if one.get("data") else []
    words.append(str(one["model"]) + (f", {one['layers']} layers" if one.get("layers") else ""))
    words += [str(one[name]) for name in ("weights", "format") if one.get(name)]
    words += [f"{one['rows']:,} rows"] if one.get("rows") else []
    words += [f"{one['threads']} threads", str(one["date"])]
    if rates:
        middle = {name: statistics.median(rate[name] for rate in rates) / 1e9 for name in ("fp32", "bf16")}
        words.append(f"matrix products {middle['fp32']:.0f} GFLOP/s in fp32, {middle['bf16']:.0f} in bf16")
    return "; ".join(words)


def table(samples: Sequence[Record]) -> list[str]:
    """Markdown lines: a side each, ours first."""
    rates = [one["sample"] for one in samples if one["side"] == RATES]
    sides = list(dict.fromkeys(one["side"] for one in samples if one["side"] != RATES))
    by_side = {side: [one["sample"] for one in samples if one["side"] == side] for side in sides}
    lines = [
        "| side | a second | ours is faster by | score | peak memory | use of machine |",
        "|---|---|---|---|---|---|",
    ]
    for side, found in by_side.items():
        good = [sample for sample in found if "error" not in sample]
        if not good:
            lines.append(f"| {side} | failed | | | | |")
            continue
        pairs = [
            (mine, theirs)
            for mine, theirs in zip(by_side[sides[0]], found, strict=True)
            if "error" not in {**mine, **theirs}
        ]
        ratios = [] if side == sides[0] else [theirs["seconds"] / mine["seconds"] for mine, theirs in pairs]
        lines.append(f"| {side} | {_amount(good)} | {_spread(ratios)} | {_score(good)} | {_peak(good)} | "
                     f"{_use(good, rates, samples[0].get('operations_per_token'))} |")  # fmt: skip
    return lines


def _amount(good: Sequence[Record]) -> str:
    if "rows" not in good[0]:
        return f"one in {statistics.median(one['seconds'] for one in good):.2f} s"
    rate = statistics.median(one["rows"] / one["seconds"] for one in good)
    return f"{rate:,.0f} rows" if rate >= 100 else f"{rate:.1f} rows"


def _spread(ratios: Sequence[float]) -> str:
    return f"{statistics.median(ratios):.2f} x ({min(ratios):.2f} to {max(ratios):.2f})" if ratios else ""


def _score(good: Sequence[Record]) -> str:
    return "" if good[0].get("score") is None else f"{100 * good[0]['score']:.1f} %"


def _peak(good: Sequence[Record]) -> str:
    return f"{max(one['peak_bytes'] for one in good) / 1e6:,.0f} MB"


def _use(good: Sequence[Record], rates: Sequence[Record], operations: float | None) -> str:
    if not rates or not operations or "tokens" not in good[0]:
        return ""
    rate = statistics.median(one[good[0]["precision"]] for one in rates)
    return f"{100 * operations * statistics.median(one['tokens'] / one['seconds'] for one in good) / rate:.0f} %"


def page(name: str) -> str:
    """All tables of a benchmark, as the page has them."""
    path = RESULTS / f"{name}.jsonl"
    if not path.is_file():
        return ""
    found = runs(path.read_text(encoding="utf-8").splitlines())
    return "\n\n".join("\n".join([f"*{heading(samples)}*", "", *table(samples)]) for samples in found)


if __name__ == "__main__":
    for benchmark in BENCHMARKS:
        print(f"\n### {benchmark}\n\n{page(benchmark)}")
