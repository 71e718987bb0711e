"""Tables of numbers: CSV, TSV, JSONL, Parquet, NumPy and MATLAB files."""

import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from lightning_ncmtl.datamodules.sources.arrays import CELL, SUFFIXES, read_arrays
from lightning_ncmtl.datamodules.sources.base import Document, Problem, Source, Split, choose, fingerprint_files
from lightning_ncmtl.datamodules.sources.columns import describe, find_column, fold, match_columns
from lightning_ncmtl.datamodules.sources.files import Rows, convert, find_files, find_reader, read_rows, tell_cause
from lightning_ncmtl.datamodules.sources.rows import Layout, cell_text, domain_name, domain_of_file, short
from lightning_ncmtl.errors import InputError


class _Columns(NamedTuple):
    features: list[str]
    labels: dict[str, str]  # of each task, where every row may have one for several


class FeatureTables(Source):
    """Tables with the features of a row in columns of numbers, and its class in another column.

    Files are ``.csv``, ``.tsv`` and ``.jsonl``, plain or ``.gz``, ``.parquet``, ``.npz`` or ``.mat``, given by name or
    by a pattern such as ``folder/**/*.csv``. Each is a task, named as the file is up to the first dot, unless a column
    tells the task (*long*), or every row has a column of labels for each task, empty where it is unknown (*wide*).

    In files of arrays (see :func:`lightning_ncmtl.datamodules.sources.arrays.read_arrays`) the columns of a matrix
    ``X`` are ``X1``, ``X2``, ... MATLAB's cell arrays have a task in each cell, which is called by its number.

    Names of columns may be patterns: ``X*`` are all whose names start with an X. Case and outer spaces make no
    difference, unless two columns differ in nothing else.

    Args:
        path: Files of the training split.
        test_path: Files of the test split, if there is one.
        features: Columns of the features; by default all others that have a name.
        label: Column of the label, a whole number or a name; or the columns of several, which name the tasks, or
            stand behind these (``{task: column}``).
        task: Column of the task.
        id: Column of what tells rows apart: predictions keep it, and rows that have the same, such as one molecule in
            several tasks, never fall into different parts of a split.
        split_by: Column of groups, such as patients: rows that have the same never fall into different parts either.
        groups: Which tasks are known to be alike, for reports and controls, never for training: the tasks of each
            group, ``{foliated: ["01", "02"], desert: ["03"]}``.

    Raises:
        InputError: If the settings contradict each other.
    """

    columns_setting = "data.source.features"  # which tells the columns that features come from

    def __init__(
        self,
        path: str | list[str],
        test_path: str | list[str] | None = None,
        features: str | list[str] | None = None,
        label: str | list[str] | dict[str, str] = "label",
        task: str | None = None,
        id: str | None = None,
        split_by: str | None = None,
        groups: dict[str, list[str]] | None = None,
    ) -> None:
        if not label:
            raise InputError(f"rows need a column of labels: set data.source.label, found {label!r}")
        if not isinstance(label, str) and task is not None:
            raise InputError(
                f"either the labels name the tasks, or the column {task!r} does: set data.source.task to null, or "
                "data.source.label to one column"
            )
        named = [task for tasks in (groups or {}).values() for task in tasks]
        if twice := sorted({task for task in named if named.count(task) > 1}):
            raise InputError(f"a task is in one group, found {twice[0]!r} twice in data.source.groups")
        self.files: dict[Split, str | list[str]] = {"train": path}
        if test_path is not None:
            self.files["test"] = test_path
        self.columns = [features] if isinstance(features, str) else features
        self.label = label
        self.task = task
        self.id = id
        self.split_by = split_by
        self._groups = groups
        self._found: tuple[str, _Columns] | None = None  # and the fingerprint of the files that have them
        self._tasks: tuple[str, list[str]] | None = None  # the same way

    @property
    def planted_groups(self) -> dict[str, int] | None:
        if self._groups is None:
            return None
        return {task: number for number, tasks in enumerate(self._groups.values()) for task in tasks}

    @property
    def multi_label(self) -> bool:
        return not isinstance(self.label, str)

    def features(self) -> list[str]:
        return self._find_columns().features

    def splits(self) -> set[Split]:
        return set(self.files)

    def domains(self) -> list[str]:
        now = self.fingerprint()
        if self._tasks is None or self._tasks[0] != now:
            self._tasks = now, sorted(self._find_columns().labels) if self.multi_label else self._scan()
        tasks = self._tasks[1]
        if (known := self.planted_groups) is not None and (odd := sorted({*tasks} ^ known.keys())):
            raise InputError(
                f"data.source.groups must have each of the tasks {', '.join(tasks)}, found {odd[0]!r} "
                f"{'in none' if odd[0] in tasks else 'among others'}"
            )
        return tasks

    def read(self, split: Split, domains: Collection[str] | None = None) -> Iterator[Document | Problem]:
        columns = self._find_columns()
        if domains is not None:
            choose(domains, self.domains(), "the table")
        labels = {task: columns.labels[task] for task in columns.labels if domains is None or task in domains}
        for file in self._find(split):
            names = _names(file)
            if self.columns is None and not all(map(str.strip, names)):
                what = "a column without a name, such as the index of a data frame, is no feature"
                yield Problem(str(file), what, "note")
            task = self._task_column(file, names)
            layout = Layout((), labels if self.multi_label else str(self.label), task, domains, self.split_by)
            yield from self._read(file, layout, columns.features)

    def read_new(self, file: Path, features: Sequence[str], domains: Collection[str]) -> Iterator[Document | Problem]:
        """As :meth:`Source.read_new`; of a wide table, each row is in every task."""
        names = _names(file)
        _need([*features, *self._others()], names, file, "predict needs the columns that the model was trained on")
        layout = Layout((), {} if self.multi_label else None, self._task_column(file, names))
        for item in self._read(file, layout, features):
            if self.multi_label and isinstance(item, Document):
                item = item._replace(labels=dict.fromkeys(domains))
            yield item

    def settings_of_new(self) -> dict[str, Any]:
        own = {"path": [], "label": self.label, "task": self.task, "id": self.id}
        return {**super().settings_of_new(), "init_args": own}

    def fingerprint(self) -> str:
        settings = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        files = [file for split in self.files for file in self._find(split)]
        return fingerprint_files({"class": type(self).__name__, **settings}, files)

    def _find(self, split: Split) -> list[Path]:
        if split not in self.files:
            raise InputError(f"there are no files of the {split} split: set data.source.{split}_path")
        return find_files(self.files[split], "data.source.path" if split == "train" else "data.source.test_path")

    def _others(self) -> list[str]:
        """Columns that every row needs beside features and labels, also one to predict."""
        return [column for column in (self.task, self.id) if column is not None]

    def _task_column(self, file: Path, names: Collection[str]) -> str | None:
        in_cells = file.suffix.lower() in SUFFIXES and CELL in names
        return CELL if in_cells and self.task is None and not self.multi_label else self.task

    def _find_columns(self) -> _Columns:
        now = self.fingerprint()
        if self._found is None or self._found[0] != now:
            first, *others = [file for split in self.files for file in self._find(split)]
            columns = self._columns_of(first)
            for file in others:
                found = self._columns_of(file)
                for name in ("features", "labels"):
                    ours, theirs = ({fold(column): column for column in getattr(of, name)} for of in (columns, found))
                    if odd := sorted((ours | theirs)[column] for column in ours.keys() ^ theirs.keys()):
                        raise InputError(
                            f"{file} has other {name} than {first}: {odd[0]!r} is only in one of them, so set "
                            f"data.source.{name.removesuffix('s')} to columns that both have"
                        )
            self._found = now, columns
        return self._found[1]

    def _columns_of(self, file: Path) -> _Columns:
        names = _names(file)
        labels = self.label
        if isinstance(labels, list):
            labels = {column.strip(): column for column in _match(labels, names, file, "set data.source.label")}
        used = [*labels.values()] if isinstance(labels, dict) else [labels]
        if self.multi_label and ".jsonl" in file.suffixes:  # in which empty labels may be left out
            used = [column for column in used if find_column(column, names) is not None]
        others = {
            *_need(used, names, file, "set data.source.label"),
            *_need(self._others(), names, file, "set data.source.task and data.source.id"),
            *_need([] if self.split_by is None else [self.split_by], names, file, "set data.source.split_by"),
            *([CELL] if file.suffix.lower() in SUFFIXES else []),
        }
        if self.columns is None:
            features = [name for name in names if name not in others and name.strip()]
        else:
            features = _match(self.columns, names, file, f"set {self.columns_setting}")
        if not features:
            raise InputError(f"{file} has no columns but those of label, task and id: set {self.columns_setting}")
        if twice := sorted(others.intersection(find_column(name, names) for name in features)):
            raise InputError(f"the column {twice[0]!r} of {file} cannot be a feature, too: set {self.columns_setting}")
        return _Columns(features, labels if isinstance(labels, dict) else {})

    def _scan(self) -> list[str]:
        """The tasks of the training files."""
        found: set[str | None] = set()
        for file in self._find("train"):
            task = self._task_column(file, _names(file))
            if task is None:
                found.add(domain_of_file(file))
            else:
                rows = (item for item in _rows(file, [task]) if not isinstance(item, Problem))
                found |= {domain_name(row[task]) for row, _ in rows}
        if not (named := [name for name in found if name is not None]):
            raise InputError(f"no row names a task in {self.task!r}: set data.source.task")
        return sorted(named)

    def _read(self, file: Path, layout: Layout, features: Sequence[str]) -> Iterator[Document | Problem]:
        columns = dict.fromkeys([*features, *layout.columns, *([] if self.id is None else [self.id])])
        rows = _rows(file, list(columns), layout.optional)
        return tell_cause(convert(rows, partial(self._document, layout, features, domain_of_file(file))))

    def _document(
        self, layout: Layout, features: Sequence[str], home: str, row: dict[str, Any], where: str
    ) -> Document | None:
        document = layout.document(row, where, home)
        if document is None:
            return None
        name = "" if self.id is None else cell_text(row[self.id])
        return self._complete(document._replace(text=name), row, features)

    def _complete(self, document: Document, row: dict[str, Any], features: Sequence[str]) -> Document:
        """A document with its features."""
        return document._replace(features=_numbers(row, features))


