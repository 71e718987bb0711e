import doctest
from collections.abc import Sequence
from itertools import pairwise, permutations

import numpy as np
import pytest
from figures import check_texts, laid_out, read
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch, Rectangle

from lightning_ncmtl.callbacks import cluster_pictures
from lightning_ncmtl.callbacks.cluster_pictures import coclustering, draw_coclustering, draw_flow, draw_history
from lightning_ncmtl.errors import InputError

Trace = list[tuple[int, list[int]]]


def names(count: int) -> list[str]:
    """Short, long (25 characters), and with signs that have a meaning in formulas."""
    return [("task", "a_long_name_of_a_domain_", "$x_1$ & $y$ ")[task % 3] + f"{task}" for task in range(count)]


def random_layers(count: int, num_clusters: Sequence[int] = (3, 5, 10)) -> dict[str, list[int]]:
    rng = np.random.default_rng(0)
    return {f"layers.{k}": rng.integers(0, k, count).tolist() for k in num_clusters}


def random_trace(count: int) -> Trace:
    rng = np.random.default_rng(0)
    steps = np.cumsum([7, *rng.integers(1, 5, 9)]).tolist()
    return [(step, rng.integers(0, 3, count).tolist()) for step in steps]


def blocks(figure: Figure) -> dict[int, list[float]]:
    """Heights of the blocks of each column, in tasks."""
    found: dict[int, list[float]] = {}
    for patch in figure.axes[0].patches:
        if isinstance(patch, Rectangle):
            found.setdefault(round(patch.get_x() + patch.get_width() / 2), []).append(patch.get_height())
    return {column: sorted(heights) for column, heights in found.items()}


def bands(figure: Figure) -> list[PathPatch]:
    return [patch for patch in figure.axes[0].patches if isinstance(patch, PathPatch)]


@pytest.mark.parametrize("count", [1, 4, 14, 100])
def test_flow_names_every_task_legibly(count: int) -> None:
    figure = laid_out(draw_flow(random_layers(count), names(count)))
    axes = figure.axes[0]
    assert sorted(read(axes.get_yticklabels())) == sorted(names(count))
    check_texts(figure, [*axes.get_yticklabels(), *axes.get_xticklabels()])
    check_texts(figure, [text for text in axes.texts if text.get_position()[0] == 2])  # of the blocks of a column


def test_flow_headings_with_long_names_of_layers() -> None:
    layers = {f"model.encoder.of.sentences.cluster_layers.{number}": [0, 1, 0, 0] for number in range(4)}
    figure = laid_out(draw_flow(layers, names(4)))
    headings = read(figure.axes[0].get_xticklabels())
    assert headings[1:-1] == [f"{name}\n2 clusters" for name in layers]
    check_texts(figure, figure.axes[0].get_xticklabels())


def test_flow_has_a_block_for_each_used_cluster() -> None:
    figure = draw_flow({"one": [3, 0, 3, 3], "two": [0, 1, 2, 3]}, names(4))
    assert blocks(figure) == {0: [4], 1: [1, 3], 2: [1, 1, 1, 1]}
    labels = set(read(figure.axes[0].texts))
    assert labels == {"4 tasks", "3: 3 tasks", "0: 1 task", "1: 1 task", "2: 1 task", "3: 1 task"}


def test_flow_bands_run_inside_their_blocks() -> None:
    layers = random_layers(14)
    figure = draw_flow(layers, names(14))
    for column, assignment in enumerate(layers.values(), start=1):
        edges = {}
        for text in figure.axes[0].texts:
            if text.get_position()[0] == column:
                edges[int(text.get_text().split(":")[0])] = text.get_position()[1]
        for band, cluster in zip(bands(figure), assignment, strict=True):
            vertices = np.asarray(band.get_path().vertices)
            heights = vertices[np.isclose(vertices[:, 0], column - 0.2), 1]
            assert abs(heights - edges[cluster]).max() <= assignment.count(cluster) / 2


