"""Reading rows of tables from files that may be damaged."""

import glob
import json
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lightning_ncmtl.datamodules.sources.base import Problem
from lightning_ncmtl.datamodules.sources.columns import match_columns
from lightning_ncmtl.datamodules.sources.delimited import read_delimited
from lightning_ncmtl.datamodules.sources.text_files import damaged, one_line, read_lines
from lightning_ncmtl.errors import InputError

Rows = Iterator[tuple[dict[str, Any], str] | Problem]

# What reading Arrow data may raise: also for values that Python cannot hold, or that are no valid UTF-8.
ARROW_DAMAGE = (pa.ArrowException, OSError, ValueError, OverflowError)


def find_files(patterns: str | list[str], setting: str) -> list[Path]:
    """The files of names and patterns, sorted; an InputError that names the ``setting`` if one has no file."""
    found: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        names = [pattern] if Path(pattern).is_file() else glob.glob(pattern, recursive=True)
        files = {name for name in names if Path(name).is_file()}
        if not files:
            if pattern and Path(pattern).is_dir():
                raise InputError(f"{pattern!r} is a folder: set {setting} to files in it, '{Path(pattern)}/*.csv'")
            raise InputError(f"no file matches {pattern!r}: set {setting} to files, or such as 'folder/*.csv'")
        found |= files
    return sorted(map(Path, found))


def read_rows(file: Path, columns: Collection[str] = (), optional: Collection[str] = ()) -> Rows:
    """The rows of a table by the names of their columns, and where each stands: ``(row, "file:line")``.

    In Parquet files, which have no lines, the number is that of the row. Characters that are no text, such as half a
    surrogate pair, are replaced where rows become documents, not here.

    Args:
        file: A ``.csv``, ``.tsv`` or ``.jsonl`` file, plain or ``.gz``, or a ``.parquet`` file.
        columns: Columns that rows need, and have under these names (see ``columns.py``). What lacks one is a problem,
            and of a Parquet file no others are read.
        optional: Those of them that a JSON object may lack.

    Raises:
        InputError: If the file has another suffix.
    """
    empty = True
    for item in find_reader(file)(file, columns, optional):
        empty = empty and isinstance(item, Problem) and item.kind == "note"
        yield item
    if empty:
        yield Problem(f"{file}:1", "empty: the file has no rows")


def convert(items: Iterable[Any], make: Callable[[Any, str], Any]) -> Iterator[Any]:
    """What ``make`` makes of each item and its place, but ``None``; where it raises a ``ValueError``, a problem."""
    for item in items:
        try:
            made = item if isinstance(item, Problem) else make(*item)
        except ValueError as error:
            made = Problem(item[1], str(error))
        if made is not None:
            yield made


def tell_cause(items: Iterable[Any]) -> Iterator[Any]:
    """The documents and problems of a file; where there is no document, the first problem again, as the cause."""
    first, used = None, False
    for item in items:
        if not isinstance(item, Problem):
            used = True
        elif first is None and item.kind == "left out":
            first = item
        yield item
    if not used and first is not None:
        yield first._replace(kind="cause")


def batch_rows(batch: Any, places: Iterator[str]) -> Rows:
    """The rows of a pyarrow ``RecordBatch`` or ``Table``, which stand at the next ``places``."""
    try:
        batch.validate(full=True)
        rows = batch.to_pylist()
    except ARROW_DAMAGE as error:
        if len(batch) == 1:
            yield Problem(next(places), f"the row cannot be read: {one_line(error)}")
            return
        for index in range(len(batch)):
            yield from batch_rows(batch.slice(index, 1), places)
    else:
        yield from zip(rows, places, strict=False)  # rows first, so that no place is lost


def find_reader(file: Path) -> Callable[[Path, Collection[str], Collection[str]], Rows]:
    """What reads such files; an InputError if :func:`read_rows` cannot read them."""
    name = file.name.lower()
    reader = _READERS.get(Path(name.removesuffix(".gz")).suffix)
    if reader is None or name.endswith(".parquet.gz"):
        raise InputError(
            f"cannot read {str(file)!r}: tables are .csv, .tsv or .jsonl files, plain or .gz, or .parquet files"
        )
    return reader


def _read_jsonl(file: Path, columns: Collection[str], optional: Collection[str]) -> Rows:
    def parse(line: str, where: str) -> tuple[dict[str, Any], str] | None:
        if not line.strip():
            return None
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"not JSON: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"expected a JSON object, found {line[:40]!r}")
        names = match_columns(columns, list(row), optional)
        return dict(zip(names, row.values(), strict=True)), where

    return convert(read_lines(file), parse)


def _read_parquet(file: Path, columns: Collection[str], optional: Collection[str]) -> Rows:
    number = 1
    try:
        with pq.ParquetFile(file) as table:
            found = table.schema_arrow.names
            try:
                names = match_columns(columns, found)
            except ValueError as error:
                yield Problem(f"{file}:1", f"{error}; the file is skipped")
                return
            used = {name: wanted for name, wanted in zip(found, names, strict=True) if not columns or wanted in columns}
            for group in range(table.num_row_groups if names else 0):
                places = (f"{file}:{place}" for place in count(number))
                number += table.metadata.row_group(group).num_rows
                yield from _read_row_group(table, group, used, places)
    except ARROW_DAMAGE as error:
        yield damaged(file, number, error)


def _read_row_group(table: pq.ParquetFile, group: int, names: dict[str, str], places: Iterator[str]) -> Rows:
    """The columns that the keys name, by the names that stand there."""
    try:
        for batch in table.iter_batches(batch_size=128, row_groups=[group], columns=list(names)):
            yield from batch_rows(batch.rename_columns([names[name] for name in batch.schema.names]), places)
    except ARROW_DAMAGE as error:
        yield Problem(next(places), f"the rest of row group {group} is damaged: {one_line(error)}")


_READERS: dict[str, Callable[[Path, Collection[str], Collection[str]], Rows]] = {
    ".csv": read_delimited,
    ".tsv": partial(read_delimited, usual="\t"),
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}
