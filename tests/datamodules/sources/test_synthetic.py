import hashlib

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from lightning_ncmtl.datamodules.sources import Document, Label, Split, Synthetic
from lightning_ncmtl.errors import InputError


def test_is_a_function_of_the_seed() -> None:
    one, same, other = Synthetic(seed=1), Synthetic(seed=1), Synthetic(seed=2)
    assert list(one.read("train", ["domain03"])) == list(same.read("train", ["domain03"]))
    assert list(one.read("train", ["domain03"])) != list(other.read("train", ["domain03"]))


def test_splits_and_domains_differ() -> None:
    source = Synthetic(train_documents=30, test_documents=20)
    splits: list[Split] = ["train", "test"]
    parts = [list(source.read(split, [domain])) for domain in source.domains()[:2] for split in splits]
    assert [len(part) for part in parts] == [30, 20, 30, 20]
    texts = [document.text for part in parts for document in part]
    assert len(set(texts)) == len(texts)


def test_the_default_corpus_stays_the_same() -> None:
    text = "".join(document.text for document in Synthetic().read("train", ["domain00", "domain07"]))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "09ca7ddaf0c71d12"
    assert Synthetic().splits() == {"train", "test"}


def test_reads_all_domains_in_order() -> None:
    source = Synthetic(num_domains=3, train_documents=4)
    homes = [domain for document in source.read("train") for domain in document.labels]
    assert homes == [domain for domain in source.domains() for _ in range(4)]
    assert list(source.read("train", ["domain02", "domain00"])) == [
        *source.read("train", ["domain02"]),
        *source.read("train", ["domain00"]),
    ]


def test_the_fingerprint_changes_with_the_settings() -> None:
    assert Synthetic().fingerprint() == Synthetic().fingerprint()
    others = [Synthetic(seed=1), Synthetic(imbalance=2), Synthetic(agreement=0.7), Synthetic(test_documents=3)]
    assert len({source.fingerprint() for source in [Synthetic(), *others]}) == 5


def test_sizes_of_domains_differ_by_the_imbalance() -> None:
    source = Synthetic(num_domains=5, num_groups=2, train_documents=62, test_documents=3, imbalance=16)
    sizes = [len(list(source.read("train", [domain]))) for domain in source.domains()]
    assert sorted(sizes) == [10, 20, 40, 80, 160]  # 62 on average
    assert [len(list(source.read("test", [domain]))) for domain in source.domains()] == [3] * 5
    orders = {tuple(Synthetic(num_domains=5, imbalance=16, seed=seed).sizes["train"]) for seed in range(20)}
    assert len(orders) > 10
    even = Synthetic(num_domains=5, num_groups=2, train_documents=62)
    for domain, size in zip(source.domains(), sizes, strict=True):
        shared = min(size, 62)  # the same documents, only more or fewer
        assert list(source.read("train", [domain]))[:shared] == list(even.read("train", [domain]))[:shared]


def test_extreme_imbalance_leaves_a_document_to_every_domain() -> None:
    assert min(Synthetic(train_documents=5, imbalance=1e6).sizes["train"]) == 1
    assert Synthetic(num_domains=1, num_groups=1, train_documents=7, imbalance=9).sizes["train"] == [7]


def test_planted_groups_agree_inside_and_clash_between() -> None:
    source = Synthetic(num_domains=6, num_groups=3, opinion_words=400, common=0.1, disagreement=0.05)
    assert list(source.planted_groups.values()) == [0, 1, 2, 0, 1, 2]
    agreement = (source.meanings[:, None] == source.meanings[None]).mean(2)
    groups = np.arange(6) % 3
    same = (groups[:, None] == groups[None]) & ~np.eye(6, dtype=bool)
    other = groups[:, None] != groups[None]
    assert agreement[same].min() > 0.85  # 1 - 2 * 0.05 * 0.95 in expectation
    assert 0.3 < agreement[other].min() <= agreement[other].max() < 0.5  # a third of the words, and the common tenth


def test_sharing_helps_within_groups_and_hurts_between() -> None:
    """The property the corpus is made for, checked with a linear model from outside."""
    source = Synthetic(num_domains=6, num_groups=2, train_documents=50, test_documents=200)
    domains = list(source.planted_groups.items())

    def label(document: Document) -> Label | None:
        return next(iter(document.labels.values()))

    def accuracy(train_on: list[str], test_on: str) -> float:
        train = list(source.read("train", train_on))
        test = list(source.read("test", [test_on]))
        counts = CountVectorizer()
        features = counts.fit_transform([document.text for document in train])
        model = LogisticRegression(max_iter=1000).fit(features, [label(document) for document in train])
        return float(model.score(counts.transform([d.text for d in test]), [label(d) for d in test]))

    alone = np.mean([accuracy([d], d) for d, _ in domains])
    group = np.mean([accuracy([e for e, h in domains if h == g], d) for d, g in domains])
    everyone = np.mean([accuracy([e for e, _ in domains], d) for d, _ in domains])
    assert group > alone + 0.01
    assert group > everyone + 0.03


def test_bad_settings_are_refused() -> None:
    with pytest.raises(InputError, match="num_groups must be between 1 and num_domains 3, found 4"):
        Synthetic(num_domains=3, num_groups=4)
    for imbalance in (0.5, float("nan"), float("inf")):
        with pytest.raises(InputError, match=f"imbalance must be a number of at least 1, found {imbalance}"):
            Synthetic(imbalance=imbalance)
    with pytest.raises(InputError, match="unknown domain 'cars'"):
        next(Synthetic().read("train", ["cars"]))
    with pytest.raises(InputError, match="has no unlabel split"):
        next(Synthetic().read("unlabel"))
