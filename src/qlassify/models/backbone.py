"""A pretrained transformer over packed batches. The only file that imports transformers' model classes.

transformers owns the architectures: embeddings, positions, norms, gated feed-forwards, rotary tables. ``Backbone``
owns how they are called: one row of T packed tokens, positions that restart, no mask, and our attention in the
registry's place. Writing each architecture again would be faster for the three that we would get to and wrong for the
fortieth.

Whether an architecture can be called this way is not looked up in a list but tried when it is loaded: two short texts
packed together must give the hidden states that transformers' own attention gives for each of them alone. An
architecture that fails (relative positions inside its attention, positions that it does not accept) runs on padded
rectangles with a correct mask, and ``Backbone.packed`` says so for the report.

The backbone is kept in evaluation mode: its weights are frozen, and dropout on a frozen model's activations would make
a text's hidden states depend on chance.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn

from qlassify.config.quant import QuantConfig
from qlassify.errors import ConfigError, ModelError
from qlassify.formats.safetensors import open_safetensors
from qlassify.models import attention
from qlassify.models.config_file import read_config_file
from qlassify.models.file_base import is_file_base, open_file_base, require_numbers
from qlassify.models.lazy_tensors import load_lazily
from qlassify.models.low_bit import QuantError, load_low_bit
from qlassify.models.packed_layout import PackedLayout
from qlassify.models.quantized import quantized_base
from qlassify.models.source import weight_files
from qlassify.models.tensor_file import TensorFile
from qlassify.models.valueless import AnswerNo
from qlassify.models.whole import require_whole, vocabulary_size
from qlassify.quant.linear import low_bit_layers

PROBE_LENGTHS = (7, 4)
"""Lengths of the two texts with which packing is tried."""
SHORTEST_TEXT = 4
"""Positions that a prefix has to leave, as in ``ModelConfig.max_length``."""
PROBE_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.1}
"""Largest relative error of the packed hidden states. Rounding stays well below (bf16: about 0.02 over 30 layers);
reading another text or the wrong position is of order one."""


class Backbone(nn.Module):
    """A frozen pretrained model: packed token ids in, hidden states out.

    Args:
        model: a transformers base model without a head, in evaluation mode.
        directory: where it was loaded from.
        quant_error: what quantising its weights lost, relative to their size.

    Attributes:
        hidden_size: H.
        causal: whether a token sees only what precedes it.
        max_positions: longest text the model has positions for, or None when it has no bound.
        num_parameters: parameters of the pretrained model, tied ones counted once.
        quant: the format of its low-bit weights, or None when it has none.
        vocab_size: rows of the token embedding.
        packed: whether batches run without padding.
        processor: ``cpu`` or ``cuda``: what computes, or on a sketch what would.
        fitting_tokens: the most tokens that are predicted at once since memory ran out at more; None before. Whatever
            stands on this model predicts in the same memory, so what one call found holds for the next.

    A module of a packed model that calls attention gets an attribute ``key_value_shapes``: the shapes (K, D) of its
    keys and (K, V) of its values. It says that the module hands keyword arguments, such as a prefix, on to packed
    attention. What is put in its place may have a ``position_shift``, by which all positions are moved.
    """

    def __init__(self, model: Any, directory: Path, quant_error: float | None = None) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.directory = directory
        config = model.config
        self.model_type = str(config.model_type)
        low_bit = low_bit_layers(model).values()
        self.num_parameters = sum(parameter.numel() for parameter in model.parameters()) + sum(
            layer.out_features * layer.in_features for layer in low_bit
        )
        self.quant_error = quant_error
        self.quant = next((layer.config for layer in low_bit), None)
        self.vocab_size = vocabulary_size(model, directory)
        self.hidden_size = int(config.hidden_size)
        parameters = inspect.signature(model.forward).parameters
        self._takes = {name for name in ("position_ids", "token_type_ids", "use_cache") if name in parameters}
        self.position_offset = _position_offset(model)
        self.causal = _is_causal(model)
        self.max_positions = _max_positions(config, self.position_offset)
        self._attention_path: str | None = None
        self.fitting_tokens: int | None = None
        self.processor = "cuda" if self.device.type == "cuda" else "cpu"
        self.packed = self._can_be_packed()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    def is_sketch(self) -> bool:
        """Whether it has shapes and no weights: it is on the meta device."""
        return self.device.type == "meta"

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of the weights."""
        frozen = (p for p in self.model.parameters() if p.is_floating_point() and not p.requires_grad)
        dtype: torch.dtype = next(frozen).dtype
        return dtype

    def train(self, mode: bool = True) -> Backbone:
        """Modules attached to the backbone follow ``mode``; the pretrained ones stay in evaluation mode."""
        self.training = mode
        for module in self.model.modules():
            if getattr(module, "is_adapter", False):
                module.train(mode)
        return self

    def forward(
        self, token_ids_T: Tensor, position_ids_T: Tensor, token_type_ids_T: Tensor | None, layout: PackedLayout
    ) -> Tensor:
        """Hidden states (T, H) of packed texts.

        Args:
            token_ids_T: (T,) int64.
            position_ids_T: (T,) int64, restarting at 0 with each text.
            token_type_ids_T: (T,) int64 segments of text pairs, or None.
            layout: the texts' lengths.
        """
        if self.is_sketch:
            layout.processor = self.processor
        with AnswerNo() if self.is_sketch else contextlib.nullcontext():
            if not self.packed:
                return self._forward_padded(token_ids_T, token_type_ids_T, layout)
            return self._forward_packed(token_ids_T, position_ids_T, token_type_ids_T, layout)

    def _forward_packed(
        self, token_ids_T: Tensor, position_ids_T: Tensor, token_type_ids_T: Tensor | None, layout: PackedLayout
    ) -> Tensor:
        """One row of all tokens, no mask, and our attention."""
        offset = self.position_offset + self.position_shift
        arguments: dict[str, Any] = {
            "input_ids": token_ids_T.unsqueeze(0),
            "position_ids": (position_ids_T + offset).unsqueeze(0),
            "packed_layout": layout,
        }
        arguments |= self._optional(token_type_ids_T.unsqueeze(0) if token_type_ids_T is not None else None)
        hidden: Tensor = self.model(**arguments).last_hidden_state
        return hidden.squeeze(0)

    def longest_text(self, asked: int, *, behind: int = 0) -> int:
        """The longest text in tokens that there are positions for, at most ``asked``.

        Args:
            asked: tokens of the longest text.
            behind: positions that a method takes from the front of each text.

        Raises:
            ConfigError: hardly any position is left.
        """
        if self.max_positions is None:
            return asked
        if self.max_positions - behind < SHORTEST_TEXT:
            raise ConfigError(
                "the prefix leaves too few of the model's positions for text",
                where="method.num_virtual_tokens",
                got=behind,
                wanted=f"at most {self.max_positions - SHORTEST_TEXT}",
            )
        return min(asked, self.max_positions - behind)

    @property
    def position_shift(self) -> int:
        """Positions that a method's prefix takes from the front of each text."""
        if self._attention_path is None:
            return 0
        return int(getattr(self.model.get_submodule(self._attention_path), "position_shift", 0))

    def _optional(self, token_type_ids: Tensor | None) -> dict[str, Any]:
        """Arguments that only some architectures take."""
        arguments: dict[str, Any] = {}
        if "use_cache" in self._takes:
            arguments["use_cache"] = False
        if "token_type_ids" in self._takes and token_type_ids is not None:
            arguments["token_type_ids"] = token_type_ids
        return arguments

    def _forward_padded(self, token_ids_T: Tensor, token_type_ids_T: Tensor | None, layout: PackedLayout) -> Tensor:
        """The same for an architecture that cannot be packed: rectangles of similar length, masked."""
        rows: list[Tensor] = []
        for bucket in layout.buckets:
            shape = (-1, bucket.longest)
            mask = torch.arange(bucket.longest, device=token_ids_T.device) < bucket.lengths[:, None]
            types = None if token_type_ids_T is None else token_type_ids_T[bucket.gather].view(shape)
            hidden = self.model(
                input_ids=token_ids_T[bucket.gather].view(shape), attention_mask=mask.long(), **self._optional(types)
            ).last_hidden_state
            rows.append(hidden.reshape(-1, hidden.shape[-1]))
        return torch.cat(rows).index_select(0, layout.scatter)

    @torch.no_grad()
    def _can_be_packed(self) -> bool:
        """Try it: two packed texts against each one alone through transformers' own attention."""
        if "position_ids" not in self._takes:
            return False
        self.packed = True
        lengths = np.array(PROBE_LENGTHS, dtype=np.int64)
        # Not the padding id: RoBERTa counts positions only over other ids.
        first = (self.model.get_input_embeddings().padding_idx or 0) + 1
        ids = (first + torch.arange(int(lengths.sum()), device=self.device)) % self.vocab_size
        positions = torch.cat([torch.arange(length, device=self.device) for length in PROBE_LENGTHS])
        own = self.model.config._attn_implementation
        if self.device.type == "cpu":
            attention.warm_up()
        with quiet_transformers():
            self.model.set_attn_implementation(attention.IMPLEMENTATION)
        try:
            layout = PackedLayout(lengths, self.device)
            layout.calls = {}
            packed = self.forward(ids, positions, None, layout)
        except (ModelError, ValueError, KeyError, TypeError, RuntimeError):
            return False
        finally:
            with quiet_transformers():
                self.model.set_attn_implementation(own)
        # A model without memory has no values to compare: that it calls our attention is all that can be known.
        good = bool(layout.calls) if self.is_sketch else self._agrees_with_own_attention(packed, ids)
        if good:
            for module, shapes in layout.calls.items():
                setattr(module, "key_value_shapes", shapes)  # noqa: B010 - the plain form is for tensors and modules
            self._attention_path = next(
                (path for path, module in self.model.named_modules() if module in layout.calls), None
            )
            self.model.set_attn_implementation(attention.IMPLEMENTATION)
        return good

    def _agrees_with_own_attention(self, packed: Tensor, ids: Tensor) -> bool:
        """Whether packed hidden states are those that the model itself has for each of the trial's texts."""
        alone = [
            self.model(input_ids=part[None], **self._optional(None)) for part in torch.split(ids, list(PROBE_LENGTHS))
        ]
        wanted = torch.cat([output.last_hidden_state[0] for output in alone]).double()
        error = (packed.double() - wanted).norm(dim=-1) / wanted.norm(dim=-1)
        return bool((error < PROBE_TOLERANCE.get(self.dtype, 0.1)).all())


