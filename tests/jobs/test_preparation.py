"""What is known before the weights are loaded: nothing of them is read, and what is said beforehand holds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from qlassify import job
from qlassify.config.files import layer
from qlassify.config.run import RunConfig
from qlassify.data.dataset import Dataset
from qlassify.errors import ConfigError, ContractError, MemoryPlanError, ModelError
from qlassify.job import PlanEvent, read_dataset
from qlassify.preparation import Preparation, prepare
from qlassify.prospects import METHODS, Prospect, prospects
from tiny_jobs import job_settings, make_rows, write_table

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def settings(tiny_base: Path, train_csv: Path) -> dict[str, Any]:
    return job_settings(tiny_base, train_csv, epochs=1)


@pytest.fixture
def dataset(settings: dict[str, Any]) -> Dataset:
    return read_dataset(RunConfig.parse(settings))


def setting(dotted: Mapping[str, Any]) -> dict[str, Any]:
    """``{"a.b": 1}`` as ``{"a": {"b": 1}}``."""
    nested: dict[str, Any] = {}
    for name, value in dotted.items():
        section, _, key = name.partition(".")
        nested.setdefault(section, {})[key] = value
    return nested


# Weights


def test_no_weight_is_read(
    settings: dict[str, Any], dataset: Dataset, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The header says what kind of file it is; what follows may be anything, and no loader is called."""
    broken = tmp_path / "base"
    shutil.copytree(tiny_base, broken)
    weights = broken / "model.safetensors"
    content = weights.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    weights.write_bytes(content[:start] + b"\xff" * (len(content) - start))
    whole = prepare(settings, dataset, memory_bytes=10**12)
    monkeypatch.setattr("qlassify.base_model.load_backbone", lambda *_, **__: pytest.fail("loaded"))
    found = prepare(layer(settings, {"model": {"base": str(broken)}}), dataset, memory_bytes=10**12, known=whole)
    assert found.plan == whole.plan
    assert found.pipeline.backbone.is_sketch


