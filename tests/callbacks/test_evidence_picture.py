import numpy as np
import pytest
from figures import check_texts, laid_out, read
from made_up import make_evidence
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, leaves_list, linkage
from scipy.spatial.distance import squareform
from sklearn.metrics import adjusted_rand_score

from lightning_ncmtl.callbacks.arrangement import build_tree
from lightning_ncmtl.callbacks.evidence_picture import draw_evidence

DOMAINS = ["apparel", "baby", "sports_outdoors", "kitchen_housewares", "$x_1$ & $y$"]
TITLE = "no evidence for clusters (agreement of halves -0.03 ± 0.06, p = 0.45): all tasks share"


def names(count: int) -> list[str]:
    return [f"{DOMAINS[task % 5]}{task // 5 or ''}" for task in range(count)]


def squares(figure: Figure) -> list[tuple[float, float]]:
    """First and last place of each cluster in the map."""
    found = [patch for patch in figure.axes[1].patches if isinstance(patch, Rectangle)]
    return [(patch.get_y(), patch.get_y() + patch.get_height()) for patch in found]


def a_map(figure: Figure) -> NDArray[np.float64]:
    shown: NDArray[np.float64] = np.ma.filled(np.ma.asarray(figure.axes[1].images[0].get_array()), np.nan)
    return shown


@pytest.mark.parametrize(("count", "clusters"), [(2, 1), (2, 2), (3, 2), (14, 3), (14, 14), (29, 1), (100, 4)])
def test_every_task_is_named_legibly(count: int, clusters: int) -> None:
    figure = laid_out(draw_evidence(*make_evidence(count, clusters), names(count), TITLE))
    tree, axes, gains, scale = figure.axes
    assert read(figure.texts) == [TITLE]
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert sorted(read(labels)) == sorted(names(count))
        check_texts(figure, [*labels, *figure.texts, axes.title])
    ticks = [*gains.get_xticklabels(), *scale.get_xticklabels()]
    check_texts(figure, [gains.title, gains.xaxis.label, scale.xaxis.label, *ticks])
    assert f"{clusters} found" in gains.get_title()
    # A branch for each row
    assert tree.get_position().y0 == pytest.approx(axes.get_position().y0)
    assert tree.get_position().y1 == pytest.approx(axes.get_position().y1)
    assert tree.get_ylim() == axes.get_ylim()
    right = axes.get_window_extent().x1
    assert all(box.x0 >= right for box in (label.get_window_extent() for label in axes.get_yticklabels()))
    assert max(label.get_window_extent().x1 for label in axes.get_yticklabels()) < gains.get_window_extent().x0


def test_the_halves_are_above_and_below_the_diagonal() -> None:
    evidence, assignment = make_evidence(14, 3)
    tasks = names(14)
    figure = draw_evidence(evidence, assignment, tasks, TITLE)
    order = [tasks.index(task) for task in read(figure.axes[1].get_yticklabels())]
    assert read(figure.axes[1].get_xticklabels()) == [tasks[task] for task in order]
    first, second = evidence.similarities.numpy()[:, order][:, :, order]
    shown = a_map(figure)
    for row in range(14):
        assert np.isnan(shown[row, row])
        np.testing.assert_allclose(shown[row, row + 1 :], first[row, row + 1 :])
        np.testing.assert_allclose(shown[row, :row], second[row, :row])
    low, high = figure.axes[1].images[0].get_clim()
    assert -low == high == pytest.approx(np.nanmax(abs(shown)))


def test_clusters_are_side_by_side_within_lines() -> None:
    # 14 tasks in 3 clusters: of 5, 5 and 4
    evidence, assignment = make_evidence(14, 3, noise=2.0)  # the hierarchy alone would mix them
    tasks = names(14)
    figure = draw_evidence(evidence, assignment, tasks, TITLE)
    order = [tasks.index(task) for task in read(figure.axes[1].get_yticklabels())]
    places = sorted(squares(figure))
    assert sorted(last - first for first, last in places) == [4, 5, 5]
    assert (places[0][0], places[-1][1]) == (-0.5, 13.5)
    for first, last in places:
        assert len({assignment[task] for task in order[int(first + 0.5) : int(last + 0.5)]}) == 1


