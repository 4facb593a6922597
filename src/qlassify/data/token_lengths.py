"""How long texts are in tokens of the model in use, what truncation cuts off, and texts that are hardly any.

Lengths include special tokens and are those before truncation. Percentiles are lengths that occur (``inverted_cdf``):
p95 is the least length within which 95 % of the rows lie. What is cut is the end (for pairs, that of the longer text),
with ``model.long=head_tail`` the middle, and with ``windows`` only what lies behind the last window. A label whose
texts are cut more often than the others' is trained on other texts than it will meet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qlassify.data.dataset import LabelledRows
from qlassify.data.findings import INFO, MAX_EXAMPLES, WARNING, Finding, counted, excerpt, listed, named, share, verb
from qlassify.data.labels import LabelMap
from qlassify.data.long_texts import LongTexts
from qlassify.data.tokenise import Encoded

PERCENTILES = (50, 90, 95, 99)
MAX_CUT_SHARE = 0.01
"""Share of cut texts from which truncation is worth a warning."""


@dataclass(frozen=True, slots=True)
class Truncation:
    """What was cut off the texts of one part.

    Attributes:
        max_length: tokens at which texts were cut; None if none was.
        rows: texts that lost tokens.
        lost_tokens: tokens that were cut off, in all.
        side: what was cut: end or middle.
        windows: windows that were read of a text at most; None unless texts are read in windows.
        by_label: label -> (rows that were cut, rows), for labels with cut rows, the largest share first.
    """

    max_length: int | None
    rows: int
    lost_tokens: int
    side: str
    by_label: Mapping[str, tuple[int, int]]
    windows: int | None = None


@dataclass(frozen=True, slots=True)
class TokenLengths:
    """Token lengths of one part.

    Attributes:
        part: which.
        num_rows: its rows.
        percentiles: 50, 90, 95, 99 -> length in tokens.
        longest: length of the longest text.
        truncation: what was cut off.
        no_token_rows: row numbers of texts of which the tokeniser makes nothing; the first ``MAX_EXAMPLES``.
        num_no_token: how many there are.
        one_token_rows: row numbers of texts of one token; the first ``MAX_EXAMPLES``.
        num_one_token: how many there are.
        one_token_texts: the different texts of ``one_token_rows``.
    """

    part: str
    num_rows: int
    percentiles: Mapping[int, int]
    longest: int
    truncation: Truncation
    no_token_rows: tuple[int, ...]
    num_no_token: int
    one_token_rows: tuple[int, ...]
    num_one_token: int
    one_token_texts: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """For ``data.json``."""
        return {
            **asdict(self),
            "percentiles": {f"p{rank}": length for rank, length in self.percentiles.items()},
            "truncation": {
                **asdict(self.truncation),
                "by_label": {name: list(counts) for name, counts in self.truncation.by_label.items()},
            },
        }

    def findings(self) -> tuple[Finding, ...]:
        """What to say about them."""
        found = []
        cut = self.truncation
        if cut.rows:
            severity = WARNING if cut.rows > MAX_CUT_SHARE * self.num_rows else INFO
            labels = [f"{name!r} {100 * rows / total:.0f} %" for name, (rows, total) in cut.by_label.items()]
            at = f"{cut.max_length} tokens" if cut.windows is None else f"{cut.windows} windows"
            what = (
                f"{share(cut.rows, self.num_rows)} {named(self.part)} texts are cut at {at} and "
                f"lose their {cut.side}, {counted(cut.lost_tokens, 'token')} in all; by label: {listed(labels)}."
            )
            do = (
                f"A maximal length of {self.percentiles[99]} tokens would keep 99 % of the texts whole."
                if cut.windows is None
                else "A larger model.max_windows reads more of them."
            )
            found.append(Finding("truncation", severity, what, do))
        if self.num_no_token:
            what = (
                f"{counted(self.num_no_token, f'{named(self.part)} text')} "
                f"{verb(self.num_no_token, 'comes', 'come')} to no token: "
                f"{verb(self.num_no_token, 'row', 'rows')} {listed(self.no_token_rows, total=self.num_no_token)}."
            )
            found.append(Finding("short texts", WARNING, what, "The model sees nothing of them; remove them."))
        if self.num_one_token:
            what = (
                f"{counted(self.num_one_token, f'{named(self.part)} text')} "
                f"{verb(self.num_one_token, 'is a single token', 'are single tokens')}: "
                f"{listed([repr(text) for text in self.one_token_texts])}."
            )
            found.append(Finding("short texts", INFO, what, "Check that so little says what the label says."))
        return tuple(found)


def token_lengths(
    part: str,
    rows: LabelledRows,
    encoded: Encoded,
    labels: LabelMap,
    *,
    special_tokens: int,
    long: LongTexts | None = None,
) -> TokenLengths:
    """Measure one part.

    Args:
        part: what it is called.
        rows: its N rows.
        encoded: the same rows as tokens.
        labels: the classes.
        special_tokens: tokens that the tokeniser adds to each text (or pair).
        long: what was read of longer texts; their first tokens when None.
    """
    whole = encoded.whole_lengths
    # A tokeniser without special tokens cannot say "none": the encoder put one fallback token there.
    none = whole <= special_tokens
    one = whole == special_tokens + 1
    if encoded.num_empty:
        none, one = _with_fallbacks(rows, none, one)
    ranks = np.percentile(whole, PERCENTILES, method="inverted_cdf") if len(whole) else np.zeros(len(PERCENTILES))
    texts = dict.fromkeys(excerpt(rows.corpus.texts[position], 30) for position in np.flatnonzero(one)[:MAX_EXAMPLES])
    return TokenLengths(
        part,
        len(rows),
        dict(zip(PERCENTILES, ranks.astype(int).tolist(), strict=True)),
        int(whole.max(initial=0)),
        _truncation(rows, encoded, labels, long or LongTexts()),
        _row_numbers(rows, none),
        int(np.count_nonzero(none)),
        _row_numbers(rows, one),
        int(np.count_nonzero(one)),
        tuple(texts),
    )


def _with_fallbacks(
    rows: LabelledRows, none: NDArray[np.bool_], one: NDArray[np.bool_]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Tell a fallback token from a text of one token: it stands for characters that cannot be printed."""
    unprintable = np.zeros(len(rows), bool)
    for position in np.flatnonzero(one):
        unprintable[position] = not any(c.isprintable() and not c.isspace() for c in rows.corpus.texts[position])
    return none | (one & unprintable), one & ~unprintable


