"""One training run of a classifier with LoRA, by us and by transformers' ``Trainer`` with PEFT: the children's work.

Each function takes a job and gives a record. In the job are the base model's directory, texts with targets, the order
in which the epochs visit them, and the hyper-parameters; so both sides take the same optimiser steps of the same rows,
unless the job says that the peer may group rows by length, which is another order of the same rows.

What is timed is training alone: from before the first step to after the last, without loading, tokenising, evaluation
and checkpoints on either side. A few steps of other rows come first, and what they changed is undone.

What still differs, all of it on the side of the classification head: BERT's peer applies its pooler (a linear layer
and tanh) to the first token where ours takes the mean of the tokens that MiniLM was trained with, some hundred
thousand operations a text beside a billion. The pooler is frozen and has no adapter, so that both sides adapt the same
layers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from side_by_side import Job, Record, Stopwatch

LAST_STEPS = 10
"""Steps over which the last loss is averaged."""
MEGA_BATCH = 50
"""Batches within which transformers sorts rows by length when there are many."""


def losses(values: Sequence[float]) -> Record:
    last = values[-LAST_STEPS:]
    return {"loss_first": values[0], "loss_last": sum(last) / len(last)}


def score(logits_NC: Any, targets: Any, *, multi_label: bool) -> float:
    """Accuracy; the mean of the labels' F1 at a probability of one half where a text may have several."""
    wanted = np.asarray(targets)
    if not multi_label:
        return float((logits_NC.argmax(axis=1) == wanted).mean())
    said, true = logits_NC > 0, wanted > 0
    both, either = (said & true).sum(axis=0), said.sum(axis=0) + true.sum(axis=0)
    return float(np.mean(2 * both / np.maximum(either, 1)))


# Ours


def ours(job: Job) -> Record:
    """Through the library as ``qlassify train`` takes its steps: a pipeline, its stepper and the training loop."""
    from qlassify.config.run import RunConfig
    from qlassify.data.labels import LabelMap
    from qlassify.evaluation.predict import predict_logits
    from qlassify.pipeline import ClassifyPipeline
    from qlassify.training.events import SkippedStepEvent, StepEvent

    pipeline = ClassifyPipeline.from_pretrained(job["base"], RunConfig.parse(our_settings(job)))
    labels = LabelMap(tuple(job["labels"]), job["multi_label"])
    list(_our_loop(pipeline, labels, job["warm"], job).run())
    loop = _our_loop(pipeline, labels, job["train"], job)
    with Stopwatch() as watch:
        events = list(loop.run())
    if any(isinstance(event, SkippedStepEvent) for event in events):
        raise SystemExit("a step was skipped: its loss or gradient was not finite")
    steps = [event for event in events if isinstance(event, StepEvent)]
    record: Record = {
        **watch.as_record(),
        **losses([event.loss for event in steps]),
        "rows": sum(event.rows for event in steps),
        "tokens": sum(event.tokens for event in steps),
        "computed_tokens": sum(event.tokens for event in steps) if pipeline.backbone.packed else None,
        "steps": len(steps),
        "precision": pipeline.placement.precision,
        "adapted_layers": len(pipeline.trainable.attachment.layers),
        "trained_parameters": pipeline.num_trainable_parameters(),
    }
    if job["test"]:
        encoded = pipeline.encoder.encode(job["test"]["texts"])
        logits = predict_logits(pipeline.trainable.classifier, encoded)
        record["score"] = score(logits, job["test"]["targets"], multi_label=job["multi_label"])
    return record


def our_settings(job: Job) -> dict[str, Any]:
    """The job's hyper-parameters as settings of a run; everything else as the package has it."""
    return {
        "model": {
            "base": job["base"], "max_length": job["max_length"], "precision": job["precision"], "device": "cpu",
            "dense_copies": job.get("dense_copies", "never"),
        },
        "method": {
            "kind": "qlora" if job["low_bit"] else "lora", "rank": job["rank"], "alpha": job["alpha"],
            "dropout": job["dropout"], "target_modules": "all-linear",
        },
        "training": {
            "epochs": job["epochs"], "batch_size": job["batch"], "learning_rate": job["learning_rate"],
            "head_learning_rate": job["learning_rate"], "weight_decay": job["weight_decay"],
            "warmup_fraction": job["warmup_fraction"], "schedule": "linear", "gradient_clip_norm": 1.0,
        },
        "seed": job["seed"],
    }  # fmt: skip