def load_backbone(
    directory: Path,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    *,
    quant: QuantConfig | None = None,
    residual_rank: int | None = None,
) -> Backbone:
    """Load the pretrained model of a directory, without its head.

    Args:
        directory: config.json and safetensors weights, ordinary or quantised; or an APR file.
        dtype: floating-point type of the weights in memory and of the computation.
        device: where to put them.
        quant: the format to keep the linear layers' weights in; a quantised directory has its own.
        residual_rank: leave on each low-bit layer the approximation of this rank of what quantising took from it.

    Raises:
        ModelError: unknown architecture, code that would have to be run, or weights that do not fill the model.
    """
    model, info, error = load_model(directory, dtype, quant, residual_rank)
    require_whole(model, info, directory)
    return Backbone(model.to(device), directory, None if error is None else error.relative)


def load_model(
    directory: Path, dtype: torch.dtype | None, quant: QuantConfig | None, residual_rank: int | None = None
) -> tuple[Any, Mapping[str, Any], QuantError | None]:
    """transformers' model, what it says of the loading, and what quantising lost.

    Args:
        directory: the model.
        dtype: of the weights that are not low-bit; the files' own when None.
        quant: the format of the linear layers' weights; none when None, unless the files are quantised.
        residual_rank: see ``load_backbone``.
    """
    from transformers import AutoModel

    config = load_config(directory)
    attention.register()
    arguments: dict[str, Any] = {"add_pooling_layer": False} if _has_pooler(config, AutoModel) else {}
    plan = quantized_base(directory) or quant
    try:
        with quiet_transformers():
            if plan is not None:
                return load_low_bit(
                    _model_class(config, AutoModel),
                    config,
                    _files(directory, config),
                    plan,
                    dtype,
                    residual_rank,
                    **arguments,
                )
            if is_file_base(directory):
                files = _files(directory, config)
                return *load_lazily(_model_class(config, AutoModel), config, files, dtype, **arguments), None
            model, info = AutoModel.from_pretrained(
                str(directory),
                config=config,
                dtype=dtype or "auto",
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are in the report, and refused by name
                **arguments,
            )
            return model, info, None
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise ModelError("cannot load the weights", where=directory, got=_in_short(error)) from None