def _truncation(rows: LabelledRows, encoded: Encoded, labels: LabelMap, long: LongTexts) -> Truncation:
    cut = encoded.lost_tokens > 0
    by_label: dict[str, tuple[int, int]] = {}
    for number, name in enumerate(labels.names):
        has = rows.targets[:, number] > 0.5 if rows.targets.ndim == 2 else rows.targets == number
        num_cut = int(np.count_nonzero(cut & has))
        if num_cut:
            by_label[name] = (num_cut, int(np.count_nonzero(has)))
    order = sorted(by_label, key=lambda name: -by_label[name][0] / by_label[name][1])
    # A text that was cut in windows fills each of them.
    lengths = encoded.lengths[cut] if encoded.windows is None else encoded.windows.lengths
    return Truncation(
        int(lengths.max()) if cut.any() else None,
        int(np.count_nonzero(cut)),
        int(encoded.lost_tokens.sum()),
        "middle" if long.policy == "head_tail" else "end",
        {name: by_label[name] for name in order},
        long.max_windows if long.policy == "windows" else None,
    )


def _row_numbers(rows: LabelledRows, chosen: NDArray[np.bool_]) -> tuple[int, ...]:
    return tuple(rows.corpus.rows[position] for position in np.flatnonzero(chosen)[:MAX_EXAMPLES])
