"""Reading files that may be damaged: lines of text, and rows of tables."""

import csv
import glob
import gzip
import json
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from lightning_ncmtl.datamodules.sources.base import Problem
from lightning_ncmtl.errors import InputError

Rows = Iterator[tuple[dict[str, Any], str] | Problem]

# What reading a file may raise, and what Arrow may raise besides: values that Python cannot hold, or no valid UTF-8.
DAMAGE = (EOFError, OSError, zlib.error)
ARROW_DAMAGE = (pa.ArrowException, OSError, ValueError, OverflowError)

csv.field_size_limit(2**31 - 1)  # long documents


def find_files(patterns: str | list[str], setting: str) -> list[Path]:
    """The files of names and patterns, sorted; an InputError that names the ``setting`` if one has no file."""
    found: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        names = [pattern] if Path(pattern).is_file() else glob.glob(pattern, recursive=True)
        files = {name for name in names if Path(name).is_file()}
        if not files:
            raise InputError(f"no file matches {pattern!r}: set {setting} to files, or such as 'folder/*.csv'")
        found |= files
    return sorted(map(Path, found))


def read_lines(file: Path) -> Iterator[tuple[str, str] | Problem]:
    r"""The lines of a text file, plain or ``.gz``, and where each stands: ``(line, "file:number")``.

    Bytes that are not UTF-8 become U+FFFD. Lines end with ``\n`` or ``\r\n`` only, not with the rarer ends of lines
    that texts may hold. Where a ``.gz`` breaks off or is damaged, the last item is a problem.
    """
    number = 0
    try:
        with _open(file, newline="\n") as lines:
            for number, line in enumerate(lines, start=1):
                yield line.rstrip("\r\n"), f"{file}:{number}"
    except DAMAGE as error:
        yield _damaged(file, number + 1, error)


def read_rows(file: Path, columns: Collection[str] = (), optional: Collection[str] = ()) -> Rows:
    """The rows of a table by the names of their columns, and where each stands: ``(row, "file:line")``.

    In Parquet files, which have no lines, the number is that of the row. Characters that are no text, such as half a
    surrogate pair, are replaced where rows become documents, not here.

    Args:
        file: A ``.csv``, ``.tsv`` or ``.jsonl`` file, plain or ``.gz``, or a ``.parquet`` file.
        columns: Columns that rows need. What lacks one is a problem, and of a Parquet file no others are read.
        optional: Those of them that a JSON object may lack.

    Raises:
        InputError: If the file has another suffix.
    """
    empty = True
    reader = find_reader(file)
    if reader is _read_jsonl:
        columns = [column for column in columns if column not in optional]
    for item in reader(file, columns):
        empty = False
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


def batch_rows(batch: Any, places: Iterator[str]) -> Rows:
    """The rows of a pyarrow ``RecordBatch`` or ``Table``, which stand at the next ``places``."""
    try:
        batch.validate(full=True)
        rows = batch.to_pylist()
    except ARROW_DAMAGE as error:
        if len(batch) == 1:
            yield Problem(next(places), f"the row cannot be read: {_one_line(error)}")
            return
        for index in range(len(batch)):
            yield from batch_rows(batch.slice(index, 1), places)
    else:
        yield from zip(rows, places, strict=False)  # rows first, so that no place is lost


def find_reader(file: Path) -> Callable[[Path, Collection[str]], Rows]:
    """What reads such files; an InputError if :func:`read_rows` cannot read them."""
    name = file.name.lower()
    reader = _READERS.get(Path(name.removesuffix(".gz")).suffix)
    if reader is None or name.endswith(".parquet.gz"):
        raise InputError(
            f"cannot read {str(file)!r}: tables are .csv, .tsv or .jsonl files, plain or .gz, or .parquet files"
        )
    return reader


def _read_csv(file: Path, columns: Collection[str], delimiter: str = ",") -> Rows:
    header: list[str] | None = None
    number = 1
    try:
        with _open(file, newline="") as lines:
            # Strict, for a quote that is never closed would make one document of the rest of the file.
            rows = csv.reader((line.replace("\0", "\ufffd") for line in lines), delimiter=delimiter, strict=True)
            while True:
                number = rows.line_num + 1
                where = f"{file}:{number}"
                try:
                    row = next(rows, None)
                except csv.Error as error:
                    yield Problem(where, f"cannot be read as CSV: {error}")
                    if header is None:
                        return
                    continue
                if row is None:
                    return
                if not row:  # a blank line
                    continue
                if header is None:
                    header = row
                    if wrong := _wrong_columns(columns, header):
                        yield Problem(where, f"{wrong}; the file is skipped")
                        return
                elif len(row) != len(header):
                    yield Problem(where, f"expected {len(header)} fields, found {len(row)}")
                else:
                    yield dict(zip(header, row, strict=True)), where
    except DAMAGE as error:
        yield _damaged(file, number, error)


def _read_jsonl(file: Path, columns: Collection[str]) -> Rows:
    def parse(line: str, where: str) -> tuple[dict[str, Any], str] | None:
        if not line.strip():
            return None
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"not JSON: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"expected a JSON object, found {line[:40]!r}")
        if wrong := _wrong_columns(columns, list(row)):
            raise ValueError(wrong)
        return row, where

    return convert(read_lines(file), parse)


def _read_parquet(file: Path, columns: Collection[str]) -> Rows:
    number = 1
    try:
        with pq.ParquetFile(file) as table:
            names = table.schema_arrow.names
            if wrong := _wrong_columns(columns, names):
                yield Problem(f"{file}:1", f"{wrong}; the file is skipped")
                return
            for group in range(table.num_row_groups if names else 0):
                places = (f"{file}:{place}" for place in count(number))
                number += table.metadata.row_group(group).num_rows
                yield from _read_row_group(table, group, list(columns or names), places)
    except ARROW_DAMAGE as error:
        yield _damaged(file, number, error)


def _read_row_group(table: pq.ParquetFile, group: int, columns: list[str], places: Iterator[str]) -> Rows:
    try:
        for batch in table.iter_batches(batch_size=128, row_groups=[group], columns=columns):
            yield from batch_rows(batch, places)
    except ARROW_DAMAGE as error:
        yield Problem(next(places), f"the rest of row group {group} is damaged: {_one_line(error)}")


def _open(file: Path, newline: str) -> TextIO:
    opener = gzip.open if file.suffix.lower() == ".gz" else open
    return opener(file, "rt", encoding="utf-8-sig", errors="replace", newline=newline)


def _wrong_columns(columns: Collection[str], found: list[str]) -> str | None:
    """What is wrong with the columns found, if anything is: one that is needed is missing, or there twice."""
    names = ", ".join(repr(name[:40]) for name in found[:20]) + (", ..." if len(found) > 20 else "")
    for column in columns:
        if (count := found.count(column)) != 1:
            return f"{'no column' if not count else f'{count} columns'} {column!r} among {names or 'none'}"
    return None


def _damaged(file: Path, number: int, error: BaseException) -> Problem:
    return Problem(f"{file}:{number}", f"cannot be read from here on, perhaps a broken download: {_one_line(error)}")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


_READERS: dict[str, Callable[[Path, Collection[str]], Rows]] = {
    ".csv": _read_csv,
    ".tsv": partial(_read_csv, delimiter="\t"),
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}
