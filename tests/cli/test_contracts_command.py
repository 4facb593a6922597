"""``qlassify contracts``: the list, one of them, and both for a machine."""

from __future__ import annotations

import json

import pytest
from command_line import Command

from qlassify.contracts.rates import BANDS
from qlassify.contracts.registry import CONTRACTS


def test_the_list_has_every_contract(command: Command) -> None:
    done = command("contracts")
    assert (done.code, done.err) == (0, "")
    for contract in CONTRACTS:
        assert contract.id in done.out
        assert contract.title in done.out


@pytest.mark.parametrize("name", ["C-LR-001", "c-hp-005", "C-SEQ-001"])
def test_one_is_explained(command: Command, name: str) -> None:
    done = command("contracts", name)
    assert done.code == 0
    contract = next(one for one in CONTRACTS if one.id == name.upper())
    # Lines are wrapped to the width of the terminal.
    text = " ".join(done.out.split())
    for part in (
        contract.title,
        *contract.changes,
        "source",
        "example",
        "passes",
        contract.sources[0].work.split(",")[0],
    ):
        assert part in text, part


def test_json_is_one_document(command: Command) -> None:
    everything = json.loads(command("contracts", "--json").out)
    assert [one["id"] for one in everything] == [contract.id for contract in CONTRACTS]
    one = json.loads(command("contracts", "C-CLIP-001", "--json").out)
    assert one in everything
    assert set(one) >= {"id", "title", "rule", "severities", "sources", "examples", "needs", "changes", "widens"}
    assert one["severities"] == ["info", "warn"]


def test_the_bands_of_learning_rates_are_shown(command: Command) -> None:
    """The rule without its table would name no threshold."""
    text = " ".join(command("contracts", "C-LR-001").out.split())
    assert "lora, encoders of 60 M to 200 M: 0.0001 to 0.001, centre 0.0004" in text
    bands = json.loads(command("contracts", "C-LR-001", "--json").out)["bands"]
    row = {"family": "lora", "models": "encoders of 60 M to 200 M", "centre": 4e-4, "low": 1e-4, "high": 1e-3}
    assert row in bands
    assert len(bands) == len(BANDS)


def test_an_unknown_contract_is_a_sentence(command: Command) -> None:
    done = command("contracts", "C-CLIP-01")
    assert done.code == 2
    assert "Did you mean C-CLIP-001?" in done.err
    assert "Traceback" not in done.err
