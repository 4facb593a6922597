"""GGUF files: the numbers that the ``gguf`` package reads, and a ``ModelError`` in little memory for what is none."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import _type_traits
from hypothesis import given, settings
from hypothesis import strategies as st

from qlassify.errors import ModelError
from qlassify.formats.gguf import STRETCH_ELEMENTS, GgufFile, open_gguf
from qlassify.formats.gguf_header import KEPT_ELEMENTS, MAX_STRINGS, GgufArray
from qlassify.formats.gguf_types import TYPES, WITHOUT_DECODER
from reference.gguf import ARCHITECTURE, RawGguf, key, tensor, text
from reference.quant import same_bits

GOOD = RawGguf()
BLOCKS = [kind for kind in TYPES.values() if not kind.plain and kind.name not in WITHOUT_DECODER]


def written(path: Path, file: RawGguf | bytes) -> Path:
    path.write_bytes(file if isinstance(file, bytes) else file.pack())
    return path


def read_all(path: Path) -> GgufFile:
    file = open_gguf(path)
    for name in file.entries:
        file.read(name)
    for name, value in file.metadata.items():
        if isinstance(value, (list, GgufArray)):
            file.array(name)
    return file


# What is read


def test_the_table_of_types_is_the_packages() -> None:
    for kind in TYPES.values():
        theirs = gguf.GGMLQuantizationType(kind.id)
        assert (theirs.name, gguf.GGML_QUANT_SIZES[theirs]) == (kind.name, (kind.block_elements, kind.block_bytes))
    assert {kind.id for kind in BLOCKS} <= {int(kind) for kind in _type_traits}


def test_a_file_spelled_out_by_hand(tmp_path: Path) -> None:
    file = open_gguf(written(tmp_path / "m.gguf", GOOD))
    assert file.version == 3
    assert file.metadata == {"general.architecture": "toy"}
    assert file.read("a").tolist() == [1.0, 2.0]
    assert file.read("b").tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]


@pytest.mark.parity
@pytest.mark.parametrize("kind", BLOCKS, ids=lambda kind: kind.name)
def test_blocks_are_what_the_package_makes_of_them(kind: Any, tmp_path: Path) -> None:
    """Random bytes, so any code and any scale; over more than one stretch, the last of them shorter."""
    generator = np.random.default_rng(kind.id)
    columns = 3 * kind.block_elements
    rows = STRETCH_ELEMENTS // columns + 5
    raw = generator.integers(0, 256, (rows, 3 * kind.block_bytes), np.uint8)
    writer = gguf.GGUFWriter(str(tmp_path / "m.gguf"), "toy")
    writer.add_tensor("w", raw, raw_dtype=gguf.GGMLQuantizationType(kind.id))
    finish(writer)
    with np.errstate(all="ignore"):
        wanted = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType(kind.id))
    found = open_gguf(tmp_path / "m.gguf").read("w").numpy()
    assert found.shape == (rows, columns)
    numbers = np.isfinite(wanted)
    assert numbers.any()
    np.testing.assert_array_equal(np.isfinite(found), numbers)
    assert same_bits(torch.from_numpy(found[numbers]), torch.from_numpy(wanted[numbers]))


def test_plain_types_lie_as_they_are(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    writer = gguf.GGUFWriter(str(tmp_path / "m.gguf"), "toy")
    types = (np.float32, np.float16, np.float64, np.int8, np.int16, np.int32, np.int64)
    wanted = {dtype.__name__: (generator.normal(size=(2, 3, 5)) * 50).astype(dtype) for dtype in types}
    for name, numbers in wanted.items():
        writer.add_tensor(name, numbers)
    brain = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).bfloat16()
    writer.add_tensor("bf16", brain.view(torch.uint8).numpy(), raw_dtype=gguf.GGMLQuantizationType.BF16)
    finish(writer)
    file = open_gguf(tmp_path / "m.gguf")
    for name, numbers in wanted.items():
        assert same_bits(file.read(name), torch.from_numpy(numbers)), name
    assert same_bits(file.read("bf16"), brain)


def finish(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parity
def test_metadata_is_what_the_package_reads(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(str(tmp_path / "m.gguf"), "toy")
    writer.add_uint8("u8", 200)
    writer.add_int8("i8", -100)
    writer.add_uint16("u16", 65535)
    writer.add_int16("i16", -32768)
    writer.add_uint32("u32", 2**32 - 1)
    writer.add_int32("i32", -(2**31))
    writer.add_uint64("u64", 2**64 - 1)
    writer.add_int64("i64", -(2**63))
    writer.add_float32("f32", 0.1)
    writer.add_float64("f64", 0.1)
    writer.add_bool("yes", True)
    writer.add_string("text", "größer als 你好")
    writer.add_array("few", [1, 2, 3])
    writer.add_array("many", list(range(5 * KEPT_ELEMENTS)))
    writer.add_array("words", [f"wörd {number}" for number in range(3 * KEPT_ELEMENTS)])
    writer.add_custom_alignment(64)
    writer.add_tensor("w", np.ones(3, np.float32))
    writer.add_tensor("v", np.full(3, 2, np.float32))
    finish(writer)
    file, reader = open_gguf(tmp_path / "m.gguf"), gguf.GGUFReader(str(tmp_path / "m.gguf"))
    theirs = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert set(file.metadata) == set(theirs)
    for name, value in theirs.items():
        assert (file.array(name) if isinstance(value, list) else file.metadata[name]) == value, name
    assert isinstance(file.metadata["words"], GgufArray)
    assert str(file.metadata["words"]) == f"{3 * KEPT_ELEMENTS} strings"
    assert isinstance(file.metadata["few"], list)
    assert [file.entries[one.name].start for one in reader.tensors] == [one.data_offset for one in reader.tensors]
    assert file.read("v").tolist() == [2, 2, 2]
    assert file.array("none") is None
    with pytest.raises(ModelError, match="no array"):
        file.array("u8")


# What is refused


def array(kind: int, count: int, values: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + values


def with_key(kind: int, value: bytes, name: bytes = b"k") -> RawGguf:
    return GOOD.but(keys=(ARCHITECTURE, key(name, kind, value)))


def with_tensor(*args: Any, **kwargs: Any) -> RawGguf:
    return GOOD.but(tensors=(tensor(*args, **kwargs),))


HOSTILE: dict[str, tuple[RawGguf, str]] = {
    "another format": (GOOD.but(magic=b"APRN"), "not a GGUF file"),
    "the first version": (GOOD.but(version=1), "version of GGUF"),
    "a later version": (GOOD.but(version=4), "version of GGUF"),
    "big-endian": (GOOD.but(version=0x03000000), "big-endian"),
    "2^64 - 1 tensors": (GOOD.but(tensor_count=2**64 - 1), "tensors and"),
    "2^64 - 1 keys": (GOOD.but(key_count=2**64 - 1), "tensors and"),
    "a tensor too many": (GOOD.but(tensor_count=3), "not a whole"),
    "a key too many": (GOOD.but(key_count=2), "not a whole"),
    "a key twice": (GOOD.but(keys=(ARCHITECTURE, ARCHITECTURE)), "twice"),
    "a key of 2^63 bytes": (GOOD.but(keys=(text(b"k", 2**63),)), "a text of"),
    "a key that is no text": (GOOD.but(keys=(key(b"\xff\xfe", 4, bytes(4)),)), "a text before"),
    "a value of 2^63 bytes": (with_key(8, text(b"v", 2**63)), "a text of"),
    "a value beyond the file": (with_key(8, text(b"v", 10**6)), "not a whole"),
    "a value of no type": (with_key(13, bytes(8)), "unknown type 13"),
    "an array of no type": (with_key(9, array(99, 1, bytes(8))), "unknown type 99"),
    "arrays in arrays": (with_key(9, array(9, 1, array(4, 1, bytes(4)))), "array of arrays"),
    "2^63 numbers": (with_key(9, array(12, 2**63)), "not a whole"),
    "2^63 bytes": (with_key(9, array(0, 2**63)), "not a whole"),
    "2^63 strings": (with_key(9, array(8, 2**63)), "strings"),
    "strings beyond the file": (with_key(9, array(8, MAX_STRINGS)), "not a whole"),
    "a string in an array beyond the file": (with_key(9, array(8, 100, text(b"", 2**62))), "not a whole"),
    "an alignment of zero": (with_key(4, bytes(4), b"general.alignment"), "alignment"),
    "an alignment of 48": (with_key(4, struct.pack("<I", 48), b"general.alignment"), "alignment"),
    "an alignment of 2^31": (with_key(4, struct.pack("<I", 2**31), b"general.alignment"), "alignment"),
    "an alignment in words": (with_key(8, text(b"32"), b"general.alignment"), "alignment"),
    "one of several files": (with_key(2, struct.pack("<H", 3), b"split.count"), "several files"),
    "a tensor twice": (GOOD.but(tensors=(tensor(b"a", (2,)), tensor(b"a", (2,), offset=32))), "twice"),
    "tensors that share bytes": (GOOD.but(tensors=(tensor(b"a", (9,)), tensor(b"b", (2,), offset=32))), "share"),
    "a tensor beyond the file": (with_tensor(b"a", (1000,)), "ends at byte"),
    "a tensor far beyond the file": (with_tensor(b"a", (2,), offset=2**63), "ends at byte"),
    "a tensor askew": (with_tensor(b"a", (2,), offset=4), "multiple of 32"),
    "a shape that overflows": (with_tensor(b"a", (2**32, 2**32)), "beyond all measure"),
    "a shape that overflows to zero": (with_tensor(b"a", (2**62, 4, 0)), "beyond all measure"),
    "five dimensions": (with_tensor(b"a", (1, 1, 1, 1, 1)), "5 dimensions"),
    "2^32 - 1 dimensions": (with_tensor(b"a", (1,), dimensions=2**32 - 1), "dimensions"),
    "a type that was taken back": (with_tensor(b"a", (32,), 4), "type id 4"),
    "a type that nobody knows": (with_tensor(b"a", (32,), 1000), "type id 1000"),
    "rows of half a block": (with_tensor(b"a", (16,), 8), "whole blocks"),
    "a type of intermediate results": (with_tensor(b"a", (32,), 9), "intermediate"),
    "a name of 2^63 bytes": (GOOD.but(tensors=(text(b"a", 2**63),)), "a text of"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_such_file_is_refused_in_little_memory(name: str, tmp_path: Path) -> None:
    raw, words = HOSTILE[name]
    path = written(tmp_path / "m.gguf", raw)
    tracemalloc.start()
    try:
        with pytest.raises(ModelError, match=words) as caught:
            read_all(path)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20  # a window of 1 MB, twice, and small change
    finally:
        tracemalloc.stop()
    assert str(path) in str(caught.value)


def test_strings_over_several_stretches_of_reading(tmp_path: Path) -> None:
    """3 MB of them, some longer than what is read at a time."""
    generator = np.random.default_rng(0)
    lengths = [*generator.integers(0, 2000, 2000).tolist(), 1 << 20, 0, 3 << 19, 1]
    words = [bytes(generator.integers(97, 123, length, np.uint8)) for length in lengths]
    raw = with_key(9, array(8, len(words), b"".join(text(word) for word in words)))
    file = open_gguf(written(tmp_path / "m.gguf", raw))
    assert file.read("b").tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    assert file.array("k") == [word.decode() for word in words]


def test_a_long_array_is_not_kept(tmp_path: Path) -> None:
    """The package's reader would make a numpy array of each of these bytes."""
    path = written(tmp_path / "m.gguf", with_key(9, array(0, 1 << 24, bytes(1 << 24))))
    tracemalloc.start()
    try:
        file = read_without_arrays(path)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    assert str(file.metadata["k"]) == f"{1 << 24} numbers"


def read_without_arrays(path: Path) -> GgufFile:
    file = open_gguf(path)
    for name in file.entries:
        file.read(name)
    return file


def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    raw = with_key(9, array(8, 2, text(b"one") + text(b"two"))).pack()
    assert set(read_all(written(tmp_path / "m.gguf", raw)).entries) == {"a", "b"}
    for length in range(len(raw)):
        with pytest.raises(ModelError):
            read_all(written(tmp_path / "m.gguf", raw[:length]))


def test_a_file_that_became_shorter(tmp_path: Path) -> None:
    path = written(tmp_path / "m.gguf", GOOD)
    file = open_gguf(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelError, match="ends inside"):
        file.read("b")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_changed_bytes_end_in_numbers_or_in_our_error(data: st.DataObject, tmp_path_factory: Any) -> None:
    raw = bytearray(with_key(9, array(8, 2, text(b"one") + text(b"two"))).pack())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "fuzzed.gguf"
    path.write_bytes(bytes(raw))
    try:
        file = read_all(path)
    except ModelError:
        return
    assert len(file.entries) <= 2


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot read"):
        open_gguf(tmp_path / "gone.gguf")
