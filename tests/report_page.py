"""A report as a reader sees it: sections by their headings, tables as rows of cells, numbers as they are printed."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "br", "wbr", "link", "img", "hr", "input"}


@dataclass
class Cell:
    """A cell of a table: what stands in it, and in small letters beneath."""

    text: str = ""
    small: str = ""


@dataclass
class Section:
    """What stands under one second-level heading (or before the first)."""

    heading: str = ""
    text: str = ""
    tables: dict[str, list[list[Cell]]] = field(default_factory=dict)
    """Class of the table -> rows of all tables of that class in the section."""
    facts: dict[str, str] = field(default_factory=dict)
    """Term -> description of the definition lists."""


class ReportPage(HTMLParser):
    """Reads a page; ``sections`` has its parts by heading, ``elements`` how many elements it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements = 0
        self.current = Section()
        self.sections = {"": self.current}
        self._open: list[str] = []
        self._table = ""
        self._rows: list[list[Cell]] = []
        self._term = ""
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements += 1
        if tag not in VOID:
            self._open.append(tag)
        if tag == "h2":
            self.current = Section()
        elif tag == "table":
            self._rows = self.current.tables.setdefault(dict(attrs).get("class") or "", [])
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append(Cell())
        elif tag == "dt":
            self._term = ""
        elif tag == "dd":
            self.current.facts[self._term] = ""

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements += 1

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"</{tag}> closes something else"
        if tag == "h2":
            self.sections[self.current.heading] = self.current

    def handle_data(self, data: str) -> None:
        if "style" in self._open or "title" in self._open:
            return
        data = data.replace("\N{NO-BREAK SPACE}", " ")
        if "h2" in self._open:
            self.current.heading += data
            return
        self.current.text += data
        if {"td", "th"} & set(self._open):
            cell = self._rows[-1][-1]
            if "small" in self._open:
                cell.small += data
            else:
                cell.text += data
        elif "dt" in self._open:
            self._term += data
        elif "dd" in self._open and "small" not in self._open:
            self.current.facts[self._term] += data

    @property
    def text(self) -> str:
        """Everything that is printed, headings left out, blanks and line ends as single blanks."""
        return " ".join(" ".join(section.text for section in self.sections.values()).split())


def texts(rows: list[list[Cell]]) -> list[list[str]]:
    """The cells' texts without what stands beneath in small letters."""
    return [[cell.text.strip() for cell in row] for row in rows]
