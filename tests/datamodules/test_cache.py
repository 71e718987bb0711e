import threading
import time
from pathlib import Path

import pytest

from lightning_ncmtl.datamodules.cache import Cache, key_of
from lightning_ncmtl.errors import InputError


def test_files_are_made_once(tmp_path: Path) -> None:
    made: list[Path] = []

    def make(path: Path) -> None:
        made.append(path)
        time.sleep(0.05)
        path.write_text("content")

    threads = [threading.Thread(target=Cache(str(tmp_path / "cache")).get, args=("name", make)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert Cache(str(tmp_path / "cache")).get("name", make).read_text() == "content"


def test_what_is_not_finished_is_not_kept(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        path.write_text("half")
        raise RuntimeError("disk full")

    cache = Cache(str(tmp_path))
    with pytest.raises(RuntimeError, match="disk full"):
        cache.get("name", fail)
    assert cache.get("name", lambda path: path.write_text("whole") and None).read_text() == "whole"
    assert {file.name for file in tmp_path.iterdir()} == {"name", "name.lock"}


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write to '.*file/cache' .*: set data.cache_dir"):
        Cache(str(tmp_path / "file/cache")).get("name", Path.touch)


def test_keys_tell_values_apart() -> None:
    keys = {key_of(*parts) for parts in ([1, 2], ["1", 2], ["1, 2"], [], [[1, 2]])}
    assert len(keys) == 5
    assert key_of({"a": [1]}, None) == key_of({"a": [1]}, None)
