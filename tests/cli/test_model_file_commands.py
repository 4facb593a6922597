"""``qlassify convert`` and ``qlassify inspect``: what they say, and the sentences for what cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import Command

from qlassify.formats.apr_metadata import AprMetadata
from qlassify.formats.apr_writer import write_apr
from reference.apr import RawFile, RawTensor

pytestmark = pytest.mark.usefixtures("one_thread")


def test_convert_inspect_train(command: Command, tiny_base: Path, train_csv: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.apr"
    done = command("convert", tiny_base, path)
    assert (done.code, done.err) == (0, "")
    assert "rounded   nothing" in done.out
    assert f"qlassify train DATA --base {path}" in done.out
    done = command("inspect", path)
    assert (done.code, done.err) == (0, "")
    for words in ("kind      base model", "APR 2.0", "ROW_MAJOR", "architecture: bert", "checksum  header: right"):
        assert words in done.out
    assert "F32       embeddings.word_embeddings.weight  200 x 64" in done.out
    assert "embeddings.word_embeddings" not in command("inspect", path, "--quiet").out
    done = command("train", train_csv, "--base", path, "--epochs", 1, "--out", tmp_path / "run")
    assert done.code == 0, done.err
    done = command("predict", tmp_path / "run", "--text", "the dog")
    assert done.code == 0, done.err
    done = command("convert", path, tmp_path / "back")
    assert (done.code, done.err) == (0, "")
    done = command("inspect", tmp_path / "back", "--json", "--verify")
    assert json.loads(done.out)["settings"]["model_type"] == "bert"


def test_json_says_what_was_rounded(command: Command, tiny_base: Path, tmp_path: Path) -> None:
    done = command("convert", tiny_base, tmp_path / "m.apr", "--type", "aprq8", "--json")
    record = json.loads(done.out)
    assert record["path"] == str(tmp_path / "m.apr")
    assert "embeddings.word_embeddings.weight" in record["lossy"]
    assert record["bytes"] < record["source_bytes"] / 3
    found = json.loads(command("inspect", tmp_path / "m.apr", "--json").out)
    assert found["files"][0]["flags"] == ["QUANTIZED", "ROW_MAJOR"]
    assert found["bytes_by_type"]["AprQ8"] + found["bytes_by_type"]["F32"] == record["bytes"]
    assert command("convert", tiny_base, tmp_path / "n.apr", "-q").out == f"{tmp_path / 'n.apr'}\n"


def test_what_cannot_be_is_one_sentence(command: Command, tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.apr").write_bytes(b"APRN" + bytes(100))
    for arguments, words in (
        (("inspect", tmp_path / "bad.apr"), "version 1"),
        (("inspect", tmp_path / "gone.apr"), "not a model file"),
        (("convert", tiny_base, tmp_path / "m.apr", "--type", "q4"), "an unknown type"),
        (("convert", tiny_base, tmp_path / "new", "--type", "f16"), "keeps the types"),
        (("convert", tiny_base, tmp_path / "new"), "not an APR or GGUF file"),
        (("convert", tmp_path / "bad.apr", tmp_path / "new"), "version 1"),
    ):
        done = command(*arguments)
        assert done.code == 2, arguments
        assert words in done.err
        assert "Traceback" not in done.err
    assert [one.name for one in tmp_path.iterdir()] == ["bad.apr"]


def test_metadata_cannot_steer_the_terminal(command: Command, tmp_path: Path) -> None:
    write_apr(tmp_path / "m.apr", {}, AprMetadata.of({"name": "\x1b[2Jx\ry\u202e", "long": "z" * 500}))
    out = command("inspect", tmp_path / "m.apr").out
    assert "\x1b" not in out
    assert "\r" not in out
    assert "\u202e" not in out
    assert "(500 characters)" in out


@pytest.mark.parametrize("shown", [(), ("--json",)])
def test_names_cannot_steer_the_terminal_either(shown: tuple[str, ...], command: Command, tmp_path: Path) -> None:
    """Keys of the metadata and names of tensors; half of a surrogate pair, which no terminal's encoding has."""
    odd = "\x1b[2Jx\ry\u202e\x9b"
    tensor = RawTensor(odd.encode(), 0, (2,), bytes(8))
    text = json.dumps({"model_type": "toy", odd: 1, "\ud800": "\udfff"}).encode()
    (tmp_path / "m.apr").write_bytes(RawFile((tensor,), text).pack())
    done = command("inspect", tmp_path / "m.apr", *shown)
    assert (done.code, done.err) == (0, "")
    assert not set(done.out) & {"\x1b", "\r", "\u202e", "\x9b", "\ud800"}
    assert "[2Jx" in done.out
    if shown:
        record = json.loads(done.out)["files"][0]
        assert record["tensors"][0]["name"] == odd
        assert record["metadata"]["\ud800"] == "\udfff"
