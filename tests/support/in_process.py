"""Cells of a comparison without processes of their own."""

import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from lightning_ncmtl.main import main


class InProcess:
    """In the place of a process: runs the command of a cell at once, in this one, which has imported all it needs."""

    def __init__(self, command: list[str], directory: Path, jobs: int) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        log = (directory / "log.txt").open("a")
        with log, redirect_stdout(log), redirect_stderr(log), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # which a process prints
            try:
                main(command[3:])
                self.returncode = 0
            except SystemExit as error:
                self.returncode = int(str(error.code))

    def poll(self) -> int:
        return self.returncode
