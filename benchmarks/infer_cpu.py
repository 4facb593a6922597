"""Labels for whole test sets on the CPU: rows and tokens per second against transformers and sentence-transformers.

    python benchmarks/infer_cpu.py --quick
    python benchmarks/infer_cpu.py --data trec=TRAIN.tsv:TEST.tsv onestop_english=onestop_english.tar.gz

A classifier is trained for a few steps, saved, and exported with ``qlassify export --format merged``; then each side
labels the same texts, from strings to labels, tokenising included:

* ours from the saved folder, as ``qlassify predict`` does, with the adapters beside the weights; and the same with the
  adapters merged, which is what the exported folder holds;
* ``transformers.pipeline("text-classification")`` on the exported folder, with a batch size of 32;
* a loop of the kind that an expert writes, on the exported folder: tokenised at once, sorted by length, padded,
  ``inference_mode``, in the quickest of fp32 and bf16 with either attention (a trial in the same run finds which);
* ``SentenceTransformer.encode`` of the base model: vectors and no labels, because a mean-pooled head is not a part of
  it. It is given as what people compare with, and is the one side that does other work.

The classifier pools the first token, for which BERT's own head can be made to say what ours says
(``models/sequence_head.py``), so that all sides that give labels have to give the same ones; the last column says for
how many texts they do. In bf16 a label can differ where two classes are nearly as likely.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import bases
import corpora
import side_by_side
from side_by_side import Job, Record, Results, Side, Stopwatch

PREDICTION_OPERATIONS = 2
"""Operations per weight and token of a product forward."""
TRAINING_STEPS = 16
"""Enough that a classifier on real weights gives several labels, which is printed; equal labels prove little else."""
BATCH = 32


def main() -> None:
    if side_by_side.serve(CHILDREN):
        return
    arguments = options().parse_args()
    if arguments.quick:
        arguments.models, arguments.rows = arguments.models[:1], min(arguments.rows or 256, 256)
    sources = arguments.data or [corpora.demo()]
    print(side_by_side.in_words(side_by_side.machine(arguments)))
    for source in sources[:1] if arguments.quick else sources:
        data = corpora.load(source)
        for model in arguments.models:
            with tempfile.TemporaryDirectory(prefix="infer_cpu_") as folder:
                base = bases.make_base(model, Path(folder) / "base", layers=arguments.layers)
                compare(arguments, data, model, base, Path(folder))


def options() -> argparse.ArgumentParser:
    made = side_by_side.parser(__doc__)
    made.add_argument("--data", type=corpora.Source.parse, nargs="+", help="NAME=TRAIN[:TEST]; the demo without")
    made.add_argument("--models", nargs="+", default=["minilm", "bert-base"], help="minilm, bert-base, or a directory")
    made.add_argument("--layers", type=int, help="hidden layers of a model with random weights")
    made.add_argument("--rows", type=int, help="texts to label; all without")
    made.add_argument("--max-length", type=int, default=512, help="tokens of a text that are read")
    made.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="of ours")
    return made


def compare(arguments: argparse.Namespace, data: corpora.Labelled, model: str, base: Path, folder: Path) -> None:
    """All sides on one data set and model."""
    job = common_job(arguments, data, base, folder)
    print(f"\n## {data.name}, {model}: {len(job['texts'])} texts\n")
    made = side_by_side.in_process(__file__, "prepare", {**job, "train": _some(data)}, arguments)
    if "error" in made:
        raise SystemExit(f"the classifier could not be made: {made.get('stderr', made['error'])}")
    sides = side_by_side.chosen(arguments, make_sides(job))
    sides = [_tuned(side, arguments) if side.function == "loop" else side for side in sides]
    shapes = bases.linear_shapes(base)
    rounds = side_by_side.repeats(arguments)
    results = side_by_side.measure(__file__, sides, arguments, rounds=rounds, shapes=shapes)
    distinct = compare_labels(results)
    operations = PREDICTION_OPERATIONS * sum(out * inner * count for out, inner, count in shapes)
    print(side_by_side.table(results, operations_per_token=operations, score="labels as ours"))
    if distinct:
        print(f"\nours gave {distinct} different labels")
    setting = {"data": data.name, "model": model, "rows": len(job["texts"]), "layers": arguments.layers}
    setting["max_length"] = arguments.max_length
    setting["operations_per_token"] = operations
    print(f"\nappended to {side_by_side.append('infer_cpu', results, arguments, setting)}\n", flush=True)


def common_job(arguments: argparse.Namespace, data: corpora.Labelled, base: Path, folder: Path) -> Job:
    """What all sides are given."""
    rows = data.test or data.train
    return {
        "base": str(base),
        "model": str(folder / "model"),
        "merged": str(folder / "merged"),
        "texts": rows.texts[: arguments.rows],
        "warm": data.train.texts[: 2 * BATCH],
        "labels": list(data.labels),
        "multi_label": data.multi_label,
        "max_length": min(arguments.max_length, bases.longest_text(base)),
        "precision": arguments.precision,
    }


def make_sides(job: Job) -> list[Side]:
    tuned = {**job, "precision": "fp32", "attention": "sdpa"}
    return [
        Side("qlassify", "ours", {**job, "merge": False}, ours=True),
        Side("qlassify, adapters merged", "ours", {**job, "merge": True}),
        Side("transformers pipeline, batch 32", "hf_pipeline", job),
        Side("transformers, sorted loop", "loop", tuned),
        Side("sentence-transformers encode (no labels)", "encode", job),
    ]


def _some(data: corpora.Labelled) -> dict[str, Any]:
    return data.train.take(range(min(len(data.train), TRAINING_STEPS * BATCH))).as_job()


def _tuned(side: Side, arguments: argparse.Namespace) -> Side:
    """The sorted loop in the quickest precision and attention; prints the trial."""
    ways = [{"precision": one, "attention": other} for one in ("fp32", "bf16") for other in ("sdpa", "eager")]
    short = {**side.job, "texts": side.job["texts"][:256]}
    candidates = [Side(json.dumps(way), side.function, {**short, **way}) for way in ways]
    best, tried = side_by_side.quickest(__file__, candidates, arguments)
    print("trial for the sorted loop:")
    for name, sample in tried:
        said = sample.get("error") or f"{sample['rows'] / sample['seconds']:.1f} rows/s"
        print(f"- {', '.join(json.loads(name).values())}: {said}{' (taken)' if name == best.name else ''}")
    print(flush=True)
    return Side(side.name, side.function, {**side.job, **json.loads(best.name)})


def compare_labels(results: Results) -> int:
    """Replace each sample's labels by the share of them that our first sample has, too; how many different ones."""
    ours = next((side for side in results.sides if side.ours and results.good(side)), None)
    wanted = None if ours is None else results.good(ours)[0].get("labels")
    for samples in results.samples.values():
        for sample in samples:
            found = sample.pop("labels", None)
            if found is not None and wanted is not None:
                sample["score"] = sum(a == b for a, b in zip(found, wanted, strict=True)) / len(wanted)
    return len(set(wanted or ()))


