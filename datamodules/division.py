"""Which documents train, validate and test, and which of them have copies."""

import hashlib
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np

from lightning_ncmtl.compatibility import rank_zero_info
from lightning_ncmtl.datamodules.cache import key_of
from lightning_ncmtl.datamodules.copies import (
    MANY,
    Flags,
    Integers,
    deal_folds,
    deal_share,
    find_pairs,
    find_repeats,
    group_copies,
)
from lightning_ncmtl.datamodules.corpus import Corpus
from lightning_ncmtl.datamodules.document_table import find_labelled, first_entries, read_column
from lightning_ncmtl.datamodules.settings import SplitSettings
from lightning_ncmtl.datamodules.sources import Split
from lightning_ncmtl.errors import InputError

VALIDATION, TEST = 1, 2  # numbers of random divisions


class Division:
    """Divides the training split of a corpus into documents that train, validate, and perhaps test.

    Domains with too few documents are not divided, which is told: all of them train.

    Args:
        corpus: The documents.
        split: How to divide them.
        test: Whether :meth:`clean_test` will be asked for, too.

    Attributes:
        train: Places in the training split, ascending.
        validation: Places in the training split, ascending.
        groups: Number of the copies of each document of the training split, alike.
        test: Places in the training split, ascending, if ``test_size`` set documents aside.

    Raises:
        InputError: If a part would be empty.
    """

    def __init__(self, corpus: Corpus, split: SplitSettings, test: bool = False) -> None:
        self.corpus = corpus
        self.seed = split.seed
        documents = corpus.read("train")
        self.tasks, labels = first_entries(documents)
        self.labelled = find_labelled(documents)
        splits: list[Split] = ["train"]
        if "test" in corpus.source.splits() and (split.deduplicate or test):
            splits.append("test")
        self._pairs = self._find_pairs(*splits)
        # Only of the training split, so that the folds do not depend on the test split
        self.groups = group_copies(self._pairs, len(documents))
        together = find_repeats(chain.from_iterable(read_column("group", documents)))
        if len(together):  # perhaps few and large groups, of which labels cannot be shared out
            self.strata = self.tasks * (not corpus.source.multi_label)
        else:  # every domain and label, those without one included
            self.strata = self.tasks * (len(corpus.class_names) + 1) + labels + 1
        self._inseparable = group_copies(np.concatenate([self._pairs, together]), len(documents))
        aside = np.zeros(len(documents), dtype=bool)
        if split.test_size is not None:
            if "test" in corpus.source.splits():
                raise InputError(f"the source has a test split: unset data.split.test_size, found {split.test_size}")
            aside = self._share(split.test_size, ~aside, TEST, "test_size")
        if split.folds is not None:
            held_out = ~aside & (deal_folds(self._inseparable, self.strata, split.folds, split.seed) == split.fold)
            self._keep(held_out, ~aside, f"the fold {split.fold} of {split.folds}", "choose fewer folds")
        elif isinstance(split.validation_size, float):
            held_out = self._share(split.validation_size, ~aside, VALIDATION, "validation_size")
        elif len(together):
            raise InputError(
                "the source divides documents by groups (data.source.split_by), and the last documents of a domain may "
                f"be any part of these: set data.split.validation_size to a share such as 0.2, found "
                f"{split.validation_size}, or data.split.folds"
            )
        else:
            held_out = self._last(split.validation_size, ~aside)
        used = ~held_out & ~aside
        if split.deduplicate:
            used &= ~self._leaks(held_out, aside)
        self.train = np.flatnonzero(used)
        self.validation = np.flatnonzero(held_out)
        self.test = None if split.test_size is None else np.flatnonzero(aside)

    @cached_property
    def fingerprint(self) -> str:
        """A text that tells which documents train, wherever their files are."""
        digest = hashlib.blake2b(self.train.tobytes(), digest_size=16)
        documents = self.corpus.read("train")
        for rows in documents.with_format("arrow").iter(1000):
            if self.corpus.features is not None:  # many numbers, of which texts would take long
                digest.update(rows["features"].combine_chunks().flatten().to_numpy().tobytes())
            entries = rows.select([name for name in rows.column_names if name != "features"])
            digest.update(repr(entries.to_pylist()).encode("utf-8", "surrogatepass"))
        return digest.hexdigest()

    def tell_change(self, trained: str | None) -> None:
        """Tell it, if a checkpoint was trained on other documents.

        Args:
            trained: The :attr:`fingerprint` in the checkpoint, if it has one.
        """
        if trained not in (None, self.fingerprint):
            rank_zero_info(
                "the checkpoint was trained on other documents than those that train by these settings, as the data or "
                "data.split has changed: what is evaluated now may have been among them"
            )

    def halve(self) -> Integers:
        """Deal those that train into halves, 0 and 1, alike in their domains; copies and groups stay together.

        Not alike in their labels: what chance did to these in one half must not come back in the other.
        """
        _, groups = np.unique(self._inseparable[self.train], return_inverse=True)
        return deal_folds(groups, self.tasks[self.train], 2, self.seed)

    def clean(self) -> Flags:
        """Which documents of the training split have no copy among those that train."""
        return ~np.isin(self.groups, self.groups[self.train])

    def clean_test(self) -> Flags:
        """Which documents of the corpus's test split have no copy among those that train."""
        pairs = self._find_pairs("train", "test")
        groups = group_copies(pairs, len(self.groups) + len(self.corpus.read("test")))
        return ~np.isin(groups[len(self.groups) :], groups[self.train])

    def _share(self, share: float, pool: Flags, number: int, name: str) -> Flags:
        if not 0 < share < 1:
            raise InputError(f"data.split.{name} must be a share between 0 and 1, found {share}")
        _, groups = np.unique(self._inseparable[pool], return_inverse=True)
        chosen = np.zeros_like(pool)
        chosen[pool] = deal_share(groups, self.strata[pool], share, [self.seed, number])
        self._keep(chosen, pool, f"data.split.{name} {share}", "choose another share")
        return chosen

    def _keep(self, chosen: Flags, pool: Flags, what: str, way_out: str) -> None:
        """Take back what was chosen of domains that nothing would be left of; an InputError if nothing remains chosen.

        These have too few documents to be divided, or too large groups, and train as a whole.
        """
        tasks, names = self._names()
        sizes = np.bincount(tasks[pool], minlength=len(names))
        first = np.bincount(tasks[chosen], minlength=len(names))
        while (full := (np.bincount(tasks[chosen], minlength=len(names)) == sizes) & (sizes > 0)).any():
            chosen &= ~np.isin(self._inseparable, self._inseparable[pool & full[tasks]])  # of other domains, too
        whole = np.flatnonzero((np.bincount(tasks[chosen], minlength=len(names)) == 0) & (sizes > 0))
        if not chosen.any():
            raise InputError(
                f"{what} holds {first[whole[0]]} of the {sizes[whole[0]]} documents of {names[whole[0]]}, of which "
                f"copies and groups stay together: {way_out}"
            )
        self._tell([names[task] for task in whole], what)

    def _last(self, size: int, pool: Flags) -> Flags:
        """The last documents with labels, of domains that have more."""
        tasks, names = self._names()
        held_out = np.zeros(len(pool), dtype=bool)
        places = [np.flatnonzero(pool & self.labelled & (tasks == task)) for task in range(len(names))]
        largest = max(range(len(names)), key=lambda task: len(places[task]))
        if not 0 < size < len(places[largest]):
            raise InputError(
                f"data.split.validation_size must be between 1 and {len(places[largest]) - 1}, one less than the "
                f"training documents of {names[largest]}, found {size}; or a share, such as 0.1"
            )
        for of_task in places:
            if size < len(of_task):
                held_out[of_task[-size:]] = True
        whole = [name for name, of_task in zip(names, places, strict=True) if size >= len(of_task)]
        self._tell(whole, f"data.split.validation_size {size}")
        return held_out

    def _names(self) -> tuple[Integers, list[str]]:
        """What each document is divided with, a number and its name: the domain; all, where they may have several."""
        if self.corpus.source.multi_label:
            return np.zeros_like(self.tasks), ["the corpus"]
        return self.tasks, [repr(domain) for domain in self.corpus.domains]

    def _tell(self, whole: list[str], what: str) -> None:
        if whole:
            names = ", ".join(whole[:5]) + (f" and {len(whole) - 5:,} others" if len(whole) > 5 else "")
            rank_zero_info(f"train: {what} divides no documents of {names}: they are too few, and all train")

    def _leaks(self, held_out: Flags, aside: Flags) -> Flags:
        """Which training documents have a copy in validation or test (of a test split, only the texts are used)."""
        count = len(held_out)
        others = "test" in self.corpus.source.splits()
        groups = group_copies(self._pairs, count + len(self.corpus.read("test"))) if others else self.groups
        leaks = np.isin(groups[:count], np.concatenate([groups[:count][held_out | aside], groups[count:]]))
        where = "validation or test" if others or aside.any() else "validation"
        pool = ~held_out & ~aside
        rank_zero_info(f"train: dropped {(leaks & pool).sum():,} of {pool.sum():,} documents, with a copy in {where}")
        left = np.bincount(self.tasks[pool & ~leaks], minlength=len(self.corpus.domains))
        if not left.all() and not self.corpus.source.multi_label:
            raise InputError(
                f"every training document of {self.corpus.domains[left.argmin()]!r} has a copy in {where}: "
                f"set data.split.deduplicate to false, or leave the domain out of data.domains"
            )
        return np.asarray(leaks)

    def _find_pairs(self, *splits: Split) -> Integers:
        """The pairs of copies among the documents of some splits, in this order."""
        parts = [self.corpus.read(split) for split in splits]
        if self.corpus.features is not None:  # ids stand in the place of texts
            return find_repeats(chain.from_iterable(read_column("text", *parts)))
        near = len(parts[0]) <= MANY  # only of training, whatever else is read

        def make(path: Path) -> None:
            if not near:
                rank_zero_info("too many documents to compare all words: copies are those with the same start")
            with path.open("wb") as file:
                np.save(file, find_pairs(chain.from_iterable(read_column("text", *parts)), near))

        # The tables tell all that they were made of.
        key = key_of(splits, *[part.cache_files for part in parts])
        found: Integers = np.load(self.corpus.cache.get(f"copies-{key}.npy", make))
        return found
