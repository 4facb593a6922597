"""``qlassify ledger``: who has reserved memory on this machine, and what is left.

There is no option that takes a reservation away from a process that runs: the memory would stay taken. What has ended
counts for nothing already; ``--prune`` only removes it from the file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from qlassify.cli import options
from qlassify.cli.printing import say, say_json

if TYPE_CHECKING:
    from rich.table import Table

    from qlassify.planning.accounting import Balance
    from qlassify.planning.ledger import Ledger, LedgerView
    from qlassify.planning.ledger_records import Reservation, Ticket


def ledger(
    prune: Annotated[bool, typer.Option("--prune", help="Remove entries that have ended from the file.")] = False,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Show the memory of this machine, what is reserved of it and by whom, and who waits."""
    from qlassify.planning.ledger import Ledger
    from qlassify.planning.ledger_location import ledger_path, off_reason

    off = off_reason()
    if off is not None:
        say_json({"off": off}) if json else say(off)
        return
    book = Ledger(ledger_path(), tell=lambda sentence: say(f"qlassify: {sentence}", error=True))
    view = book.prune() if prune else book.view()
    balances, note = _balances(book, view)
    if json:
        say_json(_record(book, view, balances, note))
    else:
        _show(book, view, balances, note)


def _balances(book: Ledger, view: LedgerView) -> tuple[list[Balance], str | None]:
    from qlassify.planning.accounting import balance

    devices, note = book.devices.every_device()
    found = [balance(device, view.current.reservations, book.devices.free_bytes(device)) for device in devices]
    return found, note


def _state(book: Ledger, view: LedgerView, one: Reservation | Ticket) -> str:
    """What an entry is worth."""
    if one in view.current.reservations or one in view.current.waiting:
        return book.liveness(one.owner).value
    return "ended"


def _record(book: Ledger, view: LedgerView, balances: list[Balance], note: str | None) -> dict[str, Any]:
    """The whole view for a machine: bytes and seconds."""

    def entry(one: Reservation | Ticket) -> dict[str, Any]:
        return {
            "id": one.id,
            "device": one.device,
            "task": one.task,
            "pid": one.owner.pid,
            "state": _state(book, view, one),
            "budget_bytes": one.budget_bytes,
            "age_seconds": round(view.now - one.taken_at, 3),
            "lease_left_seconds": round(one.lease_until - view.now, 3),
        }

    return {
        "path": str(book.file.path),
        "note": note,
        "closed_seconds": max(0.0, (view.current.closed_until or view.now) - view.now),
        "devices": [
            {
                "device": one.device.key,
                "name": one.device.name,
                "total_bytes": one.device.total_bytes,
                "capacity_bytes": one.device.capacity_bytes,
                "reserved_bytes": one.claimed_bytes,
                "free_bytes": one.free_bytes,
                "available_bytes": one.available_bytes,
            }
            for one in balances
        ],
        "reservations": [{**entry(one), "actual_bytes": one.actual_bytes} for one in view.state.reservations],
        "waiting": [entry(one) for one in view.state.waiting],
    }


def _show(book: Ledger, view: LedgerView, balances: list[Balance], note: str | None) -> None:
    from qlassify.cli.console import make_console
    from qlassify.planning.plan import human_bytes

    console = make_console(soft_wrap=True)
    devices = _table("device", "name", "total", "capacity", "reserved", "free now", "available")
    for one in balances:
        sizes = (one.device.total_bytes, one.device.capacity_bytes, one.claimed_bytes, one.free_bytes or 0)
        cells = [human_bytes(size) for size in (*sizes, one.available_bytes)]
        devices.add_row(one.device.key, one.device.name, *cells)
    console.print(devices)
    if note is not None:
        console.print(note)
    if view.current.closed_until is not None:
        console.print(f"closed for {view.current.closed_until - view.now:.0f} s: the ledger was damaged")
    entries = _table("device", "process", "task", "budget", "in use", "for", "lease left", "state")
    for kind, records in (("", view.state.reservations), ("waits, ", view.state.waiting)):
        for entry in records:
            used = getattr(entry, "actual_bytes", None)
            entries.add_row(
                entry.device,
                str(entry.owner.pid),
                entry.task,
                human_bytes(entry.budget_bytes),
                "-" if used is None else human_bytes(used),
                _duration(view.now - entry.taken_at),
                _duration(max(0.0, entry.lease_until - view.now)),
                kind + _state(book, view, entry),
            )
    console.print(entries if entries.row_count else "nothing is reserved")
    console.print(f"ledger {book.file.path}")


def _table(*columns: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in columns:
        words = name in ("device", "name", "task", "state")
        table.add_column(name, justify="left" if words else "right", overflow="fold")
    return table


def _duration(seconds: float) -> str:
    """``3725`` as ``1:02:05``."""
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
