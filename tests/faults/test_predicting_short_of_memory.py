"""Memory that runs out while predicting: the command says so in a sentence, and several classifiers go on like one."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from fault_tally import Tally
from limited_command import make_world, run_command

from qlassify import MultiClassifier, job
from qlassify.cli.printing import warnings_told
from qlassify.data.packing import PackedBatch
from qlassify.errors import MemoryPlanError, QlassifyWarning
from tiny_jobs import make_rows

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = [text for text, _ in make_rows(30, seed=4, longest=12)]
NAMES = ["a" if row % 3 else "b" for row in range(len(TEXTS))]
SHORT = """
import torch
from qlassify.models.classifier import Classifier
original = Classifier.forward
def forward(classifier, batch):
    if batch.num_tokens > 48:
        raise torch.OutOfMemoryError("CUDA out of memory")
    return original(classifier, batch)
Classifier.forward = forward
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained classifier."""
    folder = tmp_path_factory.mktemp("world")
    list(job.train(make_world(folder).settings, folder / "run"))
    return folder / "run"


def test_several_classifiers_go_on_in_smaller_pieces(run: Path, monkeypatch: pytest.MonkeyPatch, tally: Tally) -> None:
    several = MultiClassifier.load({"a": run, "b": run}, device="cpu")
    wanted = several.predict_proba(TEXTS, adapter=NAMES)
    original, most, failures = several._logits, [48], [0]

    def short(batch: PackedBatch, segments: object, names: object) -> list[torch.Tensor]:
        if batch.num_tokens > most[0]:
            failures[0] += 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(batch, segments, names)  # type: ignore[arg-type]

    monkeypatch.setattr(several, "_logits", short)
    with pytest.warns(QlassifyWarning, match=r"memory ran out at \d+ tokens at once"):
        found = several.predict_proba(TEXTS, adapter=NAMES)
    # fp32, and matrix products of other shapes: a few units in the last place.
    np.testing.assert_allclose(np.stack(found), np.stack(wanted), rtol=1e-4, atol=0)
    failed = failures[0]
    several.predict_proba(TEXTS, adapter=NAMES)
    assert failures[0] == failed > 0, "what the first call found out holds for the next"
    most[0] = 0
    several.backbone.fitting_tokens = None  # as in a new process
    with pytest.warns(QlassifyWarning), pytest.raises(MemoryPlanError, match="one text alone"):
        several.predict_proba(TEXTS, adapter=NAMES)
    tally("faults injected", 2)


@pytest.mark.slow
def test_the_command_says_so_in_a_sentence(run: Path, tmp_path: Path, tally: Tally) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(TEXTS))
    ended = run_command("predict", run, texts, before=SHORT)
    assert ended.code == 0
    assert len(ended.out.splitlines()) == len(TEXTS)
    assert ended.sentences != []
    assert all("memory ran out at " in one and "predicting goes on with" in one for one in ended.sentences)
    assert "Warning" not in ended.err
    assert ".py:" not in ended.err
    tally("faults injected", 1)


def test_other_warnings_keep_their_form(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warnings, "showwarning", lambda *told, **_: print("former:", told[0], file=sys.stderr))
    with warnings_told():
        warnings.simplefilter("always")
        warnings.warn("ours", QlassifyWarning, stacklevel=1)
        warnings.warn("somebody's", UserWarning, stacklevel=1)
    assert capsys.readouterr().err == "qlassify: ours\nformer: somebody's\n"