def _files(directory: Path, config: Any) -> tuple[TensorFile, ...]:
    """A model's tensors; those of a file after its checksum was computed, if it has one (F-CKPT-011)."""
    if is_file_base(directory):
        base = open_file_base(directory, verify=True)
        require_numbers(base, empty_model(config, torch.float32, classifier=False))
        return (base,)
    return tuple(open_safetensors(path) for path in weight_files(directory))


def load_config(directory: Path) -> Any:
    """transformers' configuration of a model directory, or of a file in its place.

    Raises:
        ModelError: it is not one that transformers knows.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    if not is_file_base(directory):
        read_config_file(directory, CONFIG_MAPPING)
    try:
        if is_file_base(directory):
            settings = dict(open_file_base(directory).settings)
            return CONFIG_MAPPING[settings["model_type"]].from_dict(settings)
        return AutoConfig.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StrictDataclassError) as error:
        raise ModelError(
            "not a model configuration that transformers knows",
            where=directory if directory.is_file() else directory / "config.json",
            got=_in_short(error),
            do="Use an architecture that this version of transformers has, with the values of its config.json.",
        ) from None


def load_skeleton(directory: Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The architecture of a model directory on the meta device: every shape, no memory, no weights needed.

    Args:
        directory: holds a ``config.json``.
        dtype: the type that the parameters would have.

    Raises:
        ModelError: a configuration that transformers does not know.
    """
    model: nn.Module | None = empty_model(load_config(directory), dtype, classifier=False)
    assert model is not None  # a configuration that transformers knows has a base model
    return model.requires_grad_(False)


