"""The comparisons with other libraries: sides do the same work, and what is printed follows from what was measured.

A benchmark that gives one side less to do flatters the other, and nobody sees it in a table. So each side's child runs
here on a tiny model and says what it did. Nothing is timed.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import bases  # noqa: E402
import corpora  # noqa: E402
import infer_cpu  # noqa: E402
import load  # noqa: E402
import qlora_cpu  # noqa: E402
import side_by_side  # noqa: E402
import tokenise  # noqa: E402
import train_cpu  # noqa: E402
import train_sides  # noqa: E402
from side_by_side import Results, Side  # noqa: E402

from tiny_jobs import LABELS, make_rows, save_tiny_base, write_table  # noqa: E402

# The peers warn of their own accord (deprecations, missing fast paths); what they do is not in question here.
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]
pytest.importorskip("peft")
pytest.importorskip("accelerate")

ROWS = make_rows(48, seed=1)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> corpora.Labelled:
    folder = tmp_path_factory.mktemp("data")
    train = write_table(folder / "train.csv", ("text", "label"), ROWS)
    test = write_table(folder / "test.csv", ("text", "label"), make_rows(12, seed=2))
    return corpora.load(corpora.Source.parse(f"toys={train}:{test}"))


@pytest.fixture(autouse=True)
def _random_state() -> Iterator[None]:
    """Trainer seeds torch's global generator; other tests must not notice."""
    with torch.random.fork_rng(devices=[]):
        yield


def run(module: Any, sides: list[Side], folder: Path) -> Results:
    """One sample of every side, by what its child process would call."""
    results = Results(sides)
    for side in sides:
        job = {**side.job, "threads": torch.get_num_threads(), "folder": str(folder)}
        sample = side_by_side.run_child(module.CHILDREN, side.function, job)
        results.samples[side.name] = [json.loads(json.dumps(sample))]
    return results


def tokens_of(texts: list[str]) -> int:
    """Tokens of the tiny word tokeniser: a word each, one before and one behind."""
    return sum(len(text.split()) + 2 for text in texts)


# Training


def train_options(*more: str) -> argparse.Namespace:
    return train_cpu.options().parse_args(["--batch", "8", "--steps", "5", "--warm", "1", "--dropout", "0", *more])


def test_training_sides_take_the_same_steps_of_the_same_rows(
    base: Path, data: corpora.Labelled, tmp_path: Path
) -> None:
    arguments = train_options("--default-batches", "8", "4")
    job = train_cpu.common_job(arguments, data, "tiny", base)
    sides = train_cpu.make_sides(arguments, job)
    assert [side.other_steps for side in sides] == [False, False, True, False]
    results = run(train_cpu, sides, tmp_path)
    assert side_by_side.disagreements(results) == []
    for side in sides:
        (sample,) = results.samples[side.name]
        assert sample["rows"] == 40
        assert sample["tokens"] == tokens_of(job["train"]["texts"])
        assert sample["steps"] == (10 if side.other_steps else 5)
        assert sample["adapted_layers"] == 2 * 6  # four of attention and two behind it in each of two layers
        assert sample["peak_bytes"] > 0 < sample["seconds"]
        assert 0 <= sample["score"] <= 1
        # The head starts near zero, so the first loss is near that of three equally likely classes.
        assert abs(sample["loss_first"] - math.log(3)) < 0.5
    table = side_by_side.table(results, operations_per_token=1.0)
    assert all(f"| {side.name} |" in table for side in sides)
    assert "DIFFERENT WORK" not in table


def test_what_warming_up_changed_is_undone(base: Path, data: corpora.Labelled, tmp_path: Path) -> None:
    """The first loss does not depend on how many steps came before the timed ones."""
    found: dict[str, set[float]] = {}
    for warm in ("1", "2"):
        arguments = train_options("--warm", warm, "--default-batches", "8", "--learning-rate", "0.01")
        job = train_cpu.common_job(arguments, data, "tiny", base, test=None)
        sides = train_cpu.make_sides(arguments, job)[:2]
        # Dropout of the frozen model draws from a stream that warming up moves on.
        sides = [Side(side.name, side.function, {**side.job, "hidden_dropout": False}) for side in sides]
        for side, samples in run(train_cpu, sides, tmp_path).samples.items():
            found.setdefault(side, set()).add(samples[0]["loss_first"])
    assert [len(values) for values in found.values()] == [1, 1], found


