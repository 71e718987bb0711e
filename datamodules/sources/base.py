"""What a source of documents has to offer."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Literal, NamedTuple

Split = Literal["train", "test", "unlabel"]


class Document(NamedTuple):
    """A text and its label, an integer from 0, or -1 where it is unknown."""

    text: str
    label: int


class Source(ABC):
    """A corpus of labelled documents in several domains."""

    @property
    def planted_groups(self) -> dict[str, int] | None:
        """The true group of each domain, where somebody planted it; reports compare the found clusters with it."""
        return None

    @abstractmethod
    def domains(self) -> list[str]:
        """Names of all domains, sorted."""

    @abstractmethod
    def splits(self) -> set[Split]:
        """The splits that can be read for every domain."""

    @abstractmethod
    def read(self, domain: str, split: Split) -> Iterator[Document]:
        """The documents of one domain, in a fixed order.

        Raises:
            InputError: If there is no such domain or split, or a line cannot be read.
        """
