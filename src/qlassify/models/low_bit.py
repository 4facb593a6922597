"""Loading a pretrained model into low-bit weights, tensor by tensor.

transformers builds the model without memory for its weights and hands each tensor of the checkpoint to a quantiser on
its way into the model: its own extension point, which also sees to names that a checkpoint spells differently. Our
quantiser puts a ``LowBitLinear`` in the place of each linear layer when its weight comes along. The tensors that it is
handed are read one at a time by ``formats``, so the full-precision model never exists: the peak is the low-bit model
and the tensor in hand.

A weight is quantised from the type that the checkpoint has, not from the type that this machine computes in. Rounding
it to bf16 first would give other codes on a machine that computes in bf16 than on one that does not, and an adapter
trained above the ones would meet the others. The rest of the model is cast afterwards, parameter by parameter.

Embeddings, norms and anything else that is not a linear layer keep their numbers.
"""

from __future__ import annotations

import ctypes
import functools
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qlassify.config.quant import QuantConfig
from qlassify.errors import ModelError
from qlassify.models.lazy_tensors import Refused, lazy_state, widest
from qlassify.models.quantized import QuantizedBase
from qlassify.models.tensor_file import TensorFile
from qlassify.quant.linear import LowBitLinear
from qlassify.quant.low_rank import leading_factors
from qlassify.quant.tensor import quantize, squared_error

METHOD = "qlassify"


@dataclass(slots=True)
class QuantError:
    """What quantising lost, summed over a model's low-bit weights.

    Attributes:
        squared_error: sum of squared differences.
        squared_total: sum of squares of the weights.
    """

    squared_error: float = 0.0
    squared_total: float = 0.0

    @property
    def relative(self) -> float:
        """Root of the mean squared error over the root of the mean square: 0.1 is one tenth of the weights' size."""
        return math.sqrt(self.squared_error / self.squared_total) if self.squared_total else 0.0


@dataclass(frozen=True, slots=True)
class _Loading:
    """What the quantiser is told.

    Attributes:
        plan: the format to quantise into, or what the files say of weights that are in one already.
        own: the checkpoint's floating-point type.
        error: where losses are summed.
        residual_rank: rank of what is kept of each layer's loss, or None.
    """

    plan: QuantConfig | QuantizedBase
    own: torch.dtype
    error: QuantError
    residual_rank: int | None


def load_low_bit(
    model_class: Any,
    config: Any,
    files: tuple[TensorFile, ...],
    plan: QuantConfig | QuantizedBase,
    dtype: torch.dtype | None,
    residual_rank: int | None = None,
    **extra: Any,
) -> tuple[Any, Mapping[str, Any], QuantError]:
    """Build a transformers model whose linear layers are low-bit.

    Args:
        model_class: transformers' class of the model.
        config: its configuration.
        files: the checkpoint.
        plan: the format to quantise into, or what the files say of weights that are in one already.
        dtype: the type of everything that is not low-bit; the checkpoint's own when None.
        residual_rank: leave on each layer the approximation of this rank of what quantising took from its weight.
        extra: further arguments of the class's ``from_pretrained``.

    Returns:
        The model, transformers' loading report, and what quantising lost.

    Raises:
        ModelError: a weight holds NaN or infinity or has another shape than the model; the files have been cut short.
    """
    state = lazy_state(files)
    own = widest(state)
    error = QuantError() if isinstance(plan, QuantConfig) else QuantError(plan.relative_error**2, 1.0)
    try:
        model, info = model_class.from_pretrained(
            None,
            config=config,
            state_dict=state,
            dtype=dtype or own,
            quantization_config=_classes()[0](_Loading(plan, own, error, residual_rank)),
            output_loading_info=True,
            **extra,
        )
    except Refused as refused:
        raise refused.error from None
    # What transformers hung on the model about its loading; the low-bit layers are plain modules and need none of it.
    model.hf_quantizer.remove_quantization_config(model)
    _give_back_memory()
    return model, info, error


