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

from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from lightning_ncmtl.clustering.kmeans import Backend, kmeans, means


class Shared(NamedTuple):
    """Weights after sharing, residuals for the next step, and the clustering loss (0-d)."""

    weights: Tensor
    residuals: Tensor
    loss: Tensor


def own_weights(weights: Tensor, residuals: Tensor) -> Tensor:
    """What each task would have by itself: ``W + R``, in float32 at least.

    No copy of the weights from before the optimizer step is needed: the optimizer moves each row of ``W`` away from
    its centre by the task's own update.
    """
    return weights.to(residuals.dtype) + residuals


def assign_tasks(
    own: Tensor,
    num_clusters: int,
    previous: Tensor | None = None,
    *,
    warm_start: bool = True,
    restarts: int = 10,
    seed: int = 0,
    backend: Backend = "auto",
) -> Tensor:
    """Group the tasks by their own weights.

    Args:
        own: Own weights ``[N, D]``.
        num_clusters: Number of clusters K.
        previous: The previous assignment ``[N]``; its clusters keep their numbers. ``None`` at the first clustering.
        warm_start: Start from the centres of ``previous``, rather than from k-means++.
        restarts: k-means++ starts where there is no warm start.
        seed: Seed of k-means++.
        backend: The k-means to use.

    Returns:
        The assignment ``[N]``, int64.
    """
    if previous is None:
        return kmeans(own, num_clusters, restarts=restarts, seed=seed, backend=backend).assignment
    init = None
    if warm_start and len(previous.unique()) == num_clusters:
        init = cluster_centers(own, previous, num_clusters)
    assignment = kmeans(own, num_clusters, init=init, restarts=restarts, seed=seed, backend=backend).assignment
    return align_labels(assignment, previous, num_clusters)


def cluster_centers(own: Tensor, assignment: Tensor, num_clusters: int) -> Tensor:
    """The mean own weights of each cluster, ``[K, D]``."""
    return means(own, assignment, num_clusters)


def share(weights: Tensor, residuals: Tensor, assignment: Tensor, num_clusters: int, commitment: float) -> Shared:
    """Give the tasks of each cluster the same weights.

    Args:
        weights: The layer's weights W, ``[N, D]``, as the optimizer left them.
        residuals: R, ``[N, D]``, zero at first.
        assignment: ``[N]``, the cluster of each task.
        num_clusters: Number of clusters K.
        commitment: Fraction in [0, 1] of its distance to the centre that a task gives up. 1 is the paper's
            replacement; with plain SGD, the paper's clustering loss with weight alpha is ``2 * alpha * lr``.

    Returns:
        New weights and residuals, and the clustering loss.
    """
    own = own_weights(weights, residuals)
    shared = cluster_centers(own, assignment, num_clusters)[assignment]
    gap = own - shared
    rounded = shared.to(weights.dtype)
    # `shared - rounded` is zero in float32. In bf16 and fp16 it keeps what the weights cannot hold, so that updates
    # smaller than the weights' precision still add up.
    return Shared(rounded, (1 - commitment) * gap + (shared - rounded), gap.double().square().sum())


def align_labels(assignment: Tensor, previous: Tensor, num_clusters: int) -> Tensor:
    """Renumber clusters so that each keeps the number of the previous cluster with which it shares most tasks."""
    overlap = torch.zeros(num_clusters, num_clusters, dtype=torch.int64, device=assignment.device)
    overlap.index_put_((assignment, previous), torch.ones_like(assignment), accumulate=True)
    _, columns = linear_sum_assignment(overlap.cpu().numpy(), maximize=True)
    return torch.as_tensor(columns, device=assignment.device)[assignment]
