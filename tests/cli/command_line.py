"""What a call of the command gives back to a test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Done:
    """What a call of the command came to."""

    code: int
    out: str
    err: str


Command = Callable[..., Done]
"""The fixture ``command``: call it with arguments, and ``stdin`` if need be."""
