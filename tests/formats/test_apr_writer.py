"""Written APR files: deterministic, canonical, whole or not there, within the rules for their kind of file."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qlassify.errors import ModelError
from qlassify.formats.apr import open_apr
from qlassify.formats.apr_header import Flags
from qlassify.formats.apr_metadata import TYPED, AprMetadata
from qlassify.formats.apr_types import APR_Q4, APR_Q8, BF16, F16, F32, PLAIN, Q4_K, Q6_K, AprType
from qlassify.formats.apr_writer import AprTensor, copy_apr, write_apr
from reference.apr import RawFile, RawTensor, metadata
from reference.quant import same_bits

NOTHING = AprMetadata({}, {})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all examples of a property; each writes over the one before."""
    return tmp_path_factory.mktemp("apr")


names = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12)
shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """Of every plain type, finite."""
    dtype = draw(st.sampled_from(list(PLAIN)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    return (torch.randn(draw(shapes), generator=generator) * 30).to(dtype)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | names,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)
custom = st.dictionaries(names.filter(lambda name: name not in TYPED), values, max_size=4)


@given(contents=st.dictionaries(names, tensors(), max_size=5), said=custom)
@settings(max_examples=40)
def test_fckpt_015_what_was_written_is_read_and_written_again_bit_for_bit(
    folder: Path, contents: dict[str, Tensor], said: dict[str, Any]
) -> None:
    path, again = folder / "a.apr", folder / "b.apr"
    made = AprMetadata.of({**said, "model_type": "toy", "hidden_size": 3})
    write_apr(path, {name: AprTensor.of(tensor) for name, tensor in contents.items()}, made)
    file = open_apr(path, verify=True)
    assert list(file.entries) == sorted(contents, key=lambda name: name.encode())
    assert (file.metadata.typed, file.metadata.custom) == (made.typed, made.custom)
    for name, tensor in contents.items():
        assert file.read(name).shape == tensor.shape
        assert same_bits(file.read(name), tensor), name
        assert file.entries[name].start % 64 == 0
    copy_apr(file, again)
    assert again.read_bytes() == path.read_bytes()
    reordered = dict(reversed(contents.items()))
    write_apr(again, {name: AprTensor.of(tensor) for name, tensor in reordered.items()}, made)
    assert again.read_bytes() == path.read_bytes(), "the order in which tensors are given does not show"


@pytest.mark.parametrize("kind", [Q4_K, Q6_K, APR_Q4, APR_Q8], ids=lambda kind: kind.name)
def test_blocks_are_copied_byte_for_byte(kind: AprType, tmp_path: Path) -> None:
    """Decoding and encoding again would give others; rows padded to whole blocks stay so."""
    shape = (3, 300)
    size = kind.row_bytes(shape) if kind.by_row else kind.flat_bytes(shape)
    # Bytes of 0x2c make factors of 0.0664 in fp16 and of 2.4e-12 in fp32.
    raw = bytes([0x2C]) * size
    path = tmp_path / "a.apr"
    path.write_bytes(RawFile((RawTensor(b"w", kind.id, shape, raw),), metadata(zeta=1, model_type="toy")).pack())
    file = open_apr(path)
    copy_apr(file, tmp_path / "b.apr")
    copy = open_apr(tmp_path / "b.apr", verify=True)
    assert b"".join(bytes(part) for part in copy.stored("w")) == raw
    assert torch.equal(copy.read("w"), file.read("w"))
    assert copy.metadata.text() == b'{"model_type":"toy","zeta":1}'
    copy_apr(copy, tmp_path / "c.apr")
    assert (tmp_path / "c.apr").read_bytes() == (tmp_path / "b.apr").read_bytes()


def test_metadata_is_canonical(tmp_path: Path) -> None:
    made = AprMetadata.of(
        {"é": 1, "z": {"b": 1, "a": [1.0, 1e30]}, "a": "ü\n", "rope_theta": 1e6, "name": "x", "author": None}
    )
    assert made.text() == '{"name":"x","rope_theta":1000000.0,"a":"ü\\n","z":{"b":1,"a":[1.0,1e+30]},"é":1}'.encode()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, b"bytes", "\ud800"])
