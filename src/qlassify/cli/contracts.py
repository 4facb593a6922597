"""``qlassify contracts``: the hyper-parameter contracts, and what one of them says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from qlassify.cli import options
from qlassify.cli.printing import say_json

if TYPE_CHECKING:
    from qlassify.contracts.rule import Contract


def contracts(
    contract: Annotated[str | None, typer.Argument(help="One contract's id, such as C-LR-001.")] = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """List the rules that settings are checked against, or explain one: thresholds, sources, examples, remedy."""
    from qlassify.contracts import registry

    chosen = None if contract is None else registry.contract(contract)
    if json:
        document = [_record(one) for one in registry.CONTRACTS] if chosen is None else _record(chosen)
        say_json(document)
    elif chosen is None:
        _show_all(registry.CONTRACTS)
    else:
        _explain(chosen)


def _record(contract: Contract[Any]) -> dict[str, Any]:
    """A contract for a machine."""
    from qlassify.contracts.rates import BAND_CONTRACT, BANDS
    from qlassify.contracts.wording import example_in_words

    record: dict[str, Any] = {
        "id": contract.id,
        "title": contract.title,
        "subject": contract.subject,
        "rule": contract.rule,
        "severities": [severity.name.lower() for severity in contract.severities],
        "methods": list(contract.kinds),
        "needs": list(contract.needs),
        "changes": list(contract.changes),
        "widens": list(contract.widens),
        "sources": [{"work": one.work, "kind": one.kind, "claim": one.claim} for one in contract.sources],
        "examples": [example_in_words(example) for example in contract.examples],
    }
    if contract.id == BAND_CONTRACT:
        names = ("family", "models", "centre", "low", "high")
        record["bands"] = [{name: getattr(band, name) for name in names} for band in BANDS]
    return record


def _show_all(contracts: tuple[Contract[Any], ...]) -> None:
    from rich.table import Table
    from rich.text import Text

    from qlassify.cli.console import make_console
    from qlassify.contracts.wording import severities

    table = Table(box=None, pad_edge=False)
    for name in ("contract", "severity", "about"):
        table.add_column(name, overflow="fold")
    subject = ""
    for one in contracts:
        if one.subject != subject:
            subject = one.subject
            table.add_row("", "", Text(subject, style="bold"))
        table.add_row(Text(one.id), Text(severities(one)), Text(one.title))
    console = make_console()
    console.print(table)
    console.print("\nqlassify contracts ID explains one.")


def _explain(contract: Contract[Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    from qlassify.cli.console import make_console
    from qlassify.contracts.wording import explain

    console = make_console()
    console.print(Text(f"{contract.id}  {contract.title}", style="bold"))
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for heading, text in explain(contract):
        table.add_row(heading, Text(text))
    console.print(table)
