"""The written classifier beside the one that it came from: the same texts, padded as other libraries pad.

The texts are the run's validation rows, found through ``run.yaml``. Where there is no run or its data is gone, the
logits are compared on made-up token sequences and no score is reported: it would be a score of nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qlassify.data.dataset import LabelledRows
from qlassify.data.packing import micro_batches
from qlassify.data.tokenise import Encoded
from qlassify.errors import ModelError, QlassifyError
from qlassify.evaluation.decision_scores import evaluate_answers
from qlassify.evaluation.predict import TOKEN_BUDGETS, probabilities
from qlassify.export.result import Check
from qlassify.job import read_dataset, require_same_data
from qlassify.pipeline import ClassifyPipeline
from qlassify.scoring import run_of

Logits = npt.NDArray[np.float32]
TOLERANCE = {"fp32": 1e-3, "bf16": 0.1}
"""Largest change of a logit, relative to the largest logit, that rounding can explain. Reading another token or losing
the head is of order one."""
_MADE_UP_LENGTHS = (1, 2, 5, 9, 14, 23, 31, 40)


@dataclass(frozen=True, slots=True)
class PaddedBatch:
    """Texts of similar length as rectangles, B rows of S tokens, padded on the right.

    Attributes:
        rows: (B,) which rows of the encoded texts they are.
        input_ids: (B, S) int64.
        attention_mask: (B, S) int64, 1 on tokens.
        token_type_ids: (B, S) int64, or None.
    """

    rows: npt.NDArray[np.int64]
    input_ids: npt.NDArray[np.int64]
    attention_mask: npt.NDArray[np.int64]
    token_type_ids: npt.NDArray[np.int64] | None

    def named(self) -> dict[str, npt.NDArray[np.int64]]:
        """What a model takes: name -> array."""
        arrays = {"input_ids": self.input_ids, "attention_mask": self.attention_mask}
        return arrays if self.token_type_ids is None else arrays | {"token_type_ids": self.token_type_ids}


Runner = Callable[[PaddedBatch], Logits]
"""A loaded classifier: a padded batch to its (B, C) logits."""


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """Texts to compare on.

    Attributes:
        encoded: their tokens.
        rows: their labels, or None for made-up sequences.
        metric: the score that chose the run's weights.
        note: why there are no labels, or not all of the rows; None otherwise.
    """

    encoded: Encoded
    rows: LabelledRows | None
    metric: str
    note: str | None

    @property
    def part(self) -> str:
        """What the texts are, in words."""
        return "made-up token sequences" if self.rows is None else "validation rows"


def take_sample(path: Path, pipeline: ClassifyPipeline) -> Sample:
    """The validation rows of the run that ``path`` is or lies in, or token sequences made up for the purpose."""
    folder, run = run_of(path)
    note = "A model folder does not say what it was trained on; no score was measured."
    if folder is not None and run is not None:
        try:
            dataset = read_dataset(run)
            require_same_data(folder, dataset)
            # The loss by which weights may be chosen is the evaluation's log loss.
            metric = "log_loss" if run.training.selection_metric == "loss" else run.training.selection_metric
            encoded, rows, left_out = _that_fit(pipeline, dataset.validation)
            if rows is not None:
                return Sample(encoded, rows, metric, left_out)
            note = "Every validation text is longer than one sequence; no score was measured."
        except QlassifyError as error:
            note = f"The run's data cannot be used ({error.what}); no score was measured."
    return Sample(_made_up(pipeline), None, "", note)


def _that_fit(pipeline: ClassifyPipeline, rows: LabelledRows) -> tuple[Encoded, LabelledRows | None, str | None]:
    """The rows that other libraries read as we do, and a note on the others.

    Other libraries cut the end of a long text. Where the classifier does something else only texts that fit can be
    compared; None in place of the rows where there is none.
    """
    encoded = pipeline.encode_corpus(rows.corpus)
    if pipeline.encoder.long.policy == "truncate":
        return encoded, rows, None
    fit = np.flatnonzero(encoded.whole_lengths <= pipeline.encoder.max_length)
    if len(fit) == len(rows):
        return encoded, rows, None
    if not len(fit):
        return encoded, None, None
    kept = replace(rows, corpus=rows.corpus.select(fit), targets=rows.targets[fit])
    note = f"{len(rows) - len(fit)} validation rows are longer than one sequence and were left out of the comparison."
    return pipeline.encode_corpus(kept.corpus), kept, note


def _made_up(pipeline: ClassifyPipeline) -> Encoded:
    """Sequences of ordinary tokens, eight lengths; a text's real start and end around them."""
    longest = pipeline.encoder.max_length
    special = set(pipeline.encoder.tokenizer.all_special_ids)
    ordinary = [number for number in range(min(pipeline.backbone.vocab_size, 5000)) if number not in special]
    start, end = _frame(pipeline)
    rows = []
    for index, length in enumerate(_MADE_UP_LENGTHS):
        inner = max(1, min(length, longest - len(start) - len(end)))
        rows.append([*start, *(ordinary[(7 * index + 13 * k) % len(ordinary)] for k in range(inner)), *end])
    return Encoded.from_rows(rows)


