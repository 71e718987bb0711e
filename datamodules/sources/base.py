"""What a source of documents has to offer."""

import hashlib
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, NamedTuple

from lightning_ncmtl.errors import InputError

Split = Literal["train", "test", "unlabel"]
Label = str | int  # in this order: what reads settings must not make numbers of texts such as "+1"
Given = Label | float  # what rows may have: fractions, too
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d{1,3})?", re.ASCII | re.IGNORECASE)

# How gaps in a column of labels are written, in lower case: words of R, pandas, SQL, Weka and SAS; codes of others
_WORDS = {"na", "n/a", "<na>", "nan", "+nan", "-nan", "nat", "nil", "none", "null", "(null)", "<null>", "\\n", "?", "."}
_CODES = {"#n/a", "#n/a n/a", "#na", "#null!", "#div/0!", "#value!", "#ref!", "#name?", "#num!", "1.#ind", "1.#qnan"}
GAPS = frozenset(_WORDS | _CODES | {"-1.#ind", "-1.#qnan"})


class Document(NamedTuple):
    """A text, and its label in each domain that it belongs to: mostly one, in multi-label corpora several or none.

    A label is ``None`` where it is unknown, a number where the task is to predict one. ``where`` says where the
    document stands (``file:line``), for messages. Where a source has numbers in the place of texts, these are the
    ``features``, and the text is the id of the row, perhaps empty. Rows with the same id are copies of each other.
    Documents of the same ``group``, which is not empty, are no copies, but never fall into different parts of a split
    either.
    """

    text: str
    labels: Mapping[str, Given | None]
    where: str = ""
    features: Sequence[float] | None = None
    group: str = ""


class Gap(str):
    """A label that is a word for a gap (:data:`GAPS`): it is missing, unless the classes have it."""


class Problem(NamedTuple):
    """Something that could not be read and was left out: ``where`` it stands (``file:line``), and ``what`` is wrong.

    Of other kinds nothing is left out: a ``note`` says how something is read, and a ``cause`` is a problem that was
    told before, of a file of which nothing could be used.
    """

    where: str
    what: str
    kind: Literal["left out", "note", "cause"] = "left out"

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" if self.where else self.what


class Source(ABC):
    """A corpus of documents in several domains.

    Attributes:
        id: Name of the column of ids, where documents have features and the texts are ids; predictions keep it.
    """

    id: str | None = None

    @property
    def planted_groups(self) -> dict[str, int] | None:
        """The true group of each domain, where somebody planted it; reports compare the found clusters with it."""
        return None

    @property
    def multi_label(self) -> bool:
        """Whether a document may have labels in several domains, or in none."""
        return False

    def features(self) -> list[str] | None:
        """Names of the numbers that every document has in the place of a text; ``None`` where there are texts.

        Raises:
            InputError: If the files do not have the same.
        """
        return None

    def read_new(self, file: Path, features: Sequence[str], domains: Collection[str]) -> Iterator[Document | Problem]:
        """The documents of a file that is to be predicted, with unknown labels; of sources with features.

        Args:
            file: The file. It need not have labels.
            features: Names of the features that documents have, in this order.
            domains: The known domains.
        """
        raise InputError(f"{type(self).__name__} cannot read new rows to predict, found {str(file)!r}")

    def settings_of_new(self) -> dict[str, Any]:
        """A source that can :meth:`read_new` and no more, without files of its own: what an exported model knows of it.

        Returns:
            Plain values, ``class_path``, and the ``init_args`` that reading needs; by default none.
        """
        return {"class_path": f"{type(self).__module__}.{type(self).__qualname__}", "init_args": {}}

    @abstractmethod
    def domains(self) -> list[str]:
        """Names of all domains, sorted.

        Raises:
            InputError: If there are none.
        """

    @abstractmethod
    def splits(self) -> set[Split]:
        """The splits that can be read."""

    @abstractmethod
    def read(self, split: Split, domains: Collection[str] | None = None) -> Iterator[Document | Problem]:
        """The documents of a split in a fixed order, one at a time.

        What cannot be read comes as a :class:`Problem`, and reading goes on.

        Args:
            split: The split.
            domains: The domains to read; all by default. Documents of others are left out.

        Raises:
            InputError: If there is no such split or domain.
        """

    def fingerprint(self) -> str | None:
        """A text that changes whenever the documents do, without reading them; ``None`` if nothing may be cached."""
        return None


def choose(domains: Collection[str] | None, known: Collection[str], corpus: str) -> Collection[str]:
    """The domains to read, by default all. An InputError if the corpus, in words, does not have one of them."""
    for domain in domains or ():
        if domain not in known:
            raise InputError(f"unknown domain {domain!r}: {corpus} has {', '.join(sorted(known))}")
    return known if domains is None else domains


def plain_label(label: object) -> Label:
    """A label as all sources give it: numbers of the same value are the same label, however they are written.

    Returns:
        A whole number, also one written as text or with zeros behind its point; a fraction as the shortest text of its
        value; any other text without space around it, which numbers of more than 18 digits are.
    """
    if isinstance(label, Integral):
        return int(label)
    text = repr(float(label)) if isinstance(label, Real) else str(label).strip()
    if len(text) > 40 or not _NUMBER.fullmatch(text):
        return text
    number = Decimal(text)
    if abs(number) >= 10**18 or not math.isfinite(value := float(number)):
        return text
    return int(number) if number == int(number) else repr(value)


def number_of(label: Label) -> Decimal | None:
    """The value of a label that is a number, as :func:`plain_label` gives it; a fraction is one, too."""
    return Decimal(label) if isinstance(label, int) or _NUMBER.fullmatch(label) else None


def is_fraction(label: Label) -> bool:
    """Whether :func:`plain_label` has made a label of a fraction."""
    return isinstance(label, str) and (number := number_of(label)) is not None and abs(number) < 10**18


def fingerprint_files(settings: Mapping[str, object], files: Iterable[Path]) -> str:
    """A fingerprint of settings (plain values), and of files by their names, sizes and times of change."""
    parts = [repr(sorted(settings.items()))]
    for file in sorted(files):
        parts.append(f"{file.absolute()} {file.resolve()}")
        if file.exists():  # no link to nowhere
            status = file.stat()
            parts.append(f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}")
    return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogateescape")).hexdigest()
