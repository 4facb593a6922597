"""Does the cost of a row stay the same from 20 thousand rows to two million, in time and in memory?

    python benchmarks/scale.py [--rows 20000 200000 2000000] [--folder DIR] [--base MODEL] [--skip audit] [--json]

Rows are generated, the same ones for the same number: words are drawn by Zipf's law from 60,000 invented ones, the
number of words is log-normal (median 11, one text in a hundred has more than 75), a tenth of the words speaks for the
label, one row in fifty repeats an earlier text and one in a hundred repeats it with a word changed. They are written
as CSV, a tenth is held out as a run without --eval would, and every size runs in a process of its own. Its stages are
those of ``qlassify train`` before the weights are loaded, one after another:

    read       file -> corpus
    split      corpus -> labelled parts
    tokenise   parts -> token ids, written to a new token store
    reopen     the same again, from the store
    audit      everything that ``qlassify plan`` says of the data
    iterate    micro-batches of the first steps of an epoch, 32 rows each

For each stage: wall seconds, rows a second, processor time a row over all threads (which other programs on the machine
change little), what the process holds when it is over, the most that it held during the stage (VmHWM, set back before
each), and by how much that peak is above the peak of the size before, divided by the rows that it has more: what a row
costs, without what libraries and bounded samples cost. Memory that is mapped from the store's files counts as held as
long as it is in use; the system takes it back when it needs it.

Some parts of the audit look at a sample of bounded size: they cost the same at 200 thousand rows and at two million,
and so less a row.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

STAGES = ("read", "split", "tokenise", "reopen", "audit", "iterate")
NUM_WORDS = 60_000
NUM_LABELS = 10
CHUNK_ROWS = 20_000
MAX_STEPS = 2_000


def write_rows(path: Path, num_rows: int, seed: int = 0) -> None:
    """Writes the generated rows in chunks, so that the generator's own memory does not grow."""
    generator = np.random.default_rng(seed)
    letters = np.array(list("etaoinshrdlucmfwypvbgk"))
    lengths = generator.integers(2, 11, NUM_WORDS)
    words = np.array(["".join(generator.choice(letters, length)) for length in lengths], dtype=object)
    chances = 1.0 / (np.arange(NUM_WORDS) + 2.7)
    steps = np.cumsum(chances / chances.sum())
    kept: list[str] = []
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "label"))
        for start in range(0, num_rows, CHUNK_ROWS):
            count = min(CHUNK_ROWS, num_rows - start)
            sizes = np.clip(np.exp(generator.normal(2.4, 0.85, count)).astype(int), 1, 400)
            labels = generator.integers(0, NUM_LABELS, count)
            ids = np.searchsorted(steps, generator.random(int(sizes.sum())))
            ids = np.minimum(ids, NUM_WORDS - 1)
            of_row = np.repeat(labels, sizes)
            speaks = generator.random(len(ids)) < 0.1
            ids[speaks] = 200 + NUM_LABELS * generator.integers(0, 30, int(speaks.sum())) + of_row[speaks]
            ends = np.cumsum(sizes)
            kinds = generator.random(count)
            for row in range(count):
                text = " ".join(words[ids[ends[row] - sizes[row] : ends[row]]])
                if kinds[row] < 0.03 and kept:
                    text = kept[int(generator.integers(len(kept)))]
                    if kinds[row] < 0.01:
                        text += " " + words[int(generator.integers(NUM_WORDS))]
                elif kinds[row] > 0.9 and len(kept) < 10_000:
                    kept.append(text)
                writer.writerow((text, f"topic {labels[row]}"))


def status_bytes(name: str) -> int:
    """A line of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {name}")


def reset_peak() -> None:
    """Sets VmHWM back to what is held now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


class Meter:
    """Times stages and watches memory."""

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows
        self.start_bytes = status_bytes("VmRSS")
        self.stages: dict[str, dict[str, float]] = {}

    def run(self, name: str, function: Callable[[], Any], rows: int | None = None) -> Any:
        """What ``function`` gives; ``rows`` that it went through, all of them when None."""
        reset_peak()
        started, processor = time.perf_counter(), time.process_time()
        result = function()
        seconds = time.perf_counter() - started
        peak = status_bytes("VmHWM")
        self.stages[name] = {
            "seconds": seconds,
            "rows_per_second": (rows or self.num_rows) / seconds,
            "processor_seconds_per_row": (time.process_time() - processor) / (rows or self.num_rows),
            "resident_bytes": status_bytes("VmRSS"),
            "peak_bytes": peak,
        }
        return result


