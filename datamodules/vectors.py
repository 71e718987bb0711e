"""Pretrained word vectors in GloVe's text format."""

import gzip
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from lightning_ncmtl.errors import InputError


def read_vectors(path: str, vocabulary: Mapping[str, int]) -> Tensor:
    """Read the vectors of the words in a vocabulary.

    The file is streamed; only the vocabulary's rows are kept.

    Args:
        path: Lines ``word value value ...``, plain or gzip (``.gz``).
        vocabulary: Id of each word.

    Returns:
        ``[V, dim]``, row ``i`` for the word with id ``i``, NaN where the file lacks the word.

    Raises:
        InputError: If the file is missing, truncated, or has lines of different widths.
    """
    if not Path(path).is_file():
        raise InputError(f"the word vectors {path!r} do not exist: set data.vectors")
    width = 0
    found: dict[int, list[float]] = {}
    opener = gzip.open if path.endswith(".gz") else open
    try:
        with opener(path, "rt", encoding="utf-8", errors="replace") as lines:
            for number, line in enumerate(lines, start=1):
                if number == 1 and line.count(" ") == 1:
                    continue  # the header of word2vec's format
                word, *values = line.rstrip().rsplit(" ", width or -1)  # a word may hold spaces
                width = width or len(values)
                if len(values) != width or width == 0:
                    raise InputError(f"{path}:{number}: expected a word and {width} values, found {len(values)}")
                if word in vocabulary:
                    found[vocabulary[word]] = [float(value) for value in values]
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"the word vectors {path!r} are damaged, perhaps by a broken download: {error}") from error
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}:{number}: {error}") from error
    if not found:
        raise InputError(f"the word vectors {path!r} have none of the {len(vocabulary)} words of the vocabulary")
    vectors = torch.full((len(vocabulary), width), torch.nan)
    vectors[list(found)] = torch.tensor(list(found.values()))
    return vectors
