"""Classifiers that PEFT itself trained, or would have: the same logits here, or a sentence why not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from export_worlds import DECODER, OURS_TO_THEIRS, TEXTS, make_pipeline, our_logits, save_base, save_words, their_logits

from qlassify import ClassifyPipeline
from qlassify.data.samples import Sample
from qlassify.errors import ConfigError, ModelError
from qlassify.models.backbone import load_backbone

pytestmark = [
    pytest.mark.parity,
    pytest.mark.usefixtures("one_thread"),
    # PEFT 0.21 still asks a model of transformers 5 by an old name.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

NAMES = {"llama": ("q_proj", "down_proj"), "gpt2": ("c_attn",)}
CONFIGS: dict[str, Any] = {
    "lora": lambda names, **more: peft.LoraConfig(r=4, lora_alpha=6, target_modules=names, **more),
    "rslora": lambda names, **more: peft.LoraConfig(r=4, lora_alpha=6, target_modules=names, use_rslora=True, **more),
    "dora": lambda names, **more: peft.LoraConfig(r=4, lora_alpha=6, target_modules=names, use_dora=True, **more),
    "ia3": lambda names, **more: peft.IA3Config(
        target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], **more
    ),
    "prefix": lambda names, **more: peft.PrefixTuningConfig(num_virtual_tokens=4, **more),
}


def save_peft(base: Path, directory: Path, config: Any) -> Any:
    """An adapter as PEFT saves it, every trained tensor random; the peer model with it."""
    torch.manual_seed(5)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=3, pad_token_id=0)
    model = peft.get_peft_model(model, config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    model.save_pretrained(directory)
    return model


def save_decoder(name: str, directory: Path, **changes: Any) -> Path:
    """A base model whose padding token is one that no text has."""
    save_base(name, directory, **changes)
    save_words(directory, type(DECODER)(before=None, after=None, pad="[PAD]", eos="[SEP]"))
    return directory


@pytest.mark.parametrize(
    ("name", "method"), [("llama", method) for method in CONFIGS] + [("gpt2", "lora"), ("gpt2", "rslora")]
)
def test_causal_models_give_pefts_logits(name: str, method: str, tmp_path: Path) -> None:
    base = save_decoder(name, tmp_path / "base")
    more = {"fan_in_fan_out": True} if name == "gpt2" else {}
    peer = save_peft(base, tmp_path / "adapter", CONFIGS[method](list(NAMES[name]), task_type="SEQ_CLS", **more))
    pipeline = ClassifyPipeline.from_peft(tmp_path / "adapter", labels=("a", "b", "c"), precision="fp32")
    np.testing.assert_allclose(our_logits(pipeline), their_logits(peer, base), **OURS_TO_THEIRS)
    assert pipeline.labels.names == ("a", "b", "c")
    assert pipeline.predict(list(TEXTS)) == ["abc"[index] for index in their_logits(peer, base).argmax(axis=1)]
    pipeline.save(tmp_path / "model")
    again = ClassifyPipeline.load(tmp_path / "model", precision="fp32")
    assert np.array_equal(our_logits(again), our_logits(pipeline))


def test_a_prefix_leaves_fewer_positions_for_texts(tmp_path: Path) -> None:
    base = save_decoder("gpt2", tmp_path / "base", n_positions=64)
    save_peft(base, tmp_path / "adapter", CONFIGS["prefix"]([], task_type="SEQ_CLS"))
    pipeline = ClassifyPipeline.from_peft(tmp_path / "adapter", precision="fp32")
    assert pipeline.backbone.max_positions is not None
    assert pipeline.encoder.max_length == pipeline.backbone.max_positions - 4
    assert len(pipeline.predict(["dog " * 2 * pipeline.backbone.max_positions])) == 1


def test_training_goes_on_from_where_peft_left_it(tmp_path: Path) -> None:
    base = save_decoder("llama", tmp_path / "base")
    save_peft(base, tmp_path / "adapter", CONFIGS["lora"](["q_proj"], task_type="SEQ_CLS"))
    pipeline = ClassifyPipeline.from_peft(tmp_path / "adapter", precision="fp32")
    samples = [Sample(text, index % 3) for index, text in enumerate(TEXTS)]
    before = pipeline.forward_only(samples).avg_loss
    first = pipeline.train_batch(samples).avg_loss
    # The same texts in the same batch: one loss, computed with and without a graph.
    assert first == pytest.approx(before, rel=1e-5)
    for _ in range(20):
        last = pipeline.train_batch(samples).avg_loss
    assert last < 0.9 * first


def test_only_some_layers(tmp_path: Path) -> None:
    """Which modules are adapted is in the tensors; ``target_modules`` alone would name all four layers."""
    base = save_decoder("llama", tmp_path / "base")
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], layers_to_transform=[1, 3], task_type="SEQ_CLS")
    peer = save_peft(base, tmp_path / "adapter", config)
    pipeline = ClassifyPipeline.from_peft(tmp_path / "adapter", precision="fp32")
    assert sorted(pipeline.trainable.attachment.layers) == [f"layers.{index}.self_attn.q_proj" for index in (1, 3)]
    assert pipeline.labels.names == ("0", "1", "2")
    np.testing.assert_allclose(our_logits(pipeline), their_logits(peer, base), **OURS_TO_THEIRS)


@pytest.mark.parametrize("name", ["bert", "distilbert", "roberta", "modernbert", "deberta"])
def test_an_encoders_own_head_is_refused_with_what_can_be_done(name: str, tmp_path: Path) -> None:
    base = save_base(name, tmp_path / "base")
    names = {"distilbert": ["q_lin"], "modernbert": ["Wqkv"], "deberta": ["query_proj"]}.get(name, ["query"])
    config = peft.LoraConfig(r=4, target_modules=names, task_type="SEQ_CLS")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    peer = peft.get_peft_model(model, config).eval()
    with torch.no_grad():
        for key, parameter in peer.named_parameters():
            if "lora_B" in key:
                parameter.add_(0.1)
    peer.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelError, match="is not a linear layer") as caught:
        ClassifyPipeline.from_peft(tmp_path / "adapter")
    assert caught.value.do is not None
    # What it says to do can be done, and the merged base has the adapter in it.
    prefix = model.base_model_prefix
    assert f"merge_and_unload), save the model inside (model.{prefix}.save_pretrained)" in caught.value.do
    batch = torch.arange(5, 14)[None]
    with torch.no_grad():
        wanted = peer(input_ids=batch, output_hidden_states=True).hidden_states[-1]
    inside = getattr(peer.merge_and_unload(), prefix)
    inside.save_pretrained(tmp_path / "merged")
    backbone = load_backbone(tmp_path / "merged").model
    backbone.set_attn_implementation("eager")
    with torch.no_grad():
        found = backbone(input_ids=batch).last_hidden_state
    torch.testing.assert_close(found, wanted, **OURS_TO_THEIRS)


def test_load_points_to_from_peft(tmp_path: Path) -> None:
    base = save_decoder("llama", tmp_path / "base")
    save_peft(base, tmp_path / "adapter", CONFIGS["lora"](["q_proj"], task_type="SEQ_CLS"))
    with pytest.raises(ModelError, match="from_peft"):
        ClassifyPipeline.load(tmp_path / "adapter")


def test_a_folder_of_ours_points_to_load(tmp_path: Path) -> None:
    make_pipeline(save_base("llama", tmp_path / "base")).save(tmp_path / "model")
    with pytest.raises(ModelError, match=r"ClassifyPipeline\.load"):
        ClassifyPipeline.from_peft(tmp_path / "model")


def test_another_base_model_is_refused_with_both_named(tmp_path: Path) -> None:
    base = save_decoder("llama", tmp_path / "base")
    other = save_decoder("llama", tmp_path / "other", seed=1)
    save_peft(base, tmp_path / "adapter", CONFIGS["lora"](["q_proj"], task_type="SEQ_CLS"))
    with pytest.raises(ModelError, match="not the one that the adapter was trained on") as caught:
        ClassifyPipeline.from_peft(tmp_path / "adapter", base=other)
    assert str(other) in str(caught.value)
    assert str(base) in str(caught.value)
    # The same weights somewhere else are the same model.
    shutil.move(base, tmp_path / "moved")
    pipeline = ClassifyPipeline.from_peft(tmp_path / "adapter", base=tmp_path / "moved")
    assert pipeline.model_dir() == (tmp_path / "moved").resolve()


def test_our_own_record_tells_another_base_even_when_the_first_is_gone(tmp_path: Path) -> None:
    from qlassify.export.exporting import export_classifier

    base = save_base("llama", tmp_path / "base")
    make_pipeline(base).save(tmp_path / "model")
    export_classifier(tmp_path / "model", tmp_path / "export", "peft")
    other = save_base("llama", tmp_path / "other", seed=1)
    shutil.rmtree(base)
    with pytest.raises(ModelError, match="not the one that the adapter was trained on"):
        ClassifyPipeline.from_peft(tmp_path / "export", base=other)


def test_an_adapter_of_another_architecture_is_one_sentence(tmp_path: Path) -> None:
    base = save_decoder("llama", tmp_path / "base")
    save_peft(base, tmp_path / "adapter", CONFIGS["lora"](["q_proj"], task_type="SEQ_CLS"))
    shutil.rmtree(base)
    other = save_decoder("phi3", tmp_path / "other")
    with pytest.raises(ModelError, match="another architecture"):
        ClassifyPipeline.from_peft(tmp_path / "adapter", base=other)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [({"rank_pattern": {"q_proj": 2}}, "rank or alpha per layer"), ({"peft_type": "LOHA"}, "not supported")],
)
def test_settings_that_would_be_misread_are_refused(change: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    base = save_decoder("llama", tmp_path / "base")
    save_peft(base, tmp_path / "adapter", CONFIGS["lora"](["q_proj"], task_type="SEQ_CLS"))
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelError, match=sentence):
        ClassifyPipeline.from_peft(tmp_path / "adapter")


def test_a_trained_bias_is_not_lost_in_silence(tmp_path: Path) -> None:
    """``bias="all"`` trains tensors of the base model, which LoRA here has no place for."""
    base = save_decoder("qwen2", tmp_path / "base")
    save_peft(
        base, tmp_path / "adapter", peft.LoraConfig(r=4, target_modules=["q_proj"], bias="all", task_type="SEQ_CLS")
    )
    with pytest.raises(ModelError, match="unknown kind"):
        ClassifyPipeline.from_peft(tmp_path / "adapter")


@pytest.mark.parametrize("labels", [("a", "b"), ("a", "b", "b")])
def test_labels_are_as_many_as_the_head_has(labels: tuple[str, ...], tmp_path: Path) -> None:
    base = save_decoder("llama", tmp_path / "base")
    save_peft(base, tmp_path / "adapter", CONFIGS["lora"](["q_proj"], task_type="SEQ_CLS"))
    with pytest.raises(ConfigError, match="labels"):
        ClassifyPipeline.from_peft(tmp_path / "adapter", labels=labels)
