"""The audit of labelled text: what is in the files, what looks wrong, and what one could do about it.

    rows -> labels -> token lengths -> repeated texts -> look-alikes -> leaks -> encoding -> give-aways -> label noise

It reads what a run has read anyhow and changes nothing: no row is left out, moved or relabelled. Row numbers are those
of the files. The same data and seed give the same audit. Every search is bounded, and where a bound was met the result
says so.

The checks themselves are in ``data`` (``label_balance``, ``token_lengths``, ``repeats``, ``near_duplicates``,
``passages``, ``leaks``, ``damage``, ``giveaways``) and in ``evaluation.label_noise``; here they are put in order. Each
of their results tells its own findings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qlassify.data.damage import Damage, find_damage
from qlassify.data.dataset import Dataset
from qlassify.data.findings import INFO, WARNING, Check, Finding, listed, named, share
from qlassify.data.giveaways import GiveAways, find_give_aways
from qlassify.data.label_balance import LabelBalance, label_balance
from qlassify.data.leaks import Leak, SimilarGroups, find_leaks, similar_groups
from qlassify.data.long_texts import LongTexts
from qlassify.data.near_duplicates import near_duplicates
from qlassify.data.passages import shared_passages
from qlassify.data.repeats import DistinctTexts, Duplicates, distinct_texts, find_duplicates
from qlassify.data.similar import SimilarPairs, components
from qlassify.data.token_lengths import TokenLengths, token_lengths
from qlassify.data.tokenise import Encoded
from qlassify.evaluation.label_noise import NUM_FOLDS, LabelNoise, find_label_noise

MAX_REJECTED_SHARE = 0.01
"""Share of rejected rows from which they are worth a warning."""


@dataclass(frozen=True, slots=True)
class FileRows:
    """What became of the rows of one file.

    Attributes:
        part: what the file is for.
        path: the file.
        rows: rows of the file.
        kept: rows that are used.
        rejected: reason -> rows, the most frequent first.
    """

    part: str
    path: str
    rows: int
    kept: int
    rejected: Mapping[str, int]

    def as_dict(self) -> dict[str, Any]:
        """For ``data.json``."""
        return {
            "part": self.part,
            "path": self.path,
            "rows": self.rows,
            "kept": self.kept,
            "rejected": dict(self.rejected),
        }

    def findings(self) -> tuple[Finding, ...]:
        """What to say about it."""
        number = self.rows - self.kept
        if not number:
            return ()
        severity = WARNING if number > MAX_REJECTED_SHARE * self.rows else INFO
        reasons = listed([f"{count} x {reason}" for reason, count in self.rejected.items()])
        what = f"{share(number, self.rows)} rows of the {named(self.part)} file are not used: {reasons}."
        return (Finding("rows", severity, what, "data.json has the numbers of the first of them."),)


@dataclass(frozen=True, slots=True)
class DataAudit:
    """Everything that the audit found.

    Attributes:
        files: rows kept and rejected, file by file.
        labels: rows of each label.
        lengths: token lengths and truncation of each part.
        duplicates: repeated texts within each part.
        near: groups of near duplicates over all parts.
        sources: groups of texts that share passages or are near duplicates, over all parts.
        passages_every: candidates for shared passages were sought among every so-manieth run of characters.
        leaks: what earlier parts know of later ones.
        damage: traces of damage, by part and kind.
        give_aways: words that settle a label.
        label_noise: labels that may be wrong.
    """

    files: tuple[FileRows, ...]
    labels: LabelBalance
    lengths: tuple[TokenLengths, ...]
    duplicates: tuple[Duplicates, ...]
    near: SimilarGroups
    sources: SimilarGroups
    passages_every: int
    leaks: tuple[Leak, ...]
    damage: tuple[Damage, ...]
    give_aways: GiveAways
    label_noise: LabelNoise

    def findings(self) -> tuple[Finding, ...]:
        """Everything there is to say, warnings first, otherwise in the order of the checks."""
        found = list(self._found())
        return (*(f for f in found if f.severity == WARNING), *(f for f in found if f.severity != WARNING))

    def _found(self) -> Iterator[Finding]:
        checks: tuple[Check, ...] = (
            *self.files,
            self.labels,
            *self.lengths,
            *self.duplicates,
            self.near,
            self.sources,
            *self.leaks,
            *self.damage,
            self.give_aways,
            self.label_noise,
        )
        for check in checks:
            yield from check.findings()

    def as_dict(self) -> dict[str, Any]:
        """For ``data.json``: only what JSON has, and row numbers of examples, not of everything."""
        return {
            "findings": [finding.as_dict() for finding in self.findings()],
            "files": [file.as_dict() for file in self.files],
            "labels": self.labels.as_dict(),
            "token_lengths": [part.as_dict() for part in self.lengths],
            "duplicates": [part.as_dict() for part in self.duplicates],
            "near_duplicates": self.near.as_dict(),
            "sources": {**self.sources.as_dict(), "candidates_among_every": self.passages_every},
            "leaks": [leak.as_dict() for leak in self.leaks],
            "encoding": [damage.as_dict() for damage in self.damage],
            "give_aways": self.give_aways.as_dict(),
            "label_noise": self.label_noise.as_dict(),
        }


def audit(
    dataset: Dataset,
    encoded: Mapping[str, Encoded],
    *,
    special_tokens: int,
    seed: int,
    long: LongTexts | None = None,
) -> DataAudit:
    """Look at everything that a run will read.

    Args:
        dataset: the rows, labelled and split.
        encoded: part -> the same rows as tokens of the model in use.
        special_tokens: tokens that its tokeniser adds to each text (or pair).
        seed: the run's.
        long: what is read of longer texts; their first tokens when None.
    """
    parts = {name: rows.corpus for name, rows in dataset.parts().items()}
    distinct = distinct_texts(parts)
    near = near_duplicates(distinct.texts, seed=seed)
    passages = shared_passages(distinct.texts, seed=seed)
    alike = _both(near, passages.pairs)
    train, names = dataset.train, dataset.labels.names
    return DataAudit(
        file_rows(dataset),
        label_balance(dataset),
        tuple(
            token_lengths(name, rows, encoded[name], dataset.labels, special_tokens=special_tokens, long=long)
            for name, rows in dataset.parts().items()
        ),
        tuple(find_duplicates(name, corpus) for name, corpus in parts.items()),
        similar_groups("near", parts, distinct, near),
        similar_groups("passages", parts, distinct, alike, passages.every),
        passages.every,
        find_leaks(parts, distinct, near, passages.pairs),
        tuple(damage for name, corpus in parts.items() for damage in find_damage(name, corpus)),
        find_give_aways(train.corpus, train.targets, names, seed=seed),
        find_label_noise(train.corpus, train.targets, names, _sources(distinct, alike), seed=seed),
    )


def file_rows(dataset: Dataset) -> tuple[FileRows, ...]:
    """The account of each file, rows with unknown labels included."""
    accounts = []
    for part, corpus in dataset.files():
        reasons: dict[str, int] = {}
        for rejection in (*corpus.rejections, *dataset.parts()[part].rejections):
            reasons[rejection.reason] = reasons.get(rejection.reason, 0) + 1
        kept = corpus.total_rows - sum(reasons.values())
        ordered = dict(sorted(reasons.items(), key=lambda item: -item[1]))
        accounts.append(FileRows(part, corpus.path, corpus.total_rows, kept, ordered))
    return tuple(accounts)


def _sources(distinct: DistinctTexts, alike: SimilarPairs) -> NDArray[np.int64]:
    """(N,) a number for each training row that rows of one source share.

    Where one source is larger than a fold could be, as in a corpus made from a template, rows share a number only if
    they have the same text: a model that learns from the rest of the corpus alone would learn nothing.
    """
    texts = distinct.ids["train"]
    sources = components(len(distinct.texts), alike)[texts]
    return texts if np.bincount(sources).max(initial=0) > len(texts) / NUM_FOLDS else sources


def _both(near: SimilarPairs, passages: SimilarPairs) -> SimilarPairs:
    """Pairs of either kind; a pair of both kinds stands there twice, which groups do not mind."""
    return SimilarPairs(
        np.concatenate([near.first, passages.first]),
        np.concatenate([near.second, passages.second]),
        np.concatenate([near.similarity, passages.similarity]),
        near.num_compared + passages.num_compared,
        near.capped_buckets + passages.capped_buckets,
        near.complete and passages.complete,
    )
