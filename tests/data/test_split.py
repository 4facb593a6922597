import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlassify.data.split import Split, stratified_split
from qlassify.errors import ConfigError, DataError


def split_of(targets: list[int], texts: list[str], fraction: float = 0.2, seed: int = 0) -> Split:
    return stratified_split(np.array(targets), texts, fraction=fraction, seed=seed, multi_label=False)


def both_sides(split: Split, values: list[object]) -> tuple[set[object], set[object]]:
    return {values[row] for row in split.train}, {values[row] for row in split.held_out}


rows = st.lists(st.tuples(st.integers(0, 4), st.sampled_from("abcdefghijklmnop")), min_size=2, max_size=60)
fractions = st.floats(0.02, 0.5)


@given(rows, fractions, st.integers(0, 3))
def test_disjoint_complete_without_leaks_and_repeatable(
    data: list[tuple[int, str]], fraction: float, seed: int
) -> None:
    targets, texts = [target for target, _ in data], [text for _, text in data]
    try:
        split = split_of(targets, texts, fraction, seed)
    except DataError:
        # Only where every text is the only one of a class, so that holding it out would leave that class untrained.
        alone = [{text for target, text in data if target == cls} for cls in set(targets)]
        assert all({text} in alone for text in texts)
        return
    assert sorted([*split.train, *split.held_out]) == list(range(len(data)))
    assert (np.diff(split.train) > 0).all()
    assert (np.diff(split.held_out) > 0).all()
    train, held_out = both_sides(split, list(texts))
    assert not train & held_out
    assert train
    assert held_out
    again = split_of(targets, texts, fraction, seed)
    assert np.array_equal(split.held_out, again.held_out)


@given(st.lists(st.integers(0, 6), min_size=2, max_size=80), fractions, st.integers(0, 3))
def test_stratified(targets: list[int], fraction: float, seed: int) -> None:
    counts = {cls: targets.count(cls) for cls in set(targets)}
    if max(counts.values()) < 2:
        return
    split = split_of(targets, [f"text {n}" for n in range(len(targets))], fraction, seed)
    held_out = [targets[row] for row in split.held_out]
    for cls, count in counts.items():
        if count == 1:
            assert held_out.count(cls) == 0
        else:
            assert 1 <= held_out.count(cls) <= count - 1
            # Near its share, give or take what rounding the other six classes can push onto it.
            assert abs(held_out.count(cls) - fraction * count) <= 7


def test_shares_are_exact_where_they_can_be() -> None:
    targets = [0] * 1000 + [1] * 100 + [2] * 10
    split = split_of(targets, [f"text {n}" for n in range(len(targets))], fraction=0.1)
    assert np.bincount([targets[row] for row in split.held_out]).tolist() == [100, 10, 1]
    assert split.notes == ()


@pytest.mark.parametrize(("num_rows", "wanted"), [(26, 3), (24, 2), (5, 1), (2, 1)])
def test_the_number_of_rows_is_rounded(num_rows: int, wanted: int) -> None:
    assert len(split_of([0] * num_rows, [str(n) for n in range(num_rows)], fraction=0.1).held_out) == wanted


def test_a_class_that_gives_nothing_does_not_empty_another() -> None:
    targets = [0] * 99 + [1] * 100
    split = split_of(targets, ["always the same"] * 99 + [f"text {n}" for n in range(100)], fraction=0.5)
    assert len(split.held_out) == 50
    assert any("50 rows are held out instead of 100" in note for note in split.notes)


def test_small_classes_do_not_change_the_size() -> None:
    # Thirty classes of two rows hold out one each, fifteen times their share; the large class gives way.
    targets = [cls for cls in range(30) for _ in range(2)] + [30] * 940
    split = split_of(targets, [f"text {n}" for n in range(len(targets))], fraction=0.1)
    assert len(split.held_out) == 100
    assert set(np.bincount([targets[row] for row in split.held_out])[:30]) == {1}


def test_more_classes_than_rows_wanted_is_said() -> None:
    targets = [cls for cls in range(50) for _ in range(4)]
    split = split_of(targets, [f"text {n}" for n in range(200)], fraction=0.05)
    assert len(split.held_out) == 50
    assert any("50 rows are held out instead of 10" in note for note in split.notes)


def test_single_rows_stay_in_train_with_a_note() -> None:
    split = split_of([0, 0, 0, 0, 1, 2], list("abcdef"))
    assert {4, 5} <= set(split.train.tolist())
    assert any("2 (1, 2)" in note for note in split.notes)


def test_case_and_blanks_do_not_make_texts_different() -> None:
    texts = ["Hello  World", "hello world", " HELLO\tworld ", "other", "third"]
    for seed in range(20):
        split = split_of([0, 0, 0, 0, 0], texts, seed=seed)
        train, held_out = both_sides(split, ["same", "same", "same", "other", "third"])
        assert not train & held_out
        assert any("3 rows share their text" in note for note in split.notes)


