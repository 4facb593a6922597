"""Single words that settle the label.

Some corpora can be solved without reading: a file header that stands in the texts of one class only, a signature, an
emoji that chose the rows. A classifier finds such a word at once, scores well, and fails where the word is missing. So
every word of two letters or more is looked at in two ways: that a text has it, and that a text begins with it.

A word is a give-away if at least 98 % of its rows have one label, it covers at least a quarter of that label's rows and
no fewer than 10, and so many would come about by chance in one corpus of a million, over all words and labels that were
looked at (binomial tail, Bonferroni). Whether it is a flaw or simply what the label is about, a count cannot know:
"passcode" is a fair word for questions about passcodes. A word that settles a label that at least one row in twenty has
is a warning, the others are listed.

Words are what scikit-learn's text features are made of. Where there is more text than ``MAX_CHARS``, words are counted
in a sample of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qlassify.data.corpus import Corpus
from qlassify.data.findings import INFO, WARNING, Finding, counted, listed, verb
from qlassify.seeding import numpy_generator

MIN_ROWS = 10
MIN_PRECISION = 0.98
MIN_COVERAGE = 0.25
MAX_CHANCE = 1e-6
MIN_LABEL_SHARE = 0.05
"""Share of rows that a label has from which a give-away for it is a warning."""
MAX_CHARS = 20_000_000
"""Characters of the texts that are looked at; beyond, a sample of rows is."""
MAX_WORDS = 100_000
"""Different words that are looked at, the most frequent ones; fewer where there are more than a hundred labels."""
MAX_COUNTS = 10_000_000
"""Words times labels of which rows are counted; 8 bytes each."""
MAX_LISTED = 100
"""Give-aways that are kept."""


@dataclass(frozen=True, slots=True)
class GiveAway:
    """A word that settles a label.

    Attributes:
        word: in lower case.
        place: "anywhere" or "first word".
        label: the label of nearly all its rows.
        rows: rows that have the word there.
        with_label: those of them that have the label.
        label_rows: rows of the label.
        label_share: their share of all rows.
    """

    word: str
    place: str
    label: str
    rows: int
    with_label: int
    label_rows: int
    label_share: float


@dataclass(frozen=True, slots=True)
class GiveAways:
    """The give-aways of the training rows.

    Attributes:
        words: the ones that cover the largest share of the rows first; at most ``MAX_LISTED``.
        num_words: how many there are.
        num_examined: rows that were looked at.
        num_rows: training rows.
    """

    words: tuple[GiveAway, ...]
    num_words: int
    num_examined: int
    num_rows: int

    def as_dict(self) -> dict[str, Any]:
        """For ``data.json``."""
        return asdict(self)

    def findings(self) -> tuple[Finding, ...]:
        """What to say about them: a warning for each frequent label that has any, one line for all the others."""
        of_label: dict[str, list[GiveAway]] = {}
        for entry in self.words:
            of_label.setdefault(entry.label, []).append(entry)
        frequent = [entries for entries in of_label.values() if entries[0].label_share >= MIN_LABEL_SHARE]
        rare = [entry for entries in of_label.values() if entries[0].label_share < MIN_LABEL_SHARE for entry in entries]
        found = [_warning(entries, self._sampled()) for entries in frequent]
        if rare:
            words = listed([f"{entry.word!r} ({entry.label})" for entry in rare])
            settle = verb(len(rare), "settles", "settle")
            what = f"{counted(len(rare), 'word')} {settle} a rare label alone: {words}.{self._sampled()}"
            found.append(Finding("give-aways", INFO, what, "Check that they are what the labels are about."))
        if self.num_words > len(self.words):
            more = self.num_words - len(self.words)
            what = f"{counted(more, 'more word')} {verb(more, 'settles', 'settle')} a label alone."
            found.append(Finding("give-aways", INFO, what, "So many come from a template, or from rules."))
        return tuple(found)

    def _sampled(self) -> str:
        """A sentence if not all rows were looked at."""
        if self.num_examined == self.num_rows:
            return ""
        return f" Counted in a sample of {self.num_examined} of {self.num_rows} rows."


def _warning(entries: Sequence[GiveAway], sampled: str) -> Finding:
    """One finding for all the words of one label."""
    first, others = entries[0], entries[1:]
    where = "begin with" if first.place == "first word" else "hold"
    what = (
        f"{first.with_label} of the {first.rows} training texts that {where} the word {first.word!r} have the label "
        f"{first.label!r}, which has {first.label_rows} rows; that word alone settles it."
    )
    if others:
        words = listed([f"{entry.word!r} ({entry.with_label} of {entry.rows})" for entry in others])
        what += f" So {verb(len(others), 'does', 'do')} {words}."
    do = "If the texts to be classified will not have it, remove it from these, or the score means nothing."
    return Finding("give-aways", WARNING, what + sampled, do)


def find_give_aways(corpus: Corpus, targets: NDArray[Any], names: Sequence[str], *, seed: int) -> GiveAways:
    """Look at every word of the first texts of ``corpus`` (second texts of pairs are left out).

    Args:
        corpus: N training rows.
        targets: classes (N,) or flags (N, C).
        names: the C labels.
        seed: of the sample of rows.
    """
    positions = _sample(corpus.texts, seed)
    texts = [corpus.texts[position] for position in positions]
    flags = targets[positions] > 0.5 if targets.ndim == 2 else targets[positions, None] == np.arange(len(names))
    found: dict[tuple[str, str], GiveAway] = {}
    for place in ("first word", "anywhere"):
        words, rows, with_label = _word_counts(texts, flags, first_only=place == "first word")
        for word, label in _settled(rows, with_label, flags):
            entry = GiveAway(
                words[word],
                place,
                names[label],
                int(rows[word]),
                int(with_label[word, label]),
                int(flags[:, label].sum()),
                float(flags[:, label].mean()),
            )
            first = found.get((entry.word, entry.label))
            # A word that only ever comes first is reported as such; one that says more anywhere, as that.
            if first is None or entry.with_label > first.with_label:
                found[entry.word, entry.label] = entry
    ranked = sorted(found.values(), key=lambda entry: (-entry.with_label, entry.word, entry.label))
    return GiveAways(tuple(ranked[:MAX_LISTED]), len(ranked), len(texts), len(corpus))


def _sample(texts: Sequence[str], seed: int) -> NDArray[np.int64]:
    """Positions of the rows to look at, ascending: all, or as many drawn at random as have ``MAX_CHARS`` characters."""
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    if lengths.sum() <= MAX_CHARS:
        return np.arange(len(texts))
    order = np.argsort(numpy_generator(seed, "give-aways").random(len(texts)), kind="stable")
    return np.sort(order[: max(1, int(np.searchsorted(np.cumsum(lengths[order]), MAX_CHARS)))])


def _word_counts(
    texts: Sequence[str], flags: NDArray[np.bool_], *, first_only: bool
) -> tuple[list[str], NDArray[np.int64], NDArray[np.int64]]:
    """The words of at least ``MIN_ROWS`` rows, the rows of each (W,), and those of each label (W, C)."""
    from scipy.sparse import csr_array
    from sklearn.feature_extraction.text import CountVectorizer

    max_words = max(1, min(MAX_WORDS, MAX_COUNTS // flags.shape[1]))
    vectorizer = CountVectorizer(binary=True, min_df=min(MIN_ROWS, len(texts)), max_features=max_words)
    analyze = vectorizer.build_analyzer()
    if first_only:
        # A window large enough for any first word; the analyser would go on to the end of the text.
        vectorizer.set_params(analyzer=lambda text: analyze(text[:200])[:1])
    try:
        has_word = vectorizer.fit_transform(texts)
    except ValueError:  # no word is in enough rows
        return [], np.zeros(0, np.int64), np.zeros((0, flags.shape[1]), np.int64)
    with_label = (has_word.T @ csr_array(flags.astype(np.int64))).toarray()
    rows = np.asarray(has_word.sum(axis=0), dtype=np.int64).ravel()
    return vectorizer.get_feature_names_out().tolist(), rows, np.asarray(with_label, dtype=np.int64)


def _settled(rows: NDArray[np.int64], with_label: NDArray[np.int64], flags: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """(word, label) of every give-away."""
    from scipy.stats import binom

    label_rows = flags.sum(axis=0)
    words, labels = np.nonzero(
        (with_label >= MIN_PRECISION * rows[:, None])
        & (with_label >= MIN_COVERAGE * label_rows)
        & (with_label >= MIN_ROWS)
    )
    # With one label that all rows have, or nearly all, every word "settles" it: the tail is then not small.
    chance = binom.sf(with_label[words, labels] - 1, rows[words], label_rows[labels] / max(1, len(flags)))
    far = chance * max(1, with_label.size) < MAX_CHANCE
    return list(zip(words[far].tolist(), labels[far].tolist(), strict=True))
