"""APR files that are not what they say: a ``ModelError`` that names what is wrong, and no memory for it.

Files are put together from the layout by ``reference.apr``, so each lies in one place only.
"""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qlassify.errors import ModelError
from qlassify.formats.apr import AprFile, open_apr
from qlassify.formats.apr_types import TYPES
from reference.apr import ROW_MAJOR, RawFile, RawTensor, metadata, padded

A = RawTensor(b"a", 0, (2,), struct.pack("<ff", 1, 2))
B = RawTensor(b"b", 0, (2, 3), bytes(24))
GOOD = RawFile((A, B), metadata(model_type="toy", hidden_size=4))
DEEP = 100_000


def one(raw: RawTensor) -> RawFile:
    return RawFile((raw,))


def written(path: Path, file: RawFile | bytes) -> Path:
    path.write_bytes(file if isinstance(file, bytes) else file.pack())
    return path


def read_all(path: Path) -> AprFile:
    file = open_apr(path, verify=True)
    for name in file.entries:
        file.read(name)
    return file


HOSTILE: dict[str, RawFile] = {
    "another format": GOOD.but(magic=b"GGUF"),
    "nothing of a magic": GOOD.but(magic=b"\0\0\0\0"),
    "a later version": GOOD.but(version=(3, 0)),
    "a later minor version": GOOD.but(version=(2, 1)),
    "encrypted": GOOD.but(flags=ROW_MAJOR | 0x0004),
    "columns first": GOOD.but(flags=0x0800),
    "rows and columns first": GOOD.but(flags=0x0C00),
    "a flag that nobody knows": GOOD.but(flags=ROW_MAJOR | 0x4000),
    "two compressions": GOOD.but(flags=ROW_MAJOR | 3),
    "a wrong header checksum": GOOD.but(header_checksum=1),
    "a wrong footer": GOOD.but(footer=b"\0\0\0\0"),
    "no footer": GOOD.but(footer=b""),
    "4 GiB of metadata": GOOD.but(metadata_bytes=2**32 - 1),
    "more metadata than there is file": GOOD.but(metadata_bytes=1 << 20),
    "metadata in the header": GOOD.but(metadata_offset=0),
    "metadata far away": GOOD.but(metadata_offset=2**63),
    "metadata over the index": GOOD.but(metadata_bytes=128),
    "an index before the metadata": GOOD.but(index_offset=64),
    "an index beyond the file": GOOD.but(index_offset=1 << 40, data_offset=1 << 40),
    "data before the index": GOOD.but(data_offset=128),
    "data beyond the file": GOOD.but(data_offset=2**63),
    "four billion tensors": GOOD.but(count=2**32 - 1),
    "one tensor too many": GOOD.but(count=3),
    "one tensor too many for the index": GOOD.but(count=4),
    "no JSON": GOOD.but(metadata=b"{]"),
    "no metadata": GOOD.but(metadata=b""),
    "a list": GOOD.but(metadata=b"[1]"),
    "null": GOOD.but(metadata=b"null"),
    "two documents": GOOD.but(metadata=b"{}{}"),
    "metadata that is no text": GOOD.but(metadata=b'{"a":"\xff"}'),
    "not a number": GOOD.but(metadata=b'{"a":NaN}'),
    "infinity": GOOD.but(metadata=b'{"a":-Infinity}'),
    "a key twice": GOOD.but(metadata=b'{"a":1,"a":2}'),
    "a key twice further down": GOOD.but(metadata=b'{"z":{"a":1,"a":2}}'),
    "deep lists": GOOD.but(metadata=b"[" * DEEP + b"]" * DEEP),
    "deep objects": GOOD.but(metadata=b'{"a":' * DEEP + b"1" + b"}" * DEEP),
    "a number without end": GOOD.but(metadata=b'{"a":' + b"9" * 10_000 + b"}"),
    "a text for a number": GOOD.but(metadata=metadata(hidden_size="4")),
    "a truth for a number": GOOD.but(metadata=metadata(num_layers=True)),
    "a negative size": GOOD.but(metadata=metadata(vocab_size=-1)),
    "a size beyond all measure": GOOD.but(metadata=metadata(vocab_size=2**70)),
    "a fraction of a layer": GOOD.but(metadata=metadata(num_layers=1.5)),
    "a number for a text": GOOD.but(metadata=metadata(architecture=3)),
    "a list for an object": GOOD.but(metadata=metadata(special_tokens=[])),
    "a type that nobody knows": one(RawTensor(b"a", 77, (2,), bytes(8))),
    "nine dimensions": one(RawTensor(b"a", 0, (1,) * 9, bytes(4))),
    "255 dimensions": one(RawTensor(b"a", 0, (1,) * 255, bytes(4))),
    "more elements than bytes": one(RawTensor(b"a", 0, (3,), bytes(8))),
    "fewer elements than bytes": one(RawTensor(b"a", 0, (1,), bytes(8))),
    "elements that overflow": one(RawTensor(b"a", 0, (2**62, 2**62), bytes(8))),
    "elements that overflow to what is there": one(RawTensor(b"a", 0, (2**33, 2**31, 2), b"")),
    "nothing in dimensions beyond all measure": one(RawTensor(b"a", 0, (0, 2**63), b"")),
    "nothing in many large dimensions": one(RawTensor(b"a", 0, (0, 2**40, 2**40), b"")),
    "an offset beyond the data": one(RawTensor(b"a", 0, (2,), bytes(8), offset=64)),
    "an offset that wraps around": one(RawTensor(b"a", 0, (2,), bytes(8), offset=2**64 - 8)),
    "a size that wraps around": one(RawTensor(b"a", 0, (2,), bytes(8), size=2**64 - 1)),
    "a tensor over the footer": one(RawTensor(b"a", 7, (65,), bytes(64), size=65)),
    "a name that is no text": one(RawTensor(b"\xff", 0, (2,), bytes(8))),
    "a name that is too long": one(RawTensor(b"n" * 257, 0, (2,), bytes(8))),
    "a name twice": RawFile((A, A)),
    "unsorted names": RawFile((B, A)),
    "bytes that two tensors share": RawFile((A, RawTensor(b"b", 0, (2,), bytes(8), offset=4))),
    "bytes that two tensors have": RawFile((A, RawTensor(b"b", 0, (2,), bytes(8), offset=0))),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_that_contradicts_itself_is_refused(name: str, tmp_path: Path) -> None:
    path = written(tmp_path / "a.apr", HOSTILE[name])
    tracemalloc.start()
    try:
        with pytest.raises(ModelError) as caught:
            read_all(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "a.apr" in str(caught.value.where)
    # Parsing the deepest of the texts above, 600 kB, takes copies of it; nothing here has a reason for more.
    assert peak < 8_000_000


def test_the_good_file_of_the_cases_above_is_good(tmp_path: Path) -> None:
    """They are refused for what is wrong with them, then, and not for something that they all have."""
    file = read_all(written(tmp_path / "a.apr", GOOD))
    assert file.read("a").tolist() == [1, 2]
    assert file.metadata.typed == {"model_type": "toy", "hidden_size": 4}


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (b"APRN" + bytes(60), "version 1"),
        (b"APR1" + bytes(60), "Whisper"),
        (b"", "not an APR file"),
        (b"APR\0", "not a whole APR file"),
        (b"\x80\x04\x95" + bytes(100), "not an APR file"),
    ],
)
def test_other_files_are_named(start: bytes, words: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=words):
        open_apr(written(tmp_path / "a.apr", start))


