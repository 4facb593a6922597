"""Decisions through the whole road: fitted after training, saved, loaded in another pipeline, chosen anew, undone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qlassify import ClassifyPipeline, job
from qlassify.artifact import HEAD, RECORD
from qlassify.calibrating import calibrate_run
from qlassify.config.files import layer
from qlassify.errors import ConfigError, ModelError
from qlassify.evaluation.decision import DecisionRule
from qlassify.evaluation.predict import predict_logits
from qlassify.job import FinishedEvent
from qlassify.methods.state import read_tensors
from qlassify.scoring import predict_texts
from tiny_jobs import job_settings, make_multi_label_rows, make_rows, write_table

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = [text for text, _ in make_rows(30, seed=77)]


def noisy_rows(count: int, *, seed: int, two: bool = False) -> list[tuple[str, str]]:
    """Learnable rows, one in five with another row's label: something to be unsure of."""
    rows = make_rows(count, seed=seed)
    labels = [label if index % 5 else rows[index - 1][1] for index, (_, label) in enumerate(rows)]
    named = ["beast" if label == "beast" else "thing" for label in labels] if two else labels
    return [(text, label) for (text, _), label in zip(rows, named, strict=True)]


def trained(base: Path, data: Path, out: Path, **evaluation: Any) -> FinishedEvent:
    settings = layer(job_settings(base, data, epochs=4), {"evaluation": {"baselines": False, **evaluation}})
    settings["data"].update(audit=False, eval_fraction=0.4)
    end = list(job.train(settings, out))[-1]
    assert isinstance(end, FinishedEvent)
    return end


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_table(tmp_path_factory.mktemp("rows") / "rows.csv", ("text", "label"), noisy_rows(240, seed=5))


