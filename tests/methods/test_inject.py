"""Attaching and detaching: what is wrapped, what is refused, and that the base never moves.

Names that begin with ``test_f_freeze`` or ``test_f_edge`` are falsification tests.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from qlassify.config.method import LoraConfig
from qlassify.data.packing import PackedBatch, pack
from qlassify.errors import ConfigError
from qlassify.methods.inject import Attachment, attach, linear_layers, match_targets
from qlassify.methods.lora import LoraLinear
from qlassify.models.backbone import load_backbone
from qlassify.models.classifier import Classifier
from qlassify.models.head import ClassificationHead
from tiny_models import FAMILIES, WIDTH, random_texts

pytestmark = pytest.mark.usefixtures("one_thread")

LENGTHS = (9, 4, 12, 1, 7, 7)
NUM_CLASSES = 3


class Block(nn.Module):
    """A layer of a toy model, with names that only a dot separates."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(8, 8)
        self.subquery = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.output = nn.Sequential(nn.Linear(8, 6), nn.GELU(), nn.Linear(6, 8))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.output(self.norm(self.query(x) * self.subquery(x)))


def toy() -> nn.Module:
    return nn.Sequential(Block(), Block())


def classifier_of(directory: Path) -> tuple[Classifier, PackedBatch, Tensor]:
    """A tiny classifier, one batch and its labels."""
    backbone = load_backbone(directory)
    classifier = Classifier(backbone, ClassificationHead(WIDTH, NUM_CLASSES, seed=0), "mean")
    encoded = random_texts(LENGTHS, FAMILIES[directory.name], seed=0)
    labels = torch.arange(len(LENGTHS)) % NUM_CLASSES
    return classifier, pack(encoded, range(len(LENGTHS))), labels


def digest(tensors: dict[str, Tensor]) -> dict[str, str]:
    """SHA-256 of every tensor's bytes."""
    return {name: hashlib.sha256(tensor.numpy().tobytes()).hexdigest() for name, tensor in tensors.items()}


def base_tensors(attachment: Attachment) -> dict[str, Tensor]:
    """Every parameter and buffer of the model that is not the adapter's."""
    ours = {id(parameter) for parameter in attachment.parameters().values()}
    state = attachment.model.state_dict(keep_vars=True)
    return {name: tensor.detach() for name, tensor in state.items() if id(tensor) not in ours}


def train(classifier: Classifier, attachment: Attachment, batch: PackedBatch, labels: Tensor, steps: int) -> None:
    trainable = [*attachment.parameters().values(), *classifier.head.parameters()]
    optimizer = torch.optim.AdamW(trainable, lr=1e-2)
    classifier.train()
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(classifier(batch), labels).backward()
        optimizer.step()


# Targets


@pytest.mark.parametrize(
    ("targets", "wanted"),
    [
        ("all-linear", [f"{i}.{name}" for i in (0, 1) for name in ("query", "subquery", "output.0", "output.2")]),
        (("query",), ["0.query", "1.query"]),
        (("1.query",), ["1.query"]),
        (("output.0", "subquery"), ["0.subquery", "0.output.0", "1.subquery", "1.output.0"]),
        (("query", "0.query"), ["0.query", "1.query"]),
        (("0.output.2",), ["0.output.2"]),
    ],
)
def test_targets_match_whole_names(targets: str | tuple[str, ...], wanted: list[str]) -> None:
    model = toy()
    assert match_targets(model, targets) == wanted
    attachment = attach(model, LoraConfig(rank=2, target_modules=targets), seed=0)
    assert list(attachment.layers) == wanted
    assert [path for path, module in model.named_modules() if isinstance(module, LoraLinear)] == wanted


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2"])
def test_all_linear_is_every_linear_layer_of_the_backbone(name: str, tiny_directories: dict[str, Path]) -> None:
    model = load_backbone(tiny_directories[name]).model
    matrices = {path for path, parameter in model.named_parameters() if parameter.dim() == 2}
    embeddings = {path for path in matrices if "embed" in path or path.startswith(("wte", "wpe"))}
    wanted = {path.removesuffix(".weight") for path in matrices - embeddings}
    assert set(linear_layers(model)) == wanted


def test_f_edge_003_one_layer_alone(tiny_directories: dict[str, Path]) -> None:
    classifier, batch, labels = classifier_of(tiny_directories["bert"])
    path = "encoder.layer.0.attention.self.query"
    attachment = attach(classifier.backbone.model, LoraConfig(rank=2, target_modules=(path,)), seed=0)
    before = classifier(batch).detach()
    train(classifier, attachment, batch, labels, steps=3)
    assert list(attachment.layers) == [path]
    assert not torch.equal(classifier(batch), before)


def test_f_edge_005_an_unknown_target_lists_what_exists_and_suggests() -> None:
    with pytest.raises(ConfigError, match=r"method\.target_modules") as caught:
        match_targets(toy(), ("query", "qeury"))
    assert caught.value.got == "'qeury'"
    assert caught.value.wanted is not None
    assert all(name in caught.value.wanted for name in ("all-linear", "query", "subquery"))
    assert caught.value.do == "Did you mean query?"


