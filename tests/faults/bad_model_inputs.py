"""Model folders that no command may load."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import torch
from bad_inputs import BadInput, base, cut, edited, file, holding, model, retensored, sealed_model, setting, without
from safetensors.torch import load_file, save

_TRAIN = "train {data} --base {tmp}/base --out {tmp}/out"
_PREDICT = "predict {tmp}/model --text dog"
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_EVIL = "raise SystemExit('code of a checkpoint was run')\nopen('pwned', 'w')\n"


def _pickled(folder: Path) -> None:
    torch.save({"a": torch.zeros(2)}, folder / "pytorch_model.bin")
    (folder / _WEIGHTS).unlink()


def _pickle_named_safetensors(folder: Path) -> None:
    torch.save({"a": torch.zeros(2)}, folder / _WEIGHTS)


def _sharded(name: str):
    def damage(folder: Path) -> None:
        tensors = load_file(folder / _WEIGHTS)
        (folder / _WEIGHTS).rename(folder / "model-00001-of-00001.safetensors")
        (folder / _INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(tensors, name)}))

    return damage


def _outside(folder: Path) -> None:
    """Shards that lie beside the model's folder."""
    tensors = load_file(folder / _WEIGHTS)
    (folder / _WEIGHTS).rename(folder.parent / "elsewhere.safetensors")
    (folder / _INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(tensors, "../elsewhere.safetensors")}))


def _absolute(folder: Path) -> None:
    tensors = load_file(folder / _WEIGHTS)
    target = folder.parent / "elsewhere.safetensors"
    (folder / _WEIGHTS).rename(target)
    (folder / _INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(tensors, str(target))}))


def _with_code(folder: Path) -> None:
    (folder / "evil.py").write_text(_EVIL)
    settings = json.loads((folder / "config.json").read_text())
    settings |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}}
    (folder / "config.json").write_text(json.dumps(settings))


def _tokenizer_code(folder: Path) -> None:
    (folder / "evil.py").write_text(_EVIL)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "EvilTokenizer", "auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "tokenizer.json").unlink()


def _nan(tensors: dict[str, torch.Tensor]) -> None:
    first = next(name for name, value in tensors.items() if value.dim() == 2)
    tensors[first] = torch.full_like(tensors[first], float("nan"))


def _narrower(tensors: dict[str, torch.Tensor]) -> None:
    first = next(name for name, value in tensors.items() if "query.weight" in name)
    tensors[first] = tensors[first][:, :5].contiguous()


