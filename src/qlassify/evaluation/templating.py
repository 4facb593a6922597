"""The jinja environments of report and model card, and how values are spelled in them.

Escaping is the default and not the template's duty. Labels and texts come from other people's data and may hold
markup, quotes or table separators; the HTML environment escapes every expression, and the Markdown environment does
the same with Markdown's own rules (jinja has none) through its ``finalize`` hook. What a template prints unescaped is
named as such: ``| safe`` on our own SVG, ``Verbatim`` for front matter that the YAML writer has quoted.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlassify.evaluation import wording
from qlassify.evaluation.intervals import Interval
from qlassify.terminal import visible

if TYPE_CHECKING:
    from jinja2 import Environment

MAX_EXAMPLE_CHARACTERS = 320
MAX_NAME_CHARACTERS = 60
SETTING_DIGITS = 9
"""A learning rate must come back as it was typed; four digits are enough for a score."""


def _visible(value: object) -> object:
    """A string without control characters and changes of direction, which would show the page in another order."""
    return visible(value) if type(value) is str else value


class Verbatim(str):
    """Text that the Markdown environment must print as it is."""


def html_environment() -> Environment:
    """For HTML: every expression is escaped."""
    # Not select_autoescape: it looks at the last suffix, which is .j2 here, and would escape nothing.
    return _environment(autoescape=True, finalize=_visible)


def markdown_environment() -> Environment:
    """For Markdown: every expression is escaped by ``markdown_text``."""
    return _environment(autoescape=False, finalize=markdown_text)


def _environment(**options: Any) -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        **options,
    )
    environment.filters.update(
        percent=wording.percent,
        number=wording.number,
        score=score,
        between=between,
        score_name=wording.score_name,
        setting=lambda value: wording.number(value, SETTING_DIGITS),
        label=lambda name: wording.shorten(visible(str(name)), MAX_NAME_CHARACTERS),
        excerpt=lambda text: wording.shorten(visible(str(text)), MAX_EXAMPLE_CHARACTERS),
        keep_units=lambda text: text.replace(" %", "\N{NO-BREAK SPACE}%"),
        count=lambda count: "-" if count is None else f"{count:,}",
    )
    environment.tests["nested"] = lambda value: isinstance(value, Mapping) and len(value) > 0
    return environment


def score(value: float | None) -> str:
    """A score in a table: three decimals, or a dash."""
    return "-" if value is None else f"{value:.3f}"


def between(interval: Interval | None, percent: bool = False) -> str:
    """An interval behind a score, in the score's own spelling; empty without one."""
    if interval is None:
        return ""
    if percent:
        return f"{wording.percent(interval.low).removesuffix(' %')} to {wording.percent(interval.high)}"
    return f"{score(interval.low)} to {score(interval.high)}"


def markdown_text(value: object) -> object:
    """Escape a value for a line, a table cell or a list item of Markdown.

    Markup is turned into entities (renderers pass HTML through), Markdown's own signs get a backslash, list markers
    only where they would open a list or draw a line, and line breaks become spaces, because a table row ends at one.
    """
    if isinstance(value, Verbatim) or not isinstance(value, str):
        return value
    one_line = html.escape(" ".join(visible(value).split()), quote=False)
    escaped = re.sub(r"([\\`*_\[\]|~#$])", r"\\\1", one_line)
    return re.sub(r"^(\d*)([-+.)=])(?= |$|[-=])", r"\1\\\2", escaped)
