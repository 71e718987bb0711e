"""From a row of a table to a document."""

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from lightning_ncmtl.datamodules.sources.base import GAPS, Document, Gap, Given, plain_label
from lightning_ncmtl.errors import InputError

_WHOLE = re.compile(r"(-?\d+)\.0*", re.ASCII)  # how whole numbers are written in a column with gaps


@dataclass(frozen=True)
class Layout:
    """Which columns of a table hold what.

    Args:
        text: Columns of the text, joined by newlines.
        label: Column of the label; or that of each domain's label, where documents may have several; or ``None``.
        domain: Column of the domain, if there is one.
        domains: The domains whose documents are read; all by default.
        group: Column of the group, if there is one.
        gaps: Whether labels may be words for gaps, such as ``NA``.
    """

    text: tuple[str, ...]
    label: str | Mapping[str, str] | None
    domain: str | None = None
    domains: Collection[str] | None = None
    group: str | None = None
    gaps: bool = True

    @property
    def columns(self) -> list[str]:
        """The columns needed, each once."""
        labels = list(self.label.values()) if isinstance(self.label, Mapping) else [self.label]
        return [
            column for column in dict.fromkeys([*self.text, *labels, self.domain, self.group]) if column is not None
        ]

    @property
    def optional(self) -> list[str]:
        """Those of them that a JSON object may lack: the labels of several domains."""
        labels = self.label.values() if isinstance(self.label, Mapping) else []
        return [column for column in labels if column not in self.text]

    def document(self, row: Mapping[str, Any], where: str, home: str = "") -> Document | None:
        """The document of a row, if it is read; it belongs to the domain ``home`` where no column says more.

        Raises:
            ValueError: If a cell cannot be used.
        """
        parts = [column for column in self.text if row[column] is not None] or self.text  # no title, say
        text = "\n".join(_text(row[column], column) for column in parts)
        group = "" if self.group is None else _group(row[self.group], self.group)
        if isinstance(self.label, Mapping):
            found = {domain: self._label(row.get(column), column) for domain, column in self.label.items()}
            known = {domain: label for domain, label in found.items() if label is not None}
            return Document(text, known, where, group=group)
        label = None if self.label is None else self._label(row[self.label], self.label)
        domain = home if self.domain is None else _domain(row[self.domain], self.domain)
        used = self.domains is None or domain in self.domains
        return Document(text, {domain: label}, where, group=group) if used else None

    def _label(self, value: object, column: str) -> Given | None:
        label = _label(value, column)
        is_gap = self.gaps and isinstance(label, str) and label.lower() in GAPS
        return Gap(label) if is_gap else label


def check_columns(text: str | list[str], label: object) -> tuple[str, ...]:
    """The columns of the text; an InputError if there are none of the text, or of the label."""
    if not text or not label:
        raise InputError(f"documents need columns: set data.source.text and data.source.label, found {text=}, {label=}")
    return (text,) if isinstance(text, str) else tuple(text)


def clean(text: str) -> str:
    """A text without halves of surrogate pairs, which JSON and names of files may hold and UTF-8 may not."""
    return text.encode("utf-8", "replace").decode()


def domain_name(value: object) -> str | None:
    """The domain that a cell names, if it does."""
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        return None
    if not isinstance(value, str) and not (math.isfinite(value) and value == value // 1 and abs(value) < 10**18):
        return None
    return _name(value) or None


def cell_text(value: object) -> str:
    """What a cell has, as text: empty if nothing; a whole number also where gaps in its column made it a fraction."""
    if value is None or value != value:  # NaN
        return ""
    return clean(str(int(value) if isinstance(value, float) and value.is_integer() else value)).strip()


def domain_of_file(file: Path) -> str:
    """The domain that a file is, where no column tells one: its name up to the first dot."""
    return clean(file.name.lstrip(".").partition(".")[0])


def _text(value: object, column: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected a text in {column!r}, found {short(value)}")
    return clean(value)


def _domain(value: object, column: str) -> str:
    name = domain_name(value)
    if name is None:
        raise ValueError(f"expected a domain in {column!r}, found {short(value)}")
    return name


def _group(value: object, column: str) -> str:
    if value is not None and not isinstance(value, str | int | float | Decimal):
        raise ValueError(f"expected a group in {column!r}, a number or a text, found {short(value)}")
    name = _name(value)
    return "" if name.lower() in GAPS else name


def _name(value: object) -> str:
    """As :func:`cell_text`, where texts may have been written by what made whole numbers fractions."""
    text = cell_text(value)
    return whole[1] if (whole := _WHOLE.fullmatch(text)) else text


def _label(value: object, column: str) -> Given | None:
    if isinstance(value, str):
        return plain_label(clean(value)) if value.strip() else None
    if value is None or value != value:  # NaN
        return None
    if isinstance(value, Decimal):
        return plain_label(str(value))
    if isinstance(value, int | float) and value == value // 1 and abs(value) < 10**18:
        return int(value)
    if isinstance(value, float) and math.isfinite(value):  # whether its task is to predict a number is not known here
        return value
    raise ValueError(f"expected a label in {column!r}, a number or a text, found {short(value)}")


def short(value: object) -> str:
    """A cell, for messages."""
    text = repr(value) if value is None or isinstance(value, str | int | float) else f"a {type(value).__name__}"
    return text if len(text) <= 40 else f"{text[:40]}..."