def test_metadata_that_json_cannot_say_is_refused(value: object) -> None:
    with pytest.raises(ModelError, match="metadata that cannot be written"):
        AprMetadata.of({"a": value}).text()


def test_flags_follow_from_the_contents(tmp_path: Path) -> None:
    def flags(tensor: AprTensor, *, given: Flags = Flags(0), **said: Any) -> Flags:  # noqa: B008 - a constant
        path = tmp_path / "a.apr"
        write_apr(path, {"a": tensor}, AprMetadata.of(said), flags=given)
        return open_apr(path).header.flags

    plain, few = AprTensor.of(torch.ones(3)), AprTensor.of(torch.ones(3), APR_Q8)
    assert flags(plain) == Flags.ROW_MAJOR
    assert flags(few) == Flags.ROW_MAJOR | Flags.QUANTIZED
    assert flags(plain, **{"tokenizer.vocabulary": ["a"]}) == Flags.ROW_MAJOR | Flags.HAS_VOCAB
    assert flags(plain, sharding={"shard_count": 2}) == Flags.ROW_MAJOR | Flags.SHARDED
    assert flags(plain, given=Flags.MODEL_CARD | Flags.LZ4 | Flags.SIGNED) == Flags.ROW_MAJOR | Flags.MODEL_CARD


@pytest.mark.parametrize("kind", [F32, F16, BF16, APR_Q4, APR_Q8], ids=lambda kind: kind.name)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_fckpt_007_numbers_that_are_not_finite_are_not_written(kind: AprType, bad: float, tmp_path: Path) -> None:
    tensor = torch.ones(70_000)
    tensor[69_999] = bad
    with pytest.raises(ModelError, match="not finite") as caught:
        write_apr(tmp_path / "a.apr", {"good": AprTensor.of(torch.ones(2)), "w": AprTensor.of(tensor, kind)}, NOTHING)
    assert caught.value.where == f"{tmp_path / 'a.apr'}: w"
    assert "position 69999 of 70000" in str(caught.value.got)
    assert list(tmp_path.iterdir()) == []


def test_fckpt_007_nor_copied(tmp_path: Path) -> None:
    path = tmp_path / "a.apr"
    path.write_bytes(RawFile((RawTensor(b"w", 0, (1,), struct.pack("<f", float("nan"))),)).pack())
    with pytest.raises(ModelError, match="not finite"):
        copy_apr(open_apr(path), tmp_path / "b.apr")
    assert [one.name for one in tmp_path.iterdir()] == ["a.apr"]


def test_fckpt_008_a_tensor_that_is_not_the_one_announced_is_refused(tmp_path: Path) -> None:
    late = AprTensor.later(lambda: torch.ones(2, 4), torch.float32, (2, 3))
    with pytest.raises(ModelError, match="another shape than was announced"):
        write_apr(tmp_path / "a.apr", {"w": late}, NOTHING)
    short = AprTensor(F32, (2, 3), 24, lambda: iter([bytes(20)]))
    with pytest.raises(ModelError, match="not the one that was announced"):
        write_apr(tmp_path / "a.apr", {"w": short}, NOTHING)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("existing", [False, True])
def test_fckpt_009_a_failure_half_way_leaves_what_was_there(existing: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.apr"
    if existing:
        write_apr(path, {"w": AprTensor.of(torch.zeros(3))}, NOTHING)
    before = path.read_bytes() if existing else None

    def failing() -> Tensor:
        raise KeyboardInterrupt

    contents = {"a": AprTensor.of(torch.ones(3)), "b": AprTensor.later(failing, torch.float32, (3,))}
    with pytest.raises(KeyboardInterrupt):
        write_apr(path, contents, NOTHING)
    assert [one.name for one in tmp_path.iterdir()] == (["a.apr"] if existing else [])
    assert not existing or path.read_bytes() == before


def test_fckpt_009_the_file_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = []
    flush, rename = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda number: events.append("flush") or flush(number))  # type: ignore[func-returns-value]
    monkeypatch.setattr(Path, "replace", lambda self, to: events.append("rename") or rename(self, to))  # type: ignore[func-returns-value]
    write_apr(tmp_path / "a.apr", {"w": AprTensor.of(torch.zeros(3))}, NOTHING)
    assert events == ["flush", "rename", "flush"]


