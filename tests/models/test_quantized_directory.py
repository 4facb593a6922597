"""A quantised model as a directory: the same codes without quantising, what it says of itself, and what damages it."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from qlassify import ClassifyConfig, ClassifyPipeline
from qlassify.config.quant import QuantConfig
from qlassify.config.run import RunConfig
from qlassify.errors import ConfigError, ModelError
from qlassify.evaluation.predict import predict_logits
from qlassify.methods.inject import linear_layers
from qlassify.models import low_bit
from qlassify.models.backbone import load_backbone
from qlassify.models.quantized import KEY, quantized_base
from qlassify.models.source import resolve
from qlassify.quant.linear import low_bit_layers
from qlassify.quantization import quantize_model, unshared
from reference.quant import same_bits
from tiny_jobs import make_rows, save_tiny_base, write_table
from tiny_models import FAMILIES, save_tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")

QUANT = QuantConfig(group_size=48)
FORMATS = {
    "nf4": QuantConfig(),
    "nf4 single": QuantConfig(double=False, group_size=33),
    "fp4": QuantConfig(kind="fp4"),
    "int4": QuantConfig(kind="int4", group_size=50),
    "int4 with zero points": QuantConfig(kind="int4", zero_point=True),
    "int8": QuantConfig(kind="int8"),
    "int8 with zero points": QuantConfig(kind="int8", zero_point=True),
}
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with its tokeniser."""
    return save_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def quantised(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It, quantised; tests only read it."""
    directory = tmp_path_factory.mktemp("quantised") / "bert"
    quantize_model(str(base), directory, QUANT)
    return directory


@pytest.fixture
def spoilt(quantised: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(quantised, tmp_path / "spoilt"))


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert list(found) == list(wanted)
    for key, tensor in wanted.items():
        assert same_bits(found[key].detach(), tensor.detach()), key


def header_of(directory: Path) -> tuple[dict[str, Any], bytes]:
    """The header as it is parsed, and the bytes after it."""
    content = (directory / WEIGHTS).read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def edit_record(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change what the file says of its low-bit layers, and leave its tensors as they are."""
    header, body = header_of(directory)
    record = json.loads(header["__metadata__"][KEY])
    change(record)
    header["__metadata__"][KEY] = json.dumps(record)
    text = json.dumps(header).encode()
    (directory / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + body)


# The same model


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_a_directory_holds_what_quantising_gives(
    name: str, dtype: torch.dtype, tiny_directories: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every tensor of the model, bit for bit, and nothing is quantised on the way in."""
    result = quantize_model(str(tiny_directories[name]), tmp_path / "q", QUANT)
    wanted = load_backbone(tiny_directories[name], dtype, quant=QUANT)

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("nothing is left to quantise")

    monkeypatch.setattr(low_bit, "quantize", forbidden)
    found = load_backbone(tmp_path / "q", dtype)
    assert_same(dict(found.model.state_dict()), dict(wanted.model.state_dict()))
    assert_same(dict(found.model.named_buffers()), dict(wanted.model.named_buffers()))
    same = ("num_parameters", "vocab_size", "causal", "packed", "quant", "quant_error", "dtype", "max_positions")
    assert {key: getattr(found, key) for key in same} == {key: getattr(wanted, key) for key in same}
    assert not any(parameter.requires_grad for parameter in found.parameters())
    layers = low_bit_layers(found.model)
    counts = [layer.out_features * layer.in_features for layer in layers.values()]
    assert (result.layers, result.num_low_bit) == (len(layers), sum(counts))
    assert result.num_low_bit + result.num_other == found.num_parameters
    assert result.relative_error == wanted.quant_error
    assert result.source_bytes == (tiny_directories[name] / WEIGHTS).stat().st_size
    stored = {id(tensor): tensor.nbytes for tensor in load_file(str(tmp_path / "q" / WEIGHTS)).values()}
    assert result.bytes == sum(stored.values())


@pytest.mark.parametrize("quant", FORMATS.values(), ids=FORMATS.keys())
def test_every_format(quant: QuantConfig, base: Path, tmp_path: Path) -> None:
    quantize_model(str(base), tmp_path / "q", quant)
    found, wanted = load_backbone(tmp_path / "q"), load_backbone(base, quant=quant)
    assert found.quant == quant
    assert_same(dict(found.model.state_dict()), dict(wanted.model.state_dict()))


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16], ids=["in fp32", "in bf16"])
def test_a_checkpoint_keeps_its_type(stored: torch.dtype, compute: torch.dtype, base: Path, tmp_path: Path) -> None:
    """What is not low-bit is written in the type that it was in, whatever will be computed in."""
    directory = Path(shutil.copytree(base, tmp_path / "cast"))
    tensors = {key: value.to(stored) for key, value in load_file(str(directory / WEIGHTS)).items()}
    save_file(tensors, str(directory / WEIGHTS), metadata={"format": "pt"})
    quantize_model(str(directory), tmp_path / "q", QUANT)
    written = load_file(str(tmp_path / "q" / WEIGHTS))
    kept = {key: value for key, value in written.items() if ".weight_" not in key}
    assert {value.dtype for value in kept.values()} == {stored}
    assert all(same_bits(value, tensors[key]) for key, value in kept.items())
    found, wanted = load_backbone(tmp_path / "q", compute), load_backbone(directory, compute, quant=QUANT)
    assert_same(dict(found.model.state_dict()), dict(wanted.model.state_dict()))


def test_a_sharded_model_becomes_one_file(tmp_path: Path) -> None:
    save_tiny_model("bert", tmp_path / "whole")
    tensors = load_file(str(tmp_path / "whole" / WEIGHTS))
    halves = {"model-1.safetensors": {}, "model-2.safetensors": {}}  # type: ignore[var-annotated]
    for index, (key, value) in enumerate(tensors.items()):
        halves[f"model-{1 + index % 2}.safetensors"][key] = value
    (tmp_path / "parts").mkdir()
    shutil.copy(tmp_path / "whole" / "config.json", tmp_path / "parts")
    for file, part in halves.items():
        save_file(part, str(tmp_path / "parts" / file), metadata={"format": "pt"})
    index = {"weight_map": {key: file for file, part in halves.items() for key in part}}
    (tmp_path / "parts" / "model.safetensors.index.json").write_text(json.dumps(index))
    quantize_model(str(tmp_path / "parts"), tmp_path / "q", QUANT)
    assert not (tmp_path / "q" / "model.safetensors.index.json").exists()
    found, wanted = load_backbone(tmp_path / "q"), load_backbone(tmp_path / "whole", quant=QUANT)
    assert_same(dict(found.model.state_dict()), dict(wanted.model.state_dict()))
    assert resolve(str(tmp_path / "q")).sha256() == resolve(str(tmp_path / "parts")).sha256()


# What it says of itself


def test_the_file_is_laid_out_as_documented(quantised: Path, base: Path) -> None:
    """Read by the format's own library, as somebody else would."""
    tensors = load_file(str(quantised / WEIGHTS))
    with safe_open(str(quantised / WEIGHTS), "pt") as file:
        metadata = file.metadata()
    record = json.loads(metadata[KEY])
    assert metadata["format"] == "pt"
    assert record["version"] == 1
    assert QuantConfig.parse(record["format"]) == QUANT
    plain = linear_layers(load_backbone(base).model)
    assert record["layers"] == {path: list(layer.weight.shape) for path, layer in plain.items()}  # type: ignore[union-attr]
    original = load_file(str(base / WEIGHTS))
    for path, (rows, columns) in record["layers"].items():
        groups = -(-rows * columns // 48)
        assert tensors[f"{path}.weight_codes"].shape == (rows * columns // 2,)
        assert tensors[f"{path}.weight_scale_codes"].shape == (groups,)
        assert tensors[f"{path}.weight_scale_maxima"].shape == (-(-groups // 256),)
        assert tensors[f"{path}.weight_scale_mean"].shape == ()
        assert same_bits(tensors[f"{path}.bias"], original[f"{path}.bias"])
        assert f"{path}.weight" not in tensors
    others = {key for key in tensors if key.rpartition(".")[0] not in record["layers"]}
    assert others == {
        key for key in original if key.rpartition(".")[0] not in record["layers"] and not key.startswith("pooler.")
    }
    assert all(same_bits(tensors[key], original[key]) for key in others)
    body = header_of(quantised)[1]
    assert record["sha256"] == hashlib.sha256(body).hexdigest()


def test_the_base_is_the_one_that_it_was_made_from(quantised: Path, base: Path) -> None:
    record = quantized_base(quantised)
    assert record is not None
    assert record.source_sha256 == hashlib.sha256((base / WEIGHTS).read_bytes()).hexdigest()
    assert resolve(str(quantised)).sha256() == resolve(str(base)).sha256()
    assert quantized_base(base) is None
    assert resolve(str(base)).quantized() is None


def test_what_quantising_lost_is_on_record(quantised: Path, base: Path) -> None:
    record = quantized_base(quantised)
    assert record is not None
    original = load_file(str(base / WEIGHTS))
    error = total = 0.0
    for path, layer in low_bit_layers(load_backbone(quantised).model).items():
        weight = original[f"{path}.weight"].double()
        error += float((layer.weight.dequantize().double() - weight).square().sum())
        total += float(weight.square().sum())
    # The same sums in float64, of numbers that were subtracted in fp32.
    assert record.relative_error == pytest.approx((error / total) ** 0.5, rel=1e-6)
    assert load_backbone(quantised).quant_error == record.relative_error


def test_companions_come_along(quantised: Path, base: Path) -> None:
    assert {path.name for path in quantised.iterdir()} == {path.name for path in base.iterdir()}
    for path in base.iterdir():
        if path.name != WEIGHTS:
            assert (quantised / path.name).read_bytes() == path.read_bytes()


def test_the_pooling_of_a_sentence_encoder_comes_along(base: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(base, tmp_path / "base"))
    (directory / "1_Pooling").mkdir()
    (directory / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    (directory / "modules.json").write_text("[]")
    (directory / "notes.txt").write_text("mine")
    quantize_model(str(directory), tmp_path / "q", QUANT)
    assert (tmp_path / "q" / "1_Pooling" / "config.json").read_text() == '{"pooling_mode_mean_tokens": true}'
    assert (tmp_path / "q" / "modules.json").is_file()
    assert not (tmp_path / "q" / "notes.txt").exists()


def test_quantising_is_a_function_of_the_weights_and_the_format(quantised: Path, base: Path, tmp_path: Path) -> None:
    quantize_model(str(base), tmp_path / "again", QUANT)
    assert (tmp_path / "again" / WEIGHTS).read_bytes() == (quantised / WEIGHTS).read_bytes()


def test_the_default_format_is_nf4_with_double_quantisation(base: Path, tmp_path: Path) -> None:
    result = quantize_model(str(base), tmp_path / "q")
    record = quantized_base(tmp_path / "q")
    assert record is not None
    assert record.config == QuantConfig()
    assert result.format == str(QuantConfig())
    assert result.as_dict() == {**result.as_dict(), "directory": str(tmp_path / "q"), "layers": 12}
    json.dumps(result.as_dict())


# What is refused


@pytest.mark.parametrize("kind", ["files", "a file"])
def test_a_place_that_is_taken_is_left_as_it_is(kind: str, base: Path, tmp_path: Path) -> None:
    place = tmp_path / "q"
    if kind == "files":
        place.mkdir()
        (place / "note.txt").write_text("mine")
    else:
        place.write_text("mine")
    with pytest.raises(ConfigError, match="not empty") as caught:
        quantize_model(str(base), place, QUANT)
    assert caught.value.where == str(place)
    assert (place / "note.txt" if kind == "files" else place).read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["q"]


def test_an_empty_place_is_filled(base: Path, tmp_path: Path) -> None:
    (tmp_path / "q").mkdir()
    quantize_model(str(base), tmp_path / "q", QUANT)
    assert load_backbone(tmp_path / "q").quant == QUANT


def test_a_quantised_model_is_not_quantised_again(quantised: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="quantised already"):
        quantize_model(str(quantised), tmp_path / "q", QUANT)
    assert list(tmp_path.iterdir()) == []


def test_a_base_that_is_not_there_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        quantize_model("./nowhere", tmp_path / "q", QUANT)
    assert list(tmp_path.iterdir()) == []


def test_a_weight_that_is_not_finite_leaves_nothing(base: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(base, tmp_path / "base"))
    tensors = load_file(str(directory / WEIGHTS))
    name = "encoder.layer.1.output.dense.weight"
    tensors[name][2, 3] = float("nan")
    save_file(tensors, str(directory / WEIGHTS), metadata={"format": "pt"})
    with pytest.raises(ModelError, match="not finite") as caught:
        quantize_model(str(directory), tmp_path / "q", QUANT)
    assert name in str(caught.value)
    assert not (tmp_path / "q").exists()


def test_a_base_with_a_missing_tensor_is_refused(base: Path, tmp_path: Path) -> None:
    """Saved now, its random stand-in would look like a weight ever after."""
    directory = Path(shutil.copytree(base, tmp_path / "base"))
    tensors = load_file(str(directory / WEIGHTS))
    del tensors["encoder.layer.1.output.dense.weight"]
    save_file(tensors, str(directory / WEIGHTS), metadata={"format": "pt"})
    with pytest.raises(ModelError, match="missing"):
        quantize_model(str(directory), tmp_path / "q", QUANT)
    assert not (tmp_path / "q").exists()


def test_a_failure_while_writing_is_a_sentence(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError, match="cannot write the quantised model"):
        quantize_model(str(base), tmp_path / "q", QUANT)
    assert not (tmp_path / "q" / WEIGHTS).exists()


# Damage


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0])
def test_a_flipped_bit_among_the_tensors_is_noticed(share: float, spoilt: Path) -> None:
    path = spoilt / WEIGHTS
    _, body = header_of(spoilt)
    content = bytearray(path.read_bytes())
    start = len(content) - len(body)
    content[start + int(share * (len(body) - 1))] ^= 0x10
    path.write_bytes(content)
    with pytest.raises(ModelError, match="damaged") as caught:
        resolve(str(spoilt)).sha256()
    assert caught.value.where == str(path)
    assert "qlassify quantize" in (caught.value.do or "")


def test_a_flipped_bit_in_the_header_is_noticed_or_changes_no_number(quantised: Path, tmp_path: Path) -> None:
    """The header says how the bytes are to be read; no single bit of it may make another model of them in silence."""
    spoilt = Path(shutil.copytree(quantised, tmp_path / "spoilt"))
    path = spoilt / WEIGHTS
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    wanted = dict(load_backbone(quantised).model.state_dict())
    start = content.index(KEY.encode())
    generator = np.random.default_rng(0)
    # The format, the last layers and the hashes in full, and a sample of the rest.
    record_end = content.index(b"relative_error", start)
    positions = [
        *range(start, start + 130),
        *range(record_end - 160, record_end, 7),
        *generator.integers(8, length, 30),
    ]
    read = 0
    for position in positions:
        flipped = bytearray(content)
        flipped[position] ^= 1 << int(generator.integers(0, 8))
        path.write_bytes(flipped)
        try:
            source = resolve(str(spoilt))
            if source.sha256() != resolve(str(quantised)).sha256():
                continue  # a classifier refuses it as another base
            backbone = load_backbone(spoilt)
        except ModelError:
            continue
        read += 1
        assert backbone.quant == QUANT, position
        assert_same(dict(backbone.model.state_dict()), wanted)
    assert read < len(positions) / 2


@pytest.mark.parametrize("cut", [1, 1000])
def test_a_cut_file_is_refused(cut: int, spoilt: Path) -> None:
    path = spoilt / WEIGHTS
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(ModelError, match="not a whole safetensors file"):
        load_backbone(spoilt)


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record.update(version=2),
        lambda record: record.update(version=None),
        lambda record: record.pop("version"),
        lambda record: record.pop("format"),
        lambda record: record.pop("layers"),
        lambda record: record.pop("source_sha256"),
        lambda record: record.pop("sha256"),
        lambda record: record.pop("relative_error"),
        lambda record: record.update(format={"kind": "nf5"}),
        lambda record: record.update(format={"kind": "nf4", "bits": 8}),
        lambda record: record.update(format=None),
        lambda record: record.update(layers=[1]),
        lambda record: record.update(layers={"encoder": 3}),
        lambda record: record.update(layers={"encoder": ["a", "b"]}),
        lambda record: record.update(relative_error="much"),
    ],
    ids=lambda change: str(change.__code__.co_consts),
)
def test_a_record_that_cannot_be_understood_is_refused(
    change: Callable[[dict[str, Any]], object], spoilt: Path
) -> None:
    edit_record(spoilt, change)
    for load in (load_backbone, quantized_base):
        with pytest.raises(ModelError, match="cannot read the quantised checkpoint") as caught:
            load(spoilt)
        assert "qlassify quantize" in (caught.value.do or "")


@pytest.mark.parametrize(
    "text",
    ["", "[]", "3", "null", '"text"', "{", "[" * 100_000],
    ids=lambda text: text[:6],
)
def test_a_record_that_is_no_record_is_refused(text: str, spoilt: Path) -> None:
    header, body = header_of(spoilt)
    header["__metadata__"][KEY] = text
    content = json.dumps(header).encode()
    (spoilt / WEIGHTS).write_bytes(struct.pack("<Q", len(content)) + content + body)
    with pytest.raises(ModelError):
        load_backbone(spoilt)


LAYER = "encoder.layer.0.attention.self.query"


LAYERS: dict[str, tuple[str, list[int] | None]] = {
    "no such layer": ("encoder.layer.9.attention", [64, 64]),
    "an embedding": ("embeddings.word_embeddings", [200, 64]),
    "a norm": ("embeddings.LayerNorm", [64, 1]),
    "no layer at all": ("encoder", [64, 64]),
    "another width": (LAYER, [64, 65]),
    "another shape of the same size": (LAYER, [32, 128]),
    "empty": (LAYER, [0, 0]),
    "negative": (LAYER, [-64, -64]),
    "huge": (LAYER, [2**40, 2**40]),
    "left out": (LAYER, None),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_that_are_not_the_models_are_refused(name: str, spoilt: Path) -> None:
    path, shape = LAYERS[name]

    def change(record: dict[str, Any]) -> None:
        record["layers"] = {key: value for key, value in record["layers"].items() if key != path}
        if shape is not None:
            record["layers"][path] = shape

    edit_record(spoilt, change)
    with pytest.raises(ModelError):
        load_backbone(spoilt)


def test_another_architecture_is_refused(quantised: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(quantised, tmp_path / "q"))
    save_tiny_model("gpt2", tmp_path / "gpt2")
    shutil.copy(tmp_path / "gpt2" / "config.json", directory / "config.json")
    with pytest.raises(ModelError):
        load_backbone(directory)


@pytest.mark.parametrize("lost", [f"{LAYER}.weight_codes", f"{LAYER}.weight_scale_mean", f"{LAYER}.bias"])
def test_a_missing_tensor_is_named(lost: str, spoilt: Path) -> None:
    path = spoilt / WEIGHTS
    with safe_open(str(path), "pt") as file:
        metadata = file.metadata()
    tensors = load_file(str(path))
    del tensors[lost]
    save_file(tensors, str(path), metadata=metadata)
    with pytest.raises(ModelError) as caught:
        load_backbone(spoilt)
    assert lost in str(caught.value)


# Which format holds


def run(**sections: Any) -> RunConfig:
    return RunConfig.parse({"model": {"precision": "fp32", "device": "cpu"}, **sections})


@pytest.mark.parametrize("method", ["lora", "qlora", "qdora"])
def test_a_quantised_base_brings_its_format(method: str, quantised: Path) -> None:
    pipeline = ClassifyPipeline.from_pretrained(quantised, run(method={"kind": method, "rank": 4}))
    assert pipeline.backbone.quant == pipeline.run.quant == QUANT


def test_its_own_format_may_be_asked_for(quantised: Path) -> None:
    pipeline = ClassifyPipeline.from_pretrained(quantised, run(quant=QUANT.model_dump()))
    assert pipeline.backbone.quant == QUANT


@pytest.mark.parametrize("other", [{"kind": "int8"}, {"group_size": 64}, {"group_size": 48, "double": False}], ids=str)
def test_another_format_than_the_bases_is_refused(other: dict[str, Any], quantised: Path) -> None:
    with pytest.raises(ConfigError, match="quantised in another format") as caught:
        ClassifyPipeline.from_pretrained(quantised, run(quant=other))
    assert caught.value.got == str(QUANT)
    assert str(QuantConfig.parse(other)) in (caught.value.wanted or "")


def test_quantize_nf4_on_a_base_of_another_format_is_refused(quantised: Path) -> None:
    """The field means groups of 64; this directory has groups of 48."""
    with pytest.raises(ConfigError, match="quantised in another format"):
        ClassifyPipeline.from_pretrained(quantised, ClassifyConfig(quantize_nf4=True, precision="fp32", device="cpu"))


def test_a_damaged_base_is_noticed_before_training(spoilt: Path) -> None:
    path = spoilt / WEIGHTS
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelError, match="damaged"):
        ClassifyPipeline.from_pretrained(spoilt, run(method={"rank": 4}))


# A classifier on either


@pytest.fixture(scope="module")
def train_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty learnable rows."""
    return write_table(tmp_path_factory.mktemp("data") / "train.csv", ("text", "label"), make_rows(60, seed=2))


TEXTS = [text for text, _ in make_rows(20, seed=70)]


def logits_of(pipeline: ClassifyPipeline) -> bytes:
    return predict_logits(pipeline.trainable.classifier, pipeline.encoder.encode(TEXTS)).tobytes()


def trained(base: Path, train_csv: Path, **sections: Any) -> ClassifyPipeline:
    settings = {
        "method": {"kind": "qlora", "rank": 4},
        "training": {"epochs": 1, "batch_size": 16, "learning_rate": 1e-2},
        **sections,
    }
    pipeline = ClassifyPipeline.from_pretrained(base, run(**settings))
    pipeline.fit(train_csv)
    return pipeline


def test_a_classifier_trained_on_one_predicts_the_same_on_the_other(
    base: Path, quantised: Path, train_csv: Path, tmp_path: Path
) -> None:
    """Both trained, both saved, each loaded on both: bitwise the same logits, because the codes are the same."""
    first = trained(quantised, train_csv)
    second = trained(base, train_csv, quant=QUANT.model_dump())
    assert logits_of(first) == logits_of(second)
    for name, pipeline in (("on quantised", first), ("on original", second)):
        pipeline.save(tmp_path / name)
        for other in (base, quantised):
            again = ClassifyPipeline.load(tmp_path / name, base=str(other), precision="fp32", device="cpu")
            assert again.backbone.quant == QUANT
            assert logits_of(again) == logits_of(pipeline), f"{name}, loaded on {other}"
            assert again.run.method.kind == "qlora"


@pytest.mark.parametrize("quant", [None, {"kind": "int8"}], ids=["unquantised", "int8"])
def test_a_classifier_of_another_format_refuses_a_quantised_base(
    quant: dict[str, Any] | None, base: Path, quantised: Path, train_csv: Path, tmp_path: Path
) -> None:
    """The weights' hash is the same; only the format tells them apart."""
    pipeline = trained(base, train_csv, method={"rank": 4}, quant=quant)
    pipeline.save(tmp_path / "saved")
    with pytest.raises(ModelError, match="quantised in another format") as caught:
        ClassifyPipeline.load(tmp_path / "saved", base=str(quantised))
    assert caught.value.got == str(QUANT)
    assert caught.value.wanted == ("unquantised weights" if quant is None else str(QuantConfig.parse(quant)))
    assert "--base" in (caught.value.do or "")


def test_a_classifier_refuses_a_damaged_base(quantised: Path, train_csv: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(quantised, tmp_path / "base"))
    trained(base, train_csv).save(tmp_path / "saved")
    content = bytearray((base / WEIGHTS).read_bytes())
    content[-100] ^= 1
    (base / WEIGHTS).write_bytes(content)
    with pytest.raises(ModelError, match="damaged"):
        ClassifyPipeline.load(tmp_path / "saved")


def test_a_saved_format_that_makes_no_sense_is_refused(quantised: Path, train_csv: Path, tmp_path: Path) -> None:
    trained(quantised, train_csv).save(tmp_path / "saved")
    path = tmp_path / "saved" / "classifier.json"
    record = json.loads(path.read_text())
    assert QuantConfig.parse(record["quantization"]) == QUANT
    record["quantization"] = {"kind": "nf5"}
    del record["sha256"]  # it was edited on purpose
    path.write_text(json.dumps(record))
    with pytest.raises((ModelError, ConfigError)):
        ClassifyPipeline.load(tmp_path / "saved")


# Tensors that share their memory


def test_shared_tensors_are_written_once() -> None:
    whole = torch.arange(12.0).view(3, 4)
    tensors = {"a": whole, "tied": whole, "row": whole[0], "none": torch.empty(0), "none too": torch.empty(0)}
    found = unshared(tensors)
    assert list(found) == ["a", "row", "none", "none too"]
