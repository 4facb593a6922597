"""The public names are a promise: the list is pinned here, and every name leads somewhere."""

from __future__ import annotations

import importlib

import pytest

import qlassify

PUBLIC = [
    "BatchResult",
    "ClassifyConfig",
    "ClassifyPipeline",
    "Corpus",
    "DataStats",
    "FineTuneMethod",
    "HyperparamDiagnostic",
    "HyperparamDiagnostics",
    "LoraConfig",
    "MultiClassifier",
    "QLoraLayer",
    "QLoraLinear",
    "QlassifyError",
    "QuantConfig",
    "ReadOptions",
    "RunConfig",
    "__version__",
    "read_corpus",
]

SEED_METHODS = [
    "accumulate_gradients",
    "accumulate_gradients_tokenized",
    "apply_accumulated_gradients",
    "apply_lora_gradients",
    "collect_lora_gradients",
    "forward_only",
    "forward_only_tokenized",
    "forward_only_with_probs",
    "from_pretrained",
    "gpu_name",
    "gpu_total_memory",
    "is_cuda",
    "is_gpu_training",
    "load_corpus",
    "load_multi_label_corpus",
    "merge_adapters",
    "model_dir",
    "multi_label_train_step",
    "num_trainable_parameters",
    "optimizer_lr",
    "pre_tokenize",
    "set_model_path",
    "set_optimizer_lr",
    "summary",
    "tokenize",
    "train_batch",
    "train_batch_tokenized",
    "train_step",
    "trainable_parameters",
]


def test_the_list_is_pinned() -> None:
    assert sorted(qlassify.__all__) == PUBLIC
    assert dir(qlassify) == sorted(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_name_resolves_to_what_its_home_has(name: str) -> None:
    value = getattr(qlassify, name)
    if name == "__version__":
        assert value == importlib.import_module("qlassify.version").__version__
    else:
        assert value.__name__ == name
        assert value.__module__.startswith("qlassify.")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'ClassifyPipelin'"):
        qlassify.ClassifyPipelin  # noqa: B018 - the access is the test


@pytest.mark.parametrize("name", SEED_METHODS)
def test_the_pipeline_keeps_the_original_method_names(name: str) -> None:
    assert callable(getattr(qlassify.ClassifyPipeline, name))
