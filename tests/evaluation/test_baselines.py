"""Baselines: what they answer, that they learn, and what they do where nothing can be learned."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qlassify.errors import DataError
from qlassify.evaluation import baselines
from qlassify.evaluation.baselines import TFIDF_NAME, TfidfBaseline, majority_baseline

NAMES = ["animal", "tool", "fruit"]
WORDS = [["cat", "horse", "wolf"], ["hammer", "saw", "drill"], ["apple", "pear", "plum"]]


def corpus(seed: int, num_rows: int) -> tuple[list[str], Any]:
    """Sentences whose class is one telling word among noise."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 3, num_rows)
    noise = ["this", "that", "some", "every", "other"]
    texts = [f"{rng.choice(noise)} {rng.choice(WORDS[k])} {rng.choice(noise)}" for k in targets]
    return texts, targets


def fit(texts: Any, targets: Any, **options: Any) -> TfidfBaseline:
    return TfidfBaseline.fit(texts, targets, **{"multi_label": False, "num_classes": 3, "seed": 7, **options})


class TestMajority:
    def test_answers_the_most_frequent_class_with_training_frequencies(self) -> None:
        baseline = majority_baseline(np.array([1, 1, 0, 1]), np.array([1, 0, 1, 2]), NAMES, multi_label=False)
        assert baseline.name == "always 'tool'"
        assert baseline.metrics.values["accuracy"] == 0.5
        assert baseline.metrics.values["mean_confidence"] == 0.75
        assert [one.predicted for one in baseline.metrics.classes] == [0, 4, 0]

    def test_multi_label_predicts_labels_of_more_than_half_of_the_rows(self) -> None:
        train = np.array([[1, 0, 1], [1, 0, 0], [1, 1, 0], [0, 0, 1]])
        baseline = majority_baseline(train, np.array([[1, 0, 1], [1, 1, 1]]), NAMES, multi_label=True)
        assert baseline.name == "always 'animal' + 'fruit'"
        assert [one.predicted for one in baseline.metrics.classes] == [2, 0, 2]

    def test_multi_label_may_predict_nothing(self) -> None:
        rare = np.eye(3)
        assert majority_baseline(rare, rare, NAMES, multi_label=True).name == "always no label"

    def test_needs_training_rows(self) -> None:
        with pytest.raises(DataError, match="training rows"):
            majority_baseline(np.zeros(0, dtype=int), np.array([0]), NAMES, multi_label=False)


