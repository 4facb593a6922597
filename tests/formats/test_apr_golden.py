"""A small APR file spelled out byte by byte from the layout: the reader and the writer must agree with it.

Checksums were computed with zlib over the bytes below, everything else was written by hand.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qlassify.formats.apr import open_apr
from qlassify.formats.apr_header import Flags
from qlassify.formats.apr_metadata import AprMetadata
from qlassify.formats.apr_types import APR_Q4, APR_Q8, BF16
from qlassify.formats.apr_writer import AprTensor, copy_apr, write_apr

ZEROS_15 = "00 " * 15
GOLDEN = bytes.fromhex(
    # 0: the header
    "41 50 52 00"  # APR\0
    "02 00"  # version 2.0
    "20 04"  # rows first, quantised
    "04 00 00 00"  # four tensors
    "40 00 00 00 00 00 00 00"  # metadata at 64
    "31 00 00 00"  # 49 bytes of it
    "80 00 00 00 00 00 00 00"  # index at 128
    "00 01 00 00 00 00 00 00"  # data at 256
    "d5 e2 0f b2"  # checksum of the header
    + "00 "
    * 20
    # 64: {"model_type":"toy","hidden_size":4,"zeta":[1,2]}
    + "7b 22 6d 6f 64 65 6c 5f 74 79 70 65 22 3a 22 74 6f 79 22 2c"
    "22 68 69 64 64 65 6e 5f 73 69 7a 65 22 3a 34 2c"
    "22 7a 65 74 61 22 3a 5b 31 2c 32 5d 7d"
    + ZEROS_15
    # 128: the index. a: F32, (2, 1), 8 bytes at 0
    + "01 00 61 00 02 02 00 00 00 00 00 00 00 01 00 00 00 00 00 00 00"
    "00 00 00 00 00 00 00 00 08 00 00 00 00 00 00 00"
    # q4: AprQ4, (4,), 18 bytes at 64
    "02 00 71 34 80 01 04 00 00 00 00 00 00 00 40 00 00 00 00 00 00 00 12 00 00 00 00 00 00 00"
    # q8: AprQ8, (3,), 7 bytes at 128
    "02 00 71 38 81 01 03 00 00 00 00 00 00 00 80 00 00 00 00 00 00 00 07 00 00 00 00 00 00 00"
    # é: BF16, no dimension, 2 bytes at 192
    "02 00 c3 a9 1e 00 c0 00 00 00 00 00 00 00 02 00 00 00 00 00 00 00"
    + "00 " * 9
    # 256: a is 1.0 and -2.5
    + "00 00 80 3f 00 00 20 c0"
    + "00 " * 56
    # 320: q4 has the scale 0.5 and the codes 15, 1, 8, 10; behind them zeros, whose code is 8
    + "00 38 1f a8"
    + "88 " * 14
    + "00 " * 46
    # 384: q8 has the scale 0.5 and the codes 127, -127, 2
    + "00 00 00 3f 7f 81 02"
    + "00 " * 57
    # 448: é is -2.0
    + "00 c0"
    + "00 " * 62
    # 512: checksum of everything before
    + "e9 71 b2 60"
)
NUMBERS = {
    "a": torch.tensor([[1.0], [-2.5]]),
    "q4": torch.tensor([3.5, -3.5, 0.0, 1.0]),
    "q8": torch.tensor([63.5, -63.5, 1.0]),
    "é": torch.tensor(-2.0, dtype=torch.bfloat16),
}


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    path = tmp_path / "golden.apr"
    path.write_bytes(GOLDEN)
    return path


def test_the_reader_finds_what_the_bytes_say(golden: Path) -> None:
    assert len(GOLDEN) == 516
    file = open_apr(golden, verify=True)
    assert file.header.flags == Flags.ROW_MAJOR | Flags.QUANTIZED
    assert file.metadata.typed == {"model_type": "toy", "hidden_size": 4}
    assert file.metadata.custom == {"zeta": [1, 2]}
    assert list(file.entries) == ["a", "q4", "q8", "é"]
    assert [entry.type.name for entry in file.entries.values()] == ["F32", "AprQ4", "AprQ8", "BF16"]
    assert [(entry.start, entry.nbytes) for entry in file.entries.values()] == [(256, 8), (320, 18), (384, 7), (448, 2)]
    for name, numbers in NUMBERS.items():
        found = file.read(name)
        assert found.dtype == numbers.dtype == file.entries[name].dtype, name
        assert found.shape == numbers.shape, name
        assert torch.equal(found, numbers), name


def test_the_writer_makes_these_bytes(tmp_path: Path) -> None:
    """From the numbers, given in another order; so sorting, encoding, flags, padding and checksums are all in it."""
    path = tmp_path / "written.apr"
    types = {"a": None, "q4": APR_Q4, "q8": APR_Q8, "é": BF16}
    tensors = {name: AprTensor.of(NUMBERS[name].float(), types[name]) for name in reversed(NUMBERS)}
    write_apr(path, tensors, AprMetadata.of({"zeta": [1, 2], "hidden_size": 4, "name": None, "model_type": "toy"}))
    assert path.read_bytes() == GOLDEN
    assert [one.name for one in tmp_path.iterdir()] == ["written.apr"]


def test_fckpt_015_what_is_loaded_and_saved_is_the_same_file(golden: Path, tmp_path: Path) -> None:
    copy_apr(open_apr(golden), tmp_path / "copy.apr")
    assert (tmp_path / "copy.apr").read_bytes() == GOLDEN


def test_fckpt_017_the_canonical_hash_is_of_names_types_shapes_and_bytes(golden: Path) -> None:
    import hashlib

    dims = lambda *sizes: b"".join(size.to_bytes(8, "little") for size in sizes)  # noqa: E731
    text = b"a\0\x00" + dims(2, 1) + GOLDEN[256:264]
    text += b"q4\0\x80" + dims(4) + GOLDEN[320:338]
    text += b"q8\0\x81" + dims(3) + GOLDEN[384:391]
    text += "é".encode() + b"\0\x1e" + GOLDEN[448:450]
    assert open_apr(golden).canonical_sha256() == hashlib.sha256(text).hexdigest()


@pytest.mark.parametrize("position", [0, 5, 7, 9, 41, 60, 64, 80, 128, 140, 256, 321, 400, 500, 513])
def test_fckpt_011_a_changed_byte_is_noticed(golden: Path, position: int) -> None:
    """Anywhere: in the header by its own checksum, elsewhere by the footer's, if not earlier."""
    from qlassify.errors import ModelError

    raw = bytearray(GOLDEN)
    raw[position] ^= 1
    golden.write_bytes(bytes(raw))
    with pytest.raises(ModelError):
        open_apr(golden, verify=True)
