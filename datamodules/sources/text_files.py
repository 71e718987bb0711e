"""Opening text files that may be packed, damaged, or in another encoding than UTF-8."""

import codecs
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from lightning_ncmtl.datamodules.sources.base import Problem

DAMAGE = (EOFError, OSError, zlib.error)  # what reading a file may raise

# The first that fits: the mark of UTF-32 begins like that of UTF-16. These encodings read their mark themselves.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    codecs.BOM_UTF8: "utf-8-sig",
}


def open_text(file: Path, newline: str) -> TextIO:
    """A text file, plain or ``.gz``, in UTF-8 unless a byte order mark tells another encoding.

    Bytes that are no text in it become U+FFFD.
    """
    opener = gzip.open if file.suffix.lower() == ".gz" else open
    with opener(file, "rb") as opened:
        start = opened.read(4)
    encoding = next((name for mark, name in _MARKS.items() if start.startswith(mark)), "utf-8")
    return opener(file, "rt", encoding=encoding, errors="replace", newline=newline)


def read_lines(file: Path) -> Iterator[tuple[str, str] | Problem]:
    r"""The lines of a text file (see :func:`open_text`), and where each stands: ``(line, "file:number")``.

    Lines end with ``\n`` or ``\r\n`` only, not with the rarer ends of lines that texts may hold. Where a ``.gz`` breaks
    off or is damaged, the last item is a problem.
    """
    number = 0
    try:
        with open_text(file, newline="\n") as lines:
            for number, line in enumerate(lines, start=1):
                yield line.rstrip("\r\n"), f"{file}:{number}"
    except DAMAGE as error:
        yield damaged(file, number + 1, error)


def damaged(file: Path, number: int, error: BaseException) -> Problem:
    """The problem of a file that cannot be read from a line on."""
    return Problem(f"{file}:{number}", f"cannot be read from here on, perhaps a broken download: {one_line(error)}")


def one_line(error: BaseException) -> str:
    """What an error says, for messages."""
    return " ".join(str(error).split())[:200]
