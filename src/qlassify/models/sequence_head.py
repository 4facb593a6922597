"""Our head in the words of an architecture's own classification head, wherever it can say the same.

Our logits are linear in the pooled vector: l = W h + b. The heads that transformers gives its architectures are mostly
not linear; weights can be chosen for which they are:

* causal models: ``score`` is linear, has no bias, and reads the last token. W itself.
* tanh between two layers (BERT's pooler, RoBERTa's head): the first layer is e I and the second W / e. With
  tanh(x) = x (1 - x^2 / 3 + ...) the relative error of a component is below (e M)^2 / 3, where M bounds the components
  of h; e is the largest power of two for which that is below half the unit roundoff of fp32. Multiplying by a power of
  two rounds nothing.
* ReLU, GELU or SiLU between two layers (DistilBERT, DeBERTa): f(x) - f(-x) = x, exactly, because each of them is x
  times g(x) with g(x) + g(-x) = 1. The first layer computes l and -l, the second their difference. It needs two rows
  for each class.
* ModernBERT has GELU and a LayerNorm behind it: the same pairs, so small (d l) that the variance is nothing beside the
  norm's epsilon. The norm is then a division by sqrt(epsilon), up to var / (2 epsilon), and its mean falls out of the
  difference.

M follows from the last LayerNorm: a normalised vector of width H has no component beyond sqrt(H).

The alternative, a class of our own that ``trust_remote_code`` would load, needs readers to run our code. Weights need
nothing. Their price is that such a head is for predicting: training it further would start from a strange place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from qlassify.models.pooling import PoolingMode

ROUNDOFF = 2.0**-25
"""Half the unit roundoff of fp32: what a head's form may add to the rounding of the logits."""


@dataclass(frozen=True, slots=True)
class SequenceHead:
    """Tensors and settings with which an architecture's own head gives our logits.

    Attributes:
        tensors: name below the whole model -> fp32 tensor; all of the head's.
        modules: the modules that hold them, for whoever has to save them whole.
        settings: what the model's configuration has to say.
        form: how it is done, in words.
    """

    tensors: Mapping[str, Tensor]
    modules: tuple[str, ...]
    form: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NoSequenceHead:
    """Why the architecture's own head cannot give our logits."""

    reason: str


@dataclass(frozen=True, slots=True)
class LinearHead:
    """Our head and what it reads.

    Attributes:
        weight: (C, H) fp32.
        bias: (C,) fp32, or None.
        pooling: which vector it reads.
        norm_weight: (H,) of the last norm before the pooling, or None when there is no LayerNorm.
        norm_bias: (H,) of the same, or None.
    """

    weight: Tensor
    bias: Tensor | None
    pooling: PoolingMode
    norm_weight: Tensor | None
    norm_bias: Tensor | None

    @property
    def bias_or_zero(self) -> Tensor:
        """(C,) the bias, or zeros."""
        return torch.zeros(len(self.weight)) if self.bias is None else self.bias

    def largest_component(self) -> float:
        """A bound on the components of the pooled vector, from the last LayerNorm."""
        assert self.norm_weight is not None
        width = len(self.norm_weight)
        shift = torch.zeros(width) if self.norm_bias is None else self.norm_bias.abs()
        return float((self.norm_weight.abs() * math.sqrt(width) + shift).max())

    def largest_product(self) -> float:
        """A bound on |W h|: a normalised vector of width H has length sqrt(H) at most."""
        assert self.norm_weight is not None
        lengths = (self.weight * self.norm_weight).norm(dim=1) * math.sqrt(len(self.norm_weight))
        shift = 0.0 if self.norm_bias is None else (self.weight @ self.norm_bias).abs()
        return float((lengths + shift).max())


def express(model: Any, head: LinearHead) -> SequenceHead | NoSequenceHead:
    """Our head in the form of a model's own.

    Args:
        model: transformers' model with its classification head; its numbers are not looked at.
        head: ours.
    """
    kind = str(model.config.model_type)
    if isinstance(getattr(model, "score", None), nn.Linear) and model.score.bias is None:
        return _score(head)
    if kind == "modernbert":
        return _modernbert(model, head)
    forms = _FORMS.get(kind)
    if forms is None:
        return NoSequenceHead(f"the classification head of {kind} is not one whose linear form is known here")
    if head.pooling != "cls":
        return NoSequenceHead(
            f"the classification head of {kind} reads the first token, this classifier {_READS[head.pooling]}"
        )
    first, second, modules = forms
    activation = _activation(model, kind)
    if activation == "tanh":
        return _through_tanh(model, head, first, second, modules, kind)
    if activation in _ODD_PAIRS:
        return _through_pairs(model, head, first, second, modules, f"pairs through {kind}'s {activation}")
    return NoSequenceHead(f"the classification head of {kind} has {activation} in it, which has no linear form here")


_READS: Mapping[PoolingMode, str] = {
    "last": "the last token",
    "cls": "the first token",
    "mean": "the average of all tokens",
}
_ODD_PAIRS = ("relu", "gelu", "gelu_new", "gelu_pytorch_tanh", "silu", "swish")
"""Activations x g(x) with g(x) + g(-x) = 1."""
_FORMS: Mapping[str, tuple[str, str, tuple[str, ...]]] = {
    "bert": ("bert.pooler.dense", "classifier", ("pooler", "classifier")),
    "distilbert": ("pre_classifier", "classifier", ("pre_classifier", "classifier")),
    "roberta": ("classifier.dense", "classifier.out_proj", ("classifier",)),
    "xlm-roberta": ("classifier.dense", "classifier.out_proj", ("classifier",)),
    "electra": ("classifier.dense", "classifier.out_proj", ("classifier",)),
    "mpnet": ("classifier.dense", "classifier.out_proj", ("classifier",)),
    "deberta-v2": ("pooler.dense", "classifier", ("pooler", "classifier")),
}
"""Architecture -> first layer, second layer, modules; between the layers is one activation."""


