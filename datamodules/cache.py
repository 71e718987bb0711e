"""Files that are made once and found again: by other processes of the same run, and by later runs."""

import atexit
import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import datasets
from filelock import FileLock

from lightning_ncmtl.errors import InputError


class Cache:
    """A folder of files whose names tell all that went into them.

    Args:
        folder: The folder; by default one in the cache of the ``datasets`` library (``HF_DATASETS_CACHE``). It may be
            removed at any time when nothing runs.
    """

    def __init__(self, folder: str | None = None) -> None:
        self.folder = Path(folder or Path(datasets.config.HF_DATASETS_CACHE) / "lightning-ncmtl").absolute()

    @classmethod
    def temporary(cls) -> "Cache":
        """One that ends with this process: for what nobody can recognise later."""
        folder = tempfile.mkdtemp(prefix="lightning-ncmtl-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        return cls(folder)

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Let one process at a time make what a name stands for.

        Raises:
            InputError: If the folder cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / f"{name}.lock")
            lock.acquire()
        except OSError as error:
            raise InputError(f"cannot write to {str(self.folder)!r} ({error}): set data.cache_dir") from error
        try:
            yield
        finally:
            lock.release()

    def get(self, name: str, make: Callable[[Path], None]) -> Path:
        """The path of a file, which is made if it is not there.

        Args:
            name: The file's name.
            make: Writes the file to the path that it is given. If it fails, nothing is kept; if several processes need
                the file, one makes it and the others wait.

        Raises:
            InputError: If the folder cannot be written.
        """
        path = self.folder / name
        if path.exists():
            return path
        with self.lock(name):
            if not path.exists():
                unfinished = path.with_name(f"unfinished-{name}")
                try:
                    make(unfinished)
                    unfinished.rename(path)
                finally:
                    unfinished.unlink(missing_ok=True)
        return path


def key_of(*parts: object) -> str:
    """A short name for plain values, and for the code that reads and prepares documents."""
    return hashlib.sha256("\n".join([_code(), *map(repr, parts)]).encode()).hexdigest()[:24]


@cache
def _code() -> str:
    """A hash of all files of this package: what another version of it has made is not used."""
    files = sorted(Path(__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
