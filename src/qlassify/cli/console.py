"""The consoles that tables and progress are printed on.

rich reads ``[bold]`` as markup and ``:smile:`` as a picture; here both are labels like any others, and both are off.
What would steer the terminal is made visible behind everything that is printed, since a table's cells are not seen
before they are laid out. Where such a character stood, a table's column is a little out of line.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderableType, RenderHook, RenderResult
from rich.segment import Segment

from qlassify.terminal import visible


def make_console(**options: Any) -> Console:
    """A console for text from elsewhere; ``options`` are further ones of rich's."""
    console = Console(highlight=False, markup=False, emoji=False, **options)
    console.push_render_hook(_Visible())
    return console


class _Visible(RenderHook):
    """Puts everything that is printed behind ``_Shown``."""

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """The same, each made visible."""
        return [_Shown(one) for one in renderables]


@dataclass(frozen=True)
class _Shown:
    """What another renderable prints, made visible; rich's own controls and styles stay."""

    inner: RenderableType

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for segment in console.render(self.inner, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)
