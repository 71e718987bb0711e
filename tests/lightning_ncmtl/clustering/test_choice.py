import pytest
import torch
from ranks import on_ranks
from torch import Tensor
from torch import distributed as dist

from lightning_ncmtl.clustering import choose_num_clusters
from lightning_ncmtl.errors import InputError


def planted(n: int, d: int, k: int, noise: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(k, d, generator=generator)
    return 5 + centers[torch.arange(n) % k] + noise * torch.randn(n, d, generator=generator)


@pytest.mark.parametrize(
    ("n", "d", "k", "noise"), [(18, 1000, 3, 2.0), (14, 1000, 4, 2.0), (30, 500, 6, 2.0), (60, 50, 8, 0.5)]
)
def test_finds_the_planted_number(n: int, d: int, k: int, noise: float) -> None:
    found = [choose_num_clusters(planted(n, d, k, noise, seed), seed=seed) for seed in range(10)]
    assert found.count(k) >= 8


def test_bounds() -> None:
    x = planted(30, 100, 10, 0.1, seed=0)
    assert choose_num_clusters(x) == 10
    assert 2 <= choose_num_clusters(x, max_clusters=6) <= 6
    assert choose_num_clusters(x[:3]) == 2
    assert choose_num_clusters(x[:2]) == 2
    assert choose_num_clusters(torch.ones(5, 3)) == 2


@pytest.mark.parametrize(("number", "most"), [(1, 20), (0, 20), (5, 1)])
def test_there_must_be_something_to_choose(number: int, most: int) -> None:
    with pytest.raises(InputError, match=f"of {number} points and with max_clusters {most}: both must be at least 2"):
        choose_num_clusters(torch.ones(number, 3), most)


def test_values_that_are_not_finite() -> None:
    with pytest.raises(InputError, match="not finite"):
        choose_num_clusters(torch.full((5, 3), torch.nan))


def slices(rank: int, ranks: int) -> None:
    whole = planted(20, 301, 4, 0.5, seed=1)
    mine = whole.tensor_split(ranks, dim=1)[rank]
    assert choose_num_clusters(mine, group=dist.group.WORLD) == choose_num_clusters(whole) == 4


def test_ranks_with_slices_choose_what_one_chooses() -> None:
    on_ranks(2, slices, 2)
