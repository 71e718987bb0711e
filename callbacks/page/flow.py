"""The way of the tasks through the layers, as shapes of an SVG."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import ceil
from typing import NamedTuple

import numpy as np

from lightning_ncmtl.callbacks.arrangement import SPREAD, few_crossings, find_bundles, find_tops
from lightning_ncmtl.callbacks.page.text import plural, shorten

_PITCH, _BLOCK, _TOP, _NAMES = 162.0, 88.0, 44.0, 170.0  # in pixels, as all here
LINE = 13.0  # height of a line of text


class Band(NamedTuple):
    """Tasks that go the same way.

    Attributes:
        path: Its outline.
        color: Number of its colour.
        title: Its tasks.
    """

    path: str
    color: int
    title: str


class Block(NamedTuple):
    """A cluster of a layer."""

    x: float
    y: float
    width: float
    height: float
    label: str
    title: str


class Label(NamedTuple):
    """A text at a place: what fits, and all of it."""

    x: float
    y: float
    text: str
    title: str


class Flow(NamedTuple):
    """A picture of the flow.

    Attributes:
        width: Of the picture.
        height: Of the picture.
        bands: The tasks.
        blocks: The clusters of all layers.
        heads: Name of each column.
        counts: What each column has.
        names: Names of the tasks that have room.
        every: One task in so many is named.
    """

    width: float
    height: float
    bands: list[Band]
    blocks: list[Block]
    heads: list[Label]
    counts: list[Label]
    names: list[Label]
    every: int


def lay_out_flow(layers: Mapping[str, Sequence[int]], tasks: Sequence[str]) -> Flow:
    """Lay out each task as a band from what all share through the clusters of each layer to what is its own.

    Args:
        layers: Cluster number of each task ``[N]``, by layer, in the order of the network.
        tasks: Names of the N tasks.
    """
    count = len(tasks)
    numbers = np.array([[0] * count, *layers.values(), range(count)])
    columns = [np.unique(row, return_inverse=True)[1] for row in numbers]
    clusters = [int(column.max()) + 1 for column in columns]
    ranks = few_crossings(columns)
    places = [find_tops(column, rank) for column, rank in zip(columns, ranks, strict=True)]
    high = float(np.clip(560 / count, 1100 / count if count > 200 else 5.5, 22))
    xs = [_BLOCK / 2 + 1 + _PITCH * number for number in range(len(columns))]
    ys = [_TOP + place * high for place in places]

    # Colours are those of the first layer with clusters of several tasks, so that clusters can be followed
    colored = next((c for c, k in enumerate(clusters) if 1 < k < count), len(columns) - 1)
    gap = min(1.0, 0.1 * high)
    bands = []
    for first, last in find_bundles(columns, ranks):
        edges = [(float(y[first]) + gap / 2, float(y[last]) + high - gap / 2) for y in ys]
        order = ranks[-1]
        inside = np.flatnonzero((order >= order[first]) & (order <= order[last]))
        title = tasks[first] if first == last else f"{len(inside)} tasks, {tasks[first]} to {tasks[last]}"
        bands.append(Band(_outline(xs, edges), int(numbers[colored][first]), title))
    blocks = []
    for column, (x, y) in enumerate(zip(xs[:-1], ys[:-1], strict=True)):
        for cluster in range(clusters[column]):
            members = np.flatnonzero(columns[column] == cluster)
            size, top = len(members) * high, float(y[members].min())
            number = numbers[column][members[0]]
            inner = plural(len(members), "task") if column == 0 else f"{number}: {plural(len(members), 'task')}"
            label = inner if size >= LINE else ""
            some = ", ".join(tasks[task] for task in members[:20]) + ", …" * (len(members) > 20)
            blocks.append(Block(x - _BLOCK / 2, top, _BLOCK, size, label, f"{inner}: {some}"))
    every = ceil(LINE / high)
    order = ranks[-1].argsort()
    names = [
        Label(xs[-1] + 6, float(ys[-1][task]) + high / 2, shorten(tasks[task]), tasks[task]) for task in order[::every]
    ]
    found = ["shared", *layers, "own"]
    heads = [Label(x, 14, shorten(name, 24), name) for x, name in zip(xs, found, strict=True)]
    about = ["all tasks", *(plural(k, "cluster") for k in clusters[1:-1]), "each task"]
    counts = [Label(x, 30, text, text) for x, text in zip(xs, about, strict=True)]
    height = _TOP + count * SPREAD * high + 8
    return Flow(xs[-1] + _NAMES, height, bands, blocks, heads, counts, names, every)


def _outline(xs: Sequence[float], edges: Sequence[tuple[float, float]]) -> str:
    """A band that is level in blocks and curved between them, down to the last column."""
    half = _BLOCK / 2
    upper, lower = [], []
    for number, (x, (top, bottom)) in enumerate(zip(xs, edges, strict=True)):
        right = x if number == len(xs) - 1 else x + half
        upper += [(x - half, top), (right, top)]
        lower += [(x - half, bottom), (right, bottom)]
    return f"M{_curve(upper)}L{_curve(lower[::-1])}Z"


def _curve(points: Sequence[tuple[float, float]]) -> str:
    """Points of a side, of which each second line is level and those between are curves."""
    parts = [f"{points[0][0]:.0f} {points[0][1]:.1f}"]
    for number, ((x, y), (u, v)) in enumerate(pairwise(points)):
        middle = (x + u) / 2
        level = number % 2 == 0
        parts.append(f"L{u:.0f} {v:.1f}" if level else f"C{middle:.0f} {y:.1f} {middle:.0f} {v:.1f} {u:.0f} {v:.1f}")
    return "".join(parts)
