"""A run with its tokens on disk is the run without: the same plan, the same steps, bitwise the same classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qlassify import job
from qlassify.config.files import layer, read_settings
from qlassify.data.tokenise import TextEncoder
from qlassify.preparation import Preparation, prepare
from tiny_jobs import job_settings, make_rows, model_bytes, save_tiny_base, write_table


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("job")
    data = write_table(folder / "rows.csv", ("text", "label"), make_rows(60))
    return job_settings(save_tiny_base(folder / "base"), data, epochs=1)


def prepared(settings: dict[str, Any], cache: str | Path) -> Preparation:
    asked = layer(settings, {"data": {"token_cache": str(cache)}})
    return prepare(asked, job.read_dataset(job.RunConfig.parse(asked)), memory_bytes=10**12)


def test_what_is_prepared_from_the_store_is_the_same(settings: dict[str, Any], tmp_path: Path) -> None:
    plain, first = prepared(settings, "off"), prepared(settings, tmp_path / "tokens")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TextEncoder, "_chunk", None)  # whoever tokenises now fails
        again = prepared(settings, tmp_path / "tokens")
    assert len(list((tmp_path / "tokens").iterdir())) == len(plain.encoded) == 2
    for one in (first, again):
        assert one.stats == plain.stats
        assert one.plan.memory.activation_bytes == plain.plan.memory.activation_bytes
        assert one.store_notes == ()
        for part, encoded in plain.encoded.items():
            assert np.array_equal(one.encoded[part].token_ids, encoded.token_ids)
            assert np.array_equal(one.encoded[part].offsets, encoded.offsets)


def test_damage_is_a_note_of_the_run(settings: dict[str, Any], tmp_path: Path) -> None:
    prepared(settings, tmp_path)
    for path in tmp_path.rglob("token_ids.bin"):
        path.write_bytes(b"")
    notes = prepared(settings, tmp_path).store_notes
    assert len(notes) == 2
    assert all("damaged and are made again" in note for note in notes)


def test_a_run_trains_from_the_store(settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, cache in (("without", "off"), ("with", "tokens"), ("again", "tokens")):
        list(job.train(layer(settings, {"data": {"token_cache": cache}}), tmp_path / name))
    wanted = model_bytes(tmp_path / "without" / "model")
    assert model_bytes(tmp_path / "with" / "model") == model_bytes(tmp_path / "again" / "model") == wanted
    recorded = read_settings(tmp_path / "with" / "run.yaml")["data"]["token_cache"]
    assert recorded == str(tmp_path / "tokens"), "the same folder from wherever the run is resumed"
    assert read_settings(tmp_path / "without" / "run.yaml")["data"]["token_cache"] == "off"
