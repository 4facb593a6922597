"""A checkpoint as handles that read one tensor each, and a model that transformers fills from them.

transformers takes a mapping of tensors in place of files, and takes each as it takes a slice of its own files: by an
index. A handle reads its tensor then, so whatever ``formats`` can read, transformers can load, with its knowledge of
names and without a second copy of the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qlassify.errors import ModelError
from qlassify.models.tensor_file import TensorFile

_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class LazyTensor:
    """A tensor of a file that is read when transformers takes it, as it takes slices of its own files."""

    file: TensorFile
    name: str

    def __getitem__(self, index: object) -> Tensor:
        """The tensor; the index is always an ellipsis."""
        try:
            return self.file.read(self.name)
        except ModelError as error:
            raise Refused(error) from None

    @property
    def dtype(self) -> torch.dtype:
        """Its type."""
        return self.file.entries[self.name].dtype


class Refused(BaseException):
    """Carries our error out of transformers' loader, which turns any ``Exception`` of a quantiser into a log line."""

    def __init__(self, error: ModelError) -> None:
        super().__init__(str(error))
        self.error = error


def lazy_state(files: tuple[TensorFile, ...]) -> dict[str, LazyTensor]:
    """All tensors of a checkpoint, none of which has been read."""
    return {name: LazyTensor(file, name) for file in files for name in file.entries}


def widest(state: Mapping[str, LazyTensor]) -> torch.dtype:
    """The widest floating-point type of a checkpoint, in which none of its tensors is rounded."""
    found = {tensor.dtype for tensor in state.values()}
    if {torch.bfloat16, torch.float16} <= found:
        return torch.float32
    return next((dtype for dtype in _FLOATS if dtype in found), torch.float32)


def load_lazily(
    model_class: Any, config: Any, files: tuple[TensorFile, ...], dtype: torch.dtype | None, **extra: Any
) -> tuple[Any, Mapping[str, Any]]:
    """Build a transformers model from files of any format.

    Args:
        model_class: transformers' class of the model.
        config: its configuration.
        files: the checkpoint.
        dtype: of the weights; the checkpoint's own when None.
        extra: further arguments of the class's ``from_pretrained``.

    Returns:
        The model and transformers' loading report, in which tensors of another shape stand, too.

    Raises:
        ModelError: a tensor cannot be read.
    """
    state = lazy_state(files)
    try:
        model, info = model_class.from_pretrained(
            None,
            config=config,
            state_dict=state,
            dtype=dtype or widest(state),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # whoever loads refuses them, by name
            **extra,
        )
    except Refused as refused:
        raise refused.error from None
    return model, info
