"""K-means on the device finds what it finds on the CPU, and its warm path waits for nothing."""

from typing import Any

import pytest
import torch
from on_device import DEVICE, assert_close, no_waits, planted

from lightning_ncmtl import kmeans
from lightning_ncmtl.clustering import assign_tasks, choose_num_clusters
from lightning_ncmtl.errors import InputError

SHAPES = [(14, 1000, 5), (18, 2112, 3), (128, 1000, 10), (300, 500, 7), (3000, 64, 20)]


@pytest.mark.parametrize("restarts", [1, 3])
@pytest.mark.parametrize(("n", "d", "k"), SHAPES)
def test_cold_starts_are_those_of_the_cpu(n: int, d: int, k: int, restarts: int) -> None:
    x = planted(n, d, k)
    expected, found = kmeans(x, k, restarts=restarts), kmeans(x.to(DEVICE), k, restarts=restarts)
    assert {part.device for part in found} == {DEVICE}
    assert found.assignment.tolist() == expected.assignment.tolist()
    assert_close(found.centers, expected.centers)
    assert_close(found.inertia, expected.inertia, rtol=1e-9)


@pytest.mark.parametrize(("n", "d", "k"), [*SHAPES, (20, 300, 3), (64, 100_000, 8)])
def test_warm_starts_are_those_of_the_cpu_and_wait_for_nothing(n: int, d: int, k: int) -> None:
    x, start = planted(n, d, k, noise=0.05), torch.arange(n) * 7 % k
    points, there = x.to(DEVICE), start.to(DEVICE)
    kmeans(points, k, init=there, max_iterations=4)  # libraries have started
    with no_waits():
        found = kmeans(points, k, init=there, max_iterations=4)
    assert found.assignment.tolist() == kmeans(x, k, init=start, max_iterations=4).assignment.tolist()


def test_warm_starts_of_several_layers_wait_for_nothing() -> None:
    layers, ks = [planted(18, d, 3, seed=d) for d in (2112, 300, 40)], [3, 4, 2]
    starts = [torch.arange(18) % k for k in ks]
    expected = assign_tasks(layers, ks, starts)
    there = [x.to(DEVICE) for x in layers], ks, [start.to(DEVICE) for start in starts]
    assign_tasks(*there)
    with no_waits():
        found = assign_tasks(*there)
    assert [a.tolist() for a in found] == [a.tolist() for a in expected]
    assert {a.device for a in found} == {DEVICE}


def test_directions_are_grouped_as_on_the_cpu() -> None:
    x, origin = planted(18, 300, 3), torch.zeros(1, 300)
    given: list[Any] = [[3], [None]]
    (expected,) = assign_tasks([x], *given, metric="cosine", origins=[origin])
    (found,) = assign_tasks([x.to(DEVICE)], *given, metric="cosine", origins=[origin.to(DEVICE)])
    assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types(dtype: torch.dtype) -> None:
    x = planted(60, 200, 4).to(dtype)
    found = kmeans(x.to(DEVICE), 4)
    assert found.assignment.tolist() == kmeans(x, 4).assignment.tolist()
    assert found.centers.dtype == dtype


@pytest.mark.parametrize("kind", ["centres", "assignment"])
@pytest.mark.parametrize("place", [DEVICE, torch.device("cpu")])
def test_starts_that_are_given(kind: str, place: torch.device) -> None:
    """On the CPU, too, as a checkpoint has them."""
    x = planted(40, 30, 4)
    init = x[:4] if kind == "centres" else torch.arange(40) % 4
    found = kmeans(x.to(DEVICE), 4, init=init.to(place))
    assert found.assignment.device == DEVICE
    assert found.assignment.tolist() == kmeans(x, 4, init=init).assignment.tolist()


def test_empty_clusters_are_filled() -> None:
    start = torch.zeros(40, dtype=torch.int64, device=DEVICE)
    assert len(kmeans(planted(40, 30, 4).to(DEVICE), 6, init=start).assignment.unique()) == 6


def test_fewer_distinct_rows_than_clusters() -> None:
    x = torch.ones(8, 3)
    x[0] = 2
    found = kmeans(x.to(DEVICE), 4).assignment
    assert (found[0] != found[1:]).all()


def test_values_that_are_not_finite_are_refused_at_a_cold_start() -> None:
    x = planted(20, 5, 2)
    x[3, 2] = torch.nan
    with pytest.raises(InputError, match="not finite"):
        kmeans(x.to(DEVICE), 2)


def test_the_number_of_clusters_is_that_of_the_cpu() -> None:
    x = planted(40, 500, 5)
    assert choose_num_clusters(x.to(DEVICE)) == choose_num_clusters(x) == 5


@pytest.mark.filterwarnings("ignore:k-means with backend='faiss' copies")
def test_faiss_of_any_build_gives_what_it_gives_on_the_cpu() -> None:
    pytest.importorskip("faiss")
    x, start = planted(60, 20, 6), torch.arange(60) % 6
    found = kmeans(x.to(DEVICE), 6, backend="faiss", init=start).assignment
    assert found.device == DEVICE
    assert found.tolist() == kmeans(x, 6, backend="faiss", init=start).assignment.tolist()
