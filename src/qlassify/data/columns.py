"""Which column is the text, which the second text, which the label.

Files say it with names, and the names in use are few. They are listed here in ranks: a file with ``text`` and
``title`` means ``text``; one with ``review`` and ``comment`` could mean either, and then nothing is guessed. Names
compare without regard to case. In order:

1. An option names a column: that one. A number that is no name counts columns from 1.
2. A known pair of names, (``premise``, ``hypothesis``) and the like: a task on pairs.
3. The only column of the best rank that has any.
4. The only column that is left when the others are taken: ``body_html,label`` has its text in ``body_html``.

Two candidates of one rank, or none, are an error that lists the columns and shows the options. The alternative, taking
the first or the longest strings, works until the day it trains on the wrong column without a word.

The same names tell whether a delimited file has a header at all (``is_header``).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from qlassify.data.records import Columns, ReadOptions
from qlassify.errors import DataError

TEXT_NAMES: tuple[tuple[str, ...], ...] = (
    ("text",),
    ("sentence", "input", "utterance", "texts", "sentences", "inputs"),
    ("content", "question", "query", "comment", "review", "document", "body", "message", "prompt", "tweet", "post"),
    ("description", "abstract", "summary", "snippet"),
    ("title", "headline", "subject"),
)
LABEL_NAMES: tuple[tuple[str, ...], ...] = (
    ("label", "labels"),
    ("class", "category", "target", "intent", "sentiment", "y", "output", "emotion", "topic", "quality", "gold_label"),
    ("classes", "categories", "targets", "intents", "sentiments", "outputs", "emotions", "topics"),
    ("label_text", "label_name", "class_name"),
)
PAIR_NAMES: tuple[tuple[str, str], ...] = (
    ("text", "text_pair"),
    ("sentence1", "sentence2"),
    ("sentence_1", "sentence_2"),
    ("sentence_a", "sentence_b"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("text_a", "text_b"),
    ("text1", "text2"),
    ("question", "sentence"),
    ("question", "passage"),
    ("query", "passage"),
    ("#1 string", "#2 string"),
)

_FIRST_TEXTS = frozenset(name for rank in TEXT_NAMES for name in rank) | {first for first, _ in PAIR_NAMES}
_SECOND_TEXTS = frozenset(second for _, second in PAIR_NAMES)
_LABELS = frozenset(name for rank in LABEL_NAMES for name in rank)

_REMEDY = "Name the columns: --text NAME --label NAME (no header: --no-header --text 1 --label 2)"


def is_header(cells: Sequence[str], options: ReadOptions) -> bool | None:
    """Whether the first row of a delimited file names its columns; None when nothing tells.

    The option decides. Else, where options count columns, the row must have a known name in the very column that is
    counted (``text,label`` read with ``--text 1 --label 2`` has a header; ``How so?,question`` has none, since
    ``question`` is no name for a label; and ``Fine,1`` has none although its label is "1"). Where options name columns
    the row is taken for a header: it has them, or the search for them will say so. Else any known name will do.
    """
    if options.header is not None:
        return options.header
    folded = [cell.strip().casefold() for cell in cells]
    asked = ((options.text, _FIRST_TEXTS), (options.text_pair, _SECOND_TEXTS), (options.label, _LABELS))
    given = [(name, known) for name, known in asked if name is not None]
    counted = [(position, known) for name, known in given if (position := _position(name, len(cells))) is not None]
    if counted:
        return any(folded[position] in known for position, known in counted)
    if given:
        return True
    return True if any(cell in _FIRST_TEXTS | _SECOND_TEXTS | _LABELS for cell in folded) else None


def find_columns(
    names: Sequence[str], options: ReadOptions, *, where: str, needs_label: bool, pair: bool | None = None
) -> Columns:
    """The columns to read, by the rules above.

    Args:
        names: the column names of the file.
        options: names or numbers that the user gave.
        where: the file, for messages.
        needs_label: False for prediction: a label column may then be absent, and is not returned.
        pair: True wants a second text, False wants none, None takes one if the names speak of one.

    Raises:
        DataError: no candidate, several, a given name that does not exist, a name that two columns have.
    """
    label = _label_column(names, options.label, where, needs_label)
    rest = [name for name in names if name != label]
    text, second = _text_columns(rest, names, options, where, pair)
    if text is None:
        raise DataError("no text column found", where=where, got=_listing(names), do=_REMEDY)
    if label is None and needs_label:
        raise DataError("no label column found", where=where, got=_listing(names), do=_REMEDY)
    if pair and second is None:
        wanted = "a second text, such as premise and hypothesis"
        raise DataError("one text column", where=where, got=_listing(names), wanted=wanted, do="Pass --text-pair NAME")
    used = [name for name in (text, second, label) if name is not None]
    for name in used:
        if used.count(name) > 1:
            raise DataError(f"column {name!r} is used twice", where=where, wanted="different columns", do=_REMEDY)
    extra = tuple(dict.fromkeys(_given(names, given, "slice", where) for given in options.extra))
    for name in (*used, *extra):
        if list(names).count(name) > 1:
            do = "Rename one of them, or pass --no-header with column numbers after removing the header"
            raise DataError(f"several columns are named {name!r}", where=where, got=_listing(names), do=do)
    unread = tuple(name for name in names if name not in {*used, *extra, label})
    return Columns(text=text, text_pair=second, label=label if needs_label else None, extra=extra, unread=unread)


def _label_column(names: Sequence[str], given: str | None, where: str, needed: bool) -> str | None:
    if needed:
        return _by_rank(names, LABEL_NAMES, "label", where) if given is None else _given(names, given, "label", where)
    # For prediction a label column matters only because it cannot be the text.
    if given is not None:
        return next((name for name in names if name.casefold() == given.casefold()), None)
    found = [name for name in names if name.casefold() in _LABELS]
    return found[0] if len(found) == 1 else None


def _text_columns(
    rest: Sequence[str], names: Sequence[str], options: ReadOptions, where: str, pair: bool | None
) -> tuple[str | None, str | None]:
    second = None
    if options.text_pair is not None and pair is not False:
        second = _given(names, options.text_pair, "text-pair", where)
        rest = [name for name in rest if name != second]
    if options.text is not None:
        first = _given(names, options.text, "text", where)
        if pair and second is None:
            second = _partner(first, rest, of_first=True)
        return first, second
    if second is not None:
        known = _partner(second, rest, of_first=False)
        if known is not None:
            return known, second
    elif pair is not False:
        found = _known_pair(rest, where)
        if found is not None:
            return found
    first_text = _by_rank(rest, TEXT_NAMES, "text", where)
    if first_text is None and len(rest) == 1:
        first_text = rest[0]
    return first_text, second


def _known_pair(names: Sequence[str], where: str) -> tuple[str, str] | None:
    by_folded = {name.casefold(): name for name in names}
    found = [(by_folded[a], by_folded[b]) for a, b in PAIR_NAMES if a in by_folded and b in by_folded]
    if not found:
        return None
    rivals = [name for name in names if name.casefold() in TEXT_NAMES[0] and all(name not in both for both in found)]
    if len(found) > 1 or rivals:
        candidates = [" + ".join(both) for both in found] + rivals
        raise DataError("several columns could be the text", where=where, got=_listing(candidates), do=_REMEDY)
    return found[0]


def _partner(name: str, names: Iterable[str], *, of_first: bool) -> str | None:
    """The column that a known pair of names puts beside ``name``."""
    partners = {(b if of_first else a) for a, b in PAIR_NAMES if (a if of_first else b) == name.casefold()}
    found = [other for other in names if other.casefold() in partners]
    return found[0] if len(found) == 1 else None


def _by_rank(names: Sequence[str], ranks: tuple[tuple[str, ...], ...], kind: str, where: str) -> str | None:
    for rank in ranks:
        found = [name for name in names if name.casefold() in rank]
        if len(found) > 1:
            do = f"Pass --{kind} NAME"
            raise DataError(f"several columns could be the {kind}", where=where, got=_listing(found), do=do)
        if found:
            return found[0]
    return None


def _given(names: Sequence[str], given: str, option: str, where: str) -> str:
    """The column that the user means by ``given``: its exact name, its name in another case, or its number."""
    if given in names:
        return given
    alike = [name for name in names if name.casefold() == given.casefold()]
    if len(alike) == 1:
        return alike[0]
    position = _position(given, len(names))
    if position is not None:
        return names[position]
    folded = {name.casefold(): name for name in names}
    near = difflib.get_close_matches(given.casefold(), list(folded), n=1, cutoff=0.5)
    do = f"Did you mean --{option} {folded[near[0]]!r}?" if near else f"Pass --{option} with one of these names"
    raise DataError(f"no column {given!r}", where=where, got=_listing(names), do=do)


def _position(given: str, num_columns: int) -> int | None:
    """The 0-based column that a 1-based number means, None if it is no such number."""
    if not (given.isascii() and given.isdigit()):
        return None
    return int(given) - 1 if 1 <= int(given) <= num_columns else None


def _listing(names: Sequence[str], limit: int = 20) -> str:
    """The names in a line, cut where a wide file would fill the screen."""
    shown = ", ".join(repr(name if len(name) <= 40 else name[:37] + "...") for name in names[:limit])
    more = f", and {len(names) - limit} more" if len(names) > limit else ""
    return f"columns {shown}{more}" if names else "no columns"
