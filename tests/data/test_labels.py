import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlassify.data.corpus import Columns, Corpus, Rejection
from qlassify.data.labels import CLASS_WEIGHT_STRATEGIES, LabelMap, build_label_map, class_weights, label_counts
from qlassify.errors import ConfigError, DataError


def corpus_of(labels: list[tuple[str, ...]], multi_label: bool = False, declared: tuple[str, ...] = ()) -> Corpus:
    count = len(labels)
    return Corpus(
        path="file.csv",
        format="csv",
        columns=Columns("text", None, "label"),
        texts=tuple(f"text {n}" for n in range(count)),
        pairs=None,
        labels=tuple(labels),
        multi_label=multi_label,
        rows=tuple(range(101, 101 + count)),
        rejections=(),
        total_rows=count,
        sha256="",
        declared_labels=declared,
    )


@pytest.mark.parametrize(
    ("labels", "wanted"),
    [
        (["10", "9", "-1", "10"], ("-1", "9", "10")),
        (["b", "B", "a", "10", "9"], ("10", "9", "B", "a", "b")),
        (["1.5", "10", "9"], ("1.5", "10", "9")),  # not all of them integers
        (["01", "1"], ("01", "1")),
    ],
)
def test_the_order_of_classes_is_that_of_their_names(labels: list[str], wanted: tuple[str, ...]) -> None:
    for order in (labels, labels[::-1]):
        assert build_label_map(corpus_of([(label,) for label in order])).names == wanted


def test_declared_classes_have_numbers_without_rows() -> None:
    corpus = corpus_of([("1",), ()], multi_label=True, declared=("0", "1", "2"))
    label_map = build_label_map(corpus)
    assert label_map.names == ("0", "1", "2")
    assert label_map.encode(corpus).targets.tolist() == [[0, 1, 0], [0, 0, 0]]


def test_files_that_have_no_classes() -> None:
    with pytest.raises(DataError, match=r"fewer than two labels.*'only'"):
        build_label_map(corpus_of([("only",)] * 5))
    with pytest.raises(DataError, match=r"label of its own.*15 labels in 25 rows"):
        build_label_map(corpus_of([(f"id{n % 15}",) for n in range(25)]))
    assert len(build_label_map(corpus_of([(f"id{n % 12}",) for n in range(25)]))) == 12
    assert len(build_label_map(corpus_of([(f"id{n}",) for n in range(20)]))) == 20  # a small file may be like that


names = st.text(min_size=1, max_size=5)


@given(st.lists(names, min_size=2, max_size=19).filter(lambda labels: len(set(labels)) > 1))
def test_single_labels_survive_encoding(labels: list[str]) -> None:
    corpus = corpus_of([(label,) for label in labels])
    label_map = build_label_map(corpus)
    encoded = label_map.encode(corpus)
    assert encoded.targets.dtype == np.int64
    assert [label_map.names[number] for number in encoded.targets] == labels
    assert [label_map.index(label) for label in labels] == encoded.targets.tolist()
    assert encoded.kept.tolist() == list(range(len(labels)))


@given(st.lists(st.lists(names, unique=True, max_size=4), min_size=2, max_size=12))
def test_several_labels_survive_encoding(rows: list[list[str]]) -> None:
    label_map = LabelMap(tuple(sorted({name for row in rows for name in row} | {"a", "b"})), multi_label=True)
    encoded = label_map.encode(corpus_of([tuple(row) for row in rows], multi_label=True))
    assert encoded.targets.dtype == np.float32
    assert encoded.targets.shape == (len(rows), len(label_map))
    decoded = [{label_map.names[number] for number in np.flatnonzero(flags)} for flags in encoded.targets]
    assert decoded == [set(row) for row in rows]
    assert set(np.unique(encoded.targets)) <= {0.0, 1.0}


