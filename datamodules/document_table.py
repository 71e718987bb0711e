"""Documents as a table on disk (Arrow), with numbers for domains and classes."""

import json
import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from numpy.typing import NDArray

from lightning_ncmtl.datamodules.sources import Document, Label, Problem
from lightning_ncmtl.datamodules.sources.base import Gap, Given, number_of, plain_label
from lightning_ncmtl.errors import InputError

SCHEMA = pa.schema(
    {"text": pa.string(), "group": pa.string(), "task_ids": pa.list_(pa.int32()), "labels": pa.list_(pa.int32())}
)
_SHOWN = 5  # problems of a split that are told one by one
_ROWS, _CHARACTERS = 1000, 1 << 24  # of documents that are written at a time


class Facts(TypedDict):
    """What reading a split found.

    Attributes:
        domains: Those numbered.
        classes: Of each domain; none where numbers are predicted.
        counts: Labels, known or not, of each domain.
        known: Labels that are known, of each domain.
        problems: What was left out: a line each for the first, and how many more; and how it was read.
        nothing: Of files and domains of which nothing is used, why.
    """

    domains: list[str]
    classes: dict[str, list[Label]]
    counts: dict[str, int]
    known: dict[str, int]
    problems: list[str]
    nothing: list[str]


def write_documents(
    path: Path,
    items: Iterable[Document | Problem],
    domains: Sequence[str],
    classes: Mapping[str, Sequence[Label]] | None,
    drop_empty: bool = False,
    multi_label: bool = False,
    features: Sequence[int] | None = None,
    regression: Collection[str] = (),
) -> Facts:
    """Write documents as a table (see :meth:`lightning_ncmtl.datamodules.corpus.Corpus.read`), a few at a time.

    Args:
        path: The file.
        items: Documents and problems.
        domains: The domains; documents of others are left out.
        classes: The classes of each domain; documents with other labels are left out. By default those found.
        drop_empty: Whether to leave out domains without documents.
        multi_label: Whether a document may have several labels, or none.
        features: The places of the features that are kept, in this order, of documents that have any.
        regression: The domains whose labels are numbers.
    """
    writer = _Writer(domains, classes, multi_label, features, regression)
    first = path.with_name(f"{path.name}-first")
    try:
        _write_batches(first, writer.schema, writer.batches(items))
        facts = writer.facts(drop_empty)
        # The numbers are known when all was read: they are put in by a second pass.
        names = sort_labels({name for names in facts["classes"].values() for name in names})
        tasks, labels = _places(domains, facts["domains"]), _places([*writer.codes, None], names)
        with pa.memory_map(str(first)) as source, pa.ipc.open_stream(source) as batches:
            schema = writer.schema.with_metadata({"facts": json.dumps(facts)})
            _write_batches(path, schema, (_renumber(batch, tasks, labels) for batch in batches))
        return facts
    finally:
        first.unlink(missing_ok=True)


def read_documents(path: Path) -> tuple[Dataset, Facts]:
    """A table that :func:`write_documents` has written, on disk; and what it had found."""
    with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as batches:
        return Dataset.from_file(str(path)), json.loads(batches.schema.metadata[b"facts"])


