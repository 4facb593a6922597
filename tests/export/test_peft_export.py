"""``peft``: what PEFT loads on transformers' own class gives the classifier's logits; and back again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from export_worlds import (
    OURS_TO_THEIRS,
    TEXTS,
    make_pipeline,
    our_logits,
    save_base,
    their_logits,
)
from safetensors.torch import load_file

from qlassify import ClassifyPipeline
from qlassify.errors import ModelError
from qlassify.export.exporting import export_classifier
from tiny_jobs import LABELS

pytestmark = [
    pytest.mark.parity,
    pytest.mark.usefixtures("one_thread"),
    # PEFT 0.21 still asks a model of transformers 5 by an old name.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

METHODS: dict[str, dict[str, Any]] = {
    "lora": {"kind": "lora", "rank": 4, "alpha": 8.0},
    "rslora": {"kind": "lora", "rank": 4, "alpha": 8.0, "rslora": True},
    "dora": {"kind": "dora", "rank": 4, "alpha": 8.0},
    "ia3": {"kind": "ia3"},
    "prefix": {"kind": "prefix", "num_virtual_tokens": 5},
    "network": {"kind": "prefix", "num_virtual_tokens": 5, "reparametrize": True},
}


def peft_model(base: Path, adapter: Path, **settings: Any) -> Any:
    """As a user loads it."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=len(LABELS), dtype=torch.float32, **settings
    )
    return peft.PeftModel.from_pretrained(model, adapter).eval()


CASES = [(name, "cls", "lora") for name in ("bert", "distilbert", "roberta", "deberta")]
CASES += [("modernbert", pooling, "lora") for pooling in ("mean", "cls")]
CASES += [(name, "last", "lora") for name in ("gpt2", "llama", "gemma2", "phi3")]
# The methods differ in their tensors alone, which two architectures show.
CASES += [("roberta", "cls", "prefix"), ("gpt2", "last", "prefix"), ("gemma2", "last", "prefix")]
CASES += [(name, pooling, method) for name, pooling in (("bert", "cls"), ("llama", "last")) for method in METHODS]


@pytest.mark.parametrize(("name", "pooling", "method"), dict.fromkeys(CASES))
def test_peft_gives_the_logits(name: str, pooling: str, method: str, tmp_path: Path) -> None:
    # Out of a smaller sliding window PEFT's prefix moves, and ours is always seen.
    base = save_base(name, tmp_path / "base", **({"sliding_window": 64} if name == "gemma2" else {}))
    pipeline = make_pipeline(base, pooling=pooling, method=METHODS[method])
    pipeline.save(tmp_path / "model")
    result = export_classifier(tmp_path / "model", tmp_path / "export", "peft")
    assert "AutoModelForSequenceClassification" in result.loads_with
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "export")
    settings: dict[str, Any] = {"pad_token_id": tokenizer.pad_token_id} if pooling == "last" else {}
    if name == "modernbert":
        settings["classifier_pooling"] = pooling
    model = peft_model(base, tmp_path / "export", **settings)
    np.testing.assert_allclose(their_logits(model, tmp_path / "export"), our_logits(pipeline), **OURS_TO_THEIRS)


def test_what_the_architectures_head_cannot_say_is_an_adapter_of_the_base_model(tmp_path: Path) -> None:
    base = save_base("bert", tmp_path / "base")
    pipeline = make_pipeline(base, pooling="mean")
    pipeline.save(tmp_path / "model")
    result = export_classifier(tmp_path / "model", tmp_path / "export", "peft")
    assert "reads the first token" in result.notes[0]
    assert json.loads((tmp_path / "export" / "adapter_config.json").read_text())["task_type"] == "FEATURE_EXTRACTION"
    plain = transformers.AutoModel.from_pretrained(base, add_pooling_layer=False)
    model = peft.PeftModel.from_pretrained(plain, tmp_path / "export").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "export")
    batch = tokenizer(list(TEXTS), padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    vectors = [states[mask.bool()].mean(dim=0) for states, mask in zip(hidden, batch["attention_mask"], strict=True)]
    head = load_file(tmp_path / "export" / "head.safetensors")
    logits = torch.nn.functional.linear(torch.stack(vectors), head["weight"], head["bias"])
    np.testing.assert_allclose(logits.numpy(), our_logits(pipeline), **OURS_TO_THEIRS)


def test_an_adapter_of_low_bit_weights_says_so(tmp_path: Path) -> None:
    base = save_base("llama", tmp_path / "base")
    make_pipeline(base, method={"kind": "qlora", "rank": 4, "alpha": 8.0}).save(tmp_path / "model")
    result = export_classifier(tmp_path / "model", tmp_path / "export", "peft")
    assert any("on the unquantised ones it gives other logits" in note for note in result.notes)
    assert result.check is not None
    # NF4 moves weights by several percent of their size; rounding moves logits by a millionth.
    assert result.check.max_abs_delta > 1e-2


def test_a_method_that_peft_has_not_is_refused(tmp_path: Path) -> None:
    make_pipeline(save_base("bert", tmp_path / "base"), method={"kind": "bitfit"}).save(tmp_path / "model")
    with pytest.raises(ModelError, match="PEFT has no such method"):
        export_classifier(tmp_path / "model", tmp_path / "export", "peft")
    assert not (tmp_path / "export").exists()


@pytest.mark.parametrize("name", ["distilbert", "modernbert"])
def test_a_prefix_that_peft_cannot_load_is_refused(name: str, tmp_path: Path) -> None:
    make_pipeline(save_base(name, tmp_path / "base"), pooling="cls", method=METHODS["prefix"]).save(tmp_path / "model")
    with pytest.raises(ModelError, match="PEFT has no prefix for this architecture"):
        export_classifier(tmp_path / "model", tmp_path / "export", "peft")
    assert not (tmp_path / "export").exists()


def test_a_prefix_that_would_leave_the_window_is_not_kept(tmp_path: Path) -> None:
    """The texts are longer than a window of eight tokens."""
    base = save_base("gemma2", tmp_path / "base", sliding_window=8)
    make_pipeline(base, pooling="last", method=METHODS["prefix"]).save(tmp_path / "model")
    with pytest.raises(ModelError, match="gives other logits and was not kept"):
        export_classifier(tmp_path / "model", tmp_path / "export", "peft")
    assert not (tmp_path / "export").exists()


COMING_BACK = {**METHODS, "qlora": {"kind": "qlora", "rank": 4, "alpha": 8.0}}


@pytest.mark.parametrize("kind", ["lora", "qlora", "prefix", "network"])
@pytest.mark.parametrize(("name", "pooling"), [("bert", "cls"), ("bert", "mean"), ("llama", "last")])
def test_an_export_comes_back_as_it_was(name: str, pooling: str, kind: str, tmp_path: Path) -> None:
    method = COMING_BACK[kind]
    pipeline = make_pipeline(save_base(name, tmp_path / "base"), pooling=pooling, method=method)
    pipeline.save(tmp_path / "model")
    export_classifier(tmp_path / "model", tmp_path / "export", "peft")
    back = ClassifyPipeline.from_peft(tmp_path / "export", precision="fp32")
    assert back.labels.names == LABELS
    # The same tensors on the same weights in the same order: not one bit may differ.
    assert np.array_equal(our_logits(back), our_logits(pipeline))
