from itertools import combinations, product
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from scipy import stats

from lightning_ncmtl.comparison import statistics
from lightning_ncmtl.comparison.measure import Measure
from lightning_ncmtl.comparison.statistics import compare_pairs, holm
from lightning_ncmtl.errors import InputError

Outcomes = dict[tuple[str, int, int | None], dict[str, NDArray[Any]]]
COLUMNS = ["system", "seed", "fold", "accuracy"]


def table(outcomes: Outcomes) -> pd.DataFrame:
    """The cells that belong to the outcomes."""
    rows = []
    for cell, outcome in outcomes.items():
        domains = [outcome["correct"][outcome["domain"] == domain].mean() for domain in np.unique(outcome["domain"])]
        rows.append((*cell, np.mean(domains)))
    return pd.DataFrame(rows, columns=COLUMNS)


def outcome(correct: list[int] | NDArray[Any], domain: list[int], first: int = 0, **more: Any) -> dict[str, Any]:
    documents = first + np.arange(len(domain))
    return {"domain": np.array(domain), "document": documents, "correct": np.array(correct, dtype=bool), **more}


def simulate(
    rng: np.random.Generator, systems: int = 2, seeds: int = 3, folds: int = 1, domain: tuple[int, ...] = (0,) * 20
) -> Outcomes:
    """Right 7 times in 10; some documents are harder for all systems, and nothing else makes a difference."""
    found: Outcomes = {}
    for fold in range(folds):
        chance = rng.choice([0.4, 1.0], len(domain))
        for system, seed in product(range(systems), range(seeds)):
            correct = rng.random(len(domain)) < chance
            found[f"s{system}", seed, fold] = outcome(correct, list(domain), fold * len(domain))
    return found


