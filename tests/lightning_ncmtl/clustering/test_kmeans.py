import itertools
from typing import get_args

import pytest
import torch
from ranks import on_ranks
from sklearn.cluster import KMeans
from torch import Tensor
from torch import distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_ncmtl import kmeans
from lightning_ncmtl.clustering import _direct, _faiss, _gram
from lightning_ncmtl.clustering.kmeans import Backend, cold_assignments, unit_rows, warm_assignments
from lightning_ncmtl.errors import InputError

pytest.importorskip("faiss")
every_backend = pytest.mark.parametrize("backend", get_args(Backend))


def points(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def planted(n: int, d: int, k: int, noise: float = 0.7, seed: int = 0) -> Tensor:
    return points(k, d, 2 * seed + 1)[torch.arange(n) % k] + noise * points(n, d, 2 * seed + 2)


def inertia(x: Tensor, assignment: Tensor) -> float:
    x = x.double()
    return sum(float((x[assignment == k] - x[assignment == k].mean(0)).square().sum()) for k in assignment.unique())


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two assignments are the same up to the numbers of clusters."""
    return torch.equal(a.unsqueeze(0) == a.unsqueeze(1), b.unsqueeze(0) == b.unsqueeze(1))


@every_backend
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("n", "k"), [(7, 2), (7, 3), (9, 3)])
def test_reaches_the_optimum_of_brute_force(n: int, k: int, seed: int, backend: Backend) -> None:
    x = points(n, 2, seed).double()
    best = _best_of_all(x, k)
    result = kmeans(x, k, restarts=50, seed=seed, backend=backend)
    assert float(result.inertia) == pytest.approx(best, rel=1e-5)


def _best_of_all(x: Tensor, k: int) -> float:
    """The lowest objective of all assignments, in which the first point has cluster 0."""
    assignments = torch.tensor([(0, *rest) for rest in itertools.product(range(k), repeat=len(x) - 1)])
    members = torch.nn.functional.one_hot(assignments, k).double()  # [A, N, K]
    sums = members.transpose(1, 2) @ x
    within = (sums.square().sum(2) / members.sum(1).clamp(min=1)).sum(1)
    return float((x.square().sum() - within).min())


@pytest.mark.parametrize("noise", [0.3, 0.7, 2.0])
@pytest.mark.parametrize(
    "shape", [(14, 1000, 5), (14, 50, 10), (24, 300, 4), (60, 20, 6), (100, 5, 10), (128, 100, 10), (200, 2, 20)]
)
def test_never_worse_than_scikit_learn(shape: tuple[int, int, int], noise: float) -> None:
    n, d, k = shape
    for seed in range(2):
        x = planted(n, d, k, noise, seed)
        theirs = KMeans(k, n_init=10, random_state=seed).fit(x.double().numpy()).inertia_
        assert float(kmeans(x, k, restarts=20, seed=seed).inertia) <= theirs * (1 + 1e-6)


def test_faiss_is_as_good_as_scikit_learn_on_clear_clusters() -> None:
    x = planted(60, 20, 6)
    theirs = KMeans(6, n_init=10, random_state=0).fit(x.numpy()).inertia_
    assert float(kmeans(x, 6, restarts=10, backend="faiss").inertia) <= theirs * 1.001


@every_backend
@pytest.mark.parametrize("n", [20, 3000])  # all pairs of points, and a sample of them
def test_result_is_consistent(n: int, backend: Backend) -> None:
    x = points(n, 5)
    result = kmeans(x, 4, restarts=3, backend=backend)
    assert result.assignment.dtype == torch.int64
    assert result.assignment.unique().tolist() == [0, 1, 2, 3]
    for cluster in range(4):
        torch.testing.assert_close(result.centers[cluster], x[result.assignment == cluster].mean(0))
    assert float(result.inertia) == pytest.approx(inertia(x, result.assignment), rel=1e-5)
    # A local optimum: each point is with its nearest centre.
    agree = (torch.cdist(x, result.centers).argmin(1) == result.assignment).double().mean()
    assert agree == 1 if backend != "faiss" else agree > 0.99  # FAISS stops once the objective hardly changes


@every_backend
def test_is_deterministic_in_the_seed(backend: Backend) -> None:
    x = points(40, 3)
    one, other = (kmeans(x, 6, seed=3, backend=backend).assignment for _ in range(2))
    assert torch.equal(one, other)
    assert len({tuple(kmeans(x, 6, seed=seed, backend=backend).assignment.tolist()) for seed in range(10)}) > 1


@every_backend
@pytest.mark.parametrize("seed", [2**31, 2**32 - 1])
def test_large_seeds(seed: int, backend: Backend) -> None:
    assert kmeans(points(10, 2), 3, seed=seed, backend=backend).assignment.unique().numel() == 3


@every_backend
@pytest.mark.parametrize("copies", [1, 40])  # by inner products, and by distances to the centres
def test_warm_start_keeps_the_numbers_of_clusters(copies: int, backend: Backend) -> None:
    x = torch.tensor([[0.0], [0.1], [5.0], [5.1], [9.0]]).repeat_interleave(copies, 0)
    for order in itertools.permutations([0.0, 5.0, 9.0]):
        expected = [order.index(0.0)] * 2 + [order.index(5.0)] * 2 + [order.index(9.0)]
        found = kmeans(x, 3, init=torch.tensor(order).unsqueeze(1), backend=backend).assignment
        assert found.tolist() == torch.tensor(expected).repeat_interleave(copies).tolist()
        found[-copies:] = order.index(5.0)
        found[: copies // 2] = order.index(9.0)
        again = kmeans(x, 3, init=found, backend=backend).assignment
        assert again[:copies].unique().numel() == 1
        assert kmeans(x, 3, init=again, backend=backend).assignment.tolist() == again.tolist()


@pytest.mark.parametrize("n", [30, 500])
def test_warm_start_is_lloyds_algorithm(n: int) -> None:
    """The same fixed point as scikit-learn from the same centres."""
    x = planted(n, 4, 5, noise=1.5).double()
    start = x[:5]
    theirs = KMeans(5, init=start.numpy(), n_init=1, tol=0).fit(x.numpy())
    ours = kmeans(x, 5, init=start, backend="gram")
    assert ours.assignment.tolist() == theirs.labels_.tolist()
    assert float(ours.inertia) == pytest.approx(theirs.inertia_)
    nearest = torch.cdist(x, start).argmin(1)
    assert kmeans(x, 5, init=nearest, backend="gram").assignment.tolist() == theirs.labels_.tolist()


def test_both_ways_to_compute_distances_agree() -> None:
    x = planted(50, 300, 4, noise=3.0).double()
    start = torch.arange(50) % 7 % 4
    products = _gram.gram(x)[None]
    for iterations in (1, 2, 3, 100):
        by_products = _gram.lloyd(products, start[None, None], [4], iterations, wait=True)[0, 0]
        assert by_products.tolist() == _direct.lloyd(x, start, 4, iterations, wait=True).tolist()


@pytest.mark.parametrize("n", [12, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_small_differences_around_a_large_offset(n: int, dtype: torch.dtype) -> None:
    offset = 1000 if dtype == torch.float64 else 1  # a float32 near 1 is a multiple of 1.2e-7
    x = offset + 1e-6 * points(n, 50).to(dtype)
    x[::2] += 3e-5 if dtype == torch.float64 else 3e-6
    for init in (None, torch.arange(n) % 2, x[:2]):
        found = kmeans(x, 2, init=init, restarts=5).assignment
        assert found.unique_consecutive().tolist() in ([0, 1] * (n // 2), [1, 0] * (n // 2))


def test_small_differences_between_distant_clusters() -> None:
    """Two pairs of near-equal points, 10 million times farther from each other than their points."""
    x = torch.tensor([[-1.0], [-1.0 + 1e-7], [1.0], [1.0 + 1e-7]], dtype=torch.float64)
    assert kmeans(x, 3, restarts=5).assignment.unique().numel() == 3
    assert float(kmeans(x, 3, restarts=5).inertia) == pytest.approx(5e-15, rel=1e-6)


@every_backend
def test_k_of_one_and_of_all_points(backend: Backend) -> None:
    x = points(6, 3)
    one, every = kmeans(x, 1, backend=backend), kmeans(x, 6, backend=backend)
    assert one.assignment.tolist() == [0] * 6
    torch.testing.assert_close(one.centers[0], x.mean(0))
    assert every.assignment.tolist() == list(range(6))
    assert float(every.inertia) == 0
    assert torch.equal(every.centers, x)


@every_backend
@pytest.mark.parametrize("start", [[0, 1, 2, 3], [3, 1, 0, 2], [2, 2, 2, 2], [0, 0, 1, 1]], ids=str)
def test_of_as_many_clusters_as_points_each_keeps_its_number(start: list[int], backend: Backend) -> None:
    x = points(4, 3)
    found = kmeans(x, 4, backend=backend, init=torch.tensor(start)).assignment
    assert sorted(found.tolist()) == [0, 1, 2, 3]
    if len(set(start)) == 4:
        assert found.tolist() == start
        assert kmeans(x, 4, backend=backend, init=x[torch.tensor(start).argsort()]).assignment.tolist() == start


@every_backend
@pytest.mark.parametrize("copies", [1, 30])
def test_empty_clusters_are_filled(copies: int, backend: Backend) -> None:
    x = torch.tensor([[0.0], [1.0], [10.0], [11.0]]).repeat(copies, 1)
    start = torch.tensor([[0.5], [10.5], [1000.0]])  # nobody is near the third
    assert kmeans(x, 3, init=start, backend=backend).assignment.unique().tolist() == [0, 1, 2]
    two = torch.tensor([0, 0, 1, 1]).repeat(copies)
    assert kmeans(x, 3, init=two, backend=backend).assignment.unique().tolist() == [0, 1, 2]
    assert kmeans(x, 4, init=two * 3, backend=backend).assignment.unique().tolist() == [0, 1, 2, 3]
    if backend != "faiss":
        assert kmeans(x, 4, init=two * 0 + 2).assignment.unique().tolist() == [0, 1, 2, 3]


@every_backend
@pytest.mark.parametrize("copies", [1, 20])
def test_duplicates_leave_clusters_empty(copies: int, backend: Backend) -> None:
    x = torch.tensor([[0.1, 0.2]] * 5 + [[0.3, 0.7]] * 3).repeat(copies, 1)
    for init in (None, torch.arange(8).repeat(copies) % 4):
        result = kmeans(x, 4, restarts=3, init=init, backend=backend)
        assert float(result.inertia) == pytest.approx(0, abs=1e-12)
        firsts, others = result.assignment.view(copies, 8).split([5, 3], 1)
        assert not set(firsts.flatten().tolist()) & set(others.flatten().tolist())
        assert result.centers.isfinite().all()


def test_ties_stay_where_they_are() -> None:
    x = torch.tensor([[0.0], [2.0], [1.0]])
    assert kmeans(x, 2, init=torch.tensor([0, 1, 0])).assignment.tolist() == [0, 1, 0]
    assert kmeans(x, 2, init=torch.tensor([0, 1, 1])).assignment.tolist() == [0, 1, 1]


@every_backend
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_centres_have_the_type_of_the_points(dtype: torch.dtype, backend: Backend) -> None:
    result = kmeans(points(8, 3).to(dtype), 3, backend=backend)
    assert result.centers.dtype == dtype
    assert result.inertia.dtype == torch.float64


def test_means_of_equal_rows_are_those_rows() -> None:
    """Shared weights do not drift, however often they are averaged."""
    row = points(1, 1000)
    for number in (3, 7, 1000):
        assert _direct.means(row.expand(number, 1000), torch.zeros(number, dtype=torch.int64), 1).eq(row).all()


def test_unit_rows_keep_the_direction_and_zero() -> None:
    x = points(7, 3) * torch.tensor([0.01, 100.0, 1.0, 50.0, 0.1, 3.0, 7.0]).unsqueeze(1)
    torch.testing.assert_close(unit_rows(x), torch.nn.functional.normalize(x))
    assert torch.equal(unit_rows(torch.zeros(4, 2)), torch.zeros(4, 2))


@pytest.mark.parametrize("n", [14, 100])
def test_layers_together_are_what_each_is_alone(n: int) -> None:
    layers = [planted(n, d, k, noise=2.0, seed=d) for d, k in ((30, 3), (50, 7), (20, 5))]
    ks, starts = [3, 7, 5], [torch.arange(n) % 11 % k for k in (3, 7, 5)]
    together = warm_assignments(layers, ks, starts, 100)
    for x, k, start, found in zip(layers, ks, starts, together, strict=True):
        assert found.tolist() == kmeans(x, k, init=start, backend="gram").assignment.tolist()


@pytest.mark.parametrize("n", [20, 300, 2100])  # on the CPU, on the device, and of a sample
def test_layers_anew_are_what_each_is_alone(n: int) -> None:
    layers = [planted(n, d, k, noise=2.0, seed=d) for d, k in ((30, 3), (50, 7))]
    products = [None, _gram.gram(layers[1])]
    together = cold_assignments(layers, [3, 7], 2, seed=5, products=products)
    for x, k, found in zip(layers, [3, 7], together, strict=True):
        assert found.tolist() == kmeans(x, k, restarts=2, seed=5, backend="gram").assignment.tolist()


class NoLook(TorchDispatchMode):
    """Fails where the host would have to wait for a GPU: numbers, sizes and masks that depend on values."""

    LOOKS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "bincount", "is_nonzero", "equal", "_to_copy")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = func.overloadpacket.__name__
        moved = name == "_to_copy" and (kwargs or {}).get("device") is not None
        masked = name.startswith("index") and any(
            isinstance(i, Tensor) and i.dtype == torch.bool for a in args if isinstance(a, (list, tuple)) for i in a
        )
        if moved or masked or (name in self.LOOKS and name != "_to_copy"):
            raise AssertionError(f"{name} waits for the device")
        return func(*args, **(kwargs or {}))


def test_a_warm_start_need_not_look_at_the_device() -> None:
    x = planted(20, 30, 3, noise=2.0)
    start = torch.arange(20) % 3
    products = _gram.gram(x)[None]
    with NoLook():
        by_products = _gram.lloyd(products, start[None, None], [3], 20, wait=False)
        directly = _direct.lloyd(x, start, 3, 20, wait=False)
        _direct.inertia_of(x, directly, _direct.means(x, directly, 3))
    expected = kmeans(x, 3, init=start).assignment.tolist()
    assert by_products[0, 0].tolist() == expected
    assert directly.tolist() == expected
    with pytest.raises(AssertionError, match="waits for the device"), NoLook():
        _gram.lloyd(products, start[None, None], [3], 20, wait=True)


def slices(rank: int, ranks: int, n: int, d: int) -> None:
    whole = planted(n, d, 4, noise=2.0)
    mine = whole.tensor_split(ranks, dim=1)[rank]
    group = dist.group.WORLD
    start = torch.arange(n) % 4
    torch.testing.assert_close(unit_rows(mine, group), unit_rows(whole).tensor_split(ranks, dim=1)[rank])
    for settings in ({"restarts": 3}, {"init": start}):
        expected = kmeans(whole, 4, **settings)  # type: ignore[arg-type]
        found = kmeans(mine, 4, group=group, **settings)  # type: ignore[arg-type]
        assert found.assignment.tolist() == expected.assignment.tolist()
        torch.testing.assert_close(found.centers, expected.centers.tensor_split(ranks, dim=1)[rank])
        torch.testing.assert_close(found.inertia, expected.inertia)
    centers = kmeans(mine, 4, init=mine[:4], group=group)
    assert centers.assignment.tolist() == kmeans(whole, 4, init=whole[:4]).assignment.tolist()
    together = warm_assignments([mine, mine], [4, 3], [start, start % 3], 100, group)
    alone = warm_assignments([whole, whole], [4, 3], [start, start % 3], 100)
    assert [a.tolist() for a in together] == [a.tolist() for a in alone]


@pytest.mark.parametrize(("ranks", "n", "d"), [(2, 14, 301), (3, 60, 100)])
def test_ranks_with_slices_of_the_points_find_what_one_finds(ranks: int, n: int, d: int) -> None:
    on_ranks(ranks, slices, ranks, n, d)


@every_backend
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "between 1 and the number of points 6, found 0"),
        ({"k": 2.0}, "between 1 and the number of points 6, found 2.0"),
        ({"k": "2"}, "between 1 and the number of points 6, found '2'"),
        ({"k": 7}, "between 1 and the number of points 6, found 7"),
        ({"x": torch.zeros(6)}, "floating-point points"),
        ({"x": torch.zeros(6, 2, dtype=torch.int64)}, "found torch.int64"),
        ({"x": torch.full((6, 2), torch.nan)}, "not finite"),
        ({"x": torch.full((6, 2), torch.inf)}, "not finite"),
        ({"x": torch.eye(6).log(), "init": torch.arange(6) % 2}, "not finite"),
        ({"init": torch.zeros(3, 2)}, r"shape \[2, 2\] of the centres, found \[3, 2\]"),
        ({"init": torch.zeros(3, dtype=torch.int64)}, r"one int64 cluster for each of 6 points, found .* \[3\]"),
        ({"init": torch.zeros(6, dtype=torch.int32)}, "one int64 cluster for each of 6 points, found torch.int32"),
        ({"init": torch.arange(6)}, r"clusters in 0 .. 1, found tensor\(\[0, 1, 2, 3, 4, 5\]\)"),
        ({"init": torch.full((2, 2), torch.nan)}, "finite centres"),
        ({"restarts": 0}, "whole numbers from 1, found 0 and 100"),
        ({"max_iterations": 2.5}, "whole numbers from 1, found 1 and 2.5"),
    ],
)
def test_bad_input_is_refused(change: dict[str, object], message: str, backend: Backend) -> None:
    with pytest.raises(InputError, match=message):
        kmeans(**{"x": points(6, 2), "k": 2, "backend": backend, **change})  # type: ignore[arg-type]


def test_unknown_backend() -> None:
    with pytest.raises(InputError, match="unknown k-means backend 'magic': choose one of auto, gram, faiss"):
        kmeans(points(6, 2), 2, backend="magic")  # type: ignore[arg-type]


def test_without_faiss_only_its_backend_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_faiss, "faiss", None)
    with pytest.raises(InputError, match=r"pip install 'lightning-ncmtl\[cpu\]'"):
        kmeans(points(6, 2), 2, backend="faiss")
    assert kmeans(points(6, 2), 2).assignment.unique().numel() == 2


def test_faiss_needs_whole_points() -> None:
    with pytest.raises(InputError, match="choose backend='gram' where each rank has a slice"):
        kmeans(points(6, 2), 2, backend="faiss", group="a group")  # type: ignore[arg-type]


@every_backend
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n", [12, 200])
def test_points_stay_as_they_are(n: int, dtype: torch.dtype, backend: Backend) -> None:
    """From no start, from one that stays, from one that moves, and from centres."""
    x = (planted(n, 5, 3) + 7).to(dtype)
    before, right = x.clone(), torch.arange(n) % 3
    for init in (None, right, right.roll(1) * (torch.arange(n) > 5), before[:3]):
        found = kmeans(x, 3, backend=backend, init=init)
        assert torch.equal(x, before)
        means = torch.stack([x[found.assignment == k].double().mean(0) for k in range(3)])
        torch.testing.assert_close(found.centers.double(), means, atol=0, rtol=torch.finfo(dtype).eps * 4)


def test_small_types_do_not_overflow() -> None:
    x = torch.cat([torch.full((2, 3000), -900.0), torch.full((2, 3000), 1100.0)]).half()
    x[::2] -= 1000
    found = kmeans(x, 2, init=torch.tensor([0, 0, 1, 1]))
    assert float(found.inertia) == pytest.approx(inertia(x, found.assignment), rel=1e-3)


def test_points_without_dimensions() -> None:
    assert kmeans(torch.zeros(5, 0), 2, init=torch.tensor([0, 0, 1, 1, 1])).inertia == 0