def test_unseen_labels_are_rejected_and_nothing_is_shifted() -> None:
    encoded = LabelMap(("a", "c"), multi_label=False).encode(corpus_of([("c",), ("b",), ("a",), ("d",)]))
    assert encoded.targets.tolist() == [1, 0]
    assert encoded.kept.tolist() == [0, 2]
    assert encoded.rejections == (
        Rejection(102, "label not seen in training: 'b'"),
        Rejection(104, "label not seen in training: 'd'"),
    )


def test_a_row_with_one_unseen_label_of_several_is_rejected() -> None:
    encoded = LabelMap(("a", "c"), multi_label=True).encode(corpus_of([("a", "b"), ("a", "c")], multi_label=True))
    assert encoded.targets.tolist() == [[1, 1]]
    assert encoded.rejections == (Rejection(101, "label not seen in training: 'b'"),)


def test_multi_label_rows_for_a_single_label_classifier() -> None:
    corpus = corpus_of([("a",), ("a", "c"), ()], multi_label=True)
    encoded = LabelMap(("a", "c"), multi_label=False).encode(corpus)
    assert encoded.targets.tolist() == [0]
    assert [rejection.reason for rejection in encoded.rejections] == ["2 labels, wanted 1", "0 labels, wanted 1"]


def test_a_corpus_with_foreign_labels_is_an_error_and_an_empty_one_is_none() -> None:
    label_map = LabelMap(("neg", "pos"), multi_label=False)
    with pytest.raises(DataError, match=r"no row has labels.*'0', '1'.*'neg', 'pos'"):
        label_map.encode(corpus_of([("0",), ("1",)]))
    assert label_map.encode(corpus_of([])).targets.shape == (0,)
    assert LabelMap(("a", "b"), multi_label=True).encode(corpus_of([], multi_label=True)).targets.shape == (0, 2)


def test_unknown_and_repeated_names() -> None:
    with pytest.raises(DataError, match=r"unknown label.*Did you mean 'positive'"):
        LabelMap(("negative", "positive"), multi_label=False).index("positiv")
    with pytest.raises(DataError, match="twice"):
        LabelMap(("a", "a"), multi_label=False)


def test_counts() -> None:
    assert label_counts(np.array([0, 2, 2]), 4).tolist() == [1, 0, 2, 0]
    assert label_counts(np.array([[0, 1], [1, 1]], dtype=np.float32), 2).tolist() == [1, 2]
    assert label_counts(np.array([0]), 1).dtype == np.int64


# Closed forms, computed here by hand for counts (1, 3): N = 4, K = 2.
@pytest.mark.parametrize(
    ("strategy", "ratio"),
    [
        ("uniform", 1.0),
        ("inverse", 3.0),
        ("sqrt_inverse", math.sqrt(3.0)),
        ("effective_number", (1 - 0.9999**3) / (1 - 0.9999)),
    ],
)
def test_class_weights_closed_form(strategy: str, ratio: float) -> None:
    wanted = [2 * ratio / (1 + ratio), 2 / (1 + ratio)]
    assert class_weights(np.array([1, 3]), strategy) == pytest.approx(wanted, rel=1e-11)
    # A class without rows counts as one row.
    assert class_weights(np.array([0, 3]), strategy) == pytest.approx(wanted, rel=1e-11)


@given(st.lists(st.integers(0, 10**7), min_size=1, max_size=30), st.sampled_from(CLASS_WEIGHT_STRATEGIES))
def test_class_weights_sum_to_the_number_of_classes_and_favour_the_rare(counts: list[int], strategy: str) -> None:
    weights = class_weights(np.array(counts), strategy)
    assert weights.dtype == np.float64
    assert weights.sum() == pytest.approx(len(counts), rel=1e-12)
    assert (weights > 0).all()
    by_count = weights[np.argsort(counts, kind="stable")]
    assert (np.diff(by_count) <= 1e-12).all()


def test_unknown_strategy() -> None:
    with pytest.raises(ConfigError, match="uniform, inverse, sqrt_inverse, effective_number"):
        class_weights(np.array([1, 2]), "inverted")