def from_accuracies(accuracies: dict[str, list[float]], folds: int) -> tuple[pd.DataFrame, Outcomes]:
    """Cells with these accuracies, seed by seed, with outcomes that do not matter."""
    found: Outcomes = {}
    rows = []
    for system, values in accuracies.items():
        for number, accuracy in enumerate(values):
            cell = (system, number // folds, number % folds)
            rows.append((*cell, accuracy))
            found[cell] = outcome([number % 2, 1], [0, 0], 2 * cell[2])
    return pd.DataFrame(rows, columns=COLUMNS), found


def every_resample(units: list[list[tuple[float, float]]]) -> NDArray[np.float64]:
    """All equally likely macro differences, from (sum of differences, size) of the units of each domain."""
    draws = product(*(product(domain, repeat=len(domain)) for domain in units))
    return np.array([np.mean([sum(s for s, _ in part) / sum(n for _, n in part) for part in draw]) for draw in draws])


def test_t_test_of_one_fold_is_the_paired_t_test() -> None:
    rng = np.random.default_rng(0)
    accuracies = {name: (0.8 + 0.01 * rng.normal(size=5)).tolist() for name in "abc"}
    cells, outcomes = from_accuracies(accuracies, folds=1)
    pairs = compare_pairs(cells, outcomes, resamples=10)
    assert list(zip(pairs["first"], pairs["second"], strict=True)) == list(combinations("abc", 2))
    for row in pairs.itertuples():
        assert (row.cells, row.folds) == (5, 1)
        one, other = accuracies[row.first], accuracies[row.second]
        assert row.difference == pytest.approx(100 * (np.mean(one) - np.mean(other)))
        assert row.p_t == pytest.approx(stats.ttest_rel(one, other).pvalue)
    np.testing.assert_array_equal(pairs["p_t_holm"], holm(pairs["p_t"]))
    np.testing.assert_array_equal(pairs["p_bootstrap_holm"], holm(pairs["p_bootstrap"]))


def test_t_test_of_several_folds_is_corrected() -> None:
    # Differences 1, 2, 2, 3: variance 2/3. With 2 folds n_test/n_train is 1, with a test fraction of 1/5 it is 1/4.
    cells, outcomes = from_accuracies({"a": [0.51, 0.62, 0.72, 0.83], "b": [0.5, 0.6, 0.7, 0.8]}, folds=2)
    for fraction, ratio in ((None, 1.0), (0.2, 0.25)):
        t = 2 / np.sqrt(2 / 3 * (1 / 4 + ratio))
        found = compare_pairs(cells, outcomes, test_fraction=fraction, resamples=10)["p_t"][0]
        assert found == pytest.approx(2 * stats.t.sf(t, 3))


@pytest.mark.parametrize(("higher", "wins"), [(True, 3), (False, 1)])
def test_other_metrics_have_the_interval_of_the_t_test(higher: bool, wins: int) -> None:
    """Of no documents; against SciPy, and corrected where training sets overlap."""
    values = {"a": [0.71, 0.78, 0.69, 0.81], "b": [0.70, 0.74, 0.71, 0.75]}
    measure = Measure("AUROC", higher)
    for folds in (1, 4):
        cells, _ = from_accuracies(values, folds)
        cells = cells.rename(columns={"accuracy": "AUROC"})
        pair = compare_pairs(cells, measure=measure, test_fraction=0.5).iloc[0]
        exact = stats.ttest_rel(values["a"], values["b"])
        low, high = exact.confidence_interval()
        wider = 1 if folds == 1 else np.sqrt(1 + 4)  # (1/4 + 1) / (1/4)
        middle, reach = (low + high) / 2, (high - low) / 2 * wider
        assert (pair["difference"], pair["wins"]) == (pytest.approx(middle), wins)
        assert (pair["low"], pair["high"]) == (pytest.approx(middle - reach), pytest.approx(middle + reach))
        assert pair["p_t"] == pytest.approx(2 * stats.t.sf(exact.statistic / wider, 3))
        assert np.isnan([pair["p_bootstrap"], pair["p_bootstrap_holm"]]).all()


def by_domain(systems: dict[str, list[list[float]]], name: str = "AUROC") -> pd.DataFrame:
    """Cells of one fold, one for each list of the values of domains."""
    rows = []
    for system, cells in systems.items():
        for seed, values in enumerate(cells):
            domains = {f"{name}/{number}": value for number, value in enumerate(values)}
            rows.append({"system": system, "seed": seed, "fold": None, name: np.nanmean(values), **domains})
    return pd.DataFrame(rows)


@pytest.mark.parametrize("higher", [True, False])
def test_domains_by_the_signed_rank_test(higher: bool) -> None:
    """Against SciPy, and by counting: of 2^6 equally likely signs, all are the same in two."""
    rng = np.random.default_rng(0)
    values = 0.7 + 0.1 * rng.normal(size=(3, 2, 6))
    values[2] = values[0] - rng.random((2, 6))
    pairs = compare_pairs(by_domain(dict(zip("abc", values.tolist(), strict=True))), measure=Measure("AUROC", higher))
    for pair in pairs.itertuples():
        one, other = (values["abc".index(system)].mean(axis=0) for system in (pair.first, pair.second))
        assert pair.p_domains == pytest.approx(stats.wilcoxon(one, other).pvalue)
        assert pair.domains == 6
        assert pair.domain_wins == ((one > other) if higher else (one < other)).sum()
    assert pairs["p_domains"][1] == pytest.approx(2 / 2**6)  # a and c


def test_domains_with_equal_differences_have_equal_ranks() -> None:
    """Against SciPy on whole numbers: means of accuracies would differ by rounding."""
    right = np.random.default_rng(0).integers(12, 20, (2, 20, 5, 14))  # of 20 documents
    for one, other in right.transpose(1, 0, 2, 3):
        one[0] += (one - other).sum(0) == 0  # older versions of SciPy warn of zeros
        systems = {"a": (one / 20).tolist(), "b": (other / 20).tolist()}
        found = compare_pairs(by_domain(systems, "accuracy"))["p_domains"][0]
        assert found == pytest.approx(stats.wilcoxon((one - other).sum(0)).pvalue)


@pytest.mark.parametrize("unit", [1e-12, 1e12])
def test_the_unit_of_a_measure_does_not_matter(unit: float) -> None:
    values = 0.7 + 0.1 * np.random.default_rng(0).normal(size=(3, 2, 6))
    values[2] = values[1]
    values[2, :, 0] += 1e-15  # rounding
    measure = Measure("rmse", higher_is_better=False)
    plain, pairs = (
        compare_pairs(by_domain(dict(zip("abc", (by * values).tolist(), strict=True)), "rmse"), measure=measure)
        for by in (1, unit)
    )
    numbers = ["difference", "low", "high"]
    pd.testing.assert_frame_equal(pairs.drop(columns=numbers), plain.drop(columns=numbers))
    np.testing.assert_allclose(pairs[numbers], unit * plain[numbers], atol=1e-14 * unit)
    assert plain.loc[2, ["wins", "p_t", "domain_wins", "p_domains"]].tolist() == [0, 1, 0, 1]


def test_domains_without_a_value_are_left_out() -> None:
    gap = np.nan
    systems = {"a": [[0.9, 0.8, gap, 0.7], [0.9, gap, gap, 0.7]], "b": [[0.5, 0.5, 0.5, 0.7], [0.5, 0.5, 0.5, gap]]}
    pair = compare_pairs(by_domain(systems), measure=Measure("AUROC")).iloc[0]
    assert (pair["domains"], pair["domain_wins"]) == (3, 2)
    same = compare_pairs(by_domain({"a": [[0.5, 0.6]], "b": [[0.5, 0.6]]}), measure=Measure("AUROC")).iloc[0]
    assert (same["domains"], same["domain_wins"], same["p_domains"]) == (2, 0, 1)
    cells, _ = from_accuracies({"a": [0.5, 0.6], "b": [0.4, 0.7]}, folds=1)
    assert compare_pairs(cells)[["domains", "domain_wins", "p_domains"]].isna().all(axis=None)


def test_domains_keep_the_level() -> None:
    rng = np.random.default_rng(1)
    measure = Measure("AUROC")
    p_values = [
        compare_pairs(by_domain({"a": rng.normal(size=(3, 14)), "b": rng.normal(size=(3, 14))}), measure=measure)
        for _ in range(200)
    ]
    assert 0.02 < np.mean([pairs["p_domains"][0] < 0.05 for pairs in p_values]) < 0.08


def test_pairs_with_the_baseline_are_adjusted_by_themselves() -> None:
    rng = np.random.default_rng(2)
    cells = by_domain({name: (0.7 + 0.1 * rng.normal(size=(4, 9))).tolist() for name in "abcd"})
    pairs = compare_pairs(cells, measure=Measure("AUROC"), baseline="b")
    family = pairs["first"].eq("b") | pairs["second"].eq("b")
    assert family.tolist() == [True, False, False, True, True, False]
    for test in ("p_t", "p_domains"):
        for part in (family, ~family):
            np.testing.assert_array_equal(pairs.loc[part, f"{test}_holm"], holm(pairs.loc[part, test]))
        assert (pairs[f"{test}_holm"] >= pairs[test]).all()


def test_bootstrap_against_all_resamples() -> None:
    outcomes: Outcomes = {
        ("a", 0, 0): outcome([1, 1, 0, 1, 1, 1], [0, 0, 0, 1, 1, 1]),
        ("a", 1, 0): outcome([1, 0, 0, 1, 1, 0], [0, 0, 0, 1, 1, 1]),
        ("b", 0, 0): outcome([0, 1, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1]),
        ("b", 1, 0): outcome([0, 0, 1, 1, 1, 0], [0, 0, 0, 1, 1, 1]),
    }
    # a - b, mean over seeds: 1, 0, -1/2 and 1/2, 0, 0
    exact = every_resample([[(1, 1), (0, 1), (-0.5, 1)], [(0.5, 1), (0, 1), (0, 1)]])
    pair = compare_pairs(table(outcomes), outcomes, resamples=40_000).iloc[0]
    assert pair["difference"] == pytest.approx(100 / 6)
    assert pair["p_bootstrap"] == pytest.approx(2 * (exact <= 1e-9).mean(), abs=0.01)
    np.testing.assert_allclose([pair["low"], pair["high"]], 100 * np.quantile(exact, [0.025, 0.975]))


def test_bootstrap_draws_groups_as_a_whole() -> None:
    group = np.array([7, 7, 8, 9, 7, 5])  # 7 is in two domains: two groups
    outcomes: Outcomes = {
        ("a", 0, 0): outcome([1, 1, 0, 1, 1, 0], [0, 0, 0, 0, 1, 1], group=group),
        ("b", 0, 0): outcome([0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1], group=group),
    }
    exact = every_resample([[(2, 2), (-1, 1), (0, 1)], [(0, 1), (-1, 1)]])
    pair = compare_pairs(table(outcomes), outcomes, resamples=40_000).iloc[0]
    assert pair["p_bootstrap"] == pytest.approx(2 * (exact >= -1e-9).mean(), abs=0.01)
    np.testing.assert_allclose([pair["low"], pair["high"]], 100 * np.quantile(exact, [0.025, 0.975]))


def test_copies_in_groups_add_nothing() -> None:
    single = simulate(np.random.default_rng(1))
    numbers = np.arange(20)
    copied: Outcomes = {
        cell: outcome(np.repeat(found["correct"], 4), [0] * 80, group=np.repeat(numbers, 4))
        for cell, found in single.items()
    }
    apart: Outcomes = {
        cell: {key: value for key, value in found.items() if key != "group"} for cell, found in copied.items()
    }
    expected, grouped, naive = (compare_pairs(table(found), found).iloc[0] for found in (single, copied, apart))
    columns = ["low", "high", "p_bootstrap"]
    np.testing.assert_allclose(grouped[columns].astype(float), expected[columns].astype(float))
    assert naive["high"] - naive["low"] == pytest.approx((expected["high"] - expected["low"]) / 2, rel=0.1)


def test_bootstrap_interval_against_the_central_limit() -> None:
    domain = (0,) * 300 + (1,) * 100
    outcomes = simulate(np.random.default_rng(2), domain=domain)
    means = {s: np.mean([outcomes[s, seed, 0]["correct"] for seed in range(3)], axis=0) for s in ("s0", "s1")}
    parts = np.split(means["s0"] - means["s1"], [300])
    error = np.sqrt(sum(part.var() / len(part) for part in parts)) / 2
    pair = compare_pairs(table(outcomes), outcomes).iloc[0]
    assert pair["high"] - pair["low"] == pytest.approx(100 * 2 * 1.96 * error, rel=0.03)
    assert (pair["high"] + pair["low"]) / 2 == pytest.approx(pair["difference"], abs=0.1)


def test_bootstrap_is_of_the_mean_over_cells() -> None:
    """With folds of different sizes, a document of both, and cells that are missing; groups leave nothing to chance."""
    rng = np.random.default_rng(3)
    domains = {0: [0, 0, 1, 1, 1], 1: [1, 0, 0, 0, 0, 0, 1], None: [1, 0]}
    first = {0: 0, 1: 4, None: 20}  # document 4 is in two folds
    outcomes: Outcomes = {}
    for system, seed, fold in product("ab", range(3), domains):
        if (system, seed, fold) not in {("a", 2, 1), ("b", 0, 0)}:
            domain = domains[fold]
            outcomes[system, seed, fold] = outcome(
                rng.random(len(domain)) < 0.7, domain, first[fold], group=np.array(domain)
            )
    pair = compare_pairs(table(outcomes), outcomes, resamples=3).iloc[0]
    assert (pair["cells"], pair["folds"]) == (7, 3)
    assert pair["low"] == pytest.approx(pair["difference"])
    assert pair["high"] == pytest.approx(pair["difference"])


def test_a_document_of_two_folds_is_drawn_once() -> None:
    once = simulate(np.random.default_rng(4))
    twice: Outcomes = {(system, seed, fold): once[system, seed, 0] for system, seed, _ in once for fold in (0, 1)}
    columns = ["difference", "low", "high", "p_bootstrap"]
    pairs = [compare_pairs(table(found), found).loc[0, columns].astype(float) for found in (once, twice)]
    np.testing.assert_allclose(pairs[0], pairs[1])


def test_tables_of_outcomes_and_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = simulate(np.random.default_rng(5), systems=3, domain=(0,) * 9 + (4,) * 5)
    expected = compare_pairs(table(outcomes), outcomes)
    frames = {cell: pd.DataFrame(found) for cell, found in outcomes.items()}
    monkeypatch.setattr(statistics, "_CHUNK", 90)
    pd.testing.assert_frame_equal(compare_pairs(table(outcomes), frames), expected)


def test_pairs_do_not_depend_on_other_systems_or_their_order() -> None:
    outcomes = simulate(np.random.default_rng(6), systems=3, seeds=4)
    del outcomes["s2", 0, 0]
    cells = table(outcomes)
    all_pairs = compare_pairs(cells, outcomes)
    assert all_pairs["cells"].tolist() == [4, 3, 3]
    plain = [column for column in all_pairs if not column.endswith("_holm")]
    two = compare_pairs(cells[cells["system"] != "s1"], outcomes)
    pd.testing.assert_frame_equal(two[plain], all_pairs.loc[[1], plain].reset_index(drop=True))
    turned = compare_pairs(cells[::-1], outcomes).iloc[::-1].reset_index(drop=True)
    assert turned["first"].tolist() == all_pairs["second"].tolist()
    for column, other, sign in (("difference",) * 2 + (-1,), ("low", "high", -1), ("p_t", "p_t", 1)):
        np.testing.assert_allclose(turned[column], sign * all_pairs[other])
    np.testing.assert_allclose(turned["p_bootstrap"], all_pairs["p_bootstrap"])


def test_no_more_false_positives_than_promised() -> None:
    rng = np.random.default_rng(7)
    p_values = []
    for _ in range(200):
        outcomes = simulate(rng, seeds=4, domain=(0,) * 200 + (1,) * 100)
        p_values.append(compare_pairs(table(outcomes), outcomes, resamples=200).loc[0, ["p_t", "p_bootstrap"]])
    t_test, bootstrap = np.array(p_values, dtype=float).T
    # 5 % of 200 is 10, and in 95 % of the cases it is 4 to 16
    assert 0.02 < (t_test < 0.05).mean() < 0.08
    assert 0.02 < (bootstrap < 0.05).mean() < 0.08
    assert 0.4 < np.median(t_test) < 0.6
    assert 0.4 < np.median(bootstrap) < 0.6


def test_correction_for_folds_holds_the_level_where_the_plain_test_does_not() -> None:
    rng = np.random.default_rng(8)
    plain, corrected = [], []
    for _ in range(100):
        # 4 seeds of 5 folds; what is special about a fold counts for all seeds
        differences = (rng.normal(size=5) + rng.normal(size=(4, 5))).ravel() / 100
        cells, outcomes = from_accuracies({"a": (0.5 + differences).tolist(), "b": [0.5] * 20}, folds=5)
        plain.append(stats.ttest_1samp(differences, 0).pvalue)
        corrected.append(compare_pairs(cells, outcomes, resamples=1)["p_t"][0])
    assert np.mean(np.array(plain) < 0.05) > 0.15
    assert np.mean(np.array(corrected) < 0.05) < 0.08


def test_differences_without_variance() -> None:
    cells, outcomes = from_accuracies({"a": [0.8, 0.7, 0.9], "b": [0.8, 0.7, 0.9], "c": [0.7, 0.6, 0.8]}, folds=1)
    pairs = compare_pairs(cells, outcomes)
    assert pairs["p_t"][0] == 1
    assert pairs["p_t"][1:].isna().all()  # always 10 points: no variance to tell from chance
    assert pairs["p_t_holm"][0] == 1  # of one test
    assert (pairs["p_bootstrap"] == 1).all()  # of outcomes that are all the same
    assert (pairs[["low", "high"]] == 0).all(axis=None)


def test_systems_with_one_cell_or_none_in_common() -> None:
    cells, outcomes = from_accuracies({"a": [0.8, 0.7], "b": [0.75], "c": [0.6, 0.9]}, folds=1)
    gone = (cells["system"] == "c") & (cells["seed"] == 0)
    pairs = compare_pairs(cells[~gone], outcomes)
    assert pairs["cells"].tolist() == [1, 1, 0]
    assert pairs["p_t"].isna().all()
    alike = compare_pairs(cells[cells["seed"] == 0].assign(accuracy=0.8))
    assert alike[["p_t", "low", "high"]].isna().all(axis=None)  # nor do equal values of one cell say how much they vary
    assert pairs["p_bootstrap"].notna().tolist() == [True, True, False]
    assert pairs.loc[2, ["difference", "low", "high"]].isna().all()


@pytest.mark.parametrize("systems", [0, 1])
def test_without_pairs_the_table_is_empty(systems: int) -> None:
    outcomes = simulate(np.random.default_rng(9))
    cells = table(outcomes)
    columns = list(compare_pairs(cells, outcomes, resamples=1))
    pairs = compare_pairs(cells[cells["system"].isin([f"s{number}" for number in range(systems)])], outcomes)
    assert len(pairs) == 0
    assert list(pairs) == columns
    tests = ["p_t", "p_domains", "p_bootstrap"]
    assert columns[-6:] == [name for test in tests for name in (test, f"{test}_holm")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"domain": np.array([0, 1, 0])}, "system 'b', seed 0, fold 0 and system 'a', seed 0, fold 0 have different"),
        ({"document": np.array([0, 2, 1])}, "or in a different order"),
        ({"group": np.array([3, 3, 4])}, "different documents"),
        ({"document": np.array([0, 1, 1])}, "two documents with the same number"),
        ({"correct": np.array([1, 0, 2])}, "'correct' of system 'b', seed 0, fold 0 is int64 [3]; it must be bool [n]"),
        ({"domain": np.array([0.5, 0, 1])}, "'domain' of system 'b', seed 0, fold 0 is float64 [3]; it must be int"),
        ({"correct": np.array([[True, False, True]])}, "is bool [1, 3]"),
        ({"correct": np.array([True])}, "are of 1, 3 documents"),
        ({"correct": None}, "have no 'correct'"),
    ],
)
def test_outcomes_that_do_not_fit(change: dict[str, Any], message: str) -> None:
    good = {"a": outcome([1, 0, 1], [0, 0, 1]), "b": outcome([1, 0, 0], [0, 0, 1])}
    cells = table({(system, 0, 0): found for system, found in good.items()})
    good["b"] = {key: value for key, value in (good["b"] | change).items() if value is not None}
    with pytest.raises(InputError) as error:
        compare_pairs(cells, {(system, 0, 0): found for system, found in good.items()})
    assert message in str(error.value)