@pytest.mark.parametrize("clusters", [1, 14])
def test_without_a_choice_there_are_no_lines(clusters: int) -> None:
    assert squares(draw_evidence(*make_evidence(14, clusters), names(14), TITLE)) == []


def test_gains_mark_the_number_found() -> None:
    evidence, assignment = make_evidence(29, 4)
    gains = draw_evidence(evidence, assignment, names(29), TITLE).axes[2]
    _, line, dot = gains.lines
    known = {1: 0.0, **evidence.gains}
    assert np.asarray(line.get_xydata()).tolist() == [[number, gain] for number, gain in known.items()]
    assert np.asarray(dot.get_xydata()).tolist() == [[4, evidence.gains[4]]]
    assert read(gains.get_xticklabels()) == ["1", "2", "5", "10", "20"]


@pytest.mark.parametrize("count", [200, 1000])
def test_many_tasks(count: int) -> None:
    figure = laid_out(draw_evidence(*make_evidence(count, 7), names(count), TITLE))
    _, axes, gains, _ = figure.axes
    few = count == 200
    assert axes.get_xlabel() == ("One task in 2 is named." if few else "1,000 tasks, too many to name")
    assert len(axes.get_yticklabels()) == len(axes.get_xticklabels()) == (100 if few else 0)
    check_texts(figure, [*axes.get_yticklabels(), axes.title, *figure.texts])
    check_texts(figure, [*axes.get_xticklabels(), axes.xaxis.label])
    check_texts(figure, gains.get_xticklabels())
    assert max(figure.bbox.width, figure.bbox.height) < 3200
    assert axes.get_window_extent().height >= count  # a pixel for each task, at least


def test_a_tree_of_one_cluster_is_average_linkage() -> None:
    similarity = make_evidence(14, 3)[0].similarities.double().numpy().mean(0)
    expected = linkage(squareform(1 - similarity, checks=False), "average", optimal_ordering=True)
    np.testing.assert_allclose(build_tree(similarity, [5] * 14), expected, atol=1e-12)


def test_each_cluster_is_a_branch_of_the_tree() -> None:
    """Whatever the similarities are; and the height of a branch is the mean over its pairs, or that of one below."""
    similarity = make_evidence(20, 1, noise=1.0)[0].similarities.double().numpy().mean(0)
    assignment = np.arange(20) // 4
    tree = build_tree(similarity, assignment.tolist())
    order = assignment[leaves_list(tree)]
    assert (np.diff(order) != 0).sum() == 4
    members = [[task] for task in range(20)]
    heights = [0.0] * 20
    for one, other, height, _ in tree.tolist():
        a, b = members[int(one)], members[int(other)]
        mean = (1 - similarity[np.ix_(a, b)]).mean()
        assert height == pytest.approx(max(mean, heights[int(one)], heights[int(other)]))
        heights.append(height)
        members.append(a + b)
    # With clusters that similarities show, it is the hierarchy that they have anyway
    similarity = make_evidence(14, 3, noise=0.05)[0].similarities.double().numpy().mean(0)
    plain = linkage(squareform(1 - similarity, checks=False), "average")
    assert adjusted_rand_score(fcluster(plain, 3, "maxclust"), np.arange(14) % 3) == 1
    np.testing.assert_allclose(build_tree(similarity, (np.arange(14) % 3).tolist())[:, 2], plain[:, 2])


def test_branches_end_at_the_rows() -> None:
    figure = draw_evidence(*make_evidence(14, 3), names(14), TITLE)
    (brackets,) = figure.axes[0].collections
    assert isinstance(brackets, LineCollection)
    ends = np.array(brackets.get_segments())[:, [0, 3]].reshape(-1, 2)
    leaves = ends[ends[:, 0] == ends[:, 0].min(), 1]
    assert sorted(leaves.tolist()) == list(range(14))
