"""Is one system better than another? Tests for this."""

from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from lightning_ncmtl.comparison.measure import ACCURACY, Measure
from lightning_ncmtl.errors import InputError

CellKey = tuple[str, int, int | None]  # system, seed, fold
_CHUNK = 2**22  # numbers drawn at a time: 32 MiB
_TINY = 1e-9  # smaller differences between means, as shares of the means, are rounding


def compare_pairs(
    cells: pd.DataFrame,
    outcomes: Mapping[CellKey, Mapping[str, ArrayLike] | pd.DataFrame] | None = None,
    *,
    measure: Measure = ACCURACY,
    baseline: str | None = None,
    test_fraction: float | None = None,
    resamples: int = 10_000,
    seed: int = 0,
) -> pd.DataFrame:
    """Test each pair of systems: is the difference larger than chance of seeds, folds or documents makes it?

    - The *t-test* is about other seeds and folds: two-sided and paired, over the cells (seed, fold) of both systems.
      With one fold, the documents are taken as given. With several, training sets overlap: the variance of the mean
      over n cells counts ``1/n + n_test/n_train`` instead of ``1/n`` times, the corrected resampled t-test (Nadeau &
      Bengio, "Inference for the Generalization Error", Machine Learning 52, 2003). There is no p-value where nothing
      can be said about variance: fewer than two cells, or differences that are all equal, but not zero. Where folds
      are random splits of the same documents, the same holds; where more of them test than train, the correction is
      far on the safe side.
    - The *Wilcoxon test* is about other domains: the signed-rank test over the differences of the domains, each the
      mean over the cells (Demsar, "Statistical Comparisons of Classifiers over Multiple Data Sets", JMLR 7, 2006). The
      trainings are taken as given, and domains that share weights in them are not quite independent.
    - The *bootstrap* is about other test documents: paired, with the documents drawn again within each domain, all
      their cells together. Seeds and training sets are taken as given. Percentile interval (95 %) and the p-value that
      goes with it (Efron & Tibshirani, "An Introduction to the Bootstrap", 1993), with 1 added to the counts, so that
      it is never 0. It is for accuracies alone: other metrics are no means over documents, and have the interval of
      the t-test (95 %) instead.

    All are also adjusted for the number of pairs, see :func:`holm`: those with the baseline among themselves, and the
    others among themselves. Without this adjustment, what is found for a pair does not depend on the other systems.

    Args:
        cells: ``system``, ``seed``, ``fold`` (None where there are none) and the measure, such as ``accuracy``: from 0
            to 1, the mean over domains. Where there are columns such as ``accuracy/books``, those of the domains.
        outcomes: Of accuracies, for each of the cells, ``domain [n]`` (int), ``document [n]`` (int, the same for the
            same document, in whatever fold), ``correct [n]`` (bool) and optionally ``group [n]`` (int): copies of a
            text are not independent, so the documents of a group are drawn together (within a domain). The documents of
            a fold are the same for all systems and seeds, in the same order.
        measure: What is compared.
        baseline: The system that the comparison is about, which was chosen beforehand. By default the adjustment is for
            all pairs.
        test_fraction: Test documents per document used for training or test, in a cell. By default 1 / number of folds,
            as in a complete cross-validation. Has no effect on pairs that share only one fold.
        resamples: How many times to draw the documents.
        seed: Of these draws.

    Returns:
        One row per pair: ``first`` and ``second`` system; ``cells`` and ``folds``, how many they share; ``difference``
        first - second of their means there, of accuracies in points; its interval ``low`` and ``high``; ``wins``, in
        how many cells the first is better; ``domains``, how many have values in both, and ``domain_wins``; and the
        p-values ``p_t``, ``p_domains`` and ``p_bootstrap``, each also with ``_holm``. NaN for systems that share no
        cells, and for domains where there are no values of them.

    Raises:
        InputError: If a cell comes twice or lacks its value or outcomes, or documents do not match.
    """
    if test_fraction is not None and not 0 < test_fraction < 1:
        raise InputError(f"test_fraction {test_fraction} is not between 0 and 1")
    if resamples < 1:
        raise InputError(f"resamples must be at least 1, not {resamples}")
    values = _values(cells, measure.name)
    names = [name for name in cells if name.startswith(f"{measure.name}/")]
    by_domain = dict(zip(values, cells[names].to_numpy(dtype=float), strict=True))
    documents, correct = ({}, {}) if outcomes is None else _outcomes(values, outcomes)
    fraction = test_fraction or 1 / max(2, len({fold for _, _, fold in values}))
    rows: list[dict[str, Any]] = []
    sums: dict[frozenset[int | None], dict[int, pd.DataFrame]] = {}  # by the folds and the number of the pair
    for first, second in combinations(dict.fromkeys(system for system, _, _ in values), 2):
        shared = [(s, f) for system, s, f in values if system == first and (second, s, f) in values]
        differences = np.array([values[first, s, f] - values[second, s, f] for s, f in shared])
        folds = frozenset(fold for _, fold in shared)
        row = {"first": first, "second": second, "cells": len(shared), "folds": len(folds)}
        if shared:
            mean = differences.mean()
            row["difference"] = measure.scale * mean
            tiny = _TINY * max(abs(values[system, s, f]) for system in (first, second) for s, f in shared) or _TINY
            row["wins"] = _count_wins(differences, measure, tiny)
            domains = np.array([by_domain[first, s, f] - by_domain[second, s, f] for s, f in shared])
            row |= _test_domains(domains, measure, tiny)
            row["p_t"], reach = _t_test(differences, fraction / (1 - fraction) if len(folds) > 1 else 0.0, tiny)
            if outcomes is None:
                row |= {"low": measure.scale * (mean - reach), "high": measure.scale * (mean + reach)}
        if shared and outcomes is not None:
            parts = [
                documents[fold].assign(difference=correct[first, s, fold] - correct[second, s, fold])
                for s, fold in shared
            ]
            table = pd.concat(parts)
            # With these weights, the ratio of both sums is for each domain the mean difference of accuracies over the
            # cells, even if folds have different sizes or numbers of seeds.
            table["difference"] *= table["weight"]
            sums.setdefault(folds, {})[len(rows)] = table.groupby(["domain", "group"])[["difference", "weight"]].sum()
        rows.append(row)
    for found in sums.values():  # pairs with the same documents share their draws
        draws = _resample(pd.concat(found, axis=1), resamples, seed)
        tails = (draws <= _TINY).sum(axis=0), (draws >= -_TINY).sum(axis=0)
        p_values = np.minimum(1, 2 * (1 + np.minimum(*tails)) / (1 + resamples))
        intervals = measure.scale * np.quantile(draws, [0.025, 0.975], axis=0).T
        for number, (low, high), p_value in zip(found, intervals, p_values, strict=True):
            rows[number] |= {"low": low, "high": high, "p_bootstrap": p_value}
    columns = ["first", "second", "cells", "folds", "difference", "low", "high", "wins", "domains", "domain_wins"]
    tests = ["p_t", "p_domains", "p_bootstrap"]
    pairs = pd.DataFrame(rows, columns=[*columns, *(name for test in tests for name in (test, f"{test}_holm"))])
    with_baseline = (pairs["first"] == baseline) | (pairs["second"] == baseline)
    for family in (with_baseline, ~with_baseline):
        for test in tests:
            pairs.loc[family, f"{test}_holm"] = holm(pairs.loc[family, test])
    return pairs


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Adjust p-values for their number (Holm, "A Simple Sequentially Rejective Multiple Test Procedure", 1979).

    Args:
        p_values: ``[m]``; NaN are no tests and stay NaN.

    Returns:
        ``[m]``, to be compared with the level wanted for all tests together.

    >>> holm([0.01, 0.04, float("nan"), 0.03])
    array([0.03, 0.06,  nan, 0.06])
    """
    adjusted = np.array(p_values, dtype=np.float64)
    order = adjusted.argsort()[: int(np.isfinite(adjusted).sum())]  # NaN are last
    steps = np.arange(len(order), 0, -1) * adjusted[order]
    adjusted[order] = np.minimum(1, np.maximum.accumulate(steps))
    return adjusted


def _values(cells: pd.DataFrame, name: str) -> dict[CellKey, float]:
    columns = ["system", "seed", "fold", name]
    if missing := [column for column in columns if column not in cells]:
        raise InputError(f"the table of cells has no column {missing[0]!r}; it needs {', '.join(columns)}")
    found: dict[CellKey, float] = {}
    for system, seed, number, value in cells[columns].itertuples(index=False, name=None):
        fold = None if pd.isna(number) else number
        if (system, seed, fold) in found:
            raise InputError(f"{_name((system, seed, fold))} is in the table twice")
        if not np.isfinite(value):
            raise InputError(f"{_name((system, seed, fold))} has {name} {value}; leave out what was not measured")
        found[system, seed, fold] = value
    return found


def _outcomes(
    cells: Iterable[CellKey], outcomes: Mapping[CellKey, Mapping[str, ArrayLike] | pd.DataFrame]
) -> tuple[dict[int | None, pd.DataFrame], dict[CellKey, NDArray[Any]]]:
    """By fold its documents and their ``weight``, 1 / documents of the domain, and by cell the outcomes ``[n]``."""
    tables: dict[int | None, pd.DataFrame] = {}
    first: dict[int | None, CellKey] = {}  # the cell that they are from
    correct: dict[CellKey, NDArray[Any]] = {}
    for cell in cells:
        if cell not in outcomes:
            raise InputError(f"{_name(cell)} has an accuracy, but no outcomes of its documents")
        table = _table(cell, outcomes[cell])
        correct[cell] = np.asarray(table.pop("correct"), dtype=np.int8)
        known, other = tables.setdefault(cell[2], table), first.setdefault(cell[2], cell)
        if not np.array_equal(known, table):
            raise InputError(f"{_name(cell)} and {_name(other)} have different documents, or in a different order")
    if tables:
        kinds = pd.concat(tables.values()).drop_duplicates()
        if (twice := kinds["document"].duplicated()).any():
            number = kinds.loc[twice, "document"].iloc[0]
            raise InputError(f"document {number} is of several domains or groups; each needs a number of its own")
    for table in tables.values():
        table["weight"] = 1 / table.groupby("domain")["domain"].transform("size")
    return tables, correct


def _table(cell: CellKey, outcome: Mapping[str, ArrayLike] | pd.DataFrame) -> pd.DataFrame:
    """``domain``, ``document``, ``group`` (the document, where there are none) and ``correct``."""
    if missing := [column for column in ("domain", "document", "correct") if column not in outcome]:
        raise InputError(f"the outcomes of {_name(cell)} have no {missing[0]!r}")
    names = ("domain", "document", "group", "correct")
    arrays = {name: np.asarray(outcome[name if name in outcome else "document"]) for name in names}
    for name, array in arrays.items():
        wanted, kinds = ("bool", "b") if name == "correct" else ("int", "iu")
        if array.dtype.kind not in kinds or array.ndim != 1:
            raise InputError(f"{name!r} of {_name(cell)} is {array.dtype} {list(array.shape)}; it must be {wanted} [n]")
    lengths = {len(array) for array in arrays.values()}
    if len(lengths) > 1 or 0 in lengths:
        raise InputError(f"the outcomes of {_name(cell)} are of {', '.join(map(str, sorted(lengths)))} documents")
    table = pd.DataFrame(arrays)
    if table["document"].duplicated().any():
        raise InputError(f"{_name(cell)} has two documents with the same number")
    return table


def _t_test(differences: NDArray[np.float64], ratio: float, tiny: float) -> tuple[float, float]:
    """Two-sided p-value, and how far the interval of the mean (95 %) reaches to each side.

    ``ratio`` is that of test to training documents, or 0 for the plain t-test. What is less than ``tiny`` is rounding.
    """
    count = len(differences)
    if count > 1 and (abs(differences) < tiny).all():
        return 1.0, 0.0
    if count < 2 or np.ptp(differences) < tiny:
        return np.nan, np.nan
    error = np.sqrt(differences.var(ddof=1) * (1 / count + ratio))
    p_value = 2 * stats.t.sf(abs(differences.mean() / error), count - 1)
    return float(p_value), float(error * stats.t.ppf(0.975, count - 1))


def _count_wins(differences: NDArray[np.float64], measure: Measure, tiny: float) -> int:
    return int((differences > tiny if measure.higher_is_better else differences < -tiny).sum())


def _test_domains(differences: NDArray[np.float64], measure: Measure, tiny: float) -> dict[str, Any]:
    """The signed-rank test over the differences ``[cells, domains]`` of two systems, NaN where one has no value."""
    means = pd.DataFrame(differences).mean().dropna().to_numpy()
    if not len(means):
        return {}
    steps = np.round(means / tiny)  # whole numbers, or rounding would give equal differences different ranks
    p_value = float(stats.wilcoxon(steps).pvalue) if steps.any() else 1.0
    return {"domains": len(means), "domain_wins": _count_wins(means, measure, tiny), "p_domains": p_value}


def _resample(sums: pd.DataFrame, resamples: int, seed: int) -> NDArray[np.float64]:
    """Draw groups again: ``[resamples, pairs]``, means over the domains of their weighted mean differences."""
    rng = np.random.default_rng(seed)
    means = []
    for _, table in sums.groupby("domain"):
        differences, weights = (table.xs(name, axis=1, level=1).to_numpy() for name in ("difference", "weight"))
        count = len(table)
        chunks = []
        for start in range(0, resamples, size := max(1, _CHUNK // count)):
            times = rng.multinomial(count, np.full(count, 1 / count), size=min(size, resamples - start)).astype(float)
            chunks.append(times @ differences / (times @ weights))
        means.append(np.concatenate(chunks))
    mean: NDArray[np.float64] = np.mean(means, axis=0)
    return mean


def _name(cell: CellKey) -> str:
    system, seed, fold = cell
    return f"system {system!r}, seed {seed}" + ("" if fold is None else f", fold {fold}")
