import itertools

import pytest
import torch
from sklearn.cluster import KMeans
from torch import Tensor

from lightning_ncmtl import kmeans
from lightning_ncmtl.clustering import _faiss
from lightning_ncmtl.errors import InputError

faiss = pytest.importorskip("faiss")


def points(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def inertia(x: Tensor, assignment: Tensor) -> float:
    return sum(float((x[assignment == k] - x[assignment == k].mean(0)).square().sum()) for k in assignment.unique())


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("k", [2, 3])
def test_reaches_the_optimum_of_brute_force(k: int, seed: int) -> None:
    x = points(7, 2, seed).double()
    best = min(inertia(x, torch.tensor(a)) for a in itertools.product(range(k), repeat=7))
    result = kmeans(x, k, restarts=50, seed=seed)
    assert float(result.inertia) == pytest.approx(best, rel=1e-5)


@pytest.mark.parametrize("shape", [(14, 1000, 5), (60, 20, 6), (24, 300, 4)])
def test_no_worse_than_scikit_learn(shape: tuple[int, int, int]) -> None:
    n, d, k = shape
    planted = points(k, d, seed=1)[torch.arange(n) % k] + 0.7 * points(n, d, seed=2)
    theirs = KMeans(k, n_init=10, random_state=0).fit(planted.numpy()).inertia_
    assert float(kmeans(planted, k, restarts=10).inertia) <= theirs * 1.001


def test_result_is_consistent() -> None:
    x = points(20, 5)
    result = kmeans(x, 4, restarts=3)
    assert result.assignment.dtype == torch.int64
    assert result.assignment.unique().tolist() == [0, 1, 2, 3]
    assert result.iterations >= 1
    for cluster in range(4):
        torch.testing.assert_close(result.centers[cluster], x[result.assignment == cluster].mean(0))
    assert float(result.inertia) == pytest.approx(inertia(x, result.assignment), rel=1e-5)
    # A local optimum: each point is with its nearest centre.
    assert torch.equal(torch.cdist(x, result.centers).argmin(1), result.assignment)


def test_is_deterministic_in_the_seed() -> None:
    x = points(40, 3)
    assert torch.equal(kmeans(x, 6, seed=3).assignment, kmeans(x, 6, seed=3).assignment)
    assert len({tuple(kmeans(x, 6, seed=seed).assignment.tolist()) for seed in range(10)}) > 1


@pytest.mark.parametrize("seed", [2**31, 2**32 - 1])
def test_large_seeds(seed: int) -> None:
    assert kmeans(points(10, 2), 3, seed=seed).assignment.unique().numel() == 3


def test_warm_start_keeps_the_numbers_of_clusters() -> None:
    x = torch.tensor([[0.0], [0.1], [5.0], [5.1], [9.0]])
    for order in itertools.permutations([0.0, 5.0, 9.0]):
        result = kmeans(x, 3, init=torch.tensor(order).unsqueeze(1))
        expected = [order.index(0.0)] * 2 + [order.index(5.0)] * 2 + [order.index(9.0)]
        assert result.assignment.tolist() == expected


def test_small_differences_around_a_large_offset() -> None:
    x = 1000 + 1e-6 * points(12, 50).double()
    x[::2] += 3e-5
    assert kmeans(x, 2, restarts=5).assignment.unique_consecutive().tolist() in ([0, 1] * 6, [1, 0] * 6)


def test_k_of_one_and_of_all_points() -> None:
    x = points(6, 3)
    one, every = kmeans(x, 1), kmeans(x, 6)
    assert one.assignment.tolist() == [0] * 6
    torch.testing.assert_close(one.centers[0], x.mean(0))
    assert every.assignment.tolist() == list(range(6))
    assert float(every.inertia) < 1e-10
    torch.testing.assert_close(every.centers, x)


def test_empty_clusters_are_filled() -> None:
    x = torch.tensor([[0.0], [1.0], [10.0], [11.0]])
    start = torch.tensor([[0.5], [10.5], [1000.0]])  # nobody is near the third
    assert kmeans(x, 3, init=start).assignment.unique().tolist() == [0, 1, 2]


def test_duplicates_leave_clusters_empty() -> None:
    x = torch.tensor([[1.0, 2.0]] * 5 + [[3.0, 4.0]] * 3)
    result = kmeans(x, 4, restarts=3)
    assert float(result.inertia) == 0
    assert not set(result.assignment[:5].tolist()) & set(result.assignment[5:].tolist())
    assert result.centers.isfinite().all()


def test_nothing_is_printed_and_the_threads_are_restored(capfd: pytest.CaptureFixture[str]) -> None:
    kmeans(points(10, 3), 4)  # torch sets the number when it is first used
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(2)  # of torch, too, where the two share OpenMP
    kmeans(points(10, 3), 4)
    kmeans(points(2000, 3), 4)
    assert faiss.omp_get_max_threads() == 2
    faiss.omp_set_num_threads(before)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_centres_have_the_type_of_the_points(dtype: torch.dtype) -> None:
    result = kmeans(points(8, 3).to(dtype), 3)
    assert result.centers.dtype == dtype
    assert result.inertia.dtype == torch.float64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "between 1 and the number of points 6, found 0"),
        ({"k": 7}, "between 1 and the number of points 6, found 7"),
        ({"x": torch.zeros(6)}, "floating-point points"),
        ({"x": torch.zeros(6, 2, dtype=torch.int64)}, "found torch.int64"),
        ({"x": torch.full((6, 2), torch.nan)}, "not finite"),
        ({"x": torch.full((6, 2), torch.inf)}, "not finite"),
        ({"init": torch.zeros(3, 2)}, r"shape \[2, 2\] of the centres, found \[3, 2\]"),
        ({"backend": "magic"}, "unknown k-means backend 'magic'"),
        ({"restarts": 0}, "at least 1, found 0"),
    ],
)
def test_bad_input_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        kmeans(**{"x": points(6, 2), "k": 2, **change})  # type: ignore[arg-type]


def test_missing_faiss_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_faiss, "faiss", None)
    with pytest.raises(InputError, match=r"pip install 'lightning-ncmtl\[cpu\]'"):
        kmeans(points(6, 2), 2)
