"""How many clusters? Chosen from nothing but the inner products of the points."""

import torch
from torch import Tensor
from torch import distributed as dist

from lightning_ncmtl.clustering._gram import FEW, cold_start, gram
from lightning_ncmtl.clustering.kmeans import summed
from lightning_ncmtl.errors import InputError

# What silhouettes differ by chance: among numbers of clusters within this share of the best, the fewest
TOLERANCE = 0.05


@torch.no_grad()
def choose_num_clusters(
    points: Tensor,
    max_clusters: int = 20,
    *,
    restarts: int = 20,
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

    Raises:
        InputError: If a value is not finite, or there is nothing to choose from.
    """
    if len(points) < 2 or max_clusters < 2:
        raise InputError(
            f"there is no number of clusters to choose of {len(points)} points and with max_clusters {max_clusters}: "
            "both must be at least 2"
        )
    from sklearn.metrics import silhouette_score  # slow to import

    products = summed(gram(points), group)
    products = products.cpu() if len(points) <= FEW else products
    if not products.isfinite().all():
        raise InputError("the number of clusters cannot be chosen for values that are not finite (NaN or infinity)")
    norms = products.diagonal()
    distances = (norms + norms.unsqueeze(1) - 2 * products).clamp_(min=0).sqrt_().fill_diagonal_(0).cpu().numpy()
    generator = torch.Generator().manual_seed(seed)
    scores = {}
    for k in range(2, min(max_clusters, len(points) - 1) + 1):
        labels = cold_start(products, k, restarts, 100, generator).cpu().numpy()
        # Points that are all equal are in one cluster.
        scores[k] = float(silhouette_score(distances, labels, metric="precomputed")) if labels.any() else 0.0
    best = max(scores.values(), default=0.0)
    return min((k for k, score in scores.items() if score >= best - TOLERANCE * abs(best)), default=2)
