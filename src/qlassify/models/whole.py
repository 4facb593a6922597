"""Whether a loaded model can be worked with: it reads texts, every tensor was found, and every number is finite.

transformers fills what it does not find with random numbers and says so in a report; a classifier on such weights
trains, and scores badly for a reason that nobody sees. NaN in a frozen weight shows only after some steps, as a loss
that the settings seem to be to blame for. Both are looked for once, when the weights have just been read: what it costs
is a fraction of the hash that identifies the base model. Looking at the loss alone was the alternative; it names rows
and not the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from qlassify.errors import ModelError
from qlassify.formats.finite import require_finite

SHOWN = 4
"""Names in a message."""


def require_whole(model: nn.Module, info: Mapping[str, Any], directory: Path) -> None:
    """Refuse a model of which some weights were not in its files, have another shape there, or are no numbers.

    Args:
        model: as transformers loaded it.
        info: transformers' loading report.
        directory: of the files.

    Raises:
        ModelError: names the tensors.
    """
    odd = [_mismatch(one) for one in info.get("mismatched_keys", ())]
    missing = sorted(set(info["missing_keys"]) - {name for name, _ in odd})
    if missing or odd:
        shown = [*(words for _, words in sorted(odd)), *missing]
        raise ModelError(
            f"{len(shown)} tensors of the model are missing from its files or have another shape",
            where=directory,
            got=", ".join(shown[:SHOWN]) + (" ..." if len(shown) > SHOWN else ""),
            wanted="every tensor of the architecture; a classifier on random weights is never built",
            do="Check that config.json belongs to these weights, or fetch the model again.",
        )
    for name, parameter in model.named_parameters():
        require_finite(parameter, where=f"{directory}: {name}")


def vocabulary_size(model: Any, directory: Path) -> int:
    """Rows of the token embedding.

    Raises:
        ModelError: the model has none, or is in two halves, and so reads no texts in the way that is needed here.
    """
    rows = getattr(model.get_input_embeddings(), "num_embeddings", None)
    if rows is None or getattr(model.config, "is_encoder_decoder", False):
        raise ModelError(
            "the model is not one that turns a text into hidden states",
            where=directory,
            got=f"architecture {model.config.model_type}",
            wanted="an encoder or a decoder of text, such as BERT or Qwen",
            do="Take another base model.",
        )
    return int(rows)


def _mismatch(one: Any) -> tuple[str, str]:
    """The name of a tensor of another shape, and that with the shapes; transformers gives both, or the name alone."""
    if not isinstance(one, tuple | list) or len(one) < 3:
        return str(one), str(one)
    name, found, wanted = one[:3]
    return str(name), f"{name} of shape {tuple(found)} in place of {tuple(wanted)}"
