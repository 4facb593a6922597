"""Cells of CSV and TSV files that a spreadsheet opens without running them.

A spreadsheet takes a cell that begins with ``=``, ``+``, ``-`` or ``@`` for a formula, also behind a tab or a carriage
return, and a formula can send what is in the table to somebody else. Labels and texts are other people's words. Such a
cell gets an apostrophe in front, which spreadsheets show as text; numbers (``-1``, ``+2.5e3``) stay as they are, they
compute nothing.

    guarded   =1+1 -> '=1+1      '=1+1 -> ''=1+1      -1 -> -1      dog -> dog
    plain     the way back, for every cell that ``guarded`` wrote

Quoting alone does not help, since quotes are gone before a cell is looked at. Leaving the cells alone was the
alternative, with a sentence in the documentation; a file that is dangerous to open is a poor default, and whoever wants
values as they are has JSONL and Parquet, where nothing is changed.
"""

from __future__ import annotations

import re

APOSTROPHE = "'"
_SIGNS = ("=", "+", "-", "@", "\t", "\r")
_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")


def guarded(cell: str) -> str:
    """The cell as it is written: with an apostrophe in front where it would be run."""
    return APOSTROPHE + cell if _is_run(cell) else cell


def plain(cell: str) -> str:
    """The cell as it was, from what ``guarded`` wrote."""
    return cell[1:] if cell.startswith(APOSTROPHE) and _is_run(cell) else cell


def _is_run(cell: str) -> bool:
    """Whether a cell is a formula, or is one behind apostrophes, which have to be told from ours on the way back."""
    bare = cell.lstrip(APOSTROPHE)
    return bare.startswith(_SIGNS) and _NUMBER.fullmatch(bare) is None
