"""Evidence for clusters: what one half of the data says about the tasks must hold in the other half.

Each task t has a direction, estimated twice from disjoint halves A and B of its data::

    a_t = s_t + noise        b_t = s_t + other noise

Noise of one half does not point where that of the other does. So ``<a_t, b_u>`` estimates ``<s_t, s_u>`` without bias,
and a clustering of A that is only noise predicts nothing of B. Clusters are judged by that:

- For each number of clusters K, the tasks of A are grouped (by division in two, again and again), and each cluster's
  mean ``c`` predicts its tasks ``b`` in B (and the other way round). What such means are worth once all data made them
  is their *gain*::

      sum (3 <b, c> - <c, c>) / 2     of   <b, c>           what is right in c
                                      less (<c, c> - <b, c>) / 2   its noise, halved by twice as many data

  It is 0 for one cluster of all, as directions are less their mean, and below 0 where clusters mostly follow noise.
- *Is there anything?* The same for permuted tasks of B, many times, gives what the best K reaches by chance: a p-value.
- *How many?* The fewest clusters whose gain is within a standard error of the best (Breiman et al., 1984, for trees).

Only inner products are needed, one matrix of 2N x 2N. Shapes: N tasks, D numbers, K clusters.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor
from torch import distributed as dist

from lightning_ncmtl.clustering._gram import cold_start
from lightning_ncmtl.clustering.kmeans import Backend, kmeans, summed
from lightning_ncmtl.errors import InputError

# p-value from which on there is no evidence
LEVEL = 0.01


class Evidence(NamedTuple):
    """What the two halves say.

    Attributes:
        num_clusters: The number of clusters, from 1 (no evidence: all tasks share) to N (every task differs).
        p_value: How often tasks at random do as well as the best number of clusters.
        agreement: Correlation over the pairs of tasks between their similarities in one half and in the other.
        agreement_error: Its standard error, as tasks are a sample (jackknife, Tukey, 1958); NaN for fewer than four.
        gains: For each number of clusters tried, its gain per task, 1 at most.
        similarities: ``[2, N, N]`` float32, cosines between the tasks' directions in each half.
        products: ``[N, N]``, inner products of the tasks' directions in both halves together, which
            :func:`group_tasks` takes.
    """

    num_clusters: int
    p_value: float
    agreement: float
    agreement_error: float
    gains: dict[int, float]
    similarities: Tensor
    products: Tensor


def multiply_halves(first: Tensor, second: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Inner products of the tasks' directions in both halves, of length one and less the mean of their half.

    One length, as a task with more data went farther, and the mean should not be its own.

    Args:
        first: ``[N, D]``, of one half of the data.
        second: ``[N, D]``, of the other.
        group: Ranks that each hold a slice of the D numbers.

    Returns:
        ``[2N, 2N]`` float64, so scaled that the squared lengths add up to 1: layers count alike, however wide.
    """
    n, device = len(first), first.device.type
    rows = torch.cat([first, second])
    with torch.autocast(device, enabled=False):  # somebody's whole loop may be under one
        products = rows @ rows.T
    products = _to_unit_length(summed(products.double(), group))
    center = torch.eye(n, dtype=products.dtype, device=products.device) - 1 / n
    center = torch.block_diag(center, center)
    products = center @ products @ center
    scaled: Tensor = products / products.trace().clamp(min=torch.finfo(products.dtype).tiny)
    return scaled


