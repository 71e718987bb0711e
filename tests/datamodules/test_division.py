from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpora import Fixed, Grouped, Several

from lightning_ncmtl.datamodules.cache import Cache
from lightning_ncmtl.datamodules.copies import deal_share
from lightning_ncmtl.datamodules.corpus import Corpus
from lightning_ncmtl.datamodules.division import Division
from lightning_ncmtl.datamodules.settings import SplitSettings
from lightning_ncmtl.datamodules.sources import FeatureTables, Source
from lightning_ncmtl.errors import InputError

SIZES = {"a": 40, "b": 21, "c": 300}


def source(test: bool = False) -> Fixed:
    documents: Any = {
        (domain, "train"): [(f"{domain}{n} {n * n} text", int(n % 3 == 0)) for n in range(size)]
        for domain, size in SIZES.items()
    }
    return Fixed(documents | ({("a", "test"): [("t", 0)]} if test else {}))


def divide(of: Source, test: bool = False, **settings: Any) -> Division:
    return Division(Corpus(of, None, None, Cache()), SplitSettings(**{"validation_size": 5, **settings}), test)


@pytest.mark.parametrize("settings", [{}, {"validation_size": 0.2}, {"folds": 4}])
@pytest.mark.parametrize("test_size", [None, 0.1, 0.5])
def test_the_parts_are_disjoint_and_whole(settings: dict[str, Any], test_size: float | None) -> None:
    division = divide(source(), test_size=test_size, **settings)
    parts = [division.train, division.validation, *([] if division.test is None else [division.test])]
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(sum(SIZES.values())))
    assert all(len(part) and (np.diff(part) > 0).all() for part in parts)
    again = divide(source(), test_size=test_size, **settings)
    assert np.array_equal(division.train, again.train)
    other = divide(source(), test_size=test_size, seed=1, **settings)
    assert np.array_equal(division.train, other.train) == (settings == {} and test_size is None)


def test_shares_are_shares_of_each_domain_and_label() -> None:
    division = divide(source(), validation_size=0.2, test_size=0.1)
    assert division.test is not None
    for share, part in ((0.1, division.test), (0.2 * 0.9, division.validation)):
        found = np.bincount(division.strata[part], minlength=division.strata.max() + 1)
        expected = share * np.bincount(division.strata)
        assert (abs(found - expected) < 0.02 * np.bincount(division.strata) + 2).all()
    # The test part does not depend on how the rest is divided.
    assert np.array_equal(division.test, divide(source(), folds=3, fold=2, test_size=0.1).test)


@pytest.mark.parametrize("settings", [{}, {"folds": 4}, {"test_size": 0.2}])
def test_halves_are_alike_in_their_domains_and_keep_copies_together(settings: dict[str, Any]) -> None:
    texts = {("a", "train"): [(f"same {n // 3} text of three copies", n % 2) for n in range(60)]}
    division = divide(Fixed(texts), **settings)
    halves = division.halve()
    assert halves.shape == division.train.shape
    groups = division.groups[division.train]
    assert not set(groups[halves == 0]) & set(groups[halves == 1])
    division = divide(source(), **settings)
    sizes = np.stack([np.bincount(division.tasks[division.train][division.halve() == half]) for half in (0, 1)])
    assert (abs(sizes[0] - sizes[1]) <= 1).all()
    assert np.array_equal(division.halve(), divide(source(), **settings).halve())
    # What chance does to the labels of one half is nothing to the other: they are not dealt evenly
    uneven = []
    for seed in range(10):
        division = divide(source(), **settings, seed=seed)
        kinds = [np.bincount(division.strata[division.train][division.halve() == half], minlength=9) for half in (0, 1)]
        uneven.append(abs(kinds[0] - kinds[1]).max())
    assert max(uneven) > 5


def test_the_last_documents_are_those_before_the_test_part() -> None:
    division = divide(source(), validation_size=3, test_size=0.2)
    pool = np.union1d(division.train, division.validation)
    for task in range(3):
        assert np.array_equal(
            division.validation[division.tasks[division.validation] == task], pool[division.tasks[pool] == task][-3:]
        )


def test_copies_stay_together_in_shares() -> None:
    rng = np.random.default_rng(0)
    documents: Any = {(d, "train"): [(f"story {rng.integers(40)}", 0) for _ in range(150)] for d in "ab"}
    division = divide(Fixed(documents), validation_size=0.3, test_size=0.2)
    assert division.test is not None
    groups = [set(division.groups[part].tolist()) for part in (division.train, division.validation, division.test)]
    assert not groups[0] & groups[1]
    assert not groups[0] & groups[2]
    assert not groups[1] & groups[2]
    assert division.clean()[division.validation].all()