def test_the_other_magic_of_version_2_is_read(tmp_path: Path) -> None:
    assert list(read_all(written(tmp_path / "a.apr", GOOD.but(magic=b"APR2"))).entries) == ["a", "b"]


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    raw = GOOD.pack()
    path = tmp_path / "a.apr"
    for length in (*range(64), *range(64, len(raw), 7), len(raw) - 1):
        path.write_bytes(raw[:length])
        with pytest.raises(ModelError):
            read_all(path)


def test_a_missing_file_is_an_error_of_ours(tmp_path: Path) -> None:
    for path in (tmp_path / "none.apr", tmp_path):
        with pytest.raises(ModelError, match="cannot read the file"):
            open_apr(path)


def test_data_need_not_lie_in_the_order_of_the_index(tmp_path: Path) -> None:
    """The streaming writer sorts the index alone."""
    first = RawTensor(b"a", 7, (2,), b"\1\2", offset=64)
    second = RawTensor(b"b", 7, (3,), b"\3\4\5", offset=0)
    # Their data are laid down in the order of the tuple, so b's bytes are put where the offsets say by hand.
    raw = RawFile((first, second)).pack()
    data = len(raw) - 4 - 128
    raw = raw[:data] + padded(second.data) + padded(first.data) + raw[-4:]
    file = open_apr(written(tmp_path / "a.apr", raw))
    assert file.read("a").tolist() == [1, 2]
    assert file.read("b").tolist() == [3, 4, 5]


