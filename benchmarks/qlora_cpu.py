"""QLoRA training on the CPU: rows and tokens per second and peak memory against PEFT with bitsandbytes.

    python benchmarks/qlora_cpu.py --quick
    python benchmarks/qlora_cpu.py --data trec=TRAIN.tsv --models qwen2-0.5b qwen3-0.6b
    python benchmarks/qlora_cpu.py --data trec=TRAIN.tsv --config FOLDER

Decoders of the published shapes of Qwen2-0.5B and Qwen3-0.6B, or of ``--config`` (a folder with config.json and,
perhaps, a tokeniser), with random weights: NF4 in groups of 64 with double quantisation, LoRA of rank 16 on all
linear layers, batches of 8. Without a tokeniser beside the configuration MiniLM's stands in, which makes texts of
about the same length. The sides:

* ours: ``method=qlora``, packed, in the precision that we choose for the machine; and the same with the weights also
  kept as numbers (``model.dense_copies=always``), which spends the memory that was saved;
* PEFT + bitsandbytes as documented: fp32, ``prepare_model_for_kbit_training``, padded as the rows come; without the
  gradient checkpointing that the documentation's function turns on, which would cost it a forward pass;
* the same as an expert would have it: grouped by length, in the quicker of fp32 and bf16 and of transformers' two
  attentions, by a trial in the same run.

All sides compute on the same kind of weights, but not the same ones: each quantises for itself. With random weights
the losses say only that all of them train; accuracy is not asked. Loading is timed by ``load.py``, not here. See
``train_cpu`` for the rest, which is the same.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import bases
import corpora
import side_by_side
import train_cpu
from side_by_side import Job, Side
from train_sides import CHILDREN

QUICK_LAYERS = 2
LEARNING_RATE = 2e-4
"""What ``config.recommend`` gives for decoders of this size."""


def main() -> None:
    if side_by_side.serve(CHILDREN):
        return
    arguments = options().parse_args()
    if arguments.quick:
        arguments.models, arguments.steps = arguments.models[:1], min(arguments.steps, 3)
        arguments.layers = arguments.layers or QUICK_LAYERS
    sources = arguments.data or [corpora.demo()]
    names = [arguments.config.name] if arguments.config else arguments.models
    print(side_by_side.in_words(side_by_side.machine(arguments)))
    for name in names:
        with tempfile.TemporaryDirectory(prefix="qlora_cpu_") as folder:
            base = bases.make_base(name, Path(folder) / "base", layers=arguments.layers, config=arguments.config)
            for source in sources[:1] if arguments.quick else sources:
                compare(arguments, corpora.load(source), name, base)


def options() -> argparse.ArgumentParser:
    made = train_cpu.options(__doc__)
    made.add_argument("--config", type=Path, help="folder with another model's config.json")
    made.set_defaults(batch=8, default_batches=[8], steps=12, warm=1, models=["qwen2-0.5b", "qwen3-0.6b"])
    return made


def compare(arguments: argparse.Namespace, data: corpora.Labelled, model: str, base: Path) -> None:
    """All sides on one data set and model."""
    rate = arguments.learning_rate or LEARNING_RATE
    job = train_cpu.common_job(arguments, data, model, base, low_bit=True, test=None, learning_rate=rate)
    shapes = bases.linear_shapes(base)
    count, layers = len(job["train"]["texts"]), arguments.layers or "all"
    print(f"\n## {data.name}, {model} ({layers} layers): {count} rows, batches of {job['batch']}\n")
    sides = side_by_side.chosen(arguments, make_sides(arguments, job))
    sides = [train_cpu.tuned(__file__, side, arguments) if side.job.get("tuned") else side for side in sides]
    rounds = side_by_side.repeats(arguments)
    results = side_by_side.measure(__file__, sides, arguments, rounds=rounds, shapes=shapes)
    operations = train_cpu.TRAINING_OPERATIONS * sum(out * inner * number for out, inner, number in shapes)
    print(side_by_side.table(results, operations_per_token=operations))
    setting = {key: job[key] for key in ("batch", "epochs", "max_length", "dropout", "learning_rate", "rank", "alpha")}
    setting |= {"data": data.name, "model": model, "rows": count, "layers": arguments.layers}
    setting["operations_per_token"] = operations
    print(f"\nappended to {side_by_side.append('qlora_cpu', results, arguments, setting)}\n", flush=True)


def make_sides(arguments: argparse.Namespace, job: Job) -> list[Side]:
    ours, *peers = train_cpu.make_sides(arguments, job)
    kept = Side("qlassify, weights also kept as numbers", "ours", {**job, "dense_copies": "always"})
    renamed = [replace(side, name=side.name.replace("Trainer + PEFT", "PEFT + bitsandbytes")) for side in peers]
    return [ours, kept, *renamed]


if __name__ == "__main__":
    main()
