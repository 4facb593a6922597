"""Numbers that are not finite: found where they arise, told with their origin, and never saved.

The base models are those of ``tiny_jobs`` with one value changed: in their file, in a weight that every text meets; or
in memory, in the embedding of one word, so that exactly the texts with that word come to nothing.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fault_tally import Tally
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from qlassify import job
from qlassify.config.run import TrainingConfig
from qlassify.errors import DivergenceError, ModelError
from qlassify.evaluation.predict import predict_logits
from qlassify.multi_classifier import MultiClassifier
from qlassify.pipeline import ClassifyPipeline
from qlassify.training.checkpoint import CheckpointStore
from qlassify.training.events import SkippedStepEvent, StepEvent
from qlassify.training.loop import TrainingLoop, TrainingSet
from tiny_jobs import TinyTraining, job_settings, make_rows, save_tiny_base, write_table

pytestmark = pytest.mark.usefixtures("one_thread")

KIND = "numbers that are not finite"
WORD = "axe"
EMBEDDING = "embeddings.word_embeddings.weight"
QUERY = "encoder.layer.0.attention.self.query.weight"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_base(tmp_path_factory.mktemp("sound"))


def changed(base: Path, to: Path, change: Callable[[dict[str, Tensor]], None]) -> Path:
    """A copy of a base model with other weights."""
    shutil.copytree(base, to)
    tensors = load_file(to / "model.safetensors")
    change(tensors)
    save_file(tensors, to / "model.safetensors", {"format": "pt"})
    return to


def poison(value: float) -> Callable[[dict[str, Tensor]], None]:
    """One value of a weight that every text meets."""

    def change(tensors: dict[str, Tensor]) -> None:
        tensors[QUERY][3, 5] = value

    return change


def blind_to_the_word(model: nn.Module, tokenizer: Path) -> None:
    """Give a loaded base model NaN for one word."""
    words = json.loads((tokenizer / "tokenizer.json").read_text())["model"]["vocab"]
    with torch.no_grad():
        model.get_parameter(EMBEDDING)[words[WORD], 7] = math.nan


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows without the word."""
    rows = [row for row in make_rows(90, seed=2) if WORD not in row[0].split()]
    return write_table(tmp_path_factory.mktemp("data") / "clean.csv", ("text", "label"), rows)


