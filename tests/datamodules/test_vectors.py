import gzip
from pathlib import Path

import pytest
import torch

from lightning_ncmtl.datamodules.vectors import read_vectors
from lightning_ncmtl.errors import InputError

LINES = "the 1.0 2.0\n. -1 0.5\ncaf\u00e9 3 4\n"
VOCABULARY = {"[PAD]": 0, "[UNK]": 1, ".": 2, "the": 3}
EXPECTED = torch.tensor([[torch.nan] * 2, [torch.nan] * 2, [-1.0, 0.5], [1.0, 2.0]])


@pytest.mark.parametrize("name", ["v.txt", "v.txt.gz"])
def test_reads_the_words_of_the_vocabulary(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(LINES.encode()) if name.endswith("gz") else LINES.encode())
    torch.testing.assert_close(read_vectors(str(path), VOCABULARY), EXPECTED, equal_nan=True)


def test_a_header_and_words_with_spaces(tmp_path: Path) -> None:
    path = tmp_path / "v.txt"
    path.write_text("2 2\nthe 1 2\n. . 7 8\n. -1 0.5\n")
    torch.testing.assert_close(read_vectors(str(path), VOCABULARY), EXPECTED, equal_nan=True)


def test_damaged_compression_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "v.txt.gz"
    whole = bytearray(gzip.compress((LINES * 1000).encode()))
    whole[20:60] = b"x" * 40
    path.write_bytes(bytes(whole))
    with pytest.raises(InputError, match="are damaged|could not convert|expected a word"):
        read_vectors(str(path), VOCABULARY)


def test_a_truncated_download_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "v.txt.gz"
    whole = gzip.compress((LINES * 1000).encode())
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"v.txt.gz' are damaged, perhaps by a broken download"):
        read_vectors(str(path), VOCABULARY)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("the 1 2\nof 1\n", r"v.txt:2: expected a word and 2 values, found 1"),
        ("the 1 2\n. 1 x\n", r"v.txt:2: could not convert"),
        ("of 1 2\n", "have none of the 4 words"),
        ("", "have none of the 4 words"),
    ],
)
def test_damaged_lines_are_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "v.txt"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_vectors(str(path), VOCABULARY)


def test_a_missing_file_is_refused() -> None:
    with pytest.raises(InputError, match="'nowhere.txt' do not exist: set data.vectors"):
        read_vectors("nowhere.txt", VOCABULARY)
