"""Documents that are copies of each other, so that none of them trains while another one evaluates."""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from heapq import heapify, heapreplace
from typing import Any

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components

SAME_START = 200  # letters and digits
# Of the pairs of FDU-MTL's training documents with different starts, 20 are at least 0.53 similar, all of them edited
# copies; the next, at most 0.21, share a common phrase. So the choice between the two does not matter there.
SIMILAR = 0.4
MANY = 200_000  # documents up to which near-copies are looked for: that takes memory for all their words
_WORD = r"[^\W_]+"  # a run of letters and digits
_ROWS = 256  # documents compared with all others at a time: a bound on memory

Integers = np.ndarray[Any, np.dtype[np.int64]]
Flags = np.ndarray[Any, np.dtype[np.bool_]]


def find_copies(texts: Sequence[str]) -> Integers:
    """Group documents with their copies.

    Two documents are copies of each other if, lower-cased, their first 200 letters and digits are the same, or the
    sets of their runs of five words have a Jaccard similarity of at least 0.4; and if both are copies of a third.
    Documents without letters and digits have no copies.

    Args:
        texts: n documents.

    Returns:
        The group ``[n]`` of each document, numbered in the order of their first documents.
    """
    return group_copies(find_pairs(texts), len(texts))


def find_pairs(texts: Iterable[str], near: bool = True) -> Integers:
    """The pairs ``[m, 2]`` of documents that group all copies when joined (not each of their pairs).

    The pairs of the first k documents do the same for these.

    Args:
        texts: n documents.
        near: Whether to compare runs of words, too. Without it no more than eight bytes of each document are held.
    """
    if not near:
        return _find_same_starts(texts)
    texts = list(texts)
    different: dict[str, int] = {}  # equal texts have equal starts; the first of them stands for all
    for index, text in enumerate(texts):
        different.setdefault(" ".join(re.findall(_WORD, text.lower())), index)
    chosen = np.array(list(different.values()), dtype=np.int64)
    return np.concatenate([_find_same_starts(texts), chosen[_find_similar(list(different))]])


def find_repeats(texts: Iterable[str]) -> Integers:
    """As :func:`find_pairs`, where only documents are copies whose texts are the same, and not empty."""
    first: dict[str, int] = {}
    pairs = [(first.setdefault(text, index), index) for index, text in enumerate(texts) if text]
    return np.array([pair for pair in pairs if pair[0] < pair[1]], dtype=np.int64).reshape(-1, 2)


def group_copies(pairs: Integers, count: int) -> Integers:
    """The group ``[count]`` of each of the first documents, given the pairs of all (see :func:`find_copies`)."""
    first, second = pairs[(pairs < count).all(1)].T
    graph = sparse.coo_array((np.ones(len(first)), (first, second)), shape=(count, count))
    _, labels = connected_components(graph, directed=False)
    _, firsts, groups = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(firsts))[groups].astype(np.int64)


def repeats(groups: Integers) -> Flags:
    """Which documents ``[n]`` are copies of an earlier one."""
    found = np.ones(len(groups), dtype=bool)
    found[np.unique(groups, return_index=True)[1]] = False
    return found


def deal_folds(groups: Integers, strata: Integers, folds: int, seed: int) -> Integers:
    """Divide documents into folds that keep groups together.

    Stratum by stratum (that of a group's first document), each group goes to the fold that has fewest documents of the
    stratum, and of these to that with fewest in all: large groups first, equal ones in random order.

    Args:
        groups: ``[n]``, as :func:`find_copies` gives them.
        strata: ``[n]``, a number for each kind of document that every fold needs its share of.
        folds: Number of folds.
        seed: Seed of the random order.

    Returns:
        The fold ``[n]`` of each document.
    """
    fold_of_groups = np.zeros(len(np.unique(groups)), dtype=np.int64)
    totals = [0] * folds
    for members, sizes in _shuffle(groups, strata, seed):
        waiting = [(0, total, fold) for fold, total in enumerate(totals)]  # documents of the stratum, and in all
        heapify(waiting)
        for place in np.argsort(-sizes, kind="stable"):
            inside, total, fold = waiting[0]
            heapreplace(waiting, (inside + int(sizes[place]), total + int(sizes[place]), fold))
            fold_of_groups[members[place]] = fold
        for _, total, fold in waiting:
            totals[fold] = total
    return fold_of_groups[groups]


