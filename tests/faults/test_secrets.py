"""Tokens and passwords that are in the environment, or in an address, are in nothing that is written or printed.

The planted values are searched for byte by byte in every file and in both outputs, also of commands that fail.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from qlassify.errors import ConfigError, ModelError, QlassifyError
from qlassify.masking import masked
from tiny_jobs import make_rows, save_tiny_base, write_table

Tally = Callable[[str, int], None]

PLANTED = {
    "HF_TOKEN": "hf_plantedHuggingFaceToken01",
    "HUGGING_FACE_HUB_TOKEN": "hf_plantedHuggingFaceToken02",
    "WANDB_API_KEY": "planted0wandb0key0000000000000000000000",
    "MLFLOW_TRACKING_PASSWORD": "plantedMlflowPassword",
    "MLFLOW_TRACKING_TOKEN": "plantedMlflowToken",
    "AWS_SECRET_ACCESS_KEY": "planted/aws/secret+key",
    "HTTPS_PROXY": "http://someone:plantedProxyPassword@127.0.0.1:9",
    "HTTP_PROXY": "http://someone:plantedProxyPassword@127.0.0.1:9",
}
SECRETS = (*(value for name, value in PLANTED.items() if "PROXY" not in name), "plantedProxyPassword")
ADDRESS = "https://someone:plantedBasePassword@hub.example/org/model"


def found_in(content: bytes) -> list[str]:
    """The secrets that a file or an output holds."""
    return [secret for secret in (*SECRETS, "plantedBasePassword") if secret.encode() in content]


PROGRAM = """
import contextlib, io, sys
from qlassify.cli.app import main
for line in sys.stdin.read().splitlines():
    sys.argv = ["qlassify", *line.split("|")]
    try:
        main()
    except SystemExit as end:
        print(f"ended {end.code}", flush=True)
"""


@pytest.mark.slow
def test_no_secret_is_written_or_printed(tmp_path: Path, tally: Tally) -> None:
    """One process, whose libraries find the planted values when they are imported, does everything in turn."""
    base = save_tiny_base(tmp_path / "base")
    data = write_table(tmp_path / "rows.csv", ("text", "label"), make_rows(240, seed=2))
    run = tmp_path / "run"
    good = [
        f"train|{data}|--base|{base}|--out|{run}|--epochs|1|--rank|4",
        f"evaluate|{run}|{data}|--out|{tmp_path / 'scored'}",
        f"predict|{run}|{data}",
        f"calibrate|{run}|{data}",
        f"export|{run}|{tmp_path / 'export'}",
        f"inspect|{run}|--json",
        f"plan|{data}|--base|{base}|--no-measure|--json",
        "ledger|--json",
    ]
    bad = [
        f"train|{data}|--base|{ADDRESS}|--out|{tmp_path / 'a'}|--json",
        f"train|{ADDRESS}|--base|{base}|--out|{tmp_path / 'b'}|--json",
        f"train|{data}|--base|org/no-such-model|--out|{tmp_path / 'c'}",
        f"predict|{run}|--text|dog|--base|{ADDRESS}|--debug",
        f"evaluate|{run}|{ADDRESS}",
        f"train|--resume|{ADDRESS}",
    ]
    environment = {**os.environ, **PLANTED, "OMP_NUM_THREADS": "1", "QLASSIFY_LEDGER": str(tmp_path / "ledger.json")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input="\n".join([*good, *bad]).encode(),
        capture_output=True,
        timeout=600,
        cwd=tmp_path,
        env={**environment, "HF_HUB_DOWNLOAD_TIMEOUT": "1", "HF_HUB_ETAG_TIMEOUT": "1"},
        check=False,
    )
    ends = [line for line in done.stdout.decode().splitlines() if line.startswith("ended ")]
    # One of the bad ones asks for a traceback and so ends the process early if it is met; it is the fourth of six.
    assert ends[: len(good)] == ["ended None"] * len(good), done.stderr.decode()[-2000:]
    assert ends[len(good) :] == ["ended 2"] * 3, done.stderr.decode()[-2000:]
    assert b"Traceback" in done.stderr
    assert found_in(done.stdout) == []
    assert found_in(done.stderr) == []
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 20
    assert {str(path.relative_to(tmp_path)): found for path in files if (found := found_in(path.read_bytes()))} == {}
    tally("files and outputs without secrets", len(files) + 2)


def test_a_hubs_answer_is_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the hub's client repeats of an address or of a token does not reach the sentence."""
    import huggingface_hub

    from qlassify.models.source import resolve

    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)

    def refuse(name: str, **options: object) -> str:
        raise OSError(f"cannot reach {PLANTED['HTTPS_PROXY']} for {ADDRESS} with {PLANTED['HF_TOKEN']}")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(ModelError) as failure:
        resolve("org/model")
    told = str(failure.value) + str(failure.value.as_dict())
    assert found_in(told.encode()) == []
    assert "hub.example/org/model" in told


def test_every_part_of_an_error_is_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "0123456789abcdef")
    part = f"{ADDRESS} 0123456789abcdef"
    error = ConfigError(part, where=part, got=part, wanted=part, do=part)
    for text in (str(error), str(error.as_dict()), repr(error), error.what, error.do):
        assert text is not None
        assert "0123456789abcdef" not in text
        assert "plantedBasePassword" not in text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://user:pass@host/x", "https://***@host/x"),
        ("postgresql://user:p%40ss@host:5432/db", "postgresql://***@host:5432/db"),
        ("https://token@host/x and http://a:b@c", "https://***@host/x and http://***@c"),
        ("https:/user:pass@host/x", "https:/***@host/x"),  # what pathlib makes of an address
        ("a@b.example wrote to @home", "a@b.example wrote to @home"),
        ("org/model@main", "org/model@main"),
        ("C:/data/a@b.csv", "C:/data/a@b.csv"),
    ],
)
def test_addresses_lose_who_is_in_them(text: str, shown: str) -> None:
    assert masked(text) == shown


def test_short_values_and_other_variables_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "the")
    monkeypatch.setenv("HOME_COLOUR", "a-long-enough-value")
    assert masked("the a-long-enough-value") == "the a-long-enough-value"


def test_an_error_without_secrets_is_as_it_was() -> None:
    error = QlassifyError("a thing is wrong", where="a.csv", got=3, wanted="4", do="Try 4.")
    assert str(error) == "a.csv: a thing is wrong; got 3; wanted 4. Try 4."