@pytest.mark.parametrize("target", ["uery", "norm", "output", ".query", "query.", "lora_A"])
def test_a_part_of_a_name_or_another_kind_of_module_is_no_target(target: str) -> None:
    model = toy()
    with pytest.raises(ConfigError, match="matches no linear layer"):
        attach(model, LoraConfig(rank=2, target_modules=(target,)), seed=0)
    assert not any(isinstance(module, LoraLinear) for module in model.modules())


def test_f_edge_004_no_target_is_refused() -> None:
    with pytest.raises(ConfigError, match="names no module"):
        LoraConfig(target_modules=())


def test_a_rank_beyond_a_target_is_refused_before_anything_is_wrapped() -> None:
    model = toy()
    with pytest.raises(ConfigError, match="rank exceeds") as caught:
        attach(model, LoraConfig(rank=7), seed=0)
    assert caught.value.wanted == "at most 6"
    assert "0.output.0" in str(caught.value.where)
    assert not any(isinstance(module, LoraLinear) for module in model.modules())


def test_a_second_attachment_is_refused() -> None:
    model = toy()
    first = attach(model, LoraConfig(rank=2, target_modules=("query",)), seed=0)
    for targets in ("all-linear", ("subquery",)):
        with pytest.raises(ConfigError, match="attached to this model already"):
            attach(model, LoraConfig(rank=2, target_modules=targets), seed=0)
    first.detach()
    attach(model, LoraConfig(rank=2), seed=0)


# Attach and detach


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_detach_restores_the_same_objects(name: str, tiny_directories: dict[str, Path]) -> None:
    model = load_backbone(tiny_directories[name]).model
    before = dict(model.named_modules())
    state = digest(model.state_dict())
    attachment = attach(model, LoraConfig(rank=2), seed=0)
    assert len(attachment.layers) > 0
    attachment.detach()
    after = dict(model.named_modules())
    assert list(after) == list(before)
    assert all(after[path] is before[path] for path in before)
    assert digest(model.state_dict()) == state


@torch.no_grad()
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_f_math_002_a_fresh_attachment_changes_no_logit(name: str, tiny_directories: dict[str, Path]) -> None:
    classifier, batch, _ = classifier_of(tiny_directories[name])
    plain = classifier(batch)
    attachment = attach(classifier.backbone.model, LoraConfig(rank=4), seed=0)
    assert torch.equal(classifier(batch), plain)
    for layer in attachment.layers.values():
        nn.init.ones_(layer.lora_B)
    assert not torch.equal(classifier(batch), plain)
    attachment.detach()
    assert torch.equal(classifier(batch), plain)


def test_a_factor_does_not_depend_on_what_else_is_wrapped() -> None:
    one = attach(toy(), LoraConfig(rank=2, target_modules=("1.query",)), seed=5)
    every = attach(toy(), LoraConfig(rank=2), seed=5)
    other = attach(toy(), LoraConfig(rank=2), seed=6)
    assert torch.equal(one.layers["1.query"].lora_A, every.layers["1.query"].lora_A)
    assert not torch.equal(other.layers["1.query"].lora_A, every.layers["1.query"].lora_A)


def test_parameters_are_the_layers_own_objects() -> None:
    attachment = attach(toy(), LoraConfig(rank=2, target_modules=("query",)), seed=0)
    named = attachment.parameters()
    assert list(named) == [f"{i}.query.lora_{factor}.weight" for i in (0, 1) for factor in "AB"]
    assert named["1.query.lora_B.weight"] is attachment.layers["1.query"].lora_B
    assert attachment.num_parameters() == sum(parameter.numel() for parameter in named.values())


def test_layers_share_one_dropout_stream() -> None:
    attachment = attach(toy().train(), LoraConfig(rank=2, dropout=0.5), seed=0)
    state = attachment.dropout_generator.get_state()
    first = attachment.model(torch.ones(4, 8))
    assert not torch.equal(attachment.dropout_generator.get_state(), state)
    nn.init.ones_(attachment.layers["0.query"].lora_B)
    outputs = []
    for _ in range(2):
        attachment.dropout_generator.set_state(state)
        outputs.append(attachment.model(torch.ones(4, 8)))
    assert torch.equal(*outputs)
    assert not torch.equal(outputs[0], first)


@pytest.mark.parametrize("training", [True, False])
def test_a_wrapper_takes_the_mode_of_its_model(training: bool) -> None:
    model = toy().train(training)
    attachment = attach(model, LoraConfig(rank=2), seed=0)
    assert all(layer.training is training for layer in attachment.layers.values())


def test_a_training_classifier_drops_and_an_evaluating_one_does_not(tiny_directories: dict[str, Path]) -> None:
    classifier, batch, _ = classifier_of(tiny_directories["bert"])
    attachment = attach(classifier.backbone.model, LoraConfig(rank=2, dropout=0.5), seed=0)
    for layer in attachment.layers.values():
        nn.init.ones_(layer.lora_B)
    classifier.train()
    assert not torch.equal(classifier(batch), classifier(batch))
    classifier.eval()
    assert torch.equal(classifier(batch), classifier(batch))


