"""The multi-domain sentiment dataset: product reviews of many kinds (Blitzer, Dredze & Pereira, ACL 2007)."""

import re
from collections.abc import Collection, Iterable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path

from lightning_ncmtl.datamodules.sources.base import Document, Label, Problem, Source, Split, choose, fingerprint_files
from lightning_ncmtl.datamodules.sources.files import convert
from lightning_ncmtl.datamodules.sources.text_files import read_lines
from lightning_ncmtl.errors import InputError

Lines = Iterable[tuple[str, str] | Problem]

NAMES: dict[Split, dict[str, int | None]] = {
    "train": {"negative.review": 0, "positive.review": 1},
    "unlabel": {"unlabeled.review": None},
}
SIGNS: dict[str, Label] = {"negative": 0, "positive": 1}
MOST_WORDS = 1_000_000  # of a document, and a hundredth of it of a single term: more are damage


class MultiDomainSentiment(Source):
    """A folder per domain with ``positive.review``, ``negative.review`` and perhaps ``unlabeled.review``.

    Files are plain or ``.gz``, and in either form of the corpus. In the original one, texts are the title and the
    review. In the processed one, with lines of ``term:count`` and a ``#label#``, they are the single words, as often as
    they are counted: their order is lost, and pairs of words repeat them. Labels are 0 (negative) and 1 (positive), or
    the ratings that a processed form has.

    Args:
        path: The folder of the domains' folders.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def domains(self) -> list[str]:
        if not self.path.is_dir():
            raise InputError(f"the folder {str(self.path)!r} of reviews does not exist: set data.source.path")
        found = sorted({file.parent.name for file in self._files() if not file.parent.name.startswith(".")})
        if not found:
            raise InputError(
                f"the folder {str(self.path)!r} holds no file DOMAIN/positive.review: set data.source.path to the "
                "folder of the domains' folders"
            )
        return found

    def splits(self) -> set[Split]:
        domains = self.domains()
        unlabelled = any(self._file(domain, name) for domain in domains for name in NAMES["unlabel"])
        return {"train", "unlabel"} if unlabelled else {"train"}

    def read(self, split: Split, domains: Collection[str] | None = None) -> Iterator[Document | Problem]:
        known = self.domains()
        if split not in self.splits():
            raise InputError(f"the reviews in {str(self.path)!r} have no {split} split")
        for domain in choose(domains, known, repr(str(self.path))):
            for name, label in NAMES[split].items():
                file = self._file(domain, name)
                if file is not None:
                    yield from _read(file, domain, label)
                elif split == "train":
                    yield Problem(str(self.path / domain / name), "the file is missing")

    def fingerprint(self) -> str:
        return fingerprint_files({"class": "MultiDomainSentiment"}, self._files())

    def _files(self) -> list[Path]:
        return [file for end in ("", ".gz") for file in self.path.glob(f"*/*.review{end}") if file.is_file()]

    def _file(self, domain: str, name: str) -> Path | None:
        files = [self.path / domain / name, self.path / domain / f"{name}.gz"]
        return next((file for file in files if file.is_file()), None)


def _read(file: Path, domain: str, label: int | None) -> Iterator[Document | Problem]:
    lines = iter(read_lines(file))
    for first in lines:
        if isinstance(first, Problem):
            yield first
            return
        if start := first[0].strip():
            # A line of terms may start with <num>, but has colons.
            if start.startswith("<") and ":" not in start:
                yield from _read_tags(chain([first], lines), domain, label)
            else:
                yield from convert(chain([first], lines), partial(_parse_terms, domain=domain, label=label))
            return
    yield Problem(f"{file}:1", "empty: the file has no reviews")


def _read_tags(lines: Lines, domain: str, label: int | None) -> Iterator[Document | Problem]:
    """The original form, which looks like XML but is not: tags stand on lines of their own, all else is text."""
    start: str | None = None  # where the review starts
    outside = False  # whether lines outside of reviews were reported
    tag = ""
    parts: dict[str, list[str]] = {}
    for item in lines:
        if isinstance(item, Problem):
            yield item
            continue
        line, where = item
        mark = line.strip()
        if mark == "<review>":
            if start is not None:
                yield Problem(start, "the <review> is not closed")
            start, outside, tag, parts = where, False, "", {"title": [], "review_text": []}
        elif start is None:
            if mark and not outside:
                yield Problem(where, f"expected <review>, found {mark[:40]!r}; lines up to the next one are left out")
                outside = True
        elif mark == "</review>":
            title, text = ("\n".join(part).strip() for part in parts.values())
            if text:
                yield Document(f"{title}\n{text}".strip(), {domain: label}, start)
            else:
                yield Problem(start, "the <review> has no <review_text>")
            start = None
        elif mark[1:-1] in parts and mark == f"<{mark[1:-1]}>":
            tag = mark[1:-1]
        elif mark == f"</{tag}>":
            tag = ""
        elif tag:
            parts[tag].append(line)
    if start is not None:
        yield Problem(start, "the <review> is not closed")


def _parse_terms(line: str, where: str, domain: str, label: int | None) -> Document | None:
    """A line of the processed form: ``term:count term:count ... #label#:positive``."""
    if not line.strip():
        return None
    words: list[str] = []
    found: Label | None = None
    for item in re.findall(r"[^ \t]+", line):
        term, _, count = item.rpartition(":")
        if term == "#label#":
            found = _parse_label(count)
        elif not term or not re.fullmatch(r"\d{1,9}", count, re.ASCII) or int(count) > MOST_WORDS // 100:
            raise ValueError(f"expected 'term:count', found {item[:40]!r}")
        elif "_" not in term.strip("_"):
            words += [term] * int(count)
            if len(words) > MOST_WORDS:
                raise ValueError(f"the terms are counted more than {MOST_WORDS:,} times")
    if label is not None and found is None:
        raise ValueError("the line has no #label#")
    return Document(" ".join(words), {domain: None if label is None else found}, where)


def _parse_label(text: str) -> Label:
    if text in SIGNS:
        return SIGNS[text]
    if match := re.fullmatch(r"(-?\d{1,18})(\.0*)?", text, re.ASCII):
        return int(match[1])
    raise ValueError(f"expected #label#:positive, negative or a whole number, found {text[:40]!r}")