def _our_loop(pipeline: Any, labels: Any, rows: dict[str, Any], job: Job) -> Any:
    """A loop over rows with a method, a head and an optimiser as they are before the first step."""
    from qlassify.dense_copies import settle_dense_copies
    from qlassify.training.loop import TrainingLoop, TrainingSet

    trainable = pipeline.prepare(labels)
    targets = np.asarray(rows["targets"], dtype=np.float32 if labels.multi_label else np.int64)
    encoded = pipeline.encoder.encode(rows["texts"])
    if pipeline.run.model.dense_copies != "never":
        settle_dense_copies(
            pipeline.backbone,
            pipeline.run.model.dense_copies,
            pipeline.plan(encoded, targets),
            free_bytes=pipeline.free_memory_bytes(),
            dtype=pipeline.placement.dtype,
        )
    return TrainingLoop(
        trainable.stepper,
        TrainingSet(encoded, targets, range(len(targets))),
        pipeline.run.training,
        seed=job["seed"],
        dropout_generator=trainable.attachment.dropout_generator,
    )


# The peer


def trainer(job: Job) -> Record:
    """``Trainer`` and PEFT, as the documentation has it or as the job tunes it."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    # The file as it is: beside some architectures AutoTokenizer would build another one from its words.
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(job["base"])
    torch.manual_seed(job["seed"])  # of the head and the adapters
    model = peer_model(job, tokenizer)
    if job["compile"]:
        # In place, so that warming up compiles what is timed: two Trainers told to compile would do it twice.
        model.compile(dynamic=True)
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    start = {name: value.detach().clone() for name, value in trained.items()}
    # What is compiled anew for a new shape is compiled before the timed steps: they are what warms up then.
    warm = job["train"] if job["compile"] else job["warm"]
    _run_trainer(model, tokenizer, warm, {**job, "order": range(len(warm["texts"])), "epochs": 1})
    with torch.no_grad():
        for name, value in trained.items():
            value.copy_(start[name])
            value.grad = None
    watch, seen = _run_trainer(model, tokenizer, job["train"], job)
    record: Record = {
        **watch.as_record(),
        **losses([float(loss) for loss in seen.losses]),
        "rows": seen.rows,
        "tokens": seen.tokens,
        "computed_tokens": seen.computed_tokens,
        "steps": len(seen.losses),
        "precision": job["precision"],
        "computes": f"{job['precision']}, {job['attention']}{', compiled' if job['compile'] else ''}",
        "adapted_layers": sum(name.endswith("lora_A.default.weight") for name in trained),
        "trained_parameters": sum(value.numel() for value in trained.values()),
        "padding": 1 - seen.tokens / seen.computed_tokens,
    }
    if job["test"]:
        logits = peer_logits(model, tokenizer, job)
        record["score"] = score(logits, job["test"]["targets"], multi_label=job["multi_label"])
    return record


def peer_model(job: Job, tokenizer: Any) -> Any:
    """The model with its classification head, and LoRA on the linear layers that every token goes through."""
    import peft
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(job["base"])
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "hidden_dropout", "attention_dropout"):
        if hasattr(config, name) and not job["hidden_dropout"]:
            setattr(config, name, 0.0)
    config.num_labels = len(job["labels"])
    config.problem_type = f"{'multi' if job['multi_label'] else 'single'}_label_classification"
    config.pad_token_id = tokenizer.pad_token_id
    # "bf16" is fp32 weights under autocast, "bf16-weights" has the frozen ones in bf16, too.
    narrow = job["precision"] == "bf16-weights" or (job["low_bit"] and job["precision"] == "bf16")
    dtype = torch.bfloat16 if narrow else torch.float32
    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": job["attention"]}
    if job["low_bit"]:
        options["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            # The head is trained, so it must be numbers.
            llm_int8_skip_modules=["score", "classifier"],
        )
    model = transformers.AutoModelForSequenceClassification.from_pretrained(job["base"], config=config, **options)
    if job["low_bit"] and job["prepare"]:
        # Without gradient checkpointing, which would cost the peer a second forward pass.
        model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    lora = peft.LoraConfig(
        task_type=peft.TaskType.SEQ_CLS,
        r=job["rank"],
        lora_alpha=job["alpha"],
        lora_dropout=job["dropout"],
        target_modules="all-linear",
        exclude_modules=r".*pooler.*",
    )
    adapted = peft.get_peft_model(model, lora)
    for value in adapted.parameters():
        if value.requires_grad:
            value.data = value.data.float()
    return adapted


class _Seen:
    """What went through the model: counted at the price of an addition a step."""

    def __init__(self) -> None:
        self.losses: list[Any] = []
        self.rows = self.tokens = self.computed_tokens = 0


def grouped_order(lengths: Sequence[int], batch: int, epochs: int, seed: int) -> list[int]:
    """The rows' order over all epochs under ``train_sampling_strategy="group_by_length"``, for many rows.

    transformers' sampler sorts within mega-batches of 50 batches, or fewer where the data are few: a few timed steps
    would then pad more than a real run does. So its function is called with the 50 that large data have.
    """
    import torch
    from transformers.trainer_pt_utils import get_length_grouped_indices

    draw = torch.Generator().manual_seed(seed)
    return [
        row
        for _ in range(epochs)
        for row in get_length_grouped_indices(list(lengths), batch, mega_batch_mult=MEGA_BATCH, generator=draw)
    ]


def _run_trainer(model: Any, tokenizer: Any, rows: dict[str, Any], job: Job) -> tuple[Stopwatch, _Seen]:
    """Train once and give the time between the callbacks around the steps.

    The order of all epochs is laid end to end and read as it is, in one epoch of the Trainer's.
    """
    import torch
    import transformers

    seen, watch = _Seen(), Stopwatch()

    class Counting(transformers.Trainer):
        def training_step(self, model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
            loss = super().training_step(model, inputs, *rest, **named)
            seen.losses.append(loss.detach())
            seen.rows += len(inputs["input_ids"])
            seen.computed_tokens += inputs["input_ids"].numel()
            return loss

    class Clock(transformers.TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            watch.__enter__()

        def on_train_end(self, *_: Any, **__: Any) -> None:
            watch.stop()

    encoded = tokenizer(rows["texts"], truncation=True, max_length=job["max_length"])
    kind = float if job["multi_label"] else int
    lengths = [len(ids) for ids in encoded["input_ids"]]
    order = grouped_order(lengths, job["batch"], job["epochs"], job["seed"]) if job["grouped"] else job["order"]
    dataset = [
        {
            **{name: encoded[name][index] for name in encoded},
            "labels": list(map(kind, rows["targets"][index])) if job["multi_label"] else kind(rows["targets"][index]),
        }
        for index in order
    ]
    arguments = transformers.TrainingArguments(
        output_dir=str(Path(job["folder"]) / "trainer"),
        per_device_train_batch_size=job["batch"],
        num_train_epochs=1,
        learning_rate=job["learning_rate"],
        weight_decay=job["weight_decay"],
        warmup_steps=job["warmup_fraction"],
        lr_scheduler_type="linear",
        train_sampling_strategy="sequential",
        bf16=job["precision"] != "fp32",
        optim="adamw_torch_fused",
        logging_strategy="no" if job["tuned"] else "steps",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        seed=job["seed"],
    )
    collator = transformers.DataCollatorWithPadding(tokenizer)
    made = Counting(
        model=model, args=arguments, train_dataset=dataset, data_collator=collator, processing_class=tokenizer,
        callbacks=[Clock()],
    )  # fmt: skip
    made.remove_callback(transformers.PrinterCallback)
    torch.manual_seed(job["seed"])
    made.train()
    seen.tokens = sum(lengths[index] for index in order)
    return watch, seen


def peer_logits(model: Any, tokenizer: Any, job: Job) -> Any:
    """(N, C) logits of the test rows in the precision that was trained in."""
    import torch

    texts = job["test"]["texts"]
    found = np.empty((len(texts), len(job["labels"])), np.float32)
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    autocast = torch.autocast("cpu", torch.bfloat16) if job["precision"] != "fp32" else contextlib.nullcontext()
    model.eval()
    with torch.inference_mode(), autocast:
        for rows in _slices(order, 32):
            batch = [texts[index] for index in rows]
            inputs = tokenizer(batch, padding=True, truncation=True, max_length=job["max_length"], return_tensors="pt")
            found[rows] = model(**inputs).logits.float().numpy()
    return found


def _slices(order: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(order), size):
        yield order[start : start + size]


CHILDREN = {"ours": ours, "trainer": trainer}