def grouped(seed: int, task_of: Any = lambda rng, group: rng.integers(2)) -> Grouped:
    """Some 600 documents of 60 groups, of which one has a fifth, another a tenth."""
    rng = np.random.default_rng(seed)
    sizes = [120, 60, *rng.integers(1, 15, size=58)]
    groups = rng.permutation(np.repeat(np.arange(60), sizes))
    return Grouped([(f"{n} text", "ab"[task_of(rng, group)], f"g{group}") for n, group in enumerate(groups)])


@pytest.mark.parametrize("settings", [{"folds": 4, "fold": 1}, {"validation_size": 0.25}])
@pytest.mark.parametrize("within", [False, True], ids=["groups over tasks", "groups of a task"])
def test_groups_are_never_divided(settings: dict[str, Any], within: bool) -> None:
    for seed in range(10):
        source = grouped(seed, (lambda rng, group: group % 2) if within else (lambda rng, group: rng.integers(2)))
        division = divide(source, **settings, test_size=0.2, seed=seed)
        assert division.test is not None
        named = np.array([group for *_, group in source.rows])
        halves = division.halve()
        train = [division.train[halves == half] for half in (0, 1)]
        parts = [*train, division.validation, division.test]
        groups = [set(named[part]) for part in parts]
        assert sum(map(len, groups)) == len(set.union(*groups)) == 60
        count = len(named)
        assert sum(map(len, parts)) == count
        # A share is as near as half of a group, in each task; a fold, or a half, as a group
        assert abs(len(division.test) - 0.2 * count) <= (60 if within else 61)
        assert abs(len(train[0]) - len(train[1])) <= 120
        assert {0, 1} == set(division.tasks[division.test]) == set(division.tasks[division.validation])
        # They are no copies of each other
        assert division.clean()[division.validation].all()
        assert division.groups.tolist() == list(range(count))
        again = divide(source, **settings, test_size=0.2, seed=seed)
        assert np.array_equal(division.train, again.train)


def test_copies_in_different_groups_join_these() -> None:
    rows = [(f"{n} text", "a", f"g{n % 30}") for n in range(90)]
    rows += [("same text of many words", "a", f"g{n}") for n in range(10)] + [("alone", "a", ""), ("not", "a", "")]
    division = divide(Grouped(rows), validation_size=0.4)
    first = {int(row[2][1:]) if row[2] else -1 for n, row in enumerate(rows) if n in set(division.validation.tolist())}
    assert set(range(10)) <= first or not first & set(range(10))
    assert not division.clean()[90:100].any() or {90, 99} <= set(division.validation.tolist())
    assert abs(len(division.validation) - 0.4 * 102) <= 1


def test_groups_have_no_last_documents() -> None:
    with pytest.raises(InputError, match=r"data.source.split_by\), .* share such as 0.2, found 5, or data.split.folds"):
        divide(grouped(0), validation_size=5)


def test_a_share_of_groups_in_each_stratum() -> None:
    groups, strata = np.arange(1000), np.arange(1000) % 7
    for share in (0.01, 0.37, 0.9):
        chosen = deal_share(groups, strata, share, [0, 1])
        assert chosen.sum() == round(share * 1000)
        counts = np.bincount(strata[chosen], minlength=7)
        assert counts.max() - counts.min() <= 2


def test_documents_with_several_labels_are_divided_as_one_corpus() -> None:
    """Hardly one has its first label in the second domain; a quarter has none."""
    texts: Any = [(f"{n} text", {"a": n % 2, "b": 1} if n % 4 else {}) for n in range(40)]
    source = Several(["a", "b"], [*texts, ("last", {"b": 1})])
    division = divide(source, validation_size=10)
    assert division.validation.tolist() == [n for n in range(41) if n % 4 or n == 40][-10:]
    for settings in ({"validation_size": 0.25}, {"folds": 4}):
        assert 8 <= len(divide(source, **settings).validation) <= 12


def test_documents_without_labels_do_not_validate() -> None:
    documents: Any = {("a", "train"): [(f"{n} text", None if n >= 20 else n % 2) for n in range(30)]}
    assert divide(Fixed(documents), validation_size=3).validation.tolist() == [17, 18, 19]


def test_the_division_does_not_depend_on_whether_the_test_split_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    words = [" ".join(f"w{word}" for word in rng.integers(30, size=12)) for _ in range(20)]
    train = [(f"{n} {words[n % 20]}", n % 2) for n in range(60)]  # near-copies with different starts
    documents: Any = {("a", "train"): train, ("a", "test"): [(text, 0) for text in words]}
    for many in (50, 70, 1000):
        monkeypatch.setattr("lightning_ncmtl.datamodules.division.MANY", many)
        alone, joint = divide(Fixed(documents), folds=5), divide(Fixed(documents), test=True, folds=5)
        assert alone.groups.tolist() == joint.groups.tolist()
        assert alone.train.tolist() == joint.train.tolist()


def tiny(**sizes: int) -> Fixed:
    documents: Any = {(d, "train"): [(f"{d}{n} {n * n} text", n % 2) for n in range(n)] for d, n in sizes.items()}
    return Fixed(documents)


