"""Shapes of the charts against what they show."""

import re

import numpy as np
import pytest
from numpy.typing import NDArray

from lightning_ncmtl.callbacks.page.curves import chart_curves, chart_gains, find_ticks
from lightning_ncmtl.callbacks.page.flow import lay_out_flow
from lightning_ncmtl.callbacks.page.similarity import LEVELS, Similarity, lay_out_similarity


def names(count: int) -> list[str]:
    return [f"task {number}" for number in range(count)]


def random_halves(count: int, groups: int) -> tuple[NDArray[np.float64], list[int]]:
    rng = np.random.default_rng(count)
    group = np.arange(count) % groups
    centers = rng.normal(size=(groups, 16))[group]
    points = centers + rng.normal(size=(2, count, 16))
    points /= np.linalg.norm(points, axis=2, keepdims=True)
    return points @ points.transpose(0, 2, 1), group.tolist()


def paint(picture: Similarity, count: int) -> NDArray[np.float64]:
    """The level of each cell, as it is painted; NaN where nothing is."""
    cell = picture.side / count
    found = np.full((count, count), np.nan)
    for level in picture.levels:
        for x, y, wide in re.findall(r"M([\d.]+) ([\d.]+)h([\d.]+)", level.path):
            row, first = round(float(y) / cell), round((float(x) - picture.x) / cell)
            last = first + round(float(wide) / cell)
            assert np.isnan(found[row, first:last]).all()
            found[row, first:last] = level.number
    return found


@pytest.mark.parametrize(("count", "groups"), [(2, 1), (7, 2), (29, 3), (120, 5)])
def test_the_map_shows_half_a_above_and_half_b_below(count: int, groups: int) -> None:
    halves, clusters = random_halves(count, groups)
    picture = lay_out_similarity(halves, clusters, names(count))
    order = [int(block.title.split(" (")[0].removeprefix("task ")) for block in picture.strip]
    assert sorted(order) == list(range(count))
    painted = paint(picture, count)
    one, other = (half[np.ix_(order, order)] for half in halves)
    for row in range(count):
        for column in range(count):
            if row == column:
                assert np.isnan(painted[row, column])
                continue
            value = (one if row < column else other)[row, column]
            assert painted[row, column] == pytest.approx(value / picture.limit * LEVELS, abs=0.5001)
    assert len(picture.outlines) == (groups if groups > 1 else 0)
    assert [clusters[task] for task in order] == sorted(clusters, key=[clusters[task] for task in order].index)


def test_of_very_many_tasks_cells_are_means() -> None:
    halves, clusters = random_halves(500, 4)
    picture = lay_out_similarity(halves, clusters, names(500))
    assert picture.pooled == 2
    painted = paint(picture, 250)
    assert np.isnan(painted).sum() == 250
    assert len(picture.strip) == 500


def test_the_tree_joins_all_tasks_beside_their_rows() -> None:
    halves, clusters = random_halves(9, 2)
    picture = lay_out_similarity(halves, clusters, names(9))
    brackets = re.findall(r"M([\d.]+) ([\d.]+)H([\d.]+)V([\d.]+)H([\d.]+)", picture.tree)
    assert len(brackets) == 8
    leaf = max(float(bracket[0]) for bracket in brackets)
    ends = [
        float(y) for x, top, _, bottom, right in brackets for x_, y in ((x, top), (right, bottom)) if float(x_) == leaf
    ]
    cell = picture.side / 9
    assert sorted(ends) == pytest.approx([(place + 0.5) * cell for place in range(9)], abs=0.1)


