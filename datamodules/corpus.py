"""The documents of a source as tables on disk, with numbers for domains and classes."""

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from datasets.utils import tqdm

from lightning_ncmtl.compatibility import rank_zero_info
from lightning_ncmtl.datamodules.cache import Cache, key_of
from lightning_ncmtl.datamodules.document_table import (
    Facts,
    classes_of,
    find_labelled,
    first_entries,
    read_documents,
    sort_labels,
    write_documents,
)
from lightning_ncmtl.datamodules.sources import Label, Source, Split
from lightning_ncmtl.datamodules.sources.base import Given, is_fraction
from lightning_ncmtl.errors import InputError, remember_left_out

Classes = list[Given] | dict[str, list[Given]]


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
        regression: The domains whose labels are numbers, which have no classes; or whether all are.

    Attributes:
        domains: The place of a name is its task id.
        classes: As given, or found.
        features: As given, or found; ``None`` of texts.

    Raises:
        InputError: If there are no domains, or the features are others than those of the source, or numbers are
            wanted of a domain that there is not.
    """

    def __init__(
        self,
        source: Source,
        domains: list[str] | None,
        classes: Classes | None,
        cache: Cache,
        features: list[str] | None = None,
        regression: bool | list[str] = False,
    ) -> None:
        self.source = source
        self._regression = regression is True
        self._named = dict.fromkeys([] if isinstance(regression, bool) else regression)
        self.features = source.features() if features is None else list(features)
        if self.features is not None and not len(set(self.features)) == len(self.features) > 0:
            raise InputError(f"data.features must be one or more different names, found {self.features}")
        if domains is None and isinstance(classes, dict):
            domains = [*classes, *(name for name in self._named if name not in classes)]
        named = classes if isinstance(classes, dict) else dict.fromkeys(domains or [""], classes or [])
        if classes is not None and not all(named[domain] for domain in named if not self._is_number(domain)):
            raise InputError(f"data.classes must name at least one class, found {classes}")
        self._cache = cache
        self.classes = classes
        self.domains = [] if domains is None else list(domains)
        self._chosen = domains is not None
        self._tables: dict[Split, Dataset] = {}
        if domains is None and "train" in source.splits():
            self.read("train")
        elif domains is None:
            self.domains = source.domains()
        if not self.domains or len(set(self.domains)) < len(self.domains):
            raise InputError(f"domains must be one or more different names, found {self.domains}")
        known = self.domains if self._chosen or not self._named else source.domains()
        if odd := [name for name in self._named if name not in known]:
            raise InputError(f"data.labels.regression has {odd[0]!r}, which is none of the domains {', '.join(known)}")

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
        """The classes of each domain, sorted; none where numbers are predicted."""
        if self.classes is None and len(self.regression) < len(self.domains):
            self.read("train")
        return self._classes_of(self.domains)

    @property
    def regression(self) -> list[str]:
        """The domains whose labels are numbers."""
        return list(filter(self._is_number, self.domains))

    @property
    def class_names(self) -> list[Label]:
        """All classes; the place of a name is its number."""
        return sort_labels({name for names in self.domain_classes.values() for name in names})

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        names = {"domains": self.domains, "classes": self.domain_classes, "regression": self.regression}
        return {**names, "features": self.features}

    def restore(self, state_dict: dict[str, Any]) -> None:
        """Take the classes of a checkpoint, if none are known.

        Raises:
            InputError: If the rest is not the same.
        """
        for name, where in (("domains", ""), ("regression", "labels."), ("features", "")):
            theirs, ours = state_dict.get(name, []), getattr(self, name)
            if theirs != ours:
                shown = [f"{str(names)[:150]}" for names in (theirs, ours)]
                raise InputError(
                    f"the checkpoint was trained on the {name} {shown[0]}; the data has {shown[1]}: set "
                    f"data.{where}{name}"
                )
        if self.classes is None:
            self.classes = state_dict["classes"]
        found = self.domain_classes
        for domain, theirs in classes_of(self.domains, state_dict["classes"]).items():
            if theirs != found[domain]:
                raise InputError(
                    f"the checkpoint was trained on the classes {theirs} of {domain!r}; the data has {found[domain]}: "
                    "set data.classes"
                )

    def read(self, split: Split) -> Dataset:
        """The table of a split.

        Returns:
            Columns ``text``, ``group``, and the lists ``task_ids`` and ``labels``: an entry for each task of a
            document, which is one, with the label -1 where it is unknown; if documents may have several labels, all
            that are known. Where labels may be numbers, these are in lists of ``values``, and NaN is no number.

        Raises:
            InputError: If there is no such split, or nothing in it that can be used.
        """
        if split not in self._tables:
            if split not in self.source.splits():
                found = ", ".join(sorted(self.source.splits())) or "none"
                way_out = "; data.split.test_size sets a part of train aside, in fit, too" if split == "test" else ""
                raise InputError(f"there is no {split} split: {type(self.source).__name__} has {found}{way_out}")
            table, facts = self._prepare(split)
            if not len(table) or not facts["domains"]:
                what = "labels" if len(table) else "documents"
                raise InputError("; ".join([f"there are no {what} in the {split} split", *facts["problems"][:1]]))
            for line in facts["problems"]:
                rank_zero_info(f"{split}: {line}")
            remember_left_out(facts["nothing"])
            if split == "train":
                self._use(facts)
            elif split == "test" and not self.source.multi_label:
                counts = np.bincount(first_entries(table)[0][find_labelled(table)], minlength=len(self.domains))
                if missing := [domain for domain, count in zip(self.domains, counts, strict=True) if not count]:
                    rank_zero_info(f"{split}: no documents with labels of {', '.join(missing)}")
            self._tables[split] = table
        return self._tables[split]

    def _use(self, facts: Facts) -> None:
        """Take domains and classes as the training documents have them."""
        if missing := [domain for domain in self.domains if not facts["counts"].get(domain)]:
            raise InputError(f"domain {missing[0]!r} has no documents in its train split: leave it out of data.domains")
        self.domains = facts["domains"]
        if self.classes is None:
            self.classes = {domain: [*names] for domain, names in facts["classes"].items()}
            fractions = {
                name: domain for domain, names in facts["classes"].items() for name in filter(is_fraction, names)
            }
            if fractions:
                name, domain = next(iter(fractions.items()))
                rank_zero_info(
                    f"train: {len(fractions):,} of the classes are fractions, such as {name} of {domain!r}: set "
                    "data.labels.regression where numbers are to be predicted"
                )
        for domain, names in self._classes_of(self.domains).items():
            if not (facts["known"][domain] if self._is_number(domain) else names):
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
        numbers = self._regression or list(self._named)
        name = f"{split}-{key_of(self.fingerprint, split, domains, classes, self._chosen, places, numbers)}"

        def make(path: Path) -> None:
            known = domains or self.source.domains()
            items = self.source.read(split, known if self._chosen else None)
            write_documents(
                path,
                tqdm(items, desc=f"Reading {split}", unit=" documents"),
                known,
                None if classes is None else self._classes_of(known),
                drop_empty=domains is None,
                multi_label=self.source.multi_label,
                features=places,
                regression=list(filter(self._is_number, known)),
            )

        return read_documents(self.cache.get(f"{name}.arrow", make))

    def _is_number(self, domain: str) -> bool:
        """Whether the labels of a domain are numbers."""
        return self._regression or domain in self._named

    def _classes_of(self, domains: Iterable[str]) -> dict[str, list[Label]]:
        domains = list(domains)
        named = classes_of([domain for domain in domains if not self._is_number(domain)], self.classes or [])
        return {domain: named.get(domain, []) for domain in domains}

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