class _Writer:
    """Turns documents into batches of rows, with numbers in the order of finding, and keeps count."""

    def __init__(
        self,
        domains: Sequence[str],
        classes: Mapping[str, Sequence[Label]] | None,
        multi_label: bool,
        features: Sequence[int] | None,
        regression: Collection[str],
    ) -> None:
        self.features = features
        self.regression = set(regression)
        self.schema = SCHEMA
        if self.regression:
            self.schema = self.schema.append(pa.field("values", pa.list_(pa.float64())))
        if features is not None:
            self.schema = self.schema.append(pa.field("features", pa.list_(pa.float64(), len(features))))
        self.classes = classes
        self.multi_label = multi_label
        self.tasks = {domain: task for task, domain in enumerate(domains)}
        self.codes: dict[Label, int] = {}
        self.found: dict[str, set[Label]] = {domain: set() for domain in domains}
        self.counts, self.known = dict.fromkeys(domains, 0), dict.fromkeys(domains, 0)
        self.unknown: Counter[str] = Counter()
        self.gaps: Counter[str] = Counter()
        self.problems: list[str] = []
        self.more = 0
        self.notes: dict[str, list[str]] = {}  # where each holds
        self.causes: list[str] = []

    def facts(self, drop_empty: bool) -> Facts:
        needed = self.known if self.classes is None else self.counts
        used = [domain for domain in self.tasks if needed[domain] or not drop_empty]
        classes = self.classes or {domain: sort_labels(self.found[domain]) for domain in used}
        left_out = []
        for domain, count in self.counts.items():
            if domain not in used:
                what = "labels" if count or self.multi_label else "documents"
                left_out.append(f"{domain!r} has no {what}: the domain is left out")
        for domain, count in self.unknown.items():
            left_out.append(f"left out {count:,} documents of {domain!r}, which has no training documents")
        more = [f"and {self.more:,} more problems"] if self.more else []
        return Facts(
            domains=used,
            classes={domain: list(classes[domain]) for domain in used},
            counts={domain: self.counts[domain] for domain in used},
            known={domain: self.known[domain] for domain in used},
            problems=[*self.problems, *left_out, *more, *self._remarks()],
            nothing=[*self.causes, *left_out],
        )

    def _remarks(self) -> Iterator[str]:
        """How documents were read, where somebody might want it otherwise."""
        for what, (first, *others) in self.notes.items():
            yield f"{first}: {what}" + (f", and in {len(others):,} other files" if others else "")
        if self.gaps:
            words = ", ".join(f"{word!r}" for word, _ in self.gaps.most_common(_SHOWN))
            yield (
                f"{self.gaps.total():,} labels are words for gaps ({words}) and count as missing: name them in "
                "data.classes if they are classes"
            )

    def report(self, problem: Problem) -> None:
        if problem.kind == "note":
            self.notes.setdefault(problem.what, []).append(problem.where)
        elif problem.kind == "cause":
            self.causes.append(str(problem))
        elif len(self.problems) < _SHOWN:
            self.problems.append(str(problem))
        else:
            self.more += 1

    def batches(self, items: Iterable[Document | Problem]) -> Iterator[pa.RecordBatch]:
        rows: list[dict[str, Any]] = []
        characters = 0
        for item in items:
            if isinstance(item, Problem):
                self.report(item)
                continue
            pairs = self._pairs(item)
            if not pairs and (item.labels or not self.multi_label):
                continue
            if self.multi_label:
                pairs = [pair for pair in pairs if pair[1] >= 0 or not math.isnan(pair[2])]
            tasks, labels, values = zip(*pairs, strict=True) if pairs else ((), (), ())
            rows.append({"text": item.text, "group": item.group, "task_ids": tasks, "labels": labels})
            if self.regression:
                rows[-1]["values"] = values
            if self.features is not None:
                assert item.features is not None, "a document without the features of its source"
                rows[-1]["features"] = [item.features[place] for place in self.features]
            characters += len(item.text)
            if len(rows) == _ROWS or characters > _CHARACTERS:
                yield pa.RecordBatch.from_pylist(rows, self.schema)
                rows, characters = [], 0
        yield pa.RecordBatch.from_pylist(rows, self.schema)

    def _pairs(self, document: Document) -> list[tuple[int, int, float]]:
        """Task, class and number of each label that can be used: -1 is no class, and NaN no number."""
        pairs = []
        for domain, given in document.labels.items():
            if domain not in self.tasks:
                self.unknown[domain] += 1
                continue
            code, value = -1, math.nan
            if given is not None and not self._is_gap(given, domain):
                try:
                    if domain in self.regression:
                        value = _number(given, domain)
                    else:
                        label = self._class(given, domain)
                        self.found[domain].add(label)
                        code = self.codes.setdefault(label, len(self.codes))
                except ValueError as error:
                    self.report(Problem(document.where, str(error)))
                    continue
                self.known[domain] += 1
            self.counts[domain] += 1
            pairs.append((self.tasks[domain], code, value))
        return pairs

    def _is_gap(self, given: Given, domain: str) -> bool:
        """Whether a word stands for a label that is missing, which is counted."""
        named = domain not in self.regression and self.classes is not None and given in self.classes[domain]
        if not isinstance(given, Gap) or named:
            return False
        self.gaps[str(given)] += 1
        return True

    def _class(self, given: Given, domain: str) -> Label:
        label = plain_label(given)
        if self.classes is not None and label not in self.classes[domain]:
            names = ", ".join(map(repr, self.classes[domain]))
            raise ValueError(f"the label {label!r} of {domain!r} is none of its classes {names}: set data.classes")
        return label


