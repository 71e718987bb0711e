import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonargparse import ArgumentParser
from rdkit import Chem
from rdkit.Chem import rdFingerprintGenerator
from rdkit.Chem.Scaffolds.MurckoScaffold import MurckoScaffoldSmiles
from table_files import WRITERS, Row, write_csv

from lightning_ncmtl.datamodules.cache import Cache
from lightning_ncmtl.datamodules.corpus import Corpus
from lightning_ncmtl.datamodules.division import Division
from lightning_ncmtl.datamodules.settings import SplitSettings
from lightning_ncmtl.datamodules.sources import Document, Molecules, Problem, Source
from lightning_ncmtl.errors import InputError

ROWS: list[Row] = [
    {"smiles": "CCO", "mol": "M1", "NR-A": 1, "SR-B": None},
    {"smiles": "c1ccccc1O", "mol": "M2", "NR-A": None, "SR-B": 0},
    {"smiles": "Cc1ccccc1", "mol": "M3", "NR-A": 0, "SR-B": 1},
    {"smiles": "CCO", "mol": "M4", "NR-A": None, "SR-B": None},
]
WIDE: Any = {"label": ["NR-*", "SR-*"], "bits": 64}


def documents(source: Source) -> list[Document]:
    items = list(source.read("train"))
    assert not [item for item in items if isinstance(item, Problem)]
    return [item for item in items if isinstance(item, Document)]


def fingerprint(smiles: str, radius: int = 2, bits: int = 2048) -> list[int]:
    """By RDKit itself, bit by bit."""
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=radius, fpSize=bits)
    on = set(generator.GetFingerprint(Chem.MolFromSmiles(smiles)).GetOnBits())
    return [int(bit in on) for bit in range(bits)]


