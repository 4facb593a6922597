"""Passwords and tokens taken out of sentences that are printed, logged or written.

Two kinds get into error messages: the name and password of an address (``https://name:password@host``), which
libraries repeat with the address, and the value of an environment variable that holds a token. Both are replaced by
asterisks, here and not where a message is made, because no call site knows what a library will say. Nothing of ours
reads a token; recognising them by their form was the alternative, and would need a list of every service's.
"""

from __future__ import annotations

import os
import re

STARS = "***"
SHORTEST_SECRET = 8
"""Characters of a value that is looked for; a shorter one would take words out of sentences."""

# One slash is enough: a path that was an address has lost the other.
_USER_INFO = re.compile(r"(:/{1,2})[^/\s@]+@")
_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_?KEY|CREDENTIAL", re.IGNORECASE)


def masked(text: str) -> str:
    """``text`` without names and passwords in addresses, and without the values of variables that hold secrets."""
    if "@" in text:
        text = _USER_INFO.sub(rf"\1{STARS}@", text)
    for name, value in os.environ.items():
        if len(value) >= SHORTEST_SECRET and value in text and _SECRET_NAME.search(name):
            text = text.replace(value, STARS)
    return text