def _number(given: Given, domain: str) -> float:
    try:
        value = float(given)
    except (ValueError, OverflowError):
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"expected a finite number for {domain!r} (data.labels.regression), found {given!r}")
    return value


def first_entries(documents: Dataset) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Task and label ``[n]`` of each document's first entry; 0 and -1 where it has none."""
    tasks, labels = _first(documents, "task_ids", 0), _first(documents, "labels", -1)
    return tasks.astype(np.int64), labels.astype(np.int64)


def find_labelled(documents: Dataset) -> NDArray[np.bool_]:
    """Whether each document's first entry ``[n]`` has a label, a class or a number."""
    known = _first(documents, "labels", -1) >= 0
    if "values" in documents.column_names:
        known |= ~np.isnan(_first(documents, "values", math.nan))
    return np.asarray(known)


def _first(documents: Dataset, column: str, otherwise: float) -> NDArray[Any]:
    lists = pc.list_slice(documents.data.column(column), 0, 1, return_fixed_size_list=True)
    return np.asarray(pc.fill_null(pc.list_flatten(lists), otherwise).to_numpy())


def read_column(name: str, *tables: Dataset) -> Iterator[list[str]]:
    """The texts of tables, or another column, some at a time."""
    for table in tables:
        for rows in table.with_format(None).select_columns(name).iter(1000):
            yield rows[name]


def _places(items: Sequence[Label | None], among: Sequence[Label]) -> NDArray[np.int32]:
    """The place of each item among others, -1 where it is not there."""
    places: dict[Label | None, int] = {item: place for place, item in enumerate(among)}
    return np.array([places.get(item, -1) for item in items], dtype=np.int32)


def _write_batches(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


def _renumber(batch: pa.RecordBatch, tasks: Any, labels: Any) -> pa.RecordBatch:
    """Put new numbers in the place of old ones; documents of a domain whose new number is -1 are left out."""
    columns = {name: batch[name] for name in batch.schema.names}
    for name, numbers in (("task_ids", tasks), ("labels", labels)):
        new = pa.array(numbers[batch[name].flatten().to_numpy()])
        columns[name] = pa.ListArray.from_arrays(batch[name].offsets, new)
    used = np.ones(len(batch), dtype=bool)
    used[pc.list_parent_indices(columns["task_ids"]).filter(pc.less(columns["task_ids"].flatten(), 0))] = False
    return pa.record_batch(columns, schema=batch.schema).filter(pa.array(used))


def classes_of(
    domains: Iterable[str], classes: Mapping[str, Sequence[Given]] | Sequence[Given]
) -> dict[str, list[Label]]:
    """The classes of each domain, sorted, where they are given for each or for all.

    Raises:
        InputError: If a domain is left out.
    """
    if not isinstance(classes, Mapping):
        return {domain: sort_labels(set(map(plain_label, classes))) for domain in domains}
    if missing := [domain for domain in domains if domain not in classes]:
        raise InputError(f"data.classes has no classes for the domain {missing[0]!r}: name those of every domain")
    return {domain: sort_labels(set(map(plain_label, classes[domain]))) for domain in domains}


def sort_labels(labels: Iterable[Label]) -> list[Label]:
    """Numbers first, by their values."""

    def key(label: Label) -> tuple[bool, Decimal, str]:
        number = number_of(label)
        return number is None, number or Decimal(0), str(label)

    return sorted(labels, key=key)
