"""LoRA training on the CPU: rows and tokens per second against transformers' ``Trainer`` with PEFT.

    python benchmarks/train_cpu.py --quick
    python benchmarks/train_cpu.py --data trec=TRAIN.tsv:TEST.tsv sst2=stsa.binary.train:stsa.binary.test --steps 60
    python benchmarks/train_cpu.py --data trec=TRAIN.tsv:TEST.tsv --epochs 4 --all-rows

LoRA of rank 16, alpha 32 on all linear layers, on real texts, from MiniLM or BERT-base's shape. The sides:

* ours, as ``qlassify train`` computes a step: packed, in the precision that it chooses for the machine;
* ``Trainer`` + PEFT as the documentation has it: fp32, batches padded as they come, the frozen model's own dropout of
  0.1 on, at the documentation's batch of 8 and at ours;
* ``Trainer`` + PEFT as an expert would have it: rows grouped by length, no dropout in the frozen model, no logging, the
  fused optimiser, and the quickest of fp32, bf16 by autocast and bf16 weights with either attention of transformers.
  Which one that is, a trial of a few steps finds in the same run, and it prints all of them.

Learning rate, schedule, weight decay, clipping and the adapters' dropout are the same everywhere. All sides see the
same rows; those of a batch size take the same number of steps. Where nothing is grouped, even each step's rows are the
same. See ``train_sides`` for what is timed, and for the head, which differs by some kFLOP a text.

A few steps compare speed; whether the result is as good as the peer's is a question for whole epochs (``--all-rows``)
with a test file. With random weights (``bert-base``) it is no question at all, and no score is printed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bases
import corpora
import side_by_side
from side_by_side import Job, Side
from train_sides import CHILDREN

TRAINING_OPERATIONS = 4
"""Operations per frozen weight and token: a product forward and one backward to the input, two operations each."""
TRIAL_STEPS = 4
LONG = {"onestop_english": 256}
"""Limits on the tokens of a text that belong to a data set."""
LEARNING_RATES = {"minilm": 1e-3}
"""What ``config.recommend`` gives; 4e-4 for models of BERT-base's size."""


def main() -> None:
    if side_by_side.serve(CHILDREN):
        return
    arguments = options().parse_args()
    if arguments.quick:
        arguments.models, arguments.steps = arguments.models[:1], min(arguments.steps, 6)
    sources = arguments.data or [corpora.demo()]
    print(side_by_side.in_words(side_by_side.machine(arguments)))
    for source in sources[:1] if arguments.quick else sources:
        data = corpora.load(source)
        for model in arguments.models:
            with tempfile.TemporaryDirectory(prefix="train_cpu_") as folder:
                base = bases.make_base(model, Path(folder) / "base", layers=arguments.layers)
                compare(arguments, data, model, base)


def options(description: str | None = __doc__) -> argparse.ArgumentParser:
    made = side_by_side.parser(description)
    made.add_argument("--data", type=corpora.Source.parse, nargs="+", help="NAME=TRAIN[:TEST]; the demo without")
    made.add_argument("--models", nargs="+", default=["minilm", "bert-base"], help="names of bases.py, or directories")
    made.add_argument("--layers", type=int, help="hidden layers of a model with random weights")
    made.add_argument("--steps", type=int, default=40, help="of --batch rows, in one epoch")
    made.add_argument("--warm", type=int, default=3, help="steps before the timed ones")
    made.add_argument("--batch", type=int, default=32)
    made.add_argument("--default-batches", type=int, nargs="+", default=[8, 32], help="of the peer as documented")
    made.add_argument("--all-rows", action="store_true", help="whole epochs in place of --steps")
    made.add_argument("--epochs", type=int, default=1)
    made.add_argument("--max-length", type=int, default=512, help="tokens of a text (256 for onestop_english)")
    made.add_argument("--dropout", type=float, default=0.1, help="of the adapters, on all sides")
    made.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="of ours")
    made.add_argument("--learning-rate", type=float, help="on all sides; as recommended without")
    made.add_argument("--compile", action="store_true", help="try torch.compile for the tuned peer, too")
    return made


def compare(arguments: argparse.Namespace, data: corpora.Labelled, model: str, base: Path) -> None:
    """All sides on one data set and model: trial, rounds, table, file."""
    job = common_job(arguments, data, model, base)
    shapes = bases.linear_shapes(base)
    rows, rate = len(job["train"]["texts"]), job["learning_rate"]
    setting = {key: job[key] for key in ("batch", "epochs", "max_length", "dropout", "learning_rate", "rank", "alpha")}
    print(f"\n## {data.name}, {model}: {rows} rows x {job['epochs']} epochs, batches of {job['batch']}")
    print(f"\nLoRA r={job['rank']} alpha={job['alpha']:g} dropout={job['dropout']:g} on all sides, rate {rate:g}\n")
    sides = side_by_side.chosen(arguments, make_sides(arguments, job))
    if any(side.job.get("tuned") for side in sides):
        sides = [tuned(__file__, side, arguments) if side.job.get("tuned") else side for side in sides]
    results = side_by_side.measure(__file__, sides, arguments, rounds=side_by_side.repeats(arguments), shapes=shapes)
    operations = TRAINING_OPERATIONS * sum(out * inner * count for out, inner, count in shapes)
    name = "macro F1" if data.multi_label else "accuracy"
    print(side_by_side.table(results, operations_per_token=operations, score=name))
    setting |= {"data": data.name, "model": model, "rows": rows, "layers": arguments.layers}
    setting["operations_per_token"] = operations
    print(f"\nappended to {side_by_side.append('train_cpu', results, arguments, setting)}\n", flush=True)


