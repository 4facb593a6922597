"""A trained classifier as a folder: everything that predicting needs, except the base model's weights.

    adapter_config.json, adapter_model.safetensors    the method, in PEFT's format
    head.safetensors                                  weight (C, H) and, if it has one, bias (C,), fp32
    classifier.json                                   labels, pooling, base model and its hash, maximal length ...
    tokenizer.json and companions                     the tokeniser that the training texts went through

The base model is named, found again on loading by the same resolution as in training, and its weights' SHA-256 must
match; the SHA-256 of the folder's own files are in its record and must match too (``digests``). The head is a file of
its own that is always written; a classifier whose head was left out of a checkpoint predicts at random, without an
error.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from qlassify.classifier_record import checked_record
from qlassify.config.quant import QuantConfig
from qlassify.data.long_texts import LongTexts
from qlassify.data.tokenise import TextEncoder
from qlassify.digests import KEY, verify_files, verify_record, with_digests
from qlassify.durable import DECIDED, finish_replacement, replace_files
from qlassify.errors import ConfigError, ModelError, QlassifyError
from qlassify.evaluation.decision import DecisionRule
from qlassify.methods.inject import Attachment, attach
from qlassify.methods.state import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    copy_tensors,
    load_adapter,
    read_adapter_config,
    read_tensors,
    save_adapter,
    write_tensors,
)
from qlassify.models.backbone import Backbone, load_backbone
from qlassify.models.classifier import Classifier
from qlassify.models.head import ClassificationHead
from qlassify.models.pooling import PoolingMode
from qlassify.models.soundness import require_finite_weights
from qlassify.models.source import ModelSource, resolve
from qlassify.runs import SEEDS
from qlassify.training.precision import Placement, choose_placement
from qlassify.version import __version__

FORMAT = 1
RECORD = "classifier.json"
HEAD = "head.safetensors"


@dataclass(frozen=True, slots=True)
class ClassifierRecord:
    """What ``classifier.json`` says.

    Attributes:
        labels: names of the classes, in the order of the logits.
        multi_label: whether a text may have several.
        pooling: how hidden states become one vector.
        max_length: longest text in tokens.
        text_pair: whether the classifier reads two texts.
        base_model: the name by which the base model was found.
        base_sha256: SHA-256 of its weights.
        precision: arithmetic of the backbone while training, ``bf16`` or ``fp32``.
        threshold: probability from which a label counts as given (multi-label).
        quantization: the format of the backbone's low-bit weights, or None; quantising again gives the same codes.
        long: what is read of longer texts; records that do not say so truncate them.
        head_bias: whether the head adds a bias; records that do not say so are of heads that have one.
        decision: how answers are read off the probabilities, beyond ``threshold``; None where nothing else was chosen.
    """

    labels: tuple[str, ...]
    multi_label: bool
    pooling: PoolingMode
    max_length: int
    text_pair: bool
    base_model: str
    base_sha256: str
    precision: str
    threshold: float
    quantization: Mapping[str, Any] | None = None
    head_bias: bool = True
    decision: Mapping[str, Any] | None = None
    long: LongTexts = field(default_factory=LongTexts)

    @property
    def rule(self) -> DecisionRule:
        """How answers are read off the probabilities."""
        return DecisionRule(threshold=self.threshold) if self.decision is None else DecisionRule.parse(self.decision)


@dataclass(frozen=True, slots=True)
class LoadedClassifier:
    """A classifier with what belongs to it.

    Attributes:
        record: what was saved beside the weights.
        classifier: backbone with the adapter, and head.
        attachment: the adapter.
        encoder: the tokeniser.
        source: where the base model was found.
        placement: where and in which type it computes.
    """

    record: ClassifierRecord
    classifier: Classifier
    attachment: Attachment
    encoder: TextEncoder
    source: ModelSource
    placement: Placement


@dataclass(frozen=True, slots=True)
class LoadedBase:
    """The base model of a saved classifier, bare.

    Attributes:
        source: where it was found.
        placement: where and in which type it computes.
        backbone: the model.
    """

    source: ModelSource
    placement: Placement
    backbone: Backbone


def model_folder(path: Path) -> Path:
    """The folder that a classifier lies in: the path itself, or ``model`` in it if the path is a run folder.

    A replacement of its files that was decided and then cut short is carried out. Any folder may be asked about, the
    user's own as well, so nothing is moved where neither the old files nor the new ones have a classifier's record.

    Raises:
        ModelError: it cannot be.
    """
    inner = path / "model"
    for folder in (path, inner):
        if not any((one / RECORD).is_file() for one in (folder, folder / DECIDED)):
            continue
        try:
            finish_replacement(folder)
        except OSError as error:
            raise ModelError(
                "the classifier was being replaced when its process ended, and that cannot be finished",
                where=folder,
                got=error,
                do="Use it once from an account that may write there.",
            ) from None
    return inner if not (path / RECORD).is_file() and (inner / RECORD).is_file() else path


def save_classifier(loaded: LoadedClassifier, directory: Path) -> None:
    """Write a classifier into ``directory``, which is made if need be.

    All files take their places or none does: a classifier that is there already stays whole until then.

    Raises:
        DivergenceError: its weights are not finite; nothing has been written.
    """
    require_finite_weights(
        loaded.attachment.parameters() | dict(loaded.classifier.head.named_parameters()), where=directory
    )
    with replace_files(directory) as scratch:
        save_adapter(loaded.attachment, scratch, base_model=loaded.record.base_model)
        head = loaded.classifier.head
        tensors = {name: value.detach().cpu().contiguous() for name, value in head.named_parameters()}
        write_tensors(scratch / HEAD, tensors)
        files = (*(scratch / name for name in (CONFIG_FILE, WEIGHTS_FILE, HEAD)), *loaded.encoder.save(scratch))
        record = with_digests({"format": FORMAT, "qlassify": __version__, **asdict(loaded.record)}, RECORD, files)
        (scratch / RECORD).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_record(directory: Path) -> ClassifierRecord:
    """Read ``classifier.json``.

    Raises:
        ModelError: missing, unreadable, damaged, or of another format.
    """
    return _read_record(directory)[0]


def _read_record(directory: Path) -> tuple[ClassifierRecord, dict[str, Any]]:
    """The record, and what its file says of digests: of one reading, so that both are of one classifier."""
    path = directory / RECORD
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        digests: dict[str, Any] = {}
        if isinstance(document, dict):
            verify_record(document, path)
            digests = {KEY: document.pop(KEY)} if KEY in document else {}
        settings = checked_record(document, FORMAT, [field.name for field in fields(ClassifierRecord)])
        settings["labels"] = tuple(settings["labels"])
        if "long" in settings:
            settings["long"] = LongTexts(**settings["long"])
        record = ClassifierRecord(**settings)
        require_fitting(record.rule, len(record.labels))
        return record, digests
    except FileNotFoundError:
        raise ModelError(
            "no saved classifier here",
            where=directory,
            wanted=f"a run folder or a model folder with {RECORD}",
            do=_where_to_look(directory),
        ) from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError, ConfigError) as error:
        raise ModelError(
            "cannot read the saved classifier",
            where=path,
            got=error,
            do="Restore the file; how qlassify train writes it is in docs/run-folder.md.",
        ) from None


def require_undamaged(directory: Path) -> ClassifierRecord:
    """``read_record``, and every file that it has a digest of is the one that was written with it.

    Raises:
        ModelError: names the file that is missing, damaged, or of another classifier.
    """
    return _verified(directory)[0]


@contextmanager
def read_undamaged(directory: Path) -> Iterator[ClassifierRecord]:
    """The record of a classifier whose files are read meanwhile; they have to be those that were written with it.

    Their digests are compared before anything is made of them. At the end they have to be the same files still: that
    is asked of the file system (number, size and time of each), since a replacement puts other files in their places,
    and hashing a fully fine-tuned model twice takes seconds.

    Raises:
        ModelError: names the file that is missing, damaged, or of another classifier; or all of them were replaced
            meanwhile.
    """
    record, files = _verified(directory)
    try:
        yield record
    except (QlassifyError, OSError) as error:
        _require_same_files(directory, files, error)
        raise
    _require_same_files(directory, files)


_Files = dict[Path, tuple[int, ...] | None]
"""Files and what tells each from one that takes its place; None for one that is not there."""


def _verified(directory: Path) -> tuple[ClassifierRecord, _Files]:
    """The record and the files that were compared with it; one that is replaced just then is looked at once more."""
    path = directory / RECORD
    for again in (True, False):
        before = _identity(path)
        record, digests = _read_record(directory)
        files: _Files = {directory / Path(name).name: None for name in digests.get(KEY) or ()}
        files = {one: _identity(one) for one in files} | {path: before}
        try:
            verify_files(digests, path)
        except ModelError:
            being_replaced = _identity(path) != before or (directory / DECIDED).is_dir()
            if not (again and being_replaced):
                raise
            with suppress(OSError):  # somebody else carries it out, then
                finish_replacement(directory)
            continue
        break
    return record, files


def _identity(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _require_same_files(directory: Path, files: _Files, error: Exception | None = None) -> None:
    """``error`` is what came of reading them."""
    if any(_identity(path) != identity for path, identity in files.items()):
        raise ModelError(
            "the saved classifier was replaced while it was read", where=directory, got=error, do="Try again."
        ) from None


def require_fitting(rule: DecisionRule, num_labels: int) -> None:
    """Refuse a rule that was made for another number of labels.

    Raises:
        ValueError: it was.
    """
    if rule.thresholds is not None and len(rule.thresholds) != num_labels:
        raise ValueError(f"{len(rule.thresholds)} thresholds for {num_labels} labels")
    if rule.positive is not None and num_labels != 2:
        raise ValueError(f"a positive class among {num_labels} labels")


def _where_to_look(directory: Path) -> str:
    """What to name instead of a folder without a classifier; for a folder of several seeds, one of them.

    A run that was stopped before its end is to be continued.
    """
    for run in (directory, directory.parent):
        if (run / "run.yaml").is_file():
            return f"The run has not come to its classifier. Continue it with: qlassify train --resume {run}"
    if (directory / SEEDS).is_file():
        return f"It holds the runs of several seeds; name one of them ({directory / SEEDS} says which is best)."
    return "Train one with: qlassify train DATA."


def load_classifier(
    directory: Path, *, device: str = "auto", precision: str = "auto", base_model: str | None = None
) -> LoadedClassifier:
    """Load what ``save_classifier`` wrote.

    Args:
        directory: the model folder.
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: ``auto`` takes the one it was trained in if the hardware multiplies it, else fp32.
        base_model: where the base model is, if it is not where it was.

    Raises:
        ModelError: something is missing, damaged, or belongs to another base model.
    """
    with read_undamaged(directory) as record:
        base = load_base(record, where=directory, device=device, precision=precision, base_model=base_model)
        backbone = base.backbone
        attachment = attach(backbone.model, read_adapter_config(directory), seed=0)
        load_adapter(attachment, directory)
        require_room(record, directory, backbone)
        classifier = Classifier(backbone, load_head(record, directory, backbone), record.pooling).eval()
        encoder = TextEncoder.load(directory, record.max_length, record.long)
    return LoadedClassifier(record, classifier, attachment, encoder, base.source, base.placement)


def load_base(
    record: ClassifierRecord,
    *,
    where: Path,
    device: str = "auto",
    precision: str = "auto",
    base_model: str | None = None,
) -> LoadedBase:
    """Find and load the base model that a saved classifier names; arguments as in ``load_classifier``.

    Raises:
        ModelError: it is missing, or is another one than the classifier was trained on.
    """
    source = resolve(base_model or record.base_model)
    found = source.sha256()
    if found != record.base_sha256:
        raise ModelError(
            "the base model is not the one that the classifier was trained on",
            where=source.directory,
            got=f"{source.name} with SHA-256 {found[:16]}...",
            wanted=f"{record.base_model} with SHA-256 {record.base_sha256[:16]}...",
            do="Give the right one with --base.",
        )
    placement = placement_for(record, device, precision)
    quant = None if record.quantization is None else QuantConfig.parse(record.quantization, where=str(where))
    _require_format(source, quant)
    backbone = load_backbone(source.directory, placement.dtype, placement.device, quant=quant)
    return LoadedBase(source, placement, backbone)


def load_head(record: ClassifierRecord, directory: Path, backbone: Backbone) -> ClassificationHead:
    """The head of a saved classifier, on the backbone's device.

    Raises:
        ModelError: it is missing, damaged, or of another shape.
    """
    head = ClassificationHead(backbone.hidden_size, len(record.labels), seed=0, bias=record.head_bias)
    head = head.to(backbone.device)
    copy_tensors(dict(head.named_parameters()), read_tensors(directory / HEAD), directory / HEAD)
    return head


def require_room(record: ClassifierRecord, directory: Path, backbone: Backbone) -> None:
    """Refuse a record whose longest text the base model has no positions for.

    Raises:
        ModelError: it was edited, or belongs to another model.
    """
    if backbone.max_positions is not None and record.max_length > backbone.max_positions:
        raise ModelError(
            "the saved classifier reads longer texts than its base model has positions for",
            where=directory / RECORD,
            got=f"max_length {record.max_length}",
            wanted=f"at most {backbone.max_positions}",
            do="Restore the file.",
        )


def _require_format(source: ModelSource, quant: QuantConfig | None) -> None:
    """A quantised base has the format that the classifier was trained on."""
    base = source.quantized()
    if base is not None and base.config != quant:
        raise ModelError(
            "the base model is quantised in another format than the classifier was trained on",
            where=source.directory,
            got=str(base.config),
            wanted="unquantised weights" if quant is None else str(quant),
            do="Give the model that it was made from with --base.",
        )


def placement_for(record: ClassifierRecord, device: str, precision: str) -> Placement:
    """Where a saved classifier computes, and in which type: that of its training if the hardware multiplies it."""
    if precision != "auto":
        return choose_placement(device, precision)
    natural = choose_placement(device, "auto")
    if natural.precision == record.precision:
        return natural
    if record.precision == "fp32":
        return choose_placement(device, "fp32")
    return Placement(
        natural.device, natural.precision, f"trained in {record.precision}, which is slow here: {natural.reason}"
    )
