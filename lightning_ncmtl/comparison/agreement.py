"""Do trainings agree on their clusters, and halves of the data on how similar tasks are?"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from lightning_ncmtl.errors import InputError

_TINY = 1e-9  # smaller differences are rounding


class Stability(NamedTuple):
    """How far several clusterings of the same tasks agree, and how far they would by chance."""

    ari: float  # mean over the pairs of clusterings
    null_mean: float
    null_high: float  # 95 % of the chance values are below or equal
    p_value: float


def assignment_stability(
    assignments: Sequence[Sequence[int]], *, permutations: int = 1_000, seed: int = 0
) -> Stability:
    """Compare the clusterings of several seeds with one another, and with clusterings of tasks that were mixed up.

    The measure is the mean adjusted Rand index of all pairs (Hubert & Arabie, "Comparing Partitions", 1985). By chance,
    it has mean 0; its spread depends on the sizes of the clusters, which the permuted assignments keep. Clusterings
    without a choice (one cluster for all tasks, or one for each) agree, and no more than by chance: p = 1.

    Args:
        assignments: Cluster number of each task ``[N]``, by seed. The numbers may differ between seeds.
        permutations: How many times to permute the tasks, independently for each seed.
        seed: Of the permutations.

    Returns:
        The mean index, mean and 95 % quantile of the permuted ones, and the one-sided p-value, with 1 added to the
        counts.

    Raises:
        InputError: If there are fewer than two clusterings, or they are of different numbers of tasks.

    >>> assignment_stability([[0, 0, 1, 1, 2, 2], [4, 4, 0, 0, 3, 3]]).ari
    1.0
    """
    if len(assignments) < 2:
        raise InputError(f"stability needs the clusters of at least 2 seeds, not {len(assignments)}")
    counts = sorted({len(assignment) for assignment in assignments})
    if len(counts) > 1 or counts[0] < 1:
        raise InputError(f"all seeds must have clusters of the same tasks, not of {', '.join(map(str, counts))} tasks")
    if permutations < 1:
        raise InputError(f"permutations must be at least 1, not {permutations}")
    numbers = np.array(assignments)
    observed = _mean_ari(numbers)
    rng = np.random.default_rng(seed)
    null = np.array([_mean_ari(rng.permuted(numbers, axis=1)) for _ in range(permutations)])
    p_value = (1 + (null >= observed - _TINY).sum()) / (1 + permutations)
    return Stability(observed, float(null.mean()), float(np.quantile(null, 0.95)), float(p_value))


class Agreement(NamedTuple):
    """Mean over trainings, and its 95 % interval: NaN where an error is not known."""

    mean: float
    low: float
    high: float


def mean_agreement(agreements: Sequence[float], errors: Sequence[float | None], num_tasks: int) -> Agreement:
    """Average the agreement of two halves of the data over trainings of the same tasks.

    Two things might have come out otherwise. One is which tasks there are: the jackknife says how much that makes of
    one training, and as all trainings have the same tasks, more of them do not make it less. So its variance is the
    mean of the squared errors. The other is the seed, whose variance is that of the trainings, divided by their number;
    of one training it is left out. The sum is on the safe side, as the jackknife sees some of the noise of a seed, too.
    The interval is Student's, with the degrees of freedom of Satterthwaite ("An Approximate Distribution of Estimates
    of Variance Components", Biometrics Bulletin 2, 1946).

    Args:
        agreements: Of each training, see :class:`lightning_ncmtl.clustering.evidence.Evidence`.
        errors: Their standard errors over tasks; None where there are too few.
        num_tasks: Number of tasks.

    Raises:
        InputError: If there is no training, or not an error for each.

    >>> [round(value, 2) for value in mean_agreement([0.5], [0.1], num_tasks=11)]  # 2.23 errors to each side
    [0.5, 0.28, 0.72]
    """
    if not 0 < len(agreements) == len(errors):
        raise InputError(f"each training needs its error, found {len(agreements)} agreements and {len(errors)} errors")
    values, count = np.asarray(agreements, dtype=float), len(agreements)
    mean = float(values.mean())
    variances = np.array([np.square(np.asarray(errors, dtype=float)).mean(), 0.0])
    if count > 1:
        variances[1] = values.var(ddof=1) / count
    variance = float(variances.sum())
    if variance == 0:
        return Agreement(mean, mean, mean)
    freedom = variance**2 / (np.square(variances) / (num_tasks - 1, max(1, count - 1))).sum()
    reach = stats.t.ppf(0.975, freedom) * np.sqrt(variance)
    low, high = np.clip([mean - reach, mean + reach], -1, 1)
    return Agreement(mean, float(low), float(high))


def _mean_ari(assignments: NDArray[Any]) -> float:
    """Mean adjusted Rand index over the pairs of clusterings ``[S, N]``, from pairs of tasks in the same cluster."""
    seeds, tasks = assignments.shape
    together = (assignments[:, :, None] == assignments[:, None, :]).reshape(seeds, -1).astype(np.float32)
    both = (together @ together.T).astype(np.float64) - tasks  # [S, S] ordered pairs, without each task and itself
    one, other = np.triu_indices(seeds, 1)
    sizes = both.diagonal()
    expected = sizes[one] * sizes[other] / max(1, tasks * (tasks - 1))
    highest = (sizes[one] + sizes[other]) / 2
    same = both[one, other] == highest  # two trivial clusterings would be 0 / 0
    index = (both[one, other] - expected) / np.where(same, 1, highest - expected)
    return float(np.where(same, 1, index).mean())
