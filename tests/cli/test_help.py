"""Every verb explains itself, and the command says what it is."""

from __future__ import annotations

import pytest
from command_line import Command

from qlassify.version import __version__

VERBS = {
    "train": ("--eval", "--test", "--base", "--rank", "--epochs", "--set", "--resume", "--json", "--quiet", "--debug"),
    "compare": ("--text", "--label", "--base", "--out", "--json"),
    "evaluate": ("--text", "--label", "--base", "--out", "--json"),
    "predict": ("--text", "--text-pair", "--text-column", "--output", "--json"),
    "contracts": ("--json",),
    "demo": ("--epochs", "--seed", "--out", "--json"),
}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(command: Command, verb: str) -> None:
    done = command(verb, "--help")
    assert (done.code, done.err) == (0, "")
    assert f"qlassify {verb}" in done.out
    for option in VERBS[verb]:
        assert option in done.out


def test_the_command_lists_its_verbs(command: Command) -> None:
    done = command("--help")
    assert done.code == 0
    for verb in VERBS:
        assert verb in done.out


def test_without_arguments_it_helps(command: Command) -> None:
    done = command()
    assert done.code == 2
    assert "train" in done.out + done.err
    assert "qlassify:" not in done.err
    assert "Traceback" not in done.err


def test_version(command: Command) -> None:
    done = command("--version")
    assert (done.code, done.out) == (0, f"qlassify {__version__}\n")


def test_an_unknown_verb_is_refused(command: Command) -> None:
    done = command("trian")
    assert done.code == 2
    assert "trian" in done.err
