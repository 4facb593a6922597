"""The pipeline's step-by-step face: tokenise, accumulate, apply, look at parameters and gradients.

``StepwisePipeline`` holds a pretrained model and, once ``prepare`` has been called, a method, a head, an optimiser and
a ``Stepper`` over them. Its methods bear the names of the original pipeline's; each is a line or two over the rooms
below. Whoever wants a whole training run uses ``ClassifyPipeline.fit``; this face is for custom loops.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from qlassify.base_model import attachable, load_base, sketch_base, weight_format
from qlassify.config.method import positions_before_text
from qlassify.config.run import RunConfig
from qlassify.data.labels import LabelMap, class_weights
from qlassify.data.long_texts import LongTexts
from qlassify.data.packing import PackedBatch, micro_batches
from qlassify.data.samples import (
    MultiLabelSample,
    Sample,
    TokenizedSample,
    read_multi_label_samples,
    read_samples,
)
from qlassify.data.tokenise import Encoded, TextEncoder
from qlassify.errors import ConfigError, DataError, ModelError
from qlassify.evaluation.predict import predict_logits, probabilities
from qlassify.methods.inject import Attachment, attach, rate_factors
from qlassify.methods.state import merge
from qlassify.models.backbone import Backbone
from qlassify.models.classifier import Classifier
from qlassify.models.head import ClassificationHead, wants_bias
from qlassify.models.pooling import PoolingMode, choose_pooling
from qlassify.models.source import ModelSource, resolve
from qlassify.planning.plan import human_count
from qlassify.training.loss import Objective, num_correct
from qlassify.training.optimizer import Optimizer
from qlassify.training.order import require_single_label
from qlassify.training.precision import Placement, choose_placement
from qlassify.training.step import BatchResult, Stepper, head_parameters


@dataclass(frozen=True, slots=True)
class Trainable:
    """A method and a head on the pretrained model, ready to be trained.

    Attributes:
        labels: the classes.
        classifier: backbone, pooling and head.
        attachment: the method's layers.
        stepper: accumulates and applies gradients.
    """

    labels: LabelMap
    classifier: Classifier
    attachment: Attachment
    stepper: Stepper


class StepwisePipeline:
    """A pretrained model with its tokeniser; after ``prepare``, also a method, a head and an optimiser.

    Args:
        source: where the base model was found.
        placement: where and in which type it computes.
        backbone: the base model.
        encoder: its tokeniser.
        pooling: how hidden states become one vector.
        run: settings of model, method and training.
    """

    def __init__(
        self,
        source: ModelSource,
        placement: Placement,
        backbone: Backbone,
        encoder: TextEncoder,
        pooling: PoolingMode,
        run: RunConfig,
    ) -> None:
        self.source = source
        self.placement = placement
        self.backbone = backbone
        self.encoder = encoder
        self.pooling = pooling
        self.run = run
        self.text_pair = False
        self._trainable: Trainable | None = None
        self._merged = False

    @classmethod
    def open(cls, base: str, run: RunConfig, *, weights: bool = True, tokenizer: Path | None = None) -> Self:
        """Find and load a base model and its tokeniser.

        Args:
            base: a directory, an APR file, a packaged model, or a Hugging Face id.
            run: settings.
            weights: False for a model on the meta device, which has every shape and no weights: for plans, and until
                ``load_weights``.
            tokenizer: a directory or a ``tokenizer.json`` in place of the base model's own.

        Raises:
            ModelError: the base model cannot be found or used.
            ConfigError: the device is not there.
        """
        source = resolve(base)
        placement = choose_placement(run.model.device, run.model.precision)
        run = run.replace(quant=weight_format(source, run))
        backbone = (load_base if weights else sketch_base)(source, placement, run)
        max_length = backbone.longest_text(run.model.max_length, behind=positions_before_text(run.method))
        encoder = TextEncoder.load(source.tokenizer_files(tokenizer), max_length, LongTexts.of(run.model))
        pooling = run.model.pooling
        if pooling == "auto":
            pooling = choose_pooling(source.directory, causal=backbone.causal)
        return cls(source, placement, backbone, encoder, pooling, run)

    def load_weights(self) -> None:
        """Put the pretrained model in the place of its sketch; the method is attached anew by ``prepare``."""
        self._trainable = None
        self.backbone = load_base(self.source, self.placement, self.run)

    @contextmanager
    def loaded(self) -> Iterator[None]:
        """The weights are there while the context is open; afterwards the sketch is back, and nothing holds them."""
        backbone, trainable, run = self.backbone, self._trainable, self.run
        self.load_weights()
        try:
            yield
        finally:
            self.backbone, self._trainable, self.run = backbone, trainable, run

    def sketch(self) -> StepwisePipeline:
        """The same model, method and head without weights, on the meta device: every shape and no memory."""
        twin = StepwisePipeline(
            self.source,
            self.placement,
            sketch_base(self.source, self.placement, self.run),
            self.encoder,
            self.pooling,
            self.run,
        )
        twin.prepare(self.trainable.labels, counts=np.ones(len(self.trainable.labels), dtype=np.int64))
        return twin

    def prepare(
        self, labels: LabelMap, run: RunConfig | None = None, counts: npt.NDArray[np.int64] | None = None
    ) -> Trainable:
        """Attach the method, build the head and the optimiser; anything attached before is taken off.

        Args:
            labels: the classes.
            run: settings; those given at construction when None.
            counts: (C,) training rows of each class, for a weighting strategy.
        """
        self.require_unmerged()
        if self._trainable is not None:
            self._trainable.attachment.detach()
        self.run = run = run or self.run
        room = self.backbone.longest_text(self.encoder.max_length, behind=positions_before_text(run.method))
        if room < self.encoder.max_length:
            raise ConfigError(
                "the model has no positions for texts that long behind the method's prefix",
                where="model.max_length",
                got=self.encoder.max_length,
                wanted=f"at most {room}",
            )
        attachment = attach(self.backbone.model, attachable(run.method, self.backbone), seed=run.seed)
        head = ClassificationHead(self.backbone.hidden_size, len(labels), seed=run.seed, bias=self.head_bias)
        classifier = Classifier(self.backbone, head.to(self.backbone.device), self.pooling)
        return self.adopt(labels, classifier, attachment, counts)

    def adopt(
        self,
        labels: LabelMap,
        classifier: Classifier,
        attachment: Attachment,
        counts: npt.NDArray[np.int64] | None = None,
    ) -> Trainable:
        """Take over a classifier that exists and make it trainable with the pipeline's settings."""
        training = self.run.training
        require_single_label(training, multi_label=labels.multi_label)
        optimizer = Optimizer(
            attachment.parameters(),
            head_parameters(classifier),
            learning_rate=training.learning_rate,
            head_learning_rate=training.head_learning_rate,
            weight_decay=training.weight_decay,
            rate_factors=rate_factors(attachment),
        )
        weights = _weights(training.class_weights, labels, counts)
        objective = Objective(labels.multi_label, weights, training.label_smoothing, training.focal_gamma)
        stepper = Stepper(classifier, optimizer, objective, training.gradient_clip_norm)
        self._trainable = Trainable(labels, classifier, attachment, stepper)
        return self._trainable

    @property
    def trainable(self) -> Trainable:
        """The method and head.

        Raises:
            ConfigError: ``prepare`` has not been called, by ``from_pretrained`` with a configuration or by ``fit``.
        """
        if self._trainable is None:
            raise ConfigError(
                "the pipeline has no classifier yet",
                do="Call fit, or give from_pretrained a ClassifyConfig.",
            )
        return self._trainable

    def require_unmerged(self) -> None:
        """Refuse what needs the base weights as they were loaded.

        Raises:
            ConfigError: ``merge_adapters`` was called.
        """
        if self._merged:
            raise ConfigError(
                "the adapters were merged into the base weights; the pipeline can only predict",
                do="Load the base model again with from_pretrained to train or save.",
            )

    # Tokens

    def tokenize(self, text: str) -> list[int]:
        """Token ids of one text, special tokens included, cut at the maximal length.

        Raises:
            ConfigError: the text is read in several windows (``model.long=windows``).
        """
        ids: list[int] = self._one_sequence_each([text]).row(0).tolist()
        return ids

    def pre_tokenize(self, samples: Sequence[Sample]) -> list[TokenizedSample]:
        """Tokenise samples once, for the methods that end in ``_tokenized``.

        Raises:
            ConfigError: a text is read in several windows (``model.long=windows``).
        """
        encoded = self._one_sequence_each([sample.input for sample in samples])
        return [
            TokenizedSample(tuple(encoded.row(index).tolist()), sample.label) for index, sample in enumerate(samples)
        ]

    def _one_sequence_each(self, texts: Sequence[str]) -> Encoded:
        """Token ids of texts of which each is one sequence, so that a list of ids can stand for it."""
        encoded = self.encoder.encode(texts)
        if encoded.windows is not None:
            raise ConfigError(
                "a text of several windows is not one list of token ids",
                where="model.long",
                got=f"{int(encoded.windows.counts.max())} windows",
                do="Give the text itself: train_batch, accumulate_gradients and forward_only take windows.",
            )
        return encoded

    def load_corpus(self, path: str | Path) -> list[Sample]:
        """Read ``{"input", "label"}`` lines whose labels are class numbers of this pipeline."""
        return read_samples(path, len(self.trainable.labels))

    def load_multi_label_corpus(self, path: str | Path) -> list[MultiLabelSample]:
        """Read ``{"input", "labels"}`` lines with one flag per class of this pipeline."""
        return read_multi_label_samples(path, len(self.trainable.labels))

    # Steps

    def train_step(self, token_ids: Sequence[int], label: int) -> float:
        """One optimiser step on one sample; its loss before the step."""
        return self.train_batch_tokenized([TokenizedSample(tuple(token_ids), label)]).avg_loss

    def train_batch(self, samples: Sequence[Sample]) -> BatchResult:
        """One optimiser step on a batch."""
        self.accumulate_gradients(samples)
        return self.apply_accumulated_gradients()

    def train_batch_tokenized(self, samples: Sequence[TokenizedSample]) -> BatchResult:
        """One optimiser step on a batch of token ids."""
        self.accumulate_gradients_tokenized(samples)
        return self.apply_accumulated_gradients()

    def multi_label_train_step(self, samples: Sequence[MultiLabelSample]) -> BatchResult:
        """One optimiser step on a batch with several labels per text."""
        encoded = self.encoder.encode([sample.input for sample in samples])
        self._accumulate(encoded, np.array([sample.labels for sample in samples], dtype=np.float32))
        return self.apply_accumulated_gradients()

    def accumulate_gradients(self, samples: Sequence[Sample]) -> BatchResult:
        """Add a batch's gradients to those already summed; nothing moves yet."""
        encoded = self.encoder.encode([sample.input for sample in samples])
        return self._accumulate(encoded, _classes(samples))

    def accumulate_gradients_tokenized(self, samples: Sequence[TokenizedSample]) -> BatchResult:
        """The same for token ids."""
        return self._accumulate(Encoded.from_rows([sample.token_ids for sample in samples]), _classes(samples))

    def apply_accumulated_gradients(self) -> BatchResult:
        """Divide the summed gradients by the number of their samples, clip, move, and start afresh."""
        return self.trainable.stepper.apply()

    def _accumulate(self, encoded: Encoded, targets: npt.NDArray[Any]) -> BatchResult:
        trainable = self.trainable
        self.require_unmerged()
        if (targets.ndim == 2) != trainable.labels.multi_label:
            raise ConfigError("single-label and multi-label samples do not mix with this pipeline's labels")
        self._check_targets(targets)
        return trainable.stepper.accumulate(self._batches(encoded), targets)

    def _batches(self, encoded: Encoded) -> list[PackedBatch]:
        return list(micro_batches(encoded, range(len(encoded)), self.run.training.token_budget))

    def _check_targets(self, targets: npt.NDArray[Any]) -> None:
        """A class number or a row of flags that this pipeline has."""
        size = len(self.trainable.labels)
        wrong = targets.shape[1] != size if targets.ndim == 2 else ((targets < 0) | (targets >= size)).any()
        if wrong:
            raise DataError("a label is out of range", got=targets.tolist()[:8], wanted=f"{size} classes, from 0")

    # Looking without learning

    def forward_only(self, samples: Sequence[Sample]) -> BatchResult:
        """Loss and accuracy of a batch; nothing is accumulated."""
        return self.forward_only_with_probs(samples)[0]

    def forward_only_tokenized(self, samples: Sequence[TokenizedSample]) -> BatchResult:
        """The same for token ids."""
        return self._forward(Encoded.from_rows([sample.token_ids for sample in samples]), _classes(samples))[0]

    def forward_only_with_probs(self, samples: Sequence[Sample]) -> tuple[BatchResult, npt.NDArray[np.float64]]:
        """Loss and accuracy of a batch, and (B, C) probabilities in the order of the samples."""
        return self._forward(self.encoder.encode([sample.input for sample in samples]), _classes(samples))

    def _forward(self, encoded: Encoded, targets: npt.NDArray[Any]) -> tuple[BatchResult, npt.NDArray[np.float64]]:
        trainable = self.trainable
        self._check_targets(targets)
        logits = predict_logits(trainable.classifier, encoded)
        tensor, wanted = torch.from_numpy(logits), torch.from_numpy(targets)
        loss = trainable.stepper.objective(tensor, wanted)
        multi_label = trainable.labels.multi_label
        result = BatchResult(
            float(loss.total) / max(1, loss.count),
            num_correct(tensor, wanted, multi_label=multi_label),
            loss.count,
            applied=False,
            num_tokens=encoded.num_tokens,
        )
        return result, probabilities(logits, multi_label=multi_label)

    # Parameters and gradients

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """Name -> parameter of everything that is trained: the method's, then the head's."""
        return dict(self.trainable.stepper.optimizer.parameters)

    def num_trainable_parameters(self) -> int:
        """Number of values that are trained."""
        return sum(parameter.numel() for parameter in self.trainable_parameters().values())

    def collect_lora_gradients(self) -> dict[str, Tensor]:
        """Name -> summed gradient of each adapter parameter that has one, as copies."""
        parameters = self.trainable.attachment.parameters()
        return {name: p.grad.detach().clone() for name, p in parameters.items() if p.grad is not None}

    def apply_lora_gradients(self, gradients: Mapping[str, Tensor]) -> None:
        """Replace the adapters' gradients, for averaging across workers before the step.

        Raises:
            ConfigError: a name is unknown or a shape differs.
        """
        parameters = self.trainable.attachment.parameters()
        for name, gradient in gradients.items():
            parameter = parameters.get(name)
            if parameter is None or parameter.shape != gradient.shape:
                raise ConfigError("the gradient fits no adapter parameter", got=f"{name} {tuple(gradient.shape)}")
            parameter.grad = gradient.to(device=parameter.device, dtype=parameter.dtype).clone()

    def merge_adapters(self) -> None:
        """Add the adapters to the base weights in memory and take them off; the pipeline can then only predict."""
        self.require_unmerged()
        merge(self.trainable.attachment)
        self._merged = True

    def set_optimizer_lr(self, learning_rate: float) -> None:
        """Set the adapters' learning rate; the head's changes in proportion."""
        if not learning_rate > 0:
            raise ConfigError("the learning rate is not positive", got=learning_rate)
        self.trainable.stepper.optimizer.set_peak(learning_rate)

    def optimizer_lr(self) -> float:
        """The adapters' current learning rate."""
        return self.trainable.stepper.optimizer.learning_rate

    # Facts

    @property
    def head_bias(self) -> bool:
        """Whether the settings give the head a bias."""
        return wants_bias(self.run.model.head_bias, causal=self.backbone.causal, pooling=self.pooling)

    def is_cuda(self) -> bool:
        """Whether the model is on a CUDA device."""
        return self.backbone.device.type == "cuda"

    def is_gpu_training(self) -> bool:
        """The same: everything that trains is where the model is."""
        return self.is_cuda()

    def gpu_name(self) -> str | None:
        """Name of the CUDA device, or None on the CPU."""
        return torch.cuda.get_device_name(self.backbone.device) if self.is_cuda() else None

    def gpu_total_memory(self) -> int | None:
        """Bytes of the CUDA device's memory, or None on the CPU."""
        return int(torch.cuda.get_device_properties(self.backbone.device).total_memory) if self.is_cuda() else None

    def model_dir(self) -> Path:
        """Where the base model lies."""
        return self.source.directory

    def set_model_path(self, name: str) -> None:
        """Record another name for the base model, which a saved classifier will be found by.

        Raises:
            ModelError: what is found there has other weights.
        """
        source = resolve(name)
        found, wanted = source.sha256(), self.source.sha256()
        if found != wanted:
            raise ModelError(
                "other weights than those that were loaded",
                where=source.directory,
                got=f"SHA-256 {found[:16]}...",
                wanted=f"{wanted[:16]}...",
            )
        self.source = source

    def summary(self) -> str:
        """One line on the model, the method and the head."""
        backbone = self.backbone
        base = f"{self.source.name} ({backbone.model_type}, {human_count(backbone.num_parameters)} parameters)"
        if self._trainable is None:
            return f"{base}, {self.placement.precision} on {self.placement.device}"
        low_bit = "" if backbone.quant is None else f" in {backbone.quant}"
        layers = len(self.trainable.attachment.layers)
        kind = "multi-label" if self.trainable.labels.multi_label else "single-label"
        return (
            f"{base}{low_bit} + {self.run.method}{f' on {layers} layers' if layers else ''} "
            f"+ {self.pooling} pooling + {kind} head of {len(self.trainable.labels)} classes; "
            f"{human_count(self.num_trainable_parameters())} trainable parameters, "
            f"{self.placement.precision} on {self.placement.device}"
        )


def _classes(samples: Sequence[Sample] | Sequence[TokenizedSample]) -> npt.NDArray[np.int64]:
    return np.array([sample.label for sample in samples], dtype=np.int64)


def _weights(setting: str | tuple[float, ...], labels: LabelMap, counts: npt.NDArray[np.int64] | None) -> Tensor | None:
    """(C,) class weights, or None when they are all one."""
    if isinstance(setting, tuple):
        if len(setting) != len(labels) or min(setting) <= 0:
            raise ConfigError(
                "one positive weight per class is needed",
                where="training.class_weights",
                got=list(setting),
                wanted=f"{len(labels)} numbers, for {', '.join(labels.names[:10])}",
            )
        return torch.tensor(setting, dtype=torch.float32)
    if setting == "uniform":
        return None
    if counts is None:
        raise ConfigError(
            "a weighting strategy needs the number of rows of each class",
            where="training.class_weights",
            got=setting,
            do="Train with fit, or give the weights themselves.",
        )
    return torch.tensor(class_weights(counts, setting), dtype=torch.float32)
