"""A text in windows: the mean of what its windows give alone, forward and backward, whatever shares its batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from qlassify.data.long_texts import LongTexts
from qlassify.data.packing import micro_batches, pack
from qlassify.data.tokenise import Encoded, TextEncoder, Windows
from qlassify.evaluation.predict import predict_logits, predict_vectors
from qlassify.models.backbone import load_backbone
from qlassify.models.classifier import Classifier
from qlassify.models.head import ClassificationHead
from qlassify.models.pooling import PoolingMode, average_windows
from qlassify.training.footprint import training_bytes
from qlassify.training.loss import Objective
from qlassify.training.order import StepOrder
from tiny_jobs import TinyTraining, make_rows, save_tiny_base
from tiny_models import FAMILIES, save_tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")

BATCH = {"rtol": 1e-5, "atol": 1e-5}
"""The house tolerance of one text against the same text in any batch, fp32."""
COUNTS = (1, 3, 2, 1, 5)


def windowed(seed: int = 0, longest: int = 20) -> tuple[Encoded, list[list[list[int]]]]:
    """Five rows of one to five windows each, as packed rows and as lists."""
    generator = np.random.default_rng(seed)
    rows = [
        [generator.integers(2, 200, size=int(generator.integers(3, longest))).tolist() for _ in range(count)]
        for count in COUNTS
    ]
    flat = Encoded.from_rows([[token for window in row for token in window] for row in rows])
    windows = Windows.of([[len(window) for window in row] for row in rows], np.zeros(len(rows), np.int32))
    assert windows is not None
    return Encoded(flat.token_ids, flat.offsets, None, flat.lost_tokens, 0, windows), rows


def classifier_of(name: str, directory: Path, pooling: PoolingMode = "mean", dtype: Any = torch.float32) -> Classifier:
    backbone = load_backbone(save_tiny_model(name, directory), dtype)
    return Classifier(backbone, ClassificationHead(backbone.hidden_size, 3, seed=1, dtype=dtype), pooling).eval()


@pytest.mark.parametrize("name", ["bert", "modernbert", "qwen2", "mistral", "deberta"])
def test_a_texts_logits_are_the_mean_of_its_windows_logits(name: str, tmp_path: Path) -> None:
    """Each window predicted as a text of its own, alone."""
    encoded, rows = windowed()
    for pooling in get_args(PoolingMode):
        classifier = classifier_of(name, tmp_path / pooling, pooling)
        alone = [[predict_logits(classifier, Encoded.from_rows([window]))[0] for window in row] for row in rows]
        wanted = np.stack([np.mean(row, axis=0, dtype=np.float64) for row in alone])
        np.testing.assert_allclose(predict_logits(classifier, encoded), wanted, **BATCH)
        vectors = [[predict_vectors(classifier, Encoded.from_rows([one]))[0] for one in row] for row in rows]
        wanted = np.stack([np.mean(row, axis=0, dtype=np.float64) for row in vectors])
        np.testing.assert_allclose(predict_vectors(classifier, encoded), wanted, **BATCH)
    assert classifier.backbone.packed is FAMILIES[name].packed


def test_a_text_of_windows_does_not_depend_on_its_batch(tmp_path: Path) -> None:
    classifier = classifier_of("bert", tmp_path)
    encoded, _ = windowed()
    wanted = predict_logits(classifier, encoded)
    for budget in (1, 40, 10_000):
        np.testing.assert_allclose(predict_logits(classifier, encoded, token_budget=budget), wanted, **BATCH)
    with torch.inference_mode():
        for order in ([4, 3, 2, 1, 0], [1, 1, 4], [2]):
            batch = pack(encoded, order)
            found = classifier(batch).numpy()
            np.testing.assert_allclose(found, wanted[batch.rows], **BATCH)
            np.testing.assert_array_equal(classifier(batch).numpy(), found)


def test_without_a_second_window_nothing_is_computed_differently(tmp_path: Path) -> None:
    """Bitwise: rows of one window in a set that has others too, alone in their batch, and averaging by itself."""
    classifier = classifier_of("bert", tmp_path)
    encoded, rows = windowed()
    plain = Encoded.from_rows([rows[0][0], rows[3][0]])
    with torch.inference_mode():
        assert torch.equal(classifier(pack(encoded, [0, 3])), classifier(pack(plain, [0, 1])))
    vectors = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    assert average_windows(vectors, None) is vectors
    assert torch.equal(average_windows(vectors, np.array([1, 1, 1, 1])), vectors)


def test_averages_are_those_of_float64() -> None:
    vectors = torch.randn(12, 8, generator=torch.Generator().manual_seed(0))
    found = average_windows(vectors, np.array(COUNTS))
    parts = np.split(vectors.numpy().astype(np.float64), np.cumsum(COUNTS)[:-1])
    # fp32 sums of at most five numbers of order one against float64: the house tolerance.
    np.testing.assert_allclose(found.numpy(), [part.mean(axis=0) for part in parts], rtol=1e-5, atol=1e-6)


def test_gradients_flow_through_every_window(tmp_path: Path) -> None:
    """One loss per text. The twin computes each window alone and averages by hand; both in float64."""
    training = TinyTraining(save_tiny_base(tmp_path), dtype=torch.float64, warm=True)
    encoded, rows = windowed(seed=3)
    encoded.token_ids[:] %= 34
    targets = np.array([0, 2, 1, 1, 0])
    result = training.stepper.accumulate(micro_batches(encoded, range(5), 60), targets)
    assert result.total == 5
    found = training.gradients()
    parameters = dict(training.optimizer.parameters)
    training.optimizer.clear_gradients()
    total = torch.zeros((), dtype=torch.float64)
    for row, target in zip(rows, targets, strict=True):
        logits = [training.classifier(pack(Encoded.from_rows([[i % 34 for i in one]]), [0]))[0] for one in row]
        total = total - torch.log_softmax(sum(logits) / len(logits), dim=0)[int(target)]
    wanted = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    for (name, _), gradient in zip(parameters.items(), wanted, strict=True):
        assert gradient is not None
        assert float(gradient.abs().max()) > 0, name
        # Float64 sums in another order; gradients are of order one.
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-10)


def test_where_texts_are_cut_into_micro_batches_changes_no_gradient(tmp_path: Path) -> None:
    training = TinyTraining(save_tiny_base(tmp_path), dtype=torch.float64, warm=True)
    encoded = TextEncoder(training.encoder.tokenizer, 10, LongTexts("windows", 3)).encode(
        [text for text, _ in make_rows(12, seed=2, longest=40)]
    )
    assert encoded.windows is not None
    targets = np.arange(12) % 3
    found = []
    for budget in (10_000, 60, 1):
        training.stepper.accumulate(micro_batches(encoded, range(12), budget), targets)
        found.append(training.gradients())
        training.optimizer.clear_gradients()
    for other in found[1:]:
        for name, gradient in found[0].items():
            # Float64 sums in another order.
            torch.testing.assert_close(other[name], gradient, rtol=1e-9, atol=1e-10)


def test_the_heaviest_batch_is_a_text_beyond_the_budget(tmp_path: Path) -> None:
    """It stands alone, the rehearsal computes it, and the footprint counts all of its windows."""
    training = TinyTraining(save_tiny_base(tmp_path))
    encoder = TextEncoder(training.encoder.tokenizer, 16, LongTexts("windows", 4))
    texts = ["dog " * 3] * 14 + ["the cat " * 60, "plum " * 12] + ["goat " * 13] * 14
    encoded = encoder.encode(texts)
    budget = 90
    for seed in range(4):
        order = StepOrder(len(texts), 8, 2, seed)
        heaviest = order.heaviest_batches(encoded, budget)
        every = [
            batch
            for step in range(order.total_steps)
            for batch in micro_batches(encoded, order.rows_of_step(step), budget)
        ]
        assert max(batch.num_tokens for batch in heaviest) == max(batch.num_tokens for batch in every) > budget
        assert any(batch.rows.tolist() == [14] for batch in heaviest)
        most = max(
            training_bytes(training.classifier, Objective(), batch, passes=2)
            for batch in {batch.num_tokens: batch for batch in every}.values()
        )
        planned = max(training_bytes(training.classifier, Objective(), batch, passes=2) for batch in heaviest)
        assert planned == most
