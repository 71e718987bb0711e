"""K-means for few points in many dimensions: one function in front of the backends."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lightning_ncmtl.clustering._faiss import check_faiss, faiss_labels
from lightning_ncmtl.errors import InputError

Backend = Literal["auto", "faiss"]


class KMeansResult(NamedTuple):
    """What :func:`kmeans` found.

    Attributes:
        assignment: ``[N]`` int64, the cluster of each point.
        centers: ``[K, D]``, the mean of each cluster.
        inertia: 0-d float64 tensor, the sum of squared distances to the centres.
        iterations: Lloyd iterations that the backend ran (0 where there was nothing to decide).
    """

    assignment: Tensor
    centers: Tensor
    inertia: Tensor
    iterations: int


@torch.no_grad()
def kmeans(
    x: Tensor,
    k: int,
    *,
    backend: Backend = "auto",
    init: Tensor | None = None,
    restarts: int = 1,
    max_iterations: int = 100,
    seed: int = 0,
) -> KMeansResult:
    """Group the rows of ``x`` into ``k`` clusters by Lloyd's algorithm.

    Every cluster gets at least one point, unless ``x`` has fewer than ``k`` distinct rows.

    Args:
        x: Points ``[N, D]``, of any floating type and on any device.
        k: Number of clusters, ``1 <= k <= N``.
        backend: ``"faiss"``, or ``"auto"`` for the default one (FAISS).
        init: Centres ``[k, D]`` for a warm start. By default k-means++ chooses them (Arthur & Vassilvitskii, 2007).
        restarts: Independent k-means++ starts, of which the best is kept; a warm start has only one.
        max_iterations: Upper bound on the Lloyd iterations of each start.
        seed: Seed of k-means++.

    Returns:
        The result, on the device of ``x``; centres have the type of ``x``.

    Raises:
        InputError: If an argument is out of range, a value is not finite, or the backend is not installed.

    Example:
        >>> kmeans(torch.tensor([[0.0], [0.1], [5.0]]), 2).centers.sort(dim=0).values
        tensor([[0.0500],
                [5.0000]])
    """
    _check(x, k, backend, init, restarts, max_iterations)
    # Weights lie close together around a large common offset, in which float32 distances would cancel.
    mean = x.mean(0, dtype=torch.float64)
    points = (x - mean).float()
    if k in (1, len(x)):
        assignment, iterations = torch.arange(len(x), device=x.device) % k, 0
    else:
        start = None if init is None else (init - mean).float()
        assignment, iterations = faiss_labels(points, k, start, restarts, max_iterations, seed)
        assignment = _fill_empty(points, assignment, k)
    centers = means(points, assignment, k)
    inertia = (points - centers[assignment]).double().square().sum()
    return KMeansResult(assignment, (centers + mean).to(x.dtype), inertia, iterations)


def check_backend(backend: Backend) -> None:
    """Raise :class:`InputError` unless the backend is known and installed."""
    if backend not in ("auto", "faiss"):
        raise InputError(f"unknown k-means backend {backend!r}: choose 'auto' or 'faiss'")
    check_faiss()


def means(x: Tensor, assignment: Tensor, k: int) -> Tensor:
    """Mean of each cluster's points, ``[K, D]``; that of an empty cluster is the mean of all points.

    A sum per cluster, not an ``index_add``, whose order (and so whose last bits) varies on a GPU.
    """
    groups = [x[assignment == cluster] for cluster in range(k)]
    return torch.stack([(group if len(group) else x).mean(0) for group in groups])


def _fill_empty(points: Tensor, assignment: Tensor, k: int) -> Tensor:
    """Give each empty cluster the point that lies farthest from its centre, if any lies off its centre."""
    assignment = assignment.clone()
    for cluster in (assignment.bincount(minlength=k) == 0).nonzero().flatten().tolist():
        distance = (points - means(points, assignment, k)[assignment]).square().sum(1)
        if distance.max() > 0:
            assignment[distance.argmax()] = cluster
    return assignment


def _check(x: Tensor, k: int, backend: Backend, init: Tensor | None, restarts: int, max_iterations: int) -> None:
    if x.ndim != 2 or not x.is_floating_point():
        raise InputError(f"k-means needs floating-point points [N, D], found {x.dtype} of shape {list(x.shape)}")
    if not 1 <= k <= len(x):
        raise InputError(f"the number of clusters must be between 1 and the number of points {len(x)}, found {k}")
    if 1 < k < len(x):
        check_backend(backend)
    if init is not None and init.shape != (k, x.shape[1]):
        raise InputError(f"init must have the shape {[k, x.shape[1]]} of the centres, found {list(init.shape)}")
    if restarts < 1 or max_iterations < 1:
        raise InputError(f"restarts and max_iterations must be at least 1, found {restarts} and {max_iterations}")
    if not x.isfinite().all() or (init is not None and not init.isfinite().all()):
        raise InputError("k-means got values that are not finite (NaN or infinity)")
