"""Give-away words: what is planted is found, what chance makes is not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from qlassify.data import giveaways as module
from qlassify.data.corpus import Corpus, read_corpus
from qlassify.data.findings import INFO, WARNING
from qlassify.data.giveaways import GiveAways, find_give_aways

WORDS = [f"word{n:03d}" for n in range(200)]


def corpus_of(tmp_path: Path, texts: list[str], targets: np.ndarray) -> Corpus:
    rows = [json.dumps({"text": text, "label": str(target)}) for text, target in zip(texts, targets, strict=True)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(rows))
    return read_corpus(path)


def noise(num_rows: int, num_classes: int, seed: int = 0) -> tuple[list[str], np.ndarray]:
    generator = np.random.default_rng(seed)
    texts = [" ".join(generator.choice(WORDS, 8)) for _ in range(num_rows)]
    return texts, generator.integers(0, num_classes, num_rows)


def found_in(tmp_path: Path, texts: list[str], targets: np.ndarray, names: str = "ab") -> GiveAways:
    return find_give_aways(corpus_of(tmp_path, texts, targets), targets, list(names), seed=0)


def test_a_first_word_that_stands_in_one_class_only(tmp_path: Path) -> None:
    texts, targets = noise(400, 2)
    texts = [("Intermediate\n" if target else "") + text for text, target in zip(texts, targets, strict=True)]
    found = found_in(tmp_path, texts, targets)
    number = int(targets.sum())
    [word] = found.words
    assert (word.word, word.place, word.label) == ("intermediate", "first word", "b")
    assert (word.rows, word.with_label, word.label_rows) == (number, number, number)
    assert word.label_share == number / 400
    [finding] = found.findings()
    assert finding.severity == WARNING
    assert f"{number} of the {number} training texts that begin with the word 'intermediate'" in finding.what


def test_a_word_anywhere(tmp_path: Path) -> None:
    texts, targets = noise(400, 2)
    texts = [text + (" sent from my phone" if target else "") for text, target in zip(texts, targets, strict=True)]
    found = found_in(tmp_path, texts, targets)
    assert {word.word for word in found.words} == {"sent", "from", "my", "phone"}
    assert {word.place for word in found.words} == {"anywhere"}
    assert len(found.findings()) == 1, "one finding for the words of one label"


@pytest.mark.parametrize("seed", range(3))
def test_noise_gives_nothing_away(tmp_path: Path, seed: int) -> None:
    found = found_in(tmp_path, *noise(300, 3, seed), names="abc")
    assert (found.words, found.num_words, found.num_examined) == ((), 0, 300)
    assert found.findings() == ()


def test_a_label_that_all_rows_have_is_no_discovery(tmp_path: Path) -> None:
    texts, _ = noise(500, 2)
    targets = np.array([0] * 498 + [1] * 2)
    assert found_in(tmp_path, texts, targets).words == ()


@pytest.mark.parametrize(("wrong", "wanted"), [(1, 1), (3, 0)])
def test_precision(tmp_path: Path, wrong: int, wanted: int) -> None:
    texts, targets = noise(400, 2)
    ones, zeros = np.flatnonzero(targets == 1), np.flatnonzero(targets == 0)
    # 99 of 100 are above 98 %, 97 of 100 are not.
    for row in (*ones[: 100 - wrong], *zeros[:wrong]):
        texts[row] += " telltale"
    assert found_in(tmp_path, texts, targets).num_words == wanted


def test_coverage(tmp_path: Path) -> None:
    texts, targets = noise(400, 2)
    ones = np.flatnonzero(targets == 1)
    few = int(np.ceil(len(ones) / 4)) - 1
    for row in ones[:few]:
        texts[row] += " telltale"
    assert found_in(tmp_path, texts, targets).num_words == 0
    texts[ones[few]] += " telltale"
    assert found_in(tmp_path, texts, targets).num_words == 1


def test_a_word_for_a_rare_label_is_worth_knowing_and_no_warning(tmp_path: Path) -> None:
    texts, targets = noise(1000, 2)
    targets[:30] = 2
    texts[:30] = [text + " passcode" for text in texts[:30]]
    [finding] = found_in(tmp_path, texts, targets, names="abc").findings()
    assert finding.severity == INFO
    assert "'passcode' (c)" in finding.what


def test_flags_of_several_labels(tmp_path: Path) -> None:
    texts, targets = noise(400, 2)
    flags = np.stack([np.ones(400), targets, np.zeros(400)], axis=1).astype(np.float32)
    texts = [text + (" telltale" if target else "") for text, target in zip(texts, targets, strict=True)]
    found = find_give_aways(corpus_of(tmp_path, texts, targets), flags, ["all", "some", "none"], seed=0)
    assert [(word.word, word.label) for word in found.words] == [("telltale", "some")]


def test_long_corpora_are_sampled_and_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts, targets = noise(400, 2)
    texts = [text + (" telltale" if target else "") for text, target in zip(texts, targets, strict=True)]
    monkeypatch.setattr(module, "MAX_CHARS", sum(map(len, texts)) // 2)
    found = found_in(tmp_path, texts, targets)
    # Texts differ by one word in nine at most, so half of the characters are about half of the rows.
    assert 180 < found.num_examined < 220
    assert found.num_rows == 400
    assert [word.word for word in found.words] == ["telltale"]
    assert f"in a sample of {found.num_examined} of 400 rows" in found.findings()[0].what
    assert found == found_in(tmp_path, texts, targets)
    monkeypatch.undo()
    assert "sample" not in found_in(tmp_path, texts, targets).findings()[0].what


def test_many_words_and_labels_are_bounded_and_what_is_not_listed_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts, targets = noise(400, 2)
    texts = [text + (" sent from my phone" if target else "") for text, target in zip(texts, targets, strict=True)]
    monkeypatch.setattr(module, "MAX_LISTED", 3)
    found = found_in(tmp_path, texts, targets)
    assert (len(found.words), found.num_words) == (3, 4)
    assert found.findings()[-1].what == "1 more word settles a label alone."
    # Four words are in half of the rows and all others in fewer: with room for four words times two labels, these.
    monkeypatch.setattr(module, "MAX_COUNTS", 8)
    assert found_in(tmp_path, texts, targets).num_words == 4
    monkeypatch.setattr(module, "MAX_COUNTS", 4)
    assert found_in(tmp_path, texts, targets).num_words == 2


@pytest.mark.parametrize("texts", [["? !", "..."], ["a", "b"], ["one", "two"]])
def test_texts_without_a_frequent_word(tmp_path: Path, texts: list[str]) -> None:
    assert found_in(tmp_path, texts, np.array([0, 1])).words == ()
