"""Models in several APR files, and files that are compressed: what is read, and what nobody talks us into reading."""

from __future__ import annotations

import json
import struct
import sys
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import pytest

from qlassify.errors import ModelError
from qlassify.formats import apr_compression
from qlassify.formats.apr import open_apr
from qlassify.formats.apr_names import TABLES, gguf_name, hf_name, in_gguf_style
from qlassify.formats.apr_shards import open_shards, shard_paths
from reference.apr import ROW_MAJOR, RawFile, RawTensor

A = RawTensor(b"a", 0, (2,), struct.pack("<ff", 1, 2))
B = RawTensor(b"b", 0, (2,), struct.pack("<ff", 3, 4))
C = RawTensor(b"c", 0, (2,), struct.pack("<ff", 5, 6))


@pytest.fixture
def manifest(tmp_path: Path) -> dict[str, Any]:
    """A good manifest of two good files in ``tmp_path``."""
    for number, tensors in enumerate([(A, C), (B,)]):
        (tmp_path / f"model-0000{number + 1}-of-00002.apr").write_bytes(RawFile(tensors).pack())
    shards = [
        {"filename": f"model-0000{number + 1}-of-00002.apr", "index": number, "size": 1, "tensors": []}
        for number in range(2)
    ]
    return {"version": "1", "shard_count": 2, "shards": shards, "weight_map": {"a": 0, "b": 1, "c": 0}}


def put(folder: Path, manifest: object) -> Path:
    path = folder / "model.apr.json"
    path.write_text(manifest if isinstance(manifest, str) else json.dumps(manifest))
    return path


def test_shards_are_read_as_one(tmp_path: Path, manifest: dict[str, Any]) -> None:
    shards = open_shards(put(tmp_path, manifest), verify=True)
    assert list(shards.entries) == ["a", "b", "c"]
    assert [shards.read(name).tolist() for name in shards.entries] == [[1, 2], [3, 4], [5, 6]]
    assert shards.metadata.typed == {"model_type": "toy"}
    assert [path.name for path in shard_paths(shards.path)] == [file.path.name for file in shards.files]


@pytest.mark.parametrize(
    "name",
    [
        "../secret.apr", "/etc/secret.apr", "sub/secret.apr", "..", "..\\secret.apr", "C:secret.apr", "secret.apr\0",
        ".hidden.apr", "secret.txt", "", 3, None, ["secret.apr"],
    ],
)  # fmt: skip
def test_a_manifest_leads_to_no_other_folder(name: object, tmp_path: Path, manifest: dict[str, Any]) -> None:
    (tmp_path / "secret.apr").write_bytes(RawFile((A, C)).pack())
    inner = tmp_path / "inner"
    inner.mkdir()
    manifest["shards"][0]["filename"] = name
    with pytest.raises(ModelError, match="cannot use the manifest"):
        open_shards(put(inner, manifest))


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path, manifest: dict[str, Any]) -> None:
    outside = tmp_path.parent / f"{tmp_path.name}-outside.apr"
    first = tmp_path / manifest["shards"][0]["filename"]
    first.rename(outside)
    first.symlink_to(outside)
    with pytest.raises(ModelError, match="cannot use the manifest") as caught:
        open_shards(put(tmp_path, manifest))
    assert "a link out of the folder" in str(caught.value.got)
    first.unlink()
    outside.rename(tmp_path / "elsewhere.apr")
    first.symlink_to("elsewhere.apr")
    assert open_shards(put(tmp_path, manifest)).read("a").tolist() == [1, 2]


def test_a_manifest_that_contradicts_itself_or_its_files_is_refused(tmp_path: Path, manifest: dict[str, Any]) -> None:
    shards, homes = manifest["shards"], manifest["weight_map"]
    wrong: list[object] = [
        "", "[]", "{}", "[" * 100_000,
        manifest | {"shard_count": 3},
        manifest | {"shards": []},
        manifest | {"shards": shards[::-1]},
        manifest | {"shards": [shards[0], shards[0] | {"index": 1}]},
        manifest | {"shards": [shards[0], shards[1] | {"filename": "gone.apr"}]},
        manifest | {"weight_map": homes | {"a": 1}},
        manifest | {"weight_map": homes | {"a": 2}},
        manifest | {"weight_map": homes | {"a": True}},
        manifest | {"weight_map": homes | {"d": 0}},
        manifest | {"weight_map": {"a": 0, "b": 1}},
        manifest | {"weight_map": []},
    ]  # fmt: skip
    for one in wrong:
        with pytest.raises(ModelError, match="cannot use the manifest"):
            open_shards(put(tmp_path, one))


# Compression


GOOD = RawFile((A, B, RawTensor(b"large", 7, (200_000,), bytes(range(250)) * 800)))


def squeezed(kind: str, image: bytes, length: int | None = None) -> bytes:
    """A file whose bytes after the header are packed, and whose header counts those of the unpacked one."""
    if kind == "zstd":
        return image[:64] + pytest.importorskip("zstandard").ZstdCompressor().compress(image[64:])
    block = pytest.importorskip("lz4.block").compress(image[64:], store_size=False)
    return image[:64] + struct.pack("<I", len(image) - 64 if length is None else length) + block


def flagged(kind: str) -> RawFile:
    return GOOD.but(flags=ROW_MAJOR | {"lz4": 1, "zstd": 2}[kind])


