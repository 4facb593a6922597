"""The readers of model files under random bytes: they may refuse, in our error, and do nothing else.

    python tests/fuzz/readers.py apr 300         # seconds; needs atheris, which is no dependency

atheris changes bytes and keeps what reaches code that nothing had reached before. A checksum would stop nearly all of
it at once, so the header's is put right in what it tries. What it kept, and what it broke something with, lies in
``corpus/READER``; ``test_past_crashers.py`` runs all of it with the suite. A new find is put there by hand, under a
name that says what went wrong.
"""

from __future__ import annotations

import struct
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2] / "src")]

CORPUS = Path(__file__).parent / "corpus"
MOST_BYTES = 1 << 12


def read_apr(path: Path) -> None:
    """An APR file as far as it goes: header, index, all numbers, and what it would be as a base model."""
    from qlassify.errors import ModelError
    from qlassify.formats.apr import open_apr
    from qlassify.models.apr_base import open_apr_base

    for use in (lambda: open_apr(path), lambda: open_apr_base(path)):
        try:
            opened = use()
            for name in opened.entries:
                opened.read(name)
        except ModelError:
            pass


def read_gguf(path: Path) -> None:
    """A GGUF file as far as it goes, likewise, with the long arrays of its metadata."""
    from qlassify.errors import ModelError
    from qlassify.formats.gguf import open_gguf
    from qlassify.formats.gguf_header import GgufArray
    from qlassify.models.gguf_base import open_gguf_base

    try:
        file = open_gguf(path)
        for key, value in file.metadata.items():
            if isinstance(value, GgufArray):
                file.array(key)
        for name in file.entries:
            file.read(name)
    except ModelError:
        pass
    try:
        base = open_gguf_base(path)
        for name in base.entries:
            base.read(name)
        assert base.pooling is None or base.pooling
    except ModelError:
        pass


def with_checksum(raw: bytes) -> bytes:
    """An APR file whose header's checksum, bytes 40 to 43 of 64, is right."""
    if len(raw) < 64:
        return raw
    return raw[:40] + struct.pack("<I", zlib.crc32(raw[:40] + raw[44:64])) + raw[44:]


def seeds(reader: str) -> list[bytes]:
    """Small whole files to begin with."""
    from reference import apr, gguf

    if reader == "gguf":
        return [gguf.RawGguf().pack(), gguf.tiny_llama().pack()]
    said = apr.metadata(
        architecture="llama", hidden_size=4, num_layers=1, num_heads=2, num_kv_heads=1, vocab_size=3,
        intermediate_size=2, max_position_embeddings=8, rope_theta=100.0, rms_norm_eps=1e-5,
    )  # fmt: skip
    types = {0: 4, 1: 2, 30: 2, 6: 1, 128: 18, 129: 5, 12: 144, 14: 210}
    tensors = [apr.RawTensor(f"{kind:03}".encode(), kind, (1,), bytes(size)) for kind, size in sorted(types.items())]
    return [
        apr.RawFile((apr.RawTensor(b"model.embed_tokens.weight", 0, (3, 4), bytes(48)),), said).pack(),
        apr.RawFile(tuple(sorted(tensors, key=lambda one: one.name)), apr.metadata(model_type="toy")).pack(),
    ]


READERS: dict[str, tuple[Callable[[Path], None], Callable[[bytes], bytes]]] = {
    "apr": (read_apr, with_checksum),
    "gguf": (read_gguf, lambda raw: raw),
}
"""Name -> what reads a file of that suffix, and what is done to bytes before they are tried."""


def try_bytes(reader: str, raw: bytes, folder: Path) -> None:
    """Read the bytes as a file.

    Raises:
        Exception: whatever is not a ``ModelError``.
    """
    read, prepared = READERS[reader]
    path = folder / f"tried.{reader}"
    path.write_bytes(prepared(raw))
    read(path)


def main() -> None:
    """Fuzz one reader for some seconds, from the seeds and the corpus on; says where what it keeps lies."""
    import atheris

    reader, seconds = sys.argv[1], int(sys.argv[2])
    folder = Path(tempfile.mkdtemp(prefix="qlassify-fuzz-"))
    start = folder / "start"
    start.mkdir()
    for number, raw in enumerate([*seeds(reader), *(path.read_bytes() for path in (CORPUS / reader).glob("*"))]):
        (start / str(number)).write_bytes(raw)
    with atheris.instrument_imports(include=["qlassify.formats", "qlassify.models.gguf_base",
                                             "qlassify.models.gguf_geometry", "qlassify.models.apr_base",
                                             "qlassify.models.apr_geometry"]):  # fmt: skip
        import qlassify.models.apr_base
        import qlassify.models.gguf_base  # noqa: F401
    print(f"kept in {start}, crashers in {folder}", file=sys.stderr)
    arguments = [f"-max_total_time={seconds}", f"-max_len={MOST_BYTES}", "-rss_limit_mb=3072", "-timeout=10"]
    atheris.Setup(
        [sys.argv[0], *arguments, f"-artifact_prefix={folder}/", str(start)],
        lambda raw: try_bytes(reader, raw, folder),
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
