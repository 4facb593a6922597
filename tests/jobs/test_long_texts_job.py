"""``model.long`` from a file to a saved classifier: what is learned, recorded, told, planned, resumed and refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from qlassify import ClassifyPipeline, MultiClassifier, RunConfig, job
from qlassify.config.files import layer
from qlassify.contracts.registry import check
from qlassify.contracts.situation import DataFacts, ModelFacts, Situation, TokenLengths, Truncation
from qlassify.data.samples import Sample
from qlassify.errors import ConfigError, ModelError
from qlassify.evaluation.predict import predict_logits
from qlassify.export.exporting import export_classifier
from qlassify.job import FinishedEvent, NotesEvent, PlanEvent, read_dataset
from qlassify.preparation import prepare
from qlassify.scoring import evaluate_run
from qlassify.training.events import CheckpointEvent
from tiny_jobs import FILLERS, LABELS, job_settings, make_pair_rows, make_rows, model_bytes, write_table

pytestmark = pytest.mark.usefixtures("one_thread")

LIMIT = 16
BATCH = {"rtol": 1e-5, "atol": 1e-5}
"""The house tolerance of one text against the same text in any batch, fp32."""


def long_rows(count: int, *, seed: int, most: int = 40) -> list[tuple[str, str]]:
    """Texts whose class shows only behind as many filler words as truncation leaves."""
    generator = np.random.default_rng(seed)
    return [
        (" ".join([*generator.choice(FILLERS, size=int(generator.integers(LIMIT, most))), text]), label)
        for text, label in make_rows(count, seed=seed)
    ]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("long")
    write_table(folder / "test.csv", ("text", "label"), long_rows(60, seed=8))
    return write_table(folder / "train.csv", ("text", "label"), long_rows(150, seed=7))


def settings_of(base: Path, data: Path, policy: str, **model: Any) -> dict[str, Any]:
    settings = job_settings(base, data, epochs=2, batch_size=8)
    settings["model"] |= {"max_length": LIMIT, "long": policy, **model}
    # Truncation at sixteen tokens is what is being compared here.
    return settings | {"accepted_contracts": ["C-SEQ-001"]}


def train(settings: dict[str, Any], out: Path) -> tuple[FinishedEvent, tuple[str, ...]]:
    events = list(job.train(settings, out))
    notes = next(event for event in events if isinstance(event, NotesEvent))
    assert isinstance(events[-1], FinishedEvent)
    return events[-1], notes.notes


@pytest.fixture(scope="module")
def windowed(tiny_base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "windows"
    train(settings_of(tiny_base, data, "windows"), folder)
    return folder


def accuracy(run: Path, data: Path) -> float:
    found = ClassifyPipeline.load(run, device="cpu").evaluate(data.parent / "test.csv").values["accuracy"]
    assert found is not None
    return found


# Learning


def test_what_stands_behind_the_limit_is_learned_by_those_who_read_it(tiny_base: Path, tmp_path: Path) -> None:
    """The beginning says nothing of the class: truncation stays near a third, whatever it trains on."""
    data = write_table(tmp_path / "train.csv", ("text", "label"), long_rows(300, seed=7, most=24))
    write_table(tmp_path / "test.csv", ("text", "label"), long_rows(60, seed=8, most=24))
    found = {}
    for policy in ("truncate", "head_tail", "windows"):
        settings = settings_of(tiny_base, data, policy)
        settings["training"] |= {"epochs": 8, "early_stopping_patience": None}
        settings["data"]["audit"] = False
        train(settings | {"evaluation": {"baselines": False}}, tmp_path / policy)
        found[policy] = accuracy(tmp_path / policy, data)
    assert found["truncate"] < 0.6
    assert found["windows"] > 0.8
    assert found["head_tail"] > 0.8


@pytest.mark.parametrize("method", ["probe", "prefix", "ia3", "adapter", "bitfit", "full", "dora"])
def test_every_method_trains_on_windows(method: str, tiny_base: Path, data: Path, tmp_path: Path) -> None:
    settings = settings_of(tiny_base, data, "windows") | {"method": {"kind": method}}
    rate = 1e-4 if method == "full" else 5e-3
    settings["training"] |= {"epochs": 1, "learning_rate": rate}
    settings["accepted_contracts"] = ["C-SEQ-001", "C-EPOCH-001", "C-LR-001"]
    finished, _ = train(settings, tmp_path / "run")
    saved = ClassifyPipeline.load(tmp_path / "run", device="cpu")
    assert saved.encoder.long.policy == "windows"
    found = saved.evaluate(data.parent / "test.csv").values
    assert found["log_loss"] is not None
    assert finished.assessment is not None


def test_without_long_texts_every_policy_is_the_same_run(tiny_base: Path, train_csv: Path, tmp_path: Path) -> None:
    for policy in ("truncate", "head_tail", "windows"):
        settings = job_settings(tiny_base, train_csv, epochs=1)
        settings["model"] |= {"long": policy}
        train(settings, tmp_path / policy)
    wanted = model_bytes(tmp_path / "truncate" / "model")
    for policy in ("head_tail", "windows"):
        found = model_bytes(tmp_path / policy / "model")
        assert {name for name in found if found[name] != wanted[name]} == {"classifier.json"}


# Records


def test_the_policy_is_settled_recorded_and_told(windowed: Path) -> None:
    assert yaml.safe_load((windowed / "run.yaml").read_text())["model"]["window_overlap"] == LIMIT // 4
    record = json.loads((windowed / "model" / "classifier.json").read_text())
    assert record["long"] == {"policy": "windows", "window_overlap": 4, "max_windows": 16}
    data = json.loads((windowed / "data.json").read_text())
    for part, reading in data["long_texts"].items():
        assert reading["longer"] == reading["rows"] > 0
        assert reading["unread"]["windows"] == data["lost_tokens"][part] == 0
        assert (
            reading["unread"]["truncate"]
            == reading["unread"]["head_tail"]
            == reading["tokens"] - LIMIT * reading["rows"]
        )
        assert reading["computed"] > reading["tokens"]
    assert data["truncated"] == {"train": 0, "validation": 0}


FRESH_PROCESS = """
import sys, torch
from pathlib import Path
torch.set_num_threads(1)
from qlassify import ClassifyPipeline
pipeline = ClassifyPipeline.load(sys.argv[1], device="cpu")
Path(sys.argv[3]).write_bytes(pipeline.predict_proba(Path(sys.argv[2]).read_text().splitlines()).tobytes())
"""


def test_a_fresh_process_reads_the_same_windows(windowed: Path, tmp_path: Path) -> None:
    texts = [text for text, _ in long_rows(9, seed=3)] + ["a dog", ""]
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    done = subprocess.run(
        [sys.executable, "-c", FRESH_PROCESS, str(windowed), str(tmp_path / "texts.txt"), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    pipeline = ClassifyPipeline.load(windowed, device="cpu")
    assert (tmp_path / "out").read_bytes() == pipeline.predict_proba(texts[:-1]).tobytes()
    short = ClassifyPipeline.load(windowed, device="cpu").predict_proba(["a dog"])
    np.testing.assert_allclose(pipeline.predict_proba(texts)[9:10], short, rtol=1e-4, atol=0)


def test_a_record_that_does_not_say_so_truncates(windowed: Path, tmp_path: Path) -> None:
    pipeline = ClassifyPipeline.load(windowed, device="cpu")
    pipeline.save(tmp_path)
    path = tmp_path / "classifier.json"
    record = json.loads(path.read_text())
    del record["long"], record["sha256"]
    path.write_text(json.dumps(record))
    old = ClassifyPipeline.load(tmp_path, device="cpu")
    assert old.encoder.long.policy == "truncate"
    assert old.encoder.encode(["dog " * 50]).lengths.tolist() == [LIMIT]
    for wrong in ({"policy": "all"}, {"policy": "windows", "stride": 3}, 7):
        path.write_text(json.dumps({**record, "long": wrong}))
        with pytest.raises(ModelError, match=r"classifier\.json"):
            ClassifyPipeline.load(tmp_path, device="cpu")


@pytest.mark.parametrize("policy", ["windows", "truncate"])
def test_a_run_that_died_is_resumed_to_the_same_end(policy: str, tiny_base: Path, data: Path, tmp_path: Path) -> None:
    """The truncating one as it was recorded before there was a choice."""
    settings = settings_of(tiny_base, data, policy)
    events = job.train(settings, tmp_path / "run")
    while not isinstance(next(events), CheckpointEvent):
        pass
    events.close()  # type: ignore[attr-defined]
    path = tmp_path / "run" / "run.yaml"
    recorded = yaml.safe_load(path.read_text())
    if policy == "truncate":
        for name in ("long", "window_overlap", "max_windows"):
            del recorded["model"][name]
        path.write_text(yaml.safe_dump(recorded))
    list(job.resume(tmp_path / "run"))
    list(job.train(settings, tmp_path / "whole"))
    assert model_bytes(tmp_path / "run" / "model") == model_bytes(tmp_path / "whole" / "model")


def test_evaluate_says_what_was_not_read(windowed: Path, data: Path, tiny_base: Path, tmp_path: Path) -> None:
    found = evaluate_run(windowed, data.parent / "test.csv", {}, device="cpu", out=tmp_path / "out")
    assert any("60 of 60 test.csv texts (100.0 %) are longer than 16 tokens" in n for n in found.assessment.notes)
    assert any("model.long=windows reads all of them" in note for note in found.assessment.notes)


# Plans, audit, contracts


def test_slices_count_each_token_once(windowed: Path, data: Path, tmp_path: Path) -> None:
    """The word tokeniser gives a token a word, and two special ones; windows overlap and repeat the special ones."""
    told = evaluate_run(windowed, data.parent / "test.csv", {}, out=tmp_path / "slices").assessment.slices
    bounds = [int(number) for one in told if one.column == "tokens" for number in one.value.split(" to ")]
    words = [len(text.split()) + 2 for text, _ in long_rows(60, seed=8)]
    assert (min(bounds), max(bounds)) == (min(words), max(words))


def test_a_plan_counts_what_windows_compute(tiny_base: Path, data: Path) -> None:
    settings = settings_of(tiny_base, data, "windows")
    settings["training"]["token_budget"] = 64
    dataset = read_dataset(RunConfig.parse(settings))
    plans = {}
    for policy in ("truncate", "head_tail", "windows"):
        plans[policy] = prepare(layer(settings, {"model": {"long": policy}}), dataset, memory_bytes=10**12)
    encoded = plans["windows"].encoded["train"]
    epochs = settings["training"]["epochs"]
    assert plans["windows"].plan.tokens == epochs * encoded.num_tokens > plans["truncate"].plan.tokens
    assert plans["head_tail"].plan.tokens == plans["truncate"].plan.tokens
    # The longest text is more than the budget of 64 tokens, and the plan knows.
    assert encoded.lengths.max() > 64
    assert plans["windows"].plan.memory.activation_bytes > plans["truncate"].plan.memory.activation_bytes
    audits = {policy: one.audit for policy, one in plans.items()}
    for policy, audit in audits.items():
        assert audit is not None
        cut = audit.lengths[0].truncation
        assert cut.side == ("middle" if policy == "head_tail" else "end")
        assert (cut.rows == 0) == (policy == "windows")
        assert audit.lengths[0].longest == plans["truncate"].encoded["train"].whole_lengths.max()
        said = [finding.what for finding in audit.findings() if "are cut at" in finding.what]
        assert all(f"lose their {cut.side}" in what for what in said)
        assert bool(said) == (policy != "windows")


def test_texts_beyond_the_last_window_are_counted(tiny_base: Path, data: Path) -> None:
    settings = settings_of(tiny_base, data, "windows", max_windows=2)
    found = prepare(settings, read_dataset(RunConfig.parse(settings)), memory_bytes=10**12)
    encoded = found.encoded["train"]
    # Two windows of fourteen words, four of them the same, and two special tokens once.
    assert encoded.lost_tokens.tolist() == np.maximum(encoded.whole_lengths - (14 + 10 + 2), 0).tolist()
    assert found.audit is not None
    said = next(one for one in found.audit.findings() if "are cut at 2 windows and lose their end" in one.what)
    assert "max_windows" in said.do
    by_id = {item.contract_id: item for item in found.contracts.items}
    assert list(by_id["C-SEQ-001"].remedy) == ["model.max_windows"]
    mended = layer(settings, {"model": {"max_windows": by_id["C-SEQ-001"].remedy["model.max_windows"]}})
    again = prepare(mended, read_dataset(RunConfig.parse(mended)), memory_bytes=10**12)
    assert (again.encoded["train"].lost_tokens > 0).mean() <= 0.01
    assert "C-SEQ-001" not in {item.contract_id for item in again.contracts.items}


def test_at_the_models_limit_windows_are_advised(tiny_base: Path, tmp_path: Path) -> None:
    """The tiny base has 64 positions."""
    rows = long_rows(60, seed=5, most=150)
    path = write_table(tmp_path / "a.csv", ("text", "label"), rows)
    settings = job_settings(tiny_base, path, epochs=1)
    dataset = read_dataset(RunConfig.parse(settings))
    found = prepare(settings, dataset, memory_bytes=10**12)
    (item,) = [one for one in found.contracts.items if one.contract_id == "C-SEQ-001"]
    assert item.remedy == {"model.long": "windows"}
    again = prepare(layer(settings, {"model": {"long": "windows"}}), dataset, memory_bytes=10**12)
    assert not [one for one in again.contracts.items if one.contract_id.startswith("C-SEQ")]
    assert again.encoded["train"].num_truncated == 0


def test_pairs_are_not_advised_what_refuses_them() -> None:
    data = DataFacts(
        token_lengths=TokenLengths(90, 300, 400, 500, 900), truncation=Truncation(128, 0.45, (0.1, 0.95)), pairs=True
    )
    run = RunConfig.parse({"model": {"max_length": 128}})
    found = [
        one for one in check(Situation(run, ModelFacts(max_positions=128), data)).items if "SEQ" in one.contract_id
    ]
    assert len(found) == 2
    assert all(one.remedy == {} and "pair" in one.recommendation for one in found)


@pytest.mark.parametrize("policy", ["head_tail", "windows"])
def test_pairs_are_refused_before_a_token_is_made(policy: str, tiny_base: Path, tmp_path: Path) -> None:
    path = write_table(tmp_path / "pairs.csv", ("first", "second", "label"), make_pair_rows(40))
    settings = job_settings(tiny_base, path, epochs=1)
    settings["data"] |= {"text": "first", "text_pair": "second", "label": "label"}
    settings["model"] |= {"long": policy}
    events = []
    with pytest.raises(ConfigError, match=r"model\.long") as caught:
        events.extend(job.train(settings, tmp_path / "run"))
    assert not any(isinstance(event, PlanEvent) for event in events)
    assert "truncate" in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_an_overlap_that_leaves_nothing_is_refused(tiny_base: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.window_overlap"):
        list(job.train(settings_of(tiny_base, data, "windows", window_overlap=LIMIT - 2), tmp_path / "run"))


# Step by step


def test_steps_take_texts_of_several_windows_and_token_lists_do_not(tiny_base: Path) -> None:
    run = {"model": {"base": str(tiny_base), "max_length": LIMIT, "long": "windows", "precision": "fp32"}}
    pipeline = ClassifyPipeline.from_pretrained(tiny_base, RunConfig.parse(run), labels=LABELS)
    rows = [(text, LABELS.index(label)) for text, label in long_rows(12, seed=2)]
    samples = [Sample(text, label) for text, label in rows]
    first = pipeline.forward_only(samples)
    for _ in range(8):
        result = pipeline.train_batch(samples)
    assert result.total == 12
    assert pipeline.forward_only(samples).avg_loss < first.avg_loss
    assert len(pipeline.tokenize("a dog")) == 4
    for call in (lambda: pipeline.tokenize(rows[0][0]), lambda: pipeline.pre_tokenize(samples)):
        with pytest.raises(ConfigError, match="several windows"):
            call()


# Beside others, and for other libraries


def test_classifiers_of_several_policies_share_a_batch(
    windowed: Path, tiny_base: Path, data: Path, tmp_path: Path
) -> None:
    folders = {"windows": windowed}
    for policy in ("truncate", "head_tail"):
        pipeline = ClassifyPipeline.from_pretrained(
            tiny_base,
            RunConfig.parse(
                {
                    "model": {"base": str(tiny_base), "max_length": LIMIT, "long": policy, "precision": "fp32"},
                    "method": {"rank": 2, "alpha": 4.0},
                }
            ),
            labels=LABELS,
        )
        pipeline.train_batch([Sample(text, LABELS.index(label)) for text, label in long_rows(9, seed=1)])
        pipeline.save(tmp_path / policy)
        folders[policy] = tmp_path / policy
    several = MultiClassifier.load(folders, device="cpu")
    texts = [text for text, _ in long_rows(15, seed=6)] + ["a dog", "the plum", "saw"]
    names = [list(folders)[number % 3] for number in range(len(texts))]
    found = several.predict_proba(texts, adapter=names)
    for name, folder in folders.items():
        alone = ClassifyPipeline.load(folder, device="cpu").predict_proba(texts)
        # Bitwise for one adapter: the batches are those of the classifier alone.
        assert np.array_equal(several.predict_proba(texts, adapter=name), alone)
        for row, text_name in enumerate(names):
            if text_name == name:
                # A logit's house tolerance changes a probability by as much, relative to itself.
                np.testing.assert_allclose(found[row], alone[row], rtol=1e-4, atol=0)


@pytest.mark.parity
@pytest.mark.parametrize("policy", ["windows", "head_tail"])
def test_an_export_says_what_other_libraries_do_otherwise(
    policy: str, tiny_base: Path, train_csv: Path, tmp_path: Path
) -> None:
    """Some validation texts are longer than the limit; those that fit are compared."""
    settings = job_settings(tiny_base, train_csv, epochs=1)
    settings["model"] |= {"max_length": 8, "long": policy}
    settings["accepted_contracts"] = ["C-SEQ-001"]
    train(settings, tmp_path / "run")
    for format in ("merged", "peft"):
        result = export_classifier(tmp_path / "run", tmp_path / format, format)  # type: ignore[arg-type]
        note = next(note for note in result.notes if "other libraries cut the end" in note)
        assert note in (tmp_path / format / "README.md").read_text()
        assert result.check is not None
        assert 0 < result.check.rows < 60
        assert result.check.part == "validation rows"
        assert result.check.note is not None
        assert result.check.rows + int(result.check.note.split()[0]) == 60
    back = ClassifyPipeline.from_peft(tmp_path / "peft", tiny_base)
    texts = [text for text, _ in long_rows(5, seed=3)]
    wanted = ClassifyPipeline.load(tmp_path / "run", device="cpu")
    assert back.encoder.long == wanted.encoder.long
    encoded = wanted.encoder.encode(texts)
    np.testing.assert_allclose(
        predict_logits(back.trainable.classifier, back.encoder.encode(texts)),
        predict_logits(wanted.trainable.classifier, encoded),
        **BATCH,
    )


def test_an_export_of_long_texts_alone_is_compared_on_made_up_ones(windowed: Path, tmp_path: Path) -> None:
    result = export_classifier(windowed, tmp_path / "out", "peft")
    assert result.check is not None
    assert result.check.part == "made-up token sequences"
    assert result.check.note == "Every validation text is longer than one sequence; no score was measured."