def _fewer(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[next(name for name in tensors if "query.weight" in name)]


def _bytes(header: bytes, size: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if size is None else size) + header


def _tensor_head(**one: object) -> bytes:
    return _bytes(json.dumps({"a": one}).encode()) + bytes(8)


MODELS = (
    BadInput("base: no config.json", _TRAIN, ("no config.json", "{tmp}/base"), base(without("config.json"))),
    BadInput("base: config.json damaged", _TRAIN, ("config.json",), base(cut("config.json", 40))),
    BadInput("base: config.json a list", _TRAIN, ("config.json",), base(holding("config.json", "[1]"))),
    BadInput("base: config.json empty", _TRAIN, ("config.json",), base(holding("config.json", ""))),
    BadInput("base: config.json binary", _TRAIN, ("config.json",), base(holding("config.json", bytes(range(256))))),
    BadInput(
        "base: no model_type",
        _TRAIN,
        ("config.json", "model_type"),
        base(edited("config.json", lambda d: d.pop("model_type") and None)),
    ),
    BadInput(
        "base: an unknown architecture",
        _TRAIN,
        ("config.json", "mystery"),
        base(setting("config.json", model_type="mystery")),
    ),
    BadInput(
        "base: an architecture for pictures", _TRAIN, ("{tmp}/base",), base(setting("config.json", model_type="vit"))
    ),
    BadInput("base: an encoder and decoder", _TRAIN, ("{tmp}/base",), base(setting("config.json", model_type="t5"))),
    BadInput("base: code of its own", _TRAIN, ("never run",), base(_with_code), process=True),
    BadInput("base: a tokeniser with code", _TRAIN, ("tokeniser",), base(_tokenizer_code), process=True),
    BadInput("base: hidden_size a word", _TRAIN, ("config.json",), base(setting("config.json", hidden_size="wide"))),
    BadInput("base: hidden_size negative", _TRAIN, ("{tmp}/base",), base(setting("config.json", hidden_size=-64))),
    BadInput("base: hidden_size 0", _TRAIN, ("{tmp}/base",), base(setting("config.json", hidden_size=0))),
    BadInput("base: more layers than weights", _TRAIN, ("missing",), base(setting("config.json", num_hidden_layers=3))),
    BadInput(
        "base: hidden_size of another model", _TRAIN, ("{tmp}/base",), base(setting("config.json", hidden_size=32))
    ),
    BadInput("base: no weights", _TRAIN, ("no safetensors weights", "no weight file"), base(without(_WEIGHTS))),
    BadInput(
        "base: weights as a pickle",
        _TRAIN,
        ("no safetensors weights", "pytorch_model.bin", "save_pretrained"),
        base(_pickled),
        process=True,
    ),
    BadInput("base: a pickle called safetensors", _TRAIN, ("{tmp}/base",), base(_pickle_named_safetensors)),
    BadInput("base: weights cut short", _TRAIN, ("{tmp}/base",), base(cut(_WEIGHTS, -200))),
    BadInput("base: weights of 4 bytes", _TRAIN, ("{tmp}/base",), base(cut(_WEIGHTS, 4))),
    BadInput("base: weights empty", _TRAIN, ("{tmp}/base",), base(holding(_WEIGHTS, b""))),
    BadInput(
        "base: an index of missing shards",
        _TRAIN,
        ("shards of the weights are missing", "nowhere.safetensors"),
        base(_sharded("nowhere.safetensors")),
    ),
    BadInput("base: an index that leads outside", _TRAIN, ("outside", "../elsewhere.safetensors"), base(_outside)),
    BadInput("base: an index with an absolute path", _TRAIN, ("outside", "elsewhere.safetensors"), base(_absolute)),
    BadInput("base: an index of numbers", _TRAIN, ("cannot read the index of the weights",), base(_sharded(7))),
    BadInput(
        "base: an index of nothing",
        _TRAIN,
        ("cannot read the index of the weights", "names no file"),
        base(holding(_INDEX, '{"weight_map": {}}'), without(_WEIGHTS)),
    ),
    BadInput(
        "base: an index that is a list",
        _TRAIN,
        ("cannot read the index of the weights",),
        base(holding(_INDEX, "[]"), without(_WEIGHTS)),
    ),
    BadInput("base: tensors missing", _TRAIN, ("missing", "query.weight"), base(retensored(_WEIGHTS, _fewer))),
    BadInput(
        "base: tensors of another shape",
        _TRAIN,
        ("another shape", "query.weight"),
        base(retensored(_WEIGHTS, _narrower)),
    ),
    BadInput("base: weights that are NaN", _TRAIN, ("finite",), base(retensored(_WEIGHTS, _nan))),
    BadInput(
        "base: no tokeniser", _TRAIN, ("tokeniser",), base(without("tokenizer.json"), without("tokenizer_config.json"))
    ),
    BadInput("base: tokeniser damaged", _TRAIN, ("no usable tokeniser",), base(cut("tokenizer.json", 300))),
    BadInput("base: tokeniser a list", _TRAIN, ("no usable tokeniser",), base(holding("tokenizer.json", "[]"))),
    BadInput("base: tokeniser settings damaged", _TRAIN, ("tokeniser",), base(holding("tokenizer_config.json", "{"))),
    BadInput(
        "base: fewer embeddings than tokens",
        _TRAIN,
        ("token",),
        base(
            setting("config.json", vocab_size=20),
            retensored(
                _WEIGHTS, lambda t: t.update({k: v[:20].contiguous() for k, v in t.items() if "word_embeddings" in k})
            ),
        ),
    ),
    BadInput(
        "saved: no classifier.json",
        _PREDICT,
        ("an adapter as PEFT saves it", "classifier.json"),
        model(without("classifier.json")),
    ),
    BadInput(
        "saved: classifier.json damaged",
        _PREDICT,
        ("cannot read the saved classifier", "classifier.json"),
        model(cut("classifier.json", 60)),
    ),
    BadInput(
        "saved: classifier.json a list",
        _PREDICT,
        ("cannot read the saved classifier",),
        model(holding("classifier.json", "[1]")),
    ),
    BadInput(
        "saved: edited",
        _PREDICT,
        ("classifier.json", "damaged, or was edited", "sha256"),
        sealed_model(setting("classifier.json", threshold=0.6)),
    ),
    BadInput(
        "saved: the head of another classifier",
        _PREDICT,
        ("head.safetensors", "damaged, or of another classifier"),
        sealed_model(cut("head.safetensors", 60)),
    ),
    BadInput("saved: a newer format", _PREDICT, ("format", "newer"), model(setting("classifier.json", format=2))),
    BadInput(
        "saved: no labels",
        _PREDICT,
        ("classifier.json", "labels"),
        model(edited("classifier.json", lambda d: d.pop("labels") and None)),
    ),
    BadInput("saved: labels a word", _PREDICT, ("classifier.json",), model(setting("classifier.json", labels="abc"))),
    BadInput(
        "saved: labels of numbers", _PREDICT, ("classifier.json",), model(setting("classifier.json", labels=[1, 2, 3]))
    ),
    BadInput(
        "saved: a label twice",
        _PREDICT,
        ("classifier.json",),
        model(setting("classifier.json", labels=["a", "b", "b"])),
    ),
    BadInput(
        "saved: a label too few",
        _PREDICT,
        ("head.safetensors",),
        model(setting("classifier.json", labels=["beast", "fruit"])),
    ),
    BadInput(
        "saved: an unknown key",
        _PREDICT,
        ("classifier.json", "colour"),
        model(setting("classifier.json", colour="red")),
    ),
    BadInput(
        "saved: an unknown pooling",
        _PREDICT,
        ("classifier.json", "max"),
        model(setting("classifier.json", pooling="max")),
    ),
    BadInput(
        "saved: max_length a word", _PREDICT, ("classifier.json",), model(setting("classifier.json", max_length="long"))
    ),
    BadInput(
        "saved: max_length negative", _PREDICT, ("classifier.json",), model(setting("classifier.json", max_length=-5))
    ),
    BadInput(
        "saved: max_length over the positions", _PREDICT, ("64",), model(setting("classifier.json", max_length=4096))
    ),
    BadInput(
        "saved: multi_label a word",
        _PREDICT,
        ("classifier.json",),
        model(setting("classifier.json", multi_label="yes")),
    ),
    BadInput(
        "saved: another base",
        _PREDICT,
        ("the base model is not the one", "Give the right one with --base"),
        model(setting("classifier.json", base_sha256="0" * 64)),
        process=True,
    ),
    BadInput(
        "saved: a hash that is none",
        _PREDICT,
        ("classifier.json",),
        model(setting("classifier.json", base_sha256=None)),
    ),
    BadInput(
        "saved: a base that is gone", _PREDICT, ("gone",), model(setting("classifier.json", base_model="/gone/model"))
    ),
    BadInput(
        "saved: thresholds for other classes",
        _PREDICT,
        ("classifier.json", "threshold"),
        model(
            edited(
                "classifier.json", lambda d: d.update(decision={**(d.get("decision") or {}), "thresholds": [0.5, 0.5]})
            )
        ),
    ),
    BadInput(
        "saved: quantization that is none",
        _PREDICT,
        ("{tmp}/model",),
        model(setting("classifier.json", quantization={"kind": "nf3"})),
    ),
    BadInput("saved: no head", _PREDICT, ("head.safetensors",), model(without("head.safetensors"))),
    BadInput("saved: head cut short", _PREDICT, ("head.safetensors",), model(cut("head.safetensors", -9))),
    BadInput(
        "saved: head a pickle",
        _PREDICT,
        ("head.safetensors",),
        model(lambda f: torch.save({"weight": torch.zeros(3, 64)}, f / "head.safetensors")),
    ),
    BadInput("saved: head NaN", _PREDICT, ("finite",), model(retensored("head.safetensors", _nan))),
    BadInput(
        "saved: no adapter", _PREDICT, ("adapter_model.safetensors",), model(without("adapter_model.safetensors"))
    ),
    BadInput(
        "saved: adapter of another model",
        _PREDICT,
        ("the saved tensors are not those of this model", "belong together"),
        model(
            lambda f: (
                (f / "adapter_model.safetensors").write_bytes(
                    save({"base_model.model.other.lora_A.weight": torch.zeros(4, 64)})
                )
                and None
            )
        ),
    ),
    BadInput(
        "saved: adapter settings damaged", _PREDICT, ("adapter_config.json",), model(cut("adapter_config.json", 30))
    ),
    BadInput(
        "saved: adapter settings a list",
        _PREDICT,
        ("adapter_config.json",),
        model(holding("adapter_config.json", "[]")),
    ),
    BadInput(
        "saved: an unknown adapter",
        _PREDICT,
        ("adapter_config.json",),
        model(setting("adapter_config.json", peft_type="MAGIC")),
    ),
    BadInput(
        "saved: another rank",
        _PREDICT,
        ("the saved tensors are not those of this model", "(8, 64)"),
        model(setting("adapter_config.json", r=8)),
    ),
    BadInput(
        "saved: a rank that is a word",
        _PREDICT,
        ("adapter_config.json",),
        model(setting("adapter_config.json", r="big")),
    ),
    BadInput(
        "saved: targets that match nothing",
        _PREDICT,
        ("nothing",),
        model(setting("adapter_config.json", target_modules=["nothing"])),
    ),
    BadInput(
        "saved: no tokeniser",
        _PREDICT,
        ("tokeniser",),
        model(without("tokenizer.json"), without("tokenizer_config.json")),
    ),
    BadInput(
        "evaluate: a damaged classifier",
        "evaluate {tmp}/model {data}",
        ("cannot read the saved classifier",),
        model(cut("classifier.json", 60)),
    ),
    BadInput(
        "calibrate: a damaged head",
        "calibrate {tmp}/model {data}",
        ("head.safetensors",),
        model(cut("head.safetensors", -9)),
    ),
    BadInput(
        "compare: a damaged classifier",
        "compare {run} {tmp}/model {data}",
        ("cannot read the saved classifier",),
        model(cut("classifier.json", 60)),
    ),
    BadInput(
        "export: a damaged classifier",
        "export {tmp}/model {tmp}/out",
        ("cannot read the saved classifier",),
        model(cut("classifier.json", 60)),
    ),
    BadInput(
        "export: another base",
        "export {tmp}/model {tmp}/out",
        ("the base model is not the one",),
        model(setting("classifier.json", base_sha256="0" * 64)),
    ),
    BadInput(
        "quantize: weights cut short", "quantize {tmp}/base {tmp}/out", ("{tmp}/base",), base(cut(_WEIGHTS, -200))
    ),
    BadInput(
        "quantize: weights that are NaN", "quantize {tmp}/base {tmp}/out", ("finite",), base(retensored(_WEIGHTS, _nan))
    ),
    BadInput(
        "convert: weights cut short", "convert {tmp}/base {tmp}/out.apr", ("{tmp}/base",), base(cut(_WEIGHTS, -200))
    ),
    BadInput("convert: an index that leads outside", "convert {tmp}/base {tmp}/out.apr", ("outside",), base(_outside)),
    BadInput("plan: no weights", "plan {data} --base {tmp}/base", ("no safetensors weights",), base(without(_WEIGHTS))),
    BadInput(
        "inspect: a header larger than the file",
        "inspect {tmp}/a.safetensors",
        ("a.safetensors",),
        file("a.safetensors", _bytes(b"{}", 1 << 62)),
    ),
    BadInput(
        "inspect: a header that is no JSON",
        "inspect {tmp}/a.safetensors",
        ("a.safetensors",),
        file("a.safetensors", _bytes(b"{nope")),
    ),
    BadInput(
        "inspect: a negative shape",
        "inspect {tmp}/a.safetensors",
        ("a.safetensors",),
        file("a.safetensors", _tensor_head(dtype="F32", shape=[-2], data_offsets=[0, 8])),
    ),
    BadInput(
        "inspect: offsets outside the file",
        "inspect {tmp}/a.safetensors",
        ("a.safetensors",),
        file("a.safetensors", _tensor_head(dtype="F32", shape=[1 << 40], data_offsets=[0, 1 << 42])),
    ),
    BadInput("inspect: an APR file of zeros", "inspect {tmp}/a.apr", ("a.apr",), file("a.apr", bytes(64))),
    BadInput("inspect: a GGUF file cut short", "inspect {tmp}/a.gguf", ("a.gguf",), file("a.gguf", b"GGUF\x03\0\0\0")),
    BadInput(
        "inspect: NaN under --verify", "inspect {tmp}/base --verify", ("finite",), base(retensored(_WEIGHTS, _nan))
    ),
    BadInput(
        "train: a GGUF file that is none",
        "train {data} --base {tmp}/a.gguf --out {tmp}/out",
        ("a.gguf",),
        file("a.gguf", "hello"),
    ),
    BadInput(
        "train: an APR file that is none",
        "train {data} --base {tmp}/a.apr --out {tmp}/out",
        ("a.apr",),
        file("a.apr", "hello"),
    ),
    BadInput(
        "train: a base that is a text",
        "train {data} --base {tmp}/a.txt --out {tmp}/out",
        ("not a model directory", "a folder with config.json"),
        file("a.txt", "hello"),
    ),
)
