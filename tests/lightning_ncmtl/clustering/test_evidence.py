"""What two halves of the data say about clusters of tasks."""

from itertools import combinations
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ranks import on_ranks
from sklearn.metrics import adjusted_rand_score
from torch import Tensor
from torch import distributed as dist

from lightning_ncmtl.clustering.evidence import LEVEL, group_tasks, multiply_halves, weigh_evidence
from lightning_ncmtl.clustering.kmeans import Backend
from lightning_ncmtl.errors import InputError


def halves(
    n: int, groups: int, seed: int, own: float = 0.0, noise: float = 1.0, d: int = 40, scale: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Directions of tasks in planted groups, each with something of its own, as two halves of the data see them."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    truth = torch.arange(n) % groups
    directions = scale * draw(groups, d)[truth] + own * draw(n, d)
    directions -= directions.mean(0)
    sizes = 0.5 + 2 * torch.rand(n, 1, generator=generator)  # some tasks go farther than others
    return sizes * (directions + noise * draw(n, d)), sizes * (directions + noise * draw(n, d)), truth


def weigh(
    *layers: tuple[Tensor, ...], num_clusters: int | None = None, backend: Backend = "auto", **settings: Any
) -> Any:
    """The evidence, and the clusters that follow."""
    found = weigh_evidence([multiply_halves(*layer[:2]) for layer in layers], **settings)
    k = found.num_clusters if num_clusters is None else num_clusters
    assignment = group_tasks(found.products, k, backend=backend)
    return SimpleNamespace(**found._asdict() | {"num_clusters": k}, assignment=assignment)


def directions_of(half: Tensor) -> Tensor:
    half = half.double() / half.double().norm(dim=1, keepdim=True)
    return half - half.mean(0)


def test_products_are_those_of_centred_directions() -> None:
    first, second, _ = halves(7, 3, seed=0)
    rows = torch.cat([directions_of(first), directions_of(second)])
    expected = rows @ rows.T
    torch.testing.assert_close(multiply_halves(first, second), expected / expected.trace())
    # How far tasks went, and how wide layers are, is nothing
    far = torch.arange(1.0, 8.0).unsqueeze(1)
    torch.testing.assert_close(multiply_halves(first * far, second / far), expected / expected.trace())
    repeated = multiply_halves(first.repeat(1, 5), second.repeat(1, 5))
    torch.testing.assert_close(repeated, expected / expected.trace())


def test_products_across_halves_have_no_noise() -> None:
    """On average they are those of the directions, where within a half noise adds to the diagonal."""
    n, d = 5, 400
    truth = torch.randn(n, d, generator=torch.Generator().manual_seed(0)).double()
    rows = directions_of(truth)
    expected = rows @ rows.T
    generator = torch.Generator().manual_seed(1)
    total = torch.zeros(2 * n, 2 * n, dtype=torch.float64)
    for _ in range(500):
        first, second = (truth + 2 * torch.randn(n, d, generator=generator, dtype=torch.float64) for _ in range(2))
        total += multiply_halves(first, second)
    across, within = total[:n, n:], total[:n, :n]
    torch.testing.assert_close(across / across.trace(), expected / expected.trace(), rtol=0, atol=0.02)
    assert within.trace() > 4 * across.trace()  # 1 + 2 * 2 times, as noise has four times the signal


@pytest.mark.parametrize("n", [12, 14, 30])
@pytest.mark.parametrize("groups", [2, 3, 4])
def test_planted_groups_are_found_and_counted(n: int, groups: int) -> None:
    right = 0
    for seed in range(20):
        first, second, truth = halves(n, groups, seed)
        found = weigh((first, second), permutations=199, restarts=5)
        right += found.num_clusters == groups
        if found.num_clusters == groups:
            assert adjusted_rand_score(truth, found.assignment) == 1
        assert found.p_value < LEVEL
        assert found.agreement > 0.5
    assert right >= 19


@pytest.mark.parametrize("n", [6, 14, 29])
def test_one_group_has_no_evidence(n: int) -> None:
    found = [weigh(halves(n, 1, seed)[:2], permutations=199, restarts=2) for seed in range(100)]
    assert sum(one.num_clusters != 1 for one in found) <= 3  # about 1 % of p-values are below the level
    assert all(one.assignment.eq(0).all() for one in found if one.num_clusters == 1)
    p = np.array([one.p_value for one in found])
    for level in (0.1, 0.3, 0.5):  # p-values are uniform
        assert abs((p <= level).mean() - level) < 4 * np.sqrt(level * (1 - level) / 100)
    assert abs(np.mean([one.agreement for one in found])) < 0.05


def test_tasks_that_all_differ_are_for_themselves() -> None:
    for seed in range(10):
        first, second, _ = halves(12, 1, seed, own=3.0, noise=0.5)
        found = weigh((first, second))
        assert found.num_clusters == 12
        assert found.assignment.tolist() == list(range(12))
        assert found.gains[12] == max(found.gains.values())


def test_gains_are_what_means_of_all_the_data_are_worth() -> None:
    """The formula against the thing itself: predict the true directions by means over clusters of both halves."""
    n, d, groups = 12, 60, 3
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(groups, d, generator=generator)[torch.arange(n) % groups]
    truth = (truth - truth.mean(0)).double()
    expected, found = [], []
    for _ in range(200):
        a, b = (truth + 0.7 * torch.randn(n, d, generator=generator, dtype=torch.float64) for _ in range(2))
        together = (a + b) / 2
        means = torch.stack([together[torch.arange(n) % groups == g].mean(0) for g in range(groups)])
        means = (means - means.mean(0))[torch.arange(n) % groups]
        expected.append(float((2 * truth * means - means * means).sum() / n))
        half = torch.stack([a[torch.arange(n) % groups == g].mean(0) for g in range(groups)])
        half = (half - half.mean(0))[torch.arange(n) % groups]
        found.append(float((3 * (b * half).sum() - (half * half).sum()) / 2 / n))
    assert np.mean(found) == pytest.approx(np.mean(expected), rel=0.02)


def test_gains_and_chance_against_loops() -> None:
    first, second, _ = halves(6, 2, seed=3, own=0.5)
    found = weigh((first, second), permutations=4999)
    a, b = (directions_of(half) for half in (first, second))
    a, b = (half / half.norm(dim=1, keepdim=True) for half in (a, b))
    own = torch.arange(6)
    gain = (3 * (a * b).sum() - (a * a).sum()) / 4 + (3 * (a * b).sum() - (b * b).sum()) / 4
    assert found.gains[6] == pytest.approx(float(gain) / 6)
    everyone = weigh((first, second), num_clusters=6)
    assert everyone.assignment.tolist() == own.tolist()
    torch.testing.assert_close(found.products, (a + b) @ (a + b).T)


def test_orders_within_clusters_do_as_well() -> None:
    """Of six tasks in two clusters of three they are 3! * 3! of 6!, whatever the rounding."""
    for seed in range(3):
        first, second, truth = halves(6, 2, seed, noise=0.1)
        found = weigh((first, second), permutations=4999, num_clusters=2)
        assert adjusted_rand_score(truth, found.assignment) == 1
        assert found.p_value == pytest.approx(36 / 720, abs=0.012)


def test_similarities_and_their_agreement_against_numpy() -> None:
    """Leaving out each task once (the jackknife) for the error, with two layers of different widths."""
    layers = [halves(7, 2, seed, d=d)[:2] for seed, d in ((0, 40), (1, 13))]
    found = weigh(*layers)
    expected = []
    for half in (0, 1):
        rows = [directions_of(layer[half]) for layer in layers]
        lengths = [float(sum(directions_of(part).square().sum() for part in layer)) for layer in layers]
        products = sum(part @ part.T / length for part, length in zip(rows, lengths, strict=True))
        scale = products.diagonal().sqrt()
        expected.append((products / scale / scale.unsqueeze(1)).numpy())
    assert found.similarities.shape == (2, 7, 7)
    assert found.similarities.dtype == torch.float32
    np.testing.assert_allclose(found.similarities, expected, atol=1e-6)

    def correlate(tasks: list[int]) -> float:
        pairs = np.triu_indices(len(tasks), 1)
        return float(np.corrcoef(*(half[np.ix_(tasks, tasks)][pairs] for half in expected))[0, 1])

    everyone = list(range(7))
    without = np.array([correlate([task for task in everyone if task != left_out]) for left_out in everyone])
    assert found.agreement == pytest.approx(correlate(everyone))
    error = np.sqrt(6 / 7 * np.square(without - without.mean()).sum())
    assert found.agreement_error == pytest.approx(error)


def test_the_error_is_how_much_agreement_varies() -> None:
    """Over many draws of the tasks, where noise is what differs."""
    found = [
        weigh(halves(30, 3, seed, noise=2.0)[:2], num_clusters=1, permutations=1, restarts=1) for seed in range(40)
    ]
    spread = np.std([one.agreement for one in found])
    assert np.mean([one.agreement_error for one in found]) == pytest.approx(spread, rel=0.4)


@pytest.mark.parametrize(("n", "known"), [(2, False), (3, False), (4, True)])
def test_the_error_for_few_tasks_is_not_known(n: int, known: bool) -> None:
    found = weigh(halves(n, 2, seed=0)[:2])
    assert np.isfinite(found.agreement_error) == known
    assert np.isfinite(found.agreement)


def split_by_force(points: Tensor, clusters: list[int]) -> list[int]:
    """The best of all divisions of one cluster in two; the second part gets a new number."""

    def scatter(tasks: list[int]) -> float:
        return float((points[tasks] - points[tasks].mean(0)).square().sum())

    best, found = -1.0, clusters
    for each in set(clusters):
        tasks = [task for task, cluster in enumerate(clusters) if cluster == each]
        for size in range(1, len(tasks)):
            for part in combinations(tasks, size):
                rest = [task for task in tasks if task not in part]
                helped = scatter(tasks) - scatter(list(part)) - scatter(rest)
                if helped > best:
                    best = helped
                    found = [len(set(clusters)) if task in part else each for task, each in enumerate(clusters)]
    return found


def test_clusters_are_divided_as_by_force() -> None:
    for seed in range(12):
        points = torch.randn(7, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        products = points @ points.T
        within = [0] * 7 if seed % 2 else [0, 0, 0, 1, 1, 1, 1]
        expected = within
        for k in range(max(within) + 2, 8):
            expected = split_by_force(points, expected)
            found = group_tasks(products, k, within=torch.tensor(within))
            assert adjusted_rand_score(expected, found) == 1
            assert found.unique().tolist() == list(range(k))
    within = [0, 0, 0, 1, 1, 1, 1]
    assert group_tasks(products, 2, within=torch.tensor(within)).tolist() == within  # as many as there are


def test_tasks_that_do_not_differ_are_divided_too() -> None:
    for products in (torch.zeros(5, 5), torch.ones(5, 5)):
        for within in (torch.zeros(5, dtype=torch.int64), torch.tensor([0, 1, 0, 1, 1])):
            for k in range(int(within.max()) + 1, 6):
                found = group_tasks(products.double(), k, within=within)
                assert len(found.unique()) == k
                for cluster in range(k):
                    assert len(within[found == cluster].unique()) == 1
        for k in range(1, 6):
            assert len(group_tasks(products.double(), k).unique()) == k


def test_faiss_divides_alike() -> None:
    products = weigh(halves(14, 4, seed=0, noise=0.2)[:2]).products
    within = torch.arange(14) % 4 % 2
    for backend in ("auto", "faiss"):
        found = group_tasks(products, 4, within=within, backend=backend)  # type: ignore[arg-type]
        assert adjusted_rand_score(torch.arange(14) % 4, found) == 1


def test_fewer_clusters_than_there_are_to_divide_are_refused() -> None:
    with pytest.raises(InputError, match="4 clusters cannot be divided into 3"):
        group_tasks(torch.eye(6), 3, within=torch.tensor([0, 1, 2, 3, 3, 0]))


def test_layers_add_up() -> None:
    """Each layer alone is too noisy; a layer of noise does not hide the others."""
    layers = [halves(14, 2, seed, noise=3.0) for seed in range(100, 106)]
    alone = [weigh(layer[:2]) for layer in layers]
    together = weigh(*[layer[:2] for layer in layers])
    assert together.p_value <= min(one.p_value for one in alone)
    assert together.num_clusters == 2
    assert adjusted_rand_score(layers[0][2], together.assignment) > 0.7


def test_a_number_that_is_given_is_kept() -> None:
    layer = halves(14, 3, seed=0)[:2]
    for k in (1, 2, 5, 14):
        found = weigh(layer, num_clusters=k)
        assert found.num_clusters == k
        assert len(found.assignment.unique()) == k
    noise = weigh(halves(14, 1, seed=0)[:2], num_clusters=3)
    assert noise.num_clusters == 3
    assert noise.p_value > LEVEL


def test_faiss_finds_the_same_clusters() -> None:
    first, second, truth = halves(14, 3, seed=0)
    found = weigh((first, second), backend="faiss")
    assert found.num_clusters == 3
    assert adjusted_rand_score(truth, found.assignment) == 1


def test_tasks_without_a_direction() -> None:
    first, second, _ = halves(14, 2, seed=0)
    first[3] = first.mean(0)  # never seen in the first half
    second[5] = second.mean(0)
    found = weigh((first, second))
    assert found.num_clusters == 2
    assert all(np.isfinite(gain) for gain in found.gains.values())
    nothing = weigh((torch.zeros(5, 3), torch.zeros(5, 3)))
    assert nothing.num_clusters == 1
    assert nothing.p_value == 1
    assert nothing.agreement == 0


def test_two_tasks() -> None:
    first, second, _ = halves(2, 2, seed=0, noise=0.1)
    found = weigh((first, second))
    assert found.num_clusters in (1, 2)
    assert list(found.gains) == [2]


def test_what_cannot_be_weighed_is_refused() -> None:
    products = multiply_halves(*halves(5, 2, seed=0)[:2])
    for given in ([], [products[:2, :2]]):
        with pytest.raises(InputError, match="at least two tasks"):
            weigh_evidence(given)
    for k in (0, 6):
        with pytest.raises(InputError, match=f"between 1 and 5 tasks, found {k}"):
            group_tasks(weigh_evidence([products]).products, k)


def slices(rank: int) -> None:
    first, second, _ = halves(9, 3, seed=0)
    mine = (half.tensor_split(2, dim=1)[rank] for half in (first, second))
    torch.testing.assert_close(multiply_halves(*mine, dist.group.WORLD), multiply_halves(first, second))


def test_ranks_that_each_hold_a_slice_agree() -> None:
    on_ranks(2, slices)