class TestTfidf:
    @pytest.mark.parametrize("multi_label", [False, True])
    def test_very_much_text_is_sampled_and_no_class_is_lost(
        self, monkeypatch: pytest.MonkeyPatch, multi_label: bool
    ) -> None:
        texts, classes = corpus(0, 400)
        rare = [7, 250]
        classes[rare] = 3
        targets = np.eye(4)[classes] if multi_label else classes
        chars = sum(map(len, texts))
        monkeypatch.setattr(baselines, "_MAX_FIT_CHARS", chars // 4)
        options = {"multi_label": multi_label, "num_classes": 4}
        chosen = baselines._sample([texts], targets, 7)
        assert chosen is not None
        assert sum(len(texts[row]) for row in chosen) <= chars // 4 + 4 * max(map(len, texts))
        assert 80 < len(chosen) < 120  # a quarter of the rows, all of about one length
        assert set(classes[chosen]) == {0, 1, 2, 3}
        ours = fit(texts, targets, **options)
        assert any(f"fitted on {len(chosen)} of the 400 training rows" in note for note in ours.notes)
        others, truth = corpus(1, 60)
        assert (ours.probabilities(others).argmax(axis=1) == truth).all()
        assert (ours.probabilities(others)[:, 3] > 0).all(), "a class that occurs is never impossible"
        monkeypatch.setattr(baselines, "_MAX_FIT_CHARS", chars)
        assert not any("fitted on" in note for note in fit(texts, targets, **options).notes)

    def test_beats_the_majority_on_separable_texts(self) -> None:
        (texts, targets), (others, truth) = corpus(0, 120), corpus(1, 60)
        ours = fit(texts, targets).evaluate(others, truth, NAMES)
        constant = majority_baseline(targets, truth, NAMES, multi_label=False)
        assert ours.name == TFIDF_NAME
        assert ours.metrics.values["accuracy"] == 1.0
        assert (constant.metrics.values["accuracy"] or 0.0) < 0.6
        assert ours.notes == ()

    @pytest.mark.parametrize("num_classes", [2, 3])
    def test_probabilities_equal_scikit_learns(self, num_classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline

        (texts, targets), (others, _) = corpus(2, 90), corpus(3, 20)
        targets = np.minimum(targets, num_classes - 1)
        peer = make_pipeline(
            TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10.0, tol=1e-8, max_iter=2000)
        ).fit(texts, targets)
        # Another solver of the same convex problem: let both run until they agree.
        monkeypatch.setattr(baselines, "_TOLERANCE", 1e-6)
        monkeypatch.setattr(baselines, "_MAX_EPOCHS", 20_000)
        ours = fit(texts, targets, num_classes=num_classes).probabilities(others)
        np.testing.assert_allclose(ours, peer.predict_proba(others), atol=1e-3)

    def test_same_seed_same_bits(self) -> None:
        texts, targets = corpus(4, 80)
        np.testing.assert_array_equal(
            fit(texts, targets).probabilities(texts), fit(texts, targets).probabilities(texts)
        )

    def test_unseen_class_has_probability_zero(self) -> None:
        texts, targets = corpus(5, 60)
        keep = targets != 1
        baseline = fit([t for t, k in zip(texts, keep, strict=True) if k], targets[keep])
        probabilities = baseline.probabilities([*texts, "", "unknown words"])
        assert (probabilities[:, 1] == 0.0).all()
        np.testing.assert_allclose(probabilities.sum(axis=1), 1.0)
        assert (probabilities[:-2][targets == 2].argmax(axis=1) == 2).all()

    def test_one_training_class_is_always_answered(self) -> None:
        probabilities = fit(["a saw", "the drill"], np.array([1, 1])).probabilities(["a cat"])
        np.testing.assert_array_equal(probabilities, [[0.0, 1.0, 0.0]])

    def test_texts_without_words_fall_back_to_frequencies(self) -> None:
        baseline = fit(["?", "!", "", "..."], np.array([0, 2, 2, 2]))
        np.testing.assert_allclose(baseline.probabilities(["hello", ""]), [[0.25, 0.0, 0.75]] * 2)
        assert "no training text holds a word" in baseline.notes[0]

    def test_pairs_are_read_as_columns_of_their_own(self) -> None:
        texts, targets = corpus(6, 90)
        same = ["the same words"] * len(texts)
        first, second = fit(texts, targets, pairs=same), fit(same, targets, pairs=texts)
        for baseline, columns in ((first, (texts, same)), (second, (same, texts))):
            assert baseline.evaluate(columns[0], targets, NAMES, columns[1]).metrics.values["accuracy"] == 1.0
        swapped = first.evaluate(same, targets, NAMES, texts).metrics.values["accuracy"]
        assert swapped is not None
        assert swapped < 0.6

    def test_a_pair_column_without_words_is_left_out(self) -> None:
        texts, targets = corpus(6, 60)
        baseline = fit(["?"] * 60, targets, pairs=texts)
        assert baseline.columns == (1,)
        assert (baseline.probabilities(["?"] * 60, texts).argmax(axis=1) == targets).all()

    def test_multi_label_learns_each_label_and_keeps_constants(self) -> None:
        texts, targets = corpus(7, 90)
        labels = np.zeros((90, 4))
        labels[:, 0] = targets == 0
        labels[:, 1] = targets != 1
        labels[:, 3] = 1.0
        baseline = fit(texts, labels, multi_label=True, num_classes=4)
        probabilities = baseline.probabilities(texts)
        np.testing.assert_array_equal(probabilities >= 0.5, labels > 0)
        assert (probabilities[:, 2] == 0.0).all()
        assert (probabilities[:, 3] == 1.0).all()
        wordless = fit(["?"] * 90, labels, multi_label=True, num_classes=4).probabilities(["cat"])
        np.testing.assert_allclose(wordless[0], labels.mean(axis=0))

    def test_no_convergence_is_a_note_and_not_a_warning(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(baselines, "_MAX_EPOCHS", 1)
        texts, targets = corpus(8, 60)
        assert fit(texts, targets).notes == (f"{TFIDF_NAME}: 1 solver run stopped at 1 passes, short of convergence.",)

    def test_a_cut_vocabulary_is_a_note(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(baselines, "_MAX_VOCABULARY", 5)
        texts, targets = corpus(8, 60)
        baseline = fit(texts, targets)
        assert baseline.weight.shape == (5, 3)
        assert "cut to its 5 most frequent" in baseline.notes[0]

    def test_mismatched_inputs_are_refused(self) -> None:
        texts, targets = corpus(9, 10)
        with pytest.raises(DataError, match="texts and targets"):
            fit(texts, targets[:9])
        with pytest.raises(DataError, match="texts and pairs"):
            fit(texts, targets, pairs=texts[:9])
        with pytest.raises(DataError, match="no pairs"):
            fit(texts, targets).probabilities(texts, texts)
        with pytest.raises(DataError, match="training rows"):
            fit([], np.zeros(0, dtype=int))
