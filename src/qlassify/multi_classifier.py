"""``MultiClassifier``: several saved classifiers on one base model in memory, mixed within a batch if need be.

    several = MultiClassifier.load({"intent": "runs/intent", "topic": "runs/topic"})
    several.predict_proba(texts, adapter="intent")          one of them, like ClassifyPipeline.load("runs/intent")
    several.predict(["a", "b"], adapter=["intent", "topic"])  each text its own, computed together

Ten classifiers of one base model, each loaded by itself, hold the base ten times. Here it is held once, and a
classifier adds its factors, its head and what it knows of its texts: labels, pooling, maximal length, decisions. All
must have been trained on the same weights in the same format; what a classifier computes is then the same as alone.

In a mixed batch the texts of an adapter stand together, so that its low-rank paths run over a range of tokens
(``methods.several``). An architecture that runs on padded rectangles does other work than its tokens' in a linear
layer, so there a call with several adapters computes one after the other.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Self, overload

import numpy as np
import numpy.typing as npt
from torch import Tensor

from qlassify.artifact import (
    ClassifierRecord,
    LoadedBase,
    load_base,
    load_head,
    model_folder,
    placement_for,
    read_record,
    read_undamaged,
)
from qlassify.config.quant import QuantConfig
from qlassify.data.labels import LabelMap
from qlassify.data.long_texts import LongTexts
from qlassify.data.merge import merge_rows
from qlassify.data.packing import PackedBatch
from qlassify.data.tokenise import Encoded, TextEncoder
from qlassify.errors import ConfigError, DataError, DivergenceError, ModelError
from qlassify.evaluation.decision import Answer
from qlassify.evaluation.mixed import mixed_batches
from qlassify.evaluation.predict import predict_all, probabilities
from qlassify.methods.several import AdapterSet, Segment
from qlassify.models.classifier import hidden_states
from qlassify.models.head import ClassificationHead
from qlassify.models.pooling import average_windows, pool
from qlassify.models.soundness import origin

FloatArray = npt.NDArray[np.float64]
Names = list[str] | tuple[str, ...]
"""A name per text. Not any sequence of strings, because one name is a sequence of strings, too."""


@dataclass(frozen=True, slots=True)
class Member:
    """What a classifier has of its own beside its adapter.

    Attributes:
        record: labels, pooling, maximal length, decisions and base model, as they were saved.
        labels: the classes.
        head: the classification head.
        encoder: the tokeniser with the maximal length and policy; members with the same ones share it.
        encoder_key: what makes two of them the same.
    """

    record: ClassifierRecord
    labels: LabelMap
    head: ClassificationHead
    encoder: TextEncoder
    encoder_key: tuple[str, int, LongTexts]


class MultiClassifier:
    """Saved classifiers that share one base model. Make one with ``load``.

    Calls from several threads are computed one after the other.

    Args:
        base: the base model, bare.
        first: what a classifier on it says of it.
        precision: ``auto``, or the type that was asked for.

    Attributes:
        backbone: the base model; the adapters stand in it.
        placement: where and in which type it computes.
        source: where it was found.
    """

    def __init__(self, base: LoadedBase, first: ClassifierRecord, *, precision: str = "auto") -> None:
        self.backbone = base.backbone
        self.placement = base.placement
        self.source = base.source
        self._first = first
        self._precision = precision
        self._adapters = AdapterSet(base.backbone.model)
        self._members: dict[str, Member] = {}
        self._lock = threading.Lock()
        self.backbone.eval()

    @classmethod
    def load(
        cls,
        directories: Mapping[str, str | os.PathLike[str]],
        *,
        device: str = "auto",
        precision: str = "auto",
        base: str | None = None,
    ) -> Self:
        """Load classifiers that ``ClassifyPipeline.save`` or runs wrote.

        Args:
            directories: name -> model folder or run folder.
            device: ``auto``, ``cpu`` or ``cuda``.
            precision: ``auto`` takes the one they were trained in, which must then be the same for all.
            base: where the base model is, if it is not where it was.

        Raises:
            ConfigError: no classifier, or a method that cannot share a model.
            ModelError: something is missing or damaged, or the classifiers have different base models.
        """
        if not directories:
            raise ConfigError("no classifier is named", wanted="at least one name and its folder")
        folder = model_folder(Path(next(iter(directories.values()))))
        record = read_record(folder)
        loaded = load_base(record, where=folder, device=device, precision=precision, base_model=base)
        several = cls(loaded, record, precision=precision)
        for name, directory in directories.items():
            several.add(name, directory)
        return several

    @property
    def names(self) -> tuple[str, ...]:
        """The classifiers' names, in the order in which they were added."""
        return tuple(self._members)

    def member(self, name: str) -> Member:
        """What a classifier has of its own.

        Raises:
            ConfigError: no classifier of this name.
        """
        self._adapters.require(name)
        return self._members[name]

    def labels(self, name: str) -> LabelMap:
        """A classifier's classes, in the order of its probabilities."""
        return self.member(name).labels

    def add(self, name: str, directory: str | os.PathLike[str]) -> None:
        """Add a saved classifier; on an error nothing has changed.

        Raises:
            ConfigError: the name is taken, or the method cannot share a model.
            ModelError: another base model, format or precision; or something is missing or damaged.
        """
        folder = model_folder(Path(directory))
        with self._lock, ExitStack() as undo:
            with read_undamaged(folder) as record:
                self._require_same_base(record, folder)
                key = (_tokeniser_digest(folder), record.max_length, record.long)
                known = (member.encoder for member in self._members.values() if member.encoder_key == key)
                encoder = next(known, None) or TextEncoder.load(folder, record.max_length, record.long)
                head = load_head(record, folder, self.backbone).eval().requires_grad_(False)
                self._adapters.add(name, folder)
                undo.callback(self._adapters.remove, name)
            labels = LabelMap(record.labels, record.multi_label)
            self._members[name] = Member(record, labels, head, encoder, key)
            undo.pop_all()

    def remove(self, name: str) -> None:
        """Forget a classifier; the base model and the others stay.

        Raises:
            ConfigError: no classifier of this name.
        """
        with self._lock:
            self._adapters.remove(name)
            del self._members[name]

    def adapter_bytes(self, name: str) -> int:
        """Bytes of a classifier's own tensors: its adapter and its head."""
        head = sum(parameter.numel() * parameter.element_size() for parameter in self.member(name).head.parameters())
        return self._adapters.nbytes(name) + head

    @overload
    def predict_proba(
        self, texts: Sequence[str], pairs: Sequence[str | None] | None = None, *, adapter: str
    ) -> FloatArray:
        """(N, C) probabilities under one classifier."""

    @overload
    def predict_proba(
        self, texts: Sequence[str], pairs: Sequence[str | None] | None = None, *, adapter: Names
    ) -> list[FloatArray]:
        """Probabilities (C_n,) of each text under its own classifier."""

    def predict_proba(
        self,
        texts: Sequence[str],
        pairs: Sequence[str | None] | None = None,
        *,
        adapter: str | Names,
    ) -> FloatArray | list[FloatArray]:
        """Probabilities over the classes of each text's classifier, or per label where it is multi-label.

        Args:
            texts: N texts.
            pairs: the second text of each, where its classifier reads two; None for the others.
            adapter: one name for all texts, or a name per text.

        Returns:
            (N, C) for one name, columns as in its ``labels``; for N names a list of N arrays (C_n,).

        Raises:
            ConfigError: no classifier of a name.
            DataError: the numbers of texts, pairs and names differ, or a pair is missing or given for nothing.
        """
        rows = [
            probabilities(logits[None], multi_label=self.labels(name).multi_label)[0]
            for name, logits in zip(*self._predict_logits(texts, pairs, adapter), strict=True)
        ]
        if not isinstance(adapter, str):
            return rows
        return np.stack(rows) if rows else np.empty((0, len(self.labels(adapter))))

    def predict(
        self,
        texts: Sequence[str],
        pairs: Sequence[str | None] | None = None,
        *,
        adapter: str | Names,
    ) -> list[Answer]:
        """The label of each text, or the tuple of its labels where its classifier is multi-label.

        Arguments and errors as in ``predict_proba``.
        """
        names = _names_per_text(texts, adapter)
        rows = self.predict_proba(texts, pairs, adapter=names)
        members = [self.member(name) for name in names]
        return [
            member.record.rule.answers(row[None], member.labels)[0] for member, row in zip(members, rows, strict=True)
        ]

    def _predict_logits(
        self, texts: Sequence[str], pairs: Sequence[str | None] | None, adapter: str | Names
    ) -> tuple[list[str], list[npt.NDArray[np.float32]]]:
        """The name, and the logits (C_n,), of each text."""
        names = _names_per_text(texts, adapter)
        for name in {adapter} if isinstance(adapter, str) else dict.fromkeys(names):
            self.member(name)
        encoded = self._encode(texts, pairs, names)
        logits: list[npt.NDArray[np.float32]] = [np.empty(0, np.float32)] * len(names)

        def cut(rows: npt.NDArray[np.int64], budget: int) -> Iterator[tuple[PackedBatch, str | tuple[Segment, ...]]]:
            return mixed_batches(encoded, names, budget, mixing=self.backbone.packed, rows=rows)

        def compute(batch: PackedBatch, segments: str | tuple[Segment, ...]) -> None:
            with self._lock:
                for row, found in zip(batch.rows, self._logits(batch, segments, names), strict=True):
                    logits[row] = found.float().cpu().numpy()

        predict_all(self.backbone, len(names), cut, compute)
        for row, values in enumerate(logits):
            if not np.isfinite(values).all():
                why, do = origin(self.backbone)
                raise DivergenceError("predictions are not finite", where=f"row {row + 1}", got=why, do=f"{do}.")
        return names, logits

    def _logits(self, batch: PackedBatch, segments: str | tuple[Segment, ...], names: Sequence[str]) -> list[Tensor]:
        """Logits (C_n,) of each text of a batch, by the pooling and the head of its classifier."""
        with self._adapters.using(segments):
            hidden_TH, layout = hidden_states(self.backbone, batch)
        members = [self._members[names[row]] for row in batch.rows]
        modes = dict.fromkeys(member.record.pooling for member in members)
        pooled = {mode: average_windows(pool(hidden_TH, layout, mode), batch.windows) for mode in modes}
        logits: list[Tensor] = []
        start = 0
        for stop in range(1, len(members) + 1):
            if stop == len(members) or members[stop] is not members[start]:
                member = members[start]
                logits += list(member.head(pooled[member.record.pooling][start:stop]))
                start = stop
        return logits

    def _encode(self, texts: Sequence[str], pairs: Sequence[str | None] | None, names: Sequence[str]) -> Encoded:
        """Token ids of each text by its own classifier's tokeniser, in the order of the texts."""
        seconds: Sequence[str | None] = [None] * len(texts) if pairs is None else list(pairs)
        if len(seconds) != len(texts):
            raise DataError("one second text, or None, is needed for each text", got=len(seconds), wanted=len(texts))
        parts: list[tuple[npt.NDArray[np.int64], Encoded]] = []
        for name in dict.fromkeys(names):
            member = self.member(name)
            rows = [row for row, other in enumerate(names) if other == name]
            given = [second for row in rows if (second := seconds[row]) is not None]
            wanted = len(rows) if member.record.text_pair else 0
            if len(given) != wanted:
                raise DataError(
                    "the classifier reads " + ("text pairs" if member.record.text_pair else "single texts"),
                    where=name,
                    got=f"{len(given)} second texts for {len(rows)} texts",
                    wanted=wanted,
                )
            chosen = [texts[row] for row in rows]
            parts.append((np.array(rows), member.encoder.encode(chosen, given if member.record.text_pair else None)))
        if not parts:
            return Encoded.from_rows([])
        return parts[0][1] if len(parts) == 1 else merge_rows(parts, len(texts))

    def _require_same_base(self, record: ClassifierRecord, folder: Path) -> None:
        """Refuse a classifier that was trained on other weights, in another format, or in another type."""
        first = self._first
        if record.base_sha256 != first.base_sha256:
            raise ModelError(
                "the classifier has another base model",
                where=folder,
                got=f"{record.base_model} with SHA-256 {record.base_sha256[:16]}...",
                wanted=f"{first.base_model} with SHA-256 {first.base_sha256[:16]}...",
                do="Classifiers share a base model only if they were trained on the same weights.",
            )
        own, other = _format(first), _format(record)
        if own != other:
            raise ModelError(
                "the classifier was trained on the base model in another format",
                where=folder,
                got="unquantised weights" if other is None else str(other),
                wanted="unquantised weights" if own is None else str(own),
            )
        found = placement_for(record, self.placement.device, self._precision).precision
        if found != self.placement.precision:
            raise ModelError(
                "the classifier was trained in another precision",
                where=folder,
                got=found,
                wanted=self.placement.precision,
                do="Give one for all of them, such as precision='fp32'.",
            )


def _format(record: ClassifierRecord) -> QuantConfig | None:
    return None if record.quantization is None else QuantConfig.parse(record.quantization)


def _names_per_text(texts: Sequence[str], adapter: str | Names) -> list[str]:
    """The adapter of each text."""
    if isinstance(texts, str):
        raise DataError("predict takes a list of texts", got="one string", do="Write [text].")
    names = [adapter] * len(texts) if isinstance(adapter, str) else list(adapter)
    if len(names) != len(texts):
        raise DataError("one name, or a name for each text, is needed", got=len(names), wanted=len(texts))
    return names


def _tokeniser_digest(folder: Path) -> str:
    """SHA-256 over the tokeniser's files; two folders with the same one tokenise alike."""
    digest = sha256()
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        path = folder / name
        digest.update(path.read_bytes() if path.is_file() else b"")
        digest.update(b"\0")
    return digest.hexdigest()