def empty_model(config: Any, dtype: torch.dtype, *, classifier: bool) -> Any | None:
    """transformers' model of a configuration without memory (on the meta device), to be given tensors.

    Args:
        config: with the number of labels, if it is a classifier.
        dtype: of its weights.
        classifier: the model with the architecture's classification head, or the base model that ``load_model`` loads.

    Returns:
        The model; None when the architecture has no classification head.
    """
    from transformers import AutoModel, AutoModelForSequenceClassification

    attention.register()
    auto_model: Any = AutoModelForSequenceClassification if classifier else AutoModel
    if type(config) not in auto_model._model_mapping:
        return None
    arguments: dict[str, Any] = (
        {"add_pooling_layer": False} if not classifier and _has_pooler(config, AutoModel) else {}
    )
    try:
        with torch.device("meta"), quiet_transformers():
            return auto_model.from_config(config, dtype=dtype, **arguments).eval()
    except (ValueError, RuntimeError, KeyError, TypeError, AttributeError, IndexError, ArithmeticError) as error:
        raise ModelError(
            "no model can be built from this configuration",
            where=getattr(config, "name_or_path", None) or config.model_type,
            got=_in_short(error),
            do="Check the sizes in config.json, or fetch the model again.",
        ) from None


def load_finished(directory: Path, *, classifier: bool, **settings: Any) -> Any:
    """What a directory holds, exactly as transformers loads it for anybody, in evaluation mode.

    Args:
        directory: a model that ``save_pretrained`` wrote.
        classifier: with the architecture's classification head.
        settings: of the configuration, in place of the directory's own.

    Raises:
        ModelError: it cannot be loaded.
    """
    from transformers import AutoModel, AutoModelForSequenceClassification

    auto_model = AutoModelForSequenceClassification if classifier else AutoModel
    try:
        with quiet_transformers():
            return auto_model.from_pretrained(
                str(directory), local_files_only=True, trust_remote_code=False, use_safetensors=True, **settings
            ).eval()
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise ModelError("cannot load the model", where=directory, got=_in_short(error)) from None


def _model_class(config: Any, auto_model: Any) -> Any:
    """The architecture's base model."""
    model_class = auto_model._model_mapping[type(config)]
    return model_class[0] if isinstance(model_class, tuple) else model_class


def _has_pooler(config: Any, auto_model: Any) -> bool:
    """Whether the architecture's base model has an optional pooler that only its own heads use."""
    return "add_pooling_layer" in inspect.signature(_model_class(config, auto_model).__init__).parameters


def has_optional_pooler(model: Any) -> bool:
    """Whether a base model without a pooler would get one if nothing was said."""
    return "add_pooling_layer" in inspect.signature(type(model).__init__).parameters


def _is_causal(model: Any) -> bool:
    """Whether the model's attention is causal, from its attention modules themselves."""
    flags = {
        bool(module.is_causal) for module in model.modules() if isinstance(getattr(module, "is_causal", None), bool)
    }
    if len(flags) == 1:
        return flags.pop()
    # Without a word from the attention modules, a model that can generate text reads from left to right.
    return bool(getattr(model.config, "is_decoder", False))


def _position_offset(model: Any) -> int:
    """Position of a text's first token: RoBERTa and its relatives start after the padding index."""
    embeddings: Any = getattr(model, "embeddings", None)
    padding = getattr(embeddings, "padding_idx", None)
    if padding is not None and hasattr(embeddings, "create_position_ids_from_input_ids"):
        return int(padding) + 1
    return 0


def _max_positions(config: Any, offset: int) -> int | None:
    positions = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    return None if positions is None else int(positions) - offset


def _in_short(error: BaseException) -> str:
    """What a library's exception says, in one line; a missing key is named as one."""
    words = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
    return words[:300] or type(error).__name__


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without transformers' progress bars and load report: what they say is checked above. Restored on leaving."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
