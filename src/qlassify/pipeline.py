"""``ClassifyPipeline``: from a pretrained model and labelled text to a classifier, in the order things happen.

    from_pretrained   find and load the base model and its tokeniser
    from_apr          the same for a model that is a file, with a tokeniser from anywhere; likewise from_gguf
    fit               read, label, split, tokenise, train, keep the best weights
    evaluate, predict, predict_proba
    from_peft         an adapter that PEFT trained
    save, load        a folder that gives bitwise the same logits in a fresh process

The command (``job``) walks the same road and writes a run folder on the way. Training by hand, batch by batch, is the
face that this class inherits (``stepwise``).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch

from qlassify.artifact import (
    RECORD,
    ClassifierRecord,
    LoadedClassifier,
    load_classifier,
    model_folder,
    save_classifier,
)
from qlassify.config import recommend
from qlassify.config.classify import ClassifyConfig
from qlassify.config.files import layer
from qlassify.config.method import LoraConfig, ProbeConfig
from qlassify.config.run import DEFAULT_BASE_MODEL, EvaluationConfig, ModelConfig, RunConfig
from qlassify.data.corpus import Corpus, ReadOptions, read_corpus
from qlassify.data.dataset import Dataset, LabelledRows, build_dataset, label_rows
from qlassify.data.labels import LabelMap, label_counts, reconcile
from qlassify.data.tokenise import Encoded
from qlassify.dense_copies import settle_dense_copies
from qlassify.errors import ConfigError, DataError, ModelError
from qlassify.evaluation.decision import Answer, DecisionRule, named_sets
from qlassify.evaluation.decision_fit import fit_decision, plain_rule, require_possible
from qlassify.evaluation.decision_scores import evaluate_answers
from qlassify.evaluation.metrics import Metrics
from qlassify.evaluation.predict import predict_logits, probabilities
from qlassify.evaluation.selection import require_score
from qlassify.forecasting import make_forecast, runtime_bytes
from qlassify.formats.gguf import is_gguf
from qlassify.models.apr_base import is_apr_base
from qlassify.peft_classifier import is_adapter, load_peft_classifier
from qlassify.planning.memory import available_memory_bytes
from qlassify.planning.plan import Plan
from qlassify.probing import probe_solver
from qlassify.stepwise import StepwisePipeline, Trainable
from qlassify.training.checkpoint import CheckpointStore
from qlassify.training.fit_result import FitResult
from qlassify.training.loop import StopRequest, TrainingLoop, TrainingSet
from qlassify.training.probe import ProbeSolver

LabelledText = str | os.PathLike[str] | Corpus


class ClassifyPipeline(StepwisePipeline):
    """A text classifier on a pretrained transformer. Make one with ``from_pretrained`` or ``load``."""

    _recommend = False
    _given: LabelMap | None = None
    _named = False
    _decision: DecisionRule | None = None

    @classmethod
    def from_pretrained(
        cls,
        base: str | os.PathLike[str] = DEFAULT_BASE_MODEL,
        config: ClassifyConfig | RunConfig | None = None,
        *,
        labels: Sequence[str] | None = None,
        tokenizer: str | os.PathLike[str] | None = None,
    ) -> Self:
        """Load a base model.

        Args:
            base: a directory, an APR or GGUF file, a packaged model, or a Hugging Face id.
            config: settings; with None, ``fit`` chooses them for the data (see ``config.recommend``).
            labels: names of the classes, when they are known before ``fit``.
            tokenizer: a ``tokenizer.json`` or a directory in place of the base model's own.

        Raises:
            ModelError: the base model cannot be found or used.
            ConfigError: the settings cannot work.
        """
        name = os.fspath(base)
        files = None if tokenizer is None else Path(tokenizer)
        if isinstance(config, ClassifyConfig):
            names = tuple(labels or (str(index) for index in range(config.num_classes)))
            if len(names) != config.num_classes:
                raise ConfigError("num_classes and the labels differ", got=len(names), wanted=config.num_classes)
            pipeline = cls.open(name, config.to_run_config(name), tokenizer=files)
            pipeline._given = LabelMap(names, config.multi_label)
        else:
            pipeline = cls.open(name, config or RunConfig(), tokenizer=files)
            pipeline._recommend = config is None
            pipeline._given = None if labels is None else LabelMap(tuple(labels), multi_label=False)
        pipeline._named = labels is not None
        if pipeline._given is not None:
            pipeline.prepare(pipeline._given)
        return pipeline

    @classmethod
    def from_apr(
        cls,
        path: str | os.PathLike[str],
        tokenizer: str | os.PathLike[str] | None = None,
        config: ClassifyConfig | RunConfig | None = None,
        *,
        labels: Sequence[str] | None = None,
    ) -> Self:
        """``from_pretrained`` for ``.apr`` and ``.apr.json``; a tokeniser is looked for beside it (docs/formats.md).

        Raises:
            ModelError: not such a file, a damaged one, or no tokeniser; names every place that was tried.
            ConfigError: the settings cannot work.
        """
        if not is_apr_base(Path(path).expanduser()):
            raise ModelError("not an APR file", where=path, wanted="a .apr file, or a manifest .apr.json of several")
        return cls.from_pretrained(path, config, labels=labels, tokenizer=tokenizer)

    @classmethod
    def from_gguf(
        cls, path: str | os.PathLike[str], tokenizer: str | os.PathLike[str] | None = None, **settings: Any
    ) -> Self:
        """``from_apr`` for a ``.gguf`` file, which may hold its tokeniser; settings are ``config`` and ``labels``."""
        if not is_gguf(Path(path).expanduser()):
            raise ModelError("not a GGUF file", where=path, wanted="a .gguf file")
        return cls.from_pretrained(path, tokenizer=tokenizer, **settings)

    @classmethod
    def load(
        cls,
        directory: str | os.PathLike[str],
        *,
        device: str = "auto",
        precision: str = "auto",
        base: str | None = None,
    ) -> Self:
        """Load a classifier that ``save`` or a run wrote; a run folder will do.

        Args:
            directory: the model folder, or the run folder that it lies in.
            device: ``auto``, ``cpu`` or ``cuda``.
            precision: ``auto`` takes the one it was trained in if the hardware multiplies it, else fp32.
            base: where the base model is, if it is not where it was.

        Raises:
            ModelError: something is missing, damaged, or belongs to another base model.
        """
        path = model_folder(Path(directory))
        if not (path / RECORD).is_file() and is_adapter(path):
            raise ModelError(
                "an adapter as PEFT saves it, not a saved classifier",
                where=path,
                wanted=f"a run folder or a model folder with {RECORD}",
                do="Load it with ClassifyPipeline.from_peft.",
            )
        return cls._of(load_classifier(path, device=device, precision=precision, base_model=base))

    @classmethod
    def from_peft(
        cls,
        directory: str | os.PathLike[str],
        base: str | os.PathLike[str] | None = None,
        labels: Sequence[str] | None = None,
        *,
        multi_label: bool | None = None,
        max_length: int = 512,
        device: str = "auto",
        precision: str = "auto",
    ) -> Self:
        """Load a classifier that PEFT trained (``PeftModelForSequenceClassification``) or that we exported for PEFT.

        LoRA, rsLoRA, DoRA and IA3 on causal models give PEFT's logits. An encoder's own classification head is not
        linear, so such an adapter is refused, unless it is an export of ours.

        Args:
            directory: ``adapter_config.json`` and ``adapter_model.safetensors``.
            base: where the base model is; where the adapter says when None.
            labels: names of the classes in the order of the logits; their numbers when nothing names them.
            multi_label: whether a text may have several labels; no when None, unless an export of ours says so.
            max_length: longest text in tokens.
            device: ``auto``, ``cpu`` or ``cuda``.
            precision: ``auto``, ``bf16`` or ``fp32``.

        Raises:
            ModelError: no such adapter, another base model, or a head that does not compute what ours does.
            ConfigError: the labels are not as many as the head has classes.
        """
        return cls._of(
            load_peft_classifier(
                Path(directory),
                base=None if base is None else os.fspath(base),
                labels=labels,
                multi_label=multi_label,
                max_length=max_length,
                device=device,
                precision=precision,
            )
        )

    @classmethod
    def _of(cls, loaded: LoadedClassifier) -> Self:
        """A pipeline around a classifier that exists."""
        record = loaded.record
        quant, method = loaded.classifier.backbone.quant, loaded.attachment.config
        if quant is not None and isinstance(method, LoraConfig):
            method = method.replace(kind="qdora" if method.dora else "qlora")
        run = RunConfig(
            model=ModelConfig(
                base=record.base_model,
                pooling=record.pooling,
                max_length=record.max_length,
                head_bias=record.head_bias,
                long=record.long.policy,
                window_overlap=record.long.window_overlap,
                max_windows=record.long.max_windows,
            ),
            quant=quant,
            method=method,
            evaluation=EvaluationConfig(threshold=record.threshold if record.multi_label else "tuned"),
        )
        pipeline = cls(loaded.source, loaded.placement, loaded.classifier.backbone, loaded.encoder, record.pooling, run)
        pipeline.text_pair = record.text_pair
        pipeline.adopt(LabelMap(record.labels, record.multi_label), loaded.classifier, loaded.attachment)
        pipeline._decision = record.rule
        return pipeline

    def fit(
        self,
        train: LabelledText,
        validation: LabelledText | None = None,
        *,
        options: ReadOptions | None = None,
        validation_fraction: float = 0.1,
    ) -> FitResult:
        """Train on a labelled file or corpus and keep the best weights.

        Args:
            train: a file (CSV, TSV, JSONL, Parquet) or a corpus.
            validation: rows for choosing weights; without them a stratified share of ``train`` is held out.
            options: how to read the files.
            validation_fraction: that share.

        Raises:
            DataError: a file cannot be read, or its labels do not fit.
        """
        self.require_unmerged()
        corpus = _corpus(train, options)
        dataset = build_dataset(
            corpus,
            None if validation is None else _corpus(validation, options),
            None,
            fraction=validation_fraction,
            seed=self.run.seed,
            labels=self._given and reconcile(self._given, corpus, named=self._named),
        )
        self.prepare_for(dataset)
        encoded = self.encode_dataset(dataset)
        settle_dense_copies(
            self.backbone,
            self.run.model.dense_copies,
            self.plan(encoded["train"], dataset.train.targets),
            free_bytes=self.free_memory_bytes(),
            dtype=self.placement.dtype,
        )
        events = list(self.training_loop(dataset, encoded).run())
        self.calibrate(dataset.validation, encoded["validation"])
        return FitResult.of(events, self.run.training.selection_metric)

    def prepare_for(self, dataset: Dataset) -> Trainable:
        """Build method and head for a data set's labels, with recommended settings if none were given."""
        labels = dataset.labels
        self._decision = None
        self.text_pair = dataset.train.corpus.pairs is not None
        self.encoder.long.require_single(pair=self.text_pair)
        run = self.run
        if self._recommend:
            run = RunConfig.parse(
                layer(run.model_dump(), recommend.recommended_settings(self.facts(dataset), run.method))
            )
        require_possible(run.evaluation, labels)
        require_score(run.training.selection_metric, labels.names, multi_label=labels.multi_label)
        return self.prepare(labels, run, label_counts(dataset.train.targets, len(labels)))

    def facts(self, dataset: Dataset) -> recommend.Facts:
        """What recommended settings depend on."""
        return recommend.Facts(
            model_params=self.backbone.num_parameters,
            decoder=self.backbone.causal,
            num_classes=len(dataset.labels),
            num_rows=len(dataset.train),
            multi_label=dataset.labels.multi_label,
        )

    def encode_dataset(self, dataset: Dataset) -> dict[str, Encoded]:
        """Token ids of each part of a data set."""
        return {name: self.encode_corpus(part.corpus) for name, part in dataset.parts().items()}

    def encode_corpus(self, corpus: Corpus) -> Encoded:
        """Token ids of a corpus's texts or text pairs."""
        return self.encoder.encode(corpus.texts, corpus.pairs)

    def plan(self, encoded: Encoded, targets: npt.NDArray[Any] | None = None) -> Plan:
        """What training on these rows will need; balanced sampling needs their classes."""
        sketch = self if self.backbone.is_sketch else self.sketch()
        return make_forecast(sketch, encoded, runtime_bytes=runtime_bytes(self.placement.device), targets=targets)

    def free_memory_bytes(self) -> int | None:
        """Memory that is free where the model computes; None where the system does not say."""
        if self.placement.device == "cuda":
            return int(torch.cuda.mem_get_info()[0])
        return available_memory_bytes()

    def training_loop(
        self,
        dataset: Dataset,
        encoded: Mapping[str, Encoded],
        *,
        store: CheckpointStore | None = None,
        stop: StopRequest | None = None,
    ) -> TrainingLoop | ProbeSolver:
        """What trains on a data set's training rows and scores its validation rows: a loop, or a probe's solver."""
        trainable, training, method = self.trainable, self.run.training, self.run.method
        if isinstance(method, ProbeConfig):
            return probe_solver(
                trainable, dataset, encoded, penalties=method.penalties, config=training, metrics=self._metrics
            )

        def score() -> Mapping[str, float | None]:
            values = self.score(dataset.validation, encoded["validation"]).values
            return {"loss": values["log_loss"], **values}

        return TrainingLoop(
            trainable.stepper,
            TrainingSet(encoded["train"], dataset.train.targets, dataset.train.corpus.rows),
            training,
            seed=self.run.seed,
            dropout_generator=trainable.attachment.dropout_generator,
            scorer=score,
            store=store,
            stop=stop,
        )

    @property
    def decision(self) -> DecisionRule:
        """How answers are read off the probabilities: what the settings say, until something was fitted."""
        return self._decision or plain_rule(self.run.evaluation, self.labels)

    def abstain_below(self, probability: float | None) -> None:
        """Give no answer where its probability is below ``probability``; always answer with None or 0.

        Raises:
            ConfigError: a text may have several labels.
        """
        settings = self.run.evaluation.replace(abstain_below=probability or None)
        require_possible(settings, self.labels)
        self._decision = self.decision.replace(abstain_below=settings.abstain_below)

    def calibrate(
        self, rows: LabelledRows, encoded: Encoded, logits_NC: npt.NDArray[np.float32] | None = None
    ) -> tuple[str, ...]:
        """Choose temperature, thresholds and label sets on rows that were not trained on.

        The head is divided by the temperature, so the logits that the classifier gives from now on are calibrated.

        Args:
            rows: the rows.
            encoded: their tokens.
            logits_NC: their logits, if they are known already.

        Returns:
            A sentence for what could not be chosen.

        Raises:
            ConfigError: the settings ask for a decision that these labels have no place for.
        """
        classifier, settings = self.trainable.classifier, self.run.evaluation
        if logits_NC is None:
            needed = settings.calibrate
            logits_NC = predict_logits(classifier, encoded) if needed else np.empty((0, 0), np.float32)
        fit = fit_decision(logits_NC, rows.targets, self.labels, settings, held_temperature=self.decision.temperature)
        classifier.head.cool(fit.temperature)
        self._decision = fit.rule
        return fit.notes

    def score(self, rows: LabelledRows, encoded: Encoded) -> Metrics:
        """Metrics of labelled rows that are tokenised already."""
        return self._metrics(rows, self._probabilities(encoded))

    def _metrics(self, rows: LabelledRows, probabilities_NC: npt.NDArray[np.float64]) -> Metrics:
        return evaluate_answers(
            self.decision, rows.targets, probabilities_NC, self.labels.names, multi_label=self.labels.multi_label
        )

    def evaluate(self, data: LabelledText, *, options: ReadOptions | None = None) -> Metrics:
        """Metrics on a labelled file or corpus; rows whose label is unknown are left out."""
        rows = label_rows(_corpus(data, options), self.labels)
        self.require_pairs(rows.corpus.pairs is not None)
        return self.score(rows, self.encode_corpus(rows.corpus))

    def predict_proba(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> npt.NDArray[np.float64]:
        """(N, C) probabilities: over the classes, or per label when multi-label. Columns as in ``labels.names``."""
        if isinstance(texts, str):
            raise DataError("predict takes a list of texts", got="one string", do="Write [text].")
        self.require_pairs(pairs is not None)
        if pairs is not None and len(pairs) != len(texts):
            raise DataError("one second text is needed for each text", got=len(pairs), wanted=len(texts))
        return self._probabilities(self.encoder.encode(list(texts), None if pairs is None else list(pairs)))

    def require_pairs(self, given: bool) -> None:
        """Refuse single texts for a classifier of pairs, and the reverse.

        Raises:
            DataError: what is given is not what the classifier was trained on.
        """
        if given == self.text_pair:
            return
        raise DataError(
            "the classifier reads " + ("text pairs" if self.text_pair else "single texts"),
            got="text pairs" if given else "single texts",
            do="Give the second texts (--text-pair) too."
            if self.text_pair
            else "Leave the second texts (--text-pair) out.",
        )

    def predict(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[Answer]:
        """The label of each text, or the tuple of its labels when multi-label, in the order of the texts.

        None stands for a text on which the classifier abstains, which it does only if it was told to.
        """
        return self.decision.answers(self.predict_proba(texts, pairs), self.labels)

    def predict_sets(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[tuple[str, ...]]:
        """The label set of each text, which holds its label with the promised coverage; the likeliest stands first.

        Raises:
            ConfigError: the classifier has no label sets.
        """
        scores = self.predict_proba(texts, pairs)
        return named_sets(scores, self.decision.require_sets(scores), self.labels)

    def _probabilities(self, encoded: Encoded) -> npt.NDArray[np.float64]:
        logits = predict_logits(self.trainable.classifier, encoded)
        return probabilities(logits, multi_label=self.labels.multi_label)

    @property
    def labels(self) -> LabelMap:
        """The classes, in the order of the probabilities' columns."""
        return self.trainable.labels

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write the classifier into a folder (see ``artifact``), which is made if need be.

        A classifier that is there already stays whole until all files of this one take its place.

        Raises:
            ConfigError: the adapters were merged; there is no adapter to save.
        """
        save_classifier(self._saveable(), Path(directory))

    def _saveable(self) -> LoadedClassifier:
        """The classifier with the record that describes it."""
        trainable = self.trainable
        self.require_unmerged()
        record = ClassifierRecord(
            labels=trainable.labels.names,
            multi_label=trainable.labels.multi_label,
            pooling=self.pooling,
            max_length=self.encoder.max_length,
            text_pair=self.text_pair,
            base_model=str(self.source.directory) if self.source.kind == "path" else self.source.name,
            base_sha256=self.source.sha256(),
            precision=self.placement.precision,
            threshold=self.decision.threshold,
            decision=self.decision.model_dump(mode="json"),
            quantization=None if self.backbone.quant is None else self.backbone.quant.model_dump(mode="json"),
            head_bias=trainable.classifier.head.bias is not None,
            long=self.encoder.long,
        )
        return LoadedClassifier(
            record, trainable.classifier, trainable.attachment, self.encoder, self.source, self.placement
        )


def _corpus(data: LabelledText, options: ReadOptions | None) -> Corpus:
    return data if isinstance(data, Corpus) else read_corpus(data, options or ReadOptions())
