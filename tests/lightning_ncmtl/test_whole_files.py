"""A file is whole or not there, whatever happens while it is written."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from lightning_ncmtl.errors import InputError, find_message
from lightning_ncmtl.whole_files import WholeCheckpoints, whole


@contextmanager
def small_disk(size: int) -> Iterator[None]:
    """No file can be larger, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_is_replaced_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    for text in ("one", "two"):
        with whole(path) as part:
            part.write_text(text)
        assert path.read_text() == text
    with pytest.raises(KeyError), whole(path) as part:  # noqa: PT012
        part.write_text("half")
        raise KeyError
    assert path.read_text() == "two"
    assert os.listdir(path.parent) == ["file.txt"]


def test_what_a_killed_process_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file"
    (tmp_path / ".file.part").mkdir()
    (tmp_path / ".file.part" / "something").write_text("old")
    with whole(path) as part:
        part.write_text("new")
    assert os.listdir(tmp_path) == ["file"]


def test_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    with pytest.raises(KeyError), whole(path) as part:  # noqa: PT012
        part.mkdir()
        (part / "a").write_text("half")
        raise KeyError
    assert os.listdir(path) == []
    with whole(path) as part:
        part.mkdir()
        (part / "a").write_text("a")
    assert os.listdir(tmp_path) == ["folder"]
    assert os.listdir(path) == ["a"]
    with pytest.raises(InputError, match="is not empty"), whole(path):
        pass
    assert os.listdir(path) == ["a"]


def test_what_is_no_file_of_its_own_is_written_to(tmp_path: Path) -> None:
    with whole(Path("/dev/null")) as part:
        part.write_text("gone")
    assert Path("/dev/null").is_char_device()
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with whole(tmp_path / "link") as part:
        part.write_text("text")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "text"


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "last.ckpt"
    WholeCheckpoints().save_checkpoint({"step": 1}, path)
    with small_disk(10_000), pytest.raises(OSError, match="too large") as error:
        WholeCheckpoints().save_checkpoint({"step": 2, "weights": torch.zeros(10_000)}, path)
    assert find_message(error.value) == f"File too large: {str(path)!r}"
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert os.listdir(path.parent) == ["last.ckpt"]


def test_errors_of_files_are_one_line_and_others_are_bugs(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError) as error:
        (tmp_path / "file" / "x").mkdir()
    assert find_message(error.value) == f"Not a directory: {str(tmp_path / 'file' / 'x')!r}"
    with pytest.raises(FileNotFoundError) as error:
        (tmp_path / "nowhere").read_text()
    assert find_message(error.value) is None
