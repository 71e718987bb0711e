"""How similar each two tasks are in each half of the data, as shapes of an SVG."""

from collections.abc import Sequence
from itertools import pairwise
from math import ceil
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import leaves_list

from lightning_ncmtl.callbacks.arrangement import build_tree
from lightning_ncmtl.callbacks.page.flow import LINE, Block, Label
from lightning_ncmtl.callbacks.page.text import shorten

LEVELS = 6  # of each sign
_TREE, _STRIP, _NAMES, _MAP = 96.0, 20.0, 170.0, 540.0  # in pixels, as all here
_MOST = 250  # cells of a side, each of several tasks where there are more
_LETTER = 7.4  # width of one


class Level(NamedTuple):
    """All cells of about the same similarity.

    Attributes:
        number: From ``-LEVELS`` to ``LEVELS``.
        path: The cells.
        title: Between what the similarities are.
    """

    number: int
    path: str
    title: str


class Similarity(NamedTuple):
    """A picture of the similarity of tasks, in the order of a hierarchy.

    Attributes:
        width: Of the picture.
        height: Of the picture.
        x: Left edge of the map; its upper edge is 0.
        side: Of the map.
        tree: The hierarchy, left of the map, as a path.
        levels: The cells.
        outlines: The clusters in the map.
        strip: The cluster of each task, right of the map; the label is its number.
        numbers: The numbers of clusters on the strip, where they have room.
        names: Names of the tasks that have room, right of the strip.
        below: The same, below the map; only where all have room.
        every: One task in so many is named.
        pooled: Tasks per cell, at most.
        limit: The similarity of the strongest colour.
    """

    width: float
    height: float
    x: float
    side: float
    tree: str
    levels: list[Level]
    outlines: list[Block]
    strip: list[Block]
    numbers: list[Label]
    names: list[Label]
    below: list[Label]
    every: int
    pooled: int
    limit: float


def lay_out_similarity(halves: NDArray[np.float64], clusters: Sequence[int], tasks: Sequence[str]) -> Similarity:
    """Lay out the similarities, above the diagonal in one half and below it in the other.

    Args:
        halves: ``[2, N, N]``, cosines.
        clusters: Cluster number of each task ``[N]``.
        tasks: Names of the N tasks.
    """
    count = len(tasks)
    tree = build_tree(halves.mean(0), clusters)
    order = leaves_list(tree)
    cell = float(np.clip(_MAP / count, _MAP / count if count > _MOST else 2.7, 30))
    side, x = cell * count, _TREE + 6
    one, other = (_pool(half[np.ix_(order, order)], _MOST) for half in halves)
    shown = np.where(np.tri(len(one), dtype=bool).T, one, other)
    np.fill_diagonal(shown, np.nan)  # each task is like itself
    limit = float(np.nanmax(abs(shown))) or 1.0
    found = np.asarray(clusters)[order]
    edges = [0, *(np.flatnonzero(np.diff(found)) + 1).tolist(), count]
    outlines = [
        Block(
            x + first * cell, first * cell, (last - first) * cell, (last - first) * cell, "", f"cluster {found[first]}"
        )
        for first, last in pairwise(edges)
        if 1 < len(edges) - 1 < count
    ]
    strip = [
        Block(x + side + 3, place * cell, _STRIP, cell, str(found[place]), f"{tasks[task]} (cluster {found[place]})")
        for place, task in enumerate(order)
    ]
    numbers = [
        Label(x + side + 3 + _STRIP / 2, (first + last) * cell / 2, str(found[first]), "")
        for first, last in pairwise(edges)
        if (last - first) * cell >= LINE
    ]
    every = ceil(LINE / cell)
    longest = max(len(shorten(task)) for task in tasks) * _LETTER
    names = [
        Label(x + side + _STRIP + 8, (place + 0.5) * cell, shorten(tasks[task]), tasks[task])
        for place, task in enumerate(order)
        if place % every == 0
    ]
    below = [
        Label(x + (place + 0.5) * cell, side + 8, shorten(tasks[task]), tasks[task])
        for place, task in enumerate(order)
        if every == 1
    ]
    height = side + (longest + 14 if below else 6)
    levels = _levels(shown, x, side / len(shown), limit)
    width = x + side + _STRIP + 8 + min(longest, _NAMES) + 8
    path, pooled = _draw_tree(tree, cell), ceil(count / len(shown))
    return Similarity(
        width, height, x, side, path, levels, outlines, strip, numbers, names, below, every, pooled, limit
    )


def _pool(matrix: NDArray[np.float64], most: int) -> NDArray[np.float64]:
    """Means over blocks of neighbours, so that there are at most so many rows and columns."""
    if len(matrix) <= most:
        return matrix
    starts = np.linspace(0, len(matrix), most, endpoint=False).astype(int)
    sizes = np.diff([*starts, len(matrix)])
    sums = np.add.reduceat(np.add.reduceat(matrix, starts, 0), starts, 1)
    means: NDArray[np.float64] = sums / np.outer(sizes, sizes)
    return means


def _levels(shown: NDArray[np.float64], x: float, cell: float, limit: float) -> list[Level]:
    """A path for each level: neighbours of a row that have the same are one rectangle."""
    numbers = np.where(np.isnan(shown), 99, np.rint(np.nan_to_num(shown) / limit * LEVELS)).astype(int)
    paths: dict[int, list[str]] = {}
    for y, row in enumerate(numbers):
        edges = [0, *(np.flatnonzero(np.diff(row)) + 1).tolist(), len(row)]
        for first, last in pairwise(edges):
            wide = (last - first) * cell
            part = f"M{x + first * cell:.1f} {y * cell:.1f}h{wide:.1f}v{cell:.1f}h-{wide:.1f}z"
            paths.setdefault(int(row[first]), []).append(part)
    step = limit / LEVELS
    return [
        Level(number, "".join(paths[number]), f"similarity {(number - 0.5) * step:.2f} to {(number + 0.5) * step:.2f}")
        for number in sorted(paths)
        if number != 99
    ]


def _draw_tree(tree: NDArray[np.float64], cell: float) -> str:
    """The hierarchy, its leaves at the right edge, beside the rows of the map."""
    count = len(tree) + 1
    low, high = float(tree[:, 2].min()), float(tree[-1, 2])
    low -= 0.1 * (high - low) or 1.0  # where leaves begin
    place, height = np.zeros(2 * count - 1), np.concatenate([np.full(count, low), tree[:, 2]])
    place[leaves_list(tree)] = np.arange(count) + 0.5
    xs = (_TREE * (high - height) / (high - low)).round(1) + 2
    parts = []
    for node, (one, other) in enumerate(tree[:, :2].astype(int), start=count):
        place[node] = (place[one] + place[other]) / 2
        top, bottom = place[one] * cell, place[other] * cell
        parts.append(f"M{xs[one]:.1f} {top:.1f}H{xs[node]:.1f}V{bottom:.1f}H{xs[other]:.1f}")
    return "".join(parts)