def deal_share(groups: Integers, strata: Integers, share: float, seed: Sequence[int]) -> Flags:
    """Choose a share of all documents, and of each stratum, so that groups stay together.

    In random order, each group is taken that fits into the share; then one more, if one brings the share nearer.

    Args:
        groups: As for :func:`deal_folds`.
        strata: As for :func:`deal_folds`.
        share: Between 0 and 1.
        seed: Seed of the choice.

    Returns:
        Which documents ``[n]`` are chosen.
    """
    chosen = np.zeros(len(np.unique(groups)), dtype=bool)
    dealt = 0
    for members, sizes in _shuffle(groups, strata, seed):
        # What rounding takes from one stratum it gives to the next.
        missing = round(share * (dealt + int(sizes.sum()))) - round(share * dealt)
        dealt += int(sizes.sum())
        for group, size in zip(members.tolist(), sizes.tolist(), strict=True):
            if size <= missing:
                chosen[group] = True
                missing -= size
        left = np.flatnonzero(~chosen[members])
        if missing and len(left):
            nearest = left[abs(sizes[left] - missing).argmin()]
            chosen[members[nearest]] = abs(sizes[nearest] - missing) <= missing
    return chosen[groups]


def _shuffle(groups: Integers, strata: Integers, seed: int | Sequence[int]) -> Iterator[tuple[Integers, Integers]]:
    """The groups of each stratum (that of their first document), in random order, and their sizes."""
    rng = np.random.default_rng(seed)
    strata_of_groups, sizes = strata[np.unique(groups, return_index=True)[1]], np.bincount(groups)
    for stratum in np.unique(strata):
        members = rng.permutation(np.flatnonzero(strata_of_groups == stratum))
        yield members, sizes[members]


def _find_same_starts(texts: Iterable[str]) -> Integers:
    """As :func:`find_pairs`, but only of equal starts."""
    values = np.fromiter((_hash_start(text, index) for index, text in enumerate(texts)), dtype=np.uint64)
    _, firsts, places = np.unique(values, return_index=True, return_inverse=True)
    pairs = np.stack([firsts[places], np.arange(len(values))], axis=1)
    return pairs[pairs[:, 0] < pairs[:, 1]]


def _hash_start(text: str, index: int) -> int:
    end = 2 * SAME_START  # mostly enough, and less work than all of a long document
    while len(start := "".join(re.findall(_WORD, text[:end].lower()))) < SAME_START and end < len(text):
        end *= 2
    content = (start[:SAME_START] or f"\0{index}").encode("utf-8", "replace")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def _find_similar(texts: Sequence[str]) -> Integers:
    """The pairs ``[m, 2]`` of similar documents, given as words with spaces between them."""
    from sklearn.feature_extraction.text import CountVectorizer, HashingVectorizer  # slow to import

    settings = {"binary": True, "ngram_range": (5, 5), "token_pattern": r"\S+", "lowercase": False, "dtype": np.float32}
    # Hashes are quick, but two different runs of words may have the same: they find documents to look at, with a
    # margin, and these are compared once more by the words themselves.
    hashing = HashingVectorizer(n_features=2**31 - 1, norm=None, alternate_sign=False, **settings)
    chosen = np.unique(_similar_rows(hashing.transform(texts), SIMILAR * 0.9)) if len(texts) else np.empty(0, int)
    if not len(chosen):
        return np.empty((0, 2), dtype=np.int64)
    runs = CountVectorizer(**settings).fit_transform([texts[index] for index in chosen])
    return chosen[_similar_rows(runs, SIMILAR)]


def _similar_rows(runs: Any, least: float) -> Integers:
    """The pairs ``[m, 2]`` of rows of a sparse matrix of zeros and ones with at least this Jaccard similarity."""
    sizes = np.diff(runs.indptr)
    columns, places, documents = np.unique(runs.indices, return_inverse=True, return_counts=True)
    runs = sparse.csr_array((runs.data, places, runs.indptr), shape=(len(sizes), len(columns)))
    runs = runs[:, documents > 1]  # what a single document has is no part of an intersection
    transposed = runs.T.tocsr()
    found = [np.empty((0, 2), dtype=np.int64)]
    for start in range(0, len(sizes), _ROWS):
        shared = (runs[start : start + _ROWS] @ transposed).tocoo()
        first, second = shared.row + start, shared.col
        similar = shared.data / (sizes[first] + sizes[second] - shared.data) >= least
        similar &= first < second
        found.append(np.stack([first[similar], second[similar]], axis=1))
    return np.concatenate(found)
