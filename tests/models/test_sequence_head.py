"""The architectures' heads made linear: against the linear map itself, and within the bounds that are claimed.

The heads are computed in fp32 as transformers computes them and compared with W h + b in float64.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from qlassify.models.backbone import empty_model
from qlassify.models.pooling import PoolingMode
from qlassify.models.sequence_head import LinearHead, NoSequenceHead, SequenceHead, express, last_layer_norm
from tiny_models import FAMILIES, WIDTH, tiny_config

UNIT = 2.0**-24
"""Unit roundoff of fp32."""
EXTRA = {"xlm-roberta": "xlm-roberta", "electra": "electra", "mpnet": "mpnet"}


def config_of(name: str, classes: int) -> Any:
    if name in EXTRA:
        sizes = {"num_hidden_layers": 1, "num_attention_heads": 4, "hidden_size": WIDTH, "intermediate_size": 96}
        return transformers.CONFIG_MAPPING[name](vocab_size=200, num_labels=classes, **sizes)
    config = tiny_config(name)
    config.num_labels = classes
    return config


def linear_head(pooling: PoolingMode, classes: int, *, bias: bool = True, spread: float = 1.0) -> LinearHead:
    generator = torch.Generator().manual_seed(3)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    return LinearHead(
        weight=draw(classes, WIDTH) * spread,
        bias=draw(classes) if bias else None,
        pooling=pooling,
        norm_weight=1 + draw(WIDTH),
        norm_bias=draw(WIDTH),
    )


def normalised(head: LinearHead, count: int) -> Tensor:
    """(count, H) hidden states as the last LayerNorm gives them, the extreme one (a single component) among them."""
    assert head.norm_weight is not None
    assert head.norm_bias is not None
    rows = torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(4))
    rows[0] = 0
    rows[0, int(head.norm_weight.abs().argmax())] = 1000.0
    return torch.nn.functional.layer_norm(rows, (WIDTH,), head.norm_weight, head.norm_bias)


def logits_of(name: str, head: SequenceHead, classes: int, states: Tensor) -> Tensor:
    """What transformers' own head modules give for texts of one token."""
    model = transformers.AutoModelForSequenceClassification.from_config(config_of(name, classes)).eval()
    state = model.state_dict()
    assert set(head.tensors) <= set(state), "a tensor that the model has not"
    own = {
        key
        for key in state
        if key not in model.base_model.state_dict() and not key.startswith(f"{model.base_model_prefix}.")
    }
    assert own <= set(head.tensors), "a tensor of the head would stay random"
    model.load_state_dict({**state, **head.tensors}, strict=True)
    for key, value in head.settings.items():
        setattr(model.config, key, value)

    class Given(torch.nn.Module):
        """Stands for the base model and gives the hidden states that it is asked for."""

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            hidden = states[:, None]
            pooled = own_pooler(hidden) if own_pooler is not None else None
            output = transformers.modeling_outputs.BaseModelOutputWithPooling(hidden, pooled)
            return output

    own_pooler = getattr(model.base_model, "pooler", None)
    setattr(model, model.base_model_prefix, Given())
    with torch.no_grad():
        logits: Tensor = model(input_ids=torch.full((len(states), 1), 5)).logits
    return logits


ENCODERS = ("bert", "distilbert", "roberta", "modernbert", "deberta", *EXTRA)


@pytest.mark.parametrize("spread", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoders_head_is_linear_up_to_rounding(name: str, spread: float) -> None:
    classes = 7
    ours = linear_head("cls", classes, spread=spread)
    head = express(empty_model(config_of(name, classes), torch.float32, classifier=True), ours)
    assert isinstance(head, SequenceHead)
    states = normalised(ours, 50)
    assert ours.bias is not None
    wanted = states.double() @ ours.weight.double().T + ours.bias.double()
    # A sum of H rounded products errs by at most (H + 1) units of the sum of their sizes; the head has two such layers
    # and a function between them, each good to a few units.
    sizes = states.abs().double() @ ours.weight.abs().double().T + ours.bias.abs().double()
    bound = 3 * (WIDTH + 8) * UNIT * sizes
    if name == "modernbert":
        # There the mean and the variance are those of all pairs together.
        bound = 3 * (WIDTH + 8) * UNIT * sizes.amax(dim=1, keepdim=True).expand_as(sizes)
    assert bool(((logits_of(name, head, classes, states).double() - wanted).abs() <= bound).all())


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.causal])
def test_a_causal_models_head_is_the_head_itself(name: str) -> None:
    ours = linear_head("last", 5, bias=False)
    head = express(empty_model(config_of(name, 5), torch.float32, classifier=True), ours)
    assert isinstance(head, SequenceHead)
    assert set(head.tensors) == {"score.weight"}
    assert torch.equal(head.tensors["score.weight"], ours.weight)


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_the_scale_before_tanh_is_what_the_bound_allows_and_no_less(name: str) -> None:
    ours = linear_head("cls", 3)
    head = express(empty_model(config_of(name, 3), torch.float32, classifier=True), ours)
    assert isinstance(head, SequenceHead)
    first = next(value for key, value in head.tensors.items() if key.endswith("dense.weight"))
    scale = float(first[0, 0])
    assert torch.equal(first, torch.eye(WIDTH) * scale)
    assert math.log2(scale).is_integer()
    largest = float(normalised(ours, 50).abs().max())
    assert largest <= ours.largest_component()
    assert (scale * ours.largest_component()) ** 2 / 3 <= UNIT / 2 < (2 * scale * ours.largest_component()) ** 2 / 3


@pytest.mark.parametrize(
    ("name", "pooling", "bias", "classes", "reason"),
    [
        ("bert", "mean", True, 3, "the average of all tokens"),
        ("bert", "last", True, 3, "the last token"),
        ("llama", "cls", False, 3, "the first token"),
        ("llama", "last", True, 3, "has no bias"),
        ("modernbert", "last", True, 3, "the first token or the average"),
        ("distilbert", "cls", True, WIDTH // 2 + 1, "two rows are needed"),
        ("modernbert", "cls", True, WIDTH // 2 + 1, "two rows are needed"),
    ],
)
def test_what_cannot_be_said_has_a_reason(
    name: str, pooling: PoolingMode, bias: bool, classes: int, reason: str
) -> None:
    model = empty_model(config_of(name, classes), torch.float32, classifier=True)
    found = express(model, linear_head(pooling, classes, bias=bias))
    assert isinstance(found, NoSequenceHead)
    assert reason in found.reason


def test_an_unknown_head_is_not_guessed_at() -> None:
    config = transformers.AlbertConfig(vocab_size=50, hidden_size=WIDTH, num_attention_heads=4, num_hidden_layers=1)
    found = express(empty_model(config, torch.float32, classifier=True), linear_head("cls", 3))
    assert isinstance(found, NoSequenceHead)
    assert "albert" in found.reason


@pytest.mark.parametrize(
    ("name", "ending"),
    [("bert", "layer.3.output.LayerNorm"), ("roberta", "layer.3.output.LayerNorm"), ("modernbert", "final_norm")],
)
def test_the_norm_that_bounds_the_states_is_the_last_one(name: str, ending: str) -> None:
    model = empty_model(config_of(name, 3), torch.float32, classifier=False)
    assert model is not None
    path = last_layer_norm(model)
    assert path is not None
    assert path.endswith(ending)


def test_classes_up_to_half_the_width_fit() -> None:
    model = empty_model(config_of("deberta", WIDTH // 2), torch.float32, classifier=True)
    assert isinstance(express(model, linear_head("cls", WIDTH // 2)), SequenceHead)
