"""K-means for few points in many dimensions: one function in front of the backends."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch import distributed as dist

from lightning_ncmtl.clustering import _direct, _gram
from lightning_ncmtl.clustering._faiss import check_faiss, faiss_lloyd
from lightning_ncmtl.errors import InputError
from lightning_ncmtl.layers.whole import is_whole

Backend = Literal["auto", "gram", "faiss"]
Metric = Literal["euclidean", "cosine"]


class KMeansResult(NamedTuple):
    """What :func:`kmeans` found.

    Attributes:
        assignment: ``[N]`` int64, the cluster of each point.
        centers: ``[K, D]``, the mean of each cluster.
        inertia: 0-d float64 tensor, the sum of squared distances to the centres.
    """

    assignment: Tensor
    centers: Tensor
    inertia: Tensor


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
    group: dist.ProcessGroup | None = None,
) -> KMeansResult:
    """Group the rows of ``x`` into ``k`` clusters by Lloyd's algorithm.

    Every cluster gets at least one point, unless ``x`` has fewer than ``k`` distinct rows.

    Args:
        x: Points ``[N, D]``, of any floating type and on any device.
        k: Number of clusters, ``1 <= k <= N``.
        backend: ``"gram"``, only torch: exact in float64, on inner products of the points or on distances to the
            centres, whichever costs less; ``"faiss"``: FAISS in float32, on the GPU of ``x`` where the build of FAISS
            supports it; or ``"auto"``, now always ``"gram"``: the clusters of its cold starts are better, and its
            warm starts take half the time of FAISS where weights are many, a fraction of a millisecond else
            (``results/speed.md``; on a GPU nobody has measured yet).
        init: Where to start, on any device: centres ``[k, D]``, or an assignment ``[N]`` of integers. A cluster keeps
            its number while its points stay. By default k-means++ chooses (Arthur & Vassilvitskii, 2007).
        restarts: Independent k-means++ starts, of which the best is kept; a given start is the only one.
        max_iterations: Upper bound on the Lloyd iterations of each start. From an assignment on a GPU, the backend
            ``gram`` always runs all of them: so the host need not wait for the GPU.
        seed: Seed of k-means++.
        group: Ranks that each hold a slice of the dimensions of the same points: ``x`` [N, D of this rank]. All get
            the same assignment, that of the whole points, by one sum of N x N numbers; centres are of the slice.

    Returns:
        The result, on the device of ``x``; centres have the type of ``x``.

    Raises:
        InputError: If an argument is out of range, a value is not finite, or the backend is not installed or cannot do
            it. (Values from an assignment on a GPU are not looked at: there the inertia is not finite.)

    Example:
        >>> kmeans(torch.tensor([[0.0], [0.1], [5.0]]), 2).centers.sort(dim=0).values
        tensor([[0.0500],
                [5.0000]])
    """
    _check(x, k, backend, init, restarts, max_iterations, group)
    waits = x.is_cpu or init is None or init.ndim == 2
    init = None if init is None else init.to(x.device)
    if k == 1 or (k == len(x) and init is None):
        found = torch.arange(len(x), device=x.device) % k
    elif backend == "faiss" and k < len(x):
        found = _run_faiss(x, k, init, restarts, max_iterations, seed)
    elif init is None:
        (found,) = cold_assignments([x], [k], restarts, seed, max_iterations, group)
        found = found.to(x.device)
    else:
        if init.ndim == 2:
            init = summed(_direct.distances_to(x, init).distances, group).argmin(1)
        (found,) = warm_assignments([x], [k], [init], max_iterations, group)
        found = found.clone() if found is init else found
    centers = _direct.means(x, found, k)
    inertia = summed(_direct.inertia_of(x, found, centers), group)
    if waits and not inertia.isfinite():
        raise InputError("k-means got values that are not finite (NaN or infinity)")
    return KMeansResult(found, centers, inertia)


@torch.no_grad()
def warm_assignments(
    points: Sequence[Tensor],
    clusters: Sequence[int],
    assignments: Sequence[Tensor],
    max_iterations: int,
    group: dist.ProcessGroup | None = None,
    centers: Sequence[Tensor | None] | None = None,
    products: Sequence[Tensor | None] | None = None,
) -> list[Tensor]:
    """Continue the clustering of several layers with the same N points each, with few calls for all of them together.

    Args:
        points: ``[N, D]`` of each layer, D may differ.
        clusters: Number of clusters of each layer.
        assignments: ``[N]`` of each layer, where to start.
        max_iterations: As in :func:`kmeans`.
        group: As in :func:`kmeans`.
        centers: The means of these clusters ``[K, D]`` of each layer, where they are known.
        products: Inner products ``[N, N]`` of the points of each layer less the first of them, where they are known, as
            they may be where there is no CPU to ask.

    Returns:
        ``[N]`` of each layer: what :func:`kmeans` with the backend ``gram`` finds for it by itself; where nothing
        changes on a CPU, the same tensor.
    """
    found = list(assignments)
    known = [None] * len(found) if centers is None else centers
    moving = [
        layer
        for layer, (x, k, start, means) in enumerate(zip(points, clusters, assignments, known, strict=True))
        # Only a CPU is asked whether points stay, which need not be waited for.
        if group is not None
        or not x.is_cpu
        or not _direct.still_nearest(x, start, _direct.means(x, start, k) if means is None else means)
    ]
    grams: list[Tensor | None] = [None] * len(found) if products is None else list(products)
    for layer in moving:
        if grams[layer] is None and (group is not None or _by_products(len(points[layer]), clusters[layer])):
            grams[layer] = _gram.gram(points[layer])
    together = [layer for layer, gram in enumerate(grams) if gram is not None]
    if together:
        joined = summed(torch.stack([gram for gram in grams if gram is not None]), group)
        starts = torch.stack([assignments[layer] for layer in together]).unsqueeze(1)
        ks = [clusters[layer] for layer in together]
        new = _gram.lloyd(joined, starts, ks, max_iterations, wait=joined.is_cpu)
        for layer, assignment in zip(together, new[:, 0], strict=True):
            found[layer] = assignment
    for layer in set(moving) - set(together):
        x = points[layer]
        found[layer] = _direct.lloyd(x, assignments[layer], clusters[layer], max_iterations, wait=x.is_cpu)
    return found


@torch.no_grad()
def cold_assignments(
    points: Sequence[Tensor],
    clusters: Sequence[int],
    restarts: int,
    seed: int,
    max_iterations: int = 100,
    group: dist.ProcessGroup | None = None,
    products: Sequence[Tensor | None] | None = None,
) -> list[Tensor]:
    """Cluster several layers with the same N points each anew, few points on the CPU: a GPU is asked once for all.

    There each of many small steps would be a launch, and some a wait.

    Args:
        points: ``[N, D]`` of each layer, D may differ.
        clusters: Number of clusters of each layer.
        restarts: As in :func:`kmeans`.
        seed: As in :func:`kmeans`.
        max_iterations: As in :func:`kmeans`.
        group: As in :func:`kmeans`.
        products: As in :func:`warm_assignments`.

    Returns:
        ``[N]`` of each layer: what :func:`kmeans` with the backend ``gram`` finds for it by itself. On the CPU where
        points are few; whatever is in range where they are not finite.
    """
    generators = [torch.Generator().manual_seed(seed) for _ in points]
    if group is None and len(points[0]) > _gram.SAMPLED:
        return [
            _direct.cold_start(x, k, restarts, max_iterations, generator)
            for x, k, generator in zip(points, clusters, generators, strict=True)
        ]
    known = [None] * len(points) if products is None else products
    grams = [_gram.gram(x) if gram is None else gram for x, gram in zip(points, known, strict=True)]
    joined = summed(torch.stack(grams), group)
    if len(points[0]) <= _gram.FEW:
        joined = joined.cpu()
    return [
        _gram.cold_start(each, k, restarts, max_iterations, generator)
        for each, k, generator in zip(joined, clusters, generators, strict=True)
    ]


def unit_rows(x: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """The rows of ``x`` [N, D] scaled to length one; a zero row stays. ``group`` as in :func:`kmeans`."""
    squares = summed(torch.linalg.vector_norm(x, dim=1, dtype=torch.float64).square(), group)
    scale = squares.rsqrt()
    return (x * scale.where(squares > 0, 0).unsqueeze(1)).to(x.dtype)


def check_backend(backend: Backend) -> None:
    """Raise :class:`~lightning_ncmtl.errors.InputError` unless the backend is known and installed."""
    if backend not in get_args(Backend):
        raise InputError(f"unknown k-means backend {backend!r}: choose one of {', '.join(get_args(Backend))}")
    if backend == "faiss":
        check_faiss()


def _by_products(n: int, k: int) -> bool:
    """Whether, from a given start, the products of all pairs cost less than distances to the centres.

    Per number read: N multiplications against K, and about as much time as 32 of them for what they need besides.
    """
    return n <= k + 32


def _run_faiss(points: Tensor, k: int, init: Tensor | None, restarts: int, max_iterations: int, seed: int) -> Tensor:
    if not points.isfinite().all():
        raise InputError("k-means got values that are not finite (NaN or infinity)")
    # Weights lie close together around a large common offset, in which float32 distances would cancel.
    origin = points.mean(0, dtype=torch.promote_types(points.dtype, torch.float32))
    points = (points - origin).float()
    if init is None:
        generator = torch.Generator().manual_seed(seed)
        sample = torch.randperm(len(points), generator=generator, device="cpu")[: _gram.sample_size(k)]
        some = points[sample.to(points.device)]
        starts = some[_gram.plus_plus(_gram.gram(some), k, restarts, generator)]
    elif init.ndim == 1:
        starts = _direct.means(points, init, k).unsqueeze(0)
    else:
        starts = (init - origin).float().unsqueeze(0)
    assignment = faiss_lloyd(points, starts, max_iterations)
    if len(assignment.unique()) < k:  # fill the empty clusters
        sums = _direct.distances_to_means(points, assignment, k)
        clusters = torch.tensor(k, device=points.device)
        assignment = _gram.reassign(sums.distances, sums.norms, assignment, sums.margin, clusters)
    return assignment


def summed(value: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The sum over the ranks of a group, each of which has some of the dimensions."""
    if group is not None:
        dist.all_reduce(value, group=group)
    return value


