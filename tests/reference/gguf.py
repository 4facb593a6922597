"""GGUF files spelled out byte by byte from the format's description, with every field open to lies.

magic, u32 version, u64 tensors, u64 keys, keys, tensors, padding to the alignment, data
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import Any


def text(value: bytes, length: int | None = None) -> bytes:
    """A string; ``length`` is what it claims to be."""
    return struct.pack("<Q", len(value) if length is None else length) + value


def key(name: bytes, kind: int, value: bytes) -> bytes:
    """A key with its value, already packed."""
    return text(name) + struct.pack("<I", kind) + value


def tensor(
    name: bytes, shape: tuple[int, ...], kind: int = 0, offset: int = 0, *, dimensions: int | None = None
) -> bytes:
    """An entry of the table; the first of ``shape`` is the fastest, as the file has it."""
    count = len(shape) if dimensions is None else dimensions
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", count, *shape, kind, offset)


ARCHITECTURE = key(b"general.architecture", 8, text(b"toy"))


@dataclass(frozen=True)
class RawGguf:
    """A file of two tensors of fp32: ``a`` of two numbers and ``b`` of two rows of three."""

    keys: tuple[bytes, ...] = (ARCHITECTURE,)
    tensors: tuple[bytes, ...] = (tensor(b"a", (2,)), tensor(b"b", (3, 2), offset=32))
    magic: bytes = b"GGUF"
    version: int = 3
    tensor_count: int | None = None
    key_count: int | None = None
    alignment: int = 32
    data: bytes = struct.pack("<2f", 1, 2) + bytes(24) + struct.pack("<6f", *range(6))

    def but(self, **changes: Any) -> RawGguf:
        """The same with other values."""
        return replace(self, **changes)

    def header(self) -> bytes:
        """Everything before the padding."""
        tensors = len(self.tensors) if self.tensor_count is None else self.tensor_count
        keys = len(self.keys) if self.key_count is None else self.key_count
        start = self.magic + struct.pack("<IQQ", self.version, tensors, keys)
        return start + b"".join(self.keys) + b"".join(self.tensors)

    def pack(self) -> bytes:
        """The file."""
        header = self.header()
        return header + bytes(-len(header) % self.alignment) + self.data


def tiny_llama() -> RawGguf:
    """A Llama of one layer that is one on all counts: four wide, two heads, three tokens; numbers are zeros."""
    numbers = {
        "block_count": 1, "embedding_length": 4, "feed_forward_length": 2, "context_length": 8,
        "attention.head_count": 2, "attention.head_count_kv": 1,
    }  # fmt: skip
    shapes = {
        "token_embd": (4, 3), "output_norm": (4,), "blk.0.attn_norm": (4,), "blk.0.attn_q": (4, 4),
        "blk.0.attn_k": (4, 2), "blk.0.attn_v": (4, 2), "blk.0.attn_output": (4, 4), "blk.0.ffn_norm": (4,),
        "blk.0.ffn_gate": (4, 2), "blk.0.ffn_up": (4, 2), "blk.0.ffn_down": (2, 4),
    }  # fmt: skip
    keys = [key(b"general.architecture", 8, text(b"llama"))]
    keys += [key(f"llama.{name}".encode(), 4, struct.pack("<I", value)) for name, value in numbers.items()]
    keys += [key(b"llama.attention.layer_norm_rms_epsilon", 6, struct.pack("<f", 1e-5))]
    keys += [key(b"tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, 3) + text(b"a") + text(b"b") + text(b"c"))]
    tensors = [
        tensor(f"{name}.weight".encode(), shape, offset=64 * number)
        for number, (name, shape) in enumerate(shapes.items())
    ]
    return RawGguf(tuple(keys), tuple(tensors), data=bytes(64 * len(tensors)))
