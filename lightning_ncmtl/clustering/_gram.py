"""K-means on inner products: few points in many dimensions, at the price of one pass over them.

A centre is a mean of points, so every distance of Lloyd's algorithm is a sum of inner products of points::

    ||x_j - c_k||^2 = G_jj - 2 mean_m G_jm + mean_mn G_mn        m, n: members of cluster k

Once the matrix ``G`` [N, N] is known, k-means++, any number of restarts and all iterations cost nothing per dimension.
A warm start (:func:`lloyd`, unless it may ``wait``) asks the device for nothing, so the host never waits for a GPU.

Shapes: L layers, R restarts, N points, K clusters.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

# Elements of a block of columns: small enough for the cache of a CPU, large enough to keep a GPU busy
BLOCK = {"cpu": 2**19, "cuda": 2**25}
# Rows and columns of a part of the matrix of products
ROWS = 256
# Points whose products are looked at on the CPU in a cold start: some 20 milliseconds at most for each start
FEW = 128
# Points up to which a cold start takes the products of all pairs, for all restarts at once
SAMPLED = 2048
# Candidates of k-means++ for each centre: as many as centres, for starts that differ where these are few, but at most
CANDIDATES = 20
# Rounding of distances in float64, relative to the largest squared norm
EPSILON = 1e-14
# Objectives of starts that differ by less are the same, relative to the largest squared norm
SAME = 1e-9


def split_columns(x: Tensor) -> list[slice]:
    """Ranges of columns of ``x`` [N, D] that fit into :data:`BLOCK`."""
    width = max(BLOCK.get(x.device.type, 2**25) // len(x), 64)
    return [slice(start, start + width) for start in range(0, x.shape[1], width)]


def gram(x: Tensor) -> Tensor:
    """Inner products ``[N, N]`` of the rows of ``x`` [N, D] less the first of them, accumulated in float64.

    So distances do not cancel under a large common offset.
    """
    products = x.new_zeros(len(x), len(x), dtype=torch.float64)
    for columns in split_columns(x):
        block = x[:, columns].to(torch.float64, copy=True)
        block -= block[:1].clone()
        for start in range(0, len(x), ROWS):  # only the lower triangle
            products[start:, start : start + ROWS].addmm_(block[start:], block[start : start + ROWS].T)
    return products.tril_().add_(products.tril(-1).T) if len(x) > ROWS else products


@lru_cache(maxsize=256)
def from_host(numbers: tuple[int, ...], device: torch.device) -> Tensor:
    """Numbers on a device, to be read only: it is waited for once, not at each step."""
    return torch.tensor(numbers, device=device)


def sample_size(k: int) -> int:
    """Of how many points a cold start takes the products of all pairs where there are more than :data:`SAMPLED`."""
    return max(SAMPLED, 8 * k)


def measure_distances(products: Tensor, assignment: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """How far all points are from the centres of the clusters.

    Args:
        products: ``[L, N, N]``.
        assignment: ``[L, R, N]``.
        k: Number of clusters.

    Returns:
        Squared distances less the squared norm of the point ``[L, R, N, K]``, infinite where a cluster is empty; and
        the number of points in each cluster ``[L, R, K]``.
    """
    layers, restarts, points = assignment.shape
    members = products.new_zeros(layers, restarts, points, k).scatter_(3, assignment.unsqueeze(3), 1)
    counts = members.sum(2)
    members *= counts.clamp(min=1).reciprocal_().unsqueeze(2)
    # One product per layer for all restarts: [L, N, N] @ [L, N, R * K]
    toward = products @ members.transpose(1, 2).reshape(layers, points, restarts * k)
    toward = toward.view(layers, points, restarts, k).transpose(1, 2)
    within = (members * toward).sum(2)
    return torch.sub(within.masked_fill_(counts == 0, math.inf).unsqueeze(2), toward, alpha=2), counts


def reassign(distances: Tensor, norms: Tensor, assignment: Tensor, margin: Tensor, clusters: Tensor | None) -> Tensor:
    """Move each point to its nearest centre, and give each empty cluster the point farthest from its centre.

    A point that is as near to its own centre as to any other stays.

    Args:
        distances: ``[..., N, K]``, squared and less ``norms``, infinite for empty clusters.
        norms: ``[..., N]``, the squared norms of the points.
        assignment: ``[..., N]``, the present clusters.
        margin: ``[..., 1]``, by how much squared distances may be wrong.
        clusters: ``[..., 1]`` or 0-d, the number of clusters, at most K; ``None`` not to look for empty ones.

    Returns:
        ``[..., N]``, the new clusters.
    """
    own = distances.gather(-1, assignment.unsqueeze(-1)).squeeze(-1)
    nearest, new = distances.min(-1)
    moves = own - nearest > margin
    new = torch.where(moves, new, assignment)
    if clusters is None:
        return new
    own = torch.where(moves, nearest, own) + norms
    numbers = torch.arange(distances.shape[-1], device=new.device)
    # The nearest point of each cluster stays there, or filling one cluster would empty another.
    is_member = new.unsqueeze(-1) == numbers
    least, anchor = own.unsqueeze(-1).where(is_member, math.inf).min(-2)
    places = torch.arange(new.shape[-1], device=new.device).unsqueeze(1)
    is_anchor = ((places == anchor.unsqueeze(-2)) & is_member).any(-1)
    free = own.masked_fill(is_anchor | (own <= margin), -1)
    farthest = free.argsort(dim=-1, descending=True, stable=True)
    empty = (least == math.inf) & (numbers < clusters)
    place = (empty.cumsum(-1) - 1).clamp(min=0)
    point = farthest.gather(-1, place)
    valid = empty & (free.gather(-1, point) > 0)
    # What is not valid goes to one more place, behind the points.
    target = point.masked_fill(~valid, new.shape[-1])
    padded = torch.cat([new, new[..., :1]], -1)
    return padded.scatter_(-1, target, numbers.expand_as(target))[..., :-1]


def lloyd(products: Tensor, assignment: Tensor, clusters: Sequence[int], max_iterations: int, wait: bool) -> Tensor:
    """Lloyd's iterations on inner products, for several layers and restarts at once.

    Args:
        products: ``[L, N, N]``.
        assignment: ``[L, R, N]``, where to start.
        clusters: The number of clusters of each layer.
        max_iterations: Upper bound on the iterations.
        wait: Stop as soon as no point moves any more. Otherwise all iterations run, and the host need not wait for
            the device; empty clusters are filled in the first and the last of them.

    Returns:
        ``[L, R, N]``.
    """
    k = max(clusters)
    norms = products.diagonal(dim1=1, dim2=2).unsqueeze(1)
    margin = EPSILON * norms.amax(2, keepdim=True)
    bounds = from_host(tuple(clusters), products.device).view(-1, 1, 1)
    for iteration in range(1, max_iterations + 1):
        distances, counts = measure_distances(products, assignment, k)
        # A cluster that loses all its points now is filled in the next iteration, if there is one.
        between = 1 < iteration < max_iterations
        full = iteration < max_iterations and bool(counts.amin() > 0) if wait else between
        new = reassign(distances, norms, assignment, margin, None if full else bounds)
        if wait and torch.equal(new, assignment):
            break
        assignment = new
    return assignment


def plus_plus(products: Tensor, k: int, restarts: int, generator: torch.Generator) -> Tensor:
    """Greedy k-means++ (Arthur & Vassilvitskii, 2007): of some candidates for a centre, the best is taken.

    Args:
        products: ``[N, N]``.
        k: Number of centres.
        restarts: Number R of independent draws.
        generator: Source of random numbers, on the CPU.

    Returns:
        ``[R, K]`` distinct points (where there are so many) to start from.
    """
    norms = products.diagonal()
    distances = (norms + norms.unsqueeze(1) - 2 * products).clamp(min=0)
    shape = restarts, k, min(k, CANDIDATES)
    draws = torch.rand(shape, generator=generator, dtype=torch.float64, device="cpu").to(products.device)
    chosen = (draws[:, :1, 0] * len(products)).long()
    closest = distances[chosen[:, 0]]
    for step in range(1, k):
        mass = _accumulate(closest)
        drawn = (draws[:, step] * mass[:, -1:]).long()
        point = torch.searchsorted(mass, drawn, right=True).clamp(max=len(products) - 1)
        after = torch.minimum(closest.unsqueeze(1), distances[point])  # [R, candidates, N]
        best = after.sum(2).argmin(1, keepdim=True)
        chosen = torch.cat([chosen, point.gather(1, best)], 1)
        closest = after.gather(1, best.unsqueeze(2).expand(-1, -1, len(products))).squeeze(1)
    return chosen


def _accumulate(weights: Tensor) -> Tensor:
    """Running sums of ``[R, N]`` not below 0, as integers of some scale: those of floats vary from run to run on a GPU.

    So PyTorch refuses them there where algorithms must be deterministic.
    """
    scale = 2.0**62 / weights.shape[1] / weights.amax(1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
    return (weights * scale.clamp(max=torch.finfo(weights.dtype).max)).long().cumsum(1)


def refine(products: Tensor, assignment: Tensor, k: int) -> Tensor:
    """Move single points while that helps (Hartigan's criterion), from where Lloyd's iterations stopped.

    Moving a point also moves the two centres, which Lloyd's criterion neglects: its optima need not be optima here.

    Args:
        products: ``[N, N]``.
        assignment: ``[R, N]``.
        k: Number of clusters.

    Returns:
        ``[R, N]``.
    """
    norms, restarts = products.diagonal().unsqueeze(1), torch.arange(len(assignment), device=assignment.device)
    margin = EPSILON * norms.amax() * len(products)
    members = torch.nn.functional.one_hot(assignment, k).double()
    sums = products @ members
    for _ in range(max(4 * len(products) // k, 16)):
        counts = members.sum(1, keepdim=True)
        size = counts.clamp(min=1)
        distances = norms + ((members * sums).sum(1, keepdim=True) / size - 2 * sums) / size
        # What it adds to the inertia to join another cluster, and what it saves to leave one's own: an empty cluster
        # costs nothing to join, and a single point does not leave.
        joins, goal = (distances * (counts / (counts + 1))).masked_fill_(members.bool(), math.inf).min(2)
        leaves = (distances * members * ((counts > 1) * size / (size - 1).clamp(min=1))).sum(2)
        gain, point = (leaves - joins).max(1)
        moves = gain > margin
        if not moves.any():
            break
        change = torch.nn.functional.one_hot(goal[restarts, point], k) - members[restarts, point]
        change *= moves.unsqueeze(1)
        members[restarts, point] += change
        sums.addcmul_(products[point].unsqueeze(2), change.unsqueeze(1))
    return members.argmax(2)


def cold_start(products: Tensor, k: int, restarts: int, max_iterations: int, generator: torch.Generator) -> Tensor:
    """The best of several k-means++ starts: the clusters ``[N]``."""
    chosen = plus_plus(products, k, restarts, generator)
    start = (products.diagonal()[chosen].unsqueeze(1) - 2 * products[:, chosen].transpose(0, 1)).argmin(2)
    found = lloyd(products.unsqueeze(0), start.unsqueeze(0), [k], max_iterations, wait=True)
    refined = refine(products, found[0], k)
    own = measure_distances(products.unsqueeze(0), refined.unsqueeze(0), k)[0][0].gather(2, refined.unsqueeze(2))
    inertia = own.sum((1, 2)) + products.diagonal().sum()
    # Several starts may find the same clusters, with other numbers: the first of them, whatever rounding says.
    return refined[(inertia <= inertia.min() + SAME * products.diagonal().amax()).int().argmax()]