@pytest.mark.parametrize("suffix", WRITERS)
def test_molecules_of_a_wide_table(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"assays.{suffix}"
    WRITERS[suffix](file, ROWS)
    source = Molecules(str(file), split_by="scaffold", **WIDE)
    assert source.multi_label
    assert source.domains() == ["NR-A", "SR-B"]
    assert source.features() == [f"bit{bit}" for bit in range(64)]
    found = documents(source)
    assert [row.text for row in found] == ["CCO", "c1ccccc1O", "Cc1ccccc1", "CCO"]
    assert [dict(row.labels) for row in found] == [{"NR-A": 1}, {"SR-B": 0}, {"NR-A": 0, "SR-B": 1}, {}]
    assert [row.features for row in found] == [fingerprint(row["smiles"], bits=64) for row in ROWS]
    assert [row.group for row in found] == ["no ring", "c1ccccc1", "c1ccccc1", "no ring"]
    named = documents(Molecules(str(file), id="mol", split_by="mol", **WIDE))
    assert [(row.text, row.group) for row in named] == [(f"M{n}", f"M{n}") for n in (1, 2, 3, 4)]
    assert {row.group for row in documents(Molecules(str(file), **WIDE))} == {""}


def test_molecules_of_a_long_table_with_other_fingerprints(tmp_path: Path) -> None:
    smiles = ["CC(=O)Oc1ccccc1C(=O)O", "CN1C=NC2=C1C(=O)N(C(=O)N2C)C", "C1CCCCC1"]
    rows = [{"structure": text, "assay": f"a{n % 2}", "active": "yes"} for n, text in enumerate(smiles)]
    write_csv(tmp_path / "a.csv", rows)
    settings: Any = {"smiles": "structure", "task": "assay", "label": "active"}
    source = Molecules(f"{tmp_path}/a.csv", **settings, radius=1, bits=128, split_by="scaffold")
    assert source.domains() == ["a0", "a1"]
    found = documents(source)
    assert [row.features for row in found] == [fingerprint(text, 1, 128) for text in smiles]
    assert [dict(row.labels) for row in found] == [{"a0": "yes"}, {"a1": "yes"}, {"a0": "yes"}]
    assert [row.group for row in found] == [MurckoScaffoldSmiles(text) for text in smiles]
    default = documents(Molecules(f"{tmp_path}/a.csv", **settings))
    assert [row.features for row in default] == [fingerprint(text) for text in smiles]
    prints = {
        Molecules(f"{tmp_path}/a.csv", **settings, **more).fingerprint()
        for more in ({}, {"radius": 1}, {"bits": 128}, {"split_by": "scaffold"}, {"split_by": "assay"}, {"id": "assay"})
    }
    assert len(prints) == 6


@pytest.mark.parametrize("smiles", ["C1CC", "c1ccccc", "CO[AlH3](O)O", "aspirin", "", " "])
def test_what_is_no_molecule_is_told_and_left_out(
    tmp_path: Path, smiles: str, capfd: pytest.CaptureFixture[str]
) -> None:
    write_csv(tmp_path / "a.csv", [{"smiles": "CCO", "label": 1}, {"smiles": smiles, "label": 0}])
    source = Molecules(f"{tmp_path}/a.csv")
    first, second = source.read("train")
    assert isinstance(first, Document)
    assert str(second) == f"{tmp_path}/a.csv:3: expected the SMILES of a molecule in 'smiles', found {smiles!r}"
    assert capfd.readouterr() == ("", "")  # RDKit says nothing


def test_a_cell_that_is_no_text(tmp_path: Path) -> None:
    WRITERS["jsonl"](tmp_path / "a.jsonl", [{"smiles": 7, "label": 1}, {"smiles": None, "label": 1}])
    *items, cause = map(str, Molecules(f"{tmp_path}/a.jsonl").read("train"))
    assert cause == items[0]
    found = [item.split(": ")[1] for item in items]
    assert found == [f"expected the SMILES of a molecule in 'smiles', found {cell}" for cell in (7, None)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"smiles": "structure"}, "no column 'structure' among 'smiles', 'label': set data.source.smiles"),
        ({"split_by": "series"}, "no column 'series' among 'smiles', 'label': set data.source.split_by"),
        ({"smiles": "label"}, "the column 'label' of {}/a.csv cannot be a feature, too: set data.source.smiles"),
        ({"radius": -1}, "fingerprints need a radius of at least 0 and a bit, found radius=-1, bits=2048"),
        ({"bits": 0}, "fingerprints need a radius of at least 0 and a bit, found radius=2, bits=0"),
    ],
)
def test_settings_that_do_not_fit(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    write_csv(tmp_path / "a.csv", [{"smiles": "C", "label": 1}])
    with pytest.raises(InputError, match=re.escape(message.format(tmp_path))):
        Molecules(f"{tmp_path}/a.csv", **settings).features()


def test_new_molecules_have_the_bits_that_the_model_knows(tmp_path: Path) -> None:
    write_csv(tmp_path / "new.csv", [{"smiles": "CCN"}, {"smiles": "x"}])
    source = Molecules("gone.csv", **WIDE)
    *found, bad = source.read_new(tmp_path / "new.csv", ["bit7", "bit3", "bit33"], ["NR-A", "SR-B"])
    bits = fingerprint("CCN", bits=64)
    assert [(row.text, row.labels, row.features) for row in found if isinstance(row, Document)] == [
        ("CCN", {"NR-A": None, "SR-B": None}, [bits[7], bits[3], bits[33]])
    ]
    assert isinstance(bad, Problem)
    with pytest.raises(InputError, match="trained on the feature 'bit64', which 64 bits do not have: set data.source"):
        list(source.read_new(tmp_path / "new.csv", ["bit64"], []))
    write_csv(tmp_path / "new.csv", [{"structure": "CCN"}])
    with pytest.raises(InputError, match="no column 'smiles' among 'structure': predict needs the columns"):
        list(source.read_new(tmp_path / "new.csv", ["bit0"], []))


@pytest.mark.parametrize("settings", [{"validation_size": 0.3}, {"folds": 3}])
def test_no_scaffold_is_divided(tmp_path: Path, settings: Any) -> None:
    rings = ["C1CCCCC1", "c1ccccc1", "c1ccncc1", "C1CC1", "c1ccoc1", "C1CCNCC1", "c1ccc2ccccc2c1", "C1COCCN1"]
    rng = np.random.default_rng(0)
    smiles = [f"{'C' * length}{'N' * tail}{ring}" for ring in rings for length in (1, 2, 3) for tail in (0, 1)]
    smiles += ["C" * length for length in range(1, 30)]
    write_csv(tmp_path / "a.csv", [{"smiles": text, "label": int(rng.integers(2))} for text in rng.permutation(smiles)])
    source = Molecules(f"{tmp_path}/a.csv", bits=8, split_by="scaffold")
    corpus = Corpus(source, None, None, Cache(str(tmp_path / "cache")))
    texts = np.array(corpus.read("train")["text"])
    sizes = []
    for seed in range(20):
        division = Division(corpus, SplitSettings(**settings, test_size=0.2, seed=seed))
        assert division.test is not None
        halves = division.halve()
        train = [division.train[halves == half] for half in (0, 1)]
        parts = [set(map(MurckoScaffoldSmiles, texts[part])) for part in (*train, division.validation, division.test)]
        assert sum(map(len, parts)) == len(rings) + 1
        sizes.append(len(division.test) / len(texts))
    assert np.mean(sizes) == pytest.approx(0.2, abs=0.05)


def test_without_rdkit_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules[Molecules.__module__]
    module._rdkit.cache_clear()
    monkeypatch.setitem(sys.modules, "rdkit", None)
    for name in [name for name in sys.modules if name.startswith("rdkit.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(InputError, match=r"molecules need rdkit.*: pip install 'lightning-ncmtl\[molecules\]'"):
        Molecules("a.csv")


def test_the_command_line_builds_it() -> None:
    parser = ArgumentParser()
    parser.add_subclass_arguments(Source, "source")
    settings = {"class_path": "lightning_ncmtl.datamodules.sources.Molecules", "init_args": {"path": "a.csv", **WIDE}}
    made = parser.instantiate_classes(parser.parse_object({"source": settings})).source
    assert (made.label, made.bits, made.scaffold) == (["NR-*", "SR-*"], 64, False)