@pytest.mark.parametrize("settings", [{"validation_size": 0.4}, {"folds": 3, "fold": 2}, {"validation_size": 2}])
@pytest.mark.parametrize("test_size", [None, 0.3])
def test_domains_with_too_few_documents_train_as_a_whole(
    settings: dict[str, Any], test_size: float | None, caplog: pytest.LogCaptureFixture
) -> None:
    sizes = {"a": 30, "b": 1, "c": 2, "d": 30}
    with caplog.at_level("INFO"):
        division = divide(tiny(**sizes), **settings, test_size=test_size)
    evaluated = [division.validation, *([] if division.test is None else [division.test])]
    lines = [message for message in caplog.messages if "divides" in message]
    for domain, (name, size) in enumerate(sizes.items()):
        trained = int((division.tasks[division.train] == domain).sum())
        counts = [int((division.tasks[part] == domain).sum()) for part in evaluated]
        assert trained + sum(counts) == size
        assert 0 < trained < size or size < 3
        assert trained > 0
        assert all(counts) or size < 3
        assert sum(repr(name) in line for line in lines) == counts.count(0)
    assert all("divides no documents of 'b'" in line for line in lines)


def test_what_trains_as_a_whole_takes_its_copies_and_groups_along() -> None:
    """The documents of one domain are all in groups of the other's: these are never divided."""
    for seed in range(10):
        groups = [(f"{n} words {n * n}", "a", f"group{n % 10}") for n in range(40)]
        groups += [(f"{n} other {n * n}", "b", "group0") for n in range(3)]
        division = divide(Grouped(groups), validation_size=0.4, seed=seed)
        parts = [{groups[place][2] for place in part} for part in (division.train, division.validation)]
        assert parts[0].isdisjoint(parts[1])
        assert "group0" in parts[0]
        assert len(division.validation)


def test_many_domains_are_not_all_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        divide(tiny(**{f"d{n:02d}": 1 for n in range(20)}, large=20), validation_size=0.2)
    assert [message for message in caplog.messages if "divides" in message] == [
        "train: data.split.validation_size 0.2 divides no documents of 'd00', 'd01', 'd02', 'd03', 'd04' and 15 "
        "others: they are too few, and all train"
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"validation_size": 300}, "between 1 and 299, .* of 'c', found 300; or a share, such as 0.1"),
        ({"validation_size": 0}, "between 1 and 299, .* of 'c', found 0; or a share, such as 0.1"),
        (
            {"validation_size": 0.001},
            "data.split.validation_size 0.001 holds 0 of the 40 documents of 'a', .* choose another",
        ),
        ({"validation_size": 1.5}, "data.split.validation_size must be a share between 0 and 1, found 1.5"),
        ({"test_size": 0.0}, "data.split.test_size must be a share between 0 and 1, found 0.0"),
        ({"folds": 500, "fold": 499}, "the fold 499 of 500 holds 0 of the 40 .* choose fewer folds"),
    ],
)
def test_empty_parts_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        divide(source(), **settings)


def test_a_second_test_split_is_refused() -> None:
    with pytest.raises(InputError, match="the source has a test split: unset data.split.test_size, found 0.2"):
        divide(source(test=True), test_size=0.2)


def test_too_many_documents_are_compared_by_their_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    documents: Any = {("a", "train"): [("Same, same!", 0), ("same SAME", 1), ("...", 0), ("!", 1), ("other", 0)]}
    slow = divide(Fixed(documents), validation_size=1)
    monkeypatch.setattr("lightning_ncmtl.datamodules.division.MANY", 3)
    with caplog.at_level("INFO"):
        fast = divide(Fixed(documents), validation_size=1)
    assert fast.groups.tolist() == slow.groups.tolist() == [0, 0, 1, 2, 3]
    assert "too many documents to compare all words: copies are those with the same start" in caplog.text


def test_the_fingerprint_tells_which_documents_train(tmp_path: Path) -> None:
    """And nothing of the files that they are in."""
    first = divide(source(), folds=4).fingerprint
    assert divide(source(test=True), folds=4).fingerprint == first
    for settings in ({"folds": 4, "seed": 1}, {"folds": 5}, {"folds": 4, "test_size": 0.2}):
        assert divide(source(), **settings).fingerprint != first
    changed = source()
    changed.documents["b", "train"][0] = ("another text", 0)
    assert divide(changed, folds=4).fingerprint != first
    tables = []
    for name, cell in (("one", "0.5"), ("two", "0.5"), ("three", "0.6")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.csv").write_text(f"label,x\n0,1\n1,{cell}\n0,3\n1,4\n")
        tables.append(divide(FeatureTables(str(tmp_path / name / "*.csv")), validation_size=1).fingerprint)
    assert tables[0] == tables[1] != tables[2]