def _frame(pipeline: ClassifyPipeline) -> tuple[list[int], list[int]]:
    """What the tokeniser puts before and behind a text."""
    ids = pipeline.encoder.encode(["a"]).row(0).tolist()
    special = set(pipeline.encoder.tokenizer.all_special_ids)
    inner = [index for index, number in enumerate(ids) if number not in special]
    return (ids[: inner[0]], ids[inner[-1] + 1 :]) if inner else ([], [])


def padded_batches(encoded: Encoded, pad_token_id: int) -> Iterator[PaddedBatch]:
    """All rows, longest first, as rectangles of a few thousand tokens each (or one row)."""
    for packed in micro_batches(encoded, range(len(encoded)), TOKEN_BUDGETS["cpu"]):
        shape = len(packed.rows), int(packed.lengths.max())
        ids = np.full(shape, pad_token_id, np.int64)
        mask = np.arange(shape[1]) < packed.lengths[:, None]
        ids[mask] = packed.token_ids
        types = None
        if packed.token_type_ids is not None:
            types = np.zeros(shape, np.int64)
            types[mask] = packed.token_type_ids
        yield PaddedBatch(np.asarray(packed.rows, np.int64), ids, mask.astype(np.int64), types)


def run_logits(runner: Runner, encoded: Encoded, pad_token_id: int, num_classes: int) -> Logits:
    """(N, C) logits of a loaded classifier, in the order of the rows."""
    logits = np.empty((len(encoded), num_classes), np.float32)
    for batch in padded_batches(encoded, pad_token_id):
        logits[batch.rows] = runner(batch)
    return logits


def require_same_tokens(tokenizer: Any, pipeline: ClassifyPipeline, sample: Sample) -> None:
    """The exported tokeniser gives the tokens that the classifier was checked on.

    Raises:
        ModelError: it does not.
    """
    if sample.rows is None:
        return
    corpus = sample.rows.corpus
    texts, pairs = list(corpus.texts[:256]), None if corpus.pairs is None else list(corpus.pairs[:256])
    ids = tokenizer(texts, pairs, truncation=True)["input_ids"]
    for index, found in enumerate(ids):
        wanted = sample.encoded.row(index).tolist()
        # A text that comes to no token at all gets a fallback token from us; other libraries give nothing.
        if found and list(found) != wanted:
            raise ModelError(
                "the exported tokeniser gives other tokens",
                where=f"row {corpus.rows[index]}",
                got=list(found)[:12],
                wanted=wanted[:12],
            )


def compare(library: str, pipeline: ClassifyPipeline, sample: Sample, reference: Logits, written: Logits) -> Check:
    """How far the written classifier's logits and scores are from the classifier's own."""
    labels, rule = pipeline.labels, pipeline.decision
    first, second = (probabilities(one, multi_label=labels.multi_label) for one in (reference, written))
    changed = sum(a != b for a, b in zip(rule.answers(first, labels), rule.answers(second, labels), strict=True))
    scores: list[float | None] = [None, None]
    if sample.rows is not None:
        scores = [
            evaluate_answers(rule, sample.rows.targets, one, labels.names, multi_label=labels.multi_label).values[
                sample.metric
            ]
            for one in (first, second)
        ]
    return Check(
        library=library,
        rows=len(reference),
        part=sample.part,
        max_abs_delta=float(np.abs(written - reference).max()),
        max_abs_logit=float(np.abs(reference).max()),
        changed=changed,
        metric=sample.metric or None,
        before=scores[0],
        after=scores[1],
        note=sample.note,
    )


def require_equal(library: str, expected: Logits, written: Logits, precision: str) -> None:
    """What was written gives the logits of what was to be written, up to rounding.

    Raises:
        ModelError: it does not; nothing is left behind then.
    """
    error, size = float(np.abs(written - expected).max()), float(np.abs(expected).max())
    if not error <= TOLERANCE[precision] * max(size, 1e-3):
        raise ModelError(
            "the exported classifier gives other logits and was not kept",
            where=f"loaded with {library}",
            got=f"a difference of {error:.3g} where the largest logit is {size:.3g}",
            wanted=f"at most {TOLERANCE[precision]:g} of it",
        )