def _rows(file: Path, columns: Collection[str] = (), optional: Collection[str] = ()) -> Rows:
    if file.suffix.lower() not in SUFFIXES:
        return read_rows(file, columns, optional)
    return convert(read_arrays(file), lambda row, where: (_rename(row, columns), where))


def _rename(row: dict[str, Any], columns: Collection[str]) -> dict[str, Any]:
    if all(column in row for column in columns):
        return row
    return dict(zip(match_columns(columns, list(row)), row.values(), strict=True))


def _names(file: Path) -> list[str]:
    """The columns of a file."""
    if file.suffix.lower() not in SUFFIXES:
        find_reader(file)  # refuses what cannot be read
    problem = None
    for item in _rows(file):
        if not isinstance(item, Problem):
            return list(item[0])
        problem = problem or item
    raise InputError(str(problem))


def _match(patterns: Collection[str], names: Collection[str], file: Path, way_out: str) -> list[str]:
    """The columns that are named, or fit patterns with ``*``; an InputError if there are none."""
    found: dict[str, str] = {}  # by the names in the file
    for pattern in patterns:
        fitting = _fitting(pattern, names) or _fitting(fold(pattern), names, fold) if "*" in pattern else []
        for name in fitting or _need([pattern], names, file, way_out):
            found.setdefault(name, name if fitting else pattern)
    return list(found.values())


def _fitting(pattern: str, names: Iterable[str], how: Callable[[str], str] = str) -> list[str]:
    expression = re.compile(".*".join(map(re.escape, pattern.split("*"))))
    return [name for name in names if expression.fullmatch(how(name))]


def _need(columns: Collection[str], names: Collection[str], file: Path, way_out: str) -> list[str]:
    """The names that these columns have in a file; an InputError where one is missing."""
    found = {column: find_column(column, names) for column in sorted({*columns})}
    if missing := [column for column, name in found.items() if name is None]:
        if "*" in missing[0]:
            way_out += f" to a list for a pattern, [{missing[0]}]"
        raise InputError(f"{file}:1: no column {describe(missing[0], names)}: {way_out}")
    return [name for name in found.values() if name is not None]


def _numbers(row: dict[str, Any], names: Sequence[str]) -> list[float]:
    try:
        numbers = [float(row[name]) for name in names]
    except (TypeError, ValueError, OverflowError):
        numbers = [math.nan]
    if all(map(math.isfinite, numbers)):
        return numbers
    odd = next(name for name in names if not _is_finite(row[name]))
    raise ValueError(f"expected a finite number in the feature {odd!r} (data.source.features), found {short(row[odd])}")


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError, OverflowError):
        return False