# Children


def prepare(job: Job) -> Record:
    """Train a classifier for a few steps, save it and export it."""
    import numpy as np

    from qlassify.config.run import RunConfig
    from qlassify.data.labels import LabelMap
    from qlassify.export.exporting import export_classifier
    from qlassify.pipeline import ClassifyPipeline
    from qlassify.training.loop import TrainingLoop, TrainingSet

    settings = {
        "model": {"base": job["base"], "pooling": "cls", "max_length": job["max_length"], "device": "cpu"},
        "training": {"epochs": 1, "batch_size": BATCH, "learning_rate": 1e-3},
    }
    pipeline = ClassifyPipeline.from_pretrained(job["base"], RunConfig.parse(settings))
    trainable = pipeline.prepare(LabelMap(tuple(job["labels"]), job["multi_label"]))
    targets = np.asarray(job["train"]["targets"], dtype=np.float32 if job["multi_label"] else np.int64)
    rows = TrainingSet(pipeline.encoder.encode(job["train"]["texts"]), targets, range(len(targets)))
    generator = trainable.attachment.dropout_generator
    list(TrainingLoop(trainable.stepper, rows, pipeline.run.training, seed=0, dropout_generator=generator).run())
    pipeline.save(job["model"])
    export_classifier(job["model"], job["merged"], "merged")
    return {}


def _timed(predict: Callable[[Sequence[str]], Any], job: Job) -> tuple[Record, Any]:
    """Predict some texts that do not count and then those that do."""
    predict(job["warm"])
    with Stopwatch() as watch:
        found = predict(job["texts"])
    return {**watch.as_record(), "rows": len(job["texts"])}, found


