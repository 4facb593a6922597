"""Tokens from the store are those of the encoder; every ingredient has a say in an entry's name; damage is repaired."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from qlassify.config.run import RunConfig
from qlassify.data import token_cache, token_store, tokenise
from qlassify.data.corpus import read_corpus
from qlassify.data.long_texts import LongTexts
from qlassify.data.token_cache import chosen_store, token_cache_folder
from qlassify.data.token_store import TokenStore, content_name
from qlassify.data.tokenise import Encoded, TextEncoder, Windows
from qlassify.errors import ConfigError
from tiny_jobs import FILLERS, save_tokenizer

TEXTS = [" ".join(FILLERS[(n * k) % len(FILLERS)] for n in range(1 + (7 * k) % 30)) for k in range(50)]
PAIRS = [text.upper() + " dog" for text in reversed(TEXTS)]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("words")
    save_tokenizer(folder)
    (folder / "config.json").write_text('{"model_type": "bert"}')
    return folder


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks even of few texts, the last one not full."""
    monkeypatch.setattr(tokenise, "CHUNK_ROWS", 7)
    monkeypatch.setattr(token_store, "CHUNK_ROWS", 7)


def assert_same(one: Encoded, other: Encoded) -> None:
    """Every array equal, element by element and in its type."""
    for field in fields(Encoded):
        first, second = getattr(one, field.name), getattr(other, field.name)
        if field.name == "windows" and first is not None:
            for part in fields(Windows):
                ours, theirs = getattr(first, part.name), getattr(second, part.name)
                assert np.array_equal(ours, theirs), part.name
                assert ours.dtype == theirs.dtype, part.name
        elif isinstance(first, np.ndarray):
            assert np.array_equal(first, second), field.name
            assert first.dtype == second.dtype, field.name
        else:
            assert first == second, field.name


def entries(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir())


@pytest.mark.parametrize(
    ("max_length", "long"),
    [
        (64, LongTexts()),
        (12, LongTexts()),
        (12, LongTexts("head_tail")),
        (12, LongTexts("windows", 2, 16)),
        (64, LongTexts("windows")),
        (12, LongTexts("windows", 2, 2)),
    ],
)
def test_stored_tokens_are_the_encoders(
    directory: Path, tmp_path: Path, small_chunks: None, max_length: int, long: LongTexts
) -> None:
    encoder = TextEncoder.load(directory, max_length, long)
    store = TokenStore(tmp_path / "made" / "here")
    wanted = encoder.encode(TEXTS)
    assert_same(store.encode(encoder, TEXTS), wanted)
    assert_same(store.encode(encoder, TEXTS), wanted)
    assert len(entries(store.folder)) == 1
    assert store.notes == []


def test_pairs_keep_their_segments_and_empty_texts_their_count(
    directory: Path, tmp_path: Path, small_chunks: None
) -> None:
    encoder = TextEncoder.load(directory, 20)
    store = TokenStore(tmp_path)
    found = store.encode(encoder, TEXTS, PAIRS)
    assert_same(found, encoder.encode(TEXTS, PAIRS))
    assert found.token_type_ids is not None
    assert found.token_type_ids.any()
    assert_same(store.encode(encoder, []), encoder.encode([]))


