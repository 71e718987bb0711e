"""A control: a corpus whose domains mean nothing."""

from collections.abc import Iterator
from typing import get_args

import numpy as np

from lightning_ncmtl.datamodules.sources.base import Document, Source, Split
from lightning_ncmtl.errors import InputError


class ShuffledDomains(Source):
    """The documents of another source, dealt to its domains at random within each split and label.

    Every domain keeps its size and its number of documents per label, so that nothing but the structure between the
    domains is lost: whatever a clustering finds here is chance.

    Args:
        source: The documents; all domains of it take part, whichever are used.
        seed: Seed of the dealing.
    """

    def __init__(self, source: Source, seed: int = 0) -> None:
        self.source = source
        self.seed = seed
        self._dealt: dict[Split, dict[str, list[Document]]] = {}

    def domains(self) -> list[str]:
        return self.source.domains()

    def splits(self) -> set[Split]:
        return self.source.splits()

    def read(self, domain: str, split: Split) -> Iterator[Document]:
        if split not in self._dealt:
            self._dealt[split] = self._deal(split)
        if domain not in self._dealt[split]:
            raise InputError(f"unknown domain {domain!r}: the shuffled source has {', '.join(self._dealt[split])}")
        yield from self._dealt[split][domain]

    def _deal(self, split: Split) -> dict[str, list[Document]]:
        by_domain = {domain: list(self.source.read(domain, split)) for domain in self.domains()}
        documents = [document for part in by_domain.values() for document in part]
        labels = np.array([document.label for document in documents], dtype=np.int64)
        rng = np.random.default_rng([self.seed, get_args(Split).index(split)])
        places = np.arange(len(documents))
        for label in np.unique(labels):
            places[labels == label] = rng.permutation(places[labels == label])
        dealt = iter([documents[place] for place in places])
        return {domain: [next(dealt) for _ in part] for domain, part in by_domain.items()}
