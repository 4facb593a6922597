"""Backbone, pooling and head: packed texts in, logits out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qlassify.data.packing import PackedBatch
from qlassify.errors import ModelError
from qlassify.models.backbone import Backbone
from qlassify.models.head import ClassificationHead
from qlassify.models.packed_layout import PackedLayout
from qlassify.models.pooling import PoolingMode, average_windows, pool


def hidden_states(backbone: Backbone, batch: PackedBatch) -> tuple[Tensor, PackedLayout]:
    """(T, H) hidden states of a batch's tokens, and where each sequence lies among them.

    Raises:
        ModelError: a token has no row in the embedding.
    """
    if batch.num_tokens and int(batch.token_ids.max()) >= backbone.vocab_size:
        raise ModelError(
            "the tokeniser has tokens for which the model has no embedding",
            where=backbone.directory,
            got=f"token {int(batch.token_ids.max())}",
            wanted=f"tokens below {backbone.vocab_size}",
            do="Take the tokeniser that belongs to the model.",
        )
    device = backbone.device
    layout = PackedLayout(batch.lengths, device)
    types = None if batch.token_type_ids is None else torch.from_numpy(batch.token_type_ids).to(device)
    hidden_TH: Tensor = backbone(
        torch.from_numpy(batch.token_ids).to(device),
        torch.from_numpy(batch.position_ids).to(device),
        types,
        layout,
    )
    return hidden_TH, layout


class Classifier(nn.Module):
    """A text classifier.

    Args:
        backbone: the pretrained model, perhaps with adapters attached.
        head: the classification head.
        pooling: how hidden states become one vector.
    """

    def __init__(self, backbone: Backbone, head: ClassificationHead, pooling: PoolingMode) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.pooling = pooling

    def vectors(self, batch: PackedBatch) -> Tensor:
        """(B, H) pooled vectors, in the order of ``batch.rows``."""
        hidden_TH, layout = hidden_states(self.backbone, batch)
        return average_windows(pool(hidden_TH, layout, self.pooling), batch.windows)

    def forward(self, batch: PackedBatch) -> Tensor:
        """(B, C) logits, in the order of ``batch.rows``."""
        logits: Tensor = self.head(self.vectors(batch))
        return logits
