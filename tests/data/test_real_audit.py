"""The audit of the published data sets; what is in them was counted with other tools than these.

Published counts are of texts as they stand in the file. Ours are of texts without the blanks at their ends, and once
more with case and white space folded; where that makes a difference, both are here, ours beside a count by plain Python
that strips as the reader does.
"""

from __future__ import annotations

import csv
import io
import tarfile
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest

from qlassify.auditing import DataAudit, audit
from qlassify.data.corpus import Corpus, ReadOptions, read_corpus
from qlassify.data.dataset import build_dataset
from qlassify.data.findings import WARNING
from qlassify.data.label_balance import label_balance
from qlassify.data.leaks import find_leaks
from qlassify.data.repeats import distinct_texts, find_duplicates
from qlassify.data.similar import SimilarPairs
from qlassify.data.tokenise import Encoded

Shared = Callable[[str], Path]
GOEMOTIONS = ReadOptions(text="1", label="2", label_separator=",", header=False)


def audited(train: Corpus, validation: Corpus | None = None, test: Corpus | None = None) -> DataAudit:
    dataset = build_dataset(train, validation, test, fraction=0.1, seed=42)
    encoded = {
        name: Encoded.from_rows([[1] * (len(text.split()) + 2) for text in rows.corpus.texts])
        for name, rows in dataset.parts().items()
    }
    return audit(dataset, encoded, special_tokens=2, seed=42)


def leaked(found: DataAudit, known: str, scored: str) -> dict[str, int]:
    [leak] = [leak for leak in found.leaks if (leak.known, leak.scored) == (known, scored)]
    return {kind: count.rows for kind, count in leak.counts.items()}


def exact_leaks(train: Corpus, other: Corpus) -> dict[str, int]:
    """Rows of ``other`` that are in ``train``, look-alikes left out."""
    parts = {"train": train, "test": other}
    none = SimilarPairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), 0, 0, True)
    [leak] = find_leaks(parts, distinct_texts(parts), none, none)
    return {kind: leak.counts[kind].rows for kind in ("identical", "same")}


def surplus(texts: Iterable[str]) -> int:
    every = list(texts)
    return len(every) - len(set(every))


@pytest.fixture
def trec(shared_data: Shared, tmp_path: Path) -> Callable[[str], Corpus]:
    """A TREC file with the fine labels."""

    def read(name: str) -> Corpus:
        data = shared_data(f"trec/TREC.{name}").read_bytes()
        # "LABEL:fine text": a tab for the first blank of each line makes it a table.
        table = b"".join(line.replace(b" ", b"\t", 1) for line in data.splitlines(keepends=True))
        (tmp_path / f"{name}.tsv").write_bytes(table)
        return read_corpus(tmp_path / f"{name}.tsv", ReadOptions(text="2", label="1"))

    return read


def test_trec(trec: Callable[[str], Corpus]) -> None:
    train, test = trec("train"), trec("test")
    duplicates = find_duplicates("train", train)
    assert (duplicates.identical.surplus, duplicates.identical.conflicting_texts) == (71, 1)
    # One text stands there a second time in another letter case.
    assert duplicates.same.surplus == 72
    [conflict] = duplicates.conflicting
    assert conflict.excerpt == "What is the chromosome number of an elephant ?"
    assert set(conflict.labels) == {("NUM:count",), ("NUM:other",)}
    # A test file in the place of the validation file, so that all rows of train are training rows.
    found = audited(train, test)
    assert leaked(found, "train", "validation")["identical"] == 10
    assert leaked(found, "train", "validation")["same"] == 1
    assert len(found.labels.missing["validation"]) == 8
    assert [damage.kind for damage in found.damage] == ["repaired"]
    assert "sister\u00f0city" in found.damage[0].examples[0]


def test_goemotions(shared_data: Shared) -> None:
    parts = {name: read_corpus(shared_data(f"goemotions/{name}.tsv"), GOEMOTIONS) for name in ("train", "dev", "test")}
    raw = {}
    for name in parts:
        with shared_data(f"goemotions/{name}.tsv").open(newline="", encoding="utf-8") as file:
            raw[name] = [(text, labels) for text, labels, _ in csv.reader(file, delimiter="\t", strict=True)]
    assert surplus(text for text, _ in raw["train"]) == 183
    assert surplus(text.strip() for text, _ in raw["train"]) == 184
    label_sets = defaultdict(set)
    for text, labels in raw["train"]:
        label_sets[text].add(frozenset(labels.split(",")))
    assert sum(len(sets) > 1 for sets in label_sets.values()) == 58
    duplicates = find_duplicates("train", parts["train"])
    assert (duplicates.identical.surplus, duplicates.identical.conflicting_texts) == (184, 59)
    folded = {" ".join(text.lower().split()) for text, _ in raw["train"]}
    for name, published in (("dev", 43), ("test", 37)):
        same = sum(" ".join(text.lower().split()) in folded for text, _ in raw[name]) - published
        assert exact_leaks(parts["train"], parts[name]) == {"identical": published, "same": same}
    dataset = build_dataset(parts["train"], parts["dev"], parts["test"], fraction=0.1, seed=0)
    balance = label_balance(dataset)
    assert (max(balance.counts["train"].values()), min(balance.counts["train"].values())) == (14_219, 77)