def crossings(figure: Figure, columns: int) -> int:
    """Pairs of bands in opposite order, summed over neighbouring columns."""
    ends = [np.asarray(band.get_path().vertices) for band in bands(figure)]
    tops = [[vertices[np.isclose(vertices[:, 0], x + 0.2), 1].min() for vertices in ends] for x in range(columns)]
    pairs = [(one, other) for one in range(len(ends)) for other in range(one)]
    return sum((a[i] < a[j]) != (b[i] < b[j]) for a, b in pairwise(tops) for i, j in pairs)


def test_flow_of_nested_clusters_has_no_crossings() -> None:
    layers = {"one": [0, 0, 1, 1, 0, 1], "two": [2, 1, 0, 0, 2, 0], "three": [0, 1, 2, 3, 5, 3]}
    assert crossings(draw_flow(layers, names(6)), 5) == 0


@pytest.mark.parametrize("seed", range(8))
def test_flow_has_as_few_crossings_as_possible(seed: int) -> None:
    rng = np.random.default_rng(seed)
    one, other = rng.integers(0, 3, (2, 8)).tolist()
    fewest = min(
        sum(a[one[i]] < a[one[j]] and b[other[i]] > b[other[j]] for i in range(8) for j in range(8))
        for a in permutations(range(3))
        for b in permutations(range(3))
    )
    assert crossings(draw_flow({"one": one, "other": other}, names(8)), 4) == fewest


def test_flow_colors_are_those_of_the_first_layer_with_groups() -> None:
    figure = draw_flow({"shared": [0] * 4, "own": [0, 1, 2, 3], "groups": [1, 0, 1, 0]}, names(4))
    colors = [to_rgb(band.get_facecolor()) for band in bands(figure)]
    assert colors[0] == colors[2] != colors[1] == colors[3]
    twelve = draw_flow({"groups": [*range(12), 0]}, names(13))  # more groups than colours
    assert len({band.get_facecolor() for band in bands(twelve)}) == 10


def test_flow_without_layers() -> None:
    figure = draw_flow({}, names(3))
    assert blocks(figure) == {0: [3]}
    assert len(figure.axes[0].get_xticklabels()) == 2
    assert len(figure.axes[0].get_yticklabels()) == 3


def test_coclustering_against_brute_force() -> None:
    trace, last_step = random_trace(5), 40
    expected = np.zeros((5, 5))
    steps = range(trace[0][0], last_step + 1)
    for step in steps:
        current = [assignment for start, assignment in trace if start <= step][-1]
        for one in range(5):
            for other in range(5):
                expected[one, other] += current[one] == current[other]
    np.testing.assert_allclose(coclustering(trace, last_step), expected / len(steps))


def test_coclustering_stops_at_the_last_step() -> None:
    trace: Trace = [(1, [0, 0]), (3, [0, 1]), (9, [0, 0])]
    assert coclustering(trace, 4)[0, 1] == 0.5
    assert coclustering(trace, 1)[0, 1] == 1
    with pytest.raises(InputError, match="up to step 0"):
        coclustering(trace, 0)
    with pytest.raises(InputError, match="no clustering"):
        coclustering([], 4)


@pytest.mark.parametrize(
    ("count", "title"), [(1, "layer"), (4, "a title wider than the map" * 3), (14, "layer"), (100, "layer")]
)
def test_coclustering_picture_names_every_task_legibly(count: int, title: str) -> None:
    figure = laid_out(draw_coclustering(random_trace(count), names(count), 50, title))
    axes = figure.axes[0]
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert sorted(read(labels)) == sorted(names(count))
        check_texts(figure, [*labels, *figure.texts])


def test_coclustering_picture_puts_groups_side_by_side() -> None:
    figure = draw_coclustering([(1, [0, 1, 0, 1, 0])], ["a", "b", "c", "d", "e"], 9, "layer")
    order = "".join(read(figure.axes[0].get_yticklabels()))
    assert {"".join(sorted(order[:2])), "".join(sorted(order[-2:]))} & {"bd"}
    shown = np.asarray(figure.axes[0].images[0].get_array())
    assert np.array_equal(shown, np.equal.outer([t in "bd" for t in order], [t in "bd" for t in order]))


