"""The programs that an export shows: each runs as it stands and prints what the classifier predicts."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import pytest
from export_worlds import Ends, make_pipeline, save_base

from qlassify import ClassifyPipeline
from qlassify.export.exporting import ExportFormat, export_classifier

pytestmark = [
    pytest.mark.parity,
    pytest.mark.usefixtures("one_thread"),
    # PEFT 0.21 still asks a model of transformers 5 by an old name.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]


def printed(program: str) -> list[str]:
    """The lines that a program prints."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile(program, "snippet", "exec"), {})
    return output.getvalue().strip().splitlines()


@pytest.mark.parametrize("multi_label", [False, True], ids=["one label", "several labels"])
@pytest.mark.parametrize("text_pair", [False, True], ids=["texts", "pairs"])
@pytest.mark.parametrize(
    ("name", "pooling", "format"),
    [
        ("bert", "cls", "merged"),
        ("bert", "mean", "merged"),
        ("llama", "last", "merged"),
        ("bert", "cls", "peft"),
        ("bert", "mean", "peft"),
        ("modernbert", "mean", "peft"),
        ("llama", "last", "peft"),
        pytest.param("distilbert", "cls", "onnx", marks=pytest.mark.slow),
    ],
)
def test_the_program_prints_what_the_classifier_predicts(
    name: str, pooling: str, format: ExportFormat, text_pair: bool, multi_label: bool, tmp_path: Path
) -> None:
    ends = Ends(before=None, after="[SEP]", pad="[PAD]") if pooling == "last" else None
    pipeline = make_pipeline(save_base(name, tmp_path / "base", ends), pooling=pooling, text_pair=text_pair)
    pipeline.save(tmp_path / "model")
    if multi_label:
        path = tmp_path / "model" / "classifier.json"
        record = json.loads(path.read_text())
        del record["sha256"]  # it was edited on purpose
        path.write_text(json.dumps(record | {"multi_label": True, "threshold": 0.3}))
    result = export_classifier(tmp_path / "model", tmp_path / "export", format)
    assert result.snippet in (tmp_path / "export" / "README.md").read_text()
    loaded = ClassifyPipeline.load(tmp_path / "model", precision="fp32")
    texts, pairs = (["some text"], ["another"]) if text_pair else (["some text", "another, longer text"], None)
    wanted = [label if isinstance(label, str) else list(label) for label in loaded.predict(texts, pairs)]
    lines = printed(result.snippet)
    # A mean-pooled classifier has a second program, for sentence-transformers.
    assert lines == [str(wanted)] * (2 if format == "merged" and pooling == "mean" else 1)
