import pytest
import torch
from torch import Tensor

from lightning_ncmtl.clustering import _gram, means
from lightning_ncmtl.clustering._direct import still_nearest


def points(n: int, d: int, k: int, seed: int, offset: float = 0.0, noise: float = 1.0) -> tuple[Tensor, Tensor]:
    """Points around planted centres, and the clusters planted."""
    generator = torch.Generator().manual_seed(seed)
    planted = torch.arange(n) % k
    middles = torch.randn(k, d, generator=generator)[planted]
    return (middles + noise * torch.randn(n, d, generator=generator) + offset).float(), planted


def ahead(x: Tensor, assignment: Tensor, k: int) -> float:
    """By how much the other centres are farther than the own one, in float64, at the least."""
    exact = x.double()
    centers = torch.stack([exact[assignment == cluster].mean(0) for cluster in range(k)])
    distances = (exact.unsqueeze(1) - centers).square().sum(2)
    own = distances.gather(1, assignment.unsqueeze(1))
    return float((distances.scatter(1, assignment.unsqueeze(1), torch.inf) - own).min())


@pytest.mark.parametrize("block", [2**19, 2**9])
@pytest.mark.parametrize("offset", [0.0, 1.0, 1e3, 1e5])
def test_a_yes_is_right_and_a_doubt_is_rare(offset: float, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to any offset a yes holds in float64. Without a large one nearly all that could be affirmed is."""
    monkeypatch.setitem(_gram.BLOCK, "cpu", block)
    right = affirmed = 0
    for seed in range(100):
        # More noise, and some points are nearer to another centre.
        x, assignment = points(60, 40, 4, seed, offset, noise=1 + seed / 50)
        still = still_nearest(x, assignment, means(x, assignment, 4))
        right += (nearest := ahead(x, assignment, 4) > 0)
        affirmed += still
        assert nearest or not still
    assert 20 < right < 95
    assert affirmed >= right - 5 or offset > 1


@pytest.mark.parametrize(("offset", "d"), [(0.0, 300), (10.0, 300), (0.0, 257)])
def test_a_point_that_just_left_is_found(offset: float, d: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A point between two centres, nearer to the other one by less than float32 can tell."""
    monkeypatch.setitem(_gram.BLOCK, "cpu", 12 * 300 if d == 300 else 12 * 128)
    for seed in range(30):
        x, assignment = points(12, d, 2, seed, offset)
        start, goal = x[0].clone(), x[1]
        low, high = 0.0, 1.0
        for _ in range(40):
            middle = (low + high) / 2
            x[0] = torch.lerp(start, goal, middle)
            low, high = (middle, high) if ahead(x, assignment, 2) > 0 else (low, middle)
        x[0] = torch.lerp(start, goal, high)
        assert -0.01 < ahead(x, assignment, 2) <= 0
        assert not still_nearest(x, assignment, means(x, assignment, 2))


def test_rounding_leaves_a_doubt_where_centres_are_alike() -> None:
    x, assignment = points(12, 50, 3, seed=0)
    x[1::3] = x[::3] + 1e-6  # clusters 0 and 1 differ by less than products are wrong
    assert not still_nearest(x, assignment, means(x, assignment, 3))


def test_an_empty_cluster_is_to_be_filled() -> None:
    x, assignment = points(12, 50, 3, seed=0, noise=0.1)
    assert still_nearest(x, assignment, means(x, assignment, 3))
    assert not still_nearest(x, assignment, means(x, assignment, 4))


def test_a_point_that_is_not_finite_is_not_affirmed() -> None:
    x, assignment = points(12, 50, 3, seed=0, noise=0.1)
    x[4, 7] = torch.nan
    assert not still_nearest(x, assignment, means(x, assignment, 3))


def test_a_precision_that_torch_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> str:
        raise RuntimeError("PyTorch is checking the matmul precision without a specific backend name")

    monkeypatch.setattr(torch, "get_float32_matmul_precision", refuse)
    x, assignment = points(12, 50, 3, seed=0, noise=0.1)
    assert still_nearest(x, assignment, means(x, assignment, 3))


def test_nobody_rounds_the_products_more_than_we_think(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under autocast, or where torch may multiply in bfloat16, a point that is nearer to another centre is found."""
    for precision in ("highest", "medium"):
        monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda precision=precision: precision)
        for seed in range(20):
            x, assignment = points(60, 40, 4, seed, noise=2.0)
            with torch.autocast("cpu", torch.bfloat16):
                still = still_nearest(x, assignment, means(x, assignment, 4))
            assert still == (ahead(x, assignment, 4) > 0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_types(dtype: torch.dtype) -> None:
    x, assignment = points(12, 50, 3, seed=0, noise=0.1)
    assert still_nearest(x.to(dtype), assignment, means(x.to(dtype), assignment, 3))
    swapped = assignment.clone()
    swapped[:2] = assignment[:2].flip(0)
    assert not still_nearest(x.to(dtype), swapped, means(x.to(dtype), swapped, 3))
