import hashlib
import inspect
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from data import make_data
from pytorch_lightning import Trainer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score

from lightning_ncmtl import NCMTL, cli
from lightning_ncmtl.callbacks import NetworkClusteringCallback
from lightning_ncmtl.datamodules import sources
from lightning_ncmtl.datamodules.sources import Document, Split, SyntheticAssays
from lightning_ncmtl.encoders import NGram
from lightning_ncmtl.errors import InputError

SMALL: dict[str, Any] = {"num_assays": 30, "assay_groups": 3, "train_molecules": 700, "test_molecules": 300}


def table(source: SyntheticAssays, documents: list[Document]) -> tuple[np.ndarray, np.ndarray]:
    """Substructures ``[molecules, substructures]``, and labels ``[molecules, assays]`` with -1 for those missing."""
    bits = np.zeros((len(documents), len(source.frequencies)), dtype=bool)
    labels = np.full((len(documents), len(source.domains())), -1)
    places = {assay: place for place, assay in enumerate(source.domains())}
    for row, document in enumerate(documents):
        bits[row, [int(word.removeprefix("bit")) for word in document.text.split()]] = True
        for assay, label in document.labels.items():
            assert label in (0, 1)
            labels[row, places[assay]] = int(label)
    return bits, labels


def test_is_a_function_of_the_seed() -> None:
    one, same, other = SyntheticAssays(**SMALL), SyntheticAssays(**SMALL), SyntheticAssays(**SMALL, seed=1)
    documents = list(one.read("train"))
    assert documents == list(same.read("train"))
    assert documents != list(other.read("train"))
    splits: list[Split] = ["train", "test"]
    assert len({document.text for split in splits for document in one.read(split)}) == 1000  # splits differ


def test_the_benchmark_stays_the_same() -> None:
    documents = list(SyntheticAssays(**SMALL).read("train"))
    told = repr(documents).replace(", features=None, group=''", "")
    assert hashlib.sha256(told.encode()).hexdigest()[:16] == "b4ad982fb1527ccf"


def test_shares_are_as_asked_for() -> None:
    """Of labels known, of active ones, of substructures; and a test split like the training split."""
    source = SyntheticAssays(num_assays=200, assay_groups=4, train_molecules=3000, labels=8, active=0.2, mistakes=0.1)
    bits, labels = table(source, list(source.read("train")))
    known = labels >= 0
    assert known.mean() == pytest.approx(8 / 200, rel=0.03)
    assert (labels == 1).sum() / known.sum() == pytest.approx(0.2 * 0.9 + 0.8 * 0.1, abs=0.015)
    np.testing.assert_allclose(bits.mean(0), source.frequencies, atol=0.05)
    assert source.frequencies.max() == pytest.approx(0.5)
    assert source.frequencies.min() == pytest.approx(0.02)
    assert len(list(source.read("test"))) == 4000
    per_molecule = (labels >= 0).sum(1)  # 8 is an average
    assert per_molecule.min() < 3
    assert per_molecule.max() > 14


def test_sizes_of_assays_differ_by_the_imbalance() -> None:
    source = SyntheticAssays(**SMALL | {"train_molecules": 20_000}, labels=6, assay_imbalance=9)
    _, labels = table(source, list(source.read("train")))
    expected = np.sort(np.geomspace(1, 9, 30) / np.geomspace(1, 9, 30).mean() * 20_000 * 6 / 30)
    np.testing.assert_allclose(np.sort((labels >= 0).sum(0)), expected, rtol=0.1)
    even = SyntheticAssays(**SMALL, assay_imbalance=1)
    assert np.ptp(even.shares) == pytest.approx(0)


@pytest.mark.parametrize("similarity", [0.5, 0.9])
def test_groups_agree_as_stated_and_others_by_chance(similarity: float) -> None:
    """All labels known and none mistaken: two of a group agree on a share 1 - arccos(similarity) / pi."""
    settings = SMALL | {"train_molecules": 4000, "labels": 30, "assay_imbalance": 1, "substructures": 400}
    source = SyntheticAssays(**settings, similarity=similarity, mistakes=0)
    assert list(source.planted_groups.values()) == [place % 3 for place in range(30)]
    assert list(source.planted_groups) == source.domains()
    bits, labels = table(source, list(source.read("train")))
    assert labels.min() == 0  # none is missing
    agreement = (labels[:, :, None] == labels[:, None, :]).mean(0)
    groups = np.arange(30) % 3
    same = (groups[:, None] == groups) & ~np.eye(30, dtype=bool)
    assert agreement[same].mean() == pytest.approx(1 - math.acos(similarity) / math.pi, abs=0.02)
    assert agreement[groups[:, None] != groups].mean() == pytest.approx(0.5, abs=0.03)
    # Labels are what the weights say
    z = (bits - source.frequencies) / np.sqrt(source.frequencies * (1 - source.frequencies))
    assert np.array_equal(z @ source.weights.T > 0, labels == 1)


def test_an_assay_can_be_learned_and_its_group_helps() -> None:
    """The property that the benchmark is made for, checked with a linear model from outside."""
    source = SyntheticAssays(
        **SMALL | {"train_molecules": 3000, "test_molecules": 3000, "assay_imbalance": 1}, labels=1
    )
    bits, labels = table(source, list(source.read("train")))
    new_bits, new_labels = table(source, list(source.read("test")))
    alone, together, everyone = [], [], []
    for assay in range(6):
        known = new_labels[:, assay] >= 0
        for scores, assays in (
            (alone, [assay]),
            (together, list(range(assay % 3, 30, 3))),
            (everyone, list(range(30))),
        ):
            rows, places = np.nonzero(labels[:, assays] >= 0)
            model = LogisticRegression(C=0.1).fit(bits[rows], labels[rows, np.array(assays)[places]])
            scores.append(model.score(new_bits[known], new_labels[known, assay]))
    assert np.mean(together) > np.mean(alone) + 0.05
    assert np.mean(together) > np.mean(everyone) + 0.1


