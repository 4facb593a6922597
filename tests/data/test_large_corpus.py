"""What a row costs in memory from the file to micro-batches, and that repeated texts do not cost their square."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from qlassify.data import counterparts
from qlassify.data.corpus import Corpus, read_corpus
from qlassify.data.leaks import find_leaks
from qlassify.data.near_duplicates import near_duplicates
from qlassify.data.passages import shared_passages
from qlassify.data.repeats import distinct_texts
from tiny_jobs import FILLERS, save_tokenizer

MAX_BYTES_PER_ROW = {"tokens": 400, "audit": 700}
"""Bounds of what a row of 59 characters may add to the peak, up to its micro-batches and in the audit. Seen: 271, of
which 108 are its string, 60 row number, label and places and 40 what splitting sorts with; and 462, of which 192 are
its signature while near duplicates are sought. Half as much again is for the allocator, which takes memory in steps. An
object for each group of equal texts, which splitting once had, took 700 alone, and all of it 1000."""

SCRIPT = """
import sys
from pathlib import Path
import numpy as np
from qlassify import auditing
from qlassify.data import giveaways, passages, shingles
from qlassify.data.corpus import read_corpus
from qlassify.data.dataset import build_dataset
from qlassify.data.packing import micro_batches
from qlassify.data.token_store import TokenStore
from qlassify.data.tokenise import TextEncoder
from qlassify.evaluation import label_noise

words, folder, num_rows, stage = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
# What is bounded by a sample or a chunk is bounded by a small one: its size is not what grows with the rows.
giveaways.MAX_CHARS = label_noise.MAX_CHARS = 100_000
label_noise.MAX_FIT_CHARS = 20_000
passages.MAX_RUNS = 20_000
shingles.CHUNK_CHARS = 100_000

def written(count):
    path = folder / f"{count}.csv"
    generator = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrst"))
    with path.open("w") as file:
        file.write("text,label\\n")
        for row in range(count):
            text = "".join(letters[generator.integers(0, 20, 59)]) if row % 50 else "the same"
            file.write(f"{text},label {row % 3}\\n")
    return path

def status(name):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024

def through(path):
    dataset = build_dataset(read_corpus(path), None, None, fraction=0.1, seed=0)
    encoded = {name: store.encode(encoder, rows.corpus.texts) for name, rows in dataset.parts().items()}
    for batch in micro_batches(encoded["train"], np.arange(500), 2048):
        pass
    if stage == "audit":
        reset_peak()
        auditing.audit(dataset, encoded, special_tokens=2, seed=0)

def reset_peak():
    Path("/proc/self/clear_refs").write_text("5")

encoder = TextEncoder.load(words, 32)
store = TokenStore(folder / "tokens")
few, many = written(2_000), written(num_rows)
through(few)
start = status("VmRSS")
reset_peak()
through(many)
print(status("VmHWM") - start)
"""


def peak_bytes(words: Path, folder: Path, num_rows: int, stage: str) -> int:
    folder.mkdir()
    command = [sys.executable, "-c", SCRIPT, str(words), str(folder), str(num_rows), stage]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
@pytest.mark.parametrize("stage", ["tokens", "audit"])
def test_memory_of_a_row(tmp_path: Path, stage: str) -> None:
    words = tmp_path / "words"
    words.mkdir()
    save_tokenizer(words)
    (words / "config.json").write_text('{"model_type": "bert"}')
    few, many = 20_000, 100_000
    peaks = [peak_bytes(words, tmp_path / str(count), count, stage) for count in (few, many)]
    per_row = (peaks[1] - peaks[0]) / (many - few)
    assert per_row < MAX_BYTES_PER_ROW[stage]


def corpus_of(path: Path, texts: list[str]) -> Corpus:
    rows = [{"text": text, "label": FILLERS[number % 4]} for number, text in enumerate(texts)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return read_corpus(path)


@pytest.mark.parametrize("kept", [0, 10_000])
def test_what_is_kept_of_counterparts_changes_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    thanks = ["Thanks", "thanks", "THANKS", "thanks"]
    article = "the quick brown fox jumps over the lazy dog and runs away into the wood where it lives with ten others"
    near = [f"{article} {n}" for n in range(12)]
    train = corpus_of(tmp_path / "train.jsonl", [*thanks * 5, *near, "alone"])
    test = corpus_of(tmp_path / "test.jsonl", [*thanks, f"{article} 99", f"{article} 98", "new", "ThankS", "thanks"])
    parts = {"train": train, "test": test}
    distinct = distinct_texts(parts)
    pairs = near_duplicates(distinct.texts, seed=0), shared_passages(distinct.texts, seed=0).pairs
    (wanted,) = find_leaks(parts, distinct, *pairs)
    monkeypatch.setattr(counterparts, "KEPT_COUNTERPARTS", kept)
    (found,) = find_leaks(parts, distinct, *pairs)
    assert found == wanted
    assert {kind: count.rows for kind, count in found.counts.items()} == {
        "identical": 5,
        "same": 1,
        "near": 2,
        "passages": 0,
    }


def test_a_text_of_many_rows_is_looked_up_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {
        "train": corpus_of(tmp_path / "train.jsonl", ["thanks"] * 300 + ["other"]),
        "test": corpus_of(tmp_path / "test.jsonl", ["thanks"] * 200),
    }
    distinct = distinct_texts(parts)
    none = near_duplicates([], seed=0)
    looked_at: list[int] = []
    known = counterparts.Counterparts._known

    def counting(self: counterparts.Counterparts, rows: list[int]) -> counterparts.KnownRows:
        looked_at.append(len(rows))
        return known(self, rows)

    monkeypatch.setattr(counterparts.Counterparts, "_known", counting)
    (leak,) = find_leaks(parts, distinct, none, none)
    assert leak.counts["identical"].rows == 200
    assert looked_at == [300]
