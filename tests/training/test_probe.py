"""The linear probe: held to scikit-learn's logistic regression, and to the conditions of a minimum."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from qlassify.config.run import TrainingConfig
from qlassify.errors import DivergenceError
from qlassify.models.head import ClassificationHead
from qlassify.training.events import EvaluationEvent, StepEvent, TrainingEndEvent
from qlassify.training.loss import Objective
from qlassify.training.probe import GRADIENT_TOLERANCE, PATIENCE, ProbeSolver, solve

ROWS, WIDTH, CLASSES = 200, 7, 3


def vectors_and_classes(seed: int = 0, classes: int = CLASSES) -> tuple[torch.Tensor, torch.Tensor]:
    """Overlapping clusters, so that a finite optimum exists without a penalty too."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, classes, (ROWS,), generator=generator)
    centres = torch.randn(classes, WIDTH, generator=generator, dtype=torch.float64)
    noise = torch.randn(ROWS, WIDTH, generator=generator, dtype=torch.float64)
    return centres[targets] + 1.5 * noise, targets


def scikit_learn(vectors: torch.Tensor, targets: Any, penalty: float, **settings: Any) -> LogisticRegression:
    """Its C multiplies the summed loss, ours the squared norm beside the mean loss: C = 1 / (N penalty)."""
    regression = LogisticRegression(C=1 / (len(vectors) * penalty), tol=1e-10, max_iter=10_000, **settings)
    return regression.fit(vectors.numpy(), np.asarray(targets))


@pytest.mark.parity
@pytest.mark.parametrize("penalty", [1.0, 0.03, 1e-3])
def test_classes_as_scikit_learn(penalty: float) -> None:
    vectors, targets = vectors_and_classes()
    found = solve(vectors, targets, Objective(), penalty, None, CLASSES)
    peer = scikit_learn(vectors, targets, penalty)
    # Both stop at derivatives below 1e-6; the curvature is at least the penalty, so weights agree to 1e-6 / penalty.
    np.testing.assert_allclose(found.weight.numpy(), peer.coef_, atol=2e-6 / penalty + 1e-6)
    # Biases are only determined up to a constant that softmax does not see.
    np.testing.assert_allclose(found.bias - found.bias.mean(), peer.intercept_ - peer.intercept_.mean(), atol=1e-3)
    assert found.gradient <= GRADIENT_TOLERANCE


@pytest.mark.parity
def test_class_weights_as_scikit_learn() -> None:
    vectors, targets = vectors_and_classes(seed=1)
    weights = [0.5, 1.0, 1.5]
    found = solve(vectors, targets, Objective(class_weights=torch.tensor(weights)), 0.01, None, CLASSES)
    peer = scikit_learn(vectors, targets, 0.01, class_weight=dict(enumerate(weights)))
    np.testing.assert_allclose(found.weight.numpy(), peer.coef_, atol=2e-4)


@pytest.mark.parity
def test_each_label_by_itself_as_scikit_learn() -> None:
    """Our loss is the mean over labels, so each label's own problem has the penalty times the number of labels."""
    vectors, _ = vectors_and_classes(seed=2)
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(ROWS, CLASSES, generator=generator, dtype=torch.float64)
    targets = (vectors[:, :CLASSES] + noise > 0.5).double()
    found = solve(vectors, targets, Objective(multi_label=True), 0.01, None, CLASSES)
    for label in range(CLASSES):
        peer = scikit_learn(vectors, targets[:, label].numpy(), 0.01 * CLASSES)
        np.testing.assert_allclose(found.weight[label].numpy(), peer.coef_[0], atol=2e-4)
        assert float(found.bias[label]) == pytest.approx(float(peer.intercept_[0]), abs=2e-4)


def test_a_label_that_never_occurs_has_a_finite_answer() -> None:
    vectors, targets = vectors_and_classes(classes=2)
    found = solve(vectors, targets, Objective(), 0.01, None, 3)
    assert bool(torch.isfinite(found.bias).all())
    predicted = torch.addmm(found.bias, vectors, found.weight.T).softmax(dim=1)
    assert float(predicted[:, 2].max()) < 0.01


