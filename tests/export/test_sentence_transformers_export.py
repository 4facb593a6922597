"""Mean-pooled classifiers in sentence-transformers: ``encode`` gives the logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import sentence_transformers
from export_worlds import OURS_TO_THEIRS, SECOND_TEXTS, TEXTS, make_pipeline, our_logits, save_base

from qlassify.export.exporting import export_classifier

pytestmark = [pytest.mark.parity, pytest.mark.usefixtures("one_thread")]


@pytest.mark.parametrize("name", ["bert", "modernbert", "distilbert", "llama"])
def test_encode_gives_the_logits(name: str, tmp_path: Path) -> None:
    pipeline = make_pipeline(save_base(name, tmp_path / "base"), pooling="mean")
    pipeline.save(tmp_path / "model")
    export_classifier(tmp_path / "model", tmp_path / "export")
    model = sentence_transformers.SentenceTransformer(str(tmp_path / "export"), device="cpu")
    found = model.encode(list(TEXTS), show_progress_bar=False)
    np.testing.assert_allclose(found, our_logits(pipeline), **OURS_TO_THEIRS)
    assert model.max_seq_length == 64


def test_pairs(tmp_path: Path) -> None:
    pipeline = make_pipeline(save_base("bert", tmp_path / "base"), pooling="mean", text_pair=True)
    pipeline.save(tmp_path / "model")
    export_classifier(tmp_path / "model", tmp_path / "export")
    model = sentence_transformers.SentenceTransformer(str(tmp_path / "export"), device="cpu")
    found = model.encode(list(zip(TEXTS, SECOND_TEXTS, strict=True)), show_progress_bar=False)
    np.testing.assert_allclose(found, our_logits(pipeline, TEXTS, SECOND_TEXTS), **OURS_TO_THEIRS)
