"""The file of texts, or of features, to predict."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from datasets import Dataset

from lightning_ncmtl.datamodules.cache import Cache, key_of
from lightning_ncmtl.datamodules.corpus import Corpus
from lightning_ncmtl.datamodules.document_table import read_documents, write_documents
from lightning_ncmtl.datamodules.sources import Document, Problem
from lightning_ncmtl.datamodules.sources.base import fingerprint_files
from lightning_ncmtl.datamodules.sources.files import find_reader, read_rows
from lightning_ncmtl.datamodules.sources.rows import clean, domain_name
from lightning_ncmtl.errors import InputError


def predict_table(name: str | None, corpus: Corpus, cache: Cache) -> Dataset:
    """Read texts, or features, and their domains. Every row gets a prediction: one that cannot be used is an error.

    Args:
        name: A table with the columns ``text`` and ``domain``: a ``.csv``, ``.tsv`` or ``.jsonl`` file, plain or
            ``.gz``, or a ``.parquet`` file. Where there are features, a file such as their source reads.
        corpus: Of the known domains, and features. Its own files may be gone.
        cache: Where the result of texts stays.

    Returns:
        A table as :meth:`lightning_ncmtl.datamodules.corpus.Corpus.read` gives it, with unknown labels.

    Raises:
        InputError: If there is no such file, a row cannot be used, or there is none.
    """
    if name is None:
        raise InputError("predict needs a table of texts or features: set data.predict_path to a file")
    path, domains, features = Path(name), corpus.domains, corpus.features
    if not path.is_file():
        raise InputError(f"the file {name!r} does not exist: set data.predict_path")
    if features is None:
        find_reader(path)  # refuses what cannot be read

    def make(table: Path) -> None:
        documents = _read(path, domains) if features is None else _read_features(path, corpus)
        places = None if features is None else range(len(features))
        write_documents(table, documents, domains, {domain: [] for domain in domains}, features=places)

    key = key_of(fingerprint_files({}, [path]), domains)
    if features is not None:  # what is read depends on the settings of the source, which only its files have a name for
        cache = Cache.temporary()
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


def _read_features(path: Path, corpus: Corpus) -> Iterator[Document]:
    assert corpus.features is not None
    for item in corpus.source.read_new(path, corpus.features, corpus.domains):
        if isinstance(item, Problem):
            raise InputError(f"{item}; predict needs all features of every row")
        if unknown := [domain for domain in item.labels if domain not in corpus.domains]:
            raise InputError(
                f"{item.where}: predict needs a domain out of {', '.join(corpus.domains)}, found {unknown[0]!r}"
            )
        yield item
