"""K-means on inner products: few points in many dimensions, at the price of one pass over them.

A centre is a mean of points, so every distance of Lloyd's algorithm is a sum of inner products of points::

    ||x_j - c_k||^2 = G_jj - 2 mean_m G_jm + mean_mn G_mn        m, n: members of cluster k

Once the matrix ``G`` [N, N] is known, k-means++, any number of restarts and all iterations cost nothing per dimension.
A warm start (:func:`lloyd`, unless it may ``wait``) asks the device for nothing, so the host never waits for a GPU.

Shapes: L layers, R restarts, N points, K clusters.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# Elements of a block of columns: small enough for the cache of a CPU, large enough to keep a GPU busy
BLOCK = {"cpu": 2**19, "cuda": 2**25}
# Rows and columns of a part of the matrix of products
ROWS = 256
# Points up to which a cold start takes the products of all pairs, for all restarts at once
MANY = 2048
# Rounding of distances in float64, relative to the largest squared norm
EPSILON = 1e-14


def blocks(x: Tensor) -> list[slice]:
    """Ranges of columns of ``x`` [N, D] that fit into :data:`BLOCK`."""
    width = max(BLOCK.get(x.device.type, 2**25) // len(x), 64)
    return [slice(start, start + width) for start in range(0, x.shape[1], width)]


def gram(x: Tensor) -> Tensor:
    """Inner products ``[N, N]`` of the rows of ``x`` [N, D] less the first of them, accumulated in float64.

    So distances do not cancel under a large common offset.
    """
    products = x.new_zeros(len(x), len(x), dtype=torch.float64)
    for columns in blocks(x):
        block = x[:, columns].to(torch.float64, copy=True)
        block -= block[:1].clone()
        for start in range(0, len(x), ROWS):  # only the lower triangle
            products[start:, start : start + ROWS].addmm_(block[start:], block[start : start + ROWS].T)
    return products.tril_().add_(products.tril(-1).T) if len(x) > ROWS else products


def sample_size(k: int) -> int:
    """Of how many points a cold start takes the products of all pairs where there are more than :data:`MANY`."""
    return max(MANY, 8 * k)


def scores(products: Tensor, assignment: Tensor, k: int) -> tuple[Tensor, Tensor]:
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
    members *= counts.reciprocal().unsqueeze(2).nan_to_num_(0, posinf=0)
    # One product per layer for all restarts: [L, N, N] @ [L, N, R * K]
    toward = products @ members.transpose(1, 2).reshape(layers, points, restarts * k)
    toward = toward.view(layers, points, restarts, k).transpose(1, 2)
    within = (members * toward).sum(2)
    return torch.sub(within.masked_fill_(counts == 0, math.inf).unsqueeze(2), toward, alpha=2), counts


def inertias(products: Tensor, assignment: Tensor, k: int) -> Tensor:
    """Sums of squared distances to the own centres, ``[L, R]``."""
    own = scores(products, assignment, k)[0].gather(3, assignment.unsqueeze(3)).sum((2, 3))
    return own + products.diagonal(dim1=1, dim2=2).sum(1, keepdim=True)


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
    by_distance = own.argsort(dim=-1, stable=True)
    sorted_members = new.gather(-1, by_distance).unsqueeze(-1) == numbers
    first = (sorted_members.cumsum(-2) == 1) & sorted_members
    anchors = torch.zeros_like(new, dtype=torch.bool).scatter_(-1, by_distance, first.any(-1))
    free = torch.where(anchors | (own <= margin), -1.0, own)
    farthest = free.argsort(dim=-1, descending=True, stable=True)
    empty = ~sorted_members.any(-2) & (numbers < clusters)
    place = (empty.cumsum(-1) - 1).clamp(min=0)
    point = farthest.gather(-1, place)
    valid = empty & (free.gather(-1, point) > 0)
    # What is not valid goes to one more place, behind the points.
    target = torch.where(valid, point, new.shape[-1])
    padded = torch.cat([new, new[..., :1]], -1)
    return padded.scatter_(-1, target, numbers.expand_as(target))[..., :-1]


def lloyd(
    products: Tensor, assignment: Tensor, clusters: Sequence[int], max_iterations: int, wait: bool
) -> tuple[Tensor, int]:
    """Lloyd's iterations on inner products, for several layers and restarts at once.

    Args:
        products: ``[L, N, N]``.
        assignment: ``[L, R, N]``, where to start.
        clusters: The number of clusters of each layer.
        max_iterations: Upper bound on the iterations.
        wait: Stop as soon as no point moves any more. Otherwise all iterations run, and the host need not wait for
            the device.

    Returns:
        ``[L, R, N]`` and the number of iterations.
    """
    k = max(clusters)
    norms = products.diagonal(dim1=1, dim2=2).unsqueeze(1)
    margin = EPSILON * norms.amax(2, keepdim=True)
    # Filled on the device: a tensor of numbers from the host would wait for it
    bounds = torch.stack([torch.full((1, 1), number, device=products.device) for number in clusters])
    for iteration in range(1, max_iterations + 1):
        distances, counts = scores(products, assignment, k)
        # A cluster that loses all its points now is filled in the next iteration, if there is one.
        full = wait and iteration < max_iterations and bool(counts.amin() > 0)
        new = reassign(distances, norms, assignment, margin, None if full else bounds)
        if wait and torch.equal(new, assignment):
            return new, iteration
        assignment = new
    return assignment, max_iterations


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
    candidates = 2 + int(math.log(k))
    draws = torch.rand(restarts, k, candidates, generator=generator, dtype=torch.float64).to(products.device)
    chosen = (draws[:, :1, 0] * len(products)).long()
    closest = distances[chosen[:, 0]]
    for step in range(1, k):
        mass = closest.cumsum(1)
        point = torch.searchsorted(mass, draws[:, step] * mass[:, -1:], right=True).clamp(max=len(products) - 1)
        after = torch.minimum(closest.unsqueeze(1), distances[point])  # [R, candidates, N]
        best = after.sum(2).argmin(1, keepdim=True)
        chosen = torch.cat([chosen, point.gather(1, best)], 1)
        closest = after.gather(1, best.unsqueeze(2).expand(-1, -1, len(products))).squeeze(1)
    return chosen


def swap(products: Tensor, chosen: Tensor, generator: torch.Generator) -> Tensor:
    """Improve k-means++ by local search (Lattanzi & Sohler, 2019): let a point take the place of a centre if it helps.

    As many times as there are centres, a point is drawn as k-means++ would, and takes the place of that centre whose
    loss costs least, unless that is worse than before.

    Args:
        products: ``[N, N]``.
        chosen: ``[R, K]``.
        generator: Source of random numbers, on the CPU.

    Returns:
        ``[R, K]``.
    """
    restarts, k = chosen.shape
    norms = products.diagonal()
    distances = (norms + norms.unsqueeze(1) - 2 * products).clamp(min=0)
    draws = torch.rand(k, restarts, 1, generator=generator, dtype=torch.float64).to(products.device)
    for draw in draws:
        two, which = distances[chosen].topk(2, dim=1, largest=False)
        (first, second), nearest = two.unbind(1), which[:, 0]
        mass = first.cumsum(1)
        point = torch.searchsorted(mass, draw * mass[:, -1:], right=True).clamp(max=len(products) - 1)
        to_point = distances[point.squeeze(1)]  # [R, N]
        kept = torch.minimum(first, to_point)
        lost = torch.minimum(second, to_point) - kept  # what a point pays for the loss of its centre
        owner = (nearest.unsqueeze(1) == torch.arange(k, device=chosen.device).unsqueeze(1)).double()
        cost, centre = (owner @ lost.unsqueeze(2)).squeeze(2).min(1)
        better = kept.sum(1) + cost < first.sum(1)
        replaced = chosen.scatter(1, centre.unsqueeze(1), point)
        chosen = torch.where(better.unsqueeze(1), replaced, chosen)
    return chosen


def nearest_points(products: Tensor, chosen: Tensor) -> Tensor:
    """The clusters ``[R, N]`` around chosen points ``[R, K]``."""
    return (products.diagonal()[chosen].unsqueeze(1) - 2 * products[:, chosen].transpose(0, 1)).argmin(2)


def refine(products: Tensor, assignment: Tensor, k: int, max_moves: int) -> Tensor:
    """Move single points while that helps (Hartigan's criterion), from where Lloyd's iterations stopped.

    Moving a point also moves the two centres, which Lloyd's criterion neglects: its optima need not be optima here.
    What the points are to all other clusters stays the same, so a move costs two columns.

    Args:
        products: ``[N, N]``.
        assignment: ``[R, N]``.
        k: Number of clusters.
        max_moves: Upper bound on the moves of each restart.

    Returns:
        ``[R, N]``.
    """
    norms = products.diagonal()
    margin = EPSILON * norms.amax() * len(products)
    members = products.new_zeros(*assignment.shape, k).scatter_(2, assignment.unsqueeze(2), 1)
    sums, counts = products @ members, members.sum(1)
    within = (members * sums).sum(1)
    joins, leaves = _costs(norms, sums, counts, within, members.bool())
    leaves, assignment = leaves.sum(2), assignment.clone()
    found, restarts = assignment, torch.arange(len(assignment), device=assignment.device)
    sign = torch.tensor([-1.0, 1.0], device=products.device, dtype=products.dtype)
    for _ in range(max_moves):
        least, cluster = joins.min(2)
        gain, point = (leaves - least).max(1, keepdim=True)
        moves = (gain > margin).squeeze(1)
        if not moves.all():
            found = found.index_copy(0, restarts, assignment)
            state = (restarts, assignment, sums, counts, within, joins, leaves, cluster, point)
            restarts, assignment, sums, counts, within, joins, leaves, cluster, point = (t[moves] for t in state)
            if not len(restarts):
                return found
        goal = cluster.gather(1, point)
        changed = torch.cat([assignment.gather(1, point), goal], 1)  # [R, 2]
        assignment.scatter_(1, point, goal)
        columns = changed.unsqueeze(1).expand(-1, len(products), -1)
        part, row = sums.gather(2, columns), products[point.squeeze(1)].unsqueeze(2)
        at_point = part.gather(1, point.unsqueeze(2).expand(-1, -1, 2)).squeeze(1)
        within.scatter_add_(1, changed, 2 * sign * at_point + norms[point])
        counts.scatter_add_(1, changed, sign.expand_as(changed))
        part = torch.addcmul(part, row, sign)
        sums.scatter_(2, columns, part)
        own = assignment.unsqueeze(2) == columns
        join, leave = _costs(norms, part, counts.gather(1, changed), within.gather(1, changed), own)
        joins.scatter_(2, columns, join)
        leaves = torch.where(own.any(2), leave.sum(2), leaves)
    return found.index_copy(0, restarts, assignment)


def _costs(norms: Tensor, sums: Tensor, counts: Tensor, within: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """What it adds to the inertia to join a cluster, infinite for one's own; and what it saves to leave that, else 0.

    Args:
        norms: ``[N]``.
        sums: ``[R, N, C]``, of the products with a cluster's points.
        counts: ``[R, C]``.
        within: ``[R, C]``, sums of the products between a cluster's points.
        own: ``[R, N, C]``, whether a point is in a cluster.
    """
    size = counts.clamp(min=1).unsqueeze(1)
    distances = norms.unsqueeze(1) + (within.unsqueeze(1) / size - 2 * sums) / size
    counts = counts.unsqueeze(1)
    joins = (distances * (counts / (counts + 1))).masked_fill_(own, math.inf)  # an empty cluster costs nothing to join
    return joins, distances.mul_(own * (counts > 1) * size / (size - 1).clamp_(min=1))  # a single point does not leave


def cold_start(
    products: Tensor, k: int, restarts: int, max_iterations: int, generator: torch.Generator
) -> tuple[Tensor, int]:
    """The best of several k-means++ starts: the clusters ``[N]``, and the iterations of the longest start."""
    drawn = plus_plus(products, k, restarts, generator)
    # Local search finds better starts on average, but more alike: Lloyd's iterations run from both.
    start = nearest_points(products, torch.cat([drawn, swap(products, drawn, generator)]))
    found, iterations = lloyd(products.unsqueeze(0), start.unsqueeze(0), [k], max_iterations, wait=True)
    refined = refine(products, found[0], k, max_moves=max(4 * len(products) // k, 16))
    best = inertias(products.unsqueeze(0), refined.unsqueeze(0), k)[0].argmin()
    return refined[best], iterations