def _numbers(names: Sequence[str], job: Job) -> list[int] | None:
    """Class numbers of one label per text; None where a text may have several, which the sides read off differently."""
    numbers = {name: number for number, name in enumerate(job["labels"])}
    return None if job["multi_label"] else [numbers[name] for name in names]


def _num_tokens(tokenizer: Any, job: Job) -> int:
    ids = tokenizer(job["texts"], truncation=True, max_length=job["max_length"])["input_ids"]
    return sum(map(len, ids))


def ours(job: Job) -> Record:
    """``ClassifyPipeline.predict`` from the saved folder."""
    from qlassify.pipeline import ClassifyPipeline

    pipeline = ClassifyPipeline.load(job["model"], device="cpu", precision=job["precision"], base=job["base"])
    if job["merge"]:
        pipeline.merge_adapters()
    record, found = _timed(pipeline.predict, job)
    tokens = pipeline.encoder.encode(job["texts"]).num_tokens
    numbers = None if job["multi_label"] else _numbers([str(name) for name in found], job)
    return {**record, "tokens": tokens, "precision": pipeline.placement.precision, "labels": numbers}


def hf_pipeline(job: Job) -> Record:
    """``transformers.pipeline`` on the exported folder, in the order of the texts as it has them."""
    import transformers

    transformers.logging.set_verbosity_error()
    made = transformers.pipeline("text-classification", model=job["merged"], device="cpu", batch_size=BATCH)
    cut = {"truncation": True, "max_length": job["max_length"]}
    record, found = _timed(lambda texts: made(list(texts), **cut), job)
    precision = "bf16" if "bfloat16" in str(made.model.dtype) else "fp32"
    numbers = _numbers([one["label"] for one in found], job)
    return {**record, "tokens": _num_tokens(made.tokenizer, job), "precision": precision, "labels": numbers}


def loop(job: Job) -> Record:
    """Batches of texts of similar length, padded, without autograd."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    tokenizer = transformers.AutoTokenizer.from_pretrained(job["merged"])
    dtype = torch.bfloat16 if job["precision"] == "bf16" else torch.float32
    made = transformers.AutoModelForSequenceClassification.from_pretrained(
        job["merged"], dtype=dtype, attn_implementation=job["attention"]
    ).eval()

    def predict(texts: Sequence[str]) -> list[int]:
        encoded = tokenizer(list(texts), truncation=True, max_length=job["max_length"])
        lengths = [len(ids) for ids in encoded["input_ids"]]
        order = sorted(range(len(texts)), key=lengths.__getitem__, reverse=True)
        found = [0] * len(texts)
        with torch.inference_mode():
            for start in range(0, len(order), BATCH):
                rows = order[start : start + BATCH]
                batch = {name: [encoded[name][row] for row in rows] for name in encoded}
                logits = made(**tokenizer.pad(batch, return_tensors="pt")).logits
                for row, number in zip(rows, logits.argmax(dim=1).tolist(), strict=True):
                    found[row] = number
        return found

    record, found = _timed(predict, job)
    # The exported configuration numbers the labels as ours does.
    names = [made.config.id2label[number] for number in found]
    computes = f"{job['precision']}, {job['attention']}"
    record |= {"tokens": _num_tokens(tokenizer, job), "precision": job["precision"], "computes": computes}
    return {**record, "labels": _numbers(names, job)}


def encode(job: Job) -> Record:
    """Vectors of the base model."""
    if not side_by_side.installed("sentence_transformers"):
        raise SystemExit("sentence-transformers is not installed")
    import sentence_transformers
    import transformers

    transformers.logging.set_verbosity_error()
    made = sentence_transformers.SentenceTransformer(job["base"], device="cpu")
    made.max_seq_length = job["max_length"]
    record, _ = _timed(lambda texts: made.encode(list(texts), batch_size=BATCH, show_progress_bar=False), job)
    tokens = _num_tokens(transformers.AutoTokenizer.from_pretrained(job["base"]), job)
    return {**record, "tokens": tokens, "precision": "bf16" if "bfloat16" in str(made.dtype) else "fp32"}


CHILDREN = {"prepare": prepare, "ours": ours, "hf_pipeline": hf_pipeline, "loop": loop, "encode": encode}


if __name__ == "__main__":
    main()
