"""Several saved classifiers on one base: each predicts as it does alone, mixed in a batch or not."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qlassify import ClassifyPipeline, MultiClassifier, RunConfig
from qlassify.data.labels import LabelMap
from qlassify.errors import ConfigError, DataError, ModelError
from qlassify.methods.state import WEIGHTS_FILE
from qlassify.models.backbone import load_skeleton
from tiny_jobs import make_pair_rows, make_rows, save_tokenizer
from tiny_models import save_tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = [text for text, _ in make_rows(30, seed=4)]
KINDS: dict[str, dict[str, Any]] = {
    "intent": {"method": {"rank": 4, "alpha": 8.0}, "labels": ("beast", "fruit", "tool")},
    "topic": {"method": {"rank": 7, "alpha": 7.0, "rslora": True}, "labels": ("a", "b"), "pooling": "mean"},
    "tags": {
        "method": {"kind": "dora", "rank": 2, "alpha": 4.0},
        "labels": tuple("uvwxyz"),
        "multi_label": True,
        "pooling": "last",
        "max_length": 6,
        "threshold": 0.3,
    },
}


def save_classifier(base: Path, directory: Path, kind: Mapping[str, Any], *, seed: int = 1, **others: Any) -> Path:
    """A classifier whose adapter and head are random, as if trained."""
    model = {"base": str(base), "precision": "fp32", "device": "cpu", "pooling": kind.get("pooling", "cls")}
    run = RunConfig.parse(
        {
            "model": {**model, "max_length": kind.get("max_length", 32), **others.pop("model", {})},
            "method": kind["method"],
            "evaluation": {"threshold": kind.get("threshold", 0.5)},
            "seed": seed,
            **others,
        }
    )
    pipeline = ClassifyPipeline.from_pretrained(base, run)
    pipeline.text_pair = kind.get("pairs", False)
    pipeline.prepare(LabelMap(kind["labels"], kind.get("multi_label", False)))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in pipeline.trainable_parameters().values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    pipeline.save(directory)
    return directory


def save_all(base: Path, root: Path, **others: Any) -> dict[str, Path]:
    return {
        name: save_classifier(base, root / name, kind, seed=seed, **others)
        for seed, (name, kind) in enumerate(KINDS.items(), start=1)
    }


@pytest.fixture(scope="module")
def saved(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save_all(tiny_base, tmp_path_factory.mktemp("saved"))


@pytest.fixture(scope="module")
def several(saved: dict[str, Path]) -> MultiClassifier:
    return MultiClassifier.load(saved, device="cpu")


@pytest.fixture(scope="module")
def singles(saved: dict[str, Path]) -> dict[str, ClassifyPipeline]:
    return {name: ClassifyPipeline.load(path, device="cpu") for name, path in saved.items()}


def close(found: np.ndarray, wanted: np.ndarray) -> None:
    """Probabilities whose logits agree to 1e-5 of a logit of order one.

    The same products in fp32; in another batch their rows lie elsewhere and are summed in another order. A change of a
    logit changes a probability by at most as much, relative to itself.
    """
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=0)


@pytest.fixture(scope="module", params=["bert", "qwen2", "gpt2", "deberta", "qwen2 in nf4"])
def world(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[MultiClassifier, dict[str, ClassifyPipeline]]:
    """Three classifiers on one base, together and each alone: encoder, decoders, padded, low-bit."""
    family, _, quant = str(request.param).partition(" in ")
    root = tmp_path_factory.mktemp(family)
    save_tokenizer(save_tiny_model(family, root / "base"))
    directories = save_all(root / "base", root, **({"quant": {"kind": quant}} if quant else {}))
    alone = {name: ClassifyPipeline.load(path, device="cpu") for name, path in directories.items()}
    return MultiClassifier.load(directories, device="cpu"), alone


def test_one_adapter_is_bitwise_the_classifier_alone(
    world: tuple[MultiClassifier, dict[str, ClassifyPipeline]],
) -> None:
    several, alone = world
    for name, pipeline in (*alone.items(), *reversed(alone.items())):
        wanted = pipeline.predict_proba(TEXTS)
        assert np.array_equal(several.predict_proba(TEXTS, adapter=name), wanted)
        assert np.array_equal(np.stack(several.predict_proba(TEXTS, adapter=[name] * len(TEXTS))), wanted)
        assert several.predict(TEXTS, adapter=name) == pipeline.predict(TEXTS)
        assert several.labels(name) == pipeline.labels


def test_a_mixed_batch_is_each_classifier_alone(world: tuple[MultiClassifier, dict[str, ClassifyPipeline]]) -> None:
    several, alone = world
    names = [several.names[(5 * index + index // 7) % 3] for index in range(len(TEXTS))]
    wanted = {name: pipeline.predict_proba(TEXTS) for name, pipeline in alone.items()}
    for row, (name, found) in enumerate(zip(names, several.predict_proba(TEXTS, adapter=names), strict=True)):
        assert found.shape == (len(KINDS[name]["labels"]),)
        close(found, wanted[name][row])
    labels = {name: pipeline.predict(TEXTS) for name, pipeline in alone.items()}
    assert several.predict(TEXTS, adapter=names) == [labels[name][row] for row, name in enumerate(names)]
    # Each text under another's adapter would be far off.
    assert np.abs(wanted["intent"][:, :2] - wanted["topic"]).max() > 0.05


@settings(max_examples=15)
@given(data=st.data())
def test_any_mixture(several: MultiClassifier, singles: dict[str, ClassifyPipeline], data: st.DataObject) -> None:
    names = data.draw(st.lists(st.sampled_from(list(KINDS)), min_size=1, max_size=len(TEXTS)))
    texts = TEXTS[: len(names)]
    found = several.predict_proba(texts, adapter=names)
    for name in set(names):
        rows = [row for row, other in enumerate(names) if other == name]
        wanted = singles[name].predict_proba([texts[row] for row in rows])
        close(np.stack([found[row] for row in rows]), wanted)


def test_no_texts(several: MultiClassifier) -> None:
    assert several.predict_proba([], adapter="tags").shape == (0, 6)
    assert several.predict_proba([], adapter=[]) == []
    assert several.predict([], adapter="intent") == []


def test_batches_are_cut_by_tokens(
    several: MultiClassifier, singles: dict[str, ClassifyPipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of thirty texts, a budget of 40 tokens makes several batches, some mixed and some not."""
    monkeypatch.setattr("qlassify.evaluation.predict.default_token_budget", lambda device: 40)
    names = ["intent" if index % 3 else "topic" for index in range(len(TEXTS))]
    wanted = {name: singles[name].predict_proba(TEXTS) for name in ("intent", "topic")}
    for row, found in enumerate(several.predict_proba(TEXTS, adapter=names)):
        close(found, wanted[names[row]][row])


