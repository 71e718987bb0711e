"""The picture of the evidence for clusters: do both halves of the data show the same blocks?"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from scipy.cluster.hierarchy import leaves_list

from lightning_ncmtl.callbacks.arrangement import MAX_NAMED, build_tree
from lightning_ncmtl.callbacks.cluster_pictures import _font_size, _name_tasks
from lightning_ncmtl.clustering.evidence import Evidence
from lightning_ncmtl.drawing import COLORS, DPI, measure_width

_TREE, _SIDE = 1.0, 2.1  # width of the dendrogram and of what is right of the map, in inches
_MAX_INCHES = 13.0  # of the map, so that the rest can be read beside it


def draw_evidence(evidence: Evidence, assignment: Sequence[int], tasks: Sequence[str], title: str) -> Figure:
    """Draw how similar each two tasks are in each half of the data, and what each number of clusters is worth.

    Tasks are in the order of a hierarchy (average linkage of the mean over both halves), clusters side by side.

    Args:
        evidence: What the halves say of N tasks.
        assignment: Cluster number of each task ``[N]``.
        tasks: Names of the N tasks.
        title: Heading of the picture.

    Returns:
        A figure with the dendrogram; the map, above its diagonal of one half and below it of the other, with lines
        around clusters; its scale; and the gains with the number found. Beyond some 100 tasks, only every n-th is
        named, and beyond 400 none.
    """
    count = len(tasks)
    halves = evidence.similarities.double().numpy()
    tree = build_tree(halves.mean(0), assignment)
    order = leaves_list(tree)
    size = _font_size(count)
    side = float(np.clip(1.3 * size * count / 72, 2.6, _MAX_INCHES))
    label = measure_width(tasks if count <= MAX_NAMED else [], size) + 0.15
    top, bottom, left = 0.75, label + 0.3, _TREE + 0.15
    height = top + side + bottom
    width = max(left + side + label + 0.5 + _SIDE + 0.25, measure_width([title], 11) + 0.3)
    figure = Figure((width, height), dpi=DPI)  # placed by hand: branches meet the rows of the map

    def place(x: float, y: float, wide: float, high: float) -> Axes:
        """Axes at so many inches from the left and from the top."""
        return figure.add_axes((x / width, 1 - (y + high) / height, wide / width, high / height))

    figure.suptitle(title, x=0.15 / width, y=1 - 0.12 / height, ha="left", va="top", fontsize=11, parse_math=False)
    _draw_tree(place(0.1, top, _TREE, side), tree)

    axes = place(left, top, side, side)
    shown = np.where(np.tri(count, dtype=bool).T, *(half[np.ix_(order, order)] for half in halves))
    np.fill_diagonal(shown, np.nan)  # each task is like itself
    limit = float(np.nanmax(abs(shown))) or 1.0
    axes.set_facecolor("0.85")
    image = axes.imshow(shown, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
    found = np.asarray(assignment)[order]
    edges = [0, *np.flatnonzero(np.diff(found)) + 1, count]
    if 1 < len(edges) - 1 < count:
        for first, last in pairwise(edges):
            axes.add_patch(Rectangle((first - 0.5, first - 0.5), last - first, last - first, fill=False, linewidth=1.2))
    for axis in (axes.xaxis, axes.yaxis):
        _name_tasks(axes, axis, np.arange(count), [tasks[task] for task in order.tolist()], size, side)
    axes.yaxis.tick_right()
    axes.tick_params(axis="x", labelrotation=90)
    axes.tick_params(length=0)
    axes.set_title("above the diagonal half A, below half B", fontsize=9, pad=4)

    right = left + side + label + 0.5
    _draw_gains(place(right, top, _SIDE, 1.3), evidence)
    scale = place(right, top + 2.1, _SIDE, 0.12)
    bar = figure.colorbar(image, scale, orientation="horizontal", ticks=[-limit, 0, limit], format="%.2g")
    bar.set_label("similarity of tasks (cosine)", fontsize=9)
    bar.ax.tick_params(labelsize=8, length=2)
    return figure


def _draw_tree(axes: Axes, tree: NDArray[np.float64]) -> None:
    """Not by scipy, whose recursion ends at a thousand tasks."""
    count = len(tree) + 1
    low, high = tree[:, 2].min(), tree[-1, 2]
    low -= 0.1 * (high - low) or 1.0  # where leaves begin
    place, height = np.zeros(2 * count - 1), np.concatenate([np.full(count, low), tree[:, 2]])
    place[leaves_list(tree)] = np.arange(count)
    brackets = []
    for node, (one, other) in enumerate(tree[:, :2].astype(int), start=count):
        place[node] = (place[one] + place[other]) / 2
        heights = height[[one, node, node, other]]
        brackets.append(np.stack([heights, place[[one, one, other, other]]], axis=1))
    axes.add_collection(LineCollection(brackets, colors="0.3", lw=0.8 if count <= MAX_NAMED else 0.4))
    axes.set(xlim=(high + 0.03 * (high - low), low), ylim=(count - 0.5, -0.5))
    axes.set_axis_off()


def _draw_gains(axes: Axes, evidence: Evidence) -> None:
    gains = {1: 0.0, **evidence.gains}
    chosen = evidence.num_clusters
    axes.axhline(0, color="0.8", linewidth=0.8)
    axes.plot(list(gains), list(gains.values()), color=COLORS[0], linewidth=1.2, marker=".", markersize=4)
    axes.plot(chosen, gains[chosen], color=COLORS[2], linestyle="", marker="o", markersize=7)
    axes.set_xscale("log")  # of many tasks, few numbers are tried, and their own
    axes.minorticks_off()
    ticks = [number for number in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if number <= max(gains)]
    ticks = ticks[:: 1 if len(ticks) < 8 else 2]
    axes.set_xticks(ticks, [str(number) for number in ticks])
    axes.tick_params(labelsize=8, length=2)
    axes.set_xlabel("number of clusters", fontsize=9)
    axes.set_title(f"gain per task; {chosen} found", fontsize=9, pad=4)
