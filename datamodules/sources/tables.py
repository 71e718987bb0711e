"""Tables in files: CSV, TSV, JSONL and Parquet."""

from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path

from lightning_ncmtl.datamodules.sources.base import Document, Problem, Source, Split, choose, fingerprint_files
from lightning_ncmtl.datamodules.sources.files import convert, find_files, find_reader, read_rows, tell_cause
from lightning_ncmtl.datamodules.sources.rows import Layout, check_columns, domain_of_file
from lightning_ncmtl.errors import InputError

__all__ = ["Tables", "read_rows"]


class Tables(Source):
    """Tables with a document in each row: ``.csv``, ``.tsv`` and ``.jsonl``, plain or ``.gz``, and ``.parquet``.

    Files of a split are given by name, or by a pattern such as ``corpus/**/*.csv``. Each is a domain, named as the file
    is up to the first dot, unless a column tells the domain, or each domain has a label in every document.

    Labels are numbers or names. An empty one is unknown, and so is a word for a gap, such as ``NA``. Case and outer
    spaces of the names of columns make no difference.

    Args:
        train: Files of the training split.
        test: Files of the test split, if there is one.
        unlabel: Files of documents without labels, if there are any.
        text: Column of the text; several are joined by newlines.
        label: Column of the label; or the columns of several, by domain: every document is then in all domains, or in
            those that have a label for it.
        domain: Column of the domain.
        split_by: Column of groups, such as authors: documents of a group never fall into different parts of a split.

    Raises:
        InputError: If columns are missing from the settings, or contradict each other.
    """

    def __init__(
        self,
        train: str | list[str],
        test: str | list[str] | None = None,
        unlabel: str | list[str] | None = None,
        text: str | list[str] = "text",
        label: str | dict[str, str] = "label",
        domain: str | None = None,
        split_by: str | None = None,
    ) -> None:
        self.text = check_columns(text, label)
        if isinstance(label, dict) and domain is not None:
            raise InputError(
                f"either the labels name the domains, or the column {domain!r} does: "
                "set data.source.domain to null, or data.source.label to one column"
            )
        self.files: dict[Split, str | list[str] | None] = {"train": train, "test": test, "unlabel": unlabel}
        self.label = label
        self.domain = domain
        self.split_by = split_by
        self._domains: tuple[str, list[str]] | None = None  # and the fingerprint of the files that have them

    @property
    def multi_label(self) -> bool:
        return isinstance(self.label, dict)

    def domains(self) -> list[str]:
        if isinstance(self.label, dict):
            return sorted(self.label)
        if self.domain is None:
            return sorted({domain_of_file(file) for file in self._find("train")})
        now = self.fingerprint()
        if self._domains is None or self._domains[0] != now:
            self._domains = now, self._scan()
        return self._domains[1]

    def splits(self) -> set[Split]:
        return {split for split, files in self.files.items() if files is not None}

    def read(self, split: Split, domains: Collection[str] | None = None) -> Iterator[Document | Problem]:
        by_file = self.domain is None and not self.multi_label
        files: dict[str, list[Path]] = {}
        for file in self._find(split):
            files.setdefault(domain_of_file(file) if by_file else "", []).append(file)
        if domains is not None:
            choose(domains, {*self.domains(), *(files if by_file else ())}, "the corpus")
        layout = self._layout(split, domains)
        for home in domains if by_file and domains is not None else sorted(files):
            if home not in files:
                yield Problem(f"data.source.{split}", f"no file is called {home!r}, so it has no {split} documents")
                continue
            first, *others = files[home]
            if by_file and others:
                names = ", ".join(repr(str(other)) for other in others[:5]) + (", ..." if len(others) > 5 else "")
                yield Problem(str(first), f"taken together with {names} as the domain {home!r}", "note")
            for file in files[home]:
                rows = read_rows(file, layout.columns, layout.optional)
                yield from tell_cause(convert(rows, partial(layout.document, home=home)))

    def fingerprint(self) -> str:
        settings = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        files = [file for split in self.splits() for file in self._find(split)]
        return fingerprint_files({"class": "Tables", **settings}, files)

    def _layout(self, split: Split, domains: Collection[str] | None) -> Layout:
        label: str | dict[str, str] | None = self.label
        if isinstance(label, dict):
            label = {name: column for name, column in sorted(label.items()) if domains is None or name in domains}
        if split == "unlabel":
            label = {} if self.multi_label else None
        return Layout(self.text, label, self.domain, domains, self.split_by if split == "train" else None)

    def _find(self, split: Split) -> list[Path]:
        """The files of a split, sorted."""
        patterns = self.files.get(split)
        if patterns is None or patterns == []:
            raise InputError(f"there are no files of the {split} split: set data.source.{split}")
        files = find_files(patterns, f"data.source.{split}")
        for file in files:
            find_reader(file)  # refuses those that cannot be read
        return files

    def _scan(self) -> list[str]:
        """The domains that a column names in the training files."""
        found: set[str] = set()
        problem = ""
        for item in self.read("train"):
            if isinstance(item, Document):
                found.update(item.labels)
            elif item.kind != "note":
                problem = problem or f" ({item})"
        if not found:
            raise InputError(f"no training document names a domain in {self.domain!r}: set data.source.domain{problem}")
        return sorted(found)