def _check(
    x: Tensor,
    k: int,
    backend: Backend,
    init: Tensor | None,
    restarts: int,
    max_iterations: int,
    group: dist.ProcessGroup | None,
) -> None:
    if x.ndim != 2 or not x.is_floating_point():
        raise InputError(f"k-means needs floating-point points [N, D], found {x.dtype} of shape {list(x.shape)}")
    if not (is_whole(k) and k <= len(x)):
        raise InputError(f"the number of clusters must be between 1 and the number of points {len(x)}, found {k!r}")
    check_backend(backend)
    if backend == "faiss" and group is not None:
        raise InputError("FAISS needs whole points: choose backend='gram' where each rank has a slice of them")
    if x.device.type == "mps":
        raise InputError("k-means needs float64, which MPS lacks: move the points to the CPU")
    if not (is_whole(restarts) and is_whole(max_iterations)):
        raise InputError(
            f"restarts and max_iterations must be whole numbers from 1, found {restarts!r} and {max_iterations!r}"
        )
    if init is None:
        return
    if init.is_floating_point() and init.shape != (k, x.shape[1]):
        raise InputError(f"init must have the shape {[k, x.shape[1]]} of the centres, found {list(init.shape)}")
    if not init.is_floating_point() and (init.dtype != torch.int64 or init.shape != x.shape[:1]):
        raise InputError(
            f"init must be one int64 cluster for each of {len(x)} points, found {init.dtype} of shape "
            f"{list(init.shape)}"
        )
    if (init.is_cpu or x.is_cpu) and not (init.isfinite().all() if init.is_floating_point() else _in_range(init, k)):
        raise InputError(f"init must be finite centres or clusters in 0 .. {k - 1}, found {init}")


def _in_range(assignment: Tensor, k: int) -> bool:
    low, high = assignment.aminmax()
    return bool(low >= 0) and bool(high < k)
