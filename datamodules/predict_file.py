"""The file of texts to predict."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from datasets import Dataset

from lightning_ncmtl.datamodules.cache import Cache, key_of
from lightning_ncmtl.datamodules.document_table import read_documents, write_documents
from lightning_ncmtl.datamodules.sources import Document, Problem
from lightning_ncmtl.datamodules.sources.base import fingerprint_files
from lightning_ncmtl.datamodules.sources.files import find_reader, read_rows
from lightning_ncmtl.datamodules.sources.rows import clean, domain_name
from lightning_ncmtl.errors import InputError


def predict_table(name: str | None, domains: list[str], cache: Cache) -> Dataset:
    """Read texts and their domains. Every row gets a prediction, so one that cannot be used is an error.

    Args:
        name: A table with the columns ``text`` and ``domain``: a ``.csv``, ``.tsv`` or ``.jsonl`` file, plain or
            ``.gz``, or a ``.parquet`` file.
        domains: The known domains.
        cache: Where the result stays.

    Returns:
        A table as :meth:`lightning_ncmtl.datamodules.corpus.Corpus.read` gives it, with unknown labels.

    Raises:
        InputError: If there is no such file, a row cannot be used, or there is none.
    """
    if name is None:
        raise InputError("predict needs a table of texts: set data.predict_path to a .csv, .jsonl or .parquet file")
    path = Path(name)
    if not path.is_file():
        raise InputError(f"the file {name!r} does not exist: set data.predict_path")
    find_reader(path)  # refuses what cannot be read

    def make(table: Path) -> None:
        write_documents(table, _read(path, domains), domains, {domain: [] for domain in domains})

    key = key_of(fingerprint_files({}, [path]), domains)
    return read_documents(cache.get(f"predict-{key}.arrow", make))[0]


def _read(path: Path, domains: Sequence[str]) -> Iterator[Document]:
    for item in read_rows(path, ["text", "domain"]):
        if isinstance(item, Problem):
            raise InputError(f"{item}; predict needs a 'text' and a 'domain' in every row")
        row, where = item
        text, domain = row["text"], domain_name(row["domain"])
        if not isinstance(text, str) or domain not in domains:
            raise InputError(
                f"{where}: predict needs a 'text' and a 'domain' out of {', '.join(domains)}, found {str(row)[:80]}"
            )
        yield Document(clean(text), {str(domain): None}, where)
