"""safetensors files, read and written: against the format's own library both ways, and against headers that lie.

A file is read by ``open_safetensors`` (header) and ``SafetensorsFile.read`` (one tensor). Whatever a file holds, the
outcome is tensors or a ``ModelError``.
"""

from __future__ import annotations

import json
import os
import stat
import struct
import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from torch import Tensor

from qlassify.errors import ModelError
from qlassify.formats.safetensors import DTYPES, SafetensorsFile, open_safetensors, tensor_bytes, write_safetensors
from reference.quant import same_bits

TYPES = tuple(DTYPES.values())


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """Of every type, down to no dimension and no element, with any bits: NaN, infinities, negative zeros."""
    dtype = draw(st.sampled_from(TYPES))
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=4)))
    generator = np.random.default_rng(draw(st.integers(0, 2**31)))
    count = int(np.prod(shape, dtype=np.int64))
    raw = generator.integers(0, 256, size=count * dtype.itemsize, dtype=np.uint8)
    if dtype == torch.bool:
        raw &= 1
    return torch.empty(len(raw), dtype=torch.uint8).copy_(torch.from_numpy(raw)).view(dtype).view(shape)


# Any text but the one name that means something else; lone surrogates are no text.
names = st.text(st.characters(exclude_categories=("Cs",)), max_size=12).filter(lambda name: name != "__metadata__")
contents = st.dictionaries(names, tensors(), max_size=6)
free_text = st.dictionaries(names, st.text(st.characters(exclude_categories=("Cs",)), max_size=12), max_size=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all examples of a property; each writes over the one before."""
    return tmp_path_factory.mktemp("files")


def raw_file(path: Path, header: object, body: bytes = bytes(64)) -> Path:
    """A file with this header, given as bytes or as what becomes JSON."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return path


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        assert found[name].shape == tensor.shape, name
        assert same_bits(found[name], tensor), name


# Round trips


@given(contents=contents, metadata=free_text)
def test_the_library_reads_what_we_write(folder: Path, contents: dict[str, Tensor], metadata: dict[str, str]) -> None:
    path = folder / "ours.safetensors"
    write_safetensors(path, contents, metadata)
    assert_same(safetensors.torch.load_file(str(path)), contents)
    with safetensors.safe_open(str(path), "pt") as file:
        assert (file.metadata() or {}) == metadata


@given(contents=contents, metadata=free_text)
def test_we_read_what_the_library_writes(folder: Path, contents: dict[str, Tensor], metadata: dict[str, str]) -> None:
    # Of nothing at all, safetensors 0.8 makes a header that is no JSON: {},"__metadata__":{}}
    assume(contents or metadata)
    path = folder / "theirs.safetensors"
    path.write_bytes(safetensors.torch.save(contents, metadata=metadata))
    file = open_safetensors(path)
    assert file.metadata == metadata
    assert_same({name: file.read(name) for name in file.entries}, contents)
    assert {name: (one.dtype, one.shape) for name, one in file.entries.items()} == {
        name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in contents.items()
    }


@given(contents=contents)
def test_we_read_what_we_write_in_its_order(folder: Path, contents: dict[str, Tensor]) -> None:
    path = folder / "round.safetensors"
    write_safetensors(path, contents, {})
    first = path.read_bytes()
    file = open_safetensors(path)
    assert list(file.entries) == list(contents)
    assert file.data_start % 8 == 0
    assert len(first) == file.data_start + sum(tensor.nbytes for tensor in contents.values())
    assert first[file.data_start :] == b"".join(bytes(chunk) for chunk in tensor_bytes(contents))
    assert_same({name: file.read(name) for name in file.entries}, contents)
    write_safetensors(path, {name: file.read(name) for name in file.entries}, {})
    assert path.read_bytes() == first


def test_strides_gradients_and_parts_of_a_tensor_do_not_show(tmp_path: Path) -> None:
    whole = torch.arange(24, dtype=torch.float32).view(4, 6)
    contents = {
        "transposed": whole.T,
        "column": whole[:, 2],
        "rows": whole[1:3],
        "expanded": whole[:1].expand(3, 6),
        "parameter": torch.nn.Parameter(whole.clone()),
    }
    write_safetensors(tmp_path / "a.safetensors", contents, {})
    found = safetensors.torch.load_file(str(tmp_path / "a.safetensors"))
    for name, tensor in contents.items():
        assert torch.equal(found[name], tensor.detach()), name
    assert (tmp_path / "a.safetensors").stat().st_size < 4 * (24 + 4 + 12 + 18 + 24) + 1000, "only what is seen"


def test_a_tensor_is_written_from_where_it_lies() -> None:
    """A copy of a large one would be the second largest thing in memory."""
    tensor = torch.arange(6, dtype=torch.bfloat16).view(2, 3)
    (chunk,) = tensor_bytes({"a": tensor})
    assert np.frombuffer(chunk, np.uint8).ctypes.data == tensor.data_ptr()


# Reading


def test_a_tensor_that_was_read_is_its_own(tmp_path: Path) -> None:
    """No page of the file: it survives it, can be changed, and changes nothing."""
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {"a": torch.arange(5.0), "b": torch.arange(5.0)}, {})
    file = open_safetensors(path)
    first, second = file.read("a"), file.read("a")
    first.add_(1)
    assert torch.equal(second, torch.arange(5.0))
    path.write_bytes(bytes(path.stat().st_size))
    assert torch.equal(second, torch.arange(5.0))
    assert first.untyped_storage().nbytes() == 20


