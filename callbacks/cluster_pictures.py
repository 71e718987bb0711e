"""Pictures of a clustering: the tasks' way through the layers, who stays with whom, and how it settled."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import ceil
from operator import ne
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from lightning_ncmtl.callbacks.arrangement import MAX_NAMED, SPREAD, few_crossings, find_bundles, find_tops
from lightning_ncmtl.drawing import COLORS, DPI, measure_width
from lightning_ncmtl.errors import InputError

_MAX_INCHES = 20.0  # of the part with one row per task: at most 3,000 pixels
_BLOCK = 0.2  # half the width of a block of the flow; columns are 1 apart


def draw_flow(layers: Mapping[str, Sequence[int]], tasks: Sequence[str]) -> Figure:
    """Draw each task as a band through the clusters of all layers, from the hard layers to the task's own (Fig. 4).

    Bands have the colour of their cluster in the first layer that has clusters of several tasks.

    Args:
        layers: Cluster number of each task ``[N]``, by layer, in the order of the network.
        tasks: Names of the N tasks.

    Returns:
        A figure with one axes. Beyond some 190 tasks, only every n-th is named, and beyond 400 none; bands that run
        side by side are one then.
    """
    count = len(tasks)
    numbers = np.array([[0] * count, *layers.values(), range(count)])  # [columns, N]
    columns = [np.unique(row, return_inverse=True)[1] for row in numbers]
    clusters = [int(column.max()) + 1 for column in columns]
    ranks = few_crossings(columns)
    places = [find_tops(column, rank) for column, rank in zip(columns, ranks, strict=True)]

    size = _font_size(count)
    points = float(np.clip(1.1 * size * count, 90, _MAX_INCHES * 72 / SPREAD)) / count  # height of one band
    headings = [f"{name}\n{_plural(k, 'cluster')}" for name, k in zip(layers, clusters[1:-1], strict=True)]
    headings = ["hard\nall tasks", *headings, "specific\neach task"]
    tall = count * points * SPREAD / 72
    pitch = max(1.8, tall / 5, measure_width(headings, 9) + 0.4)  # of the columns; steep bands get thin
    shown = tasks if count <= MAX_NAMED else []
    width = (len(headings) - 1 + _BLOCK) * pitch + measure_width(shown, size) + 0.3
    figure = Figure((width, tall + 0.8), dpi=DPI, layout="constrained")
    axes = figure.add_subplot(xlim=(-_BLOCK - 0.02, len(headings) - 1), ylim=(count * SPREAD + 0.1, -0.1))

    colored = next((c for c, k in enumerate(clusters) if 1 < k < count), len(headings) - 2)
    color = np.argsort([places[colored][columns[colored] == k].min() for k in range(clusters[colored])]).argsort()
    for first, last in find_bundles(columns, ranks):
        edges = [(float(top[first]), float(top[last]) + 1) for top in places]
        band = _band(edges, gap=min(0.08, 0.8 / points))
        face = COLORS[color[columns[colored][first]] % len(COLORS)]
        axes.add_patch(PathPatch(band, color=face, alpha=0.75, lw=0.3))
    for x, (column, top) in enumerate(zip(columns[:-1], places[:-1], strict=True)):
        for cluster in range(clusters[x]):
            members = np.flatnonzero(column == cluster)
            label = f"{numbers[x][members[0]]}: " if x else ""
            label = label + _plural(len(members), "task") if len(members) * points > size else ""
            upper, height = float(top[members].min()), len(members)
            veil = (1.0, 1.0, 1.0, 0.7)  # the label can be read and the bands seen
            block = Rectangle((x - _BLOCK, upper), 2 * _BLOCK, height, facecolor=veil, edgecolor="0.2", linewidth=0.8)
            axes.add_patch(block)
            axes.text(x, upper + height / 2, label, fontsize=size * 0.85, ha="center", va="center_baseline")
    axes.set_xticks(range(len(headings)), headings, fontsize=9, parse_math=False)
    axes.xaxis.tick_top()
    axes.yaxis.tick_right()
    order = np.argsort(ranks[-1])
    _name_tasks(axes, axes.yaxis, places[-1][order] + 0.5, [tasks[task] for task in order], size, tall)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def coclustering(trace: Sequence[tuple[int, Sequence[int]]], last_step: int) -> NDArray[np.float64]:
    """Count how long each two tasks were in the same cluster.

    Args:
        trace: First step and cluster numbers ``[N]`` of each assignment; it held until the step before the next one.
        last_step: The last step to count.

    Returns:
        Fraction of the steps from the first clustering to ``last_step``, both included, ``[N, N]``.

    Raises:
        InputError: If there is no such step.

    >>> coclustering([(3, [0, 0, 1]), (4, [0, 1, 1])], last_step=6)
    array([[1.  , 0.25, 0.  ],
           [0.25, 1.  , 0.75],
           [0.  , 0.75, 1.  ]])
    """
    if not trace or last_step < trace[0][0]:
        raise InputError(f"no clustering up to step {last_step}: nothing to count")
    ends = [min(step, last_step + 1) for step, _ in trace[1:]] + [last_step + 1]
    # Tasks that were always together are one, which makes little of many tasks.
    kinds, kind = np.unique([assignment for _, assignment in trace], axis=1, return_inverse=True)
    together = np.zeros((kinds.shape[1],) * 2)
    for (step, _), row, end in zip(trace, kinds, ends, strict=True):
        together += max(0, end - step) * np.equal.outer(row, row)
    share: NDArray[np.float64] = together / (last_step + 1 - trace[0][0])
    return share[np.ix_(kind.ravel(), kind.ravel())]


def draw_coclustering(
    trace: Sequence[tuple[int, Sequence[int]]], tasks: Sequence[str], last_step: int, title: str
) -> Figure:
    """Draw how long each two tasks were in the same cluster of one layer, with tasks that stay together side by side.

    Args:
        trace: First step and cluster numbers ``[N]`` of each assignment, see :func:`coclustering`.
        tasks: Names of the N tasks.
        last_step: The last step to count.
        title: Heading of the picture.

    Returns:
        A figure with a heat map and its scale. Beyond some 190 tasks, only every n-th is named, and beyond 400 none.
    """
    count = len(tasks)
    size = _font_size(count)
    side = float(np.clip(1.3 * size * count / 72, 2.4, _MAX_INCHES)) if count <= MAX_NAMED else _MAX_INCHES / 2
    shown = tasks if count <= MAX_NAMED else []
    label = measure_width(shown, size) + 0.2
    width = max(side + label + 1.0, measure_width([title], 11) + 0.3)
    # Constrained layout would cut off labels of an image that is narrower than its place
    figure = Figure((width, side + label + 0.5), dpi=DPI, layout="compressed")
    figure.suptitle(title, fontsize=11, parse_math=False)
    axes = figure.add_subplot()
    if not trace:
        _say_not_clustered(axes)
        return figure
    together = coclustering(trace, last_step)
    order = np.arange(count)
    if count > 1:
        order = leaves_list(linkage(squareform(1 - together, checks=False), "average"))
    image = axes.imshow(together[np.ix_(order, order)], cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
    for axis in (axes.xaxis, axes.yaxis):
        _name_tasks(axes, axis, np.arange(count), [tasks[task] for task in order.tolist()], size, side)
    axes.tick_params(axis="x", labelrotation=90)
    bar = figure.colorbar(image, fraction=0.2 / side, aspect=side / 0.2, pad=0.1 / side)
    bar.set_label("share of steps in the same cluster", fontsize=9)
    return figure


def draw_history(
    losses: Mapping[str, Sequence[tuple[int, float]]],
    traces: Mapping[str, Sequence[tuple[int, Sequence[int]]]],
    last_step: int,
) -> Figure:
    """Draw how the clusters of each layer settled.

    Args:
        losses: Step and clustering loss, by layer.
        traces: First step and cluster numbers ``[N]`` of each assignment, by layer, see :func:`coclustering`.
        last_step: Where the picture ends.

    Returns:
        A figure with the loss above, on a log scale if it is never zero, and below how often tasks had changed cluster
        up to each step.
    """
    figure = Figure((8, 5), dpi=DPI, layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    top.set_ylabel("clustering loss")
    bottom.set(xlabel="optimizer step", ylabel="changes of cluster so far")
    if not any(traces.values()):
        _say_not_clustered(top)
        _say_not_clustered(bottom)
        return figure
    lines, most = [], 1
    for number, (name, trace) in enumerate(traces.items()):
        color = COLORS[number % len(COLORS)]
        points = losses.get(name, ())
        # A line through a single point cannot be seen
        marker = "." if len(points) < 50 else ""
        top.plot([step for step, _ in points], [loss for _, loss in points], linewidth=1.2, color=color, marker=marker)
        moves = [sum(map(ne, old, new)) for (_, old), (_, new) in pairwise(trace)]
        steps = [step for step, _ in trace] + [last_step] * bool(trace)
        counts = np.cumsum([0, *moves, 0])[: len(steps)]
        most = max(most, sum(moves))
        lines += bottom.step(steps, counts, where="post", linewidth=1.2, color=color)
    if all(loss > 0 for points in losses.values() for _, loss in points):
        top.set_yscale("log")
    bottom.set_ylim(-0.05 * most, 1.05 * most)  # a line at zero stays off the edge
    for axis in (bottom.xaxis, bottom.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if len(traces) > 1:
        labels = [name if trace else f"{name} (not clustered)" for name, trace in traces.items()]
        figure.legend(lines, labels, loc="outside upper center", ncols=2, fontsize=9)
    return figure


def _band(edges: Sequence[tuple[float, float]], gap: float) -> Path:
    """A ribbon between its upper and lower edge in each column, level in blocks and curved between, less a gap."""
    sides = []
    for ys in ([top + gap / 2 for top, _ in edges], [bottom - gap / 2 for _, bottom in edges]):
        side = []
        for x, y in enumerate(ys):
            side += [(x - _BLOCK, y), (x + _BLOCK, y)]
            if x + 1 < len(ys):
                side += [(x + 0.5, y), (x + 0.5, ys[x + 1])]
        sides.append(side)
    upper, lower = sides
    codes = [Path.LINETO, *[Path.CURVE4] * 3] * (len(edges) - 1) + [Path.LINETO]
    vertices = [*upper, *reversed(lower), upper[0]]
    return Path(vertices, [Path.MOVETO, *codes, Path.LINETO, *codes, Path.CLOSEPOLY])


def _font_size(tasks: int) -> float:
    """In points: 9 up to 30 tasks, 7 at 100, at least 6."""
    return float(np.clip(9 - (tasks - 30) / 35, 6, 9))


def _name_tasks(axes: Axes, axis: Axis, places: NDArray[Any], tasks: Sequence[str], size: float, inches: float) -> None:
    """Name the tasks along an axis of so many inches: all, or every n-th where they would overlap, or none."""
    every = ceil(1.25 * size * len(tasks) / 72 / inches)
    shown = len(tasks) if len(tasks) <= MAX_NAMED else 0
    axis.set_ticks(places[:shown:every], tasks[:shown:every], fontsize=size, parse_math=False)
    if every > 1:
        axes.set_xlabel(f"One task in {every} is named." if shown else f"{len(tasks):,} tasks, too many to name")


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def _say_not_clustered(axes: Axes) -> None:
    axes.text(0.5, 0.5, "not clustered", transform=axes.transAxes, ha="center", va="center")
    axes.set(xticks=[], yticks=[])
