"""Where the ledger is kept, and where there is none."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from qlassify.planning import process_identity

VARIABLE = "QLASSIFY_LEDGER"
"""The environment variable that names the ledger's file, or says ``off``."""
_OFF = ("off", "0", "no", "false")


def ledger_path(environment: Mapping[str, str] = os.environ) -> Path:
    """Where the ledger is kept.

    ``QLASSIFY_LEDGER`` names the file. Without it, the file is in the user's cache folder and named by the boot: a home
    folder that several machines share holds a ledger for each of them.
    """
    given = environment.get(VARIABLE, "")
    if given:
        return Path(given).expanduser().absolute()
    cache = environment.get("XDG_CACHE_HOME", "")
    # The base directory specification: a relative path in the variable is to be ignored.
    folder = Path(cache) if Path(cache).is_absolute() else Path("~/.cache").expanduser()
    return folder / "qlassify" / f"ledger-{process_identity.boot_id()}.json"


def off_reason(environment: Mapping[str, str] = os.environ) -> str | None:
    """Why there is no ledger here, as a sentence; None if there is one."""
    if environment.get(VARIABLE, "").lower() in _OFF:
        return f"The memory ledger is off ({VARIABLE}={environment[VARIABLE]}): nothing is reserved."
    if find_spec("fcntl") is None or not process_identity.has_proc():
        return "The memory ledger is off: it needs Linux (/proc and file locks). Nothing is reserved."
    return None
