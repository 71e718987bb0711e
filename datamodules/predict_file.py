"""The file of texts, or of features, to predict."""

from collections.abc import Iterator
from pathlib import Path

from datasets import Dataset

from lightning_ncmtl.compatibility import rank_zero_info
from lightning_ncmtl.datamodules.cache import Cache, key_of
from lightning_ncmtl.datamodules.corpus import Corpus
from lightning_ncmtl.datamodules.document_table import read_documents, write_documents
from lightning_ncmtl.datamodules.sources import Document, Problem
from lightning_ncmtl.datamodules.sources.base import fingerprint_files
from lightning_ncmtl.datamodules.sources.columns import find_column
from lightning_ncmtl.datamodules.sources.files import find_reader, read_rows
from lightning_ncmtl.datamodules.sources.rows import clean, domain_name
from lightning_ncmtl.errors import InputError

Domains = str | list[str]
RESERVED = ("domain", "prediction", "predictions", "probabilities")  # keys of what is written of a row


def predict_table(name: str | None, corpus: Corpus, cache: Cache) -> Dataset:
    """Read texts, or features, and their domains. Every row gets a prediction: one that cannot be used is an error.

    Args:
        name: A table with the columns ``text`` and ``domain``, and perhaps ``id``: a ``.csv``, ``.tsv`` or ``.jsonl``
            file, plain or ``.gz``, or a ``.parquet`` file. Without a ``domain``, where documents may have labels in
            several, each is in all domains. Where there are features, a file such as their source reads.
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
        what = "is a folder" if path.is_dir() else "does not exist"
        raise InputError(f"the file {name!r} {what}: set data.predict_path to one file")
    if features is None:
        find_reader(path)  # refuses what cannot be read
    elif corpus.source.id in RESERVED:
        raise InputError(
            f"predictions have a {corpus.source.id!r} of their own beside that of data.source.id: rename the column"
        )

    def make(table: Path) -> None:
        documents = _read(path, corpus) if features is None else _read_features(path, corpus)
        places = None if features is None else range(len(features))
        write_documents(table, documents, domains, {domain: [] for domain in domains}, features=places)

    key = key_of(fingerprint_files({}, [path]), domains, corpus.source.multi_label)
    if features is not None:  # what is read depends on the settings of the source, which only its files have a name for
        cache = Cache.temporary()
    found, facts = read_documents(cache.get(f"predict-{key}.arrow", make))
    for line in facts["problems"]:  # none but how the file was read
        rank_zero_info(f"predict: {line}")
    return found


def name_rows(name: str, table: Dataset, corpus: Corpus) -> Iterator[tuple[dict[str, str | int | None], Domains]]:
    """What tells each row that is predicted, and its domain; or all, where it is predicted in each.

    Args:
        name: The file.
        table: What :func:`predict_table` has made of it.
        corpus: As there.

    Yields:
        The ``text``, behind the ``id`` where the file has these. Of features the id, under the name of its column;
        where there is none, the number of the ``row`` from 0.
    """
    path, source = Path(name), corpus.source
    columns = [] if corpus.features is not None else _columns(path, source.multi_label)
    ids = _read_ids(path) if "id" in columns else None
    each = "domain" not in columns and source.multi_label
    number = 0
    for rows in table.with_format(None).select_columns(["text", "task_ids"]).iter(1000):
        for text, tasks in zip(rows["text"], rows["task_ids"], strict=True):
            found: dict[str, str | int | None] = {"text": text}
            if ids is not None:
                found = {"id": next(ids), **found}
            elif corpus.features is not None:
                found = {"row": number} if source.id is None else {source.id: text}
            domains = [corpus.domains[task] for task in tasks]
            yield found, domains if each else domains[0]
            number += 1


def _read(path: Path, corpus: Corpus) -> Iterator[Document | Problem]:
    columns, domains = _columns(path, corpus.source.multi_label), corpus.domains
    needed = "a 'text' and a 'domain'" if "domain" in columns else "a 'text'"
    for item in read_rows(path, columns, optional=["id"]):
        if isinstance(item, Problem):
            if item.kind == "note":
                yield item
                continue
            raise InputError(f"{item}; predict needs {needed} in every row")
        row, where = item
        text, domain = row["text"], domain_name(row["domain"]) if "domain" in columns else None
        if not isinstance(text, str) or ("domain" in columns and domain not in domains):
            known = f" out of {', '.join(domains)}" if "domain" in columns else ""
            raise InputError(f"{where}: predict needs {needed}{known}, found {str(row)[:80]}")
        yield Document(clean(text), dict.fromkeys(domains if domain is None else [domain]), where)


def _columns(path: Path, multi_label: bool) -> list[str]:
    """The columns of texts that are read: of the first row, where one need not be there."""
    first = next(item for item in read_rows(path) if not isinstance(item, Problem) or item.kind != "note")
    found = [] if isinstance(first, Problem) else first[0]
    every = ["text"] if multi_label and find_column("domain", found) is None else ["text", "domain"]
    return every if find_column("id", found) is None else [*every, "id"]


def _read_ids(path: Path) -> Iterator[str | None]:
    """A second time, as they are nothing that a document has."""
    for item in read_rows(path, ["id"], optional=["id"]):
        if not isinstance(item, Problem):  # none but notes, as it was read before
            value = item[0].get("id")
            yield None if value is None else clean(str(value))


def _read_features(path: Path, corpus: Corpus) -> Iterator[Document | Problem]:
    assert corpus.features is not None
    for item in corpus.source.read_new(path, corpus.features, corpus.domains):
        if isinstance(item, Problem):
            if item.kind == "note":
                yield item
                continue
            raise InputError(f"{item}; predict needs all features of every row")
        if unknown := [domain for domain in item.labels if domain not in corpus.domains]:
            raise InputError(
                f"{item.where}: predict needs a domain out of {', '.join(corpus.domains)}, found {unknown[0]!r}"
            )
        yield item
