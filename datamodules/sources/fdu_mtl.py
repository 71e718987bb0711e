"""FDU-MTL: product and film reviews in 16 domains (Liu, Qiu & Huang, ACL 2017)."""

import re
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path
from typing import get_args

from lightning_ncmtl.datamodules.sources.base import Document, Problem, Source, Split, choose, fingerprint_files
from lightning_ncmtl.datamodules.sources.files import convert
from lightning_ncmtl.datamodules.sources.text_files import read_lines
from lightning_ncmtl.errors import InputError


class FDUMTL(Source):
    """A folder with ``DOMAIN.task.train`` and ``DOMAIN.task.test`` of lines ``label<TAB>text``.

    ``DOMAIN.task.unlabel`` holds lines of nothing but text.

    Args:
        path: The folder.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def domains(self) -> list[str]:
        if not self.path.is_dir():
            raise InputError(f"the FDU-MTL folder {str(self.path)!r} does not exist: set data.source.path")
        if not (found := self._names("train")):
            raise InputError(f"the folder {str(self.path)!r} holds no file DOMAIN.task.train")
        return found

    def splits(self) -> set[Split]:
        if not self.path.is_dir():
            self.domains()  # says what is missing
        return {split for split in get_args(Split) if self._names(split)}

    def read(self, split: Split, domains: Collection[str] | None = None) -> Iterator[Document | Problem]:
        if not (found := self._names(split)):
            raise InputError(f"the folder {str(self.path)!r} holds no file DOMAIN.task.{split}")
        chosen = choose(domains, {*self._names("train"), *found}, repr(str(self.path)))
        for domain in found if domains is None else chosen:
            file = self.path / f"{domain}.task.{split}"
            if file.is_file():
                yield from convert(read_lines(file), partial(_parse, domain=domain, split=split))
            else:
                yield Problem(str(file), f"there is no such file, so {domain!r} has no {split} documents")

    def fingerprint(self) -> str:
        return fingerprint_files({"class": "FDUMTL"}, self.path.glob("*.task.*"))

    def _names(self, split: Split) -> list[str]:
        """The domains with a file for the split."""
        return sorted(file.name.removesuffix(f".task.{split}") for file in self.path.glob(f"*.task.{split}"))


def _parse(line: str, where: str, domain: str, split: Split) -> Document:
    if split == "unlabel":
        return Document(line, {domain: None}, where)
    label, tab, text = line.partition("\t")
    if not tab or not re.fullmatch(r"-?\d{1,18}", label.strip(), re.ASCII):
        raise ValueError(f"expected 'label<TAB>text', found {line[:40]!r}")
    return Document(text, {domain: int(label)}, where)