@pytest.mark.parametrize("kind", [kind for kind in TYPES if kind.plain], ids=lambda kind: kind.name)
def test_plain_types_come_back_bit_for_bit(kind: object, tmp_path: Path) -> None:
    """With any bits: NaN, infinities, negative zeros. To refuse them is not for whoever looks at a file."""
    raw = np.random.default_rng(3).integers(0, 256, size=6 * kind.block_bytes, dtype=np.uint8)  # type: ignore[attr-defined]
    tensor = RawTensor(b"w", kind.id, (2, 3), raw.tobytes())  # type: ignore[attr-defined]
    found = open_apr(written(tmp_path / "a.apr", one(tensor))).read("w")
    assert found.dtype == kind.decoded  # type: ignore[attr-defined]
    assert found.shape == (2, 3)
    assert found.view(torch.uint8).reshape(-1).numpy().tobytes() == raw.tobytes()


def test_a_file_that_became_shorter_is_noticed(tmp_path: Path) -> None:
    path = written(tmp_path / "a.apr", GOOD)
    file = open_apr(path)
    path.write_bytes(path.read_bytes()[:-80])
    assert file.read("a").tolist() == [1, 2]
    with pytest.raises(ModelError, match="ends inside a tensor") as caught:
        file.read("b")
    assert caught.value.where == f"{path}: b"


ALL_TYPES = RawFile(
    tuple(
        RawTensor(kind.name.lower().encode(), kind.id, (2, 40), bytes(kind.flat_bytes((2, 40))))
        for kind in sorted(TYPES, key=lambda kind: kind.name.lower())
    ),
    metadata(model_type="toy", hidden_size=4, special_tokens={"bos_token": "x"}, other=[1, {"a": None}]),
).pack()


@given(
    changes=st.lists(st.tuples(st.integers(0, len(ALL_TYPES) - 1), st.integers(0, 255)), max_size=6),
    cut=st.integers(0, len(ALL_TYPES)),
    mend=st.booleans(),
)
@settings(max_examples=60)
@example(changes=[], cut=len(ALL_TYPES), mend=False)
def test_any_bytes_give_tensors_or_an_error_of_ours(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]], cut: int, mend: bool
) -> None:
    """Changed bytes, then a cut; half of them with a header checksum that is right again, so that more is reached."""
    import zlib

    raw = bytearray(ALL_TYPES)
    for position, value in changes:
        raw[position] = value
    del raw[cut:]
    if mend and len(raw) >= 64:
        raw[40:44] = struct.pack("<I", zlib.crc32(bytes(raw[44:64]), zlib.crc32(bytes(raw[:40]))))
    path = tmp_path_factory.getbasetemp() / "fuzzed.apr"
    path.write_bytes(bytes(raw))
    tracemalloc.start()
    try:
        file = open_apr(path)
        decoded = sum(file.read(name).nbytes for name in file.entries)
        # All types at 80 elements, or what a changed shape makes of the same bytes: at most fp32 from half a byte.
        assert decoded <= 8 * 2 * len(ALL_TYPES)
    except ModelError:
        assert changes or cut < len(ALL_TYPES)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 4_000_000
