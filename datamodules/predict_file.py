"""The file of texts to predict."""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_ncmtl.datamodules.sources import Document
from lightning_ncmtl.errors import InputError


def read_predict_file(name: str | None, domains: Sequence[str]) -> Iterator[Document]:
    """Read texts and their domains.

    Args:
        name: A ``.jsonl`` or ``.csv`` file with the fields ``text`` and ``domain``.
        domains: The known domains.

    Raises:
        InputError: If there is no such file, a row cannot be used, or there is none.
    """
    if name is None:
        raise InputError("predict needs a file of texts: set data.predict_path to a .jsonl or .csv file")
    path = Path(name)
    if not path.is_file():
        raise InputError(f"the file {name!r} does not exist: set data.predict_path")
    return _read(path, domains)


def _read(path: Path, domains: Sequence[str]) -> Iterator[Document]:
    number = 0
    for number, row in enumerate(_read_rows(path), start=1):
        text, domain = row.get("text"), row.get("domain")
        if not isinstance(text, str) or domain not in domains:
            raise InputError(
                f"{path}: row {number} needs a 'text' and a 'domain' out of {', '.join(domains)}, "
                f"found {str(dict(row))[:80]}"
            )
        yield Document(text.encode("utf-8", "replace").decode(), {domain: None})  # JSON may hold half a character
    if not number:
        raise InputError(f"the file {str(path)!r} has no texts")


def _read_rows(path: Path) -> Iterable[Mapping[str, Any]]:
    """The rows of a JSONL or CSV file."""
    if path.suffix not in (".jsonl", ".csv"):
        raise InputError(f"cannot read {str(path)!r}: predict reads .jsonl and .csv files")
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as lines:
        if path.suffix == ".csv":
            csv.field_size_limit(2**31 - 1)  # long documents
            yield from csv.DictReader(lines)
            return
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(f"{path}:{number}: not JSON: {error}") from error
            if not isinstance(row, dict):
                raise InputError(f"{path}:{number}: expected an object with 'text' and 'domain', found {line[:40]!r}")
            yield row