@pytest.fixture(scope="module")
def run(tiny_base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> FinishedEvent:
    return trained(tiny_base, data, tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture
def copied(run: FinishedEvent, tmp_path: Path) -> Path:
    shutil.copytree(run.folder.path, tmp_path / "copy")
    return tmp_path / "copy"


def record(path: Path) -> dict[str, Any]:
    return dict(json.loads((path / "model" / RECORD).read_text(encoding="utf-8"))["decision"])


def logits(pipeline: ClassifyPipeline) -> np.ndarray:
    return predict_logits(pipeline.trainable.classifier, pipeline.encoder.encode(TEXTS))


def test_training_fits_a_rule_and_saves_it(run: FinishedEvent) -> None:
    saved = DecisionRule.parse(record(run.folder.path))
    assert saved == run.assessment.rule
    assert saved.fitted_rows == len(run.assessment.rows)
    assert saved.temperature != 1.0
    assert saved.coverage == 0.95
    scores = json.loads((run.folder.evaluation / "metrics.json").read_text(encoding="utf-8"))
    assert scores["decision"] == record(run.folder.path)
    assert scores["decisions"]["plain"]["accuracy"] == scores["values"]["accuracy"]
    # A temperature is chosen for the likelihood of these very rows.
    assert scores["values"]["log_loss"] <= scores["decisions"]["plain"]["log_loss"]


def test_the_temperature_is_in_the_head(tiny_base: Path, data: Path, run: FinishedEvent, tmp_path: Path) -> None:
    """The same run without calibration has the same labels and logits that are larger by the temperature."""
    plain = trained(tiny_base, data, tmp_path / "plain", calibrate=False)
    assert plain.assessment.rule == DecisionRule()
    temperature = run.assessment.rule.temperature
    hot, cooled = (read_tensors(path / HEAD) for path in (plain.folder.model, run.folder.model))
    for name in ("weight", "bias"):
        # One rounding of fp32.
        np.testing.assert_allclose(cooled[name], hot[name] / temperature, rtol=2e-7)
    first, second = (ClassifyPipeline.load(end.folder.path) for end in (plain, run))
    assert first.predict(TEXTS) == second.predict(TEXTS)
    before = run.assessment.decisions.plain.values
    assert before["ece"] == pytest.approx(plain.assessment.metrics.values["ece"], abs=1e-6)


def test_label_sets(run: FinishedEvent) -> None:
    pipeline = ClassifyPipeline.load(run.folder.path)
    scores, floor = pipeline.predict_proba(TEXTS), pipeline.decision.set_floor
    assert floor is not None
    for row, names in zip(scores, pipeline.predict_sets(TEXTS), strict=True):
        wanted = {name for name, p in zip(pipeline.labels.names, row, strict=True) if p >= floor}
        assert set(names) == wanted | {pipeline.labels.names[row.argmax()]}
        assert names[0] == pipeline.labels.names[row.argmax()]


def test_abstaining(run: FinishedEvent) -> None:
    pipeline = ClassifyPipeline.load(run.folder.path)
    sure = pipeline.predict_proba(TEXTS).max(axis=1)
    limit = float(np.median(sure))
    pipeline.abstain_below(limit)
    answers = pipeline.predict(TEXTS)
    assert [answer is None for answer in answers] == (sure < limit).tolist()
    assert None in answers
    assert [one.label for one in predict_texts(pipeline, TEXTS, None)] == answers
    pipeline.abstain_below(None)
    assert None not in pipeline.predict(TEXTS)


def test_chosen_anew_on_other_rows(copied: Path, tmp_path: Path) -> None:
    before = ClassifyPipeline.load(copied)
    fresh = write_table(tmp_path / "fresh.csv", ("text", "label"), noisy_rows(120, seed=6))
    result = calibrate_run(copied, fresh, {}, {"coverage": 0.8})
    assert result.rule.coverage == 0.8
    assert result.rule.fitted_rows == 120
    after = ClassifyPipeline.load(copied)
    assert after.decision == result.rule
    ratio = np.float32(result.rule.temperature / result.former.temperature)
    # fp32 weights divided twice.
    np.testing.assert_allclose(logits(after) * ratio, logits(before), rtol=1e-5, atol=1e-6)
    assert sorted(path.name for path in copied.iterdir() if path.name.startswith("model")) == ["model"]


def test_without_rows_the_validation_rows_are_taken(copied: Path, run: FinishedEvent) -> None:
    result = calibrate_run(copied, None, {}, {})
    assert result.part == "validation"
    # What was calibrated on these rows already stays: the search ends within 1e-5 of the minimum.
    assert result.rule.temperature == pytest.approx(run.assessment.rule.temperature, rel=1e-4)


def test_undone(tiny_base: Path, data: Path, copied: Path, tmp_path: Path) -> None:
    calibrate_run(copied, None, {}, {"calibrate": False})
    plain = trained(tiny_base, data, tmp_path / "plain", calibrate=False)
    assert record(copied) == plain.assessment.rule.model_dump(mode="json")
    back, never = ClassifyPipeline.load(copied), ClassifyPipeline.load(plain.folder.path)
    np.testing.assert_allclose(logits(back), logits(never), rtol=1e-5, atol=1e-6)


def test_a_model_folder_needs_rows(copied: Path) -> None:
    alone = copied.parent / "alone"
    shutil.copytree(copied / "model", alone)
    with pytest.raises(ConfigError, match="labelled file"):
        calibrate_run(alone, None, {}, {})


def test_costs_of_two_classes(tiny_base: Path, tmp_path: Path) -> None:
    data = write_table(tmp_path / "two.csv", ("text", "label"), noisy_rows(240, seed=8, two=True))
    costs = {"positive": "beast", "false_negative_cost": 9.0}
    end = trained(tiny_base, data, tmp_path / "run", **costs)
    assert end.assessment.rule.positive is not None
    assert end.assessment.rule.positive.threshold == pytest.approx(0.1)
    pipeline = ClassifyPipeline.load(end.folder.path)
    of_beast = pipeline.predict_proba(TEXTS)[:, pipeline.labels.names.index("beast")]
    assert pipeline.predict(TEXTS) == ["beast" if p >= 0.1 else "thing" for p in of_beast]
    cost = end.assessment.decisions.cost
    assert cost is not None
    assert cost.cost <= cost.cost_at_half


def test_a_wish_that_cannot_be_met_ends_before_training(tiny_base: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="positive"):
        trained(tiny_base, data, tmp_path / "run", positive="beast")
    assert not (tmp_path / "run").exists()


def test_several_labels_have_a_threshold_each(tiny_base: Path, tmp_path: Path) -> None:
    rows = [(text, "|".join(labels)) for text, labels in make_multi_label_rows(240, seed=4)]
    data = write_table(tmp_path / "tags.csv", ("text", "label"), rows)
    settings = job_settings(tiny_base, data, epochs=2)
    settings["data"].update(label_separator="|", audit=False, eval_fraction=0.4)
    end = list(job.train(settings, tmp_path / "run"))[-1]
    assert isinstance(end, FinishedEvent)
    rule = end.assessment.rule
    assert rule.thresholds is not None
    assert len(set(rule.thresholds)) > 1
    pipeline = ClassifyPipeline.load(tmp_path / "run")
    given = pipeline.predict_proba(TEXTS) >= np.array(rule.thresholds)
    assert [set(answer or ()) for answer in pipeline.predict(TEXTS)] == [
        {name for name, on in zip(pipeline.labels.names, row, strict=True) if on} for row in given
    ]
    told = json.loads((end.folder.evaluation / "metrics.json").read_text(encoding="utf-8"))
    # The thresholds were chosen for F1 on the rows that are scored here.
    assert told["values"]["macro_f1"] >= told["decisions"]["plain"]["macro_f1"]


@pytest.mark.parametrize(
    "damage",
    [{"thresholds": [0.5, 0.5]}, {"temperature": -1}, {"unknown": 1}, {"positive": {"index": 0, "threshold": 0.5}}],
    ids=["thresholds of other labels", "a negative temperature", "an unknown key", "a positive class of three"],
)
def test_a_damaged_rule_is_refused(copied: Path, damage: dict[str, Any]) -> None:
    path = copied / "model" / RECORD
    whole = json.loads(path.read_text(encoding="utf-8"))
    del whole["sha256"]  # the rule itself is to be looked at
    path.write_text(json.dumps({**whole, "decision": {**whole["decision"], **damage}}), encoding="utf-8")
    with pytest.raises(ModelError, match="cannot read the saved classifier"):
        ClassifyPipeline.load(copied)


def test_a_record_of_before_has_a_plain_rule(copied: Path) -> None:
    path = copied / "model" / RECORD
    former = json.loads(path.read_text(encoding="utf-8"))
    del former["decision"], former["sha256"]
    path.write_text(json.dumps({**former, "threshold": 0.3}), encoding="utf-8")
    assert ClassifyPipeline.load(copied).decision == DecisionRule(threshold=0.3)
