"""One training step of each method as a multiple of LoRA's: forward, backward, clipping and AdamW on the same rows.

    python benchmarks/method_steps.py trec.train.tsv [--quick] [--threads 1 --clock cpu] [--json]

The base model is the packaged MiniLM. Every method has a copy of it with its recommended settings; the copies take
turns on the same batches of 32 texts within one process, and a ratio is the median of the ratios within rounds. Lower
is cheaper. The design's bound is 1.25 for DoRA.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import compare
import numpy as np
import torch

from qlassify import ClassifyPipeline
from qlassify.config import recommend
from qlassify.config.files import layer
from qlassify.config.run import RunConfig
from qlassify.data.corpus import read_corpus
from qlassify.data.dataset import Dataset, build_dataset
from qlassify.data.packing import PackedBatch, micro_batches

METHODS = ("lora", "dora", "qlora", "qdora", "ia3", "prefix", "adapter", "bitfit", "full")
BOUND = {"dora": 1.25}
ROWS = 32


def trained(name: str, dataset: Dataset, settings: dict[str, Any]) -> ClassifyPipeline:
    """A pipeline with a method attached, its settings those that a user gets."""
    given = layer({"method": {"kind": name}}, settings)
    pipeline = ClassifyPipeline.open("sentence-transformers/all-MiniLM-L6-v2", RunConfig.parse(given))
    chosen = recommend.recommended_settings(pipeline.facts(dataset), pipeline.run.method)
    pipeline.run = RunConfig.parse(layer(chosen, given)).replace(quant=pipeline.backbone.quant)
    pipeline.prepare_for(dataset)
    return pipeline


def stepping(pipeline: ClassifyPipeline, dataset: Dataset, count: int) -> Callable[[], object]:
    """A function that takes the next step."""
    encoded = pipeline.encode_corpus(dataset.train.corpus)
    order = np.random.default_rng(0).permutation(len(encoded))
    batches: list[list[PackedBatch]] = [
        list(micro_batches(encoded, order[ROWS * index : ROWS * (index + 1)], 8192)) for index in range(count)
    ]
    stepper = pipeline.trainable.stepper

    def forever() -> Iterator[list[PackedBatch]]:
        while True:
            yield from batches

    waiting = forever()

    def step() -> None:
        stepper.accumulate(next(waiting), dataset.train.targets)
        stepper.apply()

    return step


def main() -> None:
    parser = compare.parser(__doc__)
    parser.add_argument("data", help="labelled texts")
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    arguments: argparse.Namespace = parser.parse_args()
    compare.prepare(arguments)
    rounds = 12 if arguments.quick else 40
    dataset = build_dataset(read_corpus(arguments.data), None, None, fraction=0.1, seed=0)
    names = ["lora", *(name for name in arguments.methods if name != "lora")]
    pipelines = {name: trained(name, dataset, {}) for name in names}
    contenders = {name: stepping(pipeline, dataset, rounds + 8) for name, pipeline in pipelines.items()}
    # One step per sample: the same batch for all contenders of a round, since each has walked as far as the others.
    seconds = compare.in_turn(contenders, clock=arguments.clock, rounds=rounds, at_least=1e-9)
    found = {name: compare.times_faster(seconds, name, "lora") for name in names}
    if arguments.json:
        ratios = {name: ratio.as_dict() for name, ratio in found.items()}
        compare.print_json({"machine": compare.machine(arguments), "ratio_to_lora": ratios})
        return
    rows = [
        [
            name,
            compare.in_words(compare.spread(seconds[name])),
            compare.ratio_in_words(ratio),
            compare.verdict(ratio.median <= BOUND[name]) if name in BOUND else "",
        ]
        for name, ratio in found.items()
    ]
    compare.print_machine(compare.machine(arguments))
    compare.print_table("a training step of 32 texts", ["method", "step", "times LoRA's", ""], rows)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
