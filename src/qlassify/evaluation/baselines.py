"""What a classifier must beat to have been worth training: the most frequent class, and a bag of words.

A score means little alone. 98 % accuracy is poor where one class holds 99 % of the rows, and a transformer that gains
one point over a word count of two seconds is a bad bargain. Both baselines are trained on the same rows and judged by
the same ``evaluate_predictions`` as the model.

The bag of words is TF-IDF of one- and two-word sequences with logarithmic term counts, then logistic regression with
C = 10: multinomial where a row has one class, one regression per label where it has several. Fitting it with SAGA
(Defazio et al. 2014) at tolerance 1e-3 takes a fifth of the time of scikit-learn's default, L-BFGS, on the 77 classes
of BANKING77 and half on the 28 labels of GoEmotions, at equal accuracy: on short texts a row has a few dozen non-zero
features, and SAGA's steps touch nothing else. liblinear is a little faster still with many labels but has no
multinomial loss, and its one-against-the-rest probabilities had a log-loss 5 to 28 % higher.

However it was fitted, a baseline is a matrix and a bias. What cannot be learned is said by the bias alone, so that no
degenerate corpus needs a case of its own in ``probabilities``: a class unseen in training has minus infinity
(probability 0), texts without a single word leave the training frequencies.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qlassify.errors import DataError
from qlassify.evaluation.class_scores import FloatArray
from qlassify.evaluation.metrics import Metrics, evaluate_predictions
from qlassify.seeding import derive_seed, numpy_generator

TFIDF_NAME = "TF-IDF + logistic regression"

# The weights are a dense matrix of vocabulary x classes; a million long documents would make it the largest thing in
# the run. BANKING77 has 24 thousand one- and two-word sequences, GoEmotions 239 thousand.
_MAX_VOCABULARY = 262_144
# Two million rows would take gigabytes for the counts of word pairs before the vocabulary is cut, and hours to fit. A
# bag of words learns little after the first hundred thousand rows.
_MAX_FIT_CHARS = 20_000_000
_C = 10.0
_TOLERANCE = 1e-3
_MAX_EPOCHS = 1_000


@dataclass(frozen=True, slots=True)
class Baseline:
    """A baseline's scores on the rows on which the model was evaluated."""

    name: str
    metrics: Metrics
    seconds: float
    """Wall-clock time to fit and to predict."""
    notes: tuple[str, ...] = ()
    """What it could not do, one sentence each."""


def class_frequencies(targets: NDArray[Any], num_classes: int, *, multi_label: bool) -> FloatArray:
    """The share of rows that are (or contain) each class, (K,).

    Raises:
        DataError: there are no rows.
    """
    if len(targets) == 0:
        raise DataError("a baseline needs training rows", where="targets", got=0, wanted="at least one row")
    counts = targets.sum(axis=0) if multi_label else np.bincount(targets, minlength=num_classes)
    return np.asarray(counts / len(targets), dtype=np.float64)


def majority_baseline(
    train_targets: NDArray[Any], eval_targets: NDArray[Any], names: Sequence[str], *, multi_label: bool
) -> Baseline:
    """Answer every row with the training frequencies, whatever it says.

    The decision is then the most frequent class, or, multi-label, every label that more than half of the training
    rows have: often none.

    Args:
        train_targets: classes (N,) or label matrix (N, K) from which the frequencies are taken.
        eval_targets: the same for the rows to score.
        names: the K names of the label map.
        multi_label: which of the two tasks it is.
    """
    started = time.perf_counter()
    frequencies = class_frequencies(train_targets, len(names), multi_label=multi_label)
    probabilities = np.tile(frequencies, (len(eval_targets), 1))
    metrics = evaluate_predictions(eval_targets, probabilities, names, multi_label=multi_label)
    if multi_label:
        answer = " + ".join(f"'{names[k]}'" for k in range(len(names)) if frequencies[k] >= 0.5) or "no label"
    else:
        answer = f"'{names[int(frequencies.argmax())]}'"
    return Baseline(name=f"always {answer}", metrics=metrics, seconds=time.perf_counter() - started)