def test_pairs_and_single_texts_in_one_batch(tiny_base: Path, tmp_path: Path) -> None:
    pairs = {"method": {"rank": 3}, "labels": ("same", "other"), "pairs": True}
    directories = {
        "pair": save_classifier(tiny_base, tmp_path / "pair", pairs, seed=5),
        "single": save_classifier(tiny_base, tmp_path / "single", KINDS["intent"]),
    }
    several = MultiClassifier.load(directories, device="cpu")
    alone = {name: ClassifyPipeline.load(path, device="cpu") for name, path in directories.items()}
    first, second, _ = zip(*make_pair_rows(8, seed=6), strict=True)
    names = ["pair", "single"] * 4
    seconds = [text if name == "pair" else None for text, name in zip(second, names, strict=True)]
    found = several.predict_proba(list(first), seconds, adapter=names)
    wanted = {"pair": alone["pair"].predict_proba(first, second), "single": alone["single"].predict_proba(first)}
    for row, name in enumerate(names):
        close(found[row], wanted[name][row])
    assert np.array_equal(several.predict_proba(first, second, adapter="pair"), wanted["pair"])
    with pytest.raises(DataError, match="pair: the classifier reads text pairs"):
        several.predict(["a"], adapter="pair")
    with pytest.raises(DataError, match="single: the classifier reads single texts"):
        several.predict(["a"], ["b"], adapter="single")