def test_pairs_are_the_same_if_both_texts_are() -> None:
    texts, pairs = ["a", "a", "a", "A"], ["x", "y", "z", "X"]
    sides = set()
    for seed in range(20):
        split = stratified_split(
            np.zeros(4, dtype=np.int64), texts, fraction=0.5, seed=seed, multi_label=False, pairs=pairs
        )
        out = set(split.held_out.tolist())
        assert (0 in out) == (3 in out)
        sides.add((0 in out, 1 in out))
    assert len(sides) > 1  # a shared first text does not tie rows together


def test_a_class_whose_texts_also_have_another_label_is_on_both_sides() -> None:
    # Class 1 has two texts; one of them also occurs with class 2, the rarest, which decides its stratum.
    targets = [0] * 20 + [1, 1, 2, 2]
    texts = [f"text {n}" for n in range(20)] + ["shared", "own", "shared", "other"]
    for seed in range(30):
        split = split_of(targets, texts, seed=seed)
        assert {1, 2} <= {targets[row] for row in split.train}
        assert {1, 2} <= {targets[row] for row in split.held_out}


@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=30, max_size=90), fractions)
def test_multi_label(flags: list[list[bool]], fraction: float) -> None:
    targets = np.array(flags, dtype=np.float32)
    texts = [f"text {n}" for n in range(len(flags))]
    split = stratified_split(targets, texts, fraction=fraction, seed=1, multi_label=True)
    assert sorted([*split.train, *split.held_out]) == list(range(len(flags)))
    one_sided = [
        cls
        for cls in range(4)
        if targets[:, cls].sum() >= 2 and not (targets[split.train, cls].any() and targets[split.held_out, cls].any())
    ]
    assert not one_sided or any("both sides" in note for note in split.notes)
    assert abs(len(split.held_out) - fraction * len(flags)) <= 8


def test_rare_labels_are_shared_out_among_rows_of_many_labels() -> None:
    targets = np.zeros((200, 3), dtype=np.float32)
    targets[:, 0] = 1
    targets[:20, 1] = 1
    targets[:5, 2] = 1
    split = stratified_split(targets, [str(n) for n in range(200)], fraction=0.2, seed=3, multi_label=True)
    assert targets[split.held_out].sum(axis=0).tolist() == [40, 4, 1]


def test_a_label_of_a_single_row_stays_in_train_whatever_it_comes_with() -> None:
    # Label 0 has two rows, and each of them is the only one of another label: then label 0 has to do without.
    targets = np.zeros((10, 4), dtype=np.float32)
    targets[0, [0, 1]] = targets[1, [0, 2]] = 1
    targets[2:, 3] = 1
    for seed in range(20):
        split = stratified_split(targets, [str(n) for n in range(10)], fraction=0.3, seed=seed, multi_label=True)
        assert {0, 1} <= set(split.train.tolist())
        assert any("3 (0, 1, 2)" in note for note in split.notes)


def test_a_label_of_a_single_text_is_brought_back_into_train() -> None:
    # Label 1 has one text but three rows; label 0, rarer by rows, decides the stratum of that text.
    targets = np.zeros((5, 3), dtype=np.float32)
    targets[[0, 3], 0] = 1
    targets[[0, 1, 2], 1] = 1
    targets[4, 2] = 1
    for seed in range(20):
        split = stratified_split(targets, list("aaabc"), fraction=0.5, seed=seed, multi_label=True)
        assert {0, 1, 2} <= set(split.train.tolist())
        assert split.held_out.tolist() == [3]


def test_seeds_differ_and_the_result_is_pinned() -> None:
    targets, texts = [n % 3 for n in range(300)], [f"text {n}" for n in range(300)]
    first, second = (split_of(targets, texts, seed=seed).held_out for seed in (0, 1))
    assert not np.array_equal(first, second)
    # The same on every platform and with every NumPy: a change here changes everybody's validation set.
    assert hashlib.sha256(first.astype("<i8").tobytes()).hexdigest()[:16] == "fc369ce15694fcd5"


@pytest.mark.parametrize("fraction", [0.0, -0.1, 0.51, 1.0, float("nan")])
def test_fractions_that_make_no_sense(fraction: float) -> None:
    with pytest.raises(ConfigError, match="fraction"):
        split_of([0, 1], ["a", "b"], fraction=fraction)


def test_too_little_to_split() -> None:
    with pytest.raises(DataError, match="too few rows"):
        split_of([0], ["a"])
    with pytest.raises(DataError, match="nothing can be held out"):
        split_of([0, 0, 1], ["a", "A ", "b"])