def test_some_assays_alone_have_the_same_labels() -> None:
    """Molecules that were measured in none of them are left out."""
    source = SyntheticAssays(**SMALL, labels=2)
    chosen = ["assay07", "assay21"]
    documents = list(source.read("train", chosen))
    full = [{assay: label for assay, label in d.labels.items() if assay in chosen} for d in source.read("train")]
    assert [document.labels for document in documents] == [labels for labels in full if labels]


def test_the_fingerprint_changes_with_the_settings() -> None:
    settings = [{}, {"assay_groups": 2}, {"labels": 3}, {"similarity": 0.8}, {"active": 0.4}, {"mistakes": 0.1}]
    settings += [{"assay_imbalance": 1}, {"seed": 3}, {"substructures": 50}, {"test_molecules": 3}]
    prints = [SyntheticAssays(**SMALL | more).fingerprint() for more in settings]
    assert len(set(prints)) == len(settings)
    assert SyntheticAssays(**SMALL).fingerprint() == prints[0]


def test_on_the_command_line_it_has_its_own_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    """Only the class path is given; jsonargparse keeps what the source before it has under the same names."""
    with pytest.raises(SystemExit):
        cli.main(["fit", "--data.source", "lightning_ncmtl.datamodules.sources.SyntheticAssays", "--print_config"])
    found = yaml.safe_load(capsys.readouterr().out)["data"]["source"]["init_args"]
    assert found == {
        name: parameter.default for name, parameter in inspect.signature(SyntheticAssays).parameters.items()
    }
    # As docs/data.md says
    assert (found["num_assays"], found["assay_groups"], found["labels"], found["assay_imbalance"]) == (1000, 20, 10, 4)


def test_no_two_sources_have_one_setting_with_two_defaults() -> None:
    """It would keep the default of the source before."""
    defaults: dict[str, set[str]] = {}
    for name in sources.__all__:
        if isinstance(source := getattr(sources, name), type) and issubclass(source, sources.Source):
            for setting, parameter in inspect.signature(source).parameters.items():
                if parameter.default is not parameter.empty:
                    defaults.setdefault(setting, set()).add(repr(parameter.default))
    assert {"assay_groups", "num_groups", "text", "seed"} <= defaults.keys()
    assert {setting: values for setting, values in defaults.items() if len(values) > 1} == {}


def test_batches_have_an_entry_for_each_label(tmp_path: Path) -> None:
    source = SyntheticAssays(**SMALL, labels=3, substructures=40)
    data = make_data(source, batch_size=50, validation_size=100, vocab_size=42, cache_dir=str(tmp_path))
    data.setup("fit")
    assert data.num_tasks == 30
    assert data.planted_groups == source.planted_groups
    assert data.task_classes is None
    documents = list(source.read("train"))
    found = []
    for batch in data.val_dataloader():
        assert batch["rows"].max() < len(batch["inputs"]["document_lengths"])
        found += zip(*(batch[key].tolist() for key in ("index", "task_ids", "labels")), strict=True)
    held_out = [number for number, document in enumerate(documents) if document.labels][-100:]
    places = {assay: place for place, assay in enumerate(source.domains())}
    expected = [(n, places[assay], label) for n in held_out for assay, label in documents[n].labels.items()]
    assert sorted(found) == sorted(expected)


def test_its_groups_are_found(make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    """As configs/mmtl.yaml does, with fewer assays."""
    torch.manual_seed(0)
    settings = {"num_assays": 60, "assay_groups": 3, "train_molecules": 2000, "test_molecules": 1}
    source = SyntheticAssays(**settings, labels=6, substructures=40)
    data = make_data(source, batch_size=64, validation_size=200, vocab_size=42, cache_dir=str(tmp_path))
    optimizer = partial(torch.optim.Adam, lr=0.003)
    encoder = NGram(42, 32, n=1, num_buckets=1, dropout=0.0)
    model = NCMTL(encoder, 60, cluster_features=[16], num_clusters=[3], task_names=data.domains, optimizer=optimizer)
    clustering = NetworkClusteringCallback(warmup_epochs=5, freeze_after_epochs=7)
    make_trainer(max_epochs=8, callbacks=[clustering]).fit(model, datamodule=data)
    groups = list(source.planted_groups.values())
    assert adjusted_rand_score(groups, clustering.assignments["cluster_layers.0"]) > 0.9


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"assay_groups": 31}, "assay_groups must be between 1 and num_assays 30, found 31"),
        ({"substructures": 0}, "sizes must be at least 1, found .* substructures=0"),
        ({"similarity": 1.1}, "similarity must be between 0 and 1, found 1.1"),
        ({"mistakes": 0.6}, "mistakes must be between 0 and 0.5, found 0.6"),
        ({"active": 1.0}, "active must be a share between 0 and 1, found 1.0"),
        ({"assay_imbalance": float("nan")}, "assay_imbalance must be a number of at least 1, found nan"),
        ({"labels": 0}, "labels must be more than 0 and at most .*, found 0"),
        ({"labels": 31, "assay_imbalance": 1}, "labels must be more than 0 and at most 30, .*, found 31"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SyntheticAssays(**SMALL | settings)


def test_what_is_not_there_is_refused() -> None:
    with pytest.raises(InputError, match="unknown assay 'cars': there are assay00 to assay29"):
        next(SyntheticAssays(**SMALL).read("train", ["assay01", "cars"]))
    with pytest.raises(InputError, match="have no unlabel split"):
        next(SyntheticAssays(**SMALL).read("unlabel"))