@dataclass(frozen=True, slots=True)
class TfidfBaseline:
    """TF-IDF features and a linear classifier; made by ``fit``."""

    vectorizers: tuple[Any, ...]
    """One fitted vectoriser per text column that has words."""
    columns: tuple[int, ...]
    """Which text column each vectoriser reads: 0 the text, 1 its pair."""
    weight: FloatArray
    """(features, K)"""
    bias: FloatArray
    """(K,); minus infinity for a class that training never showed."""
    multi_label: bool
    paired: bool
    seconds: float
    """Wall-clock time of ``fit``."""
    notes: tuple[str, ...]

    @classmethod
    def fit(
        cls,
        texts: Sequence[str],
        targets: NDArray[Any],
        *,
        multi_label: bool,
        num_classes: int,
        pairs: Sequence[str] | None = None,
        seed: int,
    ) -> TfidfBaseline:
        """Fit on N texts; the same arguments give the same baseline bit for bit.

        Where there are more than 20 million characters, on as many rows, drawn at random, as have them; a note says so.

        Args:
            texts: the N texts.
            targets: classes (N,) or a label matrix (N, K).
            multi_label: which of the two tasks it is.
            num_classes: K, the size of the label map.
            pairs: the second text of every row, if rows are pairs; it has a vocabulary of its own.
            seed: of the run; SAGA visits rows in an order drawn from it.

        Raises:
            DataError: no rows, or texts, pairs and targets of different lengths.
        """
        started = time.perf_counter()
        inputs = _text_columns(texts, pairs)
        if len(targets) != len(texts):
            raise DataError("texts and targets differ in length", got=len(targets), wanted=f"{len(texts)} targets")
        chosen, notes = _sample(inputs, targets, seed), tuple[str, ...]()
        if chosen is not None:
            notes = (f"{TFIDF_NAME}: fitted on {len(chosen):,} of the {len(texts):,} training rows, drawn at random.",)
            inputs, targets = [[column[row] for row in chosen] for column in inputs], targets[chosen]
        frequencies = class_frequencies(targets, num_classes, multi_label=multi_label)
        vectorizers, columns, features = _fit_vectorizers(inputs)
        notes += tuple(_vocabulary_notes(vectorizers))
        if not vectorizers:
            notes += (
                f"{TFIDF_NAME}: no training text holds a word of two letters; it answers with class frequencies.",
            )
        random_state = derive_seed(seed, "tfidf-baseline") % 2**32
        fit_linear = _fit_labels if multi_label else _fit_classes
        weight, bias, num_unfinished = fit_linear(features, targets, frequencies, random_state)
        if num_unfinished:
            notes += (
                f"{TFIDF_NAME}: {num_unfinished} solver run{'s' if num_unfinished > 1 else ''} stopped at "
                f"{_MAX_EPOCHS} passes, short of convergence.",
            )
        seconds = time.perf_counter() - started
        return cls(vectorizers, columns, weight, bias, multi_label, pairs is not None, seconds, notes)

    def probabilities(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> FloatArray:
        """Probabilities (N, K); single-label rows sum to one, classes unseen in training have probability 0.

        Raises:
            DataError: pairs are given to a baseline fitted without them, or the reverse.
        """
        from scipy.special import expit, softmax

        if self.paired != (pairs is not None):
            wanted = "pairs" if self.paired else "no pairs"
            raise DataError("the baseline was fitted otherwise", where="pairs", wanted=wanted)
        inputs = _text_columns(texts, pairs)
        logits = np.tile(self.bias, (len(texts), 1))
        start = 0
        for vectorizer, column in zip(self.vectorizers, self.columns, strict=True):
            stop = start + len(vectorizer.vocabulary_)
            logits += vectorizer.transform(inputs[column]) @ self.weight[start:stop]
            start = stop
        probabilities = expit(logits) if self.multi_label else softmax(logits, axis=1)
        return np.asarray(probabilities, dtype=np.float64)

    def evaluate(
        self,
        texts: Sequence[str],
        targets: NDArray[Any],
        names: Sequence[str],
        pairs: Sequence[str] | None = None,
        *,
        threshold: float = 0.5,
    ) -> Baseline:
        """Score the baseline on other rows; see ``evaluate_predictions`` for targets, names and threshold."""
        started = time.perf_counter()
        probabilities = self.probabilities(texts, pairs)
        metrics = evaluate_predictions(targets, probabilities, names, multi_label=self.multi_label, threshold=threshold)
        seconds = self.seconds + time.perf_counter() - started
        return Baseline(name=TFIDF_NAME, metrics=metrics, seconds=seconds, notes=self.notes)


def _sample(inputs: Sequence[Sequence[str]], targets: NDArray[Any], seed: int) -> NDArray[np.int64] | None:
    """Rows to fit on, ascending; None for all. A class that the draw misses comes with the first of its rows in it."""
    if len(targets) == 0:
        return None
    lengths = np.sum([np.fromiter(map(len, column), np.int64, len(column)) for column in inputs], axis=0)
    if lengths.sum() <= _MAX_FIT_CHARS:
        return None
    order = np.argsort(numpy_generator(seed, "tfidf-sample").random(len(targets)), kind="stable")
    chosen = order[: max(1, int(np.searchsorted(np.cumsum(lengths[order]), _MAX_FIT_CHARS)))]
    drawn = targets[order]
    first = (drawn > 0).argmax(axis=0) if targets.ndim == 2 else np.unique(drawn, return_index=True)[1]
    return np.union1d(chosen, order[first])


def _text_columns(texts: Sequence[str], pairs: Sequence[str] | None) -> list[Sequence[str]]:
    if pairs is None:
        return [texts]
    if len(pairs) != len(texts):
        raise DataError("texts and pairs differ in length", got=len(pairs), wanted=f"{len(texts)} pairs")
    return [texts, pairs]


def _fit_vectorizers(inputs: Sequence[Sequence[str]]) -> tuple[tuple[Any, ...], tuple[int, ...], Any]:
    """Vectorisers of the columns that hold words, which columns these are, and the features (N, F), sparse."""
    from scipy.sparse import csr_array, hstack
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizers, columns, blocks = [], [], []
    for column, texts in enumerate(inputs):
        vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, max_features=_MAX_VOCABULARY)
        analyze = vectorizer.build_analyzer()
        if any(analyze(text) for text in texts):
            blocks.append(vectorizer.fit_transform(texts))
            vectorizers.append(vectorizer)
            columns.append(column)
    features = hstack(blocks, format="csr") if blocks else csr_array((len(inputs[0]), 0))
    return tuple(vectorizers), tuple(columns), features