def measure(path: Path, base: str, folder: Path, skip: set[str]) -> dict[str, Any]:
    """All stages of one size in this process."""
    from qlassify import auditing
    from qlassify.data.corpus import read_corpus
    from qlassify.data.dataset import build_dataset
    from qlassify.data.packing import micro_batches
    from qlassify.data.token_store import TokenStore
    from qlassify.data.tokenise import TextEncoder
    from qlassify.models.source import resolve
    from qlassify.training.order import StepOrder

    encoder = TextEncoder.load(resolve(base).directory, 256)
    encoder.encode(["a text that warms up"] * 10)
    few = ["a text that is there to be compared with another " * 3, "and another text to be compared with it " * 3]
    auditing.shared_passages(few, seed=0)
    auditing.near_duplicates(few, seed=0)
    num_rows = int(path.stem.removeprefix("rows-"))
    meter = Meter(num_rows)
    corpus = meter.run("read", partial(read_corpus, path))
    dataset = meter.run("split", partial(build_dataset, corpus, None, None, fraction=0.1, seed=42))
    del corpus
    store = TokenStore(folder)

    def tokens() -> dict[str, Any]:
        return {
            name: store.encode(encoder, rows.corpus.texts, rows.corpus.pairs) for name, rows in dataset.parts().items()
        }

    encoded = meter.run("tokenise", tokens)
    del encoded
    encoded = meter.run("reopen", tokens)
    if "audit" not in skip:
        special = encoder.num_special_tokens(pair=False)
        meter.run("audit", lambda: auditing.audit(dataset, encoded, special_tokens=special, seed=42))
    order = StepOrder(len(dataset.train), 32, 1, 42)
    steps = min(MAX_STEPS, order.total_steps)

    def iterate() -> int:
        return sum(
            batch.num_tokens
            for step in range(steps)
            for batch in micro_batches(encoded["train"], order.rows_of_step(step), 2048)
        )

    meter.run("iterate", iterate, rows=min(len(dataset.train), 32 * steps))
    return {"rows": num_rows, "file_bytes": path.stat().st_size, "start_bytes": meter.start_bytes, **meter.stages}


def in_own_process(num_rows: int, asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    path = folder / f"rows-{num_rows}.csv"
    if not path.is_file():
        write_rows(path, num_rows)
    with tempfile.TemporaryDirectory(dir=folder) as store:
        command = [sys.executable, __file__, "--measure", str(path), "--base", asked.base, "--folder", store]
        done = subprocess.run(
            [*command, "--skip", *asked.skip] if asked.skip else command,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ,
        )
    return json.loads(done.stdout.splitlines()[-1])


def table(results: list[dict[str, Any]]) -> str:
    lines = [
        "| stage | rows | seconds | rows/s | processor, us a row | held after, MB | peak, MB | bytes a row more |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for stage in STAGES:
        before: dict[str, Any] | None = None
        for one in results:
            if stage not in one:
                continue
            found, more = one[stage], ""
            if before is not None and one["rows"] != before["rows"]:
                added = found["peak_bytes"] - before[stage]["peak_bytes"]
                more = f"{added / (one['rows'] - before['rows']):.0f}"
            before = one
            lines.append(
                f"| {stage} | {one['rows']:,} | {found['seconds']:.2f} | {found['rows_per_second']:,.0f} | "
                f"{1e6 * found['processor_seconds_per_row']:.1f} | "
                f"{found['resident_bytes'] / 1e6:.0f} | {found['peak_bytes'] / 1e6:.0f} | {more} |"
            )
    return "\n".join(lines)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rows", type=int, nargs="+", default=[20_000, 200_000, 2_000_000])
    arguments.add_argument("--folder", type=Path, help="keeps the generated files for the next time")
    arguments.add_argument("--base", default="sentence-transformers/all-MiniLM-L6-v2")
    arguments.add_argument("--skip", nargs="*", default=[], choices=STAGES)
    arguments.add_argument("--json", action="store_true")
    arguments.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    asked = arguments.parse_args()
    if asked.measure is not None:
        print(json.dumps(measure(asked.measure, asked.base, asked.folder, set(asked.skip))))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        results = []
        for num_rows in asked.rows:
            results.append(in_own_process(num_rows, asked, folder))
            if asked.json:
                print(json.dumps(results[-1]), flush=True)
    if not asked.json:
        for one in results:
            size, start = one["file_bytes"] / 1e6, one["start_bytes"] / 1e6
            print(f"{one['rows']:,} rows: a file of {size:.0f} MB; {start:.0f} MB held before the first stage")
        print(table(results))


if __name__ == "__main__":
    main()
