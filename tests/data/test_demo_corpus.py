"""The packaged corpus against what its guide promises: size, labels, a split without near-duplicates."""

from __future__ import annotations

from collections import Counter
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import CountVectorizer

from qlassify.data.corpus import Corpus, read_corpus

LABELS = {"safe", "needs-quoting", "non-deterministic", "non-idempotent", "unsafe"}


@pytest.fixture(scope="module")
def parts() -> dict[str, Corpus]:
    folder = Path(str(resources.files("qlassify") / "demo_corpus"))
    return {name: read_corpus(folder / f"{name}.jsonl") for name in ("train", "test")}


def test_every_row_is_used_and_has_one_of_the_five_labels(parts: dict[str, Corpus]) -> None:
    assert sum(len(part) for part in parts.values()) >= 1000
    for part in parts.values():
        assert part.rejections == ()
        counts = Counter(label for (label,) in part.labels)
        assert set(counts) == LABELS
        assert all(0.15 < count / len(part) < 0.28 for count in counts.values())


def test_no_row_occurs_twice(parts: dict[str, Corpus]) -> None:
    texts = [" ".join(text.split()) for part in parts.values() for text in part.texts]
    assert len(texts) == len(set(texts))


def test_no_test_row_is_nearly_a_training_row(parts: dict[str, Corpus]) -> None:
    shingles = CountVectorizer(
        analyzer="char", ngram_range=(5, 5), binary=True, preprocessor=lambda text: " ".join(text.lower().split())
    ).fit([*parts["train"].texts, *parts["test"].texts])
    train = csr_matrix(shingles.transform(parts["train"].texts), dtype=np.int32)
    test = csr_matrix(shingles.transform(parts["test"].texts), dtype=np.int32)
    shared = (test @ train.T).toarray()
    sizes = np.asarray(test.sum(axis=1)) + np.asarray(train.sum(axis=1)).T
    assert (shared / np.maximum(sizes - shared, 1)).max() < 0.7


def test_the_guide_names_the_labels() -> None:
    guide = (resources.files("qlassify") / "demo_corpus" / "LABELLING.md").read_text(encoding="utf-8")
    assert all(f"`{label}`" in guide for label in LABELS)
