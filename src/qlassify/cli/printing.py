"""How the command prints lines and JSON documents: nothing from elsewhere in them can steer a terminal.

What is printed goes through ``terminal`` here, so that no verb has to remember it. Tables are in ``console``, which
imports rich.
"""

from __future__ import annotations

import sys
from typing import Any

from qlassify.terminal import json_text, visible


def say(text: object = "", *, error: bool = False) -> None:
    """Print a line on standard output, or on standard error."""
    print(visible(str(text)), file=sys.stderr if error else sys.stdout)


def say_json(value: Any) -> None:
    """Print one JSON document in a line."""
    print(json_text(value))