def test_a_tensor_after_an_odd_number_of_bytes(tmp_path: Path) -> None:
    """4-bit codes end where they end; what comes after them does not begin at a multiple of its size."""
    contents = {"codes": torch.arange(3, dtype=torch.uint8), "scales": torch.randn(2), "mean": torch.tensor(0.5)}
    write_safetensors(tmp_path / "a.safetensors", contents, {})
    file = open_safetensors(tmp_path / "a.safetensors")
    assert_same({name: file.read(name) for name in file.entries}, contents)
    assert_same(safetensors.torch.load_file(str(tmp_path / "a.safetensors")), contents)


def test_a_file_that_became_shorter_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {"first": torch.zeros(4), "last": torch.zeros(4)}, {})
    file = open_safetensors(path)
    path.write_bytes(path.read_bytes()[:-1])
    assert torch.equal(file.read("first"), torch.zeros(4))
    with pytest.raises(ModelError, match="ends inside a tensor") as caught:
        file.read("last")
    assert caught.value.where == f"{path}: last"


def test_a_read_in_pieces_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system may give fewer bytes than were asked for; from 2 GiB on it always does."""
    import io

    path = tmp_path / "a.safetensors"
    wanted = torch.arange(1000.0)
    write_safetensors(path, {"a": wanted}, {})
    file = open_safetensors(path)

    class Hesitant(io.FileIO):
        def readinto(self, buffer: Any) -> int:
            return super().readinto(memoryview(buffer)[:7])

    class HesitantPath(type(path)):  # type: ignore[misc]
        def open(self, *_: object, **__: object) -> Any:
            return Hesitant(str(self), "rb")

    slow = SafetensorsFile(HesitantPath(path), file.entries, file.metadata, file.data_start)
    assert torch.equal(slow.read("a"), wanted)


# Files that are not what they say


DEEP = 100_000

HOSTILE: dict[str, object] = {
    "a list": [1, 2],
    "a number": b"12",
    "a text": b'"ab"',
    "null": b"null",
    "no JSON": b"{]",
    "two documents": b"{}{}",
    "bytes that are no text": b'{"\xff": 1}',
    "deep lists": b"[" * DEEP + b"]" * DEEP,
    "deep objects": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "a number without end": b'{"a":{"dtype":"F32","shape":[' + b"9" * 10_000 + b'],"data_offsets":[0,8]}}',
    "not a number": b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}',
    "an entry that is a list": {"a": [1]},
    "an entry that is null": {"a": None},
    "an entry that is a number": {"a": 3},
    "an entry that is a text": {"a": "dtype"},
    "no type": {"a": {"shape": [2], "data_offsets": [0, 8]}},
    "no shape": {"a": {"dtype": "F32", "data_offsets": [0, 8]}},
    "no range": {"a": {"dtype": "F32", "shape": [2]}},
    "a type that is not read": {"a": entry("F8_E4M3", [2], [0, 2])},
    "a type in small letters": {"a": entry("f32")},
    "a type that is null": {"a": entry(None)},
    "a type that is a list": {"a": entry(["F32"])},
    "a type that is an object": {"a": entry({})},
    "another type than the bytes": {"a": entry("F64")},
    "a shape that is a number": {"a": entry(shape=2)},
    "a shape that is null": {"a": entry(shape=None)},
    "a shape that is a text": {"a": entry(shape="2")},
    "a shape that is an empty text": {"a": entry(shape="", offsets=[0, 4])},
    "a shape that is an object": {"a": entry(shape={"2": 2})},
    "a shape that is an empty object": {"a": entry(shape={}, offsets=[0, 4])},
    "a shape of lists": {"a": entry(shape=[[2]])},
    "a shape of truths": {"a": entry(shape=[True, True], offsets=[0, 4])},
    "a shape of fractions": {"a": entry(shape=[2.0])},
    "a shape of texts": {"a": entry(shape=["2"])},
    "a negative shape": {"a": entry(shape=[-2], offsets=[8, 0])},
    "two negative numbers": {"a": entry(shape=[-2, -1])},
    "more elements than bytes": {"a": entry(shape=[3])},
    "fewer elements than bytes": {"a": entry(shape=[1])},
    "more elements than can be": {"a": entry(shape=[2**62, 2**62])},
    "no element in more dimensions than can be": {"a": entry(shape=[0, 2**70], offsets=[0, 0])},
    "a range that is a text": {"a": entry(offsets="08")},
    "a range of one": {"a": entry(offsets=[8])},
    "a range of three": {"a": entry(offsets=[0, 8, 8])},
    "a range of fractions": {"a": entry(offsets=[0.0, 8.0])},
    "a range of truths": {"a": entry("U8", [1], [False, True])},
    "a range before the data": {"a": entry(offsets=[-8, 0])},
    "a range from end to start": {"a": entry(offsets=[8, 0])},
    "a range beyond the file": {"a": entry(offsets=[60, 68])},
    "a range far beyond the file": {"a": entry(offsets=[2**62, 2**62 + 8])},
    "a tensor larger than the file": {"a": entry(shape=[2**40], offsets=[0, 2**42])},
    "bytes that two tensors share": {"a": entry(), "b": entry(offsets=[4, 12])},
    "bytes that two tensors have": {"a": entry(), "b": entry()},
    "free text that is null": {"__metadata__": None, "a": entry()},
    "free text that is a number": {"__metadata__": 5, "a": entry()},
    "free text that is a text": {"__metadata__": "ab", "a": entry()},
    "free text that is a list": {"__metadata__": [["a", "b"]], "a": entry()},
    "a name twice": b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},'
    b'"a":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}}',
    "text in pairs of bytes": json.dumps({"a": entry()}).encode("utf-16"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_header_that_lies_is_refused(name: str, tmp_path: Path) -> None:
    path = raw_file(tmp_path / "a.safetensors", HOSTILE[name])
    tracemalloc.start()
    try:
        with pytest.raises(ModelError) as caught:
            open_safetensors(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert str(path) in (caught.value.where or "")
    # The header's text, what it parses into, and the message; nothing that a number in it asks for.
    assert peak < 50 * path.stat().st_size + 1_000_000


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x02",
        struct.pack("<Q", 2),
        struct.pack("<Q", 0) + b"{}",
        struct.pack("<Q", 1) + b"{}",
        struct.pack("<Q", 3) + b"{}",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<q", -1) + b"{}",
        struct.pack("<Q", 100_000_001) + b"{}",
        b"not a tensor file at all",
        b"PK\x03\x04 pickled tensors in an archive",
    ],
    ids=lambda content: repr(content)[:24],
)
def test_a_length_that_lies_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="not a whole safetensors file"):
        open_safetensors(path)


def test_a_header_larger_than_allowed_is_not_read(tmp_path: Path) -> None:
    """A file of zeros that takes no space on the disk and would take 100 MB of memory."""
    path = tmp_path / "a.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 150_000_000))
        file.truncate(200_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(ModelError):
            open_safetensors(path)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["missing", "a folder"])
def test_what_is_no_file_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    if kind == "a folder":
        path.mkdir()
    with pytest.raises(ModelError) as caught:
        open_safetensors(path)
    assert caught.value.where == str(path)


@given(contents=contents, data=st.data())
def test_a_file_cut_anywhere_is_refused(folder: Path, contents: dict[str, Tensor], data: st.DataObject) -> None:
    path = folder / "cut.safetensors"
    write_safetensors(path, contents, {"format": "pt"})
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(ModelError):
        open_safetensors(path)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.sampled_from([0, 1, 2, 4, 8, 16, 64])
    | st.floats(allow_nan=True)
    | st.text(max_size=4)
    | st.sampled_from(["F32", "U8", "BOOL", "I64"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
entries = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "U8", "BOOL"]) | json_values,
        "shape": st.lists(st.integers(0, 4), max_size=3) | json_values,
        "data_offsets": st.tuples(st.integers(0, 70), st.integers(0, 70)).map(list) | json_values,
    },
)
headers = (
    st.dictionaries(st.sampled_from(["a", "b", "__metadata__"]), entries | json_values, max_size=3)
    | json_values
    | st.binary(max_size=40)
)


@given(header=headers, body=st.integers(0, 70))
@example(header={"__metadata__": None}, body=64)
def test_any_header_is_read_or_refused(folder: Path, header: object, body: int) -> None:
    """And what is read lies inside the file, so no tensor is larger than the file."""
    path = raw_file(folder / "any.safetensors", header, bytes(body))
    try:
        file = open_safetensors(path)
    except ModelError:
        return
    for name, one in file.entries.items():
        assert file.data_start <= one.start <= one.start + one.nbytes <= path.stat().st_size
        tensor = file.read(name)
        assert (tensor.dtype, tuple(tensor.shape), tensor.nbytes) == (one.dtype, one.shape, one.nbytes)


@given(contents=contents, position=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_a_flipped_bit_is_refused_or_gives_tensors(
    folder: Path, contents: dict[str, Tensor], position: int, bit: int
) -> None:
    path = folder / "flipped.safetensors"
    write_safetensors(path, contents, {"format": "pt"})
    whole = bytearray(path.read_bytes())
    whole[position % len(whole)] ^= 1 << bit
    path.write_bytes(whole)
    try:
        file = open_safetensors(path)
    except ModelError:
        return
    for name in file.entries:
        file.read(name)


# Writing


def test_a_tensor_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    """The second of three has no numbers; the first is on the disk by then."""
    path = tmp_path / "a.safetensors"
    broken = {"first": torch.zeros(4), "second": torch.zeros(4, device="meta"), "third": torch.zeros(4)}
    with pytest.raises((NotImplementedError, RuntimeError)):
        write_safetensors(path, broken, {})
    assert list(tmp_path.iterdir()) == []
    write_safetensors(path, {"before": torch.ones(3)}, {})
    before = path.read_bytes()
    with pytest.raises((NotImplementedError, RuntimeError)):
        write_safetensors(path, broken, {})
    with pytest.raises(KeyError):
        write_safetensors(path, {"a": torch.zeros(2, dtype=torch.complex64)}, {})
    assert [one.name for one in tmp_path.iterdir()] == ["a.safetensors"]
    assert path.read_bytes() == before


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {"before": torch.ones(3)}, {})
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_safetensors(path, {"after": torch.zeros(3)}, {})
    assert [one.name for one in tmp_path.iterdir()] == ["a.safetensors"]
    assert path.read_bytes() == before


def test_an_interruption_leaves_what_was_there(tmp_path: Path) -> None:
    class Interrupting(dict[str, Tensor]):
        """Ctrl-C while the second tensor is taken."""

        def values(self) -> Iterator[Tensor]:  # type: ignore[override]
            yield torch.zeros(4)
            raise KeyboardInterrupt

    path = tmp_path / "a.safetensors"
    with pytest.raises(KeyboardInterrupt):
        write_safetensors(path, Interrupting(first=torch.zeros(4), second=torch.zeros(4)), {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600), (0o002, 0o664)])
def test_the_files_mode_is_that_of_any_new_file(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        write_safetensors(tmp_path / "a.safetensors", {"a": torch.zeros(2)}, {})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.safetensors").stat().st_mode) == mode


def test_a_file_that_is_being_read_is_not_changed_under_the_reader(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {"a": torch.ones(3)}, {})
    with path.open("rb") as reader:
        write_safetensors(path, {"a": torch.zeros(300)}, {})
        old = Path(tempfile.mkdtemp(dir=tmp_path)) / "old.safetensors"
        old.write_bytes(reader.read())
    assert torch.equal(open_safetensors(old).read("a"), torch.ones(3))
    assert open_safetensors(path).read("a").shape == (300,)


def test_a_folder_that_is_not_there_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        write_safetensors(tmp_path / "no" / "a.safetensors", {"a": torch.zeros(2)}, {})


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "bare"])
def test_a_pickle_under_the_name_is_refused(legacy: bool, tmp_path: Path) -> None:
    """Its first eight bytes are the length of no header; nothing of it is run."""
    path = tmp_path / "model.safetensors"
    torch.save({"a": torch.zeros(3)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ModelError, match="not a whole safetensors file"):
        open_safetensors(path)
