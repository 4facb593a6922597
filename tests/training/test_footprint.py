"""Live bytes against closed forms, and a model without weights against the same model with them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from conformance.worlds import CLASSES, LENGTHS, METHODS
from qlassify.config.method import LoraConfig, MethodConfig
from qlassify.data.packing import PackedBatch, micro_batches
from qlassify.methods.inject import attach
from qlassify.models.backbone import Backbone, load_backbone, load_skeleton
from qlassify.models.classifier import Classifier
from qlassify.models.head import ClassificationHead
from qlassify.training.footprint import live_bytes, prediction_bytes, training_bytes
from qlassify.training.loss import Objective
from tiny_models import FAMILIES, random_texts

SCALAR = 4


# Counting


@pytest.mark.parametrize("device", ["meta", "cpu"])
@pytest.mark.parametrize(("rows", "width", "depth"), [(300, 7, 4), (300, 7, 1), (5, 40, 3), (40, 40, 6)])
def test_a_chain_of_products_forward_and_backward(device: str, rows: int, width: int, depth: int) -> None:
    """y_i = y_(i-1) W_i with every W trained: each product keeps its input, and backward gives back one at a time."""
    x = torch.empty(rows, width, device=device).fill_(0.5)
    weights = [torch.zeros(width, width, device=device, requires_grad=True) for _ in range(depth)]

    def total() -> Tensor:
        y = x
        for weight in weights:
            y = y @ weight
        return y.sum()

    with live_bytes() as live:
        total().backward()  # type: ignore[no-untyped-call]
    values, matrix = 4 * rows * width, 4 * width * width
    # Forward ends with y_1 to y_k, the last of which goes when its sum is there; x is from before.
    moments = [depth * values + SCALAR]
    for product in range(depth, 0, -1):
        saved = (product - 1) * values
        # The sum's gradient is one number that looks like a matrix; those of the other products are matrices.
        incoming = 0 if product == depth else values
        outgoing = values if product > 1 else 0
        # Throughout there are the sum and the number 1 that backward begins with.
        moments.append(2 * SCALAR + saved + incoming + outgoing + (depth - product + 1) * matrix)
    assert live.peak == max(moments)
    # What stays are the gradients, held by the weights.
    assert live.now == depth * matrix


def test_what_is_freed_no_longer_counts() -> None:
    with live_bytes() as live:
        first = torch.empty(100, device="meta")
        assert live.now == 400
        second = first + 1
        assert (live.now, live.peak) == (800, 800)
        del first
        assert (live.now, live.peak) == (400, 800)
        third = torch.empty(30, device="meta")
        assert (live.now, live.peak) == (520, 800)
        del second, third
        assert (live.now, live.peak) == (0, 800)


def test_a_storage_counts_once_and_for_as_long_as_anything_holds_it() -> None:
    """Views, in-place operations and several results of one operation; a view keeps all of its storage."""
    with live_bytes() as live:
        whole = torch.zeros(10, 10, device="meta")
        views = [whole.view(100), whole.T, whole[0], *whole.split(5), whole.detach(), whole.expand(3, 10, 10)]
        whole.add_(1).mul_(2)
        whole.view(-1).zero_()
        assert (live.now, live.peak) == (400, 400)
        row = whole[0]
        del whole, views
        assert live.now == 400
        copy = row.clone()
        assert live.now == 440
        del row
        assert live.now == 40
        del copy
    assert (live.now, live.peak) == (0, 440)


def test_tensors_from_before_do_not_count() -> None:
    old = torch.zeros(1000)
    target = torch.zeros(1000)
    with live_bytes() as live:
        views = [old.view(10, 100), old.add_(1), torch.add(old, old, out=target)]
        assert (live.now, live.peak) == (0, 0)
        new = old * 2
        assert live.now == 4000
    # Outside the context nothing is counted, and what was counted is still uncounted when it goes.
    other = old * 3
    assert live.now == 4000
    del new, views, other
    assert live.now == 0


def test_types_have_their_widths() -> None:
    for dtype, width in ((torch.float64, 8), (torch.bfloat16, 2), (torch.int64, 8), (torch.bool, 1)):
        with live_bytes() as live:
            tensor = torch.zeros(33, dtype=dtype, device="meta")
            assert live.now == 33 * width
        del tensor


# A model without weights


SKETCHED = {
    name: METHODS[name].config
    for name in ("lora", "pissa", "dora", "ia3", "houlsby", "pfeiffer", "bitfit", "full", "probe", "prefix")
} | {"lora with dropout": LoraConfig(rank=4, alpha=8.0, dropout=0.1)}


def classifier_on(backbone: Backbone, config: MethodConfig) -> Classifier:
    attach(backbone.model, config, seed=1)
    head = ClassificationHead(backbone.hidden_size, CLASSES, seed=2).to(backbone.device)
    return Classifier(backbone, head, "mean")


def batch_of(family: str) -> PackedBatch:
    (batch,) = micro_batches(random_texts(LENGTHS, FAMILIES[family], seed=3), range(len(LENGTHS)), 4096)
    return batch


def index_bytes(batch: PackedBatch, family: str) -> int:
    """The most that the index tensors of a batch take: they are made from arrays, which the CPU needs no copy of."""
    # Ids, positions, segments, and of the layout: where a place's token is, whether it is one, where a token's place
    # is, and each text's start, end and length.
    places = len(batch.lengths) * int(batch.lengths.max())
    return 8 * (3 * batch.num_tokens + 2 * places + batch.num_tokens + 3 * batch.num_rows)


@pytest.mark.parametrize(
    ("family", "method"),
    [
        *((family, method) for family in ("bert", "qwen2") for method in SKETCHED),
        *((family, method) for family in ("gpt2", "deberta", "gemma2") for method in ("lora", "full")),
    ],
)
def test_a_step_without_values_holds_what_a_step_with_values_holds(
    tiny_directories: dict[str, Path], family: str, method: str
) -> None:
    """Exactly, but for index tensors; for one micro-batch and with an earlier one's gradients standing."""
    directory, config, batch = tiny_directories[family], SKETCHED[method], batch_of(family)
    real = classifier_on(load_backbone(directory), config)
    sketch = classifier_on(Backbone(load_skeleton(directory), directory), config)
    assert sketch.backbone.is_sketch
    assert sketch.backbone.packed is real.backbone.packed is FAMILIES[family].packed
    slack = index_bytes(batch, family)
    for passes in (1, 2):
        wanted = training_bytes(real, Objective(), batch, passes=passes)
        found = training_bytes(sketch, Objective(), batch, passes=passes)
        assert wanted <= found <= wanted + slack
    wanted = prediction_bytes(real, batch)
    assert wanted <= prediction_bytes(sketch, batch) <= wanted + slack
    assert all(parameter.grad is None for parameter in sketch.parameters())