def test_fckpt_011_both_checksums_are_right(tmp_path: Path) -> None:
    write_apr(tmp_path / "a.apr", {"w": AprTensor.of(torch.randn(9))}, NOTHING)
    raw = (tmp_path / "a.apr").read_bytes()
    assert struct.unpack("<I", raw[40:44])[0] == zlib.crc32(raw[:40] + raw[44:64])
    assert struct.unpack("<I", raw[-4:])[0] == zlib.crc32(raw[:-4])


@pytest.mark.parametrize("name", ["", "n" * 257, "é" * 129, "\ud800"])
def test_names_that_an_index_has_no_room_for_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="name"):
        write_apr(tmp_path / "a.apr", {name: AprTensor.of(torch.zeros(1))}, NOTHING)


def test_types_and_shapes_that_there_are_not_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="a type that is not written"):
        AprTensor.of(torch.zeros(3, dtype=torch.bool))
    with pytest.raises(ModelError, match="a type that is not written"):
        AprTensor.of(torch.zeros(256), Q4_K)
    with pytest.raises(ModelError, match="only numbers with fractions"):
        AprTensor.of(torch.zeros(3, dtype=torch.int64), APR_Q4)
    with pytest.raises(ModelError, match="too large for F16"):
        write_apr(tmp_path / "a.apr", {"w": AprTensor.of(torch.tensor([1e5]), F16)}, NOTHING)
    with pytest.raises(ModelError, match="whole numbers are written as they are"):
        write_apr(tmp_path / "a.apr", {"w": AprTensor.of(torch.tensor([300]), F16)}, NOTHING)
    with pytest.raises(ModelError, match="too many dimensions"):
        write_apr(tmp_path / "a.apr", {"w": AprTensor.of(torch.zeros((1,) * 9))}, NOTHING)


def test_strides_and_gradients_do_not_show(tmp_path: Path) -> None:
    whole = torch.arange(24.0).view(4, 6)
    contents = {"t": whole.T, "c": whole[:, 2], "p": torch.nn.Parameter(whole), "e": whole[:1].expand(3, 6)}
    write_apr(tmp_path / "a.apr", {name: AprTensor.of(tensor) for name, tensor in contents.items()}, NOTHING)
    file = open_apr(tmp_path / "a.apr")
    for name, tensor in contents.items():
        assert torch.equal(file.read(name), tensor.detach()), name


# Memory


CHILD = """
import re, sys
from pathlib import Path
from qlassify.formats.apr import open_apr
def kilobytes(key):
    return int(re.search(key + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text()).group(1))
file = open_apr(Path(sys.argv[1]))
file.read("small").sum().item()
Path("/proc/self/clear_refs").write_text("5")  # the highest mark begins anew; ru_maxrss would be the parent's
before = kilobytes("VmRSS")
for name in file.entries:
    total = file.read(name).sum().item()
file.verify()
print(1024 * (kilobytes("VmHWM") - before))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
def test_reading_tensor_by_tensor_holds_one_tensor_and_little_more(tmp_path: Path) -> None:
    """Six matrices of 32 MB in fp32, 4.7 MB each in the file; what is held is one, and the stretches being decoded."""
    shape, nbytes = (4096, 2048), 4 * 4096 * 2048
    blocks = np.zeros((4096 * 8, 144), np.uint8)
    blocks[:, 1] = 0x2C
    raw = [RawTensor(f"layer{number}".encode(), 12, shape, blocks.tobytes()) for number in range(6)]
    path = tmp_path / "a.apr"
    path.write_bytes(RawFile((*raw, RawTensor(b"small", 12, (256,), blocks[:1].tobytes()))).pack())
    done = subprocess.run([sys.executable, "-c", CHILD, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    grown = int(done.stdout)
    # One tensor; 65536 elements being decoded at some 30 bytes each; 4 MB of a checksum's stretch; pages of the heap.
    assert nbytes * 0.9 < grown < nbytes + 12_000_000