def weigh_evidence(
    layers: Sequence[Tensor],
    *,
    max_clusters: int = 20,
    permutations: int = 999,
    restarts: int = 20,
    seed: int = 0,
) -> Evidence:
    """Say how many clusters two halves of the data agree on, and how sure that is.

    Args:
        layers: Inner products ``[2N, 2N]`` of each layer, see :func:`multiply_halves`; they are added up.
        max_clusters: Upper bound of the number of clusters, beside N.
        permutations: Random orders of the tasks; the least p-value is ``1 / (permutations + 1)``.
        restarts: k-means++ starts of each division in two, at most 5 of them.
        seed: Seed of k-means++ and of the permutations.

    Raises:
        InputError: If there are no layers, or fewer than two tasks.
    """
    if not layers or len(layers[0]) < 4:
        raise InputError("evidence for clusters needs products of two halves of at least two tasks")
    n = len(layers[0]) // 2
    products = _to_unit_length(torch.stack([layer.cpu() for layer in layers]).sum(0))
    one, other, cross = products[:n, :n], products[n:, n:], products[:n, n:]
    generator = torch.Generator().manual_seed(seed)
    numbers = [*range(2, min(max_clusters, n - 1) + 1), n]
    trees = [_grow(half, numbers, min(restarts, 5), generator) for half in (one, other)]
    orders = torch.rand(permutations, n, generator=generator, dtype=torch.float32, device="cpu").argsort(1)
    hits, lengths, chances = [], [], []
    for k in numbers:
        hit, length, chance = (products.new_zeros(number) for number in (n, n, permutations))
        # Task t of one half is taken for task orders[t] of the other, in both directions.
        for half, between, tree, order in (
            (one, cross, trees[0], orders),
            (other, cross.T, trees[1], orders.argsort(1)),
        ):
            clusters = tree[k]
            means = _mean_rows(between, clusters, k)  # [K, N], how well each cluster predicts each task
            hit = hit + means[clusters, torch.arange(n, device="cpu")] / 2
            chance = chance + means[clusters, order].sum(1) / 2
            length = length + _mean_lengths(half, clusters, k)[clusters] / 2
        hits.append(hit)
        lengths.append(length)
        chances.append(chance)
    own, length = torch.stack(hits), torch.stack(lengths)  # [K, N]
    norm = length.sum(1).clamp(min=0).sqrt().clamp(min=1e-12)
    best = (own.sum(1) / norm).max()
    chance = (torch.stack(chances) / norm.unsqueeze(1)).amax(0)  # [permutations]
    # Orders that move tasks within their clusters alone do as well, up to rounding: of few tasks they are many
    p_value = float(1 + (chance >= best - 1e-9 * best.abs()).sum()) / (1 + permutations)
    gain = (3 * own - length) / 2
    certain = p_value < LEVEL and gain.sum(1).max() > 0
    agreement, error = _correlate_pairs(one, other)
    return Evidence(
        numbers[_find_fewest(gain)] if certain else 1,
        p_value,
        agreement,
        error,
        dict(zip(numbers, gain.mean(1).tolist(), strict=True)),
        torch.stack([_to_unit_length(one), _to_unit_length(other)]).float(),
        one + other + cross + cross.T,
    )


def group_tasks(
    products: Tensor,
    num_clusters: int,
    *,
    within: Tensor | None = None,
    restarts: int = 20,
    seed: int = 0,
    backend: Backend = "auto",
) -> Tensor:
    """The clusters of tasks with such inner products.

    Args:
        products: ``[N, N]``, ``Evidence.products``.
        num_clusters: Number of clusters, in 1 .. N.
        within: ``[N]``, fewer clusters that are to be divided: in two, one after the other, always the one whose
            division brings its tasks nearest to their means.
        restarts: k-means++ starts.
        seed: Seed of k-means++.
        backend: The k-means to use, see :func:`lightning_ncmtl.kmeans`.

    Returns:
        ``[N]`` int64.

    Raises:
        InputError: If the number of clusters is not in 1 .. N, or ``within`` has more.
    """
    if not 1 <= num_clusters <= len(products):
        raise InputError(f"the number of clusters must be between 1 and {len(products)} tasks, found {num_clusters}")

    def cluster(of: Tensor, k: int) -> Tensor:
        if backend != "faiss":
            return _cluster(of, k, restarts, torch.Generator().manual_seed(seed))
        lengths, axes = torch.linalg.eigh(of)  # it needs points: their coordinates have the same inner products
        points = (axes * lengths.clamp(min=0).sqrt()).float()
        return kmeans(points, k, backend=backend, restarts=restarts, seed=seed).assignment

    # Where tasks do not differ, k-means may find fewer clusters: they are divided, too
    found = cluster(products, num_clusters) if within is None else within.cpu()
    clusters: Tensor = torch.unique(found, return_inverse=True)[1]  # as many numbers as there are clusters
    count = int(clusters.max()) + 1
    if count > num_clusters:
        raise InputError(f"{count} clusters cannot be divided into {num_clusters}")
    return next(islice(_divide(products, clusters, cluster), num_clusters - count, None))


