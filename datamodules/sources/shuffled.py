"""A control: a corpus whose domains mean nothing."""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from lightning_ncmtl.datamodules.sources.base import Document, Problem, Source, Split, choose, fingerprint_files
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
        self.id = source.id
        self.seed = seed
        self._dealt: dict[Split, tuple[list[Problem], dict[str, list[Document]]]] = {}

    def domains(self) -> list[str]:
        return self.source.domains()

    def splits(self) -> set[Split]:
        return self.source.splits()

    def features(self) -> list[str] | None:
        return self.source.features()

    def read_new(self, file: Path, features: Sequence[str], domains: Collection[str]) -> Iterator[Document | Problem]:
        return self.source.read_new(file, features, domains)

    def settings_of_new(self) -> dict[str, Any]:
        return self.source.settings_of_new()

    def read(self, split: Split, domains: Collection[str] | None = None) -> Iterator[Document | Problem]:
        if split not in self._dealt:
            items = list(self.source.read(split))
            documents = self._deal(split, [item for item in items if isinstance(item, Document)])
            self._dealt[split] = [item for item in items if isinstance(item, Problem)], documents
        problems, dealt = self._dealt[split]
        yield from problems
        for domain in choose(domains, dealt, "the shuffled source"):
            yield from dealt[domain]

    def fingerprint(self) -> str | None:
        inner = self.source.fingerprint()
        return None if inner is None else fingerprint_files({"class": "Shuffled", "of": inner, "seed": self.seed}, [])

    def _deal(self, split: Split, documents: list[Document]) -> dict[str, list[Document]]:
        if any(len(document.labels) != 1 for document in documents):
            raise InputError("documents with labels in several domains, or in none, cannot be shuffled over domains")
        if not documents:
            return {}
        homes, labels = zip(*[next(iter(document.labels.items())) for document in documents], strict=True)
        rng = np.random.default_rng([self.seed, get_args(Split).index(split)])
        places = np.arange(len(documents))
        codes = np.unique([str(label) for label in labels], return_inverse=True)[1]
        for code in range(codes.max() + 1):
            places[codes == code] = rng.permutation(places[codes == code])
        dealt: dict[str, list[Document]] = {domain: [] for domain in self.domains()}
        for home, label, place in zip(homes, labels, places, strict=True):
            dealt.setdefault(home, []).append(documents[place]._replace(labels={home: label}))
        return dealt
