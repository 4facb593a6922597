"""The type of the fixture ``tally``."""

from __future__ import annotations

from collections.abc import Callable

Tally = Callable[[str, int], None]
"""Counts what a test survived: call it with the name of a kind of fault, and a number."""