def _divide(products: Tensor, clusters: Tensor, cluster: Callable[[Tensor, int], Tensor]) -> Iterator[Tensor]:
    """Clusters ``[N]``, then one more, and one more, until each task has its own.

    The one is divided whose division brings its tasks nearest to their means.
    """
    count = int(clusters.max()) + 1
    divisions: dict[int, tuple[float, Tensor]] = {}  # of each cluster: what it brings, and the tasks that leave it
    changed = list(range(count))
    while True:
        yield clusters
        for each in changed:
            tasks = (clusters == each).nonzero().flatten()
            divisions[each] = (-1.0, tasks)
            if len(tasks) > 1:
                mine = products[tasks][:, tasks]
                parts = cluster(mine, 2)
                if parts.eq(parts[0]).all():
                    parts = torch.arange(len(tasks), device="cpu") % 2
                helped = _mean_lengths(mine, parts, 2) @ parts.bincount().double()
                divisions[each] = float(helped - mine.mean() * len(mine)), tasks[parts == 1]
        best = max(divisions, key=lambda each: divisions[each][0])
        clusters = clusters.clone()
        clusters[divisions[best][1]] = count
        changed = [best, count]
        count += 1


def _grow(products: Tensor, numbers: Sequence[int], restarts: int, generator: torch.Generator) -> dict[int, Tensor]:
    """For each number of clusters these, cut out of one hierarchy: far cheaper than to look for each anew."""
    n = len(products)
    start = torch.zeros(n, dtype=torch.int64, device="cpu")
    tree = _divide(products, start, lambda of, k: _cluster(of, k, restarts, generator))
    cuts = dict(zip(range(1, max(k for k in [1, *numbers] if k < n) + 1), tree, strict=False))
    return {k: torch.arange(n, device="cpu") if k == n else cuts[k] for k in numbers}


def _cluster(products: Tensor, k: int, restarts: int, generator: torch.Generator) -> Tensor:
    n = len(products)
    return torch.arange(n, device="cpu") % k if k in (1, n) else cold_start(products, k, restarts, 100, generator)


def _to_unit_length(products: Tensor) -> Tensor:
    scale = products.diagonal().clamp(min=0).rsqrt().nan_to_num(posinf=0)
    return scale.unsqueeze(1) * products * scale


def _mean_rows(matrix: Tensor, clusters: Tensor, k: int) -> Tensor:
    """``[K, M]``, the mean over each cluster of the rows of a matrix ``[N, M]``."""
    sums = matrix.new_zeros(k, matrix.shape[1]).index_add_(0, clusters, matrix)
    return sums / clusters.bincount(minlength=k).clamp(min=1).unsqueeze(1)


def _mean_lengths(products: Tensor, clusters: Tensor, k: int) -> Tensor:
    """``[K]``, the squared length of the mean of each cluster, of points with products ``[N, N]``."""
    return _mean_rows(_mean_rows(products, clusters, k).T, clusters, k).diagonal()


def _correlate_pairs(one: Tensor, other: Tensor) -> tuple[float, float]:
    """Correlation of two symmetric matrices off the diagonal, and its standard error (leaving out each task once)."""
    n = len(one)
    off = 1 - torch.eye(n, dtype=one.dtype, device=one.device)
    moments = torch.stack([off, one * off, other * off, one.square() * off, other.square() * off, one * other * off])
    total, of_task = moments.sum((1, 2), keepdim=True)[..., 0], 2 * moments.sum(2)
    count, x, y, xx, yy, xy = torch.cat([total, total - of_task], 1)
    correlation = (xy - x * y / count) / ((xx - x * x / count) * (yy - y * y / count)).clamp(min=0).sqrt()
    error = ((n - 1) * correlation[1:].var(correction=0)).sqrt() if n > 3 else torch.nan
    return float(correlation[0].nan_to_num(posinf=0, neginf=0)), float(error)


def _find_fewest(gain: Tensor) -> int:
    """The first row of ``[K, N]`` whose sum is within a standard error of the best; of the difference, task by task."""
    ahead = gain[gain.sum(1).argmax()] - gain
    within = ahead.sum(1) <= ahead.std(1) * gain.shape[1] ** 0.5
    return int(within.int().argmax())