def _give_back_memory() -> None:
    """Have the C library return what was freed while loading; glibc keeps it for the process otherwise."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def _is_linear_weight(model: nn.Module, name: str) -> bool:
    path, _, last = name.rpartition(".")
    if last != "weight":
        return False
    try:
        module = model.get_submodule(path)
    except AttributeError:
        return False
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _quantize_into(model: nn.Module, name: str, weight: Tensor, loading: _Loading) -> None:
    """Put a low-bit layer in the place of the linear layer whose weight this is."""
    path = name.rpartition(".")[0]
    layer = model.get_submodule(path)
    shape, expected = tuple(weight.shape), tuple(layer.weight.shape)  # type: ignore[arg-type]
    if shape != expected:
        raise ModelError("a weight has another shape than the model", where=name, got=shape, wanted=expected)
    transposed = not isinstance(layer, nn.Linear)
    rows = weight.T if transposed else weight
    assert isinstance(loading.plan, QuantConfig)
    quantized = quantize(rows, loading.plan, name=name)
    lost, total = squared_error(rows, quantized)
    loading.error.squared_error += lost
    loading.error.squared_total += total
    low_bit = LowBitLinear(quantized, transposed=transposed)
    # Its own parameter, not a copy: the bias is still to come, or has come already.
    low_bit.bias = layer.bias  # type: ignore[assignment]
    low_bit._is_hf_initialized = True  # type: ignore[assignment]
    if loading.residual_rank is not None:
        lost_weight = rows.float() - quantized.dequantize()
        # No more than the smaller side: a rank that is too large is refused where the method is attached.
        low_bit.residual = leading_factors(lost_weight, min(loading.residual_rank, *shape))
    _replace(model, path, low_bit)


@functools.cache
def _classes() -> tuple[Any, Any]:
    """Our configuration and quantiser in transformers' registry, entered once."""
    from transformers.core_model_loading import ConversionOps
    from transformers.quantizers.auto import register_quantization_config, register_quantizer
    from transformers.quantizers.base import HfQuantizer
    from transformers.utils.quantization_config import QuantizationConfigMixin

    config_base: Any = QuantizationConfigMixin
    operation_base: Any = ConversionOps
    quantizer_base: Any = HfQuantizer

    @register_quantization_config(METHOD)
    class LowBitConfig(config_base):  # type: ignore[misc]
        def __init__(self, loading: _Loading) -> None:
            self.quant_method = METHOD
            self.loading = loading

        def to_dict(self) -> dict[str, Any]:
            return {"quant_method": METHOD}

    class Quantize(operation_base):  # type: ignore[misc]
        def __init__(self, loading: _Loading) -> None:
            self.loading = loading

        def convert(self, input_dict: Any, *, model: Any = None, missing_keys: Any = None, **_: Any) -> dict[str, Any]:
            for name in list(input_dict):
                value = input_dict.pop(name)
                weight = value[0] if isinstance(value, list) else value
                try:
                    _quantize_into(model, name, weight, self.loading)
                except ModelError as error:
                    raise Refused(error) from None
                if missing_keys is not None:
                    missing_keys.discard(name)
            return {}

    @register_quantizer(METHOD)
    class LowBitQuantizer(quantizer_base):  # type: ignore[misc]
        def param_needs_quantization(self, model: Any, param_name: str, **_: Any) -> bool:
            plan = self.quantization_config.loading.plan
            return isinstance(plan, QuantConfig) and _is_linear_weight(model, param_name)

        def get_quantize_ops(self) -> Any:
            return Quantize(self.quantization_config.loading)

        def _process_model_before_weight_loading(self, model: Any, **_: Any) -> Any:
            loading = self.quantization_config.loading
            if isinstance(loading.plan, QuantizedBase):
                _make_room(model, loading.plan)
            else:
                _keep_type(model, loading.own)
            return model

        def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
            model.__dict__.pop("_get_dtype_plan", None)
            return model

        def is_serializable(self) -> bool:
            return False

        @property
        def is_trainable(self) -> bool:
            return True

    return LowBitConfig, LowBitQuantizer


def _keep_type(model: Any, own: torch.dtype) -> None:
    """Have linear weights handed over in the checkpoint's type, whatever the model is loaded in.

    A model is asked for exceptions to its type just before its weights are read, and the answer is a method's.
    """
    exceptions = model._get_dtype_plan
    names = [f"{path}.weight" for path, _ in model.named_modules() if _is_linear_weight(model, f"{path}.weight")]
    model._get_dtype_plan = lambda dtype: {**exceptions(dtype), **dict.fromkeys(names, own)}


def _make_room(model: nn.Module, plan: QuantizedBase) -> None:
    """Low-bit layers without memory in the places that a quantised checkpoint names."""
    for path, shape in plan.layers.items():
        if not _is_linear_weight(model, f"{path}.weight"):
            raise ModelError("the quantised checkpoint is not of this architecture", got=f"a linear layer {path}")
        layer = model.get_submodule(path)
        own = tuple(layer.weight.shape)  # type: ignore[arg-type]
        wanted = own if isinstance(layer, nn.Linear) else own[::-1]
        if tuple(shape) != wanted:
            raise ModelError("a low-bit weight has another shape than the model", where=path, got=shape, wanted=wanted)
        bias = layer.bias
        assert bias is None or isinstance(bias, Tensor)
        transposed = not isinstance(layer, nn.Linear)
        _replace(model, path, LowBitLinear.empty(shape, plan.config, bias=bias, transposed=transposed))