def common_job(arguments: argparse.Namespace, data: corpora.Labelled, model: str, base: Path, **more: Any) -> Job:
    """What all sides are given: rows, their order, hyper-parameters."""
    from qlassify.config.run import TrainingConfig
    from qlassify.training.order import StepOrder

    batch, seed = arguments.batch, 42
    available = len(data.train) // batch * batch
    count = available if arguments.all_rows else min(available, arguments.steps * batch)
    if count == 0:
        raise SystemExit(f"{data.name} has {len(data.train)} rows: fewer than a batch of {batch}")
    order = StepOrder.of(count, TrainingConfig(batch_size=batch, epochs=arguments.epochs), seed)
    visits = [int(row) for step in range(order.total_steps) for row in order.rows_of_step(step)]
    # The rows before the timed ones are the data's last: others, unless the data are few.
    warm = data.train.take(range(len(data.train) - min(available, arguments.warm * batch), len(data.train)))
    scored = data.test is not None and model not in bases.SHAPES
    return {
        "base": str(base),
        "train": data.train.take(range(count)).as_job(),
        "warm": warm.as_job(),
        "test": data.test.take(range(min(len(data.test), 64 if arguments.quick else len(data.test)))).as_job()
        if scored and data.test is not None
        else None,
        "order": visits,
        "labels": list(data.labels),
        "multi_label": data.multi_label,
        "batch": batch,
        "epochs": arguments.epochs,
        "max_length": min(arguments.max_length, LONG.get(data.name, arguments.max_length), bases.longest_text(base)),
        "learning_rate": arguments.learning_rate or LEARNING_RATES.get(model, 4e-4),
        "weight_decay": 0.01,
        "warmup_fraction": 0.06,
        "dropout": arguments.dropout,
        "rank": 16,
        "alpha": 32,
        "seed": seed,
        "low_bit": False,
        "precision": arguments.precision,
        **more,
    }


def make_sides(arguments: argparse.Namespace, job: Job) -> list[Side]:
    """Ours, the peer as documented for each batch size, and the peer that is to be tuned."""
    peer = {**job, "precision": "fp32", "attention": "sdpa", "compile": False, "prepare": True}
    sides = [Side("qlassify", "ours", job, ours=True)]
    for batch in arguments.default_batches:
        default = {**peer, "batch": batch, "grouped": False, "hidden_dropout": True, "tuned": False}
        name = f"Trainer + PEFT, documented, batch {batch}"
        sides.append(Side(name, "trainer", default, other_steps=batch != job["batch"]))
    expert = {"grouped": True, "hidden_dropout": False, "tuned": True, "prepare": False}
    sides.append(Side(f"Trainer + PEFT, tuned, batch {job['batch']}", "trainer", {**peer, **expert}))
    return sides


def tuned(script: str, side: Side, arguments: argparse.Namespace) -> Side:
    """The tuned peer in the precision and with the attention that a short trial finds quickest; prints the trial."""
    precisions = ("fp32", "bf16") if arguments.quick or side.job["low_bit"] else ("fp32", "bf16", "bf16-weights")
    attentions = ("sdpa",) if arguments.quick else ("sdpa", "eager")
    short = {**side.job, "epochs": 1, "test": None, "train": _first(side.job, TRIAL_STEPS)}
    compiles = (False, True) if arguments.compile else (False,)
    ways = [
        {"precision": one, "attention": other, "compile": third}
        for one in precisions
        for other in attentions
        for third in compiles
    ]
    candidates = [Side(json.dumps(way), side.function, {**short, **way}) for way in ways]
    best, tried = side_by_side.quickest(script, candidates, arguments)
    print(f"trial of {TRIAL_STEPS} steps for the tuned peer:")
    for name, sample in tried:
        said = sample.get("error") or f"{sample['rows'] / sample['seconds']:.1f} rows/s"
        way = json.loads(name)
        words = f"{way['precision']}, {way['attention']}{', compiled' if way['compile'] else ''}"
        print(f"- {words}: {said}{' (taken)' if name == best.name else ''}")
    print(flush=True)
    return Side(side.name, side.function, {**side.job, **json.loads(best.name)})


def _first(job: Job, steps: int) -> dict[str, Sequence[Any]]:
    return {name: values[: steps * job["batch"]] for name, values in job["train"].items()}


if __name__ == "__main__":
    main()
