"""Files that are whole or not there: a full disk, or the end of the process, leaves what was there before."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning_ncmtl.compatibility import TorchCheckpointIO
from lightning_ncmtl.errors import InputError


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Write a file, or a folder, under another name beside it, which becomes its own at the end.

    What is no file of its own, such as ``/dev/stdout`` or a link, is written to directly.

    Args:
        path: The file, which is replaced; or the folder, which must be new or empty.

    Yields:
        What to write to.

    Raises:
        InputError: If it is a folder with files.
    """
    if path.is_dir() and any(path.iterdir()):
        raise InputError(f"the folder {str(path)!r} is not empty: choose another one")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink() or (path.exists() and not path.is_file() and not path.is_dir()):
        yield path
        return
    part = path.absolute().with_name(f".{path.absolute().name}.part")
    _remove(part)  # of a process that was killed
    try:
        yield part
        if path.is_dir():  # perhaps someone's working directory, which stays
            for child in part.iterdir():
                os.replace(child, path / child.name)
        else:
            os.replace(part, path)
    except OSError as error:
        error.filename = str(path)  # of a write Python has none, of a copy the one that is read
        raise
    finally:
        _remove(part)


def _remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class WholeCheckpoints(TorchCheckpointIO):
    """Checkpoint files that are whole or not there.

    Lightning's own writes to the temporary directory and moves the file from there. Between two disks that is a copy,
    which a full disk or the end of the process leaves half-written in the place of the checkpoint before.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        if "://" in str(path):  # not on a disk
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with whole(Path(path)) as part:
            super().save_checkpoint(checkpoint, part, storage_options)