def test_an_entry_is_read_and_not_made_again(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = TextEncoder.load(directory, 20)
    wanted = TokenStore(tmp_path).encode(encoder, TEXTS)
    monkeypatch.setattr(TextEncoder, "_chunk", None)  # whoever tokenises now fails
    done: list[int] = []
    found = TokenStore(tmp_path).encode(TextEncoder.load(directory, 20), TEXTS, progress=done.append)
    assert_same(found, wanted)
    assert done == [len(TEXTS)]
    assert not found.token_ids.flags.writeable, "nobody changes what others read"


def test_every_ingredient_changes_the_name(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = TextEncoder.load(directory, 20)
    names = [
        content_name(encoder, TEXTS, None),
        content_name(encoder, TEXTS, PAIRS),
        content_name(encoder, PAIRS, TEXTS),
        content_name(encoder, TEXTS[:-1], None),
        content_name(encoder, [*TEXTS[:-1], TEXTS[-1] + "s"], None),
        content_name(encoder, [TEXTS[1], TEXTS[0], *TEXTS[2:]], None),
        # The same characters, divided otherwise.
        content_name(encoder, ["ab", "c"], None),
        content_name(encoder, ["a", "bc"], None),
        content_name(encoder, ["ab"], ["c"]),
        content_name(encoder, ["a"], ["bc"]),
        content_name(TextEncoder.load(directory, 21), TEXTS, None),
        content_name(TextEncoder.load(directory, 20, LongTexts("head_tail")), TEXTS, None),
        content_name(TextEncoder.load(directory, 20, LongTexts("windows")), TEXTS, None),
        content_name(TextEncoder.load(directory, 20, LongTexts("windows", 2)), TEXTS, None),
        content_name(TextEncoder.load(directory, 20, LongTexts("windows", 2, 3)), TEXTS, None),
    ]
    other = tmp_path / "other"
    shutil.copytree(directory, other)
    path = other / "tokenizer.json"
    path.write_text(path.read_text().replace('"dog"', '"wolf"'))
    names.append(content_name(TextEncoder.load(other, 20), TEXTS, None))
    monkeypatch.setattr("tokenizers.__version__", "0.0.0")
    names.append(content_name(encoder, TEXTS, None))
    assert len(set(names)) == len(names)
    monkeypatch.undo()
    assert content_name(TextEncoder.load(directory, 20), list(TEXTS), None) == names[0]


def damage_truncated(entry: Path) -> None:
    path = entry / "token_ids.bin"
    os.truncate(path, path.stat().st_size - 4)


def damage_flipped(entry: Path) -> None:
    path = entry / "offsets.bin"
    data = bytearray(path.read_bytes())
    data[17] ^= 1
    path.write_bytes(data)


def damage_missing(entry: Path) -> None:
    (entry / "lost_tokens.bin").unlink()


def damage_record(entry: Path) -> None:
    path = entry / "entry.json"
    path.write_text(path.read_text().replace('"num_empty": 0', '"num_empty": 1'))


def damage_no_record(entry: Path) -> None:
    (entry / "entry.json").unlink()


def damage_cut_record(entry: Path) -> None:
    os.truncate(entry / "entry.json", 40)


@pytest.mark.parametrize(
    "damage",
    [damage_truncated, damage_flipped, damage_missing, damage_record, damage_no_record, damage_cut_record],
    ids=lambda damage: damage.__name__,
)
def test_a_damaged_entry_is_made_again_and_said(directory: Path, tmp_path: Path, damage: object) -> None:
    encoder = TextEncoder.load(directory, 20)
    wanted = encoder.encode(TEXTS)
    TokenStore(tmp_path).encode(encoder, TEXTS)
    (entry,) = entries(tmp_path)
    damage(entry)  # type: ignore[operator]
    store = TokenStore(tmp_path)
    assert_same(store.encode(encoder, TEXTS), wanted)
    assert len(store.notes) == 1
    assert "damaged" in store.notes[0]
    assert str(entry) in store.notes[0]
    again = TokenStore(tmp_path)
    assert_same(again.encode(encoder, TEXTS), wanted)
    assert again.notes == [], "what was made again is whole"
    assert entries(tmp_path) == [entry], "nothing is left lying about"


def test_an_entry_whose_time_cannot_be_set_is_used(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store of somebody else, or on a disk that is mounted to be read."""

    def refused(*_: object) -> None:
        raise PermissionError("not the owner")

    encoder = TextEncoder.load(directory, 64)
    TokenStore(tmp_path).encode(encoder, TEXTS)
    before = entries(tmp_path)[0].stat().st_ino
    monkeypatch.setattr(token_store.os, "utime", refused)
    store = TokenStore(tmp_path)
    assert_same(store.encode(encoder, TEXTS), encoder.encode(TEXTS))
    assert store.notes == []
    assert [entry.stat().st_ino for entry in entries(tmp_path)] == [before]


def forged(entry: Path, name: str, values: Sequence[int]) -> None:
    """Another array in an entry, and the checksums that belong to it."""
    dtype = {"offsets": "<i8", "window_offsets": "<i8", "window_lengths": "<i8"}.get(name, "<i4")
    data = np.array(values, dtype).tobytes()
    (entry / f"{name}.bin").write_bytes(data)
    record = json.loads((entry / "entry.json").read_text())
    record.pop("sha256")
    record["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    text = json.dumps(record, sort_keys=True).encode()
    record["sha256"] = hashlib.sha256(text).hexdigest()
    (entry / "entry.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("offsets", [0, -5, 10**9]),
        ("offsets", [0, 0, 15]),
        ("offsets", [1, 5, 15]),
        ("offsets", [0, 15]),
        ("lost_tokens", [0]),
        ("token_ids", [1, 2, 3]),
        ("window_offsets", [0, 9, 3]),
        ("window_lengths", [5, 5, 6]),
        ("window_lengths", [5, 20, -10]),
        ("repeated_tokens", [0, 0, 0]),
    ],
)
def test_files_that_contradict_each_other_are_not_taken(
    directory: Path, tmp_path: Path, name: str, values: list[int]
) -> None:
    """Also with the right checksums: compiled loops look at no bounds."""
    encoder = TextEncoder.load(directory, 8, LongTexts("windows", 2, 4))
    texts = [" ".join(FILLERS[:3]), " ".join(FILLERS[:8])]
    TokenStore(tmp_path).encode(encoder, texts)
    forged(entries(tmp_path)[0], name, values)
    store = TokenStore(tmp_path)
    assert_same(store.encode(encoder, texts), encoder.encode(texts))
    assert len(store.notes) == 1
    assert "contradict" in store.notes[0]


def test_a_record_of_another_form_is_not_taken(directory: Path, tmp_path: Path) -> None:
    encoder = TextEncoder.load(directory, 64)
    TokenStore(tmp_path).encode(encoder, TEXTS)
    path = entries(tmp_path)[0] / "entry.json"
    record = json.loads(path.read_text()) | {"files": []}
    record.pop("sha256")
    digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps({**record, "sha256": digest}))
    store = TokenStore(tmp_path)
    assert_same(store.encode(encoder, TEXTS), encoder.encode(TEXTS))
    assert len(store.notes) == 1


def test_a_folder_that_cannot_be_named_keeps_tokens_in_memory(directory: Path, tmp_path: Path) -> None:
    encoder, store = TextEncoder.load(directory, 64), TokenStore(tmp_path / ("long" * 100))
    assert_same(store.encode(encoder, TEXTS), encoder.encode(TEXTS))
    assert len(store.notes) == 1


def test_an_entry_of_other_texts_is_not_taken(directory: Path, tmp_path: Path) -> None:
    encoder = TextEncoder.load(directory, 20)
    store = TokenStore(tmp_path)
    store.encode(encoder, TEXTS)
    (entry,) = entries(tmp_path)
    shutil.copytree(entry, tmp_path / content_name(encoder, PAIRS, None))
    assert_same(store.encode(encoder, PAIRS), encoder.encode(PAIRS))
    assert len(store.notes) == 1


def test_a_store_that_cannot_be_written_keeps_tokens_in_memory_and_says_so(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = TokenStore(tmp_path / "file")
    encoder = TextEncoder.load(directory, 20)
    assert_same(store.encode(encoder, TEXTS), encoder.encode(TEXTS))
    assert len(store.notes) == 1
    assert "kept in memory" in store.notes[0]


def test_a_killed_writer_leaves_no_entry(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = TextEncoder.load(directory, 20)
    store = TokenStore(tmp_path)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(token_store._EntryWriter, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            store.encode(encoder, TEXTS)
    assert entries(tmp_path) == []
    assert_same(store.encode(encoder, TEXTS), encoder.encode(TEXTS))


def test_the_least_recently_used_entries_go_and_nothing_else(directory: Path, tmp_path: Path) -> None:
    encoder = TextEncoder.load(directory, 20)
    store = TokenStore(tmp_path)
    others = (tmp_path / "mine.txt", tmp_path / "a folder", tmp_path / (token_store._UNFINISHED + "new"))
    others[0].write_text("not an entry")
    others[1].mkdir()
    others[2].mkdir()
    killed = tmp_path / (token_store._UNFINISHED + "old")
    killed.mkdir()
    os.utime(killed, (1, 1))
    columns = [[f"{text} {word}" for text in TEXTS] for word in ("dog", "cat", "cow")]
    for age, column in enumerate(columns):
        store.encode(encoder, column)
        os.utime(tmp_path / content_name(encoder, column, None) / "entry.json", (100 + age, 100 + age))
    store.encode(encoder, columns[0])  # used again: columns[1] is now the oldest
    size = sum(file.stat().st_size for file in (tmp_path / content_name(encoder, columns[0], None)).iterdir())
    mapped = store.encode(encoder, columns[2])
    os.utime(tmp_path / content_name(encoder, columns[2], None) / "entry.json", (200, 200))
    small = TokenStore(tmp_path, max_bytes=int(2.5 * size))  # room for two entries of one size
    small.encode(encoder, TEXTS)
    left = {path.name for path in entries(tmp_path) if not path.name.startswith((".", "a"))}
    assert content_name(encoder, columns[1], None) not in left
    assert content_name(encoder, TEXTS, None) in left
    assert content_name(encoder, columns[0], None) in left
    assert all(path.exists() for path in others)
    assert not killed.exists()
    assert_same(mapped, encoder.encode(columns[2]))
    tiny = TokenStore(tmp_path, max_bytes=1)
    assert_same(tiny.encode(encoder, PAIRS), encoder.encode(PAIRS))
    assert content_name(encoder, PAIRS, None) in {path.name for path in entries(tmp_path)}, "the newest one stays"


def test_pairs_are_refused_where_texts_are_not_truncated(directory: Path, tmp_path: Path) -> None:
    encoder = TextEncoder.load(directory, 20, LongTexts("windows"))
    with pytest.raises(ConfigError, match="single texts"):
        TokenStore(tmp_path).encode(encoder, TEXTS, PAIRS)


def test_where_the_store_is_and_when_it_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert token_cache_folder({"XDG_CACHE_HOME": str(tmp_path)}) == tmp_path / "qlassify" / "tokens"
    home = Path("~/.cache/qlassify/tokens").expanduser()
    assert token_cache_folder({}) == home == token_cache_folder({"XDG_CACHE_HOME": "relative"})
    path = tmp_path / "rows.csv"
    path.write_text("text,label\n" + "\n".join(f"{word} and more,{k % 2}" for k, word in enumerate(FILLERS)))
    corpus = read_corpus(path)
    chars = sum(map(len, corpus.texts))
    assert chosen_store("off", [corpus]) is None
    chosen = chosen_store(str(tmp_path / "here"), [corpus])
    assert chosen is not None
    assert chosen.folder == tmp_path / "here"
    monkeypatch.setattr(token_cache, "AUTO_CHARS", 2 * chars)
    assert chosen_store("auto", [corpus]) is None
    large = chosen_store("auto", [corpus, corpus])
    assert large is not None
    assert large.folder == token_cache_folder()


def test_off_is_a_word_also_in_yaml() -> None:
    assert RunConfig.parse({"data": {"token_cache": False}}).data.token_cache == "off"
    for wrong in (True, 3, ""):
        with pytest.raises(ConfigError, match="token_cache"):
            RunConfig.parse({"data": {"token_cache": wrong}})
