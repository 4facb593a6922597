"""``qlassify ledger``: what it shows, as a table and as JSON, and that looking changes nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import Command

from qlassify.planning.devices import HOST
from qlassify.planning.ledger import Ledger
from qlassify.planning.ledger_records import Reservation, from_json, to_json
from qlassify.planning.memory_guard import reserve

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the ledger needs Linux")


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty ledger, and no driver's tool on the path."""
    monkeypatch.setenv("QLASSIFY_LEDGER", str(tmp_path / "ledger.json"))
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path / "ledger.json"


def add_ended(path: Path) -> None:
    """A reservation of a process that was killed."""
    state = from_json(path.read_text())
    own = state.reservations[0]
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        child.kill()
    ended = replace(own, id="ended", task="killed", owner=replace(own.owner, pid=child.pid))
    path.write_text(to_json(replace(state, reservations=(*state.reservations, ended))))


def test_an_empty_ledger(command: Command, path: Path) -> None:
    done = command("ledger")
    assert (done.code, done.err) == (0, "")
    for part in ("host memory", "capacity", "no GPU: nvidia-smi", "nothing is reserved", str(path)):
        assert part in done.out
    assert not path.exists()


def test_what_is_reserved_is_shown(command: Command, path: Path) -> None:
    with reserve("host", 12_345, task="train [a].csv") as guard:
        guard.record_usage(2_000)
        add_ended(path)
        before = path.read_text()
        out = command("ledger").out
        for part in ("train [a].csv", str(os.getpid()), "12.3 kB", "2.0 kB", "alive", "killed", "ended"):
            assert part in out
        record = json.loads(command("ledger", "--json").out)
        assert path.read_text() == before
    first, second = record["reservations"]
    assert (first["task"], first["pid"], first["state"]) == ("train [a].csv", os.getpid(), "alive")
    assert (first["budget_bytes"], first["actual_bytes"]) == (12_345, 2_000)
    assert 0 < first["lease_left_seconds"] <= 120
    assert (second["task"], second["state"]) == ("killed", "ended")
    (host,) = record["devices"]
    assert host["reserved_bytes"] == 12_345, "what has ended does not count"
    assert host["capacity_bytes"] == int(host["total_bytes"] * 0.85)
    assert host["available_bytes"] <= host["capacity_bytes"] - 12_345


def test_pruning_removes_what_ended(command: Command, path: Path) -> None:
    with reserve("host", 1, task="mine"):
        add_ended(path)
        assert "ended" in command("ledger", "--prune").out
        assert [one.task for one in from_json(path.read_text()).reservations] == ["mine"]
        assert "ended" not in command("ledger", "--prune").out


def test_who_waits_is_shown(command: Command, path: Path) -> None:
    ledger = Ledger(path)
    total = ledger.devices.find(HOST).capacity_bytes
    path.parent.mkdir(exist_ok=True)
    with reserve("host", 1, task="holds"):
        answer = ledger.try_reserve(ledger.request("host", total, task="waits for all"), ticket_id="t")
        assert not isinstance(answer, Reservation)
        assert "waits, alive" in command("ledger").out
        (waiting,) = json.loads(command("ledger", "--json").out)["waiting"]
    assert (waiting["task"], waiting["budget_bytes"]) == ("waits for all", total)


def test_a_damaged_ledger_is_said_and_put_aside(command: Command, path: Path) -> None:
    path.write_text("{")
    done = command("ledger")
    assert done.code == 0
    assert "ledger.json.damaged-1" in done.err
    assert "closed for" in done.out
    assert json.loads(command("ledger", "--json").out)["closed_seconds"] > 0


def test_switched_off(command: Command, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QLASSIFY_LEDGER", "off")
    done = command("ledger")
    assert (done.code, done.err) == (0, "")
    assert "QLASSIFY_LEDGER=off" in done.out
    assert "QLASSIFY_LEDGER=off" in json.loads(command("ledger", "--json").out)["off"]


def test_a_place_that_cannot_be_used_is_one_sentence(
    command: Command, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.mkdir()
    done = command("ledger")
    assert done.code == 2
    assert "QLASSIFY_LEDGER" in done.err
    assert "Traceback" not in done.err
