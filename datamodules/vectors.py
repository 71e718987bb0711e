"""Pretrained word vectors in GloVe's text format."""

import gzip
import io
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from lightning_ncmtl.compatibility import rank_zero_info
from lightning_ncmtl.errors import InputError


def read_vectors(path: str, vocabulary: Mapping[str, int]) -> Tensor:
    """Read the vectors of the words in a vocabulary.

    The file is streamed; only the vocabulary's rows are kept, of a word that comes twice the last.

    Args:
        path: Lines ``word value value ...``, with or without word2vec's header; plain, gzip (``.gz``), or in a
            ``.zip``. One of several files in a zip is named behind it: ``glove.6B.zip/glove.6B.200d.txt``.
        vocabulary: Id of each word.

    Returns:
        ``[V, dim]``, row ``i`` for the word with id ``i``, NaN where the file lacks the word.

    Raises:
        InputError: If the file is missing, truncated, or has lines of different widths or values that are no finite
            numbers.
    """
    width = number = 0
    found: dict[int, np.ndarray[tuple[int], np.dtype[np.float32]]] = {}
    try:
        # Values that are too large become infinite, without a warning, and are refused.
        with _open(path) as lines, np.errstate(over="ignore"):
            for number, ended in enumerate(lines, start=1):
                line = ended.rstrip()
                if number == 1 and line.count(" ") == 1:
                    continue  # the header of word2vec's format
                word, *values = line.rsplit(" ", width or -1)  # a word may hold spaces
                width = width or len(values)
                if len(values) != width or width == 0:
                    raise InputError(f"{path}:{number}: expected a word and {width} values, found {len(values)}")
                if word in vocabulary:
                    row = np.array(values, dtype=np.float32)
                    if not np.isfinite(row).all():
                        raise InputError(f"{path}:{number}: expected finite values, found {line[:80]!r}")
                    found[vocabulary[word]] = row
    except InputError:
        raise
    except (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile, RuntimeError) as error:
        raise InputError(f"the word vectors {path!r} are damaged, perhaps by a broken download: {error}") from error
    except ValueError as error:
        raise InputError(f"{path}:{number}: {error}") from error
    if not found:
        raise InputError(f"the word vectors {path!r} have none of the {len(vocabulary)} words of the vocabulary")
    vectors = torch.full((max(vocabulary.values()) + 1, width), torch.nan)
    vectors[list(found)] = torch.from_numpy(np.stack(list(found.values())))
    rank_zero_info(f"{path}: vectors for {len(found):,} of {len(vectors):,} words ({len(found) / len(vectors):.1%})")
    return vectors


@contextmanager
def _open(path: str) -> Iterator[IO[str]]:
    """The lines of a file, of what a gzip file holds, or of a member of a zip."""
    archive = next((p for p in (Path(path), *Path(path).parents) if p.suffix == ".zip" and p.is_file()), None)
    with ExitStack() as stack:
        file: Any
        if archive:
            members = stack.enter_context(zipfile.ZipFile(archive))
            file = stack.enter_context(members.open(_member(path, archive, members)))
        elif not Path(path).is_file():
            raise InputError(f"the word vectors {path!r} do not exist: set data.text.vectors")
        elif path.endswith(".gz"):
            file = stack.enter_context(gzip.open(path))
        else:
            file = stack.enter_context(open(path, "rb"))
        yield stack.enter_context(io.TextIOWrapper(file, encoding="utf-8", errors="replace", newline="\n"))


def _member(path: str, archive: Path, members: zipfile.ZipFile) -> str:
    """The file in a zip that the path names, or the only one."""
    names = [member.filename for member in members.infolist() if not member.is_dir()]
    name = Path(path).relative_to(archive).as_posix()
    if name == "." and len(names) == 1:
        return names[0]
    if name in names:
        return name
    problem = f"holds {len(names)} files" if name == "." else f"holds no file {name!r}"
    raise InputError(f"{str(archive)!r} {problem}: name one behind it, of {', '.join(f'{archive}/{n}' for n in names)}")