def test_without_grouping_the_peer_reads_our_rows_in_our_order(base: Path, data: corpora.Labelled) -> None:
    from qlassify.config.run import TrainingConfig
    from qlassify.training.order import StepOrder

    job = train_cpu.common_job(train_options("--epochs", "2"), data, "tiny", base)
    order = StepOrder.of(40, TrainingConfig(batch_size=8, epochs=2), job["seed"])
    assert job["order"] == [row for step in range(10) for row in order.rows_of_step(step).tolist()]
    assert sorted(job["order"]) == sorted([*range(40)] * 2)


def test_grouping_keeps_every_row_and_pads_less() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, 60, (640,), generator=generator).tolist()
    order = train_sides.grouped_order(lengths, 32, 2, seed=1)
    assert sorted(order) == sorted([*range(640)] * 2)

    def computed(rows: list[int]) -> int:
        batches = [rows[start : start + 32] for start in range(0, len(rows), 32)]
        return sum(len(batch) * max(lengths[row] for row in batch) for batch in batches)

    real = 2 * sum(lengths)
    # One mega-batch sorts everything, save for the longest text, which is moved to the front.
    assert computed(order) < 1.1 * real < computed([*range(640)] * 2)


def test_low_bit_sides_take_the_same_steps_of_the_same_rows(data: corpora.Labelled, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    config = {"model_type": "qwen2", "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
    config |= {"num_hidden_layers": 2, "num_key_value_heads": 2, "vocab_size": 30_528, "tie_word_embeddings": True}
    (tmp_path / "shape").mkdir()
    (tmp_path / "shape" / "config.json").write_text(json.dumps(config))
    base = bases.make_base("tiny", tmp_path / "base", config=tmp_path / "shape", layers=1)
    # Query 64 x 64, key and value 32 x 64, output 64 x 64, and three of 64 x 128.
    assert bases.linear_parameters(base) == 2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 128
    arguments = qlora_cpu.options().parse_args(["--steps", "2"])
    job = train_cpu.common_job(arguments, data, "tiny", base, low_bit=True, test=None)
    sides = qlora_cpu.make_sides(arguments, job)
    results = run(qlora_cpu, sides, tmp_path)
    assert side_by_side.disagreements(results) == []
    assert {results.samples[side.name][0]["adapted_layers"] for side in sides} == {7}
    assert {results.samples[side.name][0]["steps"] for side in sides} == {2}


# Prediction, loading, tokenising


def test_prediction_sides_give_the_same_labels(base: Path, data: corpora.Labelled, tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    arguments = infer_cpu.options().parse_args(["--rows", "12", "--max-length", "32"])
    job = {**infer_cpu.common_job(arguments, data, base, tmp_path), "threads": torch.get_num_threads()}
    infer_cpu.prepare({**job, "train": data.train.as_job()})
    sides = infer_cpu.make_sides(job)
    results = run(infer_cpu, sides, tmp_path)
    assert side_by_side.disagreements(results) == []
    assert {results.samples[side.name][0]["tokens"] for side in sides} == {tokens_of(job["texts"])}
    assert infer_cpu.compare_labels(results) > 1  # a classifier that always says the same would agree by chance
    shares = [results.samples[side.name][0].get("score") for side in sides]
    assert shares == [1.0, 1.0, 1.0, 1.0, None]


def test_loading_and_tokenising_sides_report_the_same_work(base: Path, data: corpora.Labelled, tmp_path: Path) -> None:
    loaded = run(load, load.make_sides(base, base, "fp32"), tmp_path)
    sizes = {samples[0]["model_bytes"] for samples in loaded.samples.values()}
    # transformers' model has BERT's pooler, which ours leaves out: a matrix of 64 x 64 and a bias in fp32.
    assert max(sizes) - min(sizes) in (0, 4 * (64 * 64 + 64))
    job = {"base": str(base), "texts": data.train.texts, "max_length": 32}
    tokenised = run(tokenise, tokenise.make_sides(job)[:2], tmp_path)
    assert side_by_side.disagreements(tokenised) == []
    assert {samples[0]["tokens"] for samples in tokenised.samples.values()} == {tokens_of(data.train.texts)}


# Data


def test_published_forms_become_labelled_rows(tmp_path: Path) -> None:
    lines = [f"{label.upper()}:fine {text}" for text, label in ROWS]
    (tmp_path / "lines.train").write_text("\n".join(lines) + "\n")
    found = corpora.load(corpora.Source.parse(f"lines={tmp_path / 'lines.train'}"))
    assert found.labels == tuple(sorted(label.upper() for label in LABELS))
    wanted = {text: label.upper() for text, label in ROWS}
    assert {
        text: found.labels[number] for text, number in zip(found.train.texts, found.train.targets, strict=True)
    } == (wanted)
    with pytest.raises(argparse.ArgumentTypeError, match="no such file"):
        corpora.Source.parse("nothing=/nowhere.csv")


# The harness


def sample(seconds: float, **more: Any) -> dict[str, Any]:
    plain = {"rows": 100, "tokens": 1000, "precision": "fp32", "peak_bytes": 5_000_000}
    return {**plain, "seconds": seconds, "cpu_seconds": seconds / 2, **more}


def test_ratios_are_taken_round_by_round() -> None:
    ours, peer = Side("ours", "a", {}, ours=True), Side("peer", "b", {})
    samples = {"ours": [sample(1.0), sample(2.0), sample(1.0)], "peer": [sample(3.0), sample(4.0), {"error": "x"}]}
    results = Results([ours, peer], samples, [{"fp32": 4e4, "bf16": 9e4}, {"fp32": 8e4, "bf16": 9e4}])
    assert side_by_side.ratios(results, peer) == [3.0, 2.0]
    assert side_by_side.ratios(results, ours) == []
    table = side_by_side.table(results, operations_per_token=12.0)
    assert "2.50 x (2.00 to 3.00) | 3.5, 1.8 |" in table
    columns = {line.count("|") for line in table.splitlines() if line.startswith("|")}
    assert len(columns) == 1
    assert "peer: 1 samples failed" in table
    # 1,000 tokens in a second at 12 operations each are a fifth of the median rate of 60,000 a second.
    assert "| 20 % |" in table


def test_a_side_that_always_fails_stays_in_the_table_with_its_error() -> None:
    sides = [Side("ours", "a", {}, ours=True), Side("peer", "b", {})]
    results = Results(sides, {"ours": [sample(1.0)], "peer": [{"error": "ImportError: no peer"}]})
    table = side_by_side.table(results)
    assert "| peer | failed: ImportError: no peer |" in table
    assert len({line.count("|") for line in table.splitlines() if line.startswith("|")}) == 1
    assert "| peer | failed: ImportError: no peer |" in side_by_side.simple_table(results, {"s": lambda one: 1.0})


def test_other_work_is_named() -> None:
    sides = [Side("ours", "a", {}, ours=True), Side("peer", "b", {}), Side("small", "b", {}, other_steps=True)]
    samples = {"ours": [sample(1.0, steps=2)], "peer": [sample(1.0, steps=3)], "small": [sample(1.0, steps=8)]}
    assert side_by_side.disagreements(Results(sides, samples)) == ["steps differ: ours 2, peer 3"]
    samples = {"ours": [sample(1.0)], "peer": [sample(1.0, tokens=1100)], "small": [sample(1.0)]}
    found = side_by_side.table(Results(sides, samples))
    assert "DIFFERENT WORK: tokens differ: ours 1000, peer 1100, small 1000" in found


def test_sides_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def record(script: str, function: str, job: Any, arguments: Any) -> dict[str, Any]:
        seen.append(function)
        return {"fp32": 1.0, "bf16": 1.0} if function == "rates" else sample(1.0)

    monkeypatch.setattr(side_by_side, "in_process", record)
    sides = [Side("one", "a", {}, ours=True), Side("two", "b", {}), Side("three", "c", {})]
    results = side_by_side.measure("x.py", sides, argparse.Namespace(quick=True), rounds=2, shapes=[(8, 8, 1)])
    assert seen == ["rates", "a", "b", "c"] * 2
    assert len(results.rates) == len(results.good(sides[0])) == 2


def test_a_trial_takes_the_best_of_what_works(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"slow": [4.0, 4.0], "disturbed": [9.0, 1.0], "broken": [None, None], "middle": [2.0, 2.0]}

    def record(script: str, function: str, job: Any, arguments: Any) -> dict[str, Any]:
        seconds = answers[function].pop(0)
        return {"error": "no such kernel"} if seconds is None else sample(seconds)

    monkeypatch.setattr(side_by_side, "in_process", record)
    sides = [Side(name, name, {}) for name in answers]
    best, tried = side_by_side.quickest("x.py", sides, argparse.Namespace(quick=False))
    assert best.name == "disturbed"
    assert dict(tried)["broken"] == {"error": "no such kernel"}
    answers |= {"slow": [None], "broken": [None]}
    best, _ = side_by_side.quickest("x.py", [sides[0], sides[2]], argparse.Namespace(quick=True))
    assert best.name == "slow"


def test_samples_are_appended_with_machine_and_date(tmp_path: Path) -> None:
    results = Results([Side("ours", "a", {}, ours=True)], {"ours": [sample(1.0), {"error": "gone"}]})
    arguments = argparse.Namespace(results=tmp_path / "new", date="2026-01-02", threads=1)
    for _ in range(2):
        path = side_by_side.append("named", results, arguments, {"model": "tiny"})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["round"] for line in lines] == [0, 1, 0, 1]
    assert lines[1]["sample"] == {"error": "gone"}
    assert {line["date"] for line in lines} == {"2026-01-02"}
    assert lines[0]["versions"]["torch"] == torch.__version__


def test_rates_count_the_operations_of_a_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(side_by_side, "_seconds_of", lambda call, at_least: 0.5)
    found = side_by_side.rates({"shapes": [(4, 8, 3)], "seconds": 0})
    # Three products of 1,024 x 8 by 8 x 4 in half a second each: two operations per element of x and row of W.
    assert found["fp32"] == found["bf16"] == 2 * 1024 * 8 * 4 / 0.5


def test_a_child_that_dies_or_hangs_is_an_error_and_not_a_crash(tmp_path: Path) -> None:
    script = tmp_path / "child.py"
    script.write_text("import sys, time\nif sys.argv[2] == 'hang': time.sleep(60)\nraise SystemExit('no such luck')\n")
    arguments = argparse.Namespace(threads=1, timeout=1.0)
    assert side_by_side.in_process(str(script), "hang", {}, arguments)["error"].startswith("not finished")
    arguments.timeout = 60.0
    assert side_by_side.in_process(str(script), "die", {}, arguments)["error"] == "no such luck"


@pytest.mark.slow
def test_a_benchmark_runs_from_its_command(base: Path, tmp_path: Path) -> None:
    """Fresh processes, the trial, the table and the file; on the demo's rows."""
    command = [sys.executable, str(BENCHMARKS / "train_cpu.py"), "--quick", "--models", str(base), "--threads", "1"]
    command += ["--steps", "2", "--batch", "4", "--sides", "qlassify", "tuned", "--results", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "failed" not in done.stdout
    assert "DIFFERENT WORK" not in done.stdout
    lines = [json.loads(line) for line in (tmp_path / "train_cpu.jsonl").read_text().splitlines()]
    assert [line["side"].split(",")[0] for line in lines] == ["matrix products", "qlassify", "Trainer + PEFT"]
    assert {line["sample"]["threads"] for line in lines} == {1}
