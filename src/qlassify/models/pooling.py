"""One vector per text from its tokens' hidden states; several windows of one text are averaged.

Pooling goes by where a text lies in the packed batch, never by comparing token ids with a padding id: that
comparison is how classifiers come to read the wrong token when padding equals end-of-text or stands on the left.

* ``last``: the last token, for causal models, the only token that has seen the whole text;
* ``cls``: the first token, for encoders trained with a classification token;
* ``mean``: the average of all tokens, for sentence-transformers checkpoints, which say so in
  ``1_Pooling/config.json``. The sum runs in fp32 (float64 for float64), so that a long text loses nothing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from qlassify.errors import ModelError
from qlassify.models.file_base import is_file_base, open_file_base
from qlassify.models.packed_layout import PackedLayout

PoolingMode = Literal["last", "cls", "mean"]


def pool(hidden_TH: Tensor, layout: PackedLayout, mode: PoolingMode) -> Tensor:
    """(T, H) hidden states of S packed sequences -> (S, H) vectors, in fp32 (float64 for float64)."""
    dtype = torch.float64 if hidden_TH.dtype == torch.float64 else torch.float32
    if mode == "last":
        return hidden_TH.index_select(0, layout.last).to(dtype)
    if mode == "cls":
        return hidden_TH.index_select(0, layout.starts).to(dtype)
    lengths = torch.from_numpy(layout.lengths).to(layout.device)
    return torch.segment_reduce(hidden_TH.to(dtype), "mean", lengths=lengths, axis=0, unsafe=True)


def average_windows(vectors_SH: Tensor, windows: npt.NDArray[np.int64] | None) -> Tensor:
    """(S, H) vectors of sequences -> (B, H) vectors of texts: the mean over each text's windows.

    The head is linear, so its logits are the mean of the windows' logits, too.

    Args:
        vectors_SH: in packed order.
        windows: (B,) how many sequences each text has; None if each has one.
    """
    if windows is None:
        return vectors_SH
    lengths = torch.from_numpy(windows).to(vectors_SH.device)
    return torch.segment_reduce(vectors_SH, "mean", lengths=lengths, axis=0, unsafe=True)


def choose_pooling(directory: Path, *, causal: bool) -> PoolingMode:
    """The pooling a checkpoint was made for: what sentence-transformers wrote beside it, else by architecture.

    Raises:
        ModelError: ``1_Pooling/config.json`` exists and names a pooling that is not one of ours.
    """
    path = directory / "1_Pooling" / "config.json"
    if is_file_base(directory):
        settings = open_file_base(directory).pooling
    else:
        try:
            settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        except (OSError, ValueError) as error:
            raise ModelError("cannot read the pooling configuration", where=path, got=error) from None
    if settings is None:
        return "last" if causal else "cls"
    if not isinstance(settings, dict):
        raise ModelError("cannot read the pooling configuration", where=path, got=type(settings).__name__)
    # Version 6 of sentence-transformers writes pooling_mode; earlier ones a flag per mode.
    named = str(settings.get("pooling_mode", ""))
    flags: dict[str, PoolingMode] = {"mean_tokens": "mean", "cls_token": "cls", "lasttoken": "last"}
    names: dict[str, PoolingMode] = {"mean": "mean", "cls": "cls", "lasttoken": "last"}
    if named in names:
        return names[named]
    prefix = "pooling_mode_"
    chosen = [key.removeprefix(prefix) for key, on in settings.items() if key.startswith(prefix) and on is True]
    if len(chosen) == 1 and chosen[0] in flags:
        return flags[chosen[0]]
    raise ModelError(
        "the checkpoint pools in a way that is not supported",
        where=path,
        got=named or [key for key, value in settings.items() if value is True],
        wanted="mean, cls or lasttoken",
        do="Choose one with --set model.pooling=mean.",
    )
