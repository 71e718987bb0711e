"""Tables as lines of text with fields between separators: CSV, and what is called so."""

import csv
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from lightning_ncmtl.datamodules.sources.base import Problem
from lightning_ncmtl.datamodules.sources.columns import match_columns
from lightning_ncmtl.datamodules.sources.text_files import DAMAGE, damaged, open_text

_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_DECIMAL = re.compile(r"\s*([+-]?\d+),(\d+)\s*", re.ASCII)  # where commas are for decimals, others separate fields
_TOLD = re.compile(r"sep=(.)\s*")  # what a spreadsheet may write above the header

csv.field_size_limit(2**31 - 1)  # long documents


def read_delimited(
    file: Path, columns: Collection[str], optional: Collection[str] = (), usual: str = ","
) -> Iterator[tuple[dict[str, Any], str] | Problem]:
    """The rows of a table as :func:`lightning_ncmtl.datamodules.sources.files.read_rows` gives them.

    A row that breaks the rules of CSV is left out, and of several lines in it only the first: a quote that is never
    closed takes no other row with it.

    Args:
        file: The file.
        columns: The columns that are needed.
        optional: Not used: a header has them all.
        usual: The separator that such files mostly have. Where it finds no columns, others are tried.
    """
    header: list[str] | None = None
    number = 1
    try:
        with open_text(file, newline="") as opened:
            lines = _Lines(line.replace("\0", "\ufffd") for line in opened)
            separator = _find_separator(lines, columns, usual)
            # Strict, for a quote that is never closed would make one document of the rest of the file.
            rows = csv.reader(lines, delimiter=separator, strict=True)
            while True:
                number = lines.begin_row()
                where = f"{file}:{number}"
                try:
                    row = next(rows, None)
                except csv.Error as error:
                    what = f"cannot be read as CSV: {error}"
                    if header is None:
                        yield Problem(where, f"{what}; the file is skipped")
                        return
                    if len(lines.row) > 1:
                        what = "a quote is not closed in this line, which is left out"
                        lines.read_again(1)
                    yield Problem(where, what)
                    continue
                if row is None:
                    return
                if not row:  # a blank line
                    continue
                if header is None:
                    try:
                        header = match_columns(columns, row)
                    except ValueError as error:
                        yield Problem(where, f"{error}; the file is skipped")
                        return
                    if separator != usual and len(header) > 1:
                        between = _SEPARATORS.get(separator, repr(separator))
                        commas = ", and commas in numbers are decimal points" if separator == ";" else ""
                        yield Problem(where, f"fields are separated by {between}{commas}", "note")
                elif len(row) != len(header):
                    over = f", over {len(lines.row)} lines" if len(lines.row) > 1 else ""
                    yield Problem(where, f"expected {len(header)} fields, found {len(row)}{over}")
                else:
                    if separator == ";":
                        row = [
                            f"{parts[1]}.{parts[2]}" if (parts := _DECIMAL.fullmatch(cell)) else cell for cell in row
                        ]
                    yield dict(zip(header, row, strict=True)), where
    except DAMAGE as error:
        yield damaged(file, number, error)


class _Lines:
    """Lines, of which those of the row that is being read can be read again.

    Attributes:
        row: The lines of the row so far.
    """

    def __init__(self, lines: Iterable[str]) -> None:
        self.row: list[str] = []
        self._lines = iter(lines)
        self._again: list[str] = []  # the next is the last
        self._number = 0  # of lines before the row

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._again.pop() if self._again else next(self._lines)
        self.row.append(line)
        return line

    def begin_row(self) -> int:
        """Begin a new row: the number of its first line."""
        self._number += len(self.row)
        self.row = []
        return self._number + 1

    def read_again(self, keep: int) -> None:
        """Take all lines of the row but the first ones as not read yet."""
        self._again.extend(reversed(self.row[keep:]))
        del self.row[keep:]


def _find_separator(lines: _Lines, columns: Collection[str], usual: str) -> str:
    """What separates the fields of the header: what is told, or what gives the columns needed, or most of them."""
    header = next((line for line in lines if line.strip()), "")
    if told := _TOLD.fullmatch(header):
        return told[1]
    lines.read_again(0)
    names = {mark: next(csv.reader([header], delimiter=mark), []) for mark in dict.fromkeys([usual, *_SEPARATORS])}
    fitting = (mark for mark, found in names.items() if (columns or len(found) > 1) and _fits(columns, found))
    return next(fitting, None) or max(names, key=lambda mark: len(names[mark]))


def _fits(columns: Collection[str], found: list[str]) -> bool:
    try:
        return bool(match_columns(columns, found))
    except ValueError:
        return False
