"""Tables of molecules, which become fingerprints."""

from collections.abc import Collection, Iterator, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from lightning_ncmtl.datamodules.sources.base import Document, Problem
from lightning_ncmtl.datamodules.sources.feature_tables import FeatureTables
from lightning_ncmtl.datamodules.sources.rows import short
from lightning_ncmtl.errors import InputError

_SCAFFOLD = "scaffold"
_NO_RING = "no ring"  # the scaffold of all molecules that have none; no SMILES


class Molecules(FeatureTables):
    """Tables with a molecule in each row, whose features are the bits of its Morgan fingerprint.

    A bit says whether a circular substructure up to a radius is there (Rogers & Hahn, 2010; computed by RDKit, whose
    numbers the bits have: ``bit0``, ``bit1``, ...). A SMILES that RDKit cannot parse is left out and told.

    Args:
        path: As for :class:`FeatureTables`.
        test_path: As for :class:`FeatureTables`.
        smiles: Column of the SMILES.
        label: As for :class:`FeatureTables`.
        task: As for :class:`FeatureTables`.
        id: As for :class:`FeatureTables`; by default the SMILES as it is written.
        split_by: What is not divided: molecules of one ``scaffold`` (Bemis & Murcko, 1996), those without rings being
            of the same; those that have the same in a column; or, by default, only copies.
        groups: As for :class:`FeatureTables`.
        radius: Bonds from the atom in the middle of a substructure to its rim; 2 is known as ECFP4.
        bits: Length of the fingerprint. Substructures that share a bit are not told apart.

    Raises:
        InputError: If the settings contradict each other, or RDKit is not installed.
    """

    columns_setting = "data.source.smiles"

    def __init__(
        self,
        path: str | list[str],
        test_path: str | list[str] | None = None,
        smiles: str = "smiles",
        label: str | list[str] | dict[str, str] = "label",
        task: str | None = None,
        id: str | None = None,
        split_by: str | None = None,  # as of other sources, whose defaults the command line keeps
        groups: dict[str, list[str]] | None = None,
        radius: int = 2,
        bits: int = 2048,
    ) -> None:
        if radius < 0 or bits < 1:
            raise InputError(f"fingerprints need a radius of at least 0 and a bit, found {radius=}, {bits=}")
        column = None if split_by == _SCAFFOLD else split_by
        super().__init__(path, test_path, smiles, label, task, id or smiles, column, groups)
        self.smiles = smiles
        self.scaffold = split_by == _SCAFFOLD
        self.radius = radius
        self.bits = bits
        self.rdkit = _rdkit().__version__  # for the fingerprint: it may change what is read

    def features(self) -> list[str]:
        super().features()  # refuses files without the column
        return self._bits()

    def read_new(self, file: Path, features: Sequence[str], domains: Collection[str]) -> Iterator[Document | Problem]:
        """As :meth:`FeatureTables.read_new`; of a wide table, each row is in every task."""
        found = {name: place for place, name in enumerate(self._bits())}
        if missing := [name for name in features if name not in found]:
            raise InputError(
                f"the model was trained on the feature {missing[0]!r}, which {self.bits} bits do not have: set "
                "data.source.bits as they were"
            )
        places = [found[name] for name in features]
        for item in super().read_new(file, [self.smiles], domains):
            if isinstance(item, Document):
                assert item.features is not None
                item = item._replace(features=[item.features[place] for place in places])
            yield item

    def settings_of_new(self) -> dict[str, Any]:
        settings = super().settings_of_new()
        own = {"smiles": self.smiles, "radius": self.radius, "bits": self.bits}
        return {**settings, "init_args": {**settings["init_args"], **own}}

    def _others(self) -> list[str]:
        return [column for column in super()._others() if column != self.smiles]  # of which the features are made

    def _bits(self) -> list[str]:
        return [f"bit{number}" for number in range(self.bits)]

    def _complete(self, document: Document, row: dict[str, Any], features: Sequence[str]) -> Document:
        rdkit, smiles = _rdkit(), row[self.smiles]
        with rdkit.rdBase.BlockLogs():  # what is wrong, over several lines on stderr
            molecule = rdkit.Chem.MolFromSmiles(smiles) if isinstance(smiles, str) else None
            if molecule is None or not molecule.GetNumAtoms():
                raise ValueError(f"expected the SMILES of a molecule in {self.smiles!r}, found {short(smiles)}")
            bits = _generator(self.radius, self.bits).GetFingerprintAsNumPy(molecule).tolist()
            scaffold = rdkit.Chem.Scaffolds.MurckoScaffold.MurckoScaffoldSmiles(mol=molecule) or _NO_RING
        group = scaffold if self.scaffold else document.group
        return document._replace(features=bits, group=group)


@cache
def _generator(radius: int, bits: int) -> Any:
    return _rdkit().Chem.rdFingerprintGenerator.GetMorganGenerator(radius=radius, fpSize=bits)


@cache
def _rdkit() -> ModuleType:
    """RDKit with the parts used here, which is slow to import."""
    try:
        import rdkit.Chem.rdFingerprintGenerator
        import rdkit.Chem.Scaffolds.MurckoScaffold
        import rdkit.rdBase
    except ModuleNotFoundError as error:
        raise InputError(
            f"molecules need {error.name}, which is not installed: pip install 'lightning-ncmtl[molecules]'"
        ) from error
    return rdkit
