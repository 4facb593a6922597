"""Base models that are APR files: the same numbers as from safetensors, or an error that says what is not told.

The unquantised load of the directory is the reference everywhere. Geometry, names and the order of rows are taken from
the architectures' tiny models and put into files by hand.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from qlassify.config.quant import QuantConfig
from qlassify.conversion import convert_to_apr
from qlassify.data.packing import pack
from qlassify.errors import ModelError
from qlassify.formats.apr import open_apr
from qlassify.formats.apr_metadata import AprMetadata
from qlassify.formats.apr_names import gguf_name
from qlassify.formats.apr_types import APR_Q4, APR_Q8, F16
from qlassify.formats.apr_writer import AprTensor, write_apr
from qlassify.formats.safetensors import open_safetensors
from qlassify.models.apr_base import in_halves, open_apr_base
from qlassify.models.backbone import Backbone, load_backbone, load_skeleton
from qlassify.models.packed_layout import PackedLayout
from qlassify.models.source import resolve
from qlassify.quant.linear import low_bit_layers
from reference.quant import same_bits
from tiny_jobs import save_tokenizer
from tiny_models import FAMILIES, random_texts, save_tiny_model, tiny_config

pytestmark = pytest.mark.usefixtures("one_thread")

TYPED = ("bert", "llama", "qwen2", "qwen3", "phi3")
"""Families of ``tiny_models`` that can be rebuilt from geometry; Gemma, which is not among them, is added below."""
LENGTHS = (11, 3, 17)


def hidden(backbone: Backbone, family: str) -> Tensor:
    texts = random_texts(LENGTHS, FAMILIES[family], seed=1)
    batch = pack(texts, np.arange(len(LENGTHS)))
    layout = PackedLayout(batch.lengths, "cpu")
    types = None if batch.token_type_ids is None else torch.from_numpy(batch.token_type_ids).long()
    with torch.inference_mode():
        return backbone(
            torch.from_numpy(batch.token_ids).long(), torch.from_numpy(batch.position_ids).long(), types, layout
        )


def same_model(found: Backbone, wanted: Backbone) -> None:
    ours, theirs = found.model.state_dict(), wanted.model.state_dict()
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        assert same_bits(ours[name], tensor), name


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Directories of models as geometry describes them: no sliding windows, no scaled positions."""
    root = tmp_path_factory.mktemp("bare")
    changes: dict[str, dict[str, Any]] = {family: {"max_position_embeddings": 128} for family in TYPED}
    changes["phi3"] |= {"sliding_window": None, "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}}
    changes["llama"] |= {"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}, "rope_scaling": None}
    for family in ("qwen2", "qwen3"):
        changes[family] |= {"use_sliding_window": False, "sliding_window": None}
    return {family: save_tiny_model(family, root / family, **changes[family]) for family in TYPED}


def geometry(config: Any, architecture: str) -> dict[str, Any]:
    """The format's own keys, read off a configuration."""
    said = {
        "architecture": architecture,
        "hidden_size": config.hidden_size,
        "num_layers": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "vocab_size": config.vocab_size,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_position_embeddings,
    }
    if architecture == "bert":
        return said | {"rms_norm_eps": config.layer_norm_eps}
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return said | {
        "num_kv_heads": config.num_key_value_heads,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_parameters["rope_theta"],
        "rope_type": 2,
        "head_dim": dim,
    }


Rename = Callable[[str], str]


def by_geometry(
    directory: Path, path: Path, architecture: str, /, *, rename: Rename = str, change: Any = None, **said: Any
) -> Path:
    """A file of the directory's tensors that says nothing but geometry."""
    from transformers import AutoConfig

    file = open_safetensors(directory / "model.safetensors")
    tensors = {rename(name): file.read(name) for name in file.entries}
    if change is not None:
        change(tensors)
    values = geometry(AutoConfig.from_pretrained(str(directory)), architecture) | said
    write_apr(path, {name: AprTensor.of(tensor) for name, tensor in tensors.items()}, AprMetadata.of(values))
    return path


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_converted_model_is_the_same_model(family: str, tiny_directories: dict[str, Path], tmp_path: Path) -> None:
    """Every architecture, for its configuration travels whole."""
    path = tmp_path / "m.apr"
    convert_to_apr(str(tiny_directories[family]), path)
    wanted, found = load_backbone(tiny_directories[family]), load_backbone(path)
    same_model(found, wanted)
    assert found.packed == wanted.packed
    assert found.max_positions == wanted.max_positions
    assert torch.equal(hidden(found, family), hidden(wanted, family))
    skeleton = load_skeleton(path)
    assert {name: tensor.shape for name, tensor in skeleton.state_dict().items()} == {
        name: tensor.shape for name, tensor in wanted.model.state_dict().items()
    }


@pytest.mark.parametrize("family", ["bert", "qwen2", "gpt2"])
@pytest.mark.parametrize("quant", [QuantConfig(group_size=48), QuantConfig(kind="int8", zero_point=True)], ids=str)
def test_low_bit_weights_are_those_of_the_directory(
    family: str, quant: QuantConfig, tiny_directories: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "m.apr"
    convert_to_apr(str(tiny_directories[family]), path)
    wanted, found = load_backbone(tiny_directories[family], quant=quant), load_backbone(path, quant=quant)
    assert found.quant_error == wanted.quant_error
    theirs = low_bit_layers(wanted.model)
    for name, layer in low_bit_layers(found.model).items():
        for part, tensor in layer.state_dict().items():
            assert same_bits(tensor, theirs[name].state_dict()[part]), (name, part)
    assert torch.equal(hidden(found, family), hidden(wanted, family))


@pytest.mark.parametrize("family", TYPED)
def test_a_model_is_rebuilt_from_geometry(family: str, bare: dict[str, Path], tmp_path: Path) -> None:
    found = load_backbone(by_geometry(bare[family], tmp_path / "m.apr", family))
    wanted = load_backbone(bare[family])
    same_model(found, wanted)
    assert torch.equal(hidden(found, family), hidden(wanted, family))


def test_a_gemma_is_rebuilt_from_geometry(tmp_path: Path) -> None:
    import transformers

    config = transformers.GemmaConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=1, head_dim=32,
        intermediate_size=96, vocab_size=200, max_position_embeddings=128, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.AutoModel.from_config(config).save_pretrained(tmp_path / "gemma")
    found = load_backbone(by_geometry(tmp_path / "gemma", tmp_path / "m.apr", "gemma"))
    wanted = load_backbone(tmp_path / "gemma")
    same_model(found, wanted)
    assert torch.equal(hidden(found, "llama"), hidden(wanted, "llama"))


def to_gguf(architecture: str) -> Rename:
    """GGUF's names, from those of a base model without a head, which lack ``model.``."""
    if architecture == "bert":
        return lambda name: gguf_name(name, "bert")
    return lambda name: gguf_name(f"model.{name.removeprefix('model.')}", architecture)


def permuted(heads: int, groups: int) -> Callable[[dict[str, Tensor]], None]:
    """llama.cpp's rearrangement of queries and keys, as its converter does it."""

    def change(tensors: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            count = {"attn_q": heads, "attn_k": groups}.get(name.split(".")[-2])
            if count is not None:
                rows = tensor.shape[0]
                swapped = tensor.reshape(count, 2, rows // count // 2, *tensor.shape[1:]).swapaxes(1, 2)
                tensors[name] = swapped.reshape(tensor.shape).contiguous()

    return change


@pytest.mark.parametrize("family", [family for family in TYPED if family != "llama"])
def test_names_of_gguf_are_understood(family: str, bare: dict[str, Path], tmp_path: Path) -> None:
    path = by_geometry(bare[family], tmp_path / "m.apr", family, rename=to_gguf(family))
    assert "token_embd.weight" in open_apr(path).entries
    same_model(load_backbone(path), load_backbone(bare[family]))


@pytest.mark.parametrize("rope_type", [0, None])
def test_a_llama_of_gguf_has_its_queries_and_keys_put_back(
    rope_type: int | None, bare: dict[str, Path], tmp_path: Path
) -> None:
    config = tiny_config("llama")
    change = permuted(config.num_attention_heads, config.num_key_value_heads)
    path = by_geometry(
        bare["llama"], tmp_path / "m.apr", "llama", rename=to_gguf("llama"), change=change, rope_type=rope_type
    )
    wanted = load_backbone(bare["llama"])
    same_model(load_backbone(path), wanted)
    unlike = open_apr(path).read("blk.0.attn_q.weight")
    assert not torch.equal(unlike, wanted.model.state_dict()["layers.0.self_attn.q_proj.weight"])


def test_adjacent_pairs_become_halves() -> None:
    rows = torch.tensor([[10], [20], [11], [21], [12], [22], [50], [60], [51], [61], [52], [62]])
    assert in_halves(rows, 2).flatten().tolist() == [10, 11, 12, 20, 21, 22, 50, 51, 52, 60, 61, 62]
    assert in_halves(rows.flatten(), 2).tolist() == [10, 11, 12, 20, 21, 22, 50, 51, 52, 60, 61, 62]


# What is refused


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"architecture": None}, "does not say enough"),
        ({"architecture": "mamba"}, "does not say enough"),
        ({"num_layers": 3}, "other layers than the geometry says"),
        ({"num_layers": 5}, "other layers than the geometry says"),
        ({"num_layers": 2**32 - 1}, "other layers than the geometry says"),
        ({"num_heads": 8}, "another shape than the geometry says"),
        ({"num_kv_heads": 4}, "another shape than the geometry says"),
        ({"hidden_size": 32}, "another shape than the geometry says"),
        ({"intermediate_size": 48}, "another shape than the geometry says"),
        ({"vocab_size": 100}, "another shape than the geometry says"),
        ({"head_dim": 32}, "another shape than the geometry says"),
        ({"hidden_size": None}, "not complete"),
        ({"rope_theta": None}, "not complete"),
        ({"rms_norm_eps": 0}, "not complete"),
        ({"num_layers": 0}, "not complete"),
        ({"rope_type": 0}, "in which order queries and keys"),
        ({"rope_type": 7}, "in which order queries and keys"),
        ({"max_position_embeddings": 131072}, "may scale them"),
        ({"qlassify.config": {"hidden_size": 3}}, "no configuration of a model"),
        ({"qlassify.config": {"model_type": "no such"}}, "not a model configuration"),
        ({"qlassify.config": {"model_type": "llama", "hidden_size": "x"}}, "not a model configuration"),
    ],
)  # fmt: skip
def test_what_the_metadata_does_not_tell_or_tells_wrong_is_refused(
    said: dict[str, Any], words: str, bare: dict[str, Path], tmp_path: Path
) -> None:
    path = by_geometry(bare["llama"], tmp_path / "m.apr", "llama", **said)
    with pytest.raises(ModelError, match=words):
        load_backbone(path)


def test_fckpt_013_numbers_that_are_not_finite_are_not_loaded(bare: dict[str, Path], tmp_path: Path) -> None:
    """Through an encoding that the writer cannot look into: an AprQ8 scale of infinity."""
    file = open_safetensors(bare["llama"] / "model.safetensors")
    name = "layers.1.self_attn.v_proj.weight"
    tensors = {one: AprTensor.of(file.read(one)) for one in file.entries}
    shape = tensors[name].shape
    raw = np.float32("inf").tobytes() + bytes([1]) * (shape[0] * shape[1])
    tensors[name] = AprTensor(APR_Q8, shape, len(raw), lambda: iter([raw]))
    path = tmp_path / "m.apr"
    write_apr(
        path, tensors, AprMetadata.of({"qlassify.config": json.loads((bare["llama"] / "config.json").read_text())})
    )
    for quant in (None, QuantConfig()):
        with pytest.raises(ModelError, match="not finite") as caught:
            load_backbone(path, quant=quant)
        assert caught.value.where == f"{path}: {name}"


@pytest.mark.parametrize("wrong", ["missing", "shape"])
def test_fckpt_014_weights_that_do_not_fill_the_model_are_refused(
    wrong: str, bare: dict[str, Path], tmp_path: Path
) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensor = tensors.pop("layers.1.mlp.down_proj.weight")
        if wrong == "shape":
            tensors["layers.1.mlp.down_proj.weight"] = tensor[:, :-1].contiguous()

    path = by_geometry(bare["llama"], tmp_path / "m.apr", "llama", change=change)
    with pytest.raises(ModelError, match="missing from its files"):
        load_backbone(path)


@pytest.mark.parametrize(
    "size", [{"num_hidden_layers": 10**9}, {"vocab_size": 10**12}, {"intermediate_size": 10**9}], ids=str
)
@pytest.mark.parametrize("quant", [None, QuantConfig()], ids=["plain", "low-bit"])
def test_a_configuration_of_a_giant_takes_no_memory(
    size: dict[str, int], quant: QuantConfig | None, bare: dict[str, Path], tmp_path: Path
) -> None:
    """transformers would make up what is not in the file, all of it, before anybody could refuse."""
    config = json.loads((bare["llama"] / "config.json").read_text()) | size
    path = by_geometry(bare["llama"], tmp_path / "m.apr", "llama", **{"qlassify.config": config})
    with pytest.raises(ModelError, match=r"larger model|more layers than"):
        load_backbone(path, quant=quant)


def test_fckpt_011_a_damaged_file_is_not_loaded(bare: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "m.apr"
    convert_to_apr(str(bare["llama"]), path)
    raw = bytearray(path.read_bytes())
    raw[-5000] ^= 1
    path.write_bytes(bytes(raw))
    for quant in (None, QuantConfig()):
        with pytest.raises(ModelError, match="not a whole APR file"):
            load_backbone(path, quant=quant)


def test_fckpt_016_the_training_of_a_checkpoint_is_not_seen(bare: dict[str, Path], tmp_path: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors["__training__.optim.layers.9.mlp.exp_avg"] = torch.ones(3)

    path = by_geometry(bare["llama"], tmp_path / "m.apr", "llama", change=change)
    assert not any(name.startswith("__training__") for name in open_apr_base(path).entries)
    same_model(load_backbone(path), load_backbone(bare["llama"]))


def test_an_adapter_is_no_base(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="an adapter, not a base model"):
        open_apr_base(tmp_path / "m.adapter.apr")


# Fewer bits


@pytest.mark.parametrize("kind", [F16, APR_Q8, APR_Q4], ids=lambda kind: kind.name)
def test_a_file_in_fewer_bits_is_the_model_of_its_decoded_numbers(
    kind: Any, tiny_directories: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "m.apr"
    result = convert_to_apr(str(tiny_directories["bert"]), path, kind.name)
    file, original = open_apr(path), open_safetensors(tiny_directories["bert"] / "model.safetensors")
    matrices = sorted(name for name, entry in original.entries.items() if len(entry.shape) > 1)
    assert sorted(result.lossy) == matrices
    assert result.bytes < result.source_bytes * {"F16": 0.55, "AprQ8": 0.32, "AprQ4": 0.22}[kind.name]
    state = load_backbone(path, torch.float32).model.state_dict()
    for name, tensor in state.items():
        assert torch.equal(tensor, file.read(name).float()), name
        if name not in matrices:
            assert torch.equal(tensor, original.read(name)), name


# Where it is found, and its tokeniser


def test_resolving(tiny_directories: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.apr"
    convert_to_apr(str(tiny_directories["bert"]), path)
    monkeypatch.chdir(tmp_path)
    source = resolve("m.apr")
    assert (source.directory, source.kind, source.quantized()) == (path.resolve(), "path", None)
    assert source.weight_files() == (path.resolve(),)
    import hashlib

    assert source.sha256() == hashlib.sha256(path.read_bytes()).hexdigest()
    for missing in ("gone.apr", "org/gone.apr", str(tmp_path / "gone.apr")):
        with pytest.raises(ModelError, match="not a model directory") as caught:
            resolve(missing)
        assert caught.value.got == "nothing there"
    (tmp_path / "bad.apr").write_bytes(b"x")
    with pytest.raises(ModelError, match="not an APR file"):
        resolve("bad.apr")


def test_the_tokeniser_is_looked_for_in_order(tiny_directories: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "m.q4.apr"
    convert_to_apr(str(tiny_directories["bert"]), path)
    source = resolve(str(path))
    with pytest.raises(ModelError, match="no tokeniser for the model") as caught:
        source.tokenizer_files()
    tried = [tmp_path / name for name in ("m.q4.tokenizer.json", "m.tokenizer.json", "tokenizer.json")]
    assert all(str(one) in str(caught.value.got) for one in tried)
    for one in reversed(tried):
        one.write_text("{}")
        found = source.tokenizer_files()
        assert not isinstance(found, Path)
        assert found.path == one
    given = tmp_path / "elsewhere"
    given.mkdir()
    assert source.tokenizer_files(given) == given
    with pytest.raises(ModelError, match="no such tokeniser"):
        source.tokenizer_files(tmp_path / "gone")


def test_settings_of_the_tokeniser_come_from_beside_it_else_from_the_file(
    bare: dict[str, Path], tmp_path: Path
) -> None:
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "im_start_token": "x", "bos_token": None}
    path = by_geometry(bare["bert"], tmp_path / "m.apr", "bert", special_tokens=special)
    save_tokenizer(tmp_path / "files")
    (tmp_path / "files" / "tokenizer.json").rename(tmp_path / "m.tokenizer.json")

    def settings() -> Any:
        found = resolve(str(path)).tokenizer_files()
        assert not isinstance(found, Path)
        return found.settings

    fast = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    assert settings() == fast
    by_geometry(bare["bert"], path, "bert", **{"qlassify.tokenizer_config": {"from": "the file"}})
    assert settings() == {"from": "the file"}
    (tmp_path / "m.tokenizer_config.json").write_text('{"from": "beside"}')
    assert settings() == {"from": "beside"}
    (tmp_path / "m.tokenizer_config.json").write_text("[]")
    with pytest.raises(ModelError, match="no object"):
        settings()


def test_shards_are_a_base_model(bare: dict[str, Path], tmp_path: Path) -> None:
    whole = open_apr(by_geometry(bare["llama"], tmp_path / "whole.apr", "llama"))
    homes = {name: number % 2 for number, name in enumerate(whole.entries)}
    for number in (0, 1):
        tensors = {name: AprTensor.stored(whole, name) for name in whole.entries if homes[name] == number}
        write_apr(tmp_path / f"m-0000{number + 1}-of-00002.apr", tensors, whole.metadata)
    shards = [{"filename": f"m-0000{number + 1}-of-00002.apr", "index": number} for number in (0, 1)]
    manifest = tmp_path / "m.apr.json"
    manifest.write_text(json.dumps({"shard_count": 2, "shards": shards, "weight_map": homes}))
    source = resolve(str(manifest))
    same_model(load_backbone(source.directory), load_backbone(bare["llama"]))
    before = source.sha256()
    raw = bytearray((tmp_path / "m-00002-of-00002.apr").read_bytes())
    raw[-5] ^= 1
    (tmp_path / "m-00002-of-00002.apr").write_bytes(bytes(raw))
    assert source.sha256() != before
    with pytest.raises(ModelError, match="not a whole APR file"):
        load_backbone(source.directory)


# Memory

MEASURE = """
import json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from qlassify.config.quant import QuantConfig
from qlassify.models.backbone import load_backbone

def status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field + ":")).split()[1])

# Libraries, compiled functions and the allocator's first blocks are there before anything is measured.
load_backbone(Path(sys.argv[1]), quant=QuantConfig())
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the highest mark starts again from here
backbone = load_backbone(Path(sys.argv[2]), torch.bfloat16, quant=QuantConfig())
print(status("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's account of a process's memory")
def test_a_file_in_few_bits_is_never_whole_in_fp32(tiny_directories: dict[str, Path], tmp_path: Path) -> None:
    """26 million weights, 103 MB in fp32, 27 MB in the file: 14 MB are left, and on the way some tensors of 3 MB."""
    save_tiny_model(
        "llama", tmp_path / "base", hidden_size=512, intermediate_size=1408, num_hidden_layers=8,
        num_attention_heads=8, num_key_value_heads=8, head_dim=64,
    )  # fmt: skip
    convert_to_apr(str(tmp_path / "base"), tmp_path / "m.apr", "aprq8")
    convert_to_apr(str(tiny_directories["llama"]), tmp_path / "warm.apr")
    entries = open_apr(tmp_path / "m.apr").entries
    counts = {name: int(np.prod(entry.shape)) for name, entry in entries.items()}
    assert sum(counts.values()) > 25_000_000
    final = sum(QuantConfig().storage_bytes(count) for name, count in counts.items() if "proj" in name)
    largest = 4 * max(counts.values())
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "warm.apr"), str(tmp_path / "m.apr")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # What is kept; the tensor in hand with its neighbour and the buffer of the products with which packing is tried;
    # 16 MB for what allocators keep and 4 MB of a checksum's stretch: far from 103 MB.
    assert final < int(done.stdout) <= final + 3 * largest + 20_000_000