def _activation(model: Any, kind: str) -> str:
    """Name of what stands between the head's two layers."""
    if kind == "distilbert":
        return "relu"
    if kind == "electra":
        return "gelu"
    if kind == "deberta-v2":
        return str(model.config.pooler_hidden_act)
    return "tanh"


def _score(head: LinearHead) -> SequenceHead | NoSequenceHead:
    if head.pooling != "last":
        return NoSequenceHead(f"the architecture's head reads the last token, this classifier {_READS[head.pooling]}")
    if head.bias is not None and bool(head.bias.any()):
        return NoSequenceHead(
            "the architecture's head has no bias and this classifier's has one (model.head_bias=false trains without)"
        )
    return SequenceHead({"score.weight": head.weight}, ("score",), "the head itself")


def _through_tanh(
    model: Any, head: LinearHead, first: str, second: str, modules: tuple[str, ...], kind: str
) -> SequenceHead | NoSequenceHead:
    if head.norm_weight is None:
        return NoSequenceHead(f"{kind} ends in no LayerNorm, so its hidden states have no bound")
    scale = _power_of_two_below(math.sqrt(3 * ROUNDOFF) / head.largest_component())
    width = model.get_submodule(first).in_features
    tensors = {
        f"{first}.weight": torch.eye(width) * scale,
        f"{first}.bias": torch.zeros(width),
        f"{second}.weight": head.weight / scale,
        f"{second}.bias": head.bias_or_zero,
    }
    return SequenceHead(tensors, modules, f"tanh made linear: 2^{math.log2(scale):.0f} I before it")


def _through_pairs(
    model: Any, head: LinearHead, first: str, second: str, modules: tuple[str, ...], form: str
) -> SequenceHead | NoSequenceHead:
    rows = model.get_submodule(first).out_features
    found = _pair_tensors(head.weight, head.bias_or_zero, rows)
    if found is None:
        return NoSequenceHead(_TOO_MANY.format(classes=len(head.weight), rows=rows))
    weight, bias, difference = found
    tensors = {
        f"{first}.weight": weight,
        f"{first}.bias": bias,
        f"{second}.weight": difference,
        f"{second}.bias": torch.zeros(len(head.weight)),
    }
    return SequenceHead(tensors, modules, form)


_TOO_MANY = "its head is {rows} wide and two rows are needed for each of {classes} classes"


def _pair_tensors(weight: Tensor, bias: Tensor, rows: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """(rows, H) and (rows,) that compute l, -l and zeros, and the (C, rows) that takes their difference."""
    classes, width = weight.shape
    if 2 * classes > rows:
        return None
    none = rows - 2 * classes
    stacked = torch.cat([weight, -weight, torch.zeros(none, width)])
    shifts = torch.cat([bias, -bias, torch.zeros(none)])
    difference = torch.cat([torch.eye(classes), -torch.eye(classes), torch.zeros(classes, none)], dim=1)
    return stacked, shifts, difference


def _modernbert(model: Any, head: LinearHead) -> SequenceHead | NoSequenceHead:
    config = model.config
    if head.pooling == "last":
        return NoSequenceHead("the classification head of modernbert reads the first token or the average")
    activation = str(config.classifier_activation)
    if activation not in _ODD_PAIRS or head.norm_weight is None:
        return NoSequenceHead(f"the classification head has {activation} in it, which has no linear form here")
    dense = model.head.dense
    epsilon = float(model.head.norm.eps)
    # The variance of the pairs is at most their largest square.
    small = _power_of_two_below(math.sqrt(2 * epsilon * ROUNDOFF) / max(head.largest_product(), 1e-6))
    found = _pair_tensors(head.weight * small, torch.zeros(len(head.weight)), dense.out_features)
    if found is None:
        return NoSequenceHead(_TOO_MANY.format(classes=len(head.weight), rows=dense.out_features))
    weight, bias, difference = found
    tensors = {
        "head.dense.weight": weight,
        "head.norm.weight": torch.ones(dense.out_features),
        "classifier.weight": difference * (math.sqrt(epsilon) / small),
        "classifier.bias": head.bias_or_zero,
    }
    if dense.bias is not None:
        tensors["head.dense.bias"] = bias
    if model.head.norm.bias is not None:
        tensors["head.norm.bias"] = torch.zeros(dense.out_features)
    return SequenceHead(
        tensors,
        ("head", "classifier"),
        "pairs through GELU, small enough for the norm behind it to divide by a constant",
        {"classifier_pooling": head.pooling},
    )


def _power_of_two_below(value: float) -> float:
    return float(2.0 ** math.floor(math.log2(value)))


def last_layer_norm(model: nn.Module) -> str | None:
    """Path of the last LayerNorm of a base model, in the order of its modules; None when it has none."""
    paths = [path for path, module in model.named_modules() if isinstance(module, nn.LayerNorm)]
    return paths[-1] if paths else None