def test_adding_and_removing(saved: dict[str, Path], singles: dict[str, ClassifyPipeline]) -> None:
    several = MultiClassifier.load({"intent": saved["intent"]}, device="cpu")
    before = {name: value.clone() for name, value in bare_state(several).items()}
    several.add("tags", saved["tags"])
    several.add("again", saved["intent"])
    assert several.names == ("intent", "tags", "again")
    wanted = singles["intent"].predict_proba(TEXTS)
    assert np.array_equal(several.predict_proba(TEXTS, adapter="again"), wanted)
    several.remove("intent")
    assert several.names == ("tags", "again")
    assert np.array_equal(several.predict_proba(TEXTS, adapter="again"), wanted)
    assert np.array_equal(several.predict_proba(TEXTS, adapter="tags"), singles["tags"].predict_proba(TEXTS))
    with pytest.raises(ConfigError, match="no adapter of this name"):
        several.predict(TEXTS, adapter="intent")
    after = bare_state(several)
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())


def bare_state(several: MultiClassifier) -> dict[str, torch.Tensor]:
    """The base model's tensors under their own names."""
    return {name.replace(".base.", "."): value for name, value in several.backbone.model.state_dict().items()}


def live_bytes() -> int:
    """Bytes of all storages that some tensor in this process lies in."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, torch.nn.Parameter) and thing.device.type == "cpu":
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def test_memory_is_one_base_and_each_classifier_s_own(saved: dict[str, Path]) -> None:
    MultiClassifier.load({"intent": saved["intent"]}, device="cpu")  # what is made once per process
    start = live_bytes()
    several = MultiClassifier.load({"intent": saved["intent"]}, device="cpu")
    base = live_bytes() - start - several.adapter_bytes("intent")
    stored = sum(value.numel() * value.element_size() for value in bare_state(several).values())
    # Beside its parameters, the model has index buffers that no state has: positions and segments of 64 tokens.
    assert stored <= base <= stored + 4096
    one = live_bytes()
    for name in ("topic", "tags"):
        several.add(name, saved[name])
    assert live_bytes() - one == several.adapter_bytes("topic") + several.adapter_bytes("tags")
    several.remove("topic")
    assert live_bytes() - one == several.adapter_bytes("tags")
    assert several.adapter_bytes("intent") < stored / 5


def test_equal_tokenisers_are_shared(several: MultiClassifier, saved: dict[str, Path]) -> None:
    assert several.member("intent").encoder is several.member("topic").encoder
    assert several.member("tags").encoder is not several.member("topic").encoder


def test_a_run_folder_will_do(saved: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "model").symlink_to(saved["topic"])
    assert MultiClassifier.load({"topic": tmp_path}, device="cpu").names == ("topic",)


def test_classifiers_of_different_bases(
    saved: dict[str, Path], other_base: Path, tiny_base: Path, tmp_path: Path
) -> None:
    several = MultiClassifier.load({"intent": saved["intent"]}, device="cpu")
    stranger = save_classifier(other_base, tmp_path / "stranger", KINDS["intent"])
    with pytest.raises(ModelError, match="another base model"):
        several.add("stranger", stranger)
    low_bit = save_classifier(tiny_base, tmp_path / "low", KINDS["intent"], quant={"kind": "nf4"})
    with pytest.raises(ModelError, match=r"another format.*NF4.*unquantised"):
        several.add("low", low_bit)
    half = save_classifier(tiny_base, tmp_path / "half", KINDS["intent"], model={"precision": "bf16"})
    with (
        pytest.raises(ModelError, match="another precision")
        if several_precision(half) == "bf16"
        else contextlib.nullcontext()
    ):
        several.add("half", half)
    both = MultiClassifier.load({"intent": saved["intent"], "half": half}, device="cpu", precision="fp32")
    wanted = ClassifyPipeline.load(half, device="cpu", precision="fp32").predict_proba(TEXTS)
    assert np.array_equal(both.predict_proba(TEXTS, adapter="half"), wanted)


def several_precision(directory: Path) -> str:
    """The type that a classifier computes in on this machine."""
    return ClassifyPipeline.load(directory, device="cpu").placement.precision


def test_what_is_refused(several: MultiClassifier, saved: dict[str, Path], tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no classifier is named"):
        MultiClassifier.load({})
    with pytest.raises(ModelError, match="no saved classifier here"):
        MultiClassifier.load({"x": tmp_path})
    with pytest.raises(ConfigError, match="there already"):
        several.add("intent", saved["intent"])
    with pytest.raises(ConfigError, match="Did you mean intent"):
        several.predict(TEXTS, adapter="intend")
    with pytest.raises(ConfigError, match="no adapter of this name"):
        several.predict(TEXTS[:2], adapter=["intent", "x"])
    with pytest.raises(ConfigError, match="no adapter of this name"):
        several.remove("x")
    with pytest.raises(DataError, match="a name for each text"):
        several.predict(TEXTS, adapter=["intent"])
    with pytest.raises(DataError, match="list of texts"):
        several.predict("text", adapter="intent")
    with pytest.raises(DataError, match="one second text, or None"):
        several.predict(TEXTS, ["b"], adapter="intent")
    scaled = save_classifier(tiny_base, tmp_path / "ia3", {"method": {"kind": "ia3"}, "labels": ("a", "b")})
    with pytest.raises(ConfigError, match=r"cannot share a model.*IA3"):
        several.add("ia3", scaled)
    broken = save_classifier(tiny_base, tmp_path / "broken", KINDS["topic"])
    (broken / WEIGHTS_FILE).unlink()
    with pytest.raises(ModelError, match="a file of the saved classifier cannot be read"):
        several.add("broken", broken)
    assert several.names == tuple(KINDS)
    assert len(several.predict(TEXTS, adapter="topic")) == len(TEXTS)


def test_a_base_that_has_moved(saved: dict[str, Path], tiny_base: Path, other_base: Path) -> None:
    several = MultiClassifier.load(saved, device="cpu", base=str(tiny_base))
    assert several.source.directory == tiny_base
    with pytest.raises(ModelError, match="not the one that the classifier was trained on"):
        MultiClassifier.load(saved, device="cpu", base=str(other_base))


def test_the_base_is_the_bare_architecture_again(saved: dict[str, Path], tiny_base: Path) -> None:
    several = MultiClassifier.load(saved, device="cpu")
    for name in several.names:
        several.remove(name)
    wanted = [name for name, _ in load_skeleton(tiny_base).named_modules()]
    assert [name for name, _ in several.backbone.model.named_modules()] == wanted


def test_texts_are_not_strings(several: MultiClassifier) -> None:
    """A tuple of texts and a tuple of names are as good as lists."""
    texts: Sequence[str] = tuple(TEXTS[:2])
    assert several.predict(texts, adapter=("intent", "topic")) == several.predict(
        TEXTS[:2], adapter=["intent", "topic"]
    )


def test_bf16(tiny_base: Path, tmp_path: Path) -> None:
    directories = save_all(tiny_base, tmp_path)
    several = MultiClassifier.load(directories, device="cpu", precision="bf16")
    names = [several.names[index % 3] for index in range(len(TEXTS))]
    mixed = several.predict_proba(TEXTS, adapter=names)
    for name, path in directories.items():
        wanted = ClassifyPipeline.load(path, device="cpu", precision="bf16").predict_proba(TEXTS)
        assert np.array_equal(several.predict_proba(TEXTS, adapter=name), wanted)
        for row in range(several.names.index(name), len(TEXTS), 3):
            # Two hundredths of a logit: a few roundings to eight bits on vectors of order one.
            np.testing.assert_allclose(mixed[row], wanted[row], rtol=0.05, atol=0)


def test_adding_while_others_predict(saved: dict[str, Path], singles: dict[str, ClassifyPipeline]) -> None:
    several = MultiClassifier.load({"intent": saved["intent"]}, device="cpu")
    wanted = singles["intent"].predict_proba(TEXTS)
    found: list[np.ndarray] = []
    threads = [
        threading.Thread(target=lambda: found.extend(several.predict_proba(TEXTS, adapter="intent") for _ in range(10)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for _ in range(4):
        several.add("topic", saved["topic"])
        several.remove("topic")
    for thread in threads:
        thread.join()
    assert len(found) == 20
    assert all(np.array_equal(probabilities, wanted) for probabilities in found)
