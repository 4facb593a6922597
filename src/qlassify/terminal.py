r"""Text from elsewhere, so that printing it cannot steer a terminal or hide what it says.

Labels, texts, file names and names of tensors come from other people. An escape character in one of them can clear a
screen, a carriage return can overwrite a sentence, and a bidirectional override can show a line in another order than
it is read. Such characters are shown as escapes, ``\x1b`` and ``\u202e``. Line ends and tabs stay, and so do letters of
every script, the marks U+200E and U+200F that right-to-left text needs, and whatever else has a shape or a width.

In JSON nothing has to be changed: the same characters have another spelling there, which means the same. Leaving them
out altogether was the alternative; a label that is printed shorter than it is can be taken for another.
"""

from __future__ import annotations

import contextlib
import json
import sys
from typing import Any

_CONTROLS = (*range(0x20), *range(0x7F, 0xA0))
_DIRECTIONS = (0x061C, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_LINE_ENDS = (0x2028, 0x2029)
_SURROGATES = range(0xD800, 0xE000)
"""Bytes of a file name that are not UTF-8 arrive as these; they have no form in any encoding."""
_STEERING = (*_CONTROLS, *_DIRECTIONS, *_LINE_ENDS, *_SURROGATES)
_SHOWN = {code: f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" for code in _STEERING if chr(code) not in "\n\t"}
_IN_JSON = {code: f"\\u{code:04x}" for code in _STEERING if code > 0x1F}


def visible(text: str) -> str:
    """``text`` with everything that would steer a terminal shown as an escape."""
    return text if text.isascii() and text.isprintable() else text.replace("\r\n", "\n").translate(_SHOWN)


def tell(sentence: str) -> None:
    """Print a sentence for a person on standard error, if it can be printed.

    What is told while something else is done (a checkpoint that failed, a reservation that could not be renewed) is
    no reason to end it, and neither is a log on a disk that is full. Where there is no standard error at all, nothing
    is printed on standard output instead: a program may be reading that.
    """
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            print(visible(f"qlassify: {sentence}"), file=sys.stderr)


def json_text(value: Any) -> str:
    """``value`` as JSON in one line, letters of all scripts as they are, and nothing in it that steers a terminal."""
    return json.dumps(value, ensure_ascii=False).translate(_IN_JSON)
