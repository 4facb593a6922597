"""Rows per second from texts to token ids: ours against transformers' tokeniser and ``datasets.map``.

    python benchmarks/tokenise.py --quick
    python benchmarks/tokenise.py --data goemotions=train.tsv onestop_english=onestop_english.tar.gz

All sides run the same compiled tokeniser (the ``tokenizers`` library) with the same number of threads, so what differs
is what is made of its answer: ours a flat array of ids, their offsets, and the number of tokens that each text lost;
``AutoTokenizer`` lists of ids, types and masks; ``datasets.map`` an Arrow table of them. Every side has tokenised some
texts before the timed ones. The numbers of tokens must be the same.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import bases
import corpora
import side_by_side
from side_by_side import Job, Record, Side, Stopwatch

WARM_ROWS = 64


def main() -> None:
    if side_by_side.serve(CHILDREN):
        return
    arguments = options().parse_args()
    if arguments.quick:
        arguments.rows = min(arguments.rows, 2000)
    print(side_by_side.in_words(side_by_side.machine(arguments)))
    sources = arguments.data or [corpora.demo()]
    for source in sources[:1] if arguments.quick else sources:
        data = corpora.load(source)
        with tempfile.TemporaryDirectory(prefix="tokenise_") as folder:
            base = bases.make_base(arguments.model, Path(folder) / "base", layers=1)
            compare(arguments, data, base)


def options() -> argparse.ArgumentParser:
    made = side_by_side.parser(__doc__)
    made.add_argument("--data", type=corpora.Source.parse, nargs="+", help="NAME=TRAIN[:TEST]; the demo without")
    made.add_argument("--model", default=bases.PACKAGED, help="whose tokeniser: a name or a directory")
    made.add_argument("--rows", type=int, default=50_000, help="texts; those of the file again and again if need be")
    made.add_argument("--max-length", type=int, default=256, help="tokens of a text that are kept")
    return made


def compare(arguments: argparse.Namespace, data: corpora.Labelled, base: Path) -> None:
    """All sides on one data set."""
    found = data.train.texts
    texts = (found * (arguments.rows // len(found) + 1))[: arguments.rows]
    job: Job = {"base": str(base), "texts": texts, "max_length": arguments.max_length}
    sides = side_by_side.chosen(arguments, make_sides(job))
    results = side_by_side.measure(__file__, sides, arguments, rounds=side_by_side.repeats(arguments))
    print(f"\n## {data.name}: {len(texts)} texts\n")
    columns: dict[str, Callable[[Record], float]] = {
        "rows/s": lambda one: one["rows"] / one["seconds"],
        "tokens/s": lambda one: one["tokens"] / one["seconds"],
        "processor seconds": lambda one: one["cpu_seconds"],
        "peak, MB": lambda one: one["peak_bytes"] / 1e6,
    }
    print(side_by_side.simple_table(results, columns))
    setting = {"data": data.name, "model": arguments.model, "rows": len(texts), "max_length": arguments.max_length}
    print(f"\nappended to {side_by_side.append('tokenise', results, arguments, setting)}\n", flush=True)


def make_sides(job: Job) -> list[Side]:
    return [
        Side("qlassify TextEncoder", "ours", job, ours=True),
        Side("transformers AutoTokenizer", "auto_tokenizer", job),
        Side("datasets.map, batched", "datasets_map", job),
    ]


# Children


def _timed(tokenise: Callable[[Sequence[str]], Any], job: Job) -> tuple[Record, Any]:
    tokenise(job["texts"][:WARM_ROWS])
    with Stopwatch() as watch:
        found = tokenise(job["texts"])
    return {**watch.as_record(), "rows": len(job["texts"])}, found


def ours(job: Job) -> Record:
    """``TextEncoder.encode``."""
    from qlassify.data.tokenise import TextEncoder

    record, encoded = _timed(TextEncoder.load(job["base"], job["max_length"]).encode, job)
    return {**record, "tokens": encoded.num_tokens}


def auto_tokenizer(job: Job) -> Record:
    """``AutoTokenizer`` on a list of texts, without padding."""
    import transformers

    made = transformers.AutoTokenizer.from_pretrained(job["base"])
    cut = {"truncation": True, "max_length": job["max_length"]}
    record, found = _timed(lambda texts: made(list(texts), **cut), job)
    return {**record, "tokens": sum(map(len, found["input_ids"]))}


def datasets_map(job: Job) -> Record:
    """``datasets.Dataset.map`` with its own batches of 1,000 rows."""
    if not side_by_side.installed("datasets"):
        raise SystemExit("datasets is not installed")
    import datasets
    import transformers

    datasets.disable_caching()
    datasets.disable_progress_bars()
    made = transformers.AutoTokenizer.from_pretrained(job["base"])
    cut = {"truncation": True, "max_length": job["max_length"]}

    def tokenise(texts: Sequence[str]) -> Any:
        table = datasets.Dataset.from_dict({"text": list(texts)})
        return table.map(lambda rows: made(rows["text"], **cut), batched=True)

    record, found = _timed(tokenise, job)
    return {**record, "tokens": sum(map(len, found["input_ids"]))}


CHILDREN = {"ours": ours, "auto_tokenizer": auto_tokenizer, "datasets_map": datasets_map}


if __name__ == "__main__":
    main()
