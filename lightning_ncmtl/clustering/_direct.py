"""K-means on the points themselves, a block of columns at a time: where the products of all pairs would cost more.

Sums are in float64, but for those whose rounding is known (:func:`still_nearest`) or does not matter. A warm start
(:func:`lloyd`, unless it may ``wait``) asks the device for nothing.

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
    """Mean of each cluster's points, ``[K, D]``; zero for an empty cluster.

    In float64 a mean of equal float32 numbers is that number, however often means are taken of means.
    """
    if x.numel() <= SMALL:  # where fewer calls count for more than fewer multiplications
        belongs = (assignment == torch.arange(k, device=x.device).unsqueeze(1)).double()
        return (belongs @ x.double()).div_(belongs.sum(1, keepdim=True).clamp_(min=1)).to(x.dtype)
    groups = members(assignment, k)
    centers = x.new_empty(k, x.shape[1])
    for columns in _gram.split_columns(x):
        centers[:, columns] = _mean(x[:, columns].double(), groups)
    return centers


def still_nearest(x: Tensor, assignment: Tensor, centers: Tensor) -> bool:
    """Whether every point surely is nearest to the centre that it has.

    So it is at most steps of a training, and this costs one product of the points with the centres, in float32 unless
    the points are in float64. An answer of no may also mean that rounding leaves a doubt.

    Args:
        x: ``[N, D]``, on the CPU.
        assignment: ``[N]``, the clusters.
        centers: ``[K, D]``, their :func:`means`.
    """
    if not assignment.bincount(minlength=len(centers)).all():  # an empty cluster is to be filled
        return False
    dtype = torch.float64 if x.dtype == torch.float64 or _float32_is_rounded() else torch.float32
    total: list[Tensor] = []
    for columns in _gram.split_columns(x):
        center = centers[:, columns].to(dtype)
        # From the first centre, as a large common offset would be rounded
        block, gap = x[:, columns].to(dtype) - center[0], center - center[0]
        norms = torch.linalg.vector_norm(block, dim=1).square_()
        sums = [norms, torch.linalg.vecdot(gap, gap), gap @ block.T]
        total = [a.double().add_(b) for a, b in zip(total, sums, strict=True)] if total else sums
    if not total:  # points without dimensions
        return False
    norms, between, cross = total
    distances, own = torch.sub(between.unsqueeze(1), cross, alpha=2), assignment.unsqueeze(0)
    ahead = distances.scatter(0, own, math.inf).amin(0) - distances.gather(0, own)
    # A product of W numbers is wrong by at most W / 2 eps times the norms, of which the largest is that of a point. The
    # means were rounded to the type of x.
    norm = math.sqrt(norms.amax())
    width = x[:, _gram.split_columns(x)[0]].shape[1]
    rounding = torch.finfo(dtype).eps * (width + 8) * norm
    rounding += torch.finfo(x.dtype).eps * (norm + float(torch.linalg.vector_norm(centers[0], dtype=dtype)))
    return bool(ahead.amin() > 8 * norm * rounding)


def _float32_is_rounded() -> bool:
    """Whether products of float32 on the CPU may be computed from fewer digits."""
    try:
        return torch.is_autocast_enabled("cpu") or torch.get_float32_matmul_precision() != "highest"
    except RuntimeError:  # set separately for each device and operation
        return True


def distances_to(x: Tensor, centers: Tensor) -> "Sums":
    """How far the points are from given centres ``[K, D]``."""
    sums = Sums.zeros(x, len(centers))
    for columns in _gram.split_columns(x):
        block = x[:, columns].double()
        offset = block[0]
        sums.add(block - offset, centers[:, columns].double() - offset)
    return sums


def distances_to_means(x: Tensor, assignment: Tensor, k: int) -> "Sums":
    """How far the points are from the means of the clusters."""
    groups = members(assignment, k)
    sums = Sums.zeros(x, k)
    for columns in _gram.split_columns(x):
        block = x[:, columns].to(torch.float64, copy=True)
        block -= block[0].clone()  # distances cancel under a large common offset
        sums.add(block, _mean(block, groups))
    sums.between.masked_fill_(groups.counts == 0, math.inf)
    return sums


def lloyd(x: Tensor, assignment: Tensor, k: int, max_iterations: int, wait: bool) -> Tensor:
    """Lloyd's iterations, each one pass over the points.

    Args:
        x: ``[N, D]``.
        assignment: ``[N]``, where to start.
        k: Number of clusters.
        max_iterations: Upper bound on the iterations.
        wait: Stop as soon as no point moves any more. Otherwise all iterations run, and the host need not wait for
            the device; empty clusters are filled in the first and the last of them.

    Returns:
        The clusters ``[N]``.
    """
    clusters = torch.full((), k, device=x.device)
    for iteration in range(1, max_iterations + 1):
        sums = distances_to_means(x, assignment, k)
        # A cluster that loses all its points now is filled in the next iteration, if there is one.
        between = 1 < iteration < max_iterations
        full = iteration < max_iterations and bool(sums.between.amax() < math.inf) if wait else between
        new = _gram.reassign(sums.distances, sums.norms, assignment, sums.margin, None if full else clusters)
        if wait and torch.equal(new, assignment):
            break
        assignment = new
    return assignment


def cold_start(x: Tensor, k: int, restarts: int, max_iterations: int, generator: torch.Generator) -> Tensor:
    """The clusters ``[N]`` from the best of several starts on a sample: N x N products would be too many."""
    sample = torch.randperm(len(x), generator=generator, device="cpu")[: _gram.sample_size(k)].to(x.device)
    found = _gram.cold_start(_gram.gram(x[sample]), k, restarts, max_iterations, generator)
    nearest = distances_to(x, means(x[sample], found, k)).distances.argmin(1)
    return lloyd(x, nearest, k, max_iterations, wait=True)


def inertia_of(x: Tensor, assignment: Tensor, centers: Tensor) -> Tensor:
    """Sum of squared distances to the own centres, 0-d float64."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    parts = [
        sum_of_squares(x[:, columns].to(dtype) - centers[:, columns].to(dtype).contiguous().index_select(0, assignment))
        for columns in _gram.split_columns(x)
    ]
    return torch.stack(parts).sum() if parts else x.new_zeros((), dtype=torch.float64)


