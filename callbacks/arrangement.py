"""Where tasks go in a picture: in orders in which few of their bands cross, or like tasks are neighbours."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import squareform

MAX_NAMED = 400  # tasks from which on none is named, and all are drawn with less detail
SPREAD = 1.3  # height of a column of the flow per height of its bands; the rest are gaps between the blocks
_FAR = 5.0  # is added between clusters: more than twice what any two tasks can be apart


def few_crossings(columns: Sequence[NDArray[np.intp]]) -> list[NDArray[np.intp]]:
    """Rank of each task in each column, top to bottom, so that tasks of a block are neighbours and few bands cross."""
    # The barycentre method of Sugiyama et al. (1981): sweeps to the right and to the left order blocks by the mean rank
    # of their tasks in the column before. They get stuck, so the best of several starts wins.
    rng = np.random.default_rng(0)
    starts = [np.lexsort(columns[::-1]).argsort(), *(rng.permutation(len(columns[0])) for _ in range(20))]
    to_right = [(column, column - 1) for column in range(1, len(columns))]
    to_left = [(column, column + 1) for column in reversed(range(len(columns) - 1))]
    found = []
    for start in starts:
        ranks = [start] * len(columns)
        for column, neighbour in (to_right + to_left) * 2:
            block, before = columns[column], ranks[neighbour]
            mean = np.bincount(block, before) / np.bincount(block)
            ranks[column] = np.lexsort((before, block, mean[block])).argsort()
        found.append(ranks)
    return min(found, key=lambda ranks: sum(_crossings(one, other) for one, other in pairwise(ranks)))


def _crossings(one: NDArray[np.intp], other: NDArray[np.intp]) -> int:
    """Number of pairs of tasks that two columns have in opposite order."""
    moved = other[one.argsort()]
    return int(np.triu(np.greater.outer(moved, moved)).sum())


def find_tops(block: NDArray[np.intp], rank: NDArray[np.intp]) -> NDArray[np.float64]:
    """Upper edge of each task's band in one column, from 0; bands are 1 high and the column is centred."""
    count, blocks = len(block), int(block.max()) + 1
    free = (SPREAD - 1) * count
    gap = min(max(0.6, 0.05 * count), free / max(1, blocks - 1))
    order = rank.argsort()
    before = np.concatenate([[0], np.cumsum(np.diff(block[order]) != 0)])  # blocks above
    tops: NDArray[np.float64] = rank + before[rank] * gap + (free - (blocks - 1) * gap) / 2
    return tops


def find_bundles(columns: Sequence[NDArray[np.intp]], ranks: Sequence[NDArray[np.intp]]) -> list[tuple[int, int]]:
    """The bands to draw, by their first and last task: a band per task, or, of many, per run of neighbours."""
    count = len(columns[0])
    if count <= MAX_NAMED:
        return [(task, task) for task in range(count)]
    order = ranks[-1].argsort()
    parted = np.zeros(count - 1, dtype=bool)  # a task from the next one
    for column, rank in zip(columns, ranks, strict=True):
        parted |= np.diff(rank[order]) != 1
        if column.max() + 1 < count:  # blocks of several tasks
            parted |= np.diff(column[order]) != 0
    runs = np.split(order, np.flatnonzero(parted) + 1)
    return [(int(run[0]), int(run[-1])) for run in runs]


def build_tree(similarity: NDArray[np.float64], assignment: Sequence[int]) -> NDArray[np.float64]:
    """A hierarchy of tasks in which each cluster is a branch.

    Args:
        similarity: ``[N, N]``, 1 at most.
        assignment: Cluster number of each task ``[N]``.

    Returns:
        ``[N - 1, 4]``, as :func:`scipy.cluster.hierarchy.linkage` describes it; heights are 1 - similarity, and no
        branch is lower than those that it consists of.
    """
    different = np.not_equal.outer(assignment, assignment)
    distance = np.maximum(1 - similarity, 0) + _FAR * different
    tree: NDArray[np.float64] = linkage(squareform(distance, checks=False), "average", optimal_ordering=True)
    heights = np.concatenate([np.zeros(len(tree) + 1), tree[:, 2]])
    heights[heights > _FAR / 2] -= _FAR
    for node, branches in enumerate(tree[:, :2].astype(int), start=len(tree) + 1):
        heights[node] = max(heights[node], *heights[branches])
    tree[:, 2] = heights[len(tree) + 1 :]
    return tree
