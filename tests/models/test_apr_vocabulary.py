"""A vocabulary in an APR file's metadata: ids of the original tokeniser where the family has one way to split text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from safetensors.torch import load_file
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from qlassify.data.tokenise import TextEncoder
from qlassify.errors import ModelError
from qlassify.formats.apr_metadata import AprMetadata
from qlassify.formats.apr_writer import AprTensor, write_apr
from qlassify.models.apr_tokenizer import find_tokenizer
from qlassify.pipeline import ClassifyPipeline
from tiny_models import save_tiny_model
from tiny_tokenizers import SPECIAL, TEXTS, byte_level, merges_of, tokens_of

WHOLE = "<|im_start|>dog<|im_end|>"


def metadata(tokenizer: tokenizers.Tokenizer, architecture: str | None, **more: Any) -> AprMetadata:
    """What realizar expects of a tokeniser, beside the architecture."""
    said = {"tokenizer.vocabulary": tokens_of(tokenizer), "tokenizer.merges": merges_of(tokenizer)}
    special = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "bos_token": "<|gone|>"}
    known = {} if architecture is None else {"architecture": architecture}
    return AprMetadata.of({**known, "special_tokens": special, **said, **more})


@pytest.fixture(scope="module")
def original() -> tokenizers.Tokenizer:
    return byte_level(320, PRETOKENIZE_REGEX, composing=True)


@pytest.mark.parametrize("architecture", ["qwen2", "Qwen3"])
def test_the_vocabulary_is_the_tokeniser(original: tokenizers.Tokenizer, architecture: str, tmp_path: Path) -> None:
    files = find_tokenizer(tmp_path / "m.apr", metadata(original, architecture))
    encoder = TextEncoder.load(files, 512)
    texts = [*TEXTS, WHOLE]
    encoded = encoder.encode(texts)
    for number, text in enumerate(texts):
        assert encoded.row(number).tolist() == original.encode(text).ids, text
    assert len(encoded.row(len(TEXTS))) == len(original.encode("dog").ids) + 2  # special tokens stay whole
    assert encoder.tokenizer.pad_token == "<|endoftext|>"
    assert encoder.tokenizer.bos_token is None  # a token that is named and not in the vocabulary


def test_the_file_alone_makes_a_pipeline(original: tokenizers.Tokenizer, tmp_path: Path) -> None:
    """With the ids of the original tokeniser, named."""
    config = {"vocab_size": 330, "use_sliding_window": False, "sliding_window": None}
    directory = save_tiny_model("qwen2", tmp_path / "qwen2", **config)
    written = json.loads((directory / "config.json").read_text())
    said = {
        "hidden_size": written["hidden_size"],
        "num_layers": written["num_hidden_layers"],
        "num_heads": written["num_attention_heads"],
        "num_kv_heads": written["num_key_value_heads"],
        "vocab_size": 330,
        "intermediate_size": written["intermediate_size"],
        "max_position_embeddings": written["max_position_embeddings"],
        "rms_norm_eps": written["rms_norm_eps"],
        "rope_theta": float(written["rope_parameters"]["rope_theta"]),
        "rope_type": 2,
    }
    tensors = {f"model.{name}": AprTensor.of(one) for name, one in load_file(directory / "model.safetensors").items()}
    path = tmp_path / "m.apr"
    write_apr(path, tensors, metadata(original, "qwen2", **said))
    original.save(str(tmp_path / "named.json"))
    found = ClassifyPipeline.from_apr(path)
    named = ClassifyPipeline.from_apr(path, tokenizer=tmp_path / "named.json")
    ours, theirs = (one.encoder.encode(TEXTS) for one in (found, named))
    np.testing.assert_array_equal(ours.token_ids, theirs.token_ids)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("folder", "file", "architecture", "baseline"),
    [
        ("gpt2", "tokenizer.json", "gpt2", "gpt2_multilingual.json"),
        ("qwen2-0.5b", "tokenizer.generated.json", "qwen2", "qwen2_5_multilingual.json"),
    ],
)
def test_published_vocabularies_come_to_the_published_ids(
    folder: str, file: str, architecture: str, baseline: str, shared_folder: Path, tmp_path: Path
) -> None:
    """Multilingual texts with the ids that transformers gave the original tokenisers."""
    models = shared_folder / "models"
    published = models / folder / file
    if not published.is_file():
        pytest.skip(f"needs {published.name} of {folder}")
    tokenizer = tokenizers.Tokenizer.from_file(str(published))
    conformance = models / "tokenizer_conformance" / "00cb4cf"
    texts = json.loads((conformance / "inputs.json").read_text(encoding="utf-8"))
    wanted = json.loads((conformance / "baselines" / baseline).read_text(encoding="utf-8"))
    encoder = TextEncoder.load(find_tokenizer(tmp_path / "m.apr", metadata(tokenizer, architecture)), 512)
    ids = {one["id"]: one["input_ids"] for one in wanted["entries"]}
    assert len(texts) > 50
    for one in texts:
        assert encoder.encode([one["text"]]).row(0).tolist() == ids[one["id"]], one["text"]


@pytest.mark.parametrize(
    ("architecture", "changes", "reason"),
    [
        pytest.param("llama", {}, "not known for this architecture, 'llama'", id="family"),
        pytest.param(None, {}, "not known for this architecture, None", id="no-family"),
        pytest.param("qwen2", {"tokenizer.merges": None}, "tokenizer.merges is no list of strings", id="no-merges"),
        pytest.param("qwen2", {"tokenizer.vocabulary": [1]}, "vocabulary is no list of strings", id="numbers"),
        pytest.param(
            "qwen2", {"tokenizer.vocabulary": ["a", *SPECIAL]}, "no tokeniser can be built", id="other-merges"
        ),
        pytest.param("qwen2", {"tokenizer.vocabulary": None}, "no vocabulary in the file", id="nothing"),
    ],
)
def test_what_cannot_be_built_is_said_with_every_place(
    architecture: str | None, changes: dict[str, Any], reason: str, original: tokenizers.Tokenizer, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="no tokeniser for the model") as caught:
        find_tokenizer(tmp_path / "m.q4.apr", metadata(original, architecture, **changes))
    got = str(caught.value.got)
    assert reason in got
    assert all(name in got for name in ("m.q4.tokenizer.json", "m.tokenizer.json", "/tokenizer.json"))


def test_a_model_made_from_qwens_with_other_special_tokens_is_refused(
    original: tokenizers.Tokenizer, tmp_path: Path
) -> None:
    """As DeepSeek-R1-Distill-Qwen, whose tokeniser puts a token before each text."""
    tokens = [token.replace("<|im_start|>", "<|User|>") for token in tokens_of(original)]
    said = metadata(original, "qwen2", **{"tokenizer.vocabulary": tokens})
    with pytest.raises(ModelError, match=r"not those of the family's own tokeniser, no <\|im_start\|>"):
        find_tokenizer(tmp_path / "m.apr", said)


def test_what_lies_beside_the_file_goes_first(original: tokenizers.Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    assert find_tokenizer(tmp_path / "m.apr", metadata(original, "qwen2")).path == tmp_path / "tokenizer.json"


def test_special_tokens_are_those_that_no_merge_comes_to(original: tokenizers.Tokenizer, tmp_path: Path) -> None:
    content = json.loads(find_tokenizer(tmp_path / "m.apr", metadata(original, "qwen2")).content or "")
    assert {one["content"] for one in content["added_tokens"]} == set(SPECIAL)
