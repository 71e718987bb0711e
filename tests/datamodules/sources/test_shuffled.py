from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pytest
from data import make_data
from jsonargparse import ArgumentParser

from lightning_ncmtl.datamodules.sources import (
    FDUMTL,
    Document,
    FeatureTables,
    Label,
    Problem,
    ShuffledDomains,
    Source,
    Split,
    Synthetic,
)
from lightning_ncmtl.errors import InputError


def read(source: Source, split: Split) -> dict[str, list[Document]]:
    items = {domain: list(source.read(split, [domain])) for domain in source.domains()}
    return {domain: [item for item in part if isinstance(item, Document)] for domain, part in items.items()}


def label(document: Document) -> Label | None:
    return next(iter(document.labels.values()))


def content(document: Document) -> tuple[str, Label | None]:
    return document.text, label(document)


@pytest.fixture
def uneven() -> Synthetic:
    return Synthetic(num_domains=4, num_groups=2, train_documents=60, test_documents=20, imbalance=3)


@pytest.mark.parametrize("split", ["train", "test"])
def test_domains_keep_their_labels_and_share_the_documents(uneven: Synthetic, split: Split) -> None:
    before, after = read(uneven, split), read(ShuffledDomains(uneven), split)
    assert list(before) == list(after)
    for domain in before:
        assert Counter(map(label, before[domain])) == Counter(map(label, after[domain]))
        assert all(list(document.labels) == [domain] for document in after[domain])
    contents = [Counter(content(d) for part in corpus.values() for d in part) for corpus in (before, after)]
    assert contents[0] == contents[1]


def test_documents_are_dealt_at_random(uneven: Synthetic) -> None:
    home = {content(document): domain for domain, part in read(uneven, "train").items() for document in part}
    shuffled = read(ShuffledDomains(uneven), "train")
    total = len(home)
    for part in shuffled.values():
        for other in shuffled:
            share = sum(home[content(document)] == other for document in part) / len(part)
            assert share == pytest.approx(list(home.values()).count(other) / total, abs=0.2)


def test_is_a_function_of_the_seed_alone(uneven: Synthetic) -> None:
    one, same, other = ShuffledDomains(uneven), ShuffledDomains(uneven), ShuffledDomains(uneven, seed=1)
    list(one.read("test", ["domain01"]))  # the order of reading makes no difference
    assert read(one, "train") == read(same, "train")
    assert read(one, "train") != read(other, "train")
    assert list(one.read("test", ["domain01"])) == list(same.read("test", ["domain01"]))


def test_there_is_no_structure_to_find(uneven: Synthetic) -> None:
    source = ShuffledDomains(uneven)
    assert source.planted_groups is None
    assert source.splits() == {"train", "test"}
    assert source.domains() == uneven.domains()


def test_a_module_may_use_some_of_the_domains(uneven: Synthetic) -> None:
    source = ShuffledDomains(uneven)
    data = make_data(source, domains=["domain02"], validation_size=3)
    data.setup("fit")
    assert data.documents("train")["text"][0] == next(source.read("train", ["domain02"])).text


def test_unknown_domains_and_splits_are_refused(uneven: Synthetic) -> None:
    with pytest.raises(InputError, match="unknown domain 'cars': the shuffled source has domain00, "):
        next(ShuffledDomains(uneven).read("train", ["cars"]))
    with pytest.raises(InputError, match="has no unlabel split"):
        next(ShuffledDomains(uneven).read("unlabel", ["domain00"]))


def test_problems_are_passed_on_and_labels_may_be_unknown() -> None:
    problem = Problem("a.train:2", "damaged")

    class Damaged(Synthetic):
        def read(self, split: Split, domains: Collection[str] | None = None) -> Iterator[Any]:
            yield problem
            yield from [Document(str(n), {d: None if n % 2 else 1}) for n in range(9) for d in self.domains()]

    items = list(ShuffledDomains(Damaged(num_domains=3)).read("train"))
    assert items[0] == problem
    assert Counter(label(item) for item in items if isinstance(item, Document)) == {None: 12, 1: 15}


def test_documents_of_several_domains_are_refused() -> None:
    class Several(Synthetic):
        def read(self, split: Split, domains: Collection[str] | None = None) -> Iterator[Document]:
            yield Document("both", dict.fromkeys(self.domains(), 1))

    with pytest.raises(InputError, match="labels in several domains, or in none, cannot be shuffled"):
        next(ShuffledDomains(Several(num_domains=3)).read("train"))


def test_the_fingerprint_is_that_of_the_source_and_the_seed(uneven: Synthetic) -> None:
    assert ShuffledDomains(uneven).fingerprint() == ShuffledDomains(uneven).fingerprint()
    others = [ShuffledDomains(uneven, seed=1), ShuffledDomains(Synthetic()), ShuffledDomains(ShuffledDomains(uneven))]
    assert len({source.fingerprint() for source in [ShuffledDomains(uneven), uneven, *others]}) == 5


def test_is_made_from_a_configuration() -> None:
    parser = ArgumentParser()
    parser.add_subclass_arguments(Source, "source")
    name = "lightning_ncmtl.datamodules.sources"
    inner = {"class_path": f"{name}.Synthetic", "init_args": {"num_domains": 5}}
    outer = {"class_path": f"{name}.ShuffledDomains", "init_args": {"source": inner, "seed": 3}}
    source = parser.instantiate_classes(parser.parse_object({"source": outer})).source
    assert isinstance(source, ShuffledDomains)
    assert source.seed == 3
    assert len(source.domains()) == 5


def test_domains_of_one_split_alone(tmp_path: Path) -> None:
    (tmp_path / "books.task.train").write_text("1\tgood\n")
    (tmp_path / "toys.task.test").write_text("1\tbad\n")
    source = ShuffledDomains(FDUMTL(str(tmp_path)))
    assert [document.text for document in source.read("test") if isinstance(document, Document)] == ["bad"]
    (tmp_path / "toys.task.test").write_text("")
    assert list(ShuffledDomains(FDUMTL(str(tmp_path))).read("test")) == []


def test_new_rows_are_read_as_the_source_does() -> None:
    inner = FeatureTables("all.csv", label="y", task="kind", id="name")
    source = ShuffledDomains(inner)
    assert source.id == "name"
    assert source.settings_of_new() == inner.settings_of_new()
    assert source.settings_of_new()["init_args"] == {"path": [], "label": "y", "task": "kind", "id": "name"}
