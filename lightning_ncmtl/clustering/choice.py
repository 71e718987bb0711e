"""How many clusters? Chosen from the inner products of the points alone."""

import math

import torch
from torch import Tensor
from torch import distributed as dist

from lightning_ncmtl.clustering._gram import cold_start, gram
from lightning_ncmtl.clustering.kmeans import summed

# What silhouettes differ by chance: among numbers of clusters within this share of the best, the fewest
TOLERANCE = 0.05


@torch.no_grad()
def choose_num_clusters(
    points: Tensor,
    max_clusters: int = 20,
    *,
    restarts: int = 10,
    seed: int = 0,
    group: dist.ProcessGroup | None = None,
) -> int:
    """Choose the number of clusters by the mean silhouette (Rousseeuw, 1987).

    Of all numbers whose silhouette is within 5 % of the best it takes the fewest clusters, as superfluous ones divide
    groups at random. Silhouettes compare clusters with each other, so one cluster is never chosen.

    Args:
        points: ``[N, D]``, N at least 2.
        max_clusters: Upper bound (as is N - 1).
        restarts: k-means++ starts for each number.
        seed: Seed of k-means++.
        group: Ranks that each hold a slice of the dimensions, see :func:`lightning_ncmtl.kmeans`.

    Returns:
        A number from 2 to the bound.
    """
    products = summed(gram(points), group)
    generator = torch.Generator().manual_seed(seed)
    scores = {}
    for k in range(2, min(max_clusters, len(points) - 1) + 1):
        assignment, _ = cold_start(products, k, restarts, 100, generator)
        scores[k] = float(silhouettes(products, assignment, k).mean())
    best = max(scores.values(), default=0.0)
    return min((k for k, score in scores.items() if score >= best - TOLERANCE * abs(best)), default=2)


def silhouettes(products: Tensor, assignment: Tensor, k: int) -> Tensor:
    """The silhouette of each point: how much farther the nearest other cluster is than its own, from -1 to 1.

    Args:
        products: Inner products ``[N, N]`` of the points, from any origin.
        assignment: ``[N]``.
        k: Number of clusters, at least 2.

    Returns:
        ``[N]``; 0 for a point that is alone in its cluster.
    """
    norms = products.diagonal()
    distances = (norms + norms.unsqueeze(1) - 2 * products).clamp_(min=0).sqrt_().fill_diagonal_(0)
    members = torch.nn.functional.one_hot(assignment, k).to(distances.dtype)
    counts, own = members.sum(0), assignment.unsqueeze(1)
    sums = distances @ members
    within = sums.gather(1, own).squeeze(1) / (counts[assignment] - 1).clamp(min=1)
    nearest = (sums / counts).nan_to_num(math.inf, posinf=math.inf).scatter(1, own, math.inf).amin(1)
    apart = torch.maximum(within, nearest)
    return torch.where((counts[assignment] > 1) & (apart > 0) & nearest.isfinite(), (nearest - within) / apart, 0.0)
