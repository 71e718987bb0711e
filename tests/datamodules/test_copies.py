import itertools
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import sklearn.feature_extraction.text as sklearn_text
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_ncmtl.datamodules.copies import deal_folds, deal_share, find_copies, find_pairs, group_copies, repeats


def expected(texts: Sequence[str]) -> list[int]:
    """The groups, by comparing every document with every other."""
    words = ["".join(c if c.isalnum() else " " for c in text.lower()).split() for text in texts]
    runs = [{tuple(row[i : i + 5]) for i in range(len(row) - 4)} for row in words]
    starts = ["".join(row)[:200] for row in words]
    groups = list(range(len(texts)))
    for i, j in itertools.combinations(range(len(texts)), 2):
        same_start = starts[i] == starts[j] != ""
        union = len(runs[i] | runs[j])
        if same_start or (union and len(runs[i] & runs[j]) / union >= 0.4):
            groups = [groups[i] if group == groups[j] else group for group in groups]
    numbers: dict[int, int] = {}
    return [numbers.setdefault(group, len(numbers)) for group in groups]


def random_texts(count: int, seed: int) -> list[str]:
    """Documents of which many are edited copies of earlier ones."""
    rng = random.Random(seed)
    texts: list[list[str]] = []
    for _ in range(count):
        row = list(rng.choice(texts)) if texts and rng.random() < 0.6 else rng.choices("abcdefgh", k=rng.randrange(30))
        for _ in range(rng.randrange(4)):
            row.insert(rng.randrange(len(row) + 1), rng.choice("abcdefgh"))
        texts.append(row)
    return [" ".join(row) for row in texts]


@settings(deadline=None)
@given(st.lists(st.lists(st.sampled_from(["a", "b", "B!", "c", "_", "1", "\ufffd", "x" * 90])).map(" ".join)))
def test_groups_are_those_of_comparing_all_pairs(texts: list[str]) -> None:
    assert find_copies(texts).tolist() == expected(texts)


@pytest.mark.parametrize("seed", range(3))
def test_groups_of_more_documents_than_are_compared_at_a_time(seed: int) -> None:
    texts = random_texts(600, seed)
    groups = find_copies(texts).tolist()
    assert groups == expected(texts)
    assert 50 < len(set(groups)) < 550


def test_colliding_hashes_make_no_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    def colliding(n_features: int, **settings: Any) -> Any:
        return hashing(n_features=1, **settings)

    hashing = sklearn_text.HashingVectorizer
    monkeypatch.setattr(sklearn_text, "HashingVectorizer", colliding)
    texts = random_texts(100, 0)
    assert find_copies(texts).tolist() == expected(texts)


def test_pairs_group_the_first_documents_as_if_there_were_no_others() -> None:
    texts = random_texts(80, 1)
    pairs = find_pairs(texts)
    for count in range(0, 81, 5):
        assert group_copies(pairs, count).tolist() == find_copies(texts[:count]).tolist()


@pytest.mark.parametrize(
    ("texts", "groups"),
    [
        ([], []),
        (["", "", "?!", "...", "_"], [0, 1, 2, 3, 4]),  # nothing to compare
        (["so good", "bad", "So -- GOOD!", "sogood"], [0, 1, 0, 0]),
        (["y" * 199 + "a b", "y" * 199 + "a c", "y" * 199 + "b"], [0, 0, 1]),  # the first 200
        (["a b c d e f g", "a b c d e f x y"], [0, 0]),  # 2 runs of 5 in all
        (["a b c d e f g", "a b c d e f x y z"], [0, 1]),  # 2 of 6
        (["a b c d e f g h", "x a b c d e f g h", "x y a b c d e f g h z"], [0, 0, 0]),  # the last by the second
        (["a b c d", "x", "a b c d e", "a b c d f"], [0, 1, 2, 3]),  # short ones
        (["caf\u00e9 1", "CAF\u00c9 1", "cafe 1"], [0, 0, 1]),
    ],
)
def test_hand_made_documents(texts: list[str], groups: list[int]) -> None:
    assert find_copies(texts).tolist() == groups == expected(texts)
    assert find_copies(texts).dtype == np.int64


