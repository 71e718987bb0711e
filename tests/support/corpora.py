"""Sources of given documents."""

from collections.abc import Collection, Iterator, Mapping, Sequence

from lightning_ncmtl.datamodules.sources import Document, Label, Problem, Source, Split

Documents = Mapping[tuple[str, Split], Sequence[tuple[str, Label | None]]]


class Fixed(Source):
    """Texts and labels of each domain and split, which nobody can tell from others: they are never cached."""

    def __init__(self, documents: Documents) -> None:
        self.documents = documents
        self.was_read: list[Split] = []

    def domains(self) -> list[str]:
        train = {domain for domain, split in self.documents if split == "train"}
        return sorted(train or {domain for domain, _ in self.documents})

    def splits(self) -> set[Split]:
        return {split for _, split in self.documents}

    def read(self, split: Split, domains: Collection[str] | None = None) -> Iterator[Document | Problem]:
        self.was_read.append(split)
        for domain in sorted({domain for domain, _ in self.documents}) if domains is None else domains:
            for number, (text, label) in enumerate(self.documents.get((domain, split), []), start=1):
                yield Document(text, {domain: label}, f"{domain}.{split}:{number}")


class Several(Source):
    """Texts with labels in any number of domains."""

    multi_label = True

    def __init__(self, domains: list[str], documents: Sequence[tuple[str, Mapping[str, Label | None]]]) -> None:
        self._domains = domains
        self.documents = documents

    def domains(self) -> list[str]:
        return self._domains

    def splits(self) -> set[Split]:
        return {"train"}

    def read(self, split: Split, domains: Collection[str] | None = None) -> Iterator[Document | Problem]:
        for text, labels in self.documents:
            yield Document(text, {domain: labels[domain] for domain in labels if domains is None or domain in domains})


class Grouped(Source):
    """Texts, each with its domain and its group; every other one is positive."""

    def __init__(self, rows: Sequence[tuple[str, str, str]]) -> None:
        self.rows = rows

    def domains(self) -> list[str]:
        return sorted({domain for _, domain, _ in self.rows})

    def splits(self) -> set[Split]:
        return {"train"}

    def read(self, split: Split, domains: Collection[str] | None = None) -> Iterator[Document | Problem]:
        for number, (text, domain, group) in enumerate(self.rows):
            yield Document(text, {domain: number % 2}, group=group)