def test_where_it_begins_does_not_matter() -> None:
    vectors, targets = vectors_and_classes(seed=4)
    strong = solve(vectors, targets, Objective(), 1.0, None, CLASSES)
    warm = solve(vectors, targets, Objective(), 0.01, strong, CLASSES)
    cold = solve(vectors, targets, Objective(), 0.01, None, CLASSES)
    torch.testing.assert_close(warm.weight, cold.weight, atol=2e-4, rtol=0)


def test_vectors_that_are_not_finite_are_refused() -> None:
    vectors, targets = vectors_and_classes()
    vectors[3, 1] = torch.nan
    with pytest.raises(DivergenceError, match="found no minimum"):
        solve(vectors, targets, Objective(), 0.01, None, CLASSES)


def solver(scores: list[float], penalties: tuple[float, ...]) -> tuple[ProbeSolver, list[npt.NDArray[np.float32]]]:
    """A solver whose evaluations give these scores, and the head's weights at each of them."""
    vectors, targets = vectors_and_classes(seed=5)
    head, seen = ClassificationHead(WIDTH, CLASSES, seed=0), []
    waiting = iter(scores)

    def score() -> dict[str, float | None]:
        seen.append(head.weight.detach().numpy().copy())
        return {"macro_f1": next(waiting)}

    found = ProbeSolver(
        head, lambda: vectors.float(), targets.numpy(), Objective(), penalties=penalties, config=TrainingConfig(),
        scorer=score,
    )  # fmt: skip
    return found, seen


def test_the_best_penalty_is_kept_and_weaker_ones_are_not_tried() -> None:
    probe, seen = solver([0.5, 0.7, 0.6, 0.7, 0.9], (1.0, 0.1, 0.01, 1e-3, 1e-4))
    events = list(probe.run())
    steps = [event for event in events if isinstance(event, StepEvent)]
    improved = [event.improved for event in events if isinstance(event, EvaluationEvent)]
    assert improved == [True, True, False, False]
    assert len(steps) == 2 + PATIENCE
    assert [step.loss for step in steps] == sorted((step.loss for step in steps), reverse=True)
    assert events[-1] == TrainingEndEvent(4, 2, 0.7, stopped_early=True, skipped_steps=0)
    assert np.array_equal(probe.head.weight.detach().numpy(), seen[1])


def test_the_head_works_on_vectors_as_they_come() -> None:
    """Means and deviations are in its weights: its logits on raw vectors are the solution's on standardised ones."""
    probe, _ = solver([0.5], (0.01,))
    list(probe.run())
    vectors, targets = vectors_and_classes(seed=5)
    wide = vectors.float().double()
    standard = (wide - wide.mean(dim=0)) / wide.std(dim=0, correction=0)
    solution = solve(standard, targets, Objective(), 0.01, None, CLASSES)
    wanted = torch.addmm(solution.bias, standard, solution.weight.T)
    # The head is fp32: seven products of about one each.
    torch.testing.assert_close(probe.head(vectors.float()).double(), wanted, atol=1e-5, rtol=1e-5)


def test_a_head_without_a_bias_is_solved_for_too() -> None:
    """Nothing stands for the mean then: the vectors are only scaled, and the minimum is that of the weights alone."""
    vectors, targets = vectors_and_classes(seed=6)
    head = ClassificationHead(WIDTH, CLASSES, seed=0, bias=False)
    probe = ProbeSolver(
        head, lambda: vectors.float(), targets.numpy(), Objective(), penalties=(0.01,), config=TrainingConfig(),
        scorer=lambda: {"macro_f1": 0.5},
    )  # fmt: skip
    list(probe.run())
    scaled = (vectors.float() / vectors.float().std(dim=0, correction=0)).double()
    peer = scikit_learn(scaled, targets, 0.01, fit_intercept=False)
    wanted = torch.from_numpy(scaled.numpy() @ peer.coef_.T)
    torch.testing.assert_close(head(vectors.float()).double(), wanted, atol=2e-3, rtol=1e-3)
