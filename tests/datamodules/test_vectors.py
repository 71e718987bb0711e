import gzip
import zipfile
from pathlib import Path

import pytest
import torch

from lightning_ncmtl.datamodules.vectors import read_vectors
from lightning_ncmtl.errors import InputError

LINES = "the 1.0 2.0\n. -1 0.5\ncaf\u00e9 3 4\n"
VOCABULARY = {"[PAD]": 0, "[UNK]": 1, ".": 2, "the": 3}
EXPECTED = torch.tensor([[torch.nan] * 2, [torch.nan] * 2, [-1.0, 0.5], [1.0, 2.0]])


def write_zip(path: Path, **members: str) -> str:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("folder/", "")
        for name, content in members.items():
            archive.writestr(f"{name}.txt", content)
    return str(path)


@pytest.mark.parametrize("name", ["v.txt", "v.txt.gz"])
def test_reads_the_words_of_the_vocabulary(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(LINES.encode()) if name.endswith("gz") else LINES.encode())
    vectors = read_vectors(str(path), VOCABULARY)
    assert vectors.dtype == torch.float32
    torch.testing.assert_close(vectors, EXPECTED, equal_nan=True)


def test_reads_a_file_in_a_zip(tmp_path: Path) -> None:
    one = write_zip(tmp_path / "one.zip", v=LINES)
    two = write_zip(tmp_path / "two.zip", small="the 1\n", large=LINES)
    for path in (one, f"{one}/v.txt", f"{two}/large.txt"):
        torch.testing.assert_close(read_vectors(path, VOCABULARY), EXPECTED, equal_nan=True)
    with pytest.raises(InputError, match=r"two.zip' holds 2 files: name one behind it, .*small.txt, .*large.txt"):
        read_vectors(two, VOCABULARY)
    with pytest.raises(InputError, match=r"two.zip' holds no file 'huge.txt': name one behind it, of .*small.txt, "):
        read_vectors(f"{two}/huge.txt", VOCABULARY)


@pytest.mark.parametrize("end", [" \n", "\r\n", "\n"])
def test_a_header_and_words_with_spaces(tmp_path: Path, end: str) -> None:
    path = tmp_path / "v.txt"
    path.write_bytes(end.join(["2 2", "the 1 2", ". . 7 8", "a\u0085\rb 7 8", ". -1 0.5", ""]).encode())
    torch.testing.assert_close(read_vectors(str(path), VOCABULARY), EXPECTED, equal_nan=True)


def test_of_a_word_that_comes_twice_the_last_counts(tmp_path: Path) -> None:
    path = tmp_path / "v.txt"
    path.write_text("the 8 8\n. -1 0.5\nthe 1 2\n")
    torch.testing.assert_close(read_vectors(str(path), VOCABULARY), EXPECTED, equal_nan=True)


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
def test_a_truncated_zip_is_refused(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "v.zip"
    whole = Path(write_zip(path, v=LINES * 1000)).read_bytes()
    path.write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(InputError, match=r"v.zip' are damaged, perhaps by a broken download"):
        read_vectors(str(path), VOCABULARY)


def test_a_damaged_zip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "v.zip"
    whole = bytearray(Path(write_zip(path, v=LINES * 1000)).read_bytes())
    for start in range(100, len(whole) // 2, 20):
        damaged = bytearray(whole)
        damaged[start : start + 4] = b"xxxx"
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="are damaged|could not convert|expected"):
            read_vectors(str(path), VOCABULARY)


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
        ("the 1 2\n. 1 nan\n", r"v.txt:2: expected finite values, found '. 1 nan'"),
        ("the 1 2\n. 1 1e99\n", r"v.txt:2: expected finite values, found '. 1 1e99'"),
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
    with pytest.raises(InputError, match="'nowhere.txt' do not exist: set data.text.vectors"):
        read_vectors("nowhere.txt", VOCABULARY)