@pytest.mark.parametrize("count", [2, 4, 29, 200, 500])
def test_bands_end_at_their_names(count: int) -> None:
    clusters = [task % 3 for task in range(count)]
    flow = lay_out_flow({"one": [0] * count, "two": clusters}, names(count))
    assert [head.text for head in flow.heads] == ["shared", "one", "two", "own"]
    assert [each.text for each in flow.counts][2] == f"{min(3, count)} clusters"
    assert len(flow.bands) == (count if count <= 400 else 3)
    assert len(flow.names) == -(-count // flow.every)
    gaps = np.diff([name.y for name in flow.names])
    assert (gaps >= 12.9).all()
    for name in flow.names if count <= 400 else ():
        (band,) = [band for band in flow.bands if band.title == name.title]
        assert band.color == clusters[int(name.title.removeprefix("task "))]
        points = [tuple(map(float, point)) for point in re.findall(r"([\d.]+) ([\d.]+)", band.path)]
        right = max(x for x, _ in points)
        ends = [y for x, y in points if x == right]
        assert np.mean(ends) == pytest.approx(name.y, abs=0.1)
    assert sum(block.title.startswith(f"{k}: ") for block in flow.blocks for k in range(3)) == 1 + min(3, count)


def test_long_names_are_cut_and_told_in_full() -> None:
    long = "a name that is far too long for its place"
    flow = lay_out_flow({"layer": [0, 0, 1]}, [long, "b", "c"])
    (name,) = [name for name in flow.names if name.title == long]
    assert name.text == "a name that is far to…"


def test_curves_lie_where_their_values_are() -> None:
    line = [(10, 0.5), (20, 0.7), (40, 0.9)]
    chart = chart_curves(
        "accuracy", {"validation": line}, [(1, 10), (2, 20), (3, 40)], 40, {"clustered": 20}, (40, 0.9)
    )
    assert chart is not None
    left, top, right, bottom = chart.box
    points = [tuple(map(float, point)) for point in re.findall(r"([\d.]+) ([\d.]+)", chart.lines[0].path)]
    low, high = 0.5, 0.9
    expected = [(left + (right - left) * x / 40, bottom - (bottom - top) * (y - low) / (high - low)) for x, y in line]
    assert np.array(points) == pytest.approx(np.array(expected), abs=0.06)
    assert [tick.text for tick in chart.x_ticks] == ["1", "2", "3"]
    assert [tick.text for tick in chart.y_ticks] == ["0.5", "0.6", "0.7", "0.8", "0.9"]
    assert [dot.title for dot in chart.lines[0].dots] == [
        "validation, epoch 1, step 10: 0.5", "validation, epoch 2, step 20: 0.7", "validation, epoch 3, step 40: 0.9"
    ]  # fmt: skip
    assert chart.marks[0].x == pytest.approx((left + right) / 2)
    assert chart.chosen is not None
    assert (chart.chosen.x, chart.chosen.y) == (right, top)


def test_without_finite_values_there_is_no_chart() -> None:
    assert chart_curves("loss", {"training": [(1, float("nan"))], "validation": []}, [], 1, {}) is None


def test_gains_stand_over_their_numbers() -> None:
    chart = chart_gains({2: 0.1, 3: 0.3, 10: -0.1}, 3)
    points = [tuple(map(float, point)) for point in re.findall(r"([\d.]+) ([\d.]+)", chart.lines[0].path)]
    xs = [x for x, _ in points]
    ratios = [(x - xs[0]) / (xs[-1] - xs[0]) for x in xs]
    assert ratios == pytest.approx([0, np.log10(2), np.log10(3), 1], abs=0.01)
    assert chart.chosen is not None
    assert chart.chosen.y == min(y for _, y in points)
    assert chart.chosen.text == "3 found"
    assert [tick.text for tick in chart.x_ticks] == ["1", "2", "3", "5", "10"]


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (-3, 7), (0.93, 0.931), (5, 5), (0, 0), (1e12, 1e12 + 1), (-1e38, 1e38), (0, 1e-320)]
)
def test_ticks_enclose_the_values(low: float, high: float) -> None:
    values, labels = find_ticks(low, high)
    assert values[0] <= low
    assert values[-1] >= high
    assert values == sorted(values)
    assert 2 <= len(values) == len(labels) <= 8
