"""A made-up benchmark for many tasks in the shape of drug discovery: each molecule was measured in few assays."""

from collections.abc import Collection, Iterator
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from lightning_ncmtl.datamodules.sources.base import Document, Source, Split, fingerprint_files
from lightning_ncmtl.errors import InputError

Flags = NDArray[np.bool_]

_SPLITS: list[Split] = ["train", "test"]
_MOLECULES = 500  # made at a time: a bound on memory


class SyntheticAssays(Source):
    """Molecules that are active in an assay, or not (1 or 0); most of these labels are missing.

    Each assay is a task. A molecule is a document whose words are the substructures it has, as the set bits of a
    fingerprint are. Substructures are independent of each other; the commonest is in half of the molecules, the rarest
    in one of fifty. Every assay has a weight for each substructure (standardised, so that rare ones say as much), and
    is active where the sum is above a threshold. Assays of a group have similar weights, those of different groups
    unrelated ones: two assays of a group agree on a share ``1 - arccos(similarity) / pi`` of the molecules (0.86 by
    default) where half of them are active, before mistakes.

    Args:
        num_assays: Number of assays.
        assay_groups: Number of planted groups; assay ``i`` is in group ``i % assay_groups``.
        train_molecules: Number of training molecules.
        test_molecules: Number of test molecules.
        labels: Assays in which a molecule was measured, on average. They are drawn at random.
        substructures: Number of substructures.
        similarity: Correlation of the scores of two assays of a group.
        active: Share of molecules that are active in an assay.
        mistakes: Probability that a label is wrong.
        assay_imbalance: Labels of the largest assay, as a multiple of the smallest. Sizes between are spaced evenly in
            the logarithm, and fall to the assays at random.
        seed: Seed of everything.
    """

    # Not num_groups and imbalance: where only the class path changes, the command line keeps the values that Synthetic
    # has for arguments of the same names.
    def __init__(
        self,
        num_assays: int = 1000,
        assay_groups: int = 20,
        train_molecules: int = 20_000,
        test_molecules: int = 4_000,
        labels: float = 10.0,
        substructures: int = 128,
        similarity: float = 0.9,
        active: float = 0.5,
        mistakes: float = 0.05,
        assay_imbalance: float = 4.0,
        seed: int = 0,
    ) -> None:
        self._settings = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        if not 1 <= assay_groups <= num_assays:
            raise InputError(f"assay_groups must be between 1 and num_assays {num_assays}, found {assay_groups}")
        if min(train_molecules, test_molecules, substructures) < 1:
            raise InputError(f"sizes must be at least 1, found {train_molecules=}, {test_molecules=}, {substructures=}")
        for name, value, low, high in (("similarity", similarity, 0, 1), ("mistakes", mistakes, 0, 0.5)):
            if not low <= value <= high:
                raise InputError(f"{name} must be between {low} and {high}, found {value}")
        if not 0 < active < 1:
            raise InputError(f"active must be a share between 0 and 1, found {active}")
        if not 1 <= assay_imbalance < np.inf:
            raise InputError(f"assay_imbalance must be a number of at least 1, found {assay_imbalance}")
        rng = np.random.default_rng(seed)
        shares = rng.permutation(np.geomspace(1, assay_imbalance, num_assays))
        shares /= shares.mean()
        if not 0 < labels <= num_assays / shares.max():
            raise InputError(
                f"labels must be more than 0 and at most {num_assays / shares.max():.4g}, with which the largest assay "
                f"has one of each molecule, found {labels}"
            )
        self.shares = labels / num_assays * shares  # [assays], of the molecules that have a label
        self.assay_groups = assay_groups
        self.sizes: dict[Split, int] = {"train": train_molecules, "test": test_molecules}
        self.frequencies = rng.permutation(np.geomspace(0.5, 0.02, substructures))
        directions = [rng.standard_normal((count, substructures)) for count in (assay_groups, num_assays)]
        group, own = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in directions)
        group = group[np.arange(num_assays) % assay_groups]
        self.weights = np.sqrt(similarity) * group + np.sqrt(1 - similarity) * own  # [assays, substructures]
        self.threshold = NormalDist().inv_cdf(1 - active)  # the sum of many small parts is nearly normal
        self.mistakes = mistakes
        self.seed = seed

    @property
    def planted_groups(self) -> dict[str, int]:
        return {assay: index % self.assay_groups for index, assay in enumerate(self.domains())}

    @property
    def multi_label(self) -> bool:
        return True

    def domains(self) -> list[str]:
        return [f"assay{index:0{len(str(len(self.shares) - 1))}d}" for index in range(len(self.shares))]

    def splits(self) -> set[Split]:
        return set(_SPLITS)

    def read(self, split: Split, domains: Collection[str] | None = None) -> Iterator[Document]:
        assays = self.domains()
        if split not in self.sizes:
            raise InputError(f"the made-up assays have no {split} split")
        if unknown := sorted({*(domains or ())} - {*assays}):
            raise InputError(f"unknown assay {unknown[0]!r}: there are {assays[0]} to {assays[-1]}")
        used = np.array([domains is None or assay in domains for assay in assays])
        words = np.array([f"bit{bit}" for bit in range(len(self.frequencies))])
        rng = np.random.default_rng([self.seed, _SPLITS.index(split)])
        for start in range(0, self.sizes[split], _MOLECULES):
            has, active, measured = self._draw(rng, min(_MOLECULES, self.sizes[split] - start))
            for molecule in range(len(has)):
                chosen = np.flatnonzero(measured[molecule] & used)
                if len(chosen) or domains is None:
                    labels = {assays[assay]: int(active[molecule, assay]) for assay in chosen}
                    yield Document(" ".join(words[has[molecule]]), labels)

    def fingerprint(self) -> str:
        return fingerprint_files({"class": "SyntheticAssays", **self._settings}, [])

    def _draw(self, rng: np.random.Generator, count: int) -> tuple[Flags, Flags, Flags]:
        """Molecules: substructures ``[count, substructures]``, labels, and which are known ``[count, assays]``."""
        has = rng.random((count, len(self.frequencies))) < self.frequencies
        deviation = np.sqrt(self.frequencies * (1 - self.frequencies))
        active = ((has - self.frequencies) / deviation) @ self.weights.T > self.threshold
        active ^= rng.random(active.shape) < self.mistakes
        return has, active, rng.random(active.shape) < self.shares
