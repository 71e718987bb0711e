"""The sharing step: how the tasks of one cluster layer come to share weights (Section 3 of the paper, made to work).

After each optimizer step, for one layer with per-task weights ``W`` and residuals ``R``, both ``[N, D]``::

    own    = W + R                       what each task would have by itself
    a      = kmeans(own, K)              started from the centres of the previous assignment
    C      = mean of own over each cluster
    W     <- C[a]                        tasks of a cluster compute with the same weights
    R     <- (1 - commitment) (own - C[a])
    loss   = sum_j ||own_j - C[a_j]||^2  the paper's clustering loss

The paper has no residuals (``commitment=1``). Without them a task forgets at each step where it wanted to go, and the
first clustering is the last one.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch import distributed as dist

from lightning_ncmtl.clustering._direct import sum_of_squares
from lightning_ncmtl.clustering.choice import choose_num_clusters
from lightning_ncmtl.clustering.kmeans import Backend, Metric, cold_assignments, kmeans, unit_rows, warm_assignments
from lightning_ncmtl.errors import InputError
from lightning_ncmtl.layers import on_host, to_device

# Lloyd iterations of one step from the assignment of the step before: what they leave open, the next step settles
WARM_ITERATIONS = 4


class Shared(NamedTuple):
    """Weights after sharing, residuals for the next step, and the clustering loss (0-d)."""

    weights: Tensor
    residuals: Tensor
    loss: Tensor


def assign_tasks(
    own: Sequence[Tensor],
    num_clusters: Sequence[int | None],
    previous: Sequence[Tensor | None],
    *,
    centers: Sequence[Tensor | None] | None = None,
    products: Sequence[Tensor | None] | None = None,
    metric: Metric = "euclidean",
    origins: Sequence[Tensor | None] | None = None,
    max_clusters: int = 20,
    warm_start: bool = True,
    restarts: int = 20,
    seed: int = 0,
    backend: Backend = "auto",
    group: dist.ProcessGroup | None = None,
) -> list[Tensor]:
    """Group the tasks of several layers by their own weights, each layer by itself.

    Args:
        own: Own weights of each layer, ``[N, D]``.
        num_clusters: Number of clusters K of each layer; ``None`` to choose it, see :func:`choose_num_clusters`.
        previous: The previous assignment of each layer, ``[N]``; its clusters keep their numbers. ``None`` at the
            first clustering.
        centers: The :func:`lightning_ncmtl.clustering.means` of the previous clusters of each layer, ``[K, D]``, where
            they are known already.
        products: Inner products ``[N, N]`` of the rows of each layer less the first, where they are known already.
        metric: Group tasks whose weights are near (``"euclidean"``), or that went in the same direction from their
            origin, however far (``"cosine"``).
        origins: For the metric cosine, the weights ``[D]`` of each layer with which all tasks started.
        max_clusters: Upper bound where the number is chosen.
        warm_start: Start from the centres of ``previous``, rather than from k-means++.
        restarts: k-means++ starts where there is no warm start.
        seed: Seed of k-means++.
        backend: The k-means to use.
        group: Ranks that each hold a slice of the dimensions.

    Returns:
        The assignment ``[N]`` of each layer, int64; the previous tensor where a CPU finds that nothing changes.
    """
    points = list(own) if metric == "euclidean" else _directions(own, origins, group)
    found: dict[int, Tensor] = {}
    warm: dict[int, tuple[Tensor, int, Tensor, Tensor | None, Tensor | None]] = {}
    cold: dict[int, tuple[Tensor, int, Tensor | None]] = {}
    for layer, before in enumerate(previous):
        x, k = points[layer], num_clusters[layer]
        if k is None:
            k = choose_num_clusters(x, max_clusters, restarts=restarts, seed=seed, group=group)
        if before is not None and warm_start and 1 < k < len(x):
            if backend == "faiss":
                found[layer] = kmeans(x, k, backend=backend, init=before, max_iterations=WARM_ITERATIONS).assignment
            else:
                known = None if centers is None or metric == "cosine" else centers[layer]
                warm[layer] = (x, k, before, known, None if products is None else products[layer])
        elif backend == "faiss" or k in (1, len(x)):
            new = kmeans(x, k, backend=backend, restarts=restarts, seed=seed, group=group).assignment
            found[layer] = new if before is None else align_labels(new, before, k)
        else:
            cold[layer] = (x, k, None if products is None else products[layer])
    if cold:
        xs, ks, known_products = zip(*cold.values(), strict=True)
        chosen = cold_assignments(xs, ks, restarts, seed, group=group, products=known_products)
        befores = [previous[layer] for layer in cold]
        named = [
            on_host(new) if before is None else align_labels(on_host(new), on_host(before), k)
            for new, before, k in zip(chosen, befores, ks, strict=True)
        ]
        found.update(zip(cold, to_device(own[0].device, *named), strict=True))
    if warm:
        xs, ks, starts, known_centers, known_products = zip(*warm.values(), strict=True)
        continued = warm_assignments(xs, ks, starts, WARM_ITERATIONS, group, known_centers, known_products)
        found.update(zip(warm, continued, strict=True))
    return [found[layer] for layer in range(len(own))]


def _directions(
    own: Sequence[Tensor], origins: Sequence[Tensor | None] | None, group: dist.ProcessGroup | None
) -> list[Tensor]:
    """Each task's way from the origin of its layer, with length one."""
    ways = [weights - origin for weights, origin in zip(own, origins or (), strict=False) if origin is not None]
    if len(ways) < len(own):
        raise InputError("the metric cosine needs the origin of every layer, from which it measures")
    return [unit_rows(way, group) for way in ways]


def share(
    own: Tensor, assignment: Tensor, centers: Tensor, commitment: float, dtype: torch.dtype | None = None
) -> Shared:
    """Give the tasks of each cluster the same weights.

    Args:
        own: Own weights ``W + R`` [N, D], in float32 at least; overwritten by the residuals. (No copy of the weights
            from before the optimizer step is needed: the optimizer moves each row of ``W`` away from its centre by
            the task's own update.)
        assignment: ``[N]``, the cluster of each task.
        centers: ``[K, D]``, the :func:`lightning_ncmtl.clustering.means` of the clusters.
        commitment: Fraction in [0, 1] of its distance to the centre that a task gives up. 1 is the paper's
            replacement; with plain SGD, the paper's clustering loss with weight alpha is ``2 * alpha * lr``.
        dtype: Type of the weights, that of ``own`` by default.

    Returns:
        New weights and residuals, and the clustering loss.
    """
    shared = centers.index_select(0, assignment)  # several times as fast as an index in brackets
    gap = own.sub_(shared)
    loss = sum_of_squares(gap)
    residuals = gap.mul_(1 - commitment)
    weights = shared if dtype is None else shared.to(dtype)
    if weights.dtype != own.dtype:
        # What bf16 and fp16 weights cannot hold, so that updates smaller than their precision still add up.
        residuals += shared - weights
    return Shared(weights, residuals, loss)


def align_labels(assignment: Tensor, previous: Tensor, num_clusters: int) -> Tensor:
    """Renumber clusters so that each keeps the number of the previous cluster with which it shares most tasks."""
    overlap = torch.zeros(num_clusters, num_clusters, dtype=torch.int64, device=assignment.device)
    overlap.index_put_((assignment, previous), torch.ones_like(assignment), accumulate=True)
    _, columns = linear_sum_assignment(overlap.cpu().numpy(), maximize=True)
    return torch.as_tensor(columns, device=assignment.device)[assignment]
