"""What the conformance suite runs over: every method on every kind of base, built small.

A ``World`` is a tiny pretrained model with a method attached, a head, an optimiser and a batch of texts, all seeded.
Methods say what they are not by traits, here and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from qlassify.config.method import (
    BitfitConfig,
    BottleneckConfig,
    FullConfig,
    Ia3Config,
    LoraConfig,
    MethodConfig,
    PrefixConfig,
    ProbeConfig,
)
from qlassify.config.quant import QuantConfig
from qlassify.data.packing import PackedBatch, micro_batches
from qlassify.methods.inject import Attachment, attach
from qlassify.models.backbone import Backbone, load_backbone
from qlassify.models.classifier import Classifier
from qlassify.models.head import ClassificationHead
from qlassify.training.loss import Objective
from qlassify.training.optimizer import Optimizer
from qlassify.training.step import Stepper, head_parameters
from tiny_models import FAMILIES, random_texts

LENGTHS = (9, 4, 12, 6, 7, 3)
CLASSES = 3


@dataclass(frozen=True)
class Method:
    """A method and what it is not.

    Attributes:
        config: its configuration.
        low_bit: whether it goes with low-bit weights.
        mergeable: whether it can be merged.
        starts: where, beside the bare model, it begins: bitwise there, up to rounding, or somewhere else.
        attaches: whether it trains anything but the head.
        padded: whether it goes with architectures that cannot be packed.
    """

    config: MethodConfig
    low_bit: bool = True
    mergeable: bool = True
    starts: Literal["exactly", "nearly", "elsewhere"] = "exactly"
    attaches: bool = True
    padded: bool = True


METHODS = {
    "lora": Method(LoraConfig(rank=4, alpha=8.0)),
    "rslora": Method(LoraConfig(rank=4, alpha=8.0, rslora=True)),
    "pissa": Method(LoraConfig(rank=4, alpha=8.0, start="pissa"), starts="nearly"),
    "dora": Method(LoraConfig(kind="dora", rank=4, alpha=8.0)),
    "ia3": Method(Ia3Config()),
    "houlsby": Method(BottleneckConfig(size=5), mergeable=False),
    "pfeiffer": Method(BottleneckConfig(size=5, placement="pfeiffer", activation="relu"), mergeable=False),
    "bitfit": Method(BitfitConfig()),
    "probe": Method(ProbeConfig(), attaches=False),
    "full": Method(FullConfig(), low_bit=False),
    # A further key takes a share of every query's attention, whatever it is.
    "prefix": Method(PrefixConfig(num_virtual_tokens=5), mergeable=False, starts="elsewhere", padded=False),
    "prefix reparametrised": Method(
        PrefixConfig(num_virtual_tokens=5, reparametrize=True, hidden_size=7),
        mergeable=False,
        starts="elsewhere",
        padded=False,
    ),
}


@dataclass(frozen=True)
class Base:
    """How the frozen weights are kept."""

    dtype: torch.dtype = torch.float32
    quant: QuantConfig | None = None


BASES = {
    "fp32": Base(),
    "bf16": Base(torch.bfloat16),
    "nf4": Base(quant=QuantConfig(double=False)),
    "nf4 double in bf16": Base(torch.bfloat16, QuantConfig()),
    "int8": Base(quant=QuantConfig(kind="int8")),
}
PAIRS = [(method, base) for method in METHODS for base in BASES if METHODS[method].low_bit or BASES[base].quant is None]


class World:
    """A tiny classifier with a method attached.

    Args:
        directory: of a tiny model.
        family: its name.
        method: which method; none is attached when None.
        base: how the frozen weights are kept.
        seed: of what the method draws.
    """

    def __init__(self, directory: Path, family: str, method: Method | None, base: Base, *, seed: int = 1) -> None:
        self.backbone: Backbone = load_backbone(directory, base.dtype, quant=base.quant)
        self.bare = dict(self.backbone.model.named_modules())
        self.before = snapshot(self.backbone.model)
        self.head = ClassificationHead(self.backbone.hidden_size, CLASSES, seed=2)
        self.classifier = Classifier(self.backbone, self.head, "mean")
        self.texts = random_texts(LENGTHS, FAMILIES[family], seed=3)
        self.targets = np.arange(len(LENGTHS)) % CLASSES
        self.method = method
        self.attachment: Attachment | None = None
        if method is not None:
            self.attachment = attach(self.backbone.model, method.config, seed=seed)

    @property
    def batches(self) -> list[PackedBatch]:
        """The texts as one packed batch."""
        return list(micro_batches(self.texts, range(len(LENGTHS)), 4096))

    @torch.no_grad()
    def logits(self) -> Tensor:
        """Logits of all texts, in evaluation mode."""
        self.classifier.eval()
        return torch.cat([self.classifier(batch) for batch in self.batches])

    def parameters(self) -> dict[str, nn.Parameter]:
        assert self.attachment is not None
        return self.attachment.parameters()

    def stepper(self, learning_rate: float = 1e-2) -> Stepper:
        optimizer = Optimizer(
            self.parameters(),
            head_parameters(self.classifier),
            learning_rate=learning_rate,
            head_learning_rate=learning_rate,
            weight_decay=0.01,
        )
        return Stepper(self.classifier, optimizer, Objective(), 1.0)

    def train(self, steps: int, stepper: Stepper | None = None) -> list[float]:
        """Losses of some optimiser steps on all texts."""
        stepper = stepper or self.stepper()
        losses = []
        for _ in range(steps):
            self.classifier.train()
            stepper.accumulate(self.batches, self.targets)
            losses.append(stepper.apply().avg_loss)
        return losses

    def shake(self, size: float = 0.05) -> None:
        """Move every parameter of the method at random, so that nothing is at its special first value."""
        generator = torch.Generator().manual_seed(11)
        with torch.no_grad():
            for parameter in self.parameters().values():
                parameter.add_(size * torch.randn(parameter.shape, generator=generator))


def snapshot(module: nn.Module) -> dict[str, bytes]:
    """Name -> bytes of each parameter and buffer."""
    named = [*module.named_parameters(), *module.named_buffers()]
    return {
        name: tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for name, tensor in named
    }
