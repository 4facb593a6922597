"""The audit as a whole: its order, its account of rows, that it changes nothing, and what it leaves for data.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qlassify.auditing import DataAudit, audit, file_rows
from qlassify.data.corpus import ReadOptions, read_corpus
from qlassify.data.dataset import Dataset, build_dataset
from qlassify.data.findings import INFO, WARNING
from qlassify.data.tokenise import Encoded

SPECIAL_TOKENS = 2


def words_as_tokens(dataset: Dataset) -> dict[str, Encoded]:
    """One token a word and two around them: the audit looks at lengths only."""
    return {
        name: Encoded.from_rows([[1] * (len(text.split()) + SPECIAL_TOKENS) for text in rows.corpus.texts])
        for name, rows in dataset.parts().items()
    }


def audited(dataset: Dataset, seed: int = 0) -> DataAudit:
    return audit(dataset, words_as_tokens(dataset), special_tokens=SPECIAL_TOKENS, seed=seed)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Two files with a little of everything."""
    generator = np.random.default_rng(0)
    words = ["red", "blue", "green", "small", "large", "old", "new", "house", "tree", "river", "road", "hill"]

    def row(label: str) -> dict[str, Any]:
        return {"text": " ".join(generator.choice(words, 9)) + (" sunny" if label == "good" else ""), "label": label}

    train = [row("good" if n % 2 else "bad") for n in range(120)]
    train += [
        {"text": "the same", "label": "bad"},
        {"text": "The  same", "label": "good"},
        {"text": "", "label": "bad"},
    ]
    train += [{"text": "caf\u00c3\u00a9 au lait", "label": "bad"}, {"text": "once only", "label": "rare"}]
    train += [{"text": "gloomy", "label": "bad"}] * 2
    test = [*train[:3], row("good"), {"text": "what", "label": "unheard"}, {"text": "x", "label": "Good"}]
    for name, rows in (("train", train), ("test", test)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    files = [read_corpus(tmp_path / f"{name}.jsonl") for name in ("train", "test")]
    return build_dataset(files[0], None, files[1], fraction=0.1, seed=0)


def test_everything_is_told_once_and_warnings_first(dataset: Dataset) -> None:
    findings = audited(dataset).findings()
    severities = [finding.severity for finding in findings]
    assert severities == sorted(severities, key=[WARNING, INFO].index)
    assert len(set(findings)) == len(findings)
    checks = {finding.check for finding in findings}
    assert {"rows", "labels", "conflicting duplicates", "leaks", "encoding", "give-aways", "short texts"} <= checks
    text = "\n".join(finding.what for finding in findings)
    assert "2 of 6 (33.3 %) rows of the test file are not used" in text
    assert "1 of 127 (0.8 %) rows of the training file are not used: 1 x blank text." in text
    assert "the label 'Good' was left out; training has 'good'" in text
    assert "'sunny'" in text
    assert all(finding.what.endswith(".") for finding in findings)


def test_files_balance(dataset: Dataset) -> None:
    train, test = file_rows(dataset)
    assert (train.part, train.rows, train.kept) == ("train", 127, 126)
    assert (test.part, test.rows, test.kept) == ("test", 6, 4)
    assert sum(test.rejected.values()) == 2
    assert train.kept == len(dataset.train) + len(dataset.validation)


def test_nothing_is_changed(dataset: Dataset) -> None:
    before = [(rows.corpus, rows.targets.copy()) for rows in dataset.parts().values()]
    facts = dataset.facts()
    audited(dataset)
    assert dataset.facts() == facts
    for (corpus, targets), rows in zip(before, dataset.parts().values(), strict=True):
        assert rows.corpus == corpus
        assert np.array_equal(rows.targets, targets)


def test_the_same_data_and_seed_give_the_same_audit(dataset: Dataset) -> None:
    assert audited(dataset, 3).as_dict() == audited(dataset, 3).as_dict()


def test_it_is_json_and_holds_what_is_said(dataset: Dataset) -> None:
    found = audited(dataset)
    read_back = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert [finding["what"] for finding in read_back["findings"]] == [finding.what for finding in found.findings()]
    assert list(read_back) == [
        "findings", "files", "labels", "token_lengths", "duplicates", "near_duplicates", "sources", "leaks",
        "encoding", "give_aways", "label_noise",
    ]  # fmt: skip


def test_rows_of_one_source_do_not_judge_one_another(tmp_path: Path) -> None:
    """Each article in both classes: judged by its other half, every row would be contradicted."""
    generator = np.random.default_rng(1)
    rows = []
    for n in range(60):
        article = " ".join(f"w{n}x{word}" for word in generator.integers(0, 10_000, 60))
        plain, rich = (
            " ".join(f"{kind}{word}" for word in generator.integers(0, 40, 40)) for kind in ("plain", "rich")
        )
        rows += [{"text": f"{article} {plain}", "label": "plain"}, {"text": f"{rich} {article}", "label": "rich"}]
    path = tmp_path / "articles.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    corpus = read_corpus(path)
    dataset = build_dataset(corpus, None, None, fraction=0.2, seed=0)
    found = audited(dataset)
    assert found.sources.groups == found.sources.mixed_groups == 60
    assert found.label_noise.num_candidates == 0
    assert found.label_noise.skill > 0.9
    leak = found.leaks[0].counts["passages"]
    leaked = [finding for finding in found.findings() if finding.check == "source leaks"]
    assert leak.rows > len(dataset.validation) / 2
    assert [finding.severity for finding in leaked] == [WARNING]


def test_a_corpus_from_one_template_is_still_judged(tmp_path: Path) -> None:
    """One source that is larger than a fold: rows are then dealt out by their texts."""
    frame = "this is the text of a form that everybody fills in, with one word in it that matters and which is here: "
    rows = [
        {"text": frame + ("yes indeed" if n % 2 else "not at all") + f" {n}", "label": str(n % 2)} for n in range(80)
    ]
    path = tmp_path / "forms.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    found = audited(build_dataset(read_corpus(path), None, None, fraction=0.2, seed=0))
    assert found.sources.largest == 80
    assert found.label_noise.num_rows == 64
    assert found.label_noise.skill > 0.9


def test_pairs_and_several_labels(tmp_path: Path) -> None:
    rows = [
        {"premise": f"premise number {n}", "hypothesis": f"hypothesis {n % 7}", "labels": ["a", "b"][: n % 3]}
        for n in range(40)
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    dataset = build_dataset(read_corpus(path, ReadOptions()), None, None, fraction=0.2, seed=0)
    found = audited(dataset)
    json.dumps(found.as_dict(), allow_nan=False)
    assert found.labels.without_labels["train"] > 0