def test_many_tasks_are_named_in_part() -> None:
    count = 200
    flow = laid_out(draw_flow(random_layers(count, (3,)), names(count)))
    heat = laid_out(draw_coclustering([(1, [0] * count)], names(count), 1, "layer"))
    for figure in (flow, heat):
        axes = figure.axes[0]
        assert axes.get_xlabel() == "One task in 2 is named."
        assert len(axes.get_yticklabels()) == 100
        check_texts(figure, axes.get_yticklabels())
        assert figure.bbox.height < 4000


def test_a_thousand_tasks_are_drawn_in_groups() -> None:
    """No names, and a band for each run of tasks that take the same way, where each task has one of its own else."""
    count = 1000
    layers = {"one": [task % 20 for task in range(count)], "own": list(range(count)), "two": [0] * count}
    layers["two"][7] = layers["two"][27] = 1
    flow = laid_out(draw_flow(layers, names(count)))
    heights = []
    for band in bands(flow):
        vertices = np.asarray(band.get_path().vertices)
        heights.append(np.ptp(vertices[np.isclose(vertices[:, 0], 1.2), 1]))
    assert sorted(round(float(height)) for height in heights) == [2, 48, *[50] * 19]
    assert blocks(flow)[1] == [50] * 20
    heat = laid_out(draw_coclustering([(1, layers["one"])], names(count), 1, "layer"))
    for figure in (flow, heat):
        axes = figure.axes[0]
        assert axes.get_xlabel() == "1,000 tasks, too many to name"
        assert len(axes.get_yticklabels()) == 0
        assert figure.bbox.height < 4000
    shown = np.asarray(heat.axes[0].images[0].get_array())
    assert shown.sum() == 20 * 50**2
    assert abs(np.diff(shown)).sum() == pytest.approx(2 * 50 * 19)  # sorted: every square is whole
    assert heat.bbox.width >= count  # a pixel for each task, at least


def test_history() -> None:
    losses = {"one": [(5, 2.0), (6, 1.5)], "two": [(5, 3.0), (6, 0.5)], "three": []}
    traces: dict[str, Trace] = {
        "one": [(5, [0, 0, 1]), (7, [0, 1, 1]), (8, [1, 0, 1])],  # one task, then two
        "two": [(5, [0, 0, 1])],
        "three": [],
    }
    figure = laid_out(draw_history(losses, traces, last_step=9))
    top, bottom = figure.axes
    assert top.get_yscale() == "log"
    assert [np.asarray(line.get_xydata()).tolist() for line in top.lines] == [
        [[5, 2], [6, 1.5]],
        [[5, 3], [6, 0.5]],
        [],
    ]
    assert [np.asarray(line.get_xydata()).tolist() for line in bottom.lines] == [
        [[5, 0], [7, 1], [8, 3], [9, 3]],
        [[5, 0], [9, 0]],
        [],
    ]
    labels = read(figure.legends[0].get_texts())
    assert labels == ["one", "two", "three (not clustered)"]


def test_history_with_a_loss_of_zero() -> None:
    figure = laid_out(draw_history({"one": [(5, 0.0)]}, {"one": [(5, [0, 1])]}, last_step=6))
    assert figure.axes[0].get_yscale() == "linear"
    assert not figure.legends


@pytest.mark.parametrize(
    "figure", [draw_history({}, {}, 9), draw_history({}, {"one": []}, 9), draw_coclustering([], ["a", "b"], 9, "one")]
)
def test_nothing_clustered(figure: Figure) -> None:
    for axes in laid_out(figure).axes:
        assert read(axes.texts) == ["not clustered"]


def test_the_example_in_the_docstring() -> None:
    """pytest would import the file a second time, under another name."""
    assert doctest.testmod(cluster_pictures).attempted == 1
    assert doctest.testmod(cluster_pictures).failed == 0