def test_a_weight_file_that_is_cut_off_is_refused_before_anything_is_planned(
    settings: dict[str, Any], dataset: Dataset, tiny_base: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "base"
    shutil.copytree(tiny_base, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ModelError, match="not a whole safetensors file"):
        prepare(layer(settings, {"model": {"base": str(broken)}}), dataset)


def test_a_sketch_that_is_loaded_trains_as_if_it_had_never_been_one(settings: dict[str, Any], dataset: Dataset) -> None:
    """Bitwise the parameters of a pipeline that was opened with its weights."""
    settings["method"]["dropout"] = 0.2
    preparation = prepare(settings, dataset)
    sketched = preparation.pipeline
    sketched.load_weights()
    direct = type(sketched).open(sketched.run.model.base, sketched.run)
    for pipeline in (sketched, direct):
        pipeline.prepare_for(dataset)
        list(pipeline.training_loop(dataset, preparation.encoded).run())
    ours, theirs = sketched.trainable_parameters(), direct.trainable_parameters()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_after_a_step_was_timed_nothing_holds_the_weights(settings: dict[str, Any], dataset: Dataset) -> None:
    """Ten methods are planned one after another: were each to keep its model, the last ones would find no memory."""
    (prospect,) = prospects(settings, dataset, ("lora",), memory_bytes=10**12)
    assert prospect.seconds is not None
    assert prospect.seconds > 0
    assert prospect.preparation is not None
    pipeline = prospect.preparation.pipeline
    assert pipeline.backbone.is_sketch
    assert all(parameter.is_meta for parameter in pipeline.trainable.classifier.parameters())
    assert all(parameter.is_meta for parameter in pipeline.trainable_parameters().values())


# Verdicts


def test_the_verdict_follows_memory_and_contracts(settings: dict[str, Any], dataset: Dataset) -> None:
    roomy = prepare(settings, dataset, memory_bytes=10**12)
    assert roomy.fits
    assert roomy.verdict != "Blocked"
    needed = roomy.plan.total_bytes
    # What the process holds now is part of the memory that the run may take.
    exactly = prepare(settings, dataset, memory_bytes=needed, known=roomy)
    assert exactly.needed_bytes == exactly.free_bytes
    exactly.require_memory()
    short = prepare(settings, dataset, memory_bytes=needed - 1, known=roomy)
    assert (short.fits, short.verdict) == (False, "Blocked")
    with pytest.raises(MemoryPlanError, match="does not fit") as caught:
        short.require_memory()
    assert caught.value.exit_code == 4
    assert "activation" in (caught.value.got or "")


def test_with_strict_a_warning_refuses(settings: dict[str, Any], dataset: Dataset, tmp_path: Path) -> None:
    reckless = layer(settings, {"training": {"learning_rate": 50.0}})
    assert prepare(reckless, dataset, memory_bytes=10**12).verdict == "Warnings"
    with pytest.raises(ContractError, match="C-LR-001") as caught:
        list(job.train(reckless, tmp_path / "run", strict=True))
    assert caught.value.exit_code == 3
    assert not (tmp_path / "run").exists()


def test_the_audit_can_be_left_out(settings: dict[str, Any], dataset: Dataset) -> None:
    assert prepare(settings, dataset).audit is not None
    without = prepare(layer(settings, {"data": {"audit": False}}), dataset)
    assert without.audit is None
    assert without.warnings == ()


def test_texts_longer_than_the_model_are_refused(settings: dict[str, Any], dataset: Dataset) -> None:
    with pytest.raises(ConfigError, match="no positions"):
        prepare(layer(settings, {"model": {"max_length": 65}}), dataset)


def test_training_refuses_what_does_not_fit(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a weight is loaded and before anything is written."""
    monkeypatch.setattr("qlassify.pipeline.available_memory_bytes", lambda: 100_000)
    monkeypatch.setattr("qlassify.pipeline.ClassifyPipeline.load_weights", lambda self: pytest.fail("loaded"))
    with pytest.raises(MemoryPlanError, match="does not fit"):
        list(job.train(settings, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_run_reserves_what_it_was_planned_to_take(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the ledger from before the weights are loaded until the run is over, however it ends."""
    ledger = tmp_path / "ledger.json"
    monkeypatch.setenv("QLASSIFY_LEDGER", str(ledger))

    def reservations() -> list[dict[str, Any]]:
        return list(json.loads(ledger.read_text())["reservations"]) if ledger.is_file() else []

    seen: list[list[dict[str, Any]]] = []
    planned: Preparation | None = None
    for event in job.train(settings, tmp_path / "run"):
        if isinstance(event, PlanEvent):
            planned = event.preparation
            assert reservations() == []
        else:
            seen.append(reservations())
    assert planned is not None
    during = [found for found in seen if found]
    assert len(during) == len(seen) - 1  # the files were read before
    assert all([one["budget_bytes"] for one in found] == [planned.needed_bytes] for found in during)
    assert during[0][0]["task"] == "train train.csv"
    assert reservations() == []
    events = job.train(settings, tmp_path / "stopped")
    while not reservations():
        next(events)
    events.close()  # type: ignore[attr-defined]
    assert reservations() == []


# Prospects


def test_every_method_is_planned_as_it_would_be_alone(settings: dict[str, Any], dataset: Dataset) -> None:
    del settings["method"]
    found = list(prospects(settings, dataset, METHODS, memory_bytes=10**12, measure=False))
    assert [one.method for one in found] == list(METHODS)
    assert all(one.seconds is None and one.would_fit is None for one in found)
    bytes_of = {one.method: _preparation(one).plan.memory for one in found}
    for low, plain in (("qlora", "lora"), ("qdora", "dora")):
        assert bytes_of[low].low_bit_bytes > 0
        assert bytes_of[low].dense_bytes + bytes_of[low].low_bit_bytes < bytes_of[plain].dense_bytes
    for method in ("ia3", "bitfit"):
        alone = prepare({**settings, "method": {"kind": method}}, dataset, memory_bytes=10**12)
        one = next(one for one in found if one.method == method)
        assert _preparation(one).plan.trainable_parameters == alone.plan.trainable_parameters
        assert _preparation(one).pipeline.run == alone.pipeline.run
    record = json.loads(json.dumps(found[0].as_dict()))
    assert record["plan"]["memory"]["total_bytes"] == bytes_of["lora"].total_bytes


def _preparation(one: Prospect) -> Preparation:
    assert one.preparation is not None
    return one.preparation


def test_settings_that_would_fit_do_fit(
    settings: dict[str, Any], dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The least change first: fewer tokens at once. Where that is not enough, low-bit weights."""
    monkeypatch.setattr("qlassify.forecasting.default_token_budget", lambda device: 1)
    settings = layer(settings, {"training": {"batch_size": 64}})
    roomy = prepare(settings, dataset, memory_bytes=10**12)
    (fits,) = prospects(settings, dataset, ("lora",), memory_bytes=10**12, measure=False)
    assert fits.would_fit is None
    for share, wanted in ((0.9, ["training.token_budget"]), (0.01, None)):
        # The process grows as it plans; the memory that it may take is counted from where it stands.
        monkeypatch.setattr("qlassify.preparation.runtime_bytes", lambda device: roomy.plan.memory.runtime_bytes)
        memory = roomy.plan.memory.runtime_bytes + int(share * roomy.needed_bytes)
        (prospect,) = prospects(settings, dataset, ("lora",), memory_bytes=memory, measure=False)
        assert not _preparation(prospect).fits
        if wanted is None:
            assert prospect.would_fit is None
            continue
        assert prospect.would_fit is not None
        assert list(prospect.would_fit) == wanted
        changed = layer(settings, setting(prospect.would_fit))
        assert prepare(changed, dataset, memory_bytes=memory).fits


def test_a_method_that_cannot_work_says_so_among_others(settings: dict[str, Any], dataset: Dataset) -> None:
    """Low-bit weights cannot be trained in full: alone that is an error, among others a line."""
    settings = {**settings, "method": {"kind": "full"}, "quant": {"kind": "nf4"}}
    with pytest.raises(ConfigError):
        list(prospects(settings, dataset, ("full",), memory_bytes=10**12, measure=False))
    lora, full = prospects(settings, dataset, ("lora", "full"), memory_bytes=10**12, measure=False)
    assert lora.preparation is not None
    assert full.preparation is None
    assert full.as_dict()["verdict"] == "Blocked"
    assert full.as_dict()["problem"]["error"] == "ConfigError"


def test_what_was_planned_is_on_record(settings: dict[str, Any], tmp_path: Path) -> None:
    """``plan.json`` and ``data.json``: verdict, plan, contracts, what was measured, and the audit."""
    list(job.train(settings, tmp_path / "run"))
    record = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert record.keys() == {"verdict", "planned", "contracts", "measured"}
    assert record["verdict"] in ("Ready", "Warnings")
    planned = record["planned"]
    assert 0 < planned["step_seconds"] * planned["steps"] <= planned["training_seconds"] + 0.001 * planned["steps"]
    assert record["measured"]["steps"] == record["planned"]["steps"]
    assert json.loads((tmp_path / "run" / "data.json").read_text())["audit"] is not None


def test_guards_say_where_there_is_no_ledger(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QLASSIFY_LEDGER", "off")
    events = list(job.train(settings, tmp_path / "run"))
    notes = next(event.notes for event in events if isinstance(event, job.NotesEvent))
    assert any("QLASSIFY_LEDGER=off" in note for note in notes)


def test_the_report_tells_contracts_in_sentences(tiny_base: Path, tmp_path: Path) -> None:
    data = write_table(tmp_path / "a.csv", ("text", "label"), make_rows(60))
    settings = job_settings(tiny_base, data, epochs=1)
    list(job.train(settings, tmp_path / "run"))
    kept = json.loads((tmp_path / "run" / "plan.json").read_text(encoding="utf-8"))["contracts"]["items"]
    warned = [item for item in kept if item["severity"] == "warn"]
    assert warned
    notes = json.loads((tmp_path / "run" / "evaluation" / "metrics.json").read_text(encoding="utf-8"))["notes"]
    page = (tmp_path / "run" / "evaluation" / "report.html").read_text(encoding="utf-8")
    for item in warned:
        assert f"{item['contract_id']}: {item['message']}; recommended: {item['recommendation']}." in notes
        assert item["contract_id"] in page
    assert "contract_id" not in page
