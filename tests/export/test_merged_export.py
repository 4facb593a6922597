"""``merged``: what transformers loads from the directory gives the classifier's logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from export_worlds import (
    OURS_TO_THEIRS,
    SECOND_TEXTS,
    TEXTS,
    Ends,
    make_pipeline,
    our_logits,
    save_base,
    their_logits,
)
from safetensors.torch import load_file

from qlassify import ClassifyPipeline
from qlassify.errors import ConfigError, ModelError
from qlassify.export import merged
from qlassify.export.exporting import export_classifier
from qlassify.quantization import quantize_model
from tiny_jobs import LABELS
from tiny_models import FAMILIES

pytestmark = [pytest.mark.parity, pytest.mark.usefixtures("one_thread")]


def saved(pipeline: ClassifyPipeline, directory: Path) -> Path:
    pipeline.save(directory)
    return directory


def load_whole(directory: Path) -> Any:
    """As a user loads it; every tensor must come from the files."""
    model, info = transformers.AutoModelForSequenceClassification.from_pretrained(directory, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    return model.eval()


EXPRESSIBLE = [(name, "last" if family.causal else "cls") for name, family in FAMILIES.items()] + [
    ("modernbert", "mean")
]


@pytest.mark.parametrize(("name", "pooling"), EXPRESSIBLE)
def test_transformers_own_class_gives_the_logits(name: str, pooling: str, tmp_path: Path) -> None:
    base = save_base(name, tmp_path / "base")
    pipeline = make_pipeline(base, pooling=pooling)
    before = {path.name: path.read_bytes() for path in saved(pipeline, tmp_path / "model").iterdir()}
    wanted = our_logits(pipeline)
    result = export_classifier(tmp_path / "model", tmp_path / "export")
    assert "AutoModelForSequenceClassification" in result.loads_with
    model = load_whole(tmp_path / "export")
    found = their_logits(model, tmp_path / "export")
    np.testing.assert_allclose(found, wanted, **OURS_TO_THEIRS)
    assert model.config.id2label == dict(enumerate(LABELS))
    assert model.config.label2id == {label: index for index, label in enumerate(LABELS)}
    assert model.config.problem_type == "single_label_classification"
    assert result.check is not None
    assert result.check.rows == 8
    assert result.check.metric is None
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == before


@pytest.mark.parametrize(
    ("name", "pooling", "head_bias", "reason"),
    [
        ("bert", "mean", "auto", "reads the first token"),
        ("deberta", "mean", "auto", "reads the first token"),
        ("llama", "mean", "auto", "reads the last token"),
        ("gpt2", "last", True, "has no bias"),
        ("modernbert", "last", "auto", "reads the first token or the average"),
    ],
)
def test_what_the_architectures_head_cannot_say_is_a_base_model_and_a_head(
    name: str, pooling: str, head_bias: bool | str, reason: str, tmp_path: Path
) -> None:
    base = save_base(name, tmp_path / "base")
    pipeline = make_pipeline(base, pooling=pooling, head_bias=head_bias)
    saved(pipeline, tmp_path / "model")
    result = export_classifier(tmp_path / "model", tmp_path / "export")
    assert reason in result.notes[0]
    assert reason in (tmp_path / "export" / "README.md").read_text()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "export")
    model = transformers.AutoModel.from_pretrained(tmp_path / "export").eval()
    head = load_file(tmp_path / "export" / "head.safetensors")
    batch = tokenizer(list(TEXTS), padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    # Text by text, without arithmetic on masks.
    vectors = [states[mask.bool()] for states, mask in zip(hidden, batch["attention_mask"], strict=True)]
    pooled = torch.stack([one.mean(dim=0) if pooling == "mean" else one[-1] for one in vectors])
    logits = torch.nn.functional.linear(pooled, head["weight"], head.get("bias"))
    np.testing.assert_allclose(logits.numpy(), our_logits(pipeline), **OURS_TO_THEIRS)


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_pairs(name: str, tmp_path: Path) -> None:
    ends = Ends() if name == "bert" else Ends(before=None, after="[SEP]", pad="[PAD]")
    pipeline = make_pipeline(
        save_base(name, tmp_path / "base", ends), pooling="cls" if name == "bert" else "last", text_pair=True
    )
    saved(pipeline, tmp_path / "model")
    export_classifier(tmp_path / "model", tmp_path / "export")
    wanted = our_logits(pipeline, TEXTS, SECOND_TEXTS)
    found = their_logits(load_whole(tmp_path / "export"), tmp_path / "export", TEXTS, SECOND_TEXTS)
    np.testing.assert_allclose(found, wanted, **OURS_TO_THEIRS)


@pytest.mark.parametrize(
    ("ends", "expected", "rows"),
    [
        (Ends(None, None, pad=None, eos="[SEP]"), "[SEP]", 200),
        (Ends(None, "[SEP]", pad="[SEP]", eos="[SEP]", bos="[CLS]"), "[CLS]", 200),
        (Ends("[CLS]", "[SEP]", pad="[SEP]", eos="[SEP]"), "<|qlassify-padding|>", 200),
        (Ends(None, "[SEP]", pad="[PAD]", eos="[SEP]"), "[PAD]", 200),
    ],
    ids=["no padding token", "padding is what texts end with", "no token is left", "its own will do"],
)
def test_the_last_token_is_found_whatever_padding_was(ends: Ends, expected: str, rows: int, tmp_path: Path) -> None:
    """With padding equal to the token that every text ends with, transformers would read the token before."""
    pipeline = make_pipeline(save_base("llama", tmp_path / "base", ends))
    saved(pipeline, tmp_path / "model")
    export_classifier(tmp_path / "model", tmp_path / "export")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "export")
    model = load_whole(tmp_path / "export")
    assert tokenizer.pad_token == expected
    assert model.config.pad_token_id == tokenizer.pad_token_id
    assert model.config.vocab_size == rows
    np.testing.assert_allclose(their_logits(model, tmp_path / "export"), our_logits(pipeline), **OURS_TO_THEIRS)


def test_a_padding_token_gets_a_row_where_the_table_is_full(tmp_path: Path) -> None:
    ends = Ends("[CLS]", "[SEP]", pad="[SEP]", eos="[SEP]")
    # Four special tokens and thirty words.
    pipeline = make_pipeline(save_base("llama", tmp_path / "base", ends, vocab_size=34))
    saved(pipeline, tmp_path / "model")
    result = export_classifier(tmp_path / "model", tmp_path / "export")
    model = load_whole(tmp_path / "export")
    assert model.config.vocab_size == 35
    assert model.get_input_embeddings().weight.shape[0] == 35
    assert any("padding token" in note for note in result.notes)
    np.testing.assert_allclose(their_logits(model, tmp_path / "export"), our_logits(pipeline), **OURS_TO_THEIRS)


@pytest.mark.parametrize("kind", ["dora", "ia3", "bitfit", "full"])
def test_every_method_that_merges(kind: str, tmp_path: Path) -> None:
    method = {"kind": kind} | ({"rank": 4, "alpha": 8.0} if kind == "dora" else {})
    pipeline = make_pipeline(save_base("bert", tmp_path / "base"), pooling="cls", method=method)
    saved(pipeline, tmp_path / "model")
    export_classifier(tmp_path / "model", tmp_path / "export")
    found = their_logits(load_whole(tmp_path / "export"), tmp_path / "export")
    np.testing.assert_allclose(found, our_logits(pipeline), **OURS_TO_THEIRS)


@pytest.mark.parametrize(
    ("name", "kind", "sentence"),
    [("bert", "adapter", "cannot be merged"), ("llama", "bitfit", "no place for")],
)
def test_a_method_that_has_no_place_in_the_weights_is_refused(
    name: str, kind: str, sentence: str, tmp_path: Path
) -> None:
    pipeline = make_pipeline(save_base(name, tmp_path / "base"), method={"kind": kind})
    saved(pipeline, tmp_path / "model")
    with pytest.raises(ModelError, match=sentence):
        export_classifier(tmp_path / "model", tmp_path / "export")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "model"]


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("targets", ["all-linear", "some"])
def test_a_low_bit_classifier_is_merged_into_its_own_numbers(name: str, targets: str, tmp_path: Path) -> None:
    some = {"bert": "query", "gpt2": "c_attn", "llama": "q_proj"}[name]
    method: dict[str, Any] = {"kind": "qlora", "rank": 4, "alpha": 8.0}
    method |= {} if targets == "all-linear" else {"target_modules": (some,)}
    pipeline = make_pipeline(save_base(name, tmp_path / "base"), method=method)
    assert pipeline.backbone.quant is not None
    saved(pipeline, tmp_path / "model")
    result = export_classifier(tmp_path / "model", tmp_path / "export")
    found = their_logits(load_whole(tmp_path / "export"), tmp_path / "export")
    np.testing.assert_allclose(found, our_logits(pipeline), **OURS_TO_THEIRS)
    assert any("numbers that the weights in NF4" in note for note in result.notes)


def test_merging_into_the_original_weights_is_another_classifier_and_says_how_far(tmp_path: Path) -> None:
    base = save_base("bert", tmp_path / "base")
    pipeline = make_pipeline(base, pooling="cls", method={"kind": "qlora", "rank": 4, "alpha": 8.0})
    saved(pipeline, tmp_path / "model")
    result = export_classifier(tmp_path / "model", tmp_path / "export", into="original")
    assert any(note.startswith("Warning: merged into the original weights") for note in result.notes)
    found, low_bit = their_logits(load_whole(tmp_path / "export"), tmp_path / "export"), our_logits(pipeline)
    assert result.check is not None
    # NF4 moves weights by several percent of their size; rounding moves logits by a millionth.
    assert result.check.max_abs_delta > 1e-2
    assert float(np.abs(found - low_bit).max()) > 1e-2
    # The peer: the same adapter on the base model as it is.
    plain = make_pipeline(base, pooling="cls")
    with torch.no_grad():
        for name, parameter in plain.trainable_parameters().items():
            parameter.copy_(pipeline.trainable_parameters()[name])
    np.testing.assert_allclose(found, our_logits(plain), **OURS_TO_THEIRS)


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_a_classifier_on_a_quantised_directory(name: str, tmp_path: Path) -> None:
    base = save_base(name, tmp_path / "base")
    quantize_model(str(base), tmp_path / "low")
    pipeline = make_pipeline(tmp_path / "low", pooling="last" if name == "gpt2" else "cls")
    saved(pipeline, tmp_path / "model")
    export_classifier(tmp_path / "model", tmp_path / "export")
    found = their_logits(load_whole(tmp_path / "export"), tmp_path / "export")
    np.testing.assert_allclose(found, our_logits(pipeline), **OURS_TO_THEIRS)
    with pytest.raises(ConfigError, match="the base model here is the quantised one"):
        export_classifier(tmp_path / "model", tmp_path / "original", into="original")
    result = export_classifier(tmp_path / "model", tmp_path / "original", into="original", base=str(base))
    assert result.check is not None
    # NF4 moves weights by several percent of their size; rounding moves logits by a millionth.
    assert result.check.max_abs_delta > 1e-2
    adapter = export_classifier(tmp_path / "model", tmp_path / "adapter", "peft")
    assert adapter.check is None
    assert "Not compared" in (tmp_path / "adapter" / "README.md").read_text()


def test_original_weights_are_refused_where_there_are_none(tmp_path: Path) -> None:
    saved(make_pipeline(save_base("bert", tmp_path / "base")), tmp_path / "model")
    with pytest.raises(ConfigError, match="not trained on low-bit"):
        export_classifier(tmp_path / "model", tmp_path / "export", into="original")


def test_bf16_weights_are_bf16(tmp_path: Path) -> None:
    pipeline = make_pipeline(save_base("llama", tmp_path / "base"))
    saved(pipeline, tmp_path / "model")
    export_classifier(tmp_path / "model", tmp_path / "export", precision="bf16")
    model = load_whole(tmp_path / "export")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    # bf16 has eight bits; over four layers of random weights the logits move by a few percent of the largest.
    wanted = our_logits(pipeline)
    assert np.abs(their_logits(model, tmp_path / "export") - wanted).max() < 0.1 * np.abs(wanted).max()


def test_several_labels(tmp_path: Path) -> None:
    base = save_base("bert", tmp_path / "base")
    pipeline = make_pipeline(base, pooling="cls")
    saved(pipeline, tmp_path / "model")
    record = json.loads((tmp_path / "model" / "classifier.json").read_text())
    del record["sha256"]  # it was edited on purpose
    (tmp_path / "model" / "classifier.json").write_text(json.dumps(record | {"multi_label": True}))
    export_classifier(tmp_path / "model", tmp_path / "export")
    assert load_whole(tmp_path / "export").config.problem_type == "multi_label_classification"


def test_an_export_that_gives_other_logits_does_not_appear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(make_pipeline(save_base("bert", tmp_path / "base"), pooling="cls"), tmp_path / "model")
    own = merged.load_runner

    def off_by_a_little(*arguments: Any) -> Any:
        library, runner = own(*arguments)
        return library, lambda batch: runner(batch) * np.float32(1.01)

    monkeypatch.setattr(merged, "load_runner", off_by_a_little)
    with pytest.raises(ModelError, match="other logits and was not kept"):
        export_classifier(tmp_path / "model", tmp_path / "export")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "model"]


def test_a_directory_that_is_not_empty_stays_as_it_was(tmp_path: Path) -> None:
    saved(make_pipeline(save_base("bert", tmp_path / "base")), tmp_path / "model")
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        export_classifier(tmp_path / "model", tmp_path / "export")
    assert [path.name for path in (tmp_path / "export").iterdir()] == ["mine.txt"]
    (tmp_path / "export" / "mine.txt").unlink()
    export_classifier(tmp_path / "model", tmp_path / "export")
    assert (tmp_path / "export" / "config.json").is_file()
