"""Traces of damage in texts: characters that a wrong conversion left behind.

| kind | what is looked for |
|---|---|
| ``replacement`` | U+FFFD, put where bytes could not be read: what stood there is lost |
| ``mojibake`` | UTF-8 that was read as Windows-1252 or Latin-1: ``Ã©`` for ``é``, ``â€™`` for an apostrophe |
| ``control`` | control characters other than tab and line ends |
| ``byte_order_mark`` | U+FEFF within a text, from files that were joined |
| ``html_entity`` | ``&amp;``, ``&#39;`` and the like |
| ``mixed_line_ends`` | a text with LF and with CRLF or CR |
| ``repaired`` | bytes that were not UTF-8 and were read as Windows-1252 when the file was read |

Mojibake is proved and not guessed: the characters in question are turned back into bytes and have to be UTF-8 again.
Honest text has a few such sequences as well: an accented capital before a no-break space or a quotation mark
(``CAFÉ »``). So those that do not begin with ``Â Ã â ð ï`` (European accents, punctuation, emoji) count only when three
come in a row, as they do in Cyrillic or Greek. The alternative, repairing what looks damaged, is another tool's work
(Speer 2019, ftfy), and one for the user to decide on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from qlassify.data.corpus import Corpus
from qlassify.data.findings import INFO, WARNING, Finding, excerpt, listed, named, share, verb

MAX_DAMAGED_ROWS = 5
"""Examples of each kind of damage in each part."""

# Windows-1252's printable characters for the bytes 0x80 to 0xBF, and Latin-1's control characters beside them.
_TRAILING = "".join(bytes([byte]).decode("cp1252", "ignore") for byte in range(0x80, 0xC0)) + "".join(
    map(chr, range(0x80, 0xA0))
)
_T = f"[{re.escape(_TRAILING)}]"
_MOJIBAKE = re.compile(f"[ÂÃ]{_T}|[âï]{_T}{{2}}|ð{_T}{{3}}|(?:[Ä-ß]{_T}){{3,}}|(?:[à-ï]{_T}{{2}}){{2,}}")
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|amp|lt|gt|quot|apos|nbsp|[lr][sd]quo|[mn]dash|hellip);")
_LINE_ENDS = re.compile(r"\r\n|\r|\n")
_TO_BYTES = {ord(bytes([byte]).decode("cp1252", "ignore") or chr(byte)): byte for byte in range(0x80, 0x100)}


@dataclass(frozen=True, slots=True)
class Damage:
    """One kind of damage in one part.

    Attributes:
        part: which part.
        kind: one of those in the module's table.
        num_rows: rows that show it.
        part_rows: rows of the part.
        rows: numbers of the first of them in the file.
        examples: what was found in these rows, with some text around.
    """

    part: str
    kind: str
    num_rows: int
    part_rows: int
    rows: tuple[int, ...]
    examples: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """For ``data.json``."""
        return asdict(self)

    def findings(self) -> tuple[Finding, ...]:
        """What to say about it."""
        severity, noun, do = _WORDING[self.kind]
        example = f", {self.examples[0]!r}" if self.examples else ""
        what = (
            f"{share(self.num_rows, self.part_rows)} {named(self.part)} texts {verb(self.num_rows, 'holds', 'hold')} "
            f"{noun}: "
            f"{verb(self.num_rows, 'row', 'rows')} {listed(self.rows, 3, self.num_rows)}{example}."
        )
        return (Finding("encoding", severity, what, do),)


_WORDING: Mapping[str, tuple[str, str, str]] = {
    "replacement": (
        WARNING,
        "the replacement character U+FFFD",
        "What stood there is lost: go back to the file before it was converted.",
    ),
    "mojibake": (WARNING, "UTF-8 that was read as Windows-1252", "Convert the file again from its source."),
    "control": (INFO, "control characters", "Remove them if they mean nothing."),
    "byte_order_mark": (
        INFO,
        "a byte order mark inside the text",
        "Read each file as utf-8-sig before joining them.",
    ),
    "html_entity": (INFO, "HTML entities", "Unescape them if the texts to be classified will have none."),
    "mixed_line_ends": (INFO, "both CRLF and LF", "Write all line ends in one way."),
    "repaired": (
        WARNING,
        "bytes that are not UTF-8 and were read as Windows-1252",
        "Save the file as UTF-8 if it has another encoding than that.",
    ),
}


def find_damage(part: str, corpus: Corpus) -> tuple[Damage, ...]:
    """Every kind of damage that ``corpus`` shows, in the order of the table."""
    found: dict[str, list[tuple[int, str]]] = {}
    counts: dict[str, int] = {}
    for position, row in enumerate(corpus.rows):
        text = corpus.texts[position] if corpus.pairs is None else f"{corpus.texts[position]} {corpus.pairs[position]}"
        for kind, example in _in_text(text):
            counts[kind] = counts.get(kind, 0) + 1
            if counts[kind] <= MAX_DAMAGED_ROWS:
                found.setdefault(kind, []).append((row, example))
    if corpus.repaired:
        counts["repaired"] = corpus.repaired
        repaired = corpus.repaired_rows[:MAX_DAMAGED_ROWS]
        found["repaired"] = [(row, excerpt(corpus.texts[corpus.rows.index(row)])) for row in repaired]
    return tuple(
        Damage(
            part,
            kind,
            counts[kind],
            len(corpus),
            tuple(row for row, _ in found[kind]),
            tuple(example for _, example in found[kind]),
        )
        for kind in _WORDING
        if kind in counts
    )


def _in_text(text: str) -> Iterator[tuple[str, str]]:
    """(kind, example) of each kind of damage in one text."""
    if "&" in text and (entity := _ENTITY.search(text)) is not None:
        yield "html_entity", _around(text, entity.start())
    if "\r" in text and len(set(_LINE_ENDS.findall(text))) > 1:
        yield "mixed_line_ends", _around(text, text.index("\r"))
    if not text.isprintable():
        for kind, find in _UNPRINTABLE.items():
            if (place := find(text)) >= 0:
                yield kind, _around(text, place)
    if text.isascii():
        return
    if (place := text.find("\ufffd")) >= 0:
        yield "replacement", _around(text, place)
    if (place := mojibake_at(text)) >= 0:
        yield "mojibake", _around(text, place)


def mojibake_at(text: str) -> int:
    """Where UTF-8 read as Windows-1252 or Latin-1 begins in ``text``, or -1."""
    for match in _MOJIBAKE.finditer(text):
        try:
            bytes(_TO_BYTES.get(ord(character), ord(character)) for character in match.group()).decode("utf-8")
        except ValueError:  # not UTF-8 after all, or a character of no byte
            continue
        return match.start()
    return -1


def _find_control(text: str) -> int:
    match = _CONTROL.search(text)
    return -1 if match is None else match.start()


_UNPRINTABLE: Mapping[str, Callable[[str], int]] = {
    "control": _find_control,
    "byte_order_mark": lambda text: text.find("\ufeff"),
}


def _around(text: str, place: int) -> str:
    """A few characters on either side of ``place``."""
    return excerpt(text[max(0, place - 15) : place + 25], 60)