@pytest.mark.parametrize("kind", ["lz4", "zstd"])
def test_a_compressed_file_is_read(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.apr"
    path.write_bytes(squeezed(kind, flagged(kind).pack()))
    file = open_apr(path, verify=True)
    assert [file.read(name).tolist()[:2] for name in ("a", "b", "large")] == [[1, 2], [3, 4], [0, 1]]


@pytest.mark.parametrize("kind", ["lz4", "zstd"])
def test_a_flag_without_compression_is_no_compression(kind: str, tmp_path: Path) -> None:
    """The format's main writer sets it so; nothing needs to be installed for that."""
    path = tmp_path / "a.apr"
    path.write_bytes(flagged(kind).pack())
    assert open_apr(path, verify=True).read("b").tolist() == [3, 4]


@pytest.mark.parametrize(("kind", "module"), [("lz4", "lz4.block"), ("zstd", "zstandard")])
def test_without_the_package_the_error_says_what_to_install(
    kind: str, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.apr"
    path.write_bytes(flagged(kind).pack()[:64] + bytes(1000))
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModelError, match="not installed") as caught:
        open_apr(path)
    assert caught.value.do == "pip install 'qlassify[apr]'"


@pytest.mark.parametrize("kind", ["lz4", "zstd"])
@pytest.mark.parametrize("cut", [64, 66, 68, 100, -1])
def test_a_cut_or_damaged_block_is_refused(kind: str, cut: int, tmp_path: Path) -> None:
    raw = squeezed(kind, flagged(kind).pack())
    path = tmp_path / "a.apr"
    path.write_bytes(raw[:cut])
    with pytest.raises(ModelError):
        open_apr(path)
    path.write_bytes(raw[:64] + b"\xff" * (len(raw) - 64))
    with pytest.raises(ModelError):
        open_apr(path)


@pytest.mark.parametrize("kind", ["lz4", "zstd"])
def test_a_bomb_is_refused_before_it_bursts(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """200 MB of zeros in some kB, where a file of that size may unpack to 1 MB."""
    monkeypatch.setattr(apr_compression, "ALWAYS_ALLOWED_BYTES", 1 << 20)
    # The footer of the unpacked file is of no interest: it is never reached.
    raw = squeezed(kind, flagged(kind).pack()[:64] + bytes(200_000_000))
    assert len(raw) < 1 << 20
    path = tmp_path / "a.apr"
    path.write_bytes(raw)
    tracemalloc.start()
    try:
        with pytest.raises(ModelError, match="unpacks to more than weights can"):
            open_apr(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # Zstandard may write 128 kB blocks from a few bytes each: what 4 kB of them come to is held at once.
    assert peak < 150_000_000


def test_a_block_that_lies_about_its_length_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.apr"
    image = flagged("lz4").pack()
    for length in (0, 1, len(image) - 65, len(image) - 63, 2**32 - 1):
        path.write_bytes(squeezed("lz4", image, length))
        with pytest.raises(ModelError):
            open_apr(path)


def test_the_checksum_of_a_compressed_file_is_that_of_the_unpacked_one(tmp_path: Path) -> None:
    image = bytearray(flagged("zstd").pack())
    image[-10] ^= 1
    path = tmp_path / "a.apr"
    path.write_bytes(squeezed("zstd", bytes(image)))
    with pytest.raises(ModelError, match="checksum"):
        open_apr(path, verify=True)
    image[-4:] = struct.pack("<I", zlib.crc32(bytes(image[:-4])))
    path.write_bytes(squeezed("zstd", bytes(image)))
    open_apr(path, verify=True)


# Names


@pytest.mark.parametrize("architecture", sorted(TABLES))
def test_names_are_translated_there_and_back(architecture: str) -> None:
    table = TABLES[architecture]
    assert len(set(table.values())) == len(table), "two names would become one"
    for pattern in table:
        for layer in ("0", "7", "12"):
            for kind in ("weight", "bias"):
                name = f"{pattern.replace('{n}', layer)}.{kind}"
                there = hf_name(name, architecture)
                assert there != name
                assert gguf_name(there, architecture) == name
                assert hf_name(there, architecture) == there, "names of transformers are left alone"


def test_names_as_the_gguf_package_has_them() -> None:
    """The package's own table, which maps transformers' names to GGUF's, for each architecture and layer 3."""
    gguf = pytest.importorskip("gguf")
    for architecture, table in TABLES.items():
        mapping = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, architecture.upper()), 8)
        for ours, theirs in table.items():
            name = theirs.replace("{n}", "3")
            assert mapping.get_name(name) == ours.replace("{n}", "3"), name


@pytest.mark.parametrize(
    "name", ["blk.x.attn_q.weight", "blk.1.attn_q.scale", "blk.1.unknown.weight", "weight", "", "a.1"]
)
def test_other_names_are_left_as_they_are(name: str) -> None:
    assert hf_name(name, "llama") == name
    assert hf_name("blk.1.attn_q.weight", "nothing") == "blk.1.attn_q.weight"


def test_whose_names_they_are() -> None:
    assert in_gguf_style(["x", "blk.0.attn_q.weight"])
    assert in_gguf_style(["token_embd.weight"])
    assert not in_gguf_style(["model.layers.0.self_attn.q_proj.weight", "output.weight"])
