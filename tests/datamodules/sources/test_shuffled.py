from collections import Counter

import pytest
from jsonargparse import ArgumentParser

from lightning_ncmtl.datamodules import MultiDomainDataModule
from lightning_ncmtl.datamodules.sources import Document, ShuffledDomains, Source, Split, Synthetic
from lightning_ncmtl.errors import InputError


def read(source: Source, split: Split) -> dict[str, list[Document]]:
    return {domain: list(source.read(domain, split)) for domain in source.domains()}


@pytest.fixture
def uneven() -> Synthetic:
    return Synthetic(num_domains=4, num_groups=2, train_documents=60, test_documents=20, imbalance=3)


@pytest.mark.parametrize("split", ["train", "test"])
def test_domains_keep_their_labels_and_share_the_documents(uneven: Synthetic, split: Split) -> None:
    before, after = read(uneven, split), read(ShuffledDomains(uneven), split)
    assert list(before) == list(after)
    for domain in before:
        assert Counter(d.label for d in before[domain]) == Counter(d.label for d in after[domain])
    assert Counter(d for part in before.values() for d in part) == Counter(d for part in after.values() for d in part)


def test_documents_are_dealt_at_random(uneven: Synthetic) -> None:
    home = {document: domain for domain, part in read(uneven, "train").items() for document in part}
    shuffled = read(ShuffledDomains(uneven), "train")
    total = len(home)
    for part in shuffled.values():
        for other in shuffled:
            share = sum(home[document] == other for document in part) / len(part)
            assert share == pytest.approx(list(home.values()).count(other) / total, abs=0.2)


def test_is_a_function_of_the_seed_alone(uneven: Synthetic) -> None:
    one, same, other = ShuffledDomains(uneven), ShuffledDomains(uneven), ShuffledDomains(uneven, seed=1)
    list(one.read("domain01", "test"))  # the order of reading makes no difference
    assert read(one, "train") == read(same, "train")
    assert read(one, "train") != read(other, "train")
    assert list(one.read("domain01", "test")) == list(same.read("domain01", "test"))


def test_there_is_no_structure_to_find(uneven: Synthetic) -> None:
    source = ShuffledDomains(uneven)
    assert source.planted_groups is None
    assert source.splits() == {"train", "test"}
    assert source.domains() == uneven.domains()


def test_a_module_may_use_some_of_the_domains(uneven: Synthetic) -> None:
    source = ShuffledDomains(uneven)
    data = MultiDomainDataModule(source, domains=["domain02"], validation_size=3)
    data.setup("fit")
    assert data.documents("train")["text"][0] == next(source.read("domain02", "train")).text


def test_unknown_domains_and_splits_are_refused(uneven: Synthetic) -> None:
    with pytest.raises(InputError, match="unknown domain 'cars': the shuffled source has domain00, "):
        next(ShuffledDomains(uneven).read("cars", "train"))
    with pytest.raises(InputError, match="has no unlabel split"):
        next(ShuffledDomains(uneven).read("domain00", "unlabel"))


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