def test_cells_that_cannot_be_used() -> None:
    outcomes: Outcomes = {("a", 0, None): outcome([1, 0], [0, 0]), ("b", 0, None): outcome([1, 1], [0, 0])}
    cells = table(outcomes)
    assert compare_pairs(cells, outcomes, resamples=1)["cells"].tolist() == [1]
    with pytest.raises(InputError, match="no column 'fold'; it needs system, seed, fold, accuracy"):
        compare_pairs(cells.drop(columns="fold"), outcomes)
    with pytest.raises(InputError, match="system 'a', seed 0 is in the table twice"):
        compare_pairs(pd.concat([cells, cells]), outcomes)
    with pytest.raises(InputError, match="system 'b', seed 0 has accuracy nan"):
        compare_pairs(cells.assign(accuracy=[0.5, np.nan]), outcomes)
    with pytest.raises(InputError, match="system 'b', seed 0 has an accuracy, but no outcomes"):
        compare_pairs(cells, {("a", 0, None): outcomes["a", 0, None]})
    with pytest.raises(InputError, match="test_fraction 1.0 is not between 0 and 1"):
        compare_pairs(cells, outcomes, test_fraction=1.0)
    with pytest.raises(InputError, match="resamples must be at least 1, not 0"):
        compare_pairs(cells, outcomes, resamples=0)


def test_one_number_for_two_documents() -> None:
    outcomes: Outcomes = {("a", 0, 0): outcome([1, 0], [0, 0]), ("a", 0, 1): outcome([1, 0], [1, 1], 1)}
    with pytest.raises(InputError, match="document 1 is of several domains or groups"):
        compare_pairs(table(outcomes), outcomes)


def test_holm_by_its_definition() -> None:
    rng = np.random.default_rng(10)
    p_values = rng.random(9) ** 3
    for level in np.linspace(0.01, 0.99, 33):
        rejected = set()
        for rank, number in enumerate(p_values.argsort()):  # step down until one is too large
            if p_values[number] > level / (9 - rank):
                break
            rejected.add(number)
        assert set(np.flatnonzero(holm(p_values) <= level)) == rejected
    assert holm([]).shape == (0,)
    assert np.isnan(holm([np.nan, np.nan])).all()
