"""K-means on the points themselves, a block of columns at a time: where the products of all pairs would cost more.

Everything is summed in float64, and nothing but :func:`lloyd` (where it may, ``wait``) asks the device for a number.

Shapes: N points, D dimensions, K clusters.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from lightning_ncmtl.clustering import _gram


class Members(NamedTuple):
    """The points of each cluster: ``order`` [N] lists them cluster by cluster, from ``starts`` [K], ``counts`` [K]."""

    order: Tensor
    starts: Tensor
    counts: Tensor


def members(assignment: Tensor, k: int) -> Members:
    """Sort the points by their clusters ``[N]``."""
    counts = (assignment.unsqueeze(1) == torch.arange(k, device=assignment.device)).sum(0)
    return Members(assignment.argsort(stable=True), counts.cumsum(0) - counts, counts)


def means(x: Tensor, assignment: Tensor, k: int) -> Tensor:
    """Mean of each cluster's points, ``[K, D]``; that of an empty cluster is the mean of all points.

    In float64 a mean of equal float32 numbers is that number, however often means are taken of means.
    """
    groups = members(assignment, k)
    filled = (groups.counts > 0).unsqueeze(1)
    centers = x.new_empty(k, x.shape[1])
    for columns in _gram.blocks(x):
        block = x[:, columns].double()
        centers[:, columns] = torch.where(filled, _mean(block, groups), block.mean(0))
    return centers


def distances_to(x: Tensor, centers: Tensor) -> Tensor:
    """Squared distances to given centres ``[K, D]``: ``[N, K]`` float64."""
    sums = _Sums.zeros(x, len(centers))
    for columns in _gram.blocks(x):
        block = x[:, columns].double()
        offset = block.mean(0)
        sums.add(block - offset, centers[:, columns].double() - offset)
    return sums.distances()


def distances_to_means(x: Tensor, assignment: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Squared distances to the means of the clusters, ``[N, K]`` float64, infinite for an empty one; and the means."""
    groups = members(assignment, k)
    centers = x.new_empty(k, x.shape[1])
    sums = _Sums.zeros(x, k)
    for columns in _gram.blocks(x):
        block = x[:, columns].double()
        offset = block.mean(0)  # distances cancel under a large common offset
        block -= offset
        center = _mean(block, groups)
        sums.add(block, center)
        centers[:, columns] = center + offset
    return sums.distances().masked_fill(groups.counts == 0, math.inf), centers


def lloyd(
    x: Tensor, assignment: Tensor, k: int, max_iterations: int, wait: bool
) -> tuple[Tensor, Tensor | None, Tensor | None, int]:
    """Lloyd's iterations, each one pass over the points.

    Args:
        x: ``[N, D]``.
        assignment: ``[N]``, where to start.
        k: Number of clusters.
        max_iterations: Upper bound on the iterations.
        wait: Stop as soon as no point moves any more. Otherwise all iterations run, and the host need not wait for
            the device.

    Returns:
        The clusters ``[N]``; their means ``[K, D]`` and the sum of squared distances, where they are known; and the
        number of iterations.
    """
    clusters = torch.full((), k, device=x.device)
    for iteration in range(1, max_iterations + 1):
        distances, centers = distances_to_means(x, assignment, k)
        finite = distances.where(distances.isfinite(), 0)
        new = _gram.reassign(distances, assignment, finite.amax(), clusters, fill=True)
        if wait and torch.equal(new, assignment):
            return new, centers, distances.gather(1, new.unsqueeze(1)).sum(), iteration
        assignment = new
    return assignment, None, None, max_iterations


def cold_start(x: Tensor, k: int, restarts: int, max_iterations: int, generator: torch.Generator) -> tuple[Tensor, int]:
    """The best of several starts: the clusters ``[N]`` and the iterations of the longest start.

    k-means++ draws from a sample of the points, anew for each start: N x N products would be too many.
    """
    best, best_inertia, longest = None, math.inf, 0
    for _ in range(restarts):
        sample = torch.randperm(len(x), generator=generator)[: max(SAMPLE, 8 * k)].to(x.device)
        found, iterations = _gram.cold_start(_gram.gram(x[sample]), k, 1, max_iterations, generator)
        nearest = distances_to(x, means(x[sample], found, k)).argmin(1)
        assignment, _, inertia, more = lloyd(x, nearest, k, max_iterations, wait=True)
        if inertia is None:
            inertia = inertia_of(x, assignment, means(x, assignment, k))
        longest = max(longest, iterations + more)
        if best is None or inertia < best_inertia:
            best, best_inertia = assignment, float(inertia)
    assert best is not None
    return best, longest


def inertia_of(x: Tensor, assignment: Tensor, centers: Tensor) -> Tensor:
    """Sum of squared distances to the own centres, 0-d float64."""
    total = x.new_zeros((), dtype=torch.float64)
    for columns in _gram.blocks(x):
        gap = x[:, columns].double() - centers[:, columns].double()[assignment]
        total += torch.linalg.vecdot(gap, gap).sum()
    return total


# Points of which k-means++ takes all pairs, where it can't take those of all points
SAMPLE = 1024


class _Sums(NamedTuple):
    """What distances are made of, summed over blocks of columns."""

    norms: Tensor  # [N, 1]
    cross: Tensor  # [N, K]
    between: Tensor  # [K]

    @classmethod
    def zeros(cls, x: Tensor, k: int) -> "_Sums":
        return cls(*(x.new_zeros(shape, dtype=torch.float64) for shape in ((len(x), 1), (len(x), k), (k,))))

    def add(self, block: Tensor, centers: Tensor) -> None:
        self.norms.add_(torch.linalg.vecdot(block, block).unsqueeze(1))
        self.cross.addmm_(block, centers.T)
        self.between.add_(torch.linalg.vecdot(centers, centers))

    def distances(self) -> Tensor:
        return (self.norms + self.between - 2 * self.cross).clamp_(min=0)


def _mean(block: Tensor, groups: Members) -> Tensor:
    """Means of the rows of each cluster, ``[K, D]``; zero for an empty one.

    A bag of embeddings sums rows one after the other: at the speed of memory, and alike at every run, which
    ``index_add`` is not on a GPU.
    """
    sums = embedding_bag(groups.order, block, groups.starts, mode="sum")
    return sums.div_(groups.counts.clamp(min=1).to(block.dtype).unsqueeze(1))