@pytest.mark.parametrize("objective", [Objective(multi_label=True), Objective(label_smoothing=0.1)])
def test_other_losses_without_values(tiny_directories: dict[str, Path], objective: Objective) -> None:
    directory, batch = tiny_directories["bert"], batch_of("bert")
    weighted = replace(objective, class_weights=torch.tensor([1.0, 2.0, 3.0]))
    config = METHODS["lora"].config
    real = classifier_on(load_backbone(directory), config)
    sketch = classifier_on(Backbone(load_skeleton(directory), directory), config)
    wanted = training_bytes(real, weighted, batch, passes=1)
    # The weights, too, are copied to where the sketch is.
    assert wanted <= training_bytes(sketch, weighted, batch, passes=1) <= wanted + index_bytes(batch, "bert") + 12


def test_gradients_that_stand_already_come_on_top(tiny_directories: dict[str, Path]) -> None:
    """With everything trained they are as large as the model, and a second micro-batch meets all of them."""
    directory, batch = tiny_directories["qwen2"], batch_of("qwen2")
    sketch = classifier_on(Backbone(load_skeleton(directory), directory), METHODS["full"].config)
    first, second = (training_bytes(sketch, Objective(), batch, passes=passes) for passes in (1, 2))
    gradients = sum(4 * parameter.numel() for parameter in sketch.parameters() if parameter.requires_grad)
    assert first < second <= first + gradients
    # A third is as the second: gradients are added up in place.
    assert training_bytes(sketch, Objective(), batch, passes=3) == second


def test_bf16_weights_have_half_of_the_activations(tiny_directories: dict[str, Path]) -> None:
    """With a frozen model, hidden states are most of what is held, and have the type of its weights."""
    directory, batch = tiny_directories["llama"], batch_of("llama")
    held = {}
    for dtype in (torch.float32, torch.bfloat16):
        sketch = classifier_on(Backbone(load_skeleton(directory, dtype), directory), METHODS["probe"].config)
        held[dtype] = prediction_bytes(sketch, batch) - index_bytes(batch, "llama")
    # Norms compute in fp32 whatever the weights are, and masks and rotary tables have types of their own.
    assert 0.4 < held[torch.bfloat16] / held[torch.float32] < 0.8
