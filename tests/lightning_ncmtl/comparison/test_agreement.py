from itertools import combinations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import adjusted_rand_score

from lightning_ncmtl.comparison.agreement import assignment_stability, mean_agreement
from lightning_ncmtl.errors import InputError


@pytest.mark.parametrize(("seeds", "tasks", "clusters"), [(2, 14, 3), (5, 30, 8), (3, 200, 20), (4, 9, 9)])
def test_stability_against_scikit_learn(seeds: int, tasks: int, clusters: int) -> None:
    rng = np.random.default_rng(clusters)
    assignments = rng.integers(0, clusters, (seeds, tasks))
    assignments[1] = np.where(rng.random(tasks) < 0.7, assignments[0] + 50, assignments[1])
    found = assignment_stability(assignments.tolist(), permutations=100)
    assert found.ari == pytest.approx(np.mean([adjusted_rand_score(*pair) for pair in combinations(assignments, 2)]))
    null = []
    for _ in range(100):
        mixed = [rng.permutation(assignment) for assignment in assignments]
        null.append(np.mean([adjusted_rand_score(*pair) for pair in combinations(mixed, 2)]))
    error = 4 * np.std(null) / np.sqrt(100)
    assert found.null_mean == pytest.approx(np.mean(null), abs=2 * error)
    assert found.null_high == pytest.approx(np.quantile(null, 0.95), abs=2 * error)


def test_stability_p_value_by_counting() -> None:
    # 3 ways to split 4 tasks into two pairs; the other two have index -1/2
    found = assignment_stability([[0, 0, 1, 1], [5, 5, 2, 2]], permutations=5000)
    assert found.ari == 1
    assert found.p_value == pytest.approx(1 / 3, abs=0.03)
    assert found.null_mean == pytest.approx(0, abs=0.05)
    assert found.null_high == 1
    # 280 ways to split 9 tasks into triples
    found = assignment_stability([[0, 0, 0, 1, 1, 1, 2, 2, 2]] * 3, permutations=999)
    assert found.p_value == 0.001


@pytest.mark.parametrize(
    ("assignments", "ari"),
    [([[0] * 6] * 3, 1), ([[0, 1, 2, 3], [3, 1, 2, 0]], 1), ([[0, 0, 0], [0, 1, 2]], 0), ([[4], [2]], 1)],
)
def test_stability_of_clusterings_without_a_choice(assignments: list[list[int]], ari: float) -> None:
    assert assignment_stability(assignments, permutations=20) == (ari, ari, ari, 1)


def test_stability_of_random_clusterings() -> None:
    rng = np.random.default_rng(11)
    p_values = [assignment_stability(rng.integers(0, 4, (4, 20)).tolist(), permutations=99).p_value for _ in range(200)]
    assert 0.01 < np.mean(np.array(p_values) <= 0.05) < 0.1
    assert stats.kstest(p_values, "uniform").pvalue > 0.01


def test_stability_is_the_same_again() -> None:
    assignments = np.random.default_rng(12).integers(0, 3, (3, 10)).tolist()
    assert assignment_stability(assignments, seed=1) == assignment_stability(assignments, seed=1)
    assert assignment_stability(assignments, seed=1) != assignment_stability(assignments, seed=2)


def test_stability_of_nothing_to_compare() -> None:
    with pytest.raises(InputError, match="at least 2 seeds, not 1"):
        assignment_stability([[0, 1]])
    with pytest.raises(InputError, match="same tasks, not of 2, 3 tasks"):
        assignment_stability([[0, 1], [0, 1, 2]])
    with pytest.raises(InputError, match="not of 0 tasks"):
        assignment_stability([[], []])
    with pytest.raises(InputError, match="permutations must be at least 1, not 0"):
        assignment_stability([[0, 1], [0, 1]], permutations=0)


def test_mean_agreement_by_hand() -> None:
    # Mean square of the errors 0.01, variance of the trainings 0.02, half of which is 0.01: a variance of 0.02 in all,
    # with 0.02^2 / (0.01^2 / 10 + 0.01^2 / 1) = 3.64 degrees of freedom, of which 2.889 is the 97.5 % quantile
    reach = 2.889447 * 0.02**0.5
    found = mean_agreement([0.0, 0.2], [0.02**0.5, 0.0], num_tasks=11)
    assert found == pytest.approx((0.1, 0.1 - reach, 0.1 + reach), abs=1e-6)


def test_mean_agreement_of_one_training_has_its_error_alone() -> None:
    reach = 2.228139 * 0.1  # 10 degrees of freedom
    assert mean_agreement([0.5], [0.1], num_tasks=11) == pytest.approx((0.5, 0.5 - reach, 0.5 + reach), abs=1e-6)
    # Which tasks there are is not averaged out by trainings of the same ones
    assert mean_agreement([0.5] * 9, [0.1] * 9, num_tasks=11) == pytest.approx(
        (0.5, 0.5 - reach, 0.5 + reach), abs=1e-6
    )


def test_mean_agreement_without_errors_is_a_t_interval() -> None:
    values = np.random.default_rng(3).normal(0.2, 0.1, 6)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    found = mean_agreement(values.tolist(), [0.0] * 6, num_tasks=5)
    assert found == pytest.approx((values.mean(), expected.low, expected.high))


def test_mean_agreement_at_its_limits() -> None:
    assert mean_agreement([0.9], [0.2], num_tasks=5)[::2] == (0.9, 1)
    assert mean_agreement([-0.9, -0.9], [0.2, 0.2], num_tasks=5)[1] == -1
    assert mean_agreement([0.3, 0.3], [0.0, 0.0], num_tasks=5) == (0.3, 0.3, 0.3)
    assert mean_agreement([0.1, 0.3], [0.1, None], num_tasks=5) == pytest.approx((0.2, np.nan, np.nan), nan_ok=True)


@pytest.mark.parametrize(("agreements", "errors"), [([], []), ([0.5, 0.5], [0.1])])
def test_mean_agreement_needs_an_error_for_each_training(agreements: list[float], errors: list[float]) -> None:
    message = f"each training needs its error, found {len(agreements)} agreements and {len(errors)} errors"
    with pytest.raises(InputError, match=message):
        mean_agreement(agreements, errors, num_tasks=5)