def test_repeats_are_all_but_the_first_of_a_group() -> None:
    assert repeats(np.array([0, 1, 0, 2, 2, 0])).tolist() == [False, False, True, False, True, True]
    assert repeats(np.array([7, 7, 3])).tolist() == [False, True, False]


def test_folds_keep_groups_together_and_share_out_every_stratum() -> None:
    rng = np.random.default_rng(0)
    groups = group_copies(rng.integers(0, 300, (80, 2)), 300)
    strata = rng.integers(0, 4, 300)
    folds = deal_folds(groups, strata, 5, seed=3)
    assert all(len(set(folds[groups == group])) == 1 for group in groups)
    by_first = strata[np.unique(groups, return_index=True)[1]][groups]
    for stratum in range(4):
        sizes = np.bincount(folds[by_first == stratum], minlength=5)
        assert sizes.max() - sizes.min() <= 1  # small groups come last, and fill up
    assert folds.tolist() == deal_folds(groups, strata, 5, seed=3).tolist()
    assert folds.tolist() != deal_folds(groups, strata, 5, seed=4).tolist()


def test_single_documents_are_dealt_round_the_folds() -> None:
    """Stratum by stratum, each going on where the last one ended."""
    strata = np.array([0] * 7 + [1] * 4 + [2] * 9)
    folds = deal_folds(np.arange(20), strata, 3, seed=0)
    assert [np.bincount(folds[strata == stratum]).tolist() for stratum in range(3)] == [[3, 2, 2], [1, 2, 1], [3, 3, 3]]


@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=40),
    folds=st.integers(2, 6),
    seed=st.integers(0, 9),
)
def test_folds_of_large_groups_differ_by_less_than_a_group(sizes: list[int], folds: int, seed: int) -> None:
    groups = np.repeat(np.arange(len(sizes)), sizes)
    rows = np.bincount(deal_folds(groups, np.zeros_like(groups), folds, seed), minlength=folds)
    assert rows.sum() == sum(sizes)
    assert rows.max() - rows.min() <= max(sizes)


@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=40),
    share=st.floats(0.02, 0.98),
    seed=st.integers(0, 9),
)
def test_a_share_of_large_groups_is_as_near_as_one_of_them(sizes: list[int], share: float, seed: int) -> None:
    groups = np.repeat(np.arange(len(sizes)), sizes)
    chosen = deal_share(groups, np.zeros_like(groups), share, [seed])
    wanted = round(share * len(groups))
    assert all(len(set(chosen[groups == group])) == 1 for group in range(len(sizes)))
    others = [size for group, size in enumerate(sizes) if not chosen[groups == group][0]]
    off = abs(int(chosen.sum()) - wanted)
    assert off <= max(sizes) / 2
    if chosen.sum() < wanted:  # nothing more would bring it nearer
        assert all(abs(chosen.sum() + size - wanted) > off for size in others)
    filled = np.concatenate([groups, groups.max() + 1 + np.arange(len(groups))])  # and as many single ones
    chosen = deal_share(filled, np.zeros_like(filled), share / 2, [seed])
    assert chosen.sum() == round(share / 2 * len(filled))


@pytest.mark.parametrize("filler", ["", "!", " - " * 500])
def test_starts_alone_are_found_in_texts_of_any_length(filler: str) -> None:
    """The same as with all words, where documents are so different that no near-copies are there."""
    rng = np.random.default_rng(0)
    texts = [filler.join(str(part) for part in rng.integers(1000, size=size)) for size in rng.integers(1, 200, 100)]
    texts += (
        [text.upper() + "." * 9 for text in texts[:30]] + [text[:900] for text in texts[:30]] + ["", "?", "é" * 500]
    )
    texts += [texts[-1][:250] + " and more"]
    by_starts: dict[str, int] = {}
    expected = []
    for index, text in enumerate(texts):
        start = "".join(char for char in text.lower() if char.isalnum())[:200]
        expected.append(by_starts.setdefault(start or str(-index), len(by_starts)))
    assert group_copies(find_pairs(iter(texts), near=False), len(texts)).tolist() == expected
