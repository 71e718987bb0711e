"""The documents of a source as tables on disk, with numbers for domains and classes."""

from functools import cached_property
from pathlib import Path

import numpy as np
from datasets import Dataset
from datasets.utils import tqdm

from lightning_ncmtl.compatibility import rank_zero_info
from lightning_ncmtl.datamodules.cache import Cache, key_of
from lightning_ncmtl.datamodules.document_table import (
    Facts,
    classes_of,
    first_entries,
    read_documents,
    sort_labels,
    write_documents,
)
from lightning_ncmtl.datamodules.sources import Label, Source, Split
from lightning_ncmtl.errors import InputError

Classes = list[Label] | dict[str, list[Label]]


class Corpus:
    """Reads each split of a source once, and numbers its domains and classes.

    Documents go to disk while they are read and stay there (Arrow, memory-mapped). What cannot be used is left out,
    and told in a line each: what the source reports, labels outside the classes, domains without training documents.

    Args:
        source: Where documents come from.
        domains: The domains to use; by default all that have training documents.
        classes: The classes of all domains, or of each; by default the labels of each domain's training documents.
        cache: Where tables go, if the source can tell when its documents change.
        features: The features to use, in this order, where the source has any; by default all of these.

    Attributes:
        domains: The place of a name is its task id.
        classes: As given, or found.
        features: As given, or found; ``None`` of texts.

    Raises:
        InputError: If there are no domains, or the features are others than those of the source.
    """

    def __init__(
        self,
        source: Source,
        domains: list[str] | None,
        classes: Classes | None,
        cache: Cache,
        features: list[str] | None = None,
    ) -> None:
        self.source = source
        self.features = source.features() if features is None else list(features)
        if self.features is not None and not len(set(self.features)) == len(self.features) > 0:
            raise InputError(f"data.features must be one or more different names, found {self.features}")
        if classes is not None and not (all(classes.values()) if isinstance(classes, dict) else classes):
            raise InputError(f"data.classes must name at least one class, found {classes}")
        self._cache = cache
        self.classes = classes
        if domains is None and isinstance(classes, dict):
            domains = list(classes)
        self.domains = [] if domains is None else list(domains)
        self._chosen = domains is not None
        self._tables: dict[Split, Dataset] = {}
        if domains is None and "train" in source.splits():
            self.read("train")
        elif domains is None:
            self.domains = source.domains()
        if not self.domains or len(set(self.domains)) < len(self.domains):
            raise InputError(f"domains must be one or more different names, found {self.domains}")

    @cached_property
    def fingerprint(self) -> str | None:
        """The source's, when documents are read: a checkpoint does without them."""
        return self.source.fingerprint()

    @cached_property
    def cache(self) -> Cache:
        """Where tables of the source go."""
        return self._cache if self.fingerprint is not None else Cache.temporary()

    @property
    def domain_classes(self) -> dict[str, list[Label]]:
        """The classes of each domain, sorted."""
        if self.classes is None:
            self.read("train")
        assert self.classes is not None
        return classes_of(self.domains, self.classes)

    @property
    def class_names(self) -> list[Label]:
        """All classes: the place of a name is its number."""
        return sort_labels({name for names in self.domain_classes.values() for name in names})

    def read(self, split: Split) -> Dataset:
        """The table of a split.

        Returns:
            Columns ``text``, ``group``, and the lists ``task_ids`` and ``labels``: an entry for each task of a
            document, which is one, with the label -1 where it is unknown; if documents may have several labels, all
            that are known.

        Raises:
            InputError: If there is no such split, or nothing in it that can be used.
        """
        if split not in self._tables:
            if split not in self.source.splits():
                found = ", ".join(sorted(self.source.splits())) or "none"
                raise InputError(f"there is no {split} split: {type(self.source).__name__} has {found}")
            table, facts = self._prepare(split)
            for line in facts["problems"]:
                rank_zero_info(f"{split}: {line}")
            if not len(table) or not facts["domains"]:
                what = "labels" if len(table) else "documents"
                raise InputError("; ".join([f"there are no {what} in the {split} split", *facts["problems"][:1]]))
            if split == "train":
                self._use(facts)
            elif split == "test" and not self.source.multi_label:
                tasks, labels = first_entries(table)
                counts = np.bincount(tasks[labels >= 0], minlength=len(self.domains))
                if missing := [domain for domain, count in zip(self.domains, counts, strict=True) if not count]:
                    rank_zero_info(f"{split}: no documents with labels of {', '.join(missing)}")
            self._tables[split] = table
        return self._tables[split]

    def _use(self, facts: Facts) -> None:
        """Take domains and classes as the training documents have them."""
        if missing := [domain for domain in self.domains if not facts["counts"].get(domain)]:
            raise InputError(f"domain {missing[0]!r} has no documents in its train split: leave it out of data.domains")
        self.domains = facts["domains"]
        self.classes = facts["classes"] if self.classes is None else self.classes
        for domain, names in classes_of(self.domains, self.classes).items():
            if not names:
                raise InputError(f"domain {domain!r} has no labels in its train split: leave it out of data.domains")
            if len(names) == 1:
                rank_zero_info(
                    f"train: {domain!r} has only one class ({names[0]}): there is nothing to learn, and its accuracy "
                    "means nothing"
                )

    def _prepare(self, split: Split) -> tuple[Dataset, Facts]:
        domains = self.domains or None
        classes = self.classes if split == "train" else self.domain_classes
        places = self._feature_places()
        name = f"{split}-{key_of(self.fingerprint, split, domains, classes, self._chosen, places)}"

        def make(path: Path) -> None:
            known = domains or self.source.domains()
            items = self.source.read(split, known if self._chosen else None)
            write_documents(
                path,
                tqdm(items, desc=f"Reading {split}", unit=" documents"),
                known,
                None if classes is None else classes_of(known, classes),
                drop_empty=domains is None,
                multi_label=self.source.multi_label,
                features=places,
            )

        return read_documents(self.cache.get(f"{name}.arrow", make))

    def _feature_places(self) -> list[int] | None:
        """The place of each feature among those of the source."""
        if self.features is None:
            return None
        found = {name: place for place, name in enumerate(self.source.features() or ())}
        if missing := [name for name in self.features if name not in found]:
            shown = ", ".join(map(repr, list(found)[:20])) + (", ..." if len(found) > 20 else "")
            raise InputError(
                f"{type(self.source).__name__} has no feature {missing[0]!r}, but {shown or 'texts'}: set data.features"
            )
        return [found[name] for name in self.features]