def test_sst2(shared_data: Shared) -> None:
    train = read_corpus(shared_data("sst2/train.tsv"))
    duplicates = find_duplicates("train", train)
    assert (duplicates.identical.surplus, duplicates.identical.conflicting_texts) == (371, 5)
    assert duplicates.same.surplus == 371, "all texts are in lower case"
    test = read_corpus(shared_data("sst2/test-labeled.tsv"))
    found = audited(test, read_corpus(shared_data("sst2/dev.tsv")))
    # The file has CRLF; its labels are the same two as everywhere.
    assert set(found.labels.counts["train"]) == {"0", "1"}
    assert found.labels.spelled_alike == ()
    assert found.labels.missing == {"validation": ()}


def test_sst2_phrases_of_one_sentence(shared_data: Shared) -> None:
    """The first phrases of train, split by row: most sentences have phrases on both sides."""
    train = read_corpus(shared_data("sst2/train.tsv"))
    by_length = sorted(range(len(train)), key=lambda row: -len(train.texts[row]))
    found = audited(train.select(sorted(by_length[:4_000])))
    sources = [finding for finding in found.findings() if finding.check == "source leaks"]
    assert [finding.severity for finding in sources] == [WARNING]


def test_banking77(shared_data: Shared) -> None:
    raw = {}
    for name in ("train", "test"):
        with shared_data(f"banking77/{name}.csv").open(newline="", encoding="utf-8") as file:
            raw[name] = [row["text"] for row in csv.DictReader(file, strict=True)]
    assert not set(raw["train"]) & set(raw["test"])
    # Without the line ends that stand before and after a few quoted texts, six test rows are in train after all.
    stripped = {text.strip() for text in raw["train"]}
    assert sum(text.strip() in stripped for text in raw["test"]) == 6
    train, test = (read_corpus(shared_data(f"banking77/{name}.csv")) for name in ("train", "test"))
    assert exact_leaks(train, test)["identical"] == 6
    assert label_balance(build_dataset(train, test, None, fraction=0.1, seed=0)).spelled_alike == ()


@pytest.fixture
def onestop(shared_data: Shared, tmp_path: Path) -> Callable[[bool], Corpus]:
    """OneStopEnglish by row; with ``leaking``, the intermediate texts that all begin with their level."""

    def read(leaking: bool) -> Corpus:
        out = io.StringIO()
        writer = csv.writer(out)
        writer.writerow(["text", "label"])
        with tarfile.open(shared_data("onestop_english/onestop_english.tar.gz")) as archive:
            for member in archive:
                folders = member.name.split("/")
                if not member.name.endswith(".txt") or folders[0] != "Texts-SeparatedByReadingLevel":
                    continue
                if folders[1] == "Int-Txt" and (len(folders) == 3) != leaking:
                    continue
                file = archive.extractfile(member)
                assert file is not None
                writer.writerow([file.read().decode("utf-8", "replace"), folders[1]])
        (tmp_path / "onestop.csv").write_text(out.getvalue(), encoding="utf-8", newline="")
        return read_corpus(tmp_path / "onestop.csv")

    return read


def test_onestop_english_leaks_articles(onestop: Callable[[bool], Corpus]) -> None:
    found = audited(onestop(False))
    [leak] = found.leaks
    # 189 articles at three levels each: a row in ten held out leaves another level of nearly each in training, and
    # never with the same label.
    assert leak.counts["passages"].rows + leak.counts["near"].rows > 0.9 * leak.num_rows
    assert leak.counts["passages"].differing > 0.9 * leak.counts["passages"].rows
    [finding] = [finding for finding in found.findings() if finding.check == "source leaks"]
    assert finding.severity == WARNING
    assert "split by source" in finding.do
    # "Arctic mapping" has a fourth text, under the name of another article.
    assert found.sources.groups == 189
    assert found.sources.largest <= 4
    assert found.sources.mixed_groups == 189
    marks = {damage.part: damage.num_rows for damage in found.damage if damage.kind == "byte_order_mark"}
    assert sum(marks.values()) == 552
    assert found.give_aways.words == ()


def test_onestop_english_gives_the_level_away(onestop: Callable[[bool], Corpus]) -> None:
    found = audited(onestop(True))
    word = found.give_aways.words[0]
    assert (word.word, word.place, word.label) == ("intermediate", "first word", "Int-Txt")
    assert word.rows == word.with_label == word.label_rows
    [finding] = [finding for finding in found.findings() if finding.check == "give-aways"]
    assert finding.severity == WARNING


def test_mrpc_words_say_nothing_about_paraphrase(shared_data: Shared) -> None:
    """A bag of words is hardly better than the most frequent label there, so that it may not contradict anyone."""
    found = audited(read_corpus(shared_data("mrpc/msr_paraphrase_train.txt")))
    assert found.label_noise.skill < 0.1
    assert found.label_noise.num_candidates == 0
