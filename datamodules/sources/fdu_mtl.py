"""FDU-MTL: product and film reviews in 16 domains (Liu, Qiu & Huang, ACL 2017)."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from lightning_ncmtl.datamodules.sources.base import Document, Source, Split
from lightning_ncmtl.errors import InputError


class FDUMTL(Source):
    """A folder with ``DOMAIN.task.train`` and ``DOMAIN.task.test`` of lines ``label<TAB>text``.

    ``DOMAIN.task.unlabel`` holds lines of text alone, which :meth:`read` gives the label -1.

    Bytes that are not UTF-8 are read as the replacement character U+FFFD.

    Args:
        path: The folder.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def domains(self) -> list[str]:
        if not self.path.is_dir():
            raise InputError(f"the FDU-MTL folder {str(self.path)!r} does not exist: set data.source.path")
        found = sorted(file.name.removesuffix(".task.train") for file in self.path.glob("*.task.train"))
        if not found:
            raise InputError(f"the folder {str(self.path)!r} holds no file DOMAIN.task.train")
        return found

    def splits(self) -> set[Split]:
        domains = self.domains()
        return {split for split in get_args(Split) if all(self._file(domain, split).is_file() for domain in domains)}

    def read(self, domain: str, split: Split) -> Iterator[Document]:
        if domain not in (known := self.domains()):
            raise InputError(f"unknown domain {domain!r}: {str(self.path)!r} has {', '.join(known)}")
        file = self._file(domain, split)
        if not file.is_file():
            raise InputError(f"there is no file {str(file)!r}, which the {split} split of {domain!r} needs")
        with file.open(encoding="utf-8", errors="replace", newline="\n") as lines:
            for number, line in enumerate(lines, start=1):
                line = line.rstrip("\r\n")
                if split == "unlabel":
                    yield Document(line, -1)
                    continue
                label, tab, text = line.partition("\t")
                if not tab or not re.fullmatch(r"-?\d+", label.strip()):
                    raise InputError(f"{file}:{number}: expected 'label<TAB>text', found {line[:40]!r}")
                yield Document(text, int(label))

    def _file(self, domain: str, split: Split) -> Path:
        return self.path / f"{domain}.task.{split}"