def sum_of_squares(x: Tensor) -> Tensor:
    """0-d float64, of ``x`` [N, D], of float32 at least; short parts of rows are summed in its type."""
    parts = [torch.linalg.vector_norm(x[:, columns], dim=1).double() for columns in _gram.split_columns(x)]
    return torch.stack(parts).square_().sum() if parts else x.new_zeros((), dtype=torch.float64)


# Numbers up to which a product with zeros and ones is the fastest way to sums of rows
SMALL = 2**17


class Sums(NamedTuple):
    """What distances are made of, summed over blocks of columns."""

    norms: Tensor  # [N] squared norms of the points
    cross: Tensor  # [K, N] inner products with the centres (the faster way round on a CPU)
    between: Tensor  # [K] squared norms of the centres, infinite for an empty cluster

    @classmethod
    def zeros(cls, x: Tensor, k: int) -> "Sums":
        return cls(*(x.new_zeros(shape, dtype=torch.float64) for shape in ((len(x),), (k, len(x)), (k,))))

    def add(self, block: Tensor, centers: Tensor) -> None:
        self.norms.add_(torch.linalg.vector_norm(block, dim=1).square_())
        self.cross.addmm_(centers, block.T)
        self.between.add_(torch.linalg.vecdot(centers, centers))

    @property
    def distances(self) -> Tensor:
        """Squared distances less :attr:`norms`, ``[N, K]``."""
        return torch.sub(self.between.unsqueeze(1), self.cross, alpha=2).T

    @property
    def margin(self) -> Tensor:
        return _gram.EPSILON * self.norms.amax()


def _mean(block: Tensor, groups: Members) -> Tensor:
    """Means of the rows of each cluster, ``[K, D]``; zero for an empty one.

    A bag of embeddings sums rows one after the other: at the speed of memory, and alike at every run, which
    ``index_add`` is not on a GPU.
    """
    sums = embedding_bag(groups.order, block, groups.starts, mode="sum")
    return sums.div_(groups.counts.clamp(min=1).to(block.dtype).unsqueeze(1))
