"""``onnx``: onnxruntime gives the classifier's logits for padded batches of any size and length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import transformers
from export_worlds import OURS_TO_THEIRS, SECOND_TEXTS, TEXTS, WORDS, make_pipeline, our_logits, save_base

from qlassify.errors import ConfigError
from qlassify.export import onnx_graph
from qlassify.export.exporting import export_classifier
from tiny_models import FAMILIES

pytestmark = [pytest.mark.parity, pytest.mark.usefixtures("one_thread")]

QUICK = ("bert", "llama")
"""An encoder with segments and a decoder; tracing takes ten seconds, so the others are marked slow."""


def run_graph(directory: Path, texts: list[str], pairs: list[str] | None = None) -> npt.NDArray[np.float32]:
    """Logits of texts in one padded batch, as a user gets them."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    session = onnxruntime.InferenceSession(str(directory / "model.onnx"), providers=["CPUExecutionProvider"])
    batch = tokenizer(texts, pairs, padding=True, truncation=True, return_tensors="np")
    logits: npt.NDArray[np.float32] = session.run(None, {one.name: batch[one.name] for one in session.get_inputs()})[0]
    return logits


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_onnxruntime_gives_the_logits(name: str, tmp_path: Path) -> None:
    pooling = "mean" if name in ("bert", "deberta") else "auto"
    pipeline = make_pipeline(save_base(name, tmp_path / "base"), pooling=pooling)
    pipeline.save(tmp_path / "model")
    result = export_classifier(tmp_path / "model", tmp_path / "export", "onnx")
    assert result.check is not None
    assert result.check.library == "onnxruntime"
    onnx.checker.check_model(str(tmp_path / "export" / "model.onnx"))
    long = " ".join(WORDS[(5 * index) % len(WORDS)] for index in range(40))
    for texts in (list(TEXTS), [long, TEXTS[1]], [TEXTS[1]], [TEXTS[2]], [long] * 9):
        np.testing.assert_allclose(run_graph(tmp_path / "export", texts), our_logits(pipeline, texts), **OURS_TO_THEIRS)


@pytest.mark.slow
def test_pairs_of_a_low_bit_classifier(tmp_path: Path) -> None:
    base = save_base("bert", tmp_path / "base")
    method: dict[str, Any] = {"kind": "qlora", "rank": 4, "alpha": 8.0, "target_modules": ("query",)}
    pipeline = make_pipeline(base, pooling="cls", method=method, text_pair=True)
    pipeline.save(tmp_path / "model")
    export_classifier(tmp_path / "model", tmp_path / "export", "onnx")
    found = run_graph(tmp_path / "export", list(TEXTS), list(SECOND_TEXTS))
    np.testing.assert_allclose(found, our_logits(pipeline, TEXTS, SECOND_TEXTS), **OURS_TO_THEIRS)


def test_missing_packages_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_pipeline(save_base("bert", tmp_path / "base")).save(tmp_path / "model")
    monkeypatch.setattr(onnx_graph.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"qlassify\[onnx\]"):
        export_classifier(tmp_path / "model", tmp_path / "export", "onnx")
    assert not (tmp_path / "export").exists()
