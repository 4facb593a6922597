"""Label noise that is planted and found, and what must not be taken for it."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qlassify.data.corpus import Corpus, read_corpus
from qlassify.evaluation import label_noise as module
from qlassify.evaluation.baselines import TfidfBaseline
from qlassify.evaluation.label_noise import MIN_SKILL, NUM_FOLDS, LabelNoise, find_label_noise

NAMES = ("animal", "tool", "fruit")
WORDS = (("cat", "horse", "wolf"), ("hammer", "saw", "drill"), ("apple", "pear", "plum"))
FILLERS = [f"filler{n}" for n in range(40)]


def sentences(num_rows: int, seed: int = 0) -> tuple[list[str], Any]:
    """Sentences whose class is one telling word among noise."""
    generator = np.random.default_rng(seed)
    targets = generator.integers(0, 3, num_rows)
    texts = [
        " ".join([*generator.choice(FILLERS, 4), str(generator.choice(WORDS[target]))]) + f" number{row}"
        for row, target in enumerate(targets)
    ]
    return texts, targets


def corpus_of(folder: Path, texts: list[str], labels: list[Any]) -> Corpus:
    key = "labels" if isinstance(labels[0], list) else "label"
    path = folder / "rows.jsonl"
    # A blank row first, so that a row's number is not its position.
    rows = [
        {"text": "", key: labels[0]},
        *({"text": text, key: label} for text, label in zip(texts, labels, strict=True)),
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return read_corpus(path)


def judged(folder: Path, texts: list[str], targets: Any, groups: Any = None, seed: int = 0) -> LabelNoise:
    corpus = corpus_of(folder, texts, [NAMES[target] for target in targets])
    groups = np.arange(len(texts)) if groups is None else groups
    return find_label_noise(corpus, targets, NAMES, groups, seed=seed)


def test_planted_noise_is_on_top_with_its_true_label(tmp_path: Path) -> None:
    texts, truth = sentences(1500)
    targets = truth.copy()
    flipped = np.random.default_rng(1).choice(1500, 75, replace=False)
    targets[flipped] = (targets[flipped] + 1) % 3
    found = judged(tmp_path, texts, targets)
    # The telling word settles the class, so whoever disagrees with it is a planted row. A row of which the words are as
    # probable in its class as the average is no candidate: some planted ones are missed, but not half of them.
    rows = {candidate.row for candidate in found.candidates}
    assert rows <= {int(row) + 2 for row in flipped}
    assert len(found.candidates) == len(rows) > len(flipped) / 2
    for candidate in found.candidates:
        position = candidate.row - 2
        assert candidate.given == (NAMES[targets[position]],)
        assert candidate.suggested == NAMES[truth[position]]
        assert candidate.probability - candidate.given_probability >= module.MARGIN
    margins = [candidate.probability - candidate.given_probability for candidate in found.candidates]
    # Both are rounded to four digits.
    assert all(one >= other - 2e-4 for one, other in pairwise(margins))
    assert found.num_rows == 1500
    assert found.num_fit_rows == 1125
    [finding] = found.findings()
    assert f"{found.num_candidates} of 1500" in finding.what


def test_clean_labels_have_next_to_no_candidates(tmp_path: Path) -> None:
    found = judged(tmp_path, *sentences(600))
    assert found.skill > 0.95
    assert found.num_candidates == 0
    assert found.findings() == ()


def test_words_that_say_nothing_contradict_nothing(tmp_path: Path) -> None:
    texts, targets = sentences(400)
    chance = np.random.default_rng(3).integers(0, 3, 400)
    found = judged(tmp_path, texts, chance)
    assert found.skill < MIN_SKILL
    assert (found.num_candidates, found.candidates) == (0, ())
    assert judged(tmp_path, texts, targets).skill > 0.9


def test_every_row_is_judged_by_a_model_without_its_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts, targets = sentences(120)
    groups = np.arange(120) // 3
    group_of = dict(zip(texts, groups.tolist(), strict=True))
    judged_texts: list[str] = []
    fit, probabilities = TfidfBaseline.fit, TfidfBaseline.probabilities
    learned: set[int] = set()

    def watched_fit(train: list[str], *arguments: Any, **options: Any) -> TfidfBaseline:
        learned.clear()
        learned.update(group_of[text] for text in train)
        return fit(train, *arguments, **options)

    def watched_probabilities(self: TfidfBaseline, texts: list[str], *arguments: Any) -> Any:
        assert not learned & {group_of[text] for text in texts}
        judged_texts.extend(texts)
        return probabilities(self, texts, *arguments)

    monkeypatch.setattr(TfidfBaseline, "fit", watched_fit)
    monkeypatch.setattr(TfidfBaseline, "probabilities", watched_probabilities)
    judged(tmp_path, texts, targets, groups)
    assert sorted(judged_texts) == sorted(texts)


def test_fitting_is_bounded_and_judging_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_FIT_ROWS", 100)
    found = judged(tmp_path, *sentences(400))
    assert (found.num_fit_rows, found.num_rows) == (100, 400)


def test_long_texts_are_bounded_by_their_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts, targets = sentences(400)
    chars = sum(map(len, texts))
    monkeypatch.setattr(module, "MAX_CHARS", chars // 2)
    monkeypatch.setattr(module, "MAX_FIT_CHARS", chars // 10)
    found = judged(tmp_path, texts, targets)
    # Half of the characters at the mean length are half of the rows; the sample's own mean may differ by a percent.
    assert 199 <= found.num_rows <= 200
    assert 38 <= found.num_fit_rows <= 41


def test_so_many_rows_and_labels_are_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PROBABILITIES", 3 * 150)
    found = judged(tmp_path, *sentences(400))
    assert (found.num_rows, found.total_rows) == (150, 400)
    assert found == judged(tmp_path, *sentences(400))


def test_a_sample_is_said_to_be_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts, targets = sentences(400)
    targets[::20] = (targets[::20] + 1) % 3
    assert "sample" not in judged(tmp_path, texts, targets).findings()[0].what
    monkeypatch.setattr(module, "MAX_PROBABILITIES", 3 * 300)
    (finding,) = judged(tmp_path, texts, targets).findings()
    assert finding.what.startswith("In a sample of the 400 training rows, ")
    assert "of 300" in finding.what


def test_a_missing_label_among_several(tmp_path: Path) -> None:
    texts, targets = sentences(600)
    flags = (targets[:, None] == np.arange(3)).astype(np.float32)
    # Rows that have two telling words have two labels, and one of them lost its second.
    both = range(0, 600, 6)
    for row in both:
        other = (targets[row] + 1) % 3
        texts[row] += f" {WORDS[other][0]} {WORDS[other][1]}"
        flags[row, other] = 1
    missing = 300
    flags[missing, (targets[missing] + 1) % 3] = 0
    labels = [[NAMES[k] for k in np.flatnonzero(row)] for row in flags]
    found = find_label_noise(corpus_of(tmp_path, texts, labels), flags, NAMES, np.arange(600), seed=0)
    candidate = next(candidate for candidate in found.candidates if candidate.row == missing + 2)
    assert candidate.given == (NAMES[targets[missing]],)
    assert candidate.suggested == NAMES[(targets[missing] + 1) % 3]
    # A label that is given is never suggested.
    assert all(candidate.suggested not in candidate.given for candidate in found.candidates)


def test_too_few_texts_to_deal_out(tmp_path: Path) -> None:
    texts, targets = sentences(2 * NUM_FOLDS - 1)
    found = judged(tmp_path, texts, targets)
    assert (found.num_rows, found.num_candidates, found.findings()) == (0, 0, ())


def test_the_same_for_the_same_seed(tmp_path: Path) -> None:
    texts, targets = sentences(200)
    targets[:20] = (targets[:20] + 1) % 3
    assert judged(tmp_path, texts, targets, seed=5) == judged(tmp_path, texts, targets, seed=5)
