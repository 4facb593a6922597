"""The merged backbone's numbers under the names and in the shapes that its architecture has.

After a merge some layers are not the architecture's own any more: a layer that was low-bit has become ``nn.Linear``
even where the architecture has ``Conv1D``, and low-bit layers that the method did not touch still are. An architecture
without memory (``empty_model``) says what each tensor has to be; what it has no place for is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from qlassify.errors import ModelError
from qlassify.methods.base_layer import dense_layer, is_linear, stores_transposed
from qlassify.quant.linear import low_bit_layers


def plain_tensors(model: nn.Module, like: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """Name -> tensor of a merged model, as its architecture has them.

    Args:
        model: the merged model.
        like: the same architecture without memory.
        dtype: of the floating-point tensors.

    Raises:
        ModelError: the model has a tensor that the architecture has not, such as a bias that a method added.
    """
    fill_low_bit(model, dtype)
    transposed = _transposed(model, like)
    wanted = {name: tuple(tensor.shape) for name, tensor in like.state_dict().items()}
    found: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        value = tensor.detach().cpu()
        if name.rpartition(".")[0] in transposed and name.endswith(".weight"):
            value = value.T
        found[name] = (value.to(dtype) if value.is_floating_point() else value).contiguous()
    foreign = [name for name in found if name not in wanted]
    foreign += [name for name in found if name in wanted and tuple(found[name].shape) != wanted[name]]
    if foreign:
        raise ModelError(
            "the merged model has tensors that its architecture has no place for",
            got=", ".join(foreign[:4]) + (f" and {len(foreign) - 4} more" if len(foreign) > 4 else ""),
            do="This method cannot be merged into this architecture; keep the run's own format.",
        )
    return found


def fill_low_bit(model: nn.Module, dtype: torch.dtype) -> None:
    """Put an unquantised layer in the place of each low-bit one."""
    for path, layer in low_bit_layers(model).items():
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, dense_layer(layer, dtype))


def _transposed(model: nn.Module, like: nn.Module) -> set[str]:
    """Paths of linear layers that the architecture stores (in, out) and the model (out, in)."""
    modules = dict(model.named_modules())
    return {
        path
        for path, layer in like.named_modules()
        if is_linear(layer) and stores_transposed(layer) and isinstance(modules.get(path), nn.Linear)
    }


def fill(model: Any, tensors: Mapping[str, Tensor]) -> None:
    """Give an architecture without memory its tensors.

    Raises:
        ModelError: one is missing or has no place.
    """
    try:
        model.load_state_dict(dict(tensors), strict=True, assign=True)
    except RuntimeError as error:
        raise ModelError(
            "the tensors are not those of the architecture", got=" ".join(str(error).split())[:300]
        ) from None
