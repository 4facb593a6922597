"""How long does the audit of 100,000 rows take, and how much memory?

    python benchmarks/audit.py DATA [--rows N] [--json]

DATA is the folder of the published data sets. The rows are SST-2's training phrases (67,349) and after them texts of
GoEmotions' training file, with their first label: 30 labels in all. A tenth is held out by row, as a run without
--eval would. One token a word stands for a tokeniser, since the audit looks at lengths only.

Seconds are of the parts of one audit, in its order; the second figure is processor time. Functions that numba compiles
are compiled before, or read from its cache. Peak memory is the process's, libraries and rows included.

Target: under a minute on two cores.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qlassify import auditing
from qlassify.data.corpus import ReadOptions, read_corpus
from qlassify.data.dataset import Dataset, build_dataset
from qlassify.data.tokenise import Encoded

PARTS = (
    "file_rows",
    "label_balance",
    "distinct_texts",
    "token_lengths",
    "find_duplicates",
    "near_duplicates",
    "shared_passages",
    "similar_groups",
    "find_leaks",
    "find_damage",
    "find_give_aways",
    "find_label_noise",
)


def rows_of(data: Path, num_rows: int) -> Dataset:
    phrases = read_corpus(data / "sst2" / "train.tsv")
    options = ReadOptions(text="1", label="2", label_separator=",", header=False)
    posts = read_corpus(data / "goemotions" / "train.tsv", options)
    rows = [(text, f"phrase {label}") for text, (label,) in zip(phrases.texts, phrases.labels, strict=True)]
    rows += [(text, f"post {labels[0]}") for text, labels in zip(posts.texts, posts.labels, strict=True)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        lines = [json.dumps({"text": text, "label": label}) for text, label in rows[:num_rows]]
        path.write_text("\n".join(lines), encoding="utf-8")
        return build_dataset(read_corpus(path), None, None, fraction=0.1, seed=42)


def timed(seconds: dict[str, list[float]], name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        wall, processor = time.perf_counter(), time.process_time()
        try:
            return function(*arguments, **options)
        finally:
            spent = seconds.setdefault(name, [0.0, 0.0])
            spent[0] += time.perf_counter() - wall
            spent[1] += time.process_time() - processor

    return call


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("data", type=Path)
    arguments.add_argument("--rows", type=int, default=100_000)
    arguments.add_argument("--json", action="store_true")
    asked = arguments.parse_args()
    dataset = rows_of(asked.data, asked.rows)
    encoded = {
        name: Encoded.from_rows([[1] * (len(text.split()) + 2) for text in rows.corpus.texts])
        for name, rows in dataset.parts().items()
    }
    few = ["a text that is there to be compared with another " * 3, "and another text to be compared with it " * 3]
    auditing.shared_passages(few, seed=0)
    auditing.near_duplicates(few, seed=0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds: dict[str, list[float]] = {}
    for name in PARTS:
        setattr(auditing, name, timed(seconds, name, getattr(auditing, name)))
    wall = timed(seconds, "all", auditing.audit)
    found = wall(dataset, encoded, special_tokens=2, seed=42)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if asked.json:
        print(json.dumps({"rows": asked.rows, "seconds": seconds, "peak_kib": peak, "before_kib": before}))
        return
    print(f"{asked.rows} rows, {sum(len(rows) for rows in dataset.parts().values())} kept")
    for name, (one, other) in seconds.items():
        print(f"{name:18} {one:7.2f} s  {other:7.2f} s of the processor")
    print(f"peak memory {peak / 2**20:.2f} GiB, {before / 2**20:.2f} GiB before the audit")
    print(f"{len(found.findings())} findings; {found.near.num_compared} pairs compared for near duplicates")


if __name__ == "__main__":
    main()