# Freezing


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "deberta"])
def test_f_freeze_only_the_adapter_moves(name: str, tiny_directories: dict[str, Path]) -> None:
    classifier, batch, labels = classifier_of(tiny_directories[name])
    attachment = attach(classifier.backbone.model, LoraConfig(rank=4), seed=0)
    base = base_tensors(attachment)
    frozen = digest(base)
    factors = {key: value.detach().clone() for key, value in attachment.parameters().items()}
    trainable = {id(parameter) for parameter in classifier.parameters() if parameter.requires_grad}
    ours = [*attachment.parameters().values(), *classifier.head.parameters()]
    assert trainable == {id(parameter) for parameter in ours}

    # B starts at zero, so the first step gives A no gradient; the second does.
    train(classifier, attachment, batch, labels, steps=2)
    for key, parameter in attachment.parameters().items():
        assert parameter.grad is not None, key
        assert float(parameter.grad.abs().max()) > 0, key
        assert not torch.equal(parameter, factors[key]), key

    train(classifier, attachment, batch, labels, steps=18)
    assert digest(base_tensors(attachment)) == frozen
    assert all(tensor.grad is None for tensor in base.values())


def test_f_freeze_001_the_first_step_moves_b_and_not_a(tiny_directories: dict[str, Path]) -> None:
    classifier, batch, labels = classifier_of(tiny_directories["bert"])
    attachment = attach(classifier.backbone.model, LoraConfig(rank=4), seed=0)
    nn.functional.cross_entropy(classifier(batch), labels).backward()
    for layer in attachment.layers.values():
        assert layer.lora_A.grad is not None
        assert float(layer.lora_A.grad.abs().max()) == 0
        assert layer.lora_B.grad is not None
        assert float(layer.lora_B.grad.abs().max()) > 0


def test_a_forward_without_gradients_first_does_not_break_training(tiny_directories: dict[str, Path]) -> None:
    """A layer that keeps something of a forward in evaluation mode would learn nothing, or from the wrong thing."""

    def losses(*, look_first: bool) -> list[float]:
        classifier, batch, labels = classifier_of(tiny_directories["bert"])
        attachment = attach(classifier.backbone.model, LoraConfig(rank=4), seed=0)
        found = []
        for _ in range(3):
            if look_first:
                classifier.eval()
                with torch.no_grad():
                    classifier(batch)
                with torch.inference_mode():
                    classifier(batch)
            train(classifier, attachment, batch, labels, steps=1)
            with torch.no_grad():
                found.append(float(nn.functional.cross_entropy(classifier(batch), labels)))
        return found

    plain = losses(look_first=False)
    assert losses(look_first=True) == plain
    assert len(set(plain)) == 3


def test_training_learns(tiny_directories: dict[str, Path]) -> None:
    classifier, batch, labels = classifier_of(tiny_directories["bert"])
    attachment = attach(classifier.backbone.model, LoraConfig(rank=4), seed=0)
    classifier.head.requires_grad_(False).weight.mul_(10)  # large enough that the backbone alone can do it
    with torch.no_grad():
        first = float(nn.functional.cross_entropy(classifier(batch), labels))
    train(classifier, attachment, batch, labels, steps=30)
    with torch.no_grad():
        last = float(nn.functional.cross_entropy(classifier(batch), labels))
    assert last < 0.5 * first  # six texts and thousands of parameters, the adapters' alone: half is far from hard


def test_f_edge_007_two_halves_give_the_gradient_of_the_whole(tiny_directories: dict[str, Path]) -> None:
    classifier, batch, labels = classifier_of(tiny_directories["bert"])
    classifier.double()
    attachment = attach(classifier.backbone.model, LoraConfig(rank=4), seed=0)
    for layer in attachment.layers.values():
        nn.init.constant_(layer.lora_B, 0.01)
    encoded = random_texts(LENGTHS, FAMILIES["bert"], seed=0)
    label_of = {int(row): int(label) for row, label in zip(batch.rows, labels, strict=True)}

    def gradients(cuts: list[list[int]]) -> dict[str, Tensor]:
        classifier.zero_grad()
        for rows in cuts:
            part = pack(encoded, rows)
            wanted = torch.tensor([label_of[int(row)] for row in part.rows])
            nn.functional.cross_entropy(classifier(part), wanted, reduction="sum").backward()
        return {name: value.grad.clone() for name, value in attachment.parameters().items() if value.grad is not None}

    whole, halves = gradients([list(range(len(LENGTHS)))]), gradients([[0, 3, 4], [1, 2], [5]])
    assert len(whole) == len(attachment.parameters())
    for name, wanted in whole.items():
        # The same sums in float64 in another order, relative to gradients of order one.
        torch.testing.assert_close(halves[name], wanted, rtol=1e-9, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")