def _vocabulary_notes(vectorizers: Sequence[Any]) -> list[str]:
    return [
        f"{TFIDF_NAME}: the vocabulary was cut to its {_MAX_VOCABULARY:,} most frequent entries."
        for vectorizer in vectorizers
        if len(vectorizer.vocabulary_) == _MAX_VOCABULARY
    ]


def _fit_classes(
    features: Any, targets: NDArray[Any], frequencies: FloatArray, random_state: int
) -> tuple[FloatArray, FloatArray, int]:
    """Multinomial regression: weight (F, K), bias (K,), and how many solver runs did not converge (0 or 1)."""
    with np.errstate(divide="ignore"):
        bias = np.log(frequencies)
    weight = np.zeros((features.shape[1], len(frequencies)))
    seen = np.flatnonzero(frequencies)
    if len(seen) < 2 or features.shape[1] == 0:
        return weight, bias, 0
    coefficients, intercepts, converged = _logistic_regression(features, targets, random_state)
    # Two classes come as one row, the log-odds of the second against the first.
    scored = seen if len(seen) > 2 else seen[1:]
    bias[seen] = 0.0
    weight[:, scored] = coefficients.T
    bias[scored] = intercepts
    return weight, bias, 0 if converged else 1


def _fit_labels(
    features: Any, targets: NDArray[Any], frequencies: FloatArray, random_state: int
) -> tuple[FloatArray, FloatArray, int]:
    """One regression per label: weight (F, K), bias (K,), and how many of them did not converge."""
    from scipy.special import logit

    bias = np.asarray(logit(frequencies), dtype=np.float64)
    weight = np.zeros((features.shape[1], len(frequencies)))
    if features.shape[1] == 0:
        return weight, bias, 0
    num_unfinished = 0
    # A label that no training row has, or every one, keeps the infinite bias that its frequency gave it.
    for k in np.flatnonzero((frequencies > 0.0) & (frequencies < 1.0)):
        coefficients, intercepts, converged = _logistic_regression(features, targets[:, k] > 0, random_state)
        weight[:, k] = coefficients[0]
        bias[k] = intercepts[0]
        num_unfinished += not converged
    return weight, bias, num_unfinished


def _logistic_regression(
    features: Any, targets: NDArray[Any], random_state: int
) -> tuple[FloatArray, FloatArray, bool]:
    """Coefficients, intercepts and whether the solver converged."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=_C, solver="saga", tol=_TOLERANCE, max_iter=_MAX_EPOCHS, random_state=random_state)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(features, targets)
    unfinished = any(issubclass(warning.category, ConvergenceWarning) for warning in caught)
    return model.coef_, model.intercept_, not unfinished