def saved_tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of every file below a folder."""
    files = sorted(folder.rglob("*.safetensors"))
    return {f"{path}: {name}": tensor for path in files for name, tensor in load_file(path).items()}


def assert_finite(folder: Path) -> None:
    bad = [name for name, tensor in saved_tensors(folder).items() if not bool(torch.isfinite(tensor.float()).all())]
    assert bad == []


@pytest.mark.parametrize("method", ["lora", "full", "ia3", "probe", "qlora"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
def test_a_base_model_that_is_not_finite_is_refused_before_anything_is_written(
    method: str, value: float, sound: Path, clean: Path, tmp_path: Path, tally: Tally
) -> None:
    base = changed(sound, tmp_path / "base", poison(value))
    settings = job_settings(base, clean) | {"method": {"kind": method}}
    with pytest.raises(ModelError, match="not finite") as caught:
        list(job.train(settings, tmp_path / "run"))
    assert QUERY in str(caught.value)
    assert str(value) in str(caught.value.got)
    assert not (tmp_path / "run").exists()
    tally(KIND, 1)


def make_loop(base: Path, **settings: Any) -> tuple[TinyTraining, TrainingLoop, list[bool]]:
    """A loop over 60 rows, and which of them have the word."""
    training = TinyTraining(base, learning_rate=1e-2, dropout=0.1)
    rows = make_rows(60, seed=5)
    encoded, targets = training.encode(rows)
    loop = TrainingLoop(
        training.stepper,
        TrainingSet(encoded, targets, list(range(100, 160))),
        TrainingConfig(**{"epochs": 2, "batch_size": 6, "max_skipped_steps": 50, **settings}),
        seed=7,
        dropout_generator=training.attachment.dropout_generator,
    )
    return training, loop, [WORD in text.split() for text, _ in rows]


def state_of(training: TinyTraining) -> dict[str, Tensor]:
    """Parameters and moments, copied."""
    parameters = {f"p/{name}": p.detach().clone() for name, p in training.optimizer.parameters.items()}
    return parameters | {f"o/{name}": value.clone() for name, value in training.optimizer.state_tensors().items()}


def test_a_step_that_is_not_finite_changes_nothing_and_names_its_rows(sound: Path, tally: Tally) -> None:
    """Exactly the steps that have a text with the word; the others are taken."""
    training, loop, has_word = make_loop(sound)
    blind_to_the_word(training.classifier.backbone.model, sound)
    wanted = [any(has_word[row] for row in loop.order.rows_of_step(step)) for step in range(loop.total_steps)]
    assert 0 < sum(wanted) < len(wanted)
    before = state_of(training)
    found = []
    for event in loop.run():
        if not isinstance(event, StepEvent | SkippedStepEvent):
            continue
        after, skipped = state_of(training), isinstance(event, SkippedStepEvent)
        found.append(skipped)
        same = before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
        assert same == skipped
        if isinstance(event, SkippedStepEvent):
            assert event.row_numbers == tuple(100 + row for row in loop.order.rows_of_step(event.step - 1))
        before = after
    assert found == wanted
    tally(KIND, sum(found))


def test_after_so_many_in_a_row_the_origin_is_told(sound: Path, tmp_path: Path, tally: Tally) -> None:
    """A weight that goes bad while a run goes on, long after it was loaded."""
    training, loop, _ = make_loop(sound, max_skipped_steps=3)
    events = loop.run()
    next(events)
    before = state_of(training)
    weight = training.classifier.backbone.model.get_parameter("embeddings.LayerNorm.weight")
    with torch.no_grad():
        weight[0] = math.nan
    with pytest.raises(DivergenceError, match="3 steps in a row") as caught:
        list(events)
    assert "backbone.model.embeddings.LayerNorm.weight holds nan at position 0 of 64" in str(caught.value)
    after = state_of(training)
    assert all(torch.equal(before[name], after[name]) for name in before)
    tally(KIND, 3)


@pytest.mark.parametrize("rate", [1e30, 1e3])
@pytest.mark.parametrize("method", ["lora", "full", "ia3", "dora", "bitfit"])
def test_an_absurd_learning_rate_saves_nothing_that_is_not_finite(
    rate: float, method: str, sound: Path, clean: Path, tmp_path: Path, tally: Tally
) -> None:
    """It may end as a classifier that is bad, or in an error that names the rate."""
    settings = job_settings(sound, clean, learning_rate=rate, head_learning_rate=rate, epochs=6)
    settings["method"] = {"kind": method}
    said = None
    try:
        list(job.train(settings, tmp_path / "run"))
    except DivergenceError as error:
        said = str(error)
    assert (tmp_path / "run" / "model").exists() == (said is None)
    assert said is None or "Lower training.learning_rate" in said
    assert_finite(tmp_path / "run")
    tally(KIND, 1)


def test_an_absurd_learning_rate_ends_the_run(sound: Path, clean: Path, tmp_path: Path) -> None:
    """So that the test above cannot pass without an error in any case."""
    settings = job_settings(sound, clean, learning_rate=1e30, head_learning_rate=1e30, epochs=6)
    with pytest.raises(DivergenceError):
        list(job.train(settings, tmp_path / "run"))


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_sums_that_grow_too_large_are_told_as_such(
    precision: str, sound: Path, clean: Path, tmp_path: Path, tally: Tally
) -> None:
    """All weights are finite; products of the largest ones are not."""

    def change(tensors: dict[str, Tensor]) -> None:
        tensors["encoder.layer.1.output.dense.weight"].fill_(2e38)

    base = changed(sound, tmp_path / "base", change)
    settings = job_settings(base, clean)
    settings["model"]["precision"] = precision
    with pytest.raises(DivergenceError, match="all weights are finite, so numbers grew too large on the way"):
        list(job.train(settings, tmp_path / "run"))
    assert not (tmp_path / "run" / "model").exists()
    assert_finite(tmp_path / "run")
    tally(KIND, 1)


@pytest.fixture(scope="module")
def finished(sound: Path, clean: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "finished"
    list(job.train(job_settings(sound, clean), folder))
    return folder


def test_no_label_is_made_of_logits_that_are_not_finite(finished: Path, sound: Path, tally: Tally) -> None:
    pipeline = ClassifyPipeline.load(finished)
    blind_to_the_word(pipeline.backbone.model, sound)
    good = ["the dog", "a pear is near"]
    assert len(pipeline.predict(good)) == 2
    words = r"row 2: predictions are not finite; got 1 such rows; the base model's .*word_embeddings.weight holds nan"
    with pytest.raises(DivergenceError, match=words):
        pipeline.predict([good[0], f"the {WORD}", good[1]])
    several = MultiClassifier.load({"one": finished})
    blind_to_the_word(several.backbone.model, sound)
    assert len(several.predict(good, adapter="one")) == 2
    with pytest.raises(DivergenceError, match="row 2: predictions are not finite"):
        several.predict([good[0], f"the {WORD}", good[1]], adapter="one")
    tally(KIND, 2)


def test_validation_rows_that_come_to_nothing_end_the_run(sound: Path, tally: Tally) -> None:
    training, loop, _ = make_loop(sound)
    encoded, _ = training.encode([("the dog", "beast"), (f"an {WORD}", "tool"), ("a pear", "fruit")])

    def scorer() -> dict[str, float | None]:
        predict_logits(training.classifier, encoded)
        raise AssertionError("predictions were made")

    loop.scorer = scorer
    blind_to_the_word(training.classifier.backbone.model, sound)
    with pytest.raises(DivergenceError, match=r"after step \d+, row 2 of validation: predictions are not finite"):
        list(loop.run())
    tally(KIND, 1)


@pytest.mark.parametrize("where", ["head", "adapter"])
def test_a_classifier_that_is_not_finite_is_not_saved(where: str, finished: Path, tmp_path: Path, tally: Tally) -> None:
    pipeline = ClassifyPipeline.load(finished)
    classifier = pipeline.trainable.classifier
    adapted = next(iter(pipeline.trainable.attachment.parameters().values()))
    with torch.no_grad():
        (classifier.head.weight if where == "head" else adapted).view(-1)[0] = math.inf
    with pytest.raises(DivergenceError, match="not finite are not saved"):
        pipeline.save(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []
    tally(KIND, 1)


def test_a_checkpoint_that_is_not_finite_is_not_written(sound: Path, tmp_path: Path, tally: Tally) -> None:
    training, loop, _ = make_loop(sound, checkpoint_every_steps=1)
    loop.store = CheckpointStore(tmp_path / "checkpoints")
    events = loop.run()
    next(events)  # a step was taken, and is to be written
    with torch.no_grad():
        next(iter(training.optimizer.parameters.values())).view(-1)[0] = math.nan
    with pytest.raises(DivergenceError, match="after step 1: weights that are not finite are not saved"):
        next(events)
    assert saved_tensors(tmp_path) == {}
    tally(KIND, 1)


def test_rows_of_which_none_is_read_give_finite_numbers(sound: Path) -> None:
    """An empty text is one unknown token, not a mean over nothing."""
    training = TinyTraining(sound)
    encoded = training.encoder.encode(["", "the dog", " "])
    assert np.isfinite(predict_logits(training.classifier, encoded)).all()
